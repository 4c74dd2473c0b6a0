//! The backends of a pool as status and metrics show them.

use super::{AdminState, Checked, Inner, Pool};
use crate::{
    plan::{
        Addr, Balance, Role,
        reason::{BackendState, CheckResult},
    },
    telemetry::metrics::BackendMetrics,
    upstream::{
        health::{Lag, Verdict},
        pool::endpoint::Member,
    },
};
use std::{sync::Arc, time::Instant};

/// A backend as status and metrics show it.
#[derive(Debug)]
pub struct Snapshot {
    pub metrics: Arc<BackendMetrics>,
    pub weight: u32,
    pub backup: bool,
    pub state: BackendState,
    pub admin_state: AdminState,
    /// Why it is in that state, in words.
    pub why: String,
    /// How long ago the last failure was.
    pub last_failure: Option<Instant>,
    /// Whether it takes sessions now, and nothing says that it might not serve them.
    pub available: bool,
    /// The average that `least_time` compares, in seconds: the least of its addresses; `None` for
    /// other policies.
    pub average_time: Option<f64>,
    /// Since when the operator wants it like this, or else the checks have been of one mind.
    pub since: Option<Instant>,
    /// The roles that its addresses have; `None` where no check asks.
    pub roles: Option<Vec<Role>>,
    /// The latest of its addresses.
    pub checked: Option<Checked>,
    /// What its name stands for now.
    pub addresses: Vec<Addr>,
}

impl Pool {
    /// All configured backends as they are now.
    pub fn snapshot(&self, now: Instant) -> Vec<Snapshot> {
        let mut inner = self.lock();
        inner.halve(now);
        inner.look_out(now);
        let mut members: Vec<Vec<&Member>> = vec![Vec::new(); self.configured.len()];
        for member in &inner.members {
            members[member.of].push(member);
        }
        let each = members.iter().enumerate();
        each.map(|(of, members)| self.snapshot_of(&inner, of, members, now))
            .collect()
    }

    fn snapshot_of(&self, inner: &Inner, of: usize, members: &[&Member], now: Instant) -> Snapshot {
        let (plan, metrics) = &self.configured[of];
        let single = inner.balancer.is_single();
        // That a failed one may be tried again proves nothing.
        let is_proven = |m: &&&Member| single || !m.is_failed();
        let mut proven = members.iter().filter(is_proven);
        let available = proven.any(|m| m.share(single, now) > 0);
        let setting = inner.admin_states.get(of).copied().unwrap_or_default();
        let (state, why) = self.state_of(inner, of, members, now);
        let checked = || members.iter().filter_map(|m| m.checked.as_ref());
        Snapshot {
            metrics: Arc::clone(metrics),
            weight: plan.weight,
            backup: plan.backup,
            state,
            why,
            last_failure: members
                .iter()
                .filter_map(|m| m.passive.last_failure())
                .max(),
            available,
            average_time: matches!(self.balance, Balance::LeastTime(_))
                .then(|| members.iter().map(|m| m.average.seconds))
                .and_then(|averages| averages.reduce(f64::min)),
            admin_state: setting.admin_state,
            since: setting
                .since
                .or_else(|| members.iter().filter_map(|m| m.verdict_since).max()),
            roles: self
                .hears_roles
                .then(|| checked().filter_map(|c| c.finding.role).collect()),
            checked: checked().max_by_key(|c| c.at).cloned(),
            addresses: members.iter().map(|m| m.backend.place.clone()).collect(),
        }
    }

    /// The state of a configured backend, and why it is in it, in words.
    pub(super) fn state_of(
        &self,
        inner: &Inner,
        of: usize,
        members: &[&Member],
        now: Instant,
    ) -> (BackendState, String) {
        let plan = &self.configured[of].0;
        let single = inner.balancer.is_single();
        let can_take = members.iter().any(|m| m.share(single, now) > 0);
        // Until a connect succeeds. That it may be tried again proves nothing.
        let failed = !members.is_empty() && !single && members.iter().all(|m| m.is_failed());
        let fails: u32 = members.iter().map(|m| m.passive.fails()).sum();
        let setting = inner.admin_states.get(of).copied().unwrap_or_default();
        use BackendState::{Disabled, Down, Failed, Unproven, Up};
        if let Some(state) = setting.admin_state.state() {
            (state, admin_why(setting.admin_state, members, failed))
        } else if plan.down {
            (Disabled, "the configuration says so".to_owned())
        } else if members.is_empty() {
            (Down, "its name does not resolve".to_owned())
        } else if let Some((state, why)) = judged(members) {
            match inner.guard.panic() {
                Some(panic) => (state, format!("{why}; {panic}")),
                None => (state, why),
            }
        } else if let Some(why) = silent(members, now) {
            (Up, why)
        } else if failed {
            match can_take {
                true => (
                    Unproven,
                    format!("{fails} failed connects; the next session tries it again"),
                ),
                false => (Failed, format!("{fails} failed connects")),
            }
        } else if plan.weight == 0 {
            (Up, "weight 0: takes nothing new".to_owned())
        } else if !can_take {
            (Up, "full: max_connections is reached".to_owned())
        } else if let Some(percent) = members.iter().filter_map(|m| m.starting(now)).min() {
            (Up, format!("slow start: {percent} % of its weight"))
        } else {
            let checked = members.iter().filter_map(|m| m.checked.as_ref());
            let fault = checked.filter_map(|c| c.finding.fault.clone()).next();
            (Up, fault.unwrap_or_default())
        }
    }
}

