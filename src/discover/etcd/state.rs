//! The keys below a prefix, as a range and the events since then give them. Pure.

use super::message::{KeyValue, Range, Watched};
use crate::discover::{Snapshot, SourceError, excerpt::excerpt, format};
use std::{collections::BTreeMap, fmt};

#[derive(Debug, PartialEq, Eq)]
pub(super) struct EtcdState {
    cluster_id: String,
    /// All changes up to this one are known.
    revision: i64,
    entries: BTreeMap<Vec<u8>, Entry>,
}

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    value: Vec<u8>,
    mod_revision: i64,
}

impl Entry {
    fn new(kv: KeyValue) -> (Vec<u8>, Self) {
        let (value, mod_revision) = (kv.value, kv.mod_revision);
        let entry = Self {
            value,
            mod_revision,
        };
        (kv.key, entry)
    }
}

impl EtcdState {
    pub(super) fn new(range: Range) -> Self {
        Self {
            cluster_id: range.header.cluster_id,
            revision: range.header.revision,
            entries: range.kvs.into_iter().map(Entry::new).collect(),
        }
    }

    /// The first revision that is not known.
    pub(super) fn next_revision(&self) -> i64 {
        self.revision.saturating_add(1)
    }

    /// Whether anything has changed.
    pub(super) fn apply(&mut self, watched: Watched) -> bool {
        if watched.events.is_empty() {
            if !watched.created {
                // That of a progress notification: there was nothing up to it.
                self.revision = self.revision.max(watched.header.revision);
            }
            return false;
        }
        for event in watched.events {
            self.revision = self.revision.max(event.kv.mod_revision);
            if event.is_removal() {
                self.entries.remove(&event.kv.key);
            } else {
                let (key, entry) = Entry::new(event.kv);
                self.entries.insert(key, entry);
            }
        }
        true
    }

    /// Whether these are the keys that there are, by their number and the newest of them. If so,
    /// all that led to it is known.
    pub(super) fn confirm(&mut self, newest: &Range) -> bool {
        let last = |revisions: &mut dyn Iterator<Item = i64>| revisions.max().unwrap_or(0);
        let ours = last(&mut self.entries.values().map(|entry| entry.mod_revision));
        let theirs = last(&mut newest.kvs.iter().map(|kv| kv.mod_revision));
        let count = i64::try_from(self.entries.len()).unwrap_or(i64::MAX);
        let is_same = newest.header.cluster_id == self.cluster_id
            // It goes back when the cluster has been restored.
            && newest.header.revision >= self.revision
            && count == newest.count
            && ours == theirs;
        if is_same {
            self.revision = newest.header.revision;
        }
        is_same
    }

    pub(super) fn snapshot(&self, prefix: &str) -> Result<Snapshot, ValueError> {
        let backends = self.entries.iter().map(|(key, entry)| {
            let wrong = |e| ValueError(String::from_utf8_lossy(key).into_owned(), e);
            let mut found = format::parse_one(&entry.value).map_err(wrong)?;
            if found.name.is_none() {
                let rest = key.strip_prefix(prefix.as_bytes()).unwrap_or(key);
                let rest = String::from_utf8_lossy(rest);
                let name = rest.trim_matches('/');
                found.name = (!name.is_empty()).then(|| name.to_owned());
            }
            Ok(found)
        });
        Ok(Snapshot {
            backends: backends.collect::<Result<_, _>>()?,
            version: format!("revision {}", self.revision),
            valid_for: None,
            gap: None,
        })
    }
}

/// The key whose value is no backend.
#[derive(Debug)]
pub(super) struct ValueError(String, SourceError);

impl std::error::Error for ValueError {}

