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
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use xxhash_rust::xxh3::xxh3_64;

/// Set by systemd for `StateDirectory=`. Without it nothing is saved.
const VARIABLE: &str = "STATE_DIRECTORY";
/// A larger file is none of ours.
const MOST_BYTES: u64 = 64 << 20;

pub(super) struct Saved {
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
    let shown = path.display().to_string();
    let read = blocking::call(discover.timeout, move || files::read(&path, MOST_BYTES)).await;
    let bytes = match read.flatten() {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(upstream, file = shown, %error, "saved backends cannot be read");
            return None;
        }
    };
    let contents: Contents = match serde_json::from_slice(&bytes) {
        Ok(contents) => contents,
        Err(error) => {
            tracing::warn!(upstream, file = shown, %error, "saved backends cannot be read");
            return None;
        }
    };
    if contents.source != identify(discover) {
        return None;
    }
    let found = contents.backends.into_iter().map(|entry| Found {
        address: entry.address,
        weight: entry.weight,
        backup: entry.backup,
        name: entry.name,
        draining: entry.draining,
    });
    Some(Saved {
        backends: backends::read(found.collect()).ok()?,
        version: contents.version,
        time: UNIX_EPOCH + Duration::from_secs(contents.unix_seconds),
    })
}

/// `Some`: why it could not be written.
pub(super) async fn write(discovery: &Discovery, discover: &Discover) -> Option<io::Error> {
    let path = path(&discovery.upstream)?;
    let contents = {
        let state = discovery.lock();
        let time = state.last_success?.duration_since(UNIX_EPOCH);
        let found = state.merged.in_effect().values().cloned();
        Contents {
            source: identify(discover),
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

fn path(upstream: &str) -> Option<PathBuf> {
    let folders = env::var_os(VARIABLE)?;
    let folder = env::split_paths(&folders).next()?;
    if folder.as_os_str().is_empty() {
        return None;
    }
    Some(folder.join(format!("discover-{upstream}.json")))
}

pub(super) fn identify(discover: &Discover) -> String {
    // Without passwords: the plan has none.
    format!(
        "{:016x}",
        xxh3_64(format!("{:?}", discover.source).as_bytes())
    )
}
