//! What becomes of sessions when a check has changed its mind about their backend, or the operator wants it out.

use crate::{
    backend::Backend,
    balance::Chance,
    health::{Pace, Verdict},
    plan::{OnLeave, Upstream},
    pool::{Address, Pool, Turned, Wish},
    reason::CloseReason,
    sessions::Sessions,
};
use ahash::RandomState;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Ends the sessions of the backends of one upstream.
pub(super) struct Leaving {
    on_down: OnLeave,
    on_role_lost: OnLeave,
    on_lag: OnLeave,
    on_recover: OnLeave,
    on_drain: OnLeave,
    sessions: Arc<Sessions>,
    /// One for the process.
    pace: Arc<Mutex<Pace>>,
    /// What is under way, or has been since it was last up or ready, by the number of the backend.
    under_way: Mutex<HashMap<(u64, Cause), Going>>,
    stop: CancellationToken,
}

/// On whose account sessions are told to end. Two that go on beside each other: when the one takes back what it said, the
/// other does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Cause {
    Verdict,
    Wish,
}

/// Sessions that are told to end, now or later.
struct Going {
    reason: CloseReason,
    /// When the first is told.
    from: Instant,
    /// Dropping it calls the rest off.
    _guard: DropGuard,
}

impl Leaving {
    pub(super) fn new(
        upstream: &Upstream,
        sessions: &Arc<Sessions>,
        pace: &Arc<Mutex<Pace>>,
        stop: &CancellationToken,
    ) -> Self {
        let check = upstream.check.as_ref();
        Self {
            // Without a check there is no verdict.
            on_down: check.map_or(OnLeave::Keep, |c| c.on_down),
            on_role_lost: check.map_or(OnLeave::Keep, |c| c.on_role_lost),
            on_lag: check.map_or(OnLeave::Keep, |c| c.on_lag),
            on_recover: check.map_or(OnLeave::Keep, |c| c.on_recover),
            on_drain: upstream.on_drain,
            sessions: Arc::clone(sessions),
            pace: Arc::clone(pace),
            under_way: Mutex::default(),
            stop: stop.clone(),
        }
    }

    /// The verdict about `backend` is another now, and stands in the pool already.
    pub(super) fn after(
        &self,
        pool: &Arc<Pool>,
        backend: &Arc<Backend>,
        backup: bool,
        verdict: Verdict,
    ) {
        match verdict {
            Verdict::Up => {
                // It is well again: who is still on it may stay, unless it was not because of it.
                self.call_off(backend, |reason| reason != CloseReason::Recovered);
                if !backup {
                    self.call_back_to(pool, backend);
                }
            }
            // Whoever is used all the same keeps what it has.
            Verdict::Down(_) | Verdict::Lagging if pool.serves_anyway() => {}
            Verdict::Down(_) => self.leave(
                pool,
                Arc::clone(backend),
                self.on_down,
                CloseReason::BackendDown,
            ),
            Verdict::Lagging => {
                let how = self.on_lag;
                self.leave(pool, Arc::clone(backend), how, CloseReason::Lagging);
            }
            Verdict::WrongRole => {
                let how = self.on_role_lost;
                self.leave(pool, Arc::clone(backend), how, CloseReason::RoleLost);
            }
            // It may be right: who is there stays, and what has begun for another reason goes on.
            Verdict::Doubtful => {}
        }
        if !backup && !verdict.is_up() {
            self.backups_are_needed(pool);
        }
    }

    /// From now on all are used whatever their checks say: nobody is told to leave for that.
    pub(super) fn stay(&self, pool: &Pool) {
        for address in pool.addresses() {
            self.call_off(&address.backend, |reason| {
                matches!(reason, CloseReason::BackendDown | CloseReason::Lagging)
            });
        }
    }

    /// The checks count again, and what they said meanwhile.
    pub(super) fn resume(&self, pool: &Arc<Pool>) {
        for address in pool.addresses() {
            if let Verdict::Down(Some(_)) | Verdict::Lagging = address.verdict {
                self.after(pool, &address.backend, address.backup, address.verdict);
            }
        }
    }

