//! Checks: those of HAProxy's options, and the usual dialogues of `tcp-check`, as kinds.

use super::{
    super::document::{List, Section},
    Import,
    server::Server,
    syntax::{Block, Line, time},
};
use crate::config::text::quote::{key, quoted};

/// The section of the check of an upstream, whose first checked server is `server`.
pub(super) fn section(
    import: &mut Import<'_>,
    block: &Block,
    upstream: &str,
    server: &Server,
) -> Section {
    let option = ["redis", "pgsql", "mysql", "tcp"]
        .iter()
        .find_map(|name| block.last(&format!("option {name}-check")))
        .or_else(|| block.last("option httpchk"));
    let place = option.map_or(&server.place, |line| &line.place);
    let header = format!("[upstreams.{}.check]", key(upstream));
    let mut section = Section::new(header, place);
    let name = option.map_or("", |line| line.word(1));
    let option = option.filter(|_| !name.is_empty());
    match (name, option) {
        ("redis-check", _) => section.set("kind", quoted("redis"), place),
        ("pgsql-check", _) => {
            section.set("kind", quoted("postgres"), place);
            section.set("login", "false", place);
            let text = "`pgsql-check`: with `user` and `role = \"primary\"` it logs in and knows \
                        the role";
            import.note(List::Differs, place, text);
        }
        ("mysql-check", Some(line)) if line.word(2) == "user" => {
            section.set("kind", quoted("mysql"), place);
            section.set("user", quoted(line.word(3)), place);
            import.note(List::Differs, place, "`mysql-check`: a complete login");
        }
        ("httpchk", Some(line)) => http(import, &mut section, block, line),
        ("tcp-check", Some(line)) => dialogue(import, &mut section, block, line),
        ("mysql-check", Some(line)) => {
            import.differs(line, "without a `user` only the connection is checked");
            section.set("kind", quoted("tcp"), place);
        }
        _ => {
            for line in block.lines.iter().filter(|l| l.word(1) == "external-check") {
                import.lost(line, "only the connection is checked");
            }
            section.set("kind", quoted("tcp"), place);
        }
    }
    for (parameter, key) in [("inter", "interval"), ("fastinter", "fast_interval")] {
        if let Some(time) = server.get(parameter).and_then(time) {
            section.set(key, quoted(&time), &server.place);
        }
    }
    for name in ["rise", "fall", "port"] {
        if let Some(value) = server.get(name) {
            section.set(name, value, &server.place);
        }
    }
    if let Some(line) = block.last("timeout check")
        && let Some(time) = time(line.word(2))
    {
        section.set("timeout", quoted(&time), &line.place);
        import.carried(line);
    }
    if server.get("check-ssl").is_some() && ["httpchk", "redis-check"].contains(&name) {
        section.set("tls", quoted("require"), &server.place);
    }
    if server.get("downinter").is_some() {
        let text = "`downinter`: there is no other interval for a backend that is down";
        import.note(List::Differs, &server.place, text);
    }
    if let Some(address) = server.get("addr") {
        let text = format!("`addr {address}`: write `address` with a port in the check");
        import.note(List::Lost, &server.place, &text);
    }
    section
}

fn http(import: &mut Import<'_>, section: &mut Section, block: &Block, line: &Line) {
    section.set("kind", quoted("http"), &line.place);
    let path = (2..4)
        .map(|n| line.word(n))
        .find(|word| word.starts_with('/'));
    if let Some(path) = path {
        section.set("path", quoted(path), &line.place);
    }
    let mut expected = None;
    for line in block
        .lines
        .iter()
        .filter(|line| line.word(0) == "http-check")
    {
        match (line.word(1), line.word(2)) {
            ("expect", "status") => {
                expected = Some(line);
                import.carried(line);
            }
            ("send", _) => {
                let uri = line.words.iter().position(|word| word == "uri");
                if let Some(uri) = uri.map(|n| line.word(n + 1)).filter(|_| path.is_none()) {
                    section.set("path", quoted(uri), &line.place);
                }
                import.differs(line, "GET with the path alone");
            }
            _ => import.lost(line, "no counterpart"),
        }
    }
    match expected {
        Some(line) => {
            let codes: Vec<String> = line.word(3).split(',').map(quoted).collect();
            match &codes[..] {
                [one] => section.set("status", one, &line.place),
                many => section.set("status", format!("[{}]", many.join(", ")), &line.place),
            }
        }
        None => section.set("status", quoted("200-399"), &line.place),
    }
    let patroni = ["/primary", "/master", "/replica", "/read-only"];
    match path.is_some_and(|path| patroni.contains(&path)) {
        true => import.differs(
            line,
            "kind = \"postgres\" with a `user` and a `role` asks the server itself, beside Patroni",
        ),
        false => import.differs(line, "GET instead of OPTIONS, where no method is named"),
    }
}

/// The usual dialogues by what they say; another one has one text to send and one to expect.
fn dialogue(import: &mut Import<'_>, section: &mut Section, block: &Block, option: &Line) {
    let steps: Vec<&Line> = block
        .lines
        .iter()
        .filter(|l| l.word(0) == "tcp-check")
        .collect();
    let said = |word: &str| {
        let is = |line: &&&Line| line.word(1) == word;
        let texts = steps.iter().filter(is).map(|line| match word {
            "expect" => line.words[3.min(line.words.len())..].join(" "),
            _ => line.words[2.min(line.words.len())..].join(" "),
        });
        texts.collect::<Vec<String>>()
    };
    let (sent, expected) = (said("send"), said("expect"));
    let any = |texts: &[String], part: &str| texts.iter().any(|text| text.contains(part));
    let asks_role = any(&sent, "ROLE");
    let is_redis =
        any(&expected, "PONG") || any(&expected, "role:") || any(&sent, "replication") || asks_role;
    match (is_redis, &sent[..], &expected[..]) {
        (true, ..) => {
            section.set("kind", quoted("redis"), &option.place);
            for (text, role) in [("role:master", "primary"), ("role:slave", "replica")] {
                let answer = text.trim_start_matches("role:");
                if any(&expected, text) || asks_role && any(&expected, answer) {
                    section.set("role", quoted(role), &option.place);
                }
            }
            if any(&sent, "AUTH") {
                let text = "`AUTH`: write `password_file` in the check";
                import.note(List::Lost, &option.place, text);
            }
        }
        (false, [], []) => section.set("kind", quoted("tcp"), &option.place),
        (false, sent, [expect]) if sent.len() <= 1 => {
            section.set("kind", quoted("send_expect"), &option.place);
            if let [send] = sent {
                section.set("send", quoted(send), &option.place);
            }
            section.set("expect", quoted(expect), &option.place);
        }
        _ => {
            section.set("kind", quoted("tcp"), &option.place);
            import.lost(
                option,
                "a dialogue of several steps: only the connection is checked",
            );
        }
    }
    for step in steps {
        import.carried(step);
    }
}
