//! The worker that carries connections: the orders that it takes.

use super::listener::{Acceptor, Binding, SocketId, listen};
use crate::{
    runtime::{executor, worker},
    session::service::Service,
};
use ahash::AHashMap;
use std::{io, rc::Rc, sync::Arc, time::Instant};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

pub type Worker = worker::Worker<Order>;

pub enum Order {
    /// Accepts from a socket.
    Listen(Box<Binding>),
    /// Serves the sessions that this socket accepts from now on by another service.
    Update(SocketId, Arc<Service>),
    /// Lets no more connections to this socket begin. Those that have begun are accepted.
    Refuse(SocketId),
    /// Accepts what is in the queue of this socket, then closes it.
    Close(SocketId),
    /// Drops the token, which confirms that the orders before this one were executed.
    Confirm(TaskTrackerToken),
    /// Accepts what is in the queues of all listeners, and then nothing more.
    Drain,
}

/// `tasks` tracks the accept loops and sessions of all workers. `epoch`: the same for all workers,
/// whose milliseconds are compared.
pub fn spawn_worker(index: usize, tasks: &TaskTracker, epoch: Instant) -> io::Result<Worker> {
    let tasks = tasks.clone();
    let name = format!("worker-{index}");
    Worker::spawn(name, index, epoch, move |reactor, mailbox| {
        let mut listeners = Listeners {
            tasks,
            acceptors: AHashMap::new(),
        };
        executor::run(reactor, &mailbox, |order| listeners.execute(order));
    })
}

/// The accept loops of a worker.
struct Listeners {
    tasks: TaskTracker,
    acceptors: AHashMap<SocketId, Rc<Acceptor>>,
}

impl Listeners {
    fn execute(&mut self, order: Order) {
        match order {
            Order::Listen(binding) => {
                let id = binding.id;
                let (acceptor, alive) = Acceptor::new(*binding);
                let acceptor = Rc::new(acceptor);
                self.acceptors.insert(id, Rc::clone(&acceptor));
                let accepting = listen(acceptor, self.tasks.clone());
                executor::spawn(self.tasks.track_future(accepting));
                drop(alive);
            }
            Order::Update(id, service) => {
                if let Some(acceptor) = self.acceptors.get(&id) {
                    acceptor.set_service(service);
                }
            }
            Order::Refuse(id) => {
                if let Some(acceptor) = self.acceptors.get(&id) {
                    acceptor.refuse();
                }
            }
            Order::Close(id) => {
                if let Some(acceptor) = self.acceptors.remove(&id) {
                    acceptor.stop.set();
                }
            }
            Order::Confirm(token) => drop(token),
            // Without refusing clients: another process may go on with these sockets.
            Order::Drain => self.acceptors.drain().for_each(|(_, a)| a.stop.set()),
        }
    }
}
