//! The backends of a pool as status and metrics show them.

use super::{
    AdminSetting, AdminState, Checked, Inner, Pool,
    configured::Configured,
    endpoint::BoxedEndpoint,
    index::{DepartedIndex, Index},
};
use crate::{
    plan::{
        self, Addr, Balance, Origin, Role, counted,
        reason::{BackendState, CheckResult},
    },
    telemetry::metrics::BackendMetrics,
    upstream::{
        backend::Backend,
        balance::FULL,
        health::{Evidence, Lag, Verdict},
        pool::endpoint_admission::{Admission, Bar},
    },
};
use smallvec::SmallVec;
use std::{collections::BTreeMap, sync::Arc, time::Instant};

/// A backend as status and metrics show it.
#[derive(Debug)]
pub struct EndpointSnapshot {
    pub metrics: Arc<BackendMetrics>,
    /// The one in effect.
    pub weight: u32,
    /// The configured one.
    pub weight_in_file: u32,
    /// Since when an operator's weight is in effect; `None`: that of the file is.
    pub weight_since: Option<Instant>,
    pub backup: bool,
    /// 0: no limit.
    pub max_connections: u64,
    pub state: BackendState,
    pub admin_state: AdminState,
    /// Why it is in that state, as text.
    pub why: String,
    /// When the last failure was.
    pub last_failure: Option<Instant>,
    /// While it is failed: when a session may try it again.
    pub failed_until: Option<Instant>,
    /// Whether it is fit for sessions, full or not, and its connects have not failed.
    pub available: bool,
    /// Whether it is available, and has reached `max_connections`.
    pub full: bool,
    /// The average that `least_time` compares, in seconds: the least of its addresses; `None` for
    /// other policies.
    pub average_time: Option<f64>,
    /// When an operator took it out; `None` while it is ready.
    pub admin_since: Option<Instant>,
    /// When an operator set its admin state, or connects began to fail for which it is out, or else
    /// when the verdict of its checks changed last.
    pub since: Option<Instant>,
    /// The roles of its addresses; `None`: checks do not report them.
    pub roles: Option<Vec<Role>>,
    /// The latest of its addresses.
    pub checked: Option<Checked>,
    /// Whether checks of one of its addresses have not had a result yet.
    pub awaits_check: bool,
    /// What its name stands for now.
    pub addresses: Vec<Addr>,
    pub origin: Origin,
}

impl Pool {
    /// All configured backends as they are now, then those that were removed and have sessions.
    pub fn snapshot(&self, now: Instant) -> Vec<EndpointSnapshot> {
        let mut inner = self.lock();
        inner.halve_if_due(now);
        inner.review_if_due(now);
        let contents = inner.contents();
        drop(inner);
        let Contents { configured, .. } = &contents;
        let removed = contents.removed();
        let mut snapshots = Vec::with_capacity(configured.len() + removed.len());
        for first in (0..configured.len()).step_by(PART) {
            let inner = self.lock_again();
            // One that has been removed meanwhile is left out.
            let numbers = first..configured.len().min(first + PART);
            let present = numbers.filter_map(|of| inner.position_now(&contents, of));
            snapshots.extend(present.map(|of| self.snapshot_of(&inner, of, now)));
        }
        for part in removed.chunks(PART) {
            let inner = self.lock_again();
            let left = part.iter().filter_map(|backends| {
                let numbers = backends.iter();
                let numbers = numbers.filter_map(|b| inner.departed_index.endpoint(b.id));
                let since = numbers.clone().map(|i| inner.departed_index.since[i]).max();
                let endpoints: Vec<&BoxedEndpoint> = numbers.map(|i| &inner.departed[i]).collect();
                (!endpoints.is_empty()).then(|| self.snapshot_of_removed(&endpoints, since))
            });
            snapshots.extend(left);
        }
        snapshots
    }

    /// The counters of the same backends.
    pub fn backend_metrics(&self) -> Vec<Arc<BackendMetrics>> {
        let contents = self.lock().contents();
        let configured = contents.configured.iter().map(|c| Arc::clone(&c.metrics));
        let removed = contents.removed().into_iter();
        let removed = removed.map(|backends| Arc::clone(&backends[0].metrics));
        configured.chain(removed).collect()
    }

