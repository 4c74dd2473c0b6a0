//! The loop of a worker's thread: waits for the kernel and for messages, and hands both to an
//! engine.

use crate::{
    runtime::{
        heartbeat::Heartbeat,
        mailbox::{Mailbox, Message},
        pause::Pauses,
        timer_fd::TimerFd,
    },
    telemetry::throttle::Throttle,
};
use rustix::{
    buffer::spare_capacity,
    event::{
        Timespec,
        epoll::{self, EventData, EventFlags},
    },
    io::Errno,
};
use std::{
    cell::Cell,
    collections::VecDeque,
    io,
    ops::ControlFlow::{self, Break, Continue},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

/// Most events of one call to the kernel.
const EVENTS: usize = 256;
/// How long a turn executes orders; the rest of them waits for the next turn. So sessions are
/// served in between, however much changes.
const ORDERS: Duration = Duration::from_micros(200);
/// Pause after a call that failed.
const PAUSE: Duration = Duration::from_millis(50);
/// Tokens of the reactor itself; all others are the engine's.
pub(super) const MAILBOX: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;

/// What runs on a reactor. The functions are called in this order in each turn.
pub trait Engine {
    type Order;

    fn reactor(&self) -> &Reactor;

    /// How long the turn may wait for events.
    fn wait(&self) -> Wait;

    /// The wait is over, and the clock was read.
    fn begin_turn(&mut self) {}

    fn handle_event(&mut self, token: u64, flags: EventFlags);

    /// The waker with this token was called.
    fn wake(&mut self, token: u64);

    fn execute(&mut self, order: Self::Order);

    /// `has_all_events`: the kernel has no more events than those that were handled.
    fn end_turn(&mut self, has_all_events: bool);

    /// A panic has ended the turn. What it had begun is lost.
    fn abandon_turn(&mut self);
}

pub enum Wait {
    No,
    /// In milliseconds of the reactor's clock.
    Until(u64),
    ForEvents,
}

/// The kernel's event queue, a timer and a clock.
pub struct Reactor {
    epoll: OwnedFd,
    timer: TimerFd,
    clock: Clock,
    heartbeat: Arc<Heartbeat>,
    pauses: Arc<Pauses>,
    failures: Throttle<1>,
}

/// Time as of the last wait: accurate enough for limits of milliseconds, without a call.
pub struct Clock {
    began: Instant,
    now: Cell<Instant>,
}

impl Reactor {
    /// `mailbox`: its descriptor. `began`: where the milliseconds of the clock count from.
    pub fn new(mailbox: BorrowedFd<'_>, began: Instant) -> io::Result<Self> {
        let reactor = Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            timer: TimerFd::create(),
            clock: Clock {
                began,
                now: Cell::new(Instant::now()),
            },
            heartbeat: Arc::default(),
            pauses: Arc::default(),
            failures: Throttle::new(began),
        };
        let edges = EventFlags::IN | EventFlags::ET;
        reactor.register(mailbox, MAILBOX, edges)?;
        if let Some(timer) = reactor.timer.fd() {
            reactor.register(timer, TIMER, edges)?;
        }
        Ok(reactor)
    }

    pub fn register(&self, fd: impl AsFd, token: u64, flags: EventFlags) -> io::Result<()> {
        Ok(epoll::add(
            &self.epoll,
            fd,
            EventData::new_u64(token),
            flags,
        )?)
    }

    pub fn change(&self, fd: impl AsFd, token: u64, flags: EventFlags) -> io::Result<()> {
        Ok(epoll::modify(
            &self.epoll,
            fd,
            EventData::new_u64(token),
            flags,
        )?)
    }

    pub fn deregister(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, fd)?)
    }

    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(super) fn heartbeat(&self) -> Arc<Heartbeat> {
        Arc::clone(&self.heartbeat)
    }

    pub(super) fn pauses(&self) -> Arc<Pauses> {
        Arc::clone(&self.pauses)
    }

    /// Returns whether the wait was not interrupted: only then are all events up to now in
    /// `events`.
    fn wait(&self, wait: Wait, events: &mut Vec<epoll::Event>) -> bool {
        events.clear();
        let timeout = match wait {
            Wait::No => Some(Timespec::default()),
            Wait::Until(due) => self.timer.set(due, || self.clock.elapsed_millis()),
            Wait::ForEvents => None,
        };
        match epoll::wait(&self.epoll, spare_capacity(events), timeout.as_ref()) {
            Ok(_) => {}
            // Also after the whole process was stopped and continued.
            Err(Errno::INTR) => return false,
            Err(error) => {
                if let Some(count) = self.failures.add(0, 1, Instant::now()) {
                    tracing::error!(%error, count, "cannot wait for events");
                }
                std::thread::sleep(PAUSE);
            }
        }
        self.clock.update();
        self.heartbeat.store(self.clock.now_millis());
        true
    }
}

impl Clock {
    pub fn now(&self) -> Instant {
        self.now.get()
    }

    pub fn update(&self) {
        self.now.set(Instant::now());
    }

    /// Milliseconds up to [`Self::now`].
    pub fn now_millis(&self) -> u64 {
        to_millis(self.since_began(self.now.get()))
    }

    /// The first millisecond that is not before `at`: a timer must not expire early.
    pub fn millis_at(&self, at: Instant) -> u64 {
        to_millis(self.since_began(at) + Duration::from_nanos(999_999))
    }

    fn elapsed_millis(&self) -> u64 {
        to_millis(self.since_began(Instant::now()))
    }

    fn since_began(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.began)
    }
}

