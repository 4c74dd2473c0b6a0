//! Sources against bytes instead of servers, for fuzz targets.

use super::{Found, SourceError, consul, etcd, format, kubernetes, merge, redis, srv};
use crate::plan::MOST_WEIGHT;

/// What each kind of source makes of these bytes as its answer.
///
/// # Panics
///
/// If one of them is neither backends nor an error that can be shown.
pub fn run(bytes: &[u8]) {
    if let Ok(text) = str::from_utf8(bytes) {
        check_addresses(check(format::parse_lines(text)));
        check_addresses(check(format::parse_toml(text)));
    }
    check_addresses(check(format::parse_json(bytes)));
    check_addresses(redis::replay(bytes).into_iter().flat_map(check));
    check(consul::replay(bytes));
    check(etcd::replay(bytes));
    check(kubernetes::replay(bytes));
    check(srv::replay(bytes));
}

fn check(answer: Result<Vec<Found>, SourceError>) -> Vec<Found> {
    match answer {
        Ok(backends) => {
            assert!(backends.iter().all(|found| found.weight <= MOST_WEIGHT));
            let count = backends.len();
            let set = merge::collect(backends.clone());
            assert!(set.len() <= count && set.is_empty() == backends.is_empty());
            backends
        }
        Err(error) => {
            let is_line = !error.message.contains(char::is_control);
            assert!(
                is_line && error.message.chars().count() <= 1_000,
                "{error:?}"
            );
            Vec::new()
        }
    }
}

/// Those that are checked where they are read; others are later.
fn check_addresses(backends: impl IntoIterator<Item = Found>) {
    for found in backends {
        assert_eq!(format::check_address(&found.address), Ok(()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_servers_say_is_a_short_line_in_errors() {
        let message = "\\u001b[2J".repeat(400);
        let range = r#"{"header":{"cluster_id":"7","revision":"4"}}"#;
        let list = r#"{"kind":"EndpointSliceList","metadata":{"resourceVersion":"1"},"items":[]}"#;
        for answer in [
            format!("{range}\n{{\"error\":{{\"message\":\"{message}\"}}}}"),
            format!("{range}\n{{\"result\":\"{message}\"}}"),
            format!("{list}\n{{\"type\":\"ADDED\",\"object\":\"{message}\"}}"),
            format!("[{{\"Node\":\"{message}\"}}]"),
            format!("-ERR {}\r\n", "\u{1b}[2J".repeat(400)),
        ] {
            run(answer.as_bytes());
        }
    }
}
