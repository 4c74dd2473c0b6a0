//! One check of every backend of a plan, for an operator who wants to know whether they answer.
//! Nothing is served, and nothing is kept.

use super::{StartErrors, prepare::load_credentials, resolve};
use crate::{
    plan::{
        Addr, Check, CheckAt, CheckKind, Plan, Protocol, Role, SessionAction, Tls, Upstream,
        reason::CheckResult,
    },
    probe::{CheckReport, Probe},
    sys::task::boxed,
    upstream::{
        balance::Chance,
        health::{PrimaryClaim, count_servers},
    },
};
use ahash::RandomState;
use std::{sync::Arc, time::Duration};
use tokio::sync::Semaphore;

/// Checks that are made at the same time.
const MOST_AT_ONCE: usize = 64;
/// For a connect to a backend whose upstream no listener has.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What became of one address of a backend.
#[derive(Debug)]
pub struct ProbedBackend {
    pub upstream: String,
    /// As configured.
    pub backend: String,
    /// What it stands for; `None`: nothing, or it was not looked up.
    pub address: Option<Addr>,
    pub outcome: ProbeOutcome,
}

#[derive(Debug)]
pub enum ProbeOutcome {
    /// By the check of the upstream, or a connect where it has none.
    Checked(CheckReport),
    /// It is down by the configuration.
    Disabled,
    NotResolved,
    /// Whether it answers cannot be known without a check: it is for datagrams.
    NoCheck,
}

impl ProbeOutcome {
    pub fn is_refused_login(&self) -> bool {
        matches!(self, Self::Checked(report) if report.result == CheckResult::Auth)
    }

    /// Whether the backend is not as it has to be. A server in the other role than the required one
    /// is.
    pub fn is_failure(&self) -> bool {
        match self {
            Self::Checked(report) => match report.result {
                CheckResult::Ok | CheckResult::Standby => false,
                CheckResult::WrongRole
                | CheckResult::Refused
                | CheckResult::Timeout
                | CheckResult::Unreachable
                | CheckResult::Reset
                | CheckResult::Closed
                | CheckResult::Protocol
                | CheckResult::Unexpected
                | CheckResult::Auth
                | CheckResult::RefusesWrites
                | CheckResult::Busy
                | CheckResult::Loading
                | CheckResult::MasterDown
                | CheckResult::Lagging
                | CheckResult::NotReplicating
                | CheckResult::Tls
                | CheckResult::Local => true,
            },
            Self::NotResolved => true,
            Self::Disabled | Self::NoCheck => false,
        }
    }

    /// Whether what is wrong ends by itself where the server was started or promoted just now.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Checked(report) => match report.result {
                CheckResult::Loading
                | CheckResult::MasterDown
                | CheckResult::Lagging
                | CheckResult::NotReplicating
                | CheckResult::Busy => true,
                // A replica that is not required is not synchronised yet.
                CheckResult::WrongRole => report.finding.fault.is_some(),
                CheckResult::Ok
                | CheckResult::Standby
                | CheckResult::Refused
                | CheckResult::Timeout
                | CheckResult::Unreachable
                | CheckResult::Reset
                | CheckResult::Closed
                | CheckResult::Protocol
                | CheckResult::Unexpected
                | CheckResult::Auth
                | CheckResult::RefusesWrites
                | CheckResult::Tls
                | CheckResult::Local => false,
            },
            Self::NotResolved | Self::Disabled | Self::NoCheck => false,
        }
    }
}

