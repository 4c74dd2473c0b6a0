//! The configuration of another program as one of this program.

mod document;
mod haproxy;
mod nginx;
mod report;

pub use document::Document;
pub use report::List;

/// Larger files, with all that they include, are no configuration.
pub const MOST_BYTES: u64 = 16 << 20;

/// What a configuration is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    Nginx,
    Haproxy,
}

impl Program {
    pub fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "HAProxy",
        }
    }

    /// `origin`: the name of the file. An error is a whole message.
    pub fn import(self, text: &str, origin: &str) -> Result<Document, String> {
        let imported = match self {
            Self::Nginx => nginx::import(text, origin),
            Self::Haproxy => haproxy::import(text, origin),
        };
        imported.map_err(|why| format!("{why}{}", self.hint_for(text)))
    }

    /// What the text is, if not of this program.
    fn hint_for(self, text: &str) -> &'static str {
        const OF_HAPROXY: [&str; 5] = ["global", "defaults", "frontend", "backend", "listen"];
        let begins = |line: &str| {
            line.split_whitespace()
                .next()
                .unwrap_or_default()
                .to_owned()
        };
        let is_haproxy = |line: &str| {
            OF_HAPROXY.contains(&begins(line).as_str()) && !line.contains([';', '{', '='])
        };
        let is_nginx = |line: &str| line.trim_end().ends_with(['{', ';']);
        match self {
            _ if text.trim().is_empty() => {
                "\n  hint: there is nothing in it: has a command failed?"
            }
            Self::Nginx if text.lines().any(is_haproxy) => {
                "\n  hint: is it of HAProxy? `tembuku import haproxy FILE`"
            }
            Self::Haproxy if text.lines().any(is_nginx) => {
                "\n  hint: is it of nginx? `tembuku import nginx FILE`"
            }
            _ => "",
        }
    }
}

/// What the text of an nginx configuration becomes, for fuzz targets.
pub fn import_nginx(text: &str) -> Option<String> {
    import(text, Program::Nginx)
}

/// The same of HAProxy.
pub fn import_haproxy(text: &str) -> Option<String> {
    import(text, Program::Haproxy)
}

