//! A relay as plain data: what another process needs to go on with it.

use super::{
    FirstByte, FirstByteObservers, NEVER, Relay,
    delivery::{Delivery, DeliveryState},
    direction::{BreakCause, Broken, DirectionState},
};
use crate::runtime::{executor, time};
use std::{cell::Cell, io};

/// A relay between two waits, when nothing of it is in the buffer of its worker.
#[derive(Debug)]
pub struct RelayState {
    /// From the client to the backend.
    pub up: DirectionState,
    pub down: DirectionState,
    /// The side that reset, or that cannot be written to any more.
    pub broken: Option<(Side, BreakCause)>,
    /// When delivery is checked next, in milliseconds of the workers.
    pub next_check: Option<u64>,
    pub delivery: Option<DeliveryState>,
    pub has_keepalive: bool,
    /// When the backend's first byte was read, see [`time::micros_at`].
    pub first_byte: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Client,
    Backend,
}

impl Relay<'_> {
    /// Writes what is deferred, and describes the relay with descriptors of its own for what it
    /// holds. `None`: the session stays, since it is over, or there are no more descriptors. Until
    /// the next poll the relay does nothing.
    pub(super) fn leave(&mut self) -> Option<Box<RelayState>> {
        self.settle_deferred();
        if self.up.finished && self.down.finished {
            return None;
        }
        match self.state() {
            Ok(state) => Some(Box::new(state)),
            Err(error) => {
                tracing::debug!(%error, "cannot hand over a session now");
                self.counters.session.stay();
                None
            }
        }
    }

    fn settle_deferred(&mut self) {
        let (now, moved) = (executor::now(), Cell::new(false));
        let up = self
            .up
            .reconcile_deferred(self.backend(), &self.context_up(now, &moved));
        if let Err(Broken::Sink(cause) | Broken::Source(cause)) = up {
            self.broken_at(Side::Backend, cause);
        }
        let down = self
            .down
            .reconcile_deferred(self.client, &self.context_down(now, &moved));
        if let Err(Broken::Sink(cause) | Broken::Source(cause)) = down {
            self.broken_at(Side::Client, cause);
        }
    }

    fn state(&self) -> io::Result<RelayState> {
        Ok(RelayState {
            up: self.up.state()?,
            down: self.down.state()?,
            broken: self.broken,
            next_check: Some(self.next_check).filter(|at| *at != NEVER),
            delivery: self.delivery.as_ref().map(|delivery| delivery.state()),
            has_keepalive: self.has_keepalive,
            first_byte: match self.first_byte {
                FirstByte::ReadAt(at) => Some(time::micros_at(at)),
                FirstByte::Awaited(_) => None,
            },
        })
    }

    /// Goes on where another process has stopped.
    pub(super) fn resume_from(&mut self, state: RelayState) {
        let now = executor::now();
        self.up.resume_from(state.up);
        self.down.resume_from(state.down);
        self.broken = state.broken;
        self.next_check = state.next_check.unwrap_or(NEVER);
        self.delivery = state.delivery.map(|d| Box::new(Delivery::of(d, now)));
        self.has_keepalive = state.has_keepalive;
        if let Some(micros) = state.first_byte {
            self.first_byte = FirstByte::ReadAt(time::past_at(micros, now));
        }
    }

    /// Another process has taken the session: what it still waits for is measured there, or not at
    /// all.
    pub fn forget_observers(&mut self) {
        if let FirstByte::Awaited(Some(observers)) = &mut self.first_byte {
            observers.forget();
        }
    }
}

impl FirstByteObservers {
    fn forget(&mut self) {
        if let Some(mut clock) = self.clock.take() {
            clock.failed();
        }
    }
}
