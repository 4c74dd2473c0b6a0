//! A relay in front of a server of backends, which makes it as bad as a server can be.

use super::{net, poll, ports, secs, server::Server};
use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Nothing listens.
    Gone,
    /// Connections are accepted, and nothing is said, also on those that there are.
    Hanging,
    Garbage,
    /// An answer without end, which begins well.
    Huge,
    /// A byte from time to time.
    Slow,
    /// The beginning of an answer, then the end of the connection.
    Half,
}

impl Fault {
    pub(crate) const ALL: [Self; 6] = [
        Self::Gone,
        Self::Hanging,
        Self::Garbage,
        Self::Huge,
        Self::Slow,
        Self::Half,
    ];
}

const GARBAGE: &[u8] = b"\x16\x03\x01\x00\xffgarbage\r\n\r\n\x00\x00";
/// Of an answer, where it is cut.
const HALF: usize = 20;
const PIECE: Duration = Duration::from_millis(40);

/// Relays TCP to a server.
pub(crate) struct Faulty {
    pub(crate) addr: SocketAddr,
    server: Option<Server>,
    relay: Arc<Relay>,
}

struct Relay {
    target: SocketAddr,
    fault: Mutex<Fault>,
    /// How an answer begins that never ends.
    huge: Vec<u8>,
    live: Mutex<Vec<TcpStream>>,
}

impl Faulty {
    /// `huge`: how an answer begins that never ends.
    pub(crate) fn start(target: SocketAddr, huge: &[u8]) -> Self {
        Self::start_on(ports::free_addr(), target, huge)
    }

    fn start_on(addr: SocketAddr, target: SocketAddr, huge: &[u8]) -> Self {
        let relay = Arc::new(Relay {
            target,
            fault: Mutex::new(Fault::None),
            huge: huge.to_vec(),
            live: Mutex::default(),
        });
        let mut faulty = Self {
            addr,
            server: None,
            relay,
        };
        faulty.set(Fault::None);
        faulty
    }

    pub(crate) fn set(&mut self, fault: Fault) {
        *self.relay.fault.lock().unwrap() = fault;
        match fault {
            Fault::Gone => self.server = None,
            _ if self.server.is_none() => {
                let (relay, addr) = (Arc::clone(&self.relay), self.addr);
                let _ = poll(secs(10), || (!net::listening(addr.port())).then_some(()));
                self.server = Some(Server::on(&[addr], move |stream| relay.serve(stream)));
            }
            _ => {}
        }
        if fault != Fault::Hanging {
            for stream in self.relay.live.lock().unwrap().drain(..) {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        self.set(Fault::Gone);
    }
}

impl Relay {
    fn fault(&self) -> Fault {
        *self.fault.lock().unwrap()
    }

    fn serve(&self, mut client: TcpStream) {
        self.live.lock().unwrap().push(client.try_clone().unwrap());
        let mut first = [0; 4096];
        match self.fault() {
            Fault::None | Fault::Slow | Fault::Half => {}
            Fault::Gone => return,
            // Until the client gives up.
            Fault::Hanging => {
                while client.read(&mut first).is_ok_and(|n| n > 0) {}
                return;
            }
            Fault::Garbage => {
                let _ = client.read(&mut first);
                let _ = client.write_all(GARBAGE);
                return;
            }
            Fault::Huge => {
                let _ = client.read(&mut first);
                let _ = client.write_all(&self.huge);
                let blanks = [b' '; 64 << 10];
                while client.write_all(&blanks).is_ok() {}
                return;
            }
        }
        let Ok(mut server) = TcpStream::connect(self.target) else {
            return;
        };
        self.live.lock().unwrap().push(server.try_clone().unwrap());
        let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        let upward = thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
        let _ = self.answer(&mut server, &mut client);
        let _ = client.shutdown(Shutdown::Both);
        let _ = server.shutdown(Shutdown::Both);
        let _ = upward.join();
    }

    fn answer(&self, server: &mut TcpStream, client: &mut TcpStream) -> std::io::Result<()> {
        let (mut buffer, mut sent) = ([0; 4096], 0);
        loop {
            let count = server.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            match self.fault() {
                // It has begun before, and nothing more comes.
                Fault::Hanging => continue,
                Fault::Slow => {
                    for byte in &buffer[..count] {
                        thread::sleep(PIECE);
                        client.write_all(&[*byte])?;
                    }
                }
                Fault::Half => {
                    let rest = (HALF - sent).min(count);
                    client.write_all(&buffer[..rest])?;
                    sent += rest;
                    if sent == HALF {
                        return Ok(());
                    }
                }
                Fault::None | Fault::Gone | Fault::Garbage | Fault::Huge => {
                    client.write_all(&buffer[..count])?;
                }
            }
        }
    }
}

/// Relays datagrams of DNS, and TCP at the same port.
pub(crate) struct FaultyDns {
    streams: Faulty,
    datagrams: Option<Datagrams>,
}

struct Datagrams {
    has_ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl FaultyDns {
    pub(crate) fn start(target: SocketAddr) -> Self {
        let addr = ports::free_addr();
        // The longest message, of which nothing is a record.
        let mut dns = Self {
            streams: Faulty::start_on(addr, target, b"\xff\xff"),
            datagrams: None,
        };
        dns.set(Fault::None);
        dns
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.streams.addr
    }

    pub(crate) fn set(&mut self, fault: Fault) {
        self.streams.set(fault);
        self.datagrams = None;
        if fault != Fault::Gone {
            let (addr, target) = (self.streams.addr, self.streams.relay.target);
            self.datagrams = Some(Datagrams::start(addr, target, fault));
        }
    }
}

impl Datagrams {
    fn start(addr: SocketAddr, target: SocketAddr, fault: Fault) -> Self {
        let socket = UdpSocket::bind(addr).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let has_ended = Arc::<AtomicBool>::default();
        let thread = thread::spawn({
            let has_ended = Arc::clone(&has_ended);
            move || {
                let mut asked = [0; 4096];
                while !has_ended.load(SeqCst) {
                    let Ok((length, client)) = socket.recv_from(&mut asked) else {
                        continue;
                    };
                    if let Some(reply) = reply(&asked[..length], target, fault) {
                        let _ = socket.send_to(&reply, client);
                    }
                }
            }
        });
        Self {
            has_ended,
            thread: Some(thread),
        }
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.has_ended.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn reply(asked: &[u8], target: SocketAddr, fault: Fault) -> Option<Vec<u8>> {
    // A head without records, and the question, which has one name, a type and a class.
    let mut head = asked.get(..12)?.to_vec();
    head[6..].fill(0);
    let name = asked[12..].iter().position(|byte| *byte == 0)?;
    let question = asked.get(12..12 + name + 5)?;
    match fault {
        Fault::Hanging | Fault::Gone => None,
        // Of three records that are none.
        Fault::Garbage => {
            head[2] |= 0x80;
            head[7] = 3;
            Some([&head, question, GARBAGE].concat())
        }
        // Truncated, so that TCP is used.
        Fault::Huge | Fault::Slow => {
            head[2] |= 0x82;
            Some([&head, question].concat())
        }
        Fault::None | Fault::Half => {
            let socket = UdpSocket::bind("127.0.0.1:0").ok()?;
            socket.set_read_timeout(Some(secs(1))).ok()?;
            socket.send_to(asked, target).ok()?;
            let mut reply = vec![0; 65_535];
            let length = socket.recv(&mut reply).ok()?;
            reply.truncate(match fault {
                Fault::Half => length / 2,
                _ => length,
            });
            Some(reply)
        }
    }
}
