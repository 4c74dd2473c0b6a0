//! nginx: the `stream` block, or an `http` block of the usual form, as a configuration.

mod access;
mod constant;
mod listen;
mod server;
mod syntax;
mod upstream;
mod value;
mod verdicts;

use super::document::{self, Document, List, Place, Section, log_file};
use crate::config::text::quote::quoted;
use std::collections::{BTreeMap, HashSet};
use syntax::Directive;
use verdicts::{Verdict, verdict};

/// Converts the text of a file; `origin` is its name. An error is a whole message.
pub(super) fn import(text: &str, origin: &str) -> Result<Document, String> {
    let tree = syntax::read(text, origin)?;
    let mut import = Import::default();
    let block = |name: &str| tree.iter().find(|d| d.name == name && d.block.is_some());
    let (proxy, is_http) = match (block("stream"), block("http")) {
        (Some(stream), _) => (stream.inside(), false),
        (None, Some(http)) => (http.inside(), true),
        // A file that is included in the block itself.
        (None, None) if tree.iter().any(|d| d.name == "server") => (&tree[..], false),
        (None, None) => {
            return Err(format!(
                "{origin}: there is no `stream` block and no `http` block to import"
            ));
        }
    };
    for directive in tree
        .iter()
        .flat_map(|d| [d].into_iter().chain(d.all_inside()))
    {
        let text = format!("{} {}", directive.name, directive.text());
        import.document.read(&directive.place, &text);
    }
    import.is_http = is_http;
    import.listens(&tree);
    if !std::ptr::eq(proxy, &tree[..]) {
        import.main(&tree, proxy);
    }
    import.upstreams(proxy);
    import.around = proxy;
    import.guards_of_all = access::guards(proxy, None);
    import.zones(proxy);
    let scope = Scope::default().within(proxy);
    import.other(proxy);
    for server in proxy.iter().filter(|d| d.name == "server") {
        import.server(server, &scope);
    }
    import.without_effect(proxy);
    Ok(import.finish())
}

/// The state of a conversion.
#[derive(Default)]
struct Import<'a> {
    document: Document,
    is_http: bool,
    /// Whether there are several processes.
    has_workers: bool,
    process: Option<Section>,
    log: Option<Section>,
    upstreams: BTreeMap<&'a str, &'a Directive>,
    /// The sections of upstreams that are made already, by what they are made of.
    made: BTreeMap<(String, bool), String>,
    /// The keys of zones for `limit_conn`.
    zones: BTreeMap<String, String>,
    /// Where these were last used.
    counted: BTreeMap<String, Place>,
    /// What is bound already, by UDP or not, and where.
    bound: BTreeMap<(bool, String), Place>,
    /// What stands around the servers.
    around: &'a [Directive],
    /// What may refuse clients of all servers.
    guards_of_all: Vec<&'a Directive>,
    /// The logs around the servers.
    logs_of_all: HashSet<&'a Place>,
}

/// The settings that hold in a block: its own before those around it.
#[derive(Default, Clone)]
struct Scope<'a> {
    settings: BTreeMap<&'a str, Vec<&'a Directive>>,
}

impl<'a> Scope<'a> {
    fn within(&self, block: &'a [Directive]) -> Self {
        let mut own = BTreeMap::<&str, Vec<&Directive>>::new();
        // Blocks are no settings, and may be many.
        for directive in block.iter().filter(|directive| directive.block.is_none()) {
            // Both are one list.
            let name = match directive.name.as_str() {
                "allow" | "deny" => "access",
                name => name,
            };
            own.entry(name).or_default().push(directive);
        }
        let mut settings = self.settings.clone();
        settings.extend(own);
        Self { settings }
    }

    fn all(&self, name: &str) -> &[&'a Directive] {
        self.settings.get(name).map_or(&[], Vec::as_slice)
    }

    fn last(&self, name: &str) -> Option<&'a Directive> {
        self.all(name).last().copied()
    }
}

impl<'a> Import<'a> {
    /// `proxy`: what is in the block that is imported.
    fn main(&mut self, tree: &'a [Directive], proxy: &'a [Directive]) {
        for directive in tree {
            let place = &directive.place;
            self.has_workers |= directive.name == "worker_processes" && directive.first() != "1";
            match directive.name.as_str() {
                "worker_processes" => match directive.first().parse::<u16>() {
                    Ok(workers) => self.process(place).set("workers", workers, place),
                    Err(_) => {
                        self.unneeded(directive, "a worker for each CPU is the default");
                        continue;
                    }
                },
                "worker_shutdown_timeout" => match value::time(directive.first()) {
                    Some(time) if time == "0s" => {
                        let text = document::NO_DRAIN_LIMIT;
                        self.document.note(List::Differs, place, text);
                        continue;
                    }
                    Some(time) => {
                        self.process(place)
                            .set("drain_timeout", quoted(&time), place);
                    }
                    None => {
                        self.lost(directive, "not a time");
                        continue;
                    }
                },
                "error_log" => {
                    self.error_log(directive);
                    continue;
                }
                "stream" | "http" if std::ptr::eq(directive.inside(), proxy) => {
                    if self.is_http {
                        let text = "layer 4 picks a backend for each connection, not for each \
                                    request, and a backend sees the address of tembuku";
                        self.document.note(List::Differs, place, text);
                        continue;
                    }
                }
                "stream" => {
                    let text = "another one is there: nginx refuses it, too";
                    self.whole(List::Lost, directive, text);
                    continue;
                }
                "http" => {
                    self.whole(
                        List::Lost,
                        directive,
                        "left out: nginx can go on serving it",
                    );
                    continue;
                }
                _ => {
                    self.by_verdict(directive);
                    continue;
                }
            }
            self.carried(directive);
        }
    }

