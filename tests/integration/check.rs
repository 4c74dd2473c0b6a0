//! The command line: messages about a configuration, and the exit codes.

use crate::harness::{
    net::ask,
    ports,
    proc::{self, command, output, text},
    programs::Redis,
    secs,
    server::{Server, list, named},
    tembuku::{Tembuku, binary, cli, copy_binary},
    temp::TempDir,
};
use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    process::{Command, Output},
};

const VALID: &str = r#"
[process]
workers = 2
drain_timeout = "5s"

[defaults]
connect_timeout = "1s"

[listeners.front]
bind = ["127.0.0.1:7001", "[::1]:7001"]
upstream = "back"
idle_timeout = "10m"
access = ["allow 127.0.0.0/8", "deny all"]

[upstreams.back]
balance = "consistent_hash"
hash_key = "$remote_addr"
backends = [
  "127.0.0.1:7101",
  { address = "127.0.0.1:7102", weight = 3, max_fails = 2, fail_timeout = "3s" },
  { address = "127.0.0.1:7103", down = true },
]
"#;

#[track_caller]
fn check(config: &str, more: &[&str]) -> Output {
    let dir = TempDir::new();
    let file = dir.write("tembuku.toml", config);
    let mut args = vec!["check", "-c", file.to_str().unwrap()];
    args.extend(more);
    cli(&args)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_valid_configuration() {
    let output = check(VALID, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
}

/// Whatever a start would be refused for because of files is found before, and nothing is made.
#[test]
fn files_that_a_start_could_not_open_are_found() {
    let dir = TempDir::new();
    dir.write("plain", "");
    dir.write("other", "");
    let [plain, other, missing] = ["plain", "other", "missing"].map(|name| dir.file(name));
    let (plain, other, missing) = (plain.display(), other.display(), missing.display());
    let config = format!(
        "[process]\nready_file = \"{missing}/ready\"\n\
         [log]\naccess = \"{missing}/deep/access.log\"\n\
         [admin]\nsocket = \"{other}\"\n\
         [listeners.a]\nbind = \"unix:{plain}\"\nupstream = \"u\"\n\
         access_log = \"{plain}/own.log\"\n\
         [listeners.b]\nbind = \"unix:{missing}/b.sock\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [\"127.0.0.1:1\"]\n\
         [upstreams.u.check]\nkind = \"redis\"\npassword_file = \"{missing}/password\"\n"
    );
    let output = check(&config, &[]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let found = stderr(&output);
    let expected = [
        format!("`ready_file` in [process]: cannot write {missing}/ready: No such file"),
        format!(
            "`access` in [log]: cannot open the access log {missing}/deep/access.log: No such file"
        ),
        format!("listener a: `access_log`: cannot open the access log {plain}/own.log: Not a dir"),
        format!("listener a: cannot listen on unix:{plain}: the path exists and is not a socket"),
        format!("listener b: cannot listen on unix:{missing}/b.sock: No such file"),
        format!("{missing}/password"),
        format!("admin: cannot listen on {other}: the path exists and is not a socket"),
    ];
    for line in &expected {
        assert!(found.contains(line), "no {line} in\n{found}");
    }
    assert_eq!(found.matches("error: ").count(), expected.len(), "{found}");
    assert!(!dir.file("missing").exists());
    let output = check(&config, &["--file-only"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    // Names of groups are looked up, too.
    let group = config.replace(
        "\nbind = \"unix:",
        "\nunix_group = \"no-such\"\nbind = \"unix:",
    );
    let found = stderr(&check(&group, &[]));
    assert_eq!(
        found.matches("there is no group \"no-such\"").count(),
        2,
        "{found}"
    );
    // With folders that are there the same file is good, and nothing is made.
    std::fs::create_dir(dir.file("missing")).unwrap();
    dir.write("missing/password", "s3cret");
    let config = config.replace("/deep/", "/logs/");
    let config = config.replace(&format!("{plain}/own"), &format!("{missing}/own"));
    let config = config.replace(&format!("unix:{plain}"), &format!("unix:{missing}/a.sock"));
    let config = config.replace(&format!("{other}"), &format!("{missing}/admin.sock"));
    let output = check(&config, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let made = std::fs::read_dir(dir.file("missing")).unwrap().count();
    assert_eq!(made, 1, "the password alone");
}

/// Each address has a socket for each worker, and each socket takes a descriptor.
#[test]
fn a_shortage_of_descriptors_names_the_limit_and_the_way_out() {
    let dir = TempDir::new();
    let addresses: Vec<String> = (1..=100).map(|n| format!("\"127.0.98.{n}:19\"")).collect();
    let config = format!(
        "[process]\nworkers = 4\n[listeners.l]\nbind = [{}]\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [\"127.0.0.1:1\"]\n",
        addresses.join(", ")
    );
    let file = dir.write("tembuku.toml", &config);
    let script = format!(
        "ulimit -n 100 && exec {} run -c {}",
        binary().display(),
        file.display()
    );
    let output = output(Command::new("sh").args(["-c", &script]));
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let shown = stderr(&output);
    for part in [
        "Too many open files",
        "the listeners need 400 sockets, one for each address and worker",
        "may have 100 files and sockets open",
        "LimitNOFILE=",
        "ulimit -n",
    ] {
        assert!(shown.contains(part), "no {part} in\n{shown}");
    }
}

/// However many threads have been started by then. The limit is that of a user alone.
#[test]
fn a_shortage_of_threads_names_the_way_out() {
    let dir = TempDir::new();
    let copy = dir.file("tembuku");
    copy_binary(&copy);
    let config = "[process]\nworkers = 2\n[listeners.l]\nbind = \"127.0.0.1:0\"\n\
                  upstream = \"u\"\n[upstreams.u]\nbackends = [\"127.0.0.1:1\"]\n";
    let file = dir.write("tembuku.toml", config);
    for threads in 1..=3 {
        let mut run = command("setpriv --reuid=64123 --regid=64123 --clear-groups prlimit");
        run.arg(format!("--nproc={threads}:{threads}")).arg(&copy);
        run.args(["run", "-c", file.to_str().unwrap()]);
        let output = proc::run(secs(20), run);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        let shown = stderr(&output);
        for part in [
            "Resource temporarily unavailable",
            "TasksMax=",
            "LimitNPROC=",
        ] {
            assert!(shown.contains(part), "{threads}: no {part} in\n{shown}");
        }
        assert!(!shown.contains("name another"), "{shown}");
    }
}

/// Line by line, so that the positions in the messages are easy to count.
const MISTAKEN: &str = r#"[listeners.front]
bind = "127.0.0.1:7001"
upstream = "bakc"
retires = 3
idle_timeout = 600

[upstreams.back]
balance = "round_robbin"
backends = ["127.0.0.1:7101", { address = "127.0.0.1:7102", weight = -1 }]
"#;

#[test]
fn five_mistakes_are_five_problems() {
    let output = check(MISTAKEN, &[]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert_eq!(stdout(&output), "", "data alone goes to stdout");
    let message = stderr(&output);
    // Each with its position, as `file:line:column`, its excerpt and what to do about it.
    for (line, column, excerpt) in [
        (3, 12, "upstream = \"bakc\""),
        (4, 1, "retires = 3"),
        (5, 16, "idle_timeout = 600"),
        (8, 11, "balance = \"round_robbin\""),
        (9, 70, "weight = -1"),
    ] {
        let position = format!("tembuku.toml:{line}:{column}");
        assert!(message.contains(&position), "no {position} in\n{message}");
        assert!(message.contains(excerpt), "no {excerpt} in\n{message}");
    }
    let positions = message.matches("tembuku.toml:").count();
    assert_eq!(positions, 5, "positions in\n{message}");
    for hint in ["retries", "\"back\"", "round_robin", "600s"] {
        assert!(message.contains(hint), "no hint at {hint} in\n{message}");
    }
    assert!(message.contains('5'), "no count in\n{message}");
    assert!(
        !message.contains('\u{1b}'),
        "colour in spite of NO_COLOR:\n{message}"
    );
}

#[test]
fn run_refuses_what_check_refuses() {
    let dir = TempDir::new();
    let file = dir.write("tembuku.toml", MISTAKEN);
    let output = cli(&["run", "-c", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert_eq!(
        stderr(&output).matches("tembuku.toml:").count(),
        5,
        "{}",
        text(&output)
    );
}

#[test]
fn syntax_errors_have_a_position_too() {
    let output = check(
        "[listeners.front]\nbind = \"127.0.0.1:7001\nupstream = \"u\"\n",
        &[],
    );
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(
        stderr(&output).contains("tembuku.toml:2:"),
        "{}",
        text(&output)
    );
}

#[test]
fn each_of_these_is_an_error() {
    let with = |listener: &str, upstream: &str| {
        format!(
            "[listeners.l]\nbind = \"127.0.0.1:7001\"\nupstream = \"u\"\n{listener}\n\
             [upstreams.u]\nbackends = [\"127.0.0.1:7101\"]\n{upstream}\n"
        )
    };
    assert_eq!(check(&with("", ""), &[]).status.code(), Some(0));
    for (config, word) in [
        (with("idle_timeout = 10", ""), "idle_timeout"),
        (with("idle_timeout = \"soon\"", ""), "idle_timeout"),
        (with("retries = -1", ""), "retries"),
        (with("retries = \"3\"", ""), "retries"),
        (with("nodelay = 1", ""), "nodelay"),
        (with("protocol = \"sctp\"", ""), "sctp"),
        (with("access = [\"allow 10.0.0.0/33\"]", ""), "10.0.0.0/33"),
        (with("access = [\"permit all\"]", ""), "permit"),
        (with("max_connections = 1.5", ""), "max_connections"),
        (with("", "hash_key = \"$uri\""), "$uri"),
        (
            with("", "balance = \"consistent_hash\"\nhash_key = \"$uri\""),
            "$uri",
        ),
        (with("", "resolve_interval = 30"), "resolve_interval"),
        (with("", "[upstreams.v]\nbackends = []"), "backends"),
        (
            with("", "[upstreams.v]\nbackends = [\"127.0.0.1\"]"),
            "127.0.0.1",
        ),
        (
            with("", "[upstreams.v]\nbackends = [\"127.0.0.1:99999\"]"),
            "99999",
        ),
        (
            with("", "[upstreams.v]\nbackends = [{ weight = 1 }]"),
            "address",
        ),
        (with("", "[proces]\nworkers = 1"), "proces"),
        (
            with(
                "",
                "[listeners.m]\nbind = \"127.0.0.1:7001\"\nupstream = \"u\"",
            ),
            "7001",
        ),
        (
            with(
                "",
                "[listeners.m]\nbind = \"127.0.0.1:7010-7002\"\nupstream = \"u\"",
            ),
            "7010-7002",
        ),
        (with("", "[listeners.m]\nupstream = \"u\""), "bind"),
        (
            with("", "[listeners.m]\nbind = \"127.0.0.1:7002\""),
            "upstream",
        ),
        (with("", "[log]\nlevel = \"loud\""), "loud"),
        (with("accept_proxy = { trust = [] }", ""), "trust"),
        (with("", "send_proxy = \"v3\""), "v3"),
        (with("protocol = \"upd\"", ""), "did you mean \"udp\"?"),
        (
            with("responses = 1", ""),
            "does nothing with protocol = \"tcp\"",
        ),
        (with("", "on_drain = \"close\""), "without an admin socket"),
        (
            with("", "on_down = \"close\""),
            "does nothing without a check",
        ),
        (
            with("", "[upstreams.u.check]\nkind = \"mysql\""),
            "`user` is missing",
        ),
    ] {
        let output = check(&config, &[]);
        assert_eq!(
            output.status.code(),
            Some(1),
            "{word}:\n{config}\n{}",
            text(&output)
        );
        let message = stderr(&output);
        assert!(
            message.contains(word),
            "no {word} in\n{message}\nfor\n{config}"
        );
        assert!(
            message.contains("tembuku.toml:"),
            "no position in\n{message}\nfor\n{config}"
        );
    }
}

#[test]
fn the_dump_passes_the_check() {
    let first = check(VALID, &["--dump"]);
    assert_eq!(first.status.code(), Some(0), "{}", text(&first));
    let dump = stdout(&first);
    for message in [
        "retries = 3",
        "half_close_timeout = \"1m\"",
        "connect_timeout = \"1s\"",
        "max_fails = 2",
    ] {
        assert!(dump.contains(message), "no {message} in\n{dump}");
    }
    // Valid, and complete: nothing is added the second time.
    let second = check(&dump, &["--dump"]);
    assert_eq!(second.status.code(), Some(0), "{}", text(&second));
    assert_eq!(stdout(&second), dump);
    // From a pipe as from a file.
    let dir = TempDir::new();
    dir.write("tembuku.toml", VALID);
    let mut pipe = std::process::Command::new("sh");
    pipe.args([
        "-c",
        "\"$0\" check -c tembuku.toml --dump | \"$0\" check -c /dev/stdin",
    ]);
    pipe.arg(crate::harness::tembuku::binary())
        .current_dir(dir.path());
    let output = crate::harness::proc::run(crate::harness::secs(10), pipe);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
}

#[test]
fn the_dump_runs() {
    let servers = named(2);
    let front = ports::free_addr();
    let config = format!(
        "[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n[upstreams.u]\nbackends = {}\n",
        list(&servers)
    );
    let dump = check(&config, &["--dump"]);
    let dump = stdout(&dump);
    assert!(!dump.contains("[admin]"), "what is absent is off:\n{dump}");
    let _tembuku = Tembuku::start(&dump);
    assert!(ask(front).is_ok());
}

#[test]
fn exit_codes() {
    for (args, code) in [
        (&["--version"][..], 0),
        (&["--help"], 0),
        (&["run", "--help"], 0),
        (&[], 2),
        (&["fly"], 2),
        (&["run", "--no-such-option"], 2),
        (&["run", "--listen", "127.0.0.1:7001"], 2),
        (&["check", "-c", "/no/such/file.toml"], 1),
        (&["run", "-c", "/no/such/file.toml"], 1),
    ] {
        let output = cli(args);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{args:?}\n{}",
            text(&output)
        );
        assert!(
            !stderr(&output).contains("panicked"),
            "{args:?}\n{}",
            text(&output)
        );
    }
    assert!(stdout(&cli(&["--version"])).starts_with("tembuku "));
    assert!(stderr(&cli(&["check", "-c", "/no/such/file.toml"])).contains("/no/such/file.toml"));
}

#[test]
fn a_name_that_does_not_resolve() {
    let servers = named(1);
    let front = ports::free_addr();
    // The top-level domain is reserved for never existing.
    let config = |more: &str| {
        format!(
            "[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n[upstreams.u]\n{more}\n\
             backends = [\"no-such-host.invalid:7\", \"{}\"]\n",
            servers[0].addr
        )
    };
    let dir = TempDir::new();
    let file = dir.write("tembuku.toml", &config(""));
    let output = cli(&["run", "-c", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(
        stderr(&output).contains("no-such-host.invalid"),
        "{}",
        text(&output)
    );
    // Without the requirement it works with what it has.
    let _tembuku = Tembuku::start(&config("resolve_required = false"));
    assert_eq!(ask(front).unwrap(), "b1");
    assert_eq!(ask(front).unwrap(), "b1");
}

#[test]
fn the_configuration_named_by_the_environment() {
    let dir = TempDir::new();
    let file = dir.write("mine.toml", MISTAKEN);
    let mut command = std::process::Command::new(crate::harness::tembuku::binary());
    command
        .arg("check")
        .env("TEMBUKU_CONFIG", &file)
        .env("NO_COLOR", "1");
    let output = crate::harness::proc::run(crate::harness::secs(10), command);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(
        stderr(&output).contains("mine.toml:3:12"),
        "{}",
        text(&output)
    );
}

#[test]
fn an_argument_that_is_no_text_is_a_mistake_like_another() {
    for args in [&[&b"\xff"[..]][..], &[b"run", b"\xff"], &[b"\xff", b"run"]] {
        let mut command = std::process::Command::new(crate::harness::tembuku::binary());
        command
            .args(args.iter().map(|arg| OsStr::from_bytes(arg)))
            .env("NO_COLOR", "1");
        let output = crate::harness::proc::run(crate::harness::secs(10), command);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        assert!(!stderr(&output).contains("panicked"), "{}", text(&output));
    }
}

/// It is started as a replica, and cannot have the data of its primary yet.
#[test]
fn a_replica_that_has_not_synchronised_yet_is_worth_another_try() {
    let closed = ports::free_addr().port().to_string();
    let following = ["--replicaof", "127.0.0.1", &closed];
    let replica = Redis::start_with(ports::free_addr(), &following);
    let config = |role: &str| {
        format!(
            "[listeners.a]\nbind = \"127.0.0.1:1\"\nupstream = \"redis\"\n\
             [upstreams.redis]\nbackends = [\"{}\"]\n\
             [upstreams.redis.check]\nkind = \"redis\"\nrole = \"{role}\"\n",
            replica.addr
        )
    };
    for (role, result) in [("primary", "wrong_role"), ("replica", "not_replicating")] {
        let output = check(&config(role), &["--probe"]);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert!(stdout(&output).contains(result), "{}", text(&output));
        assert!(
            stdout(&output).contains("\nFAIL   redis/"),
            "{}",
            text(&output)
        );
        let hint = "its first synchronisation, answer as they have to after that: try again";
        assert!(stderr(&output).contains(hint), "{}", text(&output));
    }
}

#[test]
fn a_login_that_is_refused_names_the_keys() {
    let redis = Redis::start_with(ports::free_addr(), &["--requirepass", "secret"]);
    let config = format!(
        "[listeners.a]\nbind = \"127.0.0.1:1\"\nupstream = \"redis\"\n\
         [upstreams.redis]\nbackends = [\"{}\"]\n\
         [upstreams.redis.check]\nkind = \"redis\"\n",
        redis.addr
    );
    let output = check(&config, &["--probe"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(stdout(&output).contains("NOAUTH"), "{}", text(&output));
    let hint = "set `password_file` (or `password_env`) and, for an account, `user`";
    assert!(stderr(&output).contains(hint), "{}", text(&output));
}

/// Each of them would take writes.
#[test]
fn several_primaries_are_an_error_and_so_is_none() {
    let servers = [(); 2].map(|()| Redis::start(ports::free_addr()));
    let [one, two] = [0, 1].map(|n| servers[n].addr.to_string());
    let config = |role: &str| {
        format!(
            "[listeners.a]\nbind = \"127.0.0.1:1\"\nupstream = \"writers\"\n\
             [upstreams.writers]\nbackends = [\"{one}\", \"{two}\"]\n\
             [upstreams.writers.check]\nkind = \"redis\"\nrole = \"{role}\"\n"
        )
    };
    let output = check(&config("primary"), &["--probe"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let line = format!("error: upstream writers: 2 backends are primary: {one}, {two}; ");
    assert!(stderr(&output).starts_with(&line), "{}", text(&output));
    let output = check(&config("any"), &["--probe"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    drop(servers);
    let output = check(&config("primary"), &["--probe"]);
    let line = "upstream writers: no server is primary";
    assert!(stderr(&output).contains(line), "{}", text(&output));
}

#[test]
fn the_source_of_an_upstream_is_named_and_asked_by_a_probe() {
    let dir = TempDir::new();
    let server = Server::named("b1");
    let list = dir.write("backends", &server.addr.to_string());
    let config = |path: &str| {
        format!(
            "[listeners.a]\nbind = \"127.0.0.1:1\"\nupstream = \"app\"\n\
             [upstreams.app.discover]\nkind = \"file\"\npath = \"{path}\"\n"
        )
    };
    let config = |path: &std::path::Path| config(path.to_str().unwrap());
    let output = check(&config(&list), &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let shown = stdout(&output);
    assert!(
        shown.contains("1 upstream, 0 backends in the file\n"),
        "{shown}"
    );
    let line = "\nupstream app: further backends come from its source (file), which was not asked";
    assert!(shown.contains(line), "{shown}");
    let output = check(&config(&list), &["--probe"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let shown = stdout(&output);
    let line = "upstream app: its source (file) names 1 backend\n";
    assert!(shown.starts_with(line), "{shown}");
    assert!(
        shown.contains(&format!("\nok     app/{}", server.addr)),
        "{shown}"
    );
    let output = check(&config(&dir.file("missing")), &["--probe"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let line = "error: upstream app: its source (file) has no usable answer: ";
    assert!(stderr(&output).contains(line), "{}", text(&output));
}

/// As the running process would, with passwords; and a connect where there is no check.
#[test]
fn every_backend_is_asked_once() {
    let primary = Redis::start_with(ports::free_addr(), &["--requirepass", "s3cret"]);
    let replica = Redis::start_with(
        ports::free_addr(),
        &[
            "--requirepass",
            "s3cret",
            "--masterauth",
            "s3cret",
            "--replicaof",
            "127.0.0.1",
            &primary.addr.port().to_string(),
        ],
    );
    let other = Redis::start_with(ports::free_addr(), &["--requirepass", "0ther"]);
    let server = Server::named("b1");
    let (closed, disabled, udp) = (ports::free_addr(), ports::free_addr(), ports::free_addr());
    let dir = TempDir::new();
    let password = dir.write("password", "s3cret");
    let config = |more: &str| {
        format!(
            "[listeners.a]\nbind = \"127.0.0.1:1\"\nupstream = \"redis\"\n\
             [listeners.b]\nbind = \"127.0.0.1:2\"\nupstream = \"plain\"\n\
             [listeners.c]\nbind = \"127.0.0.1:3\"\nprotocol = \"udp\"\nupstream = \"names\"\n\
             [upstreams.redis]\nbackends = [\"{}\", \"{}\"{more}]\n\
             [upstreams.redis.check]\nkind = \"redis\"\nrole = \"primary\"\n\
             password_file = \"{}\"\n\
             [upstreams.plain]\nbackends = [\"{}\", {{ address = \"{disabled}\", down = true }}]\n\
             [upstreams.names]\nbackends = [\"{udp}\"]\n",
            primary.addr,
            replica.addr,
            password.display(),
            server.addr,
        )
    };
    let output = check(&config(""), &["--probe"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let fields = |output: &Output| -> Vec<Vec<String>> {
        let lines = stdout(output);
        let lines = lines.lines().skip(1);
        lines
            .map(|line| line.split_whitespace().map(str::to_owned).collect())
            .collect()
    };
    let expected = [
        (format!("redis/{}", primary.addr), "ok", "primary"),
        (format!("redis/{}", replica.addr), "standby", "replica"),
        (format!("plain/{}", server.addr), "ok", "-"),
        (format!("plain/{disabled}"), "-", "-"),
        (format!("names/{udp}"), "-", "-"),
    ];
    let rows = fields(&output);
    assert_eq!(rows.len(), expected.len(), "{}", text(&output));
    for (row, (name, result, role)) in rows.iter().zip(&expected) {
        assert_eq!(row[1..4], [name, *result, *role], "{}", text(&output));
    }
    assert!(
        stdout(&output).contains("PING: PONG, ROLE: master"),
        "{}",
        text(&output)
    );
    assert_eq!(server.accepted(), 1);

    let more = format!(", \"{}\", \"{closed}\"", other.addr);
    let output = check(&config(&more), &["--probe"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let rows = fields(&output);
    assert_eq!(
        (&*rows[2][2], &*rows[3][2]),
        ("auth", "refused"),
        "{}",
        text(&output)
    );
    let marks: Vec<&str> = rows.iter().map(|row| &*row[0]).collect();
    assert_eq!(marks, ["ok", "ok", "FAIL", "FAIL", "ok", "-", "-"]);
    assert!(
        stderr(&output).contains("2 of 7 backends failed\n  hint: a server wants a password"),
        "{}",
        text(&output)
    );
    assert!(!text(&output).contains("s3cret"), "{}", text(&output));
    // A file that is not there is an error as at a start.
    let missing = config("").replace(password.to_str().unwrap(), "/nowhere/password");
    let output = check(&missing, &["--probe"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("/nowhere/password"),
        "{}",
        text(&output)
    );
}
