//! Words of nginx and HAProxy that are written here in another way.

use super::{ACCEPT_PROXY, ADMIN, BACKEND, CHECK, Keys, LISTENER, LOG, PROCESS, ROOT, UPSTREAM};

/// A directive, parameter or keyword of another program.
struct Foreign {
    word: &'static str,
    program: Program,
    /// What is written here instead, and in which table; empty: there is no counterpart.
    keys: &'static [(&'static str, &'static Keys)],
    /// What else is to be known; empty: nothing.
    note: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    Nginx,
    Haproxy,
    Both,
}

/// What to write instead of `word`, if another program has it.
pub(super) fn advice(word: &str) -> Option<String> {
    let found = WORDS.iter().find(|foreign| foreign.word == word)?;
    let program = match found.program {
        Program::Nginx => "nginx",
        Program::Haproxy => "HAProxy",
        Program::Both => "nginx and HAProxy",
    };
    let mut text = match found.keys {
        [] => format!("`{word}` of {program} has no counterpart"),
        keys => {
            let keys = keys
                .iter()
                .map(|(key, table)| match std::ptr::eq(*table, &ROOT) {
                    true => format!("a section [{key}.NAME]"),
                    false => format!("`{key}` of {}", table.label),
                });
            let keys = keys.collect::<Vec<_>>().join(" or ");
            format!("instead of `{word}` of {program} write {keys}")
        }
    };
    if !found.note.is_empty() {
        text.push_str(": ");
        text.push_str(found.note);
    }
    Some(text)
}

macro_rules! words {
    ($($program:ident $word:literal: $($key:literal $table:ident),* $(; $note:literal)?.)*) => {
        &[$(Foreign {
            word: $word,
            program: Program::$program,
            keys: &[$(($key, &$table)),*],
            note: concat!($($note)?),
        },)*]
    };
}

