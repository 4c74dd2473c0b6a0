//! Datagrams by the batch: many for one system call, each with the address that it was sent to.

mod control;
mod errors;
mod options;
mod receive;
mod send;
mod support;
#[cfg(test)]
mod tests;

pub use errors::{Origin, ask_for_reports, next_report};
pub use options::{
    ask_for_destination, drops, never_forbid_fragments, receive_buffer, send_buffer, take_coalesced,
};
pub use receive::{ReceiveBuffers, Received};
pub use send::{BATCH, Message, SendHeaders};
pub use support::{MissingCall, find_missing_call};

use std::net::IpAddr;

/// The address that a datagram was sent to, which a reply must come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Local {
    /// In the family of the socket: of IPv4 on an IPv6 socket it is a mapped address.
    pub ip: IpAddr,
    /// Only of an IPv6 link-local address; else 0.
    pub interface: u32,
}
