//! Arbitrary bytes as the answers of a name server: a check never panics, and always ends.

#![no_main]

#[macro_use]
mod check;

fuzz_check!(
    "dns",
    [
        "",
        "query = \"example.org\"\nquery_type = \"A\"\nrcode = [\"NXDOMAIN\", \"REFUSED\"]",
    ]
);
