//! `frontend` and `listen` sections as sections of listeners.

use super::{
    super::document::{List, Place, Reasons, Section, duration, header, left_out},
    Import,
    proxy::accept_proxy,
    switching,
    syntax::{Block, Line, VARIABLE, milliseconds, time},
};
use crate::config::text::quote::{quoted, quoted_list};

const SERVERS: [&str; 3] = ["default-server", "server", "server-template"];

/// Where a listener binds.
struct Binds {
    addresses: Vec<String>,
    /// `key = value` of the parameters.
    keys: Vec<(&'static str, String)>,
    place: Place,
}

impl<'a> Import<'a> {
    pub(super) fn frontend(&mut self, block: &Block) {
        let count = self.document.count();
        match self.try_frontend(block) {
            Ok(()) => self.carried(&block.header),
            Err(reasons) => {
                self.document.take_back(count);
                self.whole(List::Lost, block, &left_out(&block.place, reasons));
            }
        }
    }

    /// The error is why it cannot be imported.
    fn try_frontend(&mut self, block: &Block) -> Result<(), Reasons> {
        if let Some(mode) = block.last("mode").filter(|line| line.word(1) != "tcp") {
            let why = match block.lines.iter().any(|line| line.word(0) == "stats") {
                true => "`mode http`: the status page and metrics are [admin] listen",
                false => "`mode http` is not layer 4",
            };
            return Err(vec![(mode.place.clone(), why.to_owned())]);
        }
        let mut reasons = Reasons::new();
        let target = self.target(block).map_err(|why| reasons.push(why)).ok();
        reasons.extend(target.map_or_else(Reasons::new, |target| self.not_taken(target)));
        let (all_binds, without) = self.binds(block);
        let Some(target) = target.filter(|_| reasons.is_empty() && !all_binds.is_empty()) else {
            reasons.extend(without.into_iter().filter(|_| all_binds.is_empty()));
            return Err(reasons);
        };
        for (place, why) in without {
            self.note(List::Lost, &place, &format!("left out: {why}"));
        }
        let upstream = self.backend(target);
        let is_only = all_binds.len() == 1;
        for binds in all_binds {
            let name = self.document.name("listeners", &block.name);
            let mut section = Section::new(header("listeners", &name), &block.place);
            let bind = match &binds.addresses[..] {
                [one] => quoted(one),
                many => quoted_list(many.iter()),
            };
            section.set("bind", bind, &binds.place);
            section.set("upstream", quoted(&upstream), &block.place);
            for (key, value) in &binds.keys {
                section.set(key, value, &binds.place);
            }
            self.limits(&mut section, block, target);
            self.expect_proxy(&mut section, block);
            self.access(&mut section, block, target, is_only);
            self.log(block);
            self.document.sections.push(section);
        }
        if !is_only {
            for line in ["maxconn", "rate-limit"]
                .map(|key| block.last(key))
                .into_iter()
                .flatten()
            {
                let text = "each listener of this section counts for itself";
                self.note(List::Differs, &line.place, text);
            }
        }
        self.switching(block);
        if !std::ptr::eq(block, target) {
            self.own_servers(block, target);
        }
        self.rest(block);
        self.rest(target);
        Ok(())
    }

    /// The section with the servers. The error is why there is none.
    fn target<'b>(&self, block: &'b Block) -> Result<&'b Block, (Place, String)>
    where
        'a: 'b,
    {
        let line = match (switching::target(block), block.kind.as_str()) {
            (Some(line), _) => line,
            (None, "listen") => return Ok(block),
            (None, _) => {
                let mut lines = block.lines.iter();
                let why = match lines.any(|line| line.word(0) == "use_backend") {
                    true => {
                        "conditions of `use_backend` do not select an upstream, and it has no \
                         `default_backend`"
                    }
                    false => "it has no `default_backend`",
                };
                return Err((block.place.clone(), why.to_owned()));
            }
        };
        if line.word(1).contains("%[") {
            let why = "the name of the backend depends on the session".to_owned();
            return Err((line.place.clone(), why));
        }
        let name = line.word(1);
        let missing = || (line.place.clone(), format!("there is no backend `{name}`"));
        self.targets.get(name).copied().ok_or_else(missing)
    }

