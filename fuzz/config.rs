//! Arbitrary text as a configuration: it never panics, and what is accepted survives a dump.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tembuku::internals::config::{dump, parse};

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match parse(text, "fuzz.toml") {
        Ok(plan) => {
            let text = dump(&plan);
            let again = parse(&text, "dump.toml");
            assert_eq!(again.as_ref(), Ok(&plan), "{text}");
        }
        // Every message can be rendered.
        Err(problems) => drop(problems.to_string()),
    }
});
