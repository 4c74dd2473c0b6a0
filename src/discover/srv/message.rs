//! Questions and replies of DNS, with EDNS. Pure.

use super::name::Name;
use crate::plan::RecordType;
use std::net::{Ipv4Addr, Ipv6Addr};

const HEADER: usize = 12;
/// What datagrams may hold without being split on the way.
const MOST_OF_DATAGRAM: u16 = 1232;
/// Bits of byte 2.
const REPLY: u8 = 0x80;
const OPERATION: u8 = 0x78;
const AUTHORITATIVE: u8 = 0x04;
const TRUNCATED: u8 = 0x02;
const RECURSION: u8 = 0x01;
const INTERNET: u16 = 1;
const OPT: u16 = 41;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Data {
    A(Ipv4Addr),
    Aaaa(Ipv6Addr),
    Srv(Srv),
    Cname(Name),
    Ns,
    /// For how many seconds it may be remembered that there is nothing.
    Soa(u32),
}

impl Data {
    pub(super) fn kind(&self) -> RecordType {
        match self {
            Self::A(_) => RecordType::A,
            Self::Aaaa(_) => RecordType::Aaaa,
            Self::Srv(_) => RecordType::Srv,
            Self::Cname(_) => RecordType::Cname,
            Self::Ns => RecordType::Ns,
            Self::Soa(_) => RecordType::Soa,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Srv {
    pub(super) priority: u16,
    pub(super) weight: u16,
    pub(super) port: u16,
    pub(super) target: Name,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) name: Name,
    /// In seconds.
    pub(super) ttl: u32,
    pub(super) data: Data,
}

/// Records of types that are not known are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) code: u16,
    pub(super) is_authoritative: bool,
    pub(super) is_truncated: bool,
    pub(super) answers: Vec<Record>,
    pub(super) authority: Vec<Record>,
    pub(super) additional: Vec<Record>,
}

/// Whether a question says that longer datagrams are understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Edns {
    Yes,
    No,
}

pub(super) fn ask(id: u16, name: &Name, kind: RecordType, edns: Edns) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    let additional = u8::from(edns == Edns::Yes);
    message.extend_from_slice(&[RECURSION, 0, 0, 1, 0, 0, 0, 0, 0, additional]);
    message.extend_from_slice(name.wire());
    message.extend_from_slice(&kind.number().to_be_bytes());
    message.extend_from_slice(&INTERNET.to_be_bytes());
    if edns == Edns::Yes {
        message.push(0);
        message.extend_from_slice(&OPT.to_be_bytes());
        message.extend_from_slice(&MOST_OF_DATAGRAM.to_be_bytes());
        // Extended code, version and flags, and no options.
        message.extend_from_slice(&[0; 6]);
    }
    message
}

/// What bytes are that are no reply to a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoReply {
    /// Something else: the reply may still come.
    Other,
    /// The reply, but it cannot be read.
    Broken,
}

/// The reply to the question with this id, name and kind.
pub(super) fn read(id: u16, name: &Name, kind: RecordType, bytes: &[u8]) -> Result<Reply, NoReply> {
    let header = bytes.first_chunk::<HEADER>().ok_or(NoReply::Other)?;
    if header[..2] != id.to_be_bytes() || header[2] & (REPLY | OPERATION) != REPLY {
        return Err(NoReply::Other);
    }
    let count = |n: usize| u16::from_be_bytes([header[n], header[n + 1]]);
    let code = u16::from(header[3] & 0x0f);
    let mut reader = Reader { bytes, at: HEADER };
    match count(4) {
        // A server that cannot read a question does not repeat it.
        0 if code != 0 => {}
        1 => {
            let asked = reader.question().ok_or(NoReply::Other)?;
            if asked != (name.clone(), kind.number(), INTERNET) {
                return Err(NoReply::Other);
            }
        }
        _ => return Err(NoReply::Other),
    }
    let mut reply = Reply {
        code,
        is_authoritative: header[2] & AUTHORITATIVE != 0,
        is_truncated: header[2] & TRUNCATED != 0,
        answers: Vec::new(),
        authority: Vec::new(),
        additional: Vec::new(),
    };
    if reply.is_truncated {
        // What is there is not all, and may end anywhere.
        return Ok(reply);
    }
    for (records, count) in [
        (&mut reply.answers, count(6)),
        (&mut reply.authority, count(8)),
        (&mut reply.additional, count(10)),
    ] {
        for _ in 0..count {
            match reader.record().ok_or(NoReply::Broken)? {
                Part::Record(record) => records.push(record),
                Part::Opt(extension) => reply.code |= u16::from(extension) << 4,
                Part::Unknown => {}
            }
        }
    }
    Ok(reply)
}

