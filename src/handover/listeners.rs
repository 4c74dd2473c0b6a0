//! Listening sockets: a record for each descriptor of the message, in the same order.

use super::record::{Malformed, Record, Tag, Writer};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP or a unix stream socket.
    Stream,
    Datagram,
    /// Of the admin side.
    Admin,
}

/// A socket of an address. Those of one address are sent one after the other, in the order in which
/// they were bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListeningRecord {
    /// The name of the listener; empty for the admin side.
    pub listener: String,
    /// As configured: port 0 is not a number yet.
    pub configured: String,
    pub protocol: Protocol,
    /// Whether the file of a unix socket was made by the process, and is removed with it.
    pub owns_file: bool,
}

const SOCKET: Tag = Tag::new(1);

/// Within [`SOCKET`].
const LISTENER: Tag = Tag::new(1);
const CONFIGURED: Tag = Tag::new(2);
const PROTOCOL: Tag = Tag::new(3);
const OWNS_FILE: Tag = Tag::new(4);
const ALL: &[Tag] = &[LISTENER, CONFIGURED, PROTOCOL, OWNS_FILE];

impl Protocol {
    fn number(self) -> u64 {
        match self {
            Self::Stream => 1,
            Self::Datagram => 2,
            Self::Admin => 3,
        }
    }

    fn from_number(number: u64) -> Option<Self> {
        match number {
            1 => Some(Self::Stream),
            2 => Some(Self::Datagram),
            3 => Some(Self::Admin),
            _ => None,
        }
    }
}

pub fn write(sockets: &[ListeningRecord]) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.list(SOCKET, sockets, |socket, writer| {
        writer
            .text(LISTENER, &socket.listener)
            .text(CONFIGURED, &socket.configured)
            .u64(PROTOCOL, socket.protocol.number())
            .flag(OWNS_FILE, socket.owns_file);
    });
    writer.into_bytes()
}

pub fn read(bytes: &[u8]) -> Result<Vec<ListeningRecord>, Malformed> {
    let record = Record::parse(bytes, &[SOCKET])?;
    record.list(SOCKET, ALL, |socket| {
        let protocol = Protocol::from_number(socket.u64(PROTOCOL)?);
        Ok(ListeningRecord {
            listener: socket.text(LISTENER)?.to_owned(),
            configured: socket.text(CONFIGURED)?.to_owned(),
            protocol: protocol.ok_or(Malformed::Value(PROTOCOL))?,
            owns_file: socket.flag(OWNS_FILE)?,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let socket = |listener: &str, protocol, owns_file| ListeningRecord {
            listener: listener.to_owned(),
            configured: "127.0.0.1:0".to_owned(),
            protocol,
            owns_file,
        };
        let sockets = [
            socket("a", Protocol::Stream, true),
            socket("b", Protocol::Datagram, false),
            socket("", Protocol::Admin, true),
        ];
        assert_eq!(read(&write(&sockets)).as_deref(), Ok(&sockets[..]));
        assert_eq!(read(b"").as_deref(), Ok(&[][..]));
        assert!(read(b"x").is_err());
    }
}
