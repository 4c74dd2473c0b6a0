//! When a session has next found another backend than one that has left: what a failure of it took
//! its clients.

use super::{Inner, Pool, Search};
use crate::upstream::backend::Backend;
use std::{sync::Arc, time::Instant};
use tokio::sync::oneshot;

/// The first session that another backend has taken.
#[derive(Debug)]
pub struct Taken {
    pub by: Arc<str>,
    pub at: Instant,
}

/// Somebody who waits for one.
#[derive(Debug)]
pub(super) struct Elsewhere {
    /// The number of the backend that has left.
    left: u64,
    tell: oneshot::Sender<Taken>,
}

impl Pool {
    /// The next session that another backend than this one takes.
    pub fn next_elsewhere(&self, backend: &Backend) -> oneshot::Receiver<Taken> {
        let (tell, told) = oneshot::channel();
        let mut inner = self.lock();
        // Those whom nobody listens to any more.
        inner.waiting.retain(|one| !one.tell.is_closed());
        inner.waiting.push(Elsewhere {
            left: backend.id,
            tell,
        });
        told
    }
}

impl Inner {
    /// A session has been taken by the backend that it was sent to last.
    pub(super) fn tell_of(&mut self, search: &Search, now: Instant) {
        if self.waiting.is_empty() {
            return;
        }
        let Some(by) = search.tried.last() else {
            return;
        };
        let Some(member) = self.members.iter().find(|m| m.backend.id == *by) else {
            return;
        };
        for one in self.waiting.extract_if(.., |one| one.left != *by) {
            let taken = Taken {
                by: Arc::clone(member.backend.text()),
                at: now,
            };
            // Whoever has gone away does not want to know.
            let _ = one.tell.send(taken);
        }
    }
}
