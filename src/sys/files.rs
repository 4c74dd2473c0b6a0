//! Files by their names, opened and read without waiting for ever for the other end of a FIFO. A
//! network file system may still hang: see [`crate::sys::blocking`].

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Access, AtFlags, CWD, FileType, Mode, OFlags},
    io::Errno,
};
use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::{
        fd::AsFd,
        unix::fs::{FileExt as _, FileTypeExt as _},
    },
    path::Path,
    time::Duration,
};

/// How long a FIFO or terminal may send nothing while it is read.
pub const SILENCE: Duration = Duration::from_secs(10);

/// The whole content. Of a larger one than `most` bytes, or one without an end, the error is of the
/// kind `FileTooLarge`.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    read_within(path, most, SILENCE)
}

fn read_within(path: &Path, most: u64, silence: Duration) -> io::Result<Vec<u8>> {
    // Not blocking: opening a FIFO would wait for a writer.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if file.metadata()?.file_type().is_fifo() {
        // A FIFO that has had no writer yet reads like one that has ended.
        wait_readable(&file, silence)?;
    }
    let mut bytes = Vec::new();
    loop {
        let rest = (most + 1).saturating_sub(bytes.len() as u64);
        match (&file).take(rest).read_to_end(&mut bytes) {
            Ok(_) if bytes.len() as u64 > most => return Err(too_large(most)),
            Ok(_) => return Ok(bytes),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => wait_readable(&file, silence)?,
            Err(e) => return Err(e),
        }
    }
}

/// What is read has more than `most` bytes.
pub fn too_large(most: u64) -> io::Error {
    let most = match most % (1 << 20) {
        0 => format!("{} MiB", most >> 20),
        _ => format!("{most} bytes"),
    };
    let text = format!("it is larger than {most}");
    io::Error::new(io::ErrorKind::FileTooLarge, text)
}

fn wait_readable(file: &File, limit: Duration) -> io::Result<()> {
    if wait(file, PollFlags::IN, limit)? {
        return Ok(());
    }
    let text = format!("nothing was written to it within {} s", limit.as_secs_f64());
    Err(io::Error::new(io::ErrorKind::TimedOut, text))
}

/// Makes the folder of a file, below one that is there. Where that is not possible the error is
/// that of the file.
pub fn make_folder_of(path: &Path) {
    if let Some(folder) = missing_folder_of(path) {
        let mode = Mode::RWXU | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH;
        let _ = rustix::fs::mkdir(folder, mode);
    }
}

/// What [`make_folder_of`] would make.
pub fn missing_folder_of(path: &Path) -> Option<&Path> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    folder.filter(|folder| !folder.exists())
}

/// Opens for appending, and creates what is not there: it may name clients. Writes do not block:
/// see [`wait_writable`].
pub fn append(path: &Path) -> io::Result<File> {
    let flags = OFlags::WRONLY
        | OFlags::CREATE
        | OFlags::APPEND
        | OFlags::NONBLOCK
        | OFlags::CLOEXEC
        | OFlags::NOCTTY;
    match rustix::fs::open(path, flags, Mode::from_raw_mode(0o640)) {
        Ok(file) => Ok(File::from(file)),
        Err(Errno::NXIO) if is_fifo(path) => Err(io::Error::new(
            io::ErrorKind::NotConnected,
            "it is a FIFO that no process reads: start its reader first",
        )),
        Err(e) => Err(e.into()),
    }
}

/// Whether a file ends within a line, as the log of a process that was killed or whose disk was
/// full. Not of one that is no regular file, or may not be read.
pub fn ends_within_line(path: &Path) -> bool {
    let last = || -> io::Result<u8> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        let about = file.metadata()?;
        let end = about.len().checked_sub(1).filter(|_| about.is_file());
        let mut byte = [0];
        file.read_exact_at(&mut byte, end.ok_or(io::ErrorKind::InvalidInput)?)?;
        Ok(byte[0])
    };
    last().is_ok_and(|byte| byte != b'\n')
}

/// Gives the file this content in one step: a reader finds the old one or the new one, whole.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(".new");
    let new = path.with_file_name(hidden);
    // What a process has left that was killed meanwhile.
    let _ = fs::remove_file(&new);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::open(&new, flags, Mode::from_raw_mode(0o644))?);
    let replaced = file.write_all(bytes).and_then(|()| fs::rename(&new, path));
    replaced.inspect_err(|_| drop(fs::remove_file(&new)))
}

/// Whether [`append`] could open the file once its folder is made; nothing is opened or made.
pub fn check_append(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => Err(Errno::ISDIR.into()),
        Ok(_) => may(path, Access::WRITE_OK),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            check_create(missing_folder_of(path).unwrap_or(path))
        }
        Err(e) => Err(e),
    }
}

