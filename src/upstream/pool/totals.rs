//! What the endpoints of a pool amount to together: how many are well, take the whole of their
//! weight, claim to be the primary, are up. Kept in step with every change of one of them, so that
//! no verdict, and no exchange of backends, looks at thousands of endpoints under the lock.

use super::{
    AdminState, Inner,
    configured::Configured,
    endpoint::{Condition, Endpoint, EndpointConfig},
    index::Index,
};
use crate::{
    plan::reason::BackendState,
    upstream::health::{Evidence, Verdict},
};
use std::{collections::BTreeSet, ops::Range};

/// What counts of one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) state: BackendState,
    pub(super) is_backup: bool,
    is_well: bool,
    /// See [`Condition::is_restricted`].
    is_restricted: bool,
    /// Whether it takes part in the election of a primary.
    claims: bool,
    /// Whether checks alone decide if sessions come to it.
    serves: bool,
    is_standby: bool,
    /// Whether its last check was answered, as far as it could be made.
    has_answered: bool,
    is_checked_once: bool,
    /// By its own checks.
    is_up: bool,
    /// Whether its own checks have not decided yet.
    is_undecided: bool,
}

/// Sums over endpoints, and over configured backends.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Counts {
    pub(super) well: usize,
    pub(super) restricted: usize,
    /// The numbers of those that take part in the election of a primary.
    pub(super) claiming: BTreeSet<usize>,
    /// Of those that serve.
    pub(super) serving_well: usize,
    pub(super) serving_standby: usize,
    /// Those of them whose last check was answered.
    pub(super) serving_standby_sure: usize,
    pub(super) serving_unchecked: usize,
    /// Regular backends that serve: those that are up by their own checks, and those of which no
    /// address has been decided about.
    pub(super) up: usize,
    pub(super) undecided: usize,
    /// Backups that serve and are up.
    pub(super) backups_up: usize,
}

#[derive(Debug, Default)]
pub(super) struct Totals {
    /// Of each endpoint, in their order.
    pub(super) counted: Vec<Counted>,
    pub(super) counts: Counts,
    /// Regular backends that are to serve by what is configured and set, wherever their names lead.
    pub(super) serving_backends: usize,
}

impl Counted {
    /// Of an endpoint that is to be counted later.
    pub(super) const NOT_YET: Self = Self {
        state: BackendState::Down,
        is_backup: false,
        is_well: false,
        is_restricted: true,
        claims: false,
        serves: false,
        is_standby: false,
        has_answered: false,
        is_checked_once: false,
        is_up: false,
        is_undecided: false,
    };

    /// `sign`: what the check of a primary shows, where there is an election.
    pub(super) fn of(endpoint: &Endpoint, sign: Option<Evidence>) -> Self {
        let Endpoint {
            config, condition, ..
        } = endpoint;
        let Condition { own, effective, .. } = *condition;
        let is_ready = condition.admin_state == AdminState::Ready;
        let is_meant = !config.is_down && !config.is_draining;
        let is_known = !condition.awaits_answer;
        let claims = |sign: Evidence| sign.is_of(own) || condition.has_epoch;
        Self {
            state: condition.state(config),
            is_backup: config.is_backup,
            is_well: condition.is_well(config),
            is_restricted: condition.is_restricted(config),
            claims: !config.is_down && sign.is_some_and(claims),
            serves: is_meant && config.weight > 0 && is_ready,
            is_standby: effective == Verdict::Standby,
            has_answered: condition.has_answered,
            is_checked_once: condition.checked_once,
            is_up: own.is_up() && is_known,
            is_undecided: own == Verdict::Down(None) || !is_known,
        }
    }

    pub(super) fn claims(self) -> bool {
        self.claims
    }

    /// Whether it can take the place of replicas.
    pub(super) fn can_stand_in(self) -> bool {
        self.serves && self.is_standby
    }

    /// The same of one that is not in doubt.
    pub(super) fn can_begin_to_stand_in(self) -> bool {
        self.can_stand_in() && self.has_answered
    }
}

impl Totals {
    /// Counts all anew; `counted`: of these endpoints.
    pub(super) fn new(counted: Vec<Counted>, index: &Index, serving_backends: usize) -> Self {
        let mut counts = Counts::default();
        for (number, counted) in counted.iter().enumerate() {
            counts.add_endpoint(number, *counted);
        }
        for of in 0..index.len() {
            counts.add_backend(&counted[index.range(of)], 1);
        }
        Self {
            counted,
            counts,
            serving_backends,
        }
    }

