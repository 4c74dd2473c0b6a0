//! The reader of PROXY protocol headers against arbitrary bytes: started by `fuzz/run
//! proxy_protocol`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tembuku::internals::proxy_protocol::{
    Addresses, Header, InvalidHeader, Parser, Watch, encode_v1, encode_v2,
};

type Verdict<'a> = Result<Option<Header<'a>>, InvalidHeader>;

fuzz_target!(|bytes: &[u8]| {
    let whole = Parser::default().parse(bytes);
    pieces_give_the_same(bytes, &whole);
    nothing_else_is_taken_for_a_header(bytes, &whole);
    if let Ok(Some(header)) = &whole {
        assert!(header.taken <= bytes.len());
        assert!(header.tlvs.len() <= header.taken);
        // What follows has no influence.
        assert_eq!(Parser::default().parse(&bytes[..header.taken]), whole);
        what_is_written_is_read(header);
    }
});

fn pieces_give_the_same(bytes: &[u8], whole: &Verdict<'_>) {
    // Every cut of what is short, and some of what is long: different ones for different bytes.
    let step = bytes.len() / 64 + 1;
    let first = bytes.iter().map(|b| usize::from(*b)).sum::<usize>() % step;
    let mut growing = Parser::default();
    let mut verdict = Ok(None);
    for end in (first..bytes.len()).step_by(step).chain([bytes.len()]) {
        let mut in_two = Parser::default();
        match in_two.parse(&bytes[..end]) {
            Ok(None) => assert_eq!(in_two.parse(bytes), *whole, "cut at {end}"),
            // A result for a part is that of the whole.
            known => assert_eq!(known, *whole, "cut at {end}"),
        }
        if verdict == Ok(None) {
            verdict = growing.parse(&bytes[..end]);
        }
    }
    assert_eq!(verdict, *whole);
}

/// The lookout for headers sees at least what the reader takes for one.
fn nothing_else_is_taken_for_a_header(bytes: &[u8], whole: &Verdict<'_>) {
    let at_once = Watch::Begun.sees_header(bytes);
    let mut watch = Watch::Begun;
    let in_pieces = bytes
        .iter()
        .take(20)
        .any(|byte| watch.sees_header(&[*byte]));
    assert_eq!(at_once, in_pieces);
    assert!(at_once || !matches!(whole, Ok(Some(_))));
    assert!(!at_once || *whole != Err(InvalidHeader::NoHeader));
}

fn what_is_written_is_read(header: &Header<'_>) {
    let bytes = encode_v2(&header.addresses, header.tlvs);
    let again = Parser::default().parse(&bytes);
    let again = again.expect("right").expect("complete");
    assert_eq!(again.taken, bytes.len());
    assert_eq!(again.addresses, header.addresses);
    assert_eq!(
        encode_v2(&again.addresses, again.tlvs),
        if matches!(again.addresses, Addresses::Own) {
            encode_v2(&Addresses::Own, &[])
        } else {
            bytes.clone()
        }
    );

    let line = encode_v1(&header.addresses);
    let again = Parser::default().parse(&line);
    let again = again.expect("right").expect("complete");
    assert_eq!(again.taken, line.len());
    match &header.addresses {
        Addresses::Unix(_) => assert_eq!(again.addresses, Addresses::Own),
        given => assert_eq!(again.addresses, *given),
    }
}
