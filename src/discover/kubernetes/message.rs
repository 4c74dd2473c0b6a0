//! What the API server of Kubernetes sends: EndpointSlices, and the events of a watch. Pure.

use crate::discover::excerpt::{excerpt, plain};
use serde::{Deserialize, Deserializer};
use std::fmt;

/// HTTP's code for what was there once.
const GONE: u16 = 410;

#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Metadata {
    pub(super) name: String,
    pub(super) resource_version: String,
    /// Of a list that is not complete.
    #[serde(rename = "continue")]
    pub(super) rest: String,
}

/// A part of the endpoints of a service.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Slice {
    pub(super) metadata: Metadata,
    pub(super) address_type: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) endpoints: Vec<Endpoint>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) ports: Vec<Port>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Endpoint {
    pub(super) addresses: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) conditions: Conditions,
    pub(super) target_ref: Option<Target>,
}

#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

/// What becomes of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Condition {
    Ready,
    Draining,
    Out,
}

impl Conditions {
    /// What is not said is good: a slice may have been written by an older controller, or by hand.
    pub(super) fn condition(&self) -> Condition {
        let is_ready = self.ready.unwrap_or(true);
        let is_serving = self.serving.unwrap_or(is_ready);
        let is_terminating = self.terminating.unwrap_or(false);
        match (is_terminating, is_ready, is_serving) {
            (false, true, _) => Condition::Ready,
            // Also if it is called ready, as where a service publishes all of its addresses.
            (true, true, _) | (true, false, true) => Condition::Draining,
            (false | true, false, _) => Condition::Out,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Target {
    #[serde(default)]
    pub(super) name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Port {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) name: String,
    pub(super) port: Option<u16>,
}

fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// All slices of a service.
#[derive(Debug, Deserialize)]
pub(super) struct List {
    kind: String,
    pub(super) metadata: Metadata,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) items: Vec<Slice>,
}

/// Something that was watched.
#[derive(Debug)]
pub(super) enum Event {
    Set(Slice),
    Removed(Slice),
    /// Up to this version nothing else has happened.
    Bookmark(String),
}

/// What the server has against a request.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Status {
    #[serde(default)]
    pub(super) message: String,
    #[serde(default)]
    pub(super) reason: String,
    #[serde(default)]
    pub(super) code: u16,
}

impl Status {
    /// The body of an answer whose status is not a success.
    pub(super) fn read(json: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Kind {
            kind: String,
        }
        let kind: Kind = serde_json::from_slice(json).ok()?;
        (kind.kind == "Status").then(|| serde_json::from_slice(json).ok())?
    }

    /// Whether the version that was asked for is too old.
    pub(super) fn is_gone(&self) -> bool {
        self.code == GONE || matches!(&self.reason[..], "Gone" | "Expired")
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "status {}: {}", self.code, plain(&self.message))
    }
}

pub(super) fn read_list(json: &[u8]) -> Result<List, MessageError> {
    let list: List = read(json)?;
    if list.kind != "EndpointSliceList" || list.metadata.resource_version.is_empty() {
        return Err(MessageError::NoList(excerpt(json)));
    }
    match list.metadata.rest.is_empty() {
        true => Ok(list),
        false => Err(MessageError::Incomplete),
    }
}

pub(super) fn read_event(line: &[u8]) -> Result<Event, MessageError> {
    #[derive(Deserialize)]
    struct Line<'a> {
        #[serde(rename = "type")]
        kind: String,
        #[serde(borrow)]
        object: &'a serde_json::value::RawValue,
    }
    #[derive(Deserialize)]
    struct Bookmark {
        metadata: Metadata,
    }
    let event: Line = read(line)?;
    let object = event.object.get().as_bytes();
    match &event.kind[..] {
        "ADDED" | "MODIFIED" => read(object).map(Event::Set),
        "DELETED" => read(object).map(Event::Removed),
        "BOOKMARK" => {
            let bookmark: Bookmark = read(object)?;
            Ok(Event::Bookmark(bookmark.metadata.resource_version))
        }
        "ERROR" => Err(match Status::read(object) {
            Some(status) => MessageError::Refused(status),
            None => MessageError::NoList(excerpt(object)),
        }),
        kind => Err(MessageError::Kind(excerpt(kind.as_bytes()))),
    }
}

fn read<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, MessageError> {
    serde_json::from_slice(json)
        .map_err(|e| MessageError::Strange(plain(&e.to_string()), excerpt(json)))
}

/// Why something is no message of Kubernetes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum MessageError {
    /// What the parser says, and the beginning of the message.
    Strange(String, String),
    NoList(String),
    Incomplete,
    /// An event of an unknown type.
    Kind(String),
    Refused(Status),
}

impl std::error::Error for MessageError {}

