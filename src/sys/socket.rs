//! Properties of sockets that the standard library does not have.

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::{SendFlags, Shutdown, connect_unspec, send, shutdown},
};
use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    time::Duration,
};

/// The state of a peer, found without reading and without changing what the executor knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerNow {
    Here,
    /// It has ended its side, and has sent nothing that is unread.
    EndedSilently,
    /// Reset, or both directions closed.
    Gone,
}

pub fn peer_now(socket: impl AsFd) -> io::Result<PeerNow> {
    let mut fds = [PollFd::new(&socket, PollFlags::IN | PollFlags::RDHUP)];
    poll(&mut fds, Some(&rustix::time::Timespec::default()))?;
    let events = fds[0].revents();
    Ok(
        if events.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL) {
            PeerNow::Gone
        } else if events.contains(PollFlags::RDHUP) && unread(&socket)? == 0 {
            PeerNow::EndedSilently
        } else {
            PeerNow::Here
        },
    )
}

/// Bytes that have arrived and were not read.
pub fn unread(socket: impl AsFd) -> io::Result<u64> {
    Ok(rustix::io::ioctl_fionread(socket)?)
}

/// Bytes that were written and that the peer's kernel has not acknowledged.
pub fn unacknowledged(socket: impl AsFd) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: TIOCOUTQ (SIOCOUTQ) writes one int to the address given, which is that of a live
    // local variable of that type; the descriptor is borrowed and so open.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u32::try_from(bytes).unwrap_or(0))
}

/// Writes what fits, possibly nothing. The descriptor must be an open socket of the caller.
pub fn send_now(socket: RawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the borrow ends with this call, and the caller keeps the descriptor open until then.
    let socket = unsafe { BorrowedFd::borrow_raw(socket) };
    loop {
        match send(socket, bytes, SendFlags::NOSIGNAL) {
            Ok(n) => return Ok(n),
            Err(Errno::AGAIN) => return Ok(0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The local port of an IP socket. The descriptor may belong to another thread, which may close it
/// at any time: the caller must find out afterwards whether it was still open.
pub fn local_port(socket: RawFd) -> Option<u16> {
    // SAFETY: the borrow ends with this call, which changes nothing. If the descriptor has been
    // closed meanwhile, the kernel reports that, or answers for whatever has the number now.
    let socket = unsafe { BorrowedFd::borrow_raw(socket) };
    let address = socket2::SockRef::from(&socket).local_addr().ok()?;
    Some(address.as_socket()?.port())
}

/// From now on closing the socket sends a reset instead of a clean end.
pub fn reset_on_close(socket: impl AsFd) {
    let lingers = socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO));
    if lingers.is_err() {
        // Resets at once. A socket that is dead refuses this as well, and needs no reset.
        let _ = connect_unspec(&socket);
    }
}

/// Whether the kernel has closed the connection: nothing that was written will still be delivered.
pub fn is_dead(socket: impl AsFd) -> bool {
    tcp_info(socket).is_some_and(|info| info.state == TCP_CLOSE)
}

/// Ends both directions. What has arrived can still be read, up to a clean end.
pub fn end_both(socket: impl AsFd) {
    // It fails only where the connection is closed.
    let _ = shutdown(socket, Shutdown::Both);
}

/// A socket with bytes that its peer has not acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sending {
    /// A number that changes when the peer acknowledges bytes.
    pub progress: u64,
    pub window: Window,
    /// How long ago the peer last acknowledged anything, an empty probe included.
    pub last_ack_age: Duration,
}

/// What the kernel waits for before it sends more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    /// For an acknowledgement.
    Open,
    /// For space at the peer, which it probes for.
    Probed { unanswered: u8 },
    /// For an acknowledgement, of a peer whose window has closed meanwhile.
    Shrunk,
}

/// `None` where everything was acknowledged, or the kernel reports nothing.
pub fn sending(socket: impl AsFd) -> Option<Sending> {
    let Some(info) = tcp_info(&socket) else {
        // A unix socket: bytes that are not read yet count.
        let unread = unacknowledged(&socket).ok().filter(|&unread| unread > 0)?;
        return Some(Sending {
            progress: unread.into(),
            window: Window::Probed { unanswered: 0 },
            last_ack_age: Duration::ZERO,
        });
    };
    let window = match (info.unacked, info.notsent_bytes) {
        (0, 0) => return None,
        (0, _) => Window::Probed {
            unanswered: info.probes,
        },
        _ if info.snd_wnd == 0 => Window::Shrunk,
        _ => Window::Open,
    };
    Some(Sending {
        progress: info.bytes_acked,
        window,
        last_ack_age: Duration::from_millis(info.last_ack_recv.into()),
    })
}

