//! Messages over a pair of connected sockets (SOCK_SEQPACKET). A body that is longer than a packet
//! goes in several; the descriptors are with the first.
//!
//! ```text
//! magic: u32  kind: u16  version: u16  serial: u32  offset: u32  length: u32  part of the body
//! ```
//!
//! Calls block, up to their deadline. That the other side has died is seen at once, as
//! [`ChannelError::Closed`]: only the two processes have the sockets.

use super::message::{Kind, MOST_DESCRIPTORS, Message};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
        SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
        sendmsg, socketpair,
    },
};
use std::{
    fmt,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

/// One end of the pair.
pub struct Channel {
    socket: OwnedFd,
    next_serial: u32,
    /// How many descriptors a packet may bring: more than may be sent.
    max_descriptors: usize,
}

/// Why a message was not sent or received. The channel is of no use afterwards.
#[derive(Debug)]
pub enum ChannelError {
    /// The other side has closed its end, mostly by its death.
    Closed,
    /// The deadline has passed.
    TimedOut,
    /// Descriptors were lost on the way, mostly because this process may open no more.
    DescriptorsLost,
    TooManyDescriptors(usize),
    TooLong(usize),
    /// What has arrived is no message.
    Garbage(&'static str),
    /// The number of a kind that this program does not know.
    UnknownKind(u16),
    Io(io::Error),
}

/// "TMBK".
const MAGIC: u32 = 0x4b42_4d54;
const HEAD: usize = 20;
/// Of a body in one packet: less than the smallest send buffer that is usual.
const PART: usize = 32 << 10;
/// A longer body is taken for garbage.
const MOST_BODY: usize = 256 << 20;
/// Between two attempts while too many descriptors are on the way.
const PAUSE: Duration = Duration::from_millis(1);

impl Channel {
    /// Both ends. The second is for another process: it is closed by exec as the first is, so that
    /// no other program inherits it; the start of that process clears the flag.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Self::new(ours), theirs))
    }

    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            next_serial: 0,
            max_descriptors: MOST_DESCRIPTORS + 3,
        }
    }

    /// Returns the serial number of the message.
    pub fn send(
        &mut self,
        kind: Kind,
        version: u16,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> Result<u32, ChannelError> {
        if descriptors.len() > MOST_DESCRIPTORS {
            return Err(ChannelError::TooManyDescriptors(descriptors.len()));
        }
        let length = u32::try_from(body.len()).map_err(|_| ChannelError::TooLong(body.len()))?;
        if body.len() > MOST_BODY {
            return Err(ChannelError::TooLong(body.len()));
        }
        let serial = self.next_serial;
        self.next_serial = serial.wrapping_add(1);
        let mut offset = 0;
        let mut descriptors = descriptors;
        loop {
            let part = &body[offset..body.len().min(offset + PART)];
            let head = Head {
                kind: kind.number(),
                version,
                serial,
                offset: u32::try_from(offset).unwrap_or(u32::MAX),
                length,
            };
            self.send_packet(&head.to_bytes(), part, descriptors, deadline)?;
            descriptors = &[];
            offset += part.len();
            if offset == body.len() {
                return Ok(serial);
            }
        }
    }

    /// Whole, or an error: then what has arrived of it is closed.
    pub fn receive(&mut self, deadline: Instant) -> Result<Message, ChannelError> {
        match self.receive_any(deadline)? {
            message if message.is_short => Err(ChannelError::DescriptorsLost),
            message => Ok(message),
        }
    }

    /// The same, of a message that may have lost descriptors, which the answer can report.
    pub fn receive_any(&mut self, deadline: Instant) -> Result<Message, ChannelError> {
        let mut packet = vec![0; HEAD + PART];
        let first = self.receive_packet(&mut packet, deadline)?;
        let Packet {
            size,
            descriptors,
            is_short,
        } = first;
        let (head, part) = Head::parse(&packet[..size])?;
        let kind = Kind::from_number(head.kind).ok_or(ChannelError::UnknownKind(head.kind))?;
        let length = head.length as usize;
        if head.offset != 0 || part.len() > length || length > MOST_BODY {
            return Err(ChannelError::Garbage("a message begins in its middle"));
        }
        let mut body = part.to_vec();
        while body.len() < length {
            let Packet {
                size,
                descriptors: more,
                ..
            } = self.receive_packet(&mut packet, deadline)?;
            let (next, part) = Head::parse(&packet[..size])?;
            let expected = Head {
                offset: u32::try_from(body.len()).unwrap_or(u32::MAX),
                ..head
            };
            let fits = !part.is_empty() && body.len() + part.len() <= length;
            if next != expected || !fits || !more.is_empty() {
                return Err(ChannelError::Garbage("a part of a message is missing"));
            }
            body.extend_from_slice(part);
        }
        Ok(Message {
            kind,
            version: head.version,
            serial: head.serial,
            body,
            descriptors,
            is_short,
        })
    }

    /// Whether [`Self::receive`] would find something at once, be it an end.
    pub fn has_message(&self) -> Result<bool, ChannelError> {
        match self.wait(PollFlags::IN, Instant::now()) {
            Ok(()) => Ok(true),
            Err(ChannelError::TimedOut) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn send_packet(
        &self,
        head: &[u8],
        part: &[u8],
        descriptors: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> Result<(), ChannelError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        loop {
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty()
                && !control.push(SendAncillaryMessage::ScmRights(descriptors))
            {
                return Err(ChannelError::TooManyDescriptors(descriptors.len()));
            }
            let parts = [IoSlice::new(head), IoSlice::new(part)];
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match sendmsg(&self.socket, &parts, &mut control, flags) {
                Ok(_) => return Ok(()),
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, deadline)?,
                // Of all processes of this user; the receiver makes room.
                Err(Errno::TOOMANYREFS) if Instant::now() < deadline => thread::sleep(PAUSE),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn receive_packet(&self, packet: &mut [u8], deadline: Instant) -> Result<Packet, ChannelError> {
        let mut was_reset = false;
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS + 3))];
        let space = &mut space
            [..rustix::cmsg_space!(ScmRights(0)) + self.max_descriptors * size_of::<i32>()];
        loop {
            let mut control = RecvAncillaryBuffer::new(space);
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let received = recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(packet)],
                &mut control,
                flags,
            );
            let received = match received {
                Err(Errno::AGAIN) => {
                    self.wait(PollFlags::IN, deadline)?;
                    continue;
                }
                Err(Errno::INTR) => continue,
                // The other side has ended before it has read all that was sent to it. The kernel
                // says so once; what it has sent before can be read still.
                Err(Errno::CONNRESET) if !was_reset => {
                    was_reset = true;
                    continue;
                }
                received => received?,
            };
            let mut descriptors = Vec::new();
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    descriptors.extend(rights);
                }
            }
            if received.flags.contains(ReturnFlags::TRUNC) {
                return Err(ChannelError::Garbage("a packet is too long"));
            }
            // No packet is empty.
            return match received.bytes {
                0 => Err(ChannelError::Closed),
                size => Ok(Packet {
                    size,
                    is_short: received.flags.contains(ReturnFlags::CTRUNC),
                    descriptors,
                }),
            };
        }
    }

    fn wait(&self, flags: PollFlags, deadline: Instant) -> Result<(), ChannelError> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).ok();
            let mut polled = [PollFd::new(&self.socket, flags)];
            match poll(&mut polled, left.as_ref()) {
                Ok(0) => return Err(ChannelError::TimedOut),
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl From<Errno> for ChannelError {
    fn from(error: Errno) -> Self {
        match error {
            Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN => Self::Closed,
            error => Self::Io(error.into()),
        }
    }
}

impl fmt::Display for ChannelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("the other process has ended"),
            Self::TimedOut => f.write_str("the other process has not answered in time"),
            Self::DescriptorsLost => f.write_str(
                "descriptors were lost on the way; the limit of open files may be too low",
            ),
            Self::TooManyDescriptors(count) => write!(f, "a message with {count} descriptors"),
            Self::TooLong(bytes) => write!(f, "a message of {bytes} bytes"),
            Self::Garbage(what) => write!(f, "the other process has sent no message: {what}"),
            Self::UnknownKind(kind) => {
                write!(
                    f,
                    "a message of kind {kind}, which this program does not know"
                )
            }
            Self::Io(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for ChannelError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            _ => None,
        }
    }
}

/// What has arrived at once.
struct Packet {
    size: usize,
    descriptors: Vec<OwnedFd>,
    is_short: bool,
}

/// In front of each part.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Head {
    kind: u16,
    version: u16,
    serial: u32,
    offset: u32,
    length: u32,
}

impl Head {
    fn to_bytes(self) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.kind.to_le_bytes());
        bytes[6..8].copy_from_slice(&self.version.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.serial.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.offset.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.length.to_le_bytes());
        bytes
    }

    fn parse(packet: &[u8]) -> Result<(Self, &[u8]), ChannelError> {
        let garbage = ChannelError::Garbage("the head is not that of a message");
        let Some((head, part)) = packet.split_first_chunk::<HEAD>() else {
            return Err(garbage);
        };
        let u16_at = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let parsed = Self {
            kind: u16_at(4),
            version: u16_at(6),
            serial: u32_at(8),
            offset: u32_at(12),
            length: u32_at(16),
        };
        match u32_at(0) == MAGIC {
            true => Ok((parsed, part)),
            false => Err(garbage),
        }
    }
}

#[cfg(test)]
mod tests;
