//! Backends from a source: what comes and goes, under load, and what becomes of it when the source
//! fails. The source here is a file; others have tests of their own.

use crate::harness::{
    load::Load,
    net::{self, echo},
    ports,
    proc::text,
    secs,
    server::{Server, ask_many, named},
    tembuku::{Tembuku, cli},
    temp::TempDir,
    wait_until,
};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Instant,
};

/// A process whose upstream `back` has the backends of a source.
pub(crate) struct Discovering {
    pub(crate) tembuku: Tembuku,
    pub(crate) front: SocketAddr,
}

impl Discovering {
    /// `keys`: of the upstream, and its section `discover` at the end.
    #[track_caller]
    pub(crate) fn start(keys: &str) -> Self {
        Self::start_under("", keys)
    }

    #[track_caller]
    pub(crate) fn start_under(wrapper: &str, keys: &str) -> Self {
        let front = ports::free_addr();
        let tembuku = Tembuku::start_under(wrapper, &config(front, keys));
        Self { tembuku, front }
    }

    #[track_caller]
    pub(crate) fn reload(&self, keys: &str) {
        self.tembuku.reload(&config(self.front, keys));
    }

    pub(crate) fn upstream(&self) -> Value {
        let status = self.tembuku.get("/api/v1/status").body;
        let mut status: Value = serde_json::from_str(&status).unwrap();
        status["upstreams"][0].take()
    }

    /// The addresses of backends, except those that were removed, with their states.
    pub(crate) fn backends(&self) -> Vec<(String, String)> {
        let upstream = self.upstream();
        let backends = upstream["backends"].as_array().unwrap().iter();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let pairs = backends.map(|b| (text(&b["address"]), text(&b["state"])));
        pairs.filter(|(_, state)| state != "removed").collect()
    }

    #[track_caller]
    pub(crate) fn wait_backends(&self, addresses: &[SocketAddr]) {
        let mut expected: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        expected.sort();
        let what = format!("the backends are {expected:?}");
        wait_until(&what, secs(20), || {
            let shown = self.backends().into_iter().map(|(address, _)| address);
            let mut shown: Vec<String> = shown.collect();
            shown.sort();
            shown == expected
        });
    }

    /// Waits until the source has a fault that contains this.
    #[track_caller]
    pub(crate) fn wait_error(&self, part: &str) {
        wait_until(&format!("the error has {part:?}"), secs(20), || {
            let discovery = &self.upstream()["discovery"];
            discovery["error"]
                .as_str()
                .is_some_and(|error| error.contains(part))
        });
    }

    #[track_caller]
    pub(crate) fn wait_answer(&self) {
        wait_until("the source answers", secs(20), || {
            self.upstream()["discovery"]["error"].is_null()
        });
    }
}

fn config(front: SocketAddr, keys: &str) -> String {
    format!(
        "[process]\nworkers = 2\n[admin]\nsocket = \"{{dir}}/admin.sock\"\n\
         [listeners.front]\nbind = \"{front}\"\nupstream = \"back\"\n[upstreams.back]\n{keys}\n"
    )
}

/// A file with these addresses, replaced in one step.
fn write(path: &Path, backends: &[String]) {
    let new = path.with_extension("new");
    fs::write(&new, backends.join("\n") + "\n").unwrap();
    fs::rename(new, path).unwrap();
}

pub(crate) fn texts(servers: &[&Server]) -> Vec<String> {
    servers
        .iter()
        .map(|server| server.addr.to_string())
        .collect()
}

/// A file, servers that may be in it, and a process that follows it.
struct OfFile {
    running: Discovering,
    path: PathBuf,
    servers: Vec<Server>,
    _dir: TempDir,
}

