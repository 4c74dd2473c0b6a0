//! The control thread: puts plans into effect, owns the workers and their sockets, and stops them.

pub mod journal;
pub mod reload;
pub mod terminate;
pub mod upgrade;

mod access_logs;
mod admin_state;
mod apply;
mod backend_lifecycle;
mod bind;
mod budget;
mod checks;
mod discovery;
mod draining;
mod inherited;
mod interfaces;
mod node;
mod outage;
mod prepare;
mod probe_once;
mod resolve;
mod rights;
mod service_manager;
mod session_exchange;
mod start_check;
mod start_error;
mod supervise;
mod watch;

pub use crate::control::admin_state::{AddressError, Unknown, WeightRefused};
pub use apply::Applied;
pub use discovery::{Discovery, UpdateResult, apply_saved};
pub use discovery::{SourceAnswer, ask_sources_once};
pub use node::{DelayEnd, NodeFault};
pub use prepare::Prepared;
pub use probe_once::{
    ProbeOutcome, ProbedBackend, WrongPrimaries, find_wrong_primaries, probe_once,
};
pub use service_manager::ServiceManager;
pub use session_exchange::{
    Carriers, HandedPlaces, OtherProcess, SessionReceiver, SessionSender, SessionsReport,
};
pub use start_check::{find_obstacles, may_bind};
pub use start_error::{StartError, StartErrors};
pub use watch::reload_on_change;

use crate::{
    control::{apply::Runtime, checks::Checks, journal::Journal},
    plan::{Addr, Plan, reason::CloseReason},
    runtime::{heartbeat::Pulse, net::SocketFile},
    session::service::{ProcessContext, Service},
    sys::{self, blocking, mutex::Mutex, task::boxed},
    upstream::{health::Pace, pool::Pool},
};
use node::Node;
use reload::Reloads;
use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::{Notify, mpsc};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};
use upgrade::{PreviousProcess, Upgrades};

/// A running server, as the admin side reads it.
pub struct State {
    pub workers: usize,
    pub process: Arc<ProcessContext>,
    pub started: SystemTime,
    pub journal: Arc<Journal>,
    pub reloads: Reloads,
    pub upgrades: Upgrades,
    /// The process that this one has replaced.
    previous: Mutex<Option<PreviousProcess>>,
    /// Cancelled when the service manager hears this process, and not the one that it replaces.
    pub is_main: CancellationToken,
    /// The connections of the admin side that are served.
    pub admin_connections: TaskTracker,
    /// Cancelled when the process ends: a request that waits for events is answered.
    pub ending: CancellationToken,
    node: Node,
    /// The rate of terminations, over all upstreams.
    pace: Arc<Mutex<Pace>>,
    view: Mutex<Arc<View>>,
    /// Notified when another plan is in effect.
    plan_changed: Notify,
}

/// What the plan in effect is made of, in the order of its file. Another one replaces it when the
/// plan changes.
pub struct View {
    pub plan: Plan,
    /// The hash of `plan`, see [`config::hash`](crate::config::hash).
    pub hash: String,
    pub listeners: Vec<ListenerView>,
    /// The services of listeners that have left the plan while they had sessions.
    removed_listeners: Vec<Arc<Service>>,
    pub(in crate::control) pools: Vec<Arc<Pool>>,
    /// The checks of upstreams, by the names of the upstreams that have some.
    checks: BTreeMap<String, Arc<Checks>>,
    /// The sources of backends, by the names of their upstreams.
    pub discoveries: BTreeMap<String, Arc<Discovery>>,
    /// Those of all workers: whether their loops run.
    pub(in crate::control) pulses: Vec<Arc<Pulse>>,
}

pub struct ListenerView {
    pub service: Arc<Service>,
    /// Where it really listens; port 0 has become a number.
    pub addresses: Vec<Addr>,
}

