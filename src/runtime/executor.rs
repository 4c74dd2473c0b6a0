//! Runs the tasks of a worker that carries connections, with their sockets and timers.
//!
//! A task is a future, and belongs to the thread on which it was spawned. Each turn of the reactor
//! yields the sockets that may be read or written; all tasks concerned are polled, and what they
//! wake is polled after them. A task has one waker, one timer and one entry in the queue, not one
//! for each thing that it waits for: a task that is polled checks all of them. So a session that
//! waits costs little more than its own future.

mod deferred;
mod listening;
mod socket;
mod stream;
mod timers;

pub use deferred::Received;
pub use listening::ListeningSocket;
pub use socket::PeerEnd;
pub use stream::{NoDelay, Stream, StreamKind, StreamState};

use crate::runtime::{
    mailbox::Mailbox,
    reactor::{self, Engine, Reactor, Wait},
};
use deferred::{DeferredWrites, new_buffer};
use rustix::event::epoll::EventFlags;
use slab::Slab;
use socket::Source;
use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::VecDeque,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};
use timers::Timers;

/// Polls of tasks in one turn, at most.
const POLLS: usize = 64;
/// Polls between two readings of the clock.
const POLLS_PER_TIME: usize = 8;
/// A task number outside of any poll.
const NO_TASK: u32 = u32::MAX;

thread_local! {
    static CORE: OnceCell<Core> = const { OnceCell::new() };
}

struct Core {
    reactor: Reactor,
    /// Makes the waker of a task.
    create_waker: Box<dyn Fn(u32) -> Waker>,
    sources: RefCell<Slab<Source>>,
    tasks: RefCell<Slab<ExecutorTask>>,
    timers: RefCell<Timers>,
    /// Where what is read lies until it is written.
    buffer: RefCell<Box<[u8]>>,
    deferred: RefCell<DeferredWrites>,
    /// Tasks to poll in this turn, in order.
    queue: RefCell<VecDeque<u32>>,
    /// Tasks to poll in the next turn.
    next_turn: RefCell<Vec<u32>>,
    /// The task that is polled now.
    current: Cell<u32>,
    /// The earliest time that the current poll has asked to be woken at.
    wake_time: Cell<Option<u64>>,
}

struct ExecutorTask {
    /// `None` while it is polled.
    body: Option<TaskBody>,
    is_queued: bool,
}

struct TaskBody {
    future: Pin<Box<dyn Future<Output = ()>>>,
    waker: Waker,
}

/// Makes this thread an executor until it gets the order to stop; tasks that remain are dropped
/// then. A thread can be one once. `execute` runs outside of any task.
pub fn run<O: Send + 'static>(
    reactor: Reactor,
    mailbox: &Arc<Mailbox<O>>,
    mut execute: impl FnMut(O),
) {
    CORE.with(|core| {
        let core = core.get_or_init(|| {
            let mailbox = Arc::clone(mailbox);
            Core::new(reactor, Box::new(move |task| mailbox.waker(task.into())))
        });
        let execute = &mut execute;
        reactor::run(&mut Executor { core, execute }, mailbox);
        core.drop_tasks();
    });
}

/// Starts a task. It is polled after those that are queued already.
pub fn spawn(future: impl Future<Output = ()> + 'static) {
    with_core(|core| core.spawn(Box::pin(future)));
}

/// The time of the last wait or a little later: accurate enough for limits of milliseconds,
/// without a call.
pub fn now() -> Instant {
    with_core(|core| core.reactor.clock().now())
}

/// The same in milliseconds of this executor.
pub fn now_millis() -> u64 {
    with_core(|core| core.reactor.clock().now_millis())
}

/// Polls this task at that time, if nothing else does before. A task has one such time, the
/// earliest of those that were set in the last poll that set any: one wait may be within another.
pub fn wake_at(at: Instant) {
    wake_at_millis(millis_at(at));
}

/// A time in the milliseconds of [`now_millis`], rounded up.
pub fn millis_at(at: Instant) -> u64 {
    with_core(|core| core.reactor.clock().millis_at(at))
}

/// As [`wake_at`], with a time in the milliseconds of [`now_millis`].
pub fn wake_at_millis(due: u64) {
    with_core(|core| {
        if core.wake_time.get().is_some_and(|earlier| earlier <= due) {
            return;
        }
        core.wake_time.set(Some(due));
        debug_assert!(core.current.get() != NO_TASK, "outside of any task");
        let now = core.reactor.clock().now_millis();
        core.timers.borrow_mut().set(core.current.get(), due, now);
    });
}

/// Polls this task again in the next turn: it has more to do, after others.
pub fn wake_next_turn() {
    with_core(|core| {
        let number = core.current.get();
        if let Some(task) = core.tasks.borrow_mut().get_mut(number as usize)
            && !std::mem::replace(&mut task.is_queued, true)
        {
            core.next_turn.borrow_mut().push(number);
        }
    });
}

/// Lets the tasks run that are queued already.
pub async fn yield_now() {
    pend_once(|| with_core(|core| core.wake(core.current.get()))).await;
}

/// Waits for the next turn, and so for the events that the kernel has by then.
pub async fn yield_to_events() {
    pend_once(wake_next_turn).await;
}

