//! The one writer: puts a plan into effect, owns the workers and their sockets, and takes all down.

pub mod journal;
pub mod outage;

mod admin_state;
mod bind;
mod checks;
mod draining;
mod events;
mod interfaces;
mod limits;
mod pending;
mod prepare;
mod resolve;
mod rights;
mod supervise;

pub use crate::control::admin_state::Unknown;
pub use prepare::Prepared;

use crate::{
    config::text::shorten::shorten,
    control::{
        admin_state::Controlled,
        draining::Leaving,
        limits::{Budget, Given},
    },
    plan::{self, Addr, Plan, reason::CloseReason},
    proxy::{tcp, udp},
    runtime::net::SocketFile,
    session::{
        registry::{Descriptors, Sessions},
        service::{Intake, Notices, Process, Service},
    },
    sys::{self, blocking},
    telemetry::metrics::Exporter,
    upstream::{health::Pace, pool::Pool},
};
use bind::Sockets;
use checks::Checks;
use pending::{PendingListener, Ports};
use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Everything that was in the way of a start.
#[derive(Debug)]
pub struct StartErrors(pub Vec<String>);

/// What a running server is made of, as the admin side reads it.
pub struct State {
    pub plan: Plan,
    pub workers: usize,
    pub process: Arc<Process>,
    pub services: Vec<Arc<Service>>,
    pub pools: Vec<Arc<Pool>>,
    /// The address each listener really has; port 0 has become a number.
    pub bound: Vec<(String, Addr)>,
    pub started: SystemTime,
    /// In the order of the pools.
    controlled: Vec<Controlled>,
}

pub struct Server {
    pub state: Arc<State>,
    workers: Vec<tcp::Worker>,
    /// The same for datagrams.
    datagrams: Vec<udp::Worker>,
    /// Listeners that do not accept yet.
    pending: Vec<PendingListener>,
    /// Notified when a check has ended.
    checked: Arc<Notify>,
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
/// How often it is looked for events that the log has not been told of.
const UPKEEP: Duration = Duration::from_secs(5);

impl State {
    pub fn is_draining(&self) -> bool {
        self.process.sessions.is_stopping()
    }

    /// Whether every listener has somewhere to send a client.
    pub fn is_ready(&self) -> bool {
        let now = Instant::now();
        let serves = |s: &Arc<Service>| s.intake.is_working() && s.pool.is_available(now);
        !self.is_draining() && !self.is_starting() && self.services.iter().all(serves)
    }

    /// Whether a listener does not accept yet, since its upstream has no verdicts.
    pub fn is_starting(&self) -> bool {
        !self
            .services
            .iter()
            .all(|s| s.accepting.load(Ordering::Relaxed))
    }

    fn log_due(&self, now: Instant) {
        self.services
            .iter()
            .for_each(|service| service.log_due(now));
        for pool in &self.pools {
            pool.backends()
                .iter()
                .for_each(|backend| backend.log_due(now));
        }
    }

