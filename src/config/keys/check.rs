//! Keys of [upstreams.NAME.check], by the kinds that they are for.

use std::time::Duration;

use super::{
    applies::Applies::{Always, Database, Lag, Login, Primary, Replicating, TlsVerify, User},
    row::{Form, Row, Rule, code, rows, value, when},
    scalar::Word,
    words::{Start, TlsMode},
};
use crate::{
    config::{
        text::quote::{quoted, quoted_list, time},
        value::size,
    },
    plan::{
        Check, CheckAt, CheckKind, CheckProtocol, Expect, KindInfo, PasswordFrom, RecordType, Role,
        StartTls, Tls,
    },
};

/// Oftener is an attack.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);
pub(crate) const INTERVAL: Rule = Rule::AtLeast(SHORTEST_INTERVAL);

/// The keys of this kind alone and those that it shares with others; those of all kinds are in
/// [`CHECK`].
pub(crate) fn rows_of(info: &KindInfo) -> impl Iterator<Item = &'static Row<Check>> {
    let own: &[Row<Check>] = match info.kind {
        CheckProtocol::Tcp | CheckProtocol::Mysql => &[],
        CheckProtocol::SendExpect => SEND_EXPECT,
        CheckProtocol::Http => HTTP,
        CheckProtocol::Redis => REDIS,
        CheckProtocol::Postgres => POSTGRES,
        CheckProtocol::Dns => DNS,
    };
    let tls = if info.tls == StartTls::Never {
        &[]
    } else {
        TLS
    };
    let login = if info.logs_in { LOGIN } else { &[] };
    [tls, login, own].into_iter().flatten()
}

pub(crate) static CHECK: &[Row<Check>] = rows! {
    "kind" Form::Word(kinds), "", Always, code!(|check| Some(quoted(check.kind.info().name))),
        "How a backend is checked.";
    "interval" Form::Duration(INTERVAL), "2s", Always, value!(interval),
        "From one check of a backend to the next; up to a tenth less, by chance.";
    "fast_interval" Form::Other("a duration"), "", Always,
        code!(|check| Some(time(check.fast_interval))),
        "The same while the verdict is changing, or while no backend is up; the default is a \
         quarter of `interval`, but at least 100ms.";
    "timeout" Form::Duration(Rule::AboveZero), "1s", Always, value!(timeout),
        "For the whole of a check.";
    "rise" Form::Number(1, 1000), "2", Always, value!(rise),
        "So many good answers in a row and it is up.";
    "fall" Form::Number(1, 1000), "3", Always, value!(fall),
        "So many failures in a row and it is down; for a change of role one answer is enough.";
    "start" Form::Word(Start::words), "", Always,
        code!(|check| Some(quoted(if check.start_up { "up" } else { "down" }))),
        "What counts before the first check, which then decides alone; the default is \"down\" \
         where a role is asked for, and otherwise \"up\".";
    "stale_after" Form::Other("a duration"), "", Primary,
        code!(|check| Some(time(check.stale_after.unwrap_or_default()))),
        "Without a certain answer for so long a primary takes nothing new, whatever the reason; \
         \"0s\" = never. The default is 3 times `interval` and `timeout`, but at least 30s.";
    "port" Form::Number(1, 65_535), "", Always,
        code!(|check| match &check.at {
            CheckAt::Port(port) => Some(port.to_string()),
            CheckAt::Backend | CheckAt::Addr(_) => None,
        }),
        "Check the host of the backend at another port.";
    "address" Form::Other("an address"), "", Always,
        code!(|check| match &check.at {
            CheckAt::Addr(addr) => Some(quoted(&addr.to_string())),
            CheckAt::Backend | CheckAt::Port(_) => None,
        }),
        "Check there, whichever backend it is: \"IP:PORT\" or \"unix:/path\".";
};

