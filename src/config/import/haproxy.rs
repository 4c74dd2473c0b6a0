//! HAProxy: the sections of `mode tcp` as a configuration.

mod access;
mod admin;
mod backend;
mod check;
mod frontend;
mod log;
mod proxy;
mod rest;
mod server;
mod sources;
mod switching;
mod syntax;

use super::document::{self, Document, List, Place};
use crate::config::text::quote::quoted;
use std::collections::{BTreeMap, HashMap, HashSet};
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
    let targets = ["backend", "listen"].into_iter().flat_map(|kind| {
        let blocks = blocks.iter().rev().filter(move |block| block.kind == kind);
        blocks.map(|block| (block.name.as_str(), block))
    });
    let mut import = Import {
        document: Document::default(),
        targets: targets.collect(),
        made: BTreeMap::new(),
        log: log::Logs::new(&blocks),
        lists: sources::Lists::default(),
    };
    for line in blocks
        .iter()
        .flat_map(|block| [&block.header].into_iter().chain(&block.lines))
    {
        import.document.read(&line.place, &line.shown());
    }
    for block in &blocks {
        import.block(block);
    }
    import.unused(&blocks);
    import.write_log();
    Ok(import.document)
}

/// What is known while a configuration is converted.
struct Import<'a> {
    document: Document,
    /// The sections with servers, by name.
    targets: HashMap<&'a str, &'a Block>,
    /// The names of sections of upstreams by those of `backend` or `listen`.
    made: BTreeMap<String, String>,
    log: log::Logs,
    lists: sources::Lists,
}

