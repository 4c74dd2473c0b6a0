//! The configuration as a user meets it: examples, valid and invalid files, and what may never happen.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use tembuku::{
    config::{self, Flags},
    plan::*,
};

#[path = "config/generate.rs"]
mod generate;

fn files(folder: &str) -> BTreeMap<String, PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let files: BTreeMap<String, PathBuf> = fs::read_dir(folder)
        .expect("folder")
        .map(|entry| entry.expect("entry").path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .map(|path| {
            (
                path.file_name()
                    .expect("name")
                    .to_string_lossy()
                    .into_owned(),
                path,
            )
        })
        .collect();
    assert!(!files.is_empty());
    files
}

#[test]
fn valid_files_and_examples_load_and_survive_a_dump() {
    for (name, path) in files("tests/config/valid").into_iter().chain(files("conf")) {
        let plan = config::load(&path).unwrap_or_else(|problems| panic!("{name}:\n{problems}"));
        let dump = config::dump(&plan);
        let again = config::parse(&dump, "dump").unwrap_or_else(|p| panic!("{name}:\n{p}\n{dump}"));
        assert_eq!(plan, again, "{name}:\n{dump}");
        assert_eq!(config::dump(&again), dump);
    }
}

/// What is printed for each file, word for word. After a change on purpose: TEMBUKU_BLESS=1 cargo test
/// --test config, and read the difference.
#[test]
fn invalid_files_say_what_is_wrong() {
    let files = files("tests/config/invalid");
    assert!(files.len() >= 25);
    let bless = std::env::var_os("TEMBUKU_BLESS").is_some();
    let mut wrong = String::new();
    for (name, path) in files {
        let bytes = fs::read(&path).expect("file");
        let text = String::from_utf8(bytes).expect("UTF-8");
        let Err(problems) = config::parse(&text, &name) else {
            panic!("{name} is valid")
        };
        let expected_path = path.with_extension("expected");
        if bless {
            fs::write(&expected_path, problems.to_string()).expect("write");
        }
        let expected = fs::read_to_string(&expected_path).unwrap_or_default();
        if problems.to_string() != expected {
            wrong.push_str(&format!(
                "{name} expected:\n{expected}\nfound:\n{problems}\n"
            ));
        }
        for problem in problems.iter() {
            assert!(!problem.message.is_empty());
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn five_mistakes_are_five_problems_with_places_and_hints() {
    let path = &files("tests/config/invalid")["five_mistakes.toml"];
    let problems = config::load(path).expect_err("five mistakes");
    assert_eq!(problems.len(), 5);
    let places: Vec<(usize, usize)> = problems
        .iter()
        .map(|problem| problem.position.as_ref().expect("a place"))
        .map(|position| (position.line, position.column))
        .collect();
    assert_eq!(places, [(2, 1), (5, 8), (6, 12), (7, 16), (10, 11)]);
    assert!(problems.iter().all(|problem| problem.hint.is_some()));
    assert!(
        problems
            .to_string()
            .ends_with(&format!("5 problems in {}\n", path.display()))
    );
}

#[test]
fn the_reference_shows_the_defaults() {
    let text = include_str!("../conf/reference.toml");
    let mut reference = config::parse(text, "reference.toml").expect("valid");
    let least = r#"
        [admin]
        listen = "127.0.0.1:9900"
        socket = "/run/tembuku/admin.sock"
        [listeners.cache]
        bind = "0.0.0.0:6379"
        upstream = "redis"
        [upstreams.redis]
        backends = ["10.0.0.1:6379", "10.0.0.2:6379", { address = "10.0.0.3:6379", backup = true }]
        [upstreams.redis.check]
        kind = "redis"
        role = "primary"
        user = "check"
        password_file = "/etc/tembuku/redis.password"
        [upstreams.sessions]
        balance = "consistent_hash"
        backends = ["10.0.0.1:6379"]
        [upstreams.quick]
        balance = "least_time"
        backends = ["10.0.0.1:6379"]
        [upstreams.web]
        backends = ["10.0.0.1:80"]
        [upstreams.web.check]
        kind = "http"
        host = "www.example.com"
        port = 8080
        [upstreams.plain]
        backends = ["10.0.0.1:6379"]
        [upstreams.plain.check]
        kind = "send_expect"
        send_hex = "50494e470d0a"
        expect_hex = "2b504f4e47"
        [upstreams.coded]
        backends = ["10.0.0.1:7"]
        [upstreams.coded.check]
        kind = "send_expect"
        address = "10.0.0.9:7"
        send = "PING\r\n"
        expect = "+PONG"
        [upstreams.replicas]
        on_role_lost = { close_after = "30s" }
        backends = ["10.0.0.1:6379"]
        [upstreams.replicas.check]
        kind = "redis"
        role = "replica"
        password_env = "REDIS_PASSWORD"
        max_lag = "30s"
        min_version = "7.0"
        tls = "verify"
        tls_ca = "/etc/tembuku/ca.pem"
        tls_name = "redis.example.com"
        [upstreams.standby]
        backends = ["10.0.0.1:5432"]
        [upstreams.standby.check]
        kind = "postgres"
        role = "replica"
        user = "tembuku"
        password_file = "/etc/tembuku/postgres.password"
        max_lag = "10s"
        max_lag_bytes = "16384k"
        [upstreams.readers]
        backends = ["10.0.0.1:3306"]
        [upstreams.readers.check]
        kind = "mysql"
        role = "replica"
        user = "check"
        password_file = "/etc/tembuku/mysql.password"
        max_lag = "30s"
        [upstreams.names]
        backends = ["10.0.0.1:53"]
        [upstreams.names.check]
        kind = "dns"
        [upstreams.mail]
        backends = ["10.0.0.1:25"]
        [upstreams.mail.check]
        kind = "send_expect"
        expect_regex = "^220 .* ESMTP"
    "#;
    let least = config::parse(least, "least").expect("valid");
    assert_eq!(reference, least);
    // With nothing in it [admin] is the port alone.
    let bare = config::parse(
        "[admin]\n[listeners.a]\nbind = \"0.0.0.0:1\"\nupstream = \"u\"\n[upstreams.u]\nbackends = [\"10.0.0.1:1\"]\n",
        "bare",
    );
    let admin = bare.expect("valid").admin.expect("on");
    let listen = reference.admin.as_ref().and_then(|admin| admin.listen);
    assert_eq!((admin.listen, admin.socket), (listen, None));
    // And the only thing that [admin] changes is that it is there.
    reference.admin = None;
    for upstream in &mut reference.upstreams {
        assert_eq!(upstream.on_drain, OnLeave::Keep);
    }
    let off = config::parse(&config::dump(&reference), "off").expect("valid");
    assert_eq!(off.admin, None);
}

#[test]
fn defaults_are_what_the_outside_promises() {
    let plan = config::load(&files("conf")["minimal.toml"]).expect("valid");
    let seconds = std::time::Duration::from_secs;
    assert_eq!(
        plan.process,
        Process {
            workers: 0,
            max_connections: 0,
            drain_timeout: seconds(30)
        }
    );
    assert_eq!(plan.admin, None);
    assert_eq!(
        plan.log,
        Log {
            level: LogLevel::Info,
            format: LogFormat::Auto,
            access: AccessLog::Off
        }
    );
    let keepalive = Keepalive {
        idle: seconds(60),
        interval: seconds(10),
        count: 3,
    };
    assert_eq!(
        plan.listeners,
        [Listener {
            name: "web".into(),
            bind: vec![Bind {
                text: "0.0.0.0:8080".into(),
                places: vec![Place::Tcp("0.0.0.0:8080".parse().expect("address"))],
            }],
            upstream: "web".into(),
            connect_timeout: seconds(5),
            idle_timeout: Some(seconds(600)),
            half_close_timeout: Some(seconds(60)),
            retries: 3,
            max_connections: 0,
            access: vec![],
            accept_proxy: None,
            backlog: 4096,
            socket: SocketOptions {
                nodelay: true,
                keepalive: Some(keepalive),
                user_timeout: None
            },
        }]
    );
    let backend = |text: &str| Backend {
        text: text.into(),
        target: Target::Place(Place::Tcp(text.parse().expect("address"))),
        weight: 1,
        max_fails: 1,
        fail_timeout: seconds(10),
        max_connections: 0,
        slow_start: seconds(0),
        backup: false,
        down: false,
    };
    assert_eq!(
        plan.upstreams,
        [Upstream {
            name: "web".into(),
            balance: Balance::RoundRobin,
            backends: vec![backend("10.0.0.1:8080"), backend("10.0.0.2:8080")],
            resolve_interval: Some(seconds(30)),
            resolve_required: true,
            send_proxy: SendProxy::Off,
            fail_on_reset: false,
            on_drain: OnLeave::Keep,
            check: None,
        }]
    );
}

#[test]
fn a_file_that_cannot_be_read_is_a_problem() {
    for (path, part) in [
        ("/nonexistent/tembuku.toml", "No such file"),
        ("/", "directory"),
        ("/dev/zero", "larger than"),
    ] {
        let problems = config::load(Path::new(path)).expect_err("no file");
        assert_eq!(problems.len(), 1);
        let text = problems.to_string();
        assert!(
            text.contains(part) && text.contains(path) && text.contains("hint"),
            "{text}"
        );
    }
    let path = std::env::temp_dir().join(format!("tembuku-latin1-{}.toml", std::process::id()));
    fs::write(&path, b"# fine\n# f\xfcr\n").expect("write");
    let problems = config::load(&path).expect_err("not UTF-8");
    fs::remove_file(&path).expect("remove");
    assert!(
        problems.to_string().contains("wrong byte in line 2"),
        "{problems}"
    );
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn flags_and_file_give_the_same_plan() {
    let flags = Flags {
        listen: strings(&["0.0.0.0:6379", "[::]:6379"]),
        to: strings(&["10.0.0.1:6379", "redis.example:6379"]),
        udp: false,
        balance: Some("consistent_hash".into()),
        admin: Some("127.0.0.1:9900".into()),
    };
    let file = r#"
        [admin]
        [listeners.main]
        bind = ["0.0.0.0:6379", "[::]:6379"]
        upstream = "main"
        [upstreams.main]
        balance = "consistent_hash"
        backends = ["10.0.0.1:6379", "redis.example:6379"]
    "#;
    assert_eq!(config::from_flags(&flags), config::parse(file, "file"));
}

#[test]
fn problems_on_the_command_line_name_the_flag() {
    let flags = Flags {
        listen: strings(&["0.0.0.0:80", "6379"]),
        to: strings(&["10.0.0.1:80", "10.0.0.2", ""]),
        udp: true,
        balance: Some("roundrobin".into()),
        admin: Some("localhost:1".into()),
    };
    let problems = config::from_flags(&flags).expect_err("wrong");
    let flags: Vec<_> = problems
        .iter()
        .map(|p| p.position.as_ref().and_then(|p| p.flag).expect("a flag"))
        .collect();
    assert_eq!(
        flags,
        ["--listen", "--to", "--to", "--udp", "--balance", "--admin"],
        "{problems}"
    );
    let text = problems.to_string();
    for part in [
        "error: the address \"10.0.0.2\" has no port\n --> --to\n",
        "hint: write \"10.0.0.2:PORT\"",
        "did you mean \"round_robin\"?",
        "`--udp` is not supported yet",
        "6 problems in the command line",
    ] {
        assert!(text.contains(part), "{part}:\n{text}");
    }

    let problems = config::from_flags(&Flags::default()).expect_err("nothing given");
    assert!(
        problems.to_string().contains("`--listen` is missing"),
        "{problems}"
    );
    assert!(
        problems.to_string().contains("`--to` is missing"),
        "{problems}"
    );
}
