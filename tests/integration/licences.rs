//! Every dependency's licence is one that this project may be distributed with, and none is built
//! in two versions without a reason.
//!
//! The other half of such an audit, known vulnerabilities, needs the RustSec database from the
//! network (`cargo audit` or `cargo deny check advisories`), and so is not part of a test that
//! must pass offline.

use crate::harness::{proc::run_ok, secs};
use serde_json::Value;
use std::{collections::BTreeSet, process::Command};

const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "NCSA",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Whether an SPDX expression leaves a choice of which every part is allowed. `/` is the old way of
/// writing OR.
fn allowed(expression: &str) -> bool {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = tokens.as_slice();
    any(&mut rest) == Some(true) && rest.is_empty()
}

fn any(rest: &mut &[&str]) -> Option<bool> {
    let mut result = all(rest)?;
    while let Some((&"OR", after)) = rest.split_first() {
        *rest = after;
        result |= all(rest)?;
    }
    Some(result)
}

fn all(rest: &mut &[&str]) -> Option<bool> {
    let mut result = one(rest)?;
    while let Some((&"AND", after)) = rest.split_first() {
        *rest = after;
        result &= one(rest)?;
    }
    Some(result)
}

fn one(rest: &mut &[&str]) -> Option<bool> {
    let (&token, after) = rest.split_first()?;
    *rest = after;
    match token {
        "(" => {
            let result = any(rest)?;
            let (&close, after) = rest.split_first()?;
            *rest = after;
            (close == ")").then_some(result)
        }
        ")" | "AND" | "OR" | "WITH" => None,
        licence => match rest {
            ["WITH", exception, after @ ..] => {
                let whole = format!("{licence} WITH {exception}");
                *rest = after;
                Some(ALLOWED.contains(&whole.as_str()))
            }
            _ => Some(ALLOWED.contains(&licence)),
        },
    }
}

/// Crates of which two versions are built, with what asks for the older one.
const TWICE: &[(&str, &str)] = &[("getrandom", "ahash 0.8 and ring 0.17")];

#[test]
fn expressions_are_understood() {
    for good in [
        "MIT",
        "MIT OR Apache-2.0",
        "MIT/Apache-2.0",
        "GPL-3.0-only OR MIT",
        "(MIT OR Apache-2.0) AND Unicode-3.0",
        "Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT",
        "Unlicense OR (GPL-2.0-only AND MIT)",
    ] {
        assert!(allowed(good), "{good}");
    }
    for bad in [
        "",
        "GPL-3.0-only",
        "MIT AND GPL-3.0-only",
        "GPL-2.0-only WITH Classpath-exception-2.0",
        "(MIT OR GPL-3.0-only) AND LGPL-3.0-only",
        "MIT OR",
        "(MIT",
        "MIT Apache-2.0",
    ] {
        assert!(!allowed(bad), "{bad}");
    }
}

#[test]
fn every_dependency_may_be_distributed() {
    let mut command = Command::new(env!("CARGO"));
    command.args([
        "metadata",
        "--format-version",
        "1",
        "--locked",
        "--offline",
        "--all-features",
    ]);
    command
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    let metadata: Value = serde_json::from_str(&run_ok(secs(60), command)).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 30, "{} packages only", packages.len());
    let refused: Vec<String> = packages
        .iter()
        .filter(|package| !package["license"].as_str().is_some_and(allowed))
        .map(|package| {
            format!(
                "{} {}: {}",
                package["name"], package["version"], package["license"]
            )
        })
        .collect();
    assert!(refused.is_empty(), "not allowed:\n{}", refused.join("\n"));
}

#[test]
fn no_dependency_is_built_in_two_versions_without_a_reason() {
    let mut command = Command::new(env!("CARGO"));
    command
        .args(["tree", "--duplicates", "--edges", "normal", "--depth", "0"])
        .args(["--prefix", "none", "--format", "{p}", "--locked"])
        .args(["--offline", "--target", "x86_64-unknown-linux-gnu"])
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    let tree = run_ok(secs(60), command);
    let crates = tree.lines().filter_map(|line| line.split(' ').next());
    let twice: BTreeSet<&str> = crates.filter(|name| !name.is_empty()).collect();
    let expected: BTreeSet<&str> = TWICE.iter().map(|(name, _)| *name).collect();
    assert_eq!(twice, expected, "{tree}");
}
