//! The PROXY protocol held against its specification, and against itself.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test may end by a panic"
)]

#[path = "proxy_vectors/table.rs"]
#[rustfmt::skip]
mod table;

use proptest::{collection::vec, prelude::*};
use std::net::{IpAddr, SocketAddr};
use table::{Vector, binary, summed, tlv};
use tembuku::internals::proxy_protocol::{
    Addresses, Header, InvalidHeader, Parser, encode_v1, encode_v2,
};

fn parse(bytes: &[u8]) -> Result<Option<Header<'_>>, InvalidHeader> {
    Parser::default().parse(bytes)
}

/// The verdict, however the bytes arrive.
#[track_caller]
fn judge(name: &str, bytes: &[u8], header: usize, verdict: &Result<Addresses, InvalidHeader>) {
    let same = |found: Result<Option<Header<'_>>, InvalidHeader>, how: &str| match (found, verdict)
    {
        (Ok(Some(found)), Ok(addresses)) => {
            assert_eq!(&found.addresses, addresses, "{name}, {how}");
            assert_eq!(found.taken, header, "{name}, {how}");
        }
        (Err(found), Err(refusal)) => assert_eq!(found, *refusal, "{name}, {how}"),
        (found, _) => panic!("{name}, {how}: {found:?} instead of {verdict:?}"),
    };
    same(parse(bytes), "whole");

    let mut byte_by_byte = Parser::default();
    let mut refused_at = None;
    for end in 0..=bytes.len() {
        let so_far = &bytes[..end];
        // A fresh parser for the first piece, which then gets the rest: every way of cutting in
        // two. The longest ones are cut where something could go wrong, and here and there.
        if bytes.len() < 2_000 || end < 300 || end + 300 > bytes.len() || end % 509 == 0 {
            let mut in_two = Parser::default();
            if let Ok(None) = in_two.parse(so_far) {
                same(in_two.parse(bytes), &format!("cut at {end}"));
            }
        }
        match byte_by_byte.parse(so_far) {
            Ok(None) => assert!(
                refused_at.is_none() && (verdict.is_err() || end < header),
                "{name}: nothing at {end}"
            ),
            found @ Ok(Some(_)) => {
                assert!(end >= header, "{name}: accepted at {end} already");
                same(found, &format!("the first {end}"));
                break;
            }
            found @ Err(_) => {
                same(found, &format!("the first {end}"));
                refused_at = Some(end);
                break;
            }
        }
    }
    // Whatever comes after it, a refusal stays one, for the same reason.
    if let Some(at) = refused_at {
        for end in (at..=bytes.len()).take(300) {
            same(parse(&bytes[..end]), &format!("refused at {at}, now {end}"));
        }
    }
}

#[test]
fn every_header_gets_its_verdict_in_whatever_pieces() {
    let vectors = table::all();
    println!("{} vectors", vectors.len());
    for Vector {
        name,
        bytes,
        verdict,
    } in &vectors
    {
        judge(name, bytes, bytes.len(), verdict);
        for payload in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"\r\n",
            b"\n",
            b"\x02\0\x01x",
            b"PROXY TCP4 9.9.9.9 9.9.9.9 9 9\r\n",
        ] {
            judge(name, &[bytes, payload].concat(), bytes.len(), verdict);
        }
    }
}

#[test]
fn what_is_wrong_is_known_early() {
    for (bytes, at) in [
        (&b"GET / HTTP/1.1\r\n"[..], 1),
        (b"PRAXIS", 3),
        (b"PROXY TCP5 ", 10),
        (b"PROXY TCP4 192.0.2.1 192.0.2.011 ", 31),
        (b"PROXY TCP4 example.com ", 12),
        (b"PROXY TCP6 fe80::1%eth0 ", 19),
        (b"PROXY TCP4 192.0.2.1 192.0.2.11 00 1\r\n", 34),
        (b"PROXY TCP4 192.0.2.1 192.0.2.11 1 1\n", 36),
        (b"\r\nGET / HTTP/1.1\r\n", 3),
        (b"\r\n\r\n\0\r\nQUIT\n\x11\x11", 13),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x51\0", 14),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0b\0\0", 16),
        (
            &[&binary(0x21, 0x11, 15, table::INET)[..], &[2, 0, 1]].concat(),
            31,
        ),
        (
            &[
                &binary(0x21, 0x11, 60_000, table::INET)[..],
                &[3, 0, 5, 0, 0],
            ]
            .concat(),
            31,
        ),
    ] {
        for end in 0..bytes.len() {
            let found = parse(&bytes[..end]);
            assert_eq!(
                found.is_err(),
                end >= at,
                "{:?}: {found:?}",
                String::from_utf8_lossy(&bytes[..end])
            );
        }
    }
    let unknown = [&b"PROXY UNKNOWN"[..], &[b'x'; 200]].concat();
    assert!(parse(&unknown[..105]).is_ok() && parse(&unknown[..106]).is_err());
}

