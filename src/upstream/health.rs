//! What is known of a backend's health, and when to ask again.

mod epoch;
mod evidence;
mod finding;
mod pace;
mod passive;
mod primary_election;
mod schedule;
mod verdict;

pub use crate::upstream::health::primary_election::{
    Claim, Standing, Supersedes, count_servers, standings,
};
pub use epoch::Epoch;
pub use evidence::Evidence;
pub use finding::{Finding, Lag};
pub use pace::Pace;
pub use passive::{FailRule, Passive};
pub use schedule::{FIRST_CHECK_SPREAD, Schedule};
pub use verdict::{Change, Judge, Rule, Verdict};
