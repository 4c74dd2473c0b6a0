//! The configuration of tembuku, as a crate of its own: it is compiled beside the program, and a
//! quick build does not optimize it.

use tembuku_base::{plan, sys};

pub mod config;
