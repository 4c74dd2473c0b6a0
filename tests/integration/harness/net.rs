//! Sockets with odd options, and the ways a connection can end.

use super::{millis, poll, secs, wait_until};
use socket2::{Domain, SockRef, Socket, Type};
use std::{
    fs,
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

/// How long a read or a write of a test may stand still: by then the proxy has lost something.
pub(crate) const PATIENCE: Duration = secs(20);

fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

pub(crate) fn connect(addr: SocketAddr) -> io::Result<TcpStream> {
    TcpStream::connect_timeout(&addr, PATIENCE).map(patient)
}

/// A connection from this source address, with buffers of these sizes (0: the kernel's choice).
pub(crate) fn connect_with(
    addr: SocketAddr,
    source: Option<IpAddr>,
    receive: usize,
    send: usize,
) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    set_buffers(SockRef::from(&socket), receive, send)?;
    socket.connect_timeout(&addr.into(), PATIENCE)?;
    Ok(patient(socket.into()))
}

pub(crate) fn set_buffers(socket: SockRef<'_>, receive: usize, send: usize) -> io::Result<()> {
    if receive > 0 {
        socket.set_recv_buffer_size(receive)?;
    }
    if send > 0 {
        socket.set_send_buffer_size(send)?;
    }
    Ok(())
}

/// Ends a connection by a reset. What is not on its way yet is thrown away.
pub(crate) fn reset(stream: TcpStream) {
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(stream);
}

/// Waits until the peer's kernel has everything that was written: a reset takes none of it back
/// then.
pub(crate) fn wait_delivered(stream: &TcpStream) -> io::Result<()> {
    let local = proc_net_addr(stream.local_addr()?);
    let peer = proc_net_addr(stream.peer_addr()?);
    let look = || -> Option<()> {
        let table = fs::read_to_string("/proc/net/tcp").ok()?;
        let queue = table.lines().find_map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            (fields.next()? == local && fields.next()? == peer).then(|| fields.nth(1))?
        });
        // A connection that is not in the table has nothing left to deliver.
        queue
            .is_none_or(|queue| queue.starts_with("00000000:"))
            .then_some(())
    };
    poll(PATIENCE, look)
        .ok_or_else(|| io::Error::new(ErrorKind::TimedOut, "the peer does not take what was sent"))
}

fn proc_net_addr(addr: SocketAddr) -> String {
    let SocketAddr::V4(addr) = addr else {
        panic!("only IPv4 here");
    };
    format!(
        "{:08X}:{:04X}",
        u32::from_ne_bytes(addr.ip().octets()),
        addr.port()
    )
}

/// Whether a socket listens on this TCP port, on any address.
pub(crate) fn listening(port: u16) -> bool {
    let local = format!(":{port:04X}");
    ["/proc/net/tcp", "/proc/net/tcp6"].iter().any(|table| {
        let table = fs::read_to_string(table).unwrap_or_default();
        table.lines().any(|line| {
            let mut fields = line.split_whitespace().skip(1);
            fields.next().is_some_and(|addr| addr.ends_with(&local)) && fields.nth(1) == Some("0A")
        })
    })
}

/// How a stream of bytes ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Fin,
    Reset,
    Silence,
    Other(ErrorKind),
}

pub(crate) fn end_of(error: &io::Error) -> End {
    match error.kind() {
        ErrorKind::ConnectionReset => End::Reset,
        ErrorKind::WouldBlock | ErrorKind::TimedOut => End::Silence,
        other => End::Other(other),
    }
}

/// Everything up to the end, and what the end was.
pub(crate) fn read_all(stream: &mut impl Read) -> (Vec<u8>, End) {
    read_slowly(stream, 64 * 1024, Duration::ZERO)
}

/// [`read_all`] in small pieces with a pause after each.
pub(crate) fn read_slowly(stream: &mut impl Read, piece: usize, pause: Duration) -> (Vec<u8>, End) {
    let mut all = Vec::new();
    let mut buffer = vec![0; piece];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return (all, End::Fin),
            Ok(n) => all.extend_from_slice(&buffer[..n]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return (all, end_of(&error)),
        }
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
}

/// One line, without its end.
pub(crate) fn read_line(stream: &mut impl Read) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        match stream.read(&mut byte)? {
            0 => {
                let so_far = String::from_utf8_lossy(&line);
                return Err(io::Error::new(
                    ErrorKind::UnexpectedEof,
                    format!("ended after {so_far:?}"),
                ));
            }
            _ if byte[0] == b'\n' => return String::from_utf8(line).map_err(io::Error::other),
            _ => line.push(byte[0]),
        }
    }
}

/// A connection through which a named backend has sent its name, still open.
pub(crate) fn session(addr: SocketAddr) -> io::Result<(TcpStream, String)> {
    let mut stream = connect(addr)?;
    let name = read_line(&mut stream)?;
    Ok((stream, name))
}

/// Which named backend a new connection gets.
pub(crate) fn ask(addr: SocketAddr) -> io::Result<String> {
    session(addr).map(|(_, name)| name)
}

pub(crate) fn ask_from(source: IpAddr, addr: SocketAddr) -> io::Result<String> {
    read_line(&mut connect_with(addr, Some(source), 0, 0)?)
}

/// Sends a line and waits for it to come back.
pub(crate) fn echo(stream: &mut TcpStream, line: &str) -> io::Result<()> {
    stream.write_all(format!("{line}\n").as_bytes())?;
    let back = read_line(stream)?;
    if back == line {
        Ok(())
    } else {
        Err(io::Error::other(format!("{back:?} came back for {line:?}")))
    }
}

/// A new connection is rejected: refused, or ended before any byte.
#[track_caller]
pub(crate) fn assert_closed_at_once(addr: SocketAddr) {
    let mut stream = connect(addr).unwrap();
    assert_ends_now(&mut stream);
}

/// The stream ends, by whatever means, without another byte and without delay.
#[track_caller]
pub(crate) fn assert_ends_now(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(secs(5))).unwrap();
    let (bytes, end) = read_all(stream);
    assert!(
        bytes.is_empty(),
        "got {:?}",
        String::from_utf8_lossy(&bytes)
    );
    assert!(matches!(end, End::Fin | End::Reset), "ended by {end:?}");
}

/// An address where connecting neither works nor fails: a listener that accepts none, its queue
/// full.
pub(crate) struct BlackHole {
    pub(crate) addr: SocketAddr,
    listener: Socket,
    _queued: Vec<Socket>,
}

impl BlackHole {
    pub(crate) fn new() -> BlackHole {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener
            .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
            .unwrap();
        listener.listen(0).unwrap();
        let addr = listener.local_addr().unwrap().as_socket().unwrap();
        let mut queued = Vec::new();
        loop {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            match socket.connect_timeout(&addr.into(), millis(150)) {
                Ok(()) => queued.push(socket),
                Err(_) => {
                    return BlackHole {
                        addr,
                        listener,
                        _queued: queued,
                    };
                }
            }
            assert!(
                queued.len() < 8,
                "the queue of a listener that accepts none never fills"
            );
        }
    }

    /// From now on connecting is refused.
    pub(crate) fn close(self) {
        drop(self.listener);
        wait_until("the address refuses", secs(2), || {
            TcpStream::connect(self.addr).is_err()
        });
    }
}
