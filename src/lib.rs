pub mod plan;
pub mod config;
