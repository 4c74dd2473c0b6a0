//! Answers that are odd, and servers that mean no good.

use crate::{
    discover::Discovering,
    harness::{
        certs::Authority,
        http,
        net::{self, ask},
        ports,
        programs::{Nginx, Redis, call},
        secs,
        server::{Server, ask_many, named},
        temp::TempDir,
        wait_until,
    },
};
use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixListener,
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::Instant,
};

fn write(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}

fn of_file(path: &Path) -> String {
    format!(
        "[upstreams.back.discover]\nkind = \"file\"\npath = \"{}\"\nmax_removed = 100\n",
        path.display()
    )
}

#[test]
fn addresses_of_every_form_are_backends() {
    let (dir, four) = (TempDir::new(), Server::named("four"));
    let port = ports::free_port();
    let _six = Server::named_on("six", &[SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], port))]);
    let local = Server::named("local");
    let socket = dir.file("back.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut stream = stream;
                let _ = stream.write_all(b"unix\n");
                let _ = stream.read(&mut [0; 64]);
            });
        }
    });
    let path = dir.file("backends");
    // Written in several ways, twice, and with two weights.
    write(
        &path,
        &format!(
            "{four} weight=3\n{four}\n[::1]:{port}\n[0:0:0:0:0:0:0:1]:{port} weight=2\n\
             LOCALHOST:{}\nlocalhost:{}\nunix:{}\nnowhere.invalid:80\n",
            local.addr.port(),
            local.addr.port(),
            socket.display(),
            four = four.addr,
        ),
    );
    let running = Discovering::start(&of_file(&path));
    wait_until("five backends", secs(20), || running.backends().len() == 5);
    let names: BTreeSet<String> = ask_many(running.front, 40).into_iter().collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assert_eq!(names, ["four", "local", "six", "unix"]);
    let upstream = running.upstream();
    let backends = upstream["backends"].as_array().unwrap().iter();
    let weights: Vec<(String, u64)> = backends
        .map(|b| {
            let address = b["address"].as_str().unwrap().to_owned();
            (address, b["weight"].as_u64().unwrap())
        })
        .collect();
    let weight = |address: &str| weights.iter().find(|(a, _)| a == address).unwrap().1;
    assert_eq!(weight(&four.addr.to_string()), 3);
    assert_eq!(weight(&format!("[::1]:{port}")), 2);
}

#[test]
fn one_wrong_entry_makes_the_answer_wrong() {
    let (dir, servers) = (TempDir::new(), named(2));
    let path = dir.file("backends");
    let both = format!("{}\n{}\n", servers[0].addr, servers[1].addr);
    write(&path, &both);
    let running = Discovering::start(&of_file(&path));
    let addrs: Vec<SocketAddr> = servers.iter().map(|s| s.addr).collect();
    running.wait_backends(&addrs);
    for (line, error) in [
        ("10.0.0.1", "has no port"),
        ("10.0.0.1:0", "port 0"),
        ("10.0.0.1:65536", "line 3"),
        ("10.0.0.1:80-90", "line 3"),
        ("http://10.0.0.1:80", "line 3"),
        ("10.0.0.1:80 weight=70000", "a weight is"),
        ("[::1:80", "line 3"),
        ("unix:", "line 3"),
        ("unix:relative", "line 3"),
        ("10.0.0.3:80 weight", "is not known"),
        ("\u{1b}[31mred:80", "line 3"),
    ] {
        write(&path, &format!("{both}{line}\n"));
        running.wait_error(error);
        let shown = running.upstream()["discovery"]["error"].to_string();
        assert!(!shown.contains("u001b"), "{shown}");
        running.wait_backends(&addrs);
        write(&path, &both);
        running.wait_answer();
    }
}

/// Answers each request with these bytes, whatever they are.
fn raw() -> (Server, Arc<Mutex<Vec<u8>>>) {
    let bytes = Arc::<Mutex<Vec<u8>>>::default();
    let server = Server::start({
        let bytes = Arc::clone(&bytes);
        move |mut stream: TcpStream| {
            let _ = stream.read(&mut [0; 4096]);
            let bytes = bytes.lock().unwrap().clone();
            let _ = stream.write_all(&bytes);
        }
    });
    (server, bytes)
}