fn import(text: &str, program: Program) -> Option<String> {
    let mut document = program.import(text, "f").ok()?;
    let _ = document.report().to_string();
    document.complete(program);
    Some(document.toml())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use proptest::{collection::vec, prelude::*};

    /// The first block in this language of a page.
    fn block(page: &str, language: &str) -> String {
        let path = format!("{}/../../docs/{page}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).expect("a page");
        let begin = format!("```{language}\n");
        let block = text.split(&begin).nth(1).expect("a block");
        block.split("\n```").next().unwrap_or_default().to_owned()
    }

    const PAGES: [(&str, &str, Program); 2] = [
        ("coming-from-nginx.md", "nginx", Program::Nginx),
        ("coming-from-haproxy.md", "haproxy", Program::Haproxy),
    ];

    #[test]
    fn the_pages_show_what_an_import_makes() {
        for (page, language, program) in PAGES {
            let mut document = program
                .import(&block(page, language), "f")
                .expect("an import");
            document.complete(program);
            let made: toml::Table = document.toml().parse().expect("TOML");
            let shown: toml::Table = block(page, "toml").parse().expect("TOML");
            assert_eq!(made, shown, "{page}");
            let report = document.report();
            assert!(!report.has(List::Lost), "{report}");
        }
    }

    /// A file that is found later says what it lacks.
    #[test]
    fn comments_at_the_head_say_what_is_lost() {
        let servers = "server { listen 1 ssl; proxy_pass a:1; }\n".repeat(120);
        let text = format!(
            "stream {{\nserver {{ listen 2; proxy_pass a:1; \u{1}; proxy_bind \u{2}; }}\n\
             log_format x;\n{servers}}}\n"
        );
        let document = Program::Nginx.import(&text, "f").expect("an import");
        let head = document.report().comments("tembuku import nginx f");
        for part in [
            "# Made by `tembuku import nginx f`; each line",
            "\n#\n# nothing will listen at 0.0.0.0:1 (f:4)\n#\n# not carried over: 122\n#   f:2: `?`: ",
            "#   f:2: `proxy_bind ?`: backends see",
            "#   f:4: `server`: left out: TLS",
            "#   and 22 more, which",
            "\n#\n# differs: 2\n",
            "#   f:3: `log_format x`: a record",
        ] {
            assert!(head.contains(part), "{part} in\n{head}");
        }
        let made = format!("{head}{}", document.toml());
        config::parse(&made, "f").unwrap_or_else(|e| panic!("{made}\n{e}"));
    }

    /// Eight times as many sections and rules take eight times as long, and not sixty.
    #[test]
    fn the_time_of_an_import_is_that_of_its_length() {
        use rustix::time::{ClockId, clock_gettime};
        let of_nginx = |n: usize| {
            let servers = (2..n + 2).map(|n| {
                format!(
                    "upstream u{n} {{ server 10.0.0.1:{n}; }} log_format a b;\nlog_format c d; \
                     server {{ listen 127.0.0.1:{n}; proxy_pass u{n}; }}\n"
                )
            });
            format!("stream {{ {} }}", servers.collect::<String>())
        };
        let of_haproxy = |n: usize| {
            let rules = (2..n + 2).map(|n| {
                format!(
                    " acl a{n} src 10.0.{}.{}\n tcp-request connection reject if a{n}\n",
                    n / 250,
                    n % 250
                )
            });
            let rules = rules.collect::<String>();
            let sections =
                (2..n + 2).map(|n| format!("listen l{n}\n bind :{n}\n server s a:{n}\n"));
            let sections = sections.collect::<String>();
            format!("listen l\n mode tcp\n bind :1\n{rules} server a 10.0.0.1:1\n{sections}")
        };
        let cpu = || {
            let now = clock_gettime(ClockId::ThreadCPUTime);
            now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
        };
        let time = |program: Program, text: &str| {
            let begin = cpu();
            let made = import(text, program).expect("an import");
            config::parse(&made, "f").expect("a configuration");
            cpu() - begin
        };
        let texts: [(Program, &dyn Fn(usize) -> String); 2] =
            [(Program::Nginx, &of_nginx), (Program::Haproxy, &of_haproxy)];
        for (program, text) in texts {
            let (short, long) = (time(program, &text(500)), time(program, &text(4_000)));
            assert!(
                long < short * 20.0,
                "{program:?}: {short:.3} s, and {long:.3} s for eight times as much"
            );
        }
    }

    #[test]
    fn a_file_of_the_other_program_is_recognised() {
        for (page, language, program) in PAGES {
            let text = block(page, language);
            assert_eq!(program.hint_for(&text), "");
            assert!(program.import(&text, "f").is_ok());
            let (_, _, other) = PAGES.into_iter().find(|p| p.2 != program).expect("two");
            let why = other.import(&text, "f").expect_err("a hint");
            assert!(why.contains("`tembuku import "), "{page}: {why}");
        }
    }

    /// A text that ends somewhere, lacks a line, or has bytes of something else in it.
    #[test]
    fn no_part_of_a_configuration_makes_an_import_panic() {
        for (page, language, program) in PAGES {
            let text = block(page, language);
            let try_it = |text: &str| {
                if let Ok(mut document) = program.import(text, "f") {
                    document.complete(program);
                    let _ = (document.toml(), document.report().to_string());
                }
            };
            for (n, _) in text.char_indices() {
                try_it(&text[..n]);
                try_it(&text[n..]);
                for inserted in [
                    "\0", "{", "}", ";", "\"", "\\", "é", "\n", " ", "$", ":", "[", "-1",
                ] {
                    try_it(&format!("{}{inserted}{}", &text[..n], &text[n..]));
                }
            }
            let words: Vec<&str> = text.split(' ').collect();
            for n in 0..words.len() {
                let without: Vec<&str> = [&words[..n], &words[n + 1..]].concat();
                try_it(&without.join(" "));
            }
        }
    }

    /// What is no number, or has bytes that TOML knows in no comment, is refused at its place.
    #[test]
    fn words_that_are_no_toml_do_not_spoil_the_rest() {
        let of_haproxy = "listen a\n mode tcp\n bind :1\n balance source\n hash-type consistent\n \
                          hash-balance-factor 1-\n maxconn 9\u{1}\n retries ]\n option tcp-check\n \
                          acl x src \u{7}\n tcp-request connection reject if x\n \
                          server a 10.0.0.1:1 check rise 3- fall {\u{0} weight x maxconn 0x\n";
        let of_nginx = "stream { server { listen 1; proxy_pass u; deny \u{7}; limit_conn z x; }\n\
                        upstream u { hash $remote_addr; server 10.0.0.1:1 weight=3-; } }";
        for (text, imported) in [
            (of_haproxy, import_haproxy(of_haproxy)),
            (of_nginx, import_nginx(of_nginx)),
        ] {
            let made = imported.unwrap_or_else(|| panic!("no import of {text}"));
            let table = made.parse::<toml::Table>();
            assert!(table.is_ok(), "{table:?}\n{made}");
        }
    }

    /// The lines that entries of the report stand for, each as often as it is in one.
    fn reported(report: &str) -> Vec<usize> {
        let entries = report.lines().filter_map(|line| line.strip_prefix("  f:"));
        let range = |entry: &str| {
            let range = entry.split_once(": ").expect("a place").0;
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let [first, last] = [first, last].map(|n| n.parse::<usize>().expect("a line"));
            first..=last
        };
        let mut lines: Vec<usize> = entries.flat_map(range).collect();
        lines.sort_unstable();
        lines
    }

    /// Each line is a directive, or what ends a block.
    #[track_caller]
    fn assert_reported_once(program: Program, text: &str) {
        let Ok(mut document) = program.import(text, "f") else {
            return;
        };
        let report = document.report().to_string();
        let numbered = text.lines().enumerate().map(|(n, line)| (n + 1, line));
        let is_directive = |(_, line): &(usize, &str)| !["", "}"].contains(&line.trim());
        let wanted = numbered.filter(is_directive).map(|(n, _)| n);
        // Ends of blocks are within the ranges of what is left out.
        let is_end = |n: &usize| text.lines().nth(n - 1).is_some_and(|l| l.trim() == "}");
        let found = reported(&report).into_iter().filter(|n| !is_end(n));
        assert_eq!(
            found.collect::<Vec<_>>(),
            wanted.collect::<Vec<_>>(),
            "{text}\n{report}"
        );
        assert!(
            !report.contains("nothing is known of it"),
            "{text}\n{report}"
        );
        document.complete(program);
        let table = document.toml().parse::<toml::Table>();
        assert!(table.is_ok(), "{text}\n{table:?}");
    }

    const OF_HAPROXY: [&str; 65] = [
        "mode tcp",
        "mode http",
        "bind :1",
        "bind :2 accept-proxy",
        "bind :3 ssl crt x",
        "log global",
        "log /dev/log local0",
        "no log",
        "option tcplog",
        "option httplog",
        "option dontlognull",
        "no option dontlognull",
        "log-format x",
        "log-tag y",
        "option logasap",
        "balance source",
        "balance leastconn",
        "balance uri",
        "hash-type consistent",
        "nbthread 2",
        "stick on src",
        "stick-table type ip size 1m",
        "timeout client 5s",
        "timeout server 1m",
        "timeout connect 3s",
        "timeout queue 1m",
        "timeout check 1s",
        "timeout tunnel 1h",
        "timeout client-fin 3s",
        "timeout http-request 3s",
        "timeout connect x",
        "retries 3",
        "option redispatch",
        "option tcpka",
        "option clitcpka",
        "clitcpka-idle 3s",
        "maxconn 300",
        "backlog 5",
        "rate-limit sessions 9",
        "default_backend b",
        "use_backend b",
        "use_backend b if x",
        "acl x src 10.0.0.0/8",
        "acl y src -f /list",
        "tcp-request connection reject if x",
        "tcp-request connection reject if y",
        "tcp-request content accept if x",
        "tcp-request content accept if z",
        "tcp-request inspect-delay 5s",
        "tcp-request connection track-sc0 src",
        "option tcp-check",
        "tcp-check send PING",
        "tcp-check expect string +PONG",
        "tcp-check connect port 5",
        "option httpchk GET /primary",
        "http-check expect status 200",
        "option mysql-check user a",
        "default-server inter 3s maxconn 9 maxqueue 3",
        "server a 10.0.0.1:1 check",
        "server b 10.0.0.2:1 backup weight x",
        "server c d:1 frob 3 observe layer4",
        "server a 10.0.0.1:1",
        "server e 10.0.0.3",
        "stats enable",
        "frobnicate now",
    ];
    const SECTIONS: [&str; 12] = [
        "defaults",
        "global",
        "listen a",
        "listen c :5",
        "frontend f",
        "frontend g",
        "backend b",
        "backend unused",
        "resolvers r",
        "peers p",
        "userlist u",
        "cache c",
    ];
    const OF_NGINX: [&str; 64] = [
        "listen 1;",
        "listen 2 udp;",
        "listen 3 ssl;",
        "listen 4 proxy_protocol so_keepalive=on;",
        "proxy_pass u;",
        "proxy_pass v;",
        "proxy_pass a.example:1;",
        "proxy_pass $x;",
        "proxy_timeout 1h;",
        "proxy_timeout 0;",
        "proxy_connect_timeout 1s;",
        "proxy_protocol on;",
        "proxy_protocol off;",
        "proxy_responses 1;",
        "proxy_responses 0;",
        "proxy_requests 2;",
        "proxy_half_close on;",
        "proxy_half_close off;",
        "proxy_socket_keepalive on;",
        "proxy_next_upstream off;",
        "proxy_next_upstream on;",
        "proxy_next_upstream_tries 3;",
        "proxy_upload_rate 1m;",
        "proxy_download_rate 0;",
        "set_real_ip_from 10.0.0.0/8;",
        "proxy_protocol_timeout 3s;",
        "tcp_nodelay on;",
        "tcp_nodelay off;",
        "allow 10.0.0.1/8;",
        "deny all;",
        "deny x.example;",
        "allow unix:;",
        "limit_conn z 3;",
        "limit_conn none 3;",
        "limit_conn_zone $remote_addr zone=z:1m;",
        "limit_conn_dry_run on;",
        "access_log /var/log/a basic;",
        "access_log off;",
        "error_log /var/log/e warn;",
        "log_format basic '$status';",
        "ssl_preread on;",
        "ssl_certificate /c;",
        "server_name a.example;",
        "resolver 10.0.0.1;",
        "set $x a:1;",
        "proxy_bind 10.0.0.1;",
        "js_access a;",
        "return 1;",
        "frobnicate on;",
        "include not-here.conf;",
        "include not-here/*;",
        "hash $remote_addr consistent;",
        "hash $request_uri;",
        "least_conn;",
        "random two;",
        "ip_hash;",
        "zone a 1m;",
        "keepalive 3;",
        "server 10.0.0.1:1;",
        "server 10.0.0.1:1 weight=2;",
        "server a.example:1 backup frob=1;",
        "server b.example service=x;",
        "worker_processes 2;",
        "auth_basic x;",
    ];
    const BLOCKS: [&str; 8] = [
        "server {",
        "upstream u {",
        "upstream v {",
        "map $remote_addr $x {",
        "events {",
        "location / {",
        "location /x {",
        "if ($x) {",
    ];

    proptest! {
        #[test]
        fn every_line_of_haproxy_is_reported_once(
            sections in vec((0..SECTIONS.len(), vec(0..OF_HAPROXY.len(), 0..9)), 1..8),
        ) {
            let mut text = String::new();
            for (section, lines) in sections {
                text.push_str(&format!("{}\n", SECTIONS[section]));
                for line in lines {
                    text.push_str(&format!("  {}\n", OF_HAPROXY[line]));
                }
            }
            assert_reported_once(Program::Haproxy, &text);
        }

        #[test]
        fn every_line_of_nginx_is_reported_once(
            outer in prop::sample::select(&["stream {", "http {", "server {"][..]),
            main in vec(0..OF_NGINX.len(), 0..3),
            blocks in vec((0..BLOCKS.len(), vec(0..OF_NGINX.len(), 0..9), 0..BLOCKS.len()), 1..8),
        ) {
            let lines = |lines: Vec<usize>| {
                let lines = lines.into_iter().map(|line| format!("{}\n", OF_NGINX[line]));
                lines.collect::<String>()
            };
            let mut text = format!("{}{outer}\n", lines(main.clone()));
            for (block, inside, inner) in blocks {
                text.push_str(&format!("{}\n{}", BLOCKS[block], lines(inside.clone())));
                text.push_str(&format!("{}\n{}}}\n}}\n", BLOCKS[inner], lines(inside)));
            }
            text.push_str(&lines(main));
            text.push_str("}\nhttp {\nserver {\nlisten 80;\n}\n}\n");
            assert_reported_once(Program::Nginx, &text);
        }
    }
}
