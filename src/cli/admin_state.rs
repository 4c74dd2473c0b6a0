//! `tembuku drain`, `ready` and `maint`: what the operator wants of backends.

use super::{
    client::{AdminClient, At, encode},
    code, complain, print,
    sessions::{self, Summary},
};
use crate::{
    admin::span,
    cli::response::{AdminChange, AdminChanges, Backend, NodeChange, Status, Upstream, clean},
    config::parse_duration,
    plan::{counted, reason::BackendState},
    upstream::pool::AdminState,
};
use clap::Args;
use serde_json::{Value, json};
use std::{
    io::{self, IsTerminal as _},
    process::ExitCode,
    str::FromStr,
    time::{Duration, Instant},
};

/// Between two looks whether what is waited for has happened.
const LOOK: Duration = Duration::from_millis(200);
/// Of more sessions only the number is shown: asking for each takes time of the process.
const MOST_LISTED: u64 = 10_000;
/// In the place of a backend: every one of its upstream.
const EVERY: &str = "*";
/// How often it is shown what is pending, at most: the change before says so as well.
const SHOW: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct Which {
    #[arg(
        required_unless_present = "node",
        value_name = "UPSTREAM/BACKEND|ADDRESS",
        value_parser = target,
        help = "The backends, as configured: redis/10.0.0.1:6379; without an upstream in every \
            upstream that has the address: 10.0.0.1:6379; all of an upstream: 'redis/*', in quotes"
    )]
    targets: Vec<Target>,
    /// The process as a whole instead of backends. Drained, it says that it is not ready, so that
    /// clients are sent to other nodes, and serves those that still come
    #[arg(long, conflicts_with = "targets")]
    node: bool,
    #[command(flatten)]
    pub(super) at: At,
}

#[derive(Debug, Args)]
struct WaitLimit {
    /// … but not longer than this
    #[arg(
        long,
        value_name = "TIME",
        default_value = "60s",
        requires = "wait",
        value_parser = duration
    )]
    timeout: Duration,
}

#[derive(Debug, Args)]
pub(super) struct Ready {
    #[command(flatten)]
    pub(super) which: Which,
    /// Wait until their checks have found them alive
    #[arg(long, conflicts_with = "node")]
    wait: bool,
    #[command(flatten)]
    limit: WaitLimit,
}

#[derive(Debug, Args)]
pub(super) struct Out {
    #[command(flatten)]
    pub(super) which: Which,
    /// Terminate their sessions after this time, whatever `on_drain` says; without this, and with
    /// `on_drain = "keep"` (the default), sessions stay until they end by themselves
    #[arg(long, value_name = "TIME", conflicts_with = "node", value_parser = duration)]
    close_after: Option<Duration>,
    /// Wait until they have no session left
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    limit: WaitLimit,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    Backend(Name),
    /// In every upstream that has it.
    Address(String),
}

/// A backend of one upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    upstream: String,
    backend: String,
}

/// How far a backend is on its way to what is waited for.
enum Progress {
    /// The line that is printed at the end.
    Done(String),
    /// What is missing.
    Pending(String),
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    NoSessions,
    Alive,
}

/// A backend that is waited for, and the change of it that was printed.
struct Awaited {
    name: Name,
    change: AdminChange,
}

/// A backend on its way there.
struct Pending {
    of: Awaited,
    what: String,
    sessions: u64,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|fault| match fault.hint {
        Some(hint) => format!("{}; {hint}", fault.message),
        None => fault.message,
    })
}

pub(super) fn target(text: &str) -> Result<Target, String> {
    match text.split_once('/') {
        None if !text.is_empty() => Ok(Target::Address(text.to_owned())),
        // The address of a unix socket has slashes of its own.
        Some(("unix:", _)) => Ok(Target::Address(text.to_owned())),
        _ => match text.parse() {
            Ok(name) => Ok(Target::Backend(name)),
            Err(why) => Err(format!("{why}, or by its address alone: 10.0.0.1:6379")),
        },
    }
}

