//! A MariaDB server with its own data in its own folder.

use super::{
    net, ports,
    proc::{self, Proc, command},
    secs,
    temp::TempDir,
};
use std::{net::SocketAddr, path::PathBuf, process::Command};

/// Little to write at the start, nothing that must be on a disk, and no share of what the kernel
/// lends to few.
const SMALL: &str = "--innodb-use-native-aio=0 --innodb-flush-method=nosync \
                     --innodb-log-file-size=4M --innodb-buffer-pool-size=8M \
                     --innodb-temp-data-file-path=ibtmp1:2M:autoextend";

pub(crate) struct MariaDb {
    pub(crate) proc: Proc,
    pub(crate) addr: SocketAddr,
    dir: TempDir,
}

impl MariaDb {
    #[track_caller]
    pub(crate) fn start() -> MariaDb {
        MariaDb::start_with(ports::free_addr(), &[])
    }

    /// With more arguments.
    #[track_caller]
    pub(crate) fn start_with(addr: SocketAddr, arguments: &[&str]) -> MariaDb {
        let dir = TempDir::new();
        let small = SMALL.split_whitespace();
        let mut install = command(
            "mariadb-install-db --no-defaults --force --user=root \
             --auth-root-authentication-method=normal --skip-test-db",
        );
        // A server that starts empties the folder where others, too, would have their temporary
        // tables.
        std::fs::create_dir(dir.file("tmp")).unwrap();
        let tmp = format!("--tmpdir={}", dir.file("tmp").display());
        install.arg(format!("--datadir={}", dir.file("data").display()));
        install.arg(&tmp);
        install.args(small.clone());
        proc::run_ok(secs(60), install);
        let mut server = command("mariadbd --no-defaults --user=root --skip-log-bin");
        server.args(small).args([
            format!("--datadir={}", dir.file("data").display()),
            format!("--socket={}", dir.file("sock").display()),
            format!("--pid-file={}", dir.file("pid").display()),
            format!("--bind-address={}", addr.ip()),
            format!("--port={}", addr.port()),
        ]);
        server.arg(tmp).args(arguments);
        let proc = Proc::start("mariadbd", dir.path(), server);
        let mut server = MariaDb { proc, addr, dir };
        let socket = server.socket();
        server.proc.wait_ready(secs(60), || {
            let mut hello = Command::new("mariadb");
            hello.args(["--no-defaults", "-u", "root", "-e", "SELECT 1", "-S"]);
            hello.arg(&socket);
            net::listening(addr.port()) && proc::run(secs(10), hello).status.success()
        });
        server
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.file("sock")
    }

    fn client(&self) -> Command {
        let mut client = command("mariadb --no-defaults --batch --skip-column-names -u root -S");
        client.arg(self.socket());
        client
    }

    /// What the server answers its master.
    #[track_caller]
    pub(crate) fn sql(&self, text: &str) -> String {
        let mut client = self.client();
        client.args(["-e", text]);
        proc::run_ok(secs(30), client).trim_end().to_owned()
    }

    /// One of its counters.
    #[track_caller]
    pub(crate) fn status(&self, name: &str) -> u64 {
        let row = self.sql(&format!("SHOW GLOBAL STATUS LIKE '{name}'"));
        row.split('\t').nth(1).unwrap().parse().unwrap()
    }

    pub(crate) fn log(&self) -> String {
        self.proc.stderr()
    }
}
