//! The slices of a service, and the backends that they are together. Pure.

use super::message::{Condition, Event, List, Slice};
use crate::discover::{Found, Snapshot, excerpt::excerpt};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::Ipv6Addr,
};

/// Of a service with addresses of more than one type the first that it has are used: a server that
/// is reached by two addresses would be two backends.
const TYPES: [&str; 3] = ["IPv4", "IPv6", "FQDN"];

#[derive(Debug, Clone)]
pub(super) struct ServiceState {
    /// All that has happened up to this version is known.
    pub(super) version: String,
    /// By name.
    slices: BTreeMap<String, Slice>,
}

impl ServiceState {
    pub(super) fn new(list: List) -> Self {
        let slices = list.items.into_iter();
        Self {
            version: list.metadata.resource_version,
            slices: slices.map(|s| (s.metadata.name.clone(), s)).collect(),
        }
    }

    /// Whether the slices are the same.
    pub(super) fn has_slices_of(&self, other: &Self) -> bool {
        self.slices == other.slices
    }

    /// Whether there is a change.
    pub(super) fn apply(&mut self, event: Event) -> bool {
        let (version, is_change) = match event {
            Event::Set(slice) => {
                let version = slice.metadata.resource_version.clone();
                self.slices.insert(slice.metadata.name.clone(), slice);
                (version, true)
            }
            Event::Removed(slice) => {
                self.slices.remove(&slice.metadata.name);
                (slice.metadata.resource_version, true)
            }
            Event::Bookmark(version) => (version, false),
        };
        if !version.is_empty() {
            self.version = version;
        }
        is_change
    }

    /// `port`: a name or a number; `None`: the only one.
    pub(super) fn snapshot(&self, port: Option<&str>) -> Result<Snapshot, SliceError> {
        let mut all: BTreeMap<String, (Condition, Found)> = BTreeMap::new();
        for (slice, port) in self.selected(port)? {
            for endpoint in &slice.endpoints {
                let condition = endpoint.conditions.condition();
                // All addresses of an endpoint lead to the same; more than one is not in use.
                let Some(ip) = endpoint
                    .addresses
                    .first()
                    .filter(|_| condition != Condition::Out)
                else {
                    continue;
                };
                let address = match ip.parse::<Ipv6Addr>() {
                    Ok(ip) => format!("[{ip}]:{port}"),
                    Err(_) => format!("{ip}:{port}"),
                };
                let name = endpoint
                    .target_ref
                    .as_ref()
                    .map(|target| target.name.clone());
                let found = Found {
                    draining: condition == Condition::Draining,
                    name,
                    ..Found::new(&address)
                };
                // While an endpoint moves to another slice it is in both.
                let known = all.get(&address).map(|(condition, _)| *condition);
                if known.is_none_or(|known| condition < known) {
                    all.insert(address, (condition, found));
                }
            }
        }
        Ok(Snapshot {
            backends: all.into_values().map(|(_, found)| found).collect(),
            version: format!("resourceVersion {}", self.version),
            valid_for: None,
            gap: None,
        })
    }

    /// The slices that count, with the port of each.
    fn selected(&self, port: Option<&str>) -> Result<Vec<(&Slice, u16)>, SliceError> {
        // A slice may be without endpoints, and then without ports.
        let slices = self.slices.values().filter(|s| !s.endpoints.is_empty());
        let mut found = Vec::new();
        let mut others = BTreeSet::new();
        for slice in slices {
            match port_of(slice, port) {
                Some(port) => found.push((slice, port)),
                None => others.extend(slice.ports.iter().map(|p| {
                    let number = p.port.map_or_else(|| "any".to_owned(), |n| n.to_string());
                    let separator = if p.name.is_empty() { "" } else { " " };
                    excerpt(format!("{}{separator}{number}", p.name).as_bytes())
                })),
            }
        }
        // Pods of one service may have other ports, so that a slice without this one is none of
        // it; but none with it is an error of the configuration.
        if found.is_empty() && !others.is_empty() {
            let wanted = port.map(|port| excerpt(port.as_bytes()));
            return Err(SliceError::Port(wanted, others.into_iter().collect()));
        }
        let kinds = TYPES
            .iter()
            .find(|kind| found.iter().any(|(s, _)| s.address_type == **kind));
        let kind = kinds.copied().unwrap_or_default();
        found.retain(|(slice, _)| slice.address_type == kind);
        Ok(found)
    }
}

fn port_of(slice: &Slice, port: Option<&str>) -> Option<u16> {
    let Some(wanted) = port else {
        return match &slice.ports[..] {
            [port] => port.port,
            _ => None,
        };
    };
    let number: Option<u16> = wanted.parse().ok();
    if slice.ports.is_empty() {
        return number;
    }
    let named = slice.ports.iter().find(|port| port.name == wanted);
    let numbered = || {
        let is_it = |port: &&super::message::Port| port.port.is_none() || port.port == number;
        slice.ports.iter().filter(|_| number.is_some()).find(is_it)
    };
    let port = named.or_else(numbered)?;
    port.port.or(number)
}

/// Why slices are no backends.
#[derive(Debug)]
pub(super) enum SliceError {
    /// The port that was asked for, and those that there are.
    Port(Option<String>, Vec<String>),
}

impl std::error::Error for SliceError {}