impl OfFile {
    #[track_caller]
    fn start(servers: usize, first: &[usize], upstream: &str, discover: &str) -> Self {
        let (dir, servers) = (TempDir::new(), named(servers));
        let path = dir.file("backends");
        let chosen: Vec<&Server> = first.iter().map(|n| &servers[*n]).collect();
        write(&path, &texts(&chosen));
        let running = Discovering::start(&keys(&path, upstream, discover));
        Self {
            running,
            path,
            servers,
            _dir: dir,
        }
    }

    fn write(&self, servers: &[usize]) {
        let chosen: Vec<&Server> = servers.iter().map(|n| &self.servers[*n]).collect();
        write(&self.path, &texts(&chosen));
    }

    #[track_caller]
    fn wait(&self, servers: &[usize]) {
        let chosen: Vec<SocketAddr> = servers.iter().map(|n| self.servers[*n].addr).collect();
        self.running.wait_backends(&chosen);
    }
}

fn keys(path: &Path, upstream: &str, discover: &str) -> String {
    let path = path.display();
    format!("{upstream}\n[upstreams.back.discover]\nkind = \"file\"\npath = \"{path}\"\n{discover}")
}

#[test]
fn backends_come_and_go_and_no_client_is_lost() {
    let source = OfFile::start(3, &[0, 1], "", "");
    let front = source.running.front;
    let (mut session, name) = net::session(front).unwrap();
    let load = Load::start(front, std::thread::spawn);
    load.take("at first");
    let began = Instant::now();
    source.write(&[0, 1, 2]);
    wait_until("the new backend is picked", secs(10), || {
        source.servers[2].accepted() > 0
    });
    println!("a new backend was picked after {:?}", began.elapsed());
    let gone: usize = if name == "b1" { 0 } else { 1 };
    let rest: Vec<usize> = (0..3).filter(|n| *n != gone).collect();
    source.write(&rest);
    source.wait(&rest);
    let names: BTreeSet<String> = ask_many(front, 20).into_iter().collect();
    assert!(!names.contains(&name), "{names:?}");
    echo(&mut session, "its session stays").unwrap();
    let counts = load.take("at the end");
    assert_eq!((counts.refused, counts.cut), (0, 0));
    let upstream = source.running.upstream();
    assert_eq!(upstream["discovery"]["kind"], "file");
    assert_eq!(upstream["discovery"]["backends"], 2);
    let labels = [("upstream", "back")];
    let tembuku = &source.running.tembuku;
    assert_eq!(tembuku.metric("discovery_backends", &labels), 2.0);
    assert!(tembuku.metric("discovery_last_success_timestamp_seconds", &labels) > 1e9);
    let changed = [("upstream", "back"), ("result", "changed")];
    assert!(tembuku.metric("discovery_updates_total", &changed) >= 3.0);
    let reasons: Vec<Value> = tembuku
        .events()
        .iter()
        .map(|e| e["reason"].clone())
        .collect();
    assert!(reasons.contains(&Value::from("discovery")), "{reasons:?}");
    // Its series go with its last session.
    let address = source.servers[gone].addr.to_string();
    let is_there = || {
        tembuku
            .metrics()
            .has("backend_weight", &[("backend", &address)])
    };
    assert!(is_there());
    drop(session);
    wait_until(
        "the series of the removed backend are gone",
        secs(10),
        || !is_there(),
    );
}

#[test]
fn sessions_of_a_vanished_backend_end_where_that_is_wanted() {
    let source = OfFile::start(3, &[0, 1, 2], "on_removed = \"close\"", "max_removed = 100");
    let sessions: Vec<_> = (0..3)
        .map(|_| net::session(source.running.front).unwrap())
        .collect();
    source.write(&[1, 2]);
    source.wait(&[1, 2]);
    for (mut session, name) in sessions {
        match name.as_str() {
            "b1" => assert_eq!(net::read_all(&mut session).1, net::End::Reset),
            _ => echo(&mut session, "still here").unwrap(),
        }
    }
}

