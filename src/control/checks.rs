//! The checks of an upstream: one task for each address of each backend, for as long as there is
//! that address.

use super::supervise::supervised;
use crate::{
    plan::{Check, SendProxy, Upstream, reason::CheckResult},
    probe::{CheckCredentials, Probe, Report, Secret},
    sys::blocking,
    upstream::{
        backend::Backend,
        balance::Chance,
        health::{Judge, Rule, Schedule},
        pool::{Address, AdminState, Checked, Pool},
    },
};
use ahash::RandomState;
use std::{
    collections::HashMap,
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::{sync::Notify, task::AbortHandle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// However much hurry there is, between the beginnings of two checks: a server whose role changes
/// with every answer makes all hurry all the time.
const GAP: Duration = Duration::from_millis(50);

/// Of all schedules of the process.
static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// What the checks of all upstreams share.
#[derive(Clone)]
pub(super) struct Shared {
    /// Notified when a check has ended.
    pub(super) checked: Arc<Notify>,
    pub(super) stop: CancellationToken,
}

/// What all checks of an upstream share.
pub(super) struct Checks {
    pool: Arc<Pool>,
    check: Check,
    send_proxy: SendProxy,
    credentials: Mutex<CheckCredentials>,
    /// Whether the password is being read again. By one at a time: a reader that hangs holds a
    /// thread.
    reading: AtomicBool,
    /// A role has moved, or there is nobody left to send sessions to: all are asked at once.
    hurry: Notify,
    shared: Shared,
}

/// What the checks of an upstream need: its password and certificates.
pub(super) fn load_credentials(upstream: &Upstream) -> Result<CheckCredentials, String> {
    let Some(check) = &upstream.check else {
        return Ok(CheckCredentials::default());
    };
    CheckCredentials::load(check).map_err(|e| format!("upstream {}: check: {e}", upstream.name))
}

impl Checks {
    pub(super) fn new(
        pool: &Arc<Pool>,
        check: &Check,
        send_proxy: SendProxy,
        credentials: CheckCredentials,
        shared: Shared,
    ) -> Self {
        Self {
            pool: Arc::clone(pool),
            check: check.clone(),
            send_proxy,
            credentials: Mutex::new(credentials),
            reading: AtomicBool::new(false),
            hurry: Notify::new(),
            shared,
        }
    }

    /// Checks what addresses there are, and looks again whenever they have `changed`, or an
    /// admin state has.
    pub(super) async fn run(self: Arc<Self>, changed: Arc<Notify>) {
        let begin = || Arc::clone(&self).keep_checking(&changed);
        let lost = |why: &str| {
            tracing::error!(upstream = %self.pool.name, why, "checker panicked, restarted");
        };
        supervised(begin, lost).await;
    }

    async fn keep_checking(self: Arc<Self>, changed: &Notify) {
        // An address that is gone or in maintenance is no longer checked: dropping its guard ends
        // the task. Whoever comes out of maintenance is somebody new.
        let mut running: HashMap<(u64, u32), (DropGuard, AbortHandle)> = HashMap::new();
        let key = |a: &Address| (a.backend.id, a.admin.term);
        let mut chance = Chance::from_seed(RandomState::new().hash_one(()));
        loop {
            let mut addresses = self.pool.addresses();
            addresses.retain(|a| a.admin.admin_state != AdminState::Maint);
            running.retain(|known, (_, task)| {
                !task.is_finished() && addresses.iter().any(|a| key(a) == *known)
            });
            for address in addresses {
                running.entry(key(&address)).or_insert_with(|| {
                    let stop = self.shared.stop.child_token();
                    let one = One {
                        checks: Arc::clone(&self),
                        backend: address.backend,
                        term: address.admin.term,
                        chance: Chance::from_seed(chance.draw()),
                    };
                    let task = stop.clone().run_until_cancelled_owned(one.run());
                    let task = tokio::spawn(task).abort_handle();
                    (stop.drop_guard(), task)
                });
            }
            changed.notified().await;
        }
    }

    fn probe(&self, backend: &Backend) -> Probe {
        let credentials = self
            .credentials
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        Probe::new(
            &backend.place,
            backend.text(),
            &self.check,
            self.send_proxy,
            credentials,
        )
    }

    /// Reads the password again: it may have become another one. A file on a network may take its
    /// time: the event loop is not stopped by it, nor are the checks. What comes late is there for
    /// the next that is refused.
    async fn look_for_new_secret(self: &Arc<Self>) {
        let Some(from) = self.check.kind.password().cloned() else {
            return;
        };
        if self.reading.swap(true, Relaxed) {
            return;
        }
        let reading = Reading(Arc::clone(self));
        // Most of the time it is there at once.
        let _ = blocking::call(GAP, move || {
            if let Ok(new) = Secret::load(&from) {
                let credentials = reading.0.credentials.lock();
                credentials.unwrap_or_else(PoisonError::into_inner).secret = Some(new);
            }
        })
        .await;
    }
}

/// The one that reads the password again, until dropped.
struct Reading(Arc<Checks>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.reading.store(false, Relaxed);
    }
}

/// The checks of one address.
#[derive(Clone)]
struct One {
    checks: Arc<Checks>,
    backend: Arc<Backend>,
    /// Of its address, between two times of maintenance.
    term: u32,
    chance: Chance,
}

impl One {
    async fn run(self) {
        let lost = |why: &str| {
            tracing::error!(upstream = %self.checks.pool.name, backend = %self.backend.text(), address = %self.backend.place, why,
                "check panicked, restarted");
        };
        supervised(|| self.clone().keep_asking(), lost).await;
    }

    async fn keep_asking(mut self) {
        let checks = Arc::clone(&self.checks);
        let check = &checks.check;
        let schedule = Schedule::new(check.interval, check.fast_interval, *ORIGIN);
        let rule = Rule {
            rise: check.rise,
            fall: check.fall,
        };
        let gap = GAP.min(check.fast_interval);
        let mut judge = Judge::new(rule, checks.pool.own_verdict(&self.backend));
        let mut probe = checks.probe(&self.backend);
        tokio::time::sleep(schedule.first(self.chance.draw())).await;
        loop {
            // Before the check, so that nobody who hurries meanwhile is missed.
            let hurried = checks.hurry.notified();
            let began = Instant::now();
            let (report, farewell) = probe.ask(self.chance.draw()).await;
            if !checks.pool.is_checked(&self.backend, self.term) {
                // The operator was quicker, or nobody is left on an address that is gone: the end,
                // but not without a goodbye.
                if let Some(farewell) = farewell {
                    farewell.say().await;
                }
                return;
            }
            let now = Instant::now();
            let refused = report.result == CheckResult::Auth;
            let anybody = self.tell(&mut judge, report, &probe, now);
            if let Some(farewell) = farewell {
                farewell.say().await;
            }
            if refused {
                checks.look_for_new_secret().await;
                // Whether or not it was this check that found another one.
                probe = checks.probe(&self.backend);
            }
            let in_doubt = judge.is_in_doubt() || !anybody;
            let next = schedule.next(began, Instant::now(), in_doubt, self.chance.draw());
            tokio::select! {
                () = tokio::time::sleep_until(next.into()) => {}
                () = hurried => tokio::time::sleep_until((began + gap).into()).await,
            }
        }
    }

    /// Passes on what was found. Whether there is anybody left whom the checks speak for.
    fn tell(&self, judge: &mut Judge, report: Report, probe: &Probe, now: Instant) -> bool {
        let checks = &self.checks;
        if let Some(metrics) = &self.backend.metrics.checks {
            metrics.results[report.result as usize].add(1);
            metrics.duration.record(report.took);
        }
        tracing::debug!(upstream = %checks.pool.name, backend = %self.backend.text(), at = %probe.addr(),
            result = report.result.word(), took = ?report.took, transcript = report.transcript, "checked");
        if report.result == CheckResult::Local {
            self.backend.log_no_check(&report.transcript, now);
        }
        let change = judge.hear(report.result, now);
        let checked = Checked {
            at: now,
            took: report.took,
            result: report.result,
            finding: report.finding,
            transcript: report.transcript,
        };
        let anybody = checks.pool.checked(&self.backend, checked, change, now);
        checks.shared.checked.notify_one();
        if let Some(change) = change {
            let nobody_left = !anybody && change.from.is_up();
            // Where one has lost a role another has got it, and the other way round.
            let moved = change.from.is_other_role() != change.to.is_other_role();
            if nobody_left || moved && !change.first {
                checks.hurry.notify_waiters();
            }
        }
        anybody
    }
}
