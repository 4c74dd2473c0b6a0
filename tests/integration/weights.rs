//! Weights that an operator sets in a running process.

use crate::harness::{
    http,
    net::ask_from,
    pair::{Entry, Pair, mixed, sources_v4},
    ports,
    proc::{self, Proc},
    programs::Redis,
    rng::{self, Rng},
    secs,
    server::{Server, ask_many, list, named},
    tembuku::{Tembuku, cli},
    wait_until,
};
use serde_json::Value;
use std::{fs, net::SocketAddr, process::Command};

#[track_caller]
fn reload(tembuku: &Tembuku, change: impl Fn(&str) -> String) {
    let file = tembuku.dir.file("tembuku.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, change(&text)).unwrap();
    tembuku.succeed(&["reload"]);
}

fn status(tembuku: &Tembuku, n: usize) -> Value {
    let status = tembuku.status();
    status["upstreams"][0]["backends"][n].clone()
}

/// The operator gives every backend the weight that nginx has in its file, and the file is changed
/// beneath it.
#[test]
fn picks_by_weights_of_the_operator_are_those_of_nginx() {
    let mut rng = Rng::new(rng::seed("weights::picks_by_weights"));
    let sources = sources_v4(&mut rng, 300);
    for key in [Some("$remote_addr"), None] {
        let (_servers, mut entries) = mixed();
        // In rotation a name would count once for each of its addresses.
        entries.retain(|entry| key.is_some() || !entry.address.starts_with("localhost"));
        for entry in &mut entries {
            entry.weight = rng.range(2, 9);
        }
        let pair = Pair::start(&entries, key, "127.0.0.1");
        for Entry {
            address, weight, ..
        } in &entries
        {
            let target = format!("u/{address}");
            let printed = pair
                .program
                .succeed(&["weight", &target, &weight.to_string()]);
            let expected = format!("weight {weight} already by operator, {weight} in the file");
            assert_eq!(printed, format!("{target}: {expected}\n"));
        }
        reload(&pair.program, |text| {
            entries.iter().fold(text.to_owned(), |text, entry| {
                let of_file = format!("\"{}\", weight = {}", entry.address, entry.weight);
                assert!(text.contains(&of_file), "{text}");
                text.replace(&of_file, &format!("\"{}\", weight = 1", entry.address))
            })
        });
        assert_eq!(status(&pair.program, 0)["weight_in_file"], 1);
        if key.is_some() {
            pair.compare(&sources, 1);
        } else {
            let [nginx, tembuku] = [pair.nginx, pair.tembuku].map(|addr| ask_many(addr, 100));
            assert_eq!(tembuku, nginx);
        }
    }
}

fn three(keys: &str) -> (Tembuku, SocketAddr, Vec<Server>) {
    let (servers, front) = (named(3), ports::free_addr());
    let tembuku = Tembuku::start(&format!(
        "[log]\nformat = \"json\"\n[admin]\nsocket = \"{{dir}}/admin.sock\"\n\
         [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\n{keys}\nbackends = {}\n",
        list(&servers)
    ));
    (tembuku, front, servers)
}

#[test]
fn a_weight_is_shown_everywhere_and_survives_a_reload() {
    let (mut tembuku, front, servers) = three("");
    let backend = servers[0].addr.to_string();
    let target = format!("u/{backend}");
    let count = |name: &str| ask_many(front, 14).iter().filter(|n| *n == name).count();
    assert_eq!(
        tembuku.succeed(&["weight", &target, "5"]),
        format!("{target}: weight 1 -> 5 by operator, 1 in the file\n")
    );
    assert_eq!(count("b1"), 10);
    let shown = status(&tembuku, 0);
    assert_eq!(
        (&shown["weight"], &shown["weight_in_file"]),
        (&5.into(), &1.into())
    );
    assert!(shown["weight_since"].is_string());
    let printed = tembuku.succeed(&["weight", &target]);
    let begin = format!("{target}: weight 5 by operator since 20");
    assert!(printed.starts_with(&begin), "{printed}");
    assert!(printed.ends_with(", 1 in the file\n"), "{printed}");
    let of_file = format!("u/{0}: weight 1, as in the file\n", servers[1].addr);
    assert_eq!(
        tembuku.succeed(&["weight", &servers[1].addr.to_string()]),
        of_file
    );
    assert_eq!(status(&tembuku, 1)["weight_since"], Value::Null);
    let labels = [("backend", backend.as_str())];
    assert_eq!(tembuku.metric("backend_weight", &labels), 5.0);
    let note = |in_file| format!("weight 5 by operator, {in_file} in the file, since 20");
    assert!(tembuku.succeed(&["status"]).contains(&note(1)));
    assert!(tembuku.get("/").body.contains(&note(1)));
    // A session of the start may still be counted behind it.
    let event = format!("{target} weight 1 -> 5: operator, 1 in the file");
    let events = tembuku.succeed(&["events"]);
    assert!(events.contains(&event), "{events}");

    // An order that changes nothing is no event.
    tembuku.succeed(&["weight", &target, "5"]);
    let events = tembuku.succeed(&["events"]);
    assert!(!events.contains("weight 5 -> 5"), "{events}");

    // The file's weight changes beneath it, and is what a reset leads to.
    let of_file = format!("{{ address = \"{backend}\", weight = 3 }}");
    reload(&tembuku, |text| {
        text.replace(&format!("\"{backend}\""), &of_file)
    });
    assert!(tembuku.succeed(&["status"]).contains(&note(3)));
    assert_eq!(count("b1"), 10);
    assert_eq!(
        tembuku.succeed(&["weight", &target, "--reset"]),
        format!("{target}: weight 5 -> 3, as in the file\n")
    );
    assert_eq!(
        tembuku.succeed(&["weight", &target, "--reset"]),
        format!("{target}: weight 3 already, as in the file\n")
    );
    assert_eq!(ask_many(front, 10).iter().filter(|n| *n == "b1").count(), 6);
    assert_eq!(status(&tembuku, 0)["weight_since"], Value::Null);

    // 0: nothing new.
    tembuku.succeed(&["weight", &target, "0"]);
    assert_eq!(count("b1"), 0);
    tembuku.succeed(&["drain", &format!("u/{}", servers[1].addr)]);
    // By its address; of the last one that takes sessions.
    let last = servers[2].addr.to_string();
    let output = tembuku.command(&["weight", &last, "0"]);
    let warning = String::from_utf8(output.stderr).unwrap();
    assert!(
        warning.starts_with("warning: upstream u has no backend left"),
        "{warning}"
    );
    tembuku.succeed(&["weight", &last, "--reset"]);
    assert!(tembuku.terminate().success());
    let lost: Vec<Value> = tembuku
        .log()
        .into_iter()
        .filter(|line| line["message"] == "settings of the operator end with this process")
        .collect();
    let settings = |n: usize| (lost[n]["admin_state"].clone(), lost[n]["weight"].clone());
    assert_eq!(lost.len(), 2, "{lost:?}");
    assert_eq!(settings(0), ("ready".into(), 0.into()));
    assert_eq!(settings(1), ("drain".into(), Value::Null));
}

#[test]
fn invalid_weights_are_refused() {
    let (tembuku, _front, servers) = three("balance = \"consistent_hash\"");
    let target = format!("u/{}", servers[0].addr);
    for (arguments, code, expected) in [
        (
            &["weight"][..],
            2,
            "weight [OPTIONS] <UPSTREAM/BACKEND|ADDRESS> [N]",
        ),
        (&["weight", &target, "5", "--reset"], 2, "--reset"),
        (&["weight", &target, "65536"], 2, "65535"),
        (&["weight", &target, "-1"], 2, "number from 0"),
        (&["weight", &target, "50%"], 2, "number from 0"),
        (&["weight", "x:1", "1"], 1, "there is no backend x:1"),
        (&["weight", "u/x:1"], 1, "there is no backend u/x:1"),
        (&["weight", "v/x:1", "1"], 1, "did you mean \"u\"?"),
        (&["weight", "u/x:1", "1"], 1, "has no backend \"x:1\""),
        (
            &["weight", &target, "65535"],
            1,
            "add up to 65537; consistent_hash takes 65536",
        ),
    ] {
        let output = tembuku.command(arguments);
        let printed = proc::text(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {printed}");
        assert!(printed.contains(expected), "{arguments:?}: {printed}");
    }
    let socket = tembuku.dir.file("admin.sock");
    let path = format!("/api/v1/upstreams/u/backends/{}", servers[0].addr);
    for (path, body, expected) in [
        (&*path, "{\"weight\": -1}", "from 0 to 65535"),
        (&path, "{\"weight\": 65536}", "from 0 to 65535"),
        (&path, "{\"weight\": 1.5}", "the body"),
        (&path, "{\"weight\": \"1\"}", "the body"),
        (&path, "{}", "neither `admin_state` nor `weight`"),
        (
            &path,
            "{\"weight\": 1, \"admin_state\": \"drain\"}",
            "not both",
        ),
        (
            &path,
            "{\"weight\": 1, \"close_after\": \"1s\"}",
            "goes with `admin_state`",
        ),
        ("/api/v1/backends/x", "{\"weight\": 1}", "one upstream"),
    ] {
        let answer = http::request_unix(&socket, "POST", path, body).unwrap();
        assert_eq!(answer.status, 400, "{body}: {answer:?}");
        assert!(answer.body.contains(expected), "{body}: {answer:?}");
    }
    for n in 0..3 {
        assert_eq!(status(&tembuku, n)["weight"], 1, "nothing was changed");
    }
}

/// A large ring is rebuilt again and again while clients come.
#[test]
fn no_request_fails_while_weights_change() {
    let servers = [ports::free_addr(), ports::free_addr()].map(Redis::start);
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[process]\nworkers = 2\n[admin]\nsocket = \"{{dir}}/admin.sock\"\n\
         [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nbalance = \"consistent_hash\"\nhash_key = \"$remote_addr$remote_port\"\n\
         backends = [\"{}\", \"{}\"]\n",
        servers[0].addr, servers[1].addr
    ));
    let mut load = Command::new("redis-benchmark");
    let port = front.port().to_string();
    load.args([
        "-q",
        "-h",
        "127.0.0.1",
        "-p",
        &port,
        "-n",
        "12000",
        "-c",
        "20",
        "-k",
        "0",
    ]);
    load.args(["-t", "ping_mbulk"]);
    let mut load = Proc::start("redis-benchmark", tembuku.dir.path(), load);
    let target = format!("u/{}", servers[0].addr);
    let mut changes = 0;
    while load.ended().is_none() {
        let weight = ["3000", "1", "0", "700"][changes % 4];
        tembuku.succeed(&["weight", &target, weight]);
        changes += 1;
    }
    let status = load.wait(secs(60)).expect("an end");
    let printed = load.stdout() + &load.stderr();
    assert!(
        status.success() && !printed.to_lowercase().contains("error"),
        "{printed}"
    );
    println!("{changes} changes under load");
    assert!(changes > 3, "{changes}");
    tembuku.wait_idle();
    for reason in ["no_backend", "connect_failed"] {
        let closed = tembuku.metric("sessions_closed_total", &[("reason", reason)]);
        assert_eq!(closed, 0.0, "{reason}");
    }
    for server in &servers {
        let backend = server.addr.to_string();
        let labels = [("backend", backend.as_str())];
        wait_until("it got some", secs(5), || {
            tembuku.metric("backend_connections_total", &labels) > 100.0
        });
    }
}

