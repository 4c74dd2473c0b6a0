//! Arbitrary text as the configuration of another program: an import never panics, and what it
//! makes is TOML.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tembuku::internals::import::{import_haproxy, import_nginx};

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    // As `nginx -T` prints it: no other files are read.
    let printed = format!("# configuration file f:\n{text}");
    for toml in [import_nginx(&printed), import_haproxy(text)]
        .into_iter()
        .flatten()
    {
        let table = toml.parse::<toml::Table>();
        assert!(table.is_ok(), "{table:?}\n{toml}");
    }
});
