//! Checks: those of HAProxy's options, and the usual dialogues of `tcp-check`, as kinds.

use super::{
    super::document::{List, Place, Section, duration},
    Import,
    server::Server,
    syntax::{Block, Line, milliseconds, time},
};
use crate::config::text::quote::{key, quoted};

/// The section of the check of an upstream, whose first checked server is `server`.
pub(super) fn section(
    import: &mut Import<'_>,
    block: &Block,
    upstream: &str,
    server: &Server,
) -> Section {
    let option = option(block);
    let place = option.map_or(&server.place, |line| &line.place);
    let header = format!("[upstreams.{}.check]", key(upstream));
    let mut section = Section::new(header, place);
    let name = option.map_or("", |line| line.word(1));
    let option = option.filter(|_| !name.is_empty());
    match (name, option) {
        ("redis-check", _) => section.set("kind", quoted("redis"), place),
        ("pgsql-check", line) => {
            section.set("kind", quoted("postgres"), place);
            section.set("login", "false", place);
            if let Some(line) = line.filter(|line| line.word(2) == "user") {
                section.set("user", quoted(line.word(3)), place);
            }
            let text = "with `user` and `role = \"primary\"` it logs in and knows \
                        the role";
            import.note(List::Differs, place, text);
        }
        ("mysql-check", Some(line)) if line.word(2) == "user" => {
            section.set("kind", quoted("mysql"), place);
            section.set("user", quoted(line.word(3)), place);
            let text = format!(
                "it logs in as `{}` without a password, as HAProxy does; with password_file as an \
                 account that has one, and `role` makes it look at read_only",
                line.word(3)
            );
            import.note(List::Differs, place, text.as_str());
        }
        ("httpchk", Some(line)) => match http_text(block) {
            Some(expect) if server.get("check-ssl").is_none() => {
                text_of_http(import, &mut section, line, expect);
            }
            _ => http(import, &mut section, block, line),
        },
        ("tcp-check", Some(line)) => dialogue(import, &mut section, block, line),
        ("mysql-check", Some(line)) => {
            let text = "kind = \"mysql\" needs a `user`: only the connection is checked, which the \
                        server counts as an error, as with HAProxy (max_connect_errors)";
            import.differs(line, text);
            section.set("kind", quoted("tcp"), place);
        }
        ("smtpchk", Some(line)) => {
            import.differs(line, "only the greeting of the server is looked at");
            section.set("kind", quoted("send_expect"), place);
            section.set("expect_regex", quoted("^2[0-9]{2}[ -]"), place);
        }
        (_, Some(line)) => {
            import.lost(line, "only the connection is checked");
            section.set("kind", quoted("tcp"), place);
        }
        (_, None) => section.set("kind", quoted("tcp"), place),
    }
    if let Some(line) = option {
        import.carried(line);
    }
    let interval = server.get("inter").and_then(time);
    if let Some(interval) = &interval {
        section.set("interval", quoted(interval), server.place_of("inter"));
    }
    // One interval for all, where nothing else is set: HAProxy's default without `inter`.
    let of_interval = server.place_of(if interval.is_some() { "inter" } else { "check" });
    let interval = interval.unwrap_or_else(|| "2s".to_owned());
    match server.get("fastinter").and_then(time) {
        Some(fast) => section.set("fast_interval", quoted(&fast), server.place_of("fastinter")),
        None => section.set("fast_interval", quoted(&interval), of_interval),
    }
    for name in ["rise", "fall", "port"] {
        if let Some(value) = server.get(name).filter(|_| !section.has(name)) {
            section.set(name, value, server.place_of(name));
        }
    }
    limit(import, &mut section, block, server);
    let has_tls = section.has("tls") || server.get("check-ssl").is_none();
    if !has_tls && ["httpchk", "redis-check"].contains(&name) {
        section.set("tls", quoted("require"), server.place_of("check-ssl"));
    }
    if server.get("downinter").is_some() {
        let text = "`downinter`: there is no other interval for a backend that is down";
        import.note(List::Differs, server.place_of("downinter"), text);
    }
    if let Some(address) = server.get("addr") {
        let text = format!("`addr {address}`: write `address` with a port in the check");
        import.note(List::Lost, server.place_of("addr"), &text);
    }
    section
}

