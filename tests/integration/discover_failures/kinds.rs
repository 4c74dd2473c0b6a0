//! The servers of each kind, behind something that makes them fail.

use super::TempDir;
use crate::harness::{
    etcd,
    faulty::{Fault, Faulty, FaultyDns},
    nsd, ports, proc,
    programs::{self, call},
    registry::{self, READY},
    server::Server,
};
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::Command,
    sync::{Arc, Mutex},
};

/// A source of one kind.
pub(super) trait Kind {
    fn word(&self) -> &'static str;
    /// Of its section.
    fn keys(&self) -> String;
    /// What the source has from now on; one that fails has it when it works again.
    fn set(&mut self, backends: &[SocketAddr]);
    fn fail(&mut self, fault: Fault);
    /// A part of the error.
    fn error(&self, fault: Fault) -> &'static str;
    /// Whether there is an answer without backends.
    fn can_be_empty(&self) -> bool {
        true
    }
}

/// Of the kinds that speak HTTP.
fn error_of_http(fault: Fault) -> &'static str {
    match fault {
        Fault::None => "",
        Fault::Gone => "Connection refused",
        Fault::Hanging => "within 500ms",
        Fault::Garbage | Fault::Half => "HTTP: ",
        // Or the time is over first.
        Fault::Huge => "the ",
        Fault::Slow => "there is no response within 500ms",
    }
}

const HUGE: &[u8] = b"HTTP/1.1 200 OK\r\nX-Consul-Index: 1\r\n\r\n[";

fn texts(backends: &[SocketAddr]) -> Vec<String> {
    backends.iter().map(ToString::to_string).collect()
}

/// It has no server: the file itself fails.
pub(super) struct File {
    dir: TempDir,
    path: PathBuf,
    lines: String,
    fault: Fault,
}

impl File {
    pub(super) fn start() -> Self {
        let dir = TempDir::new();
        Self {
            path: dir.file("backends"),
            dir,
            lines: String::new(),
            fault: Fault::None,
        }
    }

    fn replace(&self, write: impl FnOnce(&std::path::Path)) {
        let new = self.dir.file("new");
        let _ = fs::remove_file(&new);
        write(&new);
        fs::rename(new, &self.path).unwrap();
    }
}

impl Kind for File {
    fn word(&self) -> &'static str {
        "file"
    }

    fn keys(&self) -> String {
        format!("path = \"{}\"\n", self.path.display())
    }

    fn set(&mut self, backends: &[SocketAddr]) {
        self.lines = texts(backends).join("\n") + "\n";
        if self.fault == Fault::None {
            self.replace(|new| fs::write(new, &self.lines).unwrap());
        }
    }

    fn fail(&mut self, fault: Fault) {
        self.fault = fault;
        let write = |content: &[u8]| self.replace(|new| fs::write(new, content).unwrap());
        match fault {
            Fault::None => write(self.lines.as_bytes()),
            Fault::Gone => fs::remove_file(&self.path).unwrap(),
            // Nothing writes to it.
            Fault::Hanging => self.replace(|new| {
                let made = proc::output(Command::new("mkfifo").arg(new));
                assert!(made.status.success());
            }),
            Fault::Garbage => write(b"\xff\xfe\x00garbage"),
            Fault::Huge => write(&b"127.0.0.1:1\n".repeat(1_500_000)),
            // It is written in place, and takes its time.
            Fault::Slow => write(b"127.1.0.1"),
            // Without the last port and its colon.
            Fault::Half => write(&self.lines.as_bytes()[..self.lines.len() - 7]),
        }
    }

    fn error(&self, fault: Fault) -> &'static str {
        match fault {
            Fault::None => "",
            Fault::Gone => "cannot read",
            Fault::Hanging => "no answer within 0.5 s",
            Fault::Garbage => "not UTF-8",
            Fault::Huge => "larger than 16 MiB",
            Fault::Slow | Fault::Half => "has no port",
        }
    }
}

