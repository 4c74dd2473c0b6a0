//! Every key of conf/reference.toml, which has every key there is, follows a reload, or is among
//! those of docs/reload.md that need an upgrade or restart.

use super::Setup;
use crate::harness::{certs::Authority, http, ports, tembuku::Tembuku};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// A line `name = value` of the reference.
#[derive(Debug, Clone)]
struct Line {
    number: usize,
    /// As `[upstreams.check]`, without the name of the upstream.
    section: String,
    name: String,
    value: toml::Value,
}

fn lines(config: &str) -> Vec<Line> {
    let mut section = String::new();
    let mut found = Vec::new();
    for (number, line) in config.lines().enumerate() {
        if let Some(header) = line.strip_prefix('[') {
            let header = header.trim_matches(['[', ']']);
            let mut parts: Vec<&str> = header.split('.').collect();
            if parts.len() > 1 {
                parts.remove(1);
            }
            section = parts.join(".");
        } else if let Some((name, _)) = line.split_once(" = ")
            && !line.starts_with('#')
        {
            let table: toml::Table = line.parse().unwrap();
            found.push(Line {
                number,
                section: section.clone(),
                name: name.to_owned(),
                value: table[name].clone(),
            });
        }
    }
    found
}

/// Where files of the configuration can be.
struct Places<'a> {
    dir: &'a Path,
    front: String,
}

