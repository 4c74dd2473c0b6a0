//! The `server` blocks of nginx as sections of listeners.

use super::{
    super::document::{List, Place, Reasons, Section, header, left_out},
    Directive, Import, Scope,
    listen::{Group, join},
    value,
};
use crate::config::text::quote::{quoted, quoted_list};

/// Settings of servers, which may stand around them as well.
pub(super) const SETTINGS: [&str; 22] = [
    "access_log",
    "allow",
    "deny",
    "limit_conn",
    "limit_conn_dry_run",
    "listen",
    "proxy_connect_timeout",
    "proxy_download_rate",
    "proxy_half_close",
    "proxy_next_upstream",
    "proxy_next_upstream_tries",
    "proxy_pass",
    "proxy_protocol",
    "proxy_protocol_timeout",
    "proxy_read_timeout",
    "proxy_requests",
    "proxy_responses",
    "proxy_socket_keepalive",
    "proxy_timeout",
    "proxy_upload_rate",
    "set_real_ip_from",
    "tcp_nodelay",
];

/// Ports of databases and the like, whose clients keep connections that are often idle.
const DATABASES: [&str; 9] = [
    ":1433", ":1521", ":3306", ":5432", ":5672", ":6379", ":6432", ":6443", ":27017",
];

const TLS_TO_BACKENDS: &str = "TLS to backends is not supported";

