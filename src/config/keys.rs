//! The table of all keys. A row yields the keys that a table may have, the reading of scalars, the
//! reports of keys in the wrong table or without effect, the dump and the reference.
//!
//! To add a scalar key: a row here, and a field in the plan.

pub(crate) mod applies;
pub(crate) mod check;
pub(crate) mod discover;
mod foreign;
pub(crate) mod limits;
pub(crate) mod listener;
pub(crate) mod process;
#[cfg(test)]
mod reference;
pub(crate) mod row;
pub(crate) mod scalar;
pub(crate) mod synonyms;
pub(crate) mod upstream;
pub(crate) mod words;

use crate::config::text::suggestions::nearest;
use applies::Applies;
use row::{Key, Row};

/// The keys that one table may have.
pub(crate) struct Keys {
    /// How messages call the table.
    pub(crate) label: &'static str,
    rows: &'static [&'static (dyn Rows + Sync)],
}

/// Rows, whatever the type of their fields.
trait Rows {
    fn keys(&self) -> Box<dyn Iterator<Item = &'static Key>>;
}

impl<T> Rows for &'static [Row<T>] {
    fn keys(&self) -> Box<dyn Iterator<Item = &'static Key>> {
        Box::new(self.iter().map(|row| &row.key))
    }
}

macro_rules! tables {
    ($($name:ident $label:literal: $($rows:expr),*;)*) => {
        $(pub(crate) static $name: Keys = Keys {
            label: $label,
            rows: &[$(&$rows,)*],
        };)*
        static ALL: &[&Keys] = &[$(&$name,)*];
    };
}

tables! {
    ROOT "the file": process::ROOT;
    PROCESS "[process]": process::PROCESS;
    ADMIN "[admin]": process::ADMIN;
    LOG "[log]": process::LOG;
    LISTENER "[listeners.NAME]": listener::LISTENER, listener::OWN,
        limits::LIMITS, listener::UDP;
    KEEPALIVE "keepalive": listener::KEEPALIVE;
    ACCEPT_PROXY "accept_proxy": listener::ACCEPT_PROXY;
    BANDWIDTH "`bandwidth`, `bandwidth_per_source` or `bandwidth_total`": limits::BANDWIDTH;
    SOURCE_PREFIX "source_prefix": limits::SOURCE_PREFIX;
    UPSTREAM "[upstreams.NAME]": upstream::UPSTREAM;
    CHECK "[upstreams.NAME.check]": check::CHECK, check::TLS, check::LOGIN, check::SEND_EXPECT,
        check::HTTP, check::REDIS, check::POSTGRES, check::DNS;
    DISCOVER "[upstreams.NAME.discover]": discover::DISCOVER, discover::OF_KINDS;
    CLOSE_AFTER "`on_down`, `on_role_lost`, `on_lag`, `on_recover`, `on_drain` or `on_removed`":
        upstream::CLOSE_AFTER;
    BACKEND "a backend": upstream::BACKEND;
}

/// Keys of listeners and of upstreams alike.
pub(crate) static DEFAULTS: Keys = Keys {
    label: "[defaults]",
    rows: &[
        &listener::LISTENER,
        &limits::LIMITS,
        &listener::UDP,
        &upstream::UPSTREAM,
    ],
};

/// Keys of earlier versions, and what replaces them.
static RENAMED: &[(&str, &str)] = &[
    (
        "serve_anyway_below",
        "`panic_threshold` of [upstreams.NAME]",
    ),
    (
        "max_flows_per_source",
        "`max_connections_per_source` of [listeners.NAME]",
    ),
];

impl Keys {
    pub(crate) fn keys(&self) -> impl Iterator<Item = &'static Key> {
        self.rows.iter().flat_map(|rows| rows.keys())
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.keys().any(|key| key.name == name)
    }

    /// What to do about a key that is unknown here.
    pub(crate) fn advice(&'static self, name: &str) -> String {
        if let Some(advice) = synonyms::advice(name, self) {
            return advice.to_owned();
        }
        if let Some((_, now)) = RENAMED.iter().find(|(old, _)| *old == name) {
            return format!("it is {now} now");
        }
        // HAProxy writes `on-marked-down`.
        let spelled = [name, &name.replace('_', "-"), &name.replace('-', "_")].map(foreign::advice);
        if let Some(advice) = spelled.into_iter().flatten().next() {
            return advice;
        }
        if let Some(home) = ALL.iter().find(|keys| keys.contains(name)) {
            return format!("`{name}` belongs in {}", home.label);
        }
        let names: Vec<&str> = self.keys().map(|key| key.name).collect();
        match nearest(name, &names) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("one of: {}", names.join(", ")),
        }
    }
}

/// An inline table: TOML 1.0 has no line breaks in one.
pub(crate) fn inline<T>(
    rows: &[Row<T>],
    target: &T,
    has_effect: impl Fn(Applies) -> bool,
) -> String {
    let written = rows.iter().filter(|row| has_effect(row.key.applies));
    let pairs: Vec<String> = written
        .filter_map(|row| Some(format!("{} = {}", row.key.name, row.write(target)?)))
        .collect();
    format!("{{ {} }}", pairs.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::value::{duration, size};
    use row::Form;

    #[test]
    fn no_key_is_in_a_table_twice() {
        for keys in ALL.iter().chain([&&DEFAULTS]) {
            let mut names: Vec<&str> = keys.keys().map(|key| key.name).collect();
            let count = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), count, "{}", keys.label);
        }
    }

    #[test]
    fn defaults_are_valid() {
        for keys in ALL {
            for key in keys.keys().filter(|key| !key.default.is_empty()) {
                let valid = match &key.form {
                    Form::Flag => ["true", "false"].contains(&key.default),
                    Form::Number(least, most) => key
                        .default
                        .parse::<i128>()
                        .is_ok_and(|number| (*least..=*most).contains(&number)),
                    Form::Duration(rule) => {
                        duration::parse(key.default).is_ok_and(|d| rule.check(d).is_ok())
                    }
                    Form::Size => size::parse(key.default).is_ok(),
                    Form::Word(words) => words().contains(&key.default),
                    Form::Other(_) => true,
                };
                assert!(valid, "{} {}", keys.label, key.name);
            }
        }
    }

    #[test]
    fn the_reference_names_every_key() {
        let reference = include_str!("../../conf/reference.toml");
        // The blank before keeps `interval` from being found in `resolve_interval`.
        let lines: Vec<String> = reference.lines().map(|line| format!(" {line}")).collect();
        let is_set = |key: &str| {
            let forms = [format!(" {key} ="), format!(" [{key}"), format!(".{key}]")];
            let mut set = lines.iter().filter(|line| !line.starts_with(" #"));
            set.any(|line| forms.iter().any(|form| line.contains(form)))
        };
        for keys in ALL {
            for key in keys.keys() {
                let name = key.name;
                assert!(
                    is_set(name),
                    "{} {name} is not in the reference",
                    keys.label
                );
            }
        }
    }

    #[test]
    fn an_unknown_key_gets_a_hint_at_its_section() {
        assert_eq!(
            UPSTREAM.advice("bind"),
            "`bind` belongs in [listeners.NAME]"
        );
        assert_eq!(UPSTREAM.advice("balanse"), "did you mean `balance`?");
        assert!(DEFAULTS.contains("retries") && DEFAULTS.contains("balance"));
        let renamed = CHECK.advice("serve_anyway_below");
        assert_eq!(renamed, "it is `panic_threshold` of [upstreams.NAME] now");
    }
}
