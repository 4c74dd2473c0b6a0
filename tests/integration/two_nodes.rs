//! Two nodes with keepalived, which moves an address between them: by the ready file, and for a
//! process that was killed by `status --node`.

use crate::harness::{
    http,
    load::Load,
    millis,
    netns::{Netns, within},
    poll, ports,
    proc::{Proc, command},
    secs,
    server::Server,
    tembuku::{binary, cli},
    temp::TempDir,
    threads::stall,
    wait_until,
};
use rustix::process::Signal;
use std::{fs, net::SocketAddr, thread, time::Instant};

const EXAMPLE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/packaging/keepalived/keepalived.conf"
);
const BACKEND: &str = "10.77.0.9";
const VIP: &str = "10.77.0.100";

struct Node {
    netns: Netns,
    address: String,
    tembuku: Proc,
    keepalived: Proc,
    config: String,
    dir: TempDir,
}

impl Node {
    /// Joined to `clients` by a cable of the bridge there.
    fn start(clients: &Netns, number: usize, port: u16) -> Node {
        let netns = Netns::new();
        let (own, peer) = (number, 3 - number);
        clients.connect_to(&netns, &format!("to{own}"), "eth0", "");
        clients.sh(&format!("ip link set to{own} master hub"));
        netns.sh(&format!("ip addr add 10.77.0.{own}/24 dev eth0"));
        let dir = TempDir::new();
        let root = dir.path().to_str().unwrap().to_owned();
        let config = dir.write(
            "tembuku.toml",
            &format!(
                "[process]\nworkers = 2\nready_file = \"{root}/ready\"\ndrain_delay = \"2s\"\n\
                 drain_timeout = \"2s\"\n[admin]\nsocket = \"{root}/admin.sock\"\n\
                 [log]\nformat = \"json\"\n\
                 [listeners.l]\nbind = \"{VIP}:{port}\"\nfreebind = true\nupstream = \"u\"\n\
                 [upstreams.u]\nbackends = [\"{BACKEND}:{port}\"]\n\
                 [upstreams.u.check]\nkind = \"tcp\"\ninterval = \"100ms\"\nfall = 1\nrise = 1\n"
            ),
        );
        let config = config.to_str().unwrap().to_owned();
        let tembuku = start_tembuku(&netns, &dir, &config);
        // Long paths and slow elections are not for a test.
        let example = fs::read_to_string(EXAMPLE).unwrap();
        let program = binary().to_str().unwrap().to_owned();
        let mut text = example;
        for (from, to) in [
            ("192.0.2.1\n", format!("10.77.0.{own}\n")),
            ("192.0.2.2\n", format!("10.77.0.{peer}\n")),
            ("192.0.2.100/24", format!("{VIP}/24")),
            ("/run/tembuku/", format!("{root}/")),
            ("/usr/bin/tembuku", program),
            (
                "advert_int 1\n",
                "advert_int 0.2\n    version 3\n".to_owned(),
            ),
        ] {
            assert!(text.contains(from), "{from}: {text}");
            text = text.replace(from, &to);
        }
        if number == 2 {
            text = text.replace("state MASTER", "state BACKUP");
            text = text.replace("priority 150", "priority 100");
        }
        let conf = dir.write("keepalived.conf", &text);
        let line = format!(
            "nsenter --net={} keepalived --dont-fork --log-console --log-detail --vrrp \
             --use-file={} --pid={root}/keepalived.pid --vrrp_pid={root}/vrrp.pid",
            netns.path(),
            conf.display()
        );
        let keepalived = Proc::start("keepalived", dir.path(), command(&line));
        Node {
            netns,
            address: format!("10.77.0.{own}"),
            tembuku,
            keepalived,
            config,
            dir,
        }
    }

    fn has_vip(&self) -> bool {
        self.netns
            .sh("ip -4 addr show dev eth0")
            .contains(&format!("{VIP}/"))
    }

