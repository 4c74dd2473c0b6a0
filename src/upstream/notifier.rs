//! Wakes the one consumer of an upstream's events. Any thread may notify. A notification is kept
//! until the consumer waits.

use crate::sys::mutex::Mutex;
use std::task::{Context, Poll, Waker};

#[derive(Debug, Default)]
pub struct Notifier(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Since the last poll that returned.
    is_notified: bool,
    waiting: Option<Waker>,
}

impl Notifier {
    pub fn notify(&self) {
        let waker = {
            let mut state = self.0.lock();
            state.is_notified = true;
            state.waiting.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ready once for any number of notifications since it was ready last.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.lock();
        if std::mem::take(&mut state.is_notified) {
            return Poll::Ready(());
        }
        state.waiting = Some(cx.waker().clone());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notification_before_the_poll_is_kept() {
        let notifier = Notifier::default();
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(notifier.poll(cx).is_pending());
        notifier.notify();
        notifier.notify();
        assert!(notifier.poll(cx).is_ready());
        assert!(notifier.poll(cx).is_pending());
    }
}