#[test]
fn encodings_of_http() {
    let (servers, (web, answer)) = (named(2), raw());
    let set = |bytes: &[u8]| *answer.lock().unwrap() = bytes.to_vec();
    let list = format!("[\"{}\"]", servers[0].addr);
    let length = list.len();
    let plain = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{list}");
    set(plain.as_bytes());
    let running = Discovering::start(&format!(
        "[upstreams.back.discover]\nkind = \"http\"\nurl = \"http://{}/\"\ninterval = \"100ms\"\n\
         timeout = \"1s\"\nmax_removed = 100\n",
        web.addr
    ));
    running.wait_backends(&[servers[0].addr]);
    // In pieces, with fields after the last.
    let other = format!("[\"{}\"]", servers[1].addr);
    let (first, second) = other.split_at(7);
    set(format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n{:x};a=b\r\n\
             {first}\r\n\
         {:x}\r\n{second}\r\n0\r\nX-Sum: 7\r\n\r\n",
        first.len(),
        second.len()
    )
    .as_bytes());
    running.wait_backends(&[servers[1].addr]);
    for (bytes, error) in [
        (
            &b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b"[..],
            "encoded as \"gzip\"",
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 104857600\r\n\r\n[",
            "HTTP: ",
        ),
        (b"HTTP/1.1 200 OK\r\n\r\n[\"127.0.0.1:1\"", "EOF"),
        (
            b"HTTP/1.1 301 Moved\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
            "redirects are not followed",
        ),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "HTTP: "),
        (
            b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n",
            "status 401",
        ),
        (b"HTTP/1.1 204 No\r\n\r\n", "status 204"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnull",
            "no list of backends",
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n[]",
            "HTTP: ",
        ),
    ] {
        set(bytes);
        running.wait_error(error);
        running.wait_backends(&[servers[1].addr]);
    }
    // 100 MB, of which no more is read than 16 MiB.
    let memory = || {
        let file = format!("/proc/{}/status", running.tembuku.proc.id());
        let status = fs::read_to_string(file).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kib = line.unwrap().split_whitespace().nth(1).unwrap();
        kib.parse::<u64>().unwrap()
    };
    let before = memory();
    let blanks = vec![b' '; 100_000_000];
    set(&[&b"HTTP/1.1 200 OK\r\n\r\n["[..], &blanks].concat());
    running.wait_error("the answer is longer than 16 MiB");
    let after = memory();
    println!("{before} KiB before, {after} KiB after an answer of 100 MB");
    assert!(after < before + (64 << 10), "{before} KiB, {after} KiB");
    set(plain.as_bytes());
    running.wait_backends(&[servers[0].addr]);
    assert_eq!(ask(running.front).unwrap(), "b1");
}

#[test]
fn a_certificate_for_another_name_is_an_error() {
    let (servers, addr) = (named(1), ports::free_addr());
    let authority = Authority::new("registry");
    let issued = authority.issue("list", "DNS:registry.example.com", 2);
    let nginx = Nginx::with_files_over_tls(addr, &issued);
    write(
        &nginx.file("list.json"),
        &format!("[\"{}\"]", servers[0].addr),
    );
    let running = Discovering::start(&format!(
        "[upstreams.back.discover]\nkind = \"http\"\nurl = \"https://{addr}/list.json\"\n\
         tls_ca = \"{}\"\n",
        authority.file().display()
    ));
    running.wait_error("TLS: ");
    running.wait_backends(&[]);
    let readiness = running.tembuku.get("/readyz");
    assert_eq!(readiness.status, 503, "{}", readiness.body);
}

