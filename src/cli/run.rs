//! `tembuku run`: serve until a stop is requested.

use super::{
    admin_sockets::AdminSockets,
    client::{self, Release},
    complain,
};
use crate::{
    control::{
        DelayEnd, Prepared, Server, ServiceManager, StartError, StartErrors,
        reload::{self, Mode, ReloadError, ReloadReport},
        reload_on_change,
        upgrade::{
            self, UpgradeError,
            hand_over::{self, Replaced},
            take_over::{self, Predecessor, Previous},
        },
    },
    plan::{self, Plan},
    sys::{self, blocking, task::boxed},
    telemetry::log,
};
use std::{
    io,
    path::{Path, PathBuf},
    pin::pin,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// Look-ups that hang in the system's resolver are not waited for at the end.
const PATIENCE: Duration = Duration::from_millis(100);

/// How long clients of the admin side have to read their answers.
const ANSWERS: Duration = Duration::from_secs(1);

/// `file`: where the plan came from, to be read again by a reload.
pub(super) fn run(plan: Plan, file: Option<PathBuf>) -> ExitCode {
    sys::memory::prepare();
    let log = log::init(plan.log.level, plan.log.format);
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(e) => {
            complain(&format!("error: cannot start: {e}\n"));
            return ExitCode::FAILURE;
        }
    };
    let code = match runtime.block_on(serve(plan, file)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            // After the lines of the log about it.
            log.write(&why);
            ExitCode::FAILURE
        }
    };
    runtime.shutdown_timeout(PATIENCE);
    log.flush();
    code
}

async fn serve(plan: Plan, file: Option<PathBuf>) -> Result<(), String> {
    // Before anything else, so that a signal during the start is not lost.
    let mut signals =
        Signals::new().map_err(|e| format!("error: cannot watch for signals: {e}\n"))?;
    let Started {
        mut server,
        mut admin_sockets,
        previous,
    } = tokio::select! {
        started = start(plan) => started?,
        // A resolver or a file that does not answer can make the start long.
        () = signals.stop() => return Ok(()),
    };
    admin_sockets.open(&server.state)?;
    let manager = server.manager();
    match previous {
        None => {
            manager.note_ready(&server.state).await;
            server.state.is_main.cancel();
        }
        // The service manager hears of it from that process.
        Some(previous) => previous
            .follow(&server)
            .map_err(|e| format!("error: cannot start a thread: {e}\n"))?,
    }
    let watchdog = manager.clone().feed_watchdog(Arc::clone(&server.state));
    // Until the end of the drain, or until another process feeds it.
    let watchdog = AbortOnDropHandle::new(tokio::spawn(boxed(watchdog)));
    let watching = file
        .clone()
        .map(|file| reload_on_change(file, Arc::clone(&server.state)));
    // Without a file there is nothing to watch.
    let _watching = watching.map(|watching| AbortOnDropHandle::new(tokio::spawn(boxed(watching))));
    let at_once = CancellationToken::new();
    // Requests that are left fail when it is dropped.
    let mut requests = Requests {
        reloads: server.take_reload_requests(),
        upgrades: server.take_upgrade_requests(),
    };
    let mut main_loop = MainLoop {
        server: &mut server,
        signals: &mut signals,
        requests: &mut requests,
        admin_sockets: &mut admin_sockets,
        file: file.as_deref(),
        manager: &manager,
    };
    let replaced = match main_loop.serve(std::future::pending::<()>()).await {
        Ended::Replaced(replaced) => Some(replaced),
        Ended::Stop | Ended::Over(()) => {
            if let Ended::Stop = main_loop.serve_for_drain_delay().await {
                at_once.cancel();
            }
            None
        }
    };
    let is_replaced = replaced.is_some();
    let _watchdog = (!is_replaced).then_some(watchdog);
    drop(requests);
    admin_sockets.drop_sockets();
    let second = at_once.clone();
    let successor = replaced.as_ref().map(|replaced| replaced.pid);
    tokio::spawn(boxed(async move {
        if let Some(successor) = successor {
            // It drains already. A service manager sends TERM to all processes.
            signals.stop_forwarding(successor).await;
        }
        signals.stop().await;
        second.cancel();
    }));
    let state = Arc::clone(&server.state);
    let ended = CancellationToken::new();
    let reporting = replaced.map(|r| r.report_rest(Arc::clone(&state), ended.clone()));
    let reporting =
        reporting.map(|reporting| AbortOnDropHandle::new(tokio::spawn(boxed(reporting))));
    let cut = server.stop(at_once).await;
    ended.cancel();
    let reported = match reporting {
        Some(reporting) => tokio::time::timeout(ANSWERS, reporting).await,
        None => Ok(Ok(true)),
    };
    if cut > 0 {
        tracing::warn!(cut, "stopped, sessions cut");
    } else {
        tracing::info!(cut, "stopped, all sessions ended");
    }
    state.finish_answers(ANSWERS).await;
    let is_main = state.is_main.is_cancelled();
    admin_sockets
        .close(is_replaced || state.has_successor() || !is_main)
        .await;
    match reported {
        // A service manager is to start another one.
        Ok(Ok(false)) => Err("error: the process that has taken over has failed\n".to_owned()),
        _ => Ok(()),
    }
}