    /// The operator wants something else of these addresses of a backend now, and the pool knows already.
    pub(super) fn wished(&self, pool: &Arc<Pool>, wish: Wish, turned: &[Turned]) {
        for Turned {
            backend, backup, ..
        } in turned
        {
            match wish {
                Wish::Ready => {
                    self.under_way().remove(&(backend.id, Cause::Wish));
                    if !backup {
                        self.call_back_to(pool, backend);
                    }
                }
                Wish::Drain | Wish::Maint => {
                    let reason = CloseReason::BackendDrained;
                    self.leave(pool, Arc::clone(backend), self.on_drain, reason);
                }
            }
        }
        if wish != Wish::Ready && turned.iter().any(|address| !address.backup) {
            self.backups_are_needed(pool);
        }
    }

    /// A server that is no backup is back: sessions on backups may go to it, if it takes any.
    fn call_back_to(&self, pool: &Arc<Pool>, backend: &Arc<Backend>) {
        if !pool.takes(backend, Instant::now()) {
            return;
        }
        for address in pool.addresses().into_iter().filter(|a| a.backup) {
            let reason = CloseReason::Recovered;
            self.leave(pool, address.backend, self.on_recover, reason);
        }
    }

    /// Without a primary server sessions on backups have nowhere to go back to.
    fn backups_are_needed(&self, pool: &Pool) {
        let addresses = pool.addresses();
        let serves = |a: &Address| a.verdict.is_up() && a.wished.wish == Wish::Ready;
        if !addresses.iter().any(|a| !a.backup && serves(a)) {
            for address in addresses.iter().filter(|a| a.backup) {
                self.call_off(&address.backend, |reason| reason == CloseReason::Recovered);
            }
        }
    }

    /// What was begun because of a verdict.
    fn call_off(&self, backend: &Backend, which: impl Fn(CloseReason) -> bool) {
        let mut under_way = self.under_way();
        let key = (backend.id, Cause::Verdict);
        if under_way.get(&key).is_some_and(|g| which(g.reason)) {
            under_way.remove(&key);
        }
    }