/// Bounds how long the kernel waits from one retransmission or window probe to the next. Returns
/// whether it knows the option (Linux 6.15).
pub fn bound_probe_interval(socket: impl AsFd, interval: Duration) -> bool {
    const TCP_RTO_MAX_MS: libc::c_int = 44;
    let ms = interval.as_millis().clamp(1_000, 120_000);
    let ms = libc::c_int::try_from(ms).unwrap_or(120_000);
    // SAFETY: the kernel reads one int from the address given, which is that of a live local
    // variable of that type; the descriptor is borrowed and so open.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_RTO_MAX_MS,
            (&raw const ms).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    result == 0
}

fn tcp_info(socket: impl AsFd) -> Option<TcpInfo> {
    let mut info = TcpInfo {
        // A kernel that does not report it leaves this: not a closed window.
        snd_wnd: u32::MAX,
        ..TcpInfo::default()
    };
    let mut len = size_of::<TcpInfo>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, the size of `info`, to the address of
    // `info`, all of whose fields are integers, and to `len` how many it wrote; both are live
    // locals, and the descriptor is borrowed and so open.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut len,
        )
    };
    (result == 0).then_some(info)
}

/// The kernel's `struct tcp_info`, as far as it is needed here. Older kernels fill less of it.
#[repr(C)]
#[derive(Default)]
struct TcpInfo {
    state: u8,
    _before_probes: [u8; 2],
    /// Window probes that were not answered.
    probes: u8,
    _before_unacked: [u32; 5],
    /// Segments.
    unacked: u32,
    _before_last_ack_recv: [u32; 7],
    /// In milliseconds.
    last_ack_recv: u32,
    _before_bytes_acked: [u32; 15],
    bytes_acked: u64,
    _before_notsent: [u32; 4],
    notsent_bytes: u32,
    _before_snd_wnd: [u32; 20],
    snd_wnd: u32,
}

/// From the kernel's list of TCP states.
const TCP_CLOSE: u8 = 7;

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{Read, Write},
        mem::offset_of,
        net::{TcpListener, TcpStream},
        time::Instant,
    };

    #[test]
    fn fields_are_at_the_kernels_offsets() {
        assert_eq!(offset_of!(TcpInfo, probes), 3);
        assert_eq!(offset_of!(TcpInfo, unacked), 24);
        assert_eq!(offset_of!(TcpInfo, last_ack_recv), 56);
        assert_eq!(offset_of!(TcpInfo, bytes_acked), 120);
        assert_eq!(offset_of!(TcpInfo, notsent_bytes), 144);
        assert_eq!(offset_of!(TcpInfo, snd_wnd), 228);
    }

    #[test]
    fn a_paused_reader_is_distinguished_from_an_active_one() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let mut writer = TcpStream::connect(listener.local_addr().expect("bound")).expect("made");
        let (mut reader, _) = listener.accept().expect("accepted");
        assert_eq!(sending(&writer), None);
        writer.set_nonblocking(true).expect("set");
        let mut sent = 0;
        while let Ok(n) = writer.write(&[0; 1 << 16]) {
            sent += n;
        }
        let paused = until(|| {
            sending(&writer).filter(|sending| matches!(sending.window, Window::Probed { .. }))
        });
        let mut got = vec![0; sent];
        reader.read_exact(&mut got).expect("read");
        until(|| sending(&writer).is_none().then_some(()));
        writer.write_all(b"more").expect("written");
        let info = tcp_info(&writer).expect("of TCP");
        assert!(info.bytes_acked > paused.progress, "{}", info.bytes_acked);
        assert!(!is_dead(&writer));
    }

    fn until<T>(mut find: impl FnMut() -> Option<T>) -> T {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(found) = find() {
                return found;
            }
            assert!(Instant::now() < end, "it does not come to that");
            std::thread::yield_now();
        }
    }
}
