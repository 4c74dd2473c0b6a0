//! The commands of README.md and of docs/recipes.md, as they stand there, in front of three Redis
//! servers at the addresses that the pages name.

use crate::harness::{
    netns::Netns,
    poll,
    proc::{Proc, run, text},
    secs,
    tembuku::binary,
    temp::TempDir,
    wait_until,
};
use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const SERVERS: [&str; 3] = ["10.0.0.1", "10.0.0.2", "10.0.0.3"];

/// A network with the three servers, of which the first is the primary.
struct Place {
    netns: Netns,
    /// Where commands are run; the file of the configuration is in it.
    dir: TempDir,
    servers: Vec<Proc>,
}

impl Place {
    fn new() -> Self {
        let (netns, dir) = (Netns::new(), TempDir::new());
        fs::create_dir(dir.file("bin")).unwrap();
        symlink(binary(), dir.file("bin/tembuku")).unwrap();
        symlink(Path::new(ROOT).join("conf"), dir.file("conf")).unwrap();
        let mut place = Self {
            netns,
            dir,
            servers: Vec::new(),
        };
        for server in SERVERS {
            place.netns.sh(&format!("ip addr add {server}/32 dev lo"));
            let folder = place.dir.file(server);
            fs::create_dir(&folder).unwrap();
            let options = match server == SERVERS[0] {
                true => String::new(),
                false => format!("--replicaof {} 6379", SERVERS[0]),
            };
            let started = place.start_server(server, &options);
            place.servers.push(started);
        }
        for server in SERVERS {
            wait_until("a server answers", secs(20), || {
                place.role(server).is_some()
            });
        }
        wait_until("the replicas are connected", secs(30), || {
            let info = place.sh(&format!("redis-cli -h {} INFO replication", SERVERS[0]));
            info.contains("connected_slaves:2") && info.matches("state=online").count() == 2
        });
        place
    }

    fn start_server(&self, server: &str, options: &str) -> Proc {
        let line = format!(
            "exec redis-server --protected-mode no --save '' --port 6379 --bind {server} \
             --bind-source-addr {server} \
             --replica-announce-ip {server} --repl-diskless-sync-delay 0 --dir {} {options}",
            self.dir.file(server).display()
        );
        Proc::start(server, self.dir.path(), self.command(&line))
    }

    /// Whether clients of port 6379 reach this server within a while.
    #[track_caller]
    fn wait_reached(&self, server: &str) {
        let reached = poll(secs(15), || {
            (self.reached().as_deref() == Some(server)).then_some(())
        });
        assert!(reached.is_some(), "{}", self.sh("tembuku status"));
    }

    /// A line of a shell, in this network and folder.
    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns.path()));
        command
            .args(["sh", "-ec", line])
            .current_dir(self.dir.path());
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.dir.file("bin").display()));
        command.env("TEMBUKU_CONFIG", self.dir.file("tembuku.toml"));
        command.env("NO_COLOR", "1");
        command
    }

    /// What it prints; it has to succeed.
    #[track_caller]
    fn sh(&self, line: &str) -> String {
        println!("$ {line}");
        let output = run(secs(60), self.command(line));
        assert_eq!(output.status.code(), Some(0), "{line}\n{}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn role(&self, server: &str) -> Option<String> {
        let output = run(
            secs(10),
            self.command(&format!("redis-cli -h {server} ROLE")),
        );
        let role = String::from_utf8(output.stdout).unwrap();
        role.lines().next().map(str::to_owned)
    }

    /// The server that clients of port 6379 reach.
    fn reached(&self) -> Option<String> {
        let line = "timeout 5 redis-cli -h 127.0.0.1 CONFIG GET bind";
        let output = run(secs(10), self.command(line));
        let answer = String::from_utf8(output.stdout).unwrap();
        answer.lines().nth(1).map(str::to_owned)
    }

    /// The process, with this configuration, in which only the path of the socket and that of the
    /// listeners differ from the page: servers have the same port at their own addresses.
    fn start(&self, config: &str) -> Proc {
        let socket = self.dir.file("admin.sock").display().to_string();
        let config = config
            .replace("/run/tembuku/admin.sock", &socket)
            .replace("0.0.0.0:6379", "127.0.0.1:6379");
        self.dir.write("tembuku.toml", &config);
        let mut proc = Proc::start("tembuku", self.dir.path(), self.command("exec tembuku run"));
        proc.wait_ready(secs(20), || {
            let output = run(secs(10), self.command("tembuku status"));
            String::from_utf8_lossy(&output.stdout).contains(": running,")
        });
        proc
    }
}

