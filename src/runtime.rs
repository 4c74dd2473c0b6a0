//! What traffic runs on: the threads of workers, their reactors, tasks, sockets and timers.

pub mod executor;
pub mod heartbeat;
pub mod mailbox;
pub mod net;
pub mod pause;
pub mod reactor;
pub mod time;
mod timer_fd;
pub mod timer_wheel;
pub mod watched_files;
pub mod worker;
