//! What two processes say to each other while one takes over from the other: the format and the
//! channel. It knows no session, pool or listener: those who send and receive them are above.
//!
//! - [`record`]: fields that describe themselves. A reader skips fields that it does not know,
//!   except for those whose tag says that they must be understood.
//! - [`message`]: a kind, the version of its format, a body and at most 250 descriptors.
//! - [`channel`]: sends and receives messages over a pair of sockets, blocking, with a deadline.
//!   It is used from a thread of its own.
//!
//! The formats of the states that are handed over stand beside these, a file for each kind of
//! state: plain data that is written as bytes and read from them, or [`record::Malformed`]. Tags of
//! a format are never used again for something else. A change that an older reader can ignore is a
//! new tag; any other is a new version in [`message::Kind::versions`].
//!
//! Descriptors are not in a record: they follow in the message, in the order in which the records
//! name them (see [`message::Descriptors`]). A sender keeps its descriptors until the receiver has
//! answered that it has taken what they belong to. Of sessions it is a [`claim::Claim`] that
//! decides.

pub mod channel;
pub mod claim;
pub mod counters;
pub mod discovery;
pub mod fields;
pub mod flows;
pub mod hello;
pub mod journal;
pub mod listeners;
pub mod message;
pub mod places;
pub mod pools;
pub mod record;
pub mod remainder;
pub mod session;

#[cfg(test)]
mod golden;
