//! Balancers made before they are needed: a ring or a table takes milliseconds, for which the lock
//! of a pool is not held.

#[cfg(test)]
mod tests;

use super::Inner;
use crate::{
    plan::{self, Balance},
    upstream::balance::{Balancer, Entry, numbered},
};
use std::sync::Arc;

/// What a balancer is made of besides its policy: the addresses as configured of all candidates,
/// with their weights, in its numbering.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) entries: Vec<(Arc<str>, u32)>,
    /// How many of the first are no backups.
    pub(super) regular: usize,
}

/// What a layout has of a configured backend.
pub(super) struct Placement {
    pub(super) text: Arc<str>,
    pub(super) weight: u32,
    pub(super) addresses: usize,
}

impl Placement {
    /// Of a backend that there is not yet.
    pub(super) fn new(backend: &plan::Backend, addresses: usize) -> Self {
        Self {
            text: backend.text.as_str().into(),
            weight: backend.weight,
            addresses,
        }
    }
}

/// A balancer that may be used where its policy and its layout are in effect.
pub(super) struct Prepared {
    balance: Balance,
    layout: Layout,
    balancer: Balancer,
}

impl Layout {
    pub(super) fn new<'a>(
        backends: impl Iterator<Item = &'a plan::Backend> + Clone,
        mut placement: impl FnMut(&plan::Backend) -> Placement,
    ) -> Self {
        let mut layout = Self::default();
        for (_, backend) in numbered(backends) {
            let placed = placement(backend);
            for _ in 0..placed.addresses {
                layout
                    .entries
                    .push((Arc::clone(&placed.text), placed.weight));
            }
            if !backend.backup {
                layout.regular = layout.entries.len();
            }
        }
        layout
    }

    fn balancer(&self, balance: &Balance) -> Balancer {
        let entries: Vec<Entry<'_>> = self
            .entries
            .iter()
            .map(|(text, weight)| Entry {
                text,
                weight: *weight,
            })
            .collect();
        let (regular, backups) = entries.split_at(self.regular);
        Balancer::new(balance, regular, backups)
    }

    pub(super) fn prepare(self, balance: &Balance) -> Prepared {
        Prepared {
            balancer: self.balancer(balance),
            balance: balance.clone(),
            layout: self,
        }
    }
}

impl Inner {
    /// That of the endpoints, as they are.
    pub(super) fn layout(&self) -> Layout {
        let regular = self.endpoints.iter().filter(|e| !e.config.is_backup);
        let entry = |e: &super::Endpoint| (Arc::clone(e.backend.text()), e.config.weight);
        Layout {
            regular: regular.count(),
            entries: self.endpoints.iter().map(entry).collect(),
        }
    }

    /// Picks by a balancer for the endpoints as they are: by the one that was prepared, unless the
    /// endpoints have changed since. Returns the one before, which is better dropped without the
    /// lock.
    pub(super) fn replace_balancer(&mut self, prepared: Option<Prepared>) -> Balancer {
        let layout = self.layout();
        let prepared = prepared.filter(|p| p.balance == self.balance && p.layout == layout);
        let balancer = match prepared {
            Some(prepared) => prepared.balancer,
            None => layout.balancer(&self.balance),
        };
        std::mem::replace(&mut self.balancer, balancer)
    }
}
