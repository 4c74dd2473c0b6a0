//! What becomes of each directive: one table for all of them.

/// What an import does with a directive of nginx.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// There is a key for it; the conversion has code for it.
    Carried,
    /// Nothing has to be written for it, for this reason.
    Harmless(&'static str),
    /// There is nothing for it, but what it does can be had in another way, which is this one.
    Differs(&'static str),
    /// There is nothing for it, for this reason.
    Unsupported(&'static str),
}

use super::super::document::{FIXED_FIELDS, RESOLVERS};
use Verdict::{Carried, Differs, Harmless, Unsupported};

/// The verdict on `name`; `None`: it is no directive of the stream module or around it.
pub(super) fn verdict(name: &str) -> Option<Verdict> {
    let matches = |pattern: &str| match pattern.strip_suffix('*') {
        Some(begin) => name.starts_with(begin),
        None => name == pattern,
    };
    // A name before the pattern that it also fits.
    let exact = VERDICTS.iter().find(|(pattern, _)| *pattern == name);
    exact
        .or_else(|| VERDICTS.iter().find(|(pattern, _)| matches(pattern)))
        .map(|(_, verdict)| *verdict)
}

const TLS: Verdict = Unsupported("TLS of sessions is not supported yet");
const SNI: Verdict = Unsupported("routing by server name (SNI) is not supported yet");
const SCRIPT: Verdict = Unsupported("there are no scripts");
const VARIABLE: Verdict = Unsupported("values that depend on the session select nothing here");
const HTTP: Verdict = Unsupported("layer 4 does not see requests of HTTP");
const PROCESS: Verdict = Harmless("a setting of nginx's own process");
const MEMORY: Verdict = Harmless("a size of nginx's own memory");

/// Every directive of nginx's stream module, and those around it. A `*` at the end stands for any
/// rest.
pub(super) static VERDICTS: &[(&str, Verdict)] = &[
    ("access_log", Carried),
    ("allow", Carried),
    ("daemon", PROCESS),
    ("debug_connection", PROCESS),
    ("default_type", Harmless("of HTTP")),
    ("deny", Carried),
    ("drain", Unsupported("use `tembuku drain`")),
    ("env", PROCESS),
    ("error_log", Carried),
    ("events", Harmless("its settings are nginx's own")),
    (
        "expect",
        Unsupported("write a section [upstreams.NAME.check]"),
    ),
    ("geo", VARIABLE),
    ("geoip*", Unsupported("there is no database of places")),
    ("google_perftools_profiles", PROCESS),
    ("hash", Carried),
    (
        "health_check",
        Unsupported("write a section [upstreams.NAME.check]"),
    ),
    (
        "health_check_timeout",
        Unsupported("write a section [upstreams.NAME.check]"),
    ),
    ("http", Harmless("not layer 4")),
    ("include", Carried),
    ("ip_hash", Carried),
    ("js_*", SCRIPT),
    ("lua_*", SCRIPT),
    ("balancer_by_lua*", SCRIPT),
    ("init_by_lua*", SCRIPT),
    ("init_worker_by_lua*", SCRIPT),
    ("preread_by_lua*", SCRIPT),
    ("content_by_lua*", SCRIPT),
    ("log_by_lua*", SCRIPT),
    (
        "keepalive*",
        Unsupported("each session has a connection of its own"),
    ),
    ("keyval*", VARIABLE),
    ("least_conn", Carried),
    ("least_time", Carried),
    ("limit_conn", Carried),
    ("limit_conn_dry_run", Carried),
    (
        "limit_conn_log_level",
        Harmless("refused sessions are counted"),
    ),
    ("limit_conn_zone", Carried),
    ("listen", Carried),
    ("load_module", PROCESS),
    ("location", HTTP),
    ("lock_file", PROCESS),
    ("log_format", Differs(FIXED_FIELDS)),
    ("mail", Unsupported("left out: nginx can go on serving it")),
    ("map", VARIABLE),
    ("map_hash_*", MEMORY),
    ("master_process", PROCESS),
    (
        "match",
        Unsupported("write a section [upstreams.NAME.check]"),
    ),
    ("mqtt*", Unsupported("MQTT is relayed as it is")),
    ("ntlm", Harmless("a session keeps its connection")),
    ("num_map*", VARIABLE),
    ("open_log_file_cache", Harmless("the log is opened once")),
    ("otel*", Unsupported("there is no tracing")),
    ("pass", Unsupported("there is no other module to pass to")),
    ("pcre_jit", PROCESS),
    ("pid", PROCESS),
    ("preread_buffer_size", MEMORY),
    ("preread_timeout", Harmless("nothing is read ahead")),
    (
        "proxy_bind",
        Unsupported(
            "backends see the address of tembuku; `send_proxy` tells them that of the client",
        ),
    ),
    ("proxy_buffer_size", MEMORY),
    ("proxy_connect_timeout", Carried),
    ("proxy_download_rate", Carried),
    ("proxy_downstream_buffer", MEMORY),
    ("proxy_half_close", Carried),
    ("proxy_next_upstream", Carried),
    (
        "proxy_next_upstream_timeout",
        Unsupported("the number of attempts is the limit"),
    ),
    ("proxy_next_upstream_tries", Carried),
    ("proxy_pass", Carried),
    ("proxy_protocol", Carried),
    ("proxy_protocol_timeout", Carried),
    ("proxy_requests", Carried),
    ("proxy_responses", Carried),
    (
        "proxy_session_drop",
        Unsupported("write on_down = \"close\" in the upstream"),
    ),
    ("proxy_socket_keepalive", Carried),
    ("proxy_ssl*", TLS),
    ("proxy_timeout", Carried),
    ("proxy_upload_rate", Carried),
    ("proxy_upstream_buffer", MEMORY),
    (
        "queue",
        Unsupported("set `queue_length` and `queue_timeout` of the upstream"),
    ),
    ("random", Carried),
    ("resolver", Differs(RESOLVERS)),
    (
        "resolver_timeout",
        Harmless("the system's resolver has its own"),
    ),
    ("return", Unsupported("a session needs a backend")),
    (
        "send",
        Unsupported("write a section [upstreams.NAME.check]"),
    ),
    ("server", Carried),
    ("server_name", SNI),
    ("server_names_hash_*", MEMORY),
    ("set", VARIABLE),
    ("set_real_ip_from", Carried),
    ("split_clients", VARIABLE),
    ("ssl_preread", SNI),
    ("ssl_*", TLS),
    ("ssl_engine", PROCESS),
    (
        "state",
        Unsupported("what an operator sets ends with the process"),
    ),
    ("status_zone", Harmless("every listener has metrics")),
    ("sticky*", HTTP),
    ("stream", Carried),
    ("tcp_nodelay", Carried),
    ("thread_pool", PROCESS),
    ("timer_resolution", PROCESS),
    ("upstream", Carried),
    ("user", Harmless("the service has a user of its own")),
    ("variables_hash_*", MEMORY),
    ("worker_aio_requests", PROCESS),
    (
        "worker_connections",
        Harmless("the limit of open files decides"),
    ),
    ("worker_cpu_affinity", PROCESS),
    ("worker_priority", PROCESS),
    ("worker_processes", Carried),
    (
        "worker_rlimit_*",
        Harmless("it is LimitNOFILE= of the service"),
    ),
    ("worker_shutdown_timeout", Carried),
    ("working_directory", PROCESS),
    ("zone", Harmless("all workers share their state")),
    ("zone_sync*", Unsupported("processes share no state")),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_directive_of_the_stream_module_has_a_verdict() {
        // From the alphabetical index of nginx's documentation, modules ngx_stream_*.
        const DIRECTIVES: &str = "access_log allow deny error_log geo geoip_city geoip_country \
            geoip_org hash health_check health_check_timeout include js_access js_fetch_timeout \
            js_filter js_import js_include js_path js_preload_object js_preread js_set \
            js_shared_dict_zone js_var keyval keyval_zone least_conn least_time limit_conn \
            limit_conn_dry_run limit_conn_log_level limit_conn_zone listen log_format map \
            map_hash_bucket_size map_hash_max_size match mqtt mqtt_buffers mqtt_preread \
            mqtt_rewrite_buffer_size mqtt_set_connect open_log_file_cache pass \
            preread_buffer_size preread_timeout proxy_bind proxy_buffer_size \
            proxy_connect_timeout proxy_download_rate proxy_half_close proxy_next_upstream \
            proxy_next_upstream_timeout proxy_next_upstream_tries proxy_pass proxy_protocol \
            proxy_protocol_timeout proxy_requests proxy_responses proxy_session_drop \
            proxy_socket_keepalive proxy_ssl proxy_ssl_alpn proxy_ssl_certificate \
            proxy_ssl_certificate_key proxy_ssl_ciphers proxy_ssl_conf_command proxy_ssl_crl \
            proxy_ssl_name proxy_ssl_password_file proxy_ssl_protocols proxy_ssl_server_name \
            proxy_ssl_session_reuse proxy_ssl_trusted_certificate proxy_ssl_verify \
            proxy_ssl_verify_depth proxy_timeout proxy_upload_rate random resolver \
            resolver_timeout return server server_name server_names_hash_bucket_size \
            server_names_hash_max_size set set_real_ip_from split_clients ssl_alpn \
            ssl_certificate ssl_certificate_key ssl_ciphers ssl_client_certificate \
            ssl_conf_command ssl_crl ssl_dhparam ssl_ecdh_curve ssl_handshake_timeout ssl_ocsp \
            ssl_password_file ssl_prefer_server_ciphers ssl_preread ssl_protocols \
            ssl_reject_handshake ssl_session_cache ssl_session_ticket_key ssl_session_tickets \
            ssl_session_timeout ssl_stapling ssl_trusted_certificate ssl_verify_client \
            ssl_verify_depth state status_zone stream tcp_nodelay upstream \
            variables_hash_bucket_size variables_hash_max_size zone zone_sync \
            zone_sync_buffers zone_sync_server";
        for name in DIRECTIVES.split_whitespace() {
            assert!(verdict(name).is_some(), "{name}");
        }
        assert_eq!(verdict("proxy_set_header"), None);
        assert_eq!(verdict("ssl_preread"), Some(SNI));
    }
}