/// Executes what signals and clients of the admin socket request.
struct MainLoop<'a> {
    server: &'a mut Server,
    signals: &'a mut Signals,
    requests: &'a mut Requests,
    admin_sockets: &'a mut AdminSockets,
    file: Option<&'a Path>,
    manager: &'a ServiceManager,
}

/// What clients of the admin socket request.
struct Requests {
    reloads: Option<mpsc::Receiver<reload::ReloadRequest>>,
    upgrades: Option<mpsc::Receiver<upgrade::UpgradeRequest>>,
}

/// A server, and what else a start brings about.
struct Started {
    server: Server,
    admin_sockets: AdminSockets,
    /// The process that this one has replaced.
    previous: Option<Previous>,
}

/// Why the loop has ended.
enum Ended<T> {
    /// A stop was requested.
    Stop,
    /// Another process has taken over.
    Replaced(Replaced),
    Over(T),
}

impl MainLoop<'_> {
    /// Until a stop is requested, or `until` is over.
    async fn serve<T>(&mut self, until: impl Future<Output = T>) -> Ended<T> {
        let state = Arc::clone(&self.server.state);
        let mut until = pin!(until);
        loop {
            let server = &mut *self.server;
            let refuses = server.refuses_clients();
            let event = tokio::select! {
                event = self.signals.next() => event,
                Some(event) = self.requests.next() => event,
                upstream = server.next_discovered() => {
                    server.apply_discovered(&upstream);
                    continue;
                }
                () = server.accept_when_checked(), if server.is_pending() => continue,
                refuses = state.wait_for_drain_step(refuses) => {
                    server.refuse_clients(refuses).await;
                    continue;
                }
                () = state.is_main.cancelled(), if server.is_successor() => {
                    server.become_main().await;
                    continue;
                }
                over = &mut until => return Ended::Over(over),
            };
            match event {
                ServerEvent::Stop => return Ended::Stop,
                ServerEvent::ReopenLogs => server.state.process.access_logs.reopen(),
                ServerEvent::Reload(Some(request)) if !request.is_wanted() => {}
                ServerEvent::Reload(request) => {
                    let mode = request.as_ref().map_or(Mode::Apply, |request| request.mode);
                    if mode == Mode::Apply {
                        self.manager.note_reloading().await;
                    }
                    let admin_sockets = &mut *self.admin_sockets;
                    let reloaded =
                        reload(server, admin_sockets, self.signals, self.file, mode).await;
                    let Some(result) = reloaded else {
                        return Ended::Stop;
                    };
                    if mode == Mode::Apply {
                        let state = &self.server.state;
                        self.manager.note_reloaded(state, result.is_ok()).await;
                    }
                    if let Some(request) = request {
                        request.reply(result);
                    }
                }
                ServerEvent::Upgrade(request) => match self.upgrade(&request).await {
                    Upgraded::Yes(replaced) => return Ended::Replaced(replaced),
                    Upgraded::No => {}
                    Upgraded::Stop => return Ended::Stop,
                },
            }
        }
    }

    /// Reloads that are requested meanwhile wait.
    async fn upgrade(&mut self, request: &upgrade::UpgradeRequest) -> Upgraded {
        let state = Arc::clone(&self.server.state);
        let _under_way = state.upgrades.begin();
        if self.server.refuses_clients() {
            // The new process has no drain, and gets these sockets.
            self.server.refuse_clients(false).await;
        }
        let copies = match self.admin_sockets.copies() {
            Ok(copies) => copies,
            Err(error) => {
                request.fail(&UpgradeError::Copies(error), &state);
                return Upgraded::No;
            }
        };
        let prepared = tokio::select! {
            prepared = hand_over::prepare(self.server, request, self.file, copies) => prepared,
            () = self.signals.stop() => {
                request.fail(&UpgradeError::Stopping, &state);
                return Upgraded::Stop;
            }
        };
        let error = match prepared {
            Ok(None) => return Upgraded::No,
            Ok(Some(successor)) => match self.server.hand_over(successor, request).await {
                Ok(replaced) => return Upgraded::Yes(replaced),
                Err(error) => {
                    if let Err(error) = self.admin_sockets.open(&state) {
                        tracing::error!(error, "the admin side is not served any more");
                    }
                    error
                }
            },
            Err(error) => error,
        };
        request.fail(&error, &state);
        Upgraded::No
    }

    /// Those that send clients learn of the stop first, while clients are accepted still.
    async fn serve_for_drain_delay(&mut self) -> Ended<DelayEnd> {
        let state = Arc::clone(&self.server.state);
        self.manager.note_stopping(&state).await;
        state.leave().await;
        let plan::Process {
            drain_delay,
            drain_quiet,
            ..
        } = state.view().plan.process;
        if drain_delay.is_zero() {
            return Ended::Over(DelayEnd::Elapsed);
        }
        tracing::info!(?drain_delay, ?drain_quiet, "not ready, accepting still");
        let ended = self.serve(state.wait_drain_delay()).await;
        let reason = match &ended {
            Ended::Stop | Ended::Replaced(_) => "stopped",
            Ended::Over(DelayEnd::Elapsed) => "elapsed",
            Ended::Over(DelayEnd::Quiet) => "quiet",
            Ended::Over(DelayEnd::Successor) => "successor",
        };
        tracing::info!(reason, "end of drain_delay");
        ended
    }
}

