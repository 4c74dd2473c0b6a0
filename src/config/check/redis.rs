//! A check of kind `redis`.

use crate::{
    config::{
        check::login::{read_max_lag, read_password, read_replicating},
        section::{Section, Text},
        text::{report::fault, suggestions::shorten},
    },
    plan::{CheckKind, Role, Version},
};

pub(crate) fn read(section: &Section<'_>) -> CheckKind {
    let role = section.word("role", None);
    CheckKind::Redis {
        role,
        user: section.text("user").map(|user| user.text.to_owned()),
        password: read_password(section),
        replicating: read_replicating(section, role),
        max_lag: read_max_lag(section),
        min_version: read_version(section),
        // Readers are served by a server that refuses writes.
        require_writes: section.flag("require_writes", role == Some(Role::Primary)),
    }
}

fn read_version(section: &Section<'_>) -> Option<Version> {
    let Text { text, span } = section.text("min_version")?;
    let version = Version::read(text);
    if version.is_none() {
        let shown = shorten(&format!("{text:?}"));
        let fault =
            fault!("`min_version` = {shown} is no version").hint("as in \"7.0\" or \"7.0.15\"");
        section.report.add(&span, fault);
    }
    version
}
