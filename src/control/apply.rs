//! Puts plans into effect: creates, keeps and removes listeners, upstreams and their tasks, each by
//! its name. A start is the change from a plan without any.

mod discovered;
mod fd_store;
mod flow_transfer;
mod listener;
mod listener_copies;
mod listeners;
mod removed_listeners;
mod removed_upstreams;
mod tcp_sockets;
mod udp_sockets;
mod upstream;

use super::{
    Carriers, Prepared, ServiceManager, StartError, StartErrors, View, access_logs::OpenLogs,
    checks, discovery::DiscoveryQueue, journal::Journal, prepare::UpstreamInputs,
    resolve::Resolver, upgrade::inheritance::Inheritance,
};
use crate::{
    config,
    control::budget::{self, Budget, HostLimits},
    handover::pools::PoolRecord,
    plan::{
        self, Plan,
        diff::{Change, diff, reachable},
        reason::CloseReason,
    },
    proxy::{tcp, udp},
    runtime::{heartbeat::Pulse, time},
    session::{
        registry::{Descriptors, Sessions},
        service::ProcessContext,
        sockets::FlowSockets,
    },
    sys::{self, mutex::Mutex},
    telemetry::metrics::Exporter,
    upstream::health::Pace,
};
use fd_store::{Store, StoreRole};
use listener::{ListenerRuntime, ListenerSockets};
use removed_listeners::RemovedListeners;
use removed_upstreams::RemovedUpstreams;
use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use udp_sockets::DatagramSockets;
use upstream::UpstreamRuntime;

/// Everything that a plan in effect is made of. Dropping a part of it ends the tasks of that part.
pub(super) struct Runtime {
    plan: Plan,
    host: HostLimits,
    exporter: Exporter,
    pub(super) process: Arc<ProcessContext>,
    /// The access logs of sessions that begin from now on.
    open_logs: OpenLogs,
    pub(super) journal: Arc<Journal>,
    pub(super) manager: ServiceManager,
    store: Store,
    descriptors: Arc<Descriptors>,
    /// The sockets that flows may have, over all workers.
    sockets: Arc<FlowSockets>,
    workers: Workers,
    resolver: Resolver,
    checks: checks::Shared,
    /// Upstreams whose discovered backends have changed.
    pub(super) discovered: Arc<DiscoveryQueue>,
    /// Limits how fast sessions are terminated, over all upstreams.
    pace: Arc<Mutex<Pace>>,
    /// Tracks accept loops and sessions.
    tasks: TaskTracker,
    upstreams: BTreeMap<String, UpstreamRuntime>,
    removed: RemovedUpstreams,
    removed_listeners: RemovedListeners,
    listeners: BTreeMap<String, ListenerRuntime>,
    /// UDP sockets of no listener any more, until their flows have ended, with the name of the
    /// listener that they had.
    closing: Vec<(String, DatagramSockets)>,
    /// The addresses of all UDP sockets.
    own: Arc<udp::OwnAddresses>,
    /// Listeners do not accept, whatever the verdicts: another process does.
    is_held: bool,
    /// Whether no client is let in, since an operator drains the node.
    pub(super) refuses_clients: bool,
    /// The numbers of the sockets that were handed over and that no listener has.
    pub(super) unused: Vec<u64>,
}

/// What a change of the plan has done.
#[derive(Debug)]
pub struct Applied {
    /// The differences to the plan before; those that need an upgrade are not in effect.
    pub changes: Vec<Change>,
    /// For how long a worker was kept from its sockets by it, at most.
    pub longest_pause: Duration,
}

/// How long workers are waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// Between two looks whether flows have ended.
const RELEASE_LOOK: Duration = Duration::from_millis(2);

/// The threads that carry traffic.
struct Workers {
    connections: Vec<tcp::Worker>,
    /// As many, once there is a UDP listener.
    datagrams: Vec<udp::Worker>,
    /// Where the milliseconds of sessions are counted from.
    epoch: Instant,
}

impl Workers {
    /// Waits until the workers have executed the orders that they got.
    async fn confirm(&self) {
        let orders = TaskTracker::new();
        for worker in &self.connections {
            worker.send(tcp::Order::Confirm(orders.token()));
        }
        for worker in &self.datagrams {
            worker.send(udp::Order::Confirm(orders.token()));
        }
        orders.close();
        if tokio::time::timeout(PATIENCE, orders.wait()).await.is_err() {
            tracing::warn!("workers have not confirmed the change of the plan in time");
        }
    }