pub struct Server {
    pub state: Arc<State>,
    runtime: Runtime,
    reload_requests: Option<mpsc::Receiver<reload::ReloadRequest>>,
    upgrade_requests: Option<mpsc::Receiver<upgrade::UpgradeRequest>>,
    /// Another process has taken over.
    is_replaced: bool,
    _upkeep: AbortOnDropHandle<()>,
    _ready_file: AbortOnDropHandle<()>,
}

/// How long terminated sessions have to end.
const CUT: Duration = Duration::from_secs(2);
/// Between two looks whether the process before this one has ended.
const PREVIOUS_LOOK: Duration = Duration::from_millis(50);
/// Between two looks whether listeners may accept.
const LOOK: Duration = Duration::from_millis(20);
/// How often events are logged that were only counted.
const UPKEEP: Duration = Duration::from_secs(5);

impl View {
    /// Those of the plan, then those of upstreams that were removed when sessions were on them.
    pub fn pools(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.pools.iter()
    }

    /// What the names of backends stand for, as far as that is known.
    fn addresses(&self) -> resolve::KnownAddresses {
        let of = |pool: &Arc<Pool>| {
            let (name, addresses) = (pool.name.to_string(), pool.resolved());
            let of_backend = move |(text, addresses)| ((name.clone(), text), addresses);
            addresses.into_iter().map(of_backend)
        };
        self.pools.iter().flat_map(of).collect()
    }

    /// The services of removed listeners that have sessions.
    pub fn removed_services(&self) -> impl Iterator<Item = &Arc<Service>> {
        let removed = self.removed_listeners.iter();
        removed.filter(|service| service.metrics.active() > 0)
    }

    /// The source of an upstream's backends.
    pub fn discovery(&self, upstream: &str) -> Option<&Discovery> {
        self.discoveries.get(upstream).map(|discovery| &**discovery)
    }

    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.listeners.iter().map(|listener| &listener.service)
    }

    /// The longest time since the start for which a worker was kept from its sockets by a change.
    pub fn longest_pause(&self) -> Duration {
        let pauses = self.pulses.iter().map(|pulse| pulse.pauses.longest());
        pauses.max().unwrap_or_default()
    }
}

impl State {
    fn new(runtime: &Runtime, reloads: Reloads, upgrades: Upgrades) -> Self {
        Self {
            workers: runtime.worker_count(),
            process: Arc::clone(&runtime.process),
            started: SystemTime::now(),
            journal: Arc::clone(&runtime.journal),
            reloads,
            upgrades,
            previous: Mutex::default(),
            is_main: CancellationToken::new(),
            admin_connections: TaskTracker::new(),
            ending: CancellationToken::new(),
            node: Node::new(Instant::now()),
            pace: Arc::clone(runtime.pace()),
            view: Mutex::new(Arc::new(runtime.view())),
            plan_changed: Notify::new(),
        }
    }

    /// What the plan in effect is made of now.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.lock())
    }

    fn set_view(&self, view: View) {
        let _before = std::mem::replace(&mut *self.view.lock(), Arc::new(view));
        self.node.note_change();
        self.plan_changed.notify_waiters();
    }

    /// By the operator, or since a stop was requested.
    pub fn is_draining(&self) -> bool {
        self.node.is_draining() || self.process.sessions.is_stopping()
    }

    /// Whether a listener does not accept yet, since its upstream has no verdicts.
    pub fn is_starting(&self) -> bool {
        !self.view().services().all(|service| service.is_accepting())
    }

    fn log_due(&self, now: Instant) {
        let view = self.view();
        view.services().for_each(|service| service.log_due(now));
        for pool in view.pools() {
            let backends = pool.backends();
            backends.iter().for_each(|backend| backend.log_due(now));
        }
    }

    fn log_rest(&self) {
        let view = self.view();
        view.services().for_each(|service| service.log_rest());
        for pool in view.pools() {
            let backends = pool.backends();
            backends.iter().for_each(|backend| backend.log_rest());
        }
    }
}