/// The same of [`replace`].
pub fn check_replace(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => Err(Errno::ISDIR.into()),
        _ => check_create(path),
    }
}

/// Whether a file or a folder could be made at this path.
pub fn check_create(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|parent| *parent != Path::new(""));
    let folder = folder.unwrap_or(Path::new("."));
    match fs::metadata(folder)?.is_dir() {
        true => may(folder, Access::WRITE_OK | Access::EXEC_OK),
        false => Err(Errno::NOTDIR.into()),
    }
}

fn may(path: &Path, access: Access) -> io::Result<()> {
    rustix::fs::accessat(CWD, path, access, AtFlags::EACCESS)?;
    Ok(())
}

pub fn is_fifo(path: &Path) -> bool {
    rustix::fs::stat(path).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_fifo())
}

/// Whether `file` takes more, or has failed, within `limit`.
pub fn wait_writable(file: impl AsFd, limit: Duration) -> io::Result<bool> {
    wait(file, PollFlags::OUT, limit)
}

fn wait(file: impl AsFd, events: PollFlags, limit: Duration) -> io::Result<bool> {
    let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
    let mut polled = [PollFd::new(&file, events)];
    match poll(&mut polled, Some(&limit)) {
        Ok(ready) => Ok(ready > 0),
        // The caller tries again.
        Err(Errno::INTR) => Ok(true),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    const SHORT: Duration = Duration::from_millis(20);

    fn folder(name: &str) -> PathBuf {
        let name = format!("tembuku-files-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("a folder");
        path
    }

    fn fifo(path: &Path) {
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, path, FileType::Fifo, mode, 0).expect("a FIFO");
    }

    #[test]
    fn a_fifo_without_another_end_blocks_neither_reading_nor_appending() {
        let folder = folder("alone");
        let path = folder.join("fifo");
        fifo(&path);
        let error = read_within(&path, 10, SHORT).expect_err("no writer");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let error = append(&path).expect_err("no reader");
        assert!(error.to_string().contains("FIFO"), "{error}");
        fs::remove_dir_all(folder).expect("removed");
    }

    #[test]
    fn a_fifo_is_read_to_the_end_that_its_writer_makes() {
        let folder = folder("fifo");
        let path = folder.join("fifo");
        fifo(&path);
        let writer = std::thread::spawn({
            let path = path.clone();
            move || fs::write(path, "ab\n").expect("written")
        });
        assert_eq!(read(&path, 10).expect("read"), b"ab\n");
        writer.join().expect("no panic");
        fs::remove_dir_all(folder).expect("removed");
    }

    #[test]
    fn no_more_is_read_than_asked_for() {
        for (most, text) in [(5, "larger than 5 bytes"), (1 << 20, "larger than 1 MiB")] {
            let error = read(Path::new("/dev/zero"), most).expect_err("no end");
            assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
            assert!(error.to_string().contains(text), "{error}");
        }
        assert!(read(Path::new("/"), 5).is_err());
        let missing = read(Path::new("/no/such/file"), 5).expect_err("missing");
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_could_not_be_written_is_found_without_writing() {
        let folder = folder("checked");
        let log = folder.join("log");
        assert!(check_append(&log).is_ok() && check_replace(&log).is_ok());
        assert!(!log.exists());
        let kind = |checked: io::Result<()>| checked.expect_err("not writable").kind();
        let missing = folder.join("missing").join("log");
        // Its folder would be made, and no other one.
        assert!(check_append(&missing).is_ok());
        let deeper = missing.join("log");
        assert_eq!(kind(check_append(&deeper)), io::ErrorKind::NotFound);
        assert_eq!(kind(check_replace(&missing)), io::ErrorKind::NotFound);
        assert_eq!(kind(check_append(&folder)), io::ErrorKind::IsADirectory);
        assert_eq!(kind(check_replace(&folder)), io::ErrorKind::IsADirectory);
        fs::write(&log, "").expect("written");
        assert!(check_append(&log).is_ok());
        assert_eq!(
            kind(check_append(&log.join("log"))),
            io::ErrorKind::NotADirectory
        );
        fs::remove_dir_all(folder).expect("removed");
    }

    #[test]
    fn what_is_appended_stands_at_the_end() {
        let folder = folder("append");
        let path = folder.join("log");
        for text in ["a\n", "b\n"] {
            let mut file = append(&path).expect("opened");
            file.write_all(text.as_bytes()).expect("written");
            assert!(wait_writable(&file, SHORT).expect("polled"));
        }
        assert_eq!(fs::read(&path).expect("read"), b"a\nb\n");
        fs::remove_dir_all(folder).expect("removed");
    }
}
