//! What a plan needs from outside: passwords, certificates, the access log, the addresses of host
//! names. All of it is there before any port is bound, or the result is everything that is wrong.
//! None of it can hold up the event loop, and so no signal.

use super::{
    StartError, StartErrors, View, interfaces, node, resolve, rights,
    upgrade::inheritance::Inheritance,
};
use crate::{
    control::{
        access_logs::OpenLogs,
        budget::count_udp,
        discovery::{self, Discovery, PreparedDiscovery},
    },
    handover::discovery::DiscoveryRecord,
    plan::{self, Addr, Plan, Tls},
    probe::CheckCredentials,
    proxy::udp,
    runtime::net::FileRights,
    sys::{
        blocking,
        datagram::{MissingCall, find_missing_call},
    },
    telemetry::access_log::AccessLogs,
};
use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
};

/// A plan, and what it needs from outside.
pub struct Prepared {
    pub plan: Plan,
    /// What each upstream needs, by its name.
    pub(super) upstreams: BTreeMap<String, UpstreamInputs>,
    /// The access logs of the plan, once they are open: see [`Self::with_access_logs`].
    pub(super) open_logs: OpenLogs,
    /// For a start.
    pub(super) access_logs: Arc<AccessLogs>,
    pub(super) resolver: resolve::Resolver,
    /// The listeners, and the rights of their unix sockets.
    pub(super) listeners: Vec<(plan::Listener, FileRights)>,
    /// What other sockets of this process have that are closed when the plan is in effect.
    pub(super) shared: Vec<SocketAddr>,
    /// What the process has that this one replaces.
    pub(super) inheritance: Option<Inheritance>,
}

/// What an upstream needs from outside.
#[derive(Default)]
pub(super) struct UpstreamInputs {
    /// What its checks need; `None`: the credentials that they have stay.
    pub(super) credentials: Option<CheckCredentials>,
    /// For each backend of the plan, in that order.
    pub(super) addresses: Vec<Vec<Addr>>,
    /// Its source of backends, if it has one.
    pub(super) discovery: Option<PreparedDiscovery>,
}

impl Prepared {
    /// Prepares a start.
    pub async fn new(plan: Plan) -> Result<Self, StartErrors> {
        node::begin(plan.process.ready_file.as_deref()).await?;
        Self::for_start(plan, &resolve::KnownAddresses::new(), &[]).await
    }

    /// Prepares a start that takes over from another process.
    pub async fn with_inheritance(
        plan: Plan,
        inheritance: Inheritance,
    ) -> Result<Self, StartErrors> {
        let known = inheritance.addresses();
        let prepared = Self::for_start(plan, &known, &inheritance.discoveries).await?;
        Ok(Self {
            inheritance: Some(inheritance),
            ..prepared
        })
    }

    async fn for_start(
        plan: Plan,
        known: &resolve::KnownAddresses,
        discoveries: &[DiscoveryRecord],
    ) -> Result<Self, StartErrors> {
        let for_logs = plan.clone();
        let access_logs = Arc::<AccessLogs>::default();
        let opening = OpenLogs::open(&for_logs, &access_logs);
        let running = BTreeMap::new();
        let prepared = Self::with_addresses(plan, known, &running, discoveries);
        let (open_logs, prepared) = tokio::join!(opening, prepared);
        match (open_logs, prepared) {
            (Ok(open_logs), Ok(prepared)) => Ok(Self {
                open_logs,
                access_logs,
                ..prepared
            }),
            (open_logs, prepared) => {
                let errors = [open_logs.err(), prepared.err()];
                let errors = errors.into_iter().flatten().flat_map(|errors| errors.0);
                Err(StartErrors(errors.collect()))
            }
        }
    }

    /// Opens the access logs, which creates their files: not for a dry run. `access_logs`: those of
    /// the running server.
    pub async fn with_access_logs(
        self,
        access_logs: &Arc<AccessLogs>,
    ) -> Result<Self, StartErrors> {
        let open_logs = OpenLogs::open(&self.plan, access_logs).await?;
        Ok(Self { open_logs, ..self })
    }

