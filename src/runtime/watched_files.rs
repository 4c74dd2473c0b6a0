//! The folders in which something can happen to files, watched by inotify.
//!
//! Folders and not files: a file that is replaced by another one takes its watch with it.

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    ffi::{OsStr, OsString},
    fs, io,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::{Component, Path, PathBuf},
};
use tokio::io::unix::AsyncFd;

/// The names in a folder that matter.
#[derive(Default)]
struct Names {
    names: BTreeSet<OsString>,
    /// Whether every name matters.
    are_all: bool,
}

impl Names {
    fn extend(&mut self, other: Self) {
        self.names.extend(other.names);
        self.are_all |= other.are_all;
    }
}

/// More symbolic links on the way to a file are a circle.
const MOST_LINKS: usize = 40;
/// Of events.
const BUFFER: usize = 4096;

pub struct WatchedFiles {
    inotify: io::Result<AsyncFd<OwnedFd>>,
    /// The names that matter in each folder, by the number of its watch.
    names: HashMap<i32, Names>,
    /// Why a folder is not watched.
    error: Option<io::Error>,
}

impl WatchedFiles {
    pub fn open() -> Self {
        let opened = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC);
        Self {
            inotify: opened.map_err(io::Error::from).and_then(register),
            names: HashMap::new(),
            error: None,
        }
    }

    /// Why some folders, or all, are not watched.
    pub fn error(&self) -> Option<&io::Error> {
        self.inotify.as_ref().err().or(self.error.as_ref())
    }

    /// Watches these files, and the symbolic links on the way to them, and no others any more.
    pub fn watch<'a>(&mut self, files: impl Iterator<Item = &'a Path>) {
        let mut folders: BTreeMap<PathBuf, Names> = BTreeMap::new();
        for (folder, name) in files.flat_map(names_on_the_way) {
            let names = folders.entry(folder).or_default();
            names.names.insert(name);
        }
        self.watch_names(folders);
    }

    /// Watches what has this path: a file, or a folder with all that is in it.
    pub fn watch_with_folder(&mut self, path: &Path) {
        let mut folders: BTreeMap<PathBuf, Names> = BTreeMap::new();
        for (folder, name) in names_on_the_way(path) {
            folders.entry(folder).or_default().names.insert(name);
        }
        if path.is_dir() {
            folders.entry(path.to_owned()).or_default().are_all = true;
        }
        self.watch_names(folders);
    }

    fn watch_names(&mut self, folders: BTreeMap<PathBuf, Names>) {
        let Ok(inotify) = &self.inotify else {
            return;
        };
        // Not MODIFY: what is being written is not complete.
        let flags = WatchFlags::CREATE
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVE
            | WatchFlags::DELETE
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        let before = std::mem::take(&mut self.names);
        self.error = None;
        for (folder, names) in folders {
            match inotify::add_watch(inotify.get_ref(), &folder, flags) {
                // One folder may be reached by several ways.
                Ok(watch) => self.names.entry(watch).or_default().extend(names),
                Err(error) => self.error = Some(error.into()),
            }
        }
        for watch in before.into_keys().filter(|w| !self.names.contains_key(w)) {
            // An error is that its folder is gone.
            let _ = inotify::remove_watch(inotify.get_ref(), watch);
        }
    }

    /// Returns when something has happened to a file, or when that is not known.
    pub async fn changed(&mut self) {
        let Ok(inotify) = &self.inotify else {
            return std::future::pending().await;
        };
        loop {
            let Ok(mut ready) = inotify.readable().await else {
                return std::future::pending().await;
            };
            if read_events(inotify.get_ref(), &self.names) {
                return;
            }
            ready.clear_ready();
        }
    }
}

#[allow(
    deprecated,
    reason = "what follows it is unsafe, for types that close their descriptor early"
)]
fn register(inotify: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(inotify)
}