/// The lines of fenced blocks, of a language, below this heading.
fn block(page: &str, heading: &str, fence: &str) -> String {
    let text = "\n".to_owned() + &fs::read_to_string(Path::new(ROOT).join(page)).unwrap();
    let section = text.split(&format!("\n{heading}\n")).nth(1);
    let section = section.unwrap_or_else(|| panic!("{page} has no {heading}"));
    let block = section.split(&format!("\n{fence}\n")).nth(1);
    let block = block.unwrap_or_else(|| panic!("no {fence} below {heading}"));
    block.split("\n```").next().unwrap_or_default().to_owned()
}

#[test]
fn recipes_do_what_they_say() {
    const PAGE: &str = "docs/recipes.md";
    let place = Place::new();
    let _tembuku = place.start(&block(PAGE, "# Recipes", "```toml"));
    // The file is found by what the page says first, and by nothing else.
    let first = block(PAGE, "# Recipes", "```");
    let first = first.strip_prefix("$ ").unwrap();
    assert!(first.starts_with("export "), "{first}");
    let in_shell = |line: &str| place.sh(&format!("unset TEMBUKU_CONFIG\n{first}\n{line}"));
    let run_all = |heading: &str| {
        let block = block(PAGE, heading, "```");
        let lines = block.lines().filter_map(|line| line.strip_prefix("$ "));
        let printed: Vec<String> = lines.map(in_shell).collect();
        assert!(!printed.is_empty(), "{heading}");
        printed
    };
    assert_eq!(place.reached().as_deref(), Some(SERVERS[0]));
    let printed = run_all("## A planned fail-over");
    assert!(printed[0].contains("up -> drained"), "{printed:?}");
    place.wait_reached(SERVERS[1]);
    assert_eq!(place.role(SERVERS[0]).as_deref(), Some("slave"));
    run_all("## Maintenance of a server");
    // The loop is one line of a shell.
    in_shell(&block(
        PAGE,
        "## Upgrading the database servers, one after the other",
        "```",
    ));
    for heading in [
        "## Changing the list of backends",
        "## Adding a server",
        "## Which client is that?",
        "## Trying a change first",
    ] {
        run_all(heading);
    }
    let status = place.sh("tembuku status");
    assert!(
        !status.contains("drained") && !status.contains("maintenance"),
        "{status}"
    );
}

/// "Redis, and a fail-over", line by line.
#[test]
fn a_fail_over_works_as_readme_says() {
    let mut place = Place::new();
    let text = fs::read_to_string(Path::new(ROOT).join("README.md")).unwrap();
    let section = text.split("\n### Redis, and a fail-over\n").nth(1).unwrap();
    let section = section.split("\n### ").next().unwrap_or_default();
    let commands: Vec<&str> = section
        .lines()
        .filter_map(|line| line.strip_prefix("    "))
        .map(|line| line.split(" # ").next().unwrap_or_default().trim())
        .collect();
    let [
        copy,
        probe,
        run,
        promote,
        restart,
        drain,
        fail_over,
        until,
        ready,
    ] = commands[..]
    else {
        panic!("{commands:#?}");
    };
    place.sh(copy);
    let config = fs::read_to_string(place.dir.file("tembuku.toml")).unwrap();
    let probed = place.sh(probe);
    assert!(
        probed.contains("primary/10.0.0.1:6379") && probed.contains("ROLE: master"),
        "{probed}"
    );
    assert_eq!(run, "tembuku run -c tembuku.toml &");
    let _tembuku = place.start(&config);
    place.wait_reached(SERVERS[0]);

    place.servers[0].kill();
    place.sh(promote);
    place.wait_reached(SERVERS[1]);
    let events = place.sh("tembuku events -c tembuku.toml");
    let of_new = |line: &&str| line.contains("primary/10.0.0.2:6379") && line.contains(" -> up");
    assert!(events.lines().any(|line| of_new(&line)), "{events}");
    let (_, options) = restart.split_once(" /etc/redis.conf ").unwrap();
    place.servers[0] = place.start_server(SERVERS[0], options);
    wait_until("the former primary is a replica", secs(20), || {
        let status = place.sh("tembuku status");
        let of_former = |line: &&str| line.contains("10.0.0.1:6379") && line.contains("standby");
        status.lines().any(|line| of_former(&line))
    });
    // It says so before it has synced, and until then Redis refuses FAILOVER to it.
    wait_until("its primary has it as a replica", secs(20), || {
        let info = place.sh("redis-cli -h 10.0.0.2 INFO replication");
        info.contains("ip=10.0.0.1,port=6379,state=online")
    });

    // The other way about: the commands of README are for a fail-over to the second server.
    let back = |line: &str| {
        let swapped = line.replace(SERVERS[0], "former");
        let swapped = swapped.replace(SERVERS[1], SERVERS[0]);
        swapped.replace("former", SERVERS[1])
    };
    place.sh(&back(drain));
    place.sh(&back(fail_over));
    place.sh(&back(until));
    place.sh(&back(ready));
    place.wait_reached(SERVERS[0]);
    let status = place.sh("tembuku status");
    assert!(!status.contains("drained"), "{status}");
}

