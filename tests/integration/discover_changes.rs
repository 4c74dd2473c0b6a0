//! What becomes of discovered backends when the configuration changes, or another process takes
//! over, and what is told about it.

use crate::{
    discover::{Discovering, texts},
    harness::{
        load::Load,
        net::{self, ask, echo},
        ports, proc, secs,
        server::{Server, named},
        tembuku::{Tembuku, binary},
        temp::TempDir,
        wait_until,
    },
    upgrade::Succession,
};
use serde_json::Value;
use std::{fs, net::SocketAddr, path::Path, process::Command, thread};

fn write(path: &Path, backends: &[String]) {
    let new = path.with_extension("new");
    fs::write(&new, backends.join("\n") + "\n").unwrap();
    fs::rename(new, path).unwrap();
}

fn section(path: &Path) -> String {
    format!(
        "[upstreams.back.discover]\nkind = \"file\"\npath = \"{}\"\ntimeout = \"500ms\"\n\
         interval = \"200ms\"\nconfirm = \"1s\"\n",
        path.display()
    )
}

fn addrs(servers: &[Server]) -> Vec<SocketAddr> {
    servers.iter().map(|server| server.addr).collect()
}

#[test]
fn another_source_takes_over_when_it_has_answered() {
    let (dir, state, servers) = (TempDir::new(), TempDir::new(), named(4));
    let (one, two) = (dir.file("one"), dir.file("two"));
    let addrs = addrs(&servers);
    write(&one, &texts(&[&servers[0], &servers[1]]));
    let wrapper = format!("env STATE_DIRECTORY={}", state.path().display());
    let running = Discovering::start_under(&wrapper, &section(&one));
    running.wait_backends(&addrs[..2]);
    let (mut session, _) = net::session(running.front).unwrap();
    let load = Load::start(running.front, thread::spawn);
    load.take("at first");
    let saved = state.file("discover-back.json");
    let read_saved = || -> Value {
        let text = fs::read_to_string(&saved).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    };
    wait_until("the set is saved", secs(10), || read_saved().is_object());
    let of_first = read_saved()["source"].clone();

    // It does not answer: those of the first stay, and are not kept as those of the second.
    running.reload(&section(&two));
    running.wait_error("cannot read");
    running.wait_backends(&addrs[..2]);
    let discovery = || running.upstream()["discovery"].take();
    assert_eq!(discovery()["is_old"], true, "{}", discovery());
    assert_eq!(read_saved()["source"], of_first);
    write(&two, &texts(&[&servers[1], &servers[2]]));
    running.wait_backends(&addrs[1..3]);
    assert_eq!(discovery()["is_old"], false, "{}", discovery());
    wait_until("the other set is saved", secs(10), || {
        let saved = read_saved();
        saved["source"] != of_first && saved["backends"].as_array().unwrap().len() == 2
    });

    // Other times of the same source change nothing.
    running.reload(&section(&two).replace("200ms", "300ms"));
    running.wait_backends(&addrs[1..3]);
    // Without the section there are those of the file, with it both.
    let fixed = format!("backends = [\"{}\"]\n", addrs[3]);
    running.reload(&fixed);
    running.wait_backends(&addrs[3..]);
    fs::remove_file(&two).unwrap();
    running.reload(&format!("{fixed}{}", section(&two)));
    running.wait_error("cannot read");
    write(&two, &texts(&[&servers[0]]));
    running.wait_backends(&[addrs[0], addrs[3]]);
    let counts = load.take("at the end");
    assert_eq!((counts.refused, counts.cut), (0, 0));
    echo(&mut session, "on_removed is keep").unwrap();
}

/// A source that is down when an upstream gets another name: the backends are those of the same
/// source under the old name.
#[test]
fn an_upstream_with_another_name_keeps_the_backends_of_its_source() {
    let (dir, servers, front) = (TempDir::new(), named(2), ports::free_addr());
    let path = dir.file("backends");
    write(&path, &texts(&[&servers[0], &servers[1]]));
    let config = |name: &str| {
        format!(
            "[admin]\nsocket = \"{{dir}}/admin.sock\"\n[listeners.front]\nbind = \"{front}\"\n\
             upstream = \"{name}\"\n{}",
            section(&path).replace("upstreams.back", &format!("upstreams.{name}"))
        )
    };
    let tembuku = Tembuku::start(&config("old"));
    let load = Load::start(front, thread::spawn);
    load.take("at first");
    fs::remove_file(&path).unwrap();
    tembuku.reload(&config("new"));
    let counts = load.take("with another name");
    assert_eq!((counts.refused, counts.cut), (0, 0));
    assert_eq!(tembuku.get("/readyz").status, 200);
    let status = tembuku.get("/api/v1/status").body;
    let status: Value = serde_json::from_str(&status).unwrap();
    let upstreams = status["upstreams"].as_array().unwrap().iter();
    let new = upstreams.filter(|upstream| upstream["name"] == "new");
    let discovery = new.map(|upstream| upstream["discovery"].clone());
    let discovery: Vec<Value> = discovery.collect();
    assert_eq!(discovery[0]["backends"], 2, "{discovery:?}");
    assert!(discovery[0]["error"].is_string(), "{discovery:?}");
}