#[test]
fn a_source_that_fails_takes_nothing_away() {
    let source = OfFile::start(2, &[0, 1], "", "interval = \"100ms\"\nempty_after = \"2s\"");
    let running = &source.running;
    for (content, error) in [
        (None, "cannot read"),
        (Some("127.0.0.1:1\nnonsense\n"), "has no port"),
        (Some("127.0.0.1:1 weigth=2\n"), "is not known"),
        (Some("127.0.0.1:1 weight=99999999\n"), "a weight is"),
    ] {
        match content {
            None => fs::remove_file(&source.path).unwrap(),
            Some(content) => fs::write(&source.path, content).unwrap(),
        }
        running.wait_error(error);
        source.wait(&[0, 1]);
        source.write(&[0, 1]);
        running.wait_answer();
    }
    let errors = [("upstream", "back"), ("result", "error")];
    assert!(running.tembuku.metric("discovery_updates_total", &errors) >= 4.0);
    // Empty is an answer, which counts only after a time.
    let began = Instant::now();
    fs::write(&source.path, "# nothing\n").unwrap();
    wait_until("the backends are held", secs(10), || {
        let held = &running.upstream()["discovery"]["held"];
        held.as_array()
            .is_some_and(|held| held.len() == 2 && held[0]["reason"] == "empty")
    });
    assert_eq!(running.tembuku.metric("discovery_held", &[]), 2.0);
    assert_eq!(running.tembuku.get("/readyz").status, 200);
    running.wait_backends(&[]);
    assert!(began.elapsed() >= secs(2), "{:?}", began.elapsed());
    assert_eq!(running.tembuku.get("/readyz").status, 503);
    net::assert_closed_at_once(running.front);
    source.write(&[1]);
    source.wait(&[1]);
    assert_eq!(ask_many(running.front, 2), ["b2", "b2"]);
}

#[test]
fn a_large_loss_waits_for_its_confirmation() {
    let source = OfFile::start(4, &[0, 1, 2], "", "confirm = \"2s\"");
    let began = Instant::now();
    source.write(&[3]);
    source.wait(&[0, 1, 2, 3]);
    source.wait(&[3]);
    assert!(began.elapsed() >= secs(2), "{:?}", began.elapsed());
}

#[test]
fn the_last_set_is_used_by_the_next_process() {
    let (state, source) = (TempDir::new(), TempDir::new());
    let (servers, path) = (named(2), source.file("backends"));
    write(&path, &texts(&[&servers[0], &servers[1]]));
    let wrapper = format!("env STATE_DIRECTORY={}", state.path().display());
    let start = || Discovering::start_under(&wrapper, &keys(&path, "", "timeout = \"500ms\""));
    let running = start();
    let saved = state.file("discover-back.json");
    wait_until("the set is saved", secs(10), || {
        fs::read_to_string(&saved).is_ok_and(|text| text.contains(&servers[1].addr.to_string()))
    });
    drop(running);
    fs::remove_file(&path).unwrap();
    let running = start();
    running.wait_backends(&[servers[0].addr, servers[1].addr]);
    let discovery = running.upstream()["discovery"].take();
    assert_eq!(discovery["is_old"], true, "{discovery}");
    assert!(
        discovery["error"].as_str().unwrap().contains("cannot read"),
        "{discovery}"
    );
    assert_eq!(running.tembuku.get("/readyz").status, 200);
    assert_eq!(ask_many(running.front, 2).len(), 2);
    write(&path, &texts(&[&servers[0], &servers[1]]));
    wait_until("the set is not old any more", secs(10), || {
        running.upstream()["discovery"]["is_old"] == false
    });
    drop(running);
    // What cannot be read counts as nothing.
    fs::remove_file(&path).unwrap();
    fs::write(&saved, "{").unwrap();
    let running = start();
    running.wait_backends(&[]);
    let readiness = running.tembuku.get("/readyz");
    assert_eq!(readiness.status, 503);
    assert!(
        readiness.body.contains("has not answered yet"),
        "{}",
        readiness.body
    );
    write(&path, &texts(&[&servers[0]]));
    running.wait_backends(&[servers[0].addr]);
    assert_eq!(running.tembuku.get("/readyz").status, 200);
}

