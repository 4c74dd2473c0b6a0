//! What is known about the backends of an upstream: what operators have set, what checks and
//! connects have found. Times are microseconds of the kernel's monotonic clock, which both
//! processes share.

use super::record::{Malformed, Record, Tag, Writer};
use std::time::Duration;

#[derive(Debug, Clone, Default, PartialEq)]
pub struct PoolRecord {
    pub upstream: String,
    /// Whether there are checks: without them there is nothing to take over of verdicts.
    pub is_checked: bool,
    pub backends: Vec<BackendRecord>,
    pub endpoints: Vec<EndpointRecord>,
    /// What operators have set for backends that have left.
    pub remembered: Vec<BackendRecord>,
    /// How many of how many backends are up, while all are used.
    pub panic: Option<(u64, u64)>,
    /// Whether primaries stand in for replicas.
    pub in_fallback: bool,
    pub speaks_first: bool,
}

/// A backend as configured.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BackendRecord {
    pub text: String,
    /// What its name stands for.
    pub addresses: Vec<String>,
    pub admin_state: String,
    pub admin_since: Option<u64>,
    pub admin_term: u32,
    pub operator_weight: Option<(u32, u64)>,
    /// When it left, if it has.
    pub left: Option<u64>,
}

/// One address of a backend.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EndpointRecord {
    pub backend: String,
    pub address: String,
    pub check: CheckedRecord,
    pub judge: JudgeRecord,
    pub fails: u32,
    pub first_failure: Option<u64>,
    pub last_failure: Option<u64>,
    pub last_trial: Option<u64>,
    pub slow_start: Option<u64>,
    pub average_seconds: f64,
    pub average_halves: Option<u64>,
    /// In the rotation: the weight, the weight less failures, and the current weight.
    pub rotation: Option<(u32, u32, i64)>,
}

/// What checks have found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CheckedRecord {
    /// The state of the verdict, and the result that it has for a reason.
    pub own: (String, Option<String>),
    pub effective: (String, Option<String>),
    pub since: Option<u64>,
    pub why: Option<String>,
    pub checked_once: bool,
    pub added_at: u64,
    pub last_conclusive: u64,
    pub is_stale: bool,
    pub role_since: Option<u64>,
    pub epoch: Option<EpochRecord>,
    pub server: Option<String>,
    /// The backend and the address that have superseded it.
    pub superseded_by: Option<(String, String)>,
    pub last: Option<LastCheckRecord>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum EpochRecord {
    Timeline(u32),
    Replication { id: String, before: Option<String> },
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct LastCheckRecord {
    pub at: u64,
    pub took: Duration,
    pub result: String,
    pub transcript: String,
    pub role: Option<String>,
    pub epoch: Option<EpochRecord>,
    pub server: Option<String>,
    pub lag_bytes: Option<u64>,
    pub lag_time: Option<Duration>,
    pub fault: Option<String>,
}

/// How far the results of the last checks are on the way to another verdict.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct JudgeRecord {
    pub has_result: bool,
    pub last_role: Option<String>,
    /// Results in a row: good, failed, alive, poor.
    pub runs: [u32; 4],
    pub doubted_since: Option<u64>,
}

const POOL: Tag = Tag::new(1);

/// Within [`POOL`].
const UPSTREAM: Tag = Tag::new(1);
const IS_CHECKED: Tag = Tag::new(2);
const BACKEND: Tag = Tag::new(3);
const ENDPOINT: Tag = Tag::new(4);
const PANIC: Tag = Tag::new(5);
const IN_FALLBACK: Tag = Tag::new(6);
const SPEAKS_FIRST: Tag = Tag::new(7);
/// Since version 2.
const REMEMBERED: Tag = Tag::new(8);
const OF_POOL: &[Tag] = &[
    UPSTREAM,
    IS_CHECKED,
    BACKEND,
    ENDPOINT,
    PANIC,
    IN_FALLBACK,
    SPEAKS_FIRST,
    REMEMBERED,
];