impl Target {
    /// The name of the upstream of which all backends are meant.
    fn whole_upstream(&self) -> Option<&str> {
        match self {
            Self::Backend(name) => Some(&*name.upstream).filter(|_| name.backend == EVERY),
            Self::Address(_) => None,
        }
    }

    /// Where its admin state is changed.
    fn path(&self) -> String {
        match self {
            Self::Backend(name) => name.path(),
            Self::Address(address) => format!("/api/v1/backends/{}", encode(address)),
        }
    }
}

impl FromStr for Name {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((upstream, backend)) if !upstream.is_empty() && !backend.is_empty() => Ok(Self {
                upstream: upstream.to_owned(),
                backend: backend.to_owned(),
            }),
            _ => Err("a backend is named with its upstream, as in redis/10.0.0.1:6379"),
        }
    }
}

/// Sets one backend, for [`super::top`]; what has changed, in one line.
pub(super) fn set(
    client: &AdminClient,
    name: &Name,
    admin_state: AdminState,
) -> Result<String, String> {
    let order = json!({ "admin_state": admin_state.word() });
    let target = Target::Backend(name.clone());
    let changes = put(client, &target, admin_state, &order)?;
    let lines = changes.iter().map(|change| {
        let warning = warning(change).map(|text| format!(" ({text})"));
        change_text(change).trim_end().to_owned() + &warning.unwrap_or_default()
    });
    Ok(lines.collect::<Vec<_>>().join(" "))
}

impl Name {
    /// The backends of a running process that a target names; at least one.
    pub(super) fn find(status: &Status, target: &Target) -> Result<Vec<Self>, String> {
        let upstreams = status.upstreams.iter();
        let all = upstreams.flat_map(|u| u.backends.iter().map(move |b| (u, b)));
        let named = all.filter(|(upstream, backend)| match target {
            Target::Backend(name) => name.is(&upstream.name, &backend.address),
            Target::Address(address) => *address == backend.address,
        });
        let named = named.map(|(upstream, backend)| Self {
            upstream: upstream.name.clone(),
            backend: backend.address.clone(),
        });
        let named: Vec<Self> = named.collect();
        let text = match target {
            Target::Backend(name) => name.to_string(),
            Target::Address(address) => clean(address),
        };
        match named.is_empty() {
            true => Err(format!(
                "error: there is no backend {text}\n  hint: `tembuku status` shows those that \
                 there are\n"
            )),
            false => Ok(named),
        }
    }

    /// The upstream and the backend.
    pub(super) fn parts(&self) -> (&str, &str) {
        (&self.upstream, &self.backend)
    }

    /// Where its settings are changed.
    pub(super) fn path(&self) -> String {
        let (upstream, backend) = (encode(&self.upstream), encode(&self.backend));
        format!("/api/v1/upstreams/{upstream}/backends/{backend}")
    }

    pub(super) fn is(&self, upstream: &str, backend: &str) -> bool {
        (&*self.upstream, &*self.backend) == (upstream, backend)
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = format!("{}/{}", self.upstream, self.backend);
        f.write_str(&name.replace(char::is_control, "\u{fffd}"))
    }
}

pub(super) fn ready(args: &Ready) -> ExitCode {
    let order = json!({ "admin_state": AdminState::Ready.word() });
    let wait = args.wait.then_some(args.limit.timeout);
    run(&args.which, AdminState::Ready, &order, wait, Goal::Alive)
}

pub(super) fn out(args: &Out, admin_state: AdminState) -> ExitCode {
    if args.which.node && admin_state == AdminState::Maint {
        complain(
            "error: maintenance is for backends\n  hint: `tembuku drain --node` sends clients to \
             other nodes\n",
        );
        return ExitCode::from(2);
    }
    let mut order = json!({ "admin_state": admin_state.word() });
    if let Some(after) = args.close_after {
        let after = humantime::format_duration(after).to_string();
        order["close_after"] = after.replace(' ', "").into();
    }
    let wait = args.wait.then_some(args.limit.timeout);
    run(&args.which, admin_state, &order, wait, Goal::NoSessions)
}