    fn log_rest(&self) {
        self.services.iter().for_each(|service| service.log_rest());
        for pool in &self.pools {
            pool.backends()
                .iter()
                .for_each(|backend| backend.log_rest());
        }
    }
}

impl Server {
    /// Binds, and starts to check; or does nothing at all and says why. Listeners whose upstreams
    /// are checked begin to accept in [`Server::accept_when_checked`], the others here.
    pub async fn start(prepared: Prepared) -> Result<Self, StartErrors> {
        let Prepared {
            plan,
            means,
            addresses,
            access_log,
            resolver,
            rights,
        } = prepared;
        let workers = match plan.process.workers {
            0 => sys::limits::cpus(),
            n => n,
        };
        // Before the sockets: a range of ports may need more than the soft limit allows.
        let descriptors = sys::limits::raise_descriptors();
        let exporter = Exporter::new(workers * 2);
        let bound = bind::all(&plan.listeners, rights, workers)
            .await
            .map_err(StartErrors)?;
        let most = most_sessions(&plan, descriptors, workers, bound.len());
        let descriptors_of_sessions = Arc::new(Descriptors::new(
            most.for_connections,
            most.for_flows,
            most.shared,
        ));
        let udp_listeners = count_udp(&plan);
        // A thread for datagrams beside each for connections, if there is anybody to send any.
        let udp_workers = if udp_listeners > 0 { workers } else { 0 };
        let metrics = Arc::new(exporter.process());
        let process = Arc::new(Process {
            metrics,
            sessions: Arc::new(Sessions::new(
                workers + udp_workers,
                most.connections,
                most.flows,
                &descriptors_of_sessions,
            )),
            access_log,
            journal: Arc::default(),
        });
        let pools: Vec<Arc<Pool>> = plan
            .upstreams
            .iter()
            .zip(&addresses)
            .map(|(upstream, places)| {
                let metrics = exporter.upstream(&upstream.name);
                Arc::new(Pool::new(
                    &metrics,
                    upstream,
                    |b| exporter.backend(&metrics, &b.text, upstream.check.is_some()),
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
                    metrics: exporter.listener(&listener.name),
                    plan: with_share(listener, most.flows, udp_listeners),
                    pool: Arc::clone(pool),
                    process: Arc::clone(&process),
                    send_proxy: upstream.send_proxy,
                    send_proxy_on: upstream.send_proxy_on,
                    notices: Notices::new(Instant::now()),
                    accepting: AtomicBool::new(false),
                    intake: Intake::default(),
                }))
            })
            .collect();

