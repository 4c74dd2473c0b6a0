//! Listening sockets of all kinds, and their configuration.

use crate::harness::{
    net::{self, ask},
    ports,
    proc::{self, text},
    secs,
    server::{Server, ask_many, list, named},
    tembuku::{Tembuku, binary},
    temp::TempDir,
    wait_until,
};
use rustix::process::Signal;
use socket2::{Domain, SockAddr, Socket, Type};
use std::{
    io::Write,
    net::{Ipv6Addr, SocketAddr, TcpListener},
    os::unix::{
        fs::FileTypeExt,
        net::{UnixListener, UnixStream},
    },
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

fn config(bind: &str, backends: &str) -> String {
    format!(
        "[listeners.l]\nbind = {bind}\nupstream = \"u\"\n[upstreams.u]\nbackends = {backends}\n"
    )
}

#[test]
fn one_listener_on_several_addresses() {
    let servers = named(1);
    let port = ports::free_port();
    let addrs: Vec<SocketAddr> = ["127.0.0.1", "127.0.0.2", "[::1]"]
        .iter()
        .map(|host| format!("{host}:{port}").parse().unwrap())
        .chain([ports::free_addr()])
        .collect();
    let binds: Vec<String> = addrs.iter().map(|addr| format!("\"{addr}\"")).collect();
    let tembuku = Tembuku::start(&config(&format!("[{}]", binds.join(", ")), &list(&servers)));
    for addr in &addrs {
        assert_eq!(ask(*addr).unwrap(), "b1", "{addr}");
    }
    // Only on those.
    assert!(net::connect(SocketAddr::from(([127, 0, 0, 3], port))).is_err());
    tembuku.wait_metric("listener_connections_total", &[("listener", "l")], |n| {
        n == 4.0
    });
}

#[test]
fn every_address_of_the_machine() {
    let servers = named(1);
    let port = ports::free_port();
    let _tembuku = Tembuku::start(&config(&format!("\"0.0.0.0:{port}\""), &list(&servers)));
    for host in [[127, 0, 0, 1], [127, 9, 9, 9]] {
        assert_eq!(ask(SocketAddr::from((host, port))).unwrap(), "b1");
    }
    let port = ports::free_port();
    // Both families side by side on one port, as nginx has it.
    let both = format!("[\"0.0.0.0:{port}\", \"[::]:{port}\"]");
    let _tembuku = Tembuku::start(&config(&both, &list(&servers)));
    assert_eq!(ask(SocketAddr::from(([127, 0, 0, 1], port))).unwrap(), "b1");
    assert_eq!(
        ask(SocketAddr::from((Ipv6Addr::LOCALHOST, port))).unwrap(),
        "b1"
    );
}

#[test]
fn a_range_of_ports() {
    let servers = named(1);
    let first = ports::free_range(5);
    let last = first + 4;
    let _tembuku = Tembuku::start(&config(
        &format!("\"127.0.0.1:{first}-{last}\""),
        &list(&servers),
    ));
    for port in first..=last {
        assert_eq!(
            ask(SocketAddr::from(([127, 0, 0, 1], port))).unwrap(),
            "b1",
            "{port}"
        );
    }
}

#[test]
fn backends_by_ipv6_and_by_name() {
    let six = Server::named_on("six", &[SocketAddr::from((Ipv6Addr::LOCALHOST, 0))]);
    let port = ports::free_port();
    let both = [
        SocketAddr::from(([127, 0, 0, 1], port)),
        SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
    ];
    let _name = Server::named_on("name", &both);
    let front = ports::free_addr();
    let _tembuku = Tembuku::start(&config(
        &format!("\"{front}\""),
        &format!("[\"{}\", \"localhost:{port}\"]", six.addr),
    ));
    let names = ask_many(front, 12);
    assert!(
        names.iter().any(|name| name == "six") && names.iter().any(|name| name == "name"),
        "{names:?}"
    );
}

fn ask_unix(path: &Path) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(secs(10)))?;
    net::read_line(&mut stream)
}

