//! The real servers: each with its own configuration in its own folder, on its own port of
//! 127.0.0.1.

use super::{
    certs::Certificate,
    net, ports,
    proc::{self, Proc, command},
    secs,
    temp::TempDir,
};
use std::{
    fs,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

const START: Duration = secs(20);

pub(crate) struct Nginx {
    pub(crate) proc: Proc,
    dir: TempDir,
}

impl Nginx {
    /// `block` is the `stream` or the `http` block; ready once `addr` answers. `{dir}` stands for a
    /// folder of its own.
    #[track_caller]
    pub(crate) fn start(addr: SocketAddr, block: &str) -> Nginx {
        let dir = TempDir::new();
        let root = dir.path().to_str().unwrap();
        let module = "/usr/lib/nginx/modules/ngx_stream_module.so";
        let load = if Path::new(module).exists() {
            format!("load_module {module};\n")
        } else {
            String::new()
        };
        let block = block.replace("{dir}", root);
        let config = dir.write(
            "nginx.conf",
            &format!(
                "{load}daemon off; user root; worker_processes 1; pid {root}/pid; \
                 error_log {root}/error.log;\n\
                 events {{ worker_connections 4096; }}\n{block}\n"
            ),
        );
        let mut command = Command::new("nginx");
        command.args(["-p", root, "-e", "stderr", "-c", config.to_str().unwrap()]);
        let mut proc = Proc::start("nginx", dir.path(), command);
        // Not by connecting: that would be a client, and move the rotation on.
        proc.wait_ready(START, || net::listening(addr.port()));
        Nginx { proc, dir }
    }

    /// Serves the files of its folder over TLS.
    #[track_caller]
    pub(crate) fn with_files_over_tls(addr: SocketAddr, own: &Certificate) -> Nginx {
        let block = format!(
            "server {{ listen {addr} ssl; ssl_certificate {}; ssl_certificate_key {}; \
             root {{dir}}; }}",
            own.certificate.display(),
            own.key.display()
        );
        Nginx::start(addr, &http_block(&block))
    }

    /// A file in its folder.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.file(name)
    }

    /// An `http` server that has `file` of `size` bytes.
    pub(crate) fn web(file: &str, size: usize) -> (Nginx, SocketAddr) {
        let addr = ports::free_addr();
        let nginx = Nginx::start(
            addr,
            &http_block(&format!(
                "sendfile on; keepalive_requests 1000000;\n\
                 server {{ listen {addr} backlog=4096; root {{dir}}; }}"
            )),
        );
        nginx.dir.write(file, &"x".repeat(size));
        (nginx, addr)
    }
}

/// An `http` block for [`Nginx::start`] that keeps its files in the folder.
pub(crate) fn http_block(inside: &str) -> String {
    let temp = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {{dir}}/{kind};"))
        .join(" ");
    format!("http {{ {temp} access_log off; {inside} }}")
}

pub(crate) struct Haproxy {
    _proc: Proc,
    _dir: TempDir,
}

impl Haproxy {
    /// With these sections, in which `{dir}` stands for a folder of its own; ready once it listens
    /// on all `addrs`.
    #[track_caller]
    pub(crate) fn start(addrs: &[SocketAddr], sections: &str) -> Haproxy {
        let dir = TempDir::new();
        let config = dir.write(
            "haproxy.cfg",
            &format!(
                "defaults\n  timeout connect 5s\n  timeout client 1m\n  timeout server 1m\n{}\n",
                sections.replace("{dir}", dir.path().to_str().unwrap())
            ),
        );
        let mut command = command("haproxy -db -f");
        command.arg(config);
        let mut proc = Proc::start("haproxy", dir.path(), command);
        proc.wait_ready(START, || {
            addrs.iter().all(|addr| net::listening(addr.port()))
        });
        Haproxy {
            _proc: proc,
            _dir: dir,
        }
    }
}

pub(crate) struct Redis {
    pub(crate) proc: Proc,
    pub(crate) addr: SocketAddr,
    _dir: TempDir,
}

impl Redis {
    #[track_caller]
    pub(crate) fn start(addr: SocketAddr) -> Redis {
        Redis::start_with(addr, &[])
    }

