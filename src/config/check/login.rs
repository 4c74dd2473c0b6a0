//! What the kinds that log in have in common: password, replication and lag.

use std::time::Duration;

use crate::{
    config::{
        check::{bytes::report_both, path::read_absolute},
        keys::row::Rule,
        section::{Section, Text},
        text::report::Fault,
    },
    plan::{PasswordFrom, Role},
};

pub(crate) fn read_password(section: &Section<'_>) -> Option<PasswordFrom> {
    report_both(section, &["password_file", "password_env"]);
    let hint = "a file that holds the password alone, as in \"/etc/tembuku/redis.password\"";
    if let Some(path) = read_absolute(section, "password_file", hint) {
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

/// By default a replica must replicate where one is required.
pub(crate) fn read_replicating(section: &Section<'_>, role: Option<Role>) -> bool {
    let is_replica = role == Some(Role::Replica);
    section.flag("replicating", is_replica) && is_replica
}

pub(crate) fn read_max_lag(section: &Section<'_>) -> Option<Duration> {
    let rule = |lag| Rule::AboveZero.check(lag);
    section.optional_duration("max_lag", rule, "leave it out for no limit")
}
