//! `listen` directives of nginx: the addresses of listeners, and what belongs to them.

use super::{
    super::document::{List, Place},
    Directive, Import, value,
};
use crate::config::text::quote::quoted;

/// The addresses of one server that make one listener.
pub(super) struct Group {
    pub(super) udp: bool,
    pub(super) proxy: bool,
    pub(super) place: Place,
    pub(super) bind: Vec<String>,
    /// `key = value` of the parameters.
    pub(super) keys: Vec<(&'static str, String)>,
}

impl Group {
    /// The port of the first address, or the file of a unix socket.
    pub(super) fn port(&self) -> &str {
        let first = self.bind.first().map_or("", String::as_str);
        first.rsplit([':', '/']).next().unwrap_or_default()
    }

    /// `so_keepalive=on`, `so_keepalive=IDLE:INTERVAL:COUNT`, of which parts may be empty.
    fn keepalive(given: &str) -> [(&'static str, String); 2] {
        let given: Vec<&str> = given.split(':').collect();
        let part = |n: usize| given.get(n).copied().unwrap_or_default();
        let time = |n: usize, default: &str| {
            quoted(&value::time(part(n)).unwrap_or_else(|| default.to_owned()))
        };
        // Those of the kernel, where nothing is set.
        let (idle, interval) = (time(0, "2h"), time(1, "75s"));
        let count = part(2).parse::<u8>().unwrap_or(9);
        let table = format!("{{ idle = {idle}, interval = {interval}, count = {count} }}");
        // nginx leaves data that is not acknowledged to the kernel.
        [("keepalive", table), ("user_timeout", quoted("0s"))]
    }

    /// Keepalive without times of its own.
    pub(super) fn kernel_keepalive() -> [(&'static str, String); 2] {
        Self::keepalive("")
    }

    pub(super) fn protocol(&self) -> &'static str {
        if self.udp { "udp" } else { "tcp" }
    }
}

impl Import<'_> {
    /// All addresses of the servers in the blocks of `tree`, whether they are imported or not.
    pub(super) fn listens(&mut self, tree: &[Directive]) {
        for block in tree {
            let is_http = match block.name.as_str() {
                "stream" => false,
                "http" => true,
                // In a file that is included in the block itself.
                "server" => {
                    self.listens_of(block, false);
                    continue;
                }
                _ => continue,
            };
            for server in block.inside().iter().filter(|d| d.name == "server") {
                self.listens_of(server, is_http);
            }
        }
    }

    fn listens_of(&mut self, server: &Directive, is_http: bool) {
        for listen in server.inside().iter().filter(|d| d.name == "listen") {
            let has = |word: &str| listen.arguments.iter().any(|argument| argument == word);
            let port = is_http.then_some(80);
            let bind = value::listen(listen.first(), port, has("ipv6only=off"));
            for address in bind.unwrap_or_else(|_| vec![listen.first().to_owned()]) {
                let is_udp = has("udp") || has("quic");
                self.document.listens(&listen.place, is_udp, address);
            }
        }
    }

    pub(super) fn listen(&mut self, listen: &Directive) -> Result<Group, String> {
        let has = |word: &str| listen.arguments.iter().any(|argument| argument == word);
        if has("ssl") || has("quic") {
            return Err("TLS of sessions is not supported yet".to_owned());
        }
        let port = self.is_http.then_some(80);
        let mut group = Group {
            udp: has("udp"),
            proxy: has("proxy_protocol"),
            place: listen.place.clone(),
            bind: value::listen(listen.first(), port, has("ipv6only=off"))?,
            keys: Vec::new(),
        };
        for parameter in listen.arguments.iter().skip(1) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            if group.udp && ["backlog", "so_keepalive", "proxy_protocol"].contains(&name) {
                self.refused(listen, &format!("`{name}` with `udp`"));
                if name != "proxy_protocol" {
                    continue;
                }
            }
            match name {
                // Always so, or the kernel's own choice.
                "udp" | "proxy_protocol" | "reuseport" | "bind" | "ipv6only" | "default_server"
                | "http2" | "deferred" | "rcvbuf" | "sndbuf" => {}
                "backlog" => match value.parse::<u16>() {
                    Ok(backlog) if backlog > 0 => group.keys.push(("backlog", backlog.to_string())),
                    // The kernel's limit.
                    _ => {}
                },
                "so_keepalive" if value == "off" => {}
                "so_keepalive" => {
                    let times = if value == "on" { "" } else { value };
                    group.keys.extend(Group::keepalive(times));
                }
                _ => {
                    let text = format!("`{parameter}` has no counterpart");
                    self.document.note(List::Lost, &listen.place, text);
                }
            }
        }
        self.carried(listen);
        Ok(group)
    }
}

/// Adds to the group that it fits.
pub(super) fn join(groups: &mut Vec<Group>, group: Group) {
    let same = |other: &&mut Group| {
        (other.udp, other.proxy, &other.keys) == (group.udp, group.proxy, &group.keys)
    };
    match groups.iter_mut().find(same) {
        Some(other) => other.bind.extend(group.bind),
        None => groups.push(group),
    }
}
