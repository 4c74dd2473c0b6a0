//! `frontend` and `listen` sections as sections of listeners.

use super::{
    super::document::{List, Place, Section, header},
    Import,
    syntax::{Block, Line, milliseconds, time},
};
use crate::config::text::quote::{quoted, quoted_list};

/// Words of a frontend that need nothing.
const HARMLESS: [(&str, &str); 11] = [
    ("mode", "TCP is the default"),
    ("option clitcpka", "keepalive is on by default"),
    ("option dontlognull", "the access log is off by default"),
    ("option dontlog-normal", "the access log is off by default"),
    ("option logasap", "the access log is off by default"),
    ("option splice-auto", "sustained flows are always spliced"),
    (
        "option splice-request",
        "sustained flows are always spliced",
    ),
    (
        "option splice-response",
        "sustained flows are always spliced",
    ),
    ("option srvtcpka", "keepalive is on by default"),
    ("option tcp-smart-accept", "the kernel decides"),
    ("option tcpka", "keepalive is on by default"),
];

/// Where a listener binds.
#[derive(Default)]
struct Binds {
    addresses: Vec<String>,
    /// `key = value` of the parameters, and where they stand.
    keys: Vec<(&'static str, String, Place)>,
    place: Option<Place>,
}

impl Import<'_> {
    pub(super) fn frontend(&mut self, block: &Block) {
        if let Err((place, why)) = self.try_frontend(block) {
            let text = format!("`{} {}` is left out: {why}", block.kind, block.name);
            self.note(List::Lost, &place, &text);
        }
    }

    /// The error is why it cannot be imported, and where.
    fn try_frontend(&mut self, block: &Block) -> Result<(), (Place, String)> {
        let fail = |place: &Place, why: &str| Err((place.clone(), why.to_owned()));
        if let Some(mode) = block.last("mode").filter(|line| line.word(1) != "tcp") {
            let why = match block.lines.iter().any(|line| line.word(0) == "stats") {
                true => "`mode http`: the status page and metrics are [admin] listen",
                false => "`mode http` is not layer 4",
            };
            return fail(&mode.place, why);
        }
        let target = match block.kind.as_str() {
            "listen" => block,
            _ => {
                let Some(line) = only_backend(block).or(block.last("default_backend")) else {
                    return fail(&block.place, "it has no `default_backend`");
                };
                let name = line.word(1);
                let is = |b: &&Block| b.kind == "backend" && b.name == name;
                match self.blocks.iter().find(is) {
                    Some(backend) => backend,
                    None => return fail(&line.place, &format!("there is no backend `{name}`")),
                }
            }
        };
        let binds = self.binds(block)?;
        let Some(place) = binds.place.clone() else {
            return fail(&block.place, "it has no `bind`");
        };
        let upstream = self.backend(target)?;
        let name = self.document.name("listeners", &block.name);
        let mut section = Section::new(header("listeners", &name), &block.place);
        let bind = match &binds.addresses[..] {
            [one] => quoted(one),
            many => quoted_list(many.iter()),
        };
        section.set("bind", bind, &place);
        section.set("upstream", quoted(&upstream), &block.place);
        for (key, value, place) in &binds.keys {
            section.set(key, value, place);
        }
        self.limits(&mut section, block, target);
        self.access(&mut section, block);
        self.rest_of_frontend(block);
        self.document.sections.push(section);
        Ok(())
    }

    fn binds(&mut self, block: &Block) -> Result<Binds, (Place, String)> {
        let mut binds = Binds::default();
        for line in block.lines.iter().filter(|line| line.word(0) == "bind") {
            let fail = |why: &str| Err((line.place.clone(), why.to_owned()));
            binds.place.get_or_insert_with(|| line.place.clone());
            let parameters = &line.words[2.min(line.words.len())..];
            let has = |word: &str| parameters.iter().any(|parameter| parameter == word);
            if has("ssl") {
                return fail("TLS of sessions is not supported yet");
            }
            for address in line.word(1).split(',') {
                match bind(address, has("v4v6")) {
                    Ok(addresses) => binds.addresses.extend(addresses),
                    Err(why) => return fail(why),
                }
            }
            let mut rest = parameters.iter();
            while let Some(parameter) = rest.next() {
                let key = match parameter.as_str() {
                    "accept-proxy" => Some(("accept_proxy", "true".to_owned())),
                    "backlog" => rest.next().map(|n| ("backlog", n.clone())),
                    "mode" => rest
                        .next()
                        .map(|mode| ("unix_mode", quoted(&format!("{mode:0>4}")))),
                    "user" => rest.next().map(|user| ("unix_owner", quoted(user))),
                    "group" => rest.next().map(|group| ("unix_group", quoted(group))),
                    "v4v6" | "v6only" | "tfo" | "defer-accept" => continue,
                    "name" | "process" | "thread" | "maxconn" | "level" | "shards" => {
                        rest.next();
                        continue;
                    }
                    _ => {
                        self.lost(line, &format!("`{parameter}` has no counterpart"));
                        break;
                    }
                };
                let known = |name: &str| binds.keys.iter().any(|(key, ..)| *key == name);
                if let Some((key, value)) = key.filter(|(key, _)| !known(key)) {
                    binds.keys.push((key, value, line.place.clone()));
                }
            }
            self.carried(line);
        }
        Ok(binds)
    }

