//! Processes that this one starts and that are no children of it: their parent is the service
//! manager, which so learns of their end, and waits for it at a stop.

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    pipe::{PipeFlags, pipe_with},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use std::{
    fs::File,
    io::{self, Read as _},
    os::{
        fd::{AsRawFd as _, OwnedFd, RawFd},
        unix::process::CommandExt as _,
    },
    process::Command,
    time::Duration,
};

#[derive(Debug)]
pub struct Detached {
    pub pid: u32,
    handle: OwnedFd,
}

impl Detached {
    /// Starts a program by way of a process that ends at once: the process that gets its orphans
    /// becomes the parent.
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        let report = write.as_raw_fd();
        // SAFETY: what runs between fork and exec makes system calls only, and `report` is open
        // until the end of this function.
        unsafe { command.pre_exec(move || fork_again(report)) };
        let mut between = command.spawn()?;
        between.wait()?;
        drop(write);
        let mut pid = [0; size_of::<i32>()];
        File::from(read).read_exact(&mut pid)?;
        let pid = Pid::from_raw(i32::from_ne_bytes(pid));
        let pid = pid.ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self {
            handle: pidfd_open(pid, PidfdFlags::empty())?,
            pid: pid.as_raw_pid().unsigned_abs(),
        })
    }

    pub fn kill(&self) {
        // It may have ended.
        let _ = pidfd_send_signal(&self.handle, Signal::KILL);
    }

    /// Returns whether it has ended, within `limit`.
    pub fn wait(&self, limit: Duration) -> bool {
        let mut polled = [PollFd::new(&self.handle, PollFlags::IN)];
        let limit = Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        };
        poll(&mut polled, Some(&limit)).is_ok_and(|ready| ready > 0)
    }
}

/// Goes on in a child, of which it writes the number to `report`, and ends the process that calls.
fn fork_again(report: RawFd) -> io::Result<()> {
    // SAFETY: as fork(2), without what the C library does beside. The process has one thread, and
    // both go on with copies of its memory.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    match i32::try_from(pid) {
        Ok(0) => Ok(()),
        Ok(pid) if pid > 0 => {
            let bytes = pid.to_ne_bytes();
            // SAFETY: the kernel reads as many bytes as the array has; the descriptor is open.
            unsafe { libc::write(report, bytes.as_ptr().cast(), bytes.len()) };
            // SAFETY: it ends the process, and runs nothing of it.
            unsafe { libc::_exit(0) }
        }
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, process::id};

    #[test]
    fn it_is_no_child_and_can_be_ended() {
        let process = Detached::spawn(Command::new("sleep").arg("60")).expect("a process");
        let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid)).expect("its state");
        assert!(stat.contains("(sleep)"), "{stat}");
        let (_, fields) = stat.rsplit_once(") ").expect("fields");
        let parent = fields.split(' ').nth(1).expect("the parent");
        assert_ne!(parent, id().to_string());
        assert!(!process.wait(Duration::ZERO));
        process.kill();
        assert!(process.wait(Duration::from_secs(10)));
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        let error = Detached::spawn(&mut Command::new("/nonexistent")).expect_err("no process");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
