//! `backend` and `listen` sections as sections of upstreams.

use super::{
    super::document::{List, Place, Reasons, Section, header, host_name},
    Import, check,
    server::{Parameter, Server},
    syntax::{Block, Line, VARIABLE, time},
};
use crate::config::text::quote::quoted;
use std::{collections::HashMap, net::IpAddr};

impl Import<'_> {
    /// Why there can be no section for it.
    pub(super) fn not_taken(&mut self, block: &Block) -> Reasons {
        let mut reasons = Reasons::new();
        if self.made.contains_key(&block.name) {
            return reasons;
        }
        if let Some(mode) = block.last("mode").filter(|line| line.word(1) != "tcp") {
            let why = "its backend is of `mode http`".to_owned();
            reasons.push((mode.place.clone(), why));
        }
        // What is noted of servers is noted when the section is made.
        let count = self.document.count();
        let servers = self.servers(block);
        let notes = self.document.take_back(count).into_iter();
        if servers.is_empty() {
            let lost = notes.filter(|note| note.list == List::Lost);
            let whys: Reasons = lost
                .map(|note| (note.place, note.text.to_string()))
                .collect();
            match whys.is_empty() {
                true => reasons.push((block.place.clone(), "there is no server".to_owned())),
                false => reasons.extend(whys),
            }
        }
        let tls = servers.iter().filter(|server| server.get("ssl").is_some());
        reasons.extend(tls.map(|server| {
            let why = "TLS to backends is not supported".to_owned();
            (server.place_of("ssl").clone(), why)
        }));
        reasons
    }

    /// The name of the section, which is made if it is not there yet. One that is not taken has
    /// none.
    pub(super) fn backend(&mut self, block: &Block) -> String {
        if let Some(name) = self.made.get(&block.name) {
            return name.clone();
        }
        let servers = self.servers(block);
        let proxy = servers.first().and_then(proxy_version);
        let version = |(_, version)| version;
        let (servers, others): (Vec<_>, Vec<_>) = servers
            .into_iter()
            .partition(|server| proxy_version(server).map(version) == proxy.map(version));
        for server in others {
            let text = "it is left out: send_proxy holds for all backends of an upstream, and the \
                        first server has another; an upstream of its own can have it";
            self.note(List::Lost, &server.place, text);
        }
        let name = self.document.name("upstreams", &block.name);
        let mut section = Section::new(header("upstreams", &name), &block.place);
        match one_by_one(block, &servers) {
            Some(second) => {
                section.set("balance", quoted("first"), &second.place);
                let text = "balance = \"first\": of several backups one serves at a time, as in \
                            HAProxy without `option allbackups`";
                self.note(List::Differs, &second.place, text);
                let of_policy = ["balance", "hash-type", "stick"];
                let is_of_policy = |line: &&Line| of_policy.contains(&line.word(0));
                for line in block.all().filter(is_of_policy) {
                    self.harmless(line, "one server serves at a time");
                }
            }
            None => {
                self.balance(&mut section, block);
                let mut backups = servers.iter().filter(|s| s.get("backup").is_some());
                if let Some(second) = backups.nth(1)
                    && block.last("option allbackups").is_none()
                {
                    let text = "all backups serve together, as with `option allbackups`";
                    self.note(List::Differs, &second.place, text);
                }
            }
        }
        let backends = servers.iter().map(|server| self.server(server)).collect();
        section.set_list("backends", backends);
        self.names(&mut section, &servers);
        if let Some(server) = servers.iter().find(|server| server.get("backup").is_some()) {
            section.set("backup_when", quoted("down"), server.place_of("backup"));
        }
        self.queue(&mut section, block, &servers);
        if let Some((parameter, version)) = proxy {
            section.set(
                "send_proxy",
                quoted(version),
                servers[0].place_of(parameter),
            );
        }
        let checked = servers.iter().find(|server| server.is_checked());
        if checked.is_some() {
            let closes = self.on_down(&mut section, &servers);
            if let Some(place) = check::role_place(block).filter(|_| !closes) {
                section.set("on_role_lost", quoted("keep"), &place);
                let text = "sessions stay on a server that is the primary no more, as without \
                            `on-marked-down shutdown-sessions`; on_role_lost = \"close\" ends them";
                self.note(List::Differs, &place, text);
            }
            let has_backups = servers.iter().any(|server| server.get("backup").is_some());
            let closes = |s: &&Server| s.get("on-marked-up") == Some("shutdown-backup-sessions");
            if let Some(server) = servers.iter().find(closes).filter(|_| has_backups) {
                section.set(
                    "on_recover",
                    quoted("close"),
                    server.place_of("on-marked-up"),
                );
            }
        }
        self.document.sections.push(section);
        if let Some(server) = checked {
            let section = check::section(self, block, &name, server);
            self.document.sections.push(section);
            check::note_other_values(self, &servers);
            if let Some(other) = servers.iter().find(|server| !server.is_checked()) {
                let text = "a check is for all backends of an upstream";
                self.note(List::Differs, &other.place, text);
            }
        }
        self.made.insert(block.name.clone(), name.clone());
        name
    }

    fn servers(&mut self, block: &Block) -> Vec<Server> {
        let mut defaults = Vec::new();
        let mut servers: Vec<Server> = Vec::new();
        let mut positions = HashMap::new();
        for line in block.all() {
            let (address, own) = match line.word(0) {
                "default-server" => {
                    let words = line.words.iter().skip(1);
                    defaults.extend(words.map(|word| (word.clone(), line.place.clone())));
                    self.carried(line);
                    continue;
                }
                "server" => (line.word(2), 3),
                "server-template" => (line.word(3), 4),
                _ => continue,
            };
            let address = address
                .trim_start_matches("ipv4@")
                .trim_start_matches("ipv6@")
                .trim_start_matches("unix@");
            let address = match address.rsplit_once(':') {
                _ if address.starts_with('/') => format!("unix:{address}"),
                // The port follows the last colon, with brackets or without.
                Some((host, port)) if host.contains(':') && !host.starts_with('[') => {
                    format!("[{host}]:{port}")
                }
                _ => address.to_owned(),
            };
            let port = address.rsplit_once(':').map(|(_, port)| {
                port.strip_prefix('+')
                    .map_or(port.parse::<u16>(), |_| Ok(0))
            });
            if address.contains('$') {
                self.lost(line, VARIABLE);
                continue;
            }
            if address.starts_with('_') {
                self.lost(
                    line,
                    "SRV: write [upstreams.NAME.discover] with kind = \"srv\"",
                );
                continue;
            }
            if let Some((kind, _)) = address.split_once('@') {
                let text = format!("`{kind}@`: a backend has an address, a name or unix:/PATH");
                self.lost(line, &text);
                continue;
            }
            if !address.starts_with("unix:") && !matches!(port, Some(Ok(1..))) {
                let text = "there is no port in it: HAProxy takes that of the client; a listener \
                            and an upstream for each port can do so";
                self.lost(line, text);
                continue;
            }
            let server = Server::read(&address, line, own, &defaults);
            let is_disabled = |server: &Server| server.get("disabled").is_some();
            let position = *positions.entry(address).or_insert(servers.len());
            match servers.get_mut(position) {
                Some(known) if is_disabled(known) && !is_disabled(&server) => {
                    let text = "`disabled`, and the same address follows as a server in service";
                    self.note(List::Lost, &known.place, text);
                    *known = server;
                }
                Some(_) => {
                    self.lost(line, "the same server is there already: give it a `weight`");
                    continue;
                }
                None => servers.push(server),
            }
            self.carried(line);
        }
        servers
    }

    /// Whether sessions on a backend that is down are closed.
    fn on_down(&mut self, section: &mut Section, servers: &[Server]) -> bool {
        let closes = |s: &&Server| s.get("on-marked-down") == Some("shutdown-sessions");
        let (closing, others): (Vec<_>, Vec<_>) = servers
            .iter()
            .filter(|server| server.is_checked())
            .partition(closes);
        let Some(first) = closing.first() else {
            return false;
        };
        let place = first.place_of("on-marked-down");
        section.set("on_down", quoted("close"), place);
        for other in others {
            let text = "its sessions are closed, too, when it is down: on_down = \"close\" is of the \
                        upstream, for the servers with `on-marked-down shutdown-sessions`";
            self.note(List::Differs, &other.place, text);
        }
        true
    }

    /// The backend, and the lines that it comes from.
    fn server(&mut self, server: &Server) -> (String, String) {
        let mut fields = vec![format!("address = {}", quoted(&server.address))];
        let mut places = vec![&server.place];
        for Parameter { name, value, place } in &server.parameters {
            let field = match name.as_str() {
                "weight" | "maxconn" | "minconn" => match self.number(server, name, value, place) {
                    Some(field) => field,
                    None => continue,
                },
                "backup" => "backup = true".to_owned(),
                "disabled" => "down = true".to_owned(),
                // Of `observe`.
                "error-limit" => continue,
                // Of the queue.
                "maxqueue" => continue,
                "slowstart" => match time(value) {
                    Some(time) => format!("slow_start = {}", quoted(&time)),
                    None => continue,
                },
                // Of the check, of the upstream, or what is always so.
                "check" | "no-check" | "inter" | "fastinter" | "downinter" | "rise" | "fall"
                | "port" | "addr" | "observe" | "on-error" | "on-marked-down" | "on-marked-up"
                | "check-ssl" | "check-sni" | "verify" | "ca-file" | "init-addr" | "resolvers"
                | "resolve-prefer" | "guid" | "send-proxy" | "send-proxy-v2"
                | "check-send-proxy" | "id" | "enabled" | "none" | "required" | "stick"
                | "non-stick" => continue,
                "cookie" => continue,
                "send-proxy-v2-ssl" | "send-proxy-v2-ssl-cn" => {
                    let text =
                        format!("`{name}`: the header says nothing of TLS, which is passed on");
                    self.note(List::Differs, place, &text);
                    continue;
                }
                "init-state" => {
                    if server.is_checked() && value != "up" {
                        let text = format!(
                            "`init-state {value}`: a listener accepts once its backends have been \
                             checked ([process] start_wait)"
                        );
                        self.note(List::Differs, place, &text);
                    }
                    continue;
                }
                "track" => {
                    let text = "`track`: the check of its own upstream, [upstreams.NAME.check], \
                                takes the place of another one's";
                    self.note(List::Lost, place, text);
                    continue;
                }
                "agent-check" => {
                    let text = "`agent-check`: no agent sets the state, nor the weight in percent \
                                of that in the file; `tembuku weight`, `drain` and `maint` do, by \
                                numbers";
                    self.note(List::Lost, place, text);
                    continue;
                }
                _ => {
                    self.note(List::Lost, place, &format!("`{name}` has no counterpart"));
                    continue;
                }
            };
            fields.push(field);
            if !places.contains(&place) {
                places.push(place);
            }
        }
        // Failed connects of sessions count with `observe` only, ten of them where nothing is said.
        let failures = match (server.get("observe"), server.get("error-limit")) {
            (None, _) => "0",
            (Some(_), limit) => limit.unwrap_or("10"),
        };
        fields.push(format!("max_fails = {failures}"));
        let of_failures = server.place_of("observe");
        if !places.contains(&of_failures) {
            places.push(of_failures);
        }
        let places: Vec<String> = places.iter().map(ToString::to_string).collect();
        let comment = match server.get("observe") {
            Some(_) => places.join(", "),
            None => format!("{}; max_fails: no `observe`", places.join(", ")),
        };
        (format!("{{ {} }}", fields.join(", ")), comment)
    }

    /// The field of a backend for a number.
    fn number(
        &mut self,
        server: &Server,
        name: &str,
        value: &str,
        place: &Place,
    ) -> Option<String> {
        let percent = value.strip_suffix('%').filter(|_| name == "weight");
        let number: Option<u64> = percent.unwrap_or(value).parse().ok();
        let limit = server.limit();
        match (name, number) {
            (_, None) => {
                let text = format!("`{name} {value}`: not a number");
                self.note(List::Lost, place, &text);
                None
            }
            ("weight", Some(weight)) => {
                if percent.is_some() {
                    let text = format!(
                        "`weight {value}`: {weight}, since HAProxy takes the number alone, in \
                         proportion to the weights of the other servers; only an agent and `set \
                         server` have percent, of the weight in the file"
                    );
                    self.note(List::Differs, place, &text);
                }
                Some(format!("weight = {weight}"))
            }
            // Of the two the one that limits.
            ("maxconn", number) => {
                (number == Some(limit)).then(|| format!("max_connections = {limit}"))
            }
            (_, _) if server.get("maxconn").and_then(|most| most.parse().ok()) != Some(limit) => {
                Some(format!("max_connections = {limit}"))
            }
            _ => {
                let text = "`minconn`: max_connections is that of `maxconn` at any load; a lower \
                            one has sessions wait earlier";
                self.note(List::Differs, place, text);
                None
            }
        }
    }

    fn balance(&mut self, section: &mut Section, block: &Block) {
        let sticky = block.lines.iter().find(|line| is_stick(line));
        let hash_type = block.last("hash-type");
        let consistent = hash_type.is_some_and(|line| line.word(1) == "consistent");
        let line = sticky.or(block.last("balance"));
        let Some(line) = line else {
            return;
        };
        let algorithm = line.word(1).split('(').next().unwrap_or_default();
        let policy = match (line.word(0), algorithm) {
            ("stick", _) => {
                self.differs(
                    line,
                    "a hash instead of a table: a new server gets some of the clients, and one \
                     that is back gets its own again",
                );
                for table in block.lines.iter().filter(|l| l.word(0) == "stick-table") {
                    self.harmless(table, "a hash needs none");
                }
                "consistent_hash"
            }
            (_, "roundrobin" | "static-rr") => {
                self.carried(line);
                return;
            }
            (_, "leastconn") => "least_conn",
            (_, "first") => "first",
            (_, "random") => "random_two",
            (_, "source") => {
                self.differs(line, "other picks than those of HAProxy");
                if consistent {
                    "consistent_hash"
                } else {
                    "hash"
                }
            }
            _ => {
                self.lost(line, "round_robin takes its place");
                return;
            }
        };
        section.set("balance", quoted(policy), &line.place);
        if let Some(line) = hash_type.filter(|_| policy.ends_with("hash")) {
            match line.words.get(2..).unwrap_or_default() {
                [] => self.carried(line),
                _ => self.differs(line, "with a hash function of its own"),
            }
        }
        let factor = block
            .last("hash-balance-factor")
            .filter(|_| policy == "consistent_hash");
        if let Some(factor) = factor.filter(|line| line.word(1) != "0") {
            section.set("hash_balance_factor", factor.word(1), &factor.place);
            self.carried(factor);
        }
        if !["stick", "source"].contains(&line.word(0)) && algorithm != "source" {
            self.carried(line);
        }
    }

    /// HAProxy has one address for a server, and looks it up again with `resolvers` only.
    fn names(&mut self, section: &mut Section, servers: &[Server]) {
        for server in servers {
            let Some(host) = host_name(&server.address) else {
                continue;
            };
            let text = format!(
                "all addresses of {host} are used, and looked up again every 30s (resolve_interval)"
            );
            self.note(List::Differs, &server.place, &text);
            // A start does not fail without an address.
            let place = server.place_of("init-addr");
            let initial = || server.get("init-addr").unwrap_or_default().split(',');
            let address = initial().find(|method| method.parse::<IpAddr>().is_ok());
            if let Some(address) = address {
                let text = format!(
                    "`init-addr`: {address} is no backend while {host} is not found: it has none \
                     then (resolve_required)"
                );
                self.note(List::Differs, place, &text);
            }
            let is_optional = address.is_some() || initial().any(|method| method == "none");
            if is_optional && !section.has("resolve_required") {
                section.set("resolve_required", "false", place);
            }
        }
    }

    /// Sessions wait for a place where servers have limits.
    fn queue(&mut self, section: &mut Section, block: &Block, servers: &[Server]) {
        if servers.iter().all(|server| server.limit() == 0) {
            return;
        }
        let (line, how) = match (block.last("timeout queue"), block.last("timeout connect")) {
            (None, None) => return,
            (Some(line), _) => (line, "one queue of the upstream for all its backends"),
            (None, Some(line)) => (
                line,
                "also `queue_timeout`, since HAProxy lets sessions wait as long for a place where \
                 there is no `timeout queue`",
            ),
        };
        let limit = time(line.word(2));
        if limit.as_deref() == Some("0s") {
            self.lost(
                line,
                "it is no limit: write a `queue_timeout` of the upstream",
            );
        } else if let Some(limit) = limit {
            section.set("queue_timeout", quoted(&limit), &line.place);
            let hashes = ["hash", "consistent_hash"]
                .iter()
                .any(|policy| section.has_line(&format!("balance = \"{policy}\"")));
            if hashes {
                // Longer than any wait: the session ends before it takes another server.
                section.set("queue_stick", quoted(FOR_EVER), &line.place);
                let own = "each waits for the server of its source alone (queue_stick)";
                self.differs(line, &format!("{how}; {own}"));
            } else {
                self.differs(line, how);
            }
            let most = |server: &Server| server.get("maxqueue")?.parse::<u64>().ok();
            let limited: Vec<_> = servers.iter().filter(|s| most(s) > Some(0)).collect();
            let Some(first) = limited.first() else {
                section.set("queue_length", UNLIMITED, &line.place);
                return;
            };
            let length: u64 = limited.iter().filter_map(|s| most(s)).sum();
            section.set("queue_length", length, first.place_of("maxqueue"));
            let text = match block
                .last("balance")
                .is_some_and(|l| l.word(1) == "leastconn")
            {
                _ if hashes => WAITS_BY_HASH,
                true => WAITS_FOR_ITS_SERVER,
                false => WAITS_FOR_ANY,
            };
            for server in limited {
                self.note(List::Differs, server.place_of("maxqueue"), text);
            }
        }
    }
}

