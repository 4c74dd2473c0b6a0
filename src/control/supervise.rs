//! What must go on whatever becomes of one turn of it.

use std::{
    any::Any,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    task::Poll,
    time::Duration,
};

/// After a panic, before the next begins: one that panics at once must not fill the log.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs what `begin` makes to its end, and anew for as long as it ends by a panic. `lost` is told
/// why.
pub(super) async fn supervised<F: Future>(
    mut begin: impl FnMut() -> F,
    lost: impl Fn(&str),
) -> F::Output {
    loop {
        match caught(begin()).await {
            Ok(output) => return output,
            Err(panic) => {
                let text = panic.downcast_ref::<&str>().copied();
                let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
                lost(text.unwrap_or("a panic without words"));
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// What it panicked with is dropped with it: nobody sees it half done.
async fn caught<F: Future>(task: F) -> Result<F::Output, Box<dyn Any + Send>> {
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
    fn what_panics_begins_anew_and_what_ends_has_ended() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
        let (times, told) = (Cell::new(0), RefCell::new(Vec::new()));
        let task = || async {
            tokio::task::yield_now().await;
            times.set(times.get() + 1);
            match times.get() {
                1 => panic!("with words"),
                2 => panic!("with {}", 2),
                n => n,
            }
        };
        let lost = |why: &str| told.borrow_mut().push(why.to_owned());
        assert_eq!(runtime.block_on(supervised(task, lost)), 3);
        assert_eq!(*told.borrow(), ["with words", "with 2"]);
    }
}
