//! Arbitrary bytes as the answers of a MySQL or MariaDB server: a check never panics, and always
//! ends.

#![no_main]

#[macro_use]
mod check;

fuzz_check!(
    "mysql",
    [
        "user = \"monitor\"",
        "role = \"primary\"\nuser = \"monitor\"\npassword_env = \"PATH\"",
        "role = \"replica\"\nmax_lag = \"10s\"\nuser = \"monitor\"\npassword_env = \"PATH\"",
    ]
);
