//! The kinds of checks, and the keys of each.

use std::path::PathBuf;

use crate::{
    config::{
        check::{
            bytes::{one_of, quarrel, read_expect},
            dns, mysql, postgres,
        },
        section::{Section, Text, Words},
        text::{
            report::Fault,
            suggestions::{list, shorten},
        },
    },
    plan::{CheckKind, PasswordFrom, Role, Version},
};

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Tcp,
    SendExpect,
    Http,
    Redis,
    Postgres,
    Mysql,
    Dns,
}

const KINDS: &Words<Kind> = &[
    ("tcp", Some(Kind::Tcp)),
    ("send_expect", Some(Kind::SendExpect)),
    ("http", Some(Kind::Http)),
    ("redis", Some(Kind::Redis)),
    ("postgres", Some(Kind::Postgres)),
    ("mysql", Some(Kind::Mysql)),
    ("dns", Some(Kind::Dns)),
];

const LOGINS: &[Kind] = &[Kind::Redis, Kind::Postgres, Kind::Mysql];
const ENCRYPTED: &[Kind] = &[Kind::Http, Kind::Redis, Kind::Postgres, Kind::Mysql];

/// Keys that mean something to some kinds only.
const OWNERS: &[(&str, &[Kind])] = &[
    ("send", &[Kind::SendExpect]),
    ("send_hex", &[Kind::SendExpect]),
    ("expect", &[Kind::SendExpect]),
    ("expect_hex", &[Kind::SendExpect]),
    ("expect_regex", &[Kind::SendExpect]),
    ("path", &[Kind::Http]),
    ("host", &[Kind::Http]),
    ("status", &[Kind::Http]),
    ("role", LOGINS),
    ("replicating", LOGINS),
    ("user", LOGINS),
    ("password_file", LOGINS),
    ("password_env", LOGINS),
    ("database", &[Kind::Postgres]),
    ("login", &[Kind::Postgres]),
    ("max_lag", LOGINS),
    ("max_lag_bytes", &[Kind::Postgres]),
    ("min_version", &[Kind::Redis]),
    ("require_writes", &[Kind::Redis]),
    ("query", &[Kind::Dns]),
    ("query_type", &[Kind::Dns]),
    ("rcode", &[Kind::Dns]),
    ("tls", ENCRYPTED),
    ("tls_ca", ENCRYPTED),
    ("tls_name", ENCRYPTED),
];

pub(crate) const ROLES: &Words<Option<Role>> = &[
    ("any", Some(None)),
    ("primary", Some(Some(Role::Primary))),
    ("replica", Some(Some(Role::Replica))),
];

/// `None`: the kind is missing or not one that works, which has been reported.
pub(crate) fn read(section: &Section<'_>) -> Option<CheckKind> {
    if section.get("kind").is_none() {
        section.missing(
            "kind",
            &format!(
                "say what is asked: kind = \"tcp\"; there are {}",
                list(KINDS.iter().map(|(word, _)| *word))
            ),
        );
        return None;
    }
    let words = KINDS.iter().map(|(word, kind)| (*word, kind.map(Some)));
    let kind = section.word("kind", None, &words.collect::<Vec<_>>())?;
    for (key, owners) in OWNERS {
        if let Some(value) = section.get(key).filter(|_| !owners.contains(&kind)) {
            let owners = owners.iter().map(|owner| format!("{:?}", word(*owner)));
            section.report.add(
                &value.span(),
                Fault::new(format!("`{key}` does nothing with kind = {:?}", word(kind))).hint(
                    format!(
                        "it is for kind = {}; otherwise leave it out",
                        owners.collect::<Vec<_>>().join(" or ")
                    ),
                ),
            );
        }
    }
    Some(match kind {
        Kind::Tcp => CheckKind::Tcp,
        Kind::SendExpect => CheckKind::SendExpect {
            send: one_of(section, &["send", "send_hex"]).unwrap_or_default(),
            expect: read_expect(section),
        },
        Kind::Http => CheckKind::Http {
            path: read_path(section),
            host: read_host(section),
            status: read_status(section),
        },
        Kind::Redis => read_redis(section),
        Kind::Postgres => postgres::read(section),
        Kind::Mysql => mysql::read(section),
        Kind::Dns => dns::read(section),
    })
}

fn word(kind: Kind) -> &'static str {
    KINDS
        .iter()
        .find(|(_, k)| *k == Some(kind))
        .map_or("", |(word, _)| word)
}

