//! `tembuku run`: serve until a stop is requested.

use super::{client, complain};
use crate::{
    admin::{self, AdminListener},
    control::{
        DelayEnd, Prepared, Server, ServiceManager, StartErrors,
        reload::{self, Mode, ReloadError, Report},
        reload_on_change,
    },
    plan::{self, Plan},
    runtime::net::{SocketFile, has_interface},
    sys::{self, blocking},
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
    let (mut server, doors, socket_file) = tokio::select! {
        started = start(plan) => started?,
        // A resolver or a file that does not answer can make the start long.
        () = signals.stop() => return Ok(()),
    };
    let renderer = match doors.is_empty() {
        true => None,
        false => Some(Arc::new(
            admin::Renderer::start(&server.state)
                .map_err(|e| format!("error: admin: cannot start a thread: {e}\n"))?,
        )),
    };
    for ((door, address), renderer) in doors.into_iter().zip(renderer.iter().cycle()) {
        tracing::info!(address, "admin");
        let (state, renderer) = (Arc::clone(&server.state), Arc::clone(renderer));
        server.state.spawn_door(admin::serve(door, state, renderer));
    }
    let manager = server.manager();
    manager.note_ready(&server.state).await;
    let watchdog = manager.clone().feed_watchdog(Arc::clone(&server.state));
    // Until the end of the drain.
    let _watchdog = AbortOnDropHandle::new(tokio::spawn(watchdog));
    let watching = file
        .clone()
        .map(|file| reload_on_change(file, Arc::clone(&server.state)));
    // Without a file there is nothing to watch.
    let _watching = watching.map(|watching| AbortOnDropHandle::new(tokio::spawn(watching)));
    let at_once = CancellationToken::new();
    // Requests that are left fail when it is dropped.
    let mut requests = server.take_reload_requests();
    let mut main_loop = MainLoop {
        server: &mut server,
        signals: &mut signals,
        requests: &mut requests,
        file: file.as_deref(),
        manager: &manager,
    };
    main_loop.serve(std::future::pending::<()>()).await;
    if let Ended::Stop = main_loop.serve_for_drain_delay().await {
        at_once.cancel();
    }
    drop(requests);
    let second = at_once.clone();
    tokio::spawn(async move {
        signals.stop().await;
        second.cancel();
    });
    let state = Arc::clone(&server.state);
    let cut = server.stop(at_once).await;
    if cut > 0 {
        tracing::warn!(cut, "stopped, sessions cut");
    } else {
        tracing::info!(cut, "stopped, all sessions ended");
    }
    match socket_file {
        // Its socket is closed, and the file at its path is that of another one.
        Some(file) if state.has_successor() => file.keep(),
        file => drop(blocking::call(PATIENCE, move || drop(file)).await),
    }
    Ok(())
}

/// Executes what signals and clients of the admin socket request.
struct MainLoop<'a> {
    server: &'a mut Server,
    signals: &'a mut Signals,
    requests: &'a mut Option<mpsc::Receiver<reload::Request>>,
    file: Option<&'a Path>,
    manager: &'a ServiceManager,
}

/// Why the loop has ended.
enum Ended<T> {
    /// A stop was requested.
    Stop,
    Over(T),
}

impl MainLoop<'_> {
    /// Until a stop is requested, or `until` is over.
    async fn serve<T>(&mut self, until: impl Future<Output = T>) -> Ended<T> {
        let mut until = pin!(until);
        loop {
            let server = &mut *self.server;
            let event = tokio::select! {
                event = self.signals.next() => event,
                Some(request) = next_request(self.requests) => ServerEvent::Reload(Some(request)),
                () = server.accept_when_checked(), if server.is_pending() => continue,
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
                    let reloaded = reload(server, self.signals, self.file, mode).await;
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
                ServerEvent::NotYet(signal) => {
                    tracing::warn!(signal, "not supported yet, nothing was done");
                }
            }
        }
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
            Ended::Stop => "stopped",
            Ended::Over(DelayEnd::Elapsed) => "elapsed",
            Ended::Over(DelayEnd::Quiet) => "quiet",
            Ended::Over(DelayEnd::Successor) => "successor",
        };
        tracing::info!(reason, "end of drain_delay");
        ended
    }
}

