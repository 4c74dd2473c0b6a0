//! Text of a configuration: its syntax, and messages about it.

pub(super) mod excerpt;
pub(super) mod problem;
pub(crate) mod quote;
pub(super) mod report;
pub(crate) mod shorten;
pub(super) mod suggestions;
pub(super) mod syntax;
