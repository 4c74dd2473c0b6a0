//! Records: sequences of fields, each with a tag, a length and a value. A list is a tag that is
//! repeated; a value may be a record.
//!
//! ```text
//! tag: u16   length: u32   value: `length` bytes       all little-endian
//! ```

use std::fmt;

/// The name of a field within its record.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(u16);

/// Of tags of fields that a reader must understand.
const REQUIRED: u16 = 0x8000;

/// The size of a tag and a length.
const HEAD: usize = 6;

impl Tag {
    /// Of a field that a reader which does not know it skips. `number`: below 32,768.
    pub const fn new(number: u16) -> Self {
        assert!(number < REQUIRED, "the highest bit has a meaning");
        Self(number)
    }

    /// Of a field without which the record would mean something else: a reader that does not know
    /// it refuses the record.
    pub const fn required(number: u16) -> Self {
        assert!(number < REQUIRED, "the highest bit has a meaning");
        Self(number | REQUIRED)
    }

    pub const fn must_be_understood(self) -> bool {
        self.0 & REQUIRED != 0
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0 & !REQUIRED)?;
        f.write_str(if self.must_be_understood() { "!" } else { "" })
    }
}

/// Why bytes are not the record that is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// The bytes end within a field.
    Truncated,
    /// A field that must be understood, and is not.
    NotUnderstood(Tag),
    Missing(Tag),
    /// The value has another length than its type.
    Length(Tag),
    /// The value is none of its type.
    Value(Tag),
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("ends within a field"),
            Self::NotUnderstood(tag) => {
                write!(f, "has a field {tag} that this version does not understand")
            }
            Self::Missing(tag) => write!(f, "lacks field {tag}"),
            Self::Length(tag) => write!(f, "field {tag} has a wrong length"),
            Self::Value(tag) => write!(f, "field {tag} has a value that is not valid"),
        }
    }
}

impl std::error::Error for Malformed {}

/// Writes a record. Fields are read in any order; those of one tag keep theirs.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Writer(Vec<u8>);

impl Writer {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    pub fn u64(&mut self, tag: Tag, value: u64) -> &mut Self {
        self.bytes(tag, &value.to_le_bytes())
    }

    pub fn flag(&mut self, tag: Tag, value: bool) -> &mut Self {
        self.bytes(tag, &[u8::from(value)])
    }

    pub fn text(&mut self, tag: Tag, value: &str) -> &mut Self {
        self.bytes(tag, value.as_bytes())
    }

    /// `value`: below 4 GiB.
    pub fn bytes(&mut self, tag: Tag, value: &[u8]) -> &mut Self {
        self.head(tag, u32::try_from(value.len()).unwrap_or(u32::MAX));
        self.0.extend_from_slice(value);
        self
    }

    /// Several numbers in one field, eight bytes each.
    pub fn numbers(&mut self, tag: Tag, values: impl IntoIterator<Item = u64>) -> &mut Self {
        self.record(tag, |bytes| {
            let values = values.into_iter().flat_map(u64::to_le_bytes);
            bytes.0.extend(values);
        })
    }

    /// A record within this one.
    pub fn record(&mut self, tag: Tag, write: impl FnOnce(&mut Self)) -> &mut Self {
        self.head(tag, 0);
        let start = self.0.len();
        write(self);
        let length = u32::try_from(self.0.len() - start).unwrap_or(u32::MAX);
        self.0[start - 4..start].copy_from_slice(&length.to_le_bytes());
        self
    }

    fn head(&mut self, tag: Tag, length: u32) {
        self.0.extend_from_slice(&tag.0.to_le_bytes());
        self.0.extend_from_slice(&length.to_le_bytes());
    }
}

/// A record that has been read, with all fields that its reader knows.
#[derive(Debug, Clone)]
pub struct Record<'a>(Vec<(Tag, &'a [u8])>);

impl<'a> Record<'a> {
    /// `known`: the tags that the caller reads. Others are skipped, unless they must be understood.
    pub fn parse(bytes: &'a [u8], known: &[Tag]) -> Result<Self, Malformed> {
        Self::parse_with(bytes, |tag| known.contains(&tag))
    }

