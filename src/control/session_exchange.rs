//! Live sessions go to another process, or come from one, in batches that are answered.
//!
//! A session is asked to leave, and stops at its next wait (`proxy/tcp/handover`). With the
//! sessions of a message comes a [`Claim`](crate::handover::claim::Claim), which the new process
//! takes before it does anything with them; the old one takes it to have them back. So at any time
//! a session is that of one of both, and if the other dies or hangs, it goes on.

mod places;
mod receive;
mod send;

pub use places::HandedPlaces;
pub use receive::SessionReceiver;
pub use send::{OtherProcess, SessionSender, SessionsReport};

use crate::{
    proxy::tcp::{
        Order,
        handover::{Arriving, Departure},
    },
    runtime::mailbox::{Mailbox, Message},
};
use std::sync::{Arc, mpsc};

/// Since this version of the format a message has a claim.
const WITH_CLAIM: u16 = 2;

/// The workers that carry connections, for another thread.
#[derive(Clone)]
pub struct Carriers(Vec<Arc<Mailbox<Order>>>);

impl Carriers {
    pub(super) fn new<'a>(workers: impl Iterator<Item = &'a Arc<Mailbox<Order>>>) -> Self {
        Self(workers.cloned().collect())
    }

    /// Sessions that are asked to leave go there from now on; `None`: they stay.
    fn set_exit(&self, exit: Option<&mpsc::Sender<Departure>>) {
        for mailbox in &self.0 {
            mailbox.send(Message::Order(Order::SetExit(exit.cloned())));
        }
    }

    /// `turn`: counts the sessions, so that the workers get as many each.
    fn resume_session(&self, arriving: Arriving, turn: usize) {
        if let Some(mailbox) = self.0.get(turn % self.0.len().max(1)) {
            mailbox.send(Message::Order(Order::GoOn(Box::new(arriving))));
        }
    }
}
