//! The checks of an upstream: one task for each address of each backend, for as long as there is that address.

use super::leaving::Leaving;
use crate::{
    backend::Backend,
    balance::Chance,
    following::follow,
    health::{Change, Judge, Rule, Schedule, Verdict},
    journal::{Event, Journal},
    plan::{Check, SendProxy, Upstream},
    pool::{Address, Checked, Pool, Wish},
    probe::{Encryption, Means, Probe, Report, Secret},
    reason::CheckResult,
};
use ahash::RandomState;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

/// However much hurry there is, between the beginnings of two checks: a server whose role changes with every answer makes
/// all hurry all the time.
const GAP: Duration = Duration::from_millis(50);

/// What all checks of an upstream share.
pub(super) struct Checks {
    pool: Arc<Pool>,
    check: Check,
    send_proxy: SendProxy,
    means: Mutex<Means>,
    leaving: Arc<Leaving>,
    journal: Arc<Journal>,
    /// A role has moved, or there is nobody left to send sessions to: all are asked at once.
    hurry: Notify,
    stop: CancellationToken,
}

/// What the checks of an upstream need: its password and certificates.
pub(super) fn means(upstream: &Upstream) -> Result<Means, String> {
    let Some(check) = &upstream.check else {
        return Ok(Means::default());
    };
    let secret = check.kind.password().map(Secret::load).transpose();
    let encryption = Encryption::load(&check.tls);
    let named = |e| format!("upstream {}: check: {e}", upstream.name);
    Ok(Means {
        secret: secret.map_err(named)?,
        encryption: encryption.map_err(named)?,
    })
}

impl Checks {
    pub(super) fn new(
        pool: &Arc<Pool>,
        check: &Check,
        send_proxy: SendProxy,
        means: Means,
        leaving: &Arc<Leaving>,
        journal: &Arc<Journal>,
        stop: &CancellationToken,
    ) -> Self {
        Self {
            pool: Arc::clone(pool),
            check: check.clone(),
            send_proxy,
            means: Mutex::new(means),
            leaving: Arc::clone(leaving),
            journal: Arc::clone(journal),
            hurry: Notify::new(),
            stop: stop.clone(),
        }
    }

    /// Checks what addresses there are, and looks again whenever they have `changed`, or what is wished of them.
    pub(super) async fn run(self: Arc<Self>, changed: Arc<Notify>) {
        // An address that is gone or in maintenance is no longer checked: dropping its guard ends the task. Whoever comes
        // out of maintenance is somebody new.
        let mut running: HashMap<(u64, u32), DropGuard> = HashMap::new();
        let key = |a: &Address| (a.backend.id, a.wished.term);
        let mut chance = Chance::from_seed(RandomState::new().hash_one(()));
        loop {
            let mut addresses = self.pool.addresses();
            addresses.retain(|a| a.wished.wish != Wish::Maint);
            running.retain(|known, _| addresses.iter().any(|a| key(a) == *known));
            for address in addresses {
                running.entry(key(&address)).or_insert_with(|| {
                    let stop = self.stop.child_token();
                    let one = One {
                        checks: Arc::clone(&self),
                        backup: address.backup,
                        backend: address.backend,
                        term: address.wished.term,
                        chance: Chance::from_seed(chance.draw()),
                    };
                    tokio::spawn(
                        stop.clone()
                            .run_until_cancelled_owned(one.run(address.verdict)),
                    );
                    stop.drop_guard()
                });
            }
            changed.notified().await;
        }
    }

    fn probe(&self, backend: &Backend) -> Probe {
        let means = self
            .means
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        Probe::new(
            &backend.place,
            backend.text(),
            &self.check,
            self.send_proxy,
            means,
        )
    }

    /// Reads the password again: it may have become another one. Apart from the event loop, which a file on a network
    /// must not stop.
    async fn look_for_new_secret(&self) {
        let Some(from) = self.check.kind.password().cloned() else {
            return;
        };
        let read = tokio::task::spawn_blocking(move || Secret::load(&from)).await;
        if let Ok(Ok(new)) = read {
            let mut means = self.means.lock().unwrap_or_else(PoisonError::into_inner);
            means.secret = Some(new);
        }
    }
}

/// The checks of one address.
struct One {
    checks: Arc<Checks>,
    backend: Arc<Backend>,
    backup: bool,
    /// Of its address, between two times of maintenance.
    term: u32,
    chance: Chance,
}

impl One {
    async fn run(mut self, supposed: Verdict) {
        let checks = Arc::clone(&self.checks);
        let check = &checks.check;
        let schedule = Schedule::new(check.interval, check.fast_interval);
        let rule = Rule {
            rise: check.rise,
            fall: check.fall,
        };
        let gap = GAP.min(check.fast_interval);
        let mut judge = Judge::new(rule, supposed);
        let mut probe = checks.probe(&self.backend);
        tokio::time::sleep(schedule.first(self.chance.draw())).await;
        loop {
            // Before the check, so that nobody who hurries meanwhile is missed.
            let hurried = checks.hurry.notified();
            let began = Instant::now();
            let (report, farewell) = probe.ask().await;
            if !checks.pool.is_checked(&self.backend, self.term) {
                // The operator was quicker, and this task is about to be ended.
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
        tracing::debug!(upstream = %checks.pool.name, backend = %self.backend.text(), at = %probe.place(),
            result = report.result.word(), took = ?report.took, transcript = report.transcript, "checked");
        let change = judge.hear(report.result, now);
        let checked = Checked {
            at: now,
            took: report.took,
            result: report.result,
            told: report.told.clone(),
            transcript: report.transcript.clone(),
        };
        let anybody = checks.pool.checked(&self.backend, checked, change, now);
        if let Some(change) = change {
            checks
                .leaving
                .after(&checks.pool, &self.backend, self.backup, change.to);
            let nobody_left = !anybody && change.from.is_up();
            // Where one has lost a role another has got it, and the other way round.
            let moved = [change.from, change.to].contains(&Verdict::WrongRole);
            if nobody_left || moved && !change.first {
                checks.hurry.notify_waiters();
            }
            self.write_down(change, report, now);
        }
        anybody
    }

    fn write_down(&self, change: Change, report: Report, now: Instant) {
        let (upstream, backend) = (&self.checks.pool.name, &self.backend);
        let (from, to) = (change.from.state().word(), change.to.state().word());
        let event = Event {
            reason: report.result.word(),
            transcript: Some(report.transcript),
            ..Event::new(upstream, backend, from, to).doubted_for(change.doubted_for)
        };
        let transcript = event.transcript.as_deref().unwrap_or_default();
        let (address, reason, doubt_seconds) = (&backend.place, event.reason, event.doubt_seconds);
        // One that has not been used yet, and is not to be, is nothing to be warned of.
        if change.from.is_up() {
            tracing::warn!(%upstream, backend = %backend.text(), %address, from, to, reason, transcript, doubt_seconds,
                "backend is left out");
        } else {
            let message = if change.to.is_up() {
                "backend is up"
            } else {
                "backend stays out"
            };
            tracing::info!(%upstream, backend = %backend.text(), %address, from, to, reason, transcript, doubt_seconds,
                "{message}");
        }
        let journal = &self.checks.journal;
        let recorded = journal.record(event);
        if change.from.is_up() {
            backend.metrics.doubt_duration.record(change.doubted_for);
            follow(&self.checks.pool, backend, journal, recorded, now);
        }
    }
}