/// How long a check may take. HAProxy has `inter` for a connect and for the whole; `timeout check`
/// is for what follows the connect, which then ends after `timeout connect` as well.
fn limit(import: &mut Import<'_>, section: &mut Section, block: &Block, server: &Server) {
    let of_interval = server.place_of(if server.get("inter").is_some() {
        "inter"
    } else {
        "check"
    });
    let limit_of = |line: &Line| milliseconds(line.word(2)).filter(|limit| *limit > 0);
    let interval = server.get("inter").and_then(milliseconds).unwrap_or(2_000);
    let answer = block
        .last("timeout check")
        .and_then(|line| Some((line, limit_of(line)?)));
    let Some((line, answer)) = answer else {
        section.set("timeout", quoted(&duration(interval)), of_interval);
        return;
    };
    let connect = block.last("timeout connect");
    let connect = connect.and_then(|line| Some((limit_of(line)?, &line.place)));
    let shorter = connect.filter(|(limit, _)| *limit < interval);
    let (connect, place) = shorter.unwrap_or((interval, of_interval));
    if section.has_line("kind = \"tcp\"") {
        section.set("timeout", quoted(&duration(connect)), place);
        import.harmless(
            line,
            "it is for answers, and only the connection is checked",
        );
        return;
    }
    section.set("timeout", quoted(&duration(answer)), &line.place);
    match answer > connect {
        true => {
            let connect = duration(connect);
            let text = format!(
                "`timeout` is for the connection, too: a server that does not answer at all is \
                 found after {}, in HAProxy after {connect} (the shorter of `inter` and `timeout \
                 connect`)",
                duration(answer)
            );
            import.differs(line, &text);
        }
        false => import.carried(line),
    }
}

/// The options of a backend that say how it is checked.
pub(super) const KINDS: [&str; 9] = [
    "redis-check",
    "pgsql-check",
    "mysql-check",
    "tcp-check",
    "httpchk",
    "smtpchk",
    "ldap-check",
    "ssl-hello-chk",
    "external-check",
];

/// There is one check for all servers: those that have other values than the first one.
pub(super) fn note_other_values(import: &mut Import<'_>, servers: &[Server]) {
    let mut checked = servers.iter().filter(|server| server.is_checked());
    let Some(first) = checked.next() else {
        return;
    };
    for other in checked {
        for name in [
            "port",
            "addr",
            "check-ssl",
            "inter",
            "fastinter",
            "rise",
            "fall",
        ] {
            if other.get(name) == first.get(name) {
                continue;
            }
            // It asks another server than the one that it is about.
            let list = match name {
                "port" | "addr" | "check-ssl" => List::Lost,
                _ => List::Differs,
            };
            let text = format!(
                "`{name}`: one check for all backends, that of {}",
                first.place
            );
            import.note(list, &other.place, &text);
        }
    }
}

fn option(block: &Block) -> Option<&Line> {
    // HAProxy takes the last one, and its own before that of the defaults.
    let is_kind = |line: &&Line| {
        let (word, kind) = (line.word(0), line.word(1));
        word == "option" && KINDS.contains(&kind) && block.last(&line.key()).is_some()
    };
    let own = block.lines.iter().rfind(is_kind);
    own.or_else(|| block.defaults.iter().rfind(is_kind))
}

/// Where a dialogue asks for a role, if it does.
pub(super) fn role_place(block: &Block) -> Option<Place> {
    let option = option(block).filter(|line| line.word(1) == "tcp-check")?;
    let dialogue = Dialogue::of(block);
    dialogue.redis()?.role.map(|_| option.place.clone())
}

/// What has to be in an answer of HTTP.
fn http_text(block: &Block) -> Option<&Line> {
    let rules = block.rules("http-check");
    let is_text = |line: &Line| line.word(2) == "string" || line.word(2) == "rstring";
    match rules.as_slice() {
        [rule] if rule.word(1) == "expect" && is_text(rule) => Some(rule),
        _ => None,
    }
}

