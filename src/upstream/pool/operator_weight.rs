//! The weight that an operator has set for a backend instead of the configured one.

#[cfg(test)]
mod tests;

use super::{Event, Inner, Pool, addresses::Configured};
use crate::{
    plan::{Balance, MOST_RING_WEIGHT},
    telemetry::metrics::BackendMetrics,
    upstream::balance::{Balancer, Entry},
};
use std::{sync::Arc, time::Instant};

/// How often a policy is prepared anew because the addresses have changed meanwhile.
const MOST_ATTEMPTS: usize = 4;

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

/// A balancer that was made without the lock, and of what.
struct Prepared {
    balancer: Balancer,
    /// [`Inner::assemblies`] then.
    assemblies: u64,
}

impl Configured {
    /// The weight in effect.
    pub(super) fn weight(&self) -> u32 {
        let by_operator = self.operator_weight.map(|set| set.weight);
        by_operator.unwrap_or(self.plan.weight)
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
        for _ in 0..MOST_ATTEMPTS {
            let prepared = self.prepare_weight(text, weight)?;
            let mut inner = self.lock();
            if inner.assemblies == prepared.assemblies {
                let set = inner.take_weight(text, weight, now)?;
                let before = inner.replace_balancer(prepared.balancer, now);
                drop(inner);
                // It takes time as well.
                drop(before);
                return Ok(set);
            }
        }
        let mut inner = self.lock();
        inner.check_weight(text, weight)?;
        let set = inner.take_weight(text, weight, now)?;
        inner.assemble(now);
        Ok(set)
    }

    fn prepare_weight(&self, text: &str, weight: Option<u32>) -> Result<Prepared, WeightError> {
        let inner = self.lock();
        inner.check_weight(text, weight)?;
        let mut entries: Vec<(Arc<str>, u32)> = inner.entries().collect();
        let in_file = inner.configured(text).map_or(0, |c| c.plan.weight);
        let (balance, assemblies) = (inner.balance.clone(), inner.assemblies);
        let regular = inner.balancer.regular().end;
        drop(inner);
        let of_it = entries.iter_mut().filter(|(of, _)| **of == *text);
        of_it.for_each(|(_, of)| *of = weight.unwrap_or(in_file));
        let entries: Vec<Entry<'_>> = entries
            .iter()
            .map(|(text, weight)| Entry {
                text,
                weight: *weight,
            })
            .collect();
        let (regular, backups) = entries.split_at(regular);
        Ok(Prepared {
            balancer: Balancer::new(&balance, regular, backups),
            assemblies,
        })
    }
}

impl Inner {
    fn configured(&self, text: &str) -> Option<&Configured> {
        self.configured.iter().find(|c| c.plan.text == text)
    }

    /// The candidates of the balancer, by their addresses as configured and with their weights.
    pub(super) fn entries(&self) -> impl Iterator<Item = (Arc<str>, u32)> {
        let endpoints = self.endpoints.iter();
        endpoints.map(|e| (Arc::clone(e.backend.text()), e.config.weight))
    }

    fn check_weight(&self, text: &str, weight: Option<u32>) -> Result<(), WeightError> {
        let configured = self.configured(text).ok_or(WeightError::UnknownBackend)?;
        let others = self.configured.iter().filter(|c| c.plan.text != text);
        let others: u64 = others.map(|c| u64::from(c.weight())).sum();
        let sum = others + u64::from(weight.unwrap_or(configured.plan.weight));
        let most = MOST_RING_WEIGHT;
        match self.balance {
            Balance::ConsistentHash(..) if sum > most => Err(WeightError::TooMuch { sum, most }),
            _ => Ok(()),
        }
    }

    /// Enters the weight for a backend and its endpoints; the balancer follows.
    fn take_weight(
        &mut self,
        text: &str,
        weight: Option<u32>,
        now: Instant,
    ) -> Result<WeightSet, WeightError> {
        let mut configured = self.configured.iter_mut();
        let configured = configured
            .find(|c| c.plan.text == text)
            .ok_or(WeightError::UnknownBackend)?;
        let from = configured.weight();
        configured.operator_weight = weight.map(|weight| OperatorWeight { weight, since: now });
        let set = WeightSet {
            metrics: Arc::clone(&configured.metrics),
            from,
            to: configured.weight(),
            in_file: configured.plan.weight,
            is_by_operator: weight.is_some(),
            at: now,
        };
        let endpoints = self.endpoints.iter_mut().chain(&mut self.departed);
        for endpoint in endpoints.filter(|e| **e.backend.text() == *text) {
            endpoint.config.weight = set.to;
        }
        self.events.push(Event::WeightSet(set.clone()));
        Ok(set)
    }

    /// Picks by another balancer for the same endpoints. Returns the one before.
    fn replace_balancer(&mut self, balancer: Balancer, now: Instant) -> Balancer {
        self.assemblies += 1;
        let before = std::mem::replace(&mut self.balancer, balancer);
        self.review(None, now);
        before
    }
}
