//! Asks a source for ever, beside the process that uses its answers.

use crate::{
    control::supervise::supervised,
    discover::{AnySource, Snapshot, Source as _, SourceError},
    plan::{Discover, DiscoverKind},
    sys::task::boxed,
};
use std::{future::pending, sync::Arc, time::Duration};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

/// After a failure, doubled with each one...
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// ... up to this, or to `interval` where a source is polled more often.
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
            let ask = || ask(AnySource::open(&discover), Pauses::new(&discover), &sender);
            supervised(ask, lost).await;
        };
        Self {
            answers,
            _task: AbortOnDropHandle::new(tokio::spawn(boxed(task))),
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

async fn ask(mut source: AnySource, mut pauses: Pauses, answers: &mpsc::Sender<Answer>) {
    loop {
        let answer = source.next().await;
        let backends = answer.as_ref().ok().map(|found| found.backends.len());
        if answers.send(answer).await.is_err() {
            return;
        }
        if let Some(backends) = backends {
            pauses.begin_anew();
            let count = u32::try_from(backends).unwrap_or(u32::MAX);
            tokio::time::sleep(SHORTEST_PAUSE + PAUSE_FOR_EACH.saturating_mul(count)).await;
        } else {
            let mended = async {
                tokio::time::sleep(MENDED_PAUSE).await;
                source.mended().await;
            };
            // The pause begins anew: what was mended may be in the making.
            if tokio::time::timeout(pauses.next(), mended).await.is_ok() {
                pauses.begin_anew();
            }
        }
    }
}

/// The pauses after failures in a row.
struct Pauses {
    next: Duration,
    longest: Duration,
}

impl Pauses {
    /// A source that is polled is asked as often as if it answered: what it has when it is back is
    /// not to be late. A watch, which begins with everything there is, spares a server in trouble.
    fn new(discover: &Discover) -> Self {
        use DiscoverKind::{Consul, Etcd, File, Http, Kubernetes, Redis, Sentinel, Srv};
        let longest = match discover.source.kind() {
            File | Http | Srv | Redis | Sentinel => {
                discover.interval.clamp(FIRST_PAUSE, LONGEST_PAUSE)
            }
            Consul | Etcd | Kubernetes => LONGEST_PAUSE,
        };
        Self {
            next: FIRST_PAUSE,
            longest,
        }
    }

    fn next(&mut self) -> Duration {
        let next = self.next;
        self.next = (next * 2).min(self.longest);
        next
    }

    fn begin_anew(&mut self) {
        self.next = FIRST_PAUSE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::DiscoverSource;

    #[test]
    fn a_polled_source_is_asked_no_less_often_than_if_it_answered() {
        let pauses = |source: DiscoverSource, interval: u64| {
            let mut pauses = Pauses::new(&Discover {
                source,
                interval: Duration::from_millis(interval),
                timeout: Duration::from_secs(1),
                empty_after: None,
                max_removed: 50,
                confirm: Duration::ZERO,
            });
            let all = (0..7)
                .map(|_| pauses.next().as_millis())
                .collect::<Vec<_>>();
            pauses.begin_anew();
            assert_eq!(pauses.next(), FIRST_PAUSE);
            all
        };
        let polled = || DiscoverSource::Srv {
            name: "_app._tcp.example".to_owned(),
            nameservers: Vec::new(),
        };
        let watched = DiscoverSource::Kubernetes {
            namespace: "n".to_owned(),
            service: "s".to_owned(),
            port: None,
            url: None,
            token_file: None,
            tls_ca: None,
        };
        assert_eq!(pauses(polled(), 100), [500; 7]);
        assert_eq!(
            pauses(polled(), 3_000),
            [500, 1000, 2000, 3000, 3000, 3000, 3000]
        );
        let longest = [500, 1000, 2000, 4000, 8000, 10_000, 10_000];
        assert_eq!(pauses(polled(), 60_000), longest);
        assert_eq!(pauses(watched, 100), longest);
    }
}
