//! Checks that call too many web servers ill are not believed: `panic_threshold`.

use crate::harness::{
    http, net, ports,
    programs::{Nginx, http_block},
    secs,
    tembuku::Tembuku,
    wait_until,
};
use std::{
    fs,
    io::Write,
    net::{SocketAddr, TcpStream},
};

const BACKENDS: usize = 4;

struct Setup {
    nginx: Nginx,
    backends: Vec<SocketAddr>,
    front: SocketAddr,
    tembuku: Tembuku,
}

/// One nginx that is four servers, `n0` to `n3`, each of which is ill while a file of that name
/// exists.
fn setup() -> Setup {
    let backends: Vec<SocketAddr> = (0..BACKENDS).map(|_| ports::free_addr()).collect();
    let servers: Vec<String> = backends
        .iter()
        .enumerate()
        .map(|(n, addr)| {
            format!(
                "server {{ listen {addr}; location = /health {{ if (-f {{dir}}/ill{n}) {{ return \
                 503; }} return 200; }}\n\
                 location / {{ return 200 \"n{n}\\n\"; }} }}\n"
            )
        })
        .collect();
    let nginx = Nginx::start(
        backends[BACKENDS - 1],
        &http_block(&format!("default_type text/plain; {}", servers.concat())),
    );
    let list: Vec<String> = backends.iter().map(|b| format!("\"{b}\"")).collect();
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[process]\nworkers = 2\n[log]\nformat = \"json\"\n\
         [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [{}]\non_down = \"close\"\npanic_threshold = 50\n\
         [upstreams.u.check]\nkind = \"http\"\npath = \"/health\"\ninterval = \"100ms\"\nrise = 1\n\
         fall = 2\n",
        list.join(", ")
    ));
    Setup {
        nginx,
        backends,
        front,
        tembuku,
    }
}

impl Setup {
    fn sicken(&self, n: usize) {
        fs::write(self.nginx.file(&format!("ill{n}")), "").unwrap();
    }

    fn heal(&self, n: usize) {
        fs::remove_file(self.nginx.file(&format!("ill{n}"))).unwrap();
    }

    #[track_caller]
    fn wait_state(&self, n: usize, state: &str) {
        let backend = self.backends[n].to_string();
        let labels = [("backend", backend.as_str()), ("state", state)];
        self.tembuku
            .wait_metric("backend_state", &labels, |is| is == 1.0);
    }

    #[track_caller]
    fn wait_panic(&self, is: f64) {
        self.tembuku
            .wait_metric("upstream_panic", &[], |now| now == is);
    }

    /// The servers that answer; every request has to be answered.
    #[track_caller]
    fn answers(&self) -> Vec<String> {
        let ask = |_| {
            http::get(self.front, "/")
                .unwrap()
                .body
                .trim_end()
                .to_owned()
        };
        let mut names: Vec<String> = (0..40).map(ask).collect();
        names.sort();
        names.dedup();
        names
    }

    /// A connection that stays, to this server.
    #[track_caller]
    fn session_on(&self, n: usize) -> TcpStream {
        let mut found = None;
        wait_until("a session", secs(10), || {
            let mut stream = net::connect(self.front).unwrap();
            found = Some(request(&mut stream).unwrap())
                .filter(|name| *name == format!("n{n}"))
                .map(|_| stream);
            found.is_some()
        });
        found.unwrap()
    }

    fn why(&self, n: usize) -> String {
        let body = self.tembuku.get("/api/v1/status").body;
        let status: serde_json::Value = serde_json::from_str(&body).unwrap();
        let why = &status["upstreams"][0]["backends"][n]["why"];
        why.as_str().unwrap().to_owned()
    }

    fn logged(&self, what: &str) -> usize {
        let log = self.tembuku.proc.stderr();
        log.lines().filter(|line| line.contains(what)).count()
    }
}

/// One request on a connection that stays; returns the server that answers.
fn request(stream: &mut TcpStream) -> std::io::Result<String> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")?;
    loop {
        let line = net::read_line(stream)?;
        if line.len() == 2 && line.starts_with('n') {
            return Ok(line);
        }
    }
}

#[test]
fn checks_that_take_out_too_many_are_not_believed() {
    let setup = setup();
    for n in 0..BACKENDS {
        setup.wait_state(n, "up");
    }
    assert_eq!(setup.answers(), ["n0", "n1", "n2", "n3"]);
    let (mut held, mut last) = (setup.session_on(2), setup.session_on(3));
    setup.sicken(0);
    setup.wait_state(0, "down");
    assert_eq!(setup.answers(), ["n1", "n2", "n3"]);
    setup.sicken(1);
    setup.wait_state(1, "down");
    setup.wait_panic(0.0);
    assert_eq!(setup.answers(), ["n2", "n3"], "a half is not below a half");
    // The third one would leave all the load to the last.
    setup.sicken(2);
    setup.wait_state(2, "down");
    setup.wait_panic(1.0);
    assert_eq!(setup.answers(), ["n0", "n1", "n2", "n3"]);
    let expected = "its check reports: unexpected: ";
    let why = setup.why(2);
    assert!(why.starts_with(expected), "{why}");
    assert!(why.ends_with("; panic threshold: 1 of 4 up"), "{why}");
    assert_eq!(setup.logged("panic threshold reached"), 1);
    setup.sicken(3);
    setup.wait_state(3, "down");
    assert_eq!(setup.answers(), ["n0", "n1", "n2", "n3"]);
    assert_eq!(setup.why(3), why.replace("1 of 4", "0 of 4"));
    assert_eq!(setup.tembuku.get("/readyz").status, 200);
    // Nor are sessions closed, although `on_down` requires it: their backend is still used.
    let mut late = setup.session_on(0);
    let labels = [("result", "unexpected")];
    let before = setup.tembuku.metric("check_results_total", &labels);
    setup
        .tembuku
        .wait_metric("check_results_total", &labels, |n| n >= before + 12.0);
    assert_eq!(request(&mut held).unwrap(), "n2");
    assert_eq!(request(&mut last).unwrap(), "n3");
    assert_eq!(request(&mut late).unwrap(), "n0");
    let closed = [("reason", "backend_down")];
    let before = setup.tembuku.metric("sessions_closed_total", &closed);
    // Enough are well again: the checks count, that of the first one as well.
    setup.heal(2);
    setup.wait_state(2, "up");
    assert_eq!(
        setup.answers(),
        ["n0", "n1", "n2", "n3"],
        "one is not enough"
    );
    setup.heal(3);
    setup.wait_state(3, "up");
    setup.wait_panic(0.0);
    assert_eq!(setup.answers(), ["n2", "n3"]);
    assert_eq!(net::read_all(&mut late).1, net::End::Reset);
    setup
        .tembuku
        .wait_metric("sessions_closed_total", &closed, |n| n == before + 1.0);
    assert_eq!(request(&mut held).unwrap(), "n2");
    assert_eq!(setup.logged("panic threshold left"), 1);
    assert!(setup.why(0).starts_with(expected), "{}", setup.why(0));
}
