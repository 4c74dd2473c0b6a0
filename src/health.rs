//! What is known of a backend's health.

mod passive;

pub use passive::{FailRule, Passive};