/// In pieces of a few bytes, as fast as they can be sent: the rest of the process goes on.
#[test]
fn a_long_reply_in_small_pieces_takes_no_cpu_from_others() {
    let server = Server::start(|mut stream: TcpStream| {
        stream.set_nodelay(true).unwrap();
        let _ = stream.read(&mut [0; 512]);
        let _ = stream.write_all(b"+set\r\n:20000\r\n*20000\r\n");
        while stream.write_all(b"$9\r\n127.0.0.1\r\n").is_ok() {}
    });
    let running = Discovering::start(&format!(
        "[upstreams.back.discover]\nkind = \"redis\"\nserver = \"{}\"\nkey = \"servers\"\n\
         interval = \"100ms\"\ntimeout = \"3s\"\n",
        server.addr
    ));
    running.wait_error("has no port");
    let began = Instant::now();
    for _ in 0..20 {
        let answer = http::get(running.tembuku.admin, "/livez").unwrap();
        assert_eq!(answer.status, 200);
    }
    println!("20 requests took {:?}", began.elapsed());
    assert!(began.elapsed() < secs(5), "{:?}", began.elapsed());
}

/// Every address of the process itself: all are left out, in one line of the log.
#[test]
fn thousands_of_own_addresses_are_left_out() {
    let (dir, server) = (TempDir::new(), Server::named("b1"));
    let path = dir.file("backends");
    write(&path, &format!("{}\n", server.addr));
    let running = Discovering::start(&of_file(&path));
    running.wait_backends(&[server.addr]);
    let own = running.front;
    let everywhere: Vec<String> = (0..5_000)
        .map(|n| format!("127.3.{}.{}:{}", n / 250, n % 250 + 1, own.port()))
        .collect();
    // Not of this listener: it is bound to one address.
    let began = Instant::now();
    write(
        &path,
        &format!("{}\n{own}\n{}\n", server.addr, everywhere.join("\n")),
    );
    wait_until("they are there", secs(20), || {
        running.upstream()["discovery"]["backends"] == 5_002
    });
    println!("in effect after {:?}", began.elapsed());
    let addresses = running.backends().into_iter().map(|(address, _)| address);
    let addresses: BTreeSet<String> = addresses.collect();
    assert!(!addresses.contains(&own.to_string()));
    assert_eq!(addresses.len(), 5_001);
    let log = running.tembuku.proc.stderr();
    let lines = log.matches("is a listener of this process").count();
    assert_eq!(lines, 1, "{log}");
}

#[test]
fn keys_of_redis_that_are_no_lists_of_backends() {
    let (redis, servers) = (Redis::start(ports::free_addr()), named(1));
    let run = |command: &str| {
        let answer = call(redis.addr, command).unwrap();
        assert!(!answer.starts_with('-'), "{command}: {answer}");
    };
    run(&format!("SADD servers {}", servers[0].addr));
    let running = Discovering::start(&format!(
        "[upstreams.back.discover]\nkind = \"redis\"\nserver = \"{}\"\nkey = \"servers\"\n\
         interval = \"100ms\"\n",
        redis.addr
    ));
    running.wait_backends(&[servers[0].addr]);
    for (commands, error) in [
        (&["XADD servers * a b"][..], "it is of the type \"stream\""),
        (&["SETBIT servers 7 1"], "it is of the type \"string\""),
        (&["ZADD servers -1 10.0.0.1:80"], "its score is the weight"),
        (&["ZADD servers inf 10.0.0.1:80"], "its score is the weight"),
        (&["HSET servers 10.0.0.1:80 heavy"], "is not known"),
        (&["HSET servers 10.0.0.1:80 99999"], "a weight is"),
        (&["RPUSH servers \"\""], "is empty"),
        (&["RPUSH servers \"10.0.0.1:80 up\""], "is not known"),
    ] {
        run("DEL servers");
        for command in commands {
            run(command);
        }
        running.wait_error(error);
        running.wait_backends(&[servers[0].addr]);
    }
    // It wants a password all of a sudden.
    run("CONFIG SET requirepass xyzzy");
    running.wait_error("NOAUTH");
    running.wait_backends(&[servers[0].addr]);
    assert_eq!(net::ask(running.front).unwrap(), "b1");
}