impl Server {
    /// Binds, and starts to check; or does nothing and returns why. Listeners whose upstreams are
    /// checked begin to accept in [`Server::accept_when_checked`], the others here.
    pub async fn start(prepared: Prepared) -> Result<Self, StartErrors> {
        let mut runtime = Runtime::new(&prepared).map_err(StartError::Thread)?;
        if let Err(errors) = runtime.apply(prepared).await {
            runtime.join();
            return Err(errors);
        }
        let (reloads, reload_requests) = Reloads::new();
        let (upgrades, upgrade_requests) = Upgrades::new();
        let state = Arc::new(State::new(&runtime, reloads, upgrades));
        if runtime.is_held() {
            state.give_up_ready_file(true).await;
            // An upgrade is also a reload.
            state.reloads.set_last(true, SystemTime::now());
        }
        let upkeep = tokio::spawn(boxed(keep_up(Arc::downgrade(&state))));
        let ready_file = tokio::spawn(boxed(node::keep(Arc::downgrade(&state))));
        let listeners = runtime.pending_listeners();
        if listeners > 0 && !runtime.is_held() {
            tracing::info!(listeners, "waiting for the first checks before accepting");
        }
        Ok(Self {
            state,
            runtime,
            reload_requests: Some(reload_requests),
            upgrade_requests: Some(upgrade_requests),
            is_replaced: false,
            _upkeep: AbortOnDropHandle::new(upkeep),
            _ready_file: AbortOnDropHandle::new(ready_file),
        })
    }

    /// Puts another plan into effect, or changes nothing and returns what is in the way. Sessions
    /// keep the settings that they began with, also those of listeners that are removed.
    pub async fn apply(&mut self, prepared: Prepared) -> Result<Applied, StartErrors> {
        let applied = self.runtime.apply(prepared).await?;
        // The view before has what the workers have let go of: it is dropped on this thread.
        self.state.set_view(self.runtime.view());
        Ok(applied)
    }

    /// Whether [`Self::become_main`] is due as soon as [`State::is_main`] is cancelled.
    pub fn is_successor(&self) -> bool {
        self.runtime.is_successor()
    }

    /// Lets the service manager keep the sockets.
    pub async fn become_main(&mut self) {
        self.runtime.become_main().await;
    }

    /// The next upstream whose discovered backends are to be put into effect by
    /// [`Self::apply_discovered`]. It can be dropped without loss.
    pub fn next_discovered(&self) -> impl Future<Output = Arc<str>> + use<> {
        let queue = Arc::clone(&self.runtime.discovered);
        async move { queue.next().await }
    }

    /// Puts the discovered backends of an upstream into effect, if they are others than before.
    pub fn apply_discovered(&mut self, upstream: &str) {
        if self.runtime.apply_discovered(upstream) {
            self.state.set_view(self.runtime.view());
        }
    }

    /// Whether no client is let in, since an operator drains the node.
    pub fn refuses_clients(&self) -> bool {
        self.runtime.refuses_clients
    }

    /// Lets no client in, or lets clients in again. Sessions go on.
    pub async fn refuse_clients(&mut self, refuses: bool) {
        self.runtime.refuse_clients(refuses).await;
        match refuses {
            true => tracing::info!("node is drained, no client is let in"),
            false => tracing::info!("clients are let in again"),
        }
    }

    /// The workers that carry connections, for another thread.
    pub fn carriers(&self) -> Carriers {
        self.runtime.carriers()
    }

    /// The service manager that has started this process.
    pub fn manager(&self) -> ServiceManager {
        self.runtime.manager.clone()
    }

    /// The queue of [`State::reloads`], for the one loop that serves it; `None` the second time.
    /// Requests fail once it is dropped.
    pub fn take_reload_requests(&mut self) -> Option<mpsc::Receiver<reload::ReloadRequest>> {
        self.reload_requests.take()
    }

