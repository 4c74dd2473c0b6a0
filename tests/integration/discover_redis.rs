//! Backends from a Redis server.

use crate::{
    discover::Discovering,
    harness::{
        load::Load,
        millis,
        net::{self, End},
        ports,
        programs::{Redis, call},
        secs,
        server::{Server, ask_many, named},
        wait_until,
    },
};
use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
    time::{Duration, Instant},
};

fn keys(server: SocketAddr, upstream: &str, discover: &str) -> String {
    let interval = match discover.contains("interval") {
        true => "",
        false => "interval = \"200ms\"",
    };
    format!(
        "{upstream}\n[upstreams.back.discover]\nkind = \"redis\"\nserver = \"{server}\"\n\
         key = \"servers\"\n{interval}\n{discover}\n"
    )
}

/// Sends commands, and expects no error.
#[track_caller]
fn run(redis: &Redis, command: &str) {
    let answer = call(redis.addr, command).unwrap();
    assert!(!answer.starts_with('-'), "{command}: {answer}");
}

#[test]
fn a_list_that_is_pushed_and_removed_is_followed_under_load() {
    let (redis, servers) = (Redis::start(ports::free_addr()), named(3));
    run(
        &redis,
        &format!("RPUSH servers {} {}", servers[0].addr, servers[1].addr),
    );
    let running = Discovering::start(&keys(redis.addr, "on_removed = \"close\"", ""));
    let load = Load::start(running.front, std::thread::spawn);
    load.take("at first");
    run(&redis, &format!("LPUSH servers {}", servers[2].addr));
    let began = Instant::now();
    wait_until("the pushed backend is picked", secs(10), || {
        servers[2].accepted() > 0
    });
    println!("a pushed backend was picked after {:?}", began.elapsed());
    let (mut session, name) = loop {
        let (session, name) = net::session(running.front).unwrap();
        if name == "b1" {
            break (session, name);
        }
    };
    run(&redis, &format!("LREM servers 0 {}", servers[0].addr));
    assert_eq!(net::read_all(&mut session).1, End::Reset, "{name}");
    running.wait_backends(&[servers[1].addr, servers[2].addr]);
    let counts = load.take("at the end");
    assert_eq!(counts.refused, 0);
    let names = ask_many(running.front, 10);
    assert!(!names.contains(&"b1".to_owned()), "{names:?}");
}

