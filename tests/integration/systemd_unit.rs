//! The unit of packaging/systemd.

use crate::harness::{
    proc::{command, run_ok, text},
    secs,
    tembuku::copy_binary,
    temp::TempDir,
};
use std::fs;

const UNIT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/packaging/systemd/tembuku.service"
);
/// In tenths, from 0 (safe) to 100, as `systemd-analyze` computes it.
const MOST_EXPOSURE: u32 = 25;

/// With the program where it is now.
fn unit() -> (TempDir, String) {
    let dir = TempDir::new();
    let program = dir.file("tembuku");
    copy_binary(&program);
    let unit = fs::read_to_string(UNIT).unwrap();
    assert_eq!(unit.matches("/usr/bin/tembuku").count(), 2);
    let unit = unit.replace("/usr/bin/tembuku", program.to_str().unwrap());
    let path = dir.write("tembuku.service", &unit);
    let path = path.to_str().unwrap().to_owned();
    (dir, path)
}

#[test]
fn systemd_finds_no_mistake_in_the_unit() {
    let (_dir, unit) = unit();
    let verify = command(&format!("systemd-analyze verify --man=no {unit}"));
    let output = crate::harness::proc::run(secs(30), verify);
    let found = text(&output);
    assert!(output.status.success(), "{found}");
    // Of other units of this machine there may be complaints.
    assert!(!found.contains("tembuku.service:"), "{found}");
}

#[test]
fn the_unit_exposes_little() {
    let (_dir, unit) = unit();
    let line = "systemd-analyze security --offline=true --no-pager --threshold";
    run_ok(secs(30), command(&format!("{line}={MOST_EXPOSURE} {unit}")));
}
