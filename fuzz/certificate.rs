//! Arbitrary bytes as a server's certificate.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tembuku::internals::probe::hash_certificate;

fuzz_target!(|bytes: &[u8]| {
    let hash = hash_certificate(bytes);
    assert!(hash.is_none_or(|hash| [32, 48, 64].contains(&hash.len())));
});
