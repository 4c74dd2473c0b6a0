//! The listening sockets of TCP listeners. One belongs to its address: a listener of another name
//! that has the address in the next plan takes the socket over.

use super::Workers;
use crate::{
    control::bind::Listening,
    plan::Addr,
    proxy::tcp::{Binding, Order, Socket, SocketId},
    runtime::net::SocketFile,
    session::service::Service,
};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};
use tokio_util::task::TaskTracker;

/// An address that is listened on, with a socket for each worker.
pub(super) struct StreamSocket {
    /// As in the plan.
    pub(super) configured: Addr,
    /// Port 0 has become a number.
    pub(super) bound: Addr,
    id: SocketId,
    pub(super) file: Option<SocketFile>,
    /// Until the workers have them.
    waiting: Vec<Socket>,
    /// What accepted clients get.
    service: Option<Arc<Service>>,
    /// Tracks the sockets that are open.
    open: TaskTracker,
}

impl StreamSocket {
    pub(super) fn new(listening: Listening<Socket>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            configured: listening.configured,
            bound: listening.bound,
            id: SocketId(NEXT.fetch_add(1, Relaxed)),
            file: listening.file,
            waiting: listening.sockets,
            service: None,
            open: TaskTracker::new(),
        }
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
        for (worker, socket) in workers.connections.iter().zip(self.waiting.drain(..)) {
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