pub(super) struct Http {
    _server: Server,
    list: Arc<Mutex<String>>,
    faulty: Faulty,
}

impl Http {
    pub(super) fn start() -> Self {
        let list = Arc::new(Mutex::new("[]".to_owned()));
        let server = Server::start({
            let list = Arc::clone(&list);
            move |mut stream| {
                let _ = stream.read(&mut [0; 4096]);
                let list = list.lock().unwrap().clone();
                let length = list.len();
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{list}"
                );
            }
        });
        let faulty = Faulty::start(server.addr, HUGE);
        Self {
            _server: server,
            list,
            faulty,
        }
    }
}

impl Kind for Http {
    fn word(&self) -> &'static str {
        "http"
    }

    fn keys(&self) -> String {
        format!("url = \"http://{}/list\"\n", self.faulty.addr)
    }

    fn set(&mut self, backends: &[SocketAddr]) {
        *self.list.lock().unwrap() = serde_json::to_string(&texts(backends)).unwrap();
    }

    fn fail(&mut self, fault: Fault) {
        self.faulty.set(fault);
    }

    fn error(&self, fault: Fault) -> &'static str {
        error_of_http(fault)
    }
}

pub(super) struct Srv {
    nsd: nsd::Nsd,
    faulty: FaultyDns,
}

impl Srv {
    pub(super) fn start() -> Self {
        let nsd = nsd::Nsd::start(Some("local A 127.0.0.1\n"));
        let faulty = FaultyDns::start(nsd.addr);
        Self { nsd, faulty }
    }
}

impl Kind for Srv {
    fn word(&self) -> &'static str {
        "srv"
    }

    fn keys(&self) -> String {
        format!(
            "name = \"_app._tcp.example\"\nnameservers = [\"{}\"]\n",
            self.faulty.addr()
        )
    }

    /// A message has room for some 2,000 records, but each target may have many addresses.
    fn set(&mut self, backends: &[SocketAddr]) {
        let mut records = "local A 127.0.0.1\n".to_owned();
        for (n, group) in backends.chunks(250).enumerate() {
            records += &format!("_app._tcp SRV 0 0 {} t{n}\n", group[0].port());
            for backend in group {
                records += &format!("t{n} A {}\n", backend.ip());
            }
        }
        self.nsd.set(&records);
    }

    fn fail(&mut self, fault: Fault) {
        self.faulty.set(fault);
    }

    fn error(&self, fault: Fault) -> &'static str {
        match fault {
            Fault::None => "",
            Fault::Gone => "Connection refused",
            Fault::Hanging => "no reply within 500ms",
            Fault::Garbage | Fault::Half => "the reply is malformed",
            Fault::Huge => "the reply is truncated, and by TCP: the reply is malformed",
            Fault::Slow => "the reply is truncated, and by TCP: no reply within 500ms",
        }
    }
}

pub(super) struct Redis {
    redis: programs::Redis,
    faulty: Faulty,
}

impl Redis {
    pub(super) fn start() -> Self {
        let redis = programs::Redis::start(ports::free_addr());
        let faulty = Faulty::start(redis.addr, b"+set\r\n:1\r\n*1\r\n$2147483647\r\n");
        Self { redis, faulty }
    }
}

impl Kind for Redis {
    fn word(&self) -> &'static str {
        "redis"
    }

    fn keys(&self) -> String {
        format!("server = \"{}\"\nkey = \"servers\"\n", self.faulty.addr)
    }

    fn set(&mut self, backends: &[SocketAddr]) {
        let run = |command: &str| {
            let answer = call(self.redis.addr, command).unwrap();
            assert!(!answer.starts_with('-'), "{command}: {answer}");
        };
        if backends.is_empty() {
            return run("DEL servers");
        }
        for group in backends.chunks(500) {
            run(&format!("SADD new {}", texts(group).join(" ")));
        }
        run("RENAME new servers");
    }

    fn fail(&mut self, fault: Fault) {
        self.faulty.set(fault);
    }

    fn error(&self, fault: Fault) -> &'static str {
        error_of_redis(fault)
    }
}

