//! Files named by the configuration that block: FIFOs without another end, or with a reader that
//! has stalled. None of them delays a signal, a session or the end, and none is found out about
//! only after a port was bound.

use crate::harness::{
    net::{ask, connect},
    poll, ports,
    proc::{self, Proc},
    secs,
    server::{Server, ask_many},
    tembuku::{Tembuku, binary},
    temp::TempDir,
    wait_until,
};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, mknodat},
    process::Signal,
};
use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::SocketAddr,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Instant,
};

fn fifo(dir: &TempDir, name: &str) -> PathBuf {
    let path = dir.file(name);
    mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    path
}

/// Opened for reading without waiting for a writer.
fn reader(path: &Path) -> File {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).unwrap().into()
}

/// A listener, a backend, and besides them the text of `head` and `check`.
fn configuration(front: SocketAddr, backend: SocketAddr, head: &str, check: &str) -> String {
    format!(
        "{head}\n[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [\"{backend}\"]\n{check}"
    )
}

fn checked(key: &str, path: &Path) -> String {
    let path = path.display();
    format!("[upstreams.u.check]\nkind = \"redis\"\ntls = \"verify\"\n{key} = \"{path}\"\n")
}

fn run(config: &Path) -> Command {
    let mut command = Command::new(binary());
    command
        .args(["run", "-c", config.to_str().unwrap()])
        .env("NO_COLOR", "1")
        .env_remove("TEMBUKU_CONFIG");
    command
}

/// Ends by itself with an error that has all of `parts`, and without having bound anything.
#[track_caller]
fn assert_refused(command: Command, parts: &[&str]) {
    let output = proc::run(secs(40), command);
    let message = proc::text(&output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    for part in parts {
        assert!(message.contains(part), "{part}: {message}");
    }
    for part in ["\"message\":\"listening\"", "\"message\":\"admin\""] {
        assert!(!message.contains(part), "{part}: {message}");
    }
}

#[test]
fn an_access_log_without_a_reader_is_an_error_before_any_port_is_bound() {
    let dir = TempDir::new();
    let path = fifo(&dir, "access.fifo");
    let head = format!(
        "[log]\naccess = \"{}\"\n[admin]\nlisten = \"{}\"",
        path.display(),
        ports::free_addr()
    );
    let text = configuration(ports::free_addr(), ports::free_addr(), &head, "");
    let config = dir.write("tembuku.toml", &text);
    let path = path.to_str().unwrap();
    assert_refused(run(&config), &["`access` in [log]", path, "FIFO"]);
}

#[test]
fn files_that_nothing_is_written_to_are_given_up() {
    let dir = TempDir::new();
    let start = |name: &str, key: &str| {
        let path = fifo(&dir, name);
        let check = checked(key, &path);
        let text = configuration(ports::free_addr(), ports::free_addr(), "", &check);
        let config = dir.write(&format!("{name}.toml"), &text);
        (run(&config), path)
    };
    let password = start("password", "password_file");
    let certificates = start("ca", "tls_ca");
    let config = fifo(&dir, "config");
    let mut check = Command::new(binary());
    check.args(["check", "-c", config.to_str().unwrap()]);
    thread::scope(|scope| {
        scope.spawn(|| {
            let path = password.1.to_str().unwrap();
            assert_refused(password.0, &["password file", path, "nothing was written"]);
        });
        scope.spawn(|| {
            let path = certificates.1.to_str().unwrap();
            assert_refused(certificates.0, &["`tls_ca`", path, "nothing was written"]);
        });
        scope.spawn(|| {
            let path = config.to_str().unwrap();
            assert_refused(run(&config), &[path, "nothing was written"]);
        });
        scope.spawn(|| {
            let path = config.to_str().unwrap();
            assert_refused(check, &[path, "nothing was written"]);
        });
    });
}

/// Whether a process has a file open, or waits in opening it.
fn has_open(proc: &Proc, path: &Path) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", proc.id())).unwrap();
    let mut open = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    open.any(|at| at == path)
}

#[test]
fn a_start_that_waits_for_a_file_may_be_stopped() {
    for (key, signal) in [
        ("password_file", Signal::TERM),
        ("password_file", Signal::INT),
        ("tls_ca", Signal::TERM),
    ] {
        let dir = TempDir::new();
        let path = fifo(&dir, "fifo");
        let front = ports::free_addr();
        let check = checked(key, &path);
        let text = configuration(front, ports::free_addr(), "", &check);
        let config = dir.write("tembuku.toml", &text);
        let mut proc = Proc::start("tembuku", dir.path(), run(&config));
        wait_until("it waits for the file", secs(10), || has_open(&proc, &path));
        assert!(connect(front).is_err(), "nothing is bound yet");
        let began = Instant::now();
        proc.signal(signal);
        assert!(proc.wait(secs(5)).is_some(), "{key}: {signal:?} is ignored");
        assert!(began.elapsed() < secs(5));
    }
}

