//! Calls sessions back from the backups of an upstream when a server that is none is up again.

use crate::{
    control::draining::terminator::Telling,
    plan::{OnLeave, reason::CloseReason},
    upstream::pool::{Address, AdminState, Pool},
};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Between two looks whether any server that is up takes sessions by now: it may be full, or have
/// failed connects behind it, and nobody tells when that ends.
pub(super) const LOOK: Duration = Duration::from_millis(250);

/// The recall of one upstream. Apart from what is told to the sessions of a single backend: neither
/// stands in the way of the other.
pub(super) struct Recall {
    on_recover: OnLeave,
    telling: Telling,
    current: Arc<Mutex<Option<Current>>>,
    stop: CancellationToken,
}

/// There is one from a recovery until all have been told, or nobody is up any more.
struct Current {
    tells: bool,
    /// One more server has come back since it tells: it is to begin anew, no earlier than this.
    again: Option<Instant>,
    /// Dropping it calls the rest off.
    _guard: DropGuard,
}

impl Recall {
    pub(super) fn new(on_recover: OnLeave, telling: Telling, stop: &CancellationToken) -> Self {
        Self {
            on_recover,
            telling,
            current: Arc::default(),
            stop: stop.clone(),
        }
    }

    /// A server that is no backup is back.
    pub(super) fn begin(&self, pool: &Arc<Pool>) {
        let wait = match self.on_recover {
            OnLeave::Keep | OnLeave::Move => return,
            OnLeave::Close => Duration::ZERO,
            OnLeave::CloseAfter(wait) => wait,
        };
        let due = Instant::now() + wait;
        let mut current = lock(&self.current);
        match &mut *current {
            // Who has gone to a backup since the others were looked for is not among them.
            Some(current) if current.tells => {
                current.again.get_or_insert(due);
            }
            // What is to begin earlier is not put off.
            Some(_) => {}
            None => {
                let stop = self.stop.child_token();
                let run = run(
                    Arc::clone(pool),
                    self.telling.clone(),
                    Arc::clone(&self.current),
                    due,
                    stop.clone(),
                );
                tokio::spawn(stop.clone().run_until_cancelled_owned(run));
                *current = Some(Current {
                    tells: false,
                    again: None,
                    _guard: stop.drop_guard(),
                });
            }
        }
    }

    /// Who has not been told yet may stay.
    pub(super) fn call_off(&self) {
        lock(&self.current).take();
    }

    #[cfg(test)]
    pub(super) fn is_under_way(&self) -> bool {
        lock(&self.current).is_some()
    }
}

async fn run(
    pool: Arc<Pool>,
    telling: Telling,
    current: Arc<Mutex<Option<Current>>>,
    mut due: Instant,
    stop: CancellationToken,
) {
    loop {
        if due > Instant::now() {
            tokio::time::sleep_until(due.into()).await;
        }
        let called = loop {
            if anybody_takes(&pool) {
                break true;
            }
            if !anybody_is_up(&pool) {
                break false;
            }
            tokio::time::sleep(LOOK).await;
        };
        if called {
            if let Some(current) = mine(&mut lock(&current), &stop) {
                current.tells = true;
            }
            for address in pool.addresses().iter().filter(|a| a.backup) {
                let reason = CloseReason::Recovered;
                telling.all_on(&pool, &address.backend, reason).await;
            }
        }
        let mut current = lock(&current);
        let again = mine(&mut current, &stop).and_then(|current| {
            current.tells = false;
            current.again.take()
        });
        match again {
            Some(again) => due = again,
            None => {
                // Called off meanwhile, it may be that of another recovery.
                if !stop.is_cancelled() {
                    *current = None;
                }
                return;
            }
        }
    }
}

/// Not what has begun after this one was called off.
fn mine<'a>(current: &'a mut Option<Current>, stop: &CancellationToken) -> Option<&'a mut Current> {
    current.as_mut().filter(|_| !stop.is_cancelled())
}

fn anybody_takes(pool: &Pool) -> bool {
    let now = Instant::now();
    let addresses = pool.addresses();
    let mut up = addresses.iter().filter(|a| !a.backup && is_up(a));
    up.any(|a| pool.takes(&a.backend, now))
}

/// Whether sessions on backups have, or may soon have, somewhere to go back to.
pub(super) fn anybody_is_up(pool: &Pool) -> bool {
    pool.addresses().iter().any(|a| !a.backup && is_up(a))
}

/// By its check and by what the operator wants. It may take nothing all the same.
pub(super) fn is_up(address: &Address) -> bool {
    address.verdict.is_up() && address.admin_state_changed.admin_state == AdminState::Ready
}

fn lock(current: &Mutex<Option<Current>>) -> MutexGuard<'_, Option<Current>> {
    current.lock().unwrap_or_else(PoisonError::into_inner)
}