#[test]
fn settings_of_an_operator_survive_a_leave_and_a_reload_keeps_what_is_discovered() {
    let source = OfFile::start(3, &[0, 1, 2], "", "");
    let running = &source.running;
    let socket = running.tembuku.dir.file("admin.sock");
    let command = |args: &[&str]| {
        let args = [args, &["--socket", socket.to_str().unwrap()]].concat();
        let output = cli(&args);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    };
    let name = format!("back/{}", source.servers[0].addr);
    command(&["maint", &name]);
    command(&["weight", &name, "7"]);
    source.write(&[1, 2]);
    source.wait(&[1, 2]);
    source.write(&[0, 1, 2]);
    source.wait(&[0, 1, 2]);
    let settings = || {
        let upstream = running.upstream();
        let mut backends = upstream["backends"].as_array().unwrap().iter();
        let address = source.servers[0].addr.to_string();
        let backend = backends.find(|b| b["address"] == *address).unwrap();
        (backend["admin_state"].clone(), backend["weight"].clone())
    };
    assert_eq!(settings(), (Value::from("maint"), Value::from(7)));
    // Another policy, and a backend of the file beside them.
    let extra = named(1);
    let upstream = format!(
        "balance = \"least_conn\"\nbackends = [\"{}\"]",
        extra[0].addr
    );
    running.reload(&keys(&source.path, &upstream, ""));
    let all: Vec<SocketAddr> = source
        .servers
        .iter()
        .chain(&extra)
        .map(|s| s.addr)
        .collect();
    running.wait_backends(&all);
    assert_eq!(settings(), (Value::from("maint"), Value::from(7)));
    // The hash is that of the file alone, and a second reload changes nothing.
    let output = running
        .tembuku
        .try_reload(&config(running.front, &keys(&source.path, &upstream, "")));
    assert!(text(&output).contains("nothing changes") || output.status.success());
    // Without the section only those of the file are left.
    running.reload(&upstream);
    running.wait_backends(&[extra[0].addr]);
}

#[test]
fn a_backend_of_the_file_stands_beside_those_of_the_source_with_its_own_settings() {
    let own = Server::named("own");
    let upstream = format!("backends = [{{ address = \"{}\", weight = 7 }}]", own.addr);
    let source = OfFile::start(1, &[0], &upstream, "");
    let found = source.servers[0].addr;
    source.running.wait_backends(&[own.addr, found]);
    let weights = || {
        let upstream = source.running.upstream();
        let backends = upstream["backends"].as_array().unwrap().iter();
        let of = |b: &Value| (b["weight"].as_u64().unwrap(), b["discovered"] == true);
        backends.map(of).collect::<Vec<_>>()
    };
    // Named by the source as well, and not any more.
    for (named_too, weight) in [(true, 3), (false, 4)] {
        let own = format!("{} weight=2", own.addr);
        let own = named_too.then_some(own);
        let lines = own.into_iter().chain([format!("{found} weight={weight}")]);
        write(&source.path, &lines.collect::<Vec<_>>());
        wait_until("the weights are those", secs(10), || {
            weights() == [(7, false), (weight, true)]
        });
    }
}