/// Within [`BACKEND`].
const TEXT: Tag = Tag::new(1);
const ADDRESS: Tag = Tag::new(2);
const ADMIN_STATE: Tag = Tag::new(3);
const ADMIN_SINCE: Tag = Tag::new(4);
const ADMIN_TERM: Tag = Tag::new(5);
const WEIGHT: Tag = Tag::new(6);
const WEIGHT_SINCE: Tag = Tag::new(7);
/// Since version 2.
const LEFT: Tag = Tag::new(8);
const OF_BACKEND: &[Tag] = &[
    TEXT,
    ADDRESS,
    ADMIN_STATE,
    ADMIN_SINCE,
    ADMIN_TERM,
    WEIGHT,
    WEIGHT_SINCE,
    LEFT,
];

/// Within [`ENDPOINT`], beside [`TEXT`] and [`ADDRESS`].
const CHECK: Tag = Tag::new(3);
const JUDGE: Tag = Tag::new(4);
const FAILS: Tag = Tag::new(5);
const FIRST_FAILURE: Tag = Tag::new(6);
const LAST_FAILURE: Tag = Tag::new(7);
const LAST_TRIAL: Tag = Tag::new(8);
const SLOW_START: Tag = Tag::new(9);
const AVERAGE: Tag = Tag::new(10);
const AVERAGE_HALVES: Tag = Tag::new(11);
/// Since version 2: weight, effective weight, current weight.
const ROTATION: Tag = Tag::new(12);
const OF_ENDPOINT: &[Tag] = &[
    TEXT,
    ADDRESS,
    CHECK,
    JUDGE,
    FAILS,
    FIRST_FAILURE,
    LAST_FAILURE,
    LAST_TRIAL,
    SLOW_START,
    AVERAGE,
    AVERAGE_HALVES,
    ROTATION,
];

/// Within [`CHECK`].
const OWN: Tag = Tag::new(1);
const OWN_RESULT: Tag = Tag::new(2);
const EFFECTIVE: Tag = Tag::new(3);
const EFFECTIVE_RESULT: Tag = Tag::new(4);
const SINCE: Tag = Tag::new(5);
const WHY: Tag = Tag::new(6);
const CHECKED_ONCE: Tag = Tag::new(7);
const ADDED_AT: Tag = Tag::new(8);
const LAST_CONCLUSIVE: Tag = Tag::new(9);
const IS_STALE: Tag = Tag::new(10);
const ROLE_SINCE: Tag = Tag::new(11);
const EPOCH: Tag = Tag::new(12);
const SERVER: Tag = Tag::new(13);
const SUPERSEDED_BY: Tag = Tag::new(14);
const SUPERSEDED_BY_ADDRESS: Tag = Tag::new(15);
const LAST: Tag = Tag::new(16);
const OF_CHECK: &[Tag] = &[
    OWN,
    OWN_RESULT,
    EFFECTIVE,
    EFFECTIVE_RESULT,
    SINCE,
    WHY,
    CHECKED_ONCE,
    ADDED_AT,
    LAST_CONCLUSIVE,
    IS_STALE,
    ROLE_SINCE,
    EPOCH,
    SERVER,
    SUPERSEDED_BY,
    SUPERSEDED_BY_ADDRESS,
    LAST,
];

/// Within [`EPOCH`]: one of the two.
const TIMELINE: Tag = Tag::new(1);
const REPLICATION: Tag = Tag::new(2);
const REPLICATION_BEFORE: Tag = Tag::new(3);
const OF_EPOCH: &[Tag] = &[TIMELINE, REPLICATION, REPLICATION_BEFORE];

/// Within [`LAST`], beside [`EPOCH`] and [`SERVER`].
const AT: Tag = Tag::new(1);
const TOOK: Tag = Tag::new(2);
const RESULT: Tag = Tag::new(3);
const TRANSCRIPT: Tag = Tag::new(4);
const ROLE: Tag = Tag::new(5);
const LAG_BYTES: Tag = Tag::new(6);
const LAG_TIME: Tag = Tag::new(7);
const FAULT: Tag = Tag::new(8);
const OF_LAST: &[Tag] = &[
    AT, TOOK, RESULT, TRANSCRIPT, ROLE, LAG_BYTES, LAG_TIME, FAULT, EPOCH, SERVER,
];