fn error_of_redis(fault: Fault) -> &'static str {
    match fault {
        Fault::None => "",
        Fault::Gone => "Connection refused",
        Fault::Hanging | Fault::Slow => "no answer within 500ms",
        Fault::Garbage => "this is not Redis",
        Fault::Huge => "its reply is too long",
        Fault::Half => "it has closed the connection",
    }
}

/// A stand-in for one Sentinel: the first backend is the primary.
pub(super) struct Sentinel {
    _server: Server,
    backends: Arc<Mutex<Vec<SocketAddr>>>,
    faulty: Faulty,
}

impl Sentinel {
    pub(super) fn start() -> Self {
        let backends = Arc::<Mutex<Vec<SocketAddr>>>::default();
        let server = Server::start({
            let backends = Arc::clone(&backends);
            move |stream| serve_sentinel(&stream, &backends)
        });
        let faulty = Faulty::start(server.addr, b"*2\r\n$2147483647\r\n");
        Self {
            _server: server,
            backends,
            faulty,
        }
    }
}

fn serve_sentinel(stream: &TcpStream, backends: &Mutex<Vec<SocketAddr>>) {
    let mut lines = BufReader::new(stream).lines();
    let mut line = || lines.next()?.ok();
    while let Some(count) = line() {
        let count: usize = count[1..].parse().unwrap();
        let words: Option<Vec<String>> = (0..count)
            .map(|_| {
                line()?;
                line()
            })
            .collect();
        let Some(words) = words else { return };
        let all = backends.lock().unwrap().clone();
        let list = |texts: &[&str]| {
            let text = |text: &&str| format!("${}\r\n{text}\r\n", text.len());
            let texts: Vec<String> = texts.iter().map(text).collect();
            format!("*{}\r\n{}", texts.len(), texts.concat())
        };
        let reply = match (&*words[0], words.get(1).map(String::as_str), all.first()) {
            ("SENTINEL", Some("get-master-addr-by-name"), Some(first)) => {
                list(&[&first.ip().to_string(), &first.port().to_string()])
            }
            // It watches no group of this name.
            ("SENTINEL", Some("get-master-addr-by-name"), None) => "*-1\r\n".to_owned(),
            ("SENTINEL", Some("master"), _) => list(&["name", "m", "config-epoch", "1"]),
            ("SENTINEL", Some("slaves"), _) => {
                let replica = |backend: &SocketAddr| {
                    let (ip, port) = (backend.ip().to_string(), backend.port().to_string());
                    list(&["ip", &ip, "port", &port])
                };
                let replicas: Vec<String> = all.iter().skip(1).map(replica).collect();
                format!("*{}\r\n{}", replicas.len(), replicas.concat())
            }
            _ => "+OK\r\n".to_owned(),
        };
        if (&mut &*stream).write_all(reply.as_bytes()).is_err() {
            return;
        }
    }
}

impl Kind for Sentinel {
    fn word(&self) -> &'static str {
        "sentinel"
    }

    fn keys(&self) -> String {
        format!(
            "sentinels = [\"{}\"]\nmaster = \"m\"\nwant = \"all\"\n",
            self.faulty.addr
        )
    }

    fn set(&mut self, backends: &[SocketAddr]) {
        *self.backends.lock().unwrap() = backends.to_vec();
    }

    fn fail(&mut self, fault: Fault) {
        self.faulty.set(fault);
    }

    fn error(&self, fault: Fault) -> &'static str {
        error_of_redis(fault)
    }

    /// A group has a primary.
    fn can_be_empty(&self) -> bool {
        false
    }
}

pub(super) struct Etcd {
    etcd: etcd::Etcd,
    faulty: Faulty,
    keys: BTreeMap<String, SocketAddr>,
}

