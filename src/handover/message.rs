//! What a message is: its kind, the version of its format, a body (mostly a
//! [record](super::record)) and descriptors.

use std::{fmt, os::fd::OwnedFd, vec};

/// With one message. The kernel takes 253.
pub const MOST_DESCRIPTORS: usize = 250;

/// Declares the kinds, with their numbers, words and the versions of their formats that this
/// program speaks, the best first.
macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $word:literal, $versions:expr;)*) => {
        /// What a message is about.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Kind { $($(#[$doc])* $variant,)* }

        impl Kind {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            pub fn number(self) -> u16 {
                match self { $(Self::$variant => $number,)* }
            }

            pub fn from_number(number: u16) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
            }

            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            pub fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)* _ => None }
            }

            /// Of its format, as this program speaks them; the best first.
            pub fn versions(self) -> &'static [u16] {
                match self { $(Self::$variant => &$versions,)* }
            }
        }
    };
}

kinds! {
    /// Who speaks: program, plan, limits. The first message of both.
    Hello = 1, "hello", [1];
    /// The receiver cannot go on, with the reason.
    Refusal = 2, "refusal", [1];
    /// Listening sockets.
    Listeners = 3, "listeners", [1];
    /// What is known about backends.
    Pools = 4, "pools", [2, 1];
    /// The sums of metrics.
    Counters = 5, "counters", [1];
    Journal = 6, "journal", [1];
    /// Stage one has arrived, nothing is missing.
    Prepare = 7, "prepare", [1];
    /// The new process has everything that it needs to accept.
    Ready = 8, "ready", [1];
    /// The old process accepts no more, the new one may.
    Accept = 9, "accept", [1];
    /// The new process accepts.
    Accepting = 10, "accepting", [1];
    /// Connections that are relayed. Since version 2 the last descriptor of a message is a
    /// [`Claim`](super::claim::Claim) to all of them.
    Sessions = 11, "sessions", [2, 1];
    /// Which sessions of a batch were taken.
    SessionsTaken = 12, "sessions_taken", [1];
    /// Listening UDP sockets of one listener, with what belongs to them.
    UdpGroup = 13, "udp_group", [1];
    UdpFlows = 14, "udp_flows", [1];
    /// Which of a message of the kinds above were taken.
    UdpTaken = 15, "udp_taken", [1];
    /// What was counted since the sums were sent.
    Remainder = 16, "remainder", [1];
    /// Nothing more follows.
    End = 17, "end", [1];
    /// What the sources of backends have said.
    Discovery = 18, "discovery", [1];
    /// Connections that wait for a backend. Answered as those that are relayed, and with a claim.
    Waiting = 19, "waiting", [1];
    /// How many sessions the old process has on each backend, which gives no more places.
    Places = 20, "places", [1];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The best version of a format that both programs speak. `theirs`: in any order.
pub fn common_version(kind: Kind, theirs: &[u16]) -> Option<u16> {
    let mut ours = kind.versions().iter();
    ours.find(|version| theirs.contains(version)).copied()
}

#[derive(Debug)]
pub struct Message {
    pub kind: Kind,
    /// Of the format of the body.
    pub version: u16,
    /// Counted by the sender. An answer is a message of its own and has a number of its own.
    pub serial: u32,
    pub body: Vec<u8>,
    pub descriptors: Vec<OwnedFd>,
    /// Descriptors of it were lost on the way.
    pub is_short: bool,
}

/// Gives out the descriptors of a message in their order, as the records of its body name them.
/// What nothing has asked for is closed.
pub struct Descriptors(vec::IntoIter<OwnedFd>);

impl Descriptors {
    pub fn new(descriptors: Vec<OwnedFd>) -> Self {
        Self(descriptors.into_iter())
    }

    /// The next ones; `None`, without taking any, where there are fewer.
    pub fn take(&mut self, count: usize) -> Option<Vec<OwnedFd>> {
        (self.0.len() >= count).then(|| self.0.by_ref().take(count).collect())
    }

    pub fn left(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_kind_is_found_by_its_number_and_its_word() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_number(kind.number()), Some(*kind));
            assert_eq!(Kind::from_word(kind.word()), Some(*kind));
        }
        let numbers: BTreeSet<_> = Kind::ALL.iter().map(|kind| kind.number()).collect();
        assert_eq!(numbers.len(), Kind::ALL.len());
        assert_eq!(Kind::from_number(0), None);
    }

    #[test]
    fn the_best_common_version_is_used() {
        let own = Kind::Sessions.versions();
        assert_eq!(common_version(Kind::Sessions, own), own.first().copied());
        assert_eq!(common_version(Kind::Sessions, &[]), None);
        assert_eq!(common_version(Kind::Sessions, &[u16::MAX]), None);
    }
}