/// How the elements of a list go round.
#[derive(Debug, Clone, Copy)]
enum Rotation {
    /// Two commands: the element is nowhere in between.
    PopAndPush,
    OneCommand(&'static str),
}

/// A thousand rotations a second, for as long as given; how many there were.
fn rotate(addr: SocketAddr, how: Rotation, lasts: Duration) -> u64 {
    let mut stream = net::connect(addr).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut ask = |command: &str| {
        stream
            .write_all(format!("{command}\r\n").as_bytes())
            .unwrap();
        let first = net::read_line(&mut stream).unwrap();
        assert!(!first.starts_with('-'), "{command}: {first}");
        match first.starts_with('$') {
            true => net::read_line(&mut stream).unwrap(),
            false => first,
        }
    };
    let (began, mut count) = (Instant::now(), 0);
    while began.elapsed() < lasts {
        if began.elapsed() < millis(count) {
            std::thread::sleep(millis(1) / 5); // the pace
            continue;
        }
        match how {
            Rotation::OneCommand(command) => {
                ask(command);
            }
            Rotation::PopAndPush => {
                let element = ask("LPOP servers");
                ask(&format!("RPUSH servers {}", element.trim_end()));
            }
        }
        count += 1;
    }
    count
}

#[test]
fn a_list_that_is_rotated_a_thousand_times_a_second_never_changes() {
    let (redis, servers) = (Redis::start(ports::free_addr()), named(4));
    for server in &servers {
        run(&redis, &format!("RPUSH servers {}", server.addr));
    }
    let running = Discovering::start(&keys(
        redis.addr,
        "on_removed = \"close\"",
        "interval = \"100ms\"\nconfirm = \"0s\"",
    ));
    let all: Vec<SocketAddr> = servers.iter().map(|s| s.addr).collect();
    running.wait_backends(&all);
    let count = |result: &str| {
        let labels = [("upstream", "back"), ("result", result)];
        running.tembuku.metric("discovery_updates_total", &labels)
    };
    let mut sessions: Vec<_> = (0..8)
        .map(|_| net::session(running.front).unwrap().0)
        .collect();
    let load = Load::start(running.front, std::thread::spawn);
    load.take("at first");
    let changed = count("changed");
    for how in [
        Rotation::PopAndPush,
        Rotation::OneCommand("RPOPLPUSH servers servers"),
        Rotation::OneCommand("LMOVE servers servers LEFT RIGHT"),
    ] {
        let unchanged = count("unchanged");
        let before: Vec<usize> = servers.iter().map(Server::accepted).collect();
        let rotations = rotate(redis.addr, how, secs(4));
        let answers = count("unchanged") - unchanged;
        println!("{how:?}: {rotations} rotations in 4 s, {answers} answers");
        assert!(rotations > 2_000, "{rotations}");
        assert!(answers > 4.0, "{answers}");
        assert_eq!(
            (count("changed"), count("error")),
            (changed, 0.0),
            "{how:?}"
        );
        for (server, before) in servers.iter().zip(before) {
            assert!(
                server.accepted() > before,
                "{how:?}: a backend is not picked"
            );
        }
    }
    running.wait_backends(&all);
    let counts = load.take("while the list was rotated");
    assert_eq!((counts.refused, counts.cut), (0, 0));
    for session in &mut sessions {
        net::echo(session, "never on a backend that vanished").unwrap();
    }
    let reasons = running.tembuku.events();
    let of_discovery = reasons.iter().filter(|e| e["reason"] == "discovery");
    assert_eq!(of_discovery.count(), 0);
}

#[test]
fn every_type_of_key_is_read_and_others_are_refused() {
    let (redis, servers) = (Redis::start(ports::free_addr()), named(2));
    let [one, two] = [servers[0].addr, servers[1].addr];
    run(&redis, &format!("SADD servers {one} {two}"));
    let discover = "max_removed = 100\nempty_after = \"300ms\"";
    let running = Discovering::start(&keys(redis.addr, "", discover));
    running.wait_backends(&[one, two]);
    run(&redis, "DEL servers");
    running.wait_backends(&[]);
    run(&redis, &format!("ZADD servers 3 {one} 0 {two}"));
    running.wait_backends(&[one, two]);
    assert_eq!(
        ask_many(running.front, 3),
        ["b1"; 3],
        "weight 0 takes nothing"
    );
    run(&redis, &format!("ZADD servers 0 {one} 1 {two}"));
    wait_until("the other has the weight", secs(10), || {
        ask_many(running.front, 3) == ["b2"; 3]
    });
    run(&redis, "DEL servers");
    running.wait_backends(&[]);
    run(
        &redis,
        &format!("HSET servers {one} 2 {two} \"weight=1 backup\""),
    );
    running.wait_backends(&[one, two]);
    run(&redis, "DEL servers");
    running.wait_backends(&[]);
    run(&redis, &format!("RPUSH servers {one}"));
    running.wait_backends(&[one]);
    run(&redis, "SET servers text");
    running.wait_error("it is of the type \"string\"");
    running.wait_backends(&[one]);
    run(&redis, "DEL servers");
    run(&redis, "RPUSH servers nonsense");
    running.wait_error("\"nonsense\"");
    running.wait_backends(&[one]);
}

#[test]
fn a_server_that_fails_in_any_way_takes_nothing_away() {
    let (addr, servers) = (ports::free_addr(), named(1));
    let running = Discovering::start(&keys(addr, "", "timeout = \"500ms\""));
    assert_eq!(running.tembuku.get("/readyz").status, 503);
    running.wait_error("refused");
    let mut redis = Redis::start(addr);
    run(&redis, &format!("RPUSH servers {}", servers[0].addr));
    running.wait_backends(&[servers[0].addr]);
    assert_eq!(running.tembuku.get("/readyz").status, 200);
    let still_served = || {
        running.wait_backends(&[servers[0].addr]);
        assert_eq!(ask_many(running.front, 1), ["b1"]);
    };
    // It hangs.
    redis.proc.signal(rustix::process::Signal::STOP);
    running.wait_error("no answer within");
    still_served();
    redis.proc.signal(rustix::process::Signal::CONT);
    running.wait_answer();
    redis.proc.kill();
    running.wait_error("refused");
    still_served();
    drop(redis);
    for (reply, error) in [
        (
            &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
            "this is not Redis",
        ),
        (b"+list\r\n:3\r\n*2147483647\r\n", "too long"),
        (b"+list\r\n:300000000\r\n", "it has 300000000 elements"),
        (b"+set\r\n:1\r\n*1\r\n$2147483647\r\n", "too long"),
        (b"-NOAUTH Authentication required.\r\n", "NOAUTH"),
        (
            b"-LOADING Redis is loading the dataset in memory\r\n",
            "LOADING",
        ),
        (b"+set\r\n:1\r\n*1\r\n$2\r\n\xff\xfe\r\n", "not UTF-8"),
        (b"+list\r\n:1\r\n*1\r\n$10\r\n127.0.", "closed"),
    ] {
        let fake = Server::on(&[addr], move |mut stream| {
            let mut received = [0; 512];
            let _ = stream.read(&mut received);
            let _ = stream.write_all(reply);
            // Until it has asked for all of it, and waits for the rest.
            let _ = stream.set_read_timeout(Some(millis(100)));
            for _ in 0..2 {
                let _ = stream.read(&mut received);
            }
        });
        running.wait_error(error);
        drop(fake);
        still_served();
    }
}

#[test]
fn an_account_and_its_password_are_used() {
    let (addr, servers) = (ports::free_addr(), named(1));
    let redis = Redis::start(addr);
    run(&redis, "ACL SETUSER reader on >xyzzy ~servers +@read +type");
    run(&redis, &format!("RPUSH servers {}", servers[0].addr));
    run(&redis, "ACL SETUSER default -@all +ping");
    let discover = "user = \"reader\"\npassword_file = \"{dir}/password\"";
    let running = Discovering::start(&keys(addr, "", discover));
    running.wait_error("password");
    running.tembuku.dir.write("password", "wrong");
    running.wait_error("WRONGPASS");
    running.tembuku.dir.write("password", "xyzzy\n");
    running.wait_backends(&[servers[0].addr]);
    let log = running.tembuku.proc.stderr();
    assert!(!log.contains("xyzzy"), "{log}");
    assert!(!running.tembuku.get("/api/v1/status").body.contains("xyzzy"));
}

#[test]
fn many_changes_a_second_are_few_for_the_process() {
    let (redis, servers) = (Redis::start(ports::free_addr()), named(2));
    run(&redis, &format!("SADD servers {}", servers[0].addr));
    let running = Discovering::start(&keys(redis.addr, "", "interval = \"100ms\""));
    running.wait_backends(&[servers[0].addr]);
    let load = Load::start(running.front, std::thread::spawn);
    load.take("at first");
    let (addr, other) = (redis.addr, servers[1].addr);
    let changing = std::thread::spawn(move || {
        let end = Instant::now() + secs(3);
        while Instant::now() < end {
            for command in ["SADD", "SREM"] {
                call(addr, &format!("{command} servers {other}")).unwrap();
                std::thread::sleep(millis(20)); // 50 changes a second
            }
        }
    });
    changing.join().unwrap();
    let counts = load.take("with changes");
    assert_eq!((counts.refused, counts.cut), (0, 0));
    let labels = [("upstream", "back"), ("result", "changed")];
    let changed = running.tembuku.metric("discovery_updates_total", &labels);
    println!("{changed} changes");
    assert!(changed <= 25.0, "{changed}");
    running.wait_backends(&[servers[0].addr]);
}