impl Line {
    /// Other values that may be valid there, as TOML; of an inner table one for each of its keys.
    fn others(&self, places: &Places<'_>) -> Vec<String> {
        let file = |name: &str| format!("\"{}\"", places.dir.join(name).display());
        let one = |text: &str| vec![text.to_owned()];
        match (self.section.as_str(), self.name.as_str()) {
            ("process", "start_wait") => one("\"9s\""),
            ("process", "handover") => one("\"listeners\""),
            ("process", "ready_file") => vec![file("ready")],
            ("admin", "listen") => vec![format!("\"{}\"", ports::free_addr())],
            ("admin", "socket") => vec![file("other.sock")],
            ("admin", "hosts") => one("[\"lb.example\"]"),
            ("log", "level") => one("\"debug\""),
            ("log", "format") => one("\"text\""),
            ("log", "access") => vec![file("access.log")],
            ("listeners", "bind") => vec![format!("\"{}\"", places.front)],
            ("listeners", "protocol") => one("\"tcp\""),
            ("listeners", "upstream") => one("\"plain\""),
            ("listeners", "access") => one("[\"deny 10.0.0.0/8\"]"),
            ("listeners", "accept_proxy") => vec![
                "{ trust = [\"127.0.0.0/8\"], timeout = \"3s\" }".to_owned(),
                "{ trust = [\"all\"], timeout = \"4s\" }".to_owned(),
            ],
            ("listeners", "connection_rate" | "connection_rate_per_source") => one("\"70/s\""),
            ("listeners", name) if name.starts_with("bandwidth") => vec![
                "{ up = \"1m\", down = \"0\" }".to_owned(),
                "{ up = \"0\", down = \"1m\" }".to_owned(),
            ],
            ("listeners", "source_prefix") => vec![
                "{ v4 = 24, v6 = 64 }".to_owned(),
                "{ v4 = 32, v6 = 56 }".to_owned(),
            ],
            ("listeners", "over_rate") => one("\"delay\""),
            ("listeners", "limits_dry_run") => one("true"),
            ("listeners", "send_proxy") => one("\"v2\""),
            ("listeners", "access_log") => one("\"off\""),
            ("listeners", "unix_mode") => one("\"0600\""),
            ("listeners", "unix_owner") => {
                vec![format!("\"{}\"", rustix::process::getuid().as_raw())]
            }
            ("listeners", "unix_group") => {
                vec![format!("\"{}\"", rustix::process::getgid().as_raw())]
            }
            ("listeners", "user_timeout") => one("\"33s\""),
            ("listeners", "when_full") => one("\"evict\""),
            ("upstreams", "balance") => vec!["\"least_conn\"".to_owned(), "\"maglev\"".to_owned()],
            ("upstreams", "hash_key") => one("\"$remote_port\""),
            ("upstreams", "hash_balance_factor") => one("150"),
            ("upstreams", "least_time") => one("\"first_byte\""),
            ("upstreams", "panic_threshold") => one("50"),
            ("upstreams", "send_proxy") => one("\"v1\""),
            ("upstreams", "send_proxy_on") => one("\"each\""),
            ("upstreams", "backup_when") => one("\"down\""),
            ("upstreams", "backends") => one("[\"127.9.0.77:77\"]"),
            (_, name) if name.starts_with("on_") => {
                let others = ["\"close\"", "{ close_after = \"7s\" }"];
                others.map(str::to_owned).to_vec()
            }
            ("upstreams.backends", "address") => one("\"127.9.0.78:78\""),
            ("upstreams.discover", "sentinels") => one("[\"127.9.0.81:26379\"]"),
            ("upstreams.discover", "master") => one("\"other\""),
            ("upstreams.discover", "want") => one("\"all\""),
            ("upstreams.discover", "server") => one("\"127.9.0.80:80\""),
            ("upstreams.discover", "key") => one("\"/other\""),
            ("upstreams.discover", "tls_name" | "port" | "tag" | "datacenter") => one("\"other\""),
            ("upstreams.discover", "url") => one("\"http://127.9.0.82:80/other\""),
            ("upstreams.discover", "headers") => one("[\"X-Other: 1\"]"),
            ("upstreams.discover", "name") => one("\"_other._tcp.example.com\""),
            ("upstreams.discover", "nameservers") => one("[\"127.9.0.83:53\"]"),
            ("upstreams.discover", "service") => one("\"test/other\""),
            ("upstreams.discover", "endpoints") => one("[\"http://127.9.0.84:2379\"]"),
            ("upstreams.discover", "prefix") => one("\"/other/\""),
            ("upstreams.discover", "token_file" | "cert") => vec![file("other-password")],
            ("upstreams.discover", "path") => vec![file("other.backends")],
            ("upstreams.discover", "max_removed") => one("40"),
            ("upstreams.check", "kind") => one("\"postgres\""),
            ("upstreams.check", "interval") => one("\"3s\""),
            ("upstreams.check", "fast_interval") => one("\"300ms\""),
            ("upstreams.check", "timeout") => one("\"1500ms\""),
            ("upstreams.check", "start") => vec!["\"up\"".to_owned(), "\"down\"".to_owned()],
            ("upstreams.check" | "upstreams.discover", "tls") => one("\"require\""),
            ("upstreams.check", "role") => vec!["\"any\"".to_owned(), "\"primary\"".to_owned()],
            ("upstreams.check" | "upstreams.discover", "user") => one("\"another\""),
            (_, "password_file") => vec![file("other-password")],
            (_, "tls_ca") => vec![file("other-ca.pem")],
            (_, "password_env") => one("\"PATH\""),
            ("upstreams.check", "address") => one("\"127.9.0.79:79\""),
            ("upstreams.check", "path") => one("\"/health\""),
            ("upstreams.check", "host" | "tls_name") => one("\"other.example\""),
            ("upstreams.check", "status") => one("[\"204\"]"),
            ("upstreams.check", "send" | "expect" | "expect_regex") => one("\"other\""),
            ("upstreams.check", "send_hex" | "expect_hex") => one("\"aa55\""),
            ("upstreams.check", "min_version") => one("\"6.2\""),
            ("upstreams.check", "database") => one("\"template1\""),
            ("upstreams.check", "max_lag_bytes") => one("\"32m\""),
            ("upstreams.check", "query") => one("\"example.org\""),
            ("upstreams.check", "query_type") => one("\"SOA\""),
            ("upstreams.check", "rcode") => one("[\"NOERROR\", \"REFUSED\"]"),
            _ => self.others_by_type(),
        }
    }

    /// Of a flag, a number or a duration, alone or in an inner table.
    fn others_by_type(&self) -> Vec<String> {
        let other = |value: &toml::Value| match value {
            toml::Value::Boolean(is) => Some((!is).to_string()),
            toml::Value::Integer(n) => Some((n + 1).to_string()),
            toml::Value::String(text) if text.starts_with(|c: char| c.is_ascii_digit()) => {
                Some("\"17s\"".to_owned())
            }
            _ => None,
        };
        match &self.value {
            toml::Value::Table(inner) => {
                let changed = inner.iter().filter_map(|(key, value)| {
                    let mut table = inner.clone();
                    let value: toml::Table = format!("v = {}", other(value)?).parse().unwrap();
                    table[key] = value["v"].clone();
                    Some(toml::Value::Table(table).to_string())
                });
                changed.collect()
            }
            value => other(value).into_iter().collect(),
        }
    }
}

