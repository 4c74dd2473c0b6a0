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
    time::Instant,
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

/// Pops and pushes as fast as it can, or as often as given in each second.
fn rotate(addr: SocketAddr) -> u64 {
    let mut stream = net::connect(addr).unwrap();
    let end = Instant::now() + secs(4);
    let mut count = 0;
    while Instant::now() < end {
        stream.write_all(b"LPOP servers\r\n").unwrap();
        net::read_line(&mut stream).unwrap();
        let element = net::read_line(&mut stream).unwrap();
        stream
            .write_all(format!("RPUSH servers {}\r\n", element.trim_end()).as_bytes())
            .unwrap();
        net::read_line(&mut stream).unwrap();
        count += 1;
        std::thread::sleep(millis(1) / 2); // the pace
    }
    count
}

#[test]
fn a_list_that_is_rotated_never_changes() {
    let (redis, servers) = (Redis::start(ports::free_addr()), named(4));
    for server in &servers {
        run(&redis, &format!("RPUSH servers {}", server.addr));
    }
    let running = Discovering::start(&keys(
        redis.addr,
        "",
        "interval = \"100ms\"\nconfirm = \"0s\"",
    ));
    let all: Vec<SocketAddr> = servers.iter().map(|s| s.addr).collect();
    running.wait_backends(&all);
    let count = |result: &str| {
        let labels = [("upstream", "back"), ("result", result)];
        running.tembuku.metric("discovery_updates_total", &labels)
    };
    let before = count("changed");
    let rotations = rotate(redis.addr);
    let unchanged = count("unchanged");
    println!("{rotations} rotations in 4 s, {unchanged} answers");
    assert!(rotations > 1_000, "{rotations}");
    assert!(unchanged > 4.0, "{unchanged}");
    assert_eq!(count("changed"), before);
    assert_eq!(count("error"), 0.0);
    running.wait_backends(&all);
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