        let stop = CancellationToken::new();
        let stop_checks = CancellationToken::new();
        let tasks = TaskTracker::new();
        let threads = (0..workers)
            .map(|i| tcp::spawn_worker(i, &tasks))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| one(format!("cannot start a worker thread: {e}")))?;
        // All of them count their milliseconds from here.
        let began = Instant::now();
        let sockets = udp::Sockets::new(most.sockets, &descriptors_of_sessions);
        let datagrams = (0..udp_workers)
            .map(|i| udp::spawn_worker(i, workers + i, &sockets, began))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| one(format!("cannot start a worker thread: {e}")))?;
        let mut ports: Vec<Ports> = services.iter().map(|_| Ports::default()).collect();
        let mut udp_ports: BTreeMap<usize, Vec<Vec<udp::Port>>> = BTreeMap::new();
        let mut own = Vec::new();
        let mut names = Vec::new();
        let mut socket_files = Vec::new();
        for listening in bound {
            let service = &services[listening.listener];
            tracing::info!(listener = %service.plan.name, address = %listening.place, "listening");
            socket_files.extend(listening.file);
            match listening.sockets {
                Sockets::Streams(sockets) => ports[listening.listener].streams.push(sockets),
                Sockets::Datagrams(sockets) => {
                    let workers = udp_ports.entry(listening.listener).or_default();
                    workers.resize_with(sockets.len(), Vec::new);
                    own.extend(sockets.first().map(|port| port.address));
                    for (ports, socket) in workers.iter_mut().zip(sockets) {
                        ports.push(socket);
                    }
                }
            }
            names.push((service.plan.name.clone(), listening.place));
        }
        let own = Arc::new(udp::OwnAddresses::new(own, is_local));
        for (listener, workers) in udp_ports {
            let service = &services[listener];
            let per_source = match service.plan.protocol {
                plan::Protocol::Udp(udp) => udp::PerSource::new(udp.max_flows_per_source),
                plan::Protocol::Tcp => continue,
            };
            let peers = Arc::new(udp::PeerWorkers::default());
            let binding = |(worker, sockets)| udp::Binding {
                service: Arc::clone(service),
                sockets,
                per_source: Arc::clone(&per_source),
                peers: Arc::clone(&peers),
                own: Arc::clone(&own),
                is_first: worker == 0,
                alive: tasks.token(),
            };
            ports[listener].datagrams = workers.into_iter().enumerate().map(binding).collect();
        }
        let checked = Arc::new(Notify::new());
        let shared = checks::Shared {
            journal: Arc::clone(&process.journal),
            checked: Arc::clone(&checked),
            stop: stop_checks.clone(),
        };
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
                upstream,
                &resolver,
                Arc::clone(&process.journal),
                Arc::clone(&changed),
                &stop,
            );
            if let Some(check) = &upstream.check {
                let checks = Checks::new(
                    pool,
                    check,
                    upstream.send_proxy,
                    means,
                    &leaving,
                    shared.clone(),
                );
                let running = Arc::new(checks).run(changed);
                tokio::spawn(stop_checks.clone().run_until_cancelled_owned(running));
            }
        }
        let now = Instant::now();
        let pending = services.iter().zip(ports).filter_map(|(service, ports)| {
            let is_its = |u: &&plan::Upstream| u.name == service.plan.upstream;
            let upstream = plan.upstreams.iter().find(is_its)?;
            let wait = plan.process.start_wait;
            let service = Arc::clone(service);
            Some(PendingListener::new(service, ports, upstream, wait, now))
        });
        let pending = pending.collect();
        let state = Arc::new(State {
            plan,
            workers,
            process,
            services,
            pools,
            bound: names,
            started: SystemTime::now(),
            controlled,
        });
        tokio::spawn(keep_up(Arc::downgrade(&state)));
        let mut server = Self {
            state,
            workers: threads,
            datagrams,
            pending,
            checked,
            stop,
            stop_checks,
            tasks,
            socket_files,
        };
        server.accept_due(now);
        if server.is_pending() {
            let listeners = server.pending.len();
            tracing::info!(listeners, "waiting for the first checks before accepting");
        }
        Ok(server)
    }

    /// Begins to accept on the listeners that wait, each once its upstream has first verdicts.
    /// Returns when all accept. It can be dropped and called again without loss.
    pub async fn accept_when_checked(&mut self) {
        while !self.pending.is_empty() {
            let deadline = self
                .pending
                .iter()
                .filter_map(PendingListener::deadline)
                .min();
            let timeout = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.checked.notified() => {}
                () = timeout => {}
            }
            self.accept_due(Instant::now());
        }
    }

    fn accept_due(&mut self, now: Instant) {
        let due = PendingListener::take_due(&mut self.pending, now);
        due.into_iter().for_each(|listener| self.accept(listener));
    }

    /// Whether a listener does not accept yet.
    pub fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    fn accept(&self, listener: PendingListener) {
        let (service, ports) = listener.begin();
        for sockets in ports.streams {
            for (thread, socket) in self.workers.iter().zip(sockets) {
                thread.send(tcp::Order::Listen(Box::new(tcp::Binding {
                    socket,
                    service: Arc::clone(&service),
                    alive: self.tasks.token(),
                })));
            }
        }
        for (thread, binding) in self.datagrams.iter().zip(ports.datagrams) {
            thread.send(udp::Order::Listen(Box::new(binding)));
        }
    }

    /// Stops accepting, lets sessions end by themselves until `drain_timeout`, then cuts them.
    /// Returns how many were cut. Cancelling `at_once` skips the waiting.
    pub async fn stop(mut self, at_once: CancellationToken) -> u64 {
        // Clients in the queues of a listener that has not accepted yet are served as those of
        // others.
        let pending = std::mem::take(&mut self.pending);
        pending
            .into_iter()
            .for_each(|listener| self.accept(listener));
        let state = &self.state;
        let sessions = &state.process.sessions;
        // First, since `/readyz` and the admission of new flows read it.
        sessions.stop();
        self.stop.cancel();
        for worker in &self.workers {
            worker.send(tcp::Order::Drain);
        }
        for worker in &self.datagrams {
            worker.send(udp::Order::Drain);
        }
        // Now, and not after the drain: by then the path may be that of the next process.
        let files = self.socket_files;
        let _ = blocking::call(CUT, move || drop(files)).await;
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
        for worker in self.datagrams {
            worker.join();
        }
        state.log_rest();
        flush_access_log(state).await;
        cut
    }
}

/// A reader that has stalled is not waited for.
async fn flush_access_log(state: &State) {
    let Some(log) = &state.process.access_log else {
        return;
    };
    let lines = log.lines().clone();
    let _ = blocking::call(CUT * 2, move || lines.flush()).await;
    let lost = log.lines().pending();
    if lost > 0 {
        tracing::warn!(lost, "access log is not writable, last lines are lost");
    }
}

