//! The keys of kind = "postgres".

use crate::{
    config::{
        check::login::{read_max_lag, read_password, read_replicating},
        section::{Section, Text},
        text::{
            report::{Fault, fault},
            suggestions::shorten,
        },
    },
    plan::{Addr, CheckAt, CheckKind, LagLimit, Login, Target, Tls, Upstream},
};

pub(crate) fn read(section: &Section<'_>) -> CheckKind {
    let has_user = section.get("user").is_some();
    let logs_in = section.flag("login", has_user);
    if let Some(value) = section.get("login").filter(|_| logs_in && !has_user) {
        let fault = Fault::new("`login` = true needs a `user` to log in as").hint(
            "add `user`, or leave `login` out: then the check only looks whether the server \
             answers",
        );
        section.report.add(&value.span(), fault);
    }
    let database = || read_name(section, "database").unwrap_or_else(|| "postgres".to_owned());
    if !logs_in || !has_user {
        return CheckKind::Postgres {
            role: None,
            login: None,
            startup: has_user.then(|| {
                let user = read_name(section, "user").unwrap_or_default();
                (user, database())
            }),
            replicating: false,
            limit: LagLimit::default(),
        };
    }
    let role = section.word("role", None);
    CheckKind::Postgres {
        role,
        login: Some(Login {
            user: read_name(section, "user").unwrap_or_default(),
            password: read_password(section),
            database: database(),
        }),
        startup: None,
        replicating: read_replicating(section, role),
        limit: LagLimit {
            time: read_max_lag(section),
            bytes: section.size("max_lag_bytes"),
        },
    }
}

/// PostgreSQL offers TLS over TCP only.
pub(crate) fn check_tls(upstream: &Upstream, section: &Section<'_>) {
    let encrypted = upstream.check.as_ref().filter(|check| {
        matches!(check.kind, CheckKind::Postgres { .. }) && !matches!(check.tls, Tls::Off)
    });
    let (Some(check), Some(value)) = (encrypted, section.get("check")) else {
        return;
    };
    let fault = match &check.at {
        CheckAt::Addr(Addr::Unix(path)) => format!("`address` = \"unix:{}\"", path.display()),
        CheckAt::Addr(Addr::Tcp(_)) => return,
        CheckAt::Backend | CheckAt::Port(_) => {
            let unix = |target: &Target| matches!(target, Target::Addr(Addr::Unix(_)));
            match upstream.backends.iter().find(|b| unix(&b.target)) {
                Some(backend) => format!("the backend {:?}", backend.text),
                None => return,
            }
        }
    };
    let fault = fault!(
        "`tls` cannot be had from {fault}: PostgreSQL does not speak it over a unix socket"
    )
    .hint(
        "leave `tls` out: nothing that is sent there leaves the machine; or check over TCP with \
        `address`, as in \"10.0.0.1:5432\"",
    );
    section.report.add(&value.span(), fault);
}

fn read_name(section: &Section<'_>, key: &str) -> Option<String> {
    let Text { text, span } = section.text(key)?;
    if text.is_empty() || text.contains('\0') {
        let shown = shorten(&format!("{text:?}"));
        section.report.add(
            &span,
            fault!("`{key}` = {shown} is no name in a database").hint("as in \"tembuku\""),
        );
    }
    Some(text.to_owned())
}
