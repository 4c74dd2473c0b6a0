//! A thread that carries traffic, with its own reactor and mailbox.

use crate::{
    runtime::{
        heartbeat::Pulse,
        mailbox::{Mailbox, Message},
        pause,
        reactor::{self, Reactor},
    },
    telemetry::metrics::set_shard,
};
use std::{io, sync::Arc, thread::JoinHandle, time::Instant};

/// `O`: the orders that it takes.
pub struct Worker<O> {
    name: String,
    thread: JoinHandle<()>,
    mailbox: Arc<Mailbox<O>>,
    pulse: Arc<Pulse>,
}

impl<O: Send + 'static> Worker<O> {
    /// Calls `run` on a thread of its own, which ends when that returns. `shard`: of the counters.
    /// `began`: where the milliseconds of its clock count from.
    pub fn spawn(
        name: String,
        shard: usize,
        began: Instant,
        run: impl FnOnce(Reactor, Arc<Mailbox<O>>) + Send + 'static,
    ) -> io::Result<Self> {
        let mailbox = Arc::new(Mailbox::new()?);
        let reactor = Reactor::new(mailbox.fd(), began)?;
        let (heartbeat, waker) = (reactor.heartbeat(), mailbox.waker(reactor::MAILBOX));
        let pauses = reactor.pauses();
        let own_pauses = Arc::clone(&pauses);
        let pulse = Pulse::new(name.clone(), heartbeat, pauses, waker, began);
        let pulse = Arc::new(pulse);
        let thread = std::thread::Builder::new().name(name.clone()).spawn({
            let mailbox = Arc::clone(&mailbox);
            move || {
                set_shard(shard);
                pause::set_own(own_pauses);
                run(reactor, mailbox);
            }
        })?;
        Ok(Self {
            name,
            thread,
            mailbox,
            pulse,
        })
    }

    pub fn pulse(&self) -> &Arc<Pulse> {
        &self.pulse
    }

    /// For a thread that sends orders on its own.
    pub fn mailbox(&self) -> &Arc<Mailbox<O>> {
        &self.mailbox
    }

    pub fn send(&self, order: O) {
        self.mailbox.send(Message::Order(order));
    }

    /// Ends the thread, and every session or flow that it still carries.
    pub fn join(self) {
        self.mailbox.send(Message::Stop);
        if self.thread.join().is_err() {
            tracing::error!(worker = self.name, "worker panicked");
        }
    }
}
