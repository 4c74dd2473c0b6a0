//! A layer-4 stream balancer.
//!
//! The rooms, from the outside in; ARCHITECTURE.md has the map and the way of a connection.

#[cfg(not(target_os = "linux"))]
compile_error!("tembuku needs Linux: it relies on splice, SO_REUSEPORT and epoll");

pub mod admin;
pub mod cli;
pub mod config;
pub mod control;
pub mod plan;
pub mod probe;
pub mod proxy;
pub mod proxy_protocol;
pub mod runtime;
pub mod session;
#[expect(unsafe_code, reason = "the only place for it")]
pub mod sys;
pub mod telemetry;
pub mod upstream;
