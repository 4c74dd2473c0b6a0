//! What both processes say first.

use super::{
    fields::{Field, Numbers, record},
    message::{self, Kind},
    record::{Malformed, Record, Tag, Writer},
};
use std::collections::BTreeMap;

/// The formats that a program speaks: the versions of each kind, by its word.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Formats(BTreeMap<String, Vec<u16>>);

record! {
    #[derive(Debug, Clone, PartialEq, Eq)]
    Hello {
        /// Its version.
        program: String = 1,
        pid: u32 = 2,
        /// Of the plan, as `tembuku status` shows it.
        hash: String = 3,
        /// How many threads carry connections.
        workers: u64 = 4,
        /// How many descriptors it has open.
        open_descriptors: u64 = 5,
        /// How many it may have.
        most_descriptors: u64 = 6,
        formats: Formats = 7,
    }
}

record! {
    /// Why the other process does not go on.
    #[derive(Debug, Clone, PartialEq, Eq)]
    Refusal {
        reason: String = 1,
    }
}

record! {
    /// What the new process says when it could accept.
    #[derive(Debug, Clone, PartialEq, Eq)]
    Ready {
        listeners: u64 = 1,
        /// The sockets that were sent, in their order, which none of its listeners has.
        unused: Vec<u64> = 2 as Numbers,
    }
}

record! {
    /// What the old process says when it accepts no more.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    Accept {
        /// The id of the next session: those of the old process have smaller ones.
        next_session: u64 = 1,
    }
}

record! {
    Format {
        kind: String = 1,
        versions: Vec<u64> = 2 as Numbers,
    }
}

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

impl Field<Tag> for Formats {
    fn write_field(&self, tag: Tag, w: &mut Writer) {
        let formats = self.iter().map(|(kind, versions)| Format {
            kind: kind.to_owned(),
            versions: versions.iter().copied().map(u64::from).collect(),
        });
        Vec::from_iter(formats).write_field(tag, w);
    }

    fn read_field(tag: Tag, record: &Record<'_>) -> Result<Self, Malformed> {
        let formats = Vec::<Format>::read_field(tag, record)?;
        // A version that is not known here may be any number.
        let known = |versions: Vec<u64>| {
            let versions = versions.into_iter().map(u16::try_from);
            versions.filter_map(Result::ok).collect()
        };
        let formats = formats.into_iter().map(|f| (f.kind, known(f.versions)));
        Ok(Self(formats.collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handover::fields::Fields as _;

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
