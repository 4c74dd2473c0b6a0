//! Other network namespaces, joined to that of the test by a virtual cable.

use super::{
    proc::{Proc, command, run_ok},
    secs,
    temp::TempDir,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::{
    fs::{self, File},
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd,
    process::Command,
    thread::{self, JoinHandle},
};

/// Gone with the test.
pub(crate) struct Netns {
    proc: Proc,
    _dir: TempDir,
}

/// Runs commands of a shell in the namespace of the test.
#[track_caller]
pub(crate) fn sh(script: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-ec", script]);
    run_ok(secs(10), command)
}

/// Runs `f` on a thread in another namespace.
pub(crate) fn within<T: Send + 'static>(
    netns: &Netns,
    f: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let path = netns.path();
    thread::spawn(move || {
        let namespace = File::open(path).unwrap();
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(namespace.as_fd(), kind).unwrap();
        f()
    })
}

impl Netns {
    /// To be called from a namespace of the test's own.
    #[track_caller]
    pub(crate) fn new() -> Netns {
        let dir = TempDir::new();
        let mut proc = Proc::start("netns", dir.path(), command("unshare --net sleep 300"));
        let network = |id| fs::read_link(format!("/proc/{id}/ns/net")).ok();
        let (id, own) = (proc.id(), network(std::process::id()));
        proc.wait_ready(secs(10), || network(id).is_some_and(|net| Some(net) != own));
        let netns = Netns { proc, _dir: dir };
        netns.sh("ip link set lo up");
        netns
    }

    /// Runs commands of a shell there.
    #[track_caller]
    pub(crate) fn sh(&self, script: &str) -> String {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path()));
        command.args(["sh", "-ec", script]);
        run_ok(secs(10), command)
    }

    /// A cable between `here` and `there`, both up; `options` of the link.
    #[track_caller]
    pub(crate) fn connect(&self, here: &str, there: &str, options: &str) {
        let id = self.proc.id();
        sh(&format!(
            "ip link add {here} {options} type veth peer name {there} {options} netns {id}; \
             ip link set {here} up"
        ));
        self.sh(&format!("ip link set {there} up"));
    }

    /// The same between this namespace and another one.
    #[track_caller]
    pub(crate) fn connect_to(&self, other: &Netns, here: &str, there: &str, options: &str) {
        let id = other.proc.id();
        self.sh(&format!(
            "ip link add {here} {options} type veth peer name {there} {options} netns {id}; \
             ip link set {here} up"
        ));
        other.sh(&format!("ip link set {there} up"));
    }

    /// A socket there, which can be used from here.
    #[track_caller]
    pub(crate) fn bind(&self, addr: SocketAddr) -> UdpSocket {
        // The namespace is that of a thread.
        let bound = within(self, move || UdpSocket::bind(addr)).join().unwrap();
        bound.unwrap_or_else(|error| panic!("bind to {addr}: {error}"))
    }

    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.proc.id())
    }
}
