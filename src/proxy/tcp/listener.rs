//! Accepting connections.

use super::{session, stop_signal::StopSignal};
use crate::{
    plan::reason::{ConnectError, RejectReason},
    runtime::{
        executor::{self, ListeningSocket, StreamKind},
        net::{Client, Stream, set_options},
    },
    session::{
        admission,
        registry::Arrival,
        service::{Call, Failures, Service},
        summary::RefusedSession,
    },
    sys::{handshakes, mutex::Mutex},
};
use rustix::net::Shutdown;
use std::{
    cell::{Cell, RefCell},
    fs::File,
    future::poll_fn,
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

/// A bound and listening socket.
pub enum BoundSocket {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

impl AsFd for BoundSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Unix(socket) => socket.as_fd(),
        }
    }
}

/// Identifies a listener at one address: its sockets on all workers have the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketId(pub u64);

/// A socket of a listener on one worker.
pub struct Binding {
    pub id: SocketId,
    pub socket: BoundSocket,
    pub service: Arc<Service>,
    /// Held until the accept loop runs: a stop of the process waits for it from now on.
    pub alive: TaskTrackerToken,
    /// Held until the socket is closed.
    pub open: TaskTrackerToken,
}

/// The pause after an accept that failed for a shortage: trying at once would spin, because the
/// connection that could not be accepted stays ready.
const BACK_OFF: Duration = Duration::from_millis(50);

/// More connections than the queue of a socket can hold.
const MOST_QUEUED: u32 = 1 << 16;

/// After so many errors of single connections in a row the listener itself counts as failing.
const MAX_SINGLE_ERRORS: u32 = 64;

/// Accepts until the stop signal, and then what is still in the queue: for those clients the
/// connection is established.
pub(super) async fn listen(acceptor: Rc<Acceptor>, tasks: TaskTracker) {
    let port = acceptor.port;
    keep_reserve();
    let mut failures = Failures::default();
    let mut service = acceptor.service();
    // Errors of single connections since the last that was accepted.
    let mut single_errors = 0;
    let mut queued = 0;
    loop {
        let next = poll_fn(|cx| {
            if acceptor.stop.poll(cx).is_ready() {
                if acceptor.stop.is_paused() {
                    // The queue belongs to another process.
                    return Poll::Ready(None);
                }
                // The event loop may not know yet of the connections that came last.
                queued += 1;
                let accepted = acceptor.accept_now();
                let is_over = is_empty(&accepted) || queued > acceptor.most_queued();
                return Poll::Ready(Some(accepted).filter(|_| !is_over));
            }
            if acceptor.stop.is_paused() {
                return Poll::Pending;
            }
            let polled = acceptor.poll_accept();
            if polled.is_pending() {
                // The call works, and the queue is empty.
                failures.clear(&service.intake);
            }
            polled.map(Some)
        })
        .await;
        let current = acceptor.service();
        if !Arc::ptr_eq(&current.intake, &service.intake) {
            failures.clear(&service.intake);
        }
        service = current;
        match next {
            Some(Ok((stream, client))) => {
                failures.clear(&service.intake);
                single_errors = 0;
                // Another thread may have taken the descriptor when the reserve was to be renewed.
                keep_reserve();
                admit(stream, client, port, &service, &tasks);
                // The session runs first and gets its second descriptor: a burst that is accepted
                // in one go could take them all, and leave none to reach a backend with.
                executor::yield_now().await;
            }
            None => {
                failures.clear(&service.intake);
                return;
            }
            Some(Err(e)) if is_about_one_connection(&e) && single_errors < MAX_SINGLE_ERRORS => {
                single_errors += 1;
            }
            Some(Err(error)) => {
                let pause = accept_failed(&acceptor, &service, &mut failures, &error);
                executor::sleep(pause).await;
            }
        }
    }
}

