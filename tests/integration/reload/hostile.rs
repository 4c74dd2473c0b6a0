//! Reloads that go wrong, or ask for much: files that are none, many at once, limits that are
//! exceeded already, addresses that change hands. Sessions that are there go on in all cases.

use super::{setup, wait_refused};
use crate::harness::{
    http,
    net::{self, echo},
    ports,
    proc::text,
    secs,
    server::{Server, list, named},
    tembuku::{Tembuku, cli},
    udp::{self, UdpServer},
    wait_until,
};
use rustix::process::Signal;
use std::{
    fs,
    io::Read,
    net::{SocketAddr, TcpStream, UdpSocket},
    os::unix::net::UnixStream,
    path::Path,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    thread,
    time::Instant,
};

fn ask_unix(path: &Path) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(secs(10)))?;
    net::read_line(&mut stream)
}

#[test]
fn what_is_no_configuration_changes_nothing() {
    let setup = setup();
    let (mut client, _) = net::session(setup.front).unwrap();
    let good = setup.config();
    let hash = || setup.status()["process"]["config_hash"].clone();
    let before = hash();
    let file = setup.file();
    let binary: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let huge = format!("{good}{}", "# nothing\n".repeat(4_000_000));
    let long = format!("{good}# {}\n", "x".repeat(8_000_000));
    let deep = format!("{good}[a{}]\n", ".a".repeat(100_000));
    let cases: [(&str, &[u8]); 6] = [
        ("empty", b""),
        ("zeros", &[0; 4_096]),
        ("binary", &binary),
        ("huge", huge.as_bytes()),
        ("cut off", &good.as_bytes()[..good.len() / 2]),
        ("deep", deep.as_bytes()),
    ];
    for (what, bytes) in cases {
        fs::write(&file, bytes).unwrap();
        let output = setup.try_reload(&[]);
        // The whole of a file that is only long may be valid.
        if output.status.code() == Some(0) {
            assert_eq!(what, "huge", "{}", text(&output));
        } else {
            let shown = text(&output);
            assert!(shown.contains("error: "), "{what}: {shown}");
            assert!(shown.contains("nothing was changed"), "{what}: {shown}");
            assert!(shown.len() < 100_000, "{what}: {} bytes", shown.len());
        }
        assert_eq!(hash(), before, "{what}");
        echo(&mut client, what).unwrap();
    }
    fs::write(&file, &long).unwrap();
    let _ = setup.try_reload(&[]);
    assert_eq!(hash(), before, "a long comment is no change");
    fs::remove_file(&file).unwrap();
    assert!(setup.fail_to_reload().contains("No such file"));
    fs::create_dir(&file).unwrap();
    let shown = setup.fail_to_reload();
    assert!(shown.contains("directory"), "{shown}");
    fs::remove_dir(&file).unwrap();
    std::os::unix::fs::symlink(&file, &file).unwrap();
    let shown = setup.fail_to_reload();
    assert!(shown.contains("symbolic links"), "{shown}");
    fs::remove_file(&file).unwrap();
    assert_eq!(hash(), before);
    echo(&mut client, "last").unwrap();
    setup.write(&good);
    assert!(setup.reload().contains("no changes"));
}

