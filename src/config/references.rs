//! What the rest of the file has to do with an upstream.

use super::listener;
use crate::plan::Protocol;

/// Who uses an upstream.
pub(super) struct Users {
    /// A UDP listener.
    pub(super) udp: Option<String>,
    /// Whether a TCP listener does, too.
    pub(super) tcp: bool,
    /// A mistake in a listener leaves it open who else does: then nothing is called useless.
    pub(super) unsure: bool,
    /// Whether there is a way for an operator to take backends out.
    pub(super) operator: bool,
}

impl Users {
    /// Those that `[defaults]` are for.
    pub(super) fn anybody() -> Self {
        Self {
            udp: None,
            tcp: true,
            unsure: true,
            operator: true,
        }
    }

    /// `sure`: whether every listener says what it uses, and how.
    pub(super) fn of(
        upstream: &str,
        listeners: &[listener::Read],
        sure: bool,
        operator: bool,
    ) -> Self {
        let uses = |udp: bool| {
            listeners.iter().find(move |read| {
                let is_udp = matches!(read.listener.protocol, Protocol::Udp(_));
                read.listener.upstream == upstream && is_udp == udp
            })
        };
        Self {
            udp: uses(true).map(|read| read.listener.name.clone()),
            tcp: uses(false).is_some(),
            unsure: !sure,
            operator,
        }
    }

    /// Whether there are flows, or may be.
    pub(super) fn flows(&self) -> bool {
        self.udp.is_some() || self.unsure
    }

    /// Whether there is nothing but flows.
    pub(super) fn flows_alone(&self) -> bool {
        self.udp.is_some() && !self.tcp && !self.unsure
    }
}
