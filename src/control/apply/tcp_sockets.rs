//! The listening sockets of TCP listeners. One belongs to its address: a listener of another name
//! that has the address in the next plan takes the socket over.

use super::Workers;
use crate::{
    control::bind::Listening,
    plan::Addr,
    proxy::tcp::{Binding, BoundSocket, Order, SocketId},
    runtime::net::SocketFile,
    session::service::Service,
    sys::{blocking, handshakes},
};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio_util::task::TaskTracker;

/// How long a socket that is to be closed is waited for.
const CLOSE: Duration = Duration::from_secs(2);
/// The same for the handshakes that it takes part in, and from one look to the next.
const HANDSHAKES: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(10);

/// An address that is listened on, with a socket for each worker.
pub(super) struct StreamSocket {
    /// As in the plan.
    pub(super) configured: Addr,
    /// Port 0 has become a number.
    pub(super) bound: Addr,
    id: SocketId,
    pub(super) file: Option<SocketFile>,
    /// Whether its file is that of another process until this one has taken over.
    is_file_handed: bool,
    /// Until the workers have them.
    waiting: Vec<BoundSocket>,
    /// What accepted clients get.
    service: Option<Arc<Service>>,
    /// Tracks the sockets that are open.
    open: TaskTracker,
}

impl StreamSocket {
    pub(super) fn new(listening: Listening<BoundSocket>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            configured: listening.configured,
            bound: listening.bound,
            id: SocketId(NEXT.fetch_add(1, Relaxed)),
            file: listening.file,
            is_file_handed: listening.is_file_handed,
            waiting: listening.sockets,
            service: None,
            open: TaskTracker::new(),
        }
    }

    pub(super) fn id(&self) -> SocketId {
        self.id
    }

    pub(super) fn adopt_file(&mut self) {
        if let Addr::Unix(path) = &self.configured
            && std::mem::take(&mut self.is_file_handed)
        {
            self.file = Some(SocketFile::adopt(path));
        }
    }

    /// The sockets that the workers do not have yet.
    pub(super) fn waiting(&self) -> &[BoundSocket] {
        &self.waiting
    }

    /// From now on accepted clients get this service.
    pub(super) fn serve(&mut self, service: &Arc<Service>, workers: &Workers, tasks: &TaskTracker) {
        if self
            .service
            .as_ref()
            .is_some_and(|served| Arc::ptr_eq(served, service))
        {
            return;
        }
        self.service = Some(Arc::clone(service));
        if self.waiting.is_empty() {
            for worker in &workers.connections {
                worker.send(Order::Update(self.id, Arc::clone(service)));
            }
        }
        // There may be more sockets than workers, when another process had more.
        let carriers = workers.connections.iter().cycle();
        for (worker, socket) in carriers.zip(self.waiting.drain(..)) {
            worker.send(Order::Listen(Box::new(Binding {
                id: self.id,
                socket,
                service: Arc::clone(service),
                alive: tasks.token(),
                open: self.open.token(),
            })));
        }
    }

    /// Serves the clients in the queues of sockets that the workers do not have yet.
    pub(super) fn serve_if_waiting(
        &mut self,
        service: &Arc<Service>,
        workers: &Workers,
        tasks: &TaskTracker,
    ) {
        if self.service.is_none() {
            self.serve(service, workers, tasks);
        }
    }

    /// Lets no more connections begin.
    fn refuse(&self, workers: &Workers) {
        for worker in &workers.connections {
            worker.send(Order::Refuse(self.id));
        }
    }

    /// Ends accepting once the queues are empty. Wait for what is returned until the sockets are
    /// closed.
    pub(super) fn close(self, workers: &Workers) -> impl Future<Output = ()> + use<> {
        for worker in &workers.connections {
            worker.send(Order::Close(self.id));
        }
        self.open.close();
        async move { self.open.wait().await }
    }
}

/// Sockets of no listener any more. A client that has connected to one is served.
#[derive(Default)]
pub(super) struct ClosingStreams {
    sockets: Vec<StreamSocket>,
    files: Vec<SocketFile>,
}

impl ClosingStreams {
    pub(super) fn add(&mut self, mut socket: StreamSocket) {
        self.files.extend(socket.file.take());
        self.sockets.push(socket);
    }

    /// Returns when they are closed.
    pub(super) async fn close(self, workers: &Workers) {
        let Self { sockets, files } = self;
        if sockets.is_empty() {
            return;
        }
        // First: without its file no client finds a unix socket.
        let _ = blocking::call(CLOSE, move || drop(files)).await;
        sockets.iter().for_each(|socket| socket.refuse(workers));
        workers.confirm().await;
        let addresses = sockets.iter().filter_map(|socket| match socket.bound {
            Addr::Tcp(address) => Some(address),
            Addr::Unix(_) => None,
        });
        wait_for_handshakes(addresses.collect()).await;
        let closed: Vec<_> = sockets.into_iter().map(|s| s.close(workers)).collect();
        let all = async {
            for closed in closed {
                closed.await;
            }
        };
        if tokio::time::timeout(CLOSE, all).await.is_err() {
            tracing::warn!("sockets of removed listeners were not closed in time");
        }
    }
}

/// Waits until no client is in a handshake with these addresses, within a limit: a client whose
/// handshake ends after the socket is closed is reset.
async fn wait_for_handshakes(addresses: Vec<SocketAddr>) {
    let deadline = Instant::now() + HANDSHAKES;
    while !addresses.is_empty() && Instant::now() < deadline {
        let looked_at = addresses.clone();
        let look = move || handshakes::any_under_way(&looked_at);
        match blocking::call(HANDSHAKES, look).await.flatten() {
            Ok(false) => return,
            Ok(true) => tokio::time::sleep(POLL).await,
            Err(error) => {
                tracing::debug!(%error, "the kernel does not tell of handshakes under way");
                tokio::time::sleep_until(deadline.into()).await;
            }
        }
    }
}