/// For the commands of all pages: their names of upstreams, and servers that are there.
fn config_of_pages() -> String {
    let mut config =
        "[admin]\nlisten = \"127.0.0.1:9900\"\nsocket = \"/run/tembuku/admin.sock\"\n".to_owned();
    for (n, name) in ["redis", "cache", "queue", "primary", "replicas"]
        .into_iter()
        .enumerate()
    {
        let backends = SERVERS
            .map(|server| format!("\"{server}:6379\""))
            .join(", ");
        config += &format!(
            "[listeners.{name}]\nbind = \"127.0.0.1:{}\"\nupstream = \"{name}\"\n\
             [upstreams.{name}]\nbackends = [{backends}]\n\
             [upstreams.{name}.check]\nkind = \"redis\"\n",
            7001 + n
        );
    }
    config
        + "[listeners.web]\nbind = \"127.0.0.1:8080\"\nupstream = \"web\"\n\
              [upstreams.web]\nbackends = [\"10.0.0.1:8080\", \"10.0.0.2:8080\"]\n"
}

/// Of blocks: fenced ones without a language, and indented ones.
fn command_lines(page: &str) -> Vec<String> {
    let (mut is_fenced, mut is_plain) = (false, false);
    let mut lines = Vec::new();
    for line in page.lines() {
        if let Some(info) = line.trim_start().strip_prefix("```") {
            is_fenced = !is_fenced;
            is_plain = is_fenced && info.is_empty();
            continue;
        }
        let is_block = is_plain || !is_fenced && line.starts_with("    ");
        let command = line
            .trim()
            .trim_start_matches("$ ")
            .trim_start_matches("sudo ");
        let command = command.split(" #").next().unwrap_or_default().trim();
        // What it prints may begin with its name and its version.
        let name = command.strip_prefix("tembuku ").unwrap_or_default();
        if is_block && name.starts_with(|c: char| c.is_ascii_lowercase()) {
            lines.push(command.to_owned());
        }
    }
    lines
}

/// Why a command of a page is not run here.
fn is_run_on_another_machine(command: &str) -> bool {
    const ELSEWHERE: [&str; 9] = [
        // They go on, or replace the process: with tests of their own.
        "tembuku run",
        "tembuku demo",
        "tembuku upgrade",
        "tembuku events --follow",
        "tembuku top -c",
        // They read or write files of the system.
        "tembuku import",
        "tembuku completions bash >",
        "tembuku man",
        // With sources, in the tests of discovery.
        "tembuku discover",
    ];
    ELSEWHERE.iter().any(|begin| command.starts_with(begin))
}

#[test]
fn commands_of_the_pages_succeed() {
    let place = Place::new();
    let _tembuku = place.start(&config_of_pages());
    place.dir.write(
        "one.toml",
        "[listeners.cache]\nbind = \"127.0.0.1:6379\"\nupstream = \"redis\"\n[upstreams.redis]\n\
         balance = \"consistent_hash\"\n\
         backends = [\"10.0.0.1:6379\", \"10.0.0.2:6379\", \"10.0.0.3:6379\"]\n",
    );
    let mut pages: Vec<_> = fs::read_dir(Path::new(ROOT).join("docs"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "md"))
        // They are run above, in front of another configuration.
        .filter(|path| !path.ends_with("recipes.md"))
        .collect();
    pages.sort();
    pages.push(Path::new(ROOT).join("README.md"));
    let mut count = 0;
    for page in pages {
        let content = fs::read_to_string(&page).unwrap();
        for command in command_lines(&content) {
            if is_run_on_another_machine(&command) {
                continue;
            }
            count += 1;
            let one = if command.contains(" explain ") {
                "one.toml"
            } else {
                "tembuku.toml"
            };
            let command = command
                .replace("/etc/tembuku/tembuku.toml", one)
                .replace("-c tembuku.toml", &format!("-c {one}"))
                .replace("-c FILE", &format!("-c {one}"))
                .replace("--listener NAME", "--listener cache");
            println!("{}: {command}", page.file_name().unwrap().display());
            let output = run(secs(60), place.command(&command));
            let code = output.status.code();
            // Servers of "web" are not there.
            let is_expected = code == Some(0) || command.contains("--probe") && code == Some(1);
            assert!(
                is_expected,
                "{}: {command}\n{}",
                page.display(),
                text(&output)
            );
        }
    }
    assert!(count > 35, "only {count} are found");
}
