//! Listeners that share an upstream, each with a PROXY header and an access log of its own.

use crate::harness::{
    net::{assert_closed_at_once, connect, echo, read_line},
    poll, ports, secs,
    server::Server,
    tembuku::Tembuku,
    udp::{client, receive},
    wait_until,
};
use rustix::process::Signal;
use std::{
    fs,
    io::Write,
    net::{SocketAddr, TcpStream, UdpSocket},
    path::Path,
    thread,
};

/// Answers with the first line that comes, be it a header or a client's, and then echoes.
fn first_line_server() -> Server {
    Server::start(|mut stream| {
        let Ok(line) = read_line(&mut stream) else {
            return;
        };
        if writeln!(stream, "{line}").is_ok() {
            let mut other = stream.try_clone().unwrap();
            let _ = std::io::copy(&mut stream, &mut other);
        }
    })
}

/// Listeners `plain` and `named`, with these keys, and an upstream `u` with those.
fn start(
    fronts: [SocketAddr; 2],
    plain: &str,
    named: &str,
    upstream: &str,
    backend: &str,
) -> Tembuku {
    Tembuku::start(&config(fronts, plain, named, upstream, backend))
}

fn config(
    fronts: [SocketAddr; 2],
    plain: &str,
    named: &str,
    upstream: &str,
    backend: &str,
) -> String {
    format!(
        "[log]\nformat = \"json\"\naccess = \"{{dir}}/access.log\"\n\
         [admin]\nsocket = \"{{dir}}/admin.sock\"\n\
         [listeners.plain]\nbind = \"{}\"\nupstream = \"u\"\n{plain}\n\
         [listeners.named]\nbind = \"{}\"\nupstream = \"u\"\n{named}\n\
         [upstreams.u]\n{upstream}\nbackends = [{backend}]\n",
        fronts[0], fronts[1]
    )
}

/// Sends a line and reads the first one back.
fn ask_line(front: SocketAddr) -> (TcpStream, String) {
    let mut stream = connect(front).unwrap();
    stream.write_all(b"from the client\n").unwrap();
    let line = read_line(&mut stream).unwrap();
    (stream, line)
}

#[test]
fn a_listener_with_a_header_and_one_without_share_the_places_of_a_backend() {
    let server = first_line_server();
    let fronts = [ports::free_addr(), ports::free_addr()];
    let backend = format!("{{ address = \"{}\", max_connections = 2 }}", server.addr);
    let tembuku = start(fronts, "", "send_proxy = \"v1\"", "", &backend);
    let (mut plain, line) = ask_line(fronts[0]);
    assert_eq!(line, "from the client");
    let (mut named, line) = ask_line(fronts[1]);
    let from = named.local_addr().unwrap();
    let expected = format!(
        "PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r",
        from.port(),
        fronts[1].port()
    );
    assert_eq!(line, expected);
    assert_eq!(read_line(&mut named).unwrap(), "from the client");
    for front in fronts {
        assert_closed_at_once(front);
    }
    for stream in [&mut plain, &mut named] {
        echo(stream, "on one backend").unwrap();
    }
    assert_eq!(tembuku.metric("backend_active_connections", &[]), 2.0);
}

#[test]
fn the_upstream_decides_where_the_listener_does_not() {
    let server = first_line_server();
    let fronts = [ports::free_addr(), ports::free_addr()];
    let backend = format!("\"{}\"", server.addr);
    let upstream = "send_proxy = \"v1\"";
    let keys = ["send_proxy = \"off\"", "send_proxy = \"inherit\""];
    let tembuku = start(fronts, keys[0], keys[1], upstream, &backend);
    let has_header = |front| ask_line(front).1.starts_with("PROXY TCP4 ");
    assert_eq!(fronts.map(has_header), [false, true]);
    tembuku.reload(&config(fronts, keys[1], keys[0], upstream, &backend));
    assert_eq!(fronts.map(has_header), [true, false]);
    // Without a word of its own, as before there was the key.
    tembuku.reload(&config(fronts, "", "", upstream, &backend));
    assert_eq!(fronts.map(has_header), [true, true]);
}

