//! Arbitrary bytes as the answers of a Redis server: a check never panics, and always ends.

#![no_main]

#[macro_use]
mod check;

fuzz_check!(
    "redis",
    [
        "",
        "role = \"primary\"",
        "role = \"replica\"\nmax_lag = \"10s\"",
        "user = \"monitor\"\npassword_env = \"PATH\"\nrequire_writes = true",
    ]
);
