//! The event loop of a thread that carries connections: its tasks, their sockets, their timers.
//!
//! A task is a future, and belongs to the thread on which it was spawned. One look at the kernel
//! tells which sockets may be read or written, all tasks concerned are polled, and what they wake
//! is polled after them; then comes the next look. There is one waker, one timer and one place on
//! the queue for each task, not for each thing that it waits for: a task that is polled looks at
//! all that it waits for anyway. So a session that waits costs little more than its own future.

mod mailbox;
mod outbox;
mod socket;
mod timer_fd;
mod timers;

pub use crate::runtime::executor::timer_fd::TimerFd;
pub use outbox::{Fresh, Left};
pub use socket::{Listening, Socket};

use crate::{
    runtime::executor::mailbox::{Bell, TaskBell},
    telemetry::throttle::Throttle,
};
use outbox::Outbox;
use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
};
use slab::Slab;
use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::VecDeque,
    future::{Future, poll_fn},
    io,
    os::fd::OwnedFd,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};
use timers::Timers;

/// What one look at the kernel tells at most.
const EVENTS: usize = 256;
/// So many polls, and it is time to look at the kernel again.
const POLLS: usize = 64;
/// So many polls, and it is time to look at the clock.
const SAME_TIME: usize = 8;
/// After the kernel would not tell anything.
const PAUSE: Duration = Duration::from_millis(50);

/// By what the kernel calls the bell and the timer; all else are sources.
const BELL: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;

thread_local! {
    static HERE: OnceCell<Core> = const { OnceCell::new() };
}

struct Core {
    epoll: OwnedFd,
    bell: Arc<Bell>,
    timer: TimerFd,
    sources: RefCell<Slab<Source>>,
    tasks: RefCell<Slab<Task>>,
    timers: RefCell<Timers>,
    outbox: RefCell<Outbox>,
    /// Where what is read and what is to be written lies.
    room: RefCell<Box<[u8]>>,
    /// Whose turn it is, in order.
    queue: RefCell<VecDeque<u32>>,
    /// Whose turn it is after the next look at the kernel.
    later: RefCell<Vec<u32>>,
    /// Which task is polled now.
    current: Cell<u32>,
    /// The earliest time at which it wants to be polled again, of those that it has named since
    /// then.
    named: Cell<Option<u64>>,
    began: Instant,
    now: Cell<Instant>,
    /// Of the call that waits.
    failures: Throttle<1>,
}

struct Task {
    /// Not here while it is polled.
    body: Option<Body>,
    is_queued: bool,
}

struct Body {
    future: Pin<Box<dyn Future<Output = ()>>>,
    waker: Waker,
}

/// A socket, as the event loop sees it.
struct Source {
    /// Whom to wake.
    task: u32,
    flags: u16,
}

/// Before the first task, and between two of them.
const NOBODY: u32 = u32::MAX;

/// An event loop that has not begun.
pub struct Executor {
    epoll: OwnedFd,
    bell: Arc<Bell>,
    timer: TimerFd,
}

impl Executor {
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let bell = Arc::new(Bell::new()?);
        let data = epoll::EventData::new_u64(BELL);
        let edges = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, bell.fd(), data, edges)?;
        let timer = TimerFd::create();
        if let Some(timer) = timer.fd() {
            let data = epoll::EventData::new_u64(TIMER);
            epoll::add(&epoll, timer, data, edges)?;
        }
        Ok(Self { epoll, bell, timer })
    }

    /// Makes this thread one until `root` has come to its end. What is still there of other tasks
    /// is dropped then. A thread can be one once.
    pub fn run(self, root: impl Future<Output = ()> + 'static) {
        HERE.with(|here| {
            let core = here.get_or_init(|| Core::new(self));
            let over = Rc::new(Cell::new(false));
            let until_over = Rc::clone(&over);
            core.spawn(Box::pin(async move {
                let _over = Over(until_over);
                root.await;
            }));
            let mut events = Vec::with_capacity(EVENTS);
            while !over.get() {
                core.turn(&mut events);
            }
            core.drop_all();
        });
    }
}

