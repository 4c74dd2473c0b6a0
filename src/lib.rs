//! A layer-4 stream balancer.
//!
//! The rooms, from the outside in; ARCHITECTURE.md has the map and the way of a connection.

#[cfg(not(target_os = "linux"))]
compile_error!("tembuku needs Linux: it relies on splice, SO_REUSEPORT and epoll");

pub mod access;
pub mod access_log;
pub mod admin;
pub mod backend;
pub mod balance;
pub mod blocking;
pub mod cli;
pub mod config;
pub mod event_loop;
pub mod explain;
pub mod files;
pub mod following;
pub mod health;
pub mod journal;
pub mod lines;
pub mod logging;
pub mod metrics;
pub mod net;
pub mod plan;
pub mod pool;
pub mod probe;
pub mod proxy_protocol;
pub mod reason;
pub mod relay;
pub mod server;
pub mod service;
pub mod sessions;
pub mod shorten;
#[expect(unsafe_code, reason = "the one room for it")]
pub mod sys;
pub mod tcp;
pub mod throttle;
pub mod udp;
pub mod wheel;
