//! The worker that carries connections: the orders that it takes.

use super::{
    handover::{Arriving, Departure, set_exit},
    listener::{Acceptor, Binding, SocketId, listen},
    session,
};
use crate::{
    runtime::{executor, worker},
    session::service::Service,
};
use ahash::AHashMap;
use std::{
    io,
    os::fd::OwnedFd,
    rc::Rc,
    sync::{Arc, mpsc},
    time::Instant,
};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

pub type Worker = worker::Worker<Order>;

pub enum Order {
    /// Accepts from a socket.
    Listen(Box<Binding>),
    /// Serves the sessions that this socket accepts from now on by another service.
    Update(SocketId, Arc<Service>),
    /// Lets no more connections to this socket begin. Those that have begun are accepted.
    Refuse(SocketId),
    /// Whether no connection begins at any TCP socket, also at those to come.
    RefuseAll(bool),
    /// Accepts what is in the queue of this socket, then closes it.
    Close(SocketId),
    /// Copies all sockets. The end of the channel says that there are no more.
    CopySockets(mpsc::Sender<SocketCopy>),
    /// Accepts nothing: another process does with these sockets. A drain abandons their queues to
    /// it.
    Pause,
    /// Accepts again.
    Resume,
    /// The same for this socket alone.
    ResumeOne(SocketId),
    /// Drops the token, which confirms that the orders before this one were executed.
    Confirm(TaskTrackerToken),
    /// Sessions that are asked to leave go there from now on; `None`: they stay.
    SetExit(Option<mpsc::Sender<Departure>>),
    /// Goes on with a session of another process.
    GoOn(Box<Arriving>),
    /// Accepts what is in the queues of all listeners, and then nothing more.
    Drain,
}

/// A second descriptor of a listening socket.
pub struct SocketCopy {
    pub id: SocketId,
    /// Of those with this id, in the order of the workers.
    pub index: usize,
    pub socket: io::Result<OwnedFd>,
}

/// `tasks` tracks the accept loops and sessions of all workers. `epoch`: the same for all workers,
/// whose milliseconds are compared.
pub fn spawn_worker(index: usize, tasks: &TaskTracker, epoch: Instant) -> io::Result<Worker> {
    let tasks = tasks.clone();
    let name = format!("worker-{index}");
    Worker::spawn(name, index, epoch, move |reactor, mailbox| {
        let mut listeners = Listeners {
            tasks,
            index,
            acceptors: AHashMap::new(),
            refuses_all: false,
        };
        executor::run(reactor, &mailbox, |order| listeners.execute(order));
    })
}

/// The accept loops of a worker.
struct Listeners {
    tasks: TaskTracker,
    index: usize,
    /// Several of an address where another process had more workers.
    acceptors: AHashMap<SocketId, Vec<Rc<Acceptor>>>,
    /// See [`Order::RefuseAll`].
    refuses_all: bool,
}

impl Listeners {
    fn execute(&mut self, order: Order) {
        match order {
            Order::Listen(binding) => {
                let id = binding.id;
                let (acceptor, alive) = Acceptor::new(*binding);
                let acceptor = Rc::new(acceptor);
                if self.refuses_all {
                    acceptor.hold_off();
                }
                self.acceptors
                    .entry(id)
                    .or_default()
                    .push(Rc::clone(&acceptor));
                let accepting = listen(acceptor, self.tasks.clone());
                executor::spawn(self.tasks.track_future(accepting));
                drop(alive);
            }
            Order::Update(id, service) => {
                for acceptor in self.acceptors.get(&id).into_iter().flatten() {
                    acceptor.set_service(Arc::clone(&service));
                }
            }
            Order::Refuse(id) => {
                let acceptors = self.acceptors.get(&id).into_iter().flatten();
                acceptors.for_each(|acceptor| acceptor.refuse());
            }
            Order::RefuseAll(refuses) => {
                self.refuses_all = refuses;
                match refuses {
                    true => self.all().for_each(Acceptor::hold_off),
                    false => self.all().for_each(Acceptor::end_hold_off),
                }
            }
            Order::Close(id) => {
                let acceptors = self.acceptors.remove(&id).into_iter().flatten();
                acceptors.for_each(|acceptor| acceptor.stop.set());
            }
            Order::CopySockets(copies) => self.copy_sockets(&copies),
            Order::Pause => self.all().for_each(Acceptor::pause),
            Order::Resume => self.all().for_each(Acceptor::resume),
            Order::ResumeOne(id) => {
                let acceptors = self.acceptors.get(&id).into_iter().flatten();
                acceptors.for_each(|acceptor| acceptor.resume());
            }
            Order::Confirm(token) => drop(token),
            Order::SetExit(exit) => set_exit(exit),
            Order::GoOn(arriving) => match *arriving {
                Arriving::Relayed(continuation) => {
                    let (permits, client, opened) = continuation.open();
                    let serving = session::resume(permits, client, opened);
                    executor::spawn(self.tasks.track_future(serving));
                }
                Arriving::Waiting(waiting) => {
                    let (permits, client, unplaced) = waiting.open();
                    let serving = session::wait_on(permits, client, unplaced);
                    executor::spawn(self.tasks.track_future(serving));
                }
            },
            // Without refusing clients: another process may go on with these sockets.
            Order::Drain => {
                // A copy of the sockets may be kept for the next process.
                self.all().for_each(Acceptor::end_hold_off);
                self.all().for_each(|acceptor| acceptor.stop.set());
                self.acceptors.clear();
            }
        }
    }

    fn all(&self) -> impl Iterator<Item = &Acceptor> {
        self.acceptors.values().flatten().map(Rc::as_ref)
    }

    fn copy_sockets(&self, copies: &mpsc::Sender<SocketCopy>) {
        for (id, acceptors) in &self.acceptors {
            for acceptor in acceptors {
                // The receiver may have given up.
                let _ = copies.send(SocketCopy {
                    id: *id,
                    index: self.index,
                    socket: acceptor.copy_socket(),
                });
            }
        }
    }
}