/// Pending once; `arrange` arranges for the next poll.
async fn pend_once(arrange: impl Fn()) {
    let mut is_pending = false;
    poll_fn(|_| {
        if std::mem::replace(&mut is_pending, true) {
            return Poll::Ready(());
        }
        arrange();
        Poll::Pending
    })
    .await;
}

pub async fn sleep(time: Duration) {
    let until = Instant::now() + time;
    poll_fn(|_| {
        // The executor's own time may be behind.
        if Instant::now() >= until {
            return Poll::Ready(());
        }
        wake_at(until);
        Poll::Pending
    })
    .await;
}

/// What is called from a task always has an executor around it.
fn with_core<R>(f: impl FnOnce(&Core) -> R) -> R {
    CORE.with(|core| match core.get() {
        Some(core) => f(core),
        None => panic!("only a task of an executor can do this"),
    })
}

struct Executor<'a, O> {
    core: &'a Core,
    execute: &'a mut dyn FnMut(O),
}

impl<O> Engine for Executor<'_, O> {
    type Order = O;

    fn reactor(&self) -> &Reactor {
        &self.core.reactor
    }

    fn wait(&self) -> Wait {
        let core = self.core;
        if !core.queue.borrow().is_empty() || !core.next_turn.borrow().is_empty() {
            return Wait::No;
        }
        match core.timers.borrow().next() {
            Some(due) => Wait::Until(due),
            None => Wait::ForEvents,
        }
    }

    fn handle_event(&mut self, token: u64, flags: EventFlags) {
        let mut sources = self.core.sources.borrow_mut();
        // An event of a socket that was closed meanwhile may reach another one with its number:
        // that one tries in vain.
        if let Some(source) = sources.get_mut(token as usize) {
            source.note_event(flags);
            let task = source.task;
            drop(sources);
            self.core.wake(task);
        }
    }

    fn wake(&mut self, token: u64) {
        self.core.wake(token as u32);
    }

    fn execute(&mut self, order: O) {
        (self.execute)(order);
    }

    fn end_turn(&mut self, has_all_events: bool) {
        let core = self.core;
        // Not before all events have arrived: a session that has something to read is not silent.
        if has_all_events {
            core.expire_timers();
        }
        core.queue.borrow_mut().extend(core.next_turn.take());
        for polls in 1..=POLLS {
            let Some(number) = core.queue.borrow_mut().pop_front() else {
                break;
            };
            core.poll(number);
            if polls % POLLS_PER_TIME == 0 {
                core.reactor.clock().update();
                core.flush_if_old();
            }
        }
        core.flush();
    }

    fn abandon_turn(&mut self) {}
}

impl Core {
    fn new(reactor: Reactor, create_waker: Box<dyn Fn(u32) -> Waker>) -> Self {
        Self {
            reactor,
            create_waker,
            sources: RefCell::default(),
            tasks: RefCell::default(),
            timers: RefCell::new(Timers::new()),
            buffer: RefCell::new(new_buffer()),
            deferred: RefCell::default(),
            queue: RefCell::default(),
            next_turn: RefCell::default(),
            current: Cell::new(NO_TASK),
            wake_time: Cell::new(None),
        }
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()>>>) {
        let mut tasks = self.tasks.borrow_mut();
        let number = tasks.vacant_key() as u32;
        let waker = (self.create_waker)(number);
        tasks.insert(ExecutorTask {
            body: Some(TaskBody { future, waker }),
            is_queued: true,
        });
        self.queue.borrow_mut().push_back(number);
    }

    fn expire_timers(&self) {
        let now = self.reactor.clock().now_millis();
        let mut timers = self.timers.borrow_mut();
        timers.expire(now, |task| self.wake(task));
    }

    /// Queues a task, if it is not queued yet.
    fn wake(&self, number: u32) {
        if let Some(task) = self.tasks.borrow_mut().get_mut(number as usize)
            && !std::mem::replace(&mut task.is_queued, true)
        {
            self.queue.borrow_mut().push_back(number);
        }
    }

    fn poll(&self, number: u32) {
        let Some(mut body) = self.take_body(number) else {
            return;
        };
        self.current.set(number);
        self.wake_time.set(None);
        let polled = catch_unwind(AssertUnwindSafe(|| {
            let mut cx = Context::from_waker(&body.waker);
            let polled = body.future.as_mut().poll(&mut cx);
            (body, polled)
        }));
        self.current.set(NO_TASK);
        // A panic ends its task, and no other.
        if let Ok((body, Poll::Pending)) = polled {
            if let Some(task) = self.tasks.borrow_mut().get_mut(number as usize) {
                task.body = Some(body);
            }
            return;
        }
        self.timers.borrow_mut().unset(number);
        self.tasks.borrow_mut().try_remove(number as usize);
    }

    fn take_body(&self, number: u32) -> Option<TaskBody> {
        let mut tasks = self.tasks.borrow_mut();
        let task = tasks.get_mut(number as usize)?;
        task.is_queued = false;
        task.body.take()
    }

    fn drop_tasks(&self) {
        loop {
            // Outside of the borrow: a task that is dropped may close sockets.
            let tasks = self.tasks.take();
            if tasks.is_empty() {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests;
