//! Raw system calls behind safe faces; every `unsafe` block of the project is below here.

pub mod blocking;
pub mod files;

pub mod datagram;
pub mod limits;
pub mod memory;
pub mod pipe;
pub mod route;
pub mod socket;