/// Commands, dry runs and signals, while the file changes under them.
#[test]
fn reloads_from_all_sides_at_once_end_in_the_last_file() {
    let setup = setup();
    let (mut client, _) = net::session(setup.front).unwrap();
    let good = setup.config();
    let other = good.replace("workers = 2", "workers = 2\ndrain_timeout = \"9s\"");
    let invalid = good.replace("workers = 2", "workers = \"two\"");
    let added = ports::free_addr();
    let more = format!("{good}[listeners.more]\nbind = \"{added}\"\nupstream = \"back\"\n");
    let files = [good.as_str(), &other, &invalid, &more];
    let is_over = AtomicBool::new(false);
    let (done, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for flags in [&[][..], &[], &["--dry-run"], &["--json"]] {
            let (setup, is_over, done, failed) = (&setup, &is_over, &done, &failed);
            scope.spawn(move || {
                while !is_over.load(SeqCst) {
                    let output = setup.try_reload(flags);
                    match output.status.code() {
                        Some(0) => done.fetch_add(1, SeqCst),
                        Some(1) => failed.fetch_add(1, SeqCst),
                        other => panic!("{other:?}: {}", text(&output)),
                    };
                }
            });
        }
        scope.spawn(|| {
            while !is_over.load(SeqCst) {
                setup.tembuku.proc.signal(Signal::HUP);
                thread::yield_now();
                let _ = http::get(setup.tembuku.admin, "/livez");
            }
        });
        let began = Instant::now();
        // On until some have read the file that is wrong, and some another.
        let has_both = || done.load(SeqCst) > 0 && failed.load(SeqCst) > 0;
        for n in (0..).take_while(|n| *n < 60 || !has_both() && began.elapsed() < secs(20)) {
            let next = setup.tembuku.dir.file("next.toml");
            fs::write(&next, files[n % files.len()]).unwrap();
            fs::rename(&next, setup.file()).unwrap();
            echo(&mut client, &format!("line {n}")).unwrap();
            assert!(net::ask(setup.front).is_ok(), "new sessions are served");
        }
        is_over.store(true, SeqCst);
    });
    assert!(done.load(SeqCst) > 0 && failed.load(SeqCst) > 0);
    setup.write(&more);
    let report: serde_json::Value =
        serde_json::from_slice(&setup.try_reload(&["--json"]).stdout).unwrap();
    assert_eq!(
        setup.status()["process"]["config_hash"],
        report["hash"]["after"]
    );
    assert!(net::ask(added).is_ok());
    setup.write(&good);
    setup.reload();
    wait_refused(added);
    echo(&mut client, "last").unwrap();
}

#[test]
fn limits_below_what_is_in_use_refuse_new_sessions_alone() {
    let servers = named(2);
    let front = ports::free_addr();
    let config = |process: u32, listener: u32, backend: u32| {
        let backends = servers.iter().map(|server| {
            let addr = server.addr;
            format!("{{ address = \"{addr}\", max_connections = {backend} }}")
        });
        format!(
            "[process]\nworkers = 2\nmax_connections = {process}\n\
             [admin]\nsocket = \"{{dir}}/admin.sock\"\n\
             [listeners.front]\nbind = \"{front}\"\nupstream = \"back\"\n\
             max_connections = {listener}\nmax_connections_per_source = {listener}\n\
             [upstreams.back]\nbackends = [{}]\n",
            backends.collect::<Vec<_>>().join(", ")
        )
    };
    let tembuku = Tembuku::start(&config(0, 0, 0));
    let mut clients: Vec<TcpStream> = (0..20).map(|_| net::session(front).unwrap().0).collect();
    for limits in [(0, 5, 0), (3, 0, 0), (0, 0, 1), (3, 5, 1)] {
        tembuku.reload(&config(limits.0, limits.1, limits.2));
        assert!(net::session(front).is_err(), "{limits:?}");
        for (n, client) in clients.iter_mut().enumerate() {
            echo(client, &format!("{n}")).unwrap();
        }
        assert_eq!(tembuku.metric("listener_active_connections", &[]), 20.0);
        tembuku.reload(&config(0, 0, 0));
        assert!(net::ask(front).is_ok(), "{limits:?}");
        tembuku.wait_metric("listener_active_connections", &[], |n| n == 20.0);
    }
    tembuku.reload(&config(3, 5, 2));
    clients.drain(..18).for_each(drop);
    tembuku.wait_metric("listener_active_connections", &[], |n| n == 2.0);
    assert!(net::ask(front).is_ok(), "there is room again");
    drop(clients);
    tembuku.wait_idle();
}