impl Import<'_> {
    fn note(&mut self, list: List, place: &Place, text: &str) {
        self.document.note(list, place, text);
    }

    fn carried(&mut self, line: &Line) {
        self.note(List::Carried, &line.place, "");
    }

    fn harmless(&mut self, line: &Line, why: &str) {
        self.note(List::Unneeded, &line.place, why);
    }

    fn differs(&mut self, line: &Line, how: &str) {
        self.note(List::Differs, &line.place, how);
    }

    fn lost(&mut self, line: &Line, why: &str) {
        self.note(List::Lost, &line.place, why);
    }

    fn whole(&mut self, list: List, block: &Block, text: &str) {
        let inside = block.lines.iter().map(|line| line.place.clone()).collect();
        self.document.note_whole(list, &block.place, inside, text);
    }

    fn block(&mut self, block: &Block) {
        match block.kind.as_str() {
            "global" => self.global(block),
            "frontend" | "listen" => {
                self.listens(block);
                match admin::instead(block) {
                    Some(text) => self.whole(List::Differs, block, &text),
                    None => self.frontend(block),
                }
            }
            "defaults" | "backend" => {}
            "userlist" | "http-errors" | "cache" | "fcgi-app" => {
                self.whole(List::Unneeded, block, "it is for `mode http`");
            }
            "resolvers" if block.lines.iter().any(|l| l.word(0) == "nameserver") => {
                self.whole(List::Differs, block, document::RESOLVERS);
            }
            "resolvers" => {
                self.whole(List::Unneeded, block, document::RESOLVERS);
            }
            "peers" => {
                let text = "nodes share no table: a `balance` that hashes picks the same backend \
                            on each of them";
                self.whole(List::Lost, block, text);
            }
            "log-forward" => {
                let text =
                    "a listener with protocol = \"udp\" relays datagrams of syslog as they are";
                self.whole(List::Lost, block, text);
            }
            _ => self.whole(List::Lost, block, "no counterpart"),
        }
    }

    /// Sections that no listener has asked for.
    fn unused(&mut self, blocks: &[Block]) {
        let mut names = HashSet::new();
        for block in blocks {
            let is_made = self.made.contains_key(&block.name);
            let mut lines = block.lines.iter();
            match block.kind.as_str() {
                "backend" if !names.insert(&block.name) => {
                    self.whole(List::Lost, block, "another `backend` has the same name");
                }
                "backend" if is_made => self.carried(&block.header),
                "backend" if is_table(block) => {
                    self.whole(List::Unneeded, block, access::COUNTERS);
                }
                "backend" => {
                    let text = "no section that is imported uses it";
                    self.whole(List::Lost, block, text);
                }
                "defaults" if lines.any(|line| self.document.is_noted(&line.place)) => {
                    self.carried(&block.header);
                }
                "defaults" => {
                    let text = "no section that is imported has its values from it";
                    self.whole(List::Unneeded, block, text);
                }
                _ => {}
            }
        }
    }

    fn global(&mut self, block: &Block) {
        let mut is_empty = true;
        for (n, line) in block.lines.iter().enumerate() {
            let is_it = |other: &Line| other.word(0) == line.word(0);
            let is_replaced = block.lines[n + 1..].iter().any(is_it);
            let number = line.word(1).parse::<u64>();
            let (key, value) = match (line.word(0), number) {
                ("maxconn", Ok(number)) => {
                    if !is_replaced {
                        let text =
                            "connections above it are closed, and do not wait to be accepted";
                        self.note(List::Differs, &line.place, text);
                    }
                    ("max_connections", number.to_string())
                }
                ("nbthread", Ok(number)) => ("workers", number.to_string()),
                ("hard-stop-after", _) => match syntax::time(line.word(1)) {
                    Some(time) if time == "0s" => {
                        self.differs(line, document::NO_DRAIN_LIMIT);
                        continue;
                    }
                    Some(time) => ("drain_timeout", quoted(&time)),
                    None => {
                        self.lost(line, "not a time");
                        continue;
                    }
                },
                (word, _) if word.starts_with('.') => {
                    self.lost(line, CONDITION);
                    continue;
                }
                ("stats", _) => {
                    let text = "[admin] socket takes its place, for tembuku status, top, drain";
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
            if is_replaced {
                self.harmless(line, "a later line replaces it");
                continue;
            }
            let process = self.document.section("[process]", &block.place);
            process.set(key, value, &line.place);
            is_empty = false;
            self.carried(line);
        }
        match is_empty {
            true => self.harmless(&block.header, "nothing of it is needed"),
            false => self.carried(&block.header),
        }
    }
}

/// What becomes of `.if` and what belongs to it.
const CONDITION: &str = "conditions are not evaluated: the lines of all branches are read";

/// Whether the section has a table, which others name, and no servers.
fn is_table(block: &Block) -> bool {
    let is_part = |line: &Line| ["stick-table", "mode"].contains(&line.word(0));
    block.lines.iter().any(|line| line.word(0) == "stick-table") && block.lines.iter().all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, import::Program};

    /// The configuration, which must be valid, and the lists.
    #[track_caller]
    fn imported(text: &str) -> (String, String) {
        let mut document = import(text, "f").expect("an import");
        document.complete(Program::Haproxy);
        let toml = document.toml();
        config::parse(&toml, "the result").unwrap_or_else(|e| panic!("{toml}\n{e}"));
        (toml, document.report().to_string())
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
                "idle_timeout = \"10m\" # f:7",
                "balance = \"least_conn\" # f:11",
                "{ address = \"10.0.0.1:6379\", weight = 2, max_fails = 0 }, # f:12; max_fails: no \
                 `observe`",
                "{ address = \"10.0.0.2:6379\", backup = true, max_connections = 50, \
                 max_fails = 0 }, # f:13; max_fails",
            ],
        );
    }

    #[test]
    fn limits_and_keepalive_are_those_of_haproxy() {
        let servers = "server a 10.0.0.1:1 check\n server b 10.0.0.2:1 observe layer4\n";
        for (lines, parts) in [
            // Nothing is limited, and nothing is probed.
            (
                "",
                &[
                    "connect_timeout = \"127s\" # HAProxy's default",
                    "idle_timeout = \"0s\" # HAProxy's default; 0s: no limit",
                    "half_close_timeout = \"0s\" # HAProxy's default; 0s: no limit but \
                     `idle_timeout`",
                    "keepalive = false # HAProxy's default",
                    "{ address = \"10.0.0.1:1\", max_fails = 0 }",
                    "{ address = \"10.0.0.2:1\", max_fails = 10 }",
                    "fast_interval = \"2s\"",
                    "timeout = \"2s\"",
                ][..],
            ),
            (
                "timeout client 2m\n timeout server 50s\n timeout server-fin 9s\n",
                &[
                    "idle_timeout = \"50s\" # f:4",
                    "half_close_timeout = \"9s\" # f:5",
                ],
            ),
            (
                "timeout client 5s\n timeout server 5s\n timeout tunnel 1h\n",
                &["idle_timeout = \"1h\" # f:5"],
            ),
            (
                "option clitcpka\n clitcpka-idle 30\n clitcpka-intvl 5s\n clitcpka-cnt 4\n",
                &[
                    "keepalive = { idle = \"30s\", interval = \"5s\", count = 4 }",
                    "user_timeout = \"0s\" # f:3; 0s: off, the kernel decides",
                ],
            ),
            (
                "option tcpka\n",
                &["keepalive = { idle = \"2h\", interval = \"75s\", count = 9 }"],
            ),
            (
                "timeout client 9s\n bind :2 accept-proxy tcp-ut 30s\n",
                &[
                    "accept_proxy = { timeout = \"9s\" }",
                    "user_timeout = \"30s\"",
                ],
            ),
        ] {
            assert_has(&format!("listen a\n bind :1\n {lines} {servers}"), parts);
        }
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
    fn conditions_of_redis_dialogues_are_kept() {
        for (check, parts) in [
            // The link of a replica.
            (
                "option tcp-check\n tcp-check send info\\ replication\\r\\n\n tcp-check expect \
                 string role:slave\n tcp-check expect string master_link_status:up\n",
                &["kind = \"redis\"", "role = \"replica\" # f:4"][..],
            ),
            (
                "option tcp-check\n tcp-check send info\\r\\n\n tcp-check expect string \
                 master_link_status:up\n",
                &["kind = \"redis\"", "role = \"replica\" # f:4"],
            ),
            // Conditions of its own.
            (
                "option tcp-check\n tcp-check send PING\\r\\n\n tcp-check expect string +PONG\n \
                 tcp-check send info\\r\\n\n tcp-check expect rstring connected_slaves:[1-9]\n",
                &[
                    "kind = \"send_expect\"",
                    "send = \"PING\\r\\ninfo\\r\\n\"",
                    "expect_regex = \"(?s)\\\\+PONG.*(?-s:connected_slaves:[1-9])\"",
                ],
            ),
            (
                "option tcp-check\n tcp-check send AUTH\\ x\\r\\n\n tcp-check expect string +OK\n \
                 tcp-check send info\\r\\n\n tcp-check expect string connected_slaves:1\n",
                &["kind = \"redis\""],
            ),
        ] {
            let text = format!(
                "listen db\n mode tcp\n bind 127.0.0.1:5000\n {check}\
                 server a 10.0.0.1:6379 check\n"
            );
            assert_has(&text, parts);
        }
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
                &["kind = \"postgres\"", "login = false", "user = \"check\""],
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
            ("option httpchk GET /x\n", &["path = \"/x\" # f:4"]),
            (
                "option httpchk\n http-check connect ssl port 9\n \
                 http-check send meth GET uri /healthz\n",
                &["tls = \"require\"", "path = \"/healthz\"", "port = 9 # f:5"],
            ),
            // The last one holds.
            (
                "option tcp-check\n option httpchk GET /replica\n",
                &["kind = \"http\"", "path = \"/replica\""],
            ),
            (
                "option httpchk GET /\n http-check expect string OK\\ :\\ master\n",
                &[
                    "kind = \"send_expect\"",
                    "send = \"GET / HTTP/1.0\\r\\n\\r\\n\"",
                    "expect = \"OK : master\"",
                ],
            ),
            (
                "tcp-check send QUIT\\r\\n\n option tcp-check\n tcp-check expect string BYE\n",
                &[
                    "kind = \"send_expect\"",
                    "send = \"QUIT\\r\\n\"",
                    "expect = \"BYE\"",
                ],
            ),
            (
                "option tcp-check\n tcp-check expect rstring ^SSH-2.0\n",
                &["kind = \"send_expect\"", "expect_regex = \"^SSH-2.0\""],
            ),
            (
                "option tcp-check\n tcp-check connect\n tcp-check send-binary 0a0b\n\
                 tcp-check expect binary 0c\n",
                &["send_hex = \"0a0b\"", "expect_hex = \"0c\""],
            ),
            // Without an answer in between they are one text.
            (
                "option tcp-check\n tcp-check connect port 99\n tcp-check send-binary 0a\n \
                 tcp-check comment x\n tcp-check send-binary 0b\n tcp-check expect binary 0c\n",
                &["send_hex = \"0a0b\"", "port = 99 # f:5"],
            ),
            // It must not be there.
            (
                "option tcp-check\n tcp-check expect ! string ERR\n",
                &["kind = \"tcp\""],
            ),
            (
                "option tcp-check\n tcp-check expect rstring ^ID\\ 22\\d+\n",
                &["expect_regex = \"^ID 22\\\\d+\""],
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
            // A server that expects a header gets one, with or without what it says of TLS.
            (
                "\u{feff}listen a\n bind :1\n option httpchk GET /x\n server a 10.0.0.1:1 check \
                 send-proxy-v2-ssl-cn\n server b 10.0.0.2:1 send-proxy-v2\n",
                &["send_proxy = \"v2\" # f:4", "10.0.0.2:1"],
            ),
            // The port follows the last colon.
            (
                "listen a\n bind :::1\n server a 2001:db8::2:12:6443\n",
                &["address = \"[2001:db8::2:12]:6443\"", "\"[::]:1\""],
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
    fn what_holds_for_more_than_it_did_is_listed() {
        for (text, part, place) in [
            (
                "listen a\n bind :1\n bind :2 accept-proxy\n maxconn 3\n server a 10.0.0.1:1\n",
                "max_connections = 3",
                "f:4: `maxconn 3`: ",
            ),
            (
                "global\n maxconn 9\nlisten a\n bind :1\n server a 10.0.0.1:1\n",
                "max_connections = 9",
                "f:2: `maxconn 9`: connections above it are closed",
            ),
            (
                "listen a\n bind :1\n server a 10.0.0.1:1 check on-marked-down shutdown-sessions\n \
                 server b 10.0.0.2:1 check\n",
                "on_down = \"close\" # f:3",
                "f:4: `server b 10.0.0.2:1 check`: its sessions are closed, too",
            ),
            (
                "listen a\n bind :1\n server a 10.0.0.1:1 check\n \
                 server b 10.0.0.2:1 check on-marked-down shutdown-sessions\n",
                "on_down = \"close\" # f:4",
                "f:3: `server a 10.0.0.1:1 check`: its sessions are closed, too",
            ),
            (
                "listen a\n bind :1\n server a 10.0.0.1:1 disabled\n server b 10.0.0.1:1 weight 2\n",
                "weight = 2",
                "f:3: `server a 10.0.0.1:1 disabled`: `disabled`, and the same address",
            ),
            (
                "listen a\n bind :1\n option tcp-check\n tcp-check send ROLE\\r\\n\n tcp-check \
                 expect string master\n server a 10.0.0.1:1 check\n",
                "role = \"primary\"",
                "a change of roles counts at once, without `rise`",
            ),
        ] {
            assert_has(text, &[part]);
            let (_, lists) = imported(text);
            assert!(lists.contains(place), "{place} in {lists}");
        }
    }

    #[test]
    fn frontends_lead_to_backends() {
        assert_has(
            "defaults\n mode tcp\nfrontend f\n bind 10.0.0.9:5432,[::1]:5433 accept-proxy\n\
             tcp-request session reject if !{ src 10.0.0.0/8 192.168.0.0/16 }\
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

    /// Rules of a section, the upstream of its clients, and what a list says.
    const CONDITIONS: &[(&str, &str, &str)] = &[
        ("use_backend x", "x", "f:5: use_backend x\n"),
        (
            "use_backend x if",
            "d",
            "f:5: `use_backend x if`: its condition is empty",
        ),
        ("use_backend x unless", "x", "f:5: use_backend x unless\n"),
        ("use_backend x if ! or", "d", "its condition is empty"),
        ("use_backend x if TRUE", "x", "f:5: use_backend x if TRUE\n"),
        (
            "use_backend x unless FALSE",
            "x",
            "f:5: use_backend x unless FALSE\n",
        ),
        (
            "use_backend x if a !TRUE",
            "d",
            "its condition is empty, or never true",
        ),
        (
            "use_backend x if a or TRUE",
            "x",
            "f:5: use_backend x if a or TRUE\n",
        ),
        (
            "use_backend x if a",
            "d",
            "conditions do not select an upstream: its clients go to `d`",
        ),
        (
            "use_backend x unless a",
            "d",
            "conditions do not select an upstream",
        ),
        (
            "use_backend x if { src 10.0.0.1 } ! { src a }",
            "d",
            "conditions do not",
        ),
        ("use_backend x if WAIT_END", "d", "conditions do not"),
        (
            "use_backend x if b",
            "d",
            "HAProxy itself refuses it: there is no `acl b`",
        ),
        (
            "use_backend x if { src 10.0.0.1",
            "d",
            "HAProxy itself refuses it: a `}` is missing",
        ),
        (
            "use_backend x wenn a",
            "d",
            "HAProxy itself refuses it: `if` and `unless` may",
        ),
        // The rule without a condition comes before `default_backend`.
        (
            "use_backend x if a\n use_backend y",
            "y",
            "its clients go to `y`",
        ),
        (
            "use_backend y\n use_backend x if a",
            "y",
            "f:6: `use_backend x if a`: all clients go to `y` before it",
        ),
        (
            "use_backend y",
            "y",
            "f:6: `default_backend d`: all clients go to `y`",
        ),
    ];

    /// The upstream that clients of a section with these rules go to, and the lists.
    fn upstream_of(rules: &str, kind: &str) -> (String, String) {
        let text = format!(
            "{kind}\n mode tcp\n bind :1\n acl a src 10.0.0.1\n{rules}\n\
             backend d\n server s 10.0.0.1:1\nbackend x\n server s 10.0.0.2:1\n\
             backend y\n server s 10.0.0.3:1\n"
        );
        let (toml, lists) = imported(&text);
        let line = toml.lines().find(|line| line.starts_with("upstream = "));
        let name = line.and_then(|line| line.split('"').nth(1));
        (name.unwrap_or_default().to_owned(), lists)
    }

    /// `haproxy -c` and its picks decide: an empty condition never holds, and `default_backend`
    /// comes before the servers of its own section.
    #[test]
    fn clients_go_where_no_condition_holds() {
        for &(rule, wanted, entry) in CONDITIONS {
            for kind in ["frontend f", "listen f"] {
                let (name, lists) = upstream_of(&format!(" {rule}\n default_backend d"), kind);
                assert_eq!(name, wanted, "{kind} {rule}\n{lists}");
                assert!(lists.contains(entry), "{entry} in\n{lists}");
            }
        }
    }

    #[test]
    fn servers_of_a_listen_serve_where_no_rule_names_a_backend() {
        let own = " server s 10.0.0.9:1\n";
        assert_eq!(upstream_of(own, "listen f").0, "f");
        let (name, lists) = upstream_of(&format!("{own} default_backend d"), "listen f");
        assert_eq!(name, "d");
        assert!(
            lists.contains("f:5: `server s 10.0.0.9:1`: all clients go to `d`"),
            "{lists}"
        );
        assert_eq!(
            upstream_of(&format!("{own} use_backend x if a"), "listen f").0,
            "f"
        );
        let dynamic = import(
            "listen ok\n bind :2\n server s 10.0.0.1:1\nfrontend f\n bind :1\n \
             use_backend %[src]\n default_backend d\nbackend d\n server s 10.0.0.1:1\n",
            "f",
        );
        let report = dynamic.expect("an import").report().to_string();
        assert!(
            report.contains("the name of the backend depends on the session"),
            "{report}"
        );
    }

    #[test]
    fn requests_of_checks_are_listed_where_they_become_others() {
        for (lines, list, entry) in [
            (
                "option httpchk GET /x",
                "carried over",
                "f:3: option httpchk GET /x\n",
            ),
            (
                "option httpchk",
                "differs",
                "`option httpchk`: GET instead of OPTIONS\n",
            ),
            (
                "option httpchk HEAD /",
                "differs",
                "GET instead of that method\n",
            ),
            (
                "option httpchk GET /x HTTP/1.1\\r\\nHost:\\ y",
                "differs",
                "GET with the path",
            ),
            (
                "option httpchk GET /\n http-check expect ! status 503",
                "not carried over",
                "f:4: `http-check expect ! status 503`: `status` names",
            ),
        ] {
            let (_, lists) = imported(&format!(
                "listen a\n bind :1\n {lines}\n server a 10.0.0.1:1 check\n"
            ));
            let (before, _) = lists.split_once(entry).unwrap_or_else(|| panic!("{lists}"));
            let heading = before.lines().rfind(|line| !line.starts_with("  "));
            assert!(
                heading.is_some_and(|h| h.starts_with(list)),
                "{list}: {lists}"
            );
        }
    }

    /// Twice the same key, or the same table, is no TOML.
    /// HAProxy gives up a connect after the shorter of `inter` and `timeout connect`.
    #[test]
    fn a_check_of_the_connection_has_the_limit_of_a_connect() {
        for (limits, option, timeout, entry) in [
            ("", "", "2s", ""),
            (
                "timeout check 10s",
                "",
                "2s",
                "`timeout check 10s`: it is for answers, and only",
            ),
            (
                "timeout check 10s\n timeout connect 1s",
                "",
                "1s",
                "`timeout check 10s`: it is for answers, and only",
            ),
            ("timeout connect 1s", "", "2s", ""),
            (
                "timeout check 10s",
                "option redis-check",
                "10s",
                "is found after 10s, in HAProxy after 2s",
            ),
            (
                "timeout check 1s",
                "option redis-check",
                "1s",
                "f:4: timeout check 1s\n",
            ),
        ] {
            let text = format!(
                "listen a\n mode tcp\n bind :1\n {limits}\n {option}\n \
                                server s 10.0.0.1:1 check\n"
            );
            let text = text.replace("\n \n", "\n");
            let (toml, lists) = imported(&text);
            let line = format!("\ntimeout = \"{timeout}\" ");
            assert!(toml.contains(&line), "{text}\n{toml}");
            assert!(lists.contains(entry), "{entry} in\n{lists}");
        }
    }

    #[test]
    fn why_no_server_is_taken_is_shown() {
        let text = "listen ok\n bind :1\n server s 10.0.0.1:1\nlisten a\n bind :2\n \
                    server s 10.0.0.1\n server t \"${HOST}:1\"\nlisten b\n bind :3\n";
        let (_, lists) = imported(text);
        for part in [
            "f:4-7: `listen a`: left out because of f:6: there is no port in it",
            "also because of f:7: a variable of the environment",
            "f:8-9: `listen b`: left out: there is no server\n",
        ] {
            assert!(lists.contains(part), "{part} in\n{lists}");
        }
    }

    /// As both programs were seen to do it.
    #[test]
    fn what_a_client_sees_that_gets_no_server_is_listed() {
        let lists = |lines: &str, servers: &str| {
            imported(&format!(
                "listen a\n mode tcp\n bind :1\n {lines}\n {servers}"
            ))
            .1
        };
        let two = "server s 10.0.0.1:1\n server t 10.0.0.2:1\n";
        for (lines, entry) in [
            (
                "tcp-request connection reject if { src 10.0.0.1 }",
                "is ended, by HAProxy reset",
            ),
            (
                "tcp-request connection silent-drop if { src 10.0.0.1 }",
                "HAProxy tells the client",
            ),
            (
                "stick-table type ip size 1k store conn_cur\n tcp-request connection track-sc0 \
                 src\n tcp-request connection reject if { src_conn_cur gt 1 }",
                "is ended, by HAProxy reset",
            ),
            (
                "retries 2",
                "HAProxy waits, a second at most, and tries the same server again",
            ),
        ] {
            let lists = lists(lines, two);
            assert!(lists.contains(entry), "{entry} in\n{lists}");
            assert!(!lists.contains("no other server is there"), "{lists}");
        }
        let content = lists("tcp-request content reject if { src 10.0.0.1 }", two);
        assert!(!content.contains("HAProxy reset"), "{content}");
        let one = "server s 10.0.0.1:1\n";
        assert!(lists("", one).contains("HAProxy tries it 3 times more"));
        assert!(lists("retries 5", one).contains("HAProxy tries it 5 times more"));
        assert!(!lists("retries 0", one).contains("times more"));
    }

    #[test]
    fn a_later_value_of_the_process_replaces_an_earlier_one() {
        let (toml, lists) = imported(
            "global\n maxconn 5\n maxconn 6\n nbthread 2\nglobal\n maxconn 7\nlisten a\n bind :1\n \
             server a 10.0.0.1:1\n",
        );
        assert!(toml.contains("workers = 2"), "{toml}");
        assert_eq!(toml.matches("max_connections = 7").count(), 1, "{toml}");
        assert!(
            lists.contains("f:2: `maxconn 5`: a later line replaces it"),
            "{lists}"
        );
    }

    /// What HAProxy reads into the parameters of a server.
    #[test]
    fn limits_and_first_states_of_servers_are_listed_as_what_they_become() {
        let with = |balance: &str, server: &str| {
            imported(&format!(
                "listen l\n bind :1\n timeout queue 9s\n balance {balance}\n \
                 server a db.example:1 {server}\n"
            ))
        };
        for (balance, server, part, entry) in [
            (
                "roundrobin",
                "weight 50%",
                "weight = 50,",
                "`weight 50%`: 50, since HAProxy takes the number alone, in proportion to the \
                 weights of the other servers; only an agent and `set server` have percent, of the \
                 weight in the file",
            ),
            ("roundrobin", "minconn 5", "max_connections = 5,", ""),
            ("roundrobin", "maxconn 5", "queue_length = 1000000 ", ""),
            ("source", "maxconn 5", "queue_stick = \"24h\"", ""),
            (
                "source",
                "maxconn 9 maxqueue 7",
                "queue_length = 7 ",
                "the sum, for all servers",
            ),
            (
                "roundrobin",
                "minconn 9 maxconn 5",
                "max_connections = 9,",
                "",
            ),
            (
                "roundrobin",
                "minconn 5 maxconn 9",
                "max_connections = 9,",
                "`minconn`: max_conn",
            ),
            (
                "roundrobin",
                "maxconn 9 maxqueue 7",
                "queue_length = 7 ",
                "they wait, too, since",
            ),
            (
                "leastconn",
                "maxconn 9 maxqueue 7",
                "queue_length = 7 ",
                "waits for that one",
            ),
            (
                "leastconn",
                "minconn 9 maxqueue 7",
                "queue_timeout = \"9s\"",
                "waits for that one",
            ),
            (
                "first",
                "check init-state down",
                "[upstreams.l.check]",
                "`init-state down`: a list",
            ),
            ("first", "check init-state up", "[upstreams.l.check]", ""),
            ("first", "init-addr none", "resolve_required = false", ""),
            (
                "first",
                "init-addr libc,10.0.0.9",
                "resolve_required = false",
                "10.0.0.9 is no back",
            ),
        ] {
            let (toml, lists) = with(balance, server);
            assert!(toml.contains(part), "{part} in\n{toml}");
            assert!(toml.matches("max_connections").count() <= 1, "{toml}");
            let (rest, lost) = lists.split_once("not carried over: ").expect("the list");
            let (_, differs) = rest.split_once("differs: ").expect("the list");
            let line = differs.lines().find(|line| line.starts_with("  f:5: "));
            assert!(
                line.is_some_and(|line| line.contains(entry)),
                "{entry} in\n{lists}"
            );
            assert!(lost.starts_with('0'), "{lists}");
            let of_source = "`timeout queue 9s`: one queue of the upstream for all its backends; \
                             each waits for the server of its source alone (queue_stick)";
            let sticks = toml.contains("queue_stick = ");
            assert_eq!(lists.contains(of_source), sticks, "{lists}");
            assert!(!sticks || balance == "source", "{toml}");
        }
    }

    /// Nothing listens at more addresses than HAProxy, and no parameter hides another.
    #[test]
    fn an_address_that_would_let_more_clients_in_is_left_out() {
        let (toml, lists) = imported(
            "listen a\n bind :1 mss 1400 accept-proxy\n bind :2 interface eth0\n \
             bind :3 namespace blue\n bind :4 accept-netscaler-cip 1\n bind abns@x\n \
             bind :5 accept-proxy maxconn 9\n server a 10.0.0.1:1\n server b _s._tcp.example\n \
             server c abns@y\n",
        );
        assert!(
            toml.contains("bind = [\"0.0.0.0:1\", \"0.0.0.0:5\"]"),
            "{toml}"
        );
        assert!(toml.contains("accept_proxy = true"), "{toml}");
        for part in [
            "f:2: `bind :1 mss 1400 accept-proxy`: `mss` has no counterpart\n",
            "f:3: `bind :2 interface eth0`: left out: `interface`: name an address",
            "f:4: `bind :3 namespace blue`: left out: `namespace`",
            "f:5: `bind :4 accept-netscaler-cip 1`: left out: only PROXY headers",
            "f:6: `bind abns@x`: left out: `bind` takes addresses and paths",
            "f:7: `bind :5 accept-proxy maxconn 9`: `maxconn` of an address",
            "f:9: `server b _s._tcp.example`: SRV: write",
            "f:10: `server c abns@y`: `abns@`: a backend has",
        ] {
            assert!(lists.contains(part), "{part} in\n{lists}");
        }
    }

    /// A server that expects no PROXY header takes it for data.
    #[test]
    fn a_header_is_sent_to_no_server_that_had_none() {
        let (toml, lists) = imported(
            "listen l\n mode tcp\n bind :1\n server a 10.0.0.1:1\n server b 10.0.0.2:1 \
             send-proxy-v2\n server c 10.0.0.3:1\n",
        );
        assert!(!toml.contains("send_proxy"), "{toml}");
        assert!(toml.contains("10.0.0.1:1") && toml.contains("10.0.0.3:1"));
        assert!(!toml.contains("10.0.0.2:1"), "{toml}");
        let (_, lost) = lists.split_once("not carried over: 1").expect("the list");
        assert!(lost.contains("f:5: `server b 10.0.0.2:1 send-proxy-v2`: it is left out"));
        let (toml, _) = imported(
            "listen l\n mode tcp\n bind :1\n server a 10.0.0.1:1 send-proxy\n server b \
             10.0.0.2:1 send-proxy-v2\n",
        );
        assert!(toml.contains("send_proxy = \"v1\"") && !toml.contains("10.0.0.2:1"));
    }

    #[test]
    fn no_list_shows_a_password() {
        let (_, lists) = imported(
            "userlist u\n user x password y0secret\nlisten l\n mode tcp\n bind :1\n \
             option tcp-check\n tcp-check send AUTH\\ s3cret\\r\\n\n tcp-check send \
             PING\\r\\n\n tcp-check expect string +PONG\n server a 10.0.0.1:1 check\n\
             listen s\n mode http\n stats auth admin:t0psecret\n",
        );
        assert!(
            !lists.contains("secret") && !lists.contains("s3cret"),
            "{lists}"
        );
        assert_eq!(lists.matches("AUTH ***").count(), 1, "{lists}");
    }

    #[test]
    fn a_section_that_is_left_out_names_all_reasons() {
        let servers = (1..=8).map(|n| format!(" server s{n} 10.0.0.{n}:1 ssl\n"));
        let (_, lists) = imported(&format!(
            "listen ok\n bind :9\n server a 10.0.0.1:9\nfrontend f\n bind :1 ssl crt x\n \
             bind :2 ssl crt x\n default_backend b\nbackend b\n{}",
            servers.collect::<String>()
        ));
        let reasons = "`frontend f`: left out because of f:5, f:6: TLS of sessions is not \
                       supported yet; also because of f:9, f:10, f:11, f:12, f:13 and 3 others: \
                       TLS to backends is not supported";
        assert!(lists.contains(reasons), "{lists}");
    }

    #[test]
    fn an_address_with_tls_keeps_no_other_back() {
        let (toml, lists) = imported(
            "listen a\n bind :1\n bind :2 ssl crt x\n bind name:3\n server a 10.0.0.1:1\n",
        );
        assert!(toml.contains("bind = \"0.0.0.0:1\""), "{toml}");
        for part in [
            "not carried over: 2\n",
            "f:3: `bind :2 ssl crt x`: left out: TLS of sessions is not supported yet",
            "f:4: `bind name:3`: left out: `bind` takes addresses",
        ] {
            assert!(lists.contains(part), "{part} in\n{lists}");
        }
    }

    #[test]
    fn names_are_looked_up_by_the_system() {
        let with = |inside: &str| {
            imported(&format!(
                "resolvers r\n {inside}\nlisten l\n mode tcp\n bind :1\n\
                 server a db.example:1 init-addr last,libc,none resolvers r\n\
                 server b 10.0.0.2:1 resolvers r\n"
            ))
        };
        let (toml, lists) = with("nameserver a 10.0.0.53:53");
        assert!(toml.contains("resolve_required = false"), "{toml}");
        for part in [
            "differs: 2\n",
            "f:1-2: `resolvers r`: names are looked up by the name servers of the system",
            "f:6: `server a db.example:1 init-addr last,libc,none resolvers r`: all addresses of \
             db.example are used",
            "not carried over: 0\n",
        ] {
            assert!(lists.contains(part), "{part} in\n{lists}");
        }
        let (_, lists) = with("parse-resolv-conf");
        assert!(lists.contains("differs: 1\n"), "{lists}");
    }

    #[test]
    fn stick_decides_instead_of_balance() {
        let (toml, lists) = imported(
            "listen l\n mode tcp\n bind :1\n balance leastconn\n stick-table type ip size 1m\n \
             stick on src\n server a 10.0.0.1:1\n server b 10.0.0.2:1\n",
        );
        assert!(toml.contains("balance = \"consistent_hash\""), "{toml}");
        let (_, differs) = lists.split_once("differs: 2").expect("the list");
        assert!(
            differs.contains("f:4: `balance leastconn`: `stick on src` decides"),
            "{lists}"
        );
    }

    #[test]
    fn addresses_that_nothing_takes_over_come_first() {
        let (_, lists) = imported(
            "defaults\n mode tcp\nlisten a\n bind :1,:2\n bind :3 ssl crt x\n server a 10.0.0.1:1\n\
             frontend web\n mode http\n bind 10.0.0.1:80,:1\n default_backend b\n\
             listen pages :9\n stats enable\nfrontend none\n bind name:7\n",
        );
        let unserved = "nothing will listen at 0.0.0.0:3 (f:5)\n\
                        nothing will listen at 10.0.0.1:80 (f:9)\n\
                        nothing will listen at 0.0.0.0:9 (f:11)\n\
                        nothing will listen at name:7 (f:14)\ncarried over: ";
        assert!(lists.starts_with(unserved), "{lists}");
        let end = "; addresses at which nothing will listen: 4\n";
        assert!(lists.ends_with(end), "{lists}");
    }

    #[test]
    fn rules_by_address_become_a_list() {
        let with = |lines: &str| {
            let text = format!(
                "frontend f\n bind :1\n{lines} default_backend b\n\
                 backend b\n mode tcp\n acl inside src 10.0.0.0/8 127.0.0.1\n\
                 \x20 tcp-request content reject if ! inside\n server a 10.0.0.1:1\n"
            );
            let (toml, lists) = imported(&text);
            let rules = toml
                .lines()
                .filter(|line| line.contains("\"allow ") || line.contains("\"deny "));
            let rules = rules.filter_map(|line| line.split('"').nth(1).map(str::to_owned));
            (rules.collect::<Vec<_>>(), lists)
        };
        let inside = ["allow 10.0.0.0/8", "allow 127.0.0.1", "deny all"];
        let (rules, lists) = with("");
        assert_eq!(rules, inside);
        assert!(lists.contains("not carried over: 0"), "{lists}");
        // In one of several networks, and in none of them.
        for (condition, wanted) in [
            ("if a or !b", None),
            ("if a b", None),
            ("if a !b", None),
            ("if a or", None),
            ("if { src 10.1.0.0/16", None),
            ("when a", None),
            ("if c", None),
            (
                "if a or b || { src -n 10.3.0.0/16 }",
                Some(["deny 10.1.0.0/16", "deny 10.2.0.0/16"]),
            ),
            ("unless !a ! !{ src 10.0.0.9 } or b", None),
            (
                "unless !a !b",
                Some(["deny 10.1.0.0/16", "deny 10.2.0.0/16"]),
            ),
            ("if !a !b", Some(["allow 10.1.0.0/16", "allow 10.2.0.0/16"])),
            (
                "unless a or b",
                Some(["allow 10.1.0.0/16", "allow 10.2.0.0/16"]),
            ),
        ] {
            let text = format!(
                "listen l\n bind :1\n acl a src -i 10.1.0.0/16\n acl b src -m ip 10.2.0.0/16\n \
                 acl c src_port 1\n tcp-request connection reject {condition}\n \
                 server a 10.0.0.1:1\n"
            );
            let toml = import(&text, "f").expect("an import").toml();
            let rules = |words: [&str; 2]| words.iter().all(|rule| toml.contains(*rule));
            assert_eq!(
                toml.contains("\"undecided\""),
                wanted.is_none(),
                "{condition}\n{toml}"
            );
            assert!(wanted.is_none_or(rules), "{condition}\n{toml}");
        }
        // Refused first, and within the networks, too.
        let (rules, _) = with(" tcp-request connection reject if { src 10.0.0.9 }\n");
        assert_eq!(rules, [&["deny 10.0.0.9"][..], &inside].concat());
        // What the first set lets pass the second one may refuse: no list says that.
        for lines in [
            " tcp-request connection accept if { src 192.168.0.0/16 }\n",
            " tcp-request connection reject if !{ src 192.168.0.0/16 }\n",
            " tcp-request connection accept unless { src 192.168.0.0/16 }\n",
        ] {
            assert_undecided(lines, 2);
        }
    }

    /// Without the rule every client would be served.
    #[test]
    fn a_rule_that_is_lost_lets_no_result_pass() {
        for rule in [
            "tcp-request connection reject if { src -f /etc/list }",
            "tcp-request connection reject if { sc0_conn_rate gt 10 }",
            "tcp-request connection silent-drop unless known",
            "tcp-request content reject if !{ req_ssl_hello_type 1 }",
            "tcp-request content lua.check if { src 10.0.0.0/8 }",
        ] {
            assert_undecided(&format!(" {rule}\n"), 1);
        }
        // Rules of the defaults, too.
        let text = "defaults d\n tcp-request connection reject if { src 10.1.2.3/8 }\n\
                    listen a from d\n bind :1\n server a 10.0.0.1:1\n";
        assert_has(text, &["\"deny 10.0.0.0/8\", # f:2"]);
    }

    #[track_caller]
    fn assert_undecided(rules: &str, count: usize) {
        let text = format!(
            "frontend f\n bind :1\n acl inside src 10.0.0.0/8 127.0.0.1\n{rules} \
             default_backend b\nbackend b\n tcp-request content reject if {{ src 10.0.0.9 }}\n\
             server a 10.0.0.1:1\n"
        );
        let document = import(&text, "f").expect("an import");
        let (toml, report) = (document.toml(), document.report().to_string());
        assert_eq!(toml.matches("  \"undecided\",").count(), count, "{toml}");
        let error = config::parse(&toml, "f")
            .map(|_| ())
            .expect_err("a problem");
        assert!(
            error.to_string().contains("\"undecided\" stands for"),
            "{error}"
        );
        let (_, lost) = report.split_once("not carried over: ").expect("the list");
        assert_eq!(
            lost.matches("`check` refuses the result").count(),
            count,
            "{report}"
        );
    }

    #[test]
    fn pages_of_haproxy_lead_to_those_of_the_admin_port() {
        let (_, lists) = imported(
            "listen l\n mode tcp\n bind :1\n stats auth a:y0secret\n server a 10.0.0.1:1\n\
             listen stats\n mode http\n bind :8404\n stats enable\n stats auth a:y0secret\n \
             stats admin if TRUE\nfrontend p\n mode http\n bind :8405\n \
             http-request use-service prometheus-exporter if { path /metrics }\n",
        );
        for part in [
            "f:4: `stats auth ***`: [admin] listen has no login",
            "f:6-11: `listen stats`: [admin] listen takes its place, with a status page, /metrics \
             and /readyz; [admin] listen has no login: bind it to an address that only operators \
             reach; it is read only: `tembuku drain`, `maint` and `ready` use [admin] socket\n",
            "f:12-15: `frontend p`: [admin] listen takes its place",
            "not carried over: 0\n",
        ] {
            assert!(lists.contains(part), "{part} in\n{lists}");
        }
    }

    #[test]
    fn checks_of_mysql_say_as_whom_they_log_in() {
        for (user, part) in [
            (
                " user ha",
                "f:3: `option mysql-check user ha`: it logs in as `ha` without",
            ),
            (
                "",
                "f:3: `option mysql-check`: kind = \"mysql\" needs a `user`",
            ),
        ] {
            let (_, lists) = imported(&format!(
                "listen l\n bind :1\n option mysql-check{user}\n server a 10.0.0.1:1 check\n"
            ));
            assert!(lists.contains(part), "{part} in\n{lists}");
        }
    }

    #[test]
    fn proxies_that_a_rule_expects_are_trusted() {
        let with = |rules: &str| {
            let text = format!(
                "listen l\n bind :1\n timeout client 9s\n acl lb src 10.0.0.2 10.0.1.0/24\n\
                 {rules} server a 10.0.0.1:1\n"
            );
            let document = import(&text, "f").expect("an import");
            (document.toml(), document.report().to_string())
        };
        let expect = " tcp-request connection expect-proxy layer4";
        for (condition, value) in [
            (
                "if { src 10.0.0.2 }",
                "{ trust = [\"10.0.0.2\"], timeout = \"9s\" }",
            ),
            (
                "if lb",
                "{ trust = [\"10.0.0.2\", \"10.0.1.0/24\"], timeout = \"9s\" }",
            ),
            ("", "{ timeout = \"9s\" }"),
        ] {
            let (toml, lists) = with(&format!("{expect} {condition}\n"));
            assert!(toml.contains(&format!("accept_proxy = {value}")), "{toml}");
            config::parse(&toml, "f").unwrap_or_else(|e| panic!("{toml}\n{e}"));
            // The rule is the only one that names the acl.
            let loses_nothing = lists.contains("not carried over: 0");
            assert_eq!(loses_nothing, condition == "if lb", "{lists}");
        }
        let (toml, lists) = with(&format!("{expect} unless lb\n"));
        assert!(!toml.contains("accept_proxy"), "{toml}");
        assert!(
            lists.contains("unless lb`: `trust` of accept_proxy names"),
            "{lists}"
        );
        // The rule is for the peer, which `access` does not see then.
        let reject = " tcp-request connection reject unless lb\n";
        let (toml, lists) = with(&format!("{expect} if lb\n{reject}"));
        assert!(toml.contains("\"undecided\""), "{toml}");
        assert!(
            lists.contains("it looks at the peer, `access` at the client"),
            "{lists}"
        );
        let (toml, _) = with(reject);
        assert!(!toml.contains("\"undecided\""), "{toml}");
    }

    #[test]
    fn the_networks_of_a_rule_may_be_in_a_file() {
        let path = std::env::temp_dir().join(format!("tembuku-networks-{}", std::process::id()));
        let with = |networks: &str| {
            std::fs::write(&path, networks).expect("a file");
            let text = format!(
                "listen l\n bind :1\n acl bad src 10.0.0.9 -f {}\n\
                 tcp-request connection reject if bad\n server a 10.0.0.1:1\n",
                path.display()
            );
            let document = import(&text, "f").expect("an import");
            std::fs::remove_file(&path).expect("a file");
            (document.toml(), document.report().to_string())
        };
        let (toml, _) = with("# spam\n203.0.113.0/24\n\n 2001:db8::/32 \n");
        for rule in ["10.0.0.9", "203.0.113.0/24", "2001:db8::/32"] {
            assert!(toml.contains(&format!("\"deny {rule}\"")), "{toml}");
        }
        for (networks, part) in [
            (
                "203.0.113.0/24\nhost.example\n",
                ":2: this is no network: `check` refuses",
            ),
            (
                &"#\n".repeat(1 << 20),
                ": it is larger than 1 MiB: `check` refuses",
            ),
        ] {
            let (toml, lists) = with(networks);
            assert!(toml.contains("\"undecided\""), "{toml}");
            assert!(lists.contains(part), "{part} in\n{lists}");
        }
    }

    /// It is read once, for whatever many rules and listeners.
    #[test]
    fn the_networks_of_rules_may_come_from_a_pipe() {
        use std::{io::Write as _, os::fd::AsRawFd as _};
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        writer.write_all(b"203.0.113.0/24\n").expect("written");
        drop(writer);
        let rule = format!(
            "tcp-request connection reject if {{ src -f /proc/self/fd/{} }}\n",
            reader.as_raw_fd()
        );
        let (toml, _) = imported(&format!(
            "frontend f\n bind :1\n bind :2 tcp-ut 9s\n {rule} default_backend b\n\
             backend b\n server a 10.0.0.1:1\nlisten l\n bind :3\n {rule} {rule} \
             server a 10.0.0.1:1\n"
        ));
        assert_eq!(toml.matches("\"deny 203.0.113.0/24\"").count(), 4, "{toml}");
    }

    #[test]
    fn rules_that_count_lead_to_the_limit_that_counts() {
        for (rule, key) in [
            ("if { sc0_conn_rate gt 9 }", "connection_rate_per_source"),
            ("if { sc_conn_rate(0) gt 9 }", "connection_rate_per_source"),
            ("if { src_conn_cur(t) ge 9 }", "max_connections_per_source"),
            ("if fast", "connection_rate_per_source"),
            ("if { fe_sess_rate ge 90 }", "connection_rate"),
        ] {
            let document = import(
                &format!(
                    "listen l\n bind :1\n stick-table type ip size 1m store conn_rate(3s)\n \
                     acl fast src_conn_rate gt 9\n tcp-request connection track-sc0 src\n \
                     http-request track-sc1 src\n tcp-request connection reject {rule}\n \
                     server a 10.0.0.1:1\nbackend t\n stick-table type ip size 1m store conn_cur\n"
                ),
                "f",
            );
            let lists = document.expect("an import").report().to_string();
            for part in [
                format!("f:7: `tcp-request connection reject {rule}`: `{key}` limits by it")
                    .as_str(),
                "f:5: `tcp-request connection track-sc0 src`: `connection_rate_per_source` and",
                "f:6: `http-request track-sc1 src`: in `mode tcp` HAProxy ignores it; \
                 `connection_rate_per_source` and",
                "store conn_rate(3s)`: `connection_rate_per_source` and",
                "f:9-10: `backend t`: `connection_rate_per_source` and",
            ] {
                assert!(lists.contains(part), "{part} in\n{lists}");
            }
        }
    }

    #[test]
    fn a_plain_limit_of_a_source_becomes_its_key() {
        const TABLE: &str = "stick-table type ip size 1m expire 30s store conn_rate(1s),conn_cur";
        const TRACK: &str = "tcp-request connection track-sc0 src";
        let with = |lines: &[&str]| {
            let text = format!(
                "listen l\n bind :1\n {}\n server a 10.0.0.1:1\n",
                lines.join("\n ")
            );
            import(&text, "f").expect("an import").toml()
        };
        let reject = |what: &str| format!("tcp-request connection reject if {{ {what} }}");
        for (what, most) in [
            ("src_conn_cur gt 20", 20),
            ("sc0_conn_cur gt 20", 20),
            ("sc_conn_cur(0) ge 20", 19),
        ] {
            let toml = with(&[TABLE, TRACK, &reject(what)]);
            let line = format!("max_connections_per_source = {most} ");
            assert!(
                toml.contains(&line) && !toml.contains("undecided"),
                "{toml}"
            );
            config::parse(&toml, "f").unwrap_or_else(|e| panic!("{toml}\n{e}"));
        }
        let plain = reject("src_conn_cur gt 20");
        let accept = "tcp-request connection accept if { src 10.0.0.0/8 }";
        for lines in [
            // The connection itself does not count.
            &[TABLE, &plain, TRACK][..],
            &[TABLE, &plain],
            // Not all are counted, or in another way.
            &[TABLE, accept, TRACK, &plain],
            &[TABLE, "tcp-request connection track-sc0 src if x", &plain],
            &[TABLE, TRACK, "tcp-request connection track-sc1 src", &plain],
            &[
                TABLE,
                "tcp-request connection track-sc0 src table t",
                &plain,
            ],
            &[
                "stick-table type ip size 1m store conn_rate(1s)",
                TRACK,
                &plain,
            ],
            &[
                "stick-table type string size 1m store conn_cur",
                TRACK,
                &plain,
            ],
            // It is more than a limit.
            &[
                TABLE,
                TRACK,
                &reject("src_conn_cur gt 20 } { src 10.0.0.0/8"),
            ],
            &[TABLE, TRACK, &reject("src_conn_cur(t) gt 20")],
            &[TABLE, TRACK, &reject("sc1_conn_cur gt 20")],
            &[TABLE, TRACK, &reject("src_conn_cur eq 20")],
            &[TABLE, TRACK, &reject("src_conn_cur ge 1")],
            // Two listeners would count for themselves.
            &["bind :2 accept-proxy", TABLE, TRACK, &plain],
        ] {
            let toml = with(lines);
            assert!(!toml.contains("max_connections_per_source ="), "{toml}");
            assert!(toml.contains("\"undecided\""), "{toml}");
        }
    }

    #[test]
    fn sessions_are_recorded_where_haproxy_does_it() {
        let text = "global\n log /dev/log local0\ndefaults\n mode tcp\n log global\n\
                    option tcplog\n option dontlognull\nlisten a\n bind :1\n\
                    server a 10.0.0.1:1\nlisten b\n bind :2\n no log\n server a 10.0.0.1:1\n";
        assert_has(
            text,
            &[
                "[log] # f:5 access = \"stdout\" # f:5",
                "access_log = \"off\" # f:11",
            ],
        );
        let (toml, lists) = imported(text);
        assert_eq!(toml.matches("access_log").count(), 1, "{toml}");
        let (_, differs) = lists.split_once("differs: ").expect("the list");
        for part in [
            "f:5: `log global`: sessions are recorded on standard output",
            "f:6: `option tcplog`: a record of a session is JSON",
            "f:7: `option dontlognull`: all sessions are recorded",
        ] {
            assert!(differs.contains(part), "{part} in\n{lists}");
        }
        // Without a target there are none.
        let (toml, lists) = imported(
            "defaults\n mode tcp\n log global\n option tcplog\nlisten a\n bind :1\n\
             server a 10.0.0.1:1\n server b 10.0.0.2:1\n",
        );
        assert!(
            !toml.contains("[log]") && lists.contains("differs: 0"),
            "{toml}\n{lists}"
        );
    }

    #[test]
    fn one_backup_serves_at_a_time() {
        let with = |lines: &str| {
            let text = format!(
                "listen a\n bind :1\n balance leastconn\n {lines}server a 10.0.0.1:1\n\
                 server b 10.0.0.2:1 backup\n server c 10.0.0.3:1 backup\n"
            );
            imported(&text).0
        };
        assert!(with("").contains("balance = \"first\""));
        assert!(with("option allbackups\n ").contains("balance = \"least_conn\""));
        assert!(with("server d 10.0.0.4:1\n ").contains("balance = \"least_conn\""));
    }

    /// Other values of checks, addresses of a listener with other parameters.
    #[test]
    fn what_is_of_one_server_or_address_is_listed() {
        let (_, lists) = imported(
            "listen a\n bind :1\n bind :2 accept-proxy\n timeout client 0\n\
             server a 10.0.0.1:1 check inter 3s\n\
             server b 10.0.0.2:1 check inter 3s fall 9\n\
             server c 10.0.0.3:1 check port 9 inter 3s\n",
        );
        let (rest, lost) = lists.split_once("not carried over: ").expect("the list");
        for part in [
            "f:4: `timeout client 0`: it is no limit",
            "`fall`: one check for all backends, that of f:5",
        ] {
            assert!(rest.contains(part), "{part} in\n{lists}");
        }
        assert!(
            lost.contains("`port`: one check for all backends"),
            "{lists}"
        );
        assert_has(
            "listen a\n bind :1\n bind :2 accept-proxy\n bind :3\n server a 10.0.0.1:1\n",
            &[
                "[listeners.a] # f:1 bind = [\"0.0.0.0:1\", \"0.0.0.0:3\"] # f:2",
                "[listeners.a-2] # f:1 bind = \"0.0.0.0:2\" # f:3",
                "accept_proxy = true # f:3",
            ],
        );
    }

    #[test]
    fn every_value_names_its_line() {
        assert_has(
            "listen a\n bind :1\n default-server maxconn 9 inter 3s rise 4\n\
             timeout connect 7s\n server a 10.0.0.1:1 check weight 2\n\
             server b 10.0.0.2:1 observe layer4 maxqueue 8\n",
            &[
                "max_connections = 9, weight = 2, max_fails = 0 }, # f:5, f:3; max_fails: no \
                 `observe`",
                "max_connections = 9, max_fails = 10 }, # f:6, f:3",
                "queue_timeout = \"7s\" # f:4",
                "queue_length = 8 # f:6",
                "interval = \"3s\" # f:3",
                "fast_interval = \"3s\" # f:3",
                "rise = 4 # f:3",
            ],
        );
        // The names of old versions, and an address behind that of the section.
        assert_has(
            "defaults\n contimeout 5000\nlisten a 127.0.0.1:1\n server a 10.0.0.1:1\n",
            &[
                "bind = \"127.0.0.1:1\" # f:3",
                "connect_timeout = \"5s\" # f:2",
            ],
        );
    }

    #[test]
    fn a_later_rule_holds_within_the_networks_of_an_earlier_one() {
        assert_has(
            "listen a\n bind :1\n tcp-request connection reject unless { src 10.0.0.0/8 }\n\
             tcp-request connection reject if { src 10.9.0.0/16 }\n server a 10.0.0.1:1\n",
            &["\"deny 10.9.0.0/16\", # f:4 \"allow 10.0.0.0/8\", # f:3 \"deny all\","],
        );
        assert_has(
            "listen a\n bind :1\n tcp-request connection accept unless { src 10.0.0.0/8 }\n\
             tcp-request connection reject\n server a 10.0.0.1:1\n",
            &["\"deny 10.0.0.0/8\", # f:3 \"allow all\", # f:3"],
        );
    }

    #[test]
    fn no_line_is_left_unsaid() {
        let text = "  defaults\n  mode tcp\n\n  listen a\n  bind :1\n  stick-table type ip size 2\n\
                    stick on dst\n option smtpchk\n option redispatch\n fullconn 9\n\
                    http-request deny\n tcp-check connect\n timeout queue 5s\n frobnicate\n\
                    server a 10.0.0.1:25 check\n";
        assert_has(
            text,
            &[
                "kind = \"send_expect\"",
                "expect_regex = \"^2[0-9]{2}[ -]\"",
            ],
        );
        let (_, lists) = imported(text);
        for line in 5..16 {
            assert!(lists.contains(&format!("f:{line}: ")), "{line} in\n{lists}");
        }
        for part in [
            "f:6: `stick-table",
            "f:7: `stick on dst`",
            "f:14: `frobnicate`",
        ] {
            let (_, lost) = lists.split_once("not carried over: ").expect("the list");
            assert!(lost.contains(part), "{part} in\n{lists}");
        }
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
            (
                "listen v\n bind :85\n server a \"${HOST}:1\"\n server b 10.0.0.1:1\n",
                "${HOST}:1`: a variable of the environment",
            ),
            (
                "listen v\n bind :85\n .if defined(X)\n server b 10.0.0.1:1\n .endif\n",
                "f:6: `.if defined(X)`: conditions are not evaluated",
            ),
            (
                "listen v\n bind :85\n server a 10.0.0.1:+5\n server b 10.0.0.1:1\n",
                "f:6: `server a 10.0.0.1:+5`: there is no port in it",
            ),
            (
                "listen v\n bind :85\n option tcp-check\n tcp-check connect ssl\n \
                 tcp-check expect string x\n server b 10.0.0.1:1 check\n",
                "f:7: `tcp-check connect ssl`: this check has no TLS",
            ),
            (
                "listen v\n bind :85\n option tcp-check\n tcp-check connect port 1\n \
                 tcp-check connect port 2\n server b 10.0.0.1:1 check\n",
                "f:8: `tcp-check connect port 2`: one exchange of text is possible",
            ),
            (
                "listen v\n bind :85\n server a 10.0.0.1\n server b 10.0.0.1:1\n",
                "HAProxy takes that of the client",
            ),
            (
                "listen v\n bind :85\n server a 10.0.0.1:1 weight 9 agent-check\n",
                "`agent-check`: no agent sets the state, nor the weight in percent of that in",
            ),
            (
                "listen v\n bind :85\n persist rdp-cookie\n server b 10.0.0.1:1\n",
                "nothing is read ahead: balance = \"consistent_hash\" keeps",
            ),
        ] {
            let text = format!("listen ok\n bind :9\n server a 10.0.0.1:9\n{text}");
            let (_, lists) = imported(&text);
            let (_, lost) = lists.split_once("not carried over: ").expect("the list");
            assert!(lost.contains(part), "{part} in\n{lists}");
        }
        assert!(import("global\n", "f").is_err());
    }
}