fn run(
    which: &Which,
    admin_state: AdminState,
    order: &Value,
    wait: Option<Duration>,
    goal: Goal,
) -> ExitCode {
    let client = match AdminClient::find(&which.at) {
        Ok(client) => client,
        Err(why) => {
            complain(&why);
            return ExitCode::FAILURE;
        }
    };
    if which.node {
        return code(run_for_node(&client, admin_state, wait));
    }
    let targets = match expand(&client, &which.targets)
        .and_then(|targets| check(&client, &targets, order).map(|()| targets))
    {
        Ok(targets) => targets,
        Err(why) => {
            complain(&why);
            return ExitCode::FAILURE;
        }
    };
    let mut code = ExitCode::SUCCESS;
    let mut taken = Vec::new();
    for target in &targets {
        let done = put(&client, target, admin_state, order).and_then(|changes| {
            for change in changes {
                print(&change_text(&change))?;
                complain(&notes(&change));
                let name = Name {
                    upstream: change.upstream.clone(),
                    backend: change.backend.clone(),
                };
                taken.push(Awaited { name, change });
            }
            Ok(())
        });
        if let Err(why) = done {
            complain(&why);
            code = ExitCode::FAILURE;
        }
    }
    if let Some(timeout) = wait
        && let Err(why) = wait_for(&client, taken, admin_state, timeout, goal)
    {
        complain(&why);
        code = ExitCode::FAILURE;
    }
    code
}

/// Puts the backends that an upstream has now in the place of `UPSTREAM/*`. One that is not known,
/// or has none, is left to the process, which refuses it with a hint.
fn expand(client: &AdminClient, targets: &[Target]) -> Result<Vec<Target>, String> {
    if targets
        .iter()
        .all(|target| target.whole_upstream().is_none())
    {
        return Ok(targets.to_vec());
    }
    let (status, _) = client.status()?;
    Ok(targets
        .iter()
        .flat_map(|target| {
            let all = target.whole_upstream();
            let all = all.map(|name| backends(&status.upstreams, name));
            all.filter(|all| !all.is_empty())
                .unwrap_or_else(|| vec![target.clone()])
        })
        .collect())
}

/// Those that an operator can set: one that was removed is shown for as long as it has sessions.
fn backends(upstreams: &[Upstream], upstream: &str) -> Vec<Target> {
    let upstreams = upstreams.iter().filter(|u| u.name == upstream);
    let backends = upstreams.flat_map(|u| &u.backends);
    let set = backends.filter(|b| b.state != BackendState::Removed.word());
    let target = |b: &Backend| Name {
        upstream: upstream.to_owned(),
        backend: b.address.clone(),
    };
    set.map(|b| Target::Backend(target(b))).collect()
}

/// Looks up all names before anything is changed: one that is mistyped is no reason to act on the
/// others. The process does so itself for a single one.
fn check(client: &AdminClient, targets: &[Target], order: &Value) -> Result<(), String> {
    if targets.len() < 2 {
        return Ok(());
    }
    let mut order = order.clone();
    order["dry_run"] = true.into();
    let mut errors = String::new();
    for (at, target) in targets.iter().enumerate() {
        let Err(why) = client.post::<Value>(&target.path(), &order) else {
            continue;
        };
        errors += &match hint_of_pair(target, targets.get(at + 1)) {
            Some(hint) => {
                let error = why.split("\n  hint: ").next().unwrap_or_default();
                format!("{error}\n  hint: {hint}\n")
            }
            None => why,
        };
    }
    match errors.is_empty() {
        true => Ok(()),
        false => Err(errors + "nothing was changed\n"),
    }
}

/// For an upstream and a backend that are two arguments instead of one.
fn hint_of_pair(target: &Target, next: Option<&Target>) -> Option<String> {
    let (Target::Address(upstream), Some(Target::Address(backend))) = (target, next) else {
        return None;
    };
    let is_pair = !upstream.contains(':') && backend.contains(':');
    is_pair.then(|| format!("write {}/{}", clean(upstream), clean(backend)))
}