    /// Limits of time and number, which HAProxy has at both sides.
    fn limits(&mut self, section: &mut Section, block: &Block, target: &Block) {
        if let Some(line) = target
            .last("timeout connect")
            .or(block.last("timeout connect"))
        {
            if let Some(time) = time(line.word(2)) {
                section.set("connect_timeout", quoted(&time), &line.place);
                self.carried(line);
            }
        } else {
            let text = "connect_timeout is 5s by default";
            self.note(List::Differs, &block.place, text);
        }
        for (keys, name) in [
            (
                ["timeout tunnel", "timeout client", "timeout server"],
                "idle_timeout",
            ),
            (
                ["timeout client-fin", "timeout server-fin", ""],
                "half_close_timeout",
            ),
        ] {
            let client = [keys[0], keys[1]].map(|key| block.last(key).or(target.last(key)));
            let found = [client[0], client[1], target.last(keys[2])];
            let found: Vec<&Line> = found.into_iter().flatten().collect();
            // A tunnel's limit replaces the others; of those the longer one holds.
            let longest = || found.iter().max_by_key(|line| milliseconds(line.word(2)));
            let tunnel = found.iter().find(|line| line.word(1) == "tunnel");
            let Some(line) = tunnel.or_else(longest) else {
                continue;
            };
            if let Some(time) = time(line.word(2)) {
                section.set(name, quoted(&time), &line.place);
            }
            for other in &found {
                match other.word(2) == line.word(2) {
                    true => self.carried(other),
                    false => self.differs(other, &format!("`{name}` is one limit for both sides")),
                }
            }
        }
        if let Some(line) = target.last("retries").or(block.last("retries")) {
            section.set("retries", line.word(1), &line.place);
            self.differs(line, "each attempt uses another backend");
        }
        if let Some(line) = block.last("maxconn") {
            section.set("max_connections", line.word(1), &line.place);
            self.differs(
                line,
                "connections above it are closed, not left in the queue",
            );
        }
        if let Some(line) = block.last("rate-limit").filter(|l| l.word(1) == "sessions") {
            let rate = line.word(2);
            match rate.parse::<u32>() {
                Ok(n) if n > 0 => {
                    section.set("connection_rate", quoted(&format!("{n}/s")), &line.place);
                    section.set("over_rate", quoted("delay"), &line.place);
                    self.differs(
                        line,
                        "connections above it are accepted and wait, at most 1000 and for 10s",
                    );
                }
                Ok(_) => self.harmless(line, "it is no limit"),
                Err(_) => self.lost(line, "not a number"),
            }
        }
        if let Some(line) = block.last("backlog") {
            section.set("backlog", line.word(1), &line.place);
            self.carried(line);
        }
    }

    /// `tcp-request connection accept|reject [if|unless ...]`, by source addresses.
    fn access(&mut self, section: &mut Section, block: &Block) {
        let mut rules = Vec::new();
        for line in block
            .lines
            .iter()
            .filter(|line| line.word(0) == "tcp-request")
        {
            let inspects = |line: &Line| line.word(0) == "tcp-request" && line.word(1) == "content";
            if line.word(1) == "inspect-delay" && !block.lines.iter().any(inspects) {
                self.harmless(line, "no rule looks at the content");
                continue;
            }
            let found = match (line.word(1), line.word(2)) {
                ("connection", "accept") => by_source(block, line, "allow", "deny"),
                ("connection", "reject") => by_source(block, line, "deny", "allow"),
                _ => None,
            };
            match found {
                Some(found) => {
                    let rule = |rule: String| (quoted(&rule), line.place.clone());
                    rules.extend(found.into_iter().map(rule));
                    self.carried(line);
                }
                None => self.lost(line, "rules are by source address only"),
            }
        }
        if !rules.is_empty() {
            section.set_list("access", rules);
        }
    }