    /// With more arguments. It need not know us.
    #[track_caller]
    pub(crate) fn start_with(addr: SocketAddr, arguments: &[&str]) -> Redis {
        let dir = TempDir::new();
        let mut command = command(
            "redis-server --save --appendonly no --daemonize no --repl-diskless-sync-delay 0",
        );
        command.args([
            "--port",
            &addr.port().to_string(),
            "--bind",
            &addr.ip().to_string(),
        ]);
        command.arg("--dir").arg(dir.path()).args(arguments);
        let mut proc = Proc::start("redis", dir.path(), command);
        proc.wait_ready(START, || {
            call(addr, "PING")
                .is_ok_and(|answer| answer == "+PONG" || answer.starts_with("-NOAUTH"))
        });
        Redis {
            proc,
            addr,
            _dir: dir,
        }
    }
}

/// One Redis command on a connection of its own, without the client program: the first line of the
/// answer.
pub(crate) fn call(addr: SocketAddr, command: &str) -> std::io::Result<String> {
    let mut stream = net::connect(addr)?;
    stream.write_all(format!("{command}\r\n").as_bytes())?;
    let first = net::read_line(&mut stream)?.trim_end().to_owned();
    if first.starts_with('$') && first != "$-1" {
        return net::read_line(&mut stream).map(|line| line.trim_end().to_owned());
    }
    Ok(first)
}

/// The numbers of a user and its group.
pub(crate) fn account(name: &str) -> (u32, u32) {
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let line = users
        .lines()
        .find(|line| line.starts_with(&format!("{name}:")))
        .unwrap();
    let mut fields = line.split(':').skip(2).map(|field| field.parse().unwrap());
    (fields.next().unwrap(), fields.next().unwrap())
}

pub(crate) struct Iperf3 {
    pub(crate) addr: SocketAddr,
    _proc: Proc,
    _dir: TempDir,
}

impl Iperf3 {
    #[track_caller]
    pub(crate) fn start() -> Iperf3 {
        let dir = TempDir::new();
        let addr = ports::free_addr();
        let mut command = command("iperf3 --server --forceflush");
        command.args([
            "--bind",
            &addr.ip().to_string(),
            "--port",
            &addr.port().to_string(),
        ]);
        let mut proc = Proc::start("iperf3", dir.path(), command);
        let output = dir.file("iperf3.out");
        // Not by connecting: it would take that for the start of a test.
        proc.wait_ready(START, || {
            fs::read_to_string(&output).is_ok_and(|text| text.contains("Server listening"))
        });
        Iperf3 {
            addr,
            _proc: proc,
            _dir: dir,
        }
    }
}

/// Runs the named test of this program again in namespaces of its own, gone with it: a network in
/// which every address of `fd00:7e57::/64` is local, and where [`Place::set_hosts`] sets the
/// addresses of names. [`place`] returns something in the inner run only.
#[track_caller]
pub(crate) fn again_in_own_place(test: &str) {
    // Everything that changes the namespaces is done by this script, which refuses to do it in
    // those of the machine.
    const PREPARE: &str = r#"
        set -e
        for kind in net mnt; do
            case " $OUTSIDE " in *" $(readlink /proc/self/ns/$kind) "*) exit 99;; esac
        done
        mount --bind "$TEMBUKU_TEST_PLACE/hosts" /etc/hosts
        mount --bind "$TEMBUKU_TEST_PLACE/resolv.conf" "$(readlink -f /etc/resolv.conf)"
        ip link set lo up
        ip -6 route add local fd00:7e57::/64 dev lo
        echo 1 > /proc/sys/net/ipv6/ip_nonlocal_bind
        exec "$@"
    "#;
    let dir = TempDir::new();
    let place = Place {
        dir: dir.path().to_owned(),
    };
    place.set_hosts("");
    // No name server: what is not in the file does not exist.
    dir.write(
        "resolv.conf",
        "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
    );
    let namespace = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
    let outside = format!(
        "{} {}",
        namespace("net").display(),
        namespace("mnt").display()
    );

    let mut command = Command::new("unshare");
    command.args([
        "--net",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        PREPARE,
        "sh",
    ]);
    command
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"]);
    command.env("OUTSIDE", outside).env(PLACE, dir.path());
    let output = proc::run(secs(120), command);
    let text = proc::text(&output);
    println!("{text}");
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{test}, inside: {}",
        output.status
    );
}

const PLACE: &str = "TEMBUKU_TEST_PLACE";

/// The namespaces of the inner run.
pub(crate) struct Place {
    dir: PathBuf,
}

pub(crate) fn place() -> Option<Place> {
    std::env::var_os(PLACE).map(|dir| Place { dir: dir.into() })
}

impl Place {
    pub(crate) fn set_hosts(&self, entries: &str) {
        fs::write(
            self.dir.join("hosts"),
            format!("127.0.0.1 localhost\n{entries}\n"),
        )
        .unwrap();
    }
}