fn run_for_node(
    client: &AdminClient,
    admin_state: AdminState,
    wait: Option<Duration>,
) -> Result<(), String> {
    let body = json!({ "admin_state": admin_state.word() });
    let done: NodeChange = client.post("/api/v1/node", &body)?;
    let (from, to) = (clean(&done.from), clean(&done.admin_state));
    let change = match from == to {
        true => format!("{to} already"),
        false => format!("{from} -> {to}"),
    };
    print(&format!(
        "node: {change}, {}\n",
        counted(done.connections, "session")
    ))?;
    let Some(timeout) = wait else {
        return Ok(());
    };
    let began = Instant::now();
    loop {
        let (Status { process, .. }, _) = client.status()?;
        if process.state != "draining" {
            return Err("error: not waiting: the node is drained no longer\n".to_owned());
        }
        let sessions = process.connections + process.flows;
        if sessions == 0 {
            return print("node: no sessions left\n");
        }
        let Some(rest) = timeout.checked_sub(began.elapsed()) else {
            let sessions = counted(sessions, "session");
            return Err(format!(
                "error: node: still {sessions} after {timeout:?}\n  hint: the node stays drained; \
                 `tembuku kill` ends the sessions that are left, `tembuku ready --node` takes it \
                 back\n"
            ));
        };
        std::thread::sleep(LOOK.min(rest));
    }
}

/// What has changed.
fn put(
    client: &AdminClient,
    target: &Target,
    admin_state: AdminState,
    order: &Value,
) -> Result<Vec<AdminChange>, String> {
    let path = target.path();
    let (changes, asked) = match target {
        Target::Backend(name) => (vec![client.post(&path, order)?], name.to_string()),
        Target::Address(address) => {
            let AdminChanges { changes } = client.post(&path, order)?;
            (changes, clean(address))
        }
    };
    let word = admin_state.word();
    let is_asked = |change: &AdminChange| match target {
        Target::Backend(name) => name.is(&change.upstream, &change.backend),
        // The backend may be a name that stands for the address.
        Target::Address(_) => true,
    };
    let is_other = |change: &&AdminChange| change.admin_state != word || !is_asked(change);
    let about = match changes.iter().find(is_other) {
        Some(c) => format!("{}/{} and {}", c.upstream, c.backend, c.admin_state),
        None if changes.is_empty() => "no backend".to_owned(),
        None => return Ok(changes),
    };
    Err(format!(
        "error: the answer for {asked} and {word} is about {}\n  hint: is that the admin socket of \
         tembuku?\n",
        clean(&about)
    ))
}

fn change_text(change: &AdminChange) -> String {
    let (from, to) = (clean(&change.from), clean(&change.state));
    let is_ready = change.admin_state == AdminState::Ready.word();
    let states = match from == to {
        // The checks keep it out of service, or the file.
        true if is_ready && to != "up" => format!("no operator setting, {to}"),
        true => format!("{to} already"),
        false if is_ready && to == "down" => format!("{from} -> {to} until a check has passed"),
        false => format!("{from} -> {to}"),
    };
    let (upstream, backend) = (clean(&change.upstream), clean(&change.backend));
    let sessions = counted(change.connections, "session");
    format!("{upstream}/{backend}: {states}, {sessions}\n")
}

/// What becomes of the sessions of a backend that is taken out, and of new ones.
fn notes(change: &AdminChange) -> String {
    let (upstream, backend) = (clean(&change.upstream), clean(&change.backend));
    if change.admin_state == AdminState::Ready.word() {
        return String::new();
    }
    let fate = match change.close_after_seconds {
        _ if change.connections == 0 => None,
        None => Some("left to end by themselves (--close-after TIME terminates them)".to_owned()),
        Some(0.0) if change.from == change.state => Some("termination under way".to_owned()),
        Some(0.0) => Some("terminated now".to_owned()),
        Some(after) => Some(format!("terminated after {}", span(after))),
    };
    let note = fate.map_or_else(String::new, |fate| {
        let sessions = counted(change.connections, "session");
        format!("note: {upstream}/{backend}: {sessions} on it, {fate}\n")
    });
    let warning = warning(change).map(|text| format!("warning: {text}\n"));
    note + &warning.unwrap_or_default()
}

/// That a backend which was taken out was the last one.
fn warning(change: &AdminChange) -> Option<String> {
    let without = change.without_backend.as_ref()?;
    Some(without.warning(&change.upstream))
}

