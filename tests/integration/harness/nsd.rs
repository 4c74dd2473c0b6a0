//! An authoritative name server with one zone.

use super::{
    net, ports,
    proc::{Proc, command},
    secs,
    temp::TempDir,
    wait_until,
};
use rustix::process::Signal;
use std::{fs, net::SocketAddr};

/// Has the zone `example`.
pub(crate) struct Nsd {
    proc: Proc,
    dir: TempDir,
    pub(crate) addr: SocketAddr,
    serial: u32,
}

impl Nsd {
    /// `records`: lines of the zone; `None`: it has no file, and so every answer is SERVFAIL.
    #[track_caller]
    pub(crate) fn start(records: Option<&str>) -> Nsd {
        Nsd::start_on(ports::free_addr(), records)
    }

    #[track_caller]
    pub(crate) fn start_on(addr: SocketAddr, records: Option<&str>) -> Nsd {
        let dir = TempDir::new();
        let root = dir.path().display();
        let (ip, port) = (addr.ip(), addr.port());
        let config = dir.write(
            "nsd.conf",
            &format!(
                "server:\n  ip-address: {ip}@{port}\n  zonesdir: \"{root}\"\
                 \n  pidfile: \"{root}/nsd.pid\"\n\
                 \x20 xfrdfile: \"{root}/xfrd.state\"\n  zonelistfile: \"{root}/zone.list\"\
                 \n  database: \"\"\n\
                 \x20 username: \"\"\n  server-count: 1\n  xfrdir: \"{root}\"\n\
                 remote-control:\n  control-enable: no\n\
                 zone:\n  name: \"example\"\n  zonefile: \"example.zone\"\n"
            ),
        );
        let mut server = command("nsd -d -c");
        server.arg(config);
        if let Some(records) = records {
            write(&dir, 1, records);
        }
        let mut proc = Proc::start("nsd", dir.path(), server);
        proc.wait_ready(secs(20), || net::listening(port));
        Nsd {
            proc,
            dir,
            addr,
            serial: 1,
        }
    }

    pub(crate) fn set(&mut self, records: &str) {
        self.serial += 1;
        write(&self.dir, self.serial, records);
        self.proc.signal(Signal::HUP);
    }

    /// Ends it with all its processes.
    #[track_caller]
    pub(crate) fn stop(&mut self) {
        self.proc.signal(Signal::TERM);
        let port = self.addr.port();
        wait_until("nsd has ended", secs(20), || {
            self.proc.ended().is_some() && !net::listening(port)
        });
    }
}

fn write(dir: &TempDir, serial: u32, records: &str) {
    let zone = format!(
        "$ORIGIN example.\n$TTL 1\n@ SOA ns hostmaster {serial} 3600 600 86400 1\n@ NS ns\n\
         ns A 127.0.0.1\n{records}\n"
    );
    let new = dir.write("new.zone", &zone);
    fs::rename(new, dir.file("example.zone")).unwrap();
}