    /// `endpoints`: of one backend, at least one.
    fn snapshot_of_removed(
        &self,
        endpoints: &[&BoxedEndpoint],
        since: Option<Instant>,
    ) -> EndpointSnapshot {
        let first = endpoints[0];
        let checks = || endpoints.iter().filter_map(|e| e.check.last.as_ref());
        let failures = endpoints.iter().filter_map(|e| e.passive.last_failure());
        EndpointSnapshot {
            metrics: Arc::clone(&first.backend.metrics),
            weight: 0,
            weight_in_file: 0,
            weight_since: None,
            backup: first.config.is_backup,
            max_connections: first.config.max_connections,
            state: BackendState::Removed,
            admin_state: first.admin.admin_state,
            why: "it is not in the configuration or its source any more, and has sessions"
                .to_owned(),
            last_failure: failures.max(),
            failed_until: None,
            available: false,
            full: false,
            average_time: None,
            admin_since: first.admin.since,
            since,
            roles: self
                .reports_roles
                .then(|| checks().filter_map(|c| c.finding.role).collect()),
            checked: checks().max_by_key(|c| c.at).cloned(),
            awaits_check: false,
            addresses: endpoints.iter().map(|e| e.backend.addr.clone()).collect(),
            origin: Origin::default(),
        }
    }

    fn snapshot_of(&self, inner: &Inner, of: usize, now: Instant) -> EndpointSnapshot {
        let configured = &inner.configured[of];
        let endpoints: SmallVec<[&BoxedEndpoint; 4]> =
            inner.endpoints[inner.index.range(of)].iter().collect();
        let endpoints = &endpoints[..];
        let Configured { plan, admin, .. } = &**configured;
        let single = inner.balancer.is_single();
        // That a failed one may be tried again proves nothing.
        let is_available =
            |e: &&&BoxedEndpoint| (single || !e.is_failed()) && e.admission(single, now).is_fit();
        let available: Vec<_> = endpoints.iter().filter(is_available).collect();
        let is_full = |e: &&&BoxedEndpoint| e.admission(single, now).is_full();
        let (state, why) = inner.explain_state(plan, *admin, endpoints, now);
        let checks = || endpoints.iter().map(|e| &e.check);
        let last_checks = || checks().filter_map(|check| check.last.as_ref());
        let is_least_time = matches!(self.balance, Balance::LeastTime(_));
        let averages = endpoints.iter().map(|e| e.latency.seconds);
        EndpointSnapshot {
            metrics: Arc::clone(&configured.metrics),
            weight: configured.weight(),
            weight_in_file: plan.weight,
            weight_since: configured.operator_weight.map(|set| set.since),
            backup: plan.backup,
            max_connections: plan.max_connections,
            state,
            why,
            last_failure: endpoints
                .iter()
                .filter_map(|e| e.passive.last_failure())
                .max(),
            failed_until: failed_until(endpoints, now).filter(|_| state == BackendState::Failed),
            available: !available.is_empty(),
            full: !available.is_empty() && available.iter().all(is_full),
            average_time: averages.reduce(f64::min).filter(|_| is_least_time),
            admin_state: admin.admin_state,
            admin_since: admin.since,
            since: admin
                .since
                .or_else(|| failing_since(endpoints, state))
                .or_else(|| checks().filter_map(|c| c.since).max()),
            roles: self
                .reports_roles
                .then(|| last_checks().filter_map(|c| c.finding.role).collect()),
            awaits_check: endpoints
                .iter()
                .any(|e| inner.awaits_check(e) || e.check.awaits_answer.is_some()),
            checked: last_checks().max_by_key(|c| c.at).cloned(),
            addresses: configured.addresses.clone(),
            origin: plan.origin.clone(),
        }
    }
}

/// So many backends are looked at before workers get the lock again.
const PART: usize = 64;

/// What a pool had at one moment.
struct Contents {
    configured: Arc<Vec<Arc<Configured>>>,
    index: Arc<Index>,
    departed: Arc<DepartedIndex>,
}

impl Contents {
    /// The addresses that have sessions, of each backend that is not in the configuration any more.
    fn removed(&self) -> Vec<Vec<&Arc<Backend>>> {
        let mut removed: BTreeMap<&str, Vec<&Arc<Backend>>> = BTreeMap::new();
        let is_gone = |b: &&Arc<Backend>| self.index.configured(b.text()).is_none();
        let with_sessions = self.departed.backends.iter().filter(|b| b.active() > 0);
        for backend in with_sessions.filter(is_gone) {
            removed.entry(backend.text()).or_default().push(backend);
        }
        let mut removed: Vec<_> = removed.into_values().collect();
        // In the order in which they were made.
        removed.sort_by_key(|of| of[0].id);
        removed
    }
}

impl Inner {
    fn contents(&self) -> Contents {
        Contents {
            configured: Arc::clone(&self.configured),
            index: Arc::clone(&self.index),
            departed: Arc::clone(&self.departed_index),
        }
    }

    /// Where a backend is in the configuration that had this position before.
    fn position_now(&self, before: &Contents, of: usize) -> Option<usize> {
        match Arc::ptr_eq(&self.index, &before.index) {
            true => Some(of),
            false => self.index.configured(&before.configured[of].metrics.text),
        }
    }

