//! Reloads by itself when the configuration file, or a file that it names, has other contents:
//! `reload_on_change`.
//!
//! Events of the kernel only say when to compare. Contents decide, never times: a file can be
//! written, replaced by another one, or be behind a symbolic link that changes.

mod contents;

use super::{
    State,
    reload::{Mode, ReloadError},
};
use crate::{runtime::watched_files::WatchedFiles, sys::blocking};
use contents::Look;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::time::{sleep, timeout};

/// A file is compared when nothing has happened to it for so long: it may be written in pieces.
const QUIET: Duration = Duration::from_millis(500);
/// How often files are compared that cannot be watched.
const COMPARE_INTERVAL: Duration = Duration::from_secs(5);

/// Requests a reload whenever the file or one that it names has changed, while the plan in effect
/// says so. Returns when the process stops.
pub async fn reload_on_change(file: PathBuf, state: Arc<State>) {
    let file = std::path::absolute(&file).unwrap_or(file);
    loop {
        // First, so that no change is missed.
        let changed = state.plan_changed.notified();
        if !state.view().plan.process.reload_on_change {
            changed.await;
            continue;
        }
        tokio::select! {
            () = watch(&file, &state) => return,
            () = until_switched_off(&state) => {}
        }
    }
}

async fn until_switched_off(state: &State) {
    loop {
        let changed = state.plan_changed.notified();
        if !state.view().plan.process.reload_on_change {
            return;
        }
        changed.await;
    }
}

/// Returns when the process stops.
async fn watch(file: &Path, state: &State) {
    let mut folders = WatchedFiles::open();
    let mut seen: Option<Look> = None;
    let mut is_warned = false;
    loop {
        let (path, view) = (file.to_owned(), state.view());
        let look = move || (contents::look(&path, &view, &mut folders), folders);
        let looked = blocking::call(blocking::LIMIT, look).await;
        let (look, watched) = match looked {
            Ok((look, watched)) => (Some(look), watched),
            // It may hang, and the next time it may not.
            Err(_) => (None, WatchedFiles::open()),
        };
        folders = watched;
        if let Some(look) = look {
            let is_new = look.differs_from(seen.as_ref());
            // Whatever comes of it: what fails is tried again when it has changed.
            seen = Some(look);
            if is_new {
                if !reload(file, state).await {
                    return;
                }
                continue;
            }
        }
        if let Some(error) = folders.error()
            && !std::mem::replace(&mut is_warned, true)
        {
            let (file, interval) = (file.display(), COMPARE_INTERVAL);
            tracing::warn!(%file, %error, ?interval,
                "cannot watch the files of the configuration, comparing them");
        }
        wait(&mut folders).await;
    }
}

/// Returns whether to go on.
async fn reload(file: &Path, state: &State) -> bool {
    let file = file.display();
    tracing::info!(%file, "files of the configuration have changed, reloading");
    match state.reloads.request(Mode::Apply).await {
        Ok(_) => true,
        Err(ReloadError::Stopping) => false,
        Err(_) => {
            tracing::warn!(%file, "not tried again until the files of the configuration change");
            true
        }
    }
}

/// Until something has happened to the files, and then nothing for a while.
async fn wait(folders: &mut WatchedFiles) {
    if folders.error().is_some() {
        sleep(COMPARE_INTERVAL).await;
        return;
    }
    folders.changed().await;
    while timeout(QUIET, folders.changed()).await.is_ok() {}
}
