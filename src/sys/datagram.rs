//! Datagrams by the batch: many for one system call, and by the kernel's word where each was sent
//! to.

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
pub use receive::Inbox;
pub use send::{BATCH, Message, Outbox};
pub use support::{MissingCall, find_missing_call};

use std::net::IpAddr;

/// Where a datagram was sent to, by the kernel's word: what a reply must come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Local {
    /// As the family of the socket has it: what comes to an IPv6 socket by IPv4 has a mapped
    /// address.
    pub ip: IpAddr,
    /// Only of an IPv6 link-local address; else 0.
    pub interface: u32,
}
