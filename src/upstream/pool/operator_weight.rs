//! The weight that an operator has set for a backend instead of the configured one.

#[cfg(test)]
mod tests;

use super::{Event, Pool, configured::Configured, preparation::Outline};
use crate::{
    plan::{Balance, MOST_RING_WEIGHT},
    telemetry::metrics::BackendMetrics,
};
use std::{sync::Arc, time::Instant};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OperatorWeight {
    pub weight: u32,
    pub since: Instant,
}

/// An operator has set the weight of a configured backend, or has given it back.
#[derive(Debug, Clone)]
pub struct WeightSet {
    pub metrics: Arc<BackendMetrics>,
    pub from: u32,
    pub to: u32,
    pub in_file: u32,
    /// Whether `to` is the operator's weight and not that of the file.
    pub is_by_operator: bool,
    pub at: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightError {
    UnknownBackend,
    /// The weights of the upstream would add up to more than its policy takes.
    TooMuch {
        sum: u64,
        most: u64,
    },
}

impl Configured {
    /// The weight in effect.
    pub(super) fn weight(&self) -> u32 {
        let by_operator = self.operator_weight.map(|set| set.weight);
        by_operator.unwrap_or(self.plan.weight)
    }

    fn take(&mut self, weight: Option<u32>, now: Instant) -> WeightSet {
        let from = self.weight();
        self.operator_weight = weight.map(|weight| OperatorWeight { weight, since: now });
        WeightSet {
            metrics: Arc::clone(&self.metrics),
            from,
            to: self.weight(),
            in_file: self.plan.weight,
            is_by_operator: weight.is_some(),
            at: now,
        }
    }
}

impl Pool {
    /// Sets the weight of a configured backend, by its address as configured; `None`: as in the
    /// configuration again. Picks go on by the weights before until those of the new ones can be
    /// made: a ring or a table takes milliseconds, for which the lock is not held.
    pub fn set_weight(
        &self,
        text: &str,
        weight: Option<u32>,
        now: Instant,
    ) -> Result<WeightSet, WeightError> {
        let prepare = |outline: Outline| {
            check_weight(&outline, text, weight)?;
            let mut configured = (*outline.configured).clone();
            let mut named = configured.iter_mut();
            let named = named.find(|c| c.plan.text == text);
            let named = named.ok_or(WeightError::UnknownBackend)?;
            let set = Arc::make_mut(named).take(weight, now);
            let balance = outline.balance.clone();
            Ok((outline.assemble(configured, &balance, now), set))
        };
        let (set, replaced) = self.reassemble(now, prepare, |inner, assembly, set| {
            for number in Arc::clone(&inner.departed_index).of(text) {
                inner.departed[*number].config.weight = set.to;
            }
            inner.events.push(Event::WeightSet(set.clone()));
            (set, inner.put(assembly, now))
        })?;
        // Without the lock.
        drop(replaced);
        Ok(set)
    }
}

fn check_weight(outline: &Outline, text: &str, weight: Option<u32>) -> Result<(), WeightError> {
    let configured = outline.configured.iter().find(|c| c.plan.text == text);
    let configured = configured.ok_or(WeightError::UnknownBackend)?;
    let others = outline.configured.iter().filter(|c| c.plan.text != text);
    let others: u64 = others.map(|c| u64::from(c.weight())).sum();
    let sum = others + u64::from(weight.unwrap_or(configured.plan.weight));
    let most = MOST_RING_WEIGHT;
    match outline.balance {
        Balance::ConsistentHash(..) if sum > most => Err(WeightError::TooMuch { sum, most }),
        _ => Ok(()),
    }
}
