//! What is known of a backend's health, and when to ask again.

mod epoch;
mod guard;
mod pace;
mod passive;
mod schedule;
mod verdict;

pub use epoch::Epoch;
pub use guard::{Claim, Standing, Supersedes, count_servers, may_restart, standings};
pub use pace::Pace;
pub use passive::{FailRule, Passive};
pub use schedule::{FIRST_CHECK_SPREAD, Schedule};
pub use verdict::{Change, Judge, Rule, Verdict};
