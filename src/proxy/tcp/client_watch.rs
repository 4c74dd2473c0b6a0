//! Whether the client is still there while it has no backend.

use crate::{
    runtime::net::Stream,
    session::registry::Session,
    sys::socket::{PeerNow, peer_now},
};
use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

/// A client that has sent nothing and has ended its side has left, or only wants to receive: the
/// two look the same. It gets this long to be served before it counts as gone.
const GRACE: Duration = Duration::from_millis(500);

#[derive(Default)]
pub(super) struct ClientWatch {
    /// Since when its side has ended without a byte.
    silent_since: Option<Instant>,
}

impl ClientWatch {
    pub(super) fn has_left(&mut self, client: &Stream, session: &Session, now: Instant) -> bool {
        match peer_now(client) {
            // As far as can be known.
            Ok(PeerNow::Here) | Err(_) => {
                self.silent_since = None;
                false
            }
            Ok(PeerNow::EndedSilently) => {
                // Bytes that wait for the backend are no silence.
                session.received.load(Relaxed) == 0
                    && now - *self.silent_since.get_or_insert(now) >= GRACE
            }
            Ok(PeerNow::Gone) => true,
        }
    }

    /// When a client that is silent counts as gone.
    pub(super) fn gone_at(&self) -> Option<Instant> {
        self.silent_since.map(|since| since + GRACE)
    }
}
