//! Listening sockets: a record for each descriptor of the message, in the same order.

pub use super::fields::{read_list as read, write_list as write};

use super::{
    fields::{Value, record},
    record::{Malformed, Tag, Writer},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP or a unix stream socket.
    Stream,
    Datagram,
    /// Of the admin side.
    Admin,
}

record! {
    /// A socket of an address. Those of one address are sent one after the other, in the order in
    /// which they were bound.
    #[derive(Debug, Clone, PartialEq, Eq)]
    ListeningRecord {
        /// The name of the listener; empty for the admin side.
        listener: String = 1,
        /// As configured: port 0 is not a number yet.
        configured: String = 2,
        protocol: Protocol = 3,
        /// Whether the file of a unix socket was made by the process, and is removed with it.
        owns_file: bool = 4,
    }
}

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

impl Value for Protocol {
    fn write_value(&self, tag: Tag, w: &mut Writer) {
        w.u64(tag, self.number());
    }

    fn read_value(bytes: &[u8], tag: Tag) -> Result<Self, Malformed> {
        Self::from_number(u64::read_value(bytes, tag)?).ok_or(Malformed::Value(tag))
    }
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
        assert_eq!(read::<ListeningRecord>(b"").as_deref(), Ok(&[][..]));
        assert!(read::<ListeningRecord>(b"x").is_err());
    }
}
