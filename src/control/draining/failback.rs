//! Moves sessions from the backups of an upstream, and from primaries that stand in for replicas,
//! back to its regular servers.

use crate::{
    control::draining::terminator::Terminator,
    plan::{SessionAction, reason::CloseReason},
    sys::{mutex::Mutex, task::boxed},
    upstream::pool::{AdminState, EndpointAddress, Pool},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// From one look whether a server that is up takes sessions to the next: it may be full, or its
/// connects may have failed, and there is no event when that ends.
pub(super) const POLL: Duration = Duration::from_millis(250);

/// The failback of one upstream. It is independent of terminations that concern a single backend.
pub(super) struct Failback {
    terminator: Terminator,
    current: Arc<Mutex<Option<Current>>>,
    stop: CancellationToken,
}

/// From a recovery until all sessions on backups have been terminated, or no regular server is up.
struct Current {
    is_terminating: bool,
    /// Another server has recovered meanwhile: begin again, no earlier than this.
    again: Option<Instant>,
    /// Dropping it cancels what has not been terminated yet.
    _guard: DropGuard,
}

impl Failback {
    pub(super) fn new(terminator: Terminator, stop: &CancellationToken) -> Self {
        Self {
            terminator,
            current: Arc::default(),
            stop: stop.clone(),
        }
    }

    /// A regular server has recovered.
    pub(super) fn begin(&self, pool: &Arc<Pool>, on_recover: SessionAction) {
        let wait = match on_recover {
            SessionAction::Keep | SessionAction::Move => return,
            SessionAction::Close => Duration::ZERO,
            SessionAction::CloseAfter(wait) => wait,
        };
        let due = Instant::now() + wait;
        let mut current = self.current.lock();
        match &mut *current {
            // Sessions that have gone to a backup since the others were found are not among them.
            Some(current) if current.is_terminating => {
                current.again.get_or_insert(due);
            }
            // Another recovery does not delay it.
            Some(_) => {}
            None => {
                let stop = self.stop.child_token();
                let run = run(
                    Arc::clone(pool),
                    self.terminator.clone(),
                    Arc::clone(&self.current),
                    due,
                    stop.clone(),
                );
                tokio::spawn(boxed(stop.clone().run_until_cancelled_owned(run)));
                *current = Some(Current {
                    is_terminating: false,
                    again: None,
                    _guard: stop.drop_guard(),
                });
            }
        }
    }

    /// Sessions that have not been terminated yet may stay.
    pub(super) fn cancel(&self) {
        self.current.lock().take();
    }

    pub(super) fn is_active(&self) -> bool {
        self.current.lock().is_some()
    }
}

async fn run(
    pool: Arc<Pool>,
    terminator: Terminator,
    current: Arc<Mutex<Option<Current>>>,
    mut due: Instant,
    stop: CancellationToken,
) {
    loop {
        if due > Instant::now() {
            tokio::time::sleep_until(due.into()).await;
        }
        let begins = loop {
            if any_takes_sessions(&pool) {
                break true;
            }
            if !is_any_up(&pool) {
                break false;
            }
            tokio::time::sleep(POLL).await;
        };
        if begins {
            if let Some(current) = mine(&mut current.lock(), &stop) {
                current.is_terminating = true;
            }
            for address in pool.addresses().iter().filter(|a| a.stands_in) {
                let reason = CloseReason::Recovered;
                terminator
                    .terminate_all_on(&pool, &address.backend, reason)
                    .await;
            }
        }
        let mut current = current.lock();
        let again = mine(&mut current, &stop).and_then(|current| {
            current.is_terminating = false;
            current.again.take()
        });
        match again {
            Some(again) => due = again,
            None => {
                // Cancelled meanwhile, it may be that of another recovery.
                if !stop.is_cancelled() {
                    *current = None;
                }
                return;
            }
        }
    }
}

/// Not one that has begun after this one was cancelled.
fn mine<'a>(current: &'a mut Option<Current>, stop: &CancellationToken) -> Option<&'a mut Current> {
    current.as_mut().filter(|_| !stop.is_cancelled())
}

fn any_takes_sessions(pool: &Pool) -> bool {
    let now = Instant::now();
    let addresses = pool.addresses();
    let mut up = addresses.iter().filter(|a| !a.is_backup && is_up(a));
    up.any(|a| pool.takes(&a.backend, now))
}

/// Whether sessions on backups have, or may soon have, somewhere to go back to.
pub(super) fn is_any_up(pool: &Pool) -> bool {
    pool.addresses().iter().any(|a| !a.is_backup && is_up(a))
}

/// By its check and its admin state. It may still take no sessions, if it is full.
pub(super) fn is_up(address: &EndpointAddress) -> bool {
    address.verdict.is_up() && address.admin.admin_state == AdminState::Ready
}
