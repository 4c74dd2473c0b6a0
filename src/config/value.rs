//! Values of single keys, from text and back.

pub mod access;
pub(super) mod access_log;
pub(super) mod address;
pub(super) mod duration;
pub(super) mod hash_key;
pub(super) mod host;
pub(super) mod rate;
pub(super) mod size;
pub(super) mod unix_file;
pub mod url;
pub(super) mod zone;