    /// The servers of a `listen` section to which no client of it goes.
    fn own_servers(&mut self, block: &Block, target: &Block) {
        let text = format!("all clients go to `{}`", target.name);
        let is_server = |line: &&Line| SERVERS.contains(&line.word(0));
        for line in block.lines.iter().filter(is_server) {
            self.harmless(line, &text);
        }
    }

    /// All addresses of the section, whether it is imported or not.
    pub(super) fn listens(&mut self, block: &Block) {
        for line in bind_lines(block) {
            let has_both = line.words.iter().any(|word| word == "v4v6");
            for word in line.word(1).split(',') {
                let addresses = bind(word, has_both).unwrap_or_else(|_| vec![word.to_owned()]);
                for address in addresses {
                    self.document.listens(&line.place, false, address);
                }
            }
        }
    }

    /// A listener for each set of parameters, and why others, or none, are there.
    fn binds(&mut self, block: &Block) -> (Vec<Binds>, Reasons) {
        let (mut all, mut reasons) = (Vec::<Binds>::new(), Reasons::new());
        let lines = bind_lines(block);
        for line in &lines {
            match self.bind_line(block, line) {
                Ok(binds) => {
                    match all.iter_mut().find(|other| other.keys == binds.keys) {
                        Some(other) => other.addresses.extend(binds.addresses),
                        None => all.push(binds),
                    }
                    self.carried(line);
                }
                Err(why) => reasons.push((line.place.clone(), why.to_owned())),
            }
        }
        if lines.is_empty() {
            reasons.push((block.place.clone(), "it has no `bind`".to_owned()));
        }
        (all, reasons)
    }

