//! `tembuku reload`, HUP and the request behind them: what changes, and what does not.

mod admin;
mod contents;
mod effects;
mod every_key;
mod hostile;
mod log;
mod nginx_sequences;
mod on_change;
mod prediction;

use crate::harness::{
    http,
    net::{self, echo},
    poll, ports, proc, secs,
    server::{Server, ask_many, list, named},
    tembuku::{Tembuku, binary, cli},
    wait_until,
};
use rustix::process::Signal;
use serde_json::Value;
use std::{
    fs,
    net::{SocketAddr, TcpStream},
    process::{Command, Output},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

struct Setup {
    tembuku: Tembuku,
    front: SocketAddr,
    servers: Vec<Server>,
}

/// A listener `front` with two backends, of which another test changes what it likes.
fn setup() -> Setup {
    let servers = named(2);
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[process]\nworkers = 2\n[log]\nformat = \"json\"\n\
         [admin]\nsocket = \"{{dir}}/admin.sock\"\n\
         [listeners.front]\nbind = \"{front}\"\nupstream = \"back\"\n\
         [upstreams.back]\nbackends = {}\n",
        list(&servers)
    ));
    Setup {
        tembuku,
        front,
        servers,
    }
}

impl Setup {
    fn file(&self) -> String {
        let path = self.tembuku.dir.file("tembuku.toml");
        path.to_str().unwrap().to_owned()
    }

    fn config(&self) -> String {
        fs::read_to_string(self.file()).unwrap()
    }

    fn write(&self, config: &str) {
        fs::write(self.file(), config).unwrap();
    }

    #[track_caller]
    fn replace(&self, from: &str, to: &str) {
        let config = self.config();
        assert!(config.contains(from), "{from} is not in\n{config}");
        self.write(&config.replacen(from, to, 1));
    }

    /// The backends of `back`, as TOML.
    #[track_caller]
    fn set_backends(&self, backends: &str) {
        let config = self.config();
        let (before, _) = config.split_once("backends = ").unwrap();
        self.write(&format!("{before}backends = {backends}\n"));
    }

    /// `tembuku reload` by the socket, with these flags.
    fn try_reload(&self, flags: &[&str]) -> Output {
        let socket = self.tembuku.dir.file("admin.sock");
        let arguments = ["reload", "--socket", socket.to_str().unwrap()];
        let mut command = Command::new(binary());
        command.args(arguments).args(flags);
        proc::run(secs(30), command)
    }

