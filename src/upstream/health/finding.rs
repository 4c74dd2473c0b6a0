//! What a check finds out about a server besides its result. Pure.

use super::Epoch;
use crate::plan::{LagLimit, Role};
use std::time::Duration;

/// The position of a server in its replication group, as it reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Finding {
    pub role: Option<Role>,
    /// The latest promotion that this server reports.
    pub epoch: Option<Epoch>,
    /// Identifies this running server, whichever of its addresses is checked. A replica has another
    /// one than its primary, and a server that was started again may have another one than before.
    pub server: Option<String>,
    /// How far a replica is behind.
    pub lag: Lag,
    /// What keeps a replica from replicating, or what the server refuses, as the end of a sentence
    /// about it.
    pub fault: Option<String>,
}

/// `None`: not reported.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lag {
    pub bytes: Option<u64>,
    pub time: Option<Duration>,
}

impl Lag {
    /// Whether it is over the limit. A lag that is not reported is over any limit.
    pub fn exceeds(&self, limit: &LagLimit) -> bool {
        let late = limit
            .time
            .is_some_and(|most| self.time.is_none_or(|is| is > most));
        late || limit
            .bytes
            .is_some_and(|most| self.bytes.is_none_or(|is| is > most))
    }
}
