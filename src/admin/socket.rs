//! The admin socket. Every client that can connect may change everything, so only its owner can.

use crate::{
    runtime::net::{FileRights, SocketFile, check_listen_unix, listen_unix},
    sys::{blocking, files, limits},
};
use rustix::fs::Mode;
use std::{
    fmt, io,
    path::{Path, PathBuf},
};
use tokio::net::UnixListener;

const BACKLOG: i32 = 128;

/// The socket of this path cannot be served.
#[derive(Debug)]
pub struct SocketError {
    path: PathBuf,
    error: io::Error,
}

impl std::error::Error for SocketError {}

impl fmt::Display for SocketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shortage = limits::describe_shortage(&self.error);
        let hint = match self.error.kind() {
            io::ErrorKind::AddrInUse => "; another process is listening there",
            io::ErrorKind::NotFound => {
                "; its folder must be there (a systemd unit makes /run/tembuku by \
                 RuntimeDirectory=tembuku)"
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                "; its folder must be writable for the user that runs tembuku"
            }
            _ => &shortage,
        };
        let Self { path, error } = self;
        write!(f, "cannot listen on {}: {error}{hint}", path.display())
    }
}

/// Whether [`listen`] could make the file, and its folder. Nothing is made.
pub fn check(path: &Path) -> Result<(), SocketError> {
    let checked = match files::missing_folder_of(path) {
        Some(folder) => files::check_create(folder),
        None => check_listen_unix(path),
    };
    checked.map_err(|error| SocketError {
        path: path.to_owned(),
        error,
    })
}

/// The file must be kept for as long as the socket is served.
pub async fn listen(path: &Path) -> Result<(UnixListener, SocketFile), SocketError> {
    let failed = |error: io::Error| SocketError {
        path: path.to_owned(),
        error,
    };
    let owned = path.to_owned();
    let rights = FileRights {
        mode: Mode::RUSR | Mode::WUSR,
        owner: None,
        group: None,
    };
    let bind = move || {
        // As /run/tembuku after a start of the machine.
        files::make_folder_of(&owned);
        listen_unix(&owned, BACKLOG, &rights)
    };
    let bound = blocking::call(blocking::LIMIT, bind).await.flatten();
    let (listener, file) = bound.map_err(failed)?;
    let listener = UnixListener::from_std(listener).map_err(failed)?;
    Ok((listener, file))
}
