//! What the configuration file and the files that it names contain.

use crate::{
    config,
    control::View,
    plan::{Plan, diff::reachable},
    runtime::watched_files::WatchedFiles,
    sys::files,
};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};
use xxhash_rust::xxh3::xxh3_64;

/// Of a file so much is compared.
const MOST_BYTES: u64 = 16 << 20;

/// The files as they were at one moment.
pub(super) struct Look {
    /// A hash of each, or why it cannot be read; `None` for what is no regular file.
    contents: BTreeMap<PathBuf, Result<Option<u64>, io::ErrorKind>>,
    /// Whether the file asks for another plan than the one in effect.
    is_other_plan: bool,
}

impl Look {
    /// Whether there is something to reload. `before`: the look before this one.
    pub(super) fn differs_from(&self, before: Option<&Self>) -> bool {
        let Some(before) = before else {
            // It may have changed since it was read.
            return self.is_other_plan;
        };
        let mut contents = self.contents.iter();
        contents.any(|(path, now)| before.contents.get(path).is_some_and(|then| then != now))
    }
}

/// Watches the files from now on, and reads them. They may hang.
pub(super) fn look(file: &Path, running: &View, folders: &mut WatchedFiles) -> Look {
    let mut all = named(&running.plan);
    all.push(file.to_owned());
    folders.watch(all.iter().map(PathBuf::as_path));
    // Before the file is read: what changes meanwhile differs from these at the next look.
    let mut contents: BTreeMap<PathBuf, _> = all
        .into_iter()
        .map(|path| (path.clone(), hash(&path)))
        .collect();
    let candidate = config::load(file).ok();
    let is_other_plan = candidate
        .as_ref()
        .is_none_or(|plan| config::hash(&reachable(&running.plan, plan)) != running.hash);
    let others: Vec<PathBuf> = candidate.iter().flat_map(named).collect();
    let all = contents.keys().chain(&others);
    folders.watch(all.map(PathBuf::as_path));
    for path in others {
        contents.entry(path).or_insert_with_key(|path| hash(path));
    }
    Look {
        contents,
        is_other_plan,
    }
}

/// The files that a plan names and that a reload reads.
fn named(plan: &Plan) -> Vec<PathBuf> {
    let checks = plan
        .upstreams
        .iter()
        .filter_map(|upstream| upstream.check.as_ref());
    let files = checks.flat_map(|check| check.files());
    files.map(|(_, path)| path.to_owned()).collect()
}

fn hash(path: &Path) -> Result<Option<u64>, io::ErrorKind> {
    let read = || {
        // Reading a FIFO would take from another reader what is meant for it.
        if !fs::metadata(path)?.is_file() {
            return Ok(None);
        }
        Ok(Some(xxh3_64(&files::read(path, MOST_BYTES)?)))
    };
    read().map_err(|error: io::Error| error.kind())
}
