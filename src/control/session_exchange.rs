//! Live sessions go to another process, or come from one, in batches that are answered.
//!
//! A session is asked to leave, and stops at its next wait (`proxy/tcp/handover`). It is still that
//! of the old process until the new one has answered that it has taken it, and the new one does
//! nothing with it before it has sent that answer. So if one of them dies at any time, at most one
//! is left that relays the session.

mod receive;
mod send;

pub use receive::SessionReceiver;
pub use send::{SessionSender, SessionsReport};

use crate::{
    proxy::tcp::{
        Order,
        handover::{Continuation, Departure},
    },
    runtime::mailbox::{Mailbox, Message},
};
use std::sync::{Arc, mpsc};

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
    fn go_on(&self, continuation: Continuation, turn: usize) {
        if let Some(mailbox) = self.0.get(turn % self.0.len().max(1)) {
            mailbox.send(Message::Order(Order::GoOn(Box::new(continuation))));
        }
    }
}
