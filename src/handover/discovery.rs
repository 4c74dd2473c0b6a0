//! What the sources of backends have said: the sets in effect, and what is held. Times are
//! microseconds of the kernel's monotonic clock, which both processes share, except where they are
//! said to be of the calendar.

use super::record::{Malformed, Record, Tag, Writer};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiscoveryRecord {
    pub upstream: String,
    /// What identifies the source: what another one has said holds only until this one answers.
    pub source: String,
    pub version: String,
    /// In microseconds since 1970.
    pub last_success: Option<u64>,
    /// Whether the source itself has said this, and not only an earlier process.
    pub is_answered: bool,
    /// Whether its last answer was good.
    pub answers: bool,
    pub in_effect: Vec<FoundRecord>,
    /// The last good answer; `None`: what is in effect.
    pub answer: Option<Vec<FoundRecord>>,
    /// Since when the answers have had no backend.
    pub empty_since: Option<u64>,
    /// What the answers lack, by addresses, with the time since which they do.
    pub missing: Vec<(String, u64)>,
    /// When how many backends were removed.
    pub removals: Vec<(u64, u64)>,
    /// Answers, by the word of what they led to.
    pub updates: Vec<(String, u64)>,
}

/// A backend as its source has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FoundRecord {
    pub address: String,
    pub weight: u32,
    pub backup: bool,
    pub name: Option<String>,
    pub draining: bool,
}

const DISCOVERY: Tag = Tag::new(1);

/// Within [`DISCOVERY`].
const UPSTREAM: Tag = Tag::new(1);
const SOURCE: Tag = Tag::new(2);
const VERSION: Tag = Tag::new(3);
const LAST_SUCCESS: Tag = Tag::new(4);
const IS_ANSWERED: Tag = Tag::new(5);
const ANSWERS: Tag = Tag::new(6);
const IN_EFFECT: Tag = Tag::new(7);
const HAS_ANSWER: Tag = Tag::new(8);
const ANSWER: Tag = Tag::new(9);
const EMPTY_SINCE: Tag = Tag::new(10);
const MISSING: Tag = Tag::new(11);
const REMOVAL: Tag = Tag::new(12);
const UPDATE: Tag = Tag::new(13);
const OF_DISCOVERY: &[Tag] = &[
    UPSTREAM,
    SOURCE,
    VERSION,
    LAST_SUCCESS,
    IS_ANSWERED,
    ANSWERS,
    IN_EFFECT,
    HAS_ANSWER,
    ANSWER,
    EMPTY_SINCE,
    MISSING,
    REMOVAL,
    UPDATE,
];

/// Within [`IN_EFFECT`] and [`ANSWER`].
const ADDRESS: Tag = Tag::new(1);
const WEIGHT: Tag = Tag::new(2);
const BACKUP: Tag = Tag::new(3);
const NAME: Tag = Tag::new(4);
const DRAINING: Tag = Tag::new(5);
const OF_FOUND: &[Tag] = &[ADDRESS, WEIGHT, BACKUP, NAME, DRAINING];

/// Within [`MISSING`], [`REMOVAL`] and [`UPDATE`].
const WHAT: Tag = Tag::new(1);
const NUMBER: Tag = Tag::new(2);
const COUNT: Tag = Tag::new(3);

pub fn write(discoveries: &[DiscoveryRecord]) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.list(DISCOVERY, discoveries, |of, w| {
        w.text(UPSTREAM, &of.upstream)
            .text(SOURCE, &of.source)
            .text(VERSION, &of.version)
            .optional_u64(LAST_SUCCESS, of.last_success)
            .flag(IS_ANSWERED, of.is_answered)
            .flag(ANSWERS, of.answers)
            .list(IN_EFFECT, &of.in_effect, FoundRecord::write)
            .flag(HAS_ANSWER, of.answer.is_some())
            .list(ANSWER, of.answer.iter().flatten(), FoundRecord::write)
            .optional_u64(EMPTY_SINCE, of.empty_since)
            .list(MISSING, &of.missing, |(address, since), w| {
                w.text(WHAT, address).u64(NUMBER, *since);
            })
            .list(REMOVAL, &of.removals, |(at, count), w| {
                w.u64(NUMBER, *at).u64(COUNT, *count);
            })
            .list(UPDATE, &of.updates, |(word, count), w| {
                w.text(WHAT, word).u64(COUNT, *count);
            });
    });
    writer.into_bytes()
}

pub fn read(bytes: &[u8]) -> Result<Vec<DiscoveryRecord>, Malformed> {
    let record = Record::parse(bytes, &[DISCOVERY])?;
    record.list(DISCOVERY, OF_DISCOVERY, |of| {
        let answer = of.list(ANSWER, OF_FOUND, FoundRecord::read)?;
        Ok(DiscoveryRecord {
            upstream: of.text(UPSTREAM)?.to_owned(),
            source: of.text(SOURCE)?.to_owned(),
            version: of.text(VERSION)?.to_owned(),
            last_success: of.optional_u64(LAST_SUCCESS)?,
            is_answered: of.flag(IS_ANSWERED)?,
            answers: of.flag(ANSWERS)?,
            in_effect: of.list(IN_EFFECT, OF_FOUND, FoundRecord::read)?,
            answer: of.flag(HAS_ANSWER)?.then_some(answer),
            empty_since: of.optional_u64(EMPTY_SINCE)?,
            missing: of.list(MISSING, &[WHAT, NUMBER], |missing| {
                Ok((missing.text(WHAT)?.to_owned(), missing.u64(NUMBER)?))
            })?,
            removals: of.list(REMOVAL, &[NUMBER, COUNT], |removal| {
                Ok((removal.u64(NUMBER)?, removal.u64(COUNT)?))
            })?,
            updates: of.list(UPDATE, &[WHAT, COUNT], |update| {
                Ok((update.text(WHAT)?.to_owned(), update.u64(COUNT)?))
            })?,
        })
    })
}

impl FoundRecord {
    fn write(&self, writer: &mut Writer) {
        writer
            .text(ADDRESS, &self.address)
            .u64(WEIGHT, self.weight.into())
            .flag(BACKUP, self.backup)
            .optional_text(NAME, self.name.as_deref())
            .flag(DRAINING, self.draining);
    }

    fn read(record: &Record<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            address: record.text(ADDRESS)?.to_owned(),
            weight: record.number(WEIGHT)?,
            backup: record.flag(BACKUP)?,
            name: record.optional_text(NAME)?.map(str::to_owned),
            draining: record.flag(DRAINING)?,
        })
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
            assert!(read(&bytes[..length]).is_err(), "{length}");
        }
    }
}
