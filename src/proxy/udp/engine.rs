//! The thread that carries datagrams: its event loop, and what its listeners share.

use super::{
    Binding,
    listener::{Listener, send_back},
    sockets::Sockets,
    token::Token,
};
use crate::{
    proxy::udp::{
        context::Context,
        mailbox::{Bell, Order},
    },
    runtime::executor::TimerFd,
    sys::datagram::{BATCH, Inbox, Outbox},
    telemetry::{metrics::set_shard, throttle::Throttle},
};
use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
};
use std::{
    collections::VecDeque,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// What one look at the event loop tells at most.
const EVENTS: usize = 256;
/// How often it is asked what the kernel dropped, while there is traffic.
const LOOK: u64 = 1_000;

pub struct Worker {
    thread: JoinHandle<()>,
    bell: Arc<Bell>,
}

impl Worker {
    /// `shard`: of the counters. `began`: from there milliseconds are
    /// counted; the same for all.
    pub fn spawn(
        index: usize,
        shard: usize,
        sockets: &Arc<Sockets>,
        began: Instant,
    ) -> io::Result<Self> {
        let bell = Arc::new(Bell::new()?);
        let engine = Engine::new(Arc::clone(&bell), Arc::clone(sockets), began)?;
        // What is followed up for longer than a datagram takes runs there.
        let runtime = tokio::runtime::Handle::try_current().map_err(io::Error::other)?;
        let thread = std::thread::Builder::new()
            .name(format!("udp-{index}"))
            .spawn(move || {
                set_shard(shard);
                let _inside = runtime.enter();
                run(engine);
            })?;
        Ok(Self { thread, bell })
    }

    pub fn listen(&self, binding: Binding) {
        self.bell.ring(Order::Listen(Box::new(binding)));
    }

    /// From now on no flow begins, and those that fall silent end.
    pub fn drain(&self) {
        self.bell.ring(Order::Drain);
    }

    /// Ends the thread and every flow that is still on it.
    pub fn join(self) {
        self.bell.ring(Order::Quit);
        if self.thread.join().is_err() {
            tracing::error!("UDP worker panicked");
        }
    }
}

fn run(mut engine: Engine) {
    let mut events = Vec::with_capacity(EVENTS);
    loop {
        match catch_unwind(AssertUnwindSafe(|| engine.turn(&mut events))) {
            Ok(Turn::Next) => {}
            Ok(Turn::Quit) => return,
            Err(_) => {
                tracing::error!("a turn of a UDP worker ended in a panic; it goes on");
                engine.gear.forget();
            }
        }
    }
}

enum Turn {
    Next,
    Quit,
}

struct Engine {
    gear: Context,
    timer: TimerFd,
    /// By their index; those that are over leave their place empty.
    listeners: Vec<Option<Listener>>,
    looked: u64,
    /// Of the call that waits.
    failures: Throttle<1>,
}

impl Engine {
    fn new(bell: Arc<Bell>, sockets: Arc<Sockets>, began: Instant) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let data = epoll::EventData::new_u64(Token::BELL);
        let edges = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, bell.fd(), data, edges)?;
        let timer = TimerFd::create();
        if let Some(timer) = timer.fd() {
            let data = epoll::EventData::new_u64(Token::TIMER);
            epoll::add(&epoll, timer, data, edges)?;
        }
        Ok(Self {
            timer,
            gear: Context {
                epoll,
                bell,
                inbox: Inbox::new(BATCH),
                units: Vec::new(),
                back: Inbox::new(BATCH),
                filled: 0,
                replies: Vec::new(),
                outbox: Outbox::new(),
                late: VecDeque::new(),
                sockets,
                serial: 0,
                began,
                now: began,
                ms: 0,
                turn: 0,
            },
            listeners: Vec::new(),
            looked: 0,
            failures: Throttle::new(began),
        })
    }

    /// Waits until something happens, and does what is to be done.
    fn turn(&mut self, events: &mut Vec<epoll::Event>) -> Turn {
        events.clear();
        let timeout = self.set_alarm();
        if let Err(error) = epoll::wait(&self.gear.epoll, spare_capacity(events), timeout.as_ref())
            && error != rustix::io::Errno::INTR
        {
            if let Some(count) = self.failures.add(0, 1, Instant::now()) {
                tracing::error!(%error, count, "cannot wait for datagrams");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        self.gear.now = Instant::now();
        let passed = self.gear.now.saturating_duration_since(self.gear.began);
        self.gear.ms = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX);
        self.gear.turn = self.gear.turn.wrapping_add(1);
        let mut rung = false;
        for event in events {
            match Token::of(event.data.u64()) {
                Token::Bell => rung = true,
                Token::Timer => self.timer.expired(),
                Token::Port { listener, port } => {
                    if let Some(Some(listener)) = self.listeners.get_mut(listener) {
                        listener.receive(&mut self.gear, port);
                    }
                }
                Token::Flow {
                    listener,
                    serial,
                    number,
                } => {
                    if self.gear.filled == self.gear.back.slots() {
                        self.send_back();
                    }
                    if let Some(Some(listener)) = self.listeners.get_mut(listener) {
                        let flags = event.flags;
                        if flags.contains(epoll::EventFlags::ERR) {
                            listener.reported(serial, number);
                        }
                        listener.reply(&mut self.gear, serial, number);
                    }
                }
            }
        }
        self.send_back();
        let turn = if rung { self.obey() } else { Turn::Next };
        self.tidy();
        turn
    }

    /// For the next time that there is something to do without an event. Where no timer can be set,
    /// returns how long the wait itself may take.
    fn set_alarm(&self) -> Option<Timespec> {
        let listeners = self.listeners.iter().flatten();
        let flows = listeners.clone().filter_map(Listener::next).min();
        let late = self.gear.late.front().map(|late| late.until);
        let look = listeners
            .clone()
            .any(|l| l.has_received)
            .then_some(self.looked + LOOK);
        let next = flows.into_iter().chain(late).chain(look).min()?;
        self.timer.set(next, || {
            let passed = self.gear.began.elapsed().as_millis();
            u64::try_from(passed).unwrap_or(u64::MAX)
        })
    }

    fn obey(&mut self) -> Turn {
        for order in self.gear.bell.answer() {
            match order {
                Order::Listen(binding) => {
                    let name = binding.service.plan.name.clone();
                    match Listener::new(*binding, self.listeners.len(), &self.gear) {
                        Ok(listener) => self.listeners.push(Some(listener)),
                        Err(error) => {
                            tracing::error!(listener = %name, %error, "cannot receive datagrams");
                        }
                    }
                }
                Order::Drain => {
                    for listener in self.listeners.iter_mut().flatten() {
                        listener.drain(&mut self.gear);
                    }
                }
                Order::Look(token) => {
                    if let Token::Flow {
                        listener,
                        serial,
                        number,
                    } = Token::of(token)
                        && let Some(Some(listener)) = self.listeners.get_mut(listener)
                    {
                        listener.look(&mut self.gear, serial, number);
                    }
                }
                Order::Evict(listener) => {
                    if let Some(Some(listener)) = self.listeners.get_mut(listener) {
                        listener.make_room_for_others(&mut self.gear);
                    }
                }
                Order::Quit => return Turn::Quit,
            }
        }
        Turn::Next
    }

    fn tidy(&mut self) {
        let ms = self.gear.ms;
        let look = ms >= self.looked + LOOK;
        for listener in self.listeners.iter_mut().flatten() {
            if listener.next().is_some_and(|next| next <= ms) {
                listener.expire(&mut self.gear);
            }
            if look {
                listener.count_drops();
            }
        }
        if look {
            self.looked = ms;
        }
        self.listeners
            .iter_mut()
            .flatten()
            .for_each(Listener::let_go);
        let late = &mut self.gear.late;
        while late.front().is_some_and(|late| late.until <= ms) {
            if let Some(late) = late.pop_front()
                && let Some(Some(listener)) = self.listeners.get(late.listener)
            {
                listener.count_late(&late.link.socket, &mut self.gear.back);
            }
        }
    }

    /// Everything that has come from backends goes to the clients.
    fn send_back(&mut self) {
        let mut replies = std::mem::take(&mut self.gear.replies);
        for same in replies.chunk_by(|a, b| (a.listener, a.port) == (b.listener, b.port)) {
            if let Some(Some(listener)) = self.listeners.get_mut(same[0].listener) {
                send_back(listener, &mut self.gear, same);
            }
        }
        replies.clear();
        self.gear.replies = replies;
        self.gear.filled = 0;
    }
}