enum Part {
    Record(Record),
    /// The upper bits of the code.
    Opt(u8),
    Unknown,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn name(&mut self) -> Option<Name> {
        let (name, at) = Name::read(self.bytes, self.at)?;
        self.at = at;
        Some(name)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let taken = self.bytes.get(self.at..)?.first_chunk::<N>()?;
        self.at += N;
        Some(*taken)
    }

    fn number(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }

    fn question(&mut self) -> Option<(Name, u16, u16)> {
        Some((self.name()?, self.number()?, self.number()?))
    }

    fn record(&mut self) -> Option<Part> {
        let name = self.name()?;
        let (kind, class) = (self.number()?, self.number()?);
        let ttl = self.take::<4>()?;
        let end = usize::from(self.number()?) + self.at;
        if end > self.bytes.len() {
            return None;
        }
        let part = if kind == OPT {
            Part::Opt(ttl[0])
        } else if class != INTERNET {
            Part::Unknown
        } else {
            // With the highest bit it counts as zero.
            let ttl = u32::from_be_bytes(ttl);
            let ttl = if ttl >> 31 == 0 { ttl } else { 0 };
            let data = match RecordType::of(kind) {
                Some(kind) => self.data(kind)?,
                None => None,
            };
            match data {
                // What it holds must be all that it holds.
                Some(data) if self.at == end || matches!(data, Data::Ns) => {
                    Part::Record(Record { name, ttl, data })
                }
                Some(_) => return None,
                None => Part::Unknown,
            }
        };
        self.at = end;
        Some(part)
    }

