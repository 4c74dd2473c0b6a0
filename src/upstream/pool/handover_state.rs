//! The state of a pool as another process gets it, and the start with such a state.

use super::{
    AdminSetting, AdminState, Checked, Inner, OperatorWeight, Pool,
    check_record::{CheckRecord, PrimaryEvidence},
    configured::{Configured, Remembered},
    endpoint::Endpoint,
    index::Index,
    preparation::Outline,
};
use crate::{
    handover::pools::{
        BackendRecord, CheckedRecord, EndpointRecord, EpochRecord, JudgeRecord, LastCheckRecord,
        PoolRecord,
    },
    plan::{
        Role,
        reason::{BackendState, CheckResult},
    },
    runtime::time,
    upstream::{
        backend::Backend,
        balance::{Average, RotationWeight},
        health::{Epoch, Finding, Lag, Passive, Runs, Verdict, VerdictProgress},
    },
};
use ahash::HashMap;
use std::{
    convert::Infallible,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

impl Pool {
    /// What another process needs to go on with its backends.
    pub fn record(&self) -> PoolRecord {
        let inner = self.lock();
        let counts = |(up, total)| (up as u64, total as u64);
        let (panic, in_fallback) = inner.review.handed();
        let is_checked = inner.start_verdict.is_some();
        let (configured, index) = (Arc::clone(&inner.configured), Arc::clone(&inner.index));
        let remembered = Arc::clone(&inner.remembered);
        let rotation = inner.balancer.rotation().to_vec();
        drop(inner);
        PoolRecord {
            upstream: self.name.to_string(),
            is_checked,
            backends: backend_records(&configured),
            endpoints: self.endpoint_records(&index, &rotation),
            remembered: remembered_records(&remembered),
            panic: panic.map(counts),
            in_fallback,
            speaks_first: self.speaks_first.load(Relaxed),
        }
    }

    /// `rotation`: of the endpoints with this index.
    fn endpoint_records(&self, index: &Index, rotation: &[RotationWeight]) -> Vec<EndpointRecord> {
        let mut records = Vec::with_capacity(rotation.len());
        let backends = index.backends.chunks(PART).zip(rotation.chunks(PART));
        for (backends, weights) in backends {
            let inner = self.lock_again();
            // One that has left meanwhile is left out.
            let present = backends
                .iter()
                .zip(weights)
                .filter_map(|(backend, weight)| {
                    let i = inner.index.endpoint(backend.id)?;
                    Some(inner.endpoint_record(&inner.endpoints[i], *weight))
                });
            records.extend(present);
        }
        records
    }

    /// Goes on with what another process has recorded, as far as this pool has the same backends.
    /// For a pool that has no sessions yet.
    pub fn take_over(&self, record: &PoolRecord, now: Instant) {
        let mut inner = self.lock();
        inner.take_over_backends(&record.backends, now);
        inner.take_over_remembered(&record.remembered, now);
        let takes_checks = record.is_checked && inner.start_verdict.is_some();
        inner.take_over_endpoints(&record.endpoints, takes_checks, now);
        let counts = |(up, total): (u64, u64)| (up as usize, total as usize);
        inner
            .review
            .take_over(record.panic.map(counts), record.in_fallback);
        self.speaks_first.store(record.speaks_first, Relaxed);
        drop(inner);
        self.follow_record(record, now);
    }

    /// Weights may be others than those of the configuration.
    fn follow_record(&self, record: &PoolRecord, now: Instant) {
        let prepare = |outline: Outline| {
            let (configured, balance) = ((*outline.configured).clone(), outline.balance.clone());
            Ok::<_, Infallible>((outline.assemble(configured, &balance, now), ()))
        };
        let Ok(_replaced) = self.reassemble(now, prepare, |inner, assembly, ()| {
            let replaced = inner.put(assembly, now);
            inner.take_over_rotation(&record.endpoints);
            self.changed();
            replaced
        });
    }

    /// Takes what operators have set in another process, and where its rotation stands, as far as
    /// this pool has the same backends. For a pool that has no sessions yet.
    pub fn take_over_settings(&self, record: &PoolRecord, now: Instant) {
        let mut inner = self.lock();
        inner.take_over_backends(&record.backends, now);
        inner.take_over_remembered(&record.remembered, now);
        drop(inner);
        self.follow_record(record, now);
    }

    /// Where the checks of another process have stopped; once.
    pub fn take_handed_progress(&self, backend: &Backend) -> Option<VerdictProgress> {
        self.lock().find(backend)?.check.handed.take()
    }

    /// How far the checks of this address have come on the way to another verdict.
    pub fn note_progress(&self, backend: &Backend, progress: VerdictProgress) {
        if let Some(endpoint) = self.lock().find(backend) {
            endpoint.check.progress = progress;
        }
    }
}

/// So many endpoints are recorded before workers get the lock again.
const PART: usize = 64;

fn backend_records(configured: &[Arc<Configured>]) -> Vec<BackendRecord> {
    let records = configured.iter().map(|c| BackendRecord {
        text: c.plan.text.clone(),
        addresses: c.addresses.iter().map(ToString::to_string).collect(),
        admin_state: c.admin.admin_state.word().to_owned(),
        admin_since: c.admin.since.map(time::micros_at),
        admin_term: c.admin.term,
        operator_weight: c
            .operator_weight
            .map(|set| (set.weight, time::micros_at(set.since))),
        left: None,
    });
    records.collect()
}

fn remembered_records(remembered: &[Remembered]) -> Vec<BackendRecord> {
    let records = remembered.iter().map(|r| BackendRecord {
        text: r.text.clone(),
        addresses: Vec::new(),
        admin_state: r.admin.admin_state.word().to_owned(),
        admin_since: r.admin.since.map(time::micros_at),
        admin_term: r.admin.term,
        operator_weight: r
            .operator_weight
            .map(|set| (set.weight, time::micros_at(set.since))),
        left: Some(time::micros_at(r.left)),
    });
    records.collect()
}

impl Inner {
    fn take_over_remembered(&mut self, records: &[BackendRecord], now: Instant) {
        let remembered = records.iter().map(|record| {
            let (admin, operator_weight) = settings(record, now);
            Remembered {
                text: record.text.clone(),
                admin,
                operator_weight,
                left: record.left.map_or(now, |at| time::past_at(at, now)),
            }
        });
        self.remembered = Arc::new(remembered.collect());
    }

    fn endpoint_record(&self, endpoint: &Endpoint, rotation: RotationWeight) -> EndpointRecord {
        let [first, last, trial] = endpoint.passive.times();
        EndpointRecord {
            backend: endpoint.backend.text().to_string(),
            address: endpoint.backend.addr.to_string(),
            check: self.checked_record(&endpoint.check),
            judge: judge_record(endpoint.check.progress),
            fails: endpoint.passive.fails(),
            first_failure: first.map(time::micros_at),
            last_failure: last.map(time::micros_at),
            last_trial: trial.map(time::micros_at),
            slow_start: endpoint.slow_start.map(time::micros_at),
            average_seconds: endpoint.latency.seconds,
            average_halves: endpoint.latency.halves.map(time::micros_at),
            rotation: Some((rotation.weight, rotation.effective, rotation.current)),
        }
    }

    fn checked_record(&self, check: &CheckRecord) -> CheckedRecord {
        let evidence = &check.evidence;
        let by = evidence.superseded_by.and_then(|by| {
            let by = &self.endpoints[self.index.endpoint(by)?].backend;
            Some((by.text().to_string(), by.addr.to_string()))
        });
        CheckedRecord {
            own: verdict_words(check.own),
            effective: verdict_words(check.effective),
            since: check.since.map(time::micros_at),
            why: check.why.clone(),
            checked_once: check.checked_once,
            added_at: time::micros_at(check.added_at),
            last_conclusive: time::micros_at(check.last_conclusive),
            is_stale: check.is_stale,
            role_since: evidence.role_since.map(time::micros_at),
            epoch: evidence.epoch.as_ref().map(epoch_record),
            server: evidence.server.clone(),
            superseded_by: by,
            last: check.last.as_ref().map(last_record),
        }
    }

    fn take_over_backends(&mut self, records: &[BackendRecord], now: Instant) {
        self.generation += 1;
        let configured = Arc::make_mut(&mut self.configured);
        for record in records {
            let Some(of) = self.index.configured(&record.text) else {
                continue;
            };
            let configured = Arc::make_mut(&mut configured[of]);
            (configured.admin, configured.operator_weight) = settings(record, now);
            for endpoint in &mut self.endpoints[self.index.range(of)] {
                endpoint.admin = configured.admin;
                endpoint.config.weight = configured.weight();
            }
        }
        self.review.is_outdated = true;
    }

    fn take_over_endpoints(
        &mut self,
        records: &[EndpointRecord],
        takes_checks: bool,
        now: Instant,
    ) {
        let past = |at: Option<u64>| at.map(|at| time::past_at(at, now));
        self.review.is_outdated = true;
        let ids: HashMap<Identity, u64> = (self.endpoints.iter())
            .map(|endpoint| (identity(endpoint), endpoint.backend.id))
            .collect();
        let known = by_identity(records);
        for endpoint in &mut self.endpoints {
            let Some(record) = known.get(&identity(endpoint)) else {
                continue;
            };
            let times = [record.first_failure, record.last_failure, record.last_trial];
            endpoint.passive = Passive::resume(record.fails, times.map(past));
            endpoint.slow_start = past(record.slow_start);
            // It lies ahead.
            let halves = record.average_halves.map(Duration::from_micros);
            let halves = halves.and_then(|after| time::epoch().checked_add(after));
            if let Some(halves) = halves.filter(|_| record.average_seconds.is_finite()) {
                endpoint.latency = Average {
                    seconds: record.average_seconds,
                    halves: Some(halves),
                };
            }
            if takes_checks {
                take_over_check(&mut endpoint.check, record, &ids, now);
            }
        }
    }
}

impl Inner {
    /// The rotation goes on where all its endpoints are the same.
    fn take_over_rotation(&mut self, records: &[EndpointRecord]) {
        let mut all = records.iter().filter(|record| record.rotation.is_some());
        let rotation = self.endpoints.iter().map(|endpoint| {
            let identity = identity(endpoint);
            let is_it =
                |r: &&EndpointRecord| (&r.backend, &r.address) == (&identity.0, &identity.1);
            let (weight, effective, current) = all.find(is_it)?.rotation?;
            Some(RotationWeight {
                weight,
                effective,
                current,
            })
        });
        let rotation: Option<Vec<RotationWeight>> = rotation.collect();
        if let Some(rotation) = rotation.filter(|_| all.next().is_none()) {
            self.balancer.resume(&rotation);
        }
    }
}

/// What operators have set.
fn settings(record: &BackendRecord, now: Instant) -> (AdminSetting, Option<OperatorWeight>) {
    let admin = AdminSetting {
        admin_state: AdminState::of_word(&record.admin_state).unwrap_or_default(),
        since: record.admin_since.map(|at| time::past_at(at, now)),
        term: record.admin_term,
        close_at: None,
    };
    let weight = record.operator_weight.map(|(weight, since)| {
        let since = time::past_at(since, now);
        OperatorWeight { weight, since }
    });
    (admin, weight)
}

/// The text of a backend, and one of its addresses.
type Identity = (String, String);

fn identity(endpoint: &Endpoint) -> Identity {
    let backend = &endpoint.backend;
    (backend.text().to_string(), backend.addr.to_string())
}

/// Of several records of an endpoint the first counts.
fn by_identity(records: &[EndpointRecord]) -> HashMap<Identity, &EndpointRecord> {
    let mut known = HashMap::default();
    for record in records {
        let identity = (record.backend.clone(), record.address.clone());
        known.entry(identity).or_insert(record);
    }
    known
}

/// What this program does not know is left as it is at a start.
fn take_over_check(
    check: &mut CheckRecord,
    record: &EndpointRecord,
    ids: &HashMap<Identity, u64>,
    now: Instant,
) {
    let CheckedRecord {
        own,
        effective,
        since,
        why,
        checked_once,
        added_at,
        last_conclusive,
        is_stale,
        role_since,
        epoch,
        server,
        superseded_by,
        last,
    } = &record.check;
    let (Some(own), Some(effective)) = (verdict(own), verdict(effective)) else {
        return;
    };
    let past = |at: &u64| time::past_at(*at, now);
    let by = superseded_by.as_ref().and_then(|by| ids.get(by).copied());
    let progress = progress(&record.judge, now);
    *check = CheckRecord {
        own,
        effective,
        since: since.as_ref().map(past),
        why: why.clone(),
        admits: effective.is_up() && !is_stale,
        // Checks of this process begin from now on.
        awaits_answer: (own != effective && effective == Verdict::Down(None)).then_some(now),
        checked_once: *checked_once,
        last: last.as_ref().and_then(|last| checked(last, now)),
        added_at: past(added_at),
        last_conclusive: past(last_conclusive),
        is_stale: *is_stale,
        evidence: PrimaryEvidence {
            role_since: role_since.as_ref().map(past),
            epoch: epoch.as_ref().map(epoch_of),
            server: server.clone(),
            superseded_by: by,
        },
        progress,
        handed: Some(progress),
    };
}

fn verdict_words(verdict: Verdict) -> (String, Option<String>) {
    let result = match verdict {
        Verdict::Down(result) => result,
        Verdict::Up
        | Verdict::WrongRole
        | Verdict::Standby
        | Verdict::Lagging
        | Verdict::Doubtful => None,
    };
    let result = result.map(|result| result.word().to_owned());
    (verdict.state().word().to_owned(), result)
}

/// `None`: it is none that this program knows.
fn verdict((state, result): &(String, Option<String>)) -> Option<Verdict> {
    let result = result.as_deref().map(CheckResult::of_word);
    match BackendState::of_word(state)? {
        BackendState::Up => Some(Verdict::Up),
        BackendState::Down => Some(Verdict::Down(match result {
            None => None,
            Some(known) => Some(known?),
        })),
        BackendState::WrongRole => Some(Verdict::WrongRole),
        BackendState::Standby => Some(Verdict::Standby),
        BackendState::Lagging => Some(Verdict::Lagging),
        BackendState::Doubtful => Some(Verdict::Doubtful),
        BackendState::Failed
        | BackendState::Unproven
        | BackendState::Disabled
        | BackendState::Drained
        | BackendState::Maintenance
        | BackendState::Removed => None,
    }
}

fn epoch_record(epoch: &Epoch) -> EpochRecord {
    match epoch {
        Epoch::Timeline(number) => EpochRecord::Timeline(*number),
        Epoch::Replication { id, before } => EpochRecord::Replication {
            id: id.clone(),
            before: before.clone(),
        },
    }
}

fn epoch_of(record: &EpochRecord) -> Epoch {
    match record {
        EpochRecord::Timeline(number) => Epoch::Timeline(*number),
        EpochRecord::Replication { id, before } => Epoch::Replication {
            id: id.clone(),
            before: before.clone(),
        },
    }
}

fn last_record(last: &Checked) -> LastCheckRecord {
    let finding = &last.finding;
    LastCheckRecord {
        at: time::micros_at(last.at),
        took: last.took,
        result: last.result.word().to_owned(),
        transcript: last.transcript.clone(),
        role: finding.role.map(|role| role.word().to_owned()),
        epoch: finding.epoch.as_ref().map(epoch_record),
        server: finding.server.clone(),
        lag_bytes: finding.lag.bytes,
        lag_time: finding.lag.time,
        fault: finding.fault.clone(),
    }
}

fn checked(record: &LastCheckRecord, now: Instant) -> Option<Checked> {
    let role = record.role.as_deref();
    let at = time::past_at(record.at, now);
    Some(Checked {
        began: at.checked_sub(record.took).unwrap_or(at),
        at,
        took: record.took,
        result: CheckResult::of_word(&record.result)?,
        finding: Finding {
            role: role.and_then(Role::of_word),
            epoch: record.epoch.as_ref().map(epoch_of),
            server: record.server.clone(),
            lag: Lag {
                bytes: record.lag_bytes,
                time: record.lag_time,
            },
            fault: record.fault.clone(),
        },
        transcript: record.transcript.clone(),
    })
}

fn judge_record(progress: VerdictProgress) -> JudgeRecord {
    let Runs {
        good,
        failed,
        alive,
        poor,
    } = progress.runs;
    JudgeRecord {
        has_result: progress.has_result,
        last_role: progress.last_role.map(|result| result.word().to_owned()),
        runs: [good, failed, alive, poor],
        doubted_since: progress.doubted_since.map(time::micros_at),
    }
}

fn progress(record: &JudgeRecord, now: Instant) -> VerdictProgress {
    let [good, failed, alive, poor] = record.runs;
    VerdictProgress {
        has_result: record.has_result,
        last_role: record.last_role.as_deref().and_then(CheckResult::of_word),
        runs: Runs {
            good,
            failed,
            alive,
            poor,
        },
        doubted_since: record.doubted_since.map(|at| time::past_at(at, now)),
    }
}

#[cfg(test)]
mod tests;
