//! The admin socket. Every client that can connect may change everything, so only its owner can.

use crate::{
    runtime::net::{FileRights, SocketFile, listen_unix},
    sys::blocking,
};
use rustix::fs::Mode;
use std::{io, path::Path};
use tokio::net::UnixListener;

const BACKLOG: i32 = 128;

/// The file must be kept for as long as the socket is served.
pub async fn listen(path: &Path) -> Result<(UnixListener, SocketFile), String> {
    let describe = |e: io::Error| {
        let hint = match e.kind() {
            io::ErrorKind::AddrInUse => "; another process is listening there",
            io::ErrorKind::NotFound => {
                "; its folder must be there (a systemd unit makes /run/tembuku by RuntimeDirectory=tembuku)"
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                "; its folder must be writable for the user that runs tembuku"
            }
            _ => "",
        };
        format!("cannot listen on {}: {e}{hint}", path.display())
    };
    let owned = path.to_owned();
    let rights = FileRights {
        mode: Mode::RUSR | Mode::WUSR,
        owner: None,
        group: None,
    };
    let bind = move || listen_unix(&owned, BACKLOG, &rights);
    let bound = blocking::call(blocking::LIMIT, bind).await.flatten();
    let (listener, file) = bound.map_err(describe)?;
    let listener = UnixListener::from_std(listener).map_err(describe)?;
    Ok((listener, file))
}
