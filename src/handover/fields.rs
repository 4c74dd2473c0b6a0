//! Records declared by their fields, from which they are written and read.

use super::record::{Malformed, Record, Tag, Writer};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    time::Duration,
};

/// What can stand in one field of a record.
pub trait Value: Sized {
    fn write_value(&self, tag: Tag, w: &mut Writer);
    fn read_value(bytes: &[u8], tag: Tag) -> Result<Self, Malformed>;
}

/// A record: what its fields are.
pub trait Fields: Sized {
    fn write_fields(&self, w: &mut Writer);
    fn read_fields(record: &Record<'_>) -> Result<Self, Malformed>;
    /// Whether it has a field with this tag.
    fn has(tag: Tag) -> bool;

    fn write(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        self.write_fields(&mut writer);
        writer.into_bytes()
    }

    fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        Self::read_fields(&Record::parse_with(bytes, Self::has)?)
    }
}

/// A field of a struct. `Tags`: its tag in the record, or those of both of its parts.
pub trait Field<Tags>: Sized {
    fn write_field(&self, tags: Tags, w: &mut Writer);
    fn read_field(tags: Tags, record: &Record<'_>) -> Result<Self, Malformed>;
}

/// Declares a record. Behind each field of the struct is the tag of its field in the record: a
/// number, `(required 1)` for a field without which the record would mean something else, two
/// numbers for a field of two parts, or `inline` for the fields of another record among those of
/// this one. `as`: how it is written, if not as its type says.
///
/// They are written in their order, and read in any.
macro_rules! record {
    ($(#[$meta:meta])* $name:ident {
        $($(#[$doc:meta])* $field:ident: $type:ty = $tag:tt $(as $codec:ident)?,)*
    }) => {
        $(#[$meta])*
        pub struct $name { $($(#[$doc])* pub $field: $type,)* }

        impl $crate::handover::fields::Fields for $name {
            fn write_fields(&self, w: &mut $crate::handover::record::Writer) {
                $($crate::handover::fields::field!(write $tag, &self.$field, w, $($codec)?);)*
            }

            fn read_fields(
                record: &$crate::handover::record::Record<'_>,
            ) -> Result<Self, $crate::handover::record::Malformed> {
                Ok(Self {
                    $($field: $crate::handover::fields::field!(read $tag, record, $($codec)?)?,)*
                })
            }

            fn has(tag: $crate::handover::record::Tag) -> bool {
                false $(|| $crate::handover::fields::field!(has $tag, $type, tag))*
            }
        }
    };
}

/// What [`record`] does with one field.
macro_rules! field {
    (write inline, $value:expr, $w:expr,) => {
        $crate::handover::fields::Fields::write_fields($value, $w)
    };
    (write $tag:tt, $value:expr, $w:expr,) => {
        $crate::handover::fields::Field::write_field(
            $value,
            $crate::handover::fields::tag!($tag),
            $w,
        )
    };
    (write $tag:tt, $value:expr, $w:expr, $codec:ident) => {
        $codec::write($value, $crate::handover::fields::tag!($tag), $w)
    };
    (read inline, $record:expr,) => {
        $crate::handover::fields::Fields::read_fields($record)
    };
    (read $tag:tt, $record:expr,) => {
        $crate::handover::fields::Field::read_field($crate::handover::fields::tag!($tag), $record)
    };
    (read $tag:tt, $record:expr, $codec:ident) => {
        $codec::read($crate::handover::fields::tag!($tag), $record)
    };
    (has inline, $type:ty, $tag:expr) => {
        <$type as $crate::handover::fields::Fields>::has($tag)
    };
    (has [$first:tt, $second:tt], $type:ty, $tag:expr) => {
        $crate::handover::fields::tag!([$first, $second]).contains(&$tag)
    };
    (has $own:tt, $type:ty, $tag:expr) => {
        $crate::handover::fields::tag!($own) == $tag
    };
}

macro_rules! tag {
    ([$first:tt, $second:tt]) => {
        [
            $crate::handover::fields::tag!($first),
            $crate::handover::fields::tag!($second),
        ]
    };
    ((required $number:literal)) => {
        const { $crate::handover::record::Tag::required($number) }
    };
    ($number:literal) => {
        const { $crate::handover::record::Tag::new($number) }
    };
}

pub(super) use {field, record, tag};

/// The field of the records of a list.
const ITEM: Tag = Tag::new(1);

/// The same, of a list that its reader has to know.
const REQUIRED_ITEM: Tag = Tag::required(1);

/// A message that is a list of records.
pub fn write_list<'a, T: Fields + 'a>(items: impl IntoIterator<Item = &'a T>) -> Vec<u8> {
    write_items(ITEM, items)
}

pub fn read_list<T: Fields>(bytes: &[u8]) -> Result<Vec<T>, Malformed> {
    read_items(ITEM, bytes)
}

pub fn write_required_list<'a, T: Fields + 'a>(items: impl IntoIterator<Item = &'a T>) -> Vec<u8> {
    write_items(REQUIRED_ITEM, items)
}

pub fn read_required_list<T: Fields>(bytes: &[u8]) -> Result<Vec<T>, Malformed> {
    read_items(REQUIRED_ITEM, bytes)
}

fn write_items<'a, T: Fields + 'a>(item: Tag, items: impl IntoIterator<Item = &'a T>) -> Vec<u8> {
    let mut writer = Writer::new();
    for value in items {
        value.write_value(item, &mut writer);
    }
    writer.into_bytes()
}

fn read_items<T: Fields>(item: Tag, bytes: &[u8]) -> Result<Vec<T>, Malformed> {
    Vec::read_field(item, &Record::parse(bytes, &[item])?)
}

impl<T: Fields> Value for T {
    fn write_value(&self, tag: Tag, w: &mut Writer) {
        w.record(tag, |w| self.write_fields(w));
    }

    fn read_value(bytes: &[u8], _: Tag) -> Result<Self, Malformed> {
        Self::read(bytes)
    }
}

impl<T: Value> Field<Tag> for T {
    fn write_field(&self, tag: Tag, w: &mut Writer) {
        self.write_value(tag, w);
    }

    fn read_field(tag: Tag, record: &Record<'_>) -> Result<Self, Malformed> {
        T::read_value(record.bytes(tag)?, tag)
    }
}

/// Nothing is written for `None`.
impl<T: Value> Field<Tag> for Option<T> {
    fn write_field(&self, tag: Tag, w: &mut Writer) {
        if let Some(value) = self {
            value.write_value(tag, w);
        }
    }

    fn read_field(tag: Tag, record: &Record<'_>) -> Result<Self, Malformed> {
        let value = record.optional_bytes(tag);
        value.map(|bytes| T::read_value(bytes, tag)).transpose()
    }
}

/// A field for each item.
impl<T: Value> Field<Tag> for Vec<T> {
    fn write_field(&self, tag: Tag, w: &mut Writer) {
        for item in self {
            item.write_value(tag, w);
        }
    }

    fn read_field(tag: Tag, record: &Record<'_>) -> Result<Self, Malformed> {
        let items = record.all(tag);
        items.map(|bytes| T::read_value(bytes, tag)).collect()
    }
}

/// `false` where the field is absent.
impl Field<Tag> for bool {
    fn write_field(&self, tag: Tag, w: &mut Writer) {
        w.flag(tag, *self);
    }

    fn read_field(tag: Tag, record: &Record<'_>) -> Result<Self, Malformed> {
        record.flag(tag)
    }
}

/// A record for each pair: the first tag is that of the list, the others are those of the two.
pub struct Pairs<const FIRST: u16, const SECOND: u16>;

impl<const FIRST: u16, const SECOND: u16> Pairs<FIRST, SECOND> {
    const TAGS: [Tag; 2] = [Tag::new(FIRST), Tag::new(SECOND)];

    fn write_all<'a, A: Value + 'a, B: Value + 'a>(
        pairs: impl IntoIterator<Item = (&'a A, &'a B)>,
        tag: Tag,
        w: &mut Writer,
    ) {
        for (a, b) in pairs {
            w.record(tag, |w| {
                a.write_value(Self::TAGS[0], w);
                b.write_value(Self::TAGS[1], w);
            });
        }
    }

    /// Of a list or a map.
    pub fn write<'a, A: Value + 'a, B: Value + 'a>(
        pairs: impl PairsOf<'a, A, B>,
        tag: Tag,
        w: &mut Writer,
    ) {
        Self::write_all(pairs.pairs(), tag, w);
    }

    pub fn read<A: Value, B: Value, C: FromIterator<(A, B)>>(
        tag: Tag,
        record: &Record<'_>,
    ) -> Result<C, Malformed> {
        let pairs = record.all(tag).map(|bytes| {
            let pair = Record::parse_with(bytes, |tag| Self::TAGS.contains(&tag))?;
            let [a, b] = Self::TAGS;
            Ok((A::read_field(a, &pair)?, B::read_field(b, &pair)?))
        });
        pairs.collect()
    }
}

pub trait PairsOf<'a, A: 'a, B: 'a> {
    fn pairs(self) -> impl Iterator<Item = (&'a A, &'a B)>;
}

impl<'a, A, B> PairsOf<'a, A, B> for &'a Vec<(A, B)> {
    fn pairs(self) -> impl Iterator<Item = (&'a A, &'a B)> {
        self.iter().map(|(a, b)| (a, b))
    }
}

impl<'a, A, B> PairsOf<'a, A, B> for &'a BTreeMap<A, B> {
    fn pairs(self) -> impl Iterator<Item = (&'a A, &'a B)> {
        self.iter()
    }
}

impl<A: Value, B: Value> Field<[Tag; 2]> for Option<(A, B)> {
    fn write_field(&self, [first, second]: [Tag; 2], w: &mut Writer) {
        if let Some((a, b)) = self {
            a.write_value(first, w);
            b.write_value(second, w);
        }
    }

    fn read_field([first, second]: [Tag; 2], record: &Record<'_>) -> Result<Self, Malformed> {
        match Option::<A>::read_field(first, record)? {
            Some(a) => Ok(Some((a, B::read_field(second, record)?))),
            None => Ok(None),
        }
    }
}

/// Whether there is a list, and its items.
impl<T: Value> Field<[Tag; 2]> for Option<Vec<T>> {
    fn write_field(&self, [is_there, item]: [Tag; 2], w: &mut Writer) {
        w.flag(is_there, self.is_some());
        for value in self.iter().flatten() {
            value.write_value(item, w);
        }
    }

    fn read_field([is_there, item]: [Tag; 2], record: &Record<'_>) -> Result<Self, Malformed> {
        let items = Vec::<T>::read_field(item, record)?;
        Ok(record.flag(is_there)?.then_some(items))
    }
}

impl<A: Value, B: Value> Field<[Tag; 2]> for (A, Option<B>) {
    fn write_field(&self, [first, second]: [Tag; 2], w: &mut Writer) {
        self.0.write_value(first, w);
        self.1.write_field(second, w);
    }

    fn read_field([first, second]: [Tag; 2], record: &Record<'_>) -> Result<Self, Malformed> {
        let a = A::read_field(first, record)?;
        Ok((a, Option::<B>::read_field(second, record)?))
    }
}

/// Both are there.
impl<T: Value> Field<[Tag; 2]> for [T; 2] {
    fn write_field(&self, tags: [Tag; 2], w: &mut Writer) {
        for (value, tag) in self.iter().zip(tags) {
            value.write_value(tag, w);
        }
    }

    fn read_field([first, second]: [Tag; 2], record: &Record<'_>) -> Result<Self, Malformed> {
        Ok([
            T::read_field(first, record)?,
            T::read_field(second, record)?,
        ])
    }
}

/// Eight bytes, whatever the type.
macro_rules! numbers {
    ($($type:ty)*) => {
        $(impl Value for $type {
            fn write_value(&self, tag: Tag, w: &mut Writer) {
                w.u64(tag, u64::from(*self));
            }

            fn read_value(bytes: &[u8], tag: Tag) -> Result<Self, Malformed> {
                let [number] = numbers_of(bytes, tag)?;
                Self::try_from(number).map_err(|_| Malformed::Value(tag))
            }
        })*
    };
}

numbers! { u8 u16 u32 u64 }

fn numbers_of<const N: usize>(bytes: &[u8], tag: Tag) -> Result<[u64; N], Malformed> {
    let (numbers, rest) = bytes.as_chunks();
    let numbers = <[[u8; 8]; N]>::try_from(numbers).ok();
    let numbers = numbers.filter(|_| rest.is_empty());
    let numbers = numbers.ok_or(Malformed::Length(tag))?;
    Ok(numbers.map(u64::from_le_bytes))
}

/// Several numbers in one field.
impl Value for (u64, u64) {
    fn write_value(&self, tag: Tag, w: &mut Writer) {
        w.numbers(tag, [self.0, self.1]);
    }

    fn read_value(bytes: &[u8], tag: Tag) -> Result<Self, Malformed> {
        numbers_of(bytes, tag).map(|[a, b]| (a, b))
    }
}

impl Value for (u32, u32, i64) {
    fn write_value(&self, tag: Tag, w: &mut Writer) {
        let last = u64::from_ne_bytes(self.2.to_ne_bytes());
        w.numbers(tag, [self.0.into(), self.1.into(), last]);
    }

    fn read_value(bytes: &[u8], tag: Tag) -> Result<Self, Malformed> {
        let [a, b, c] = numbers_of(bytes, tag)?;
        let small = |n: u64| u32::try_from(n).map_err(|_| Malformed::Value(tag));
        Ok((small(a)?, small(b)?, i64::from_ne_bytes(c.to_ne_bytes())))
    }
}

impl Value for [u32; 4] {
    fn write_value(&self, tag: Tag, w: &mut Writer) {
        w.numbers(tag, self.map(u64::from));
    }

    /// A larger number is the largest.
    fn read_value(bytes: &[u8], tag: Tag) -> Result<Self, Malformed> {
        let numbers = numbers_of(bytes, tag)?;
        Ok(numbers.map(|n| u32::try_from(n).unwrap_or(u32::MAX)))
    }
}

/// Numbers in one field, which is not written if there are none.
pub struct Numbers;

impl Numbers {
    pub fn write(numbers: &[u64], tag: Tag, w: &mut Writer) {
        if !numbers.is_empty() {
            w.numbers(tag, numbers.iter().copied());
        }
    }

    pub fn read(tag: Tag, record: &Record<'_>) -> Result<Vec<u64>, Malformed> {
        record.numbers(tag)
    }
}

/// Bytes, which are not written if there are none.
pub struct Bytes;

impl Bytes {
    pub fn write(bytes: &[u8], tag: Tag, w: &mut Writer) {
        if !bytes.is_empty() {
            w.bytes(tag, bytes);
        }
    }

    pub fn read(tag: Tag, record: &Record<'_>) -> Result<Vec<u8>, Malformed> {
        Ok(record.optional_bytes(tag).unwrap_or_default().to_vec())
    }
}

/// A flag that is written only where it is set: to a reader that does not know it, what has none is
/// plain.
pub struct RareFlag;

impl RareFlag {
    pub fn write(flag: &bool, tag: Tag, w: &mut Writer) {
        if *flag {
            w.flag(tag, true);
        }
    }

    pub fn read(tag: Tag, record: &Record<'_>) -> Result<bool, Malformed> {
        record.flag(tag)
    }
}

impl Value for f64 {
    fn write_value(&self, tag: Tag, w: &mut Writer) {
        w.u64(tag, self.to_bits());
    }

    fn read_value(bytes: &[u8], tag: Tag) -> Result<Self, Malformed> {
        u64::read_value(bytes, tag).map(Self::from_bits)
    }
}

impl Value for Duration {
    fn write_value(&self, tag: Tag, w: &mut Writer) {
        // 584 years.
        w.u64(tag, u64::try_from(self.as_nanos()).unwrap_or(u64::MAX));
    }

    fn read_value(bytes: &[u8], tag: Tag) -> Result<Self, Malformed> {
        u64::read_value(bytes, tag).map(Self::from_nanos)
    }
}

impl Value for String {
    fn write_value(&self, tag: Tag, w: &mut Writer) {
        w.text(tag, self);
    }

    fn read_value(bytes: &[u8], tag: Tag) -> Result<Self, Malformed> {
        let text = str::from_utf8(bytes).map_err(|_| Malformed::Value(tag))?;
        Ok(text.to_owned())
    }
}

impl Value for Box<[u8]> {
    fn write_value(&self, tag: Tag, w: &mut Writer) {
        w.bytes(tag, self);
    }

    fn read_value(bytes: &[u8], _: Tag) -> Result<Self, Malformed> {
        Ok(bytes.into())
    }
}

impl Value for IpAddr {
    fn write_value(&self, tag: Tag, w: &mut Writer) {
        match self {
            Self::V4(ip) => w.bytes(tag, &ip.octets()),
            Self::V6(ip) => w.bytes(tag, &ip.octets()),
        };
    }

    fn read_value(bytes: &[u8], tag: Tag) -> Result<Self, Malformed> {
        if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
            return Ok(Ipv4Addr::from(octets).into());
        }
        let octets = <[u8; 16]>::try_from(bytes).map_err(|_| Malformed::Length(tag))?;
        Ok(Ipv6Addr::from(octets).into())
    }
}

/// Address and port; of IPv6 flow information and scope as well.
impl Value for SocketAddr {
    fn write_value(&self, tag: Tag, w: &mut Writer) {
        let mut bytes = [0; 26];
        let len = match self {
            Self::V4(v4) => {
                bytes[..4].copy_from_slice(&v4.ip().octets());
                bytes[4..6].copy_from_slice(&v4.port().to_le_bytes());
                6
            }
            Self::V6(v6) => {
                bytes[..16].copy_from_slice(&v6.ip().octets());
                bytes[16..18].copy_from_slice(&v6.port().to_le_bytes());
                bytes[18..22].copy_from_slice(&v6.flowinfo().to_le_bytes());
                bytes[22..].copy_from_slice(&v6.scope_id().to_le_bytes());
                26
            }
        };
        w.bytes(tag, &bytes[..len]);
    }