/// Within [`JUDGE`].
const HAS_RESULT: Tag = Tag::new(1);
const LAST_ROLE: Tag = Tag::new(2);
const RUNS: Tag = Tag::new(3);
const DOUBTED_SINCE: Tag = Tag::new(4);
const OF_JUDGE: &[Tag] = &[HAS_RESULT, LAST_ROLE, RUNS, DOUBTED_SINCE];

pub fn write(pools: &[PoolRecord]) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.list(POOL, pools, |pool, writer| {
        writer
            .text(UPSTREAM, &pool.upstream)
            .flag(IS_CHECKED, pool.is_checked)
            .flag(IN_FALLBACK, pool.in_fallback)
            .flag(SPEAKS_FIRST, pool.speaks_first)
            .list(BACKEND, &pool.backends, BackendRecord::write)
            .list(ENDPOINT, &pool.endpoints, EndpointRecord::write)
            .list(REMEMBERED, &pool.remembered, BackendRecord::write);
        if let Some((up, total)) = pool.panic {
            writer.numbers(PANIC, [up, total]);
        }
    });
    writer.into_bytes()
}

pub fn read(bytes: &[u8]) -> Result<Vec<PoolRecord>, Malformed> {
    let record = Record::parse(bytes, &[POOL])?;
    record.list(POOL, OF_POOL, |pool| {
        let panic = match *pool.numbers(PANIC)? {
            [] => None,
            [up, total] => Some((up, total)),
            _ => return Err(Malformed::Length(PANIC)),
        };
        Ok(PoolRecord {
            upstream: pool.text(UPSTREAM)?.to_owned(),
            is_checked: pool.flag(IS_CHECKED)?,
            backends: pool.list(BACKEND, OF_BACKEND, BackendRecord::read)?,
            endpoints: pool.list(ENDPOINT, OF_ENDPOINT, EndpointRecord::read)?,
            remembered: pool.list(REMEMBERED, OF_BACKEND, BackendRecord::read)?,
            panic,
            in_fallback: pool.flag(IN_FALLBACK)?,
            speaks_first: pool.flag(SPEAKS_FIRST)?,
        })
    })
}

fn owned(text: Option<&str>) -> Option<String> {
    text.map(str::to_owned)
}

impl BackendRecord {
    fn write(&self, writer: &mut Writer) {
        writer.text(TEXT, &self.text);
        for address in &self.addresses {
            writer.text(ADDRESS, address);
        }
        writer
            .text(ADMIN_STATE, &self.admin_state)
            .optional_u64(ADMIN_SINCE, self.admin_since)
            .u64(ADMIN_TERM, self.admin_term.into());
        if let Some((weight, since)) = self.operator_weight {
            writer.u64(WEIGHT, weight.into()).u64(WEIGHT_SINCE, since);
        }
        writer.optional_u64(LEFT, self.left);
    }

    fn read(record: &Record<'_>) -> Result<Self, Malformed> {
        let addresses = record.texts(ADDRESS)?.into_iter().map(str::to_owned);
        let weight = record.optional_number(WEIGHT)?;
        let weight = weight.map(|weight| Ok((weight, record.u64(WEIGHT_SINCE)?)));
        Ok(Self {
            text: record.text(TEXT)?.to_owned(),
            addresses: addresses.collect(),
            admin_state: record.text(ADMIN_STATE)?.to_owned(),
            admin_since: record.optional_u64(ADMIN_SINCE)?,
            admin_term: record.number(ADMIN_TERM)?,
            operator_weight: weight.transpose()?,
            left: record.optional_u64(LEFT)?,
        })
    }
}

