//! Every key of the configuration, by section, and whether it works yet.
//!
//! To add a key: a word here, a line where its section is read, a field in the plan, a line in
//! `dump` and one in `conf/reference.toml`.

use crate::config::text::suggestions::nearest;

/// The keys one table may have.
pub(super) struct Keys {
    /// How messages call the table.
    pub(super) label: &'static str,
    pub(super) works: &'static [&'static str],
    /// Known, and refused until there is code behind them.
    pub(super) not_yet: &'static [&'static str],
    /// Tables whose keys may stand here as well.
    pub(super) also: &'static [&'static Keys],
}

pub(super) static ROOT: Keys = Keys {
    label: "the file",
    works: &[
        "process",
        "admin",
        "log",
        "defaults",
        "listeners",
        "upstreams",
    ],
    not_yet: &[],
    also: &[],
};

pub(super) static PROCESS: Keys = Keys {
    label: "[process]",
    works: &[
        "workers",
        "max_connections",
        "max_flows",
        "start_wait",
        "drain_timeout",
    ],
    not_yet: &[],
    also: &[],
};

pub(super) static ADMIN: Keys = Keys {
    label: "[admin]",
    works: &["listen", "socket", "hosts"],
    not_yet: &[],
    also: &[],
};

pub(super) static LOG: Keys = Keys {
    label: "[log]",
    works: &["level", "format", "access"],
    not_yet: &[],
    also: &[],
};

pub(super) static DEFAULTS: Keys = Keys {
    label: "[defaults]",
    works: &[],
    not_yet: &[],
    also: &[&LISTENER, &UPSTREAM],
};

pub(super) static LISTENER: Keys = Keys {
    label: "[listeners.NAME]",
    works: &[
        "bind",
        "protocol",
        "upstream",
        "connect_timeout",
        "idle_timeout",
        "half_close_timeout",
        "half_close",
        "retries",
        "max_connections",
        "access",
        "backlog",
        "unix_mode",
        "unix_owner",
        "unix_group",
        "nodelay",
        "keepalive",
        "user_timeout",
        "accept_proxy",
        "responses",
        "requests",
        "per_packet",
        "max_flows_per_source",
        "when_full",
    ],
    not_yet: &[],
    also: &[],
};

pub(super) static KEEPALIVE: Keys = Keys {
    label: "keepalive",
    works: &["idle", "interval", "count"],
    not_yet: &[],
    also: &[],
};

pub(super) static ACCEPT_PROXY: Keys = Keys {
    label: "accept_proxy",
    works: &["trust", "timeout"],
    not_yet: &[],
    also: &[],
};

pub(super) static UPSTREAM: Keys = Keys {
    label: "[upstreams.NAME]",
    works: &[
        "balance",
        "hash_key",
        "hash_balance_factor",
        "least_time",
        "backends",
        "resolve_interval",
        "resolve_required",
        "send_proxy",
        "send_proxy_tlvs",
        "send_proxy_on",
        "fail_on_reset",
        "panic_threshold",
        "check",
        "on_down",
        "on_role_lost",
        "on_lag",
        "on_recover",
        "on_drain",
    ],
    not_yet: &[],
    also: &[],
};

pub(super) static CHECK: Keys = Keys {
    label: "[upstreams.NAME.check]",
    works: &[
        "kind",
        "interval",
        "fast_interval",
        "timeout",
        "rise",
        "fall",
        "start",
        "stale_after",
        "port",
        "address",
        "send",
        "send_hex",
        "expect",
        "expect_hex",
        "expect_regex",
        "path",
        "host",
        "status",
        "role",
        "replicating",
        "user",
        "password_file",
        "password_env",
        "database",
        "login",
        "max_lag",
        "max_lag_bytes",
        "min_version",
        "require_writes",
        "query",
        "query_type",
        "rcode",
        "tls",
        "tls_ca",
        "tls_name",
    ],
    not_yet: &[],
    also: &[],
};

/// What `on_down` and its like may be besides a word.
pub(super) static ON_LEAVE: Keys = Keys {
    label: "`on_down`, `on_role_lost`, `on_lag`, `on_recover` or `on_drain`",
    works: &["close_after"],
    not_yet: &[],
    also: &[],
};

