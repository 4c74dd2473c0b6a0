//! Sockets that the service manager has passed to this process: LISTEN_FDS of sd_listen_fds(3),
//! from a socket unit or from its store.

use rustix::{
    fs::fstat,
    io::{FdFlags, fcntl_getfd, fcntl_setfd},
    net::{
        AddressFamily, SocketType, getsockname,
        sockopt::{socket_acceptconn, socket_domain, socket_type},
    },
};
use std::{
    collections::BTreeSet,
    env,
    net::SocketAddr,
    os::{
        fd::{BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

/// A descriptor that was passed.
#[derive(Debug)]
pub struct Passed {
    /// Of the service manager.
    pub name: String,
    pub socket: OwnedFd,
    /// `None`: it is nothing that a listener can use.
    pub kind: Option<SocketKind>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SocketKind {
    /// TCP, and listening.
    Stream(SocketAddr),
    Datagram(SocketAddr),
    /// A listening stream socket with this file.
    Unix(PathBuf),
}

const FIRST: RawFd = 3;
/// No process is passed more.
const MOST: RawFd = 1 << 16;

/// All of them. They can be taken once: a later call returns none.
pub fn take() -> Vec<Passed> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let variable = |name| env::var(name).ok();
    let own = std::process::id();
    let is_for_this = variable("LISTEN_PID").is_some_and(|pid| pid.parse() == Ok(own));
    let count = variable("LISTEN_FDS").and_then(|count| count.parse::<RawFd>().ok());
    let count = count.filter(|count| is_for_this && (1..=MOST).contains(count));
    let Some(count) = count.filter(|_| !TAKEN.swap(true, Relaxed)) else {
        return Vec::new();
    };
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let mut passed = Vec::new();
    for number in FIRST..FIRST + count {
        let name = names.next().unwrap_or_default().to_owned();
        // SAFETY: the borrow ends before the descriptor is closed or owned; that it may not be open
        // is what is found out here.
        let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
        let Ok(flags) = fcntl_getfd(borrowed) else {
            continue;
        };
        let _ = fcntl_setfd(borrowed, flags | FdFlags::CLOEXEC);
        // SAFETY: it is open, and the environment names it as opened for this process, which
        // has not used it: nothing else owns it. It is taken once.
        let socket = unsafe { OwnedFd::from_raw_fd(number) };
        passed.push(Passed {
            kind: kind(&socket),
            name,
            socket,
        });
    }
    // The store may have copies of what a socket unit passes as well.
    let mut known = BTreeSet::new();
    passed.retain(|passed| match fstat(&passed.socket) {
        Ok(stat) => known.insert((stat.st_dev, stat.st_ino)),
        Err(_) => true,
    });
    passed
}

/// `None`: it is nothing that a listener can use.
pub fn kind(socket: &OwnedFd) -> Option<SocketKind> {
    let address = getsockname(socket).ok()?;
    let family = socket_domain(socket).ok()?;
    let is_listening = || socket_acceptconn(socket).unwrap_or(false);
    let kind = socket_type(socket).ok()?;
    if family == AddressFamily::UNIX {
        let address = rustix::net::SocketAddrUnix::try_from(address).ok()?;
        let path = std::ffi::OsStr::from_bytes(address.path_bytes()?);
        let is_usable = kind == SocketType::STREAM && is_listening();
        return is_usable.then(|| SocketKind::Unix(PathBuf::from(path)));
    }
    let address = SocketAddr::try_from(address).ok()?;
    match kind {
        SocketType::STREAM if is_listening() => Some(SocketKind::Stream(address)),
        SocketType::DGRAM => Some(SocketKind::Datagram(address)),
        _ => None,
    }
}