impl Goal {
    /// What to do about backends that were waited for in vain.
    fn next_step(self, admin_state: AdminState, name: &str) -> String {
        match self {
            Self::NoSessions => {
                let (command, state) = match admin_state {
                    AdminState::Drain | AdminState::Ready => ("drain", "drained"),
                    AdminState::Maint => ("maint", "in maintenance"),
                };
                format!(
                    "it stays {state}; `tembuku {command} {name} --close-after TIME` ends the \
                     sessions that are left, `tembuku ready {name}` takes it back"
                )
            }
            Self::Alive => {
                "it stays ready, and takes sessions once its check has succeeded".to_owned()
            }
        }
    }

    /// Whether the change, as it was printed, is what there is to say about the backend at the end.
    fn is_reported(self, change: &AdminChange, backend: &Backend) -> bool {
        match self {
            Self::NoSessions => change.connections == 0,
            Self::Alive => change.state == backend.state,
        }
    }

    fn progress(self, backend: &Backend) -> Progress {
        let state = clean(&backend.state);
        let state = match &*backend.why {
            "" => state,
            why => format!("{state}, {}", clean(why)),
        };
        match self {
            Self::NoSessions if backend.connections == 0 => {
                Progress::Done("no sessions left".to_owned())
            }
            Self::NoSessions => Progress::Pending(counted(backend.connections, "session")),
            Self::Alive if backend.awaits_check || backend.state == "down" => {
                Progress::Pending(state)
            }
            // A server that answers in another role than the required one is alive as well.
            Self::Alive => Progress::Done(state),
        }
    }
}

impl Pending {
    /// What is missing, with what is known of the sessions.
    fn describe(&self, client: &AdminClient, goal: Goal) -> String {
        let is_listed = goal == Goal::NoSessions && self.sessions <= MOST_LISTED;
        let Name { upstream, backend } = &self.of.name;
        let summary = is_listed.then(|| sessions::summarize(client, upstream, backend));
        // They may have ended, or gone to another backend, since they were counted.
        let Some(Ok(Summary { listeners, oldest })) = summary else {
            return self.what.clone();
        };
        let of = |(name, count): (&String, &u64)| format!("listener {} {count}", clean(name));
        let listeners: Vec<String> = listeners.iter().map(of).collect();
        match listeners.is_empty() {
            true => self.what.clone(),
            false => format!(
                "{} ({}; the oldest for {})",
                self.what,
                listeners.join(", "),
                span(oldest)
            ),
        }
    }
}

/// Shows what is pending: on a terminal every second, else when it has changed.
fn wait_for(
    client: &AdminClient,
    mut left: Vec<Awaited>,
    admin_state: AdminState,
    timeout: Duration,
    goal: Goal,
) -> Result<(), String> {
    let began = Instant::now();
    let is_terminal = io::stderr().is_terminal();
    let (mut shown, mut shown_at) = (Vec::new(), began);
    loop {
        let pending = look(client, left, admin_state, goal)?;
        if pending.is_empty() {
            return Ok(());
        }
        let describe =
            |one: &Pending| format!("{}: still {}", one.of.name, one.describe(client, goal));
        let Some(rest) = timeout.checked_sub(began.elapsed()) else {
            let line = |one| format!("error: {} after {timeout:?}\n", describe(one));
            let lines: String = pending.iter().map(line).collect();
            let name = match &pending[..] {
                [one] => one.of.name.to_string(),
                _ => "UPSTREAM/BACKEND".to_owned(),
            };
            let hint = goal.next_step(admin_state, &name);
            return Err(format!("{lines}  hint: {hint}\n"));
        };
        let what: Vec<String> = pending.iter().map(|one| one.what.clone()).collect();
        if shown_at.elapsed() >= SHOW && (is_terminal || what != shown) {
            let lines = pending.iter().map(|one| describe(one) + "\n");
            complain(&lines.collect::<String>());
            (shown, shown_at) = (what, Instant::now());
        }
        left = pending.into_iter().map(|one| one.of).collect();
        std::thread::sleep(LOOK.min(rest));
    }
}