/// Reads what has happened, and returns whether it matters. At the end of the queue it does not.
fn read_events(inotify: &OwnedFd, names: &HashMap<i32, Names>) -> bool {
    let mut buffer = [MaybeUninit::uninit(); BUFFER];
    let mut reader = inotify::Reader::new(inotify, &mut buffer);
    let mut matters = false;
    // An error is that there are no more events, or that a comparison is due.
    while let Ok(event) = reader.next() {
        matters |= if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
            true
        } else {
            names.get(&event.wd()).is_some_and(|names| {
                let name = event
                    .file_name()
                    .map(|name| OsStr::from_bytes(name.to_bytes()));
                // Without a name it is about the folder.
                name.is_none_or(|name| names.are_all || names.names.contains(name))
            })
        };
    }
    matters
}

/// The names that lead to a file, each with its folder: of every symbolic link on the way, and of
/// the file itself. `path`: an absolute one.
fn names_on_the_way(path: &Path) -> Vec<(PathBuf, OsString)> {
    let mut found = Vec::new();
    let mut rest: VecDeque<OsString> = steps(path);
    let mut folder = PathBuf::from("/");
    let mut links = 0;
    while let Some(step) = rest.pop_front() {
        if step == ".." {
            folder.pop();
            continue;
        }
        let here = folder.join(&step);
        match fs::read_link(&here) {
            Ok(target) if links < MOST_LINKS => {
                links += 1;
                found.push((folder.clone(), step));
                if target.is_absolute() {
                    folder = PathBuf::from("/");
                }
                for step in steps(&target).into_iter().rev() {
                    rest.push_front(step);
                }
            }
            Ok(_) | Err(_) => {
                if rest.is_empty() {
                    found.push((folder.clone(), step));
                }
                folder = here;
            }
        }
    }
    found
}

fn steps(path: &Path) -> VecDeque<OsString> {
    let components = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    components.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn every_link_on_the_way_to_a_file_is_a_name_to_watch() {
        let name = format!("tembuku-folders-{}", std::process::id());
        let root = fs::canonicalize(std::env::temp_dir())
            .expect("a folder")
            .join(name);
        let mounted = root.join("mounted");
        fs::create_dir_all(mounted.join("..2026")).expect("a folder");
        fs::write(mounted.join("..2026/file"), "").expect("written");
        // As a volume of Kubernetes.
        symlink("..2026", mounted.join("..data")).expect("a link");
        symlink("..data/file", mounted.join("file")).expect("a link");
        symlink(mounted.join("file"), root.join("absolute")).expect("a link");
        symlink("../mounted/circle", mounted.join("circle")).expect("a link");
        let found = |path: &str| {
            let found = names_on_the_way(&root.join(path)).into_iter();
            let relative = found.map(|(folder, name)| {
                let folder = folder.strip_prefix(&root).expect("inside").to_owned();
                folder.join(name).display().to_string()
            });
            relative.collect::<Vec<_>>()
        };
        let way = ["mounted/file", "mounted/..data", "mounted/..2026/file"];
        assert_eq!(found("mounted/file"), way);
        assert_eq!(found("mounted/../mounted/./file"), way);
        assert_eq!(found("absolute"), [&["absolute"][..], &way].concat());
        assert_eq!(found("missing/file"), ["missing/file"]);
        assert_eq!(found("mounted/circle").len(), MOST_LINKS + 1);
        fs::remove_dir_all(root).expect("removed");
    }

    #[tokio::test]
    async fn what_happens_to_other_files_does_not_matter() {
        let name = format!("tembuku-folders-other-{}", std::process::id());
        let root = std::env::temp_dir().join(name);
        fs::create_dir_all(&root).expect("a folder");
        let (file, other) = (root.join("file"), root.join("other"));
        fs::write(&file, "").expect("written");
        let mut folders = WatchedFiles::open();
        folders.watch([file.as_path()].into_iter());
        assert!(folders.error().is_none());
        let inotify = folders.inotify.as_ref().expect("opened").get_ref();
        fs::write(&other, "").expect("written");
        assert!(!read_events(inotify, &folders.names));
        fs::rename(&other, &file).expect("moved");
        assert!(read_events(inotify, &folders.names));
        assert!(!read_events(inotify, &folders.names));
        fs::write(&file, "").expect("written");
        folders.changed().await;
        folders.watch([root.join("missing/file").as_path()].into_iter());
        assert!(folders.error().is_some());
        fs::remove_dir_all(root).expect("removed");
    }
}
