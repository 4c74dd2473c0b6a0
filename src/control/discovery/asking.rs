//! Asks a source for ever, beside the process that uses its answers.

use crate::{
    control::supervise::supervised,
    discover::{AnySource, Snapshot, Source as _, SourceError},
    plan::Discover,
};
use std::{future::pending, sync::Arc, time::Duration};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

/// After a failure, doubled with each one...
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// ... up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Before a source is asked again because what made it fail has changed.
const MENDED_PAUSE: Duration = Duration::from_millis(100);
/// Between two answers, however often a source has some: a source that changes all the time must
/// not fill a CPU...
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
/// ... nor must one with many backends: longer by this for each.
const PAUSE_FOR_EACH: Duration = Duration::from_micros(10);

pub(super) type Answer = Result<Snapshot, SourceError>;

/// Dropping it ends its task.
pub(super) struct Asking {
    answers: mpsc::Receiver<Answer>,
    _task: AbortOnDropHandle<()>,
}

impl Asking {
    pub(super) fn begin(upstream: &Arc<str>, discover: &Discover) -> Self {
        let (sender, answers) = mpsc::channel(1);
        let (upstream, discover) = (Arc::clone(upstream), discover.clone());
        let task = async move {
            let lost = |why: &str| {
                tracing::error!(%upstream, why, "source of backends panicked, restarted");
            };
            supervised(|| ask(AnySource::open(&discover), &sender), lost).await;
        };
        Self {
            answers,
            _task: AbortOnDropHandle::new(tokio::spawn(task)),
        }
    }

    /// The next one. It can be dropped without loss.
    pub(super) async fn answer(&mut self) -> Answer {
        match self.answers.recv().await {
            Some(answer) => answer,
            // The task does not end before this.
            None => pending().await,
        }
    }
}

async fn ask(mut source: AnySource, answers: &mpsc::Sender<Answer>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let answer = source.next().await;
        let backends = answer.as_ref().ok().map(|found| found.backends.len());
        if answers.send(answer).await.is_err() {
            return;
        }
        if let Some(backends) = backends {
            pause = FIRST_PAUSE;
            let count = u32::try_from(backends).unwrap_or(u32::MAX);
            tokio::time::sleep(SHORTEST_PAUSE + PAUSE_FOR_EACH.saturating_mul(count)).await;
        } else {
            let mended = async {
                tokio::time::sleep(MENDED_PAUSE).await;
                source.mended().await;
            };
            // The pause begins anew: what was mended may be in the making.
            pause = match tokio::time::timeout(pause, mended).await {
                Ok(()) => FIRST_PAUSE,
                Err(_) => (pause * 2).min(LONGEST_PAUSE),
            };
        }
    }
}
