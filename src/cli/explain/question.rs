//! What the arguments mean in this configuration.

use super::Explain;
use crate::{
    config::{nearest, text::shorten::shorten},
    plan::{Addr, Listener, Plan, Role, Upstream, Variable},
    upstream::{
        balance::Chance,
        explain::{Client, ClientSet, MODEL, MODEL_OF_RUNNING, MOST_CLIENTS, draw_ports},
    },
};
use std::collections::BTreeSet;

/// No more names are listed in a message.
const MOST_NAMES: usize = 10;
/// Nor more characters of limits.
const MOST_TEXT: usize = 400;

pub(super) struct Question<'a> {
    pub(super) listener: &'a Listener,
    pub(super) upstream: &'a Upstream,
    pub(super) server_port: Option<u16>,
    pub(super) clients: Vec<Client>,
    /// They were named one by one, not drawn or counted up.
    pub(super) named: bool,
    /// Positions in the configuration.
    pub(super) without: Vec<usize>,
    pub(super) seed: u64,
    /// How many nodes share the limits.
    pub(super) nodes: u32,
    /// What the running process has otherwise than the file; `None`: it was not asked.
    pub(super) running: Option<Vec<String>>,
    /// Where the backends of its source come from, or why there are none.
    pub(super) source: Option<String>,
}

impl<'a> Question<'a> {
    /// The assumptions of the answer.
    pub(super) fn model(&self) -> &'static str {
        match self.running {
            None => MODEL,
            Some(_) => MODEL_OF_RUNNING,
        }
    }

    /// The role that the picked backend must have, where none of them is known.
    pub(super) fn unknown_role(&self) -> Option<Role> {
        let check = self.upstream.check.as_ref()?;
        let role = check.kind.role();
        role.filter(|_| self.running.is_none())
    }

    /// What there is to say besides the picks.
    pub(super) fn notes(&self) -> Vec<String> {
        let is_checked = self.upstream.check.is_some() && self.running.is_none();
        let checks = is_checked.then(|| {
            "backends are checked in a running process: those that a check takes out are counted \
             in here; --running leaves them out"
                .to_owned()
        });
        let parts = (self.nodes > 1).then(|| self.parts_of_limits()).flatten();
        let running = self.running.iter().flatten().cloned();
        let source = self.source.iter().cloned();
        let notes = checks.into_iter().chain(parts);
        notes.chain(running).chain(source).collect()
    }

    /// How many sessions of the limits this node takes.
    fn parts_of_limits(&self) -> Option<String> {
        let here = self.upstream.on_one_of(self.nodes);
        let whole = self.upstream.backends.iter();
        let limits = whole.zip(&here.backends).map(|(whole, here)| {
            let (text, part) = (whole.text.as_str(), here.max_connections);
            (text, part, whole.max_connections)
        });
        let listener = self.listener.on_one_of(self.nodes).max_connections;
        let of_listener = ("the listener", listener, self.listener.max_connections);
        let limits = limits
            .chain([of_listener])
            .filter(|(_, _, whole)| *whole > 0);
        let parts: Vec<String> = limits
            .map(|(what, part, whole)| format!("{what} takes {part} of {whole} sessions"))
            .collect();
        let (nodes, text) = (self.nodes, parts.join(", "));
        let text = shorten(&text, MOST_TEXT);
        (!parts.is_empty()).then(|| format!("on each of {nodes} nodes {text}"))
    }

    /// The error is wrong usage.
    pub(super) fn new(args: &Explain, plan: &'a Plan) -> Result<Self, String> {
        let listener = listener(args.listener.as_deref(), plan)?;
        let upstream = plan.upstreams.iter().find(|u| u.name == listener.upstream);
        let upstream = upstream.ok_or("the listener has no upstream")?;
        let server_port = server_port(args.server_port, listener, upstream)?;
        let without = args.without.iter().map(|name| backend(name, upstream));
        Ok(Self {
            without: without.collect::<Result<_, _>>()?,
            clients: clients(args, upstream)?,
            named: !args.client.is_empty(),
            seed: args.seed,
            nodes: plan.process.nodes,
            running: None,
            source: None,
            listener,
            upstream,
            server_port,
        })
    }
}

