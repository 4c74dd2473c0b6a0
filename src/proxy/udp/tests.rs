//! Flows go from the workers of one process to those of another. Both are in this one, as far as
//! workers are concerned: they share nothing but the channel between them.

mod handing_over;
mod process;
