//! Arbitrary bytes as the answer of a source of backends: each kind makes backends of it, or an
//! error that can be shown.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tembuku::internals::discover::replay;

fuzz_target!(|bytes: &[u8]| replay(bytes));
