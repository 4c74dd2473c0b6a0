//! Sending: one sendmmsg for what is ready.

use super::{
    Local,
    control::{Control, Name},
    receive::empty,
};
use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    os::fd::{AsRawFd, BorrowedFd},
};

/// Most messages one call takes; `send` loops over more itself.
pub const BATCH: usize = 64;
/// Most parts of a message, which is also the number of datagrams that every kernel splits one
/// into.
pub const PARTS: usize = 64;

const FLAGS: libc::c_int = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;

/// What is to be sent as one datagram, or as many of `segment` bytes each.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// Together they are the payload. At most 64 parts (PARTS).
    pub parts: &'a [IoSlice<'a>],
    /// 0: one datagram. Else the kernel splits the whole into datagrams of this size, the last may
    /// be shorter (UDP_SEGMENT). These are never sent in fragments: of a size beyond the path's MTU
    /// the whole is refused with EMSGSIZE (EINVAL of older kernels), and can be sent one by one;
    /// the same goes for EIO, of a route that cannot split.
    pub segment: u16,
    /// None: the socket is connected.
    pub to: Option<SocketAddr>,
    pub from: Option<Local>,
}

/// Scratch for sendmmsg: message headers, addresses, control data for BATCH messages.
pub struct SendHeaders {
    names: Vec<Name>,
    controls: Vec<Control>,
    /// Each points to its name and control space from the start, and to a message's parts while it
    /// is sent.
    headers: Vec<libc::mmsghdr>,
}

// SAFETY: the pointers in the headers lead into memory that the struct itself owns on the heap,
// wherever it is moved to, or to parts that are not read after the call that has set them.
unsafe impl Send for SendHeaders {}

impl Default for SendHeaders {
    fn default() -> Self {
        Self::new()
    }
}

impl SendHeaders {
    pub fn new() -> Self {
        let mut names = vec![Name::EMPTY; BATCH];
        let mut controls = vec![Control::EMPTY; BATCH];
        let headers = (0..BATCH)
            .map(|i| {
                let mut header = empty();
                header.msg_hdr.msg_name = names.as_mut_ptr().wrapping_add(i).cast();
                header.msg_hdr.msg_control = controls.as_mut_ptr().wrapping_add(i).cast();
                header
            })
            .collect();
        Self {
            names,
            controls,
            headers,
        }
    }

    /// Sends without waiting, in order; returns how many of the messages were taken, and the error
    /// at the next one. The kernel reports no error of a call that has sent some messages: it comes
    /// at the next try, unless it was that of an earlier datagram, which is reported once only.
    pub fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        messages: &[Message<'_>],
    ) -> (usize, Option<io::Error>) {
        let mut sent = 0;
        for batch in messages.chunks(BATCH) {
            for (i, message) in batch.iter().enumerate() {
                self.prepare(i, message);
            }
            match call(socket, &mut self.headers[..batch.len()]) {
                Ok(taken) => sent += taken,
                Err(error) => return (sent, Some(error)),
            }
            if sent < messages.len() && !sent.is_multiple_of(BATCH) {
                // The kernel has stopped, and does not report why.
                break;
            }
        }
        (sent, None)
    }

    fn prepare(&mut self, i: usize, message: &Message<'_>) {
        debug_assert!(message.parts.len() <= PARTS, "too many parts");
        let header = &mut self.headers[i].msg_hdr;
        // A length of 0: there is no address.
        header.msg_namelen = match message.to {
            Some(to) => self.names[i].write(to) as libc::socklen_t,
            None => 0,
        };
        header.msg_iov = message.parts.as_ptr().cast_mut().cast();
        header.msg_iovlen = message.parts.len() as _;
        header.msg_controllen = if message.from.is_none() && message.segment == 0 {
            0
        } else {
            self.controls[i].write(message.from, message.size_of_segments()) as _
        };
    }
}

impl Message<'_> {
    /// 0 for what fits in one datagram: then it may be sent in fragments.
    fn size_of_segments(&self) -> u16 {
        let mut len = 0;
        for part in self.parts {
            len += part.len();
            if len > usize::from(self.segment) {
                return self.segment;
            }
        }
        0
    }
}

/// Returns how many of the messages were taken, at least one.
fn call(socket: BorrowedFd<'_>, headers: &mut [libc::mmsghdr]) -> io::Result<usize> {
    loop {
        let result = if let [one] = headers {
            // SAFETY: the header points to a name, a control space and parts with their true
            // lengths (an IoSlice is laid out as an iovec), all borrowed by the caller and only
            // read; the descriptor is open.
            let bytes = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const one.msg_hdr, FLAGS) };
            // One message is what was taken, even if it is one of no bytes.
            if bytes < 0 { -1 } else { 1 }
        } else {
            // SAFETY: `headers` are as many as `headers.len()`, borrowed exclusively, for their
            // lengths are written; for each of them and for the descriptor the note above holds.
            unsafe {
                libc::sendmmsg(
                    socket.as_raw_fd(),
                    headers.as_mut_ptr(),
                    headers.len() as libc::c_uint,
                    FLAGS as _,
                )
            }
        };
        if let Ok(taken) = usize::try_from(result) {
            return Ok(taken);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
