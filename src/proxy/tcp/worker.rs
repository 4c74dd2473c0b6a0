//! The worker that carries connections: the orders that it takes.

use super::{
    listener::{Socket, listen},
    stop_signal::StopSignal,
};
use crate::{
    runtime::{executor, worker},
    session::service::Service,
};
use std::{io, rc::Rc, sync::Arc, time::Instant};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

pub type Worker = worker::Worker<Order>;

pub enum Order {
    /// Accepts from a socket.
    Listen(Box<Binding>),
    /// Accepts what is in the queues of all listeners, and then nothing more.
    Drain,
}

/// A socket of a listener on one worker.
pub struct Binding {
    pub socket: Socket,
    pub service: Arc<Service>,
    /// Held until the accept loop runs: a stop of the process waits for it from now on.
    pub alive: TaskTrackerToken,
}

/// `tasks` tracks the accept loops and sessions of all workers.
pub fn spawn_worker(index: usize, tasks: &TaskTracker) -> io::Result<Worker> {
    let tasks = tasks.clone();
    let name = format!("worker-{index}");
    Worker::spawn(name, index, Instant::now(), move |reactor, mailbox| {
        let mut listeners = Listeners {
            tasks,
            stops: Vec::new(),
        };
        executor::run(reactor, &mailbox, |order| listeners.execute(order));
    })
}

/// The accept loops of a worker.
struct Listeners {
    tasks: TaskTracker,
    stops: Vec<Rc<StopSignal>>,
}

impl Listeners {
    fn execute(&mut self, order: Order) {
        match order {
            Order::Listen(binding) => {
                let Binding {
                    socket,
                    service,
                    alive,
                } = *binding;
                let stop = Rc::new(StopSignal::default());
                self.stops.push(Rc::clone(&stop));
                let accepting = listen(socket, service, stop, self.tasks.clone());
                executor::spawn(self.tasks.track_future(accepting));
                drop(alive);
            }
            Order::Drain => self.stops.drain(..).for_each(|stop| stop.set()),
        }
    }
}