    /// For a change of the plan of a running server, without the access logs. The names that the
    /// server has keep their addresses.
    pub async fn for_change(plan: Plan, running: &View) -> Result<Self, StartErrors> {
        Self::with_addresses(plan, &running.addresses(), &running.discoveries, &[]).await
    }

    /// Upstreams with a source get the backends that it has found.
    async fn with_addresses(
        mut plan: Plan,
        known: &resolve::KnownAddresses,
        running: &BTreeMap<String, Arc<Discovery>>,
        handed: &[DiscoveryRecord],
    ) -> Result<Self, StartErrors> {
        check_udp(&plan)?;
        let mut discoveries = discovery::begin_all(&mut plan, running, handed).await;
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
            let addresses = without_discovered_loops(&mut plan, addresses);
            let loops = interfaces::forwarding_loops(&plan, &addresses);
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
                        discovery: discoveries.remove(&name),
                    };
                    (name, inputs)
                });
                Ok(Self {
                    upstreams: inputs.collect(),
                    listeners: plan.listeners.iter().cloned().zip(rights).collect(),
                    plan,
                    open_logs: OpenLogs::default(),
                    access_logs: Arc::default(),
                    resolver,
                    shared: Vec::new(),
                    inheritance: None,
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

/// Takes discovered backends out of the plan that would make a listener its own backend, and
/// returns the addresses of the others.
fn without_discovered_loops(
    plan: &mut Plan,
    addresses: BTreeMap<String, Vec<Vec<Addr>>>,
) -> BTreeMap<String, Vec<Vec<Addr>>> {
    let upstreams = plan.upstreams.iter().map(|upstream| {
        let of = addresses.get(&upstream.name).into_iter().flatten().cloned();
        let texts = upstream.backends.iter().map(|backend| backend.text.clone());
        (
            upstream.name.clone(),
            texts.zip(of).collect::<HashMap<_, _>>(),
        )
    });
    let by_text: HashMap<String, HashMap<String, Vec<Addr>>> = upstreams.collect();
    let of = |upstream: &plan::Upstream| {
        let known = by_text.get(&upstream.name);
        let of = |backend: &plan::Backend| {
            let addresses = known.and_then(|known| known.get(&backend.text));
            addresses.cloned().unwrap_or_default()
        };
        upstream.backends.iter().map(of).collect::<Vec<_>>()
    };
    interfaces::remove_discovered_loops(plan, of);
    let upstreams = plan.upstreams.iter();
    upstreams
        .map(|upstream| (upstream.name.clone(), of(upstream)))
        .collect()
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

/// The passwords and certificates that the checks of each upstream need, by its name.
pub(super) async fn load_credentials(
    upstreams: &[plan::Upstream],
) -> Result<BTreeMap<String, CheckCredentials>, Vec<StartError>> {
    let (mut credentials, mut errors) = (BTreeMap::new(), Vec::new());
    // Files that hang are waited for together.
    let (mut loading, calls) = (Vec::new(), blocking::Calls::default());
    let load = |check: Option<&plan::Check>| {
        let loaded = check.map(CheckCredentials::load).transpose();
        loaded.map(Option::unwrap_or_default)
    };
    for upstream in upstreams {
        let check = upstream.check.clone();
        let begun = match check.filter(plan::Check::reads_files) {
            Some(check) => {
                let load = move || load(Some(&check));
                Some(calls.begin(blocking::LIMIT, load).await)
            }
            None => None,
        };
        loading.push((upstream, begun));
    }
    for (upstream, loading) in loading {
        let loaded = match loading {
            Some(loading) => loading.await.map_err(std::io::Error::other).flatten(),
            None => Ok(load(upstream.check.as_ref())),
        };
        match loaded {
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