/// Of a queue without `maxqueue`, which only the limits of listeners and of the process bound.
const UNLIMITED: u64 = 1_000_000;
/// A duration.
const FOR_EVER: &str = "24h";

/// What becomes of `maxqueue`, by `balance`.
const WAITS_BY_HASH: &str = "`maxqueue`: queue_length is the sum, for all servers together";
const WAITS_FOR_ITS_SERVER: &str = "`maxqueue`: queue_length is the sum, and a session takes the \
     first place that is free; with `leastconn` HAProxy picks its server first, and it waits for \
     that one";
const WAITS_FOR_ANY: &str = "`maxqueue`: queue_length is the sum, and closes sessions beyond it; \
     in HAProxy they wait, too, since only those wait at a server that stick to it";

/// The second of several backups behind one server at most: HAProxy uses the first one that is up.
fn one_by_one<'a>(block: &Block, servers: &'a [Server]) -> Option<&'a Server> {
    let is_backup = |server: &&Server| server.get("backup").is_some();
    let regular = servers.iter().filter(|server| !is_backup(server)).count();
    let second = servers.iter().filter(is_backup).nth(1);
    second.filter(|_| regular <= 1 && block.last("option allbackups").is_none())
}

/// Whether this line has clients stick to servers by their addresses.
pub(super) fn is_stick(line: &Line) -> bool {
    line.word(0) == "stick" && line.word(1) == "on" && line.word(2) == "src"
}

/// The parameter that has a server get a PROXY header, and the version.
fn proxy_version(server: &Server) -> Option<(&'static str, &'static str)> {
    let mut versions = [
        ("send-proxy", "v1"),
        ("send-proxy-v2", "v2"),
        ("send-proxy-v2-ssl", "v2"),
        ("send-proxy-v2-ssl-cn", "v2"),
    ]
    .into_iter();
    versions.find(|(parameter, _)| server.get(parameter).is_some())
}