    /// The state of a configured backend, and why it is in it, as text. It is that of the endpoint
    /// that comes nearest to taking sessions.
    pub(super) fn explain_state(
        &self,
        plan: &plan::Backend,
        admin: AdminSetting,
        endpoints: &[&BoxedEndpoint],
        now: Instant,
    ) -> (BackendState, String) {
        use BackendState::{Disabled, Down, Failed, Unproven, Up};
        let single = self.balancer.is_single();
        let is_failed = |e: &BoxedEndpoint| !single && e.is_failed();
        let all_failed = !endpoints.is_empty() && endpoints.iter().all(|e| is_failed(e));
        if let Some(state) = admin.admin_state.state() {
            let why = explain_admin_state(admin.admin_state, endpoints, all_failed);
            return (state, why);
        }
        if plan.origin.is_draining() {
            return (BackendState::Drained, "its source drains it".to_owned());
        }
        if plan.down {
            return (Disabled, "set in the configuration".to_owned());
        }
        let rank = |e: &BoxedEndpoint| (rank(e.admission(single, now)), is_failed(e));
        let Some(best) = endpoints.iter().min_by_key(|e| rank(e)) else {
            return (Down, "its name does not resolve".to_owned());
        };
        if let Some((state, why)) = explain_verdict(endpoints) {
            return match self.review.explain_use(best.check.effective) {
                Some(used) => (state, format!("{why}; {used}")),
                None => (state, why),
            };
        }
        if let Some(why) = explain_stale(endpoints, now) {
            return (Up, why);
        }
        let fails: u32 = endpoints.iter().map(|e| e.passive.fails()).sum();
        let fails = || counted(fails, best.passive.last_of().word());
        match best.admission(single, now) {
            Admission::Full | Admission::Part(_) if is_failed(best) => {
                let why = format!(
                    "{}; fail_timeout has passed: the next session tries it, and it is up once \
                     that has connected",
                    fails()
                );
                (Unproven, why)
            }
            Admission::Full | Admission::Part(_) => (Up, explain_up(endpoints, now)),
            Admission::Barred(bar) => match bar {
                Bar::Failed => {
                    let mut why = fails();
                    if let Some(until) = failed_until(endpoints, now) {
                        why += &format!("; tried again in {} s", seconds_until(until, now));
                    }
                    (Failed, why)
                }
                Bar::NoWeight => (Up, "weight 0: takes nothing new".to_owned()),
                Bar::Full => (Up, "full: max_connections is reached".to_owned()),
                // Explained above.
                Bar::Drained | Bar::Maintenance | Bar::Disabled | Bar::Check(_) | Bar::Stale => {
                    (best.state(), String::new())
                }
            },
        }
    }
}

/// When the first of them that connects have taken out may be tried again.
fn failed_until(endpoints: &[&BoxedEndpoint], now: Instant) -> Option<Instant> {
    let times = endpoints
        .iter()
        .filter_map(|e| e.passive.available_at(e.config.rule, now));
    times.min()
}

/// When the failures began for which it is in this state.
fn failing_since(endpoints: &[&BoxedEndpoint], state: BackendState) -> Option<Instant> {
    let is_due_to_failures = matches!(state, BackendState::Failed | BackendState::Unproven);
    let failed = endpoints.iter().filter(|e| e.passive.fails() > 0);
    let first = failed.filter_map(|e| e.passive.times()[0]).min();
    first.filter(|_| is_due_to_failures)
}

/// In whole seconds; never 0 while there is some time left.
fn seconds_until(until: Instant, now: Instant) -> u128 {
    let left = until.saturating_duration_since(now);
    ((left.as_millis() + 500) / 1000).max(1)
}

/// How far an endpoint is from taking sessions.
fn rank(admission: Admission) -> u32 {
    match admission {
        Admission::Full | Admission::Part(_) => 0,
        Admission::Barred(bar) => match bar {
            Bar::Full => 1,
            Bar::NoWeight => 2,
            Bar::Failed => 3,
            Bar::Stale => 4,
            Bar::Check(_) => 5,
            Bar::Disabled | Bar::Drained | Bar::Maintenance => 6,
        },
    }
}

/// What limits a backend that takes sessions, or what its last check found wrong; else empty.
fn explain_up(endpoints: &[&BoxedEndpoint], now: Instant) -> String {
    let starting = |e: &&BoxedEndpoint| match e.admission(false, now) {
        Admission::Part(share) if share < FULL => Some(share * 100 / FULL),
        Admission::Full | Admission::Part(_) | Admission::Barred(_) => None,
    };
    if let Some(percent) = endpoints.iter().filter_map(starting).min() {
        return format!("slow start: {percent} % of its weight");
    }
    let fault = |e: &&BoxedEndpoint| e.check.last.as_ref()?.finding.fault.clone();
    endpoints.iter().find_map(fault).unwrap_or_default()
}

