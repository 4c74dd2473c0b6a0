//! A thread that carries traffic: its own event loop, its own sockets, nothing stolen from or by
//! others.

use crate::{
    proxy::tcp::{self, Socket},
    runtime::executor::{self, Executor},
    session::service::Service,
    telemetry::metrics::set_shard,
};
use std::{io, sync::Arc, thread::JoinHandle};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

pub(super) struct Worker {
    thread: JoinHandle<()>,
    orders: UnboundedSender<Order>,
    tasks: TaskTracker,
}

/// A socket to accept from, until told to stop.
struct Order {
    socket: Socket,
    service: Arc<Service>,
    stop: CancellationToken,
    /// A stop waits for the accept loop from now on, even before the worker has begun it.
    alive: TaskTrackerToken,
}

impl Worker {
    pub(super) fn spawn(index: usize, tasks: &TaskTracker) -> io::Result<Self> {
        let (orders, inbox) = unbounded_channel();
        let executor = Executor::new()?;
        // What is followed up for longer than a session lasts runs there.
        let runtime = tokio::runtime::Handle::try_current().map_err(io::Error::other)?;
        let (tracker, tasks) = (tasks.clone(), tasks.clone());
        let thread = std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || {
                set_shard(index);
                let _inside = runtime.enter();
                executor.run(obey(inbox, tracker));
            })?;
        Ok(Self {
            thread,
            orders,
            tasks,
        })
    }

    pub(super) fn listen(&self, socket: Socket, service: Arc<Service>, stop: CancellationToken) {
        // It fails only after the thread has ended, and then there is nobody to accept for.
        let _ = self.orders.send(Order {
            socket,
            service,
            stop,
            alive: self.tasks.token(),
        });
    }

    /// Ends the thread and every session that is still on it.
    pub(super) fn join(self) {
        drop(self.orders);
        if self.thread.join().is_err() {
            tracing::error!("worker panicked");
        }
    }
}

async fn obey(mut inbox: UnboundedReceiver<Order>, tasks: TaskTracker) {
    while let Some(order) = inbox.recv().await {
        let accepting = tcp::listen(order.socket, order.service, order.stop, tasks.clone());
        executor::spawn(tasks.track_future(accepting));
        drop(order.alive);
    }
}
