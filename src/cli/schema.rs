//! `tembuku schema`: the JSON Schema of the configuration.

use super::{code, print};
use crate::config;
use std::process::ExitCode;

pub(super) fn run() -> ExitCode {
    code(print(&format!("{:#}\n", config::schema())))
}
