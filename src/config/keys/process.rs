//! Keys of the file itself, and of `[process]`, `[admin]` and `[log]`.

use super::{
    applies::Applies::Always,
    row::{Form, Row, Rule, code, rows, value},
    scalar::Word,
};
use crate::{
    config::{
        text::quote::{quoted, quoted_list, time},
        value::access_log,
    },
    plan::{Admin, Handover, Log, LogFormat, LogLevel, Process, StartWait},
};

/// More is a mistake: no machine has the ports and the memory.
pub(crate) const MOST_CONNECTIONS: i128 = 1_000_000_000;

/// Of one configuration.
const MOST_NODES: i128 = 1000;

pub(crate) static ROOT: &[Row<()>] = rows! {
    "process" Form::Other("a section"), "", Always, code!(|_| None),
        "The process as a whole.";
    "admin" Form::Other("a section"), "", Always, code!(|_| None),
        "The HTTP server and the control socket. Without this section there are none.";
    "log" Form::Other("a section"), "", Always, code!(|_| None),
        "The log and the access log.";
    "defaults" Form::Other("a section"), "", Always, code!(|_| None),
        "Any key of a listener or an upstream may stand here; their own value wins.";
    "listeners" Form::Other("sections [listeners.NAME]"), "", Always, code!(|_| None),
        "Where clients arrive; at least one.";
    "upstreams" Form::Other("sections [upstreams.NAME]"), "", Always, code!(|_| None),
        "Groups of backends.";
};

pub(crate) static PROCESS: &[Row<Process>] = rows! {
    "workers" Form::Number(0, 1024), "0", Always, value!(workers),
        "Threads that carry traffic; 0 = one for each CPU that the process may use.";
    "max_connections" Form::Number(0, MOST_CONNECTIONS), "0", Always, value!(max_connections),
        "Sessions over all TCP listeners; 0 = what RLIMIT_NOFILE allows.";
    "max_flows" Form::Number(0, MOST_CONNECTIONS), "0", Always, value!(max_flows),
        "Flows over all UDP listeners; 0 = what half of RLIMIT_NOFILE and the range of local ports \
         allow.";
    "start_wait" Form::Other("\"auto\" or a duration"), "auto", Always,
        code!(|process| Some(match process.start_wait {
            StartWait::Auto => quoted("auto"),
            StartWait::AtMost(limit) => time(limit),
        })),
        "A listener accepts once its upstream has first verdicts, at most this late; \"auto\" = \
         the timeout of the check.";
    "drain_delay" Form::Duration(Rule::Any), "0s", Always, value!(drain_delay),
        "At a stop /readyz, /readyz/node and `ready_file` first say no, and clients are accepted \
         for so long still.";
    "drain_quiet" Form::Duration(Rule::Any), "0s", Always, value!(drain_quiet),
        "`drain_delay` ends early when no client has come for so long; \"0s\" = it does not.";
    "drain_timeout" Form::Duration(Rule::Any), "30s", Always, value!(drain_timeout),
        "How long sessions may continue after that.";
    "ready_file" Form::Other("a path"), "", Always,
        code!(ready_file, |process| Some(quoted(&match &process.ready_file {
            Some(path) => path.to_string_lossy(),
            None => "".into(),
        }))),
        "A file that holds 0 while this node should get clients, and 1 otherwise, for `track_file` \
         of keepalived; \"\" = none.";
    "reload_on_change" Form::Flag, "false", Always, value!(reload_on_change),
        "Reload when this file, or a file that it names, has other contents.";
    "handover" Form::Word(Handover::words), "sessions", Always, value!(handover),
        "What `tembuku upgrade` hands over beside listeners and state; \"listeners\" = the old \
         process drains its sessions.";
    "nodes" Form::Number(1, MOST_NODES), "1", Always, value!(nodes),
        "So many nodes with this configuration share the limits of listeners and of backends, and \
         each has its part, rounded up: `max_connections`, `connection_rate`, `bandwidth_total`.";
};

pub(crate) static ADMIN: &[Row<Admin>] = rows! {
    "listen" Form::Other("an address"), "127.0.0.1:9900", Always,
        code!(|admin| admin.listen.map(|listen| quoted(&listen.to_string()))),
        "HTTP, read only: / /metrics /livez /readyz /api/v1/status /api/v1/events. With `socket` \
         alone there is no port.";
    "socket" Form::Other("a path"), "", Always,
        code!(|admin| admin.socket.as_ref().map(|path| quoted(&path.to_string_lossy()))),
        "The path of a unix socket, mode 0600: the same, and control.";
    "hosts" Form::Other("a list of names"), "[]", Always,
        code!(|admin| admin.listen.map(|_| quoted_list(&admin.hosts))),
        "Host names by which clients may call `listen`, besides IP addresses and localhost, as in \
         [\"lb1.example.com\"].";
};

pub(crate) static LOG: &[Row<Log>] = rows! {
    "level" Form::Word(LogLevel::words), "info", Always, value!(level),
        "The least level that is logged.";
    "format" Form::Word(LogFormat::words), "auto", Always, value!(format),
        "\"auto\" = text on a terminal, JSON otherwise.";
    "access" Form::Other("\"off\", \"stdout\" or a path"), "off", Always,
        code!(|log| Some(quoted(&access_log::format(&log.access)))),
        "Where sessions are logged, unless their listener has an `access_log`; a FIFO needs a \
         reader at the start.";
};
