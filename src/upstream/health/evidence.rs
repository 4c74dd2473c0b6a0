//! What the result of a check proves about the role of a server. Pure.

use super::Verdict;
use crate::plan::reason::CheckResult;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// Nothing: the check could not be made.
    Missing,
    /// It has the required role.
    Role,
    /// It has another role.
    OtherRole,
    /// What was found before still holds: it is busy, and its role cannot change meanwhile.
    Unchanged,
    /// It may have been restarted: what was found before does not count.
    MayHaveRestarted,
    /// The check did not show its role.
    Unknown,
}

impl Evidence {
    pub fn of(result: CheckResult) -> Self {
        match result {
            CheckResult::Local => Self::Missing,
            CheckResult::Ok | CheckResult::Lagging | CheckResult::NotReplicating => Self::Role,
            CheckResult::WrongRole | CheckResult::Standby => Self::OtherRole,
            CheckResult::Busy => Self::Unchanged,
            CheckResult::Refused
            | CheckResult::Reset
            | CheckResult::Closed
            | CheckResult::Loading => Self::MayHaveRestarted,
            CheckResult::Timeout
            | CheckResult::Unreachable
            | CheckResult::Protocol
            | CheckResult::Unexpected
            | CheckResult::Auth
            | CheckResult::RefusesWrites
            | CheckResult::MasterDown
            | CheckResult::Tls => Self::Unknown,
        }
    }

    /// Whether this is the verdict on a server that proves it and works.
    pub fn is_of(self, verdict: Verdict) -> bool {
        match self {
            Self::Role => verdict.is_up(),
            Self::OtherRole => verdict == Verdict::Standby,
            Self::Missing | Self::Unchanged | Self::MayHaveRestarted | Self::Unknown => false,
        }
    }
}