pub(crate) static TLS: &[Row<Check>] = rows! {
    "tls" Form::Word(TlsMode::words), "off", Always,
        code!(|check| Some(quoted(match check.tls {
            Tls::Off => "off",
            Tls::Require => "require",
            Tls::Verify { .. } => "verify",
        }))),
        "\"require\": any certificate will do; \"verify\": it is verified.";
    "tls_ca" Form::Other("an absolute path"), "", TlsVerify,
        code!(|check| match &check.tls {
            Tls::Verify { ca: Some(path), .. } => Some(quoted(&path.to_string_lossy())),
            _ => None,
        }),
        "The certificates that are trusted, in PEM; left out: those of the system.";
    "tls_name" Form::Other("a name or an address"), "", TlsVerify,
        code!(|check| match &check.tls {
            Tls::Verify { name: Some(name), .. } => Some(quoted(name)),
            _ => None,
        }),
        "What the certificate must name; left out: the backend's host or address.";
};

pub(crate) static LOGIN: &[Row<Check>] = rows! {
    "role" Form::Word(<Option<Role>>::words), "any", Login,
        code!(|check| Some(quoted(check.kind.role().word()))),
        "The role that a server must have to be used. MySQL: one with read_only, super_read_only \
         or innodb_read_only is a replica.";
    "replicating" Form::Flag, "", Replicating,
        code!(|check| Some(check.kind.requires_replication().to_string())),
        "Whether a replica must replicate, and have finished its first sync; false: it may serve \
         whatever it has. The default is true. MySQL: the account needs REPLICATION CLIENT \
         (MariaDB: REPLICA MONITOR), as for `max_lag`.";
    "role_fallback" Form::Flag, "false", Replicating, value!(role_fallback),
        "Use the primary while no replica is up. When one is up again, `on_recover` decides about \
         the sessions that are on the primary.";
    "user" Form::Other("a name"), "", User, code!(|check| user(&check.kind).map(quoted)),
        "As which user the check logs in. Redis: no default, for an ACL; MySQL: always needed.";
    "password_file" Form::Other("an absolute path"), "", Login,
        code!(|check| match check.kind.password() {
            Some(PasswordFrom::File(path)) => Some(quoted(&path.to_string_lossy())),
            Some(PasswordFrom::Variable(_)) | None => None,
        }),
        "A file that holds the password alone.";
    "password_env" Form::Other("a name"), "", Login,
        code!(|check| match check.kind.password() {
            Some(PasswordFrom::Variable(name)) => Some(quoted(name)),
            Some(PasswordFrom::File(_)) | None => None,
        }),
        "The name of the environment variable that holds the password, instead of a file.";
    "max_lag" Form::Other("a duration"), "", Lag,
        code!(|check| check.kind.lag_limit().time.map(time)),
        "How far a replica may be behind. Redis: since it last heard from its primary, which is up \
         to repl-ping-replica-period (10 seconds) where nothing is written. PostgreSQL: the age of \
         its last transaction, while it has more to replay or receives nothing.";
};

pub(crate) static SEND_EXPECT: &[Row<Check>] = rows! {
    "send" Form::Other("text"), "", Always, code!(|check| as_text(sent(check)?)),
        "What is sent; left out: nothing.";
    "send_hex" Form::Other("hexadecimal digits"), "", Always, code!(|check| as_hex(sent(check)?)),
        "The same in hexadecimal digits.";
    "expect" Form::Other("text"), "", Always, code!(|check| as_text(expected(check)?)),
        "What must come back, anywhere in the first 16k.";
    "expect_hex" Form::Other("hexadecimal digits"), "", Always,
        code!(|check| as_hex(expected(check)?)),
        "The same in hexadecimal digits.";
    "expect_regex" Form::Other("a regular expression"), "", Always,
        when!(kind, CheckKind::SendExpect { expect: Expect::Regex(regex), .. } =>
            Some(quoted(regex))),
        "The same as a regular expression over bytes; (?-u) for those that are no UTF-8.";
};

pub(crate) static HTTP: &[Row<Check>] = rows! {
    "path" Form::Other("a path of a URL"), "/", Always,
        when!(kind, CheckKind::Http { path, .. } => Some(quoted(path))),
        "Requested with GET, HTTP/1.1. Patroni: port = 8008, path = \"/primary\".";
    "host" Form::Other("a host"), "", Always,
        when!(kind, CheckKind::Http { host, .. } => host.as_deref().map(quoted)),
        "The Host header; left out: the address that is checked.";
    "status" Form::Other("a status, a range, or a list of them"), "200-299", Always,
        when!(kind, CheckKind::Http { status, .. } =>
            Some(quoted_list(status.iter().map(status_text)))),
        "What is good: \"200\", \"200-299\", or a list of such.";
};