    fn rest_of_frontend(&mut self, block: &Block) {
        for line in &block.lines {
            let key = line.key();
            if let Some((_, why)) = HARMLESS.iter().find(|(word, _)| *word == key) {
                self.harmless(line, why);
                continue;
            }
            match line.word(0) {
                "log" => self.differs(line, "write [log] access = PATH for an access log"),
                "option" if ["tcplog", "httplog"].contains(&line.word(1)) => {
                    self.differs(line, "write [log] access = PATH for an access log");
                }
                "bind" | "timeout" | "maxconn" | "backlog" | "retries" | "tcp-request" | "acl"
                | "rate-limit" | "default_backend" | "description" | "id" => {}
                "use_backend" if only_backend(block).is_some() => self.carried(line),
                // The other half of this section.
                _ if block.kind == "listen" && super::backend::knows(line) => {}
                "no" => self.harmless(line, "it is off"),
                _ => self.lost(line, "no counterpart"),
            }
        }
    }
}

/// The one `use_backend`, if it is without a condition.
fn only_backend(block: &Block) -> Option<&Line> {
    let mut all = block.lines.iter().filter(|l| l.word(0) == "use_backend");
    let only = all.next().filter(|line| line.words.len() == 2)?;
    all.next().is_none().then_some(only)
}

/// What `bind` takes of an address of HAProxy.
fn bind(address: &str, both: bool) -> Result<Vec<String>, &'static str> {
    let address = address
        .trim_start_matches("ipv4@")
        .trim_start_matches("ipv6@")
        .trim_start_matches("unix@");
    if address.starts_with('/') {
        return Ok(vec![format!("unix:{address}")]);
    }
    let Some((host, port)) = address.rsplit_once(':') else {
        return Err("there is no port in it");
    };
    let is_v6 = host.contains(':');
    let plain = host.trim_matches(['[', ']']);
    match plain {
        "" | "*" => Ok(vec![format!("0.0.0.0:{port}")]),
        "::" if both => Ok(vec![format!("0.0.0.0:{port}"), format!("[::]:{port}")]),
        _ if is_v6 => Ok(vec![format!("[{plain}]:{port}")]),
        _ if plain.parse::<std::net::Ipv4Addr>().is_ok() => Ok(vec![format!("{plain}:{port}")]),
        "localhost" => Ok(vec![format!("127.0.0.1:{port}")]),
        _ => Err("`bind` takes addresses, not names"),
    }
}

/// The rules for a condition on the source address: those that meet it get `hit`, and with `unless`
/// all others get it.
fn by_source(block: &Block, line: &Line, hit: &str, other: &str) -> Option<Vec<String>> {
    let rest = &line.words[3.min(line.words.len())..];
    let Some((condition, rest)) = rest.split_first() else {
        return Some(vec![format!("{hit} all")]);
    };
    let text = rest.join(" ");
    let (negated, text) = match text.strip_prefix('!') {
        Some(text) => (true, text),
        None => (false, text.as_str()),
    };
    let text = text.trim();
    let words: Vec<&str> = match text.strip_prefix('{') {
        Some(inside) => inside.strip_suffix('}')?.split_whitespace().collect(),
        // Of an `acl` with that name.
        None => {
            let mut acls = block
                .lines
                .iter()
                .filter(|l| l.word(0) == "acl" && l.word(1) == text);
            let acl = acls.next()?;
            acls.next().is_none().then_some(())?;
            acl.words[2..].iter().map(String::as_str).collect()
        }
    };
    let ("src", peers) = (*words.first()?, &words[1..]) else {
        return None;
    };
    let is_network = |peer: &&str| {
        let address = peer.split('/').next().unwrap_or_default();
        address.parse::<std::net::IpAddr>().is_ok()
    };
    if peers.is_empty() || !peers.iter().all(is_network) {
        return None;
    }
    let negated = negated != (condition == "unless");
    let first = if negated { other } else { hit };
    let mut rules: Vec<String> = peers.iter().map(|peer| format!("{first} {peer}")).collect();
    if negated {
        rules.push(format!("{hit} all"));
    }
    Some(rules)
}
