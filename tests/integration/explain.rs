//! `tembuku explain`: its answers are what a running process does, and nginx; and their format.

mod agreement;
mod answers;
mod usage;

use crate::harness::{proc::text, tembuku::cli, temp::TempDir};
use serde_json::Value;
use std::process::Output;

#[track_caller]
fn explain(config: &str, more: &[&str]) -> Output {
    let dir = TempDir::new();
    let file = dir.write("tembuku.toml", config);
    let mut args = vec!["explain", "-c", file.to_str().unwrap()];
    args.extend(more);
    cli(&args)
}

#[track_caller]
fn output(config: &str, more: &[&str]) -> String {
    let output = explain(config, more);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(output.stderr.is_empty(), "{}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn json(config: &str, more: &[&str]) -> Value {
    let text = output(config, &[more, &["--json"]].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}