#[test]
fn a_draining_backend_takes_nothing_new_and_a_listener_is_no_backend() {
    let source = OfFile::start(2, &[0, 1], "", "");
    let running = &source.running;
    let own = running.front.to_string();
    let [one, two] = [0, 1].map(|n| source.servers[n].addr.to_string());
    write(
        &source.path,
        &[
            format!("{one} draining name=first"),
            two.clone(),
            own.clone(),
        ],
    );
    wait_until("the first backend is drained", secs(10), || {
        running
            .backends()
            .contains(&(one.clone(), "drained".to_owned()))
    });
    source.wait(&[0, 1]);
    assert_eq!(ask_many(running.front, 4), ["b2"; 4]);
    let upstream = running.upstream();
    let mut backends = upstream["backends"].as_array().unwrap().iter();
    let first = backends.find(|b| b["address"] == *one).unwrap();
    assert_eq!(first["name"], "first");
    assert_eq!(first["discovered"], true);
    assert_eq!(first["why"], "its source drains it");
    let log = running.tembuku.proc.stderr();
    assert!(log.contains("is a listener of this process"), "{log}");
    write(&source.path, &[one, two]);
    wait_until("the first backend serves again", secs(10), || {
        ask_many(running.front, 2).contains(&"b1".to_owned())
    });
}

#[test]
fn a_folder_has_files_of_each_format_and_a_command_prints_the_answer() {
    let dir = TempDir::new();
    let folder = dir.file("backends.d");
    fs::create_dir(&folder).unwrap();
    let servers = named(3);
    let [one, two, three] = [0, 1, 2].map(|n| servers[n].addr);
    let file = |name: &str, content: String| fs::write(folder.join(name), content).unwrap();
    file(
        "1.toml",
        format!("backends = [{{ address = \"{one}\", weight = 2 }}]"),
    );
    file("2.json", format!("[\"{two}\"]"));
    file(".hidden", "nonsense".to_owned());
    let running = Discovering::start(&keys(&folder, "", ""));
    running.wait_backends(&[one, two]);
    file("3", format!("{three} backup"));
    running.wait_backends(&[one, two, three]);
    let config = running.tembuku.dir.file("tembuku.toml");
    let discover = |upstream: &str, args: &[&str]| {
        cli(&[
            &["discover", "-c", config.to_str().unwrap(), upstream],
            args,
        ]
        .concat())
    };
    let printed = String::from_utf8(discover("back", &[]).stdout).unwrap();
    let lines: Vec<&str> = printed.lines().skip(1).collect();
    let expected = [
        format!("{one} weight=2"),
        format!("{two} weight=1"),
        format!("{three} weight=1 backup"),
    ];
    assert_eq!(lines, expected);
    let json: Value = serde_json::from_slice(&discover("back", &["--json"]).stdout).unwrap();
    assert_eq!(json["backends"].as_array().unwrap().len(), 3);
    let unknown = discover("other", &[]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(
        text(&unknown).contains("there are: back"),
        "{}",
        text(&unknown)
    );
    file("4", "nonsense".to_owned());
    let failed = discover("back", &[]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(text(&failed).contains("line 1"), "{}", text(&failed));
    fs::remove_file(folder.join("4")).unwrap();
    fs::remove_file(folder.join("2.json")).unwrap();
    running.wait_backends(&[one, three]);
}

/// The pause after failures grows up to ten seconds: an event of the file ends it.
#[test]
fn a_file_that_was_wrong_or_missing_is_read_as_soon_as_it_is_mended() {
    let source = OfFile::start(2, &[0], "", "");
    let tembuku = &source.running.tembuku;
    let failed = [("upstream", "back"), ("result", "error")];
    let failures = || tembuku.metric("discovery_updates_total", &failed);
    for (spoil, mended) in [
        (
            (|path: &Path| write(path, &["nonsense".to_owned()])) as fn(&Path),
            [0, 1],
        ),
        (|path: &Path| fs::remove_file(path).unwrap(), [1, 0]),
    ] {
        let before = failures();
        spoil(&source.path);
        // The next reading would be four seconds after the last of these.
        wait_until("it has failed four times", secs(30), || {
            failures() >= before + 4.0
        });
        let began = Instant::now();
        source.write(&mended[..1]);
        source.running.wait_answer();
        let took = began.elapsed();
        assert!(took < secs(3), "{took:?}");
    }
}