    /// `Some(None)`: records of this type are of no use here.
    fn data(&mut self, kind: RecordType) -> Option<Option<Data>> {
        let data = match kind {
            RecordType::A => Data::A(self.take::<4>()?.into()),
            RecordType::Aaaa => Data::Aaaa(self.take::<16>()?.into()),
            RecordType::Ns => Data::Ns,
            RecordType::Cname => Data::Cname(self.name()?),
            RecordType::Srv => Data::Srv(Srv {
                priority: self.number()?,
                weight: self.number()?,
                port: self.number()?,
                target: self.name()?,
            }),
            RecordType::Soa => {
                self.name()?;
                self.name()?;
                // Serial, refresh, retry, expire.
                self.take::<16>()?;
                Data::Soa(u32::from_be_bytes(self.take()?))
            }
            RecordType::Ptr | RecordType::Mx | RecordType::Txt => return Some(None),
        };
        Some(Some(data))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::plan::Rcode;
    use proptest::prelude::*;

    pub(in super::super) fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    pub(in super::super) fn record(owner: &str, ttl: u32, data: Data) -> Record {
        Record {
            name: name(owner),
            ttl,
            data,
        }
    }

    /// As a server would write it.
    fn write(record: &Record) -> Vec<u8> {
        let data = match &record.data {
            Data::A(ip) => ip.octets().to_vec(),
            Data::Aaaa(ip) => ip.octets().to_vec(),
            Data::Ns => b"\x02ns\0".to_vec(),
            Data::Cname(name) => name.wire().to_vec(),
            Data::Srv(srv) => {
                let numbers = [srv.priority, srv.weight, srv.port].map(u16::to_be_bytes);
                [&numbers.concat()[..], srv.target.wire()].concat()
            }
            Data::Soa(minimum) => {
                [&b"\x02ns\0\x01h\0"[..], &[0; 16], &minimum.to_be_bytes()].concat()
            }
        };
        let length = u16::try_from(data.len()).expect("short").to_be_bytes();
        let (kind, ttl) = (record.data.kind().number(), record.ttl);
        let (kind, ttl) = (kind.to_be_bytes(), ttl.to_be_bytes());
        [record.name.wire(), &kind, &[0, 1], &ttl, &length, &data].concat()
    }

    /// A reply with these bits and sections to a question.
    pub(in super::super) fn reply(
        asked: &[u8],
        flags: [u8; 2],
        sections: [&[Record]; 3],
    ) -> Vec<u8> {
        let counts = sections.map(|s| u16::try_from(s.len()).expect("few").to_be_bytes());
        let (_, end) = Name::read(asked, HEADER).expect("a question");
        let mut bytes = asked[..end + 4].to_vec();
        bytes[2..4].copy_from_slice(&flags);
        bytes[6..12].copy_from_slice(&counts.concat());
        for record in sections.concat() {
            bytes.extend(write(&record));
        }
        bytes
    }

    pub(in super::super) fn srv(priority: u16, weight: u16, port: u16, target: &str) -> Data {
        Data::Srv(Srv {
            priority,
            weight,
            port,
            target: name(target),
        })
    }

    #[test]
    fn what_is_asked() {
        let asked = ask(0x1234, &name("a.b"), RecordType::Srv, Edns::Yes);
        let expected = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\x01\x01a\x01b\0\0\x21\0\x01\
            \0\0\x29\x04\xd0\0\0\0\0\0\0";
        assert_eq!(asked, expected);
        let plain = ask(0x1234, &name("a.b"), RecordType::Srv, Edns::No);
        assert_eq!((plain.len(), plain[11]), (21, 0));
    }

    #[test]
    fn replies() {
        let asked = ask(7, &name("s.example"), RecordType::Srv, Edns::Yes);
        let answers = [
            record("s.example", 30, Data::Cname(name("t.example"))),
            record("t.example", 20, srv(1, 2, 80, "h.example")),
        ];
        let authority = [
            record("example", 9, Data::Soa(5)),
            record("example", 9, Data::Ns),
        ];
        let additional = [
            record("h.example", 1 << 31, Data::A(Ipv4Addr::LOCALHOST)),
            record("h.example", 4, Data::Aaaa(Ipv6Addr::LOCALHOST)),
        ];
        let bytes = reply(&asked, [0x84, 0x80], [&answers, &authority, &additional]);
        let read_one = |bytes: &[u8]| read(7, &name("S.example"), RecordType::Srv, bytes);
        let got = read_one(&bytes).expect("a reply");
        assert!(got.is_authoritative && !got.is_truncated && got.code == 0);
        assert_eq!(got.answers, answers);
        assert_eq!(got.authority, authority);
        assert_eq!(got.additional[0].ttl, 0);
        assert_eq!(got.additional[1], additional[1]);
        // Cut off anywhere it is no reply, or a broken one.
        for end in 0..bytes.len() {
            assert!(read_one(&bytes[..end]).is_err(), "{end}");
        }
        let mut truncated = bytes.clone();
        truncated[2] |= TRUNCATED;
        let cut = read_one(&truncated[..40]).expect("a reply");
        assert!(cut.is_truncated && cut.answers.is_empty());
    }

    #[test]
    fn what_is_no_reply_to_the_question() {
        let asked = ask(7, &name("s.example"), RecordType::Srv, Edns::No);
        let good = reply(&asked, [0x80, 0], [&[], &[], &[]]);
        assert!(read(7, &name("s.example"), RecordType::Srv, &good).is_ok());
        let other = Err(NoReply::Other);
        assert_eq!(read(8, &name("s.example"), RecordType::Srv, &good), other);
        assert_eq!(read(7, &name("t.example"), RecordType::Srv, &good), other);
        assert_eq!(read(7, &name("s.example"), RecordType::A, &good), other);
        assert_eq!(read(7, &name("s.example"), RecordType::Srv, &asked), other);
        // A failure need not repeat the question.
        let refused = b"\0\x07\x80\x05\0\0\0\0\0\0\0\0";
        let refused = read(7, &name("s.example"), RecordType::Srv, refused).expect("a reply");
        assert_eq!(Rcode::describe(refused.code), "REFUSED");
        let empty = b"\0\x07\x80\x00\0\0\0\0\0\0\0\0";
        assert_eq!(read(7, &name("s.example"), RecordType::Srv, empty), other);
    }

    #[test]
    fn an_extended_code_is_an_error() {
        let asked = ask(7, &name("s"), RecordType::Srv, Edns::No);
        let mut bytes = reply(&asked, [0x80, 0], [&[], &[], &[]]);
        bytes[11] = 1;
        bytes.extend_from_slice(b"\0\0\x29\x04\xd0\x01\0\0\0\0\0");
        let reply = read(7, &name("s"), RecordType::Srv, &bytes).expect("a reply");
        assert_eq!(Rcode::describe(reply.code), "code 16");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, at: usize, byte: u8) {
            let asked = ask(7, &name("s.example"), RecordType::Srv, Edns::No);
            let _ = read(7, &name("s.example"), RecordType::Srv, &bytes);
            let mut near = reply(&asked, [0x80, 0], [
                &[record("s.example", 30, srv(1, 2, 80, "h.example"))],
                &[record("example", 9, Data::Soa(5))],
                &[record("h.example", 4, Data::A(Ipv4Addr::LOCALHOST))],
            ]);
            let at = at % near.len();
            near[at] = byte;
            let _ = read(7, &name("s.example"), RecordType::Srv, &near);
            let with_garbage = [&near[..at], &bytes].concat();
            let _ = read(7, &name("s.example"), RecordType::Srv, &with_garbage);
        }
    }
}
