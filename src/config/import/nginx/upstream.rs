//! The `upstream` blocks of nginx as sections of upstreams.

use super::{
    super::document::{List, Place, Section, header, host_name},
    Directive, Import, value,
};
use crate::config::text::quote::quoted;
use std::{cmp::Ordering, collections::HashMap};

/// A server of an upstream.
struct Backend {
    address: String,
    weight: u64,
    /// How many connections it may have; 0: any number.
    most: Option<u64>,
    is_backup: bool,
    is_down: bool,
    /// `key = value` of other parameters.
    fields: Vec<String>,
    places: Vec<Place>,
}

impl Backend {
    fn text(&self) -> String {
        let mut fields = vec![format!("address = {}", quoted(&self.address))];
        if self.weight != 1 {
            fields.push(format!("weight = {}", self.weight));
        }
        fields.extend_from_slice(&self.fields);
        fields.extend(self.most.map(|most| format!("max_connections = {most}")));
        let words = [("backup", self.is_backup), ("down", self.is_down)];
        let words = words.iter().filter(|(_, is_set)| *is_set);
        fields.extend(words.map(|(word, _)| format!("{word} = true")));
        match fields.len() {
            1 => quoted(&self.address),
            _ => format!("{{ {} }}", fields.join(", ")),
        }
    }
}

/// The variables that `hash_key` knows.
const VARIABLES: [&str; 5] = [
    "remote_addr",
    "binary_remote_addr",
    "remote_port",
    "server_port",
    "proxy_protocol_addr",
];

impl<'a> Import<'a> {
    /// Why there can be no section for what `proxy_pass` names.
    pub(super) fn missing(&self, target: &str) -> Option<String> {
        let default_port = self.is_http.then_some(80);
        let Some(upstream) = self.upstreams.get(target) else {
            let why = value::backend(target, default_port).err()?;
            return Some(format!("there is no upstream `{target}`, and {why}"));
        };
        let is_script = |d: &Directive| d.name.starts_with("balancer_by_");
        if upstream.inside().iter().any(is_script) {
            return Some(format!("a script picks the servers of `{target}`"));
        }
        let servers = upstream.inside().iter().filter(|d| d.name == "server");
        let mut addresses = servers.map(|server| value::backend(server.first(), default_port));
        let has_one = addresses.any(|address| address.is_ok());
        (!has_one).then(|| format!("the upstream `{target}` has no server with a port"))
    }

    /// The name of the section for what `proxy_pass` names, which is made if it is not there yet.
    /// `proxy`: the directive that makes nginx send a PROXY header.
    pub(super) fn upstream(
        &mut self,
        target: &str,
        pass: &Directive,
        proxy: Option<&Directive>,
    ) -> String {
        let key = (target.to_owned(), proxy.is_some());
        if let Some(name) = self.made.get(&key) {
            return name.clone();
        }
        let default_port = self.is_http.then_some(80);
        let directive = self.upstreams.get(target).copied();
        let (place, backends, policy) = match directive {
            Some(directive) => {
                let backends = self.backends(directive, default_port);
                let policy = self.policy(directive);
                (directive.place.clone(), backends, policy)
            }
            None => {
                let address = value::backend(target, default_port);
                let address = address.unwrap_or_else(|_| target.to_owned());
                // The value of a variable is looked up again by nginx, too.
                if !pass.first().contains('$') {
                    self.note_resolution(pass, &address);
                }
                let backend = (quoted(&address), pass.place.to_string());
                (pass.place.clone(), vec![backend], Vec::new())
            }
        };
        let other = (target.to_owned(), proxy.is_none());
        if let (Some(directive), Some(other)) = (directive, self.made.get(&other).cloned()) {
            let text = format!(
                "PROXY headers take an upstream of their own: its limits, failures and rotation are \
                 apart from those of [upstreams.{other}]"
            );
            self.document.note(List::Differs, &directive.place, &text);
        }
        let wanted = match proxy {
            Some(_) if self.made.contains_key(&other) => format!("{target}-proxy"),
            _ if directive.is_some() => target.to_owned(),
            _ => format!(
                "to-{}",
                target.trim_start_matches("unix:").trim_start_matches('/')
            ),
        };
        let name = self.document.name("upstreams", &wanted);
        let mut section = Section::new(header("upstreams", &name), &place);
        for (key, value, place) in policy {
            section.set(key, value, &place);
        }
        section.set_list("backends", backends);
        if let Some(proxy) = proxy {
            section.set("send_proxy", quoted("v1"), &proxy.place);
            self.carried(proxy);
        }
        self.document.sections.push(section);
        self.made.insert(key, name.clone());
        name
    }

