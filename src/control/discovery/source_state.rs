//! What the sources have said goes over to the process that replaces this one, with what is held.

use super::{Discovery, UpdateResult, backends, saved::identify};
use crate::{
    discover::{
        Found, SourceError,
        merge::{Known, Merged, Set},
    },
    handover::discovery::{DiscoveryRecord, FoundRecord},
    runtime::time,
};
use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant, UNIX_EPOCH},
};

impl Discovery {
    pub fn record(&self) -> DiscoveryRecord {
        let state = self.state.lock();
        let Merged {
            in_effect,
            known,
            answer,
            answers,
            empty_since,
            missing,
            removals,
            changed_at: _,
        } = state.merged.clone();
        let since_1970 = state.last_success.map(|at| at.duration_since(UNIX_EPOCH));
        let since_1970 = since_1970.map(Result::unwrap_or_default);
        let updates = UpdateResult::ALL.iter();
        let missing = missing.into_iter();
        let removals = removals.into_iter();
        DiscoveryRecord {
            upstream: self.upstream.to_string(),
            source: state.source.clone(),
            version: state.version.clone(),
            last_success: since_1970.map(|passed| passed.as_micros() as u64),
            is_answered: known == Known::Answered,
            answers,
            answer: (answer != in_effect).then(|| records(answer)),
            in_effect: records(in_effect),
            empty_since: empty_since.map(time::micros_at),
            missing: missing.map(|(a, at)| (a, time::micros_at(at))).collect(),
            removals: removals
                .map(|(at, n)| (time::micros_at(at), n as u64))
                .collect(),
            updates: updates
                .map(|result| (result.word().to_owned(), self.updates(*result)))
                .collect(),
        }
    }

    /// Goes on with what another process knew. What another source has said holds until this one
    /// answers.
    pub(super) fn take_over(&self, record: &DiscoveryRecord, now: Instant) {
        let sets = sets(record);
        let (in_effect, answer) = match sets {
            Ok(sets) => sets,
            Err(SourceError { message }) => {
                let upstream = &self.upstream;
                tracing::warn!(%upstream, error = message, "backends of the old process are wrong");
                return;
            }
        };
        for (word, count) in &record.updates {
            if let Some(result) = UpdateResult::of_word(word) {
                self.updates[result as usize].store(*count, Relaxed);
            }
        }
        let past = |at: &u64| time::past_at(*at, now);
        let mut state = self.state.lock();
        if record.last_success.is_none() && in_effect.is_empty() {
            return;
        }
        let is_same = record.source == identify(&state.discover);
        state.source.clone_from(&record.source);
        state.version.clone_from(&record.version);
        let since_1970 = record.last_success.map(Duration::from_micros);
        state.last_success = since_1970.and_then(|passed| UNIX_EPOCH.checked_add(passed));
        let missing = record.missing.iter();
        let removals = record.removals.iter();
        state.merged = Merged {
            in_effect,
            known: match record.is_answered {
                true => Known::Answered,
                false => Known::Saved,
            },
            answer,
            answers: record.answers && is_same,
            empty_since: record.empty_since.as_ref().map(past),
            missing: missing.map(|(a, at)| (a.clone(), past(at))).collect(),
            removals: removals.map(|(at, n)| (past(at), *n as usize)).collect(),
            changed_at: None,
        };
    }
}

/// What is in effect, and the last answer.
fn sets(record: &DiscoveryRecord) -> Result<(Set, Set), SourceError> {
    let read = |records: &[FoundRecord]| backends::read(records.iter().map(found).collect());
    let in_effect = read(&record.in_effect)?;
    let answer = match &record.answer {
        Some(answer) => read(answer)?,
        None => in_effect.clone(),
    };
    Ok((in_effect, answer))
}

fn records(set: Set) -> Vec<FoundRecord> {
    let records = set.into_values().map(|found| FoundRecord {
        address: found.address,
        weight: found.weight,
        backup: found.backup,
        name: found.name,
        draining: found.draining,
    });
    records.collect()
}

fn found(record: &FoundRecord) -> Found {
    Found {
        address: record.address.clone(),
        weight: record.weight,
        backup: record.backup,
        name: record.name.clone(),
        draining: record.draining,
    }
}