    /// What it prints when it succeeds without a warning.
    #[track_caller]
    fn reload(&self) -> String {
        let output = self.try_reload(&[]);
        assert_eq!(output.status.code(), Some(0), "{}", proc::text(&output));
        assert!(output.stderr.is_empty(), "{}", proc::text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What it complains of when it fails.
    #[track_caller]
    fn fail_to_reload(&self) -> String {
        let output = self.try_reload(&[]);
        assert_eq!(output.status.code(), Some(1), "{}", proc::text(&output));
        assert!(output.stdout.is_empty(), "{}", proc::text(&output));
        let shown = String::from_utf8(output.stderr).unwrap();
        assert!(
            shown.ends_with("nothing was changed: the running configuration stays in effect\n"),
            "{shown}"
        );
        shown
    }

    fn status(&self) -> Value {
        let mut status = self.tembuku.status();
        status["process"]["uptime_seconds"].take();
        status
    }

    /// How often each backend is picked.
    #[track_caller]
    fn picks(&self, connections: usize) -> Vec<(String, usize)> {
        let mut picked = ask_many(self.front, connections);
        picked.sort_unstable();
        let mut counts: Vec<(String, usize)> = Vec::new();
        for name in picked {
            match counts.last_mut() {
                Some((last, count)) if *last == name => *count += 1,
                _ => counts.push((name, 1)),
            }
        }
        counts
    }
}

#[track_caller]
fn wait_refused(addr: SocketAddr) {
    wait_until("connects are refused", secs(10), || {
        TcpStream::connect(addr).is_err()
    });
}

fn of(counts: &[(&str, usize)]) -> Vec<(String, usize)> {
    let owned = counts
        .iter()
        .map(|(name, count)| ((*name).to_owned(), *count));
    owned.collect()
}

#[test]
fn a_session_of_an_untouched_listener_lives_through_many_reloads() {
    let setup = setup();
    let other = Server::named("other");
    let (mut held, _) = net::session(setup.front).unwrap();
    let original = setup.config();
    let ended = AtomicBool::new(false);
    let lines = thread::scope(|scope| {
        let talking = scope.spawn(|| {
            let mut lines = 0_u64;
            while !ended.load(Ordering::Relaxed) {
                echo(&mut held, &format!("line {lines}")).unwrap();
                lines += 1;
            }
            lines
        });
        for n in 1..=20 {
            let added = ports::free_addr();
            setup.write(&format!(
                "{original}[listeners.other]\nbind = \"{added}\"\nupstream = \"other\"\n\
                 [upstreams.other]\nbackends = [{{ address = \"{}\", weight = {n} }}]\n",
                other.addr
            ));
            let shown = setup.reload();
            assert!(shown.contains("listener other: "), "{shown}");
            assert!(!shown.contains("front"), "{shown}");
            assert_eq!(net::ask(added).unwrap(), "other");
        }
        ended.store(true, Ordering::Relaxed);
        talking.join().unwrap()
    });
    assert!(lines > 20, "{lines}");
    let labels = [("listener", "front")];
    let metric = |name: &str| setup.tembuku.metric(name, &labels);
    assert_eq!(metric("listener_active_connections"), 1.0);
    assert_eq!(metric("listener_connections_total"), 1.0);
    assert_eq!(metric("sessions_closed_total"), 0.0);
}

#[test]
fn a_listener_is_added_and_removed() {
    let setup = setup();
    let added = ports::free_addr();
    let original = setup.config();
    let listener = format!("[listeners.added]\nbind = \"{added}\"\nupstream = \"back\"\n");
    setup.write(&format!("{original}{listener}"));
    let shown = setup.reload();
    assert!(
        shown.starts_with("listener added: added\nhash: "),
        "{shown}"
    );
    let end = format!("\n1 change, reloaded from {}\n", setup.file());
    assert!(shown.ends_with(&end), "{shown}");
    let (mut held, _) = net::session(added).unwrap();
    setup.write(&original);
    let shown = setup.reload();
    assert!(
        shown.starts_with(
            "listener added: removed\n  sessions: 1, left to end by themselves (on_removed)\nhash: "
        ),
        "{shown}"
    );
    wait_refused(added);
    echo(&mut held, "still here").unwrap();
    assert_eq!(setup.picks(2), of(&[("b1", 1), ("b2", 1)]));
    assert!(setup.reload().starts_with("no changes, reloaded from "));
}

#[test]
fn picks_follow_the_backends() {
    let setup = setup();
    let third = Server::named("b3");
    let [one, two] = [0, 1].map(|n| setup.servers[n].addr);
    assert_eq!(setup.picks(4), of(&[("b1", 2), ("b2", 2)]));
    setup.set_backends(&format!("[\"{one}\", \"{two}\", \"{}\"]", third.addr));
    let shown = setup.reload();
    let line = format!("backend back/{}: added\n", third.addr);
    assert!(shown.starts_with(&line), "{shown}");
    assert_eq!(setup.picks(6), of(&[("b1", 2), ("b2", 2), ("b3", 2)]));
    // A session keeps a backend that is removed.
    let mut held = loop {
        let (stream, name) = net::session(setup.front).unwrap();
        if name == "b3" {
            break stream;
        }
    };
    setup.set_backends(&format!(
        "[{{ address = \"{one}\", weight = 3 }}, \"{two}\"]"
    ));
    let shown = setup.reload();
    let lines = format!(
        "backend back/{}: removed\n  sessions: 1, left to end by themselves (on_removed)\n\
         backend back/{one}: changed\n  weight: 1 -> 3\n  sessions: 0\nhash: ",
        third.addr
    );
    assert!(shown.starts_with(&lines), "{shown}");
    assert_eq!(setup.picks(8), of(&[("b1", 6), ("b2", 2)]));
    echo(&mut held, "still here").unwrap();
}

#[test]
fn an_invalid_file_changes_nothing() {
    let setup = setup();
    let before = setup.status();
    let original = setup.config();
    setup.replace("upstream = \"back\"", "upstream = \"bakc\"\nretires = 1");
    let shown = setup.fail_to_reload();
    let position = format!(" --> {}:", setup.file());
    assert_eq!(shown.matches(&position).count(), 2, "{shown}");
    assert!(shown.contains("did you mean"), "{shown}");
    // The same by the file, in which the command looks for the socket first.
    let by_file = cli(&["reload", "-c", &setup.file()]);
    let text = proc::text(&by_file);
    assert_eq!(by_file.status.code(), Some(1), "{text}");
    assert!(text.contains(&position), "{text}");
    for config in ["", "[listeners", "\u{0}"] {
        setup.write(config);
        setup.fail_to_reload();
    }
    fs::remove_file(setup.file()).unwrap();
    let shown = setup.fail_to_reload();
    assert!(shown.contains("cannot read the configuration"), "{shown}");
    assert_eq!(setup.status(), before);
    assert_eq!(setup.picks(2), of(&[("b1", 1), ("b2", 1)]));
    let successful = || setup.tembuku.metric("config_last_reload_successful", &[]);
    assert_eq!(successful(), 0.0);
    let time = "config_last_reload_success_timestamp_seconds";
    assert!(!setup.tembuku.metrics().text.contains(time));
    setup.write(&original);
    assert!(setup.reload().starts_with("no changes, "));
    assert_eq!(successful(), 1.0);
    assert!(setup.tembuku.metric(time, &[]) > 1.7e9);
}

/// What is wrong with the file does not hide the process: it refuses the file itself, and counts.
#[test]
fn a_file_that_is_not_valid_leads_to_its_process() {
    let setup = setup();
    let original = setup.config();
    let file = setup.file();
    let run = |command: &str, code: i32| {
        let output = cli(&[command, "-c", &file]);
        assert_eq!(output.status.code(), Some(code), "{}", proc::text(&output));
        String::from_utf8(output.stderr).unwrap()
    };
    let successful = || setup.tembuku.metric("config_last_reload_successful", &[]);
    for broken in [
        original.replace("workers = 2", "workers = 2\nworker = 3"),
        original.replace("workers = 2", "workers = "),
        original.replace("workers = 2", "names = [\"a\","),
        format!("{original}backends = ["),
    ] {
        run("reload", 0);
        assert_eq!(successful(), 1.0);
        setup.write(&broken);
        let refused = run("reload", 1);
        assert!(refused.contains(&format!("\n --> {file}:")), "{refused}");
        // The process itself names the problems.
        assert!(!refused.contains("warning: "), "{refused}");
        assert!(
            refused.ends_with("configuration stays in effect\n"),
            "{refused}"
        );
        assert_eq!(successful(), 0.0, "{broken}");
        let warned = run("status", 0);
        let begin = format!("warning: {file} has 1 problem, see `tembuku check -c {file}`; ");
        assert!(warned.starts_with(&begin), "{warned}");
        setup.write(&original);
    }
    setup.write(&original.replace("socket = ", "sockets = "));
    let lost = run("status", 1);
    assert!(lost.starts_with("error: "), "{lost}");
    assert!(lost.contains("--socket /run/tembuku/admin.sock"), "{lost}");
}

#[test]
fn an_address_in_use_changes_nothing() {
    let setup = setup();
    let before = setup.status();
    let taken = Server::named("taken");
    let free = ports::free_addr();
    let original = setup.config();
    let listeners = format!(
        "[listeners.free]\nbind = \"{free}\"\nupstream = \"back\"\n\
         [listeners.taken]\nbind = \"{}\"\nupstream = \"back\"\n",
        taken.addr
    );
    setup.write(&(original.replace("[\"", "[\"127.0.0.1:1\", \"") + &listeners));
    let shown = setup.fail_to_reload();
    let address = format!("listener taken: cannot listen on {}", taken.addr);
    assert!(shown.contains(&address), "{shown}");
    assert!(!shown.contains("listener free"), "{shown}");
    assert_eq!(setup.status(), before);
    assert!(TcpStream::connect(free).is_err());
    assert_eq!(setup.picks(4), of(&[("b1", 2), ("b2", 2)]));
    assert_eq!(net::ask(taken.addr).unwrap(), "taken");
}

#[test]
fn a_dry_run_changes_nothing() {
    let setup = setup();
    let before = setup.status();
    let added = ports::free_addr();
    let one = setup.servers[0].addr;
    let listener = format!("[listeners.added]\nbind = \"{added}\"\nupstream = \"back\"\n");
    setup.write(&format!("{}{listener}", setup.config()));
    setup.replace(
        &format!("\"{one}\""),
        &format!("{{ address = \"{one}\", weight = 3 }}"),
    );
    let output = setup.try_reload(&["--dry-run"]);
    let shown = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{shown}");
    let begin = format!(
        "listener added: added\nbackend back/{one}: changed\n  weight: 1 -> 3\
         \n  sessions: 0\nhash: "
    );
    assert!(shown.starts_with(&begin), "{shown}");
    let end = format!(
        "\n2 changes in {}, nothing was changed (dry run)\n",
        setup.file()
    );
    assert!(shown.ends_with(&end), "{shown}");
    assert_eq!(setup.status(), before);
    assert!(TcpStream::connect(added).is_err());
    let metrics = setup.tembuku.metrics();
    assert!(!metrics.text.contains("config_last_reload"));
    // What it predicts is what is done.
    let mut reports = [&["--dry-run", "--json"][..], &["--json"]].map(|flags| {
        let output = setup.try_reload(flags);
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    });
    assert_eq!(reports[0]["applied"].take(), false);
    assert_eq!(reports[1]["applied"].take(), true);
    assert!(reports[1]["longest_pause_seconds"].take().is_f64());
    assert_eq!(reports[0], reports[1]);
    assert_eq!(setup.picks(8), of(&[("b1", 6), ("b2", 2)]));
    // Problems are found without a change as well.
    setup.replace("weight = 3", "weight = \"3\"");
    let output = setup.try_reload(&["--dry-run"]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn hup_reloads_and_logs_the_result() {
    let setup = setup();
    let successful = |is: f64| {
        let name = "config_last_reload_successful";
        setup.tembuku.wait_metric(name, &[], |n| n == is);
    };
    // The log is written by a thread of its own, which may be later than the metric.
    let logged = |message: &str| {
        let find = || {
            setup
                .tembuku
                .log()
                .into_iter()
                .find(|line| line["message"] == message)
        };
        let found = poll(secs(10), find);
        found.unwrap_or_else(|| panic!("{message}: {:?}", setup.tembuku.log()))
    };
    let one = setup.servers[0].addr;
    setup.set_backends(&format!("[\"{one}\"]"));
    setup.tembuku.proc.signal(Signal::HUP);
    wait_until("there is one backend", secs(10), || {
        setup.status()["upstreams"][0]["backends"][1].is_null()
    });
    assert_eq!(setup.picks(2), of(&[("b1", 2)]));
    setup
        .tembuku
        .wait_metric("config_last_reload_successful", &[], |n| n == 1.0);
    let difference = logged("configuration differs");
    assert_eq!(difference["change"], "removed", "{difference}");
    assert_eq!(logged("configuration reloaded")["changes"], 1);
    setup.set_backends("[\"nothing\"]");
    setup.tembuku.proc.signal(Signal::HUP);
    successful(0.0);
    assert!(logged("configuration is not valid")["line"].is_u64());
    logged("reload failed, nothing was changed");
    assert_eq!(setup.picks(2), of(&[("b1", 2)]));
}

#[test]
fn reloads_at_once_queue() {
    let setup = setup();
    let added = ports::free_addr();
    let listener = format!("[listeners.added]\nbind = \"{added}\"\nupstream = \"back\"\n");
    setup.write(&format!("{}{listener}", setup.config()));
    let shown: Vec<String> = thread::scope(|scope| {
        let reloads = [(); 8].map(|()| scope.spawn(|| setup.reload()));
        reloads.map(|reload| reload.join().unwrap()).to_vec()
    });
    let starting = |text: &str| shown.iter().filter(|shown| shown.starts_with(text)).count();
    assert_eq!(starting("listener added: added\nhash: "), 1, "{shown:?}");
    assert_eq!(starting("no changes, "), 7, "{shown:?}");
    assert_eq!(net::ask(added).unwrap(), "b1");
}

#[test]
fn the_hash_names_the_configuration_in_effect() {
    let setup = setup();
    let shown = || {
        let hash = setup.status()["process"]["config_hash"].clone();
        let hash = hash.as_str().unwrap().to_owned();
        let metric = setup
            .tembuku
            .metric("config_info", &[("hash", hash.as_str())]);
        assert_eq!(metric, 1.0);
        hash
    };
    let reload = |flags: &[&str]| {
        let output = setup.try_reload(flags);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        ["before", "after"].map(|of| report["hash"][of].as_str().unwrap().to_owned())
    };
    let (original, first) = (setup.config(), shown());
    assert_eq!(reload(&["--json"]), [first.clone(), first.clone()]);
    // What needs an upgrade is not in effect.
    setup.replace("workers = 2", "workers = 3\ndrain_timeout = \"7s\"");
    let predicted = reload(&["--json", "--dry-run"]);
    assert_eq!(reload(&["--json"]), predicted);
    assert_eq!([first.clone(), shown()], predicted);
    setup.write(&original.replace("workers = 2", "workers = 2\ndrain_timeout = \"7s\""));
    assert_eq!(reload(&["--json"]), [&*predicted[1]; 2]);
    setup.write(&format!("# As it was\n{original}"));
    assert_eq!(reload(&["--json"]), [&*predicted[1], &*first]);
    assert_eq!(shown(), first);
}

#[test]
fn an_upstream_that_is_left_without_a_backend_is_warned_of() {
    let servers = named(2);
    let [one, two] = [0, 1].map(|n| servers[n].addr.to_string());
    let setup = setup();
    setup.set_backends(&format!("[\"{one}\", \"{two}\"]"));
    setup.reload();
    let warnings = |flags: &[&str]| {
        let output = setup.try_reload(&[&["--json"], flags].concat());
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let warnings = report["warnings"].as_array().unwrap().clone();
        let lines = warnings
            .iter()
            .map(|w| format!("warning: {}\n", w.as_str().unwrap()));
        let printed = String::from_utf8(output.stderr).unwrap();
        assert_eq!(printed, lines.collect::<String>());
        printed
    };
    let expected = "warning: upstream back has no backend left that takes sessions; new ones are \
                    refused (hold_timeout lets them wait)\n";
    // The other one, which the operator has drained, is no help.
    setup.tembuku.succeed(&["drain", &format!("back/{one}")]);
    setup.set_backends(&format!("[\"{one}\"]"));
    assert_eq!(warnings(&["--dry-run"]), expected);
    assert_eq!(warnings(&[]), expected);
    // Nothing changes for it.
    assert_eq!(warnings(&[]), "");
    setup.set_backends(&format!("[\"{one}\", \"{two}\"]"));
    assert_eq!(warnings(&[]), "");
    setup.tembuku.succeed(&["ready", &format!("back/{one}")]);

    // A check that has not been made, and one that is full, which has a place again soon.
    let check = "[upstreams.back.check]\nkind = \"tcp\"\nstart = \"down\"";
    let full = format!("[{{ address = \"{one}\", max_connections = 1 }}]");
    setup.set_backends(&format!("{full}\n{check}"));
    setup.reload();
    let _held = net::session(setup.front).unwrap();
    setup.set_backends(&format!(
        "{}\n{check}",
        full.replace("= 1", "= 1, weight = 2")
    ));
    assert_eq!(warnings(&[]), "");
    setup.set_backends(&format!("[\"{two}\"]\n{check}"));
    assert_eq!(warnings(&["--dry-run"]), expected);
    let fallback = check.replace("tcp\"", "redis\"\nrole = \"replica\"\nrole_fallback = true");
    setup.set_backends(&format!("[\"{two}\"]\n{fallback}"));
    assert_eq!(warnings(&["--dry-run"]), "");
}

#[test]
fn sessions_and_clients_that_move_are_counted_as_the_process_is_now() {
    let servers = named(4);
    let [one, two, three, four] = [0, 1, 2, 3].map(|n| servers[n].addr.to_string());
    let setup = setup();
    setup.set_backends(&format!(
        "[\"{one}\", \"{two}\", {{ address = \"{three}\", backup = true }}]\nbalance = \"maglev\""
    ));
    setup.reload();
    let (_held, name) = net::session(setup.front).unwrap();
    let held = |address: &String, server: usize| match servers[server].live() {
        0 => Value::from(0),
        n => {
            assert_eq!(servers[server].addr.to_string(), *address, "{name}");
            Value::from(n)
        }
    };
    // The figures of the backend with this address.
    let dry_run = |backends: &str| {
        setup.set_backends(&format!("{backends}\nbalance = \"maglev\""));
        let output = setup.try_reload(&["--dry-run", "--json"]);
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let find = |report: &Value, address: &str| {
        let changes = report["changes"].as_array().unwrap();
        let name = format!("back/{address}");
        let found = changes.iter().find(|change| change["name"] == name);
        found.unwrap_or_else(|| panic!("{report}")).clone()
    };
    #[track_caller]
    fn assert_share(change: &Value, expected: f64) {
        let share = change["moved_share"].as_f64().unwrap();
        assert!((share - expected).abs() < 0.05, "{change}, not {expected}");
    }
    let backup = format!("{{ address = \"{three}\", backup = true }}");
    let report = dry_run(&format!("[\"{one}\", \"{two}\", \"{four}\", {backup}]"));
    let added = find(&report, &four);
    assert_share(&added, 1.0 / 3.0);
    assert_eq!(added["sessions"], 0, "{added}");
    let report = dry_run(&format!("[\"{one}\", {backup}]"));
    let removed = find(&report, &two);
    assert_share(&removed, 0.5);
    assert_eq!(removed["sessions"], held(&two, 1), "{removed}");
    // A backup has no clients of its own.
    let report = dry_run(&format!("[\"{one}\", \"{two}\"]"));
    assert_share(&find(&report, &three), 0.0);
    // One that the operator has taken out has none either.
    let socket = setup.tembuku.dir.file("admin.sock");
    let drained = cli(&[
        "drain",
        "--socket",
        socket.to_str().unwrap(),
        &format!("back/{two}"),
    ]);
    assert_eq!(drained.status.code(), Some(0), "{}", proc::text(&drained));
    let report = dry_run(&format!("[\"{one}\", {backup}]"));
    assert_share(&find(&report, &two), 0.0);
    // Policies without a key have no clients of their own.
    setup.set_backends(&format!("[\"{one}\"]"));
    let output = setup.try_reload(&["--dry-run", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(find(&report, &two)["moved_share"].is_null(), "{report}");
}

#[test]
fn what_a_running_process_cannot_change_is_named() {
    let setup = setup();
    setup.replace("workers = 2", "workers = 3\ndrain_timeout = \"7s\"");
    for _ in 0..2 {
        let output = setup.try_reload(&["--json"]);
        let warned = String::from_utf8(output.stderr.clone()).unwrap();
        assert_eq!(output.status.code(), Some(0), "{warned}");
        assert!(
            warned.starts_with("warning: process process: not applied"),
            "{warned}"
        );
        assert!(
            warned.ends_with("needs an upgrade or restart: workers\n"),
            "{warned}"
        );
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let changes = report["changes"].as_array().unwrap();
        let last = changes.last().unwrap();
        assert_eq!(last["change"], "needs_upgrade", "{report}");
        assert_eq!(last["keys"][0]["key"], "workers", "{report}");
        assert_eq!(report["warnings"].as_array().unwrap().len(), 1, "{report}");
    }
    assert_eq!(setup.status()["process"]["workers"], 2);
    assert_eq!(setup.picks(2), of(&[("b1", 1), ("b2", 1)]));
}

#[test]
fn a_process_without_a_file_says_so() {
    let servers = named(1);
    let (front, admin) = (ports::free_addr(), ports::free_addr());
    let [front_text, to, admin_text] = [front, servers[0].addr, admin].map(|a| a.to_string());
    let args = [
        "run",
        "--listen",
        &front_text,
        "--to",
        &to,
        "--admin",
        &admin_text,
    ];
    let tembuku = Tembuku::start_with(&args, admin);
    tembuku.proc.signal(Signal::HUP);
    tembuku.wait_metric("config_last_reload_successful", &[], |n| n == 0.0);
    wait_until("the log has the reason", secs(10), || {
        let log = tembuku.proc.stderr();
        log.contains("started without a file")
    });
    assert_eq!(net::ask(front).unwrap(), "b1");
}

#[test]
fn a_reload_is_requested_on_the_socket_alone() {
    let setup = setup();
    let path = "/api/v1/reload";
    let refused = http::request(setup.tembuku.admin, "POST", path).unwrap();
    assert_eq!(refused.status, 404, "{refused:?}");
    let socket = setup.tembuku.dir.file("admin.sock");
    let call = |method: &str, body: &str| http::request_unix(&socket, method, path, body).unwrap();
    assert_eq!(call("GET", "").status, 405);
    for body in ["x", "{\"dry_run\": 1}", "{\"dryrun\": true}"] {
        assert_eq!(call("POST", body).status, 400, "{body}");
    }
    let done = call("POST", "");
    assert_eq!(done.status, 200, "{done:?}");
    assert!(done.body.contains("\"applied\": true"), "{done:?}");
    setup.replace("workers = 2", "workers = \"2\"");
    let failed = call("POST", "");
    assert_eq!(failed.status, 422, "{failed:?}");
    let answer: Value = serde_json::from_str(&failed.body).unwrap();
    assert_eq!(answer["applied"], false, "{answer}");
    assert_eq!(answer["problems"].as_array().unwrap().len(), 1, "{answer}");
    assert!(answer["problems"][0]["line"].is_u64(), "{answer}");
}

/// A stop is not held up by names that are not answered, nor by reloads that wait.
#[test]
fn a_stop_during_a_reload_ends_it() {
    let mut setup = setup();
    let pipe = setup.tembuku.dir.file("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    fs::remove_file(setup.file()).unwrap();
    std::os::unix::fs::symlink(&pipe, setup.file()).unwrap();
    let socket = setup.tembuku.dir.file("admin.sock");
    let tembuku = &mut setup.tembuku;
    thread::scope(|scope| {
        let request = || http::request_unix(&socket, "POST", "/api/v1/reload", "");
        let reloads = [(); 2].map(|()| scope.spawn(request));
        // It reads, since a writer finds a reader.
        let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK;
        let mode = rustix::fs::Mode::empty();
        let mut writer = None;
        wait_until("the file is read", secs(10), || {
            writer = rustix::fs::open(&pipe, flags, mode).ok();
            writer.is_some()
        });
        assert_eq!(tembuku.terminate().code(), Some(0));
        for reload in reloads {
            let answer = reload.join().unwrap();
            assert_eq!(answer.expect("an answer before the end").status, 503);
        }
    });
}

/// A backend that was not checked so far, since it is new or was down, waits for its first check.
#[test]
fn a_report_says_which_backends_wait_for_a_check() {
    let servers = named(3);
    let front = ports::free_addr();
    let config = |backends: &str, check: &str| {
        format!(
            "[admin]\nsocket = \"{{dir}}/admin.sock\"\n\
             [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
             [upstreams.u]\nbalance = \"maglev\"\nbackends = [\"{}\", {backends}]\n{check}",
            servers[0].addr
        )
    };
    let one = |n: usize, down: bool| {
        let addr = servers[n].addr;
        format!("{{ address = \"{addr}\", down = {down} }}")
    };
    let check = "check = { kind = \"tcp\", interval = \"100ms\", start = \"down\" }\n";
    for (check, waits) in [(check, true), ("", false)] {
        let tembuku = Tembuku::start(&config(&one(1, false), check));
        assert!(net::ask(front).is_ok());
        tembuku.reload(&config(&one(1, true), check));
        let lifted = one(1, false) + ", " + &one(2, false);
        tembuku.write(&config(&lifted, check));
        let shown = tembuku.succeed(&["reload", "--dry-run"]);
        let count = if waits { 2 } else { 0 };
        let line = "takes sessions: once a check has succeeded\n";
        assert_eq!(shown.matches(line).count(), count, "{shown}");
        // Both count as good: two thirds of the clients move to them.
        let moved = shown.split("clients that move: ").nth(1).unwrap();
        let percent: f64 = moved.split(' ').next().unwrap().parse().unwrap();
        assert!((55.0..80.0).contains(&percent), "{shown}");
        drop(tembuku);
    }
}