/// `kind = "http"` does not read the body of an answer.
fn text_of_http(import: &mut Import<'_>, section: &mut Section, line: &Line, expect: &Line) {
    section.set("kind", quoted("send_expect"), &line.place);
    let word = |n: usize, default: &'static str| match line.word(n) {
        "" => default.to_owned(),
        word => word.to_owned(),
    };
    let (method, path, version) = match line.word(2).starts_with('/') {
        true => ("OPTIONS".to_owned(), word(2, "/"), word(3, "HTTP/1.0")),
        false => (word(2, "OPTIONS"), word(3, "/"), word(4, "HTTP/1.0")),
    };
    let request = format!("{method} {path} {version}\r\n\r\n");
    section.set("send", quoted(&request), &line.place);
    let key = match expect.word(2) {
        "rstring" => "expect_regex",
        _ => "expect",
    };
    let text = expect.words.get(3..).unwrap_or_default().join(" ");
    section.set(key, quoted(&text), &expect.place);
    import.carried(line);
    import.differs(
        expect,
        "looked for in the whole answer, also in its status and headers",
    );
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
    for line in block.rules("http-check") {
        match (line.word(1), line.word(2)) {
            ("expect", "status") => {
                expected = Some(line);
                import.carried(line);
            }
            ("connect", _) => connect(import, section, line, true),
            ("send", _) => {
                let uri = line.words.iter().position(|word| word == "uri");
                if let Some(uri) = uri.map(|n| line.word(n + 1)).filter(|_| path.is_none()) {
                    section.set("path", quoted(uri), &line.place);
                }
                import.differs(line, "GET with the path alone");
            }
            ("expect", "!") => {
                let text = "`status` names what a server answers that is up, and no body is read";
                import.lost(line, text);
            }
            ("expect", "string" | "rstring") => {
                let text = "no body is looked at: a server is up with any answer of this status";
                import.lost(line, text);
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
    let method = match line.word(2) {
        "GET" if line.words.len() <= 4 => None,
        "GET" => Some("GET with the path alone"),
        "HEAD" | "POST" | "PUT" => Some("GET instead of that method"),
        _ => Some("GET instead of OPTIONS"),
    };
    let patroni = ["/primary", "/master", "/replica", "/read-only"];
    let advice = (path.is_some_and(|path| patroni.contains(&path))).then_some(
        "asks Patroni, as before; `kind = \"postgres\"` with a `user` and a `role` would ask the \
         server itself",
    );
    let notes: Vec<&str> = method.into_iter().chain(advice).collect();
    match notes.is_empty() {
        true => import.carried(line),
        false => import.differs(line, &notes.join("; ")),
    }
}

/// Where and how a check connects.
fn connect(import: &mut Import<'_>, section: &mut Section, line: &Line, may_have_tls: bool) {
    let mut words = line.words.iter().skip(2);
    while let Some(word) = words.next() {
        match word.as_str() {
            "ssl" if !may_have_tls => import.lost(line, "this check has no TLS"),
            "ssl" if !section.has("tls") => section.set("tls", quoted("require"), &line.place),
            "port" => match words.next() {
                Some(port) if !section.has("port") => section.set("port", port, &line.place),
                _ => {}
            },
            "ssl" | "default" | "linger" => {}
            "sni" | "alpn" | "proto" | "comment" => drop(words.next()),
            _ => import.lost(line, &format!("`{word}` has no counterpart")),
        }
    }
    import.carried(line);
}

/// The steps of a `tcp-check`.
struct Dialogue<'a> {
    steps: Vec<&'a Line>,
    sent: Vec<String>,
    expected: Vec<Expected<'a>>,
    /// The key for what is sent.
    send_key: &'static str,
    /// A step that no key is for.
    other: Option<&'a Line>,
}

struct Expected<'a> {
    /// The key for it.
    key: &'static str,
    text: String,
    line: &'a Line,
}

/// What a dialogue asks Redis for.
#[derive(Default)]
struct Redis<'a> {
    role: Option<&'static str>,
    is_link_asked: bool,
    /// Conditions that `kind = "redis"` has no key for.
    others: Vec<&'a Line>,
}

impl<'a> Dialogue<'a> {
    fn of(block: &'a Block) -> Self {
        let mut dialogue = Self {
            steps: block.rules("tcp-check"),
            sent: Vec::new(),
            expected: Vec::new(),
            send_key: "send",
            other: None,
        };
        let mut former = "";
        let mut has_connected = false;
        for line in dialogue.steps.clone() {
            let text = |from: usize| line.words.get(from..).unwrap_or_default().join(" ");
            let step = line.word(1);
            match (step, line.word(2)) {
                ("comment", _) => continue,
                ("connect", _) if !has_connected => has_connected = true,
                ("send" | "send-binary", _) => {
                    // Without an answer between them they are one text.
                    match dialogue.sent.last_mut().filter(|_| former == step) {
                        Some(last) => last.push_str(&text(2)),
                        None => dialogue.sent.push(text(2)),
                    }
                    if step == "send-binary" {
                        dialogue.send_key = "send_hex";
                    }
                }
                ("expect", kind @ ("string" | "rstring" | "binary")) => {
                    let key = match kind {
                        "string" => "expect",
                        "rstring" => "expect_regex",
                        _ => "expect_hex",
                    };
                    let text = text(3);
                    dialogue.expected.push(Expected { key, text, line });
                }
                _ => dialogue.other = Some(line),
            }
            former = step;
        }
        dialogue
    }

    fn sends(&self, part: &str) -> bool {
        self.sent.iter().any(|text| text.contains(part))
    }

    fn expects(&self, part: &str) -> bool {
        self.expected.iter().any(|e| e.text.contains(part))
    }