/// `failed`: by connects.
fn explain_admin_state(
    admin_state: AdminState,
    endpoints: &[&BoxedEndpoint],
    failed: bool,
) -> String {
    let besides = match explain_verdict(endpoints) {
        _ if admin_state == AdminState::Maint => None,
        None if failed => Some("its connects fail".to_owned()),
        verdict => verdict.map(|(_, why)| why),
    };
    let besides = besides.map_or_else(String::new, |why| format!("; besides, {why}"));
    format!("set by the operator{besides}")
}

/// The verdict of the checks on a backend that is up at none of its addresses, and why.
fn explain_verdict(endpoints: &[&BoxedEndpoint]) -> Option<(BackendState, String)> {
    if endpoints.iter().any(|e| e.check.effective.is_up()) {
        return None;
    }
    // Of several addresses the best decides.
    let rank = |e: &&&BoxedEndpoint| match e.check.effective {
        Verdict::Doubtful => 0,
        Verdict::Lagging => 1,
        Verdict::Standby => 2,
        Verdict::WrongRole => 3,
        Verdict::Down(_) | Verdict::Up => 4,
    };
    let check = &endpoints.iter().min_by_key(rank)?.check;
    let last = check.last.as_ref();
    let fault = last.and_then(|c| c.finding.fault.as_deref());
    let why = match (check.effective, &check.why) {
        (_, Some(why)) => why.clone(),
        (Verdict::Down(None), _) if check.awaits_answer.is_some() => {
            "not checked since it was put back into service".to_owned()
        }
        (Verdict::Down(None), _) => "not checked yet".to_owned(),
        (Verdict::Down(Some(result)), _) => explain_failed_check(result, last),
        (Verdict::Lagging, _) => match (fault, last.map(|c| c.finding.lag)) {
            (Some(fault), _) if last.is_some_and(|c| c.result == CheckResult::NotReplicating) => {
                format!("{fault}; it takes readers once it replicates (replicating = true)")
            }
            (Some(fault), _) => fault.to_owned(),
            (None, Some(lag)) => explain_lag(lag),
            (None, None) => "it is behind".to_owned(),
        },
        (Verdict::WrongRole | Verdict::Standby | Verdict::Doubtful | Verdict::Up, _) => {
            let role = match last.and_then(|c| c.finding.role) {
                Some(role) => format!("its role is {}", role.word()),
                None => "it has another role".to_owned(),
            };
            match fault {
                Some(fault) => format!("{role}, and {fault}"),
                None => role,
            }
        }
    };
    Some((check.effective.state(), why))
}

/// `result`: of the check that took it out; the last one may have found something else.
fn explain_failed_check(result: CheckResult, last: Option<&Checked>) -> String {
    let is_good = |c: &&Checked| match Evidence::of(c.result) {
        Evidence::Missing | Evidence::Unchanged | Evidence::Role => true,
        Evidence::OtherRole | Evidence::MayHaveRestarted | Evidence::Unknown => false,
    };
    match last.filter(|c| !is_good(c)) {
        Some(c) if !c.transcript.is_empty() => {
            let (word, saw) = (c.result.word(), shorten(&c.transcript));
            format!("its check reports: {word}: {saw}")
        }
        last => {
            let result = last.map_or(result, |c| c.result);
            format!("its check reports: {}", result.word())
        }
    }
}

/// What a check saw, short enough for a line among others.
fn shorten(text: &str) -> String {
    const MOST: usize = 160;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

fn explain_lag(lag: Lag) -> String {
    let seconds = lag.time.map(|t| format!("{:.1} s", t.as_secs_f64()));
    let bytes = lag.bytes.map(|n| format!("{n} bytes"));
    let parts: Vec<String> = [seconds, bytes].into_iter().flatten().collect();
    match parts.is_empty() {
        true => "it is behind".to_owned(),
        false => format!("it is behind by {}", parts.join(", ")),
    }
}

/// For how long there has been no certain answer, if that is too long for all that are up.
fn explain_stale(endpoints: &[&BoxedEndpoint], now: Instant) -> Option<String> {
    let checks = endpoints.iter().map(|e| &e.check);
    let up: Vec<_> = checks.filter(|c| c.effective.is_up()).collect();
    if !up.iter().all(|check| check.is_stale) {
        return None;
    }
    let last = up.iter().map(|check| check.last_conclusive).max()?;
    let silent = now.saturating_duration_since(last).as_secs();
    Some(format!("no certain answer for {silent} s"))
}
