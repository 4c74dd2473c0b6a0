//! Name and help text of every metric but the `process_*` family, by kind.

pub(super) const COUNTERS: &[(&str, &str)] = &[
    (
        "listener_connections_total",
        "Connections accepted, or flows begun.",
    ),
    (
        "listener_rejected_total",
        "Connections and flows turned away before a backend was looked for, by reason.",
    ),
    (
        "listener_received_bytes_total",
        "Bytes received from clients.",
    ),
    ("listener_sent_bytes_total", "Bytes sent to clients."),
    (
        "listener_received_datagrams_total",
        "Datagrams received from clients.",
    ),
    (
        "listener_sent_datagrams_total",
        "Datagrams sent to clients.",
    ),
    (
        "listener_dropped_datagrams_total",
        "Datagrams of clients and backends that were not passed on, by reason.",
    ),
    ("sessions_closed_total", "Sessions that ended, by reason."),
    (
        "backend_connections_total",
        "Connections established to the backend, and flows that were given to it.",
    ),
    (
        "backend_connect_errors_total",
        "Connects to the backend that failed, by reason; of flows, refusals by the network and replies that did not come.",
    ),
    (
        "backend_retries_total",
        "Connects tried here because another backend had failed, and flows that left another one.",
    ),
    (
        "backend_received_bytes_total",
        "Bytes received from the backend.",
    ),
    ("backend_sent_bytes_total", "Bytes sent to the backend."),
    (
        "backend_transitions_total",
        "Changes of the backend's state, by the state entered.",
    ),
    ("check_results_total", "Checks of the backend, by result."),
    (
        "relayed_bytes_total",
        "Bytes of connections relayed in both directions, by mode.",
    ),
    (
        "splice_fallbacks_total",
        "Times that bulk data was copied because it could not be spliced, by reason.",
    ),
    (
        "access_log_dropped_total",
        "Access log records dropped because the writer could not keep up.",
    ),
    (
        "accept_errors_total",
        "Accepts that failed for want of descriptors or memory, and calls for datagrams that failed.",
    ),
];

pub(super) const GAUGES: &[(&str, &str)] = &[
    ("build_info", "Always 1; the label tells the version."),
    (
        "config_last_reload_successful",
        "Whether the last configuration that was read could be applied.",
    ),
    (
        "config_last_reload_success_timestamp_seconds",
        "When a configuration was last applied.",
    ),
    ("listener_active_connections", "Sessions that live now."),
    (
        "backend_active_connections",
        "Sessions on the backend now, those being connected included.",
    ),
    (
        "backend_state",
        "1 for the state that the backend is in, 0 for the others.",
    ),
    (
        "backend_role",
        "1 for the role that the last answer told, 0 for the others.",
    ),
    (
        "backend_replication_lag_seconds",
        "How old what the replica has is, by its last answer; NaN while it does not tell.",
    ),
    (
        "backend_replication_lag_bytes",
        "How much the replica has received and not replayed, by its last answer; NaN while it does not tell.",
    ),
    ("backend_weight", "The configured weight."),
    (
        "upstream_available_backends",
        "Backends that could take a new session now.",
    ),
    (
        "upstream_primaries",
        "Backends that say that they are the primary, where there is to be one.",
    ),
    (
        "upstream_serves_anyway",
        "Whether all backends are used whatever their checks say.",
    ),
];

pub(super) const HISTOGRAMS: &[(&str, &str)] = &[
    ("session_duration_seconds", "How long sessions lived."),
    (
        "first_byte_duration_seconds",
        "From the start of the connect, or of the flow, to the backend's first byte.",
    ),
    (
        "backend_connect_duration_seconds",
        "How long successful connects to the backend took.",
    ),
    (
        "check_duration_seconds",
        "How long checks of the backend took, those that failed included.",
    ),
    (
        "upstream_doubt_duration_seconds",
        "From the first sign that a backend was not to be used to the verdict.",
    ),
    (
        "upstream_leave_duration_seconds",
        "From the verdict, or wish, that a backend is not to be used until its last session was over.",
    ),
    (
        "upstream_resume_duration_seconds",
        "From the verdict, or wish, that a backend is not to be used until another one had taken a session.",
    ),
];