#[test]
fn a_fifo_with_a_writer_is_read() {
    let server = Server::named("b1");
    let dir = TempDir::new();
    let (password, config) = (fifo(&dir, "password"), fifo(&dir, "config"));
    let (front, admin) = (ports::free_addr(), ports::free_addr());
    let head = format!("[admin]\nlisten = \"{admin}\"");
    let check = format!(
        "[upstreams.u.check]\nkind = \"redis\"\npassword_file = \"{}\"\n",
        password.display()
    );
    let text = configuration(front, server.addr, &head, &check);
    let mut proc = Proc::start("tembuku", dir.path(), run(&config));
    fs::write(&config, text).unwrap();
    fs::write(&password, "secret\n").unwrap();
    proc.wait_ready(secs(10), || connect(admin).is_ok());
    proc.signal(Signal::TERM);
    assert_eq!(proc.wait(secs(10)).unwrap().code(), Some(0));
}

struct Logged {
    tembuku: Tembuku,
    front: SocketAddr,
    _server: Server,
    path: PathBuf,
    reader: File,
    _dir: TempDir,
}

/// With an access log in a FIFO that has a reader.
fn logged() -> Logged {
    let server = Server::named("b1");
    let front = ports::free_addr();
    let dir = TempDir::new();
    let path = fifo(&dir, "access.fifo");
    let reader = reader(&path);
    rustix::pipe::fcntl_setpipe_size(&reader, 4096).unwrap();
    let head = format!("[log]\naccess = \"{}\"", path.display());
    let tembuku = Tembuku::start(&configuration(front, server.addr, &head, ""));
    Logged {
        tembuku,
        front,
        _server: server,
        path,
        reader,
        _dir: dir,
    }
}

#[test]
fn a_stalled_reader_delays_no_session_and_no_end() {
    let mut logged = logged();
    // Many times what the pipe holds.
    assert_eq!(ask_many(logged.front, 300).len(), 300);
    logged.tembuku.wait_idle();
    logged.tembuku.proc.signal(Signal::USR1);
    assert_eq!(ask(logged.front).unwrap(), "b1");
    let began = Instant::now();
    assert_eq!(logged.tembuku.terminate().code(), Some(0));
    assert!(began.elapsed() < secs(8));
    let log = logged.tembuku.proc.stderr();
    assert!(log.contains("last lines are lost"), "{log}");
}

#[test]
fn a_reader_that_leaves_costs_lines_which_are_counted() {
    let mut logged = logged();
    ask(logged.front).unwrap();
    wait_until("the first line", secs(10), || {
        let mut bytes = [0; 4096];
        logged.reader.read(&mut bytes).is_ok_and(|n| n > 0)
    });
    drop(logged.reader);
    assert_eq!(ask_many(logged.front, 20).len(), 20);
    let dropped = |n| n == 20.0;
    logged
        .tembuku
        .wait_metric("access_log_dropped_total", &[], dropped);
    // Without a reader there is nothing to reopen; with the next one it goes on.
    logged.tembuku.proc.signal(Signal::USR1);
    wait_until("it could not reopen", secs(10), || {
        logged.tembuku.proc.stderr().contains("cannot reopen")
    });
    let mut next = reader(&logged.path);
    assert_eq!(ask(logged.front).unwrap(), "b1");
    let line = poll(secs(10), || {
        let mut bytes = [0; 4096];
        let n = next.read(&mut bytes).unwrap_or_default();
        (n > 0).then(|| String::from_utf8_lossy(&bytes[..n]).into_owned())
    });
    assert!(line.unwrap().contains("\"listener\":\"l\""));
    assert_eq!(logged.tembuku.terminate().code(), Some(0));
}

/// A socket that lives but does not accept, and whose queue is full.
#[test]
fn a_full_queue_at_the_path_of_a_socket_is_no_wait() {
    for key in ["admin", "listener"] {
        let dir = TempDir::new();
        let path = dir.file("s.sock");
        let owner = UnixListener::bind(&path).unwrap();
        rustix::net::listen(&owner, 0).unwrap();
        let mut clients = Vec::new();
        loop {
            let kind = socket2::Type::STREAM.nonblocking();
            let client = socket2::Socket::new(socket2::Domain::UNIX, kind, None).unwrap();
            let address = socket2::SockAddr::unix(&path).unwrap();
            if client.connect(&address).is_err() {
                break;
            }
            clients.push(client);
        }
        let at = path.display();
        let (head, bind) = match key {
            "admin" => (
                format!("[admin]\nsocket = \"{at}\""),
                ports::free_addr().to_string(),
            ),
            _ => (String::new(), format!("unix:{at}")),
        };
        let text = format!(
            "{head}\n[listeners.l]\nbind = \"{bind}\"\nupstream = \"u\"\n\
             [upstreams.u]\nbackends = [\"127.0.0.1:1\"]\n"
        );
        let config = dir.write("tembuku.toml", &text);
        assert_refused(run(&config), &[path.to_str().unwrap(), "in use"]);
    }
}

/// What is read from a pipe, as a shell's process substitution makes one, is a configuration, too.
#[test]
fn a_configuration_may_come_from_a_pipe() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let text = configuration(ports::free_addr(), ports::free_addr(), "", "");
    writer.write_all(text.as_bytes()).unwrap();
    drop(writer);
    let mut command = Command::new(binary());
    command.args(["check", "-c", "/dev/stdin"]).stdin(reader);
    let output = proc::output(&mut command);
    assert!(output.status.success(), "{}", proc::text(&output));
}
