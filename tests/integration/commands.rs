//! Commands believe nothing: an answer that lacks something is an error, and so is output that
//! cannot be written.

use crate::harness::{
    net::ask,
    poll, ports,
    proc::{self, text},
    secs,
    server::Server,
    tembuku::{Tembuku, binary, cli},
    temp::TempDir,
};
use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";

/// Gives each client this answer, whatever it asks.
fn impostor(dir: &TempDir, name: &str, answer: String) -> PathBuf {
    let path = dir.file(name);
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let mut line = String::new();
            while stream.read_line(&mut line).is_ok_and(|n| n > 2) {
                line.clear();
            }
            let _ = stream.get_mut().write_all(answer.as_bytes());
        }
    });
    path
}

/// A process that does not know the paths of newer ones.
fn older(dir: &TempDir, version: &str) -> PathBuf {
    let path = dir.file(&format!("{version}.sock"));
    let listener = UnixListener::bind(&path).unwrap();
    let status = format!(
        "{OK}\r\n{{\"process\":{{\"version\":\"{version}\"}},\"listeners\":[],\"upstreams\":[]}}"
    );
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let (mut first, mut line) = (String::new(), String::new());
            stream.read_line(&mut first).unwrap();
            while stream.read_line(&mut line).is_ok_and(|n| n > 2) {
                line.clear();
            }
            let answer = match first.contains(" /api/v1/status ") {
                true => &status,
                false => "HTTP/1.0 404 Not Found\r\n\r\nnot found; there are /, /metrics\n",
            };
            // What it was asked with is not read.
            let answer = answer.replace("HTTP/1.0", first.trim_end().rsplit(' ').next().unwrap());
            let _ = stream.get_mut().write_all(answer.as_bytes());
        }
    });
    path
}

#[test]
fn a_process_of_another_version_is_named_where_it_does_not_know_a_command() {
    let dir = TempDir::new();
    for (version, what) in [
        ("0.0.9", "tembuku 0.0.9 and does not know /api/v1/"),
        (
            env!("CARGO_PKG_VERSION"),
            " of another build and does not know /api/v1/",
        ),
    ] {
        let socket = older(&dir, version);
        let socket = socket.to_str().unwrap();
        for command in [
            &["upgrade"][..],
            &["reload"],
            &["events"],
            &["sessions"],
            &["rebalance", "u"],
            &["drain", "--node"],
            &["drain", "b:1"],
            &["weight", "u/b:1", "3"],
        ] {
            let output = cli(&[command, &["--socket", socket]].concat());
            assert_eq!(output.status.code(), Some(1), "{command:?}");
            let why = text(&output);
            let hint = "hint: for this command restart the process with this program";
            assert!(
                why.contains(what) && why.contains(hint),
                "{command:?}: {why}"
            );
        }
    }
}

fn commands(socket: &Path) -> Vec<Vec<String>> {
    let lines = [
        "status",
        "status --json",
        "drain u/b:1",
        "ready u/b:1",
        "maint u/b:1",
        "maint b:1",
        "ready b:1 --wait --timeout 1s",
        "drain u/b:1 --wait --timeout 1s",
    ];
    let socket = socket.to_str().unwrap();
    let arguments = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let with_socket = |line| [arguments(line), arguments(&format!("--socket {socket}"))].concat();
    lines.map(with_socket).to_vec()
}