    #[track_caller]
    fn wait_vip(&self) {
        let what = format!("{} has the address", self.address);
        let found = poll(secs(15), || self.has_vip().then_some(()));
        assert!(
            found.is_some(),
            "{what}\n{}\n{}",
            self.keepalived.stdout(),
            self.keepalived.stderr()
        );
    }

    fn socket(&self) -> String {
        self.dir.file("admin.sock").to_str().unwrap().to_owned()
    }

    fn answer(&self, path: &str) -> u16 {
        let socket = self.dir.file("admin.sock");
        http::request_unix(&socket, "GET", path, "").map_or(0, |response| response.status)
    }

    fn file(&self) -> String {
        fs::read_to_string(self.dir.file("ready")).unwrap_or_default()
    }
}

fn start_tembuku(netns: &Netns, dir: &TempDir, config: &str) -> Proc {
    let program = binary();
    let mut command = command(&format!("nsenter --net={}", netns.path()));
    command.arg(program).args(["run", "-c", config]);
    let mut tembuku = Proc::start("tembuku", dir.path(), command);
    let ready = dir.file("ready");
    tembuku.wait_ready(secs(10), || {
        fs::read_to_string(&ready).is_ok_and(|text| text == "0\n")
    });
    tembuku
}

#[test]
fn the_address_moves_for_faults_of_a_node_and_not_for_those_of_a_backend() {
    let clients = Netns::new();
    clients.sh(&format!(
        "ip link add hub address 02:00:00:00:00:fe type bridge forward_delay 0; \
         ip link set hub up; ip addr add 10.77.0.3/24 dev hub; ip addr add {BACKEND}/24 dev hub"
    ));
    let port = ports::free_port();
    let backend: SocketAddr = format!("{BACKEND}:{port}").parse().unwrap();
    let serve = move || Server::named_on("a", &[backend]);
    let server = within(&clients, serve).join().unwrap();
    let mut one = Node::start(&clients, 1, port);
    let two = Node::start(&clients, 2, port);
    one.wait_vip();
    wait_until("one node has it", secs(10), || !two.has_vip());
    let vip = format!("{VIP}:{port}").parse().unwrap();
    let load = Load::start(vip, |run| within(&clients, run));
    let counts = load.take("nothing happens");
    assert_eq!((counts.refused, counts.cut), (0, 0));

    // All nodes see the same dead backend.
    drop(server);
    wait_until("both see it", secs(10), || {
        one.answer("/readyz") == 503 && two.answer("/readyz") == 503
    });
    // For longer than an election takes.
    let began = Instant::now();
    while began.elapsed() < secs(2) {
        assert!(one.has_vip() && !two.has_vip());
        assert_eq!(
            (one.file().as_str(), one.answer("/readyz/node")),
            ("0\n", 200)
        );
        thread::sleep(millis(100));
    }
    let server = within(&clients, serve).join().unwrap();
    wait_until("both see it", secs(10), || {
        one.answer("/readyz") == 200 && two.answer("/readyz") == 200
    });
    load.take("dead backend");

    // The operator drains a node, and makes it ready again.
    let socket = one.socket();
    cli(&["drain", "--node", "--socket", &socket]);
    two.wait_vip();
    assert_eq!(load.take("drain --node").refused, 0);
    cli(&["ready", "--node", "--socket", &socket]);
    one.wait_vip();
    assert_eq!(load.take("ready --node").refused, 0);

    let stalled = stall(&one.tembuku, one.dir.path(), "worker-0");
    two.wait_vip();
    load.take("worker that hangs");
    drop(stalled);
    one.wait_vip();
    load.take("worker that runs again");

    // The address moves while clients are accepted.
    one.tembuku.signal(Signal::TERM);
    two.wait_vip();
    assert!(one.tembuku.wait(secs(10)).is_some());
    assert_eq!(load.take("stop").refused, 0);
    one.tembuku = start_tembuku(&one.netns, &one.dir, &one.config);
    one.wait_vip();
    load.take("start");

    // A crash, which the ready file does not show.
    one.tembuku.kill();
    assert_eq!(one.file(), "0\n");
    two.wait_vip();
    load.take("kill");
    drop(server);
}
