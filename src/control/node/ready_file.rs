//! `[process] ready_file`: 0 while this node should get clients, otherwise 1. Programs that watch
//! the file (`track_file` of keepalived) learn of a change without asking.

use crate::{
    control::{StartError, State},
    sys::{blocking, files},
    telemetry::throttle::Throttle,
};
use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::sync::{Mutex, Notify};

/// How often the node looks at itself while there is a file.
const INTERVAL: Duration = Duration::from_secs(1);

pub(super) struct ReadyFile {
    /// What was written last.
    written: Mutex<Option<(PathBuf, bool)>>,
    failures: Throttle<1>,
    /// Another process writes it.
    is_given_up: AtomicBool,
    /// Something has changed that is to be written at once.
    pub(super) changed: Arc<Notify>,
}

impl ReadyFile {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            written: Mutex::default(),
            failures: Throttle::new(now),
            is_given_up: AtomicBool::default(),
            changed: Arc::default(),
        }
    }

    /// Writes what differs from the last time. `is_ready` is asked when it is certain that no older
    /// answer is written after this one.
    async fn update(&self, path: Option<&Path>, is_ready: impl Fn() -> bool) {
        let mut written = self.written.lock().await;
        if self.is_given_up.load(Relaxed) {
            return;
        }
        let wanted = path.map(|path| (path.to_owned(), is_ready()));
        if *written == wanted {
            return;
        }
        if let Some((before, true)) = &*written
            && path != Some(before)
        {
            // A file that is not kept up to date any more must not attract clients.
            self.report(before, write(before, false).await);
        }
        if let Some((path, is_ready)) = &wanted {
            let result = write(path, *is_ready).await;
            let failed = result.is_err();
            self.report(path, result);
            if failed {
                return;
            }
            tracing::info!(path = %path.display(), ready = is_ready, "ready file written");
        }
        *written = wanted;
    }

    fn report(&self, path: &Path, result: io::Result<()>) {
        if let Err(error) = result
            && let Some(count) = self.failures.add(0, 1, Instant::now())
        {
            let path = path.display();
            tracing::error!(%path, %error, count, "cannot write the ready file");
        }
    }
}

/// Not ready yet, whatever an earlier process has left there.
pub(in crate::control) async fn begin(path: Option<&Path>) -> Result<(), StartError> {
    let Some(path) = path else { return Ok(()) };
    let failed = |source| StartError::ReadyFile {
        path: path.to_owned(),
        source,
    };
    write(path, false).await.map_err(failed)
}

async fn write(path: &Path, is_ready: bool) -> io::Result<()> {
    let path = path.to_owned();
    let text = match is_ready {
        true => "0\n",
        false => "1\n",
    };
    let replace = move || files::replace(&path, text.as_bytes());
    blocking::call(blocking::LIMIT, replace).await.flatten()
}

/// Keeps the file up to date for as long as the server is there. Without a file it waits for a
/// change of the plan.
pub(in crate::control) async fn keep(state: Weak<State>) {
    loop {
        let Some(state) = state.upgrade() else {
            return;
        };
        let changed = Arc::clone(&state.node.ready_file.changed);
        let path = state.view().plan.process.ready_file.clone();
        if path.is_some() {
            let is_ready = tokio::select! {
                biased;
                () = changed.notified() => continue,
                is_ready = state.is_node_ready() => is_ready,
            };
            state.write_ready_file(is_ready).await;
        } else {
            state.write_ready_file(false).await;
        }
        drop(state);
        match path {
            Some(_) => drop(tokio::time::timeout(INTERVAL, changed.notified()).await),
            None => changed.notified().await,
        }
    }
}

impl State {
    /// Whether it is written by another process from now on, and not by this one.
    pub(in crate::control) async fn give_up_ready_file(&self, is_given_up: bool) {
        let file = &self.node.ready_file;
        // Not while it is being written.
        let mut written = file.written.lock().await;
        file.is_given_up.store(is_given_up, Relaxed);
        *written = None;
        drop(written);
        self.node.note_change();
    }

    pub(super) async fn write_ready_file(&self, is_ready: bool) {
        let view = self.view();
        let path = view.plan.process.ready_file.as_deref();
        // A drain that has begun meanwhile takes precedence.
        let is_ready = || is_ready && !self.is_draining();
        self.node.ready_file.update(path, is_ready).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[tokio::test]
    async fn another_file_takes_the_place_of_one_that_would_attract_clients() {
        let name = format!("tembuku-ready-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).expect("a folder");
        let (one, two) = (folder.join("one"), folder.join("two"));
        let read = |path: &Path| fs::read_to_string(path).expect("written");
        let file = ReadyFile::new(Instant::now());
        file.update(None, || true).await;
        file.update(Some(&one), || true).await;
        assert_eq!(read(&one), "0\n");
        // What has not changed is not written.
        fs::write(&one, "x").expect("written");
        file.update(Some(&one), || true).await;
        assert_eq!(read(&one), "x");
        file.update(Some(&two), || true).await;
        assert_eq!((read(&one), read(&two)), ("1\n".into(), "0\n".into()));
        file.update(None, || true).await;
        assert_eq!(read(&two), "1\n");
        // What could not be written is tried again.
        let missing = folder.join("missing").join("file");
        file.update(Some(&missing), || true).await;
        fs::create_dir(folder.join("missing")).expect("a folder");
        file.update(Some(&missing), || true).await;
        assert_eq!(read(&missing), "0\n");
        fs::remove_dir_all(folder).expect("removed");
    }
}
