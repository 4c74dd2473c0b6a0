//! `tembuku schema`: the JSON Schema of the configuration.

use super::{code, say};
use crate::config;
use std::process::ExitCode;

pub(super) fn run() -> ExitCode {
    code(say(&format!("{:#}\n", config::schema())))
}
