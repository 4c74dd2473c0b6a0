//! What a backend is, and which one gets the next session.

pub mod backend;
pub mod balance;
pub mod explain;
pub mod health;
pub mod notifier;
pub mod pool;
