//! A unix socket to listen on, and its file.

use rustix::fs::Mode;
use socket2::{Domain, SockAddr, Socket, Type};
use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::{
            fs::{FileTypeExt, MetadataExt, PermissionsExt},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
};

/// The file of a socket of ours: removed when dropped, unless somebody has put another in its place.
pub struct SocketFile {
    path: PathBuf,
    /// Device and number. While the socket is open nobody else gets the number.
    id: Option<(u64, u64)>,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.id.is_some() && self.id == id(&self.path) {
            // Gone already is as good.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Replaces what a process that has ended left there, and nothing else. `mode`: who may connect; `None` leaves that to the
/// umask.
pub fn listen_unix(
    path: &Path,
    backlog: i32,
    mode: Option<Mode>,
) -> io::Result<(UnixListener, SocketFile)> {
    remove_stale(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    if let Some(mode) = mode {
        // Before the bind, which makes the file with it: at no time may more people connect.
        rustix::fs::fchmod(&socket, mode)?;
    }
    socket.bind(&SockAddr::unix(path)?)?;
    let file = SocketFile {
        path: path.to_owned(),
        id: id(path),
    };
    if let Some(mode) = mode {
        // The umask may have taken something from it.
        fs::set_permissions(path, fs::Permissions::from_mode(mode.as_raw_mode()))?;
    }
    socket.listen(backlog)?;
    Ok((UnixListener::from(OwnedFd::from(socket)), file))
}

fn id(path: &Path) -> Option<(u64, u64)> {
    let meta = fs::symlink_metadata(path).ok()?;
    Some((meta.dev(), meta.ino()))
}

/// A process that was killed leaves its socket file behind; one that lives answers on it.
fn remove_stale(path: &Path) -> io::Result<()> {
    let Ok(meta) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !meta.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "the path exists and is not a socket",
        ));
    }
    // Not blocking: whoever lives but does not accept would be waited for without end.
    let probe = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        // Somebody's, and not for us to tell whether he lives.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Err(e),
        _ => Err(io::ErrorKind::AddrInUse.into()),
    }
}
