//! Metrics, the log and the access log.

pub mod access_log;
pub mod line_writer;
pub mod log;
pub mod metrics;
pub mod throttle;
