//! A check of kind `mysql`.

use crate::{
    config::{
        check::login::{read_max_lag, read_password, read_replicating},
        section::{Section, Text},
        text::report::Fault,
    },
    plan::CheckKind,
};

pub(crate) fn read(section: &Section<'_>) -> CheckKind {
    let role = section.word("role", None);
    CheckKind::Mysql {
        role,
        user: read_user(section),
        password: read_password(section),
        replicating: read_replicating(section, role),
        max_lag: read_max_lag(section),
    }
}

fn read_user(section: &Section<'_>) -> String {
    let Some(Text { text, span }) = section.text("user") else {
        if section.get("user").is_none() {
            section.missing(
                "user",
                "a server blocks addresses whose connections end before a login, and those of all \
                 clients with them; make an account without privileges: CREATE USER 'check'@'%' \
                 IDENTIFIED BY '...'",
            );
        }
        return String::new();
    };
    if text.is_empty() || text.contains('\0') {
        section.report.add(
            &span,
            Fault::new("`user` is no name of an account").hint(
                "the name alone, as in \"check\", and the password in `password_file` or \
                    `password_env`",
            ),
        );
    }
    text.to_owned()
}
