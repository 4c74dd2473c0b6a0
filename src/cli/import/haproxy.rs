//! HAProxy: the sections of `mode tcp` as a configuration.

mod backend;
mod check;
mod frontend;
mod server;
mod syntax;

use super::document::{Document, List, Place, Section};
use crate::config::text::quote::quoted;
use std::collections::BTreeMap;
use syntax::{Block, Line};

/// Converts the text of a file; `origin` is its name. An error is a whole message.
pub(super) fn import(text: &str, origin: &str) -> Result<Document, String> {
    let blocks = syntax::read(text, origin)?;
    if !blocks
        .iter()
        .any(|block| block.kind == "frontend" || block.kind == "listen")
    {
        return Err(format!(
            "{origin}: there is no `frontend` and no `listen` section to import"
        ));
    }
    let mut import = Import {
        document: Document::default(),
        blocks: &blocks,
        made: BTreeMap::new(),
    };
    for block in &blocks {
        match block.kind.as_str() {
            "global" => import.global(block),
            "frontend" | "listen" => import.frontend(block),
            "backend" | "userlist" | "mailers" | "http-errors" | "cache" => {}
            "resolvers" => import.note(
                List::Carried,
                &block.place,
                "resolvers: nothing to write, names are resolved again by default",
            ),
            kind => {
                let text = format!("`{kind} {}`: no counterpart", block.name);
                import.note(List::Lost, &block.place, &text);
            }
        }
    }
    for block in blocks.iter().filter(|block| block.kind == "backend") {
        if !import.made.contains_key(&block.name) {
            let text = format!(
                "`backend {}`: no section that is imported uses it",
                block.name
            );
            import.note(List::Lost, &block.place, &text);
        }
    }
    Ok(import.document)
}

/// What is known while a configuration is converted.
struct Import<'a> {
    document: Document,
    blocks: &'a [Block],
    /// The names of sections of upstreams by those of `backend` or `listen`.
    made: BTreeMap<String, String>,
}