/// What has become of an upgrade.
enum Upgraded {
    Yes(Replaced),
    No,
    /// A stop was requested.
    Stop,
}

impl Requests {
    async fn next(&mut self) -> Option<ServerEvent> {
        let Self { reloads, upgrades } = self;
        tokio::select! {
            Some(request) = next_of(reloads) => Some(ServerEvent::Reload(Some(request))),
            Some(request) = next_of(upgrades) => Some(ServerEvent::Upgrade(request)),
            else => None,
        }
    }
}

async fn next_of<T>(requests: &mut Option<mpsc::Receiver<T>>) -> Option<T> {
    requests.as_mut()?.recv().await
}

/// `None`: a stop was requested before anything was changed.
async fn reload(
    server: &mut Server,
    admin_sockets: &mut AdminSockets,
    signals: &mut Signals,
    file: Option<&Path>,
    mode: Mode,
) -> Option<Result<ReloadReport, ReloadError>> {
    let state = Arc::clone(&server.state);
    let mut preparing = pin!(reload::prepare(file, &state, mode));
    let candidate = loop {
        tokio::select! {
            candidate = &mut preparing => break candidate,
            () = signals.stop() => return None,
            () = server.accept_when_checked(), if server.is_pending() => {}
        }
    };
    if mode == Mode::DryRun {
        return Some(server.reload(candidate, mode).await);
    }
    let bound = async {
        let mut candidate = candidate?;
        let failed = |why| ReloadError::Failed(StartErrors(vec![StartError::Admin(why)]));
        // An address may move between a listener and the admin side.
        candidate.share(admin_sockets.share_leaving(candidate.admin()));
        let leaving = candidate.leaving_addresses(&state.view());
        let new = admin_sockets
            .bind_missing(candidate.admin(), &leaving)
            .await;
        Ok((candidate, new.map_err(failed)?))
    };
    let (candidate, new) = match bound.await {
        Ok((candidate, new)) => (Ok(candidate), Some(new)),
        Err(error) => (Err(error), None),
    };
    let reloaded = server.reload(candidate, mode).await;
    admin_sockets.end_sharing();
    match new {
        Some(new) if reloaded.is_ok() => {
            if let Err(error) = admin_sockets.change(new, &state).await {
                tracing::error!(error, "an admin address is not served");
            }
        }
        Some(new) => new.discard().await,
        None => {}
    }
    Some(reloaded)
}

