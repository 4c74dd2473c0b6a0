//! `/readyz`: whether clients could be served, and `/readyz/node`: whether this node could serve
//! them if its backends can.

use super::request::decode;
use crate::{
    control::{NodeFault, State, View},
    session::service::Service,
};
use hyper::StatusCode;
use std::{sync::Arc, time::Instant};

pub(super) const PATH: &str = "/readyz";
pub(super) const NODE_PATH: &str = "/readyz/node";

/// The code and the text of an answer.
pub(super) type Answer = (StatusCode, String);

/// `query`: of the request; `listener=NAME`, once or more, asks for these listeners alone.
pub(super) fn answer(query: Option<&str>, state: &State) -> Answer {
    let Some(names) = listeners(query.unwrap_or_default()) else {
        let text = "the only parameter is listener=NAME, percent-encoded\n".to_owned();
        return (StatusCode::BAD_REQUEST, text);
    };
    let view = state.view();
    let is_known = |name: &&String| view.services().any(|s| s.plan.name == **name);
    if let Some(unknown) = names.iter().find(|name| !is_known(name)) {
        let unknown = unknown.replace(char::is_control, "\u{fffd}");
        let text = format!("there is no listener {unknown:?}\n");
        return (StatusCode::NOT_FOUND, text);
    }
    let is_meant = |s: &&Arc<Service>| names.is_empty() || names.contains(&s.plan.name);
    let services: Vec<_> = view.services().filter(is_meant).collect();
    respond(faults(state, &view, &services))
}

/// Waits for the workers, up to 2 s.
pub(super) async fn node(state: &State) -> Answer {
    let faults = state.node_faults().await;
    respond(faults.iter().map(ToString::to_string).collect())
}

fn respond(faults: Vec<String>) -> Answer {
    match faults.is_empty() {
        true => (StatusCode::OK, "ok\n".to_owned()),
        false => (StatusCode::SERVICE_UNAVAILABLE, faults.join("\n") + "\n"),
    }
}

fn faults(state: &State, view: &View, services: &[&Arc<Service>]) -> Vec<String> {
    if state.is_draining() {
        return vec![NodeFault::Draining.to_string()];
    }
    if services.iter().any(|service| !service.is_accepting()) {
        return vec![NodeFault::Starting.to_string()];
    }
    let now = Instant::now();
    let mut faults = Vec::new();
    for service in services {
        let name = &service.plan.name;
        if !service.intake.is_working() {
            faults.push(NodeFault::Listener(name.clone()).to_string());
        }
        let upstream = &service.pool.name;
        if view.discovery(upstream).is_some_and(|d| !d.is_known()) {
            faults.push(format!(
                "listener {name}: the source of backends of {upstream} has not answered yet"
            ));
        } else if !service.pool.is_available(now) {
            let pool = &service.pool.name;
            faults.push(format!(
                "listener {name}: no backend of {pool} is available"
            ));
        }
    }
    faults
}

/// The names in a query; `None`: it has something else in it.
fn listeners(query: &str) -> Option<Vec<String>> {
    let parts = query.split('&').filter(|part| !part.is_empty());
    let names = parts.map(|part| {
        let name = part.strip_prefix("listener=")?;
        decode(name).filter(|name| !name.is_empty())
    });
    names.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_names_listeners() {
        assert_eq!(listeners(""), Some(vec![]));
        let two = vec!["a b".to_owned(), "c".to_owned()];
        assert_eq!(listeners("listener=a%20b&listener=c"), Some(two));
        for wrong in ["listener", "listener=", "listner=a", "listener=%zz", "a"] {
            assert_eq!(listeners(wrong), None, "{wrong}");
        }
    }
}
