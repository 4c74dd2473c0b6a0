//! Restarts a task that panics.

use std::{
    any::Any,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    task::Poll,
    time::Duration,
};

/// Pause before a restart: a task that panics at once must not fill the log.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// Runs the task that `start` makes to its end, and starts it again after a panic, whose message is
/// given to `report`.
pub(super) async fn supervised<F: Future>(
    mut start: impl FnMut() -> F,
    report: impl Fn(&str),
) -> F::Output {
    loop {
        match catch_panic(start()).await {
            Ok(output) => return output,
            Err(panic) => {
                let text = panic.downcast_ref::<&str>().copied();
                let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
                report(text.unwrap_or("a panic without a message"));
                tokio::time::sleep(RESTART_PAUSE).await;
            }
        }
    }
}

/// A task that panicked is dropped: nothing uses its state afterwards.
async fn catch_panic<F: Future>(task: F) -> Result<F::Output, Box<dyn Any + Send>> {
    let mut task = pin!(task);
    poll_fn(
        |cx| match catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Err(panic) => Poll::Ready(Err(panic)),
        },
    )
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};

    #[test]
    fn a_task_that_panics_is_restarted_until_it_ends() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
        let (times, reported) = (Cell::new(0), RefCell::new(Vec::new()));
        let task = || async {
            tokio::task::yield_now().await;
            times.set(times.get() + 1);
            match times.get() {
                1 => panic!("with a message"),
                2 => panic!("with {}", 2),
                n => n,
            }
        };
        let report = |why: &str| reported.borrow_mut().push(why.to_owned());
        assert_eq!(runtime.block_on(supervised(task, report)), 3);
        assert_eq!(*reported.borrow(), ["with a message", "with 2"]);
    }
}
