//! What the sources of backends have said: the sets in effect, and what is held. Times are
//! microseconds of the kernel's monotonic clock, which both processes share, except where they are
//! said to be of the calendar.

pub use super::fields::{read_list as read, write_list as write};

use super::fields::{Pairs, record};

record! {
    #[derive(Debug, Clone, Default, PartialEq, Eq)]
    DiscoveryRecord {
        upstream: String = 1,
        /// What identifies the source: what another one has said holds only until this one
        /// answers.
        source: String = 2,
        version: String = 3,
        /// In microseconds since 1970.
        last_success: Option<u64> = 4,
        /// Whether the source itself has said this, and not only an earlier process.
        is_answered: bool = 5,
        /// Whether its last answer was good.
        answers: bool = 6,
        in_effect: Vec<FoundRecord> = 7,
        /// The last good answer; `None`: what is in effect.
        answer: Option<Vec<FoundRecord>> = [8, 9],
        /// Since when the answers have had no backend.
        empty_since: Option<u64> = 10,
        /// What the answers lack, by addresses, with the time since which they do.
        missing: Vec<(String, u64)> = 11 as WhatAndNumber,
        /// When how many backends were removed.
        removals: Vec<(u64, u64)> = 12 as NumberAndCount,
        /// Answers, by the word of what they led to.
        updates: Vec<(String, u64)> = 13 as WhatAndCount,
    }
}

type WhatAndNumber = Pairs<1, 2>;
type WhatAndCount = Pairs<1, 3>;
type NumberAndCount = Pairs<2, 3>;

record! {
    /// A backend as its source has it.
    #[derive(Debug, Clone, Default, PartialEq, Eq)]
    FoundRecord {
        address: String = 1,
        weight: u32 = 2,
        backup: bool = 3,
        name: Option<String> = 4,
        draining: bool = 5,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::handover) fn full() -> DiscoveryRecord {
        let found = |address: &str, name: Option<&str>| FoundRecord {
            address: address.to_owned(),
            weight: 3,
            backup: name.is_some(),
            name: name.map(str::to_owned),
            draining: name.is_none(),
        };
        DiscoveryRecord {
            upstream: "u".to_owned(),
            source: "0123456789abcdef".to_owned(),
            version: "42".to_owned(),
            last_success: Some(1_790_000_000_000_000),
            is_answered: true,
            answers: true,
            in_effect: vec![found("10.0.0.1:1", Some("one")), found("10.0.0.2:1", None)],
            answer: Some(vec![found("10.0.0.2:1", None)]),
            empty_since: Some(5),
            missing: vec![("10.0.0.1:1".to_owned(), 6)],
            removals: vec![(7, 2)],
            updates: vec![("changed".to_owned(), 8)],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let plain = DiscoveryRecord {
            upstream: "v".to_owned(),
            ..DiscoveryRecord::default()
        };
        let all = [full(), plain];
        assert_eq!(read(&write(&all)).as_deref(), Ok(&all[..]));
    }

    #[test]
    fn a_set_that_is_cut_is_no_other_set() {
        let bytes = write(&[full()]);
        for length in 1..bytes.len() {
            assert!(
                read::<DiscoveryRecord>(&bytes[..length]).is_err(),
                "{length}"
            );
        }
    }
}