#[test]
fn flows_of_one_listener_alone_begin_with_a_header() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = server.local_addr().unwrap();
    thread::spawn(move || {
        let mut datagram = [0; 2048];
        while let Ok((n, peer)) = server.recv_from(&mut datagram) {
            let _ = server.send_to(&datagram[..n], peer);
        }
    });
    let fronts = [ports::free_addr(), ports::free_addr()];
    let [plain, named] =
        ["", "\nsend_proxy = \"v2\""].map(|own| format!("protocol = \"udp\"{own}"));
    let backend = format!("\"{addr}\"");
    // The key of the upstream is in effect for the listener's header.
    let upstream = "send_proxy_on = \"each\"";
    let _tembuku = start(fronts, &plain, &named, upstream, &backend);
    let (plain, named) = (client(fronts[0]), client(fronts[1]));
    plain.send(b"bare").unwrap();
    assert_eq!(receive(&plain), b"bare");
    for _ in 0..2 {
        named.send(b"after the header").unwrap();
        let received = receive(&named);
        assert!(
            received.starts_with(b"\r\n\r\n\0\r\nQUIT\n"),
            "{received:?}"
        );
        assert!(received.ends_with(b"after the header"), "{received:?}");
    }
}

fn records(path: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let parse = |line| serde_json::from_str(line).unwrap();
    text.lines().map(parse).collect()
}

/// The records of the file, once there are so many.
#[track_caller]
fn wait_records(path: &Path, count: usize) -> Vec<serde_json::Value> {
    let found = poll(secs(10), || {
        let text = fs::read_to_string(path).unwrap_or_default();
        let is_complete = text.ends_with('\n') && text.lines().count() >= count;
        is_complete.then(|| records(path))
    });
    found.unwrap_or_else(|| panic!("not {count} records in {}", path.display()))
}

#[test]
fn each_listener_is_recorded_where_it_says() {
    let server = first_line_server();
    let fronts = [ports::free_addr(), ports::free_addr()];
    let backend = format!("\"{}\"", server.addr);
    let own = "access_log = \"{dir}/own.log\"";
    let tembuku = start(fronts, "", own, "", &backend);
    let [common, own_log] = ["access.log", "own.log"].map(|name| tembuku.dir.file(name));
    drop(fronts.map(ask_line));
    assert_eq!(wait_records(&common, 1)[0]["listener"], "plain");
    assert_eq!(wait_records(&own_log, 1)[0]["listener"], "named");
    // A rotation concerns both.
    let moved = tembuku.dir.file("moved.log");
    fs::rename(&own_log, &moved).unwrap();
    tembuku.proc.signal(Signal::USR1);
    wait_until("the file is there again", secs(10), || own_log.exists());
    let (open, _) = ask_line(fronts[1]);
    drop(ask_line(fronts[1]));
    wait_records(&own_log, 1);
    // New sessions follow a reload, the others stay where they began.
    let off = "access_log = \"off\"";
    tembuku.reload(&config(
        fronts,
        off,
        "access_log = \"inherit\"",
        "",
        &backend,
    ));
    drop(ask_line(fronts[0]));
    drop(ask_line(fronts[1]));
    assert_eq!(wait_records(&common, 2)[1]["listener"], "named");
    drop(open);
    wait_records(&own_log, 2);
    tembuku.wait_idle();
    let counts = [&common, &own_log, &moved].map(|path| records(path).len());
    assert_eq!(counts, [2, 2, 1]);
}

#[test]
fn a_log_of_a_listener_that_cannot_be_opened_refuses_the_reload() {
    let server = first_line_server();
    let fronts = [ports::free_addr(), ports::free_addr()];
    let backend = format!("\"{}\"", server.addr);
    let tembuku = start(fronts, "", "", "", &backend);
    let bad = "access_log = \"/dev/null/own.log\"";
    let output = tembuku.try_reload(&config(fronts, "", bad, "", &backend));
    let shown = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{shown}");
    assert!(shown.contains("/dev/null/own.log"), "{shown}");
    drop(ask_line(fronts[1]));
    let record = tembuku.access_log(1).remove(0);
    assert_eq!(record["listener"], "named", "{record}");
}

/// It is what the backend sees as its client, so that the two logs can be joined.
#[test]
fn a_record_names_our_port_towards_the_backend() {
    let server = Server::start(|mut stream| {
        let peer = stream.peer_addr().unwrap();
        let _ = writeln!(stream, "{}", peer.port());
    });
    let fronts = [ports::free_addr(), ports::free_addr()];
    let tembuku = start(fronts, "", "", "", &format!("\"{}\"", server.addr));
    let port: u16 = read_line(&mut connect(fronts[0]).unwrap())
        .unwrap()
        .parse()
        .unwrap();
    let record = tembuku.access_log(1).remove(0);
    assert_eq!(record["backend_port"], port, "{record}");
}
