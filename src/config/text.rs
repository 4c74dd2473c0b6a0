//! Text of a configuration: its syntax, and messages about it.

pub(super) mod excerpt;
pub(super) mod problem;
pub mod quote;
pub(super) mod report;
pub mod shorten;
pub(super) mod suggestions;
pub(super) mod syntax;
