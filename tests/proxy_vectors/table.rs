// PROXY protocol headers of every kind, and their meaning by the specification.

use tembuku::internals::proxy_protocol::{Addresses, InvalidHeader};

pub(crate) struct Vector {
    pub(crate) name: &'static str,
    pub(crate) bytes: Vec<u8>,
    pub(crate) verdict: Result<Addresses, InvalidHeader>,
}

fn ip(source: &str, destination: &str) -> Result<Addresses, InvalidHeader> {
    Ok(Addresses::Ip {
        source: source.parse().expect("an address"),
        destination: destination.parse().expect("an address"),
    })
}

const OWN: Result<Addresses, InvalidHeader> = Ok(Addresses::Own);

fn v1() -> Vec<Vector> {
    use InvalidHeader::*;
    let full = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    let mixed = "ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255";
    let of_full = |source, destination| {
        ip(&format!("[{full}]:{source}"), &format!("[{full}]:{destination}"))
    };
    let long = |n: usize| format!("PROXY UNKNOWN{}\r\n", "x".repeat(n - 15));
    let text = [
        ("tcp4", "PROXY TCP4 192.0.2.1 192.0.2.11 56324 443\r\n".into(), four()),
        ("tcp6", "PROXY TCP6 2001:db8::1 2001:db8::b 56324 443\r\n".into(), six()),
        ("tcp6 in full and in capitals",
            "PROXY TCP6 2001:0DB8:0000:0000:0000:0000:0000:0001 2001:DB8:0:0:0:0:0:B 56324 443\r\n"
                .into(),
            six()),
        ("tcp4, longest",
            "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n".into(),
            ip("255.255.255.255:65535", "255.255.255.255:65535")),
        ("tcp6, longest",
            format!("PROXY TCP6 {full} {full} 65535 65535\r\n"), of_full(65535, 65535)),
        ("tcp4, all zero",
            "PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n".into(), ip("0.0.0.0:0", "0.0.0.0:0")),
        ("tcp6, all zero", "PROXY TCP6 :: :: 0 0\r\n".into(), ip("[::]:0", "[::]:0")),
        ("tcp6, mixed",
            "PROXY TCP6 ::ffff:192.0.2.1 ::ffff:192.0.2.11 1 2\r\n".into(),
            ip("[::ffff:192.0.2.1]:1", "[::ffff:192.0.2.11]:2")),
        ("tcp6, mixed and long: 107 bytes",
            format!("PROXY TCP6 {full} {mixed} 100 1000\r\n"), of_full(100, 1000)),
        ("tcp6, mixed and long: 108 bytes",
            format!("PROXY TCP6 {full} {mixed} 1000 1000\r\n"), Err(LineTooLong)),
        ("unknown", "PROXY UNKNOWN\r\n".into(), OWN),
        ("unknown, a blank", "PROXY UNKNOWN \r\n".into(), OWN),
        ("unknown with addresses",
            "PROXY UNKNOWN 192.0.2.1 192.0.2.11 56324 443\r\n".into(), OWN),
        ("unknown, longest with addresses",
            format!("PROXY UNKNOWN {full} {full} 65535 65535\r\n"), OWN),
        ("unknown, anything", "PROXY UNKNOWN \0\u{7f}é\r x\n y\r\r\n".into(), OWN),
        ("unknown, 106 bytes", long(106), OWN),
        ("unknown, 107 bytes", long(107), OWN),
        ("unknown, 108 bytes", long(108), Err(LineTooLong)),
        ("unknown, no end", "PROXY UNKNOWN".to_owned() + &"x".repeat(200), Err(LineTooLong)),
        ("unknown, LF alone, no end",
            "PROXY UNKNOWN\n".to_owned() + &"x".repeat(200), Err(LineTooLong)),
        ("unknown, CR as the last byte of 107",
            "PROXY UNKNOWN".to_owned() + &"x".repeat(93) + "\r\n", Err(LineTooLong)),
        ("tcp6, an endless address", "PROXY TCP6 ".to_owned() + &"0".repeat(200), Err(Ipv6)),
    ];
    let refused = REFUSED_LINES.iter().map(|(name, line, refusal)| Vector {
        name,
        bytes: line.as_bytes().to_vec(),
        verdict: Err(*refusal),
    });
    text.into_iter()
        .map(|(name, text, verdict): (_, String, _)| Vector {
            name,
            bytes: text.into_bytes(),
            verdict,
        })
        .chain(refused)
        .collect()
}