/// What is predicted of the running process is where its clients then go.
#[test]
fn explain_knows_the_settings_of_the_running_process() {
    let (tembuku, front, servers) = three("balance = \"consistent_hash\"");
    let targets: Vec<String> = servers.iter().map(|s| format!("u/{}", s.addr)).collect();
    tembuku.succeed(&["weight", &targets[0], "5"]);
    tembuku.succeed(&["drain", &targets[1]]);
    let file = tembuku.dir.file("tembuku.toml");
    let mut rng = Rng::new(rng::seed("weights::explain_knows"));
    let sources = sources_v4(&mut rng, 60);
    let texts: Vec<String> = sources.iter().map(ToString::to_string).collect();
    let mut arguments = vec![
        "explain",
        "--running",
        "--json",
        "-c",
        file.to_str().unwrap(),
    ];
    arguments.extend(texts.iter().flat_map(|text| ["--client", text.as_str()]));
    let output = cli(&arguments);
    assert!(output.status.success(), "{}", proc::text(&output));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    for (source, client) in sources.iter().zip(answer["clients"].as_array().unwrap()) {
        let name = ask_from(*source, front).unwrap();
        let n: usize = name.trim_start_matches('b').parse().unwrap();
        assert_eq!(
            client["backend"],
            servers[n - 1].addr.to_string(),
            "{source}"
        );
    }
    assert_eq!(answer["distribution"][0]["weight"], 5);
    assert_eq!(answer["distribution"][1]["got"], 0);
    let notes = answer["notes"].to_string();
    for part in [
        "weight 5 by operator, 1 in the file, since ",
        "is drained: set by the operator; since ",
    ] {
        assert!(notes.contains(part), "{notes}");
    }

    // A file that was not put into effect.
    let text = fs::read_to_string(&file).unwrap();
    let other = format!("\"{}\"", servers[2].addr);
    fs::write(&file, text.replace(&other, "\"10.9.9.9:1\"")).unwrap();
    let output = cli(&[
        "explain",
        "--running",
        "-c",
        file.to_str().unwrap(),
        "--client",
        "10.0.0.1",
    ]);
    let printed = proc::text(&output);
    assert!(output.status.success(), "{printed}");
    assert!(
        printed.contains("as in a process with the weights and the states of the running one"),
        "{printed}"
    );
    assert!(
        printed.contains("10.9.9.9:1 is not in the running process: reload to add it"),
        "{printed}"
    );
    assert!(
        printed.contains(&format!(
            "{} is in the running process, and not in this file",
            servers[2].addr
        )),
        "{printed}"
    );
    let output = cli(&[
        "explain",
        "--socket",
        "/x",
        "-c",
        file.to_str().unwrap(),
        "--client",
        "10.0.0.1",
    ]);
    assert_eq!(output.status.code(), Some(2));
}