    /// The longest pause of a worker since this was called last.
    fn take_longest_pause(&self) -> Duration {
        let pulses = self.pulses().into_iter();
        let pauses = pulses.map(|pulse| pulse.pauses.take());
        pauses.max().unwrap_or_default()
    }

    fn pulses(&self) -> Vec<Arc<Pulse>> {
        let connections = self.connections.iter().map(tcp::Worker::pulse);
        let datagrams = self.datagrams.iter().map(udp::Worker::pulse);
        connections.chain(datagrams).cloned().collect()
    }

    /// Ends accepting, and flows that fall silent.
    fn drain(&self) {
        for worker in &self.connections {
            worker.send(tcp::Order::Drain);
        }
        for worker in &self.datagrams {
            worker.send(udp::Order::Drain);
        }
    }
}

impl Runtime {
    /// Starts the threads for connections; there is nothing to serve yet.
    pub(super) fn new(prepared: &Prepared) -> io::Result<Self> {
        let Plan {
            process,
            admin,
            log,
            ..
        } = &prepared.plan;
        let workers = worker_count(process);
        // Before any socket is bound: a range of ports may need more than the soft limit allows.
        let descriptors = sys::limits::raise_descriptors();
        let host = HostLimits {
            descriptors,
            ports: sys::limits::local_ports(),
            workers,
            has_datagram_workers: false,
        };
        sys::pipe::set_limit(budget::pipes(descriptors));
        let descriptors = Arc::new(Descriptors::new(0, 0, 0));
        // A thread for datagrams beside each for connections.
        let shards = workers * 2;
        let exporter = Exporter::new(shards);
        let epoch = time::epoch();
        let process_state = ProcessContext {
            metrics: Arc::new(exporter.process()),
            sessions: Arc::new(Sessions::new(shards, 0, 0, &descriptors, epoch)),
            access_logs: Arc::clone(&prepared.access_logs),
        };
        let manager = ServiceManager::from_environment();
        let tasks = TaskTracker::new();
        let spawn = |i| tcp::spawn_worker(i, &tasks, epoch);
        let workers = Workers {
            connections: (0..workers).map(spawn).collect::<io::Result<_>>()?,
            datagrams: Vec::new(),
            epoch,
        };
        Ok(Self {
            plan: Plan {
                process: process.clone(),
                admin: admin.clone(),
                log: log.clone(),
                listeners: Vec::new(),
                upstreams: Vec::new(),
            },
            host,
            exporter,
            sockets: FlowSockets::new(0, &descriptors),
            descriptors,
            workers,
            resolver: prepared.resolver.clone(),
            checks: checks::Shared {
                checked: Arc::default(),
                stop: CancellationToken::new(),
            },
            discovered: Arc::default(),
            process: Arc::new(process_state),
            open_logs: OpenLogs::default(),
            journal: Arc::new(match &prepared.inheritance {
                Some(inheritance) => Journal::resume(&inheritance.journal),
                None => Journal::default(),
            }),
            store: Store::new(
                manager.clone(),
                match prepared.inheritance {
                    Some(_) => StoreRole::Successor,
                    None => StoreRole::Main,
                },
            ),
            manager,
            pace: Arc::new(Mutex::new(Pace::new(Instant::now()))),
            tasks,
            upstreams: BTreeMap::new(),
            removed: RemovedUpstreams::default(),
            removed_listeners: RemovedListeners::default(),
            listeners: BTreeMap::new(),
            closing: Vec::new(),
            own: Arc::new(udp::OwnAddresses::new([], is_local)),
            is_held: prepared.inheritance.is_some(),
            refuses_clients: false,
            unused: Vec::new(),
        })
    }