    fn read_value(bytes: &[u8], tag: Tag) -> Result<Self, Malformed> {
        if let Ok([a, b, c, d, p, q]) = <[u8; 6]>::try_from(bytes) {
            let ip = Ipv4Addr::new(a, b, c, d);
            return Ok(SocketAddrV4::new(ip, u16::from_le_bytes([p, q])).into());
        }
        let bytes = <[u8; 26]>::try_from(bytes).map_err(|_| Malformed::Length(tag))?;
        let (ip, rest) = bytes.split_at(16);
        let ip = <[u8; 16]>::try_from(ip).map_err(|_| Malformed::Length(tag))?;
        let &[p, q, a, b, c, d, e, f, g, h] = rest else {
            return Err(Malformed::Length(tag));
        };
        let port = u16::from_le_bytes([p, q]);
        let flow = u32::from_le_bytes([a, b, c, d]);
        let scope = u32::from_le_bytes([e, f, g, h]);
        Ok(SocketAddrV6::new(ip.into(), port, flow, scope).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    record! {
        #[derive(Debug, PartialEq)]
        Example {
            small: u8 = (required 1),
            text: Option<String> = 2,
            amount: f64 = 3,
            pair: [Duration; 2] = [(required 4), 5],
            bytes: Box<[u8]> = 6,
            inner: Vec<Inner> = 7,
        }
    }

    record! {
        #[derive(Debug, PartialEq)]
        Inner {
            number: u64 = 1,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for text in [None, Some("ü".to_owned())] {
            let example = Example {
                small: 7,
                text,
                amount: 0.5,
                pair: [Duration::from_nanos(1), Duration::from_secs(2)],
                bytes: [].into(),
                inner: vec![Inner { number: 1 }, Inner { number: 2 }],
            };
            assert_eq!(Example::read(&example.write()), Ok(example));
        }
    }

    #[test]
    fn values_of_other_types_are_errors() {
        let (small, text) = (Tag::required(1), Tag::new(2));
        let error = |fields: &[(Tag, &[u8])]| {
            let mut w = Writer::new();
            for (tag, bytes) in fields {
                w.bytes(*tag, bytes);
            }
            Example::read(&w.into_bytes()).expect_err("no example")
        };
        let number = |n: u64| n.to_le_bytes();
        assert_eq!(error(&[]), Malformed::Missing(small));
        assert_eq!(error(&[(small, &number(256))]), Malformed::Value(small));
        assert_eq!(error(&[(small, &[0xff, 2])]), Malformed::Length(small));
        let broken = error(&[(small, &number(1)), (text, &[0xff])]);
        assert_eq!(broken, Malformed::Value(text));
    }
}
