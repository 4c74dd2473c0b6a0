//! A unix socket to listen on, and its file.

use super::open::connect_unix;
use crate::sys::files;
use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid},
    io::Errno,
};
use socket2::{Domain, SockAddr, Socket, Type};
use std::{
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            fs::{FileTypeExt, MetadataExt},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
};

/// The file of a listening socket: removed when dropped, unless another file has replaced it.
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode. While the socket is open the inode is not reused.
    id: Option<(u64, u64)>,
}

impl SocketFile {
    /// The file of a socket that another process has made.
    pub fn adopt(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            id: id(path),
        }
    }

    /// The socket outlives this process, and so does its file.
    pub fn keep(mut self) {
        self.id = None;
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.id.is_some() && self.id == id(&self.path) {
            // It may be gone already.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Owner and mode of a socket's file: connecting takes the permission to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileRights {
    pub mode: Mode,
    /// A user id; `None`: that of the process.
    pub owner: Option<u32>,
    pub group: Option<u32>,
}

/// Replaces the socket file of a process that has ended, and no other file. The permissions are set
/// before the socket listens: no connection is accepted that they do not allow.
pub fn listen_unix(
    path: &Path,
    backlog: i32,
    rights: &FileRights,
) -> io::Result<(UnixListener, SocketFile)> {
    remove_stale(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    // The bind creates the file with this mode, less the umask: it never has more permissions.
    rustix::fs::fchmod(&socket, rights.mode)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let file = SocketFile {
        path: path.to_owned(),
        id: id(path),
    };
    rights.apply(path)?;
    socket.listen(backlog)?;
    Ok((UnixListener::from(OwnedFd::from(socket)), file))
}

/// Whether [`listen_unix`] could make the file. What listens there now may have ended by then.
pub fn check_listen_unix(path: &Path) -> io::Result<()> {
    SockAddr::unix(path)?;
    if let Ok(meta) = fs::symlink_metadata(path) {
        require_socket(&meta)?;
    }
    files::check_create(path)
}

fn require_socket(meta: &fs::Metadata) -> io::Result<()> {
    match meta.file_type().is_socket() {
        true => Ok(()),
        false => Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "the path exists and is not a socket",
        )),
    }
}

impl FileRights {
    /// Why a file stays with its owner.
    pub fn refused() -> io::Error {
        io::Error::new(
            io::ErrorKind::PermissionDenied,
            "the file cannot be given to that owner or group without CAP_CHOWN",
        )
    }

    /// Sets the rights of a file by a descriptor, and never through a link: in a folder that others
    /// may write to, the path may have been replaced.
    pub fn apply(&self, path: &Path) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
            return Err(io::Error::other("the file was replaced"));
        }
        if Mode::from_raw_mode(stat.st_mode) != self.mode {
            // The umask has removed something. chmod refuses such descriptors, but not their paths.
            let name = format!("/proc/self/fd/{}", file.as_raw_fd());
            rustix::fs::chmod(name, self.mode)?;
        }
        if self.owner.is_none() && self.group.is_none() {
            return Ok(());
        }
        let owner = self.owner.map(Uid::from_raw);
        let group = self.group.map(Gid::from_raw);
        let changed = rustix::fs::chownat(&file, "", owner, group, AtFlags::EMPTY_PATH);
        changed.map_err(|error| match error {
            Errno::PERM => Self::refused(),
            error => error.into(),
        })
    }
}

fn id(path: &Path) -> Option<(u64, u64)> {
    let meta = fs::symlink_metadata(path).ok()?;
    Some((meta.dev(), meta.ino()))
}

/// Removes the socket file of a process that was killed: a running process accepts on it.
fn remove_stale(path: &Path) -> io::Result<()> {
    let Ok(meta) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    require_socket(&meta)?;
    // Not blocking: a process that does not accept would be waited for without end.
    match connect_unix(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        // Whether its process runs cannot be found out.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Err(e),
        _ => Err(io::ErrorKind::AddrInUse.into()),
    }
}
