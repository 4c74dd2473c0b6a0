//! The one writer: puts a plan into effect, owns the workers and their sockets, and takes all down.

mod bind;
mod checks;
mod leaving;
mod news;
mod resolve;
mod supervise;
mod wish;
mod worker;

pub use wish::{Unknown, Wished};

use crate::{
    access_log::{self, AccessLog},
    health::Pace,
    lines::Destination,
    metrics::Exporter,
    net::SocketFile,
    plan::{self, Place, Plan},
    pool::Pool,
    probe::Means,
    reason::CloseReason,
    service::{Process, Service, Warned},
    sessions::Sessions,
    sys,
};
use checks::Checks;
use leaving::Leaving;
use std::{
    io::IsTerminal,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wish::Controlled;
use worker::Worker;

/// Everything that was in the way of a start.
#[derive(Debug)]
pub struct StartErrors(pub Vec<String>);

/// What a running server is made of, as the admin side reads it.
pub struct State {
    pub plan: Plan,
    pub workers: usize,
    pub exporter: Exporter,
    pub process: Arc<Process>,
    pub services: Vec<Arc<Service>>,
    pub pools: Vec<Arc<Pool>>,
    /// The address each listener really has; port 0 has become a number.
    pub bound: Vec<(String, Place)>,
    pub started: SystemTime,
    draining: AtomicBool,
    /// In the order of the pools.
    controlled: Vec<Controlled>,
}

pub struct Server {
    pub state: Arc<State>,
    workers: Vec<Worker>,
    /// Ends the accepting and the resolving.
    stop: CancellationToken,
    /// Ends the checks, which go on while sessions are drained: a role may be lost then, too.
    stop_checks: CancellationToken,
    /// Accept loops and sessions.
    tasks: TaskTracker,
    socket_files: Vec<SocketFile>,
}

/// How long sessions that were told to end get to do so.
const CUT: Duration = Duration::from_secs(2);
/// How often histogram samples are folded together.
const UPKEEP: Duration = Duration::from_secs(5);

impl State {
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Whether every listener has somewhere to send a client.
    pub fn is_ready(&self) -> bool {
        let now = Instant::now();
        !self.is_draining() && self.services.iter().all(|s| s.pool.is_available(now))
    }
}

impl Server {
    /// Resolves, binds, and starts to serve; or does nothing at all and says why.
    pub async fn start(plan: Plan) -> Result<Self, StartErrors> {
        let workers = match plan.process.workers {
            0 => sys::limits::cpus(),
            n => n,
        };
        // Before the sockets: a range of ports may need more than the soft limit allows.
        let descriptors = sys::limits::raise_descriptors();
        let exporter = Exporter::new(workers).map_err(|e| one(format!("metrics: {e}")))?;
        let means = means(&plan)?;
        let addresses = resolve::all(&plan.upstreams).await.map_err(StartErrors)?;
        let bound = bind::all(&plan.listeners, workers).map_err(StartErrors)?;
        let most = most_sessions(&plan, descriptors, workers, bound.len());
        let metrics = Arc::new(exporter.process());
        let access_log = open_access_log(&plan.log)?;
        let process = Arc::new(Process {
            metrics,
            sessions: Arc::new(Sessions::new(workers, most)),
            access_log,
            journal: Arc::default(),
        });
        let pools: Vec<Arc<Pool>> = plan
            .upstreams
            .iter()
            .zip(&addresses)
            .map(|(upstream, places)| {
                let name: Arc<str> = upstream.name.as_str().into();
                Arc::new(Pool::new(
                    &name,
                    upstream,
                    |b| exporter.backend(&name, &b.text, upstream.check.is_some()),
                    places,
                    Instant::now(),
                ))
            })
            .collect();
        let services: Vec<Arc<Service>> = plan
            .listeners
            .iter()
            .filter_map(|listener| {
                let pool = pools.iter().find(|p| *p.name == *listener.upstream)?;
                let upstream = plan
                    .upstreams
                    .iter()
                    .find(|u| u.name == listener.upstream)?;
                Some(Arc::new(Service {
                    metrics: exporter.listener(&listener.name.as_str().into()),
                    plan: listener.clone(),
                    pool: Arc::clone(pool),
                    process: Arc::clone(&process),
                    send_proxy: upstream.send_proxy,
                    warned: Warned::default(),
                    warned_of_header: Warned::default(),
                }))
            })
            .collect();
        exporter.config_applied(SystemTime::now());

        let stop = CancellationToken::new();
        let stop_checks = CancellationToken::new();
        let tasks = TaskTracker::new();
        let threads = (0..workers)
            .map(|i| Worker::spawn(i, &tasks))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| one(format!("cannot start a worker thread: {e}")))?;
        let mut names = Vec::new();
        let mut socket_files = Vec::new();
        for listening in bound {
            let service = &services[listening.listener];
            tracing::info!(listener = %service.plan.name, address = %listening.place, "listening");
            socket_files.extend(listening.file);
            for (thread, socket) in threads.iter().zip(listening.sockets) {
                thread.listen(socket, Arc::clone(service), stop.clone());
            }
            names.push((service.plan.name.clone(), listening.place));
        }
        let pace = Arc::new(Mutex::new(Pace::new(Instant::now())));
        let mut controlled = Vec::new();
        for ((pool, upstream), means) in pools.iter().zip(&plan.upstreams).zip(means) {
            let changed = Arc::new(Notify::new());
            let leaving = Leaving::new(upstream, &process.sessions, &pace, &stop_checks);
            let leaving = Arc::new(leaving);
            controlled.push(Controlled {
                pool: Arc::clone(pool),
                leaving: Arc::clone(&leaving),
                changed: Arc::clone(&changed),
            });
            resolve::keep_fresh(
                Arc::clone(pool),
                upstream.clone(),
                Arc::clone(&process.journal),
                Arc::clone(&changed),
                stop.clone(),
            );
            if let Some(check) = &upstream.check {
                let checks = Checks::new(
                    pool,
                    check,
                    upstream.send_proxy,
                    means,
                    &leaving,
                    &process.journal,
                    &stop_checks,
                );
                let running = Arc::new(checks).run(changed);
                tokio::spawn(stop_checks.clone().run_until_cancelled_owned(running));
            }
        }
        let state = Arc::new(State {
            plan,
            workers,
            exporter,
            process,
            services,
            pools,
            bound: names,
            started: SystemTime::now(),
            draining: AtomicBool::new(false),
            controlled,
        });
        tokio::spawn(keep_up(Arc::downgrade(&state)));
        Ok(Self {
            state,
            workers: threads,
            stop,
            stop_checks,
            tasks,
            socket_files,
        })
    }

    /// Stops accepting, lets sessions end by themselves until `drain_timeout`, then cuts them. Returns
    /// how many were cut. Cancelling `at_once` skips the waiting.
    pub async fn stop(self, at_once: CancellationToken) -> u64 {
        let state = &self.state;
        let sessions = &state.process.sessions;
        state.draining.store(true, Ordering::Relaxed);
        self.stop.cancel();
        // Now, and not after the drain: by then the path may be that of the next process.
        drop(self.socket_files);
        self.tasks.close();
        let timeout = state.plan.process.drain_timeout;
        tracing::info!(sessions = sessions.count(), drain_timeout = ?timeout, "draining");
        let drained = tokio::select! {
            drained = tokio::time::timeout(timeout, self.tasks.wait()) => drained.is_ok(),
            () = at_once.cancelled() => false,
        };
        let cut = if drained {
            0
        } else {
            sessions.end_all(CloseReason::Drained)
        };
        if cut > 0 && tokio::time::timeout(CUT, self.tasks.wait()).await.is_err() {
            tracing::warn!(sessions = sessions.count(), "sessions did not end in time");
        }
        self.stop_checks.cancel();
        for worker in self.workers {
            worker.join();
        }
        if let Some(log) = &state.process.access_log {
            log.lines().flush();
        }
        cut
    }
}

