//! The end of the channel that a process gets from the one that it is to replace: its standard
//! input, for which nothing has to be done between fork and exec.

use rustix::{
    net::{AddressFamily, SocketType, sockopt::socket_domain, sockopt::socket_type},
    stdio::dup2_stdin,
};
use std::{
    env,
    fs::File,
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

/// Says that standard input is the channel.
pub const VARIABLE: &str = "TEMBUKU_HANDOVER";
pub const VALUE: &str = "stdin";

/// `None`: this process replaces no other, or the channel was taken before.
pub fn take_channel() -> Option<io::Result<OwnedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if env::var(VARIABLE).ok().as_deref() != Some(VALUE) || TAKEN.swap(true, Relaxed) {
        return None;
    }
    Some(take())
}

fn take() -> io::Result<OwnedFd> {
    let channel = io::stdin().as_fd().try_clone_to_owned()?;
    let is_channel = socket_type(&channel) == Ok(SocketType::SEQPACKET)
        && socket_domain(&channel) == Ok(AddressFamily::UNIX);
    if !is_channel {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "standard input is not the channel that the environment promises",
        ));
    }
    dup2_stdin(File::open("/dev/null")?)?;
    Ok(channel)
}