fn read_path(section: &Section<'_>) -> String {
    let Some(Text { text, span }) = section.text("path") else {
        return "/".to_owned();
    };
    if !text.starts_with('/') || !text.bytes().all(|b| b.is_ascii_graphic()) {
        section.report.add(
            &span,
            Fault::new(format!(
                "`path` = {} is no path of a URL",
                shorten(&format!("{text:?}"))
            ))
            .hint("it begins with / and has no blanks: write %20 for one"),
        );
    }
    text.to_owned()
}

fn read_host(section: &Section<'_>) -> Option<String> {
    let Text { text, span } = section.text("host")?;
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
    if text.is_empty() || !text.bytes().all(allowed) {
        section.report.add(
            &span,
            Fault::new(format!("`host` = {} is no host", shorten(&format!("{text:?}"))))
                .hint("as in \"www.example.com\" or \"www.example.com:8080\"; left out, it is the address that is asked"),
        );
    }
    Some(text.to_owned())
}

/// One of "200" and "200-299", or a list of them.
fn read_status(section: &Section<'_>) -> Vec<(u16, u16)> {
    if section.get("status").is_none() {
        return vec![(200, 299)];
    }
    let code = |text: &str| {
        let digits = text.len() == 3 && text.bytes().all(|b| b.is_ascii_digit());
        text.parse()
            .ok()
            .filter(|code| digits && (100..=599).contains(code))
    };
    let mut ranges = Vec::new();
    for Text { text, span } in section.texts("status").unwrap_or_default() {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (code(first), code(last)) {
            (Some(first), Some(last)) if first <= last => ranges.push((first, last)),
            _ => section.report.add(
                &span,
                Fault::new(format!(
                    "`status` = {} is no status or range of them",
                    shorten(&format!("{text:?}"))
                ))
                .hint("as in \"200\", \"200-299\" or [\"200\", \"301-308\"], from 100 to 599"),
            ),
        }
    }
    ranges
}

/// A path that does not depend on where the process was started.
pub(crate) fn absolute(section: &Section<'_>, key: &str, hint: &str) -> Option<PathBuf> {
    let Text { text, span } = section.text(key)?;
    if !text.starts_with('/') || text.contains('\0') {
        let fault = Fault::new(format!("`{key}` must be an absolute path")).hint(hint);
        section.report.add(&span, fault);
    }
    Some(text.into())
}

pub(crate) fn read_password(section: &Section<'_>) -> Option<PasswordFrom> {
    quarrel(section, &["password_file", "password_env"]);
    let hint = "a file that holds the password alone, as in \"/etc/tembuku/redis.password\"";
    if let Some(path) = absolute(section, "password_file", hint) {
        Some(PasswordFrom::File(path))
    } else if let Some(Text { text, span }) = section.text("password_env") {
        if text.is_empty() || text.contains(['=', '\0']) {
            section.report.add(
                &span,
                Fault::new("`password_env` is no name of an environment variable")
                    .hint("the name alone, as in \"REDIS_PASSWORD\""),
            );
        }
        Some(PasswordFrom::Variable(text.to_owned()))
    } else {
        None
    }
}

fn read_redis(section: &Section<'_>) -> CheckKind {
    let password = read_password(section);
    let user = section.text("user");
    if let (Some(Text { span, .. }), None) = (&user, &password) {
        section.report.add(
            span,
            Fault::new("`user` does nothing without a password")
                .hint("add `password_file` or `password_env`, or leave it out"),
        );
    }
    let role = section.word("role", None, ROLES);
    CheckKind::Redis {
        role,
        user: user.map(|user| user.text.to_owned()),
        password,
        replicating: read_replicating(section, role),
        max_lag: postgres::read_max_lag(section, role),
        min_version: read_version(section),
        // Readers are served by one that refuses writes.
        require_writes: section.flag("require_writes", role == Some(Role::Primary)),
    }
}

/// Whether a replica must replicate: by default where one is asked for, and nowhere else.
pub(crate) fn read_replicating(section: &Section<'_>, role: Option<Role>) -> bool {
    let is_replica = role == Some(Role::Replica);
    // What is no role at all has been reported already.
    let is_known = role.is_some()
        || section
            .get("role")
            .is_none_or(|value| value.get_ref().as_str() == Some("any"));
    if is_known && !is_replica {
        section.useless(
            "replicating",
            "unless role = \"replica\"",
            "ask for role = \"replica\", or leave it out",
        );
    }
    section.flag("replicating", is_replica) && is_replica
}

fn read_version(section: &Section<'_>) -> Option<Version> {
    let Text { text, span } = section.text("min_version")?;
    let version = Version::read(text);
    if version.is_none() {
        let shown = shorten(&format!("{text:?}"));
        let fault = Fault::new(format!("`min_version` = {shown} is no version"))
            .hint("as in \"7.0\" or \"7.0.15\"");
        section.report.add(&span, fault);
    }
    version
}
