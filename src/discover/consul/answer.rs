//! The instances of a service as Consul's health endpoint lists them. Pure.

use crate::discover::{
    Found,
    excerpt::{excerpt, plain},
};
use serde::{Deserialize, Deserializer};
use std::{fmt, net::Ipv6Addr};

/// Their prefixes: what an operator puts a node or an instance into maintenance by.
const MAINTENANCE: [&str; 2] = ["_node_maintenance", "_service_maintenance"];
const HEAVIEST: u32 = 65_535;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Instance {
    node: Node,
    service: Service,
    #[serde(default, deserialize_with = "or_default")]
    checks: Vec<Check>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Node {
    #[serde(default)]
    node: String,
    #[serde(default)]
    address: String,
}

#[derive(Deserialize)]
struct Service {
    #[serde(default, rename = "ID")]
    id: String,
    #[serde(default, rename = "Address")]
    address: String,
    #[serde(default, rename = "Port")]
    port: u16,
    #[serde(default, rename = "Weights", deserialize_with = "or_default")]
    weights: Option<Weights>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Weights {
    passing: u32,
    warning: u32,
}

#[derive(Deserialize)]
struct Check {
    #[serde(default, rename = "CheckID")]
    id: String,
    #[serde(default, rename = "Status")]
    status: String,
}

/// Lists of nothing are null in it.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// What the checks of an instance say together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Passing,
    Warning,
    Critical,
    Maintenance,
}

impl Instance {
    fn health(&self) -> Health {
        let failing = || self.checks.iter().filter(|check| check.status != "passing");
        let in_maintenance = |check: &Check| MAINTENANCE.iter().any(|id| check.id.starts_with(id));
        if failing().any(in_maintenance) {
            Health::Maintenance
        } else if failing().any(|check| check.status != "warning") {
            Health::Critical
        } else if failing().next().is_some() {
            Health::Warning
        } else {
            Health::Passing
        }
    }
}

/// Whether checks of the registry count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UseHealth {
    Yes,
    No,
}

pub(super) fn read(json: &[u8], use_health: UseHealth) -> Result<Vec<Found>, InstanceError> {
    let instances: Vec<Instance> = serde_json::from_slice(json)
        .map_err(|e| InstanceError::Strange(plain(&e.to_string()), excerpt(json)))?;
    let found = instances
        .iter()
        .map(|instance| backend(instance, use_health));
    found.filter_map(Result::transpose).collect()
}

fn backend(instance: &Instance, use_health: UseHealth) -> Result<Option<Found>, InstanceError> {
    let (service, node) = (&instance.service, &instance.node);
    let health = match use_health {
        UseHealth::Yes => instance.health(),
        UseHealth::No => Health::Passing,
    };
    let name = if service.id.is_empty() {
        &node.node
    } else {
        &service.id
    };
    let host = match service.address.is_empty() {
        true => &node.address,
        false => &service.address,
    };
    let address = match host.parse::<Ipv6Addr>() {
        Ok(ip) => format!("[{ip}]:{}", service.port),
        Err(_) => format!("{host}:{}", service.port),
    };
    if service.port == 0 {
        return Err(InstanceError::NoPort(excerpt(name.as_bytes())));
    }
    let mut found = Found::new(address);
    let weight = |of: fn(&Weights) -> u32| service.weights.as_ref().map_or(1, of);
    found.weight = match health {
        Health::Passing | Health::Maintenance => weight(|weights| weights.passing),
        Health::Warning => weight(|weights| weights.warning),
        Health::Critical => return Ok(None),
    };
    found.weight = found.weight.min(HEAVIEST);
    found.draining = health == Health::Maintenance;
    found.name = Some(name.clone());
    Ok(Some(found))
}

/// Why something is no list of instances.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum InstanceError {
    /// What the parser says, and the beginning of the answer.
    Strange(String, String),
    /// The instance of this name has none.
    NoPort(String),
}

impl std::error::Error for InstanceError {}