impl Etcd {
    pub(super) fn start() -> Self {
        let etcd = etcd::Etcd::start();
        let faulty = Faulty::start(etcd.addr, HUGE);
        Self {
            etcd,
            faulty,
            keys: BTreeMap::new(),
        }
    }
}

impl Kind for Etcd {
    fn word(&self) -> &'static str {
        "etcd"
    }

    fn keys(&self) -> String {
        format!(
            "endpoints = [\"http://{}\"]\nprefix = \"/app/\"\n",
            self.faulty.addr
        )
    }

    fn set(&mut self, backends: &[SocketAddr]) {
        let key = |backend: &SocketAddr| (format!("/app/{}", backend.ip()), *backend);
        let new: BTreeMap<String, SocketAddr> = backends.iter().map(key).collect();
        let added = new.iter().filter(|(key, _)| !self.keys.contains_key(*key));
        let added = added.map(|(key, backend)| (key.clone(), Some(backend.to_string())));
        let removed = self.keys.keys().filter(|key| !new.contains_key(*key));
        let removed = removed.map(|key| (key.clone(), None));
        let changes: Vec<(String, Option<String>)> = added.chain(removed).collect();
        self.etcd.change(&changes);
        self.keys = new;
    }

    fn fail(&mut self, fault: Fault) {
        self.faulty.set(fault);
    }

    fn error(&self, fault: Fault) -> &'static str {
        error_of_http(fault)
    }
}

/// What Debian does not have.
pub(super) struct Registry {
    server: RegistryServer,
    faulty: Faulty,
    dir: TempDir,
}

enum RegistryServer {
    Consul(registry::Consul, u64),
    Kubernetes(registry::Kubernetes, usize),
}

impl Registry {
    pub(super) fn consul() -> Self {
        let consul = registry::Consul::start();
        Self {
            faulty: Faulty::start(consul.addr(), HUGE),
            server: RegistryServer::Consul(consul, 100),
            dir: TempDir::new(),
        }
    }

    pub(super) fn kubernetes() -> Self {
        let kubernetes = registry::Kubernetes::start("token");
        Self {
            faulty: Faulty::start(kubernetes.addr(), HUGE),
            server: RegistryServer::Kubernetes(kubernetes, 0),
            dir: TempDir::new(),
        }
    }
}

impl Kind for Registry {
    fn word(&self) -> &'static str {
        match self.server {
            RegistryServer::Consul(..) => "consul",
            RegistryServer::Kubernetes(..) => "kubernetes",
        }
    }

    fn keys(&self) -> String {
        let url = format!("url = \"http://{}\"\n", self.faulty.addr);
        match self.server {
            RegistryServer::Consul(..) => format!("{url}service = \"db\"\n"),
            RegistryServer::Kubernetes(..) => {
                let token = self.dir.write("token", "token");
                let token = token.display();
                format!("{url}service = \"prod/db\"\nport = \"sql\"\ntoken_file = \"{token}\"\n")
            }
        }
    }

    fn set(&mut self, backends: &[SocketAddr]) {
        match &mut self.server {
            RegistryServer::Consul(consul, index) => {
                *index += 1;
                let instances: Vec<_> = backends.iter().map(|b| (*b, "passing")).collect();
                consul.set(*index, &instances);
            }
            RegistryServer::Kubernetes(kubernetes, known) => {
                let slices = backends.chunks(100);
                let count = slices.len();
                for (n, slice) in slices.enumerate() {
                    let endpoints: Vec<_> = slice.iter().map(|b| (*b, READY)).collect();
                    kubernetes.set(&format!("db-{n}"), &endpoints);
                }
                for n in count..*known {
                    kubernetes.remove(&format!("db-{n}"));
                }
                *known = count;
            }
        }
    }

    fn fail(&mut self, fault: Fault) {
        self.faulty.set(fault);
    }

    fn error(&self, fault: Fault) -> &'static str {
        error_of_http(fault)
    }
}
