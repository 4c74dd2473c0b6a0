//! `tembuku handover-formats`: asked by the process that this binary is to replace.

use super::{code, print};
use crate::handover::hello::Formats;
use serde_json::{Map, Value, json};
use std::process::ExitCode;

pub(super) fn run() -> ExitCode {
    let own = Formats::own();
    let formats = own
        .iter()
        .map(|(kind, versions)| (kind.to_owned(), json!(versions)));
    let formats: Map<String, Value> = formats.collect();
    let description = json!({
        "program": env!("CARGO_PKG_VERSION"),
        "formats": formats,
    });
    code(print(&format!("{description:#}\n")))
}