impl EndpointRecord {
    fn write(&self, writer: &mut Writer) {
        writer
            .text(TEXT, &self.backend)
            .text(ADDRESS, &self.address)
            .record(CHECK, |writer| self.check.write(writer))
            .record(JUDGE, |writer| self.judge.write(writer))
            .u64(FAILS, self.fails.into())
            .optional_u64(FIRST_FAILURE, self.first_failure)
            .optional_u64(LAST_FAILURE, self.last_failure)
            .optional_u64(LAST_TRIAL, self.last_trial)
            .optional_u64(SLOW_START, self.slow_start)
            .f64(AVERAGE, self.average_seconds)
            .optional_u64(AVERAGE_HALVES, self.average_halves);
        if let Some((weight, effective, current)) = self.rotation {
            let current = u64::from_ne_bytes(current.to_ne_bytes());
            writer.numbers(ROTATION, [weight.into(), effective.into(), current]);
        }
    }

    fn read(record: &Record<'_>) -> Result<Self, Malformed> {
        let small = |n: u64| u32::try_from(n).map_err(|_| Malformed::Value(ROTATION));
        let rotation = match *record.numbers(ROTATION)? {
            [] => None,
            [weight, effective, current] => Some((
                small(weight)?,
                small(effective)?,
                i64::from_ne_bytes(current.to_ne_bytes()),
            )),
            _ => return Err(Malformed::Length(ROTATION)),
        };
        Ok(Self {
            backend: record.text(TEXT)?.to_owned(),
            address: record.text(ADDRESS)?.to_owned(),
            check: CheckedRecord::read(&record.record(CHECK, OF_CHECK)?)?,
            judge: JudgeRecord::read(&record.record(JUDGE, OF_JUDGE)?)?,
            fails: record.number(FAILS)?,
            first_failure: record.optional_u64(FIRST_FAILURE)?,
            last_failure: record.optional_u64(LAST_FAILURE)?,
            last_trial: record.optional_u64(LAST_TRIAL)?,
            slow_start: record.optional_u64(SLOW_START)?,
            average_seconds: record.f64(AVERAGE)?,
            average_halves: record.optional_u64(AVERAGE_HALVES)?,
            rotation,
        })
    }
}

impl CheckedRecord {
    fn write(&self, writer: &mut Writer) {
        writer
            .text(OWN, &self.own.0)
            .optional_text(OWN_RESULT, self.own.1.as_deref())
            .text(EFFECTIVE, &self.effective.0)
            .optional_text(EFFECTIVE_RESULT, self.effective.1.as_deref())
            .optional_u64(SINCE, self.since)
            .optional_text(WHY, self.why.as_deref())
            .flag(CHECKED_ONCE, self.checked_once)
            .u64(ADDED_AT, self.added_at)
            .u64(LAST_CONCLUSIVE, self.last_conclusive)
            .flag(IS_STALE, self.is_stale)
            .optional_u64(ROLE_SINCE, self.role_since)
            .optional_text(SERVER, self.server.as_deref());
        if let Some((backend, address)) = &self.superseded_by {
            writer
                .text(SUPERSEDED_BY, backend)
                .text(SUPERSEDED_BY_ADDRESS, address);
        }
        EpochRecord::write(self.epoch.as_ref(), writer);
        if let Some(last) = &self.last {
            writer.record(LAST, |writer| last.write(writer));
        }
    }

