//! Receiving: one recvmmsg into slots that one worker keeps.

use super::{
    Local,
    control::{CONTROL, Control, NAME, Name},
};
use std::{
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
};

/// Bytes of one slot. The largest datagram has 65,527 (IPv6), and what comes coalesced is no
/// longer.
pub const SLOT: usize = 65_536;
const LINE: usize = 64;
/// Between two slots, in cache lines: were the first lines of all slots a multiple of 4,096 apart,
/// they would share a few sets of the cache. An odd number visits every set, and this one leaves
/// space for a usual datagram.
const GAP: usize = 21 * LINE;

/// Buffers for a batch: `slots` datagrams of up to 64 KiB each, one worker's.
///
/// Memory that no datagram has reached yet is not allocated by the system.
pub struct ReceiveBuffers {
    bytes: Vec<u8>,
    /// Where the first slot begins in `bytes`: at a cache line.
    skip: usize,
    /// Bytes of a slot.
    size: usize,
    came: Vec<Came>,
    names: Vec<Name>,
    controls: Vec<Control>,
    /// What the headers point to, never changed after it was made.
    vectors: Vec<libc::iovec>,
    /// Always ready for the kernel: what it has overwritten is restored when it was read.
    named: Vec<libc::mmsghdr>,
    /// The same without memory for the sender's address.
    plain: Vec<libc::mmsghdr>,
}

// SAFETY: the pointers in the headers and vectors lead only into memory that the struct itself owns
// on the heap, wherever it is moved to; and only `take`, which has it exclusively, hands them to
// the kernel.
unsafe impl Send for ReceiveBuffers {}

/// What the kernel has reported of the datagram in a slot.
#[derive(Clone, Copy)]
struct Came {
    len: usize,
    segment: u16,
    truncated: bool,
    from: Option<SocketAddr>,
    to: Option<Local>,
    to_many: bool,
}

#[derive(Debug, Clone, Copy)]
pub struct Received<'a> {
    pub payload: &'a [u8],
    /// The payload is several datagrams of this size, of which the last may be shorter, from a
    /// socket with GRO; 0: it is one datagram.
    pub segment: u16,
    /// `None` if the kernel names no sender.
    pub from: Option<SocketAddr>,
    /// The address that it was sent to, if the option for that is set.
    pub to: Option<Local>,
    /// It was sent to a broadcast or multicast address, if the same option is set.
    pub to_many: bool,
    /// The datagram was longer than the slot: the payload is its beginning.
    pub truncated: bool,
}

impl ReceiveBuffers {
    pub fn new(slots: usize) -> Self {
        Self::with(slots, SLOT)
    }

    pub(super) fn with(slots: usize, size: usize) -> Self {
        let stride = size + GAP;
        // Zeroed by the kernel when touched, which an allocation with an alignment would not be.
        let mut bytes = vec![0_u8; slots * stride + LINE];
        let skip = bytes.as_ptr().align_offset(LINE);
        let mut names = vec![Name::EMPTY; slots];
        let mut controls = vec![Control::EMPTY; slots];
        // Pointers are taken from the allocations, not through references to what is in them: they
        // stay good while the slots are read. None leads out of its allocation, for all are counted
        // by `slots`.
        let base = bytes.as_mut_ptr();
        let mut vectors: Vec<_> = (0..slots)
            .map(|slot| libc::iovec {
                iov_base: base.wrapping_add(skip + slot * stride).cast(),
                iov_len: size,
            })
            .collect();
        let headers = |with_name: bool, names: *mut Name| -> Vec<_> {
            (0..slots)
                .map(|slot| {
                    let mut header = empty();
                    let message = &mut header.msg_hdr;
                    if with_name {
                        message.msg_name = names.wrapping_add(slot).cast();
                        message.msg_namelen = NAME as libc::socklen_t;
                    }
                    header
                })
                .collect()
        };
        let mut named = headers(true, names.as_mut_ptr());
        let mut plain = headers(false, ptr::null_mut());
        for (slot, header) in named
            .iter_mut()
            .enumerate()
            .chain(plain.iter_mut().enumerate())
        {
            let message = &mut header.msg_hdr;
            message.msg_iov = vectors.as_mut_ptr().wrapping_add(slot);
            message.msg_iovlen = 1;
            message.msg_control = controls.as_mut_ptr().wrapping_add(slot).cast();
            message.msg_controllen = CONTROL as _;
        }
        Self {
            bytes,
            skip,
            size,
            came: vec![Came::NOTHING; slots],
            names,
            controls,
            vectors,
            named,
            plain,
        }
    }

