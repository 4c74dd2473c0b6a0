//! Where a key has an effect, and the report where it has none.

use std::borrow::Cow;

use super::words::PolicyName;
use crate::config::text::report::{Fault, fault};

/// What a key needs to have an effect.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Applies {
    Always,
    // In a listener.
    Tcp,
    Udp,
    /// Flows of more than one datagram.
    Flows,
    UnixSocket,
    IpAddress,
    /// A limit of each source.
    PerSource,
    /// A limit of the rate of connections.
    Rated,
    /// Any limit that may be tried without effect.
    Limited,
    // In an upstream.
    Policy(&'static [PolicyName]),
    SendProxyV2,
    SendProxyOn,
    FailOnReset,
    Backup,
    /// Sessions that wait, which datagrams that are balanced on their own do not.
    Wait,
    Queue,
    QueueStick,
    Hold,
    PanicThreshold,
    OnDown,
    OnRoleLost,
    OnLag,
    OnRecover,
    OnDrain,
    // In a check.
    Primary,
    Replicating,
    Lag,
    Login,
    User,
    Database,
    TlsVerify,
}

impl Applies {
    /// For the reference.
    #[cfg(test)]
    pub(crate) fn text(self) -> String {
        let text = match self {
            Self::Always => "",
            Self::Tcp => "`protocol = \"tcp\"`",
            Self::Udp => "`protocol = \"udp\"`",
            Self::Flows => "`protocol = \"udp\"` without `per_packet`",
            Self::UnixSocket => "unix sockets in `bind`",
            Self::IpAddress => "an IP address in `bind`",
            Self::PerSource => "a limit of each source",
            Self::Rated => "`connection_rate` or `connection_rate_per_source`",
            Self::Limited => "one of these limits",
            Self::Policy(policies) => {
                use super::scalar::Word;
                let words: Vec<&str> = policies.iter().map(|policy| policy.word()).collect();
                return format!("`balance`: {}", words.join(", "));
            }
            Self::SendProxyV2 => "`send_proxy = \"v2\"`",
            Self::SendProxyOn => "`send_proxy = \"v2\"` and a UDP listener",
            Self::FailOnReset => "TCP listeners",
            Self::Backup => "a backup",
            Self::Wait => "a listener without `per_packet`",
            Self::Queue => "`queue_timeout`",
            Self::QueueStick => "`queue_timeout` and a `balance` that hashes",
            Self::Hold => "`hold_timeout`",
            Self::PanicThreshold => "a check that asks for no role",
            Self::OnDown => "a check, or a UDP listener",
            Self::OnRoleLost => "a check that asks for a role",
            Self::OnLag => "a check that limits the lag",
            Self::OnRecover => "a check and a backup",
            Self::OnDrain => "an admin socket",
            Self::Primary => "`role = \"primary\"`",
            Self::Replicating => "`role = \"replica\"`",
            Self::Lag => "`role` other than \"primary\"",
            Self::Login => "a login",
            Self::User => "Redis: a password",
            Self::Database => "a `user`",
            Self::TlsVerify => "`tls = \"verify\"`",
        };
        text.to_owned()
    }
}

/// Why a key has no effect where it stands, and what to do about it.
pub(crate) struct NoEffect {
    /// As it follows "does nothing".
    pub(crate) why: Cow<'static, str>,
    pub(crate) hint: Cow<'static, str>,
    /// The default may be written down: it changes nothing.
    pub(crate) allows_default: bool,
}

impl NoEffect {
    /// Reported wherever the key is written.
    pub(crate) fn always(
        why: impl Into<Cow<'static, str>>,
        hint: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            why: why.into(),
            hint: hint.into(),
            allows_default: false,
        }
    }

    /// Reported where the value is not the default.
    pub(crate) fn unless_default(
        why: impl Into<Cow<'static, str>>,
        hint: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            allows_default: true,
            ..Self::always(why, hint)
        }
    }

    /// `what`: the key, in backticks.
    pub(crate) fn fault(&self, what: &str) -> Fault {
        fault!("{what} does nothing {}", self.why).hint(self.hint.clone())
    }
}