/// What becomes of a setting.
enum Setting {
    Key(&'static str, String),
    /// Another function writes it.
    ReadByOthers,
    /// It sets the default, or has no effect here.
    Default,
    Lost(&'static str),
}

impl<'a> Import<'a> {
    pub(super) fn server(&mut self, server: &'a Directive, outer: &Scope<'a>) {
        let count = self.document.count();
        match self.server_or_reasons(server, outer) {
            Ok(()) => self.carried(server),
            Err(reasons) => {
                self.document.take_back(count);
                self.whole(List::Lost, server, &left_out(&server.place, reasons));
            }
        }
    }

    /// The error is why it cannot be imported.
    fn server_or_reasons(
        &mut self,
        server: &'a Directive,
        outer: &Scope<'a>,
    ) -> Result<(), Reasons> {
        let mut scope = outer.within(server.inside());
        let mut rest = server.inside();
        let locations = || server.inside().iter().filter(|d| d.name == "location");
        let root = locations().find(|d| d.first() == "/");
        let location = root.or_else(|| locations().next());
        if let Some(location) = location.filter(|_| self.is_http) {
            self.carried(location);
            for other in locations().filter(|other| !std::ptr::eq(*other, location)) {
                let text = "layer 4 does not see paths: all sessions go where those of one \
                            `location` go";
                self.whole(List::Lost, other, text);
            }
            scope = scope.within(location.inside());
            rest = location.inside();
        }
        self.try_server(server, &scope)?;
        let is_http = self.is_http;
        let is_own = |d: &&Directive| !is_http || d.name != "location";
        let own = server.inside().iter().filter(is_own);
        let inner = rest.iter().filter(|_| self.is_http);
        let all: Vec<&Directive> = own.chain(inner).collect();
        for directive in all {
            match directive.name.as_str() {
                "error_log" => self.error_log(directive),
                "ssl_preread" if directive.first() != "on" => {
                    self.unneeded(directive, "it is the default");
                }
                "set" if super::constant::is_constant(directive, &[self.around]) => {
                    self.carried(directive);
                }
                "ssl_preread" | "server_name" => {
                    self.unneeded(directive, "all sessions go to one upstream");
                }
                // A server that sends TLS was left out.
                name if name.starts_with("proxy_ssl") => {
                    self.unneeded(directive, "`proxy_ssl` is off");
                }
                name if name.starts_with("ssl_") => {
                    // An address with it is left out.
                    self.unneeded(directive, "`listen` is without `ssl`");
                }
                name if SETTINGS.contains(&name) => {}
                _ => self.by_verdict(directive),
            }
        }
        Ok(())
    }

    /// The error is why it cannot be imported.
    fn try_server(&mut self, server: &'a Directive, scope: &Scope<'a>) -> Result<(), Reasons> {
        let mut reasons = Reasons::new();
        if let Some(ssl) = scope.last("proxy_ssl").filter(|d| d.first() == "on") {
            reasons.push((ssl.place.clone(), TLS_TO_BACKENDS.to_owned()));
        }
        let (groups, without) = self.groups(server, scope);
        let has_name = scope.last("server_name").is_some();
        reasons.extend(self.other_at_address(&groups, has_name));
        let target = self.target(server, scope);
        let (pass, target) = match (target, groups.is_empty()) {
            (Ok(found), false) if reasons.is_empty() => found,
            (target, has_none) => {
                reasons.extend(target.err());
                reasons.extend(without.into_iter().filter(|_| has_none));
                return Err(reasons);
            }
        };
        for (place, why) in without {
            let text = format!("left out: {why}");
            self.document.note(List::Lost, &place, text);
        }
        let proxy = scope.last("proxy_protocol").filter(|d| d.first() == "on");
        for group in groups {
            let bound = group.bind.iter();
            let bound = bound.map(|at| ((group.udp, at.clone()), group.place.clone()));
            self.bound.extend(bound);
            let proxy = match proxy {
                Some(proxy) if group.udp => {
                    self.lost(
                        proxy,
                        "with UDP backends get version 2: send_proxy = \"v2\"",
                    );
                    None
                }
                proxy => proxy,
            };
            let upstream = self.upstream(&target, pass, proxy);
            self.listener(server, group, &upstream, &target, scope);
            self.carried(pass);
        }
        Ok(())
    }

    /// What `proxy_pass` names, without variables. The error is why it is nothing for an upstream.
    fn target(
        &mut self,
        server: &Directive,
        scope: &Scope<'a>,
    ) -> Result<(&'a Directive, String), (Place, String)> {
        let Some(pass) = scope.last("proxy_pass") else {
            let why = match self.is_http {
                true => "it has no `location` with `proxy_pass`",
                false => "it has no `proxy_pass`",
            };
            return Err((server.place.clone(), why.to_owned()));
        };
        let fail = |why: &str| Err((pass.place.clone(), why.to_owned()));
        let target = match self.is_http {
            true => match pass.first().strip_prefix("http://") {
                Some(target) => target.split('/').next().unwrap_or_default(),
                None => return fail(TLS_TO_BACKENDS),
            },
            false => pass.first(),
        };
        let blocks = [server.inside(), self.around];
        let Some(target) = super::constant::resolve(target, &blocks) else {
            return fail("routing by variables is not supported yet");
        };
        if let Some(why) = self.missing(&target) {
            return fail(&why);
        }
        if target != pass.first() && !self.is_http {
            let text = format!("{} is always {target}", pass.first());
            self.document.note(List::Carried, &pass.place, text);
        }
        Ok((pass, target))
    }

    /// The addresses of a server, and why others, or none, are there.
    fn groups(&mut self, server: &Directive, scope: &Scope<'a>) -> (Vec<Group>, Reasons) {
        let (mut groups, mut reasons) = (Vec::new(), Reasons::new());
        let all = scope.all("listen");
        for listen in all {
            match self.listen(listen) {
                Ok(group) => join(&mut groups, group),
                Err(why) => reasons.push((listen.place.clone(), why)),
            }
        }
        if all.is_empty() {
            reasons.push((server.place.clone(), "it has no `listen`".to_owned()));
        }
        (groups, reasons)
    }

    /// An address is that of one listener: of several servers nginx picks by the name in TLS.
    fn other_at_address(&self, groups: &[Group], has_name: bool) -> Option<(Place, String)> {
        let mut all = groups
            .iter()
            .flat_map(|group| group.bind.iter().map(|at| (group.udp, at.clone())));
        let key = all.find(|key| self.bound.contains_key(key))?;
        let other = self.bound.get(&key)?;
        let why = match has_name {
            true => "routing by server name (SNI) is not supported yet",
            false => "without a `server_name` nginx refuses it, too",
        };
        let text = format!("{} is that of the server at {other}, and {why}", key.1);
        Some((groups[0].place.clone(), text))
    }

    fn listener(
        &mut self,
        server: &'a Directive,
        group: Group,
        upstream: &str,
        target: &str,
        scope: &Scope<'a>,
    ) {
        let name = self.listener_name(&group, upstream, target);
        let mut section = Section::new(header("listeners", &name), &server.place);
        let bind = match &group.bind[..] {
            [one] => quoted(one),
            many => quoted_list(many.iter()),
        };
        section.set("bind", bind, &group.place);
        if group.udp {
            section.set("protocol", quoted("udp"), &group.place);
        }
        section.set("upstream", quoted(upstream), &server.place);
        for (key, value) in &group.keys {
            section.set(key, value, &group.place);
        }
        if group.proxy {
            self.accept_proxy(&mut section, &group, scope);
        }
        for name in SETTINGS {
            let Some(setting) = scope.last(name) else {
                continue;
            };
            match self.setting(setting, group.udp) {
                Setting::Key(key, value) => {
                    section.set(key, value, &setting.place);
                    self.carried(setting);
                }
                Setting::Default => self.unneeded(setting, "it is the default, or without effect"),
                Setting::ReadByOthers => {}
                Setting::Lost(why) => self.lost(setting, why),
            }
        }
        self.limits(&mut section, scope);
        self.bandwidth(&mut section, scope);
        self.log(&mut section, scope);
        self.access(&mut section, server, scope);
        self.retries(&mut section, target, scope);
        self.defaults(&mut section, &group, scope);
        self.point_out_short_limit(target, scope);
        self.document.sections.push(section);
    }

    /// That of the upstream; where nothing has a name, what the clients connect to.
    fn listener_name(&mut self, group: &Group, upstream: &str, target: &str) -> String {
        let (protocol, port) = (group.protocol(), group.port());
        let names = match (self.upstreams.contains_key(target), group.udp) {
            (true, false) => [upstream.to_owned(), format!("{upstream}-{port}")],
            (true, true) => [upstream.to_owned(), format!("{upstream}-udp")],
            (false, _) => {
                let at = group.bind.first().map_or("", String::as_str);
                [format!("{protocol}-{port}"), format!("{protocol}-{at}")]
            }
        };
        self.document.first_name("listeners", &names)
    }

    /// Both directions are in one key, and a dry run is one of a limit that is there.
    fn bandwidth(&mut self, section: &mut Section, scope: &Scope<'a>) {
        let (mut ways, mut place) = (Vec::new(), None);
        let rates = [("up", "proxy_upload_rate"), ("down", "proxy_download_rate")];
        for (way, name) in rates {
            let Some(rate) = scope.last(name).filter(|rate| rate.first() != "0") else {
                continue;
            };
            match value::size(rate.first()) {
                Some(size) => {
                    ways.push(format!("{way} = {}", quoted(&size)));
                    self.carried(rate);
                    let text = "without nginx's burst at each second";
                    self.document.note(List::Differs, &rate.place, text);
                    place = Some(&rate.place);
                }
                None => self.lost(rate, "not a size"),
            }
        }
        if let Some(place) = place {
            section.set("bandwidth", format!("{{ {} }}", ways.join(", ")), place);
        }
        let is_on = |d: &&Directive| d.first() == "on";
        let Some(dry_run) = scope.last("limit_conn_dry_run").filter(is_on) else {
            return;
        };
        match (section.has("max_connections_per_source"), ways.is_empty()) {
            (true, true) => {
                section.set("limits_dry_run", true, &dry_run.place);
                self.carried(dry_run);
            }
            (true, false) => self.lost(dry_run, "limits_dry_run would be for the bandwidth, too"),
            (false, _) => self.lost(dry_run, "max_connections always holds"),
        }
    }

    /// A log of its own, beside that of all.
    fn log(&mut self, section: &mut Section, scope: &Scope<'a>) {
        for own in scope.all("access_log") {
            // That of all is in [log].
            if self.logs_of_all.contains(&own.place) {
                continue;
            }
            match super::log_target(own.first()) {
                Err(why) => self.lost(own, why),
                Ok(_) if section.has("access_log") => self.lost(own, "a listener has one"),
                Ok(target) => {
                    section.set("access_log", quoted(target.text()), &own.place);
                    self.note_log(own, &target);
                }
            }
        }
    }

    /// As many other backends as nginx tries, which is all of them.
    fn retries(&mut self, section: &mut Section, target: &str, scope: &Scope<'a>) {
        let set = ["proxy_next_upstream", "proxy_next_upstream_tries"];
        let has_default = set.iter().all(|name| scope.last(name).is_none());
        if let Some(upstream) = self.upstreams.get(target).filter(|_| has_default) {
            let servers = upstream
                .inside()
                .iter()
                .filter(|d| d.name == "server")
                .count();
            if servers > 4 {
                section.set("retries", servers - 1, &upstream.place);
            }
        }
    }

    fn accept_proxy(&mut self, section: &mut Section, group: &Group, scope: &Scope<'a>) {
        let trusted = scope.all("set_real_ip_from");
        let peers = trusted
            .iter()
            .map(|d| d.first().trim_end_matches(':').to_owned());
        let peers: Vec<String> = peers.collect();
        let timeout = scope.last("proxy_protocol_timeout").filter(|_| !group.udp);
        for used in trusted.iter().chain(&timeout) {
            self.carried(used);
        }
        let timeout = timeout.and_then(|d| value::time(d.first()));
        let mut fields = Vec::new();
        if !peers.is_empty() {
            fields.push(format!("trust = {}", quoted_list(peers.iter())));
        }
        if !group.udp {
            let time = timeout.unwrap_or_else(|| "30s".to_owned());
            fields.push(format!("timeout = {}", quoted(&time)));
        }
        let value = match fields.is_empty() {
            true => "true".to_owned(),
            false => format!("{{ {} }}", fields.join(", ")),
        };
        section.set("accept_proxy", value, &group.place);
        let text = match peers.is_empty() {
            true => {
                "`proxy_protocol`: the address in the header is that of the client, as with \
                 set_real_ip_from for all peers"
            }
            false => {
                "`proxy_protocol`: a header from a peer that is not in set_real_ip_from is refused"
            }
        };
        self.document.note(List::Differs, &group.place, text);
    }

    fn setting(&self, setting: &Directive, udp: bool) -> Setting {
        let first = setting.first();
        let number = first.parse::<u64>();
        let time = value::time(first);
        let above_zero = time.clone().filter(|time| time != "0s");
        match (setting.name.as_str(), udp) {
            (
                "access_log"
                | "listen"
                | "proxy_pass"
                | "proxy_protocol"
                | "proxy_protocol_timeout"
                | "set_real_ip_from"
                | "limit_conn"
                | "limit_conn_dry_run"
                | "proxy_download_rate"
                | "proxy_upload_rate",
                _,
            ) => Setting::ReadByOthers,
            ("proxy_connect_timeout", false) => match above_zero {
                Some(time) => Setting::Key("connect_timeout", quoted(&time)),
                None => Setting::Lost("`connect_timeout` is longer than zero"),
            },
            ("proxy_timeout" | "proxy_read_timeout", _) => match above_zero {
                Some(time) => Setting::Key("idle_timeout", quoted(&time)),
                None => Setting::Lost("nginx ends every session at once with it"),
            },
            ("proxy_half_close", false) if first == "on" => {
                Setting::Key("half_close", "true".to_owned())
            }
            ("proxy_socket_keepalive", false) if first == "on" => Setting::ReadByOthers,
            ("proxy_next_upstream", _) if first == "off" => Setting::Key("retries", "0".to_owned()),
            ("proxy_next_upstream_tries", _) => match number {
                Ok(0) | Err(_) => Setting::Default,
                Ok(tries) => Setting::Key("retries", (tries - 1).to_string()),
            },
            ("proxy_requests", true) => Setting::Key("requests", first.to_owned()),
            ("proxy_responses", true) if first == "0" => Setting::ReadByOthers,
            ("proxy_responses", true) => Setting::Key("responses", first.to_owned()),
            ("tcp_nodelay", false) if first == "off" => Setting::Key("nodelay", "false".to_owned()),
            _ => Setting::Default,
        }
    }

    fn limits(&mut self, section: &mut Section, scope: &Scope<'a>) {
        for limit in scope.all("limit_conn") {
            match self.limit(limit) {
                Ok((key, _)) if section.has(key) => self.lost(limit, "there is one such limit"),
                Ok((key, value)) => {
                    section.set(key, value, &limit.place);
                    self.carried(limit);
                    self.note_shared_zone(limit, key);
                }
                Err(why) => self.lost(limit, why),
            }
        }
    }

    /// Where several servers count in one zone.
    fn note_shared_zone(&mut self, limit: &Directive, key: &str) {
        if key != "max_connections_per_source" {
            return;
        }
        let zone = limit.first().to_owned();
        let Some(former) = self.counted.insert(zone, limit.place.clone()) else {
            return;
        };
        for place in [&former, &limit.place] {
            let text = "each listener counts for itself, nginx once for all servers with this zone";
            self.document.note(List::Differs, place, text);
        }
    }

    /// The key and its value; the error is why there is none.
    fn limit(&self, limit: &Directive) -> Result<(&'static str, String), &'static str> {
        let most = limit.arguments.get(1).cloned().unwrap_or_default();
        if most.parse::<u64>().is_err() {
            return Err("not a number");
        }
        match self.zones.get(limit.first()).map(String::as_str) {
            None => Err("there is no such zone: nginx refuses it, too"),
            Some("$binary_remote_addr" | "$remote_addr") => {
                Ok(("max_connections_per_source", most))
            }
            Some(key) if key.starts_with("$server_") => Ok(("max_connections", most)),
            Some(_) => Err("the zone counts by something else than an address"),
        }
    }

    /// What nginx does where nothing says otherwise, and tembuku does not.
    fn defaults(&mut self, section: &mut Section, group: &Group, scope: &Scope<'a>) {
        if !section.has("idle_timeout") && (group.udp || self.is_http) {
            let time = if self.is_http { "60s" } else { "10m" };
            self.document.set_default("idle_timeout", quoted(time));
        }
        if group.udp {
            self.without_replies(section, scope);
            return;
        }
        if !section.has("connect_timeout") {
            self.document.set_default("connect_timeout", quoted("60s"));
        }
        match scope.last("proxy_half_close").filter(|d| d.first() == "on") {
            // nginx has no other limit for what is half closed.
            Some(on) => section.set("half_close_timeout", quoted("0s"), &on.place),
            None => self.document.set_default("half_close", "false"),
        }
        let of_backends = scope.last("proxy_socket_keepalive");
        let of_backends = of_backends.filter(|directive| directive.first() == "on");
        let both = "`keepalive` is for both sides of a session";
        match (section.has("keepalive"), of_backends) {
            (false, None) => self.document.set_default("keepalive", "false"),
            (true, Some(on)) => self.carried(on),
            (true, None) => self.document.note(List::Differs, &group.place, both),
            (false, Some(on)) => {
                for (key, value) in Group::kernel_keepalive() {
                    section.set(key, value, &on.place);
                }
                self.carried(on);
                self.document.note(List::Differs, &on.place, both);
            }
        }
    }

    /// nginx ends a session with its datagram where no reply is expected.
    fn without_replies(&mut self, section: &mut Section, scope: &Scope<'a>) {
        let responses = scope.last("proxy_responses");
        let Some(none) = responses.filter(|directive| directive.first() == "0") else {
            return;
        };
        if !section.has("requests") {
            section.set("per_packet", "true", &none.place);
        }
        let text = "each datagram is balanced on its own, and replies that \
                    come all the same return";
        self.document.note(List::Differs, &none.place, text);
    }

    fn point_out_short_limit(&mut self, target: &str, scope: &Scope<'a>) {
        let timeout = scope.last("proxy_timeout");
        let limit = timeout.and_then(|d| Some((d, value::time(d.first())?)));
        let Some((directive, time)) = limit else {
            return;
        };
        let servers = self.upstreams.get(target).map(|upstream| upstream.inside());
        let mut addresses = servers.unwrap_or_default().iter().map(Directive::first);
        let database = |address: &str| DATABASES.iter().any(|port| address.ends_with(port));
        if value::milliseconds(&time) < 10_000 && (database(target) || addresses.any(database)) {
            let text = format!(
                "sessions of a database that are idle for {time} are ended, as by nginx; \
                 idle_timeout = \"1h\" would keep them"
            );
            self.document.note(List::Differs, &directive.place, text);
        }
    }
}
