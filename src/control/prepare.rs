//! What a plan needs from outside: passwords, certificates, the access log, the addresses of host
//! names. All of it is there before any port is bound, or the result is everything that is wrong.
//! None of it can hold up the event loop, and so no signal.

use super::{StartError, StartErrors, View, interfaces, node, resolve, rights};
use crate::{
    control::budget::count_udp,
    plan::{self, Addr, Plan, Tls},
    probe::CheckCredentials,
    proxy::udp,
    runtime::net::FileRights,
    sys::{
        blocking,
        datagram::{MissingCall, find_missing_call},
    },
    telemetry::{
        access_log::{self, AccessLog, AccessLogs},
        line_writer::Destination,
    },
};
use std::{collections::BTreeMap, io::IsTerminal as _, sync::Arc};
use tokio::task::JoinHandle;

/// A plan, and what it needs from outside.
pub struct Prepared {
    pub plan: Plan,
    /// By the names of the upstreams.
    pub(super) upstreams: BTreeMap<String, UpstreamInputs>,
    /// The access log of the plan, once it is open: see [`Self::with_access_log`].
    pub(super) access_log: Option<Arc<AccessLog>>,
    /// For a start.
    pub(super) access_logs: Arc<AccessLogs>,
    pub(super) resolver: resolve::Resolver,
    /// The listeners, and the rights of their unix sockets.
    pub(super) listeners: Vec<(plan::Listener, FileRights)>,
}

/// What an upstream needs from outside.
#[derive(Default)]
pub(super) struct UpstreamInputs {
    /// Of its checks; `None`: those that it has stay.
    pub(super) credentials: Option<CheckCredentials>,
    /// For each backend of the plan, in that order.
    pub(super) addresses: Vec<Vec<Addr>>,
}

impl Prepared {
    /// For a start.
    pub async fn new(plan: Plan) -> Result<Self, StartErrors> {
        node::begin(plan.process.ready_file.as_deref()).await?;
        let log = plan.log.clone();
        let (access_logs, known) = (Arc::<AccessLogs>::default(), resolve::KnownAddresses::new());
        let opening = open_access_log(&log, &access_logs);
        let prepared = Self::with_addresses(plan, &known);
        let (access_log, prepared) = tokio::join!(opening, prepared);
        match (access_log, prepared) {
            (Ok(access_log), Ok(prepared)) => Ok(Self {
                access_log,
                access_logs,
                ..prepared
            }),
            (access_log, prepared) => {
                let mut errors: Vec<StartError> = access_log.err().into_iter().collect();
                errors.extend(prepared.err().into_iter().flat_map(|errors| errors.0));
                Err(StartErrors(errors))
            }
        }
    }

    /// Opens the access log, which creates its file: not for a dry run. `access_logs`: those of
    /// the running server.
    pub async fn with_access_log(self, access_logs: &Arc<AccessLogs>) -> Result<Self, StartErrors> {
        let access_log = open_access_log(&self.plan.log, access_logs).await?;
        Ok(Self { access_log, ..self })
    }

    /// For a change of the plan of a running server, without the access log. The names that the
    /// server has keep their addresses.
    pub async fn for_change(plan: Plan, running: &View) -> Result<Self, StartErrors> {
        Self::with_addresses(plan, &running.addresses()).await
    }

    async fn with_addresses(
        plan: Plan,
        known: &resolve::KnownAddresses,
    ) -> Result<Self, StartErrors> {
        check_udp(&plan)?;
        let missing = interfaces::missing(&plan);
        if !missing.is_empty() {
            return Err(StartErrors(missing));
        }
        let resolver = resolve::Resolver::default();
        let (credentials, addresses, rights) = tokio::join!(
            load_credentials(&plan.upstreams),
            resolve::all(&plan.upstreams, known, &resolver),
            rights::all(&plan.listeners),
        );
        let addresses = addresses.and_then(|addresses| {
            let names = plan.upstreams.iter().map(|upstream| upstream.name.clone());
            let addresses: BTreeMap<String, Vec<Vec<Addr>>> = names.zip(addresses).collect();
            let loops = interfaces::loops(&plan, &addresses);
            match loops.is_empty() {
                true => Ok(addresses),
                false => Err(loops),
            }
        });
        match (credentials, addresses, rights) {
            (Ok(mut credentials), Ok(addresses), Ok(rights)) => {
                let inputs = addresses.into_iter().map(|(name, addresses)| {
                    let inputs = UpstreamInputs {
                        credentials: credentials.remove(&name),
                        addresses,
                    };
                    (name, inputs)
                });
                Ok(Self {
                    upstreams: inputs.collect(),
                    listeners: plan.listeners.iter().cloned().zip(rights).collect(),
                    plan,
                    access_log: None,
                    access_logs: Arc::default(),
                    resolver,
                })
            }
            (credentials, addresses, rights) => {
                let mut errors = credentials.err().unwrap_or_default();
                errors.extend(addresses.err().unwrap_or_default());
                errors.extend(rights.err().unwrap_or_default());
                Err(StartErrors(errors))
            }
        }
    }
}