const REFUSED_LINES: &[(&str, &str, InvalidHeader)] = {
    use InvalidHeader::*;
    &[
        ("nothing like it", "GET / HTTP/1.1\r\n\r\n", NoHeader),
        ("lower case", "proxy TCP4 192.0.2.1 192.0.2.11 56324 443\r\n", NoHeader),
        ("a blank before", " PROXY TCP4 192.0.2.1 192.0.2.11 56324 443\r\n", NoHeader),
        ("nothing but the word", "PROXY\r\n", NoHeader),
        ("a tab", "PROXY\tTCP4 192.0.2.1 192.0.2.11 56324 443\r\n", NoHeader),
        ("two blanks before the kind", "PROXY  TCP4 192.0.2.1 192.0.2.11 56324 443\r\n", Kind),
        ("no kind", "PROXY \r\n", Kind),
        ("kind in lower case", "PROXY tcp4 192.0.2.1 192.0.2.11 56324 443\r\n", Kind),
        ("udp4", "PROXY UDP4 192.0.2.1 192.0.2.11 56324 443\r\n", Kind),
        ("tcp5", "PROXY TCP5 192.0.2.1 192.0.2.11 56324 443\r\n", Kind),
        ("kind cut short", "PROXY UNKNOW\r\n", Kind),
        ("tcp4 alone", "PROXY TCP4\r\n", Kind),
        ("tcp4 and a blank", "PROXY TCP4 \r\n", Ipv4),
        ("tcp4, two blanks", "PROXY TCP4  192.0.2.1 192.0.2.11 56324 443\r\n", Ipv4),
        ("tcp4, two blanks between", "PROXY TCP4 192.0.2.1  192.0.2.11 56324 443\r\n", Ipv4),
        ("tcp4, one address", "PROXY TCP4 192.0.2.1\r\n", Ipv4),
        ("tcp4, leading zero", "PROXY TCP4 192.0.2.01 192.0.2.11 56324 443\r\n", Ipv4),
        ("tcp4, leading zeros", "PROXY TCP4 192.000.2.1 192.0.2.11 56324 443\r\n", Ipv4),
        ("tcp4, leading zero in the second",
            "PROXY TCP4 192.0.2.1 192.0.2.011 56324 443\r\n", Ipv4),
        ("tcp4, 256", "PROXY TCP4 192.0.2.256 192.0.2.11 56324 443\r\n", Ipv4),
        ("tcp4, three numbers", "PROXY TCP4 192.0.2 192.0.2.11 56324 443\r\n", Ipv4),
        ("tcp4, five numbers", "PROXY TCP4 1.0.2.1.1 192.0.2.11 56324 443\r\n", Ipv4),
        ("tcp4, a point at the end", "PROXY TCP4 192.0.2.1. 192.0.2.11 56324 443\r\n", Ipv4),
        ("tcp4, hexadecimal", "PROXY TCP4 0xc0.0.2.1 192.0.2.11 56324 443\r\n", Ipv4),
        ("tcp4, one number", "PROXY TCP4 3221225985 192.0.2.11 56324 443\r\n", Ipv4),
        ("tcp4 with tcp6's", "PROXY TCP4 2001:db8::1 2001:db8::b 56324 443\r\n", Ipv4),
        ("tcp4, mixed families", "PROXY TCP4 192.0.2.1 2001:db8::b 56324 443\r\n", Ipv4),
        ("tcp4, a name", "PROXY TCP4 localhost 192.0.2.11 56324 443\r\n", Ipv4),
        ("tcp4, no ports", "PROXY TCP4 192.0.2.1 192.0.2.11\r\n", Ipv4),
        ("tcp4, one port", "PROXY TCP4 192.0.2.1 192.0.2.11 56324\r\n", Port),
        ("tcp4, a blank for the second port", "PROXY TCP4 192.0.2.1 192.0.2.11 56324 \r\n", Port),
        ("port 65536", "PROXY TCP4 192.0.2.1 192.0.2.11 65536 443\r\n", Port),
        ("second port 65536", "PROXY TCP4 192.0.2.1 192.0.2.11 443 65536\r\n", Port),
        ("port 99999999", "PROXY TCP4 192.0.2.1 192.0.2.11 99999999 443\r\n", Port),
        ("port with leading zero", "PROXY TCP4 192.0.2.1 192.0.2.11 0443 443\r\n", Port),
        ("second port with leading zero", "PROXY TCP4 192.0.2.1 192.0.2.11 443 0443\r\n", Port),
        ("port 00", "PROXY TCP4 192.0.2.1 192.0.2.11 00 443\r\n", Port),
        ("port with plus", "PROXY TCP4 192.0.2.1 192.0.2.11 +443 443\r\n", Port),
        ("port with minus", "PROXY TCP4 192.0.2.1 192.0.2.11 -1 443\r\n", Port),
        ("port, two blanks", "PROXY TCP4 192.0.2.1 192.0.2.11  443 443\r\n", Port),
        ("a blank at the end", "PROXY TCP4 192.0.2.1 192.0.2.11 56324 443 \r\n", Port),
        ("a fifth field", "PROXY TCP4 192.0.2.1 192.0.2.11 56324 443 1\r\n", Port),
        ("LF alone", "PROXY TCP4 192.0.2.1 192.0.2.11 56324 443\n", Port),
        ("CR alone", "PROXY TCP4 192.0.2.1 192.0.2.11 56324 443\rGET", LineEnd),
        ("CR CR LF", "PROXY TCP4 192.0.2.1 192.0.2.11 56324 443\r\r\n", LineEnd),
        ("a zero byte", "PROXY TCP4 192.0.2.1\0 192.0.2.11 56324 443\r\n", Ipv4),
        ("tcp6 with tcp4's", "PROXY TCP6 192.0.2.1 192.0.2.11 56324 443\r\n", Ipv6),
        ("tcp6 with a zone", "PROXY TCP6 fe80::1%eth0 2001:db8::b 56324 443\r\n", Ipv6),
        ("tcp6 in brackets", "PROXY TCP6 [2001:db8::1] 2001:db8::b 56324 443\r\n", Ipv6),
        ("tcp6, two double colons", "PROXY TCP6 2001::db8::1 2001:db8::b 56324 443\r\n", Ipv6),
        ("tcp6, nine groups", "PROXY TCP6 1:2:3:4:5:6:7:8:9 2001:db8::b 56324 443\r\n", Ipv6),
        ("tcp6, seven groups", "PROXY TCP6 1:2:3:4:5:6:7 2001:db8::b 56324 443\r\n", Ipv6),
        ("tcp6, five digits", "PROXY TCP6 12345::1 2001:db8::b 56324 443\r\n", Ipv6),
        ("tcp6, three colons", "PROXY TCP6 2001:::1 2001:db8::b 56324 443\r\n", Ipv6),
        ("tcp6, mixed with a leading zero",
            "PROXY TCP6 ::ffff:192.0.2.01 2001:db8::b 56324 443\r\n", Ipv6),
        ("tcp6, no address", "PROXY TCP6  2001:db8::b 56324 443\r\n", Ipv6),
    ]
};