fn listener<'a>(name: Option<&str>, plan: &'a Plan) -> Result<&'a Listener, String> {
    let known: Vec<&str> = plan.listeners.iter().map(|l| l.name.as_str()).collect();
    match (name, plan.listeners.as_slice()) {
        (Some(name), all) => all
            .iter()
            .find(|l| l.name == name)
            .ok_or_else(|| unknown("listener", name, &known)),
        (None, [only]) => Ok(only),
        (None, []) => Err("the file has no listener".to_owned()),
        (None, _) => Err(format!(
            "which listener? --listener NAME, one of {}",
            list(&known)
        )),
    }
}

fn backend(name: &str, upstream: &Upstream) -> Result<usize, String> {
    let known: Vec<&str> = upstream.backends.iter().map(|b| b.text.as_str()).collect();
    let place = known.iter().position(|text| *text == name);
    place.ok_or_else(|| {
        let what = format!("backend of the upstream `{}`", upstream.name);
        unknown(&what, name, &known)
    })
}

fn unknown(what: &str, name: &str, known: &[&str]) -> String {
    let hint = match nearest(name, known) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => format!("there is {}", list(known)),
    };
    // It may be meant to steer the terminal.
    let name = name.replace(char::is_control, "\u{fffd}");
    format!("no {what} is called \"{name}\"; {hint}")
}

fn list(names: &[&str]) -> String {
    let shown = &names[..names.len().min(MOST_NAMES)];
    let more = match names.len() - shown.len() {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    format!("{}{more}", shown.join(", "))
}

fn uses(upstream: &Upstream, variable: Variable) -> bool {
    let key = upstream.balance.hash_key();
    key.is_some_and(|key| key.uses(variable))
}

fn server_port(
    given: Option<u16>,
    listener: &Listener,
    upstream: &Upstream,
) -> Result<Option<u16>, String> {
    let places = listener.bind.iter().flat_map(|bind| &bind.addrs);
    let ports: BTreeSet<u16> = places
        .filter_map(|place| match place {
            Addr::Tcp(address) => Some(address.port()),
            Addr::Unix(_) => None,
        })
        .collect();
    let texts: Vec<String> = ports.iter().map(u16::to_string).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    match given {
        Some(port) if ports.contains(&port) => Ok(Some(port)),
        Some(port) => Err(format!(
            "the listener `{}` does not listen on port {port}; it has {}",
            listener.name,
            list(&texts)
        )),
        None if ports.len() > 1 && uses(upstream, Variable::ServerPort) => Err(format!(
            "`hash_key` uses $server_port, and the listener `{}` has several: --server-port N, \
             one of {}",
            listener.name,
            list(&texts)
        )),
        None => Ok(ports.first().copied()),
    }
}

fn clients(args: &Explain, upstream: &Upstream) -> Result<Vec<Client>, String> {
    let needs_port = uses(upstream, Variable::RemotePort);
    if !args.client.is_empty() {
        let without_port = |client: &&Client| client.ip().is_some() && client.port().is_none();
        return match args.client.iter().find(without_port) {
            Some(client) if needs_port => Err(format!(
                "`hash_key` uses $remote_port, and the client {client} has no port: \
                 write it with one, as in \"192.0.2.1:5000\" or \"[2001:db8::1]:5000\""
            )),
            _ => Ok(args.client.clone()),
        };
    }
    let crowd = args
        .clients
        .map_or_else(ClientSet::internet, ClientSet::network);
    let mut chance = Chance::from_seed(args.seed);
    let mut clients = match args.sample {
        Some(count) => crowd
            .sample(count, &mut chance)
            .ok_or_else(|| format!("--sample {count}: the network has fewer addresses"))?,
        None => crowd.all().ok_or_else(|| {
            format!(
                "--clients: the network has more than {MOST_CLIENTS} addresses; add --sample \
                N to draw some of them"
            )
        })?,
    };
    if needs_port {
        draw_ports(&mut clients, &mut chance);
    }
    Ok(clients)
}