/// Whether the kernel lets UDP listeners work, and how many of them there may be.
fn check_udp(plan: &Plan) -> Result<(), StartError> {
    let udp_listeners = count_udp(plan);
    if udp_listeners > udp::MOST_LISTENERS {
        return Err(StartError::TooManyUdpListeners {
            count: udp_listeners,
            max: udp::MOST_LISTENERS,
        });
    }
    if udp_listeners > 0
        && let Some(missing) = find_missing_call()
    {
        let MissingCall { name, error } = &missing;
        // The log is where a supervisor looks; the message goes to a terminal as well.
        tracing::error!(call = name, %error, "UDP listeners need this system call");
        return Err(StartError::MissingCall(missing));
    }
    Ok(())
}

async fn open_access_log(
    log: &plan::Log,
    access_logs: &Arc<AccessLogs>,
) -> Result<Option<Arc<AccessLog>>, StartError> {
    let (destination, terminal) = match &log.access {
        plan::AccessLog::Off => return Ok(None),
        plan::AccessLog::Stdout => (Destination::Stdout, std::io::stdout().is_terminal()),
        plan::AccessLog::File(path) => (Destination::File(path.clone()), false),
    };
    let format = match log.format {
        plan::LogFormat::Text => access_log::Format::Text,
        plan::LogFormat::Auto if terminal => access_log::Format::Text,
        plan::LogFormat::Auto | plan::LogFormat::Json => access_log::Format::Json,
    };
    let access_logs = Arc::clone(access_logs);
    let open = move || access_logs.open(destination, format);
    let opened = blocking::call(blocking::LIMIT, open).await.flatten();
    let path = match &log.access {
        plan::AccessLog::File(path) => Some(path.clone()),
        plan::AccessLog::Off | plan::AccessLog::Stdout => None,
    };
    opened
        .map(Some)
        .map_err(|source| StartError::AccessLog { path, source })
}

/// The passwords and certificates that the checks of each upstream need, by its name.
pub(super) async fn load_credentials(
    upstreams: &[plan::Upstream],
) -> Result<BTreeMap<String, CheckCredentials>, Vec<StartError>> {
    // All at once: files that hang are waited for together.
    let loading: Vec<JoinHandle<_>> = upstreams
        .iter()
        .map(|upstream| {
            let check = upstream.check.clone();
            let load = move || {
                let loaded = check.as_ref().map(CheckCredentials::load).transpose();
                loaded.map(Option::unwrap_or_default)
            };
            tokio::spawn(blocking::call(blocking::LIMIT, load))
        })
        .collect();
    let mut credentials = BTreeMap::new();
    let mut errors = Vec::new();
    for (upstream, loading) in upstreams.iter().zip(loading) {
        match loading.await.map_err(std::io::Error::other).flatten() {
            Ok(Ok(loaded)) => {
                credentials.insert(upstream.name.clone(), loaded);
            }
            Ok(Err(source)) => errors.push(StartError::Credentials {
                upstream: upstream.name.clone(),
                source,
            }),
            Err(source) => errors.push(StartError::CredentialsUnread {
                upstream: upstream.name.clone(),
                files: sources(upstream),
                source,
            }),
        }
    }
    match errors.is_empty() {
        true => Ok(credentials),
        false => Err(errors),
    }
}

/// The files that a check reads.
fn sources(upstream: &plan::Upstream) -> String {
    let Some(check) = &upstream.check else {
        return String::new();
    };
    let files = check
        .files()
        .map(|(key, path)| format!("`{key}` {}", path.display()));
    let mut sources: Vec<String> = files.collect();
    if let Tls::Verify { ca: None, .. } = &check.tls {
        sources.push("the system's certificates".to_owned());
    }
    sources.join(" or ")
}