pub(crate) static REDIS: &[Row<Check>] = rows! {
    "min_version" Form::Other("a version"), "", Always,
        when!(kind, CheckKind::Redis { min_version, .. } =>
            min_version.map(|v| quoted(&v.to_string()))),
        "The least redis_version of INFO, as in \"7.0\"; also with Valkey and KeyDB.";
    "require_writes" Form::Flag, "", Always,
        when!(kind, CheckKind::Redis { require_writes, .. } => Some(require_writes.to_string())),
        "Whether a server that answers MISCONF or BUSY to PING is down, since it refuses writes; \
         the default is true with role = \"primary\", false otherwise: readers are served.";
};

pub(crate) static POSTGRES: &[Row<Check>] = rows! {
    "login" Form::Flag, "", Always,
        when!(kind, CheckKind::Postgres { login, .. } => Some(login.is_some().to_string())),
        "false: any answer to a startup message that asks for a password is good, and so is being \
         let in; no password is needed. The default is true where there is a `user`.";
    "database" Form::Other("a name"), "postgres", Database,
        when!(kind,
            CheckKind::Postgres { login: Some(login), .. } => Some(quoted(&login.database)),
            CheckKind::Postgres { startup, .. } => startup.as_ref().map(|(_, name)| quoted(name))
        ),
        "Any one that the user may connect to.";
    "max_lag_bytes" Form::Size, "", Lag,
        code!(|check| check.kind.lag_limit().bytes.map(|most| quoted(&size::format(most)))),
        "How much of what it has received a replica may have still to replay. Only the primary \
         knows what it has not sent yet. An unknown lag is over the limit.";
};

pub(crate) static DNS: &[Row<Check>] = rows! {
    "query" Form::Other("a name"), ".", Always,
        when!(kind, CheckKind::Dns { query, .. } => Some(quoted(query))),
        "The name that is asked for. A server for its own zones alone refuses the default: name \
         one of those, or let `rcode` be [\"NOERROR\", \"REFUSED\"].";
    "query_type" Form::Word(query_types), "", Always,
        when!(kind, CheckKind::Dns { query_type, .. } => Some(quoted(query_type.word()))),
        "The default is NS for \".\" and A for other names.";
    "rcode" Form::Other("a code, or a list of them"), "NOERROR", Always,
        when!(kind, CheckKind::Dns { rcode, .. } =>
            Some(quoted_list(rcode.iter().map(|code| code.word())))),
        "What is good: NOERROR, NXDOMAIN, REFUSED, SERVFAIL, FORMERR, NOTIMP.";
};

pub(crate) fn kinds() -> Vec<&'static str> {
    CheckProtocol::ALL
        .iter()
        .map(|kind| kind.info().name)
        .collect()
}

pub(crate) fn query_types() -> Vec<&'static str> {
    RecordType::ALL.iter().map(|kind| kind.word()).collect()
}

fn user(kind: &CheckKind) -> Option<&str> {
    match kind {
        CheckKind::Redis { user, .. } => user.as_deref(),
        CheckKind::Postgres {
            login: Some(login), ..
        } => Some(&login.user),
        CheckKind::Postgres { startup, .. } => startup.as_ref().map(|(user, _)| user.as_str()),
        CheckKind::Mysql { user, .. } => Some(user),
        _ => None,
    }
}

fn sent(check: &Check) -> Option<&[u8]> {
    match &check.kind {
        CheckKind::SendExpect { send, .. } if !send.is_empty() => Some(send),
        _ => None,
    }
}

fn expected(check: &Check) -> Option<&[u8]> {
    match &check.kind {
        CheckKind::SendExpect {
            expect: Expect::Bytes(bytes),
            ..
        } => Some(bytes),
        _ => None,
    }
}

fn as_text(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).ok().map(quoted)
}

/// Where it is no text.
fn as_hex(bytes: &[u8]) -> Option<String> {
    let digits = || {
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    std::str::from_utf8(bytes)
        .is_err()
        .then(|| quoted(&digits()))
}

fn status_text((first, last): &(u16, u16)) -> String {
    match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    }
}
