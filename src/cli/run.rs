//! `tembuku run`: serve until told to stop.

use super::complain;
use crate::{admin, logging, plan::Plan, server::Server};
use std::{io, process::ExitCode, sync::Arc, time::Duration};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Look-ups that hang in the system's resolver are not waited for at the end.
const PATIENCE: Duration = Duration::from_millis(100);

pub(super) fn run(plan: Plan) -> ExitCode {
    let log = logging::init(plan.log.level, plan.log.format);
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
    let code = match runtime.block_on(serve(plan)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            // After what the log has to say about it.
            log.flush();
            complain(&why);
            ExitCode::FAILURE
        }
    };
    runtime.shutdown_timeout(PATIENCE);
    log.flush();
    code
}

async fn serve(plan: Plan) -> Result<(), String> {
    // Before anything else, so that a signal during the start is not lost.
    let mut signals =
        Signals::new().map_err(|e| format!("error: cannot watch for signals: {e}\n"))?;
    let admin =
        match &plan.admin {
            None => None,
            Some(admin) => {
                let bound = tokio::net::TcpListener::bind(admin.listen).await;
                Some(bound.map_err(|e| {
                    format!("error: admin: cannot listen on {}: {e}\n", admin.listen)
                })?)
            }
        };
    let server = tokio::select! {
        server = Server::start(plan) => server.map_err(|errors| errors.to_string())?,
        // A resolver that does not answer can make the start long.
        () = signals.stop() => return Ok(()),
    };
    if let Some(listener) = admin {
        if let Ok(address) = listener.local_addr() {
            tracing::info!(%address, "admin");
        }
        tokio::spawn(admin::serve(listener, Arc::clone(&server.state)));
    }
    loop {
        match signals.next().await {
            Told::Stop => break,
            Told::ReopenLogs => {
                if let Some(log) = &server.state.process.access_log {
                    log.lines().reopen();
                }
            }
            Told::NotYet(signal) => tracing::warn!(signal, "not supported yet, nothing was done"),
        }
    }
    let at_once = CancellationToken::new();
    let second = at_once.clone();
    tokio::spawn(async move {
        signals.stop().await;
        second.cancel();
    });
    let cut = server.stop(at_once).await;
    if cut > 0 {
        tracing::warn!(cut, "stopped; {cut} sessions were cut");
    } else {
        tracing::info!(cut, "stopped; every session had ended");
    }
    Ok(())
}

enum Told {
    Stop,
    ReopenLogs,
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

    /// TERM or INT, whatever else comes before.
    async fn stop(&mut self) {
        while !matches!(self.next().await, Told::Stop) {}
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.term.recv() => Told::Stop,
            _ = self.int.recv() => Told::Stop,
            _ = self.usr1.recv() => Told::ReopenLogs,
            _ = self.hup.recv() => Told::NotYet("HUP: reload"),
            _ = self.usr2.recv() => Told::NotYet("USR2: upgrade"),
        }
    }
}
