//! PostgreSQL servers and their clients: each server with its own data in its own folder, on its
//! own port of 127.0.0.1.

use super::{
    ports,
    proc::{self, Proc, command},
    programs::account,
    secs,
    temp::TempDir,
};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::Command,
};

pub(crate) struct Postgres {
    pub(crate) addr: SocketAddr,
    pub(crate) proc: Proc,
    settings: Vec<String>,
    dir: TempDir,
}

impl Postgres {
    /// Accepts every login.
    #[track_caller]
    pub(crate) fn start() -> Postgres {
        Postgres::start_with(&[], "")
    }

    /// With these settings, and with these rules about whom it lets in before those that let
    /// `postgres` in. `{dir}` stands for a folder of its own.
    #[track_caller]
    pub(crate) fn start_with(settings: &[&str], rules: &str) -> Postgres {
        let dir = TempDir::new();
        let home = home(&dir);
        fs::create_dir(&home).unwrap();
        // The server refuses to run as root, so it gets a folder and a user of its own.
        let (user, group) = account("postgres");
        chown(&home, Some(user), Some(group)).unwrap();
        let mut init = as_postgres("initdb", &home);
        init.args("--no-sync -A trust -U postgres -E UTF8 --locale=C -D data".split(' '));
        proc::run_ok(secs(60), init);
        if !rules.is_empty() {
            let own =
                "local all postgres trust\nhost all,replication postgres 127.0.0.1/32 trust\n";
            fs::write(home.join("data/pg_hba.conf"), format!("{rules}\n{own}")).unwrap();
        }
        Postgres::on_data(dir, settings)
    }

    /// A streaming replica of another, with settings of its own.
    #[track_caller]
    pub(crate) fn replica_of(primary: &Postgres, settings: &[&str]) -> Postgres {
        let dir = TempDir::new();
        let home = home(&dir);
        fs::create_dir(&home).unwrap();
        let (user, group) = account("postgres");
        chown(&home, Some(user), Some(group)).unwrap();
        copy_from(primary.addr, &home);
        Postgres::on_data(dir, settings)
    }

    /// Data that is there.
    #[track_caller]
    fn on_data(dir: TempDir, settings: &[&str]) -> Postgres {
        let addr = ports::free_addr();
        let root = dir.path().to_str().unwrap();
        let settings = settings.iter().map(|s| s.replace("{dir}", root));
        let settings: Vec<String> = settings.collect();
        let proc = launch(addr, &dir, &settings);
        Postgres {
            addr,
            proc,
            settings,
            dir,
        }
    }

    /// Its unix socket.
    pub(crate) fn socket(&self) -> PathBuf {
        home(&self.dir).join(format!(".s.PGSQL.{}", self.addr.port()))
    }

    /// What it has written down.
    pub(crate) fn log(&self) -> String {
        self.proc.stderr()
    }

    /// Rows, with bars between the columns.
    #[track_caller]
    pub(crate) fn sql(&self, statement: &str) -> String {
        let mut command = psql(self.addr);
        command.args(["-c", statement]);
        proc::run_ok(secs(30), command).trim().to_owned()
    }

    /// Makes a replica a primary; comes back when it is one.
    #[track_caller]
    pub(crate) fn promote(&self) {
        let mut command = as_postgres("pg_ctl", &home(&self.dir));
        command.args("promote -D data -w".split(' '));
        proc::run_ok(secs(60), command);
    }

    /// INT: its sessions are ended, and their transactions are undone. KILL: so are all its
    /// processes, at once.
    #[track_caller]
    pub(crate) fn end(&mut self, signal: Signal) {
        // Those that serve sessions outlive one that is killed, for a while.
        let own = children(self.proc.id());
        self.proc.signal(signal);
        assert!(self.proc.wait(secs(30)).is_some(), "it does not stop");
        if signal == Signal::KILL {
            for id in own {
                let _ = kill_process(id, Signal::KILL);
            }
        }
    }

    /// A server that has stopped begins anew as a replica of this one, on its old address.
    #[track_caller]
    pub(crate) fn follow(&mut self, primary: &Postgres) {
        let home = home(&self.dir);
        fs::remove_dir_all(home.join("data")).unwrap();
        copy_from(primary.addr, &home);
        self.proc = launch(self.addr, &self.dir, &self.settings);
    }
}

fn children(id: u32) -> Vec<Pid> {
    let list = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    let number = |digits: &str| Pid::from_raw(digits.parse().unwrap()).unwrap();
    list.split_whitespace().map(number).collect()
}

fn home(dir: &TempDir) -> PathBuf {
    dir.file("pg")
}

fn as_postgres(program: &str, home: &Path) -> Command {
    let mut command = command("setpriv --reuid=postgres --regid=postgres --clear-groups");
    command.arg(tool(program)).current_dir(home);
    command
}

#[track_caller]
fn copy_from(primary: SocketAddr, home: &Path) {
    let mut copy = as_postgres("pg_basebackup", home);
    copy.args("-D data -R -X stream -c fast --no-sync -U postgres".split(' '));
    copy.args(["-h", &primary.ip().to_string()]);
    copy.args(["-p", &primary.port().to_string()]);
    proc::run_ok(secs(60), copy);
}

#[track_caller]
fn launch(addr: SocketAddr, dir: &TempDir, settings: &[String]) -> Proc {
    let home = home(dir);
    let own = [
        "listen_addresses=127.0.0.1".to_owned(),
        "fsync=off".to_owned(),
        format!("port={}", addr.port()),
        format!("unix_socket_directories={}", home.display()),
    ];
    let mut server = as_postgres("postgres", &home);
    server.args(["-D", "data"]);
    for setting in own.iter().chain(settings) {
        server.args(["-c", setting]);
    }
    // INT ends its sessions and stops; TERM would wait for them.
    let mut proc = Proc::start("postgres", dir.path(), server).stop_with(Signal::INT);
    // Over its own socket, where the rules of the test do not matter.
    proc.wait_ready(secs(30), || {
        let mut psql = psql(addr);
        psql.env("PGHOST", &home).args(["-c", "select 1"]);
        let output = proc::run(secs(10), psql);
        // One that is to take no sessions is ready when it reports that.
        output.status.success() || proc::text(&output).contains("Hot standby mode is disabled")
    });
    proc
}

/// A PostgreSQL client that talks to this address and prints bare rows.
pub(crate) fn psql(addr: SocketAddr) -> Command {
    let mut command = postgres_client("psql", addr);
    command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]);
    command
}

pub(crate) fn postgres_client(program: &str, addr: SocketAddr) -> Command {
    let mut command = Command::new(tool(program));
    command
        .env("PGHOST", addr.ip().to_string())
        .env("PGPORT", addr.port().to_string());
    command
        .env("PGUSER", "postgres")
        .env("PGDATABASE", "postgres")
        .env("PGCONNECT_TIMEOUT", "10");
    // Plain bytes, without an attempt at encryption first.
    command
        .env("PGSSLMODE", "disable")
        .env("PGGSSENCMODE", "disable");
    command
}

/// A program of PostgreSQL: Debian keeps most of them out of the path, by version.
fn tool(program: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed");
    let mut found: Vec<PathBuf> = versions
        .flatten()
        .map(|version| version.path().join("bin").join(program))
        .filter(|path| path.exists())
        .collect();
    found.sort();
    found
        .pop()
        .unwrap_or_else(|| panic!("no {program} in /usr/lib/postgresql/*/bin"))
}
