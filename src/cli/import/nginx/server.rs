//! The `server` blocks of nginx as sections of listeners.

use super::{
    super::document::{List, Place, Section, header},
    Directive, Import, Scope, shown, value,
};
use crate::config::text::quote::{quoted, quoted_list};

/// Settings of servers, which may stand around them as well.
pub(super) const SETTINGS: [&str; 21] = [
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
    "proxy_timeout",
    "proxy_upload_rate",
    "set_real_ip_from",
    "tcp_nodelay",
];

/// Ports of databases and the like, whose clients keep connections that are often idle.
const DATABASES: [&str; 9] = [
    ":1433", ":1521", ":3306", ":5432", ":5672", ":6379", ":6432", ":6443", ":27017",
];

/// The addresses of one server that make one listener.
struct Group {
    udp: bool,
    proxy: bool,
    place: Place,
    bind: Vec<String>,
    /// `key = value` of the parameters.
    keys: Vec<(&'static str, String)>,
}

/// What becomes of a setting.
enum Setting {
    Key(&'static str, String),
    /// It sets the default, or has no effect here.
    Default,
    Lost(&'static str),
}

impl<'a> Import<'a> {
    pub(super) fn server(&mut self, server: &'a Directive, outer: &Scope<'a>) {
        let mut scope = outer.within(server.inside());
        let mut rest = server.inside();
        if self.is_http {
            let locations = || server.inside().iter().filter(|d| d.name == "location");
            let root = locations().find(|d| d.first() == "/");
            let Some(location) = root.or_else(|| locations().next()) else {
                self.lost(server, "it has no `location` with `proxy_pass`");
                return;
            };
            if locations().count() > 1 {
                let text = "of several `location` blocks the one of `/` is taken: layer 4 does not \
                            see paths";
                self.document
                    .note(List::Lost, &server.place, format!("`server`: {text}"));
            }
            scope = scope.within(location.inside());
            rest = location.inside();
        }
        if let Err((place, why)) = self.try_server(server, &scope) {
            let text = format!("`server` is left out: {why}");
            self.document.note(List::Lost, &place, text);
            return;
        }
        let own = server.inside().iter().filter(|d| d.name != "location");
        let inner = rest.iter().filter(|_| self.is_http);
        let all: Vec<&Directive> = own.chain(inner).collect();
        for directive in all {
            match directive.name.as_str() {
                "error_log" => self.error_log(directive),
                "ssl_preread" if directive.first() != "on" => {}
                "set" if super::constant::is_constant(directive, &[self.around]) => {
                    self.carried(directive);
                }
                "ssl_preread" | "server_name" => {
                    let text = format!(
                        "{}: nothing to write, all sessions go to one upstream",
                        directive.name
                    );
                    self.document.note(List::Carried, &directive.place, text);
                }
                name if name.starts_with("ssl_") => {
                    // A server with it was left out.
                    let text = format!("{name}: nothing to write, `listen` is without `ssl`");
                    self.document.note(List::Carried, &directive.place, text);
                }
                name if SETTINGS.contains(&name) => {}
                _ => self.by_verdict(directive),
            }
        }
    }

    /// The error is why it cannot be imported, and where.
    fn try_server(
        &mut self,
        server: &'a Directive,
        scope: &Scope<'a>,
    ) -> Result<(), (Place, String)> {
        let pass = scope.last("proxy_pass");
        let Some(pass) = pass else {
            return Err((server.place.clone(), "it has no `proxy_pass`".to_owned()));
        };
        let fail =
            |directive: &Directive, why: &str| Err((directive.place.clone(), why.to_owned()));
        let target = match self.is_http {
            true => match pass.first().strip_prefix("http://") {
                Some(target) => target.split('/').next().unwrap_or_default(),
                None => return fail(pass, "TLS to backends is not supported"),
            },
            false => pass.first(),
        };
        let blocks = [server.inside(), self.around];
        let Some(target) = super::constant::resolve(target, &blocks) else {
            return fail(pass, "routing by variables is not supported yet");
        };
        let target = target.as_str();
        if target != pass.first() && !self.is_http {
            let text = format!("`proxy_pass`: {} is always {target}", pass.first());
            self.document.note(List::Carried, &pass.place, text);
        }
        if let Some(ssl) = scope.last("proxy_ssl").filter(|d| d.first() == "on") {
            return fail(ssl, "TLS to backends is not supported");
        }
        let mut groups = Vec::new();
        for listen in scope.all("listen") {
            if listen
                .arguments
                .iter()
                .any(|word| word == "ssl" || word == "quic")
            {
                return fail(listen, "TLS of sessions is not supported yet");
            }
            match self.listen(listen) {
                Ok(group) => join(&mut groups, group),
                Err(why) => return fail(listen, &why),
            }
        }
        if groups.is_empty() {
            return fail(server, "it has no `listen`");
        }
        self.bind(&groups)?;
        let proxy = scope.last("proxy_protocol").filter(|d| d.first() == "on");
        for group in groups {
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
            let upstream = self.upstream(target, pass, proxy);
            let upstream = upstream.map_err(|why| (pass.place.clone(), why))?;
            self.listener(server, group, &upstream, target, scope);
            self.carried(pass);
        }
        Ok(())
    }

    /// An address is that of one listener: of several servers nginx picks by the name in TLS.
    fn bind(&mut self, groups: &[Group]) -> Result<(), (Place, String)> {
        let mut all: Vec<(bool, String)> = Vec::new();
        for group in groups {
            all.extend(group.bind.iter().map(|at| (group.udp, at.clone())));
        }
        for key in &all {
            if let Some(other) = self.bound.get(key) {
                let (at, place) = (&key.1, groups[0].place.clone());
                let text = format!(
                    "{at} is that of the server at {other}, and routing by server name (SNI) is \
                     not supported yet"
                );
                return Err((place, text));
            }
        }
        let all = all.into_iter().map(|key| (key, groups[0].place.clone()));
        self.bound.extend(all);
        Ok(())
    }

    fn listen(&mut self, listen: &Directive) -> Result<Group, String> {
        let has = |word: &str| listen.arguments.iter().any(|argument| argument == word);
        let port = self.is_http.then_some(80);
        let mut group = Group {
            udp: has("udp"),
            proxy: has("proxy_protocol"),
            place: listen.place.clone(),
            bind: value::listen(listen.first(), port, has("ipv6only=off"))?,
            keys: Vec::new(),
        };
        for parameter in &listen.arguments[1..] {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            match name {
                // Always so, or the kernel's own choice.
                "udp" | "proxy_protocol" | "reuseport" | "bind" | "ipv6only" | "default_server"
                | "http2" | "deferred" | "rcvbuf" | "sndbuf" => {}
                "backlog" => match value.parse::<u16>() {
                    Ok(backlog) if backlog > 0 => group.keys.push(("backlog", backlog.to_string())),
                    // The kernel's limit.
                    _ => {}
                },
                "so_keepalive" if value == "off" => {
                    group.keys.push(("keepalive", "false".to_owned()));
                }
                "so_keepalive" if value == "on" => {}
                "so_keepalive" => {
                    let mut parts = value.split(':');
                    let mut time = |default: &str| {
                        let text = parts.next().unwrap_or_default();
                        quoted(&value::time(text).unwrap_or_else(|| default.to_owned()))
                    };
                    let (idle, interval) = (time("60s"), time("10s"));
                    let count = parts.next().and_then(|n| n.parse::<u8>().ok()).unwrap_or(3);
                    let text =
                        format!("{{ idle = {idle}, interval = {interval}, count = {count} }}");
                    group.keys.push(("keepalive", text));
                }
                _ => {
                    let text = format!("`{}`: `{parameter}` has no counterpart", shown(listen));
                    self.document.note(List::Lost, &listen.place, text);
                }
            }
        }
        self.carried(listen);
        Ok(group)
    }

    fn listener(
        &mut self,
        server: &Directive,
        group: Group,
        upstream: &str,
        target: &str,
        scope: &Scope<'a>,
    ) {
        let name = self.document.name("listeners", upstream);
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
                Setting::Key(key, value) => section.set(key, value, &setting.place),
                Setting::Default => {}
                Setting::Lost(why) => {
                    self.lost(setting, why);
                    continue;
                }
            }
            match name {
                "access_log"
                | "listen"
                | "proxy_pass"
                | "proxy_protocol"
                | "limit_conn"
                | "limit_conn_dry_run"
                | "proxy_download_rate"
                | "proxy_upload_rate" => {}
                _ => self.carried(setting),
            }
        }
        self.bandwidth(&mut section, scope);
        self.log(&mut section, scope);
        self.access(&mut section, scope);
        self.retries(&mut section, target, scope);
        self.differences(server, &group, target, scope);
        self.document.sections.push(section);
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
                    let text = format!("`{name}`: without nginx's burst at each second");
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
        let (Some(own), around) = (scope.last("access_log"), self.around) else {
            return;
        };
        // That of all is in [log].
        if around.iter().any(|directive| std::ptr::eq(directive, own)) {
            return;
        }
        let path = own.first();
        match super::log_path(path) {
            Err(why) => self.lost(own, why),
            Ok(word) => {
                section.set("access_log", quoted(word.unwrap_or(path)), &own.place);
                self.carried(own);
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
        let timeout = timeout.and_then(|d| value::time(d.first()));
        let mut fields = Vec::new();
        if !peers.is_empty() {
            fields.push(format!("trust = {}", quoted_list(peers.iter())));
        }
        fields.extend(timeout.map(|time| format!("timeout = {}", quoted(&time))));
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

    fn access(&mut self, section: &mut Section, scope: &Scope<'a>) {
        let rules = scope.all("access");
        if rules.is_empty() {
            return;
        }
        let mut list = Vec::new();
        for rule in rules {
            let peers = rule.first().trim_end_matches(':');
            list.push((
                quoted(&format!("{} {peers}", rule.name)),
                rule.place.clone(),
            ));
            self.carried(rule);
        }
        section.set_list("access", list);
    }

    fn setting(&mut self, setting: &Directive, udp: bool) -> Setting {
        let first = setting.first();
        let number = first.parse::<u64>();
        let time = value::time(first);
        let above_zero = time.clone().filter(|time| time != "0s");
        match (setting.name.as_str(), udp) {
            ("proxy_connect_timeout", false) => match above_zero {
                Some(time) => Setting::Key("connect_timeout", quoted(&time)),
                None => Setting::Lost("`connect_timeout` is longer than zero"),
            },
            ("proxy_timeout" | "proxy_read_timeout", _) => match time {
                Some(time) => Setting::Key("idle_timeout", quoted(&time)),
                None => Setting::Lost("not a time"),
            },
            ("proxy_half_close", false) if first == "off" => {
                Setting::Key("half_close", "false".to_owned())
            }
            ("proxy_next_upstream", _) if first == "off" => Setting::Key("retries", "0".to_owned()),
            ("proxy_next_upstream_tries", _) => match number {
                Ok(0) | Err(_) => Setting::Default,
                Ok(tries) => Setting::Key("retries", (tries - 1).to_string()),
            },
            ("proxy_requests", true) => Setting::Key("requests", first.to_owned()),
            ("proxy_responses", true) if first == "0" => {
                Setting::Lost("0 means here that only `idle_timeout` ends a flow")
            }
            ("proxy_responses", true) => Setting::Key("responses", first.to_owned()),
            ("tcp_nodelay", false) if first == "off" => Setting::Key("nodelay", "false".to_owned()),
            ("limit_conn", _) => self.limit(setting),
            _ => Setting::Default,
        }
    }

    fn limit(&mut self, setting: &Directive) -> Setting {
        let most = setting.arguments.get(1).cloned().unwrap_or_default();
        let key = self.zones.get(setting.first()).map_or("", String::as_str);
        let by_source = ["$binary_remote_addr", "$remote_addr"].contains(&key);
        match (most.parse::<u64>(), by_source) {
            (Err(_), _) => Setting::Lost("not a number"),
            (Ok(_), true) => {
                self.carried(setting);
                Setting::Key("max_connections_per_source", most)
            }
            (Ok(_), false) if key.starts_with("$server_") => {
                self.carried(setting);
                Setting::Key("max_connections", most)
            }
            (Ok(_), false) => Setting::Lost("the zone counts by something else than an address"),
        }
    }

    /// Defaults that are not nginx's, where nothing sets them.
    fn differences(&mut self, server: &Directive, group: &Group, target: &str, scope: &Scope<'a>) {
        let is_set = |name: &str| scope.last(name).is_some();
        let mut found = Vec::new();
        if !group.udp && !is_set("proxy_connect_timeout") {
            found.push("connect_timeout is 5s, in nginx 60s");
        }
        if !group.udp && !is_set("proxy_half_close") && !self.is_http {
            found.push("half_close is on, in nginx off");
        }
        if group.udp && !is_set("proxy_timeout") {
            found.push("idle_timeout is 60s, in nginx 10m");
        }
        if self.is_http && !is_set("proxy_read_timeout") {
            found.push("idle_timeout is 10m, in nginx 60s");
        }
        if !group.udp && !group.keys.iter().any(|(key, _)| *key == "backlog") {
            found.push("backlog is 4096, in nginx 511");
        }
        if !found.is_empty() {
            let text = format!("defaults: {}", found.join("; "));
            self.document.note(List::Differs, &server.place, text);
        }
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
                "`{}`: sessions of a database that are idle for {time} are ended, as by nginx; \
                 idle_timeout = \"1h\" would keep them",
                shown(directive)
            );
            self.document.note(List::Differs, &directive.place, text);
        }
    }
}

/// Adds to the group that it fits.
fn join(groups: &mut Vec<Group>, group: Group) {
    let same = |other: &&mut Group| {
        (other.udp, other.proxy, &other.keys) == (group.udp, group.proxy, &group.keys)
    };
    match groups.iter_mut().find(same) {
        Some(other) => other.bind.extend(group.bind),
        None => groups.push(group),
    }
}
