//! The configuration as a user meets it: examples, valid and invalid files, and what may never
//! happen.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use tembuku::internals::{
    config::{self, Flags},
    plan::*,
};

#[path = "config/diff.rs"]
mod diff;
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
    let folders = ["tests/config/valid", "conf", "packaging/keepalived"];
    for (name, path) in folders.into_iter().flat_map(files) {
        let plan = config::load(&path).unwrap_or_else(|problems| panic!("{name}:\n{problems}"));
        let dump = config::dump(&plan);
        let again = config::parse(&dump, "dump").unwrap_or_else(|p| panic!("{name}:\n{p}\n{dump}"));
        assert_eq!(plan, again, "{name}:\n{dump}");
        assert_eq!(config::dump(&again), dump);
    }
}

/// The exact output for each file. After a change on purpose: TEMBUKU_BLESS=1 cargo
/// test --test config, and read the difference.
#[test]
fn invalid_files_report_their_problems() {
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
fn five_mistakes_are_five_problems_with_positions_and_hints() {
    let path = &files("tests/config/invalid")["five_mistakes.toml"];
    let problems = config::load(path).expect_err("five mistakes");
    assert_eq!(problems.len(), 5);
    let positions: Vec<(usize, usize)> = problems
        .iter()
        .map(|problem| problem.position.as_ref().expect("a position"))
        .map(|position| (position.line, position.column))
        .collect();
    assert_eq!(positions, [(2, 1), (5, 8), (6, 12), (7, 16), (10, 11)]);
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
    let least = include_str!("config/reference.toml");
    let least = config::parse(least, "least").expect("valid");
    assert_eq!(reference, least);
    // With nothing in it [admin] is the port alone.
    let bare = config::parse(
        "[admin]\n[listeners.a]\nbind = \"0.0.0.0:1\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [\"10.0.0.1:1\"]\n",
        "bare",
    );
    let admin = bare.expect("valid").admin.expect("on");
    let listen = reference.admin.as_ref().and_then(|admin| admin.listen);
    assert_eq!((admin.listen, admin.socket), (listen, None));
    // And the only thing that [admin] changes is that it is there.
    reference.admin = None;
    for upstream in &mut reference.upstreams {
        let moves = upstream.name == "names";
        let gone = if moves {
            SessionAction::Move
        } else {
            SessionAction::Keep
        };
        assert_eq!((upstream.on_drain, upstream.on_removed), (gone, gone));
    }
    let off = config::parse(&config::dump(&reference), "off").expect("valid");
    assert_eq!(off.admin, None);
}

fn seconds(number: u64) -> std::time::Duration {
    std::time::Duration::from_secs(number)
}

#[test]
fn defaults_of_process_and_log_are_as_documented() {
    let plan = config::load(&files("conf")["minimal.toml"]).expect("valid");
    assert_eq!(
        plan.process,
        Process {
            workers: 0,
            max_connections: 0,
            max_flows: 0,
            start_wait: StartWait::Auto,
            drain_delay: seconds(0),
            drain_quiet: seconds(0),
            drain_timeout: seconds(30),
            ready_file: None,
            reload_on_change: false,
            handover: Handover::Sessions,
            nodes: 1,
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
}

#[test]
fn defaults_of_a_listener_are_as_documented() {
    let plan = config::load(&files("conf")["minimal.toml"]).expect("valid");
    let keepalive = Keepalive {
        idle: seconds(60),
        interval: seconds(10),
        count: 3,
    };
    assert_eq!(
        plan.listeners,
        [Listener {
            name: "web".into(),
            protocol: Protocol::Tcp,
            bind: vec![Bind {
                text: "0.0.0.0:8080".into(),
                addrs: vec![Addr::Tcp("0.0.0.0:8080".parse().expect("address"))],
            }],
            upstream: "web".into(),
            connect_timeout: seconds(5),
            idle_timeout: Some(seconds(600)),
            half_close_timeout: Some(seconds(60)),
            half_close: true,
            retries: 3,
            max_connections: 0,
            access: vec![],
            send_proxy: None,
            access_log: None,
            limits: Limits::default(),
            accept_proxy: None,
            backlog: 4096,
            freebind: false,
            socket: SocketOptions {
                nodelay: true,
                keepalive: Some(keepalive),
                user_timeout: Some(seconds(90))
            },
            unix: UnixFile {
                mode: 0o666,
                owner: None,
                group: None,
            },
        }]
    );
}

#[test]
fn defaults_of_an_upstream_are_as_documented() {
    let plan = config::load(&files("conf")["minimal.toml"]).expect("valid");
    let backend = |text: &str| Backend {
        origin: tembuku::internals::plan::Origin::Configured,
        text: text.into(),
        target: Target::Addr(Addr::Tcp(text.parse().expect("address"))),
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
            discover: None,
            name: "web".into(),
            balance: Balance::RoundRobin,
            backends: vec![backend("10.0.0.1:8080"), backend("10.0.0.2:8080")],
            resolve_interval: Some(seconds(30)),
            resolve_required: true,
            send_proxy: SendProxy::Off,
            fail_on_reset: false,
            backup_when: BackupWhen::Full,
            waits: Waits {
                queue_timeout: seconds(0),
                queue_length: 1000,
                queue_stick: seconds(0),
                hold_timeout: seconds(0),
                hold_length: 1000,
            },
            on_drain: SessionAction::Keep,
            on_removed: SessionAction::Keep,
            check: None,
            send_proxy_on: ProxyOn::First,
            flows_move: FlowsMove::WITHOUT_UDP,
        }]
    );
}

/// The plan of an upstream "u", and of a listener "l" of each of the protocols.
fn used_by(protocols: &[&str], defaults: &str, upstream: &str) -> Plan {
    let listeners: Vec<String> = protocols
        .iter()
        .map(|word| {
            format!(
                "[listeners.{word}]\nbind = \"0.0.0.0:53\"\nprotocol = \"{word}\"\n\
                 upstream = \"u\"\n"
            )
        })
        .collect();
    let text = format!(
        "[defaults]\n{defaults}\n{}[upstreams.u]\nbackends = [\"10.0.0.1:53\"]\n{upstream}\n",
        listeners.concat()
    );
    config::parse(&text, "test").unwrap_or_else(|problems| panic!("{text}\n{problems}"))
}

#[test]
fn a_udp_listener_has_its_own_defaults_and_none_of_tcp() {
    // What is written for listeners of TCP is none of its business.
    let defaults = "backlog = 7\nnodelay = false\nkeepalive = false\nuser_timeout = \"9s\"\n\
        connect_timeout = \"9s\"\nhalf_close_timeout = \"9s\"\nhalf_close = false\n\
        accept_proxy = { timeout = \"9s\" }";
    let plan = used_by(&["tcp", "udp"], defaults, "");
    let [tcp, udp] = &plan.listeners[..] else {
        panic!("two listeners")
    };
    assert_eq!((tcp.backlog, tcp.connect_timeout), (7, seconds(9)));
    assert_eq!(
        (tcp.idle_timeout, udp.idle_timeout),
        (Some(seconds(600)), Some(seconds(60)))
    );
    let plain = used_by(&["udp"], "accept_proxy = true", "");
    assert_eq!(*udp, plain.listeners[0]);
    assert_eq!((udp.backlog, udp.retries), (4096, 3));
    assert_eq!(
        udp.protocol,
        Protocol::Udp(Udp {
            responses: 0,
            requests: 0,
            per_packet: false,
            when_full: WhenFull::Refuse,
        })
    );
    // And the other way round; one that is for both holds for both.
    let defaults = "responses = 1\nrequests = 2\nper_packet = true\nwhen_full = \"evict\"\n\
        idle_timeout = \"5s\"";
    let plan = used_by(&["tcp", "udp"], defaults, "");
    for listener in &plan.listeners {
        assert_eq!(listener.idle_timeout, Some(seconds(5)));
    }
    assert_eq!(plan.listeners[0].protocol, Protocol::Tcp);
    assert_eq!(
        plan.listeners[1].protocol,
        Protocol::Udp(Udp {
            responses: 1,
            // Every datagram begins a flow.
            requests: 0,
            per_packet: true,
            when_full: WhenFull::Evict,
        })
    );
    let dump = config::dump(&plan);
    let (tcp, udp) = dump.split_once("[listeners.udp]").expect("two listeners");
    for (key, both) in [("backlog", false), ("nodelay", false), ("retries", true)] {
        assert!(tcp.contains(key), "{key} in\n{dump}");
        assert_eq!(udp.contains(key), both, "{key} in\n{dump}");
    }
    for key in ["responses", "when_full", "per_packet"] {
        assert!(udp.contains(key) && !tcp.contains(key), "{key} in\n{dump}");
    }
}

#[test]
fn flows_leave_a_backend_that_is_gone_unless_they_are_to_stay() {
    let check = "[upstreams.u.check]\nkind = \"tcp\"";
    let actions = |protocols: &[&str], defaults: &str, upstream: &str| {
        let plan = used_by(protocols, defaults, upstream);
        let upstream = &plan.upstreams[0];
        let on_down = upstream.check.as_ref().map(|check| check.on_down);
        let moves = (upstream.flows_move.down, upstream.flows_move.removed);
        (on_down, upstream.on_removed, moves)
    };
    use SessionAction::{Close, Keep, Move};
    for protocols in [&["udp"][..], &["tcp", "udp"]] {
        // Without a check the network may still report it.
        assert_eq!(actions(protocols, "", ""), (None, Move, (true, true)));
        assert_eq!(
            actions(protocols, "", check),
            (Some(Move), Move, (true, true))
        );
        let keep = "on_down = \"keep\"\non_removed = \"keep\"";
        assert_eq!(actions(protocols, "", keep), (None, Keep, (false, false)));
        assert_eq!(
            actions(protocols, keep, check),
            (Some(Keep), Keep, (false, false))
        );
        let moves = "on_down = \"move\"\non_removed = \"move\"";
        assert_eq!(actions(protocols, keep, moves), (None, Move, (true, true)));
        // `on_down` is here for upstreams that have a check.
        let close = "on_down = \"close\"\non_removed = \"close\"";
        assert_eq!(actions(protocols, close, ""), (None, Close, (true, true)));
        assert_eq!(
            actions(protocols, close, check),
            (Some(Close), Close, (true, true))
        );
    }
    assert_eq!(actions(&["tcp"], "", ""), (None, Keep, (false, false)));
    assert_eq!(
        actions(&["tcp"], "", check),
        (Some(Keep), Keep, (false, false))
    );
    let moves = "on_down = \"move\"\non_removed = \"move\"\non_lag = \"move\"";
    assert_eq!(
        actions(&["tcp"], moves, check),
        (Some(Keep), Keep, (false, false))
    );
    // A role and a lag have defaults of their own.
    let check = "[upstreams.u.check]\nkind = \"redis\"\nmax_lag = \"9s\"\nrole = \"replica\"";
    let plan = used_by(&["udp"], "", check);
    let moves = plan.upstreams[0].flows_move;
    assert_eq!((moves.role_lost, moves.lag), (true, false));
    let plan = used_by(
        &["udp"],
        "on_lag = \"move\"\non_role_lost = \"keep\"",
        check,
    );
    let moves = plan.upstreams[0].flows_move;
    assert_eq!((moves.role_lost, moves.lag), (false, true));
}

#[test]
fn a_mistake_in_a_listener_calls_nothing_useless() {
    for listener in [
        "protocol = \"upd\"\nupstream = \"u\"",
        "protocol = \"udp\"\nupstream = \"v\"",
    ] {
        let text = format!(
            "[process]\nmax_flows = 9\n\
             [listeners.a]\nbind = \"0.0.0.0:53\"\nresponses = 1\n{listener}\n\
             [upstreams.u]\nbackends = [\"unix:/a\"]\non_down = \"move\"\nsend_proxy = \"v2\"\n\
             send_proxy_on = \"each\"\n"
        );
        let problems = config::parse(&text, "test").expect_err("one mistake");
        assert_eq!(problems.len(), 1, "{problems}");
    }
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
    let flags = Flags { udp: true, ..flags };
    let file = file.replace(
        "upstream = \"main\"",
        "upstream = \"main\"\nprotocol = \"udp\"",
    );
    assert_eq!(config::from_flags(&flags), config::parse(&file, "file"));
}

#[test]
fn problems_on_the_command_line_name_the_flag() {
    let flags = Flags {
        listen: strings(&["0.0.0.0:80", "6379"]),
        to: strings(&["10.0.0.1:80", "10.0.0.2", "", "unix:/run/a.sock"]),
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
        ["--listen", "--to", "--to", "--to", "--balance", "--admin"],
        "{problems}"
    );
    let text = problems.to_string();
    for part in [
        "error: the address \"10.0.0.2\" has no port\n --> --to\n",
        "hint: write \"10.0.0.2:PORT\"",
        "did you mean \"round_robin\"?",
        "the UDP listener `main` cannot use the backend \"unix:/run/a.sock\"",
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

/// Whatever is long: messages, hints and excerpts are not.
#[test]
fn long_values_are_not_printed_in_full() {
    let long = "x".repeat(1 << 20);
    let spaced = "x y ".repeat(1 << 18);
    let with = |listener: &str, upstream: &str| {
        format!(
            "[listeners.l]\nbind = \"0.0.0.0:1\"\nupstream = \"u\"\n{listener}\n\
             [upstreams.u]\nbackends = [\"10.0.0.1:1\"]\n{upstream}\n"
        )
    };
    let mut texts = vec![
        long.clone(),
        format!("{long} = 1"),
        format!("[{long}]"),
        format!("[listeners.{long}]"),
        format!("[[{long}"),
        format!("a = \"{long}"),
        format!("a = {long}"),
        format!("a = [1, {long}"),
        format!("a = 1\n{long} = 1\n{long} = 2"),
        format!("[{long}]\n[{long}]"),
        "9".repeat(1 << 20),
        format!("a = {}", "9".repeat(1 << 20)),
        format!("[log]\naccess = \"{long}\""),
        format!("[log]\naccess = \"{long}/\""),
        format!("[admin]\nsocket = \"{long}\""),
        format!("[admin]\nlisten = \"{long}\""),
        format!("[process]\ndrain_timeout = \"{long}\""),
        format!("[listeners.l]\nbind = \"0.0.0.0:1\"\nupstream = \"{long}\""),
    ];
    for value in [&long, &spaced] {
        for key in [
            "bind",
            "protocol",
            "connect_timeout",
            "backlog",
            "keepalive",
            "accept_proxy",
        ] {
            texts.push(with(&format!("{key} = \"{value}\""), ""));
        }
        for entry in ["allow ", ""] {
            texts.push(with(&format!("access = [\"{entry}{value}\"]"), ""));
        }
        for key in [
            "balance",
            "hash_key",
            "on_down",
            "send_proxy",
            "resolve_interval",
            "check",
        ] {
            texts.push(with("", &format!("{key} = \"{value}\"")));
        }
        for address in ["", "unix:/", "10.0.0.1:", "[::1]:", "["] {
            let text = with("", "");
            texts.push(text.replace("10.0.0.1:1", &format!("{address}{value}")));
        }
        for (kind, key) in [
            ("http", "path"),
            ("http", "status"),
            ("dns", "query"),
            ("redis", "role"),
            ("redis", "min_version"),
            ("redis", "password_file"),
            ("send_expect", "expect_regex"),
            ("send_expect", "send_hex"),
        ] {
            let check = format!("[upstreams.u.check]\nkind = \"{kind}\"\n{key} = \"{value}\"");
            texts.push(with("", &check));
        }
    }
    for text in texts {
        // A few are valid, which is not the point here.
        let Err(problems) = config::parse(&text, "long.toml") else {
            continue;
        };
        let begin: String = text.chars().take(100).collect();
        for problem in problems.iter() {
            let hint = problem.hint.as_deref().unwrap_or_default();
            for text in [&problem.message[..], hint] {
                let length = text.chars().count();
                assert!(length <= 1_000, "{length} characters, for {begin}");
            }
        }
        let all = problems.to_string();
        assert!(
            all.len() < 3_000 * problems.len(),
            "{} bytes for {begin}",
            all.len()
        );
    }
    // Many wrong values in one long line.
    let many = format!("[listeners.l]\nbind = [{}]\n", "\"x\", ".repeat(50_000));
    let problems = config::parse(&many, "many.toml").expect_err("wrong");
    assert!(problems.to_string().len() < 1_000_000);
}
