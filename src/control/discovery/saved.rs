//! The last good set of backends, kept on disk for the next process.

use super::{Discovery, backends};
use crate::{
    discover::{Found, merge::Set},
    plan::Discover,
    sys::{blocking, files},
};
use serde::{Deserialize, Serialize};
use std::{
    env, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use xxhash_rust::xxh3::xxh3_64;

/// Set by systemd for `StateDirectory=`. Without it nothing is saved.
const VARIABLE: &str = "STATE_DIRECTORY";
/// A larger file is none of ours.
const MOST_BYTES: u64 = 64 << 20;

pub(super) struct Saved {
    pub(super) source: String,
    pub(super) backends: Set,
    pub(super) version: String,
    /// When the source had this set.
    pub(super) time: SystemTime,
}

#[derive(Serialize, Deserialize)]
struct Contents {
    /// Of the section: a set of another source is not used.
    source: String,
    version: String,
    unix_seconds: u64,
    backends: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    address: String,
    weight: u32,
    backup: bool,
    name: Option<String>,
    draining: bool,
}

/// `None`: there is no set of this source.
pub(super) async fn read(upstream: &str, discover: &Discover) -> Option<Saved> {
    let path = path(upstream)?;
    let (file, source) = (path.display().to_string(), identify(discover));
    let read = blocking::call(discover.timeout, move || load(&path, &source)).await;
    read.flatten().unwrap_or_else(|error| {
        tracing::warn!(upstream, file, %error, "saved backends cannot be read");
        None
    })
}

/// What is kept in the file, if that is of the same source.
pub(super) fn load(path: &Path, source: &str) -> io::Result<Option<Saved>> {
    let bytes = match files::read(path, MOST_BYTES) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes?,
    };
    let contents: Contents = serde_json::from_slice(&bytes).map_err(io::Error::other)?;
    if contents.source != source {
        return Ok(None);
    }
    let found = contents.backends.into_iter().map(|entry| Found {
        address: entry.address,
        weight: entry.weight,
        backup: entry.backup,
        name: entry.name,
        draining: entry.draining,
    });
    let backends = backends::read(found.collect());
    Ok(Some(Saved {
        source: contents.source,
        backends: backends.map_err(|e| io::Error::other(e.message))?,
        version: contents.version,
        time: UNIX_EPOCH + Duration::from_secs(contents.unix_seconds),
    }))
}

/// `Some`: why it could not be written.
pub(super) async fn write(discovery: &Discovery) -> Option<io::Error> {
    let path = path(&discovery.upstream)?;
    let contents = {
        let state = discovery.state.lock();
        let time = state.last_success?.duration_since(UNIX_EPOCH);
        let found = state.merged.in_effect.values().cloned();
        Contents {
            source: state.source.clone(),
            version: state.version.clone(),
            unix_seconds: time.unwrap_or_default().as_secs(),
            backends: found
                .map(|found| Entry {
                    address: found.address,
                    weight: found.weight,
                    backup: found.backup,
                    name: found.name,
                    draining: found.draining,
                })
                .collect(),
        }
    };
    let write = move || {
        let bytes = serde_json::to_vec(&contents).map_err(io::Error::other)?;
        files::replace(&path, &bytes)
    };
    blocking::call(blocking::LIMIT, write).await.flatten().err()
}

/// Where the set of this upstream is kept, if any is.
pub(super) fn path(upstream: &str) -> Option<PathBuf> {
    let folders = env::var_os(VARIABLE)?;
    let folder = env::split_paths(&folders).next()?;
    if folder.as_os_str().is_empty() {
        return None;
    }
    Some(folder.join(format!("discover-{upstream}.json")))
}

/// The same for the same source, also in another version of the program. Without what may be
/// secret.
pub(super) fn identify(discover: &Discover) -> String {
    format!("{:016x}", xxh3_64(discover.source.identity().as_bytes()))
}