/// What may fail or take long comes first: no client connects to a port that is not served yet.
async fn start(plan: Plan) -> Result<Started, String> {
    let predecessor = take_over::predecessor().map_err(|e| format!("error: {e}\n"))?;
    let Some(mut predecessor) = predecessor else {
        return start_first(plan).await;
    };
    match start_successor(plan, &mut predecessor).await {
        Ok((mut server, mut admin_sockets)) => {
            let previous = server.take_over(predecessor).await;
            let previous = previous.map_err(|e| format!("error: {e}\n"))?;
            admin_sockets.adopt_file();
            Ok(Started {
                server,
                admin_sockets,
                previous: Some(previous),
            })
        }
        Err(why) => {
            predecessor.refuse(&why).await;
            Err(why)
        }
    }
}

/// A start that replaces no running process.
async fn start_first(plan: Plan) -> Result<Started, String> {
    let prepared = Prepared::new(plan).await.map_err(|e| e.to_string())?;
    let socket = prepared.plan.admin.as_ref().and_then(|a| a.socket.clone());
    let mut running = None;
    if let Some(socket) = socket {
        let of_request = socket.clone();
        let request = move || client::request_release(of_request);
        match blocking::call(blocking::LIMIT, request).await {
            Ok(Release::Done) => tracing::info!("a process that drains has given up its addresses"),
            Ok(Release::Refused) => running = Some(socket),
            Ok(Release::NoAnswer) | Err(_) => {}
        }
    }
    let started = async {
        let admin_sockets = AdminSockets::bind(prepared.plan.admin.as_ref(), None).await?;
        let server = Server::start(prepared).await.map_err(|e| e.to_string())?;
        Ok((server, admin_sockets))
    };
    let (server, admin_sockets) = match (started.await, running) {
        (Ok(started), _) => started,
        (Err(why), None) => return Err(why),
        (Err(why), Some(socket)) => {
            let hint = blocking::call(blocking::LIMIT, move || client::hint_at_running(socket));
            let hint: Option<String> = hint.await.ok().flatten();
            return Err(why + hint.as_deref().unwrap_or_default());
        }
    };
    Ok(Started {
        server,
        admin_sockets,
        previous: None,
    })
}

/// Everything but accepting, which the old process still does.
async fn start_successor(
    plan: Plan,
    predecessor: &mut Predecessor,
) -> Result<(Server, AdminSockets), String> {
    let inheritance = predecessor.receive(&plan).await;
    let inheritance = inheritance.map_err(|e| format!("error: {e}\n"))?;
    let prepared = Prepared::with_inheritance(plan, inheritance).await;
    let prepared = prepared.map_err(|e| e.to_string())?;
    let admin = prepared.plan.admin.clone();
    let admin_sockets = AdminSockets::bind(admin.as_ref(), Some(predecessor)).await?;
    let server = Server::start(prepared).await.map_err(|e| e.to_string())?;
    Ok((server, admin_sockets))
}

enum ServerEvent {
    Stop,
    ReopenLogs,
    /// With the request of a client, or by HUP.
    Reload(Option<reload::ReloadRequest>),
    Upgrade(upgrade::UpgradeRequest),
}

struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
    usr1: Signal,
    usr2: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
            usr1: signal(SignalKind::user_defined1())?,
            usr2: signal(SignalKind::user_defined2())?,
        })
    }

    /// TERM or INT. Other signals are kept for [`Signals::next`].
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }

    /// The same, while another process serves. HUP is meant for that one, also if it came while
    /// this one still served.
    async fn stop_forwarding(&mut self, successor: u32) {
        loop {
            tokio::select! {
                _ = self.term.recv() => return,
                _ = self.int.recv() => return,
                _ = self.hup.recv() => sys::process::hang_up(successor),
            }
        }
    }

    async fn next(&mut self) -> ServerEvent {
        tokio::select! {
            _ = self.term.recv() => ServerEvent::Stop,
            _ = self.int.recv() => ServerEvent::Stop,
            _ = self.usr1.recv() => ServerEvent::ReopenLogs,
            _ = self.hup.recv() => ServerEvent::Reload(None),
            _ = self.usr2.recv() => {
                let order = upgrade::UpgradeOrder::default();
                ServerEvent::Upgrade(upgrade::UpgradeRequest::new(order).0)
            }
        }
    }
}
