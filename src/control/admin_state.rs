//! Sets the admin state and the weight of backends for an operator.

use super::State;
use crate::upstream::pool::{AdminChange, AdminOrder, AdminState, Pool, WeightError, WeightSet};
use std::{sync::Arc, time::Instant};

/// There is no upstream or backend of that name; with the names that there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unknown {
    Upstream(Vec<String>),
    Backend(Vec<String>),
}

/// Why a weight stays as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WeightRefused {
    Unknown(Unknown),
    /// The weights of the upstream would add up to more than its policy takes.
    TooMuch {
        sum: u64,
        most: u64,
    },
}

/// Why nothing was done at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressError {
    /// No upstream has it.
    Unknown {
        /// The backends of all upstreams.
        known: Vec<String>,
        /// The backends of the upstream that has the address as its name.
        of_upstream: Vec<String>,
    },
    /// It is one of several addresses of a backend, which only has a setting as a whole.
    Shared {
        upstream: String,
        backend: String,
        addresses: usize,
    },
}

/// What an order did to one backend.
#[derive(Debug)]
pub struct Changed {
    pub upstream: Arc<str>,
    pub backend: String,
    pub change: AdminChange,
}

impl State {
    pub fn set_admin_state(
        &self,
        upstream: &str,
        backend: &str,
        order: AdminOrder,
    ) -> Result<AdminChange, Unknown> {
        let pool = self.pool(upstream)?;
        let change = pool.set_admin_state(backend, order, Instant::now());
        change.ok_or_else(|| Unknown::Backend(pool.texts()))
    }

    /// Whether there is a backend of this name.
    pub fn check_backend(&self, upstream: &str, backend: &str) -> Result<(), Unknown> {
        let pool = self.pool(upstream)?;
        let texts = pool.texts();
        match texts.iter().any(|text| text == backend) {
            true => Ok(()),
            false => Err(Unknown::Backend(texts)),
        }
    }

    /// Whether an order at this address would be carried out.
    pub fn check_address(&self, address: &str) -> Result<(), AddressError> {
        find_at(&self.view().pools, address).map(|_| ())
    }

    /// `None`: the weight of the file again.
    pub fn set_weight(
        &self,
        upstream: &str,
        backend: &str,
        weight: Option<u32>,
    ) -> Result<WeightSet, WeightRefused> {
        let pool = self.pool(upstream).map_err(WeightRefused::Unknown)?;
        let set = pool.set_weight(backend, weight, Instant::now());
        set.map_err(|error| match error {
            WeightError::UnknownBackend => WeightRefused::Unknown(Unknown::Backend(pool.texts())),
            WeightError::TooMuch { sum, most } => WeightRefused::TooMuch { sum, most },
        })
    }

    /// Warns of what an operator has set, since it ends with the process.
    pub(super) fn log_operator_settings(&self) {
        if self.node_admin_state() != AdminState::Ready {
            tracing::warn!("drain of the node ends with this process");
        }
        let now = Instant::now();
        for pool in self.view().pools() {
            for backend in pool.snapshot(now) {
                let admin_state = backend.admin_state;
                if admin_state == AdminState::Ready && backend.weight_since.is_none() {
                    continue;
                }
                let weight = backend.weight_since.map(|_| backend.weight);
                tracing::warn!(upstream = %pool.name, backend = %backend.metrics.text,
                    admin_state = admin_state.word(), weight, in_file = backend.weight_in_file,
                    "settings of the operator end with this process");
            }
        }
    }

    fn pool(&self, upstream: &str) -> Result<Arc<Pool>, Unknown> {
        let view = self.view();
        let found = view.pools.iter().find(|pool| *pool.name == *upstream);
        found.map(Arc::clone).ok_or_else(|| {
            let known = view.pools.iter().map(|pool| pool.name.to_string());
            Unknown::Upstream(known.collect())
        })
    }

    /// Sets the admin state of every backend that has this address, by its text in the
    /// configuration or because its name resolves to nothing else; all of them, or none.
    pub fn set_admin_state_at(
        &self,
        address: &str,
        order: AdminOrder,
    ) -> Result<Vec<Changed>, AddressError> {
        let view = self.view();
        let found = find_at(&view.pools, address)?;
        let now = Instant::now();
        let changed = found.into_iter().filter_map(|(pool, backend)| {
            Some(Changed {
                change: pool.set_admin_state(&backend, order, now)?,
                upstream: Arc::clone(&pool.name),
                backend,
            })
        });
        Ok(changed.collect())
    }
}

/// The backends that have this address; at least one.
fn find_at<'a>(
    pools: &'a [Arc<Pool>],
    address: &str,
) -> Result<Vec<(&'a Pool, String)>, AddressError> {
    let mut found = Vec::new();
    for pool in pools {
        for backend in pool.backends_at(address) {
            if !backend.is_named && backend.addresses > 1 {
                return Err(AddressError::Shared {
                    upstream: pool.name.to_string(),
                    backend: backend.text,
                    addresses: backend.addresses,
                });
            }
            found.push((&**pool, backend.text));
        }
    }
    if !found.is_empty() {
        return Ok(found);
    }
    let mut known: Vec<String> = pools.iter().flat_map(|pool| pool.texts()).collect();
    known.sort_unstable();
    known.dedup();
    let of_upstream = pools.iter().find(|pool| *pool.name == *address);
    Err(AddressError::Unknown {
        known,
        of_upstream: of_upstream.map_or_else(Vec::new, |pool| pool.texts()),
    })
}
