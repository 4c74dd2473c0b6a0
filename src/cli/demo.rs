//! `tembuku demo`: all of it in one process, to be tried without writing a file.

use super::{complain, say};
use crate::{config, plan::Plan};
use std::{
    io,
    net::{SocketAddr, TcpListener},
    process::ExitCode,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

/// A stopped backend stays away for so long.
const AWAY: Duration = Duration::from_secs(15);
/// How long a backend waits for its client to say something or to leave.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn run() -> ExitCode {
    match prepare() {
        Ok(plan) => super::run::run(plan),
        Err(why) => {
            complain(&format!("error: {why}\n"));
            ExitCode::FAILURE
        }
    }
}

fn prepare() -> Result<Plan, String> {
    let mut backends = Vec::new();
    for (name, port) in [("red", 7101), ("green", 7102), ("blue", 7103)] {
        let listener = bind(port).map_err(|e| format!("cannot start the backend {name}: {e}"))?;
        let address = listener.local_addr().map_err(|e| e.to_string())?;
        backends.push((name, address));
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || serve(name, listener, address))
            .map_err(|e| e.to_string())?;
    }
    let front = free(7000)?;
    let admin = free(9900)?;
    let lines: String = backends
        .iter()
        .map(|(name, address)| format!("  backend {name:<6} {address}\n"))
        .collect();
    let entries: Vec<String> = backends
        .iter()
        .map(|(_, address)| format!("{{ address = \"{address}\", fail_timeout = \"3s\" }}"))
        .collect();
    let text = format!(
        "[log]\nformat = \"text\"\naccess = \"stdout\"\n\
         [admin]\nlisten = \"{admin}\"\n\
         [listeners.demo]\nbind = \"{front}\"\nupstream = \"colours\"\n\
         [upstreams.colours]\nbackends = [{}]\n",
        entries.join(", ")
    );
    let plan = config::parse(&text, "demo").map_err(|problems| problems.to_string())?;
    let (host, port) = (front.ip(), front.port());
    let stopped = backends[0].1;
    say(&format!(
        "tembuku demo: one listener in front of three backends, round robin\n\
         \n\
         {}  listener demo  {front}\n\
         \x20 status page    http://{admin}/\n\
         \n\
         Try, in another terminal:\n\
         \n\
         \x20 1. The backends take turns:   for i in 1 2 3 4 5 6; do cat < /dev/tcp/{host}/{port}; done\n\
         \x20                               (bash; or: nc {host} {port} < /dev/null)\n\
         \x20 2. What Prometheus would see: curl -s http://{admin}/metrics\n\
         \x20 3. Stop a backend:            echo stop > /dev/tcp/{}/{}\n\
         \x20                               then 1. again: no connect fails, red is left out;\n\
         \x20                               it comes back after {} s\n\
         \n\
         Each session prints its line of the access log here. Ctrl-C ends the demo.\n\n",
        lines,
        stopped.ip(),
        stopped.port(),
        AWAY.as_secs(),
    ));
    Ok(plan)
}

/// A backend: says its name to whoever connects, and goes away for a while when told "stop".
fn serve(name: &'static str, listener: TcpListener, address: SocketAddr) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    else {
        return;
    };
    let mut listener = Some(listener);
    loop {
        let socket = match listener.take().map_or_else(|| bind_to(address), Ok) {
            Ok(socket) => socket,
            Err(e) => {
                say(&format!("{name}: cannot listen on {address} again: {e}\n"));
                return;
            }
        };
        if let Err(e) = runtime.block_on(until_stopped(name, socket)) {
            say(&format!("{name}: {e}\n"));
            return;
        }
        say(&format!("{name}: stopped, back in {} s\n", AWAY.as_secs()));
        std::thread::sleep(AWAY);
        say(&format!("{name}: listening again on {address}\n"));
    }
}

async fn until_stopped(name: &'static str, socket: TcpListener) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(socket)?;
    let stop = tokio_util::sync::CancellationToken::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            accepted = listener.accept() => {
                let stop = stop.clone();
                match accepted {
                    Ok((stream, _)) => {
                        tokio::spawn(async move {
                            if matches!(greet(name, stream).await, Ok(true)) {
                                stop.cancel();
                            }
                        });
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        }
    }
}

/// True when the client said "stop".
async fn greet(name: &str, mut stream: TcpStream) -> io::Result<bool> {
    stream.write_all(format!("{name}\n").as_bytes()).await?;
    stream.shutdown().await?;
    let mut line = String::new();
    let read = BufReader::new(tokio::io::AsyncReadExt::take(stream, 64));
    let mut read = std::pin::pin!(read);
    match tokio::time::timeout(PATIENCE, read.read_line(&mut line)).await {
        Ok(Ok(_)) => Ok(line.trim() == "stop"),
        Ok(Err(e)) => Err(e),
        Err(_) => Ok(false),
    }
}

/// The port asked for, or any other if somebody has it.
fn bind(port: u16) -> io::Result<TcpListener> {
    bind_to(SocketAddr::from(([127, 0, 0, 1], port)))
        .or_else(|_| bind_to(SocketAddr::from(([127, 0, 0, 1], 0))))
}

fn bind_to(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address)
}

fn free(port: u16) -> Result<SocketAddr, String> {
    bind(port)
        .and_then(|listener| listener.local_addr())
        .map_err(|e| e.to_string())
}
