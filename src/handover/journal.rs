//! The last changes of backends.

use super::record::{Malformed, Record, Tag, Writer};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JournalRecord {
    /// When it was begun, in milliseconds since 1970.
    pub begun: u64,
    /// The number of the first event.
    pub first: u64,
    pub revision: u64,
    /// As /api/v1/events has them.
    pub events: Vec<String>,
}

const BEGUN: Tag = Tag::new(1);
const FIRST: Tag = Tag::new(2);
const REVISION: Tag = Tag::new(3);
const EVENT: Tag = Tag::new(4);

impl JournalRecord {
    pub fn write(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer
            .u64(BEGUN, self.begun)
            .u64(FIRST, self.first)
            .u64(REVISION, self.revision);
        for event in &self.events {
            writer.text(EVENT, event);
        }
        writer.into_bytes()
    }

    pub fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        let record = Record::parse(bytes, &[BEGUN, FIRST, REVISION, EVENT])?;
        let events = record.texts(EVENT)?.into_iter().map(str::to_owned);
        Ok(Self {
            begun: record.u64(BEGUN)?,
            first: record.u64(FIRST)?,
            revision: record.u64(REVISION)?,
            events: events.collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
