//! The last changes of backends.

use super::fields::record;

record! {
    #[derive(Debug, Clone, Default, PartialEq, Eq)]
    JournalRecord {
        /// When it was begun, in milliseconds since 1970.
        begun: u64 = 1,
        /// The number of the first event.
        first: u64 = 2,
        revision: u64 = 3,
        /// As /api/v1/events has them.
        events: Vec<String> = 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handover::fields::Fields as _;

    #[test]
    fn what_is_written_is_read() {
        let journal = JournalRecord {
            begun: 1,
            first: 2,
            revision: 3,
            events: vec!["{}".to_owned(), "{\"a\": 1}".to_owned()],
        };
        assert_eq!(JournalRecord::read(&journal.write()), Ok(journal));
        assert!(JournalRecord::read(b"").is_err());
    }
}
