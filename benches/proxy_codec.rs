//! What a PROXY protocol header costs: writing one, reading one that came whole, and one that came
//! a byte at a time.
//!
//! `tlvs` carries 1 KiB of them, of the kinds that load balancers send. A version 2 header is
//! written with a checksum, and so read with one. Byte by byte is the worst that a client can do:
//! the reader is asked again for each.

mod shared;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::{hint::black_box, time::Duration};
use tembuku::internals::proxy_protocol::{Addresses, Header, Parser, encode_v1, encode_v2};

const TLVS: usize = 1024;

fn addresses(source: &str, destination: &str) -> Addresses {
    Addresses::Ip {
        source: source.parse().expect("an address"),
        destination: destination.parse().expect("an address"),
    }
}

fn v4() -> Addresses {
    addresses("198.51.100.217:56324", "203.0.113.142:443")
}

fn v6() -> Addresses {
    addresses(
        "[2001:db8:85a3:8d3:1319:8a2e:370:7348]:56324",
        "[2001:db8::f00d:42]:443",
    )
}

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).expect("a short value");
    [&[kind][..], &length.to_be_bytes(), value].concat()
}

/// ALPN, authority, a unique id, a VPC endpoint, and what is left to 1 KiB as one of a sender's
/// own.
fn tlvs() -> Vec<u8> {
    let mut all = [
        tlv(0x01, b"h2"),
        tlv(0x02, b"cache.eu-west.example.org"),
        tlv(0x05, &[0x5a; 32]),
        tlv(0xea, b"\x01vpce-08d2bf15fac5001c9"),
    ]
    .concat();
    let left = TLVS - all.len() - 3;
    all.extend(tlv(0xe0, &vec![7; left]));
    assert_eq!(all.len(), TLVS);
    all
}

/// The headers that are read, each with what is written to get it.
fn headers() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("v1_ipv4", encode_v1(&v4())),
        ("v1_ipv6", encode_v1(&v6())),
        ("v2_ipv4", encode_v2(&v4(), &[])),
        ("v2_ipv6", encode_v2(&v6(), &[])),
        ("v2_ipv4_tlvs", encode_v2(&v4(), &tlvs())),
    ]
}

fn encode(c: &mut Criterion) {
    let mut group = c.benchmark_group("encode");
    let (v4, v6, tlvs) = (v4(), v6(), tlvs());
    group.bench_function("v1_ipv4", |b| b.iter(|| encode_v1(black_box(&v4))));
    group.bench_function("v1_ipv6", |b| b.iter(|| encode_v1(black_box(&v6))));
    group.bench_function("v2_ipv4", |b| b.iter(|| encode_v2(black_box(&v4), &[])));
    group.bench_function("v2_ipv6", |b| b.iter(|| encode_v2(black_box(&v6), &[])));
    group.bench_function("v2_ipv4_tlvs", |b| {
        b.iter(|| encode_v2(black_box(&v4), black_box(&tlvs)))
    });
}

fn whole(bytes: &[u8]) -> Header<'_> {
    let found = Parser::default().parse(bytes);
    found.expect("a right header").expect("a complete header")
}

/// The reader is given what has come so far, as a session does with everything that it has read.
fn byte_by_byte(bytes: &[u8]) -> usize {
    let mut parser = Parser::default();
    for come in 1..bytes.len() {
        let found = parser.parse(black_box(&bytes[..come]));
        assert!(found.expect("a right header").is_none());
    }
    let found = parser.parse(bytes).expect("a right header");
    found.expect("a complete header").taken
}

fn parse(c: &mut Criterion) {
    let mut group = c.benchmark_group("parse");
    for (name, bytes) in headers() {
        assert_eq!(whole(&bytes).taken, bytes.len());
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(name, |b| {
            b.iter(|| black_box(whole(black_box(&bytes))).taken)
        });
    }
    group.finish();
    let mut group = c.benchmark_group("parse_byte_by_byte");
    for (name, bytes) in headers() {
        assert_eq!(byte_by_byte(&bytes), bytes.len());
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(name, |b| b.iter(|| byte_by_byte(black_box(&bytes))));
    }
}

criterion_group! {
    name = benches;
    config = shared::criterion(Duration::from_millis(300), Duration::from_secs(1));
    targets = encode, parse
}
criterion_main!(benches);
