//! The checks of an upstream: one task for each address of each backend, while it has that address.

use super::supervise::supervised;
use crate::{
    plan::{Check, SendProxy, reason::CheckResult},
    probe::{CheckCredentials, CheckReport, Probe, Secret},
    sys::{blocking, mutex::Mutex, task::boxed},
    upstream::{
        backend::Backend,
        balance::Chance,
        health::{Evidence, Judge, RiseFall, Schedule},
        pool::{AdminState, Checked, EndpointAddress, Pool},
    },
};
use ahash::RandomState;
use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::{sync::Notify, task::AbortHandle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// The least time from the beginning of one check to that of the next. A server whose role changes
/// with every answer would otherwise be checked without a pause.
const MIN_INTERVAL: Duration = Duration::from_millis(50);

/// Common to all schedules of the process.
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
    /// Counts the changes of `credentials` by a reload.
    renewals: AtomicU64,
    /// Whether the password is being read again. One at a time: a read that hangs holds a thread.
    is_reading: AtomicBool,
    /// Notified when all backends are to be checked at once: a role has moved, or no backend is
    /// well any more.
    check_now: Notify,
    shared: Shared,
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
            renewals: AtomicU64::new(0),
            is_reading: AtomicBool::new(false),
            check_now: Notify::new(),
            shared,
        }
    }

    /// Checks the addresses of the pool. `changed`: notified when they or an admin state change.
    pub(super) async fn run(self: Arc<Self>, changed: Arc<Notify>) {
        let start = || Arc::clone(&self).check_addresses(&changed);
        let report = |why: &str| {
            tracing::error!(upstream = %self.pool.name, why, "checker panicked, restarted");
        };
        supervised(start, report).await;
    }

    async fn check_addresses(self: Arc<Self>, changed: &Notify) {
        // After a maintenance its term is another, and so is its task.
        let mut running: HashMap<(u64, u32), Running> = HashMap::new();
        let key = |a: &EndpointAddress| (a.backend.id, a.admin.term);
        let mut chance = Chance::from_seed(RandomState::new().hash_one(()));
        loop {
            let mut addresses = self.pool.addresses();
            addresses.retain(|a| a.admin.admin_state != AdminState::Maint);
            let present: HashSet<(u64, u32)> = addresses.iter().map(key).collect();
            running.retain(|known, one| !one.task.is_finished() && present.contains(known));
            for address in addresses {
                if address.awaits_answer
                    && let Some(one) = running.get(&key(&address))
                {
                    one.check_now.notify_one();
                }
                running.entry(key(&address)).or_insert_with(|| {
                    let stop = self.shared.stop.child_token();
                    let check_now = Arc::new(Notify::new());
                    let checks = AddressChecks {
                        checks: Arc::clone(&self),
                        backend: address.backend,
                        term: address.admin.term,
                        check_now: Arc::clone(&check_now),
                        asks_again: false,
                        chance: Chance::from_seed(chance.draw()),
                    };
                    let task = stop.clone().run_until_cancelled_owned(checks.run());
                    let task = tokio::spawn(boxed(task)).abort_handle();
                    Running {
                        task,
                        check_now,
                        _guard: stop.drop_guard(),
                    }
                });
            }
            changed.notified().await;
        }
    }

    fn probe(&self, backend: &Backend) -> Probe {
        Probe::new(
            &backend.addr,
            backend.text(),
            &self.check,
            self.send_proxy,
            self.credentials(),
        )
    }

    /// What the next check uses.
    pub(super) fn credentials(&self) -> CheckCredentials {
        self.credentials.lock().clone()
    }

    /// Uses these from the next check on, which is made at once. Verdicts stay.
    pub(super) fn set_credentials(&self, new: CheckCredentials) {
        *self.credentials.lock() = new;
        self.renewals.fetch_add(1, Relaxed);
        self.check_now.notify_waiters();
    }

    /// Reads the password again, which may have changed. A slow file delays neither the event loop
    /// nor checks: a password that comes late is there when the next check is refused.
    async fn reload_password(self: &Arc<Self>) {
        let Some(from) = self.check.kind.password().cloned() else {
            return;
        };
        if self.is_reading.swap(true, Relaxed) {
            return;
        }
        let reading = PasswordReload(Arc::clone(self));
        let _ = blocking::call(MIN_INTERVAL, move || {
            if let Ok(new) = Secret::load(&from) {
                reading.0.credentials.lock().secret = Some(new);
            }
        })
        .await;
    }
}

/// The task of an address.
struct Running {
    task: AbortHandle,
    /// See [`AddressChecks::check_now`].
    check_now: Arc<Notify>,
    /// Dropping it ends the task, as when the address is gone or in maintenance.
    _guard: DropGuard,
}

/// The password is being read again until this is dropped.
struct PasswordReload(Arc<Checks>);

impl Drop for PasswordReload {
    fn drop(&mut self) {
        self.0.is_reading.store(false, Relaxed);
    }
}

