//! A name server.

use super::{
    net, ports,
    proc::{Proc, command},
    secs,
    temp::TempDir,
};
use std::net::SocketAddr;

/// Has the names below `example` that it is given, and no server to ask for others.
pub(crate) struct Dnsmasq {
    pub(crate) proc: Proc,
    pub(crate) addr: SocketAddr,
    _dir: TempDir,
}

impl Dnsmasq {
    /// `names`: lines of its configuration.
    #[track_caller]
    pub(crate) fn start(names: &str) -> Self {
        let (addr, dir) = (ports::free_addr(), TempDir::new());
        let file = dir.write("dnsmasq.conf", names);
        let mut server = command(
            "dnsmasq --no-daemon --no-resolv --no-hosts --bind-interfaces --user=root \
             --local=/example/ --edns-packet-max=4096 --pid-file=",
        );
        server.args([
            format!("--conf-file={}", file.display()),
            format!("--listen-address={}", addr.ip()),
            format!("--port={}", addr.port()),
        ]);
        let mut proc = Proc::start("dnsmasq", dir.path(), server);
        // By TCP it listens last.
        proc.wait_ready(secs(20), || net::listening(addr.port()));
        Self {
            proc,
            addr,
            _dir: dir,
        }
    }
}