/// In alphabetical order. The documents docs/coming-from-nginx.md and docs/coming-from-haproxy.md
/// have each of them in a table.
static WORDS: &[Foreign] = words! {
    Haproxy "accept-proxy": "accept_proxy" LISTENER.
    Nginx "access_log": "access" LOG; "\"off\", \"stdout\" or a path".
    Haproxy "acl": ; "rules by address are in `access` of [listeners.NAME]".
    Haproxy "addr": "address" CHECK.
    Haproxy "agent-check": .
    Nginx "allow": "access" LISTENER; "as in [\"allow 10.0.0.0/8\", \"deny all\"]".
    Haproxy "backend": "upstreams" ROOT.
    Haproxy "check-ssl": "tls" CHECK.
    Haproxy "clitcpka": "keepalive" LISTENER; "it is on by default".
    Haproxy "clitcpka-idle": "keepalive" LISTENER; "it is on by default".
    Haproxy "default-server": ; "a key of a backend stands with each backend".
    Haproxy "default_backend": "upstream" LISTENER.
    Nginx "deny": "access" LISTENER; "as in [\"allow 10.0.0.0/8\", \"deny all\"]".
    Haproxy "disabled": "down" BACKEND.
    Haproxy "downinter": "interval" CHECK; "there is no other interval for a backend that is down".
    Haproxy "error-limit": "max_fails" BACKEND.
    Nginx "error_log": "level" LOG; "the log goes to standard error".
    Haproxy "expect-proxy": "accept_proxy" LISTENER; "as in { trust = [\"10.0.0.0/8\"] }".
    Haproxy "external-check": .
    Haproxy "fastinter": "fast_interval" CHECK.
    Haproxy "filter": "bandwidth" LISTENER; "for `bwlim-in` and `bwlim-out`".
    Haproxy "frontend": "listeners" ROOT.
    Nginx "geo": .
    Haproxy "global": ; "its settings are in [process], [admin] and [log]".
    Haproxy "grace": "drain_delay" PROCESS.
    Haproxy "hard-stop-after": "drain_timeout" PROCESS.
    Nginx "hash": "hash_key" UPSTREAM, "balance" UPSTREAM;
        "balance = \"hash\", or \"consistent_hash\" for `consistent`".
    Haproxy "hash-balance-factor": "hash_balance_factor" UPSTREAM.
    Haproxy "hash-type": "balance" UPSTREAM; "\"consistent_hash\" or \"hash\"".
    Nginx "health_check": "check" UPSTREAM; "a section [upstreams.NAME.check]".
    Haproxy "http-check": "status" CHECK; "with kind = \"http\"".
    Haproxy "httpchk": "kind" CHECK; "\"http\", with `path`".
    Haproxy "init-addr": "resolve_required" UPSTREAM.
    Haproxy "init-state": "start_wait" PROCESS; "listeners accept once backends are checked".
    Haproxy "inter": "interval" CHECK.
    Nginx "ip_hash": "balance" UPSTREAM; "\"ip_hash\"".
    Nginx "least_conn": "balance" UPSTREAM; "\"least_conn\"".
    Haproxy "leastconn": "balance" UPSTREAM; "\"least_conn\"".
    Nginx "limit_conn": "max_connections" LISTENER, "max_connections_per_source" LISTENER;
        "the latter for each address".
    Nginx "limit_conn_dry_run": "limits_dry_run" LISTENER.
    Both "listen": "bind" LISTENER; "`listen` of [admin] is where the status page answers".
    Haproxy "log": "access" LOG; "\"off\", \"stdout\" or a path".
    Haproxy "log-format": "format" LOG; "\"text\" or \"json\"; the fields are fixed".
    Nginx "log_format": "format" LOG; "\"text\" or \"json\"; the fields are fixed".
    Nginx "map": .
    Nginx "max_conns": "max_connections" BACKEND.
    Haproxy "maxconn": "max_connections" LISTENER, "max_connections" BACKEND,
        "max_connections" PROCESS.
    Haproxy "maxqueue": "queue_length" UPSTREAM; "with `queue_timeout`".
    Haproxy "minconn": "max_connections" BACKEND; "it does not grow with the load".
    Haproxy "mode": "protocol" LISTENER; "\"tcp\" or \"udp\"".
    Haproxy "monitor-uri": "listen" ADMIN; "/livez and /readyz".
    Haproxy "mysql-check": "kind" CHECK; "\"mysql\"".
    Haproxy "namespace": "bind" LISTENER; "name an address of the interface".
    Haproxy "nbthread": "workers" PROCESS.
    Haproxy "observe": "max_fails" BACKEND; "failed connects count by default".
    Haproxy "on-marked-down": "on_down" UPSTREAM; "\"close\" for `shutdown-sessions`".
    Haproxy "on-marked-up": "on_recover" UPSTREAM; "\"close\" for `shutdown-backup-sessions`".
    Haproxy "option": ; "`redis-check`, `pgsql-check`, `mysql-check` and `httpchk` are kinds of \
        [upstreams.NAME.check], `tcplog` is `access` of [log], `tcpka` is on by default".
    Haproxy "pgsql-check": "kind" CHECK; "\"postgres\"".
    Nginx "preread_timeout": .
    Haproxy "prometheus-exporter": "listen" ADMIN; "metrics are at /metrics".
    Nginx "proxy_bind": .
    Nginx "proxy_buffer_size": .
    Nginx "proxy_connect_timeout": "connect_timeout" LISTENER; "for each attempt, default 5s".
    Nginx "proxy_download_rate": "bandwidth" LISTENER; "as in { down = \"1m\" }".
    Nginx "proxy_half_close": "half_close" LISTENER; "on by default".
    Nginx "proxy_next_upstream": "retries" LISTENER; "0 turns it off".
    Nginx "proxy_next_upstream_timeout": .
    Nginx "proxy_next_upstream_tries": "retries" LISTENER; "further backends, one less than tries".
    Nginx "proxy_pass": "upstream" LISTENER; "the name of a section [upstreams.NAME]".
    Nginx "proxy_protocol": "accept_proxy" LISTENER, "send_proxy" UPSTREAM;
        "from clients, and to backends (\"v1\")".
    Nginx "proxy_protocol_timeout": "timeout" ACCEPT_PROXY.
    Nginx "proxy_requests": "requests" LISTENER.
    Nginx "proxy_responses": "responses" LISTENER.
    Nginx "proxy_socket_keepalive": "keepalive" LISTENER; "it is on by default".
    Nginx "proxy_ssl": .
    Nginx "proxy_timeout": "idle_timeout" LISTENER; "default 10m, for UDP 60s".
    Nginx "proxy_upload_rate": "bandwidth" LISTENER; "as in { up = \"1m\" }".
    Haproxy "queue": .
    Nginx "random": "balance" UPSTREAM; "\"random_two\"".
    Haproxy "rate-limit": "connection_rate" LISTENER; "as in \"100/s\"".
    Haproxy "redis-check": "kind" CHECK; "\"redis\"".
    Haproxy "redispatch": "retries" LISTENER; "each attempt uses another backend".
    Nginx "resolve": "resolve_interval" UPSTREAM; "names are resolved again by default".
    Nginx "resolver": "resolve_interval" UPSTREAM; "names are resolved by the system".
    Haproxy "resolvers": "resolve_interval" UPSTREAM; "names are resolved by the system".
    Nginx "reuseport": ; "it is always on".
    Haproxy "roundrobin": "balance" UPSTREAM; "\"round_robin\"".
    Haproxy "sc0_conn_rate": "connection_rate_per_source" LISTENER; "as in \"100/s\"".
    Haproxy "send-proxy": "send_proxy" UPSTREAM; "\"v1\"".
    Haproxy "send-proxy-v2": "send_proxy" UPSTREAM; "\"v2\"".
    Both "server": "backends" UPSTREAM; "as in [\"10.0.0.1:80\"]; a `server` block of nginx is a \
        section [listeners.NAME]".
    Haproxy "server-template": "backends" UPSTREAM; "all addresses of a host name are used".
    Nginx "set_real_ip_from": "trust" ACCEPT_PROXY.
    Haproxy "slowstart": "slow_start" BACKEND.
    Nginx "so_keepalive": "keepalive" LISTENER; "it is on by default".
    Haproxy "splice-auto": ; "sustained flows are always spliced".
    Nginx "split_clients": .
    Haproxy "src_conn_cur": "max_connections_per_source" LISTENER.
    Haproxy "srvtcpka": "keepalive" LISTENER; "it is on by default".
    Nginx "ssl": .
    Nginx "ssl_preread": .
    Haproxy "stats": "listen" ADMIN, "socket" ADMIN; "the status page, and control".
    Haproxy "stick": "balance" UPSTREAM; "\"consistent_hash\" keeps clients on their backends".
    Haproxy "stick-table": "balance" UPSTREAM; "\"consistent_hash\" keeps clients on their \
        backends".
    Nginx "stream": ; "its `server` blocks are sections [listeners.NAME], its `upstream` blocks \
        sections [upstreams.NAME]".
    Nginx "stub_status": "listen" ADMIN; "metrics and a status page".
    Haproxy "tcp-check": "kind" CHECK; "\"send_expect\", or a kind that knows the protocol".
    Haproxy "tcp-request": "access" LISTENER; "rules by address".
    Haproxy "tcp-ut": "user_timeout" LISTENER.
    Nginx "tcp_nodelay": "nodelay" LISTENER; "it is on by default".
    Haproxy "tcpka": "keepalive" LISTENER; "it is on by default".
    Haproxy "tcplog": "access" LOG; "\"off\", \"stdout\" or a path".
    Haproxy "timeout": "connect_timeout" LISTENER, "idle_timeout" LISTENER, "timeout" CHECK;
        "`idle_timeout` is for client and server alike".
    Haproxy "track-sc0": "connection_rate_per_source" LISTENER; "each address counts by itself".
    Nginx "upstream": "upstreams" ROOT; "`upstream` of [listeners.NAME] names one".
    Haproxy "use-server": .
    Haproxy "use_backend": ; "a listener has one `upstream`".
    Nginx "worker_connections": "max_connections" PROCESS; "over all workers".
    Nginx "worker_processes": "workers" PROCESS; "threads of one process".
    Nginx "worker_rlimit_nofile": ; "it is LimitNOFILE= of the service".
    Nginx "worker_shutdown_timeout": "drain_timeout" PROCESS.
    Nginx "zone": ; "state is always shared by all workers".
};

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const DOCUMENTS: [(Program, &str); 2] = [
        (
            Program::Nginx,
            include_str!("../../../docs/coming-from-nginx.md"),
        ),
        (
            Program::Haproxy,
            include_str!("../../../docs/coming-from-haproxy.md"),
        ),
    ];

    /// The words of the first column of a document's tables, each with its whole row.
    fn rows(document: &str) -> Vec<(&str, &str)> {
        let rows = document.lines().filter(|line| line.starts_with("| `"));
        rows.flat_map(|row| {
            let first = row.split(" | ").next().unwrap_or_default();
            // What stands between the first and the second backtick, the third and the fourth, ...
            let spans = first.split('`').skip(1).step_by(2);
            let words = spans.flat_map(|span| span.split(['/', ' ', '=']));
            words.map(move |word| (word, row))
        })
        .collect()
    }

    #[test]
    fn words_are_sorted_and_lead_to_keys() {
        assert!(WORDS.is_sorted_by(|a, b| a.word < b.word));
        for foreign in WORDS {
            for (key, table) in foreign.keys {
                assert!(table.contains(key), "{}: {key}", foreign.word);
            }
        }
    }

    #[test]
    fn every_word_is_in_its_document_with_its_keys() {
        for (program, document) in DOCUMENTS {
            let rows = rows(document);
            let of_program = |f: &&Foreign| f.program == program || f.program == Program::Both;
            for foreign in WORDS.iter().filter(of_program) {
                let found: String = rows
                    .iter()
                    .filter(|(word, _)| *word == foreign.word)
                    .map(|(_, row)| *row)
                    .collect();
                assert!(!found.is_empty(), "{program:?} {}: no row", foreign.word);
                for (key, _) in foreign.keys {
                    assert!(found.contains(key), "{} -> {key}: {found}", foreign.word);
                }
            }
        }
    }

    #[test]
    fn every_directive_of_the_documents_is_known() {
        let known: BTreeSet<&str> = WORDS.iter().map(|foreign| foreign.word).collect();
        let is_key = |word: &str| super::super::ALL.iter().any(|keys| keys.contains(word));
        let mut unknown = BTreeSet::new();
        for (_, document) in DOCUMENTS {
            let rows = document.lines().filter(|line| line.starts_with("| `"));
            for row in rows {
                let first = row.split(" | ").next().unwrap_or_default();
                // Variables and fields of their logs are no words of a configuration.
                let spans = first.split('`').skip(1).step_by(2);
                for span in spans.filter(|span| !span.starts_with(['$', '%'])) {
                    let mut words = span.split([' ', '/']).filter(|word| *word != "...");
                    let word = words.next().unwrap_or_default();
                    let context = [
                        "server", "bind", "listen", "option", "set", "nginx", "haproxy",
                    ];
                    let found = known.contains(word) || is_key(word) || context.contains(&word);
                    if !found {
                        unknown.insert(word);
                    }
                }
            }
        }
        assert!(unknown.is_empty(), "{unknown:?}");
    }

    #[test]
    fn hints_name_the_key_and_its_table() {
        for (word, part) in [
            ("listen", "write `bind` of [listeners.NAME]"),
            ("proxy_pass", "`upstream` of [listeners.NAME]"),
            ("proxy_timeout", "`idle_timeout` of [listeners.NAME]"),
            ("max_conns", "`max_connections` of a backend"),
            ("frontend", "write a section [listeners.NAME]"),
            (
                "pgsql-check",
                "`kind` of [upstreams.NAME.check]: \"postgres\"",
            ),
            ("ssl_preread", "of nginx has no counterpart"),
        ] {
            let hint = advice(word).expect("a hint");
            assert!(hint.contains(part), "{hint}");
        }
        assert_eq!(advice("colour"), None);
    }
}