/// In the order of the file. Errors are what a start would not get over either.
pub async fn probe_once(plan: &Plan) -> Result<Vec<ProbedBackend>, StartErrors> {
    let resolver = resolve::Resolver::default();
    let known = resolve::KnownAddresses::new();
    let (credentials, addresses) = tokio::join!(
        load_credentials(&plan.upstreams),
        resolve::all(&plan.upstreams, &known, &resolver),
    );
    let (mut credentials, addresses) = match (credentials, addresses) {
        (Ok(credentials), Ok(addresses)) => (credentials, addresses),
        (credentials, addresses) => {
            let mut errors = credentials.err().unwrap_or_default();
            errors.extend(addresses.err().unwrap_or_default());
            return Err(StartErrors(errors));
        }
    };
    let places = Arc::new(Semaphore::new(MOST_AT_ONCE));
    let mut asked = Vec::new();
    for (upstream, addresses) in plan.upstreams.iter().zip(addresses) {
        let credentials = credentials.remove(&upstream.name).unwrap_or_default();
        for (backend, addresses) in upstream.backends.iter().zip(addresses) {
            let of = |address: Option<Addr>| (upstream.name.clone(), backend.text.clone(), address);
            if backend.down {
                asked.push((of(None), Asked::Not(ProbeOutcome::Disabled)));
                continue;
            }
            if addresses.is_empty() {
                asked.push((of(None), Asked::Not(ProbeOutcome::NotResolved)));
            }
            for address in addresses {
                let started = match check_of(plan, upstream) {
                    None => Asked::Not(ProbeOutcome::NoCheck),
                    Some(check) => {
                        let probe = Probe::new(
                            &address,
                            &backend.text,
                            &check,
                            upstream.send_proxy,
                            credentials.clone(),
                        );
                        Asked::Task(tokio::spawn(boxed(ask(probe, Arc::clone(&places)))))
                    }
                };
                asked.push((of(Some(address)), started));
            }
        }
    }
    let mut probed = Vec::new();
    for ((upstream, backend, address), asked) in asked {
        let outcome = match asked {
            Asked::Not(outcome) => outcome,
            Asked::Task(task) => match task.await {
                Ok(report) => ProbeOutcome::Checked(report),
                // A check that panics has reported it.
                Err(_) => continue,
            },
        };
        probed.push(ProbedBackend {
            upstream,
            backend,
            address,
            outcome,
        });
    }
    Ok(probed)
}

/// An upstream that is to have one primary, and has none or several.
#[derive(Debug)]
pub struct WrongPrimaries {
    pub upstream: String,
    /// The backends that report to be primary.
    pub primaries: Vec<String>,
}

/// A server that is reached by several backends counts once.
pub fn find_wrong_primaries(plan: &Plan, probed: &[ProbedBackend]) -> Vec<WrongPrimaries> {
    let of_check = |upstream: &&Upstream| {
        let role = upstream.check.as_ref().and_then(|check| check.kind.role());
        role == Some(Role::Primary)
    };
    let wrong = plan
        .upstreams
        .iter()
        .filter(of_check)
        .filter_map(|upstream| {
            let of_upstream = probed.iter().filter(|one| one.upstream == upstream.name);
            let (backends, claims): (Vec<_>, Vec<_>) = of_upstream
                .filter_map(|one| match (&one.outcome, &one.address) {
                    (ProbeOutcome::Checked(report), Some(addr))
                        if report.result == CheckResult::Ok =>
                    {
                        let claim = PrimaryClaim {
                            role_since: None,
                            epoch: report.finding.epoch.as_ref(),
                            addr,
                            server: report.finding.server.as_deref(),
                            answers: true,
                        };
                        Some((one.backend.clone(), claim))
                    }
                    _ => None,
                })
                .unzip();
            (count_servers(&claims) != 1).then(|| WrongPrimaries {
                upstream: upstream.name.clone(),
                primaries: backends,
            })
        });
    wrong.collect()
}

enum Asked {
    Task(tokio::task::JoinHandle<CheckReport>),
    Not(ProbeOutcome),
}

async fn ask(probe: Probe, places: Arc<Semaphore>) -> CheckReport {
    // It is never closed.
    let _place = places.acquire().await;
    let mut chance = Chance::from_seed(RandomState::new().hash_one(()));
    let (report, disconnect) = probe.ask(chance.draw()).await;
    if let Some(disconnect) = disconnect {
        disconnect.complete().await;
    }
    report
}

/// A connect where the upstream has no check; `None`: it is for datagrams alone.
fn check_of(plan: &Plan, upstream: &Upstream) -> Option<Check> {
    if let Some(check) = &upstream.check {
        return Some(check.clone());
    }
    let mut listeners = plan
        .listeners
        .iter()
        .filter(|l| l.upstream == upstream.name)
        .peekable();
    let is_used = listeners.peek().is_some();
    let streams = listeners.filter(|l| matches!(l.protocol, Protocol::Tcp));
    let timeout = streams.map(|l| l.connect_timeout).max();
    match (timeout, is_used) {
        (None, true) => None,
        (timeout, _) => Some(connect_alone(timeout.unwrap_or(CONNECT_TIMEOUT))),
    }
}

fn connect_alone(timeout: Duration) -> Check {
    Check {
        kind: CheckKind::Tcp,
        interval: timeout,
        fast_interval: timeout,
        timeout,
        rise: 1,
        fall: 1,
        stale_after: None,
        panic_threshold: 0,
        role_fallback: false,
        start_up: false,
        at: CheckAt::Backend,
        tls: Tls::Off,
        on_down: SessionAction::Keep,
        on_role_lost: SessionAction::Keep,
        on_lag: SessionAction::Keep,
        on_recover: SessionAction::Keep,
    }
}