pub(super) static BACKEND: Keys = Keys {
    label: "a backend",
    works: &[
        "address",
        "weight",
        "max_fails",
        "fail_timeout",
        "max_connections",
        "slow_start",
        "backup",
        "down",
    ],
    not_yet: &[],
    also: &[],
};

/// Keys of earlier versions, and what replaces them.
static RENAMED: &[(&str, &str)] = &[(
    "serve_anyway_below",
    "`panic_threshold` of [upstreams.NAME]",
)];

static ALL: &[&Keys] = &[
    &ROOT,
    &PROCESS,
    &ADMIN,
    &LOG,
    &LISTENER,
    &KEEPALIVE,
    &ACCEPT_PROXY,
    &UPSTREAM,
    &CHECK,
    &ON_LEAVE,
    &BACKEND,
];

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Works,
    NotYet,
    Unknown,
}

impl Keys {
    pub(super) fn standing(&self, key: &str) -> Standing {
        let mut tables = self.with_others();
        if tables.clone().any(|keys| keys.works.contains(&key)) {
            Standing::Works
        } else if tables.any(|keys| keys.not_yet.contains(&key)) {
            Standing::NotYet
        } else {
            Standing::Unknown
        }
    }

    /// What to say about a key that is unknown here.
    pub(super) fn advice(&self, key: &str) -> String {
        let known: Vec<&str> = self
            .with_others()
            .flat_map(|keys| keys.works.iter().chain(keys.not_yet))
            .copied()
            .collect();
        if let Some((_, now)) = RENAMED.iter().find(|(old, _)| *old == key) {
            return format!("it is {now} now");
        }
        if let Some(home) = ALL
            .iter()
            .find(|keys| keys.standing(key) != Standing::Unknown)
        {
            return format!("`{key}` belongs in {}", home.label);
        }
        match nearest(key, &known) {
            Some(near) => format!("did you mean `{near}`?"),
            None => {
                let works: Vec<&str> = self
                    .with_others()
                    .flat_map(|keys| keys.works)
                    .copied()
                    .collect();
                format!("known here: {}", works.join(", "))
            }
        }
    }

    fn with_others(&self) -> impl Iterator<Item = &Keys> + Clone {
        std::iter::once(self).chain(self.also.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_another_section_is_sent_home() {
        assert_eq!(
            LISTENER.advice("backends"),
            "`backends` belongs in [upstreams.NAME]"
        );
        assert_eq!(DEFAULTS.standing("retries"), Standing::Works);
        assert_eq!(DEFAULTS.standing("per_packet"), Standing::Works);
        assert_eq!(DEFAULTS.standing("weight"), Standing::Unknown);
    }

    #[test]
    fn what_is_to_come_is_known() {
        let keys = Keys {
            label: "a section",
            works: &["now"],
            not_yet: &["later"],
            also: &[],
        };
        assert_eq!(keys.standing("later"), Standing::NotYet);
        assert_eq!(keys.standing("never"), Standing::Unknown);
        assert_eq!(keys.advice("latter"), "did you mean `later`?");
    }

    #[test]
    fn the_reference_names_every_key() {
        let reference = include_str!("../../conf/reference.toml");
        // The blank before keeps `interval` from being found in `resolve_interval`.
        let lines: Vec<String> = reference.lines().map(|line| format!(" {line}")).collect();
        let named = |key: &str, comment: bool| {
            let forms = [format!(" {key} ="), format!(" [{key}"), format!(".{key}]")];
            lines
                .iter()
                .filter(|line| line.starts_with(" #") == comment)
                .any(|line| forms.iter().any(|form| line.contains(form)))
        };
        for keys in ALL {
            for key in keys.works {
                assert!(
                    named(key, false),
                    "{} {key} is not set in conf/reference.toml",
                    keys.label
                );
            }
            for key in keys.not_yet {
                assert!(
                    named(key, true),
                    "{} {key} is no comment in conf/reference.toml",
                    keys.label
                );
            }
        }
    }
}
