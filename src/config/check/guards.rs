//! `stale_after`: what limits the harm of checks that have stopped.

use std::time::Duration;

use crate::{
    config::{section::Section, value::duration},
    plan::{CheckKind, Role},
};

/// The default of `stale_after` is so many times what a check may take, and not below...
const CHECKS: u32 = 3;
/// ... this.
const SHORTEST: Duration = Duration::from_secs(30);

/// `one` is what lies at most between the answers of one that is well. Nothing is useless where the
/// kind is unknown.
pub(crate) fn read_stale_after(
    section: &Section<'_>,
    kind: Option<&CheckKind>,
    one: Duration,
) -> Option<Duration> {
    if kind.is_some_and(|kind| kind.role() != Some(Role::Primary)) {
        section.useless(
            "stale_after",
            "unless the check asks for the primary",
            "add role = \"primary\", or leave it out: only a primary does harm by being used unseen",
        );
        return None;
    }
    let least = one.min(duration::LONGEST);
    let default = (one * CHECKS).max(SHORTEST).min(duration::LONGEST);
    let stale_after = section.duration("stale_after", default, |stale_after| {
        if !stale_after.is_zero() && stale_after < least {
            return Err(format!(
                "it must not be shorter than `interval` and `timeout` together, {}",
                duration::format(least)
            ));
        }
        Ok(())
    });
    Some(stale_after).filter(|stale_after| !stale_after.is_zero())
}