#[test]
fn a_unix_socket_to_listen_on() {
    let servers = named(1);
    let dir = TempDir::new();
    let path = dir.file("front.sock");
    let config = config(&format!("\"unix:{}\"", path.display()), &list(&servers));

    // What a process left behind that died without cleaning up is replaced.
    drop(UnixListener::bind(&path).unwrap());
    assert!(UnixStream::connect(&path).is_err(), "no process listens");
    let mut tembuku = Tembuku::start(&config);
    assert_eq!(ask_unix(&path).unwrap(), "b1");
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_read_timeout(Some(secs(10))).unwrap();
    assert_eq!(net::read_line(&mut client).unwrap(), "b1");
    let early = vec![b'u'; 1 << 20];
    let mut writer = client.try_clone().unwrap();
    let sent = early.clone();
    let writing = thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let (back, end) = net::read_all(&mut client);
    writing.join().unwrap();
    assert!(
        back == early && end == net::End::Fin,
        "{} bytes, {end:?}",
        back.len()
    );

    // One on which a process listens is not touched.
    let second = refused_start(&config);
    assert!(second.contains("front.sock"), "{second}");
    assert_eq!(ask_unix(&path).unwrap(), "b1");

    assert_eq!(tembuku.terminate().code(), Some(0));
    assert!(
        !path.exists(),
        "the socket file is still there after the end"
    );
}

#[test]
fn a_file_that_is_no_socket_is_not_replaced() {
    let servers = named(1);
    let dir = TempDir::new();
    let path = dir.write("precious", "data");
    let message = refused_start(&config(
        &format!("\"unix:{}\"", path.display()),
        &list(&servers),
    ));
    assert!(message.contains("precious"), "{message}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "data");
    assert!(!std::fs::metadata(&path).unwrap().file_type().is_socket());
}

#[test]
fn a_unix_socket_as_a_backend() {
    let dir = TempDir::new();
    let path = dir.file("back.sock");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            stream.write_all(b"unix\n").unwrap();
            let mut other = stream.try_clone().unwrap();
            let _ = std::io::copy(&mut stream, &mut other);
        }
    });
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&config(
        &format!("\"{front}\""),
        &format!("[\"unix:{}\"]", path.display()),
    ));
    let (mut client, name) = net::session(front).unwrap();
    assert_eq!(name, "unix");
    net::echo(&mut client, "through").unwrap();
    let label = format!("unix:{}", path.display());
    assert_eq!(
        tembuku.metric("backend_connections_total", &[("backend", &label)]),
        1.0
    );
}

#[test]
fn no_file_at_all() {
    let servers = named(3);
    let (front, admin) = (ports::free_addr(), ports::free_addr());
    let (bind, admin_bind) = (front.to_string(), admin.to_string());
    let to: Vec<String> = servers
        .iter()
        .map(|server| server.addr.to_string())
        .collect();
    let mut args = vec!["run", "--listen", &bind, "--admin", &admin_bind];
    for addr in &to {
        args.extend(["--to", addr]);
    }
    let _tembuku = Tembuku::start_with(&args, admin);
    let mut names = ask_many(front, 9);
    names.sort();
    assert_eq!(
        names,
        ["b1", "b1", "b1", "b2", "b2", "b2", "b3", "b3", "b3"]
    );

    let (front, admin) = (ports::free_addr(), ports::free_addr());
    let (bind, admin_bind) = (front.to_string(), admin.to_string());
    let mut args = vec![
        "run",
        "--listen",
        &bind,
        "--admin",
        &admin_bind,
        "--balance",
        "consistent_hash",
    ];
    for addr in &to {
        args.extend(["--to", addr]);
    }
    let tembuku = Tembuku::start_with(&args, admin);
    let names = ask_many(front, 9);
    assert!(
        names.iter().all(|name| *name == names[0]),
        "one client, one backend: {names:?}"
    );
    assert_eq!(tembuku.metric("listener_connections_total", &[]), 9.0);
}

/// Starts with a configuration that cannot be served: the exit code is 1, and stderr has the
/// reason.
#[track_caller]
fn refused_start(config: &str) -> String {
    let dir = TempDir::new();
    let file = dir.write("tembuku.toml", config);
    let mut command = Command::new(binary());
    command.args(["run", "-c", file.to_str().unwrap()]);
    let output = proc::run(Duration::from_secs(15), command);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!message.contains("panicked"), "{message}");
    message
}

