//! Words that come to mind for a key or a value, and what is written here.

use super::{ADMIN, BACKEND, CHECK, DISCOVER, Keys, LISTENER, LOG, PROCESS, ROOT, UPSTREAM};

struct Synonym {
    words: &'static [&'static str],
    /// In which tables they are no keys.
    tables: &'static [&'static Keys],
    hint: &'static str,
}

static KEYS: &[Synonym] = &[
    Synonym {
        words: &[
            "servers",
            "nodes",
            "targets",
            "members",
            "endpoints",
            "hosts",
            "addresses",
        ],
        tables: &[&UPSTREAM],
        hint: "write `backends`, as in backends = [\"10.0.0.1:6379\"]",
    },
    Synonym {
        words: &["host", "ip", "server", "addr", "port"],
        tables: &[&BACKEND],
        hint: "write both in `address`, as in { address = \"10.0.0.1:6379\" }",
    },
    Synonym {
        words: &["port", "address", "host", "bind", "http"],
        tables: &[&ADMIN],
        hint: "write `listen`, as in listen = \"127.0.0.1:9900\"",
    },
    Synonym {
        words: &["port", "address", "host"],
        tables: &[&LISTENER],
        hint: "write `bind`, as in bind = \"0.0.0.0:6379\"",
    },
    Synonym {
        words: &[
            "healthcheck",
            "health",
            "health_checks",
            "healthchecks",
            "checks",
            "monitor",
        ],
        tables: &[&UPSTREAM],
        hint: "write a section [upstreams.NAME.check] with `kind`",
    },
    Synonym {
        words: &["type", "protocol"],
        tables: &[&CHECK, &DISCOVER],
        hint: "write `kind`",
    },
    Synonym {
        words: &["uri", "url", "endpoint"],
        tables: &[&CHECK],
        hint: "write `path`, with kind = \"http\"",
    },
    Synonym {
        words: &["password", "pass", "auth"],
        tables: &[&CHECK, &DISCOVER],
        hint: "no password stands in this file: write `password_file` or `password_env`",
    },
    Synonym {
        words: &["sticky", "affinity", "session_affinity", "persistence"],
        tables: &[&UPSTREAM],
        hint: "write balance = \"consistent_hash\", which keeps clients on their backends",
    },
    Synonym {
        words: &[
            "algorithm",
            "policy",
            "method",
            "strategy",
            "lb_policy",
            "load_balancing",
        ],
        tables: &[&UPSTREAM],
        hint: "write `balance`, as in balance = \"least_conn\"",
    },
    Synonym {
        words: &[
            "tls",
            "certificate",
            "cert",
            "ssl_certificate",
            "ssl_certificate_key",
        ],
        tables: &[&LISTENER],
        hint: "TLS of sessions is not supported yet: they are relayed as they are",
    },
    Synonym {
        words: &["include", "includes"],
        tables: &[&ROOT],
        hint: "a configuration is one file",
    },
    Synonym {
        words: &["user", "group", "daemon", "pid", "pidfile", "chroot"],
        tables: &[&ROOT, &PROCESS],
        hint: "this is left to the service manager, as User= of systemd",
    },
    Synonym {
        words: &["services", "frontends", "entrypoints", "servers"],
        tables: &[&ROOT],
        hint: "write sections [listeners.NAME]",
    },
    Synonym {
        words: &["pools", "clusters", "backends"],
        tables: &[&ROOT],
        hint: "write sections [upstreams.NAME], each with `backends`",
    },
    Synonym {
        words: &["file", "path"],
        tables: &[&LOG],
        hint: "the log goes to standard error; the file of the access log is `access`",
    },
];

/// The key, the values that come to mind, and what is written here.
static VALUES: &[(&str, &[&str], &str)] = &[
    ("role", &["master", "leader", "writer"], "write \"primary\""),
    (
        "role",
        &["slave", "standby", "secondary", "follower", "reader"],
        "write \"replica\"",
    ),
    (
        "kind",
        &["pgsql", "postgresql", "pg", "pgsql-check"],
        "write \"postgres\"",
    ),
    (
        "kind",
        &["mariadb", "mysql-check", "galera"],
        "write \"mysql\"",
    ),
    (
        "kind",
        &["valkey", "keydb", "redis-check"],
        "write \"redis\"",
    ),
    (
        "kind",
        &["https", "httpchk"],
        "write \"http\"; for https with tls = \"verify\"",
    ),
    (
        "kind",
        &["patroni"],
        "write \"http\", with port = 8008 and path = \"/primary\"",
    ),
    (
        "kind",
        &["icmp", "ping", "connect"],
        "write \"tcp\", which connects",
    ),
    ("kind", &["k8s"], "write \"kubernetes\""),
    (
        "balance",
        &["source", "sticky", "ketama", "ring_hash"],
        "write \"consistent_hash\"",
    ),
    (
        "balance",
        &["random", "random(2)", "p2c"],
        "write \"random_two\"",
    ),
    (
        "balance",
        &["rr", "wrr", "static-rr", "weighted"],
        "write \"round_robin\", which regards weights",
    ),
    (
        "balance",
        &["failover", "active-passive"],
        "write \"first\", or backup = true in a backend",
    ),
    (
        "protocol",
        &["http", "https", "tls", "ssl", "grpc"],
        "write \"tcp\", which relays it as it is",
    ),
    ("level", &["notice"], "write \"info\""),
    ("on_down", &["shutdown-sessions"], "write \"close\""),
];

/// About a key that is unknown in this table.
pub(super) fn advice(word: &str, table: &'static Keys) -> Option<&'static str> {
    let is_meant = |synonym: &&Synonym| {
        let is_here = synonym.tables.iter().any(|keys| std::ptr::eq(*keys, table));
        is_here && synonym.words.contains(&word)
    };
    KEYS.iter().find(is_meant).map(|synonym| synonym.hint)
}

/// About a value that a key does not have, among those that it may have.
pub(crate) fn of_value(key: &str, text: &str, allowed: &[&str]) -> Option<&'static str> {
    let text = text.to_lowercase();
    let mut values = VALUES.iter();
    let (_, _, hint) = values.find(|(of, words, hint)| {
        let word = hint.split('"').nth(1).unwrap_or_default();
        *of == key && words.contains(&text.as_str()) && allowed.contains(&word)
    })?;
    Some(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_synonym_is_no_key_and_leads_to_one() {
        for synonym in KEYS {
            for table in synonym.tables {
                for word in synonym.words {
                    assert!(!table.contains(word), "{} has {word}", table.label);
                    assert_eq!(advice(word, table), Some(synonym.hint), "{word}");
                }
                // What the hint tells to write is there.
                let keys = synonym.hint.split("write `").skip(1);
                for key in keys.filter_map(|rest| rest.split('`').next()) {
                    assert!(table.contains(key), "{} has no {key}", table.label);
                }
            }
        }
    }

    #[test]
    fn a_value_leads_to_one_that_the_key_may_have() {
        let roles = ["any", "primary", "replica"];
        assert_eq!(
            of_value("role", "Master", &roles),
            Some("write \"primary\"")
        );
        assert_eq!(of_value("role", "none", &roles), None);
        // `kind` of a source of backends.
        assert_eq!(of_value("kind", "pgsql", &["redis", "file"]), None);
    }
}
