//! A backend as configured, in effect or not any more, with what an operator has set for it.

use super::{AdminSetting, OperatorWeight};
use crate::{
    plan::{self, Addr},
    telemetry::metrics::BackendMetrics,
};
use std::{sync::Arc, time::Instant};

/// A backend as configured, with what applies to all its addresses, now or later.
#[derive(Debug, Clone)]
pub(super) struct Configured {
    pub(super) plan: plan::Backend,
    pub(super) metrics: Arc<BackendMetrics>,
    pub(super) addresses: Vec<Addr>,
    pub(super) admin: AdminSetting,
    /// `None`: the weight of the plan.
    pub(super) operator_weight: Option<OperatorWeight>,
}

/// What an operator had set for a backend that has left.
#[derive(Debug, Clone)]
pub(super) struct Remembered {
    pub(super) text: String,
    pub(super) admin: AdminSetting,
    pub(super) operator_weight: Option<OperatorWeight>,
    pub(super) left: Instant,
}

impl Configured {
    /// With another configuration and what is set.
    pub(super) fn with_plan(&self, plan: &plan::Backend) -> Self {
        Self {
            plan: plan.clone(),
            metrics: Arc::clone(&self.metrics),
            addresses: self.addresses.clone(),
            admin: self.admin,
            operator_weight: self.operator_weight,
        }
    }
}

impl Remembered {
    /// The weight in effect when the backend is back.
    pub(super) fn weight(&self, plan: &plan::Backend) -> u32 {
        self.operator_weight.map_or(plan.weight, |set| set.weight)
    }
}