impl fmt::Display for InstanceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Strange(why, text) => {
                write!(f, "this is no list of instances: {text}: {why}")
            }
            Self::NoPort(name) => write!(f, "the instance {name} has no port"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn instance(service: &str, checks: &[(&str, &str)]) -> String {
        let checks: Vec<String> = checks
            .iter()
            .map(|(id, status)| format!(r#"{{"Node":"n1","CheckID":"{id}","Status":"{status}"}}"#))
            .collect();
        format!(
            r#"{{"Node":{{"ID":"4","Node":"n1","Address":"10.0.0.9","Meta":null}},
                "Service":{{{service}}},"Checks":[{}]}}"#,
            checks.join(",")
        )
    }

    const PLAIN: &str = r#""ID":"a1","Service":"a","Tags":null,"Address":"10.0.0.1","Port":80,
        "Weights":{"Passing":10,"Warning":2},"EnableTagOverride":false"#;

    fn one(service: &str, checks: &[(&str, &str)], use_health: UseHealth) -> Option<Found> {
        let json = format!("[{}]", instance(service, checks));
        let mut found = read(json.as_bytes(), use_health).expect("a list");
        assert!(found.len() <= 1);
        found.pop()
    }

    #[test]
    fn an_instance() {
        let found = one(PLAIN, &[("serfHealth", "passing")], UseHealth::Yes);
        let expected = Found {
            weight: 10,
            name: Some("a1".to_owned()),
            ..Found::new("10.0.0.1:80")
        };
        assert_eq!(found, Some(expected));
        // Without an address of its own it is that of the node.
        let node = one(r#""ID":"","Address":"","Port":81"#, &[], UseHealth::Yes).expect("one");
        assert_eq!((&node.address[..], node.weight), ("10.0.0.9:81", 1));
        assert_eq!(node.name.as_deref(), Some("n1"));
        let six = one(r#""Address":"fd00::1","Port":81"#, &[], UseHealth::Yes).expect("one");
        assert_eq!(six.address, "[fd00::1]:81");
        let named = one(r#""Address":"db.example","Port":81"#, &[], UseHealth::Yes);
        assert_eq!(named.expect("one").address, "db.example:81");
        assert_eq!(read(b"[]", UseHealth::Yes), Ok(vec![]));
    }

    #[test]
    fn health() {
        for (checks, weight, draining) in [
            (vec![], Some(10), false),
            (vec![("c", "passing"), ("d", "warning")], Some(2), false),
            (vec![("c", "passing"), ("d", "critical")], None, false),
            (vec![("c", "unheard-of")], None, false),
            (vec![("_node_maintenance", "critical")], Some(10), true),
            (
                vec![("_service_maintenance:a1", "critical"), ("d", "critical")],
                Some(10),
                true,
            ),
        ] {
            let found = one(PLAIN, &checks, UseHealth::Yes);
            assert_eq!(found.as_ref().map(|f| f.weight), weight, "{checks:?}");
            assert!(found.is_none_or(|f| f.draining == draining), "{checks:?}");
            let all = one(PLAIN, &checks, UseHealth::No).expect("one");
            assert_eq!((all.weight, all.draining), (10, false));
        }
    }

    #[test]
    fn what_is_no_list_of_instances() {
        for json in [
            "",
            "null",
            "{}",
            "[1]",
            "[{}]",
            "[null]",
            "<html>",
            "[{\"Node\":{},\"Service\":{}}]",
        ] {
            assert!(read(json.as_bytes(), UseHealth::Yes).is_err(), "{json}");
        }
        let json = format!("[{}]", instance(r#""ID":"a1","Address":"h","Port":0"#, &[]));
        let error = read(json.as_bytes(), UseHealth::Yes).expect_err("no port");
        assert!(error.to_string().contains("\"a1\" has no port"), "{error}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, at: usize, byte: u8) {
            let _ = read(&bytes, UseHealth::Yes);
            let mut near = format!("[{}]", instance(PLAIN, &[("c", "passing")])).into_bytes();
            let at = at % near.len();
            near[at] = byte;
            let _ = read(&near, UseHealth::Yes);
        }
    }
}