/// The reference with addresses and files that a test may use, and sections that have nothing but
/// keys that can change there alone.
fn runnable(reference: &str, dir: &Path) -> String {
    let mut config = reference.replace("/run/tembuku/", &format!("{}/", dir.display()));
    let mut addresses = BTreeMap::new();
    for address in [
        "0.0.0.0:6379",
        "0.0.0.0:53",
        "0.0.0.0:8080",
        "127.0.0.1:9900",
    ] {
        addresses.insert(address, ports::free_addr());
    }
    for (address, free) in addresses {
        assert!(config.contains(address), "{address}");
        config = config.replace(address, &free.to_string());
    }
    config = config.replace("/etc/tembuku/", &format!("{}/", dir.display()));
    config = config.replace("REDIS_PASSWORD", "HOME");
    // `drain_quiet` needs one.
    config = config.replace("drain_delay = \"0s\"", "drain_delay = \"1ms\"");
    // Checks connect.
    config = config.replace("\"10.0.0.", "\"127.9.0.");
    format!(
        "{config}\n[listeners.spare]\nbind = \"{}\"\nprotocol = \"udp\"\nupstream = \"spare\"\n\
         [upstreams.spare]\nbackends = [\"127.9.0.9:9\"]\n\
         [upstreams.logins]\nbackends = [\"127.9.0.9:9\"]\n\
         [upstreams.logins.check]\nkind = \"postgres\"\nlogin = true\nuser = \"check\"\n\
         [upstreams.replica]\nbackends = [\"127.9.0.9:9\"]\n\
         [upstreams.replica.check]\nkind = \"redis\"\nrole = \"replica\"\n",
        ports::free_addr()
    )
}

struct Running {
    setup: Setup,
    /// Where the admin socket is, or may be after a reload.
    sockets: [PathBuf; 2],
}

impl Running {
    /// The answer to a reload with this file: the status and the report.
    fn reload(&self, config: &str, is_dry_run: bool) -> (u16, Value) {
        self.setup.write(config);
        let body = format!("{{\"dry_run\": {is_dry_run}}}");
        let path = "/api/v1/reload";
        let answer = http::request_unix(self.socket(), "POST", path, &body).unwrap();
        (answer.status, serde_json::from_str(&answer.body).unwrap())
    }

    fn socket(&self) -> &Path {
        let mut there = self.sockets.iter().filter(|socket| socket.exists());
        let socket = there.next().expect("an admin socket");
        assert_eq!(there.next(), None, "the one before is removed");
        socket
    }

    fn config_hash(&self) -> Value {
        let answer = http::request_unix(self.socket(), "GET", "/api/v1/status", "").unwrap();
        let mut status: Value = serde_json::from_str(&answer.body).unwrap();
        status["process"]["config_hash"].take()
    }
}

fn changes(report: &Value) -> Vec<&Value> {
    report["changes"].as_array().unwrap().iter().collect()
}

/// Whether the report names the key among the changes of an object that has it.
fn names_key(change: &Value, line: &Line) -> bool {
    let object = change["object"].as_str().unwrap();
    let name = match line.section.as_str() {
        "upstreams.check" => format!("check.{}", line.name),
        "upstreams.discover" => format!("discover.{}", line.name),
        _ => line.name.clone(),
    };
    let is_it = match line.section.as_str() {
        "process" | "admin" | "log" => change["name"] == line.section.as_str(),
        "listeners" => object == "listener",
        "upstreams" | "upstreams.check" | "upstreams.discover" => {
            object == "upstream" || object == "backend"
        }
        "upstreams.backends" => object == "backend" || object == "upstream",
        other => panic!("{other}"),
    };
    let mut keys = change["keys"].as_array().unwrap().iter();
    is_it && (keys.any(|key| key["key"] == *name) || is_backends(line))
}

/// A backend that comes or goes is an object of its own.
fn is_backends(line: &Line) -> bool {
    matches!(
        (line.section.as_str(), line.name.as_str()),
        ("upstreams", "backends") | ("upstreams.backends", "address")
    )
}