    pub fn parse_with(
        mut bytes: &'a [u8],
        is_known: impl Fn(Tag) -> bool,
    ) -> Result<Self, Malformed> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let (head, rest) = bytes.split_at_checked(HEAD).ok_or(Malformed::Truncated)?;
            let [a, b, c, d, e, f] = *head else {
                return Err(Malformed::Truncated);
            };
            let tag = Tag(u16::from_le_bytes([a, b]));
            let length = usize::try_from(u32::from_le_bytes([c, d, e, f]));
            let length = length.map_err(|_| Malformed::Truncated)?;
            let (value, rest) = rest.split_at_checked(length).ok_or(Malformed::Truncated)?;
            if is_known(tag) {
                fields.push((tag, value));
            } else if tag.must_be_understood() {
                return Err(Malformed::NotUnderstood(tag));
            }
            bytes = rest;
        }
        Ok(Self(fields))
    }

    /// Of several fields with the tag, the first.
    pub fn optional_bytes(&self, tag: Tag) -> Option<&'a [u8]> {
        self.all(tag).next()
    }

    pub fn bytes(&self, tag: Tag) -> Result<&'a [u8], Malformed> {
        self.optional_bytes(tag).ok_or(Malformed::Missing(tag))
    }

    /// `false` where the field is absent.
    pub fn flag(&self, tag: Tag) -> Result<bool, Malformed> {
        match self.optional_bytes(tag) {
            None | Some([0]) => Ok(false),
            Some([1]) => Ok(true),
            Some([_]) => Err(Malformed::Value(tag)),
            Some(_) => Err(Malformed::Length(tag)),
        }
    }

    /// None where the field is absent.
    pub fn numbers(&self, tag: Tag) -> Result<Vec<u64>, Malformed> {
        let value = self.optional_bytes(tag).unwrap_or_default();
        let (numbers, rest) = value.as_chunks();
        match rest {
            [] => Ok(numbers.iter().map(|n| u64::from_le_bytes(*n)).collect()),
            _ => Err(Malformed::Length(tag)),
        }
    }

    /// Of all fields with the tag, in their order.
    pub fn all(&self, tag: Tag) -> impl Iterator<Item = &'a [u8]> {
        let fields = self.0.iter().filter(move |(t, _)| *t == tag);
        fields.map(|(_, value)| *value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: Tag = Tag::new(1);
    const B: Tag = Tag::new(2);
    const C: Tag = Tag::required(3);

    fn parse<'a>(writer: &'a Writer, known: &[Tag]) -> Result<Record<'a>, Malformed> {
        Record::parse(&writer.0, known)
    }

    #[test]
    fn fields_are_read_as_they_were_written() {
        let mut w = Writer::new();
        w.u64(A, 7).text(B, "ü").flag(C, true).text(B, "second");
        w.numbers(Tag::new(6), [1, 2, 3]).record(Tag::new(8), |w| {
            w.text(A, "a");
        });
        let r = parse(&w, &[A, B, C, Tag::new(6), Tag::new(8)]).expect("a record");
        assert_eq!(r.bytes(A), Ok(&7_u64.to_le_bytes()[..]));
        assert_eq!(r.bytes(B), Ok("ü".as_bytes()));
        let texts: Vec<_> = r.all(B).collect();
        assert_eq!(texts, ["ü".as_bytes(), b"second"]);
        assert_eq!(r.flag(C), Ok(true));
        assert_eq!(r.numbers(Tag::new(6)), Ok(vec![1, 2, 3]));
        let inner = r.bytes(Tag::new(8)).expect("a field");
        let inner = Record::parse(inner, &[A]).expect("a record");
        assert_eq!(inner.bytes(A), Ok(&b"a"[..]));
        assert_eq!(r.bytes(Tag::new(9)), Err(Malformed::Missing(Tag::new(9))));
        assert_eq!(r.numbers(Tag::new(9)), Ok(vec![]));
        assert_eq!(r.flag(Tag::new(9)), Ok(false));
    }

    #[test]
    fn an_unknown_field_is_skipped_unless_it_must_be_understood() {
        let mut w = Writer::new();
        w.u64(A, 1).u64(B, 2);
        let r = parse(&w, &[A]).expect("B is skipped");
        assert_eq!(r.bytes(A), Ok(&1_u64.to_le_bytes()[..]));
        assert_eq!(r.optional_bytes(B), None);
        w.u64(C, 3);
        assert!(matches!(parse(&w, &[A]), Err(Malformed::NotUnderstood(C))));
        assert!(parse(&w, &[A, C]).is_ok());
    }

    #[test]
    fn values_of_other_types_are_errors() {
        let mut w = Writer::new();
        w.bytes(A, &[2]).bytes(B, &[0xff, 2]);
        let r = parse(&w, &[A, B]).expect("a record");
        assert_eq!(r.flag(A), Err(Malformed::Value(A)));
        assert_eq!(r.flag(B), Err(Malformed::Length(B)));
        assert_eq!(r.numbers(B), Err(Malformed::Length(B)));
    }

    #[test]
    fn a_record_that_is_cut_is_an_error_or_a_shorter_record() {
        let mut w = Writer::new();
        w.u64(A, 1).text(B, "text");
        let ends_of_fields = [0, 14, 24];
        for length in 0..=w.0.len() {
            let cut = Record::parse(&w.0[..length], &[A, B]);
            assert_eq!(cut.is_ok(), ends_of_fields.contains(&length), "{length}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>, number in 0u16..0x8000) {
            let tags = [Tag::new(number), Tag::new(0), Tag::required(number)];
            if let Ok(record) = Record::parse(&bytes, &tags) {
                for tag in tags {
                    let _ = (record.bytes(tag), record.flag(tag), record.numbers(tag));
                }
            }
        }

        #[test]
        fn fields_of_any_content_keep_their_values(
            fields in prop::collection::vec(
                (0u16..8, prop::collection::vec(any::<u8>(), 0..40)),
                0..9,
            )
        ) {
            let mut w = Writer::new();
            for (number, value) in &fields {
                w.bytes(Tag::new(*number), value);
            }
            let known: Vec<Tag> = (0..8).map(Tag::new).collect();
            let record = Record::parse(&w.0, &known).expect("a record");
            for tag in 0..8 {
                let expected = fields.iter().filter(|(t, _)| *t == tag).map(|(_, v)| v.as_slice());
                prop_assert!(record.all(Tag::new(tag)).eq(expected));
            }
        }
    }
}