pub(crate) const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// A binary header with this length, be that right or wrong.
pub(crate) fn binary(command: u8, family: u8, length: usize, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(length).expect("16 bits").to_be_bytes();
    [SIGNATURE, &[command, family][..], &length, rest].concat()
}

pub(crate) fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).expect("16 bits").to_be_bytes();
    [&[kind][..], &length, value].concat()
}

/// With a checksum over everything, put into the four bytes at `at`.
pub(crate) fn summed(mut header: Vec<u8>, at: usize) -> Vec<u8> {
    header[at..at + 4].fill(0);
    // As RFC 4960 has it: reflected, polynomial 0x1edc6f41, bit by bit.
    let mut crc = !0u32;
    for byte in &header {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    header[at..at + 4].copy_from_slice(&(!crc).to_be_bytes());
    header
}

pub(crate) const INET: &[u8] = &[192, 0, 2, 1, 192, 0, 2, 11, 0xdc, 4, 1, 187];

const INET6: &[u8; 36] = &[
    0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
    0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xb,
    0xdc, 4, 1, 187,
];

fn four() -> Result<Addresses, InvalidHeader> {
    ip("192.0.2.1:56324", "192.0.2.11:443")
}

fn six() -> Result<Addresses, InvalidHeader> {
    ip("[2001:db8::1]:56324", "[2001:db8::b]:443")
}

fn unix() -> [u8; 216] {
    let mut unix = [0; 216];
    unix[..5].copy_from_slice(b"/a\xff/b");
    unix[108..].fill(b'x');
    unix
}

/// The header of TCP over IPv4 with these TLVs.
fn with(tlvs: &[u8]) -> Vec<u8> {
    binary(0x21, 0x11, 12 + tlvs.len(), &[INET, tlvs].concat())
}

type Row = (&'static str, Vec<u8>, Result<Addresses, InvalidHeader>);

fn vectors<const N: usize>(rows: [Row; N]) -> Vec<Vector> {
    rows.map(|(name, bytes, verdict)| Vector { name, bytes, verdict }).into()
}

fn v2() -> Vec<Vector> {
    use InvalidHeader::*;
    let unix = unix();
    let unix_pair = || Ok(Addresses::Unix(Box::new(unix)));
    let crc = tlv(3, &[0; 4]);
    let mut signature = with(&[]);
    signature[11] = 0;
    vectors([
        ("inet", with(&[]), four()),
        ("inet, datagrams", binary(0x21, 0x12, 12, INET), four()),
        ("inet6", binary(0x21, 0x21, 36, INET6), six()),
        ("inet6, datagrams", binary(0x21, 0x22, 36, INET6), six()),
        ("unix", binary(0x21, 0x31, 216, &unix), unix_pair()),
        ("unix, datagrams", binary(0x21, 0x32, 216, &unix), unix_pair()),
        ("local", binary(0x20, 0, 0, &[]), OWN),
        ("local with addresses", binary(0x20, 0x11, 12, INET), OWN),
        ("local with half of its addresses", binary(0x20, 0x21, 12, INET), OWN),
        ("local of an unknown family", binary(0x20, 0xff, 3, &[0xff; 3]), OWN),
        ("local with a TLV that overruns",
            binary(0x20, 0x11, 15, &[INET, &[2, 0, 9]].concat()), OWN),
        ("local with a wrong checksum",
            binary(0x20, 0x11, 19, &[INET, &tlv(3, &[9; 4])].concat()), OWN),
        ("local, longest", binary(0x20, 0, 65_535, &[3; 65_535]), OWN),
        ("unspec", binary(0x21, 0, 0, &[]), OWN),
        ("unspec, addresses of no family", binary(0x21, 0, 12, INET), OWN),
        ("unspec, with TLVs", binary(0x21, 0, 14, &tlv(2, b"example.com")), OWN),
        ("unspec, with a checksum", summed(binary(0x21, 0, 7, &crc), 19), OWN),
        ("unspec, with a wrong checksum", binary(0x21, 0, 7, &crc), Err(Checksum)),
        ("unspec family, stream", binary(0x21, 1, 12, INET), OWN),
        ("inet, unspec protocol", binary(0x21, 0x10, 12, INET), OWN),
        ("inet6, unspec protocol", binary(0x21, 0x20, 36, INET6), OWN),
        ("unix, unspec protocol", binary(0x21, 0x30, 216, &unix), OWN),
        ("inet, unspec protocol, too short", binary(0x21, 0x10, 11, INET), Err(TooShort)),
        ("inet, unspec protocol, TLV that overruns",
            binary(0x21, 0x10, 15, &[INET, &[2, 0, 1]].concat()), Err(TlvOverrun)),
        ("another signature", signature, Err(NoHeader)),
        ("version 0", binary(0x01, 0x11, 12, INET), Err(Version)),
        ("version 1", binary(0x11, 0x11, 12, INET), Err(Version)),
        ("version 3", binary(0x31, 0x11, 12, INET), Err(Version)),
        ("command 2", binary(0x22, 0x11, 12, INET), Err(Command)),
        ("command 15", binary(0x2f, 0x11, 12, INET), Err(Command)),
        ("family 4", binary(0x21, 0x41, 12, INET), Err(Family)),
        ("family 15", binary(0x21, 0xf1, 12, INET), Err(Family)),
        ("protocol 3", binary(0x21, 0x13, 12, INET), Err(Protocol)),
        ("protocol 15", binary(0x21, 0x1f, 12, INET), Err(Protocol)),
        ("unspec family, protocol 3", binary(0x21, 3, 0, &[]), Err(Protocol)),
        ("inet, no addresses", binary(0x21, 0x11, 0, &[]), Err(TooShort)),
        ("inet, too short", binary(0x21, 0x11, 11, INET), Err(TooShort)),
        ("inet6, too short", binary(0x21, 0x21, 35, INET6), Err(TooShort)),
        ("unix, too short", binary(0x21, 0x31, 215, &unix), Err(TooShort)),
    ])
}

/// Of these, checksums among them, the TLVs decide.
fn v2_with_tlvs() -> Vec<Vector> {
    use InvalidHeader::*;
    let unix = unix();
    let unix_pair = || Ok(Addresses::Unix(Box::new(unix)));
    let crc = tlv(3, &[0; 4]);
    let behind = [tlv(2, b"example.com"), crc.clone(), tlv(5, &[7; 128])].concat();
    let mut wrong_sum = summed(with(&crc), 31);
    wrong_sum[31] ^= 1;
    let mut wrong_port = summed(with(&crc), 31);
    wrong_port[25] ^= 1;
    let mut swapped = summed(with(&crc), 31);
    swapped[31..].reverse();
    let most = 65_535 - 12;
    vectors([
        ("a TLV", with(&tlv(2, b"example.com")), four()),
        ("an empty TLV", with(&tlv(4, b"")), four()),
        ("padding", with(&tlv(4, &[0; 100])), four()),
        ("an unknown TLV", with(&tlv(0xee, b"x")), four()),
        ("the same TLV twice", with(&[tlv(2, b"a"), tlv(2, b"b")].concat()), four()),
        ("inet6 with a TLV",
            binary(0x21, 0x21, 36 + 4, &[&INET6[..], &tlv(2, b"x")].concat()), six()),
        ("unix with a TLV",
            binary(0x21, 0x31, 216 + 4, &[&unix[..], &tlv(2, b"x")].concat()), unix_pair()),
        ("one byte of a TLV", with(&[2]), Err(TlvOverrun)),
        ("two bytes of a TLV", with(&[2, 0]), Err(TlvOverrun)),
        ("a TLV that overruns by one", with(&[2, 0, 2, 1]), Err(TlvOverrun)),
        ("a TLV that overruns into the payload",
            [with(&[2, 0, 9, 1]), b"PAYLOAD!".to_vec()].concat(), Err(TlvOverrun)),
        ("a second TLV that overruns",
            with(&[tlv(2, b"a"), vec![2, 0xff, 0xff]].concat()), Err(TlvOverrun)),
        ("a TLV, longest", with(&tlv(0xe0, &vec![5; most - 3])), four()),
        ("as many TLVs as there can be", with(&vec![0; most / 3 * 3]), four()),
        ("a checksum", summed(with(&crc), 31), four()),
        ("a checksum between others", summed(with(&behind), 31 + 14), four()),
        ("a checksum, longest",
            summed(with(&[crc.clone(), tlv(0xe0, &vec![5; most - 10])].concat()), 31), four()),
        ("inet6 with a checksum",
            summed(binary(0x21, 0x21, 43, &[&INET6[..], &crc].concat()), 55), six()),
        ("a wrong checksum", wrong_sum, Err(Checksum)),
        ("a checksum of other bytes", wrong_port, Err(Checksum)),
        ("a checksum in reverse order", swapped, Err(Checksum)),
        ("a checksum of zeros", with(&crc), Err(Checksum)),
        ("a checksum of three bytes", with(&tlv(3, &[0; 3])), Err(ChecksumLength)),
        ("a checksum of five bytes", with(&tlv(3, &[0; 5])), Err(ChecksumLength)),
        ("an empty checksum", with(&tlv(3, &[])), Err(ChecksumLength)),
        ("two checksums", summed(with(&[crc.clone(), crc].concat()), 31), Err(TwoChecksums)),
        ("a unique id, longest", with(&tlv(5, &[1; 128])), four()),
        ("an empty unique id", with(&tlv(5, &[])), four()),
        ("a unique id too long", with(&tlv(5, &[1; 129])), Err(UniqueId)),
    ])
}

pub(crate) fn all() -> Vec<Vector> {
    let mut all = v1();
    all.extend(v2());
    all.extend(v2_with_tlvs());
    all
}