/// The keys that docs/reload.md says need an upgrade or restart, with their sections.
fn documented() -> BTreeSet<(String, String)> {
    let page = fs::read_to_string("docs/reload.md").unwrap();
    let (_, section) = page.split_once("## What needs a restart").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let mut found = BTreeSet::new();
    for line in section.lines().filter_map(|line| line.strip_prefix("- `")) {
        let (code, rest) = line.split_once('`').unwrap();
        match code.split_once("] ") {
            Some((section, key)) => {
                found.insert((section.trim_start_matches('[').to_owned(), key.to_owned()));
            }
            None if rest.starts_with(" of a listener") => {
                found.insert(("listeners".to_owned(), code.to_owned()));
            }
            None => panic!("{line}"),
        }
    }
    found
}

/// In the reference `tls` of a source has keys beside it that allow no other value.
const WITHOUT_TLS_CA: &str = "
[upstreams.without_tls_ca.discover]
kind = \"redis\"
server = \"127.9.0.85:6379\"
key = \"servers\"
tls = \"verify\"
";

#[test]
fn every_key_follows_a_reload_or_is_documented_not_to() {
    let reference = fs::read_to_string("conf/reference.toml").unwrap();
    let tembuku = Tembuku::start_in_folder(|dir| {
        for (name, text) in [
            ("redis.password", "one"),
            ("postgres.password", "one"),
            ("mysql.password", "one"),
            ("other-password", "two"),
        ] {
            dir.write(name, text);
        }
        for name in ["ca.pem", "other-ca.pem"] {
            fs::copy(Authority::new(name).file(), dir.file(name)).unwrap();
        }
        runnable(&reference, dir.path()) + WITHOUT_TLS_CA
    });
    let sockets = ["admin.sock", "other.sock"].map(|name| tembuku.dir.file(name));
    let front = ports::free_addr();
    let setup = Setup {
        tembuku,
        front,
        servers: Vec::new(),
    };
    let base = setup.config();
    let running = Running { setup, sockets };
    let places = Places {
        dir: running.setup.tembuku.dir.path(),
        front: front.to_string(),
    };
    let documented = documented();
    let mut followed = BTreeSet::new();
    let mut restarted = BTreeSet::new();
    let mut problems: BTreeMap<(String, String), String> = BTreeMap::new();
    let all = lines(&base);
    assert!(all.len() > 150, "{}", all.len());
    for line in &all {
        let key = (line.section.clone(), line.name.clone());
        for other in line.others(&places) {
            let mut texts: Vec<String> = base.lines().map(str::to_owned).collect();
            texts[line.number] = format!("{} = {other}", line.name);
            let changed = texts.join("\n") + "\n";
            let (status, report) = running.reload(&changed, false);
            if status != 200 {
                // Not valid beside the other keys of this section.
                problems.insert(key.clone(), format!("{other}: {}", report["text"]));
                continue;
            }
            let concerned: Vec<&Value> = changes(&report)
                .into_iter()
                .filter(|c| names_key(c, line))
                .collect();
            let needs_upgrade = concerned.iter().any(|c| c["change"] == "needs_upgrade");
            let (_, again) = running.reload(&changed, true);
            if needs_upgrade {
                assert!(
                    documented.contains(&key),
                    "{key:?} is not in docs/reload.md"
                );
                assert_eq!(changes(&again).len(), 1, "{again}");
                restarted.insert(key.clone());
            } else if concerned.is_empty() {
                // The value that it has already.
                problems.insert(key.clone(), format!("{other} is no change: {report}"));
            } else {
                assert_eq!(
                    changes(&again),
                    Vec::<&Value>::new(),
                    "{key:?} {other}: {again}"
                );
                let hash = running.config_hash();
                assert_eq!(hash, report["hash"]["after"], "{key:?}");
                assert_ne!(hash, report["hash"]["before"], "{key:?}");
                followed.insert(key.clone());
            }
        }
    }
    let keys: BTreeSet<_> = all
        .iter()
        .map(|line| (line.section.clone(), line.name.clone()))
        .collect();
    // With another kind of source, its other keys are others as well.
    let kind = ("upstreams.discover".to_owned(), "kind".to_owned());
    let is_tested = |key: &&(String, String)| {
        **key == kind || followed.contains(*key) || restarted.contains(*key)
    };
    let untested = keys.iter().filter(|key| !is_tested(key));
    let untested: Vec<_> = untested.map(|key| (key, problems.get(key))).collect();
    assert!(
        untested.is_empty(),
        "these have no case here: {untested:#?}"
    );
    assert_eq!(restarted, documented);
}
