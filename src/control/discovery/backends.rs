//! Discovered backends as backends of a plan. Pure.

use crate::{
    config::{backend_with_defaults, parse_target},
    discover::{
        Found, SourceError,
        format::{MOST_BACKENDS, shown},
        merge::{Set, collect},
    },
    plan::{Addr, Backend, MOST_WEIGHT, Origin, Target, Upstream},
};
use std::collections::HashSet;

/// The backends of an answer, by their addresses in one form. A wrong one makes the whole answer
/// wrong: an address with a mistake in it may have been a backend before.
pub(super) fn read(found: Vec<Found>) -> Result<Set, SourceError> {
    if found.len() > MOST_BACKENDS {
        let count = found.len();
        return Err(SourceError::new(format!(
            "{count} backends; an upstream may have {MOST_BACKENDS}"
        )));
    }
    let read = |found: Found| {
        let target = read_target(&found.address)?;
        if found.weight > MOST_WEIGHT {
            return Err(SourceError::new(format!(
                "the weight of {} is {}; it may be {MOST_WEIGHT}",
                shown(&found.address),
                found.weight
            )));
        }
        let address = text(&target);
        Ok(Found { address, ..found })
    };
    let found: Result<Vec<Found>, SourceError> = found.into_iter().map(read).collect();
    Ok(collect(found?))
}

fn read_target(address: &str) -> Result<Target, SourceError> {
    parse_target(address.trim()).map_err(|fault| {
        let hint = fault
            .hint
            .map_or_else(String::new, |hint| format!("; {hint}"));
        SourceError::new(format!("{}{hint}", fault.message))
    })
}

/// One address has one text.
fn text(target: &Target) -> String {
    match target {
        Target::Addr(Addr::Tcp(address)) => address.to_string(),
        Target::Addr(Addr::Unix(path)) => format!("unix:{}", path.display()),
        Target::Name { host, port } => format!("{}:{port}", host.to_lowercase()),
    }
}

/// Replaces the discovered backends of this upstream. Those of the file stay: one that is
/// discovered as well has the settings of the file.
pub(super) fn replace(upstream: &mut Upstream, set: &Set) {
    upstream
        .backends
        .retain(|backend| !backend.origin.is_discovered());
    let configured: HashSet<String> = upstream.backends.iter().map(|b| text(&b.target)).collect();
    let defaults = backend_with_defaults();
    // In the order of the addresses, which is the same on every node.
    let found = set
        .values()
        .filter(|found| !configured.contains(&found.address));
    upstream.backends.extend(found.filter_map(|found| {
        Some(Backend {
            text: found.address.clone(),
            // It was read before.
            target: read_target(&found.address).ok()?,
            weight: found.weight,
            backup: found.backup,
            origin: Origin::Discovered {
                name: found.name.clone(),
                draining: found.draining,
            },
            ..defaults.clone()
        })
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_is_one_backend_and_those_of_the_file_keep_their_settings() {
        let found = [
            "[0:0::1]:80",
            "[::1]:80",
            "B.example:80",
            "b.example:80",
            "10.0.0.1:1",
        ];
        let set = read(found.map(Found::new).to_vec()).expect("valid");
        let addresses: Vec<&str> = set.keys().map(String::as_str).collect();
        assert_eq!(addresses, ["10.0.0.1:1", "[::1]:80", "b.example:80"]);
        let mut upstream = Upstream {
            backends: vec![Backend {
                text: "10.0.0.1:1".to_owned(),
                target: read_target("10.0.0.1:1").expect("valid"),
                weight: 7,
                ..Backend::default()
            }],
            ..Upstream::default()
        };
        for _ in 0..2 {
            replace(&mut upstream, &set);
            let texts: Vec<&str> = upstream.backends.iter().map(|b| b.text.as_str()).collect();
            assert_eq!(texts, ["10.0.0.1:1", "[::1]:80", "b.example:80"]);
            assert_eq!(upstream.backends[0].weight, 7);
            assert_eq!(upstream.backends[1].weight, 1);
        }
        replace(&mut upstream, &Set::new());
        assert_eq!(upstream.backends.len(), 1);
    }

    #[test]
    fn a_wrong_address_makes_the_answer_wrong() {
        for wrong in ["10.0.0.1", "", "http://a:1", "10.0.0.1:99999", "a b:1"] {
            let found = vec![Found::new("10.0.0.2:1"), Found::new(wrong)];
            assert!(read(found).is_err(), "{wrong}");
        }
    }
}