fn address() -> impl Strategy<Value = SocketAddr> {
    let v4 = any::<u32>().prop_map(|n| IpAddr::V4(n.into()));
    let v6 = any::<u128>().prop_map(|n| IpAddr::V6(n.into()));
    let mapped = any::<u32>().prop_map(|n| IpAddr::V6((0xffff_0000_0000 | u128::from(n)).into()));
    (prop_oneof![v4, v6, mapped], any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
}

fn as_v6(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

/// What is read of a header for these two.
fn expected(source: SocketAddr, destination: SocketAddr) -> Addresses {
    if source.is_ipv4() == destination.is_ipv4() {
        return Addresses::Ip {
            source,
            destination,
        };
    }
    let (source, destination) = (as_v6(source), as_v6(destination));
    Addresses::Ip {
        source,
        destination,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read(
        source in address(),
        destination in address(),
        payload in vec(any::<u8>(), 0..50),
    ) {
        let addresses = Addresses::Ip { source, destination };
        for mut bytes in [encode_v1(&addresses), encode_v2(&addresses, &[])] {
            let length = bytes.len();
            for end in 0..length {
                prop_assert_eq!(parse(&bytes[..end]), Ok(None));
            }
            bytes.extend(&payload);
            let header = parse(&bytes).unwrap().unwrap();
            prop_assert_eq!(header.taken, length);
            prop_assert_eq!(header.addresses, expected(source, destination));
        }
    }

    #[test]
    fn tlvs_are_passed_on(
        kinds in vec((any::<u8>(), vec(any::<u8>(), 0..60)), 0..20),
        source in address(),
    ) {
        let all: Vec<u8> = kinds.iter().flat_map(|(kind, value)| tlv(*kind, value)).collect();
        let addresses = Addresses::Ip { source, destination: source };
        let bytes = encode_v2(&addresses, &all);
        let header = parse(&bytes).unwrap().unwrap();
        prop_assert_eq!(header.taken, bytes.len());
        // The checksum, our own, comes first.
        prop_assert_eq!(&header.tlvs[..3], &[3, 0, 4]);
        let kept = kinds.iter().filter(|(kind, _)| ![3, 4].contains(kind));
        let kept: Vec<u8> = kept.flat_map(|(kind, value)| tlv(*kind, value)).collect();
        prop_assert_eq!(&header.tlvs[7..], &kept[..]);
        // And the one that was there already is not passed on twice.
        prop_assert_eq!(encode_v2(&addresses, header.tlvs), bytes);
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(start in 0usize..6, bytes in vec(any::<u8>(), 0..600)) {
        let starts: [&[u8]; 6] = [
            b"",
            b"PROXY ",
            b"PROXY TCP4 1",
            b"\r\n\r\n\0\r\nQUIT\n",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x00\0",
        ];
        let bytes = [starts[start], &bytes].concat();
        let whole = parse(&bytes);
        let mut pieces = Parser::default();
        for end in 0..=bytes.len() {
            match pieces.parse(&bytes[..end]) {
                Ok(None) => {}
                found => {
                    prop_assert_eq!(found, whole.clone());
                    return Ok(());
                }
            }
        }
        prop_assert_eq!(whole, Ok(None));
    }

    #[test]
    fn a_mutilated_header_is_judged_the_same_in_pieces(
        which in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        with in any::<u8>(),
    ) {
        let mut bytes = which.get(&table::all()).bytes.clone();
        bytes.truncate(2_000);
        *at.get_mut(&mut bytes) = with;
        let mut pieces = Parser::default();
        let mut last = Ok(None);
        for end in 0..=bytes.len() {
            last = pieces.parse(&bytes[..end]);
            if last != Ok(None) { break; }
        }
        prop_assert_eq!(last, parse(&bytes));
    }
}

#[test]
fn other_ends_than_ip_addresses() {
    let unix = Addresses::Unix(Box::new([b'x'; 216]));
    for addresses in [Addresses::Own, unix] {
        let line = encode_v1(&addresses);
        assert_eq!(line, b"PROXY UNKNOWN\r\n");
        assert_eq!(parse(&line).unwrap().unwrap().addresses, Addresses::Own);
        let bytes = encode_v2(&addresses, &tlv(2, b"example.com"));
        let header = parse(&bytes).unwrap().unwrap();
        assert_eq!(header.addresses, addresses);
        assert!(bytes.ends_with(&tlv(2, b"example.com")));
    }
    // LOCAL: what every receiver must accept.
    assert_eq!(encode_v2(&Addresses::Own, &[])[12..16], [0x20, 0, 0, 7]);
}

#[test]
fn a_checksum_is_the_one_that_others_compute() {
    let addresses = parse(&binary(0x21, 0x11, 12, table::INET))
        .unwrap()
        .unwrap()
        .addresses;
    let ours = encode_v2(&addresses, &[]);
    assert_eq!(ours, summed(ours.clone(), 31));
}

/// No checksum fits beside 65,535 bytes: what does not fit is left out, one whole
/// TLV at a time.
#[test]
fn a_header_never_gets_too_long() {
    let addresses = Addresses::Ip {
        source: "192.0.2.1:1".parse().unwrap(),
        destination: "192.0.2.2:2".parse().unwrap(),
    };
    let most = 65_535 - 12;
    for free in 0..20 {
        let large = tlv(0xe0, &vec![1; most - free - 3 - 4]);
        let bytes = encode_v2(&addresses, &[large.clone(), tlv(0xe1, b"x")].concat());
        let header = parse(&bytes).unwrap().unwrap();
        assert!(header.taken == bytes.len() && bytes.len() <= 16 + 65_535);
        let kept = match free {
            7.. => [large, tlv(0xe1, b"x")].concat(),
            3..7 => large,
            _ => tlv(0xe1, b"x"),
        };
        assert_eq!(&header.tlvs[7..], kept, "{free}");
    }
}

/// For the fuzz target: `fuzz/run proxy_protocol` sets the variable.
#[test]
fn seeds() {
    let Some(folder) = std::env::var_os("TEMBUKU_SEEDS") else {
        return;
    };
    for (i, vector) in table::all().iter().enumerate() {
        std::fs::write(
            std::path::Path::new(&folder).join(format!("vector-{i}")),
            &vector.bytes,
        )
        .unwrap();
    }
}