/// Nothing is kept on disk here.
#[test]
fn a_new_process_has_the_backends_of_a_source_that_is_down() {
    let (dir, servers, front) = (TempDir::new(), named(3), ports::free_addr());
    let path = dir.file("backends");
    write(&path, &texts(&[&servers[0], &servers[1]]));
    let mut succession = Succession::start(&format!(
        "[listeners.front]\nbind = \"{front}\"\nupstream = \"back\"\n{}",
        section(&path)
    ));
    let load = Load::start(front, thread::spawn);
    load.take("at first");
    let (mut session, _) = net::session(front).unwrap();
    fs::remove_file(&path).unwrap();
    let discovery = |succession: &Succession| {
        let status = succession.status();
        status["upstreams"][0]["discovery"].clone()
    };
    wait_until("the source is down", secs(10), || {
        discovery(&succession)["error"].is_string()
    });
    for _ in 0..2 {
        succession.upgrade();
        let known = discovery(&succession);
        assert_eq!(known["backends"], 2, "{known}");
        assert!(known["error"].is_string(), "{known}");
        let counts = load.take("after an upgrade");
        assert_eq!((counts.refused, counts.cut), (0, 0));
        succession.wait_alone();
    }
    echo(&mut session, "it went with them").unwrap();
    write(&path, &texts(&[&servers[0], &servers[1], &servers[2]]));
    wait_until("the third is picked", secs(20), || {
        ask(front).is_ok_and(|name| name == "b3")
    });
    assert_eq!(discovery(&succession)["is_old"], false);
}

#[test]
fn the_journal_tells_of_silence_and_of_many_changes_in_one_event() {
    let (dir, servers) = (TempDir::new(), named(1));
    let path = dir.file("backends");
    write(&path, &texts(&[&servers[0]]));
    let running = Discovering::start(&section(&path));
    running.wait_backends(&[servers[0].addr]);
    let many = |count: usize| -> Vec<String> {
        let others = (1..count).map(|n| format!("127.7.{}.{}:9", n / 250, n % 250 + 1));
        others.chain([servers[0].addr.to_string()]).collect()
    };
    let events = |kind: &str| -> Vec<Value> {
        let all = running.tembuku.events().into_iter();
        all.filter(|event| event["kind"] == kind).collect()
    };
    let count = |count: usize| {
        wait_until("so many backends", secs(20), || {
            running.upstream()["discovery"]["backends"] == count
        });
    };
    write(&path, &many(1_000));
    count(1_000);
    wait_until("an event", secs(10), || events("backends").len() == 1);
    let event = events("backends").remove(0);
    assert_eq!(
        (&event["from"], &event["to"]),
        (&"1".into(), &"1000".into())
    );
    assert_eq!(event["reason"], "discovery", "{event}");
    assert_eq!(event["transcript"], "999 added, 0 removed", "{event}");
    assert!(events("state").is_empty());
    write(&path, &many(600));
    count(600);
    wait_until("another", secs(10), || events("backends").len() == 2);
    write(&path, &many(603));
    count(603);
    // Few are events of their own.
    wait_until("three more", secs(10), || events("state").len() == 3);

    fs::remove_file(&path).unwrap();
    wait_until("the silence is told", secs(40), || {
        !events("source").is_empty()
    });
    let silent = events("source").remove(0);
    assert_eq!(
        (&silent["from"], &silent["to"]),
        (&"answers".into(), &"silent".into())
    );
    assert!(
        silent["transcript"]
            .as_str()
            .unwrap()
            .contains("cannot read"),
        "{silent}"
    );
    write(&path, &many(603));
    wait_until("its end is told", secs(20), || events("source").len() == 2);
    let end = events("source").remove(1);
    assert_eq!(
        (&end["from"], &end["to"]),
        (&"silent".into(), &"answers".into())
    );
}

#[test]
fn explain_says_where_the_backends_come_from() {
    let (dir, state, servers) = (TempDir::new(), TempDir::new(), named(2));
    let path = dir.file("backends");
    write(&path, &texts(&[&servers[0], &servers[1]]));
    let wrapper = format!("env STATE_DIRECTORY={}", state.path().display());
    let running = Discovering::start_under(&wrapper, &section(&path));
    let saved = state.file("discover-back.json");
    wait_until("the set is saved", secs(10), || saved.exists());
    let config = running.tembuku.dir.file("tembuku.toml");
    let explain = |folder: &Path, more: &[&str]| {
        let mut command = Command::new(binary());
        command.args(["explain", "-c", config.to_str().unwrap()]);
        command.args(["--client", "192.0.2.1"]).args(more);
        command.env("STATE_DIRECTORY", folder);
        let output = proc::output(&mut command);
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
    };
    let text = explain(state.path(), &[]);
    assert!(text.contains(&servers[0].addr.to_string()), "{text}");
    let note = "note: 2 backends from the source (kind file), saved at ";
    assert!(text.contains(note), "{text}");
    let text = explain(dir.path(), &[]);
    assert!(
        text.contains("backends of the source (kind file) are not known here"),
        "{text}"
    );
    let json: Value = serde_json::from_str(&explain(dir.path(), &["--json"])).unwrap();
    assert!(json["notes"].to_string().contains("--running"), "{json}");
    fs::write(&saved, "{").unwrap();
    let text = explain(state.path(), &[]);
    assert!(text.contains("cannot be read"), "{text}");
}