    fn set(&mut self, number: usize, counted: Counted, index: &Index) {
        if self.counted[number] == counted {
            return;
        }
        let range: Range<usize> = index.range_with(number);
        self.counts.add_backend(&self.counted[range.clone()], -1);
        self.counts.remove_endpoint(number, self.counted[number]);
        self.counted[number] = counted;
        self.counts.add_endpoint(number, counted);
        self.counts.add_backend(&self.counted[range], 1);
    }
}

impl Counts {
    fn add_endpoint(&mut self, number: usize, counted: Counted) {
        if counted.claims {
            self.claiming.insert(number);
        }
        for (sum, counts) in self.sums(counted) {
            *sum += usize::from(counts);
        }
    }

    fn remove_endpoint(&mut self, number: usize, counted: Counted) {
        if counted.claims {
            self.claiming.remove(&number);
        }
        for (sum, counts) in self.sums(counted) {
            *sum -= usize::from(counts);
        }
    }

    fn sums(&mut self, counted: Counted) -> [(&mut usize, bool); 6] {
        let serves = counted.serves;
        [
            (&mut self.well, counted.is_well),
            (&mut self.restricted, counted.is_restricted),
            (&mut self.serving_well, serves && counted.is_well),
            (&mut self.serving_standby, counted.can_stand_in()),
            (
                &mut self.serving_standby_sure,
                counted.can_begin_to_stand_in(),
            ),
            (
                &mut self.serving_unchecked,
                serves && !counted.is_checked_once,
            ),
        ]
    }

    /// `endpoints`: of one configured backend.
    fn add_backend(&mut self, endpoints: &[Counted], by: isize) {
        let Some(first) = endpoints.first() else {
            return;
        };
        if !endpoints.iter().any(|e| e.serves) {
            return;
        }
        let is_up = endpoints.iter().any(|e| e.is_up);
        let sum = match first.is_backup {
            true => &mut self.backups_up,
            false => {
                let is_undecided = endpoints.iter().all(|e| e.is_undecided);
                let sum = &mut self.undecided;
                *sum = sum.saturating_add_signed(by * isize::from(is_undecided));
                &mut self.up
            }
        };
        *sum = sum.saturating_add_signed(by * isize::from(is_up));
    }
}

impl Configured {
    /// The configuration of its endpoints.
    pub(super) fn of_endpoints(&self) -> EndpointConfig {
        EndpointConfig {
            weight: self.weight(),
            ..EndpointConfig::from(&self.plan)
        }
    }

    /// Whether it is to serve by what is configured and set, and is no backup.
    pub(super) fn is_to_serve(&self) -> bool {
        let serves = !self.plan.down && self.weight() > 0;
        serves && !self.plan.backup && self.admin.admin_state == AdminState::Ready
    }
}

impl Inner {
    /// Something has happened to the endpoint with this number. One that has departed does not
    /// count.
    pub(super) fn recount(&mut self, number: usize) {
        let Some(endpoint) = self.outlined_mut(number) else {
            return;
        };
        endpoint.note_condition();
        let sign = self.review.sign_of_election();
        if let Some(endpoint) = self.endpoints.get(number) {
            self.totals
                .set(number, Counted::of(endpoint, sign), &self.index);
            self.fast_path = self.totals.counts.restricted == 0;
        }
    }

    /// The sums are those of the endpoints as they are.
    #[cfg(test)]
    pub(super) fn assert_is_counted(&self) {
        for endpoint in self.endpoints.iter().chain(&self.departed) {
            assert_eq!(endpoint.condition, Condition::of(endpoint));
        }
        let sign = self.review.sign_of_election();
        let counted = self.endpoints.iter().map(|e| Counted::of(e, sign));
        let serving = self.configured.iter().filter(|c| c.is_to_serve());
        let anew = Totals::new(counted.collect(), &self.index, serving.count());
        assert_eq!(self.totals.counted, anew.counted);
        assert_eq!(self.totals.counts, anew.counts);
        assert_eq!(self.totals.serving_backends, anew.serving_backends);
        assert_eq!(self.fast_path, anew.counts.restricted == 0);
    }
}