fn to_millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Runs an engine until [`Message::Stop`] arrives.
pub fn run<E: Engine>(engine: &mut E, mailbox: &Mailbox<E::Order>) {
    let mut events = Vec::with_capacity(EVENTS);
    let mut messages = VecDeque::new();
    loop {
        let turn = AssertUnwindSafe(|| turn(engine, mailbox, &mut events, &mut messages));
        match catch_unwind(turn) {
            Ok(Continue(())) => {}
            Ok(Break(())) => return,
            Err(_) => {
                tracing::error!("turn of a worker ended in a panic, the worker continues");
                engine.abandon_turn();
                // The notification may have been among the events that are lost.
                messages.extend(mailbox.take());
            }
        }
    }
}

/// `messages`: what was taken from the mailbox and not handled yet, if an earlier turn had enough
/// orders or ended in a panic.
fn turn<E: Engine>(
    engine: &mut E,
    mailbox: &Mailbox<E::Order>,
    events: &mut Vec<epoll::Event>,
    messages: &mut VecDeque<Message<E::Order>>,
) -> ControlFlow<()> {
    let wait = match messages.is_empty() {
        true => engine.wait(),
        false => Wait::No,
    };
    if !engine.reactor().wait(wait, events) {
        return Continue(());
    }
    engine.begin_turn();
    for event in &*events {
        match event.data.u64() {
            MAILBOX => messages.extend(mailbox.take()),
            TIMER => engine.reactor().timer.note_expired(),
            token => engine.handle_event(token, event.flags),
        }
    }
    let mut flow = Continue(());
    let mut orders_began = None;
    while let Some(message) = messages.pop_front() {
        match message {
            Message::Order(order) => {
                let began = *orders_began.get_or_insert_with(Instant::now);
                engine.execute(order);
                if began.elapsed() >= ORDERS {
                    break;
                }
            }
            // Of an observer, for which the turn alone counts.
            Message::Wake(MAILBOX) => {}
            Message::Wake(token) => engine.wake(token),
            Message::Stop => flow = Break(()),
        }
    }
    if let Some(began) = orders_began {
        engine.reactor().pauses.record(began.elapsed());
    }
    engine.end_turn(events.len() < EVENTS);
    flow
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records what it is handed. The order 0 panics.
    struct Recorder {
        reactor: Reactor,
        due: Option<u64>,
        orders: Vec<u32>,
        wakes: Vec<u64>,
        abandoned: usize,
        ended_turns: usize,
        /// How long an order takes.
        takes: Duration,
    }

    impl Engine for Recorder {
        type Order = u32;

        fn reactor(&self) -> &Reactor {
            &self.reactor
        }

        fn wait(&self) -> Wait {
            self.due.map_or(Wait::ForEvents, Wait::Until)
        }

        fn handle_event(&mut self, token: u64, _: EventFlags) {
            panic!("no socket is registered: {token}");
        }

        fn wake(&mut self, token: u64) {
            self.wakes.push(token);
        }

        fn execute(&mut self, order: u32) {
            assert!(order > 0, "this order panics");
            std::thread::sleep(self.takes);
            self.orders.push(order);
        }

        fn end_turn(&mut self, has_all_events: bool) {
            assert!(has_all_events);
            self.ended_turns += 1;
        }

        fn abandon_turn(&mut self) {
            self.abandoned += 1;
        }
    }

    fn recorder() -> (Recorder, Arc<Mailbox<u32>>) {
        let mailbox = Arc::new(Mailbox::new().expect("a mailbox"));
        let recorder = Recorder {
            reactor: Reactor::new(mailbox.fd(), Instant::now()).expect("a reactor"),
            due: None,
            orders: Vec::new(),
            wakes: Vec::new(),
            abandoned: 0,
            ended_turns: 0,
            takes: Duration::ZERO,
        };
        (recorder, mailbox)
    }

    #[test]
    fn a_panic_loses_no_later_message() {
        let (mut recorder, mailbox) = recorder();
        for order in [1, 0, 2, 0, 3] {
            mailbox.send(Message::Order(order));
        }
        mailbox.send(Message::Stop);
        run(&mut recorder, &mailbox);
        assert_eq!(recorder.orders, [1, 2, 3]);
        assert_eq!((recorder.abandoned, recorder.ended_turns), (2, 1));
    }

    #[test]
    fn orders_that_take_long_are_spread_over_turns() {
        let (mut recorder, mailbox) = recorder();
        recorder.takes = ORDERS;
        (1..=3).for_each(|order| mailbox.send(Message::Order(order)));
        mailbox.send(Message::Stop);
        run(&mut recorder, &mailbox);
        assert_eq!(recorder.orders, [1, 2, 3]);
        assert_eq!(recorder.ended_turns, 4);
        let longest = recorder.reactor.pauses().longest();
        assert!(longest >= ORDERS, "{longest:?}");
    }

    #[test]
    fn a_waker_wakes_from_another_thread() {
        let (mut recorder, mailbox) = recorder();
        let (waker, stop) = (mailbox.waker(7), Arc::clone(&mailbox));
        let thread = std::thread::spawn(move || {
            waker.wake();
            stop.send(Message::Stop);
        });
        run(&mut recorder, &mailbox);
        thread.join().expect("no panic");
        assert_eq!(recorder.wakes, [7]);
    }

    #[test]
    fn a_wait_ends_when_it_is_due() {
        let (mut recorder, mailbox) = recorder();
        let (mut events, mut messages) = (Vec::with_capacity(EVENTS), VecDeque::new());
        recorder.due = Some(20);
        while recorder.reactor.clock().now_millis() < 20 {
            let flow = turn(&mut recorder, &mailbox, &mut events, &mut messages);
            assert_eq!(flow, Continue(()));
        }
        assert!((1..=3).contains(&recorder.ended_turns), "it does not spin");
    }
}
