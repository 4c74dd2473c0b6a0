//! Messages to the service manager: the protocol of sd_notify(3), to the socket that NOTIFY_SOCKET
//! names.

use rustix::{
    net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
        SocketFlags, SocketType, sendmsg_addr, socket_with,
    },
    time::{ClockId, clock_gettime},
};
use std::{
    env,
    ffi::OsStr,
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::{fd::BorrowedFd, unix::ffi::OsStrExt as _},
    time::Duration,
};

/// The service manager, from the environment.
#[derive(Debug, Clone)]
pub struct ServiceManager {
    address: SocketAddrUnix,
    /// It requires a notification at least this often.
    pub watchdog: Option<Duration>,
    /// It keeps descriptors for the next process.
    pub has_store: bool,
}

/// Why NOTIFY_SOCKET cannot be used.
#[derive(Debug)]
pub struct UnknownAddress(pub String);

impl ServiceManager {
    /// `None`: there is none that wants messages.
    pub fn from_environment() -> Result<Option<Self>, UnknownAddress> {
        let Some(name) = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Ok(None);
        };
        let address =
            address(&name).ok_or_else(|| UnknownAddress(name.to_string_lossy().into_owned()))?;
        Ok(Some(Self {
            address,
            has_store: has_store(env::var("FDSTORE").ok().as_deref()),
            watchdog: watchdog(
                env::var("WATCHDOG_USEC").ok().as_deref(),
                env::var("WATCHDOG_PID").ok().as_deref(),
                std::process::id(),
            ),
        }))
    }

    /// Sends lines such as `READY=1`, with descriptors. `WouldBlock`: its queue is full.
    pub fn send(&self, message: &str, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(ServiceManager::MOST_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let parts = [IoSlice::new(message.as_bytes())];
        sendmsg_addr(
            &socket,
            &self.address,
            &parts,
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
        Ok(())
    }

    /// With one message; the kernel takes 253.
    pub const MOST_FDS: usize = 128;
}

/// Microseconds of the clock that the service manager compares with its own.
pub fn monotonic_micros() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let (seconds, nanos) = (now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs());
    seconds * 1_000_000 + nanos / 1_000
}

/// Of a file, or of the abstract namespace with a leading `@`.
fn address(name: &OsStr) -> Option<SocketAddrUnix> {
    match name.as_bytes() {
        [b'/', ..] => SocketAddrUnix::new(name.as_bytes()).ok(),
        [b'@', name @ ..] if !name.is_empty() => SocketAddrUnix::new_abstract_name(name).ok(),
        _ => None,
    }
}

/// `owner`: of the process that is watched; absent: this one.
fn watchdog(micros: Option<&str>, owner: Option<&str>, process: u32) -> Option<Duration> {
    if owner.is_some_and(|owner| owner.parse() != Ok(process)) {
        return None;
    }
    let micros = micros?.parse().ok().filter(|micros| *micros > 0)?;
    Some(Duration::from_micros(micros))
}

/// `most`: as many descriptors are kept.
fn has_store(most: Option<&str>) -> bool {
    most.is_some_and(|most| most.parse::<u64>().is_ok_and(|most| most > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_has_places() {
        assert!(has_store(Some("1")));
        for none in [None, Some("0"), Some(""), Some("yes")] {
            assert!(!has_store(none));
        }
    }

    #[test]
    fn a_watchdog_is_for_one_process() {
        let micros = |n| Some(Duration::from_micros(n));
        assert_eq!(watchdog(Some("500"), None, 7), micros(500));
        assert_eq!(watchdog(Some("500"), Some("7"), 7), micros(500));
        assert_eq!(watchdog(Some("500"), Some("8"), 7), None);
        for none in [None, Some("0"), Some("x"), Some("-1")] {
            assert_eq!(watchdog(none, None, 7), None);
        }
    }

    #[test]
    fn addresses_are_files_or_abstract_names() {
        for valid in ["/run/x", "@x"] {
            assert!(address(OsStr::new(valid)).is_some(), "{valid}");
        }
        for unknown in ["", "@", "x", "vsock:2:1"] {
            assert!(address(OsStr::new(unknown)).is_none(), "{unknown}");
        }
    }
}