/// Why a backend is in the state that its admin state puts it in; `failed`: by connects.
fn admin_why(admin_state: AdminState, members: &[&Member], failed: bool) -> String {
    let besides = match judged(members) {
        _ if admin_state == AdminState::Maint => None,
        None if failed => Some("its connects fail".to_owned()),
        judged => judged.map(|(_, why)| why),
    };
    let besides = besides.map_or_else(String::new, |why| format!("; besides, {why}"));
    format!("the operator says so{besides}")
}

/// What the checks have against a backend, if they speak for none of its addresses.
fn judged(members: &[&Member]) -> Option<(BackendState, String)> {
    if members.iter().any(|m| m.verdict.is_up()) {
        return None;
    }
    // One that lives says more than those that do not, the more so the less there is against it.
    let worth = |m: &&Member| match m.verdict {
        Verdict::Doubtful => 0,
        Verdict::Lagging => 1,
        Verdict::Standby => 2,
        Verdict::WrongRole => 3,
        Verdict::Down(_) | Verdict::Up => 4,
    };
    let member = *members.iter().min_by_key(|m| worth(m))?;
    let checked = member.checked.as_ref();
    let fault = checked.and_then(|c| c.finding.fault.as_deref());
    let why = match (member.verdict, &member.why) {
        (_, Some(why)) => why.clone(),
        (Verdict::Down(None), _) => "not checked yet".to_owned(),
        // The latest, which may be another than the one that took it out.
        (Verdict::Down(Some(result)), _) => {
            let good = |c: &&Checked| {
                use CheckResult::{Busy, Lagging, Local, NotReplicating, Ok};
                matches!(c.result, Ok | Local | Lagging | NotReplicating | Busy)
            };
            match checked.filter(|c| !good(c)) {
                Some(c) if !c.transcript.is_empty() => {
                    let (word, saw) = (c.result.word(), shorten(&c.transcript));
                    format!("its check says: {word}: {saw}")
                }
                checked => {
                    let result = checked.map_or(result, |c| c.result);
                    format!("its check says: {}", result.word())
                }
            }
        }
        (Verdict::Lagging, _) => match (fault, checked.map(|c| c.finding.lag)) {
            (Some(fault), _) => fault.to_owned(),
            (None, Some(lag)) => behind(lag),
            (None, None) => "it is behind".to_owned(),
        },
        (Verdict::WrongRole | Verdict::Standby | Verdict::Doubtful | Verdict::Up, _) => {
            let role = match checked.and_then(|c| c.finding.role) {
                Some(role) => format!("its role is {}", role.word()),
                None => "it has another role".to_owned(),
            };
            match fault {
                Some(fault) => format!("{role}, and {fault}"),
                None => role,
            }
        }
    };
    Some((member.verdict.state(), why))
}

/// What a check saw, short enough for a line among others.
fn shorten(text: &str) -> String {
    const MOST: usize = 160;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

fn behind(lag: Lag) -> String {
    let seconds = lag.time.map(|t| format!("{:.1} s", t.as_secs_f64()));
    let bytes = lag.bytes.map(|n| format!("{n} bytes"));
    let parts: Vec<String> = [seconds, bytes].into_iter().flatten().collect();
    match parts.is_empty() {
        true => "it is behind".to_owned(),
        false => format!("it is behind by {}", parts.join(", ")),
    }
}

/// For how long nothing certain has been heard, if that is too long for all that are up.
fn silent(members: &[&Member], now: Instant) -> Option<String> {
    let mut up = members.iter().filter(|m| m.verdict.is_up());
    if !up.clone().all(|m| m.stale) {
        return None;
    }
    let last = up.clone().map(|m| m.certain).max()?;
    let silent = now.saturating_duration_since(last).as_secs();
    up.next()
        .map(|_| format!("no certain answer for {silent} s"))
}
