//! The fields of INFO that a check needs. Pure.

use crate::{plan::Version, upstream::health::Epoch};
use std::time::Duration;

pub(super) const LINK_DOWN: &str = "its link to its primary is down";
pub(super) const SYNCING: &str = "its sync with its primary has not finished";

/// The name of a data set has 40; nothing much longer is one.
const LONGEST_ID: usize = 64;

/// The value of a line `name:value`.
fn field<'a>(text: &'a [u8], name: &str) -> Option<&'a str> {
    let line = text.split(|b| matches!(b, b'\r' | b'\n')).find(|line| {
        line.strip_prefix(name.as_bytes())
            .is_some_and(|rest| rest.first() == Some(&b':'))
    })?;
    std::str::from_utf8(&line[name.len() + 1..]).ok()
}

/// Identifies the data set, and the one before a promotion.
pub(super) fn epoch(replication: &[u8]) -> Option<Epoch> {
    let id = |name| {
        let id = field(replication, name)?;
        let is_valid =
            !id.is_empty() && id.len() <= LONGEST_ID && id.bytes().all(|b| b.is_ascii_hexdigit());
        // Nothing but zeros stands for none.
        (is_valid && id.bytes().any(|b| b != b'0')).then(|| id.to_owned())
    };
    Some(Epoch::Replication {
        id: id("master_replid")?,
        before: id("master_replid2"),
    })
}

/// What keeps a replica from replicating, as far as INFO shows it.
pub(super) fn fault(replication: &[u8]) -> Option<&'static str> {
    let is_syncing = field(replication, "master_sync_in_progress") == Some("1");
    match field(replication, "master_link_status") {
        _ if is_syncing => Some(SYNCING),
        Some("up") | None => None,
        Some(_) => Some(LINK_DOWN),
    }
}

/// How long ago a replica last received anything from its primary; `None` while it is disconnected:
/// the value then counts from when it noticed, not from when the link broke.
pub(super) fn lag(replication: &[u8]) -> Option<Duration> {
    (field(replication, "master_link_status")? == "up").then_some(())?;
    let seconds = field(replication, "master_last_io_seconds_ago")?;
    Some(Duration::from_secs(seconds.parse().ok()?))
}

/// What a server draws by chance when it starts.
pub(super) fn run_id(server: &[u8]) -> Option<String> {
    let id = field(server, "run_id")?;
    let is_valid =
        !id.is_empty() && id.len() <= LONGEST_ID && id.bytes().all(|b| b.is_ascii_hexdigit());
    is_valid.then(|| id.to_owned())
}

pub(super) fn version(server: &[u8]) -> Option<Version> {
    let text = field(server, "redis_version")?;
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    Version::read(&text[..end.unwrap_or(text.len())])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fields_of_a_replica() {
        let up = b"# Replication\r\nrole:slave\r\nmaster_link_status:up\r\n\
            master_last_io_seconds_ago:4\r\n";
        assert_eq!(lag(up), Some(Duration::from_secs(4)));
        let down = b"master_link_status:down\r\nmaster_last_io_seconds_ago:-1\r\n\
            master_link_down_since_seconds:2\r\n";
        assert_eq!(lag(down), None);
        assert_eq!(lag(b"role:master\r\n"), None);
    }

    #[test]
    fn an_epoch_names_the_replication_of_the_data() {
        let zeros = "0".repeat(40);
        let text = format!("master_replid:8371b4fb\r\nmaster_replid2:{zeros}\r\n");
        let named = |id: &str, before: Option<&str>| Epoch::Replication {
            id: id.into(),
            before: before.map(str::to_owned),
        };
        assert_eq!(epoch(text.as_bytes()), Some(named("8371b4fb", None)));
        let text = b"master_replid:ab\r\nmaster_replid2:8371b4fb\r\n";
        assert_eq!(epoch(text), Some(named("ab", Some("8371b4fb"))));
        for text in [
            "",
            "master_replid:\r\n",
            "master_replid:xyzzy\r\n",
            &format!("master_replid:{zeros}\r\n"),
        ] {
            assert_eq!(epoch(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn run_ids() {
        let text = b"# Server\r\nredis_version:7.0.15\r\nrun_id:0fa3\r\n";
        assert_eq!(run_id(text).as_deref(), Some("0fa3"));
        for text in [&b""[..], b"run_id:\r\n", b"run_id:xyz\r\n"] {
            assert_eq!(run_id(text), None);
        }
    }

    #[test]
    fn versions() {
        for (text, expected) in [
            ("redis_version:7.0.15\r\n", Some([7, 0, 15])),
            ("# Server\nredis_version:7.2\n", Some([7, 2, 0])),
            ("redis_version:7.4.0-rc1\r\n", Some([7, 4, 0])),
            ("xredis_version:7.0.15\r\nredis_versions:7\r\n", None),
            ("redis_version:\r\n", None),
            ("redis_version:unstable\r\n", None),
            ("redis_version:99999999999.1\r\n", None),
        ] {
            assert_eq!(version(text.as_bytes()), expected.map(Version), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            bytes: Vec<u8>,
            name in "(master_replid|redis_version|master_link_status)",
        ) {
            let text = [name.as_bytes(), b":", &bytes].concat();
            for text in [&bytes, &text] {
                let _ = (epoch(text), lag(text), version(text), run_id(text), fault(text));
            }
        }
    }
}
