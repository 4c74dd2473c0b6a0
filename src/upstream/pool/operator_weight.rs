//! The weight that an operator has set for a backend instead of the configured one.

#[cfg(test)]
mod tests;

use super::{Event, Inner, Pool, addresses::Configured, preparation::Prepared};
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
        let prepared = self.prepare_weight(text, weight)?;
        let mut inner = self.lock();
        inner.check_weight(text, weight)?;
        let set = inner.take_weight(text, weight, now)?;
        let replaced = inner.assemble(Some(prepared), now);
        drop(inner);
        drop(replaced);
        Ok(set)
    }

    pub(super) fn prepare_weight(
        &self,
        text: &str,
        weight: Option<u32>,
    ) -> Result<Prepared, WeightError> {
        let inner = self.lock();
        inner.check_weight(text, weight)?;
        let in_file = inner.configured(text).map_or(0, |c| c.plan.weight);
        let (balance, mut layout) = (inner.balance.clone(), inner.layout());
        drop(inner);
        let of_it = layout.entries.iter_mut().filter(|(of, _)| **of == *text);
        of_it.for_each(|(_, of)| *of = weight.unwrap_or(in_file));
        Ok(layout.prepare(&balance))
    }
}

impl Inner {
    fn configured(&self, text: &str) -> Option<&Configured> {
        self.configured.iter().find(|c| c.plan.text == text)
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
}
