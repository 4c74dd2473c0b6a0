//! What both processes say first.

use super::{
    message::{self, Kind},
    record::{Malformed, Record, Tag, Writer},
};
use std::collections::BTreeMap;

/// The formats that a program speaks: the versions of each kind, by its word.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Formats(BTreeMap<String, Vec<u16>>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Its version.
    pub program: String,
    pub pid: u32,
    /// Of the plan, as `tembuku status` shows it.
    pub hash: String,
    /// How many threads carry connections.
    pub workers: u64,
    /// How many descriptors it has open.
    pub open_descriptors: u64,
    /// How many it may have.
    pub most_descriptors: u64,
    pub formats: Formats,
}

/// Why the other process does not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub reason: String,
}

/// What the new process says when it could accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    pub listeners: u64,
    /// The sockets that were sent, in their order, which none of its listeners has.
    pub unused: Vec<u64>,
}

/// What the old process says when it accepts no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accept {
    /// The id of the next session: those of the old process have smaller ones.
    pub next_session: u64,
}

const PROGRAM: Tag = Tag::new(1);
const PID: Tag = Tag::new(2);
const HASH: Tag = Tag::new(3);
const WORKERS: Tag = Tag::new(4);
const OPEN_DESCRIPTORS: Tag = Tag::new(5);
const MOST_DESCRIPTORS: Tag = Tag::new(6);
const FORMAT: Tag = Tag::new(7);
const HELLO: &[Tag] = &[
    PROGRAM,
    PID,
    HASH,
    WORKERS,
    OPEN_DESCRIPTORS,
    MOST_DESCRIPTORS,
    FORMAT,
];

/// Within [`FORMAT`].
const KIND: Tag = Tag::new(1);
const VERSIONS: Tag = Tag::new(2);

const REASON: Tag = Tag::new(1);

const LISTENERS: Tag = Tag::new(1);
const UNUSED: Tag = Tag::new(2);

const NEXT_SESSION: Tag = Tag::new(1);

impl Formats {
    /// Of this program.
    pub fn own() -> Self {
        let kinds = Kind::ALL.iter();
        let formats = kinds.map(|kind| (kind.word().to_owned(), kind.versions().to_vec()));
        Self(formats.collect())
    }

    pub fn from_map(formats: BTreeMap<String, Vec<u16>>) -> Self {
        Self(formats)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u16])> {
        self.0.iter().map(|(kind, versions)| (&**kind, &**versions))
    }

    /// The version that both programs speak.
    pub fn common(&self, kind: Kind) -> Option<u16> {
        let theirs = self.0.get(kind.word())?;
        message::common_version(kind, theirs)
    }

    /// The first of these kinds that is not common.
    pub fn missing(&self, needed: &[Kind]) -> Option<Kind> {
        let mut needed = needed.iter().copied();
        needed.find(|kind| self.common(*kind).is_none())
    }
}

impl Hello {
    pub fn write(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer
            .text(PROGRAM, &self.program)
            .u64(PID, self.pid.into())
            .text(HASH, &self.hash)
            .u64(WORKERS, self.workers)
            .u64(OPEN_DESCRIPTORS, self.open_descriptors)
            .u64(MOST_DESCRIPTORS, self.most_descriptors)
            .list(FORMAT, self.formats.iter(), |(kind, versions), writer| {
                let versions = versions.iter().map(|version| u64::from(*version));
                writer.text(KIND, kind).numbers(VERSIONS, versions);
            });
        writer.into_bytes()
    }

    pub fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        let record = Record::parse(bytes, HELLO)?;
        let formats = record.list(FORMAT, &[KIND, VERSIONS], |format| {
            let versions = format.numbers(VERSIONS)?.into_iter();
            // A version that is not known here may be any number.
            let versions = versions.filter_map(|version| u16::try_from(version).ok());
            Ok((format.text(KIND)?.to_owned(), versions.collect()))
        })?;
        Ok(Self {
            program: record.text(PROGRAM)?.to_owned(),
            pid: record.number(PID)?,
            hash: record.text(HASH)?.to_owned(),
            workers: record.u64(WORKERS)?,
            open_descriptors: record.u64(OPEN_DESCRIPTORS)?,
            most_descriptors: record.u64(MOST_DESCRIPTORS)?,
            formats: Formats(formats.into_iter().collect()),
        })
    }
}

impl Refusal {
    pub fn write(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.text(REASON, &self.reason);
        writer.into_bytes()
    }

    pub fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        let record = Record::parse(bytes, &[REASON])?;
        Ok(Self {
            reason: record.text(REASON)?.to_owned(),
        })
    }
}

impl Accept {
    pub fn write(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u64(NEXT_SESSION, self.next_session);
        writer.into_bytes()
    }

    pub fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        let record = Record::parse(bytes, &[NEXT_SESSION])?;
        Ok(Self {
            next_session: record.u64(NEXT_SESSION)?,
        })
    }
}

impl Ready {
    pub fn write(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u64(LISTENERS, self.listeners);
        writer.numbers(UNUSED, self.unused.iter().copied());
        writer.into_bytes()
    }

    pub fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        let record = Record::parse(bytes, &[LISTENERS, UNUSED])?;
        Ok(Self {
            listeners: record.u64(LISTENERS)?,
            unused: record.numbers(UNUSED)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let hello = Hello {
            program: "1.2.3".to_owned(),
            pid: 77,
            hash: "abc".to_owned(),
            workers: 4,
            open_descriptors: 100,
            most_descriptors: 1024,
            formats: Formats::own(),
        };
        assert_eq!(Hello::read(&hello.write()), Ok(hello));
        let refusal = Refusal {
            reason: "no descriptors".to_owned(),
        };
        assert_eq!(Refusal::read(&refusal.write()), Ok(refusal));
        let ready = Ready {
            listeners: 2,
            unused: vec![3, 5],
        };
        assert_eq!(Ready::read(&ready.write()), Ok(ready));
        let accept = Accept { next_session: 9 };
        assert_eq!(Accept::read(&accept.write()), Ok(accept));
        assert!(Hello::read(b"").is_err());
    }

    #[test]
    fn formats_are_compared_by_kind() {
        let own = Formats::own();
        assert_eq!(own.missing(Kind::ALL), None);
        let mut other = own.clone();
        other.0.insert("sessions".to_owned(), vec![900]);
        other.0.insert("a later kind".to_owned(), vec![1]);
        assert_eq!(other.missing(Kind::ALL), Some(Kind::Sessions));
        assert_eq!(other.missing(&[Kind::Listeners]), None);
        assert_eq!(Formats::default().common(Kind::Hello), None);
    }
}