    /// Puts the plan into effect, or changes nothing and returns what is in the way.
    pub(super) async fn apply(&mut self, mut prepared: Prepared) -> Result<Applied, StartErrors> {
        let changes = diff(&self.plan, &prepared.plan);
        let plan = reachable(&self.plan, &prepared.plan);
        self.closing.retain(|(_, sockets)| sockets.is_open());
        let Inheritance {
            sockets: handed,
            pools,
            ..
        } = prepared.inheritance.take().unwrap_or_default();
        let (bound, kept) = self.bind(&plan, &prepared, handed).await?;
        if budget::count_udp(&plan) > 0 {
            self.start_datagram_workers().map_err(StartError::Thread)?;
        }
        // Nothing fails from here on.
        self.workers.take_longest_pause();
        self.unused = bound.unused.clone();
        self.store_sockets(&bound).await;
        self.plan = plan;
        self.open_logs = prepared.open_logs;
        let budget = budget::budget(&self.plan, self.host);
        self.set_limits(&budget);
        warn_of_limits(&self.plan, self.host, &budget);
        if self.listeners.is_empty() {
            log_start(&self.plan, self.host, &budget);
        }
        self.apply_upstreams(prepared.upstreams, &pools);
        let (closing, gone) = self.apply_listeners(bound, kept, &budget);
        self.remove_from_store().await;
        self.accept_due(Instant::now());
        closing.close(&self.workers).await;
        self.workers.confirm().await;
        // Clients that were in the queues of removed listeners have picked by now.
        self.add_removed_listeners(gone);
        self.remove_upstreams();
        Ok(Applied {
            changes,
            longest_pause: self.workers.take_longest_pause(),
        })
    }

    /// Creates and changes upstreams, also one that was removed and has sessions. Those that are
    /// gone are removed after their listeners. `handed`: what another process knows of them.
    fn apply_upstreams(
        &mut self,
        mut inputs: BTreeMap<String, UpstreamInputs>,
        handed: &[PoolRecord],
    ) {
        let nodes = self.plan.process.nodes;
        for plan in &self.plan.upstreams {
            let plan = &plan.on_one_of(nodes);
            let inputs = inputs.remove(&plan.name).unwrap_or_default();
            let known = self.upstreams.remove(&plan.name);
            let upstream = match known.or_else(|| self.removed.take(&plan.name)) {
                None => {
                    let mut handed = handed.iter();
                    let handed = handed.find(|pool| pool.upstream == plan.name);
                    UpstreamRuntime::start(plan, inputs, handed, self)
                }
                Some(upstream) if upstream.plan == *plan => {
                    upstream.renew(inputs.credentials);
                    upstream
                }
                Some(mut upstream) => {
                    upstream.change(plan, inputs, self);
                    upstream
                }
            };
            self.upstreams.insert(plan.name.clone(), upstream);
        }
    }

    fn remove_upstreams(&mut self) {
        let is_gone = |name: &&String| self.plan.upstreams.iter().all(|u| u.name != **name);
        let gone: Vec<String> = self.upstreams.keys().filter(is_gone).cloned().collect();
        for name in gone {
            if let Some(mut upstream) = self.upstreams.remove(&name) {
                upstream.remove_backends(self);
                self.removed.add(upstream);
            }
        }
    }

    fn start_datagram_workers(&mut self) -> io::Result<()> {
        let Workers {
            connections,
            datagrams,
            epoch,
        } = &mut self.workers;
        for i in datagrams.len()..connections.len() {
            let shard = connections.len() + i;
            datagrams.push(udp::spawn_worker(i, shard, &self.sockets, *epoch)?);
        }
        self.host.has_datagram_workers = true;
        Ok(())
    }

    /// After a change of backends, which have checks.
    fn refresh_limits(&self) {
        self.set_limits(&budget::budget(&self.plan, self.host));
    }

    fn set_limits(&self, budget: &Budget) {
        let sessions = &self.process.sessions;
        sessions.connections().set_most(budget.connections);
        sessions.flows().set_most(budget.flows);
        self.sockets.set_max(budget.sockets);
        self.descriptors
            .divide(budget.for_connections, budget.for_flows, budget.shared);
    }

    /// What the admin side shows of the plan in effect, in the order of the file.
    pub(super) fn view(&self) -> View {
        let listeners = self.plan.listeners.iter();
        let upstreams = self.plan.upstreams.iter();
        View {
            listeners: listeners
                .filter_map(|l| Some(self.listeners.get(&l.name)?.view()))
                .collect(),
            removed_listeners: self.removed_listeners.services(),
            pools: upstreams
                .filter_map(|u| Some(Arc::clone(&self.upstreams.get(&u.name)?.pool)))
                .chain(self.removed.pools())
                .collect(),
            checks: self
                .upstreams
                .iter()
                .filter_map(|(name, u)| Some((name.clone(), Arc::clone(u.checks()?))))
                .collect(),
            discoveries: self
                .upstreams
                .iter()
                .filter_map(|(name, u)| Some((name.clone(), Arc::clone(u.discovery()?))))
                .collect(),
            pulses: self.workers.pulses(),
            hash: config::hash(&self.plan),
            plan: self.plan.clone(),
        }
    }

