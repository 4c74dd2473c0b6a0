//! Sessions of which much has happened when the program looks at them: it is stopped meanwhile, so
//! that it finds all at once.

use crate::harness::{
    net::{End, connect, read_all, reset, wait_delivered},
    ports,
    proc::output,
    secs,
    server::Server,
    tembuku::Tembuku,
    wait_until,
};
use rustix::process::Signal;
use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::Command,
    sync::mpsc,
};

struct Setting {
    tembuku: Tembuku,
    front: SocketAddr,
    streams: mpsc::Receiver<TcpStream>,
    _server: Server,
}

impl Setting {
    fn new() -> Self {
        Self::beside(&[])
    }

    /// Backends without a listening process come first.
    fn beside(dead: &[SocketAddr]) -> Self {
        let (server, streams) = Server::held();
        let front = ports::free_addr();
        let tembuku = Tembuku::start(&format!(
            "[process]\nworkers = 1\n[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
             [upstreams.u]\nbackends = {:?}\n",
            dead.iter()
                .chain([&server.addr])
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        ));
        Self {
            tembuku,
            front,
            streams,
            _server: server,
        }
    }

    /// A session over which a byte has gone each way: at its client, and at its backend.
    fn session(&self) -> (TcpStream, TcpStream) {
        let mut client = connect(self.front).unwrap();
        client.write_all(b"?").unwrap();
        let mut backend = self.streams.recv_timeout(secs(10)).unwrap();
        backend.set_read_timeout(Some(secs(10))).unwrap();
        for (from, to) in [(true, &mut backend), (false, &mut client)] {
            to.read_exact(&mut [0]).unwrap();
            if from {
                to.write_all(b"!").unwrap();
            }
        }
        (client, backend)
    }

    fn while_stopped(&self, act: impl FnOnce()) {
        while_stopped(&self.tembuku, act);
    }
}

fn while_stopped(tembuku: &Tembuku, act: impl FnOnce()) {
    tembuku.proc.signal(Signal::STOP);
    wait_until("every thread is stopped", secs(10), || {
        let tasks = format!("/proc/{}/task", tembuku.proc.id());
        fs::read_dir(tasks).unwrap().all(|task| {
            let stat = fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
            stat.rsplit(") ").next().unwrap().starts_with('T')
        })
    });
    act();
    tembuku.proc.signal(Signal::CONT);
}

/// Packets that have come to a socket.
fn packets_in(stream: &TcpStream) -> u32 {
    let [local, peer] = [stream.local_addr(), stream.peer_addr()].map(|a| a.unwrap().port());
    let filter = format!("sport = :{local} and dport = :{peer}");
    let out = output(Command::new("ss").args(["-tinHOa", &filter]));
    let output = String::from_utf8(out.stdout).unwrap();
    let count = output.split(" segs_in:").nth(1);
    let count = count.and_then(|rest| rest.split_whitespace().next());
    count
        .unwrap_or_else(|| panic!("{output:?}"))
        .parse()
        .unwrap()
}

#[test]
fn an_end_that_is_known_travels_with_the_last_bytes() {
    let setting = Setting::new();
    let (mut client, mut backend) = setting.session();
    wait_delivered(&client).unwrap();
    let before = packets_in(&client);
    setting.while_stopped(|| {
        backend.write_all(b"answer").unwrap();
        drop(backend);
    });
    assert_eq!(read_all(&mut client), (b"answer".to_vec(), End::Fin));
    assert_eq!(packets_in(&client) - before, 1);
}

/// Each client gets what was sent to it, and nothing that was sent to others, whatever came after
/// it.
#[test]
fn bytes_are_delivered_before_the_end_that_follows_them() {
    let setting = Setting::new();
    for round in 0..5 {
        let mut sessions: Vec<_> = (0..60).map(|_| setting.session()).collect();
        let mut clients = Vec::new();
        let lengths = [1, 20 * 1024, 20 * 1024 + 1, 40_000, 7, 30_000];
        let payload = |n: usize| vec![(n + round) as u8; lengths[(n / 4 + round) % lengths.len()]];
        let mut more = Vec::new();
        setting.while_stopped(|| {
            for (n, (client, mut backend)) in sessions.drain(..).enumerate() {
                backend.write_all(&payload(n)).unwrap();
                clients.push(client);
                match n % 4 {
                    0 => more.push((n, backend)),
                    1 => drop(backend),
                    // It waits until the bytes are there: a reset takes back what is not.
                    2 => {
                        wait_delivered(&backend).unwrap();
                        reset(backend);
                    }
                    _ => {
                        backend.shutdown(std::net::Shutdown::Write).unwrap();
                        more.push((n, backend));
                    }
                }
            }
        });
        for (n, backend) in &mut more {
            if *n % 4 == 0 {
                backend.write_all(b"more").unwrap();
                backend.shutdown(std::net::Shutdown::Write).unwrap();
            }
            // The other way is still open.
            clients[*n].write_all(b"thanks").unwrap();
            let mut got = [0; 6];
            backend.read_exact(&mut got).unwrap();
            assert_eq!(&got, b"thanks", "{n}");
        }
        for (n, mut client) in clients.into_iter().enumerate() {
            let (got, end) = read_all(&mut client);
            let mut wanted = payload(n);
            if n % 4 == 0 {
                wanted.extend_from_slice(b"more");
            }
            let as_wanted = got == wanted;
            assert!(as_wanted, "{n}: {} of {}", got.len(), wanted.len());
            assert_eq!(end, if n % 4 == 2 { End::Reset } else { End::Fin }, "{n}");
        }
    }
}