/// The checks of one address.
#[derive(Clone)]
struct AddressChecks {
    checks: Arc<Checks>,
    backend: Arc<Backend>,
    /// See [`AdminSetting::term`](crate::upstream::pool::AdminSetting).
    term: u32,
    /// It waits for the answer to a check that is yet to begin.
    check_now: Arc<Notify>,
    /// The next check is to confirm the last, whose result was not recorded.
    asks_again: bool,
    chance: Chance,
}

impl AddressChecks {
    async fn run(self) {
        let report = |why: &str| {
            tracing::error!(upstream = %self.checks.pool.name, backend = %self.backend.text(),
                address = %self.backend.addr, why, "check panicked, restarted");
        };
        supervised(|| self.clone().check_repeatedly(), report).await;
    }

    async fn check_repeatedly(mut self) {
        let checks = Arc::clone(&self.checks);
        let check = &checks.check;
        let schedule = Schedule::new(check.interval, check.fast_interval, *ORIGIN);
        let rule = RiseFall {
            rise: check.rise,
            fall: check.fall,
        };
        let min_interval = MIN_INTERVAL.min(check.fast_interval);
        let verdict = checks.pool.own_verdict(&self.backend);
        let mut judge = match checks.pool.take_handed_progress(&self.backend) {
            Some(progress) => Judge::resume(rule, verdict, progress),
            None => Judge::new(rule, verdict),
        };
        let mut renewals = checks.renewals.load(Relaxed);
        let mut probe = checks.probe(&self.backend);
        tokio::time::sleep(schedule.first(self.chance.draw())).await;
        loop {
            // Before the check, so that no request meanwhile is missed.
            let requested = checks.check_now.notified();
            let began = Instant::now();
            let renewed = checks.renewals.load(Relaxed);
            if renewed != renewals {
                renewals = renewed;
                probe = checks.probe(&self.backend);
            }
            // Apart: between two checks its task is all that there is of an address.
            let (report, disconnect) = Box::pin(probe.ask(self.chance.draw())).await;
            if !checks.pool.is_checked(&self.backend, self.term) {
                // It is in maintenance, or gone and without sessions.
                if let Some(disconnect) = disconnect {
                    Box::pin(disconnect.complete()).await;
                }
                return;
            }
            let now = Instant::now();
            let refused = report.result == CheckResult::Auth;
            let any_well = self.record(&mut judge, report, &probe, [began, now]);
            if let Some(disconnect) = disconnect {
                Box::pin(disconnect.complete()).await;
            }
            if refused {
                Box::pin(checks.reload_password()).await;
                // With the password that this check or another one has read again.
                probe = checks.probe(&self.backend);
            }
            let in_doubt = judge.is_in_doubt() || !any_well;
            let next = schedule.next(began, Instant::now(), in_doubt, self.chance.draw());
            tokio::select! {
                () = tokio::time::sleep_until(next.into()) => continue,
                () = requested => {}
                () = self.check_now.notified() => {}
            }
            tokio::time::sleep_until((began + min_interval).into()).await;
        }
    }

    /// Records what was found by a check that began and ended then. Returns whether any address is
    /// well.
    fn record(
        &mut self,
        judge: &mut Judge,
        report: CheckReport,
        probe: &Probe,
        [began, now]: [Instant; 2],
    ) -> bool {
        let checks = &self.checks;
        let metrics = &self.backend.metrics.checks;
        metrics.results[report.result as usize].add(1);
        metrics.duration.record(report.took);
        tracing::debug!(upstream = %checks.pool.name, backend = %self.backend.text(),
            at = %probe.addr(), result = report.result.word(), took = ?report.took,
            transcript = report.transcript, "checked");
        if report.result == CheckResult::Local {
            self.backend.log_no_check(&report.transcript, now);
        }
        // Where two servers have changed their roles, the former primary is a replica now. That is
        // found before the last replica is given up: both are asked at once.
        self.asks_again = !self.asks_again
            && Evidence::of(report.result) == Evidence::OtherRole
            && checks.pool.is_last_beside_primary(&self.backend);
        if self.asks_again {
            checks.check_now.notify_waiters();
            return true;
        }
        let change = judge.record(report.result, [began, now]);
        let checked = Checked {
            began,
            at: now,
            took: report.took,
            result: report.result,
            finding: report.finding,
            transcript: report.transcript,
        };
        checks.pool.note_progress(&self.backend, judge.progress());
        let any_well = checks.pool.checked(&self.backend, checked, change, now);
        checks.shared.checked.notify_one();
        if let Some(change) = change {
            let none_left = !any_well && change.from.is_up();
            // A role that one server has lost, another one may have by now.
            let moved = change.from.is_other_role() != change.to.is_other_role();
            if none_left || moved && !change.first {
                checks.check_now.notify_waiters();
            }
        }
        any_well
    }
}