    /// Begins to accept on the listeners whose upstreams have first verdicts.
    pub(super) fn accept_due(&mut self, now: Instant) {
        if self.is_held {
            return;
        }
        let own = &self.own;
        for listener in self.listeners.values_mut().filter(|l| l.is_due(now)) {
            listener.serve(own, &self.workers, &self.tasks);
        }
    }

    /// Whether clients are let in at TCP sockets, and flows may begin. Sessions go on.
    pub(super) async fn refuse_clients(&mut self, refuses: bool) {
        self.refuses_clients = refuses;
        self.process.sessions.refuse_flows(refuses);
        for worker in &self.workers.connections {
            worker.send(tcp::Order::RefuseAll(refuses));
        }
        self.workers.confirm().await;
    }

    /// Whether another process accepts still.
    pub(super) fn is_held(&self) -> bool {
        self.is_held
    }

    /// Whether all listeners would begin to accept, were they not held.
    pub(super) fn is_checked(&self, now: Instant) -> bool {
        let mut waiting = self.listeners.values().filter(|l| l.is_waiting());
        waiting.all(|listener| listener.may_accept(now))
    }

    /// Lets listeners accept, which were held.
    pub(super) fn begin_accepting(&mut self) {
        self.is_held = false;
        for listener in self.listeners.values_mut() {
            listener.adopt_files();
        }
        self.accept_due(Instant::now());
        // The other process gives flows to workers that have their sockets, and had the verdicts.
        let own = &self.own;
        for listener in self.listeners.values_mut().filter(|l| l.is_waiting()) {
            if matches!(listener.sockets, ListenerSockets::Datagrams(_)) {
                listener.serve(own, &self.workers, &self.tasks);
            }
        }
    }

    pub(super) fn pending_listeners(&self) -> usize {
        let pending = self.listeners.values().filter(|l| l.is_waiting());
        pending.count()
    }

    /// When the first of the listeners that wait accepts even without verdicts.
    pub(super) fn accept_deadline(&self) -> Option<Instant> {
        let deadlines = self.listeners.values().filter_map(|l| l.accept_deadline());
        deadlines.min()
    }

    /// Notified when a check has ended.
    pub(super) fn checked(&self) -> Arc<Notify> {
        Arc::clone(&self.checks.checked)
    }

    pub(super) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The rate of terminations, over all upstreams.
    pub(super) fn pace(&self) -> &Arc<Mutex<Pace>> {
        &self.pace
    }

    pub(super) fn worker_count(&self) -> usize {
        self.host.workers
    }

    pub(super) fn carriers(&self) -> Carriers {
        Carriers::new(self.workers.connections.iter().map(tcp::Worker::mailbox))
    }

    /// Ends accepting and resolving. Checks go on while sessions are drained: a role may be lost
    /// then, too.
    pub(super) fn stop_accepting(&mut self) {
        // Clients in the queues of a listener that has not accepted yet are served as those of
        // others.
        let own = &self.own;
        for listener in self.listeners.values_mut().filter(|l| l.is_waiting()) {
            listener.serve(own, &self.workers, &self.tasks);
        }
        // First, since `/readyz` and the admission of new flows read it.
        self.process.sessions.stop();
        self.workers.drain();
        self.upstreams
            .values_mut()
            .for_each(UpstreamRuntime::stop_following);
        self.tasks.close();
    }

    /// The files of unix sockets, to be removed.
    pub(super) fn take_socket_files(&mut self) -> Vec<crate::runtime::net::SocketFile> {
        let listeners = self.listeners.values_mut();
        listeners
            .flat_map(|listener| listener.take_files())
            .collect()
    }

