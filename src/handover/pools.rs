//! What is known about the backends of an upstream: what operators have set, what checks and
//! connects have found. Times are microseconds of the kernel's monotonic clock, which both
//! processes share.

pub use super::fields::{read_list as read, write_list as write};

use super::{
    fields::{Field, record},
    record::{Malformed, Record, Tag, Writer},
};
use std::time::Duration;

record! {
    #[derive(Debug, Clone, Default, PartialEq)]
    PoolRecord {
        upstream: String = 1,
        /// Whether there are checks: without them there is nothing to take over of verdicts.
        is_checked: bool = 2,
        /// Whether primaries stand in for replicas.
        in_fallback: bool = 6,
        speaks_first: bool = 7,
        backends: Vec<BackendRecord> = 3,
        endpoints: Vec<EndpointRecord> = 4,
        /// What operators have set for backends that have left. Since version 2.
        remembered: Vec<BackendRecord> = 8,
        /// How many of how many backends are up, while all are used.
        panic: Option<(u64, u64)> = 5,
    }
}

record! {
    /// A backend as configured.
    #[derive(Debug, Clone, Default, PartialEq)]
    BackendRecord {
        text: String = 1,
        /// What its name stands for.
        addresses: Vec<String> = 2,
        admin_state: String = 3,
        admin_since: Option<u64> = 4,
        admin_term: u32 = 5,
        /// With the time since which it holds.
        operator_weight: Option<(u32, u64)> = [6, 7],
        /// When it left, if it has. Since version 2.
        left: Option<u64> = 8,
    }
}

record! {
    /// One address of a backend.
    #[derive(Debug, Clone, Default, PartialEq)]
    EndpointRecord {
        backend: String = 1,
        address: String = 2,
        check: CheckedRecord = 3,
        judge: JudgeRecord = 4,
        fails: u32 = 5,
        first_failure: Option<u64> = 6,
        last_failure: Option<u64> = 7,
        last_trial: Option<u64> = 8,
        slow_start: Option<u64> = 9,
        average_seconds: f64 = 10,
        average_halves: Option<u64> = 11,
        /// In the rotation: the weight, the weight less failures, and the current weight. Since
        /// version 2.
        rotation: Option<(u32, u32, i64)> = 12,
    }
}