    /// The queue of [`State::upgrades`], likewise.
    pub fn take_upgrade_requests(&mut self) -> Option<mpsc::Receiver<upgrade::UpgradeRequest>> {
        self.upgrade_requests.take()
    }

    /// Returns when every upstream has its first verdicts, or `limit` has passed.
    async fn wait_for_checks(&self, limit: Duration) {
        let checked = self.runtime.checked();
        let wait = async {
            while !self.runtime.is_checked(Instant::now()) {
                // Verdicts may become unnecessary with time.
                let _ = tokio::time::timeout(LOOK, checked.notified()).await;
            }
        };
        let _ = tokio::time::timeout(limit, wait).await;
    }

    /// Begins to accept on the listeners that wait, each once its upstream has first verdicts.
    /// Returns when all accept. It can be dropped and called again without loss.
    pub async fn accept_when_checked(&mut self) {
        let checked = self.runtime.checked();
        while self.is_pending() {
            let deadline = self.runtime.accept_deadline();
            let timeout = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = checked.notified() => {}
                () = timeout => {}
            }
            self.runtime.accept_due(Instant::now());
        }
        self.state.node.note_change();
    }

    /// Whether a listener does not accept yet.
    pub fn is_pending(&self) -> bool {
        self.runtime.pending_listeners() > 0
    }

    /// Stops accepting, lets sessions end by themselves until `drain_timeout`, then terminates
    /// them. Returns how many were terminated. Cancelling `at_once` skips the waiting.
    pub async fn stop(self, at_once: CancellationToken) -> u64 {
        let Self {
            state,
            mut runtime,
            is_replaced,
            ..
        } = self;
        let sessions = &state.process.sessions;
        if !is_replaced {
            state.log_operator_settings();
        }
        runtime.stop_accepting();
        // Now, and not after the drain: by then the path may be that of the next process.
        let files = runtime.take_socket_files();
        // The process that this one was about to replace may go on.
        let is_main = state.is_main.is_cancelled();
        match runtime.manager.has_store() || is_replaced || !is_main {
            true => files.into_iter().for_each(SocketFile::keep),
            false => drop(blocking::call(CUT, move || drop(files)).await),
        }
        let timeout = runtime.plan().process.drain_timeout;
        tracing::info!(sessions = sessions.count(), drain_timeout = ?timeout, "draining");
        let drained = tokio::select! {
            drained = tokio::time::timeout(timeout, drain(&mut runtime, &state)) => drained.is_ok(),
            () = at_once.cancelled() => false,
        };
        let cut = if drained {
            0
        } else {
            // A place that becomes free by that goes to no session that waits: it would begin on a
            // backend only to be cut.
            state.view().pools().for_each(|pool| pool.hand_places());
            sessions.end_all(CloseReason::Drained)
        };
        if cut > 0 && tokio::time::timeout(CUT, runtime.drained()).await.is_err() {
            tracing::warn!(sessions = sessions.count(), "sessions did not end in time");
        }
        runtime.join();
        state.log_rest();
        flush_access_log(&state).await;
        cut
    }
}

/// Returns when no session is left, neither here nor in the process that this one has replaced: a
/// service manager ends that as well, as soon as this one has ended. Meanwhile another process may
/// ask for the addresses.
async fn drain(runtime: &mut Runtime, state: &State) {
    let successor = &state.node.successor;
    let has_asked = tokio::select! {
        () = runtime.drained() => false,
        () = successor.wait() => true,
    };
    if has_asked {
        tracing::info!("another process starts, giving up all addresses");
        runtime.release().await;
        successor.finish_release().await;
        runtime.drained().await;
    }
    while state.previous().is_some() {
        tokio::time::sleep(PREVIOUS_LOOK).await;
    }
}

/// A reader that has stalled is not waited for.
async fn flush_access_log(state: &State) {
    let logs = &state.process.access_logs;
    let flushed = Arc::clone(logs);
    let _ = blocking::call(CUT * 2, move || flushed.flush()).await;
    let lost = logs.pending();
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