    pub fn slots(&self) -> usize {
        self.came.len()
    }

    /// Receives into the slots from `first` on without waiting, at most `most` datagrams; returns
    /// how many, or WouldBlock.
    pub fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        first: usize,
        most: usize,
    ) -> io::Result<usize> {
        self.take(socket, first, most, true)
    }

    /// The same without the senders' addresses, for connected sockets, which have one peer.
    pub fn receive_plain(
        &mut self,
        socket: BorrowedFd<'_>,
        first: usize,
        most: usize,
    ) -> io::Result<usize> {
        self.take(socket, first, most, false)
    }

    fn take(
        &mut self,
        socket: BorrowedFd<'_>,
        first: usize,
        most: usize,
        with_names: bool,
    ) -> io::Result<usize> {
        let most = most.min(self.slots().saturating_sub(first));
        if most == 0 {
            return Ok(0);
        }
        let headers = if with_names {
            &mut self.named
        } else {
            &mut self.plain
        };
        let headers = &mut headers[first..first + most];
        let came = loop {
            // SAFETY: `headers` are as many as `headers.len()`; each points to its name, its vector
            // and its control space with their true lengths, and each vector to its slot. All of
            // that is owned by `self`, which is borrowed exclusively, as are the headers; the
            // descriptor is borrowed and so open.
            let result = unsafe {
                libc::recvmmsg(
                    socket.as_raw_fd(),
                    headers.as_mut_ptr(),
                    headers.len() as libc::c_uint,
                    libc::MSG_DONTWAIT as _,
                    ptr::null_mut(),
                )
            };
            if let Ok(came) = usize::try_from(result) {
                break came;
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        };
        for (i, header) in headers[..came].iter_mut().enumerate() {
            let slot = first + i;
            let message = &mut header.msg_hdr;
            let mut one = Came {
                len: self.size.min(header.msg_len as usize),
                truncated: message.msg_flags & libc::MSG_TRUNC != 0,
                ..Came::NOTHING
            };
            if with_names {
                one.from = self.names[slot].read(message.msg_namelen as usize);
                message.msg_namelen = NAME as libc::socklen_t;
            }
            // Flags and length need no care: the kernel only writes them.
            if message.msg_controllen > 0 {
                let ancillary = self.controls[slot].read(message.msg_controllen as _);
                (one.to, one.to_many) = (ancillary.to, ancillary.to_many);
                one.segment = segments(ancillary.segment, one.len);
            }
            message.msg_controllen = CONTROL as _;
            self.came[slot] = one;
        }
        Ok(came)
    }

    /// Puts a datagram of another buffer into this slot.
    pub fn put(&mut self, slot: usize, payload: &[u8]) {
        let len = payload.len().min(self.size);
        let to = self.vectors[slot].iov_base.cast::<u8>();
        // SAFETY: `to` is the beginning of a slot of `size` bytes, no less than `len`, which `self`
        // owns and has borrowed exclusively, so that `payload` is other memory.
        unsafe { ptr::copy_nonoverlapping(payload.as_ptr(), to, len) };
        self.came[slot] = Came {
            len,
            ..Came::NOTHING
        };
    }

    /// A datagram of the last receives.
    pub fn get(&self, slot: usize) -> Received<'_> {
        let came = &self.came[slot];
        let start = self.skip + slot * (self.size + GAP);
        Received {
            payload: &self.bytes[start..start + came.len],
            segment: came.segment,
            from: came.from,
            to: came.to,
            to_many: came.to_many,
            truncated: came.truncated,
        }
    }
}

impl Came {
    const NOTHING: Self = Self {
        len: 0,
        segment: 0,
        truncated: false,
        from: None,
        to: None,
        to_many: false,
    };
}

/// The size of coalesced datagrams; 0 for a single datagram.
pub(super) fn segments(size: Option<libc::c_int>, len: usize) -> u16 {
    size.and_then(|size| u16::try_from(size).ok())
        .filter(|size| usize::from(*size) < len)
        .unwrap_or(0)
}

/// A header that points nowhere.
pub(super) fn empty() -> libc::mmsghdr {
    // SAFETY: a structure of integers and raw pointers, for all of which zero is valid.
    unsafe { std::mem::zeroed() }
}