#[test]
fn every_policy_becomes_every_other_one_under_load() {
    let setup = setup();
    let backends = list(&setup.servers);
    let base = setup.config();
    let (base, _) = base.split_once("[upstreams.back]").unwrap();
    let policies = [
        "\"round_robin\"",
        "\"least_conn\"",
        "\"random_two\"",
        "\"least_time\"",
        "\"hash\"",
        "\"ip_hash\"",
        "\"consistent_hash\"\nhash_balance_factor = 125",
        "\"maglev\"\nhash_key = \"$remote_addr$remote_port\"",
        "\"first\"",
    ];
    let (mut client, _) = net::session(setup.front).unwrap();
    let is_over = AtomicBool::new(false);
    let served = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !is_over.load(SeqCst) {
                    net::ask(setup.front).expect("it is served");
                    served.fetch_add(1, SeqCst);
                }
            });
        }
        for from in policies {
            for to in policies {
                for balance in [from, to] {
                    let upstream = format!("balance = {balance}\nbackends = {backends}");
                    setup.write(&format!("{base}[upstreams.back]\n{upstream}\n"));
                    setup.reload();
                }
                echo(&mut client, to.lines().next().unwrap()).unwrap();
            }
        }
        is_over.store(true, SeqCst);
    });
    assert!(served.load(SeqCst) > 0);
}

#[test]
fn an_address_changes_its_protocol_with_its_listener() {
    let servers = named(1);
    let udp_servers = udp::named(1);
    let front = ports::free_addr();
    let config = |name: &str, protocol: &str, to: SocketAddr| {
        format!(
            "[process]\nworkers = 2\n[admin]\nsocket = \"{{dir}}/admin.sock\"\n\
             [listeners.{name}]\nbind = \"{front}\"\nprotocol = \"{protocol}\"\nupstream = \"u\"\n\
             [upstreams.u]\nbackends = [\"{to}\"]\n"
        )
    };
    let tcp = config("stream", "tcp", servers[0].addr);
    let datagram = config("datagram", "udp", udp_servers[0].addr);
    let tembuku = Tembuku::start(&tcp);
    for round in 0..5 {
        let (mut client, _) = net::session(front).unwrap();
        tembuku.reload(&datagram);
        let flow = udp::client(front);
        assert_eq!(udp::ask(&flow, "x"), "b1 x", "{round}");
        wait_refused(front);
        echo(&mut client, "still").unwrap();
        tembuku.reload(&tcp);
        assert_eq!(net::ask(front).unwrap(), "b1", "{round}");
        // The flow goes on where it is.
        assert_eq!(udp::ask(&flow, "y"), "b1 y", "{round}");
        echo(&mut client, "again").unwrap();
    }
}

#[test]
fn unix_sockets_move_and_are_exchanged() {
    let servers = named(2);
    let admin = ports::free_addr();
    let tembuku =
        Tembuku::start_in_folder(|dir| unix_config(dir.path(), admin, ["a", "b"], &servers));
    let at = |name: &str| tembuku.dir.file(name);
    let mut client = UnixStream::connect(at("a")).unwrap();
    client.set_read_timeout(Some(secs(10))).unwrap();
    assert_eq!(net::read_line(&mut client).unwrap(), "b1");
    let set = |one: &str, two: &str| {
        let config = unix_config(tembuku.dir.path(), admin, [one, two], &servers);
        fs::write(at("tembuku.toml"), config).unwrap();
        let reloaded = cli(&["reload", "--socket", at("admin.sock").to_str().unwrap()]);
        assert_eq!(reloaded.status.code(), Some(0), "{}", text(&reloaded));
    };
    for _ in 0..5 {
        set("b", "a");
        assert_eq!(ask_unix(&at("b")).unwrap(), "b1");
        assert_eq!(ask_unix(&at("a")).unwrap(), "b2");
        set("c", "a");
        assert_eq!(ask_unix(&at("c")).unwrap(), "b1");
        assert!(!at("b").exists());
        set("a", "b");
        assert_eq!(ask_unix(&at("a")).unwrap(), "b1");
        assert!(!at("c").exists());
    }
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
}