/// Folds histogram samples together for as long as the server is there, whether or not anybody ever
/// scrapes: unfolded they would pile up.
async fn keep_up(state: Weak<State>) {
    loop {
        tokio::time::sleep(UPKEEP).await;
        match state.upgrade() {
            Some(state) => state.exporter.upkeep(),
            None => return,
        }
    }
}

impl std::fmt::Display for StartErrors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for error in &self.0 {
            writeln!(f, "error: {error}")?;
        }
        Ok(())
    }
}

/// The passwords and certificates that the checks of each upstream need, or everything that is wrong with them.
fn means(plan: &Plan) -> Result<Vec<Means>, StartErrors> {
    let found = plan.upstreams.iter().map(checks::means);
    let (good, bad): (Vec<_>, Vec<_>) = found.partition(Result::is_ok);
    let errors: Vec<String> = bad.into_iter().filter_map(Result::err).collect();
    if errors.is_empty() {
        Ok(good.into_iter().flatten().collect())
    } else {
        Err(StartErrors(errors))
    }
}

fn one(error: String) -> StartErrors {
    StartErrors(vec![error])
}

/// How many sessions there may be: two descriptors each, and something left for all the rest.
fn most_sessions(plan: &Plan, descriptors: u64, workers: usize, places: usize) -> u64 {
    let pipes = (descriptors / 64).clamp(1, 1024);
    sys::pipe::set_limit(usize::try_from(pipes).unwrap_or(1024));
    // For each worker: its event loop, a reserve and its listening sockets; then standard streams,
    // files, and the admin side with some clients.
    let fixed = (workers as u64 + 1) * 5 + (workers * places) as u64 + 20;
    // Each check that is under way has a socket.
    let checked = plan.upstreams.iter().filter(|u| u.check.is_some());
    let fixed = fixed + checked.map(|u| u.backends.len() as u64).sum::<u64>();
    let possible = (descriptors.saturating_sub(pipes * 2 + fixed) / 2).max(1);
    let wanted = plan.process.max_connections;
    if wanted > possible {
        tracing::warn!(
            max_connections = wanted,
            possible,
            descriptors,
            "the limit of open files allows fewer sessions than configured, and that many there will be; raise it (LimitNOFILE=)"
        );
    }
    let most = if wanted == 0 {
        possible
    } else {
        wanted.min(possible)
    };
    tracing::info!(max_connections = most, descriptors, workers, "starting");
    most
}

fn open_access_log(log: &plan::Log) -> Result<Option<AccessLog>, StartErrors> {
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
    AccessLog::open(destination.clone(), format)
        .map(Some)
        .map_err(|e| match destination {
            Destination::File(path) => one(format!(
                "cannot open the access log {}: {e}",
                path.display()
            )),
            Destination::Stdout | Destination::Stderr => {
                one(format!("cannot write the access log: {e}"))
            }
        })
}