async fn next_request(
    requests: &mut Option<mpsc::Receiver<reload::Request>>,
) -> Option<reload::Request> {
    requests.as_mut()?.recv().await
}

/// `None`: a stop was requested before anything was changed.
async fn reload(
    server: &mut Server,
    signals: &mut Signals,
    file: Option<&Path>,
    mode: Mode,
) -> Option<Result<Report, ReloadError>> {
    let state = Arc::clone(&server.state);
    let mut preparing = pin!(reload::prepare(file, &state, mode));
    let candidate = loop {
        tokio::select! {
            candidate = &mut preparing => break candidate,
            () = signals.stop() => return None,
            () = server.accept_when_checked(), if server.is_pending() => {}
        }
    };
    Some(server.reload(candidate, mode).await)
}

/// What may fail or take long comes first: no client connects to a port that is not served yet.
async fn start(plan: Plan) -> Result<(Server, AdminListeners, Option<SocketFile>), String> {
    let failed = |errors: StartErrors| errors.to_string();
    let prepared = Prepared::new(plan).await.map_err(failed)?;
    let socket = prepared.plan.admin.as_ref().and_then(|a| a.socket.clone());
    if let Some(socket) = socket {
        let request = move || client::request_release(socket);
        let released = blocking::call(blocking::LIMIT, request).await;
        if released.unwrap_or(false) {
            tracing::info!("a process that drains has given up its addresses");
        }
    }
    let (doors, file) = admin_doors(prepared.plan.admin.as_ref())
        .await
        .map_err(|why| format!("error: admin: {why}\n"))?;
    let server = Server::start(prepared).await.map_err(failed)?;
    Ok((server, doors, file))
}

/// Every way to the admin side, with its address.
type AdminListeners = Vec<(AdminListener, String)>;

/// The ways to the admin side, and the file of the socket, which stays until the end: an operator
/// may want to see how the last sessions go.
async fn admin_doors(
    plan: Option<&plan::Admin>,
) -> Result<(AdminListeners, Option<SocketFile>), String> {
    let mut doors = Vec::new();
    if let Some(listen) = plan.and_then(|admin| admin.listen) {
        if !has_interface(listen) {
            return Err("`listen`: this machine has no such network interface".to_owned());
        }
        let bound = tokio::net::TcpListener::bind(listen).await;
        let listener = bound.map_err(|e| format!("cannot listen on {listen}: {e}"))?;
        let address = listener.local_addr().unwrap_or(listen);
        doors.push((AdminListener::Tcp(listener), address.to_string()));
    }
    let Some(path) = plan.and_then(|admin| admin.socket.as_deref()) else {
        return Ok((doors, None));
    };
    let (listener, file) = admin::listen(path).await.map_err(|e| e.to_string())?;
    doors.push((
        AdminListener::Unix(listener),
        format!("unix:{}", path.display()),
    ));
    Ok((doors, Some(file)))
}

enum ServerEvent {
    Stop,
    ReopenLogs,
    /// With the request of a client, or by HUP.
    Reload(Option<reload::Request>),
    NotYet(&'static str),
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

    async fn next(&mut self) -> ServerEvent {
        tokio::select! {
            _ = self.term.recv() => ServerEvent::Stop,
            _ = self.int.recv() => ServerEvent::Stop,
            _ = self.usr1.recv() => ServerEvent::ReopenLogs,
            _ = self.hup.recv() => ServerEvent::Reload(None),
            _ = self.usr2.recv() => ServerEvent::NotYet("USR2: upgrade"),
        }
    }
}