    fn read(record: &Record<'_>) -> Result<Self, Malformed> {
        let verdict = |state, result| {
            let state = record.text(state)?.to_owned();
            Ok((state, owned(record.optional_text(result)?)))
        };
        let superseded_by = record.optional_text(SUPERSEDED_BY)?.map(|backend| {
            let address = record.text(SUPERSEDED_BY_ADDRESS)?;
            Ok((backend.to_owned(), address.to_owned()))
        });
        let last = record.optional_record(LAST, OF_LAST)?;
        Ok(Self {
            own: verdict(OWN, OWN_RESULT)?,
            effective: verdict(EFFECTIVE, EFFECTIVE_RESULT)?,
            since: record.optional_u64(SINCE)?,
            why: owned(record.optional_text(WHY)?),
            checked_once: record.flag(CHECKED_ONCE)?,
            added_at: record.u64(ADDED_AT)?,
            last_conclusive: record.u64(LAST_CONCLUSIVE)?,
            is_stale: record.flag(IS_STALE)?,
            role_since: record.optional_u64(ROLE_SINCE)?,
            epoch: EpochRecord::read(record)?,
            server: owned(record.optional_text(SERVER)?),
            superseded_by: superseded_by.transpose()?,
            last: last.map(|last| LastCheckRecord::read(&last)).transpose()?,
        })
    }
}

impl EpochRecord {
    fn write(epoch: Option<&Self>, writer: &mut Writer) {
        let Some(epoch) = epoch else { return };
        writer.record(EPOCH, |writer| match epoch {
            Self::Timeline(number) => {
                writer.u64(TIMELINE, (*number).into());
            }
            Self::Replication { id, before } => {
                writer.text(REPLICATION, id);
                writer.optional_text(REPLICATION_BEFORE, before.as_deref());
            }
        });
    }

    /// Of another kind than this program knows: `None`.
    fn read(record: &Record<'_>) -> Result<Option<Self>, Malformed> {
        let Some(epoch) = record.optional_record(EPOCH, OF_EPOCH)? else {
            return Ok(None);
        };
        if let Some(number) = epoch.optional_number(TIMELINE)? {
            return Ok(Some(Self::Timeline(number)));
        }
        let before = owned(epoch.optional_text(REPLICATION_BEFORE)?);
        let id = owned(epoch.optional_text(REPLICATION)?);
        Ok(id.map(|id| Self::Replication { id, before }))
    }
}

impl LastCheckRecord {
    fn write(&self, writer: &mut Writer) {
        writer
            .u64(AT, self.at)
            .duration(TOOK, self.took)
            .text(RESULT, &self.result)
            .text(TRANSCRIPT, &self.transcript)
            .optional_text(ROLE, self.role.as_deref())
            .optional_text(SERVER, self.server.as_deref())
            .optional_u64(LAG_BYTES, self.lag_bytes)
            .optional_duration(LAG_TIME, self.lag_time)
            .optional_text(FAULT, self.fault.as_deref());
        EpochRecord::write(self.epoch.as_ref(), writer);
    }

    fn read(record: &Record<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            at: record.u64(AT)?,
            took: record.duration(TOOK)?,
            result: record.text(RESULT)?.to_owned(),
            transcript: record.text(TRANSCRIPT)?.to_owned(),
            role: owned(record.optional_text(ROLE)?),
            epoch: EpochRecord::read(record)?,
            server: owned(record.optional_text(SERVER)?),
            lag_bytes: record.optional_u64(LAG_BYTES)?,
            lag_time: record.optional_duration(LAG_TIME)?,
            fault: owned(record.optional_text(FAULT)?),
        })
    }
}

impl JudgeRecord {
    fn write(&self, writer: &mut Writer) {
        writer
            .flag(HAS_RESULT, self.has_result)
            .optional_text(LAST_ROLE, self.last_role.as_deref())
            .numbers(RUNS, self.runs.map(u64::from))
            .optional_u64(DOUBTED_SINCE, self.doubted_since);
    }

    fn read(record: &Record<'_>) -> Result<Self, Malformed> {
        let runs = record.numbers(RUNS)?;
        let runs: [u64; 4] = runs.try_into().map_err(|_| Malformed::Length(RUNS))?;
        Ok(Self {
            has_result: record.flag(HAS_RESULT)?,
            last_role: owned(record.optional_text(LAST_ROLE)?),
            runs: runs.map(|run| u32::try_from(run).unwrap_or(u32::MAX)),
            doubted_since: record.optional_u64(DOUBTED_SINCE)?,
        })
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
            assert!(read(&bytes[..length]).is_err(), "{length}");
        }
    }
}