    /// What stands around the servers and is none of their settings.
    fn other(&mut self, block: &'a [Directive]) {
        for directive in block {
            match directive.name.as_str() {
                "error_log" => self.error_log(directive),
                "access_log" => {
                    self.logs_of_all.insert(&directive.place);
                    self.access_log(directive);
                }
                "server" | "upstream" | "limit_conn_zone" => {}
                // A server that picks by it is left out, and says so.
                "ssl_preread" => self.unneeded(directive, "what it reads decides nothing"),
                "map" | "geo" | "set" if constant::is_constant(directive, &[block]) => {
                    self.whole(List::Carried, directive, "");
                }
                // They are listed with the servers that they hold for.
                name if server::SETTINGS.contains(&name) => {}
                _ => self.by_verdict(directive),
            }
        }
    }

    fn upstreams(&mut self, block: &'a [Directive]) {
        for upstream in block.iter().filter(|d| d.name == "upstream") {
            if let Some(former) = self.upstreams.insert(upstream.first(), upstream) {
                let text = "another one has its name: nginx refuses it, too";
                self.whole(List::Lost, former, text);
            }
        }
    }

    fn zones(&mut self, block: &[Directive]) {
        for zone in block.iter().filter(|d| d.name == "limit_conn_zone") {
            let name = zone.arguments.get(1).map_or("", String::as_str);
            let name = name.trim_start_matches("zone=").split(':').next();
            let key = zone.first().to_owned();
            self.zones.insert(name.unwrap_or_default().to_owned(), key);
            self.carried(zone);
        }
    }

    fn error_log(&mut self, directive: &Directive) {
        let level = match directive.arguments.get(1).map(String::as_str) {
            Some("debug") => "debug",
            Some("info" | "notice") => "info",
            Some("warn") => "warn",
            _ => "error",
        };
        let place = &directive.place;
        let text =
            format!("the log goes to standard error; [log] level = \"{level}\" shows as much");
        self.document.note(List::Differs, place, text);
    }

    /// The access log of all servers: the first one is it.
    fn access_log(&mut self, directive: &Directive) {
        let place = &directive.place;
        match log_target(directive.first()) {
            Err(why) => self.lost(directive, why),
            Ok(LogTarget::Off) => self.unneeded(directive, "off is the default"),
            Ok(_) if self.log.is_some() => self.lost(directive, "there is one access log"),
            Ok(target) => {
                let header = "[log]".to_owned();
                let log = self.log.insert(Section::new(header, place));
                log.set("access", quoted(target.text()), place);
                self.note_log(directive, &target);
            }
        }
    }

    /// The format is another one, so the file has to be.
    fn note_log(&mut self, directive: &Directive, target: &LogTarget) {
        let text = match target {
            LogTarget::Off => return self.carried(directive),
            LogTarget::Stdout => self.document.record(&directive.place).to_owned(),
            LogTarget::File(path) => format!(
                "{}; in {path}, since the file of nginx has another format",
                self.document.record(&directive.place)
            ),
        };
        self.document.note(List::Differs, &directive.place, text);
        if let Some(condition) = directive.arguments.iter().find(|a| a.starts_with("if=")) {
            let text = format!("`{condition}` is dropped: all sessions are recorded");
            self.document.note(List::Differs, &directive.place, text);
        }
    }

    /// What nginx does not start with: it can be in no file that nginx has run with.
    fn refused(&mut self, directive: &Directive, what: &str) {
        let text = format!("{what}: nginx itself refuses it");
        self.document.note(List::Differs, &directive.place, text);
    }

    fn process(&mut self, place: &Place) -> &mut Section {
        let new = || Section::new("[process]".to_owned(), place);
        self.process.get_or_insert_with(new)
    }

    fn carried(&mut self, directive: &Directive) {
        self.document.note(List::Carried, &directive.place, "");
    }

    fn unneeded(&mut self, directive: &Directive, why: &str) {
        self.document.note(List::Unneeded, &directive.place, why);
    }

    /// With what is in it, where it is a block.
    fn lost(&mut self, directive: &Directive, why: &str) {
        self.whole(List::Lost, directive, why);
    }

    /// A block with everything in it of which nothing else is said.
    fn whole(&mut self, list: List, block: &Directive, why: &str) {
        let inside = block.all_inside().into_iter();
        let inside = inside.map(|directive| directive.place.clone()).collect();
        self.document.note_whole(list, &block.place, inside, why);
    }