impl fmt::Display for MessageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Strange(why, text) => {
                write!(f, "this is no answer of Kubernetes: {text}: {why}")
            }
            Self::NoList(text) => write!(f, "this is no list of EndpointSlices: {text}"),
            Self::Incomplete => f.write_str("the list is not complete"),
            Self::Kind(kind) => write!(f, "an event of the unknown type {kind}"),
            Self::Refused(status) => status.fmt(f),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(in super::super) const SLICE: &str = r#"{"metadata":{"name":"db-x7k2p","namespace":"prod",
        "resourceVersion":"4711","labels":{"kubernetes.io/service-name":"db"}},"addressType":"IPv4",
        "endpoints":[
          {"addresses":["10.1.0.1"],"conditions":{"ready":true,"serving":true,"terminating":false},
           "targetRef":{"kind":"Pod","name":"db-0"},"nodeName":"n1","zone":"a"},
          {"addresses":["10.1.0.2"],"conditions":{"ready":false,"serving":true,"terminating":true},
           "targetRef":{"kind":"Pod","name":"db-1"}},
          {"addresses":["10.1.0.3"],
           "conditions":{"ready":false,"serving":false,"terminating":false}},
          {"addresses":["10.1.0.4"],"conditions":{}}],
        "ports":[{"name":"sql","protocol":"TCP","port":5432},
                 {"name":"","protocol":"TCP","port":9187}]}"#;

    #[test]
    fn a_list() {
        let json = format!(
            r#"{{"kind":"EndpointSliceList","apiVersion":"discovery.k8s.io/v1",
                "metadata":{{"resourceVersion":"5000"}},"items":[{SLICE}]}}"#
        );
        let list = read_list(json.as_bytes()).expect("a list");
        assert_eq!(list.metadata.resource_version, "5000");
        assert_eq!(list.items[0].endpoints.len(), 4);
        let empty =
            br#"{"kind":"EndpointSliceList","metadata":{"resourceVersion":"1"},"items":null}"#;
        assert!(read_list(empty).expect("a list").items.is_empty());
        for json in [
            "",
            "{}",
            "[]",
            r#"{"kind":"PodList","metadata":{"resourceVersion":"1"},"items":[]}"#,
            r#"{"kind":"EndpointSliceList","metadata":{},"items":[]}"#,
            r#"{"kind":"EndpointSliceList","metadata":{"resourceVersion":"1","continue":"x"},
                "items":[]}"#,
            r#"{"kind":"EndpointSliceList","metadata":{"resourceVersion":"1"},"items":[{}]}"#,
        ] {
            assert!(read_list(json.as_bytes()).is_err(), "{json}");
        }
    }

    #[test]
    fn conditions() {
        let condition = |ready, serving, terminating| {
            let conditions = Conditions {
                ready,
                serving,
                terminating,
            };
            conditions.condition()
        };
        let (yes, no) = (Some(true), Some(false));
        assert_eq!(condition(None, None, None), Condition::Ready);
        assert_eq!(condition(yes, yes, no), Condition::Ready);
        assert_eq!(condition(yes, None, yes), Condition::Draining);
        assert_eq!(condition(no, yes, yes), Condition::Draining);
        assert_eq!(condition(no, None, yes), Condition::Out);
        assert_eq!(condition(no, no, yes), Condition::Out);
        assert_eq!(condition(no, yes, no), Condition::Out);
    }

    #[test]
    fn events() {
        let line = |kind: &str, object: &str| {
            let line = format!(r#"{{"type":"{kind}","object":{object}}}"#);
            read_event(line.as_bytes())
        };
        assert!(matches!(line("ADDED", SLICE), Ok(Event::Set(_))));
        assert!(matches!(line("MODIFIED", SLICE), Ok(Event::Set(_))));
        assert!(matches!(line("DELETED", SLICE), Ok(Event::Removed(_))));
        let bookmark = line(
            "BOOKMARK",
            r#"{"kind":"EndpointSlice","metadata":{"resourceVersion":"9"}}"#,
        );
        assert!(matches!(bookmark, Ok(Event::Bookmark(version)) if version == "9"));
        let status = r#"{"kind":"Status","status":"Failure","reason":"Expired","code":410,
            "message":"too old resource version: 1 (9)"}"#;
        let Err(MessageError::Refused(status)) = line("ERROR", status) else {
            panic!("not refused");
        };
        assert!(status.is_gone());
        assert_eq!(
            status.to_string(),
            "status 410: too old resource version: 1 (9)"
        );
        assert!(line("ERROR", "{}").is_err());
        assert!(line("NEW", SLICE).is_err());
        assert!(read_event(b"{\"type\":\"ADDED\"}").is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, at: usize, byte: u8) {
            let _ = (read_list(&bytes), Status::read(&bytes));
            let _ = read_event(&bytes).map_err(|e| e.to_string());
            let mut near = format!(r#"{{"type":"ADDED","object":{SLICE}}}"#).into_bytes();
            let at = at % near.len();
            near[at] = byte;
            let _ = read_event(&near).map_err(|e| e.to_string());
        }
    }
}