    /// `None` for another protocol.
    fn redis(&self) -> Option<Redis<'a>> {
        let is_redis = self.expects("PONG")
            || self.expects("role:")
            || self.expects("master_link_status:")
            || self.expects("connected_slaves:")
            || self.sends("replication")
            || self.sends("ROLE");
        if !is_redis {
            return None;
        }
        let mut redis = Redis::default();
        for expected in &self.expected {
            let text = expected.text.trim_start_matches(['^', '\\', '+']);
            let text = text.trim_end_matches(['$', '\r', '\n']);
            let role = match text {
                "PONG" | "OK" => continue,
                "role:master" => "primary",
                "role:slave" => "replica",
                // Only a replica has it.
                "master_link_status:up" => {
                    redis.is_link_asked = true;
                    "replica"
                }
                _ if self.sends("ROLE") && text.ends_with("master") => "primary",
                _ if self.sends("ROLE") && text.ends_with("slave") => "replica",
                _ => {
                    redis.others.push(expected.line);
                    continue;
                }
            };
            match redis.role {
                Some(other) if other != role => redis.others.push(expected.line),
                _ => redis.role = Some(role),
            }
        }
        redis.others.extend(self.other);
        Some(redis)
    }

    /// All that is sent, and a regular expression for all that is expected, if what answers may get
    /// the texts at once.
    fn at_once(&self) -> Option<(String, String)> {
        let is_alone = self.expected.len() == 1;
        let part = |expected: &Expected<'_>| match expected.key {
            "expect" => Some(regex::escape(&expected.text)),
            "expect_regex" if is_alone || !expected.text.contains(['^', '$']) => {
                Some(format!("(?-s:{})", expected.text))
            }
            _ => None,
        };
        let parts: Option<Vec<String>> = self.expected.iter().map(part).collect();
        let may_be_sent = self.other.is_none() && self.send_key == "send" && !self.sends("AUTH");
        let parts = parts.filter(|_| may_be_sent)?;
        Some((self.sent.concat(), format!("(?s){}", parts.join(".*"))))
    }
}

/// The usual dialogues by what they say; another one has one text to send and one to expect.
fn dialogue(import: &mut Import<'_>, section: &mut Section, block: &Block, option: &Line) {
    let dialogue = Dialogue::of(block);
    let redis = dialogue.redis();
    match (&redis, &dialogue.sent[..], &dialogue.expected[..]) {
        (Some(redis), ..) => redis_dialogue(import, section, block, option, &dialogue, redis),
        (None, [], []) if dialogue.other.is_none() => {
            section.set("kind", quoted("tcp"), &option.place);
        }
        (None, sent, [expected]) if sent.len() <= 1 && dialogue.other.is_none() => {
            section.set("kind", quoted("send_expect"), &option.place);
            if let [send] = sent {
                section.set(dialogue.send_key, quoted(send), &option.place);
            }
            section.set(expected.key, quoted(&expected.text), &option.place);
        }
        _ => {
            section.set("kind", quoted("tcp"), &option.place);
            let line = dialogue.other.unwrap_or(option);
            import.lost(
                line,
                "one exchange of text is possible: only the connection is checked",
            );
        }
    }
    for step in dialogue.steps {
        match step.word(1) {
            "connect" => connect(import, section, step, redis.is_some()),
            _ => import.carried(step),
        }
    }
}

fn redis_dialogue(
    import: &mut Import<'_>,
    section: &mut Section,
    block: &Block,
    option: &Line,
    dialogue: &Dialogue<'_>,
    redis: &Redis<'_>,
) {
    // Conditions of its own: Redis answers commands that come at once.
    if let Some((send, expected)) = dialogue.at_once().filter(|_| !redis.others.is_empty()) {
        section.set("kind", quoted("send_expect"), &option.place);
        section.set("send", quoted(&send), &option.place);
        section.set("expect_regex", quoted(&expected), &option.place);
        let text = "all is sent at once, and the answers are looked for in this order; sessions \
                    do not follow a role: that takes kind = \"redis\", with `role`";
        import.differs(option, text);
        return;
    }
    section.set("kind", quoted("redis"), &option.place);
    if let Some(role) = redis.role {
        section.set("role", quoted(role), &option.place);
        if role == "replica" && !redis.is_link_asked {
            // Its link to the primary is not asked for.
            section.set("replicating", "false", &option.place);
        }
        let text = "a change of roles counts at once, without `rise` and `fall`, and of two \
                    primaries one at most gets sessions";
        import.differs(option, text);
    }
    for line in &redis.others {
        import.lost(
            line,
            "this condition is not asked for: servers that do not meet it count as up",
        );
    }
    let sends = |line: &&Line| line.word(0) == "tcp-check" && line.text().contains("AUTH");
    if let Some(line) = block.lines.iter().find(sends) {
        let text =
            "the password: write it into a file, and password_file = \"PATH\" into the check";
        import.note(List::Lost, &line.place, text);
    }
}