impl fmt::Display for SliceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(Some(port), there) => write!(
                f,
                "the service has no port {port}; set `port` to one of {}",
                there.join(", ")
            ),
            Self::Port(None, there) => write!(
                f,
                "the service has more than one port; set `port` to one of {}",
                there.join(", ")
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::{read_event, read_list, tests::SLICE};
    use super::*;

    fn state(slices: &[String]) -> ServiceState {
        let json = format!(
            r#"{{"kind":"EndpointSliceList","metadata":{{"resourceVersion":"5000"}},
                "items":[{}]}}"#,
            slices.join(",")
        );
        ServiceState::new(read_list(json.as_bytes()).expect("a list"))
    }

    fn slice(name: &str, kind: &str, addresses: &[&str], ports: &str) -> String {
        let endpoint = |address: &&str| format!(r#"{{"addresses":["{address}"]}}"#);
        let endpoints: Vec<String> = addresses.iter().map(endpoint).collect();
        format!(
            r#"{{"metadata":{{"name":"{name}","resourceVersion":"1"}},"addressType":"{kind}",
                "endpoints":[{}],"ports":{ports}}}"#,
            endpoints.join(",")
        )
    }

    const HTTP: &str = r#"[{"name":"http","port":80}]"#;

    /// Addresses, with a minus before those that drain.
    fn shown(state: &ServiceState, port: Option<&str>) -> String {
        let snapshot = state.snapshot(port).expect("a snapshot");
        let shown = snapshot.backends.iter().map(|b| {
            let sign = if b.draining { "-" } else { "" };
            format!("{sign}{}", b.address)
        });
        shown.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn conditions_decide() {
        let state = state(&[SLICE.to_owned()]);
        assert_eq!(
            shown(&state, Some("sql")),
            "10.1.0.1:5432 -10.1.0.2:5432 10.1.0.4:5432"
        );
        let names = state.snapshot(Some("5432")).expect("a snapshot").backends;
        let names: Vec<_> = names
            .into_iter()
            .map(|b| b.name.unwrap_or_default())
            .collect();
        assert_eq!(names, ["db-0", "db-1", ""]);
        assert_eq!(shown(&state, Some("9187")).matches(":9187").count(), 3);
    }

    #[test]
    fn ports() {
        let both = state(&[
            slice("a", "IPv4", &["10.0.0.1"], HTTP),
            slice(
                "b",
                "IPv4",
                &["10.0.0.2"],
                r#"[{"name":"http","port":8080}]"#,
            ),
            slice("c", "IPv4", &["10.0.0.3"], r#"[{"name":"other","port":9}]"#),
        ]);
        assert_eq!(shown(&both, Some("http")), "10.0.0.1:80 10.0.0.2:8080");
        assert_eq!(shown(&both, Some("8080")), "10.0.0.2:8080");
        let error = |port| both.snapshot(port).expect_err("no port").to_string();
        assert_eq!(
            error(Some("sql")),
            "the service has no port \"sql\"; \
             set `port` to one of \"http 80\", \"http 8080\", \"other 9\""
        );
        assert_eq!(shown(&both, None), "10.0.0.1:80 10.0.0.2:8080 10.0.0.3:9");
        let two = state(&[SLICE.to_owned()]);
        let error = two.snapshot(None).expect_err("two ports").to_string();
        assert!(
            error.starts_with("the service has more than one port; set"),
            "{error}"
        );
        // Without ports all are meant.
        for none in ["null", "[]", r#"[{"name":"","port":null}]"#] {
            let any = state(&[slice("a", "IPv4", &["10.0.0.1"], none)]);
            assert_eq!(shown(&any, Some("81")), "10.0.0.1:81");
        }
    }

    #[test]
    fn slices_are_one_set() {
        let ready = slice("a", "IPv4", &["10.0.0.1", "10.0.0.2"], HTTP);
        let moved = slice("b", "IPv4", &["10.0.0.2", "10.0.0.3"], HTTP).replacen(
            "]}",
            r#"],"conditions":{"ready":false,"serving":true,"terminating":true}}"#,
            1,
        );
        let six = slice("c", "IPv6", &["fd00::1"], HTTP);
        let all = state(&[moved, ready, six.clone()]);
        assert_eq!(shown(&all, None), "10.0.0.1:80 10.0.0.2:80 10.0.0.3:80");
        assert_eq!(shown(&state(&[six]), None), "[fd00::1]:80");
        assert_eq!(shown(&state(&[]), Some("x")), "");
        let empty = slice("d", "IPv4", &[], "null");
        assert_eq!(shown(&state(&[empty]), Some("x")), "");
    }

    #[test]
    fn events_change_slices() {
        let mut all = state(&[slice("a", "IPv4", &["10.0.0.1"], HTTP)]);
        let event = |kind: &str, object: &str| {
            let line = format!(r#"{{"type":"{kind}","object":{object}}}"#);
            read_event(line.as_bytes()).expect("an event")
        };
        let more = slice("b", "IPv4", &["10.0.0.2"], HTTP);
        assert!(all.apply(event("ADDED", &more)));
        assert_eq!(shown(&all, None), "10.0.0.1:80 10.0.0.2:80");
        let before = all.clone();
        assert!(all.apply(event("DELETED", &slice("a", "IPv4", &[], HTTP))));
        assert_eq!(
            (shown(&all, None), &all.version[..]),
            ("10.0.0.2:80".to_owned(), "1")
        );
        assert!(!all.has_slices_of(&before));
        assert!(!all.apply(event(
            "BOOKMARK",
            r#"{"metadata":{"resourceVersion":"77"}}"#
        )));
        assert_eq!(all.version, "77");
    }
}