fn run(arguments: &[String]) -> Output {
    cli(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn an_answer_that_lacks_something_is_an_error() {
    let dir = TempDir::new();
    let half = "{\"upstream\":\"u\",\"backend\":\"b:1\",\"admin_state\":\"drain\",\"from\":\"up\"";
    let other = "{\"upstream\":\"u\",\"backend\":\"other:1\",\"admin_state\":\"other\",\
                 \"from\":\"up\",\"state\":\"drained\",\"connections\":0}";
    let wrong = "{\"upstream\":\"u\",\"backend\":\"b:1\",\"admin_state\":\"drain\",\"from\":1,\
                 \"state\":null,\"connections\":\"0\"}";
    let bodies = [
        "{}",
        "[]",
        "null",
        "",
        "<!doctype html><title>welcome</title>",
        half,
        other,
        wrong,
        "{\"process\":{},\"listeners\":[],\"upstreams\":[]}",
        "{\"listeners\":[],\"upstreams\":[]}",
    ];
    let mut answers: Vec<String> = bodies
        .iter()
        .map(|body| format!("{OK}Content-Length: {}\r\n\r\n{body}", body.len()))
        .collect();
    answers.push(format!("{OK}Content-Length: 9\r\n\r\n{{}}"));
    answers.push(format!("{OK}\r\n{}", "x".repeat(1 << 20)));
    answers.push("HTTP/1.1 503 Busy\r\n\r\n{}".to_owned());
    answers.push("SSH-2.0-x\r\n".to_owned());
    for (n, answer) in answers.into_iter().enumerate() {
        let socket = impostor(&dir, &format!("{n}.sock"), answer.clone());
        let shown: String = answer.chars().take(200).collect();
        for arguments in commands(&socket) {
            let output = run(&arguments);
            assert_eq!(output.status.code(), Some(1), "{arguments:?} {shown}");
            assert_eq!(output.stdout, b"", "{arguments:?} {shown}");
            let why = String::from_utf8(output.stderr).unwrap();
            assert!(
                why.starts_with("error: ") && why.contains("hint: "),
                "{why}"
            );
            assert!(why.len() < 2_000, "{} bytes of errors", why.len());
        }
    }
}

/// Runs to its end with this standard output; the code, and what it complained of.
#[track_caller]
fn run_into(stdout: Stdio, arguments: &[String]) -> (Option<i32>, String) {
    let dir = TempDir::new();
    let errors = dir.file("err");
    let mut command = Command::new(binary());
    command
        .args(arguments)
        .env("NO_COLOR", "1")
        .env_remove("TEMBUKU_CONFIG")
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(File::create(&errors).unwrap());
    let mut child = proc::spawn(&mut command).unwrap();
    let status = poll(secs(10), || child.try_wait().unwrap());
    if status.is_none() {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let errors = fs::read_to_string(&errors).unwrap();
    let status = status.unwrap_or_else(|| panic!("{arguments:?} does not end: {errors}"));
    (status.code(), errors)
}

struct Setup {
    tembuku: Tembuku,
    _server: Server,
    /// Commands that write to standard output.
    lines: Vec<Vec<String>>,
}

fn setup() -> Setup {
    let server = Server::named("b1");
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[admin]\nsocket = \"{{dir}}/admin.sock\"\n[listeners.l]\nbind = \"{front}\"\n\
         upstream = \"u\"\n[upstreams.u]\nbackends = [\"{}\"]\n",
        server.addr
    ));
    assert_eq!(ask(front).unwrap(), "b1");
    let config = tembuku.dir.file("tembuku.toml");
    let config = config.to_str().unwrap();
    let target = format!("u/{}", server.addr);
    let lines = [
        format!("status -c {config}"),
        format!("status --json -c {config}"),
        format!("drain {target} -c {config}"),
        format!("drain {target} --wait -c {config}"),
        format!("maint {target} -c {config}"),
        format!("ready {target} -c {config}"),
        format!("check -c {config}"),
        format!("check --dump -c {config}"),
        format!("explain --client 10.0.0.1 -c {config}"),
        format!("explain --clients 10.0.0.0/24 --json -c {config}"),
        "--help".to_owned(),
        "--version".to_owned(),
        "help".to_owned(),
        "status --help".to_owned(),
        "help run".to_owned(),
    ];
    let arguments = |line: String| line.split(' ').map(str::to_owned).collect();
    Setup {
        tembuku,
        _server: server,
        lines: lines.map(arguments).to_vec(),
    }
}

#[test]
fn output_that_cannot_be_written_is_a_failure() {
    let mut setup = setup();
    setup.lines.push(vec!["demo".to_owned()]);
    for arguments in &setup.lines {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let (code, errors) = run_into(full.into(), arguments);
        assert_eq!(code, Some(1), "{arguments:?}: {errors}");
        assert!(
            errors.contains("cannot write to standard output"),
            "{errors}"
        );
    }
    // The last of the changes was put into effect all the same.
    let status = setup.tembuku.get("/api/v1/status").body;
    assert!(status.contains("\"admin_state\": \"ready\""), "{status}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let setup = setup();
    let last = "warning: upstream u has no backend left that takes sessions";
    let is_note = |line: &str| line.starts_with("note: ") || line.starts_with(last);
    for arguments in &setup.lines {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let (code, notes) = run_into(writer.into(), arguments);
        assert!(
            code == Some(0) && notes.lines().all(is_note),
            "{arguments:?}: {notes}"
        );
        let (mut reader, writer) = std::io::pipe().unwrap();
        let (code, notes) = run_into(writer.into(), arguments);
        assert!(
            code == Some(0) && notes.lines().all(is_note),
            "{arguments:?}: {notes}"
        );
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        assert!(!all.is_empty(), "{arguments:?}");
    }
}

/// A path of a megabyte is named in an error, but not in full.
#[test]
fn long_paths_are_cut_in_errors_of_a_start() {
    let dir = TempDir::new();
    let long = format!("/{}", "x".repeat(1 << 20));
    for (head, check) in [
        (format!("[log]\naccess = \"{long}\"\n"), String::new()),
        (
            String::new(),
            format!("kind = \"redis\"\npassword_file = \"{long}\"\n"),
        ),
        (
            String::new(),
            format!("kind = \"redis\"\ntls = \"verify\"\ntls_ca = \"{long}\"\n"),
        ),
    ] {
        let check = match check.is_empty() {
            true => check,
            false => format!("[upstreams.u.check]\n{check}"),
        };
        let config = dir.write(
            "tembuku.toml",
            &format!(
                "{head}[listeners.l]\nbind = \"{}\"\nupstream = \"u\"\n\
                 [upstreams.u]\nbackends = [\"127.0.0.1:1\"]\n{check}",
                ports::free_addr()
            ),
        );
        let output = cli(&["run", "-c", config.to_str().unwrap()]);
        let message = text(&output);
        assert_eq!(output.status.code(), Some(1), "{} bytes", message.len());
        assert!(
            message.contains("error: ") && message.contains('…'),
            "{} bytes",
            message.len()
        );
        assert!(message.len() < 5_000, "{} bytes", message.len());
    }
}

/// The error about a long command line is short.
#[test]
fn long_arguments_are_cut_in_errors() {
    let long = "x".repeat(100_000);
    let setup = setup();
    let config = setup.tembuku.dir.file("tembuku.toml");
    let config = config.to_str().unwrap();
    let target = format!("{long}/{long}");
    for arguments in [
        &["check", "-c", &long[..]][..],
        &["run", "--listen", &long, "--to", &long],
        &[
            "run",
            "--listen",
            "0.0.0.0:1",
            "--to",
            "a:1",
            "--balance",
            &long,
        ],
        &["drain", &target[..100_000], "-c", config],
        &[
            "explain",
            "--listener",
            &long,
            "--client",
            "10.0.0.1",
            "-c",
            config,
        ],
    ] {
        let output = cli(arguments);
        let message = text(&output);
        assert_ne!(output.status.code(), Some(0));
        assert!(
            message.len() < 5_000,
            "{:?}: {} bytes",
            &arguments[..2],
            message.len()
        );
    }
}

/// The help is whole, however long it is, and a file without `-c` is a hint.
#[test]
fn wrong_usage_shows_the_way() {
    let output = cli(&[]);
    let help = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        help.contains("upgrade") && help.ends_with("2 wrong usage.\n"),
        "{help}"
    );
    for command in ["run", "check"] {
        let output = cli(&[command, "tembuku.toml"]);
        let why = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(
            why.ends_with("tip: a configuration file is named by -c FILE\n"),
            "{why}"
        );
    }
}

/// As /run/tembuku after a start of the machine.
#[test]
fn the_folder_of_the_socket_is_made() {
    let tembuku = Tembuku::start(&format!(
        "[admin]\nsocket = \"{{dir}}/run/admin.sock\"\n\
         [listeners.l]\nbind = \"{}\"\nupstream = \"u\"\n[upstreams.u]\nbackends = [\"{}\"]\n",
        ports::free_addr(),
        ports::free_addr()
    ));
    let socket = tembuku.dir.file("run/admin.sock");
    let status = cli(&["status", "--socket", socket.to_str().unwrap()]);
    assert_eq!(status.status.code(), Some(0), "{}", text(&status));
}