impl Import<'_> {
    fn note(&mut self, list: List, place: &Place, text: &str) {
        self.document.note(list, place, text);
    }

    fn carried(&mut self, line: &Line) {
        self.document.note(List::Carried, &line.place, line.text());
    }

    fn harmless(&mut self, line: &Line, why: &str) {
        let text = format!("{}: nothing to write, {why}", line.text());
        self.document.note(List::Carried, &line.place, text);
    }

    fn differs(&mut self, line: &Line, how: &str) {
        self.document.note(
            List::Differs,
            &line.place,
            format!("`{}`: {how}", line.text()),
        );
    }

    fn lost(&mut self, line: &Line, why: &str) {
        self.document
            .note(List::Lost, &line.place, format!("`{}`: {why}", line.text()));
    }

    fn global(&mut self, block: &Block) {
        let mut process = Section::new("[process]".to_owned(), &block.place);
        let mut is_empty = true;
        for line in &block.lines {
            let number = line.word(1).parse::<u64>();
            let (key, value) = match (line.word(0), number) {
                ("maxconn", Ok(number)) => ("max_connections", number.to_string()),
                ("nbthread", Ok(number)) => ("workers", number.to_string()),
                ("hard-stop-after", _) => match syntax::time(line.word(1)) {
                    Some(time) => ("drain_timeout", quoted(&time)),
                    None => continue,
                },
                ("stats", _) => {
                    let text = "write [admin] socket = \"/run/tembuku/admin.sock\"; it speaks HTTP";
                    self.differs(line, text);
                    continue;
                }
                ("log", _) => {
                    self.differs(line, "the log goes to standard error");
                    continue;
                }
                _ => {
                    self.harmless(line, "a setting of HAProxy's own process");
                    continue;
                }
            };
            process.set(key, value, &line.place);
            is_empty = false;
            self.carried(line);
        }
        if !is_empty {
            self.document.sections.push(process);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    /// The configuration, which must be valid, and the lists.
    #[track_caller]
    fn imported(text: &str) -> (String, String) {
        let document = import(text, "f").expect("an import");
        let toml = document.toml();
        config::parse(&toml, "the result").unwrap_or_else(|e| panic!("{toml}\n{e}"));
        (toml, document.lists())
    }

    #[track_caller]
    fn assert_has(text: &str, parts: &[&str]) {
        let (toml, lists) = imported(text);
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in parts {
            assert!(words(&toml).contains(part), "{part} in\n{toml}\n{lists}");
        }
    }

    #[test]
    fn a_listen_section_is_a_listener_and_an_upstream() {
        assert_has(
            "global\n maxconn 5000\n nbthread 2\ndefaults\n mode tcp\n timeout connect 2s\n\
             timeout client 10m\n timeout server 10m\n\
             listen cache\n bind *:6379\n balance leastconn\n server a 10.0.0.1:6379 weight 2\n\
             server b 10.0.0.2:6379 backup maxconn 50\n",
            &[
                "max_connections = 5000 # f:2",
                "[listeners.cache] # f:9",
                "bind = \"0.0.0.0:6379\" # f:10",
                "connect_timeout = \"2s\" # f:6",
                "idle_timeout = \"10m\" # f:8",
                "balance = \"least_conn\" # f:11",
                "{ address = \"10.0.0.1:6379\", weight = 2 }, # f:12",
                "{ address = \"10.0.0.2:6379\", backup = true, max_connections = 50 }, # f:13",
            ],
        );
    }

    #[test]
    fn a_rate_of_sessions_is_one_that_delays() {
        assert_has(
            "defaults\n mode tcp\nlisten cache\n bind *:6379\n rate-limit sessions 30\n\
             server a 10.0.0.1:6379\n",
            &["connection_rate = \"30/s\"", "over_rate = \"delay\""],
        );
    }

    #[test]
    fn known_checks_become_kinds() {
        let redis = "option tcp-check\n tcp-check send PING\\r\\n\n tcp-check expect string +PONG\n\
                     tcp-check send info\\ replication\\r\\n\
                     \n tcp-check expect string role:master\n";
        for (check, parts) in [
            (redis, &["kind = \"redis\"", "role = \"primary\""][..]),
            ("option redis-check\n", &["kind = \"redis\""]),
            (
                "option pgsql-check user check\n",
                &["kind = \"postgres\"", "login = false"],
            ),
            (
                "option mysql-check user check\n",
                &["kind = \"mysql\"", "user = \"check\""],
            ),
            (
                "option httpchk GET /primary\n http-check expect status 200\n",
                &[
                    "kind = \"http\"",
                    "path = \"/primary\"",
                    "status = \"200\"",
                    "port = 8008",
                ],
            ),
            ("option httpchk\n", &["status = \"200-399\""]),
            (
                "tcp-check send QUIT\\r\\n\n option tcp-check\n tcp-check expect string BYE\n",
                &[
                    "kind = \"send_expect\"",
                    "send = \"QUIT\\r\\n\"",
                    "expect = \"BYE\"",
                ],
            ),
            (
                "",
                &[
                    "kind = \"tcp\"",
                    "interval = \"3s\"",
                    "fall = 4",
                    "on_down = \"close\"",
                ],
            ),
        ] {
            let text = format!(
                "listen db\n mode tcp\n bind 127.0.0.1:5000\n {check}\
                 default-server inter 3s fall 4 on-marked-down shutdown-sessions\n\
                 server a 10.0.0.1:5432 check port 8008\n server b 10.0.0.2:5432 check port 8008\n"
            );
            assert_has(&text, parts);
        }
    }

    /// Constructs of public configurations, each reduced.
    #[test]
    fn usual_sections_lose_nothing() {
        for (text, parts) in [
            // Sessions wait where servers have limits.
            (
                "defaults\n timeout queue 20s\nlisten a\n mode tcp\n bind :1\n\
                 default-server maxconn 64 maxqueue 128\n server a 10.0.0.1:1\n\
                 server b 10.0.0.2:1\n",
                &[
                    "max_connections = 64",
                    "queue_timeout = \"20s\"",
                    "queue_length = 256",
                ][..],
            ),
            // The port follows the last colon.
            (
                "listen a\n bind :::1\n server a 2001:db8::2:12:6443\n",
                &["\"[2001:db8::2:12]:6443\"", "\"[::]:1\""],
            ),
            (
                "frontend a\n bind *:1\n bind 127.0.0.1:1\n tcp-request inspect-delay 5s\n\
                 use_backend b\nbackend b\n server a 10.0.0.1:1\n",
                &["upstream = \"b\""],
            ),
            (
                "listen a\n bind :1\n option tcp-check\n tcp-check send \"ROLE\\r\\n\"\n\
                 tcp-check expect string master\n tcp-check send QUIT\\r\\n\n\
                 tcp-check expect string +OK\n server a 10.0.0.1:6379 check\n",
                &["kind = \"redis\"", "role = \"primary\""],
            ),
        ] {
            assert_has(text, parts);
            let (_, lists) = imported(text);
            assert!(lists.contains("not carried over: 0"), "{lists}");
        }
    }

    #[test]
    fn frontends_lead_to_backends() {
        assert_has(
            "defaults\n mode tcp\nfrontend f\n bind 10.0.0.9:5432,[::1]:5433 accept-proxy\n\
             tcp-request connection reject if !{ src 10.0.0.0/8 192.168.0.0/16 }\
             \n default_backend b\n\
             backend b\n balance source\n hash-type consistent\
             \n server a db.example.com:5432 send-proxy-v2\n",
            &[
                "bind = [\"10.0.0.9:5432\", \"[::1]:5433\"]",
                "accept_proxy = true",
                "\"allow 10.0.0.0/8\"",
                "\"allow 192.168.0.0/16\"",
                "\"deny all\"",
                "upstream = \"b\"",
                "balance = \"consistent_hash\"",
                "send_proxy = \"v2\"",
            ],
        );
    }

    #[test]
    fn what_is_not_carried_over_is_listed() {
        for (text, part) in [
            (
                "listen web\n mode http\n bind :81\n server a 10.0.0.1:80\n",
                "`mode http`",
            ),
            (
                "listen tls\n bind :82 ssl crt x\n server a 10.0.0.1:80\n",
                "TLS of sessions",
            ),
            (
                "frontend x\n bind :83\n default_backend none\n",
                "there is no backend `none`",
            ),
            (
                "backend unused\n server a 10.0.0.1:1\n",
                "no section that is imported uses it",
            ),
            (
                "listen y\n bind :84\n use_backend z if a\n server a 10.0.0.1:1\n",
                "use_backend",
            ),
            ("peers p\n peer a 10.0.0.1:1\n", "`peers p`"),
        ] {
            let text = format!("listen ok\n bind :9\n server a 10.0.0.1:9\n{text}");
            let (_, lists) = imported(&text);
            let (_, lost) = lists.split_once("not carried over: ").expect("the list");
            assert!(lost.contains(part), "{part} in\n{lists}");
        }
        assert!(import("global\n", "f").is_err());
    }
}
