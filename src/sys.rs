//! Raw system calls behind safe functions: every `unsafe` block of the project is here.

pub mod blocking;
pub mod files;
pub mod mutex;

pub mod datagram;
pub mod detached;
pub mod handshakes;
pub mod limits;
pub mod listen_fds;
pub mod memory;
pub mod names;
pub mod notify;
pub mod pipe;
pub mod process;
pub mod route;
pub mod socket;
pub mod task;
pub mod upgrade_channel;