/// Of several calls on a socket that was reset only the first fails, be it a write to it: the read
/// after it must not take that for a clean end.
#[test]
fn a_reset_that_a_write_has_met_is_not_a_clean_end() {
    let setting = Setting::new();
    for round in 0..5 {
        // What these get fills the buffer of deferred writes, so that it is written
        // before the victim's backend is read for the last time.
        let mut others: Vec<_> = (0..6).map(|_| setting.session()).collect();
        let (mut victim, mut backend) = setting.session();
        let answer = vec![round; 20_000];
        setting.while_stopped(|| {
            for (client, _) in &mut others {
                client.write_all(&answer).unwrap();
            }
            victim.write_all(&[b'?'; 5_000]).unwrap();
            backend.write_all(&answer).unwrap();
            wait_delivered(&backend).unwrap();
            reset(backend);
        });
        let (got, end) = read_all(&mut victim);
        assert!(got == answer, "{} bytes", got.len());
        assert_eq!(end, End::Reset, "{round}");
        for (client, mut backend) in others {
            drop(client);
            assert!(read_all(&mut backend) == (answer.clone(), End::Fin));
        }
    }
}

/// It is read before a backend is looked for, and lost with none that cannot be reached.
#[test]
fn early_client_bytes_go_to_the_backend_that_is_reached() {
    let setting = Setting::beside(&[ports::free_addr(), ports::free_addr()]);
    // More than what is read early, too.
    let lengths = [1, 4_095, 4_096, 4_097, 20_000, 300_000];
    let payload = |n: usize| {
        (0..lengths[n])
            .map(|i| (i * 7 + n) as u8)
            .collect::<Vec<_>>()
    };
    let mut clients = Vec::new();
    setting.while_stopped(|| {
        for n in 0..lengths.len() {
            let mut client = connect(setting.front).unwrap();
            client.write_all(&payload(n)).unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
            clients.push(client);
        }
    });
    let mut got = Vec::new();
    for _ in &clients {
        let mut backend = setting.streams.recv_timeout(secs(10)).unwrap();
        let (bytes, end) = read_all(&mut backend);
        assert_eq!(end, End::Fin);
        backend
            .write_all(format!("{} bytes", bytes.len()).as_bytes())
            .unwrap();
        got.push(bytes);
    }
    got.sort_by_key(Vec::len);
    for (n, bytes) in got.iter().enumerate() {
        assert!(*bytes == payload(n), "{} of {}", bytes.len(), lengths[n]);
    }
    for (client, length) in clients.iter_mut().zip(lengths) {
        let answer = format!("{length} bytes").into_bytes();
        assert_eq!(read_all(client), (answer, End::Fin));
    }
    let metrics = setting.tembuku.metrics();
    for name in ["listener_received_bytes_total", "backend_sent_bytes_total"] {
        let all = lengths.iter().sum::<usize>() as f64;
        assert_eq!(metrics.sum(name, &[]), all, "{name}");
    }
}

/// A client whose bytes no backend received gets a reset; one that sent nothing gets a clean end.
#[test]
fn undeliverable_bytes_end_in_a_reset() {
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [\"{}\"]\n",
        ports::free_addr()
    ));
    for _ in 0..20 {
        let mut silent = connect(front).unwrap();
        assert_eq!(read_all(&mut silent), (Vec::new(), End::Fin));
        let mut clients = Vec::new();
        while_stopped(&tembuku, || {
            for _ in 0..5 {
                let mut client = connect(front).unwrap();
                client.write_all(b"hello").unwrap();
                clients.push(client);
            }
        });
        for mut client in clients {
            assert_eq!(read_all(&mut client), (Vec::new(), End::Reset));
        }
    }
}

/// No backend hears of it.
#[test]
fn a_client_reset_before_its_first_byte_is_client_left() {
    let setting = Setting::new();
    setting.while_stopped(|| {
        for _ in 0..3 {
            reset(connect(setting.front).unwrap());
        }
    });
    let left = [("reason", "client_left")];
    setting
        .tembuku
        .wait_metric("sessions_closed_total", &left, |n| n == 3.0);
    let (_client, _backend) = setting.session();
    assert!(setting.streams.try_recv().is_err());
}