/// Logs how many events came since the last line about them, and gives memory back, for as long
/// as the server is there.
async fn keep_up(state: Weak<State>) {
    loop {
        tokio::time::sleep(UPKEEP).await;
        match state.upgrade() {
            Some(state) => {
                state.log_due(Instant::now());
                if sys::memory::has_grown() {
                    // Beside the control thread: it can take milliseconds.
                    let _ = blocking::call(blocking::LIMIT, sys::memory::give_back).await;
                }
            }
            None => return,
        }
    }
}

impl std::fmt::Display for StartErrors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for error in &self.0 {
            // A path in it may be long.
            writeln!(f, "error: {}", shorten(error, 1_000))?;
        }
        Ok(())
    }
}

fn one(error: String) -> StartErrors {
    StartErrors(vec![error])
}

fn count_udp(plan: &Plan) -> usize {
    let is_udp = |l: &&plan::Listener| matches!(l.protocol, plan::Protocol::Udp(_));
    plan.listeners.iter().filter(is_udp).count()
}

/// A UDP listener that has no limit of its own gets an equal share: clients whose addresses are
/// forged can fill only that.
fn with_share(listener: &plan::Listener, flows: u64, among: usize) -> plan::Listener {
    let mut listener = listener.clone();
    if listener.max_connections == 0 && matches!(listener.protocol, plan::Protocol::Udp(_)) {
        listener.max_connections = (flows / among.max(1) as u64).max(1);
    }
    listener
}

/// How many sessions there may be. Something is left of the descriptors for all the rest.
fn most_sessions(plan: &Plan, descriptors: u64, workers: usize, places: usize) -> Budget {
    let pipes = (descriptors / 64).clamp(1, 1024);
    sys::pipe::set_limit(usize::try_from(pipes).unwrap_or(1024));
    // For each worker: its event loop, a reserve and its listening sockets; then standard streams,
    // files, and the admin side with some clients.
    let fixed = (workers as u64 + 1) * 8 + (workers * places) as u64 + 20;
    // Each check that is under way has a socket.
    let checked = plan.upstreams.iter().filter(|u| u.check.is_some());
    let fixed = fixed + checked.map(|u| u.backends.len() as u64).sum::<u64>();
    let free = descriptors.saturating_sub(pipes * 2 + fixed).max(2);
    let udp = count_udp(plan);
    let tcp = plan.listeners.len() - udp;
    let ports = sys::limits::local_ports() * 4 / 5;
    let budget = limits::divide(Given {
        descriptors: free,
        ports,
        has_tcp: tcp > 0,
        has_udp: udp > 0,
        max_connections: plan.process.max_connections,
        max_flows: plan.process.max_flows,
        evicts: plan.listeners.iter().any(|l| {
            matches!(l.protocol, plan::Protocol::Udp(udp) if udp.when_full == plan::WhenFull::Evict)
        }),
    });
    if udp > 0 && plan.process.max_flows > budget.possible_flows {
        tracing::warn!(
            max_flows = plan.process.max_flows,
            possible = budget.possible_flows,
            descriptors,
            ports,
            "the limit of open files or the range of local ports allows fewer flows than configured, and that many there will be; raise it (LimitNOFILE=, net.ipv4.ip_local_port_range)"
        );
    }
    if plan.process.max_connections > budget.possible_connections {
        tracing::warn!(
            max_connections = plan.process.max_connections,
            possible = budget.possible_connections,
            descriptors,
            "the limit of open files allows fewer sessions than configured, and that many there will be; raise it (LimitNOFILE=)"
        );
    }
    let Budget {
        connections, flows, ..
    } = budget;
    match (tcp, udp) {
        (_, 0) => {
            tracing::info!(
                max_connections = connections,
                descriptors,
                workers,
                "starting"
            );
        }
        (0, _) => tracing::info!(max_flows = flows, descriptors, workers, "starting"),
        _ => {
            tracing::info!(
                max_connections = connections,
                max_flows = flows,
                descriptors,
                workers,
                "starting"
            );
        }
    }
    budget
}

/// Where the kernel does not tell, at least the loopback addresses are known.
fn is_local(ip: IpAddr) -> bool {
    sys::route::is_local(ip).unwrap_or_else(|_| ip.is_loopback())
}
