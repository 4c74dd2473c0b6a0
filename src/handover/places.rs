//! How many sessions the old process has on each backend once it gives no more places.

use super::record::{Malformed, Record, Tag, Writer};

/// Of one upstream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlacesRecord {
    pub upstream: String,
    /// The last ticket that was drawn in its line before.
    pub last_ticket: u64,
    /// Whether sessions that wait are yet to follow.
    pub has_line: bool,
    /// Those that have sessions.
    pub backends: Vec<PlaceRecord>,
}

/// One address of a backend.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlaceRecord {
    pub text: String,
    pub address: String,
    pub sessions: u64,
}

const POOL: Tag = Tag::required(1);

/// Within [`POOL`].
const UPSTREAM: Tag = Tag::required(1);
const LAST_TICKET: Tag = Tag::required(2);
const HAS_LINE: Tag = Tag::required(3);
const BACKEND: Tag = Tag::required(4);
const OF_POOL: &[Tag] = &[UPSTREAM, LAST_TICKET, HAS_LINE, BACKEND];

/// Within [`BACKEND`].
const TEXT: Tag = Tag::required(1);
const ADDRESS: Tag = Tag::required(2);
const SESSIONS: Tag = Tag::required(3);
const OF_BACKEND: &[Tag] = &[TEXT, ADDRESS, SESSIONS];

pub fn write(pools: &[PlacesRecord]) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.list(POOL, pools, |pool, writer| {
        writer
            .text(UPSTREAM, &pool.upstream)
            .u64(LAST_TICKET, pool.last_ticket)
            .flag(HAS_LINE, pool.has_line)
            .list(BACKEND, &pool.backends, |backend, writer| {
                writer
                    .text(TEXT, &backend.text)
                    .text(ADDRESS, &backend.address)
                    .u64(SESSIONS, backend.sessions);
            });
    });
    writer.into_bytes()
}

pub fn read(bytes: &[u8]) -> Result<Vec<PlacesRecord>, Malformed> {
    let record = Record::parse(bytes, &[POOL])?;
    record.list(POOL, OF_POOL, |pool| {
        Ok(PlacesRecord {
            upstream: pool.text(UPSTREAM)?.to_owned(),
            last_ticket: pool.u64(LAST_TICKET)?,
            has_line: pool.flag(HAS_LINE)?,
            backends: pool.list(BACKEND, OF_BACKEND, |backend| {
                Ok(PlaceRecord {
                    text: backend.text(TEXT)?.to_owned(),
                    address: backend.text(ADDRESS)?.to_owned(),
                    sessions: backend.u64(SESSIONS)?,
                })
            })?,
        })
    })
}
