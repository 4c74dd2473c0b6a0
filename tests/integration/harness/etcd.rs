//! etcd, alone or three of it.

use super::{
    http, ports,
    proc::{self, Proc, command},
    secs,
    temp::TempDir,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::Command,
};

pub(crate) struct Etcd {
    proc: Proc,
    arguments: Vec<String>,
    scheme: &'static str,
    pub(crate) addr: SocketAddr,
    dir: TempDir,
}

impl Etcd {
    #[track_caller]
    pub(crate) fn start() -> Etcd {
        Etcd::start_with(&[])
    }

    /// With more arguments.
    #[track_caller]
    pub(crate) fn start_with(more: &[String]) -> Etcd {
        let scheme = match more
            .iter()
            .any(|argument| argument.starts_with("--cert-file"))
        {
            true => "https",
            false => "http",
        };
        let peer = ports::free_addr();
        let mut etcd = Etcd::launch("one", peer, &format!("one=http://{peer}"), scheme, more);
        etcd.wait_ready();
        etcd
    }

    /// Three that are one cluster.
    #[track_caller]
    pub(crate) fn start_three() -> [Etcd; 3] {
        let members = ["one", "two", "three"].map(|name| (name, ports::free_addr()));
        let cluster = members
            .map(|(name, peer)| format!("{name}=http://{peer}"))
            .join(",");
        let mut all = members.map(|(name, peer)| Etcd::launch(name, peer, &cluster, "http", &[]));
        for etcd in &mut all {
            etcd.wait_ready();
        }
        all
    }

    #[track_caller]
    fn launch(
        name: &str,
        peer: SocketAddr,
        cluster: &str,
        scheme: &'static str,
        more: &[String],
    ) -> Etcd {
        let (addr, dir) = (ports::free_addr(), TempDir::new());
        let data = dir.file("data").display().to_string();
        let mut arguments: Vec<String> = [
            "--name",
            name,
            "--data-dir",
            &data,
            "--listen-client-urls",
            &format!("{scheme}://{addr}"),
            "--advertise-client-urls",
            &format!("{scheme}://{addr}"),
            "--listen-peer-urls",
            &format!("http://{peer}"),
            "--initial-advertise-peer-urls",
            &format!("http://{peer}"),
            "--initial-cluster",
            cluster,
            "--logger",
            "zap",
        ]
        .map(str::to_owned)
        .to_vec();
        arguments.extend_from_slice(more);
        let mut start = Command::new("etcd");
        start.args(&arguments);
        let proc = Proc::start("etcd", dir.path(), start);
        Etcd {
            proc,
            arguments,
            scheme,
            addr,
            dir,
        }
    }

    #[track_caller]
    fn wait_ready(&mut self) {
        let (addr, is_plain) = (self.addr, self.scheme == "http");
        self.proc.wait_ready(secs(30), || match is_plain {
            true => http::get(addr, "/health").is_ok_and(|r| r.body.contains("\"true\"")),
            false => super::net::listening(addr.port()),
        });
    }

    pub(crate) fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.addr)
    }

    pub(crate) fn kill(&mut self) {
        self.proc.kill();
    }

    /// Again, with the data that it had.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        self.kill();
        let mut start = Command::new("etcd");
        start.args(&self.arguments);
        self.proc = Proc::start("etcd", self.dir.path(), start);
        self.wait_ready();
    }

    /// A command of its own client, which must succeed.
    #[track_caller]
    pub(crate) fn ctl(&self, line: &str) -> String {
        let mut client = command("etcdctl");
        client.env("ETCDCTL_API", "3");
        client.args(["--endpoints", &self.url()]);
        client.args(line.split_whitespace());
        proc::run_ok(secs(20), client)
    }

    /// Without its client, which takes longer to start than this takes.
    #[track_caller]
    pub(crate) fn put(&self, key: &str, value: &str) {
        self.try_put(key, value).unwrap();
    }

    /// The same, which may fail while there is no leader.
    pub(crate) fn try_put(&self, key: &str, value: &str) -> io::Result<()> {
        let (key, value) = (STANDARD.encode(key), STANDARD.encode(value));
        self.post("/v3/kv/put", &json!({"key": key, "value": value}))
    }

    /// Puts keys with values, and deletes those without, as many at once as it takes.
    #[track_caller]
    pub(crate) fn change(&self, changes: &[(String, Option<String>)]) {
        for part in changes.chunks(128) {
            let change = |(key, value): &(String, Option<String>)| {
                let key = STANDARD.encode(key);
                match value {
                    Some(value) => {
                        json!({"requestPut": {"key": key, "value": STANDARD.encode(value)}})
                    }
                    None => json!({"requestDeleteRange": {"key": key}}),
                }
            };
            let changes: Vec<Value> = part.iter().map(change).collect();
            self.post("/v3/kv/txn", &json!({"success": changes}))
                .unwrap();
        }
    }

    #[track_caller]
    pub(crate) fn delete(&self, key: &str) {
        let key = STANDARD.encode(key);
        self.post("/v3/kv/deleterange", &json!({"key": key}))
            .unwrap();
    }

    fn post(&self, path: &str, body: &Value) -> io::Result<()> {
        let body = body.to_string();
        let mut stream = TcpStream::connect(self.addr)?;
        stream.set_read_timeout(Some(secs(10)))?;
        let length = body.len();
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        match answer.starts_with("HTTP/1.1 200 ") {
            true => Ok(()),
            false => Err(io::Error::other(answer)),
        }
    }
}
