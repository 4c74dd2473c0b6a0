//! The lowest layers of tembuku, as a crate of their own: it is compiled beside the dependencies of
//! the others.

pub mod handover;
pub mod plan;
pub mod proxy_protocol;
#[expect(unsafe_code, reason = "unsafe is confined to it")]
pub mod sys;