fn unix_config(dir: &Path, admin: SocketAddr, paths: [&str; 2], servers: &[Server]) -> String {
    let (dir, [one, two]) = (dir.display(), paths);
    let [first, second] = [servers[0].addr, servers[1].addr];
    format!(
        "[process]\nworkers = 2\n[admin]\nlisten = \"{admin}\"\nsocket = \"{dir}/admin.sock\"\n\
         [listeners.one]\nbind = \"unix:{dir}/{one}\"\nupstream = \"one\"\n\
         [listeners.two]\nbind = \"unix:{dir}/{two}\"\nupstream = \"two\"\n\
         [upstreams.one]\nbackends = [\"{first}\"]\n[upstreams.two]\nbackends = [\"{second}\"]\n"
    )
}

/// Late replies included.
#[test]
fn flows_go_along_with_an_address_whose_listener_is_renamed() {
    let servers = udp::named(2);
    let (front, tembuku) = udp::serve("", "", &servers);
    let clients: Vec<UdpSocket> = (0..8).map(|_| udp::client(front)).collect();
    let name = |answer: String| answer.split(' ').next().unwrap().to_owned();
    let own: Vec<String> = clients.iter().map(|c| name(udp::ask(c, "one"))).collect();
    for listener in ["other", "l"] {
        servers.iter().for_each(UdpServer::hold);
        clients
            .iter()
            .for_each(|c| assert_eq!(c.send(b"late").unwrap(), 4));
        servers[0].wait_held(own.iter().filter(|of| *of == "b1").count());
        servers[1].wait_held(own.iter().filter(|of| *of == "b2").count());
        let config = udp::config(front, "", "", &udp::addrs(&servers));
        tembuku.reload(&config.replace("[listeners.l]", &format!("[listeners.{listener}]")));
        servers.iter().for_each(UdpServer::release);
        for (client, own) in clients.iter().zip(&own) {
            assert_eq!(
                udp::receive_text(client),
                format!("{own} late"),
                "{listener}"
            );
            assert_eq!(
                udp::ask(client, "next"),
                format!("{own} next"),
                "{listener}"
            );
        }
        let flows: f64 = ["l", "other"]
            .iter()
            .map(|l| {
                tembuku
                    .metrics()
                    .sum("listener_connections_total", &[("listener", l)])
            })
            .sum();
        assert_eq!(flows, 8.0, "none has begun anew");
    }
}

#[test]
fn an_address_with_flows_stays_with_a_listener_that_stays() {
    let servers = udp::named(1);
    let ports = [(); 3].map(|()| ports::free_addr());
    let config = |a: &[SocketAddr], b: &[SocketAddr]| {
        let listener = |name: &str, binds: &[SocketAddr]| {
            let binds = udp::list(binds);
            format!(
                "[listeners.{name}]\nbind = {binds}\nprotocol = \"udp\"\nupstream = \"u\"\n\
                 idle_timeout = \"2s\"\n"
            )
        };
        format!(
            "[process]\nworkers = 2\n[admin]\nsocket = \"{{dir}}/admin.sock\"\n{}{}\
             [upstreams.u]\nbackends = [\"{}\"]\n",
            listener("a", a),
            listener("b", b),
            servers[0].addr
        )
    };
    let [first, moves, third] = ports;
    let tembuku = Tembuku::start(&config(&[first, moves], &[third]));
    let client = udp::client(moves);
    assert_eq!(udp::ask(&client, "one"), "b1 one");
    let refused = |a: &[SocketAddr], b: &[SocketAddr]| {
        let output = tembuku.try_reload(&config(a, b));
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        let shown = text(&output);
        assert!(shown.contains("the UDP listener a has it"), "{shown}");
        assert_eq!(udp::ask(&client, "still"), "b1 still");
    };
    refused(&[first], &[third, moves]);
    tembuku.reload(&config(&[first], &[third]));
    assert_eq!(udp::ask(&client, "removed"), "b1 removed");
    refused(&[first], &[third, moves]);
    wait_until("its flow has ended", secs(20), || {
        let output = tembuku.try_reload(&config(&[first], &[third, moves]));
        output.status.code() == Some(0)
    });
    assert_eq!(udp::ask(&udp::client(moves), "two"), "b1 two");
}