    fn leave(&self, pool: &Arc<Pool>, backend: Arc<Backend>, how: OnLeave, reason: CloseReason) {
        let wait = match how {
            // What was begun for another reason goes on.
            OnLeave::Keep => return,
            OnLeave::Close => Duration::ZERO,
            OnLeave::CloseAfter(wait) => wait,
        };
        let from = Instant::now() + wait;
        let key = match reason {
            CloseReason::BackendDrained => (backend.id, Cause::Wish),
            _ => (backend.id, Cause::Verdict),
        };
        // What was to begin earlier, or has begun, is not put off by another reason: it was not up in between.
        if self.under_way().get(&key).is_some_and(|g| g.from <= from) {
            return;
        }
        let stop = self.stop.child_token();
        let (pool, sessions) = (Arc::clone(pool), Arc::clone(&self.sessions));
        let pace = Arc::clone(&self.pace);
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            // First those who come are told, then those who are there are looked for: nobody falls between.
            pool.leave(&backend);
            let there = sessions.on(backend.id);
            if there.is_empty() {
                return;
            }
            tracing::info!(upstream = %pool.name, backend = %backend.text(), sessions = there.len(),
                reason = reason.word(), "telling sessions to end");
            let began = Instant::now();
            let mut chance = Chance::from_seed(RandomState::new().hash_one(()));
            let mut left = &there[..];
            while !left.is_empty() {
                let n = {
                    let mut pace = pace.lock().unwrap_or_else(PoisonError::into_inner);
                    pace.take(left.len(), Instant::now())
                };
                let (now, later) = left.split_at(n);
                now.iter().for_each(|session| session.end(reason));
                left = later;
                if !left.is_empty() {
                    tokio::time::sleep(Pace::pause(chance.draw())).await;
                }
            }
            tracing::info!(upstream = %pool.name, backend = %backend.text(), sessions = there.len(),
                took = ?began.elapsed(), reason = reason.word(), "all have been told");
        }));
        let going = Going {
            reason,
            from,
            _guard: stop.drop_guard(),
        };
        self.under_way().insert(key, going);
    }

    fn under_way(&self) -> std::sync::MutexGuard<'_, HashMap<(u64, Cause), Going>> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        net::Client,
        plan::{Check, CheckKind},
        pool::tests::{check, of, planned, upstream, verdict},
    };

    /// What a session on one of two backends is told when this becomes the verdict about it.
    fn told(check: Check, to: Verdict) -> Option<CloseReason> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let now = Instant::now();
            let sessions = Arc::new(Sessions::new(1, 10));
            let pace = Arc::new(Mutex::new(Pace::new(now)));
            let plan = upstream(vec![planned(1), planned(2)], check);
            let leaving = Leaving::new(&plan, &sessions, &pace, &CancellationToken::new());
            let pool = Arc::new(of(&plan, now));
            verdict(&pool, 1, Verdict::Up, true, now);
            let backend = Arc::clone(&pool.addresses()[0].backend);
            let session = sessions.list(Client::Unix, None).expect("room for one");
            session.set_backend(backend.id);
            verdict(&pool, 0, to, true, now);
            leaving.after(&pool, &backend, false, to);
            // For the task that tells.
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            session.must_end()
        })
    }

    /// What is to come when all are used is called off, and comes when the checks count again.
    #[test]
    fn who_is_used_all_the_same_is_not_told_later_either() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let now = Instant::now();
            let check = Check {
                on_down: OnLeave::CloseAfter(Duration::from_secs(3600)),
                serve_anyway_below: 60,
                ..check(CheckKind::Tcp)
            };
            let sessions = Arc::new(Sessions::new(1, 10));
            let pace = Arc::new(Mutex::new(Pace::new(now)));
            let plan = upstream((1..=3).map(planned).collect(), check);
            let leaving = Leaving::new(&plan, &sessions, &pace, &CancellationToken::new());
            let pool = Arc::new(of(&plan, now));
            let turn = |n: usize, to| {
                verdict(&pool, n, to, false, now);
                let backend = &pool.addresses()[n].backend;
                leaving.after(&pool, backend, false, to);
            };
            let waiting = || leaving.under_way().len();
            let down = Verdict::Down(Some(crate::reason::CheckResult::Refused));
            (0..3).for_each(|n| turn(n, Verdict::Up));
            turn(0, down);
            assert_eq!((waiting(), pool.serves_anyway()), (1, false));
            turn(1, down);
            assert!(pool.serves_anyway());
            leaving.stay(&pool);
            assert_eq!(waiting(), 0);
            turn(1, Verdict::Up);
            assert!(!pool.serves_anyway());
            leaving.resume(&pool);
            assert_eq!(waiting(), 1, "the first one is still down");
        });
    }

    #[test]
    fn each_reason_has_its_own_rule() {
        let close = |check: Check| Check {
            on_down: OnLeave::Close,
            on_role_lost: OnLeave::Close,
            on_lag: OnLeave::Close,
            ..check
        };
        let keep = |check: Check| Check {
            on_down: OnLeave::Keep,
            on_role_lost: OnLeave::Keep,
            on_lag: OnLeave::Keep,
            ..check
        };
        let plain = || check(CheckKind::Tcp);
        for (to, reason) in [
            (Verdict::Down(None), CloseReason::BackendDown),
            (Verdict::WrongRole, CloseReason::RoleLost),
            (Verdict::Lagging, CloseReason::Lagging),
        ] {
            assert_eq!(told(close(plain()), to), Some(reason));
            assert_eq!(told(keep(plain()), to), None);
            let others = match to {
                Verdict::Lagging => Check {
                    on_lag: OnLeave::Keep,
                    ..close(plain())
                },
                _ => Check {
                    on_lag: OnLeave::Close,
                    ..keep(plain())
                },
            };
            assert_eq!(told(others, to), None, "{to:?} by the rule of another");
        }
        // It may be right; and who is used all the same keeps what it has.
        assert_eq!(told(close(plain()), Verdict::Doubtful), None);
        let anyway = Check {
            serve_anyway_below: 100,
            ..close(plain())
        };
        assert_eq!(told(anyway.clone(), Verdict::Lagging), None);
        let refused = Verdict::Down(Some(crate::reason::CheckResult::Refused));
        assert_eq!(told(anyway, refused), None);
    }
}
