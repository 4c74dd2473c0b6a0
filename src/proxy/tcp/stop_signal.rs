//! Makes an accept loop end, on the same thread.

use std::{
    cell::{Cell, RefCell},
    task::{Context, Poll, Waker},
};

/// Set once, by an order to the worker.
#[derive(Default)]
pub(super) struct StopSignal {
    is_set: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl StopSignal {
    pub(super) fn set(&self) {
        self.is_set.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Ready once the signal is set.
    pub(super) fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        if self.is_set.get() {
            return Poll::Ready(());
        }
        self.waker
            .borrow_mut()
            .get_or_insert_with(|| cx.waker().clone());
        Poll::Pending
    }
}