record! {
    /// What checks have found.
    #[derive(Debug, Clone, Default, PartialEq)]
    CheckedRecord {
        /// The state of the verdict, and the result that it has for a reason.
        own: (String, Option<String>) = [1, 2],
        effective: (String, Option<String>) = [3, 4],
        since: Option<u64> = 5,
        why: Option<String> = 6,
        checked_once: bool = 7,
        added_at: u64 = 8,
        last_conclusive: u64 = 9,
        is_stale: bool = 10,
        role_since: Option<u64> = 11,
        server: Option<String> = 13,
        /// The backend and the address that have superseded it.
        superseded_by: Option<(String, String)> = [14, 15],
        epoch: Option<EpochRecord> = 12 as EpochField,
        last: Option<LastCheckRecord> = 16,
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum EpochRecord {
    Timeline(u32),
    Replication { id: String, before: Option<String> },
}

record! {
    #[derive(Debug, Clone, Default, PartialEq)]
    LastCheckRecord {
        at: u64 = 1,
        took: Duration = 2,
        result: String = 3,
        transcript: String = 4,
        role: Option<String> = 5,
        server: Option<String> = 13,
        lag_bytes: Option<u64> = 6,
        lag_time: Option<Duration> = 7,
        fault: Option<String> = 8,
        epoch: Option<EpochRecord> = 12 as EpochField,
    }
}

record! {
    /// How far the results of the last checks are on the way to another verdict.
    #[derive(Debug, Clone, Default, PartialEq)]
    JudgeRecord {
        has_result: bool = 1,
        last_role: Option<String> = 2,
        /// Results in a row: good, failed, alive, poor.
        runs: [u32; 4] = 3,
        doubted_since: Option<u64> = 4,
    }
}

record! {
    /// One of the two.
    EpochFields {
        timeline: Option<u32> = 1,
        replication: Option<String> = 2,
        replication_before: Option<String> = 3,
    }
}

struct EpochField;

impl EpochField {
    fn write(epoch: &Option<EpochRecord>, tag: Tag, w: &mut Writer) {
        let fields = epoch.clone().map(|epoch| match epoch {
            EpochRecord::Timeline(number) => EpochFields {
                timeline: Some(number),
                replication: None,
                replication_before: None,
            },
            EpochRecord::Replication { id, before } => EpochFields {
                timeline: None,
                replication: Some(id),
                replication_before: before,
            },
        });
        fields.write_field(tag, w);
    }

    /// Of another kind than this program knows: `None`.
    fn read(tag: Tag, record: &Record<'_>) -> Result<Option<EpochRecord>, Malformed> {
        let fields = Option::<EpochFields>::read_field(tag, record)?;
        Ok(fields.and_then(|fields| match fields.timeline {
            Some(number) => Some(EpochRecord::Timeline(number)),
            None => Some(EpochRecord::Replication {
                id: fields.replication?,
                before: fields.replication_before,
            }),
        }))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::handover) fn full() -> PoolRecord {
        let epoch = EpochRecord::Replication {
            id: "abc".to_owned(),
            before: Some("def".to_owned()),
        };
        let check = CheckedRecord {
            own: ("up".to_owned(), None),
            effective: ("down".to_owned(), Some("refused".to_owned())),
            since: Some(1),
            why: Some("superseded".to_owned()),
            checked_once: true,
            added_at: 2,
            last_conclusive: 3,
            is_stale: true,
            role_since: Some(4),
            epoch: Some(epoch.clone()),
            server: Some("run id".to_owned()),
            superseded_by: Some(("b".to_owned(), "10.0.0.2:1".to_owned())),
            last: Some(LastCheckRecord {
                at: 5,
                took: Duration::from_micros(6),
                result: "ok".to_owned(),
                transcript: "+PONG".to_owned(),
                role: Some("primary".to_owned()),
                epoch: Some(EpochRecord::Timeline(7)),
                server: Some("run id".to_owned()),
                lag_bytes: Some(8),
                lag_time: Some(Duration::from_millis(9)),
                fault: Some("fault".to_owned()),
            }),
        };
        PoolRecord {
            upstream: "u".to_owned(),
            is_checked: true,
            backends: vec![BackendRecord {
                text: "db.example:1".to_owned(),
                addresses: vec!["10.0.0.1:1".to_owned(), "10.0.0.2:1".to_owned()],
                admin_state: "drain".to_owned(),
                admin_since: Some(10),
                admin_term: 11,
                operator_weight: Some((12, 13)),
                left: None,
            }],
            remembered: vec![BackendRecord {
                text: "10.0.0.9:1".to_owned(),
                admin_state: "maint".to_owned(),
                left: Some(21),
                ..BackendRecord::default()
            }],
            endpoints: vec![EndpointRecord {
                backend: "db.example:1".to_owned(),
                address: "10.0.0.1:1".to_owned(),
                check,
                judge: JudgeRecord {
                    has_result: true,
                    last_role: Some("ok".to_owned()),
                    runs: [1, 2, 3, 4],
                    doubted_since: Some(14),
                },
                fails: 15,
                first_failure: Some(16),
                last_failure: Some(17),
                last_trial: Some(18),
                slow_start: Some(19),
                average_seconds: 0.25,
                average_halves: Some(20),
                rotation: Some((3, 2, -1024)),
            }],
            panic: Some((1, 3)),
            in_fallback: true,
            speaks_first: true,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let empty = PoolRecord {
            backends: vec![BackendRecord::default()],
            endpoints: vec![EndpointRecord::default()],
            ..PoolRecord::default()
        };
        let pools = [full(), empty];
        assert_eq!(read(&write(&pools)).as_deref(), Ok(&pools[..]));
    }

    #[test]
    fn a_pool_that_is_cut_is_no_other_pool() {
        let bytes = write(&[full()]);
        for length in 1..bytes.len() {
            assert!(read::<PoolRecord>(&bytes[..length]).is_err(), "{length}");
        }
    }
}
