//! A unix socket to listen on, and its file.

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

/// The file of a socket of ours: removed when dropped, unless somebody has put another in its
/// place.
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

/// Who may connect: to do so takes the right to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileRights {
    pub mode: Mode,
    /// The number of a user; `None`: the user of the process.
    pub owner: Option<u32>,
    pub group: Option<u32>,
}

/// Replaces what a process that has ended left there, and nothing else. All rights are set before
/// the socket listens, so that nobody connects who is not to.
pub fn listen_unix(
    path: &Path,
    backlog: i32,
    rights: &FileRights,
) -> io::Result<(UnixListener, SocketFile)> {
    remove_stale(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    // The bind makes the file with this mode, less the umask: at no time does it have more rights.
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

impl FileRights {
    /// By a descriptor, and never through a link: in a folder that others may write to, the path
    /// could lead elsewhere by now.
    fn apply(&self, path: &Path) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
            return Err(io::Error::other("the file was replaced"));
        }
        if Mode::from_raw_mode(stat.st_mode) != self.mode {
            // The umask has taken something from it. chmod knows no such descriptors, but their
            // names.
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
            Errno::PERM => io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the file cannot be given to that owner or group without CAP_CHOWN",
            ),
            error => error.into(),
        })
    }
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