    /// Each with the lines that it comes from.
    fn backends(&mut self, upstream: &'a Directive, port: Option<u16>) -> Vec<(String, String)> {
        let servers = upstream.inside().iter().filter(|d| d.name == "server");
        let mut backends: Vec<Backend> = Vec::new();
        let mut positions: HashMap<String, usize> = HashMap::new();
        for server in servers {
            let address = match value::backend(server.first(), port) {
                Ok(address) => address,
                Err(why) => {
                    let mut words = server.arguments.iter();
                    let why = match words.any(|word| word.starts_with("service=")) {
                        true => "write a section [upstreams.NAME.discover] with kind = \"srv\"",
                        false => why.as_str(),
                    };
                    self.lost(server, why);
                    continue;
                }
            };
            let backend = self.backend(server, address);
            if backend.most > Some(0) {
                self.note_workers(upstream, server);
            }
            match positions.get(&backend.address) {
                Some(position) => self.merge(&mut backends[*position], backend, server),
                None => {
                    positions.insert(backend.address.clone(), backends.len());
                    backends.push(backend);
                }
            }
        }
        self.refused_servers(upstream);
        let text = |backend: &Backend| {
            let places: Vec<String> = backend.places.iter().map(Place::to_string).collect();
            (backend.text(), places.join(", "))
        };
        backends.iter().map(text).collect()
    }

    /// nginx takes an address that is there twice for another server, which has the same picks as a
    /// larger weight. One that gets sessions before the other decides alone.
    fn merge(&mut self, known: &mut Backend, other: Backend, server: &Directive) {
        let rank = |backend: &Backend| (backend.is_down, backend.is_backup);
        let is_after = rank(known).cmp(&rank(&other));
        let places = [known.places.as_slice(), &other.places].concat();
        match is_after {
            Ordering::Less => {}
            Ordering::Greater => *known = other,
            Ordering::Equal => {
                known.weight += other.weight;
                // Without a limit of one of them there is none.
                known.most = known
                    .most
                    .zip(other.most)
                    .and_then(|(a, b)| match a > 0 && b > 0 {
                        true => a.checked_add(b),
                        false => None,
                    });
                if known.fields != other.fields {
                    let text = format!(
                        "the address is that of {}, whose `max_fails` and `fail_timeout` hold",
                        known.places[0]
                    );
                    self.document.note(List::Differs, &server.place, text);
                }
            }
        }
        known.places = places;
    }

    /// Each of nginx's processes counts for itself what is in no `zone`.
    fn note_workers(&mut self, upstream: &Directive, server: &Directive) {
        let has_zone = upstream.inside().iter().any(|d| d.name == "zone");
        if self.has_workers && !has_zone {
            let text = "`max_conns`: over all workers; without `zone` nginx counts in each of its \
                        own";
            self.document.note(List::Differs, &server.place, text);
        }
    }

