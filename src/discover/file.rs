//! Kind `file`: a file, or a folder of files, watched by inotify.

use super::{
    Found, Snapshot, Source, SourceError,
    format::{parse_json, parse_lines, parse_toml},
};
use crate::{plan::Discover, runtime::watched_files::WatchedFiles, sys::blocking, sys::files};
use std::{
    fs,
    future::pending,
    io,
    path::{Path, PathBuf},
    time::Duration,
};
use xxhash_rust::xxh3::xxh3_64;

/// Larger files, of a folder together, are no list of backends.
const MOST_BYTES: u64 = 16 << 20;
/// So many files a folder may have.
const MOST_FILES: usize = 1_000;
/// A file that has changed is read again after so long, until two readings are alike: it may be
/// written in pieces.
const SETTLING: Duration = Duration::from_millis(50);
/// After so many readings it is taken as it is.
const MOST_READINGS: usize = 3;

pub(crate) struct FileSource {
    path: PathBuf,
    timeout: Duration,
    /// How often the file is read even if nothing was reported.
    interval: Duration,
    /// `None`: before the first reading, or after one that took too long.
    watched: Option<WatchedFiles>,
    /// Of the last answer; `None`: there is none, or the last reading has failed.
    last: Option<u64>,
}

/// The files at one moment.
struct Reading {
    /// Each with its name.
    files: Vec<(PathBuf, Vec<u8>)>,
    hash: u64,
}

impl FileSource {
    pub(crate) fn new(path: &Path, discover: &Discover) -> Self {
        Self {
            path: path.to_owned(),
            timeout: discover.timeout,
            interval: discover.interval,
            watched: None,
            last: None,
        }
    }

    async fn read(&mut self) -> Result<Reading, SourceError> {
        let path = self.path.clone();
        let mut watched = self.watched.take().unwrap_or_else(WatchedFiles::open);
        let read = move || {
            // First: what changes afterwards is reported.
            watched.watch_with_folder(&path);
            (read_all(&path), watched)
        };
        let read = blocking::call(self.timeout, read).await;
        let read = read.map(|(read, watched)| {
            self.watched = Some(watched);
            read
        });
        read.flatten().map_err(|e| self.unreadable(&self.path, &e))
    }

    /// Reads until what is read does not change any more.
    async fn read_settled(&mut self) -> Result<Reading, SourceError> {
        let mut reading = self.read().await?;
        for _ in 1..MOST_READINGS {
            if self.last.is_none_or(|last| last == reading.hash) {
                break;
            }
            tokio::time::sleep(SETTLING).await;
            let again = self.read().await?;
            let is_settled = again.hash == reading.hash;
            reading = again;
            if is_settled {
                break;
            }
        }
        Ok(reading)
    }

    fn unreadable(&self, path: &Path, error: &io::Error) -> SourceError {
        SourceError::new(format!("`path`: cannot read {}: {error}", path.display()))
    }

    /// Returns when something has happened to the file since it was read.
    pub(crate) async fn touched(&mut self) {
        match &mut self.watched {
            Some(watched) => watched.changed().await,
            None => pending().await,
        }
    }

    async fn changed(&mut self) {
        let interval = self.interval;
        // Without events, and on network file systems, the interval is what counts.
        let _ = tokio::time::timeout(interval, self.touched()).await;
    }
}

impl Source for FileSource {
    async fn next(&mut self) -> Result<Snapshot, SourceError> {
        loop {
            let before = self.last;
            if before.is_some() {
                self.changed().await;
            }
            let reading = self.read_settled().await;
            self.last = None;
            let reading = reading?;
            if before == Some(reading.hash) {
                self.last = before;
                continue;
            }
            let backends = parse(&reading.files)?;
            self.last = Some(reading.hash);
            return Ok(Snapshot {
                backends,
                version: format!("{:016x}", reading.hash),
                valid_for: None,
                gap: None,
            });
        }
    }
}

fn read_all(path: &Path) -> io::Result<Reading> {
    let mut files = Vec::new();
    if fs::metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            let path = entry?.path();
            // What editors leave, and the inner links of a volume of Kubernetes.
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let is_meant = !name.starts_with('.') && !name.ends_with('~');
            if is_meant && fs::metadata(&path).is_ok_and(|data| data.is_file()) {
                files.push(path);
            }
            if files.len() > MOST_FILES {
                let text = format!("there are more than {MOST_FILES} files in it");
                return Err(io::Error::other(text));
            }
        }
    } else {
        files.push(path.to_owned());
    }
    files.sort_unstable();
    let (mut contents, mut all, mut rest) = (Vec::new(), Vec::new(), MOST_BYTES);
    for path in files {
        let bytes = files::read(&path, rest).map_err(|e| match e.kind() {
            io::ErrorKind::FileTooLarge => files::too_large(MOST_BYTES),
            _ => e,
        })?;
        rest -= bytes.len() as u64;
        all.extend_from_slice(&xxh3_64(path.as_os_str().as_encoded_bytes()).to_le_bytes());
        all.extend_from_slice(&xxh3_64(&bytes).to_le_bytes());
        contents.push((path, bytes));
    }
    Ok(Reading {
        files: contents,
        hash: xxh3_64(&all),
    })
}

fn parse(files: &[(PathBuf, Vec<u8>)]) -> Result<Vec<Found>, SourceError> {
    let mut all = Vec::new();
    for (path, bytes) in files {
        let found = parse_file(path, bytes);
        all.append(&mut found.map_err(|e| e.at(&path.display().to_string()))?);
    }
    Ok(all)
}

fn parse_file(path: &Path, bytes: &[u8]) -> Result<Vec<Found>, SourceError> {
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    if extension.as_deref() == Some("json") {
        return parse_json(bytes);
    }
    let text = str::from_utf8(bytes).map_err(|_| SourceError::new("the file is not UTF-8"))?;
    match extension.as_deref() {
        Some("toml") => parse_toml(text),
        _ => parse_lines(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each could be read, and all of them would not fit into memory.
    #[test]
    fn the_files_of_a_folder_are_limited_together() {
        let name = format!("tembuku-lists-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).expect("a folder");
        for name in ["a", "b"] {
            fs::write(folder.join(name), " ".repeat(9 << 20)).expect("written");
        }
        let error = read_all(&folder).err().expect("too much");
        assert!(error.to_string().contains("larger than 16 MiB"), "{error}");
        fs::remove_file(folder.join("b")).expect("removed");
        assert_eq!(read_all(&folder).expect("a reading").files.len(), 1);
        fs::remove_dir_all(folder).expect("removed");
    }
}