/// Tells that the root is over, be it by a panic.
struct Over(Rc<Cell<bool>>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

/// Begins a task beside the one that is polled now. It is polled after those that wait for their
/// turn already.
pub fn spawn(future: impl Future<Output = ()> + 'static) {
    here(|core| core.spawn(Box::pin(future)));
}

/// When the kernel was last looked at, or a little later: near enough for limits of milliseconds,
/// and free.
pub fn now() -> Instant {
    here(|core| core.now.get())
}

/// Milliseconds of this event loop up to that time, rounded up.
pub fn millis(at: Instant) -> u64 {
    here(|core| core.ms(at, true))
}

/// Polls this task again at that time, if nothing else does it before. A task has one such time:
/// the earliest that was named in the last poll in which any was, for one wait may be within
/// another.
pub fn wake_at(at: Instant) {
    wake_at_millis(millis(at));
}

/// The same with a time in [`millis`].
pub fn wake_at_millis(due: u64) {
    here(|core| {
        if core.named.get().is_some_and(|earlier| earlier <= due) {
            return;
        }
        core.named.set(Some(due));
        let now = core.ms(core.now.get(), false);
        debug_assert!(core.current.get() != NOBODY, "outside of any task");
        core.timers.borrow_mut().set(core.current.get(), due, now);
    });
}

/// Polls this task again after the next look at the kernel: it has more to do, but others shall
/// have their turn.
pub fn wake_next_turn() {
    here(|core| {
        let number = core.current.get();
        if let Some(task) = core.tasks.borrow_mut().get_mut(number as usize)
            && !std::mem::replace(&mut task.is_queued, true)
        {
            core.later.borrow_mut().push(number);
        }
    });
}

/// Lets those be polled that wait for their turn already.
pub async fn yield_now() {
    let mut waited = false;
    poll_fn(|_| {
        if std::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        here(|core| core.wake(core.current.get()));
        Poll::Pending
    })
    .await;
}

/// The same, once the kernel was looked at.
pub async fn yield_to_events() {
    let mut looked = false;
    poll_fn(|_| {
        if std::mem::replace(&mut looked, true) {
            return Poll::Ready(());
        }
        wake_next_turn();
        Poll::Pending
    })
    .await;
}

pub async fn sleep(time: Duration) {
    let until = Instant::now() + time;
    poll_fn(|_| {
        // The loop's own time may be behind.
        if Instant::now() >= until {
            return Poll::Ready(());
        }
        wake_at(until);
        Poll::Pending
    })
    .await;
}

/// What is called from a task always has a loop around it.
fn here<R>(f: impl FnOnce(&Core) -> R) -> R {
    HERE.with(|here| match here.get() {
        Some(core) => f(core),
        None => panic!("only a task of an event loop can do this"),
    })
}

impl Core {
    fn new(Executor { epoll, bell, timer }: Executor) -> Self {
        let now = Instant::now();
        Self {
            epoll,
            bell,
            timer,
            sources: RefCell::default(),
            tasks: RefCell::default(),
            timers: RefCell::new(Timers::new()),
            outbox: RefCell::default(),
            room: RefCell::new(outbox::room()),
            queue: RefCell::default(),
            later: RefCell::default(),
            current: Cell::new(NOBODY),
            named: Cell::new(None),
            began: now,
            now: Cell::new(now),
            failures: Throttle::new(now),
        }
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()>>>) {
        let mut tasks = self.tasks.borrow_mut();
        let number = tasks.vacant_key() as u32;
        let waker = Waker::from(Arc::new(TaskBell::new(&self.bell, number)));
        tasks.insert(Task {
            body: Some(Body { future, waker }),
            is_queued: true,
        });
        self.queue.borrow_mut().push_back(number);
    }

    /// One look at the kernel, and all that follows from it; last of all, what was read is written.
    fn turn(&self, events: &mut Vec<epoll::Event>) {
        events.clear();
        let timeout = self.timeout();
        match epoll::wait(&self.epoll, spare_capacity(events), timeout.as_ref()) {
            Ok(_) => {}
            // After a stop of the whole process, too. Nothing is known yet of what has come
            // meanwhile.
            Err(rustix::io::Errno::INTR) => return,
            Err(error) => {
                if let Some(count) = self.failures.add(0, 1, Instant::now()) {
                    tracing::error!(%error, count, "cannot wait for connections");
                }
                std::thread::sleep(PAUSE);
            }
        }
        self.now.set(Instant::now());
        for event in &*events {
            match event.data.u64() {
                BELL => self.bell.answer(|task| self.wake(task)),
                TIMER => self.timer.expired(),
                source => self.note(source as usize, event.flags),
            }
        }
        // Only when all that has happened is known: who has something to read has not been silent.
        if events.len() < EVENTS {
            self.ring_timers();
        }
        for number in self.later.take() {
            self.queue.borrow_mut().push_back(number);
        }
        for polls in 1..=POLLS {
            let Some(number) = self.queue.borrow_mut().pop_front() else {
                break;
            };
            self.poll(number);
            if polls % SAME_TIME == 0 {
                self.now.set(Instant::now());
                self.write_old_letters();
            }
        }
        self.write_letters();
    }

    /// How long to wait: not at all, or until something happens.
    fn timeout(&self) -> Option<Timespec> {
        if !self.queue.borrow().is_empty() || !self.later.borrow().is_empty() {
            return Some(Timespec::default());
        }
        let next = self.timers.borrow().next()?;
        self.timer.set(next, || self.ms(Instant::now(), false))
    }

    fn ring_timers(&self) {
        let now = self.ms(self.now.get(), false);
        let mut timers = self.timers.borrow_mut();
        timers.ring(now, |task| self.wake(task));
    }

    /// Milliseconds since the beginning; a time that is waited for must not come early.
    fn ms(&self, at: Instant, up: bool) -> u64 {
        let passed = at.saturating_duration_since(self.began).as_nanos();
        let rest = u128::from(up) * 999_999;
        u64::try_from((passed + rest) / 1_000_000).unwrap_or(u64::MAX)
    }

    /// Puts a task on the queue, if it is not there yet.
    fn wake(&self, number: u32) {
        if let Some(task) = self.tasks.borrow_mut().get_mut(number as usize)
            && !std::mem::replace(&mut task.is_queued, true)
        {
            self.queue.borrow_mut().push_back(number);
        }
    }

    fn note(&self, source: usize, events: epoll::EventFlags) {
        let mut sources = self.sources.borrow_mut();
        // An event of a socket that was closed meanwhile may find another one in its place. It is
        // told of something that is not so, and finds out when it tries.
        let Some(source) = sources.get_mut(source) else {
            return;
        };
        source.flags |= socket::flags(events);
        let task = source.task;
        drop(sources);
        self.wake(task);
    }

    fn poll(&self, number: u32) {
        let Some(mut body) = self.take(number) else {
            return;
        };
        self.current.set(number);
        self.named.set(None);
        let polled = catch_unwind(AssertUnwindSafe(|| {
            let mut cx = Context::from_waker(&body.waker);
            let polled = body.future.as_mut().poll(&mut cx);
            (body, polled)
        }));
        self.current.set(NOBODY);
        // A task that panics ends, and no other does.
        if let Ok((body, Poll::Pending)) = polled {
            if let Some(task) = self.tasks.borrow_mut().get_mut(number as usize) {
                task.body = Some(body);
            }
            return;
        }
        self.timers.borrow_mut().unset(number);
        self.tasks.borrow_mut().try_remove(number as usize);
    }

    fn take(&self, number: u32) -> Option<Body> {
        let mut tasks = self.tasks.borrow_mut();
        let task = tasks.get_mut(number as usize)?;
        task.is_queued = false;
        task.body.take()
    }

    fn drop_all(&self) {
        loop {
            // Outside of the borrow: what is dropped may close sockets.
            let left = self.tasks.take();
            if left.is_empty() {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests;