    /// A directive that no code carries over.
    fn by_verdict(&mut self, directive: &Directive) {
        if directive.is_missing() {
            let text = format!("{} {}", directive.name, directive.text());
            self.document.misses(&directive.place, &text);
        }
        let (list, text) = match verdict(&directive.name) {
            _ if directive.name == "include" => match (directive.is_missing(), directive.files) {
                (true, _) => (
                    List::Lost,
                    "there is no such file here: what it holds is missing",
                ),
                (false, 0) => (
                    List::Differs,
                    "no file matches it here; where nginx has some, import what `nginx -T` prints",
                ),
                _ => (List::Carried, ""),
            },
            Some(Verdict::Harmless(why)) => (List::Unneeded, why),
            Some(Verdict::Differs(how)) => (List::Differs, how),
            Some(Verdict::Unsupported(why)) => (List::Lost, why),
            Some(Verdict::Carried) => (List::Lost, "it has no effect here"),
            None if self.is_http => (List::Lost, "of HTTP, which layer 4 does not see"),
            None => (
                List::Lost,
                "no directive of nginx's stream module: without a module of others nginx refuses \
                 it, too",
            ),
        };
        match directive.block {
            Some(_) => self.whole(list, directive, text),
            None => self.document.note(list, &directive.place, text),
        }
    }

    /// Settings of which no listener has asked for the value.
    fn without_effect(&mut self, proxy: &'a [Directive]) {
        let servers = proxy.iter().filter(|d| d.name == "server");
        let inside = servers.flat_map(Directive::all_inside);
        let settings = proxy.iter().chain(inside);
        let whole = self.document.in_whole_blocks();
        let is_open = |setting: &&Directive| {
            server::SETTINGS.contains(&setting.name.as_str())
                && !self.document.is_noted(&setting.place)
                && !whole.contains(&setting.place)
        };
        for setting in settings.filter(is_open).collect::<Vec<_>>() {
            let text = "it is the default, or no server that is imported depends on it";
            self.unneeded(setting, text);
        }
    }

    fn finish(mut self) -> Document {
        let mut sections = Vec::new();
        sections.extend(self.process.take());
        sections.extend(self.log.take());
        sections.append(&mut self.document.sections);
        self.document.sections = sections;
        let made: HashSet<String> = self.made.keys().map(|(text, _)| text.clone()).collect();
        for (name, directive) in std::mem::take(&mut self.upstreams) {
            match made.contains(name) {
                true => self.carried(directive),
                false => self.whole(List::Lost, directive, "no server that is imported uses it"),
            }
        }
        self.document
    }
}

/// Where an access log goes.
enum LogTarget {
    Off,
    Stdout,
    File(String),
}

impl LogTarget {
    /// As a value of the key.
    fn text(&self) -> &str {
        match self {
            LogTarget::Off => "off",
            LogTarget::Stdout => "stdout",
            LogTarget::File(path) => path,
        }
    }
}