/// Whether there was no connection in the queue.
fn is_empty<T>(accepted: &io::Result<T>) -> bool {
    matches!(accepted, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// Returns how long to wait before the next accept.
fn accept_failed(
    acceptor: &Acceptor,
    service: &Service,
    failures: &mut Failures,
    error: &io::Error,
) -> Duration {
    service.process.metrics.accept_errors.add(1);
    if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) {
        // With the descriptor of the reserve one client can at least be refused at once.
        let accepted = with_reserve(|| acceptor.accept_now().map(|(_, client)| client));
        if let Ok(client) = accepted {
            service.metrics.counts.mine().connections.add(1);
            reject(service, RejectReason::NoDescriptors, client);
        }
    }
    service.log_failed_call(Call::Accept, error, Instant::now());
    // Descriptors and memory become free by themselves. Other errors are not expected.
    match ConnectError::of(error).is_shortage() {
        true => BACK_OFF,
        false => failures.add(&service.intake),
    }
}

fn admit(
    stream: Stream,
    client: Client,
    port: Option<u16>,
    service: &Arc<Service>,
    tasks: &TaskTracker,
) {
    service.metrics.counts.mine().connections.add(1);
    let arrival = Arrival {
        peer: client,
        named: None,
        server_port: port,
        at: Instant::now(),
    };
    match admission::admit_connection(service, arrival) {
        Ok(permits) => {
            executor::spawn(tasks.track_future(session::serve(permits, stream)));
        }
        Err(reason) => reject(service, reason, client),
    }
}

fn reject(service: &Service, reason: RejectReason, client: Client) {
    service.log_rejection(reason, &client, None, Instant::now());
    let refusal = RefusedSession {
        reason,
        peer: client,
        named: None,
        duration: Duration::ZERO,
    };
    service.finish_refused(&refusal, service.access_log());
}

/// A listening socket of a worker, and the service that accepted clients get.
pub(super) struct Acceptor {
    socket: ListeningSocket,
    service: RefCell<Arc<Service>>,
    pub(super) stop: StopSignal,
    /// Asked once: it is the same for every connection that is accepted here. `None` for a unix
    /// socket.
    port: Option<u16>,
    kind: StreamKind,
    /// See [`Self::refuse`].
    refuses: Cell<bool>,
    /// Declared last: it is given back after the socket has been closed.
    _open: TaskTrackerToken,
}

impl Acceptor {
    /// Returns also the token that is to be held until the accept loop runs.
    pub(super) fn new(binding: Binding) -> (Self, TaskTrackerToken) {
        let Binding {
            socket,
            service,
            alive,
            open,
            ..
        } = binding;
        let port = match &socket {
            BoundSocket::Tcp(s) => s.local_addr().ok().map(|address| address.port()),
            BoundSocket::Unix(_) => None,
        };
        let (kind, socket): (StreamKind, OwnedFd) = match socket {
            BoundSocket::Tcp(s) => (StreamKind::Tcp, s.into()),
            BoundSocket::Unix(s) => (StreamKind::Unix, s.into()),
        };
        let acceptor = Self {
            socket: ListeningSocket::new(socket),
            service: RefCell::new(service),
            stop: StopSignal::default(),
            port,
            kind,
            refuses: Cell::new(false),
            _open: open,
        };
        (acceptor, alive)
    }

    /// Accepts nothing, until [`Self::resume`]: another process does.
    pub(super) fn pause(&self) {
        self.stop.pause();
        self.socket.suspend();
    }

    /// The other process may have set options that its sockets share with these.
    pub(super) fn resume(&self) {
        let service = self.service();
        if self.kind == StreamKind::Tcp {
            set_options(&self.socket, &service.plan.socket);
        }
        let backlog = i32::try_from(service.plan.backlog).unwrap_or(i32::MAX);
        if let Err(error) = rustix::net::listen(&self.socket, backlog) {
            let listener = &service.plan.name;
            tracing::warn!(%listener, %error, "cannot restore the backlog");
        }
        self.stop.resume();
    }

    pub(super) fn copy_socket(&self) -> io::Result<OwnedFd> {
        self.socket.as_fd().try_clone_to_owned()
    }

    fn service(&self) -> Arc<Service> {
        Arc::clone(&self.service.borrow())
    }

    pub(super) fn set_service(&self, service: Arc<Service>) {
        let before = self.service.replace(Arc::clone(&service));
        let (plan, before) = (&service.plan, &before.plan);
        // A reload may change many listeners, while sessions wait.
        if self.kind == StreamKind::Tcp && plan.socket != before.socket {
            set_options(&self.socket, &plan.socket);
        }
        let backlog = i32::try_from(plan.backlog).unwrap_or(i32::MAX);
        if plan.backlog != before.backlog
            && let Err(error) = rustix::net::listen(&self.socket, backlog)
        {
            tracing::warn!(listener = %plan.name, %error, "cannot change the backlog");
        }
    }

    /// No connection begins from now on; a client that tries it repeats that after a second. Those
    /// that are being established, or are in the queue, can be accepted.
    pub(super) fn refuse(&self) {
        let refused = match self.kind {
            StreamKind::Tcp => handshakes::refuse(&self.socket),
            StreamKind::Unix => {
                rustix::net::shutdown(&self.socket, Shutdown::Read).map_err(Into::into)
            }
        };
        if let Err(error) = refused {
            let service = self.service.borrow();
            let listener = &service.plan.name;
            tracing::warn!(listener, %error, "clients that connect now may be reset");
        } else {
            self.refuses.set(true);
        }
    }

    /// No connection begins, until [`Self::end_hold_off`]: a client repeats its attempt meanwhile,
    /// and may reach another node. A unix socket goes on: its clients are on this one.
    pub(super) fn hold_off(&self) {
        if self.kind == StreamKind::Tcp {
            self.refuse();
        }
    }

    pub(super) fn end_hold_off(&self) {
        if self.kind == StreamKind::Tcp && self.refuses.replace(false) {
            handshakes::detach_filter(&self.socket);
        }
    }

    /// How many connections are accepted when accepting is to end: clients that come all the time
    /// must not go on for ever.
    fn most_queued(&self) -> u32 {
        match self.refuses.get() {
            true => MOST_QUEUED,
            false => self.service.borrow().plan.backlog,
        }
    }

    fn poll_accept(&self) -> Poll<io::Result<(Stream, Client)>> {
        self.socket
            .poll_accept()
            .map(|accepted| self.identify(accepted))
    }

    /// Asks the kernel, whether or not the reactor has reported a connection.
    fn accept_now(&self) -> io::Result<(Stream, Client)> {
        self.identify(self.socket.accept())
    }

    fn identify(
        &self,
        accepted: io::Result<(OwnedFd, Option<SocketAddr>)>,
    ) -> io::Result<(Stream, Client)> {
        let (socket, address) = accepted?;
        if self.refuses.get() && self.kind == StreamKind::Tcp {
            // It has inherited the filter.
            handshakes::detach_filter(&socket);
        }
        let client = match (self.kind, address) {
            (StreamKind::Unix, _) => Client::Unix,
            (StreamKind::Tcp, Some(address)) => Client::Ip(address),
            // It was reset so early that it has no address.
            (StreamKind::Tcp, None) => return Err(io::ErrorKind::ConnectionAborted.into()),
        };
        Ok((Stream::accepted(socket, self.kind), client))
    }
}

thread_local! {
    /// A descriptor that each worker gives up when no other is free.
    static RESERVE: RefCell<Option<File>> = const { RefCell::new(None) };
}

fn keep_reserve() {
    RESERVE.with_borrow_mut(|reserve| {
        if reserve.is_none() {
            *reserve = File::open("/dev/null").ok();
        }
    });
}

/// Runs `act` with one more free descriptor. One worker at a time, so that another does not take
/// it.
fn with_reserve<R>(act: impl FnOnce() -> R) -> R {
    static IN_USE: Mutex<()> = Mutex::new(());
    let _guard = IN_USE.lock();
    RESERVE.take();
    let result = act();
    keep_reserve();
    result
}

/// Errors of the connection, not of the listener: the next accept may succeed.
fn is_about_one_connection(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    ) || matches!(
        e.raw_os_error(),
        Some(
            libc::ENETDOWN
                | libc::EPROTO
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EHOSTUNREACH
                | libc::EOPNOTSUPP
                | libc::ENETUNREACH
                | libc::EPERM
        )
    )
}
