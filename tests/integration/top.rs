//! `tembuku top` in a terminal of tmux: what it shows, its keys, and the terminal afterwards.

use crate::harness::{
    net, poll, ports,
    proc::{self, run_ok, text},
    secs,
    server::{Server, named},
    tembuku::{Tembuku, binary, cli},
    temp::TempDir,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{fs, io::Write as _, net::SocketAddr, path::PathBuf, process::Command};

/// A terminal of 80 columns and 24 lines with a shell.
struct Terminal {
    server: PathBuf,
    _dir: TempDir,
}

impl Terminal {
    fn start() -> Self {
        let dir = TempDir::new();
        let terminal = Self {
            server: dir.file("tmux"),
            _dir: dir,
        };
        terminal.tmux(&[
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            "80",
            "-y",
            "24",
            "env PS1='ready$ ' ENV= HISTFILE= sh",
        ]);
        terminal.wait("ready$");
        terminal
    }

    fn tmux(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("tmux");
        command.arg("-S").arg(&self.server).args(arguments);
        run_ok(secs(10), command)
    }

    /// Text as it is.
    fn write(&self, text: &str) {
        self.tmux(&["send-keys", "-l", text]);
    }

    /// A key by its name.
    fn press(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    /// A line for the shell.
    fn run(&self, line: &str) {
        self.write(line);
        self.press("Enter");
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    #[track_caller]
    fn wait_for(&self, what: &str, is_there: impl Fn(&str) -> bool) -> String {
        let mut screen = String::new();
        let found = poll(secs(15), || {
            screen = self.screen();
            is_there(&screen).then_some(())
        });
        assert!(found.is_some(), "never {what} on\n{screen}");
        screen
    }

    #[track_caller]
    fn wait(&self, text: &str) -> String {
        self.wait_for(text, |screen| screen.contains(text))
    }

    /// The screen is the shell's again, with what was there before, and so are its settings.
    #[track_caller]
    fn assert_sane(&self) {
        self.wait_for("the shell alone", |screen| {
            screen.contains("before it") && !screen.contains("err/s")
        });
        assert_eq!(
            self.tmux(&["display", "-p", "#{alternate_on} #{cursor_flag}"])
                .trim(),
            "0 1"
        );
        self.run("stty -a | tr ' ;' '\\n\\n' | grep -xE 'echo|icanon|isig|opost' | tr '\\n' ' '");
        self.wait_for("the settings", |screen| {
            let has_all = |line: &str| {
                ["isig", "icanon", "echo", "opost"].map(|s| line.contains(s)) == [true; 4]
            };
            screen
                .lines()
                .any(|line| has_all(line) && !line.contains('|'))
        });
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let mut command = Command::new("tmux");
        command.arg("-S").arg(&self.server).arg("kill-server");
        let _ = proc::output(&mut command);
    }
}

struct Setup {
    tembuku: Tembuku,
    front: SocketAddr,
    servers: Vec<Server>,
}

fn start() -> Setup {
    let servers = named(3);
    let front = ports::free_addr();
    let addresses: Vec<String> = servers.iter().map(|s| format!("\"{}\"", s.addr)).collect();
    let tembuku = Tembuku::start(&format!(
        "[admin]\nsocket = \"{{dir}}/admin.sock\"\n\
         [listeners.cache]\nbind = \"{front}\"\nupstream = \"pool\"\n\
         [upstreams.pool]\nbackends = [{}]\n",
        addresses.join(", ")
    ));
    Setup {
        tembuku,
        front,
        servers,
    }
}

impl Setup {
    fn command(&self, more: &str) -> String {
        let socket = self.tembuku.dir.file("admin.sock");
        format!(
            "{} top --socket {} {more}",
            binary().display(),
            socket.display()
        )
    }

    fn name(&self, n: usize) -> String {
        format!("pool/{}", self.servers[n].addr)
    }

    fn backend(&self, n: usize) -> Value {
        let status = self.tembuku.status();
        status["upstreams"][0]["backends"][n].clone()
    }

    #[track_caller]
    fn wait_backend(&self, n: usize, field: &str, value: &Value) {
        let is = poll(secs(10), || {
            (self.backend(n)[field] == *value).then_some(())
        });
        assert!(is.is_some(), "{field} is {}", self.backend(n)[field]);
    }
}

#[test]
fn a_backend_is_drained_and_weighted_by_keys_after_a_confirmation() {
    let setup = start();
    let (_client, name) = net::session(setup.front).unwrap();
    assert_eq!(name, "b1");
    let terminal = Terminal::start();
    terminal.run("echo before it");
    terminal.run(&setup.command(""));
    let screen = terminal.wait(&setup.name(2));
    for title in [
        "backend", "state", "sess", "conn/s", "in B/s", "out B/s", "err/s",
    ] {
        assert!(screen.contains(title), "{title}:\n{screen}");
    }
    // Rates come with the second look.
    terminal.wait_for("rates", |screen| {
        let row = screen.lines().find(|line| line.contains(&setup.name(0)));
        row.is_some_and(|row| !row.contains(" -"))
    });

    terminal.press("d");
    terminal.wait(&format!("drain: {}, 1 session? (y/n)", setup.name(0)));
    terminal.press("n");
    terminal.wait("nothing was changed");
    assert_eq!(setup.backend(0)["admin_state"], "ready");
    terminal.press("d");
    terminal.wait("(y/n)");
    terminal.press("y");
    terminal.wait(&format!("{}: up -> drained, 1 session", setup.name(0)));
    assert_eq!(setup.backend(0)["admin_state"], "drain");
    terminal.wait("set by the operator");

    terminal.press("Down");
    terminal.press("w");
    terminal.wait(&format!("weight of {}:", setup.name(1)));
    terminal.write("70");
    terminal.press("BSpace");
    terminal.press("Enter");
    terminal.wait(&format!("give {} the weight 7? (y/n)", setup.name(1)));
    terminal.press("y");
    terminal.wait("weight 1 -> 7 by operator");
    setup.wait_backend(1, "weight", &7.into());
    terminal.press("w");
    terminal.press("Enter");
    terminal.wait("the weight of the file? (y/n)");
    terminal.press("y");
    setup.wait_backend(1, "weight", &1.into());

    terminal.press("Up");
    terminal.press("r");
    terminal.wait("let serve again");
    terminal.press("y");
    setup.wait_backend(0, "admin_state", &"ready".into());
    terminal.press("q");
    terminal.assert_sane();
}

#[test]
fn lists_are_filtered_sorted_and_fit_the_terminal() {
    let setup = start();
    let mut clients: Vec<_> = (0..4)
        .map(|_| net::session(setup.front).unwrap().0)
        .collect();
    let terminal = Terminal::start();
    terminal.run("echo before it");
    terminal.run(&setup.command("--sort sessions"));
    terminal.wait(&setup.name(2));
    let is_before = |screen: &str, first: &str, second: &str| {
        let at = |name: &str| screen.find(name);
        at(first).is_some() && at(first) < at(second)
    };
    // b1 has two sessions, the others one.
    let (first, second) = (setup.name(0), setup.name(1));
    terminal.wait_for("the order", |screen| is_before(screen, &first, &second));
    assert!(terminal.screen().contains("by sessions"));

    terminal.press("/");
    terminal.write(&setup.servers[1].addr.port().to_string());
    terminal.wait_for("one row", |screen| {
        screen.contains("1/3") && !screen.contains(&setup.name(2))
    });
    // Keys that mean something in the list are letters here.
    terminal.write("qd");
    terminal.wait("0/3");
    terminal.press("Escape");
    terminal.wait("3/3");

    for (columns, lines) in [(60, 10), (120, 30), (80, 24)] {
        let [x, y] = [columns, lines].map(|n: usize| n.to_string());
        terminal.tmux(&["resize-window", "-x", &x, "-y", &y]);
        let screen = terminal.wait_for("another size", |screen| {
            let mut all = screen.trim_end().lines();
            let title = all.clone().find(|line| line.starts_with("backend"));
            all.clone().count() == lines
                && all
                    .next_back()
                    .is_some_and(|last| last.starts_with("q quit"))
                && title.is_some_and(|title| title.chars().count() == columns)
        });
        let widest = screen.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(columns), "{widest:?}:\n{screen}");
    }

    // Sessions of one backend, then all; then events.
    terminal.press("Enter");
    let screen = terminal.wait_for("its sessions", |screen| {
        screen.contains("2/2") && screen.contains("client")
    });
    let address = setup.servers[0].addr.to_string();
    assert_eq!(
        screen.matches(&format!(" {address} ")).count(),
        2,
        "{screen}"
    );
    terminal.press("Escape");
    terminal.wait("4/4");
    clients.pop();
    terminal.wait("3/3");
    terminal.press("4");
    terminal.wait("0/0");
    let socket = setup.tembuku.dir.file("admin.sock");
    let output = cli(&["maint", &first, "--socket", socket.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    terminal.wait(&format!("{first} up -> maintenance"));
    terminal.press("Tab");
    let screen = terminal.wait("5 upstreams");
    assert!(screen.contains("2/3"), "one is in maintenance:\n{screen}");
    terminal.press("Tab");
    terminal.press("u");
    terminal.wait_for("what is not well", |screen| {
        screen.contains("1/3, by sessions, not well") && screen.contains("maintenance")
    });
    terminal.press("2");
    terminal.wait("0/1");
    terminal.press("u");
    terminal.wait_for("the listener", |screen| {
        screen.contains("cache") && screen.contains("1/1")
    });
    terminal.press("?");
    terminal.wait("any key goes back");
    terminal.press("x");
    terminal.press("C-c");
    terminal.assert_sane();
}

#[test]
fn the_terminal_is_restored_at_every_end() {
    let setup = start();
    let terminal = Terminal::start();
    terminal.run("echo before it");
    let pid = setup.tembuku.dir.file("pid");
    for signal in [Signal::TERM, Signal::HUP, Signal::INT, Signal::QUIT] {
        let (command, file) = (setup.command(""), pid.display());
        terminal.run(&format!(
            "clear; echo before it; sh -c 'echo $$ >{file}; exec {command}'; echo code $?"
        ));
        terminal.wait(&setup.name(2));
        let pid: i32 = fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
        terminal.wait(&format!("code {}", 128 + signal.as_raw()));
        terminal.assert_sane();
    }
    // Suspended and continued.
    terminal.run(&format!("clear; echo before it; {}", setup.command("")));
    terminal.wait(&setup.name(2));
    terminal.press("C-z");
    terminal.assert_sane();
    terminal.run("fg");
    terminal.wait_for("the list again", |screen| {
        screen.contains(&setup.name(2)) && screen.contains("err/s")
    });
    terminal.press("q");
    terminal.assert_sane();
}

/// It says so, keeps what it knew, and goes on when the process is back.
#[test]
fn a_process_that_is_gone_is_waited_for() {
    let mut setup = start();
    let terminal = Terminal::start();
    terminal.run("echo before it");
    terminal.run(&format!("NO_COLOR=1 {}", setup.command("")));
    terminal.wait(&setup.name(2));
    let colours = terminal.tmux(&["capture-pane", "-p", "-e"]);
    assert!(colours.contains("7m"), "the selection is in reverse");
    for code in ["[31", "[32", "[33", ";31", ";32", ";33"] {
        assert!(!colours.contains(code), "{colours:?}");
    }
    assert_eq!(setup.tembuku.terminate().code(), Some(0));
    let screen = terminal.wait("cannot reach tembuku");
    assert!(screen.contains(&setup.name(2)), "{screen}");
    let mut command = Command::new(binary());
    command
        .args(["run", "-c"])
        .arg(setup.tembuku.dir.file("tembuku.toml"));
    command.env("NO_COLOR", "1").env_remove("TEMBUKU_CONFIG");
    let again = crate::harness::proc::Proc::start("again", setup.tembuku.dir.path(), command);
    terminal.wait_for("the keys", |screen| screen.contains("q quit"));
    drop(again);
    terminal.press("q");
    terminal.assert_sane();
}

#[test]
fn scripts_get_plain_text() {
    let setup = start();
    let (mut client, _) = net::session(setup.front).unwrap();
    client.write_all(b"hello").unwrap();
    let socket = setup.tembuku.dir.file("admin.sock");
    let once = |more: &[&str]| {
        let output = cli(&[
            &["top", "--once", "--socket", socket.to_str().unwrap()],
            more,
        ]
        .concat());
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let all = once(&[]);
    assert!(!all.contains('\u{1b}'), "{all:?}");
    let lines: Vec<&str> = all.lines().collect();
    assert_eq!(lines.len(), 4, "{all}");
    let fields: Vec<&str> = lines[1].split_whitespace().collect();
    assert_eq!(fields[..4], [&*setup.name(0), "up", "1", "1"], "{all}");
    let one = once(&["--filter", &setup.servers[2].addr.to_string()]);
    assert_eq!(one.lines().count(), 2, "{one}");
    let sessions = once(&["--view", "sessions"]);
    assert!(
        sessions.contains(&client.local_addr().unwrap().to_string()),
        "{sessions}"
    );
    assert_eq!(once(&["--view", "events", "--unwell"]).lines().count(), 1);
    // Rates of the last five seconds, once there are some.
    let has_rates = poll(secs(15), || {
        let listeners = once(&["--view", "listeners"]);
        let row = listeners.lines().nth(1).unwrap().to_owned();
        (!row.contains(" - ")).then_some(row)
    });
    let row = has_rates.expect("rates");
    assert!(
        row.starts_with("cache") && row.contains(&setup.front.to_string()),
        "{row}"
    );
    // Without a terminal there is nothing else.
    let output = cli(&["top", "--socket", socket.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
}