    fn backend(&mut self, server: &Directive, address: String) -> Backend {
        let mut backend = Backend {
            address,
            weight: 1,
            most: None,
            is_backup: false,
            is_down: false,
            fields: Vec::new(),
            places: vec![server.place.clone()],
        };
        let mut is_resolved_again = self.is_http;
        for parameter in server.arguments.iter().skip(1) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let number = || value.parse::<u64>().ok();
            let time = || value::time(value).filter(|time| time != "0s");
            let field = match name {
                "weight" => match number() {
                    Some(weight) => {
                        backend.weight = weight;
                        continue;
                    }
                    None => None,
                },
                "max_fails" => number().map(|n| format!("max_fails = {n}")),
                "max_conns" if number().is_some() => {
                    backend.most = number();
                    continue;
                }
                "fail_timeout" => time().map(|t| format!("fail_timeout = {}", quoted(&t))),
                "slow_start" => time().map(|t| format!("slow_start = {}", quoted(&t))),
                "backup" => {
                    backend.is_backup = true;
                    continue;
                }
                "down" => {
                    backend.is_down = true;
                    continue;
                }
                "resolve" => {
                    is_resolved_again = true;
                    continue;
                }
                _ => None,
            };
            match field {
                Some(field) => backend.fields.push(field),
                None => {
                    let text = format!("`{parameter}` has no counterpart");
                    self.document.note(List::Lost, &server.place, text);
                }
            }
        }
        if !is_resolved_again {
            self.note_resolution(server, &backend.address);
        }
        self.carried(server);
        backend
    }

    /// nginx looks names up at a start and a reload only.
    pub(super) fn note_resolution(&mut self, directive: &Directive, address: &str) {
        if let Some(host) = host_name(address) {
            let text = format!("{host}: the name is looked up again every 30s (resolve_interval)");
            self.document.note(List::Differs, &directive.place, text);
        }
    }

    /// What a test of the configuration by nginx itself does not let pass.
    fn refused_servers(&mut self, upstream: &'a Directive) {
        let is_backup = |server: &Directive| server.arguments.iter().any(|word| word == "backup");
        let servers = || upstream.inside().iter().filter(|d| d.name == "server");
        let is_method = |d: &&Directive| ["hash", "ip_hash", "random"].contains(&d.name.as_str());
        let method = upstream.inside().iter().find(is_method);
        if let (Some(method), Some(server)) = (method, servers().find(|d| is_backup(d))) {
            let what = format!("`backup` with `{}`", method.name);
            self.refused(server, &what);
        }
        let without = |server: &&Directive| server.arguments.iter().any(|word| word == "weight=0");
        if let Some(server) = servers().find(without) {
            self.refused(server, "`weight=0`");
        }
        let paid = |server: &&Directive| {
            let mut words = server.arguments.iter();
            words.any(|word| word.starts_with("slow_start="))
        };
        if let Some(server) = servers().find(paid) {
            self.refused(server, "`slow_start` (without a subscription)");
        }
    }

    /// The keys that select the policy.
    fn policy(&mut self, upstream: &'a Directive) -> Vec<(&'static str, String, Place)> {
        let mut keys: Vec<(&'static str, String, Place)> = Vec::new();
        for directive in upstream.inside() {
            let place = directive.place.clone();
            let second = directive.arguments.get(1).map(String::as_str);
            let mut balance = |word: &str| {
                // Of several nginx uses the last, with a warning.
                keys.clear();
                keys.push(("balance", quoted(word), place.clone()));
            };
            match directive.name.as_str() {
                "server" => continue,
                "least_conn" => balance("least_conn"),
                "ip_hash" => {
                    balance("ip_hash");
                    if !self.is_http {
                        self.refused(directive, "`ip_hash` in `stream`");
                    }
                }
                "random" => {
                    balance("random_two");
                    if second != Some("least_conn") && directive.first() != "two" {
                        let text = "`random`: the better of two random backends is taken";
                        self.document.note(List::Differs, &place, text);
                        continue;
                    }
                }
                "least_time" => {
                    let of = match directive.first() {
                        "connect" => "connect",
                        _ => "first_byte",
                    };
                    balance("least_time");
                    keys.push(("least_time", quoted(of), place.clone()));
                }
                "hash" => match hash_key(directive.first()) {
                    Ok(key) => {
                        balance(match second {
                            Some("consistent") => "consistent_hash",
                            _ => "hash",
                        });
                        keys.push(("hash_key", quoted(&key), place.clone()));
                    }
                    Err(why) => {
                        self.lost(directive, &why);
                        continue;
                    }
                },
                _ => {
                    self.by_verdict(directive);
                    continue;
                }
            }
            self.carried(directive);
        }
        keys
    }
}

/// `text` as a `hash_key`.
fn hash_key(text: &str) -> Result<String, String> {
    let mut rest = text;
    while let Some((_, after)) = rest.split_once('$') {
        let name = after.trim_start_matches('{');
        let end = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let name = &name[..end.unwrap_or(name.len())];
        if !VARIABLES.contains(&name) {
            return Err(format!(
                "`hash_key` does not know ${name}; round_robin takes its place"
            ));
        }
        rest = after;
    }
    match text.contains('$') {
        true => Ok(text.to_owned()),
        false => Err("the key is the same for all clients".to_owned()),
    }
}
