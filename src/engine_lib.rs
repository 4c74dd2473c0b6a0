//! All of tembuku that runs, as a crate of its own: the command line is compiled beside it, and a
//! quick build does not optimize that.

use tembuku_base::{handover, plan, proxy_protocol, sys};
use tembuku_config::config;

pub mod admin;
pub mod control;
pub mod discover;
pub mod probe;
pub mod proxy;
pub mod runtime;
pub mod session;
pub mod telemetry;
pub mod upstream;