    fn bind_line(&mut self, block: &Block, line: &Line) -> Result<Binds, &'static str> {
        let parameters = &line.words[2.min(line.words.len())..];
        let has = |word: &str| parameters.iter().any(|parameter| parameter == word);
        if has("ssl") {
            return Err("TLS of sessions is not supported yet");
        }
        let mut binds = Binds {
            addresses: Vec::new(),
            keys: Vec::new(),
            place: line.place.clone(),
        };
        if line.word(1).contains('$') {
            return Err(VARIABLE);
        }
        for address in line.word(1).split(',') {
            binds.addresses.extend(bind(address, has("v4v6"))?);
        }
        let mut rest = parameters.iter();
        while let Some(parameter) = rest.next() {
            let key = match parameter.as_str() {
                "accept-proxy" => Some(("accept_proxy", accept_proxy(block, &[]))),
                "tcp-ut" => rest
                    .next()
                    .and_then(|limit| time(limit))
                    .map(|limit| ("user_timeout", quoted(&limit))),
                "transparent" => Some(("freebind", "true".to_owned())),
                "backlog" => rest.next().map(|n| ("backlog", n.clone())),
                "mode" => rest
                    .next()
                    .map(|mode| ("unix_mode", quoted(&format!("{mode:0>4}")))),
                "user" => rest.next().map(|user| ("unix_owner", quoted(user))),
                "group" => rest.next().map(|group| ("unix_group", quoted(group))),
                "v4v6" | "v6only" | "tfo" | "defer-accept" => continue,
                "name" | "process" | "thread" | "level" | "shards" | "id" | "nice" | "guid"
                | "label" | "severity-output" | "nbconn" | "expose-fd" => {
                    rest.next();
                    continue;
                }
                // More clients would get in, and what they send first would be taken for data.
                "interface" => return Err("`interface`: name an address of it instead"),
                "namespace" => return Err("`namespace`: a process has one, that it is started in"),
                "accept-netscaler-cip" => return Err("only PROXY headers are read"),
                "maxconn" => {
                    rest.next();
                    let text = "`maxconn` of an address: write max_connections of the listener";
                    self.lost(line, text);
                    continue;
                }
                parameter => {
                    self.lost(line, &format!("`{parameter}` has no counterpart"));
                    if ["mss", "tcp-md5sig", "uid", "gid", "proto", "alpn", "cc"]
                        .contains(&parameter)
                    {
                        rest.next();
                    }
                    continue;
                }
            };
            let known = |name: &str| binds.keys.iter().any(|(key, _)| *key == name);
            binds.keys.extend(key.filter(|(key, _)| !known(key)));
        }
        Ok(binds)
    }

    /// Limits of time and number, which HAProxy has at both sides.
    fn limits(&mut self, section: &mut Section, block: &Block, target: &Block) {
        let connect = target.last("timeout connect");
        match connect.or(block.last("timeout connect")) {
            Some(line) => match time(line.word(2)).filter(|time| time != "0s") {
                Some(time) => {
                    section.set("connect_timeout", quoted(&time), &line.place);
                    self.carried(line);
                }
                None => self.lost(line, "not a time above zero"),
            },
            // The kernel gives up after some two minutes.
            None => self.document.set_default("connect_timeout", quoted("127s")),
        }
        self.idle_limits(section, block, target);
        self.keepalive(section, block, target);
        self.only_server(block, target);
        for (line, key, how) in [
            (
                target.last("retries").or(block.last("retries")),
                "retries",
                "each attempt uses another backend, at once; HAProxy waits, a second at most, and \
                 tries the same server again",
            ),
            (
                block.last("maxconn"),
                "max_connections",
                "connections above it are closed, not left in the queue",
            ),
        ] {
            match line.map(|line| (line, line.word(1).parse::<u64>())) {
                Some((line, Ok(number))) => {
                    section.set(key, number, &line.place);
                    self.differs(line, how);
                }
                Some((line, Err(_))) => self.lost(line, "not a number"),
                None => {}
            }
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
        let is_number = |line: &&Line| line.word(1).parse::<u16>().is_ok_and(|n| n > 0);
        if let Some(line) = block.last("backlog").filter(is_number) {
            section.set("backlog", line.word(1), &line.place);
            self.carried(line);
        }
    }

    /// Where there is no other server to try.
    fn only_server(&mut self, block: &Block, target: &Block) {
        let retries = target.last("retries").or(block.last("retries"));
        let retries = retries.map_or("3", |line| line.word(1));
        let is_server = |line: &&Line| ["server", "server-template"].contains(&line.word(0));
        let mut servers = target.lines.iter().filter(is_server);
        if let (Some(only), None) = (servers.next(), servers.next())
            && only.word(0) == "server"
            && retries != "0"
        {
            let text = format!(
                "a failed connect ends the session, since no other server is there; HAProxy tries \
                 it {retries} times more, with pauses of a second at most"
            );
            self.note(List::Differs, &only.place, &text);
        }
    }

    /// In HAProxy the limit of a side ends that side, upon which its peer ends the other: the
    /// shorter one decides. A tunnel's limit replaces both.
    fn idle_limits(&mut self, section: &mut Section, block: &Block, target: &Block) {
        let of_client = |key: &str| block.last(key).or(target.last(key)).cloned();
        let of_server = |key: &str| target.last(key).cloned();
        let tunnel = of_server("timeout tunnel").or(of_client("timeout tunnel"));
        let sides = [of_client("timeout client"), of_server("timeout server")];
        let sides: Vec<Line> = match &tunnel {
            Some(tunnel) => vec![tunnel.clone()],
            None => sides.into_iter().flatten().collect(),
        };
        let ends = [
            of_client("timeout client-fin"),
            of_server("timeout server-fin"),
        ];
        let ends: Vec<Line> = ends.into_iter().flatten().collect();
        self.idle_limit(section, "idle_timeout", &sides);
        self.idle_limit(section, "half_close_timeout", &ends);
        if let Some(tunnel) = tunnel {
            for line in ["client", "server"].iter().filter_map(|side| {
                let key = format!("timeout {side}");
                block.last(&key).or(target.last(&key))
            }) {
                self.harmless(line, &format!("`{}` replaces it", tunnel.text()));
            }
        }
    }

    /// Without one the other program has no limit.
    fn idle_limit(&mut self, section: &mut Section, key: &'static str, lines: &[Line]) {
        let limit = |line: &&Line| milliseconds(line.word(2)).filter(|limit| *limit > 0);
        for line in lines
            .iter()
            .filter(|line| milliseconds(line.word(2)).is_none())
        {
            self.lost(line, "not a time");
        }
        for line in lines.iter().filter(|l| milliseconds(l.word(2)) == Some(0)) {
            self.harmless(line, "it is no limit");
        }
        let shortest = lines.iter().filter(|line| limit(line).is_some());
        let Some(line) = shortest.min_by_key(|line| limit(line)) else {
            self.document.set_default(key, quoted("0s"));
            return;
        };
        section.set(
            key,
            quoted(&duration(limit(&line).unwrap_or(0))),
            &line.place,
        );
        for other in lines.iter().filter(|line| limit(line).is_some()) {
            match limit(&other) == limit(&line) {
                true => self.carried(other),
                false => self.differs(
                    other,
                    &format!("`{key}` is one limit for both sides, and the shorter one decides"),
                ),
            }
        }
    }

    /// Off by default, at each side; with the times of the kernel where none are set.
    fn keepalive(&mut self, section: &mut Section, block: &Block, target: &Block) {
        let at = |side: &str, of: &Block| {
            let both = of.last("option tcpka");
            of.last(&format!("option {side}tcpka")).or(both).cloned()
        };
        let (client, server) = (at("cli", block), at("srv", target));
        for (line, begin) in [(block, "clitcpka-"), (target, "srvtcpka-")]
            .into_iter()
            .flat_map(|(block, begin)| block.all().map(move |line| (line, begin)))
        {
            if line.word(0).starts_with(begin) {
                self.carried(line);
            }
        }
        let Some(line) = client.as_ref().or(server.as_ref()) else {
            self.document.set_default("keepalive", "false");
            return;
        };
        let part = |name: &str| {
            let own = block.last(&format!("clitcpka-{name}"));
            let line = own.or(target.last(&format!("srvtcpka-{name}")));
            line.map(|line| line.word(1).to_owned())
        };
        let seconds = |name: &str, default: &str| {
            let given = part(name).and_then(|text| match text.parse::<u64>() {
                // Seconds, unlike other times.
                Ok(number) => Some(duration(number.saturating_mul(1_000))),
                Err(_) => time(&text),
            });
            quoted(given.as_deref().unwrap_or(default))
        };
        let count = part("cnt").and_then(|text| text.parse::<u8>().ok());
        let (idle, interval) = (seconds("idle", "2h"), seconds("intvl", "75s"));
        let table = format!(
            "{{ idle = {idle}, interval = {interval}, count = {} }}",
            count.unwrap_or(9)
        );
        section.set("keepalive", table, &line.place);
        if !section.has("user_timeout") {
            section.set("user_timeout", quoted("0s"), &line.place);
        }
        for line in [&client, &server].into_iter().flatten() {
            self.carried(line);
        }
        if client.is_some() != server.is_some() {
            self.differs(line, "`keepalive` is for both sides of a session");
        }
    }
}

fn bind_lines(block: &Block) -> Vec<Line> {
    // Before HAProxy 2.0 the address could follow the name.
    let first = [&block.header].into_iter();
    let first = first.filter(|header| header.word(2).contains(':'));
    let first = first.map(|header| Line {
        words: header.words[1..].to_vec(),
        place: header.place.clone(),
    });
    let lines = block.lines.iter().filter(|line| line.word(0) == "bind");
    first.chain(lines.cloned()).collect()
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
    if address.contains('@') {
        return Err("`bind` takes addresses and paths of unix sockets");
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
