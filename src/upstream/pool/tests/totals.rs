//! What is counted of endpoints, and a review of one of them, agree with a look at all.

use super::*;
use crate::upstream::{health::Epoch, pool::effective_verdict::Guarded};
use proptest::prelude::*;
use std::collections::HashMap;

#[derive(Debug, Clone)]
enum Step {
    Pass(u64),
    /// The result of a check, whether it changes the verdict, and its proof.
    Check(usize, CheckResult, bool, Option<u32>),
    Fail(usize),
    Session(bool),
    Admin(usize, AdminState),
    Weight(usize, Option<u32>),
    /// How many addresses the backend has.
    Addresses(usize, usize),
    /// Which backends there are, and the settings of one.
    Plan(Vec<u8>, u8, Setting),
    Rules(Rules),
}

#[derive(Debug, Clone, Copy)]
enum Setting {
    None,
    Backup,
    Down,
    Drain,
    Full,
}

#[derive(Debug, Clone, Copy)]
struct Rules {
    panic_threshold: u32,
    role_fallback: bool,
    stale_after: Option<u64>,
    primary: bool,
    start_up: bool,
    has_check: bool,
}

fn rules() -> impl Strategy<Value = Rules> {
    let threshold = prop::sample::select(vec![0, 0, 40, 100]);
    let stale = prop::option::of(5..20u64);
    let (any, mostly) = (any::<bool>, prop::bool::weighted(0.9));
    let all = (threshold, any(), stale, any(), any(), mostly);
    all.prop_map(
        |(panic_threshold, fallback, stale_after, primary, start_up, has_check)| Rules {
            panic_threshold,
            role_fallback: fallback && !primary,
            stale_after,
            primary,
            start_up,
            has_check,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let n = || 0..4usize;
    let proof = prop::option::of(1..4u32);
    let result = prop::sample::select(CheckResult::ALL.to_vec());
    let state = prop::sample::select(AdminState::ALL.to_vec());
    let setting = prop::sample::select(vec![
        Setting::None,
        Setting::Backup,
        Setting::Down,
        Setting::Drain,
        Setting::Full,
    ]);
    let numbers = prop::sample::subsequence((1..=4).collect::<Vec<u8>>(), 1..=4).prop_shuffle();
    prop_oneof![
        2 => (0..12u64).prop_map(Step::Pass),
        8 => (n(), result, prop::bool::weighted(0.8), proof)
            .prop_map(|(n, result, changes, proof)| Step::Check(n, result, changes, proof)),
        2 => n().prop_map(Step::Fail),
        2 => any::<bool>().prop_map(Step::Session),
        2 => (n(), state).prop_map(|(n, state)| Step::Admin(n, state)),
        1 => (n(), prop::option::of(0..3u32)).prop_map(|(n, weight)| Step::Weight(n, weight)),
        1 => (n(), 0..3usize).prop_map(|(n, count)| Step::Addresses(n, count)),
        2 => (numbers, 1..=4u8, setting).prop_map(|(all, n, set)| Step::Plan(all, n, set)),
        1 => rules().prop_map(Step::Rules),
    ]
}

fn check_by(rules: Rules) -> Option<Check> {
    let role = match rules.primary {
        true => plan::Role::Primary,
        false => plan::Role::Replica,
    };
    let kind = CheckKind::Redis {
        role: Some(role),
        user: None,
        password: None,
        replicating: false,
        max_lag: None,
        min_version: None,
        require_writes: true,
    };
    rules.has_check.then(|| Check {
        panic_threshold: rules.panic_threshold,
        role_fallback: rules.role_fallback,
        stale_after: rules.stale_after.map(Duration::from_secs),
        start_up: rules.start_up,
        ..check(kind)
    })
}

struct Scene {
    pool: Pool,
    exporter: Exporter,
    of_all: Arc<UpstreamMetrics>,
    backends: Vec<Planned>,
    rules: Rules,
    now: Instant,
    leases: Vec<crate::upstream::backend::Lease>,
}

impl Scene {
    fn new(rules: Rules) -> Self {
        let exporter = Exporter::new(1);
        let of_all = exporter.upstream("u");
        let (backends, now): (Vec<_>, _) = ((1..=3).map(planned).collect(), Instant::now());
        let mut plan = upstream(backends.clone(), check(CheckKind::Tcp));
        plan.check = check_by(rules);
        Self {
            pool: of(&plan, now),
            exporter,
            of_all,
            backends,
            rules,
            now,
            leases: Vec::new(),
        }
    }

    fn set_plan(&self) {
        let mut plan = upstream(self.backends.clone(), check(CheckKind::Tcp));
        plan.check = check_by(self.rules);
        let add = |b: &Planned| {
            let metrics =
                self.exporter
                    .backend(&self.of_all, &b.text, Some(plan::CheckProtocol::Redis));
            let Target::Addr(addr) = &b.target else {
                return (Arc::new(metrics), Vec::new());
            };
            (Arc::new(metrics), vec![addr.clone()])
        };
        self.pool.set_plan(&plan, add, &Cause::Discovery, self.now);
    }

    fn check(&self, n: usize, result: CheckResult, changes: bool, proof: Option<u32>) {
        let addresses = self.pool.addresses();
        let Some(address) = addresses.get(n).filter(|_| self.rules.has_check) else {
            return;
        };
        let to = match result {
            CheckResult::Ok => Verdict::Up,
            CheckResult::WrongRole => Verdict::WrongRole,
            CheckResult::Standby => Verdict::Standby,
            CheckResult::Lagging => Verdict::Lagging,
            other => Verdict::Down(Some(other)),
        };
        let checked = Checked {
            began: self.now,
            at: self.now,
            took: Duration::ZERO,
            result,
            finding: Finding {
                epoch: proof.map(Epoch::Timeline),
                ..Finding::default()
            },
            transcript: String::new(),
        };
        let change = VerdictChange {
            from: self.pool.own_verdict(&address.backend),
            to,
            doubted_for: Duration::ZERO,
            first: false,
        };
        let change = Some(change).filter(|change| changes && change.from != to);
        self.pool
            .checked(&address.backend, checked, change, self.now);
    }

    fn take(&mut self, step: Step) {
        let now = self.now;
        let backend = |n: usize| Some(Arc::clone(&self.pool.addresses().get(n)?.backend));
        let text = |n: usize| self.backends.get(n).map(|b| b.text.clone());
        match step {
            Step::Pass(seconds) => self.now += Duration::from_secs(seconds),
            Step::Check(n, result, changes, proof) => self.check(n, result, changes, proof),
            Step::Fail(n) => {
                if let Some(backend) = backend(n) {
                    fail(&self.pool, &backend, now);
                }
            }
            Step::Session(stays) => {
                let mut search = self.pool.search(&HashInput::default());
                if let Ok(lease) = self.pool.pick(&mut search, now) {
                    self.pool.succeeded(&search, lease.backend(), now);
                    self.leases.extend(Some(lease).filter(|_| stays));
                } else {
                    self.leases.clear();
                }
            }
            Step::Admin(n, state) => {
                text(n).map(|text| self.pool.set_admin_state(&text, state.into(), now));
            }
            Step::Weight(n, weight) => {
                text(n).map(|text| self.pool.set_weight(&text, weight, now));
            }
            Step::Addresses(n, count) => {
                let addresses = (0..count).map(|i| address((10 * n + i + 50) as u8));
                let addresses: Vec<Addr> = addresses.collect();
                text(n).map(|text| self.pool.set_addresses(&text, &addresses, now));
            }
            Step::Plan(numbers, n, setting) => {
                let of = |number| match (number == n, setting) {
                    (true, Setting::Backup) => Planned {
                        backup: true,
                        ..planned(number)
                    },
                    (true, Setting::Down) => Planned {
                        down: true,
                        ..planned(number)
                    },
                    (true, Setting::Drain) => Planned {
                        origin: plan::Origin::Discovered {
                            name: None,
                            draining: true,
                        },
                        ..planned(number)
                    },
                    (true, Setting::Full) => Planned {
                        max_connections: 1,
                        ..planned(number)
                    },
                    (true, Setting::None) | (false, _) => planned(number),
                };
                self.backends = numbers.into_iter().map(of).collect();
                self.set_plan();
            }
            Step::Rules(rules) => {
                self.rules = rules;
                self.set_plan();
            }
        }
    }

    /// What is decided about each endpoint, and about all.
    fn decisions(&self) -> (Vec<String>, Guarded) {
        let inner = self.pool.lock();
        let all = inner.endpoints.iter().chain(&inner.departed);
        let decisions = all.map(|e| {
            let check = &e.check;
            let (effective, why) = (check.effective, &check.why);
            let text = e.backend.text();
            format!(
                "{text} {effective:?} {why:?} {} {}",
                check.admits, check.is_stale
            )
        });
        let decisions = decisions.collect();
        drop(inner);
        (decisions, self.pool.guarded(self.now))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_look_at_all_finds_nothing_else(
        first in rules(),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut scene = Scene::new(first);
        for step in steps {
            scene.take(step);
            // Time alone may have made a verdict stale.
            let decisions = (scene.pool.guarded(scene.now), scene.decisions()).1;
            scene.pool.lock().assert_is_counted();
            scene.pool.take_events(scene.now);
            scene.pool.lock().review(None, scene.now);
            scene.pool.lock().assert_is_counted();
            prop_assert_eq!(&scene.decisions(), &decisions);
            let (events, _) = scene.pool.take_events(scene.now);
            prop_assert!(events.is_empty(), "{events:?}");
        }
    }

    /// What follows from an exchange of the endpoints is reported by itself, or with it.
    #[test]
    fn no_change_is_reported_twice(
        first in rules(),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut scene = Scene::new(first);
        for step in steps {
            scene.take(step);
            let mut ended = HashMap::new();
            for event in scene.pool.take_events(scene.now).0 {
                if let Event::Transition(Transition { backend, from, to, .. }) = event {
                    let last = ended.insert(backend.id, to);
                    prop_assert!(last != Some(to), "{from:?} {to:?} twice");
                }
            }
        }
    }
}
