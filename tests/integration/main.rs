//! Tests against real clients and servers, all in one program: it links once, and one run numbers
//! its own ports.
//!
//! A file here is a subject; its name is the filter: `tests/run redis`, `tests/run transfer::`.
//!
//! - `TEMBUKU_TEST_SEED` repeats the random choices of a run, which every test that has some
//!   prints.
//! - `TEMBUKU_TEST_SESSIONS` sets the number of sessions of the transfer test,
//!   `TEMBUKU_TEST_RELOADS` that of reloads under load.
//! - `TEMBUKU_TEST_SCREENSHOTS` names the folder for pictures of the status page.
//! - `TEMBUKU_TEST_BINARY` tests another build of the program than the one beside these tests.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_possible_wrap,
    reason = "a test may end by a panic, and speaks through the test runner"
)]

mod harness;

mod admin;
mod admin_host;
mod admin_state;
mod bandwidth;
mod blackhole;
mod bulk;
mod check;
mod checks_auth;
mod checks_dns;
mod checks_kinds;
mod checks_mysql;
mod checks_mysql_logins;
mod checks_one_server;
mod checks_panic;
mod checks_postgres;
mod checks_postgres_roles;
mod checks_primaries;
mod checks_redis;
mod checks_refused_writes;
mod checks_replicating;
mod checks_sentinel;
mod checks_sessions;
mod checks_tls;
mod commands;
mod connection_rates;
mod control;
mod dead_host;
mod demo;
mod descriptors;
mod discover;
mod discover_changes;
mod discover_etcd;
mod discover_failures;
mod discover_hostile;
mod discover_http;
mod discover_redis;
mod discover_registries;
mod discover_sentinel;
mod discover_srv;
mod events;
mod events_nginx;
mod every_policy;
mod explain;
mod fail_on_reset;
mod failover;
mod freebind;
mod half_close;
mod hanging_files;
mod harness_itself;
mod hash_nginx;
mod history;
mod import_haproxy;
mod import_nginx;
mod interfaces;
mod ip_hash_nginx;
mod journal;
mod keepalive;
mod killed;
mod licences;
mod limits;
mod listener_moves;
mod listeners;
mod maintenance;
mod memory;
mod node;
mod node_drain;
mod nodes;
mod notices;
mod on_removed;
mod passed_sockets;
mod policies;
mod policy_identity;
mod postgres;
mod prometheus;
mod proxy_accept;
mod proxy_programs;
mod proxy_refused;
mod proxy_send;
mod proxy_untrusted;
mod queue;
mod queue_beside;
mod recipes;
mod redis;
mod refusals;
mod refused_calls;
mod relay_edges;
mod relay_many;
mod relay_turns;
mod reload;
mod reload_load;
mod resolve;
mod resolve_slow;
mod role_fallback;
mod schema;
mod scrape;
mod service_manager;
mod sessions;
mod shared_upstream;
mod shares;
mod shutdown;
mod source_limits;
mod start_wait;
mod status_page;
mod successor;
mod switch_over;
mod systemd_unit;
mod terminate;
mod top;
mod transfer;
mod turns;
mod two_nodes;
mod udp_dns;
mod udp_drain;
mod udp_errors;
mod udp_expiry;
mod udp_flood;
mod udp_flows;
mod udp_health;
mod udp_intake;
mod udp_limits;
mod udp_own_address;
mod udp_proxy_accept;
mod udp_proxy_send;
mod udp_real;
mod udp_relay;
mod udp_reply_source;
mod udp_requests_nginx;
mod udp_wait;
mod unix_rights;
mod upgrade;
mod upgrade_udp;
mod weights;