/// Those that are still pending; of the others it says that they are done, unless that is known.
fn look(
    client: &AdminClient,
    left: Vec<Awaited>,
    admin_state: AdminState,
    goal: Goal,
) -> Result<Vec<Pending>, String> {
    let (status, _) = client.status()?;
    let mut pending = Vec::new();
    for of in left {
        let name = &of.name;
        let backend =
            find(&status, name).ok_or_else(|| format!("error: {name} is not there any more\n"))?;
        if backend.admin_state != admin_state.word() {
            return Err(format!(
                "error: not waiting for {name}: another command has set it to {}\n",
                clean(&backend.admin_state)
            ));
        }
        match goal.progress(backend) {
            Progress::Done(_) if goal.is_reported(&of.change, backend) => {}
            Progress::Done(what) => print(&format!("{name}: {what}\n"))?,
            Progress::Pending(what) => pending.push(Pending {
                sessions: backend.connections,
                what,
                of,
            }),
        }
    }
    Ok(pending)
}

pub(super) fn find<'a>(status: &'a Status, name: &Name) -> Option<&'a Backend> {
    let mut upstreams = status.upstreams.iter();
    let upstream = upstreams.find(|u| u.name == name.upstream)?;
    let mut backends = upstream.backends.iter();
    backends.find(|b| b.address == name.backend)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_tells_what_becomes_of_sessions() {
        let notes = |state: &str, after: Value, without: Value| {
            let change = json!({ "upstream": "u", "backend": "b:1", "admin_state": state,
                "from": "up", "state": "drained", "connections": 2,
                "close_after_seconds": after, "without_backend": without });
            notes(&serde_json::from_value(change).expect("a change"))
        };
        assert_eq!(notes("ready", Value::Null, Value::Null), "");
        let note = notes("drain", Value::Null, Value::Null);
        assert!(note.contains("2 sessions on it, left to end"), "{note}");
        let hold = |seconds: f64| json!({ "hold_timeout_seconds": seconds });
        assert_eq!(
            notes("maint", json!(10.0), hold(30.0)),
            "note: u/b:1: 2 sessions on it, terminated after 10s\n\
             warning: upstream u has no backend left that takes sessions; new ones wait for up to \
             30s (hold_timeout)\n"
        );
        let note = notes("drain", json!(0.0), hold(0.0));
        assert!(
            note.contains("terminated now") && note.contains("are refused"),
            "{note}"
        );
    }

    #[test]
    fn an_asterisk_is_each_backend_that_the_upstream_has() {
        let backend = |address: &str, state: &str| {
            json!({ "address": address, "state": state, "admin_state": "ready",
                "awaits_check": false, "connections": 0 })
        };
        let upstream = json!({ "name": "u", "backends": [backend("a:1", "up"),
            backend("gone:1", "removed"), backend("b:1", "drained")] });
        let upstream = serde_json::from_value(upstream).expect("an upstream");
        let named: Vec<_> = backends(&[upstream], "u");
        assert_eq!(
            named,
            ["u/a:1", "u/b:1"].map(|text| target(text).expect("a name"))
        );
        assert_eq!(target("u/*").expect("a name").whole_upstream(), Some("u"));
        for other in ["u/a:1", "*", "unix:/run/*"] {
            assert_eq!(
                target(other).expect("a name").whole_upstream(),
                None,
                "{other}"
            );
        }
    }

    #[test]
    fn a_target_is_a_backend_or_an_address() {
        let named = |upstream: &str, backend: &str| {
            let (upstream, backend) = (upstream.to_owned(), backend.to_owned());
            Ok(Target::Backend(Name { upstream, backend }))
        };
        assert_eq!(target("u/unix:/run/x"), named("u", "unix:/run/x"));
        assert_eq!(target("u/[::1]:80"), named("u", "[::1]:80"));
        for address in ["10.0.0.1:6379", "db.example:1", "unix:/run/x.sock"] {
            assert_eq!(target(address), Ok(Target::Address(address.to_owned())));
        }
        for wrong in ["", "/", "u/", "/b"] {
            assert!(target(wrong).is_err(), "{wrong}");
        }
    }
}
