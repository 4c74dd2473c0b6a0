//! Access log records: what is the same for connections, flows and clients that are refused.

use super::Service;
use crate::{
    plan::{Protocol, reason::RejectReason},
    runtime::net::Client,
    telemetry::access_log::{Record, now},
};
use std::time::Duration;

impl Service {
    /// The record of a client that was not served; sessions fill in the rest. `peer`: the other
    /// end, `proxied`: the client that a PROXY protocol header named. `reason`: the word of a close
    /// or reject reason.
    pub fn record(
        &self,
        peer: Client,
        proxied: Option<Client>,
        reason: &'static str,
        lasted: Duration,
    ) -> Record<'_> {
        let client = proxied.unwrap_or(peer);
        let hidden = Some(peer).filter(|peer| *peer != client);
        let is_udp = matches!(self.plan.protocol, Protocol::Udp(_));
        Record {
            time: now(),
            listener: &self.plan.name,
            protocol: if is_udp { "udp" } else { "tcp" },
            remote_addr: address(client),
            remote_port: client.port(),
            proxy_protocol_addr: proxied.map(address),
            realip_remote_addr: hidden.map(address),
            realip_remote_port: hidden.and_then(Client::port),
            upstream: &self.pool.name,
            backend: None,
            backend_addr: None,
            attempts: Vec::new(),
            connect_time: None,
            first_byte_time: None,
            session_time: seconds(lasted),
            bytes_received: 0,
            bytes_sent: 0,
            datagrams_received: is_udp.then_some(0),
            datagrams_sent: is_udp.then_some(0),
            close_reason: reason,
        }
    }

    /// Writes the record of a client that was refused before a backend was looked for.
    pub fn record_rejection(
        &self,
        reason: RejectReason,
        peer: Client,
        proxied: Option<Client>,
        lasted: Duration,
    ) {
        if let Some(log) = &self.process.access_log {
            log.record(&self.record(peer, proxied, reason.word(), lasted));
        }
    }
}

fn address(client: Client) -> String {
    client
        .ip()
        .map_or_else(|| "unix:".to_owned(), |ip| ip.to_string())
}

/// To the microsecond: more digits would be noise.
pub fn seconds(d: Duration) -> f64 {
    (d.as_secs_f64() * 1e6).round() / 1e6
}
