//! What TCP sessions and UDP flows share: the register of sessions, limits, what they leave behind.

pub mod registry;
pub mod service;
