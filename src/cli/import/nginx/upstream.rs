//! The `upstream` blocks of nginx as sections of upstreams.

use super::{
    super::document::{List, Place, Section, header},
    Directive, Import, shown, value,
};
use crate::config::text::quote::quoted;

/// The variables that `hash_key` knows.
const VARIABLES: [&str; 5] = [
    "remote_addr",
    "binary_remote_addr",
    "remote_port",
    "server_port",
    "proxy_protocol_addr",
];

impl<'a> Import<'a> {
    /// The name of the section for what `proxy_pass` names, which is made if it is not there yet.
    /// `proxy`: the directive that makes nginx send a PROXY header.
    pub(super) fn upstream(
        &mut self,
        target: &str,
        pass: &Directive,
        proxy: Option<&Directive>,
    ) -> Result<String, String> {
        let key = (target.to_owned(), proxy.is_some());
        if let Some(name) = self.made.get(&key) {
            return Ok(name.clone());
        }
        let default_port = self.is_http.then_some(80);
        let directive = self.upstreams.get(target).copied();
        let (place, backends, policy) = match directive {
            Some(directive) => {
                let is_script = |d: &&Directive| d.name.starts_with("balancer_by_");
                if directive.inside().iter().any(|d| is_script(&d)) {
                    return Err(format!("a script picks the servers of `{target}`"));
                }
                let backends = self.backends(directive, default_port);
                let policy = self.policy(directive);
                (directive.place.clone(), backends, policy)
            }
            None => {
                let address = value::backend(target, default_port);
                let address =
                    address.map_err(|why| format!("there is no upstream `{target}`, and {why}"))?;
                let backend = (quoted(&address), pass.place.clone());
                (pass.place.clone(), vec![backend], Vec::new())
            }
        };
        if backends.is_empty() {
            return Err(format!("the upstream `{target}` has no server"));
        }
        let wanted = match proxy {
            Some(_) if self.made.contains_key(&(target.to_owned(), false)) => {
                format!("{target}-proxy")
            }
            _ => target.trim_start_matches("unix:").to_owned(),
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
        Ok(name)
    }

    fn backends(&mut self, upstream: &'a Directive, port: Option<u16>) -> Vec<(String, Place)> {
        let servers = upstream.inside().iter().filter(|d| d.name == "server");
        let mut backends: Vec<(String, Place)> = Vec::new();
        for server in servers {
            match value::backend(server.first(), port) {
                Ok(address) => {
                    let backend = self.backend(server, &address);
                    if backends.iter().any(|(known, _)| *known == backend) {
                        self.lost(
                            server,
                            "the same server is there already: give it a `weight`",
                        );
                        continue;
                    }
                    backends.push((backend, server.place.clone()));
                }
                Err(why) => self.lost(server, &why),
            }
        }
        backends
    }

    fn backend(&mut self, server: &Directive, address: &str) -> String {
        let mut fields = vec![format!("address = {}", quoted(address))];
        for parameter in &server.arguments[1..] {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let number = || value.parse::<u64>().ok();
            let time = || value::time(value).filter(|time| time != "0s");
            let field = match name {
                "weight" => number().map(|n| format!("weight = {n}")),
                "max_fails" => number().map(|n| format!("max_fails = {n}")),
                "max_conns" => number().map(|n| format!("max_connections = {n}")),
                "fail_timeout" => time().map(|t| format!("fail_timeout = {}", quoted(&t))),
                "slow_start" => time().map(|t| format!("slow_start = {}", quoted(&t))),
                "backup" => Some("backup = true".to_owned()),
                "down" => Some("down = true".to_owned()),
                // Names are always resolved again.
                "resolve" => continue,
                _ => None,
            };
            match field {
                Some(field) => fields.push(field),
                None => {
                    let text = format!("`{}`: `{parameter}` has no counterpart", shown(server));
                    self.document.note(List::Lost, &server.place, text);
                }
            }
        }
        self.carried(server);
        match fields.len() {
            1 => quoted(address),
            _ => format!("{{ {} }}", fields.join(", ")),
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
                "ip_hash" => balance("ip_hash"),
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
