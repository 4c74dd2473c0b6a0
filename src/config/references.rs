//! What the rest of the file has to do with an upstream.

use crate::plan::{Listener, Protocol, SendProxy};

/// What refers to an upstream.
pub(super) struct References {
    /// The name of a UDP listener.
    pub(super) udp: Option<String>,
    /// The name of a UDP listener that sends the PROXY protocol header of the upstream.
    pub(super) udp_that_inherits: Option<String>,
    /// Whether a UDP listener sends headers of version 2 of its own.
    pub(super) udp_sends_v2: bool,
    /// Whether there is a TCP listener.
    pub(super) tcp: bool,
    /// Whether there is a listener whose sessions or flows may wait.
    pub(super) waits: bool,
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
            udp_that_inherits: None,
            udp_sends_v2: false,
            tcp: true,
            waits: true,
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
            udp_that_inherits: None,
            udp_sends_v2: false,
            tcp: false,
            waits: false,
            unsure: !sure,
            operator,
        };
        for listener in listeners.filter(|listener| listener.upstream == upstream) {
            references.waits |= match listener.protocol {
                Protocol::Tcp => true,
                Protocol::Udp(udp) => !udp.per_packet,
            };
            match listener.protocol {
                Protocol::Tcp => references.tcp = true,
                Protocol::Udp(_) => {
                    let name = || listener.name.clone();
                    references.udp.get_or_insert_with(name);
                    match listener.send_proxy {
                        None => {
                            references.udp_that_inherits.get_or_insert_with(name);
                        }
                        Some(SendProxy::V2 { .. }) => references.udp_sends_v2 = true,
                        Some(SendProxy::Off | SendProxy::V1) => {}
                    }
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