    /// Gives up every address while sessions are drained. Connections go on, flows end.
    pub(super) async fn release(&mut self) {
        let mut streams = Vec::new();
        for (name, listener) in &mut self.listeners {
            match listener.take_sockets() {
                ListenerSockets::Streams(sockets) => streams.extend(sockets),
                ListenerSockets::Datagrams(mut sockets) => {
                    sockets.change(Vec::new(), Vec::new());
                    sockets.serve(&listener.service, &self.own, &self.workers, &self.tasks);
                    self.closing.push((name.clone(), sockets));
                }
            }
        }
        let sessions = &self.process.sessions;
        sessions.end_flows(CloseReason::Drained);
        let began = Instant::now();
        while sessions.flows().count() > 0 && began.elapsed() < PATIENCE {
            tokio::time::sleep(RELEASE_LOOK).await;
        }
        // With this order each worker sees that nothing uses its sockets.
        self.workers.confirm().await;
        let closed: Vec<_> = streams
            .into_iter()
            .map(|s| s.close(&self.workers))
            .collect();
        let all = async {
            for closed in closed {
                closed.await;
            }
            for (_, sockets) in &self.closing {
                sockets.wait_closed().await;
            }
        };
        if tokio::time::timeout(PATIENCE, all).await.is_err() {
            tracing::warn!("listening sockets were not closed in time");
        }
    }

    /// Returns when there is no accept loop and no session any more.
    pub(super) fn drained(&self) -> impl Future<Output = ()> {
        let tasks = self.tasks.clone();
        async move { tasks.wait().await }
    }

    /// Ends the checks, and every session that is left with its thread.
    pub(super) fn join(self) {
        self.checks.stop.cancel();
        drop(self.listeners);
        self.workers
            .connections
            .into_iter()
            .for_each(tcp::Worker::join);
        self.workers
            .datagrams
            .into_iter()
            .for_each(udp::Worker::join);
        self.upstreams
            .into_values()
            .for_each(UpstreamRuntime::finish);
        self.removed.finish();
    }
}

/// How many threads carry connections.
pub(in crate::control) fn worker_count(process: &plan::Process) -> usize {
    match process.workers {
        0 => sys::limits::cpus(),
        n => n,
    }
}

/// The listener with the limits that hold in this process. A UDP listener that has no limit of its
/// own gets an equal share: clients whose addresses are forged can fill only that.
fn with_share(listener: &plan::Listener, plan: &Plan, budget: &Budget) -> plan::Listener {
    let mut listener = listener.on_one_of(plan.process.nodes);
    if listener.max_connections == 0 && matches!(listener.protocol, plan::Protocol::Udp(_)) {
        let listeners = budget::count_udp(plan).max(1) as u64;
        listener.max_connections = (budget.flows / listeners).max(1);
    }
    listener
}

fn log_start(plan: &Plan, host: HostLimits, budget: &Budget) {
    let udp_listeners = budget::count_udp(plan);
    let has_tcp = plan.listeners.len() > udp_listeners;
    let max_connections = (has_tcp || udp_listeners == 0).then_some(budget.connections);
    let max_flows = (udp_listeners > 0).then_some(budget.flows);
    let (descriptors, workers) = (host.descriptors, host.workers);
    tracing::info!(max_connections, max_flows, descriptors, workers, "starting");
}

fn warn_of_limits(plan: &Plan, host: HostLimits, budget: &Budget) {
    let udp_listeners = budget::count_udp(plan);
    let process = &plan.process;
    let HostLimits {
        descriptors,
        ports,
        workers: _,
        has_datagram_workers: _,
    } = host;
    if udp_listeners > 0 && process.max_flows > budget.possible_flows {
        tracing::warn!(
            max_flows = process.max_flows,
            possible = budget.possible_flows,
            descriptors,
            ports = ports * 4 / 5,
            "the limit of open files or the range of local ports allows fewer flows than \
             configured, and that many there will be; raise it (LimitNOFILE=, \
             net.ipv4.ip_local_port_range)"
        );
    }
    if process.max_connections > budget.possible_connections {
        tracing::warn!(
            max_connections = process.max_connections,
            possible = budget.possible_connections,
            descriptors,
            "the limit of open files allows fewer sessions than configured, and that many there \
             will be; raise it (LimitNOFILE=)"
        );
    }
}

/// Where the kernel gives no answer, at least the loopback addresses are local.
fn is_local(ip: IpAddr) -> bool {
    sys::route::is_local(ip).unwrap_or_else(|_| ip.is_loopback())
}