#[test]
fn a_port_in_use_is_an_error() {
    let servers = named(1);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let message = refused_start(&config(&format!("\"{addr}\""), &list(&servers)));
    assert!(
        message.contains(&addr) && message.to_lowercase().contains("in use"),
        "{message}"
    );

    // Workers share a port among themselves, but never with another process.
    let front = ports::free_addr();
    let config = config(&format!("\"{front}\""), &list(&servers));
    let _first = Tembuku::start(&config);
    let message = refused_start(&config);
    assert!(
        message.contains(&front.to_string()) && message.to_lowercase().contains("in use"),
        "{message}"
    );
    assert_eq!(ask_many(front, 20), vec!["b1"; 20]);
}

#[test]
fn an_admin_port_in_use_is_an_error() {
    let servers = named(1);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let front = ports::free_addr();
    let base = config(&format!("\"{front}\""), &list(&servers));
    let message = refused_start(&format!("{base}[admin]\nlisten = \"{addr}\"\n"));
    assert!(message.contains(&addr.to_string()), "{message}");
}

#[test]
fn an_address_of_another_machine_is_an_error() {
    let servers = named(1);
    let bind = format!("192.0.2.1:{}", ports::free_port());
    let message = refused_start(&config(&format!("\"{bind}\""), &list(&servers)));
    assert!(message.contains(&bind), "{message}");
}

/// The one that ends takes away its own socket file, not that of the one that came after it.
#[test]
fn the_successor_keeps_its_unix_socket() {
    let servers = named(1);
    let dir = TempDir::new();
    let path = dir.file("front.sock");
    let config = format!(
        "[process]\ndrain_timeout = \"1m\"\n{}",
        config(&format!("\"unix:{}\"", path.display()), &list(&servers))
    );
    let mut first = Tembuku::start(&config);
    let mut session = UnixStream::connect(&path).unwrap();
    session.set_read_timeout(Some(secs(10))).unwrap();
    assert_eq!(net::read_line(&mut session).unwrap(), "b1");
    first.proc.signal(Signal::TERM);
    wait_until("the first does not accept any more", secs(5), || {
        UnixStream::connect(&path).is_err()
    });
    let second = Tembuku::start(&config);
    assert_eq!(ask_unix(&path).unwrap(), "b1");
    assert!(first.proc.ended().is_none(), "it has a session");
    drop(session);
    let status = first.proc.wait(secs(10)).expect("an end with the session");
    assert_eq!(status.code(), Some(0));
    assert_eq!(ask_unix(&path).unwrap(), "b1");
    assert_eq!(second.metric("listener_connections_total", &[]), 2.0);
}

/// A process that listens but does not accept in time still holds its socket.
#[test]
fn a_unix_socket_whose_queue_is_full_is_in_use() {
    let servers = named(1);
    let dir = TempDir::new();
    let path = dir.file("busy.sock");
    let address = SockAddr::unix(&path).unwrap();
    let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    listener.bind(&address).unwrap();
    listener.listen(0).unwrap();
    let mut queued = Vec::new();
    loop {
        let client = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        client.set_nonblocking(true).unwrap();
        if client.connect(&address).is_err() {
            break;
        }
        queued.push(client);
        assert!(queued.len() < 8, "the queue never fills");
    }
    let start = Instant::now();
    let message = refused_start(&config(
        &format!("\"unix:{}\"", path.display()),
        &list(&servers),
    ));
    assert!(start.elapsed() < secs(5), "{:?}", start.elapsed());
    assert!(
        message.contains("busy.sock") && message.to_lowercase().contains("in use"),
        "{message}"
    );
    assert!(path.exists(), "it was taken away");
}

#[test]
fn a_start_that_fails_leaves_no_socket_file() {
    let servers = named(1);
    let dir = TempDir::new();
    let (path, nowhere) = (dir.file("front.sock"), dir.file("no/such/folder"));
    let (path, nowhere) = (path.display(), nowhere.display());
    let backends = list(&servers);
    // A socket that cannot be had after one that could, and a log that cannot be opened.
    for config in [
        config(
            &format!("[\"unix:{path}\", \"unix:{nowhere}/s\"]"),
            &backends,
        ),
        format!(
            "[log]\naccess = \"{nowhere}/log\"\n{}",
            config(&format!("\"unix:{path}\""), &backends)
        ),
    ] {
        let message = refused_start(&config);
        assert!(message.contains("no/such/folder"), "{message}");
        assert!(!dir.file("front.sock").exists(), "{config}\n{message}");
    }
}