impl fmt::Display for ValueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = excerpt(self.0.as_bytes());
        write!(f, "the value of the key {key}: {}", self.1.message)
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::{read_range, read_watched};
    use super::*;
    use base64::{Engine as _, engine::general_purpose::STANDARD};

    fn kv(key: &str, value: &str, revision: i64) -> String {
        let (key, value) = (STANDARD.encode(key), STANDARD.encode(value));
        format!(r#"{{"key":"{key}","value":"{value}","mod_revision":"{revision}"}}"#)
    }

    fn range(cluster: &str, revision: i64, count: usize, kvs: &[String]) -> Range {
        let json = format!(
            r#"{{"header":{{"cluster_id":"{cluster}","revision":"{revision}"}},
                "count":"{count}","kvs":[{}]}}"#,
            kvs.join(",")
        );
        read_range(json.as_bytes()).expect("a range")
    }

    fn watched(revision: i64, events: &[String]) -> Watched {
        let json = format!(
            r#"{{"result":{{"header":{{"revision":"{revision}"}},"events":[{}]}}}}"#,
            events.join(",")
        );
        read_watched(json.as_bytes()).expect("a message")
    }

    fn addresses(state: &EtcdState) -> Vec<String> {
        let snapshot = state.snapshot("/a/").expect("a snapshot");
        snapshot.backends.into_iter().map(|b| b.address).collect()
    }

    #[test]
    fn events_change_what_a_range_began() {
        let list = [kv("/a/1", "h:1", 2), kv("/a/2", "h:2", 3)];
        let mut state = EtcdState::new(range("c", 4, 2, &list));
        assert_eq!(addresses(&state), ["h:1", "h:2"]);
        let (put, gone) = (kv("/a/3", "h:3", 6), kv("/a/1", "", 7));
        assert!(state.apply(watched(
            9,
            &[
                format!(r#"{{"kv":{put}}}"#),
                format!(r#"{{"type":"DELETE","kv":{gone}}}"#)
            ]
        )));
        assert_eq!(addresses(&state), ["h:2", "h:3"]);
        assert_eq!(state.next_revision(), 8, "9 may be of an event to come");
        assert!(!state.apply(watched(12, &[])));
        assert_eq!(state.next_revision(), 13);
    }

    #[test]
    fn names_are_what_keys_have_after_the_prefix() {
        let list = [
            kv("/a/1", "h:1", 2),
            kv("/a/2", r#"{"address":"h:2","name":"two"}"#, 2),
        ];
        let state = EtcdState::new(range("c", 4, 2, &list));
        let names = |prefix| {
            let snapshot = state.snapshot(prefix).expect("a snapshot");
            let names = snapshot.backends.into_iter().map(|b| b.name);
            names.collect::<Option<Vec<_>>>().expect("names").join(" ")
        };
        assert_eq!(names("/a"), "1 two");
        assert_eq!(names("/"), "a/1 two");
    }

    #[test]
    fn a_state_that_is_behind_is_noticed() {
        let list = [kv("/a/1", "h:1", 2), kv("/a/2", "h:2", 3)];
        let newest =
            |cluster, revision, count, at| range(cluster, revision, count, &[kv("/a/2", "", at)]);
        let state = || EtcdState::new(range("c", 4, 2, &list));
        let mut same = state();
        assert!(same.confirm(&newest("c", 9, 2, 3)));
        assert_eq!(same.next_revision(), 10);
        for newest in [
            newest("d", 9, 2, 3),
            newest("c", 3, 2, 3),
            newest("c", 9, 1, 3),
            newest("c", 9, 2, 5),
            range("c", 9, 0, &[]),
        ] {
            assert!(!state().confirm(&newest), "{newest:?}");
        }
        assert!(EtcdState::new(range("c", 4, 0, &[])).confirm(&range("c", 4, 0, &[])));
    }

    #[test]
    fn one_wrong_value_is_an_error_that_names_its_key() {
        let list = [kv("/a/1", "h:1", 2), kv("/a/2", "{}", 3)];
        let state = EtcdState::new(range("c", 4, 2, &list));
        let error = state.snapshot("/a/").expect_err("wrong").to_string();
        assert!(error.contains("\"/a/2\": it has no `address`"), "{error}");
    }
}
