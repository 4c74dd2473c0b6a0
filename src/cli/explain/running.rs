//! The weights and states of backends in a running process, in place of those of the file.

use crate::{
    admin::{OperatorSettings, explain},
    cli::{
        ConfigFile,
        client::{AdminClient, At},
        response::{Backend, Status, Upstream, clean},
    },
    config::{backend_with_defaults, parse_target},
    plan::{self, Plan},
};
use humantime::format_duration;
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

/// How the running process differs from the file, by the names of upstreams.
pub(super) struct Notes(BTreeMap<String, Vec<String>>);

impl Notes {
    pub(super) fn of(mut self, upstream: &str) -> Vec<String> {
        self.0.remove(upstream).unwrap_or_default()
    }
}

/// Asks the process that this socket, or the one of the file, leads to. The error is a whole
/// message.
pub(super) fn apply(
    mut plan: Plan,
    file: ConfigFile,
    socket: Option<PathBuf>,
) -> Result<(Plan, Option<Notes>), String> {
    let client = AdminClient::find(&At { file, socket })?;
    let (status, _) = client.status()?;
    let notes = plan.upstreams.iter_mut();
    let notes = notes.map(|upstream| (upstream.name.clone(), apply_to(upstream, &status)));
    let notes = Notes(notes.collect());
    Ok((plan, Some(notes)))
}

fn apply_to(upstream: &mut plan::Upstream, status: &Status) -> Vec<String> {
    let is_it = |running: &&Upstream| running.name == upstream.name;
    let Some(running) = status.upstreams.iter().find(is_it) else {
        let note = "the running process does not have this upstream: the file was not reloaded";
        return vec![note.to_owned()];
    };
    let mut notes = Vec::new();
    for planned in &mut upstream.backends {
        let is_it = |backend: &&Backend| backend.address == planned.text;
        match running.backends.iter().find(is_it) {
            Some(backend) => notes.extend(apply_to_backend(planned, backend)),
            None => {
                planned.down = true;
                let text = &planned.text;
                notes.push(format!(
                    "{text} is not in the running process: reload to add it"
                ));
            }
        }
    }
    for backend in running.backends.iter().filter(|backend| backend.discovered) {
        let is_known = upstream
            .backends
            .iter()
            .any(|planned| planned.text == backend.address);
        if let (false, Ok(target)) = (is_known, parse_target(&backend.address)) {
            let mut planned = plan::Backend {
                text: backend.address.clone(),
                target,
                backup: backend.backup,
                ..backend_with_defaults()
            };
            notes.extend(apply_to_backend(&mut planned, backend));
            upstream.backends.push(planned);
        }
    }
    for backend in &running.backends {
        if !upstream
            .backends
            .iter()
            .any(|planned| planned.text == backend.address)
        {
            let address = clean(&backend.address);
            notes.push(format!(
                "{address} is in the running process, and not in this file"
            ));
        }
    }
    notes.extend(fate_without_place(&upstream.waits, running));
    notes
}

/// What becomes of a client that comes now, where no backend can take it.
fn fate_without_place(waits: &plan::Waits, running: &Upstream) -> Option<String> {
    let (lack, key, limit, waiting, most) = match running.available {
        0 => (
            "no backend is available",
            "hold_timeout",
            waits.hold_timeout,
            running.held,
            waits.hold_length,
        ),
        fit if fit <= running.full => (
            "all available backends are full",
            "queue_timeout",
            waits.queue_timeout,
            running.queued,
            waits.queue_length,
        ),
        _ => return None,
    };
    Some(match limit {
        Duration::ZERO => format!("{lack}: a client that comes now is refused ({key} is 0)"),
        _ if waiting >= most => format!(
            "{lack}: a client that comes now is refused, since {waiting} of {most} wait already"
        ),
        limit => format!(
            "{lack}: a client that comes now waits for up to {} ({key}), behind {waiting} of {most}",
            format_duration(limit)
        ),
    })
}

/// What there is to say about one that is not used as the file alone says.
fn apply_to_backend(planned: &mut plan::Backend, backend: &Backend) -> Option<String> {
    let weight = u32::try_from(backend.weight).unwrap_or(planned.weight);
    let takes_sessions = backend.available && !backend.full;
    let is_as_planned = weight == planned.weight && takes_sessions != planned.down;
    planned.weight = weight;
    planned.down = !takes_sessions;
    let settings = OperatorSettings {
        admin_state_since: backend.admin_state_since.as_deref(),
        weight: backend.weight,
        weight_in_file: backend.weight_in_file,
        weight_since: backend.weight_since.as_deref(),
    };
    let why = explain(&backend.why, &settings);
    let state = clean(&backend.state);
    match (&*why, is_as_planned) {
        ("", true) => None,
        ("", false) => Some(format!("{} is {state}", planned.text)),
        (why, _) => Some(format!("{} is {state}: {}", planned.text, clean(why))),
    }
}
