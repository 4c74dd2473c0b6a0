//! The health of a backend, from failed connects and checks, and when to check next. Pure.

mod epoch;
mod evidence;
mod finding;
mod pace;
mod passive;
mod primary_election;
mod schedule;
mod verdict;

pub use crate::upstream::health::primary_election::{
    PrimaryClaim, Standing, Supersedes, count_servers, standings,
};
pub use epoch::Epoch;
pub use evidence::Evidence;
pub use finding::{Finding, Lag};
pub use pace::Pace;
pub use passive::{FailRule, FailureOf, Passive};
pub use schedule::{FIRST_CHECK_SPREAD, Schedule};
pub use verdict::{Judge, RiseFall, Runs, Verdict, VerdictChange, VerdictProgress};