/// Where an access log of nginx goes. The error is why it cannot be one here.
fn log_target(path: &str) -> Result<LogTarget, &'static str> {
    match path {
        "off" => Ok(LogTarget::Off),
        "/dev/stdout" | "/proc/self/fd/1" | "/dev/fd/1" => Ok(LogTarget::Stdout),
        "/dev/stderr" | "/proc/self/fd/2" | "/dev/fd/2" | "stderr" => {
            Err("standard error has the log: the access log may go to \"stdout\" or to a file")
        }
        _ if path.starts_with("syslog:") => Err("an access log goes to standard output or a file"),
        _ if path.contains('$') || path.is_empty() || path.ends_with('/') => {
            Err("an access log has one path")
        }
        path => Ok(LogTarget::File(log_file(path))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, import::Program};

    /// The configuration, which must be valid, and the lists.
    #[track_caller]
    fn imported(text: &str) -> (String, String) {
        let mut document = import(text, "f").expect("an import");
        document.complete(Program::Nginx);
        let toml = document.toml();
        config::parse(&toml, "the result").unwrap_or_else(|e| panic!("{toml}\n{e}"));
        (toml, document.report().to_string())
    }

    #[test]
    fn every_line_names_its_place() {
        let (toml, _) = imported(
            "stream {\n upstream a {\n  hash $remote_addr consistent;\n\
             \x20 server 10.0.0.1:1 weight=2;\n }\n \
             server {\n  listen 82;\n  proxy_timeout 30s;\n  proxy_pass a;\n }\n}",
        );
        for line in [
            "balance = \"consistent_hash\" # f:3",
            "{ address = \"10.0.0.1:1\", weight = 2 }, # f:4",
            "bind = \"0.0.0.0:82\" # f:7",
            "idle_timeout = \"30s\" # f:8",
        ] {
            let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(words(&toml).contains(line), "{line} in\n{toml}");
        }
    }

    /// Directives of a server, and parts of the result.
    const SERVERS: &[(&str, &[&str])] = &[
        (
            "listen 53 udp; proxy_responses 1; proxy_pass 10.0.0.1:53;",
            &[
                "protocol = \"udp\"",
                "responses = 1",
                "[listeners.udp-53]",
                "[upstreams.\"to-10.0.0.1-53\"]",
            ],
        ),
        (
            "listen 53 udp; listen 53; proxy_pass a;",
            &["[listeners.a]", "[listeners.a-53]"],
        ),
        (
            "listen 1; allow 10.0.0.0/8; deny all; proxy_pass a;",
            &["\"deny all\""],
        ),
        (
            "listen 1 proxy_protocol; set_real_ip_from 10.0.0.0/8; proxy_pass a;",
            &["accept_proxy = { trust = [\"10.0.0.0/8\"], timeout = \"30s\" }"],
        ),
        (
            "listen 1; proxy_protocol on; proxy_pass a;",
            &["send_proxy = \"v1\""],
        ),
        (
            "listen 1; proxy_next_upstream off; proxy_pass a;",
            &["retries = 0"],
        ),
        (
            "listen 1; proxy_next_upstream_tries 2; proxy_pass a;",
            &["retries = 1"],
        ),
        (
            "listen 1 so_keepalive=30m::10 backlog=9; tcp_nodelay off; proxy_pass a;",
            &[
                "keepalive = { idle = \"30m\", interval = \"75s\", count = 10 }",
                "# f:4; 0s: off, the kernel decides",
                "backlog = 9",
                "nodelay = false",
            ],
        ),
        (
            "listen [::]:1 ipv6only=off; proxy_pass a;",
            &["[\"0.0.0.0:1\", \"[::]:1\"]"],
        ),
        (
            "listen 1; proxy_half_close on; proxy_pass unix:/run/a.sock;",
            &[
                "unix:/run/a.sock",
                "[listeners.tcp-1]",
                "[upstreams.\"to-run-a.sock\"]",
                "half_close = true",
                "# f:4; 0s: no limit but `idle_timeout`",
            ],
        ),
        (
            "listen 1; limit_conn all 7; proxy_pass a;",
            &["max_connections = 7"],
        ),
        (
            "listen 1; limit_conn one 7; limit_conn_dry_run on; proxy_pass a;",
            &["max_connections_per_source = 7", "limits_dry_run = true"],
        ),
        (
            "listen 1; limit_conn one 7; limit_conn all 8; proxy_pass a;",
            &["max_connections = 8", "max_connections_per_source = 7"],
        ),
        (
            "listen 53 udp; proxy_responses 0; proxy_pass a;",
            &["per_packet = true"],
        ),
        (
            "listen 1; proxy_socket_keepalive on; proxy_pass a;",
            &["keepalive = { idle = \"2h\", interval = \"75s\", count = 9 }"],
        ),
        (
            "listen 1; proxy_upload_rate 100k; proxy_download_rate 2m; proxy_pass a;",
            &["bandwidth = { up = \"100k\", down = \"2m\" }"],
        ),
        (
            "listen 1; proxy_upload_rate 0; proxy_download_rate 1000; proxy_pass a;",
            &["bandwidth = { down = \"1000\" }"],
        ),
    ];

    #[test]
    fn servers_become_listeners_with_what_holds_for_them() {
        for (text, parts) in SERVERS {
            let text = format!(
                "stream {{ limit_conn_zone $server_port zone=all:1m; proxy_timeout 1h;
                 limit_conn_zone $binary_remote_addr zone=one:1m;
                 upstream a {{ least_conn; server 10.0.0.1:9 max_conns=5; \
                               server b.example:9 backup; }}
                 server {{ {text} }} }}"
            );
            let (toml, lists) = imported(&text);
            for part in *parts {
                assert!(toml.contains(part), "{part} in\n{toml}\n{lists}");
            }
        }
    }

    #[test]
    fn what_a_proxy_header_needs_is_carried_over() {
        let (_, lists) = imported(
            "stream { server { listen 1 proxy_protocol; proxy_pass 10.0.0.1:1;
             set_real_ip_from 10.0.0.0/8; set_real_ip_from 10.1.0.1; proxy_protocol_timeout 5s; }
             server { listen 2; proxy_pass 10.0.0.1:1; set_real_ip_from 10.0.0.0/8; } }",
        );
        let (carried, rest) = lists.split_once("not needed: 1\n").expect("a list");
        for part in [
            "f:2: set_real_ip_from 10.0.0.0/8\n",
            "f:2: set_real_ip_from 10.1.0.1\n",
            "f:2: proxy_protocol_timeout 5s\n",
        ] {
            assert!(carried.contains(part), "{part} in\n{lists}");
        }
        assert!(rest.contains("f:3: `set_real_ip_from"), "{lists}");
    }

    #[test]
    fn what_counts_apart_is_listed() {
        let (_, lists) = imported(
            "stream {\n limit_conn_zone $binary_remote_addr zone=z:1m;\n\
             upstream a {\n server 10.0.0.1:9 max_conns=2;\n }\n\
             server {\n listen 1;\n limit_conn z 3;\n proxy_pass a;\n }\n\
             server {\n listen 2;\n limit_conn z 3;\n proxy_pass a;\n proxy_protocol on;\n }\n }\n",
        );
        for part in [
            "f:8: `limit_conn z 3`: each listener counts for itself",
            "f:13: `limit_conn z 3`: each listener counts for itself",
            "f:3: `upstream a`: PROXY headers take an upstream of their own",
        ] {
            assert!(lists.contains(part), "{part} in\n{lists}");
        }
    }

    #[test]
    fn a_dropped_condition_of_a_log_is_listed() {
        for text in [
            "access_log /var/log/a basic if=$loggable; server { listen 1; proxy_pass 10.0.0.1:1; }",
            "server { listen 1; proxy_pass 10.0.0.1:1; access_log /dev/stdout a if=$loggable; }",
        ] {
            let (_, lists) = imported(&format!("stream {{ {text} }}"));
            let dropped = "`if=$loggable` is dropped: all sessions are recorded";
            assert!(lists.contains(dropped), "{lists}");
        }
    }

    /// Constructs of public configurations, each reduced.
    #[test]
    fn what_decides_nothing_is_not_lost() {
        for (text, parts) in [
            // One upstream for all names.
            (
                "server { listen 443; ssl_preread on; proxy_pass 127.0.0.1:1237; }",
                &["bind = \"0.0.0.0:443\""][..],
            ),
            (
                "server { listen 3; proxy_pass a:1; proxy_ssl off; proxy_ssl_verify on; }",
                &["\"a:1\""],
            ),
            (
                "server { listen 9092; server_name kafka.example; proxy_pass kafka:9092; }",
                &["\"kafka:9092\""],
            ),
            // A variable that lets nginx look the name up again.
            (
                "resolver 10.0.0.2; map $protocol $dns { default servers.dns:53; }
                 server { listen 53 udp reuseport; listen [::]:53 udp; proxy_pass $dns; }",
                &["\"servers.dns:53\"", "[\"0.0.0.0:53\", \"[::]:53\"]"],
            ),
            (
                "map \"\" $up { default db.example:5432; }
                 server { listen 5432; proxy_pass $up; }",
                &["\"db.example:5432\""],
            ),
            (
                "server { set $host db.example; listen 5432; proxy_pass $host:5432; }",
                &["\"db.example:5432\""],
            ),
            // Certificates without `ssl`.
            (
                "server { listen 8883; ssl_certificate /c; proxy_pass 127.0.0.1:1883; }",
                &["\"127.0.0.1:1883\""],
            ),
            (
                "server { listen 1; access_log /dev/stdout basic; proxy_pass 127.0.0.1:2; }
                 server { listen 3; access_log off; proxy_pass 127.0.0.1:2; }
                 server { listen 4; access_log /var/log/4.log; proxy_pass 127.0.0.1:2; }",
                &[
                    "access_log = \"stdout\"",
                    "access_log = \"off\"",
                    "access_log = \"/var/log/tembuku/4.log\"",
                ],
            ),
            (
                "upstream u { least_conn; hash $binary_remote_addr consistent; server a:1;
                 server b:1; }
                 server { listen 1; proxy_pass u; }",
                &[
                    "balance = \"consistent_hash\"",
                    "hash_key = \"$binary_remote_addr\"",
                ],
            ),
        ] {
            let (toml, lists) = imported(&format!("stream {{ {text} }}"));
            for part in parts {
                assert!(toml.contains(part), "{part} in\n{toml}\n{lists}");
            }
            assert!(lists.contains("not carried over: 0"), "{lists}");
        }
        let (toml, _) = imported(
            "stream { access_log /dev/stdout main; server { listen 1; proxy_pass a:1; } }",
        );
        assert!(toml.contains("access = \"stdout\""), "{toml}");
    }

    #[test]
    fn what_is_in_the_way_of_one_server_does_not_keep_others_back() {
        for (text, part) in [
            (
                "server { listen 443; server_name a.example; proxy_pass a:1; }
                 server { listen 443; server_name b.example; proxy_pass b:1; }",
                "0.0.0.0:443 is that of the server at f:1, and routing by server name",
            ),
            (
                "init_by_lua_block { require \"streamd\" { a = '}' } }
                 upstream ns { server 0.0.0.1:53; balancer_by_lua_block { x(\"y\"):z() } }
                 server { listen 53 udp; proxy_pass ns; } server { listen 1; proxy_pass a:1; }",
                "a script picks the servers of `ns`",
            ),
            (
                "server { listen 1; access_log syslog:server=a; proxy_pass a:1; }",
                "an access log goes to standard output or a file",
            ),
        ] {
            let (toml, lists) = imported(&format!("stream {{ {text} }}"));
            assert!(toml.contains("\"a:1\""), "{toml}");
            assert!(lists.contains(part), "{part} in\n{lists}");
        }
    }

    /// Without the rule every client would be served.
    #[test]
    fn a_rule_that_is_lost_lets_no_result_pass() {
        for (text, rule) in [
            ("include there-is-none.conf;", "include there-is-none.conf"),
            ("js_access a.b;", "js_access a.b"),
            ("preread_by_lua_block { x }", "preread_by_lua_block"),
            ("deny host.example; allow all;", "deny host.example"),
        ] {
            for text in [
                format!("stream {{ server {{ listen 1; proxy_pass a:1; {text} }} }}"),
                format!("stream {{ {text} server {{ listen 1; proxy_pass a:1; }} }}"),
            ] {
                assert_undecided(&text, rule);
            }
        }
        for (text, rule) in [
            ("auth_basic realm;", "auth_basic realm"),
            ("location /x { deny all; }", "location /x"),
            ("if ($x) { return 403; }", "if ($x)"),
            ("location ~ x { if ($y) { return 403; } }", "location ~ x"),
        ] {
            let text = format!(
                "http {{ server {{ listen 1; location / {{ proxy_pass http://a:1; }} {text} }} }}"
            );
            assert_undecided(&text, rule);
        }
        // What follows the rule in the same block is of all servers.
        let (toml, _) = imported(
            "stream { server { listen 1; proxy_pass a:1; allow 10.1.2.3/8; deny unix:; } }",
        );
        assert!(toml.contains("\"allow 10.0.0.0/8\"") && toml.contains("\"deny unix\""));
    }

    #[track_caller]
    fn assert_undecided(text: &str, rule: &str) {
        let document = import(text, "f").expect("an import");
        let (toml, report) = (document.toml(), document.report().to_string());
        let line = toml.lines().find(|line| line.contains("\"undecided\","));
        assert!(line.is_some_and(|line| line.contains(rule)), "{toml}");
        let error = config::parse(&toml, "f")
            .map(|_| ())
            .expect_err("a problem");
        assert!(
            error.to_string().contains("\"undecided\" stands for"),
            "{error}"
        );
        let (_, lost) = report.split_once("not carried over: ").expect("the list");
        assert!(lost.contains("`check` refuses the result"), "{report}");
    }

    /// Whatever the number of listeners.
    #[test]
    fn a_missing_include_is_one_error() {
        let errors = |text: &str| {
            let document = import(text, "f").expect("an import");
            let toml = document.toml();
            document.errors(&toml, config::parse(&toml, "made").err())
        };
        let servers = "server { listen 1; proxy_pass a:1; } server { listen 2; proxy_pass a:1; }
             server { listen 1 udp; proxy_pass a:1; }";
        let missing = "f:1: `include not-here.conf`: there is no such file";
        for text in [
            format!("stream {{ include not-here.conf; {servers} }}"),
            format!("include not-here.conf;\nstream {{ {servers} }}"),
            "stream { upstream u { include not-here.conf; server a:1; }
             server { listen 1; proxy_pass u; } server { listen 2; proxy_pass u; } }"
                .to_owned(),
        ] {
            let errors = errors(&text);
            assert_eq!(errors.len(), 1, "{errors:?}");
            assert!(errors[0].contains(missing), "{errors:?}");
            assert!(errors[0].contains("\n  hint: copy it there"), "{errors:?}");
        }
        // Other rules are errors beside it, each once.
        let rules = errors(&format!(
            "stream {{ include not-here.conf;\ndeny a.example;\njs_access b; {servers} }}"
        ));
        let [first, rest] = &rules[..] else {
            panic!("{rules:?}");
        };
        assert!(first.contains(missing), "{first}");
        assert_eq!(
            rest.matches("could not carry over, in 3 listeners").count(),
            2,
            "{rest}"
        );
        assert!(rest.contains("# f:2: deny a.example") && rest.contains("# f:3: js_access b"));
        assert!(rest.ends_with("2 problems in made\n"), "{rest}");
        // nginx takes a pattern without files for nothing; an `http` block is left out.
        for text in [
            format!("stream {{ include not-here/*.conf; include not-her[e]; {servers} }}"),
            format!("stream {{ {servers} }} http {{ include mime.types; }}"),
        ] {
            assert!(errors(&text).is_empty(), "{:?}", errors(&text));
        }
    }

    #[test]
    fn blocks_that_are_left_out_are_one_entry() {
        let (_, lists) = imported(
            "events {\n worker_connections 9;\n}\nstream {\n server {\n  listen 1;\n\
             \x20 proxy_pass 10.0.0.1:1;\n }\n server {\n  listen 2 ssl;\n  proxy_pass a:1;\n\
             \x20}\n}\nhttp {\n types {\n  a b;\n }\n server {\n  listen 80;\n }\n}\n",
        );
        for part in [
            "  f:1-2: `events`: its settings are nginx's own\n",
            "  f:9-11: `server`: left out because of f:10: TLS of sessions",
            "  f:14-19: `http`: left out",
            "carried over: 4\n",
            "not carried over: 2\n",
        ] {
            assert!(lists.contains(part), "{part} in\n{lists}");
        }
    }

    #[test]
    fn a_server_that_is_left_out_names_all_reasons() {
        let (_, lists) = imported(
            "stream { server { listen 1; proxy_pass a:1; }
             server {
             listen 2 ssl;
             listen 3 ssl;
             proxy_pass $name;
             proxy_ssl on;
             } }",
        );
        let reasons = "`server`: left out because of f:3, f:4: TLS of sessions is not supported \
                       yet; also because of f:5: routing by variables is not supported yet; also \
                       because of f:6: TLS to backends is not supported";
        assert!(lists.contains(reasons), "{lists}");
    }

    #[test]
    fn an_address_with_tls_keeps_no_other_back() {
        let (toml, lists) = imported(
            "stream { server { listen 1; listen 2 ssl; ssl_certificate /c; proxy_pass a:1; } }",
        );
        assert!(toml.contains("bind = \"0.0.0.0:1\""), "{toml}");
        let lost = "not carried over: 1\n  f:1: `listen 2 ssl`: left out: TLS of sessions";
        assert!(lists.contains(lost), "{lists}");
    }

    /// Clients of these addresses would find nothing.
    #[test]
    fn addresses_that_nothing_takes_over_come_first() {
        let (_, lists) = imported(
            "stream { map $ssl_preread_server_name $to { x a:1; default b:1; }
             server { listen 127.0.0.1:22030; ssl_preread on; proxy_pass $to; }
             server { listen 1; listen 2 ssl; listen 3 udp; proxy_pass a:1; }
             server { listen 1; server_name x; proxy_pass b:1; }
             server { listen 3; listen [::]:4-5 udp; return 1; } }
             http { server { listen 80; } server { listen *:80; listen 10.0.0.1; } }",
        );
        let unserved = "nothing will listen at 127.0.0.1:22030 (f:2)\n\
                        nothing will listen at 0.0.0.0:2 (f:3)\n\
                        nothing will listen at 0.0.0.0:3 (f:5)\n\
                        nothing will listen at [::]:4-5 (UDP) (f:5)\n\
                        nothing will listen at 0.0.0.0:80 (f:6)\n\
                        nothing will listen at 10.0.0.1:80 (f:6)\ncarried over: ";
        assert!(lists.starts_with(unserved), "{lists}");
        let last = "carried over 4, not needed 0, differs 1, not carried over 6; addresses at \
                    which nothing will listen: 6";
        assert_eq!(lists.lines().last(), Some(last), "{lists}");
    }

    #[test]
    fn defaults_are_those_of_nginx() {
        let (toml, _) = imported("stream { server { listen 1; proxy_pass 10.0.0.1:1; } }");
        let words = toml.split_whitespace().collect::<Vec<_>>().join(" ");
        for line in [
            "listen = \"127.0.0.1:9900\"",
            "socket = \"/run/tembuku/admin.sock\"",
            "connect_timeout = \"60s\" # nginx's default",
            "half_close = false # nginx's default",
            "keepalive = false # nginx's default",
        ] {
            assert!(words.contains(line), "{line} in\n{toml}");
        }
        // The same here.
        assert!(!toml.contains("idle_timeout"), "{toml}");
        let (toml, _) = imported("stream { server { listen 9900 udp; proxy_pass 10.0.0.1:1; } }");
        assert!(toml.contains("\"127.0.0.1:9901\""), "{toml}");
        assert!(toml.contains("idle_timeout = \"10m\""), "{toml}");
        assert!(!toml.contains("half_close"), "{toml}");
        let (toml, _) = imported(
            "http { server { listen 80; location / { proxy_pass http://127.0.0.1:3000; } } }",
        );
        assert!(toml.contains("idle_timeout = \"60s\""), "{toml}");
        assert!(toml.contains("[listeners.tcp-80]"), "{toml}");
    }

    #[test]
    fn what_nginx_refuses_is_pointed_out() {
        for (text, part) in [
            (
                "upstream a { hash $remote_addr; server b:1; server c:1 backup; }",
                "`backup` with `hash`: nginx itself refuses it",
            ),
            (
                "upstream a { random; server b:1; server c:1 backup; }",
                "`backup` with `random`",
            ),
            (
                "upstream a { ip_hash; server b:1; }",
                "`ip_hash` in `stream`",
            ),
            ("upstream a { server b:1 weight=0; }", "`weight=0`: nginx"),
            (
                "upstream a { server b:1; } upstream a { server c:1; }",
                "another one has its name: nginx refuses it, too",
            ),
            (
                "upstream a { server b:1; } server { listen 9 udp backlog=5; proxy_pass a; }",
                "`backlog` with `udp`",
            ),
            (
                "upstream a { server b:1; } server { listen 9; proxy_pass a; limit_conn z 5; }",
                "there is no such zone",
            ),
            (
                "upstream a { server b:1; } server { listen 1; proxy_pass b:2; }",
                "without a `server_name` nginx refuses it",
            ),
        ] {
            let text = format!("stream {{ {text} server {{ listen 1; proxy_pass a; }} }}");
            let (_, lists) = imported(&text);
            assert!(lists.contains(part), "{part} in\n{lists}");
        }
    }

    #[test]
    fn names_are_looked_up_by_the_system() {
        let (_, lists) = imported(
            "stream { resolver 10.0.0.53 valid=5s; resolver_timeout 3s; set $x b.example;
             server { listen 1; proxy_pass a.example:1; }
             server { listen 2; proxy_pass $x:1; } }",
        );
        for part in [
            "differs: 2\n",
            "f:1: `resolver 10.0.0.53 valid=5s`: names are looked up by the name servers",
            // Where there is no variable, nginx does it at a start only.
            "f:2: `proxy_pass a.example:1`: a.example: the name is looked up again",
        ] {
            assert!(lists.contains(part), "{part} in\n{lists}");
        }
    }

    #[test]
    fn the_same_server_twice_has_twice_the_weight() {
        let (toml, lists) = imported(
            "stream { upstream a { server 10.0.0.1:1; server 10.0.0.2:1; server 10.0.0.1:1; }
             server { listen 1; proxy_pass a; } }",
        );
        assert!(
            toml.contains("{ address = \"10.0.0.1:1\", weight = 2 }"),
            "{toml}"
        );
        assert!(lists.contains("not carried over: 0"), "{lists}");
    }

    /// Of each the sessions that nginx gives to the address.
    #[test]
    fn one_that_is_down_does_not_stop_the_same_server_that_is_not() {
        for (servers, wanted, entry) in [
            ("server a:1 down; server a:1;", "  \"a:1\", ", ""),
            ("server a:1; server a:1 down;", "  \"a:1\", ", ""),
            (
                "server a:1 weight=3; server a:1 backup weight=5;",
                "{ address = \"a:1\", weight = 3 }",
                "",
            ),
            (
                "server a:1 backup; server a:1 max_fails=2;",
                "{ address = \"a:1\", max_fails = 2 }",
                "",
            ),
            (
                "server a:1 max_conns=1; server a:1 max_conns=2;",
                "{ address = \"a:1\", weight = 2, max_connections = 3 }",
                "",
            ),
            (
                "server a:1 max_conns=1; server a:1;",
                "{ address = \"a:1\", weight = 2 }",
                "",
            ),
            (
                "server a:1 down; server a:1 down;",
                "{ address = \"a:1\", weight = 2, down = true }",
                "",
            ),
            (
                "server a:1 max_fails=1;\nserver a:1 max_fails=2;",
                "{ address = \"a:1\", weight = 2, max_fails = 1 }",
                "; the address is that of f:1, whose `max_fails` and `fail_timeout` hold",
            ),
        ] {
            let text = format!(
                "stream {{ upstream u {{ {servers} server b:1; }} \
                 server {{ listen 1; proxy_pass u; }} }}"
            );
            let (toml, lists) = imported(&text);
            assert!(toml.contains(wanted), "{wanted} in\n{toml}");
            assert!(lists.contains(entry), "{entry} in\n{lists}");
        }
    }

    #[test]
    fn a_limit_that_each_process_of_nginx_counts_for_itself_is_listed() {
        let lists = |processes: &str, zone: &str| {
            let text = format!(
                "worker_processes {processes}; stream {{ upstream u {{ {zone} \
                 server 10.0.0.1:1 max_conns=2; }} server {{ listen 1; proxy_pass u; }} }}"
            );
            imported(&text).1
        };
        let entry = "`max_conns`: over all workers; without `zone` nginx counts in each";
        assert!(lists("auto", "").contains(entry) && lists("2", "").contains(entry));
        assert!(!lists("1", "").contains(entry) && !lists("2", "zone z 1m;").contains(entry));
    }

    #[test]
    fn a_short_time_out_before_a_database_is_pointed_out() {
        let with = |time: &str| {
            let text = format!(
                "stream {{ server {{ listen 1; proxy_timeout {time}; proxy_pass db:5432; }} }}"
            );
            imported(&text).1.contains("sessions of a database")
        };
        assert!(with("3s") && !with("10m"));
    }

    #[test]
    fn what_is_not_carried_over_is_listed() {
        for (text, part) in [
            ("listen 1 ssl; proxy_pass a;", "left out: TLS of sessions"),
            (
                "listen 1; proxy_pass $name;",
                "left out: routing by variables",
            ),
            ("listen 1; return ok;", "left out: it has no `proxy_pass`"),
            (
                "listen 1; proxy_pass a; limit_conn all 1; limit_conn_dry_run on;",
                "max_connections always holds",
            ),
            (
                "listen 1; proxy_pass a; proxy_upload_rate fast;",
                "not a size",
            ),
            (
                "listen 1; proxy_pass a; keepalive 4;",
                "each session has a connection",
            ),
            (
                "listen 1; proxy_pass a; frobnicate on;",
                "nginx refuses it, too",
            ),
            (
                "listen host.example:1; proxy_pass a;",
                "takes addresses, not names",
            ),
            ("listen 1; proxy_pass b.example;", "there is no port in it"),
        ] {
            let text = format!(
                "stream {{ limit_conn_zone $server_port zone=all:1m;
                 upstream a {{ server 10.0.0.1:9; }} server {{ listen 9; proxy_pass a; }}
                 server {{ {text} }} }}"
            );
            let (_, lists) = imported(&text);
            let (_, lost) = lists.split_once("not carried over: ").expect("the list");
            assert!(lost.contains(part), "{part} in\n{lists}");
        }
    }

    #[test]
    fn no_text_makes_it_panic() {
        const WORDS: [&str; 14] = [
            "stream",
            "{",
            "}",
            ";",
            "server",
            "listen",
            "upstream",
            "a",
            "1",
            "proxy_pass",
            "hash",
            "$x",
            "[",
            "\"q\"",
        ];
        // Every text of a fixed sequence of pseudo-random words.
        let mut state: u32 = 1;
        for _ in 0..3_000 {
            let mut text = String::new();
            for _ in 0..(state % 40) {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                text.push_str(WORDS[(state >> 16) as usize % WORDS.len()]);
                text.push(' ');
            }
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let _ =
                import(&text, "f").map(|document| (document.toml(), document.report().to_string()));
        }
    }
}
