//! Makes an accept loop end, or pause, on the same thread.

use std::{
    cell::{Cell, RefCell},
    task::{Context, Poll, Waker},
};

/// Set by an order to the worker.
#[derive(Default)]
pub(super) struct StopSignal {
    is_set: Cell<bool>,
    is_paused: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl StopSignal {
    pub(super) fn set(&self) {
        self.is_set.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Until [`Self::resume`], unless it is stopped meanwhile.
    pub(super) fn pause(&self) {
        self.is_paused.set(true);
    }

    pub(super) fn resume(&self) {
        self.is_paused.set(false);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    pub(super) fn is_paused(&self) -> bool {
        self.is_paused.get()
    }

    /// Ready once the signal is set. Otherwise a change wakes the task.
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
