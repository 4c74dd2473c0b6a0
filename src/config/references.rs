//! What the rest of the file has to do with an upstream.

use crate::plan::{Listener, Protocol};

/// What refers to an upstream.
pub(super) struct References {
    /// The name of a UDP listener.
    pub(super) udp: Option<String>,
    /// Whether there is a TCP listener.
    pub(super) tcp: bool,
    /// Whether more listeners may refer to it, because of a mistake in one. Then no key is reported
    /// to have no effect.
    pub(super) unsure: bool,
    /// Whether an operator can drain its backends.
    pub(super) operator: bool,
}

impl References {
    /// For `[defaults]`: there may be any.
    pub(super) fn any() -> Self {
        Self {
            udp: None,
            tcp: true,
            unsure: true,
            operator: true,
        }
    }

    /// `sure`: whether the upstream and the protocol of every listener are valid.
    pub(super) fn of<'l>(
        upstream: &str,
        listeners: impl Iterator<Item = &'l Listener>,
        sure: bool,
        operator: bool,
    ) -> Self {
        let mut references = Self {
            udp: None,
            tcp: false,
            unsure: !sure,
            operator,
        };
        for listener in listeners.filter(|listener| listener.upstream == upstream) {
            match listener.protocol {
                Protocol::Tcp => references.tcp = true,
                Protocol::Udp(_) => {
                    references.udp.get_or_insert_with(|| listener.name.clone());
                }
            }
        }
        references
    }

    /// Whether there are flows, or may be.
    pub(super) fn flows(&self) -> bool {
        self.udp.is_some() || self.unsure
    }

    /// Whether there are flows and no connections.
    pub(super) fn flows_alone(&self) -> bool {
        self.udp.is_some() && !self.tcp && !self.unsure
    }
}
