//! Sources that speak the protocol of Redis: `redis` and `sentinel`.

use super::{optional, required};
use crate::{
    config::{
        check::{read_password, read_tls},
        keys::applies::NoEffect,
        section::{Section, Text},
        value::address,
    },
    plan::{DiscoverSource, RedisLogin, ServerAddress, Want},
};

pub(super) fn read_redis(section: &Section<'_>) -> Option<DiscoverSource> {
    if section.get("server").is_none() {
        section.missing("server", "the Redis server, as in \"10.0.0.1:6379\"");
    }
    let server = section
        .text("server")
        .and_then(|text| read_server(&text, section));
    let key = required(
        section,
        "key",
        "the key with the backends, as in \"servers\"",
    );
    let login = read_login(section);
    Some(DiscoverSource::Redis {
        server: server?,
        key: key?,
        login,
    })
}

pub(super) fn read_sentinel(section: &Section<'_>) -> Option<DiscoverSource> {
    if section.get("sentinels").is_none() {
        section.missing(
            "sentinels",
            "as in [\"10.0.0.1:26379\", \"10.0.0.2:26379\"]",
        );
    }
    let texts = section.texts("sentinels").unwrap_or_default();
    let read = |text: &Text<'_>| read_server(text, section);
    let sentinels: Vec<ServerAddress> = texts.iter().filter_map(read).collect();
    let master = required(
        section,
        "master",
        "as in `sentinel monitor NAME`: master = \"mymaster\"",
    );
    let want = section.word("want", Want::Primary);
    let login = read_login(section);
    Some(DiscoverSource::Sentinel {
        sentinels: Some(sentinels).filter(|all| !all.is_empty())?,
        master: master?,
        want,
        login,
    })
}

fn read_login(section: &Section<'_>) -> RedisLogin {
    let login = RedisLogin {
        user: optional(section, "user"),
        password: read_password(section),
        tls: read_tls(section),
    };
    if login.user.is_some() && login.password.is_none() {
        let found = NoEffect::always(
            "without a password",
            "add `password_file` or `password_env`, or leave it out",
        );
        section.report_no_effect("user", &found);
    }
    login
}

fn read_server(text: &Text<'_>, section: &Section<'_>) -> Option<ServerAddress> {
    match address::target(text.text) {
        Ok(target) => Some(ServerAddress {
            text: text.text.to_owned(),
            target,
        }),
        Err(fault) => {
            section.report.add(&text.span, fault);
            None
        }
    }
}
