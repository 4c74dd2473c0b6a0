//! What a start would be refused for because of files, rights and names of users, looked at without
//! changing anything. What it cannot find out is in docs/operation.md.

use super::{StartError, bind::BindError, interfaces, prepare::load_credentials, rights};
use crate::{
    plan::{AccessLog, Addr, Listener, Plan},
    runtime::net::{FileRights, check_listen_unix},
    sys::{files, limits, process},
};
use std::{io, net::SocketAddr, path::Path};

/// As capability(7) numbers them.
const CAP_CHOWN: u32 = 0;
const CAP_NET_BIND_SERVICE: u32 = 10;

/// What is in the way of a start by the same user.
#[derive(Debug, Default)]
pub struct Obstacles {
    pub errors: Vec<StartError>,
    /// They are none where a service manager passes the sockets, or an interface comes later.
    pub warnings: Vec<StartError>,
}

/// The admin side is not among it.
pub async fn find_obstacles(plan: &Plan) -> Obstacles {
    let mut found = Obstacles {
        errors: Vec::new(),
        warnings: interfaces::missing(plan),
    };
    check_access_logs(plan, &mut found);
    if let Some(path) = &plan.process.ready_file
        && let Err(source) = files::check_replace(path)
    {
        let path = path.clone();
        found.errors.push(StartError::ReadyFile { path, source });
    }
    // A FIFO would be emptied: its content is for the start.
    let mut upstreams = plan.upstreams.clone();
    upstreams.retain(|upstream| {
        let check = upstream.check.iter();
        let mut files = check.flat_map(|check| check.files());
        files.all(|(_, path)| !files::is_fifo(path))
    });
    let loaded = load_credentials(&upstreams).await;
    found.errors.extend(loaded.err().unwrap_or_default());
    let rights = match rights::all(&plan.listeners).await {
        Ok(rights) => rights,
        Err(errors) => {
            found.errors.extend(errors);
            Vec::new()
        }
    };
    for (n, listener) in plan.listeners.iter().enumerate() {
        check_addresses(listener, rights.get(n), &mut found);
    }
    found
}

fn check_access_logs(plan: &Plan, found: &mut Obstacles) {
    let own = plan.listeners.iter().filter_map(|listener| {
        let log = listener.access_log.as_ref()?;
        Some((Some(&listener.name), log))
    });
    let mut seen: Vec<&Path> = Vec::new();
    for (listener, log) in std::iter::once((None, &plan.log.access)).chain(own) {
        let AccessLog::File(path) = log else { continue };
        if seen.contains(&path.as_path()) {
            continue;
        }
        seen.push(path);
        if let Err(source) = files::check_append(path) {
            found.errors.push(StartError::AccessLog {
                listener: listener.cloned(),
                path: Some(path.clone()),
                source,
            });
        }
    }
}

fn check_addresses(listener: &Listener, rights: Option<&FileRights>, found: &mut Obstacles) {
    let failed = |addr: &Addr, source| {
        StartError::Bind(BindError::Address {
            listener: listener.name.clone(),
            addr: addr.clone(),
            source,
        })
    };
    let mut has_low_port = false;
    for addr in listener.bind.iter().flat_map(|bind| &bind.addrs) {
        match addr {
            Addr::Unix(path) => {
                let checked = check_listen_unix(path);
                if let Err(source) = checked {
                    found.errors.push(failed(addr, source));
                } else if let Some(rights) = rights
                    && !may_give(rights)
                {
                    let source = FileRights::refused();
                    found.warnings.push(failed(addr, source));
                }
            }
            // One stands for a range of ports.
            Addr::Tcp(address) if !has_low_port && !may_bind(*address) => {
                has_low_port = true;
                let source = io::ErrorKind::PermissionDenied.into();
                found.warnings.push(failed(addr, source));
            }
            Addr::Tcp(_) => {}
        }
    }
}

/// Whether the file of a socket can be given to its owner and its group.
fn may_give(rights: &FileRights) -> bool {
    let (user, groups) = process::identity();
    let is_own = rights.owner.is_none_or(|owner| owner == user)
        && rights.group.is_none_or(|group| groups.contains(&group));
    is_own || process::has_capability(CAP_CHOWN)
}

/// Whether this port needs no privilege, or the process has it.
pub fn may_bind(address: SocketAddr) -> bool {
    address.port() == 0
        || address.port() >= limits::first_unprivileged_port()
        || process::has_capability(CAP_NET_BIND_SERVICE)
}
