//! How many sessions the old process has on each backend once it gives no more places.

pub use super::fields::{read_required_list as read, write_required_list as write};

use super::fields::record;

record! {
    /// Of one upstream.
    #[derive(Debug, Clone, Default, PartialEq, Eq)]
    PlacesRecord {
        upstream: String = (required 1),
        /// The last ticket that was drawn in its line before.
        last_ticket: u64 = (required 2),
        /// Whether sessions that wait are yet to follow.
        has_line: bool = (required 3),
        /// Those that have sessions.
        backends: Vec<PlaceRecord> = (required 4),
    }
}

record! {
    /// One address of a backend.
    #[derive(Debug, Clone, Default, PartialEq, Eq)]
    PlaceRecord {
        text: String = (required 1),
        address: String = (required 2),
        sessions: u64 = (required 3),
    }
}
