//! Calls that may block for long, or for ever: each runs on a thread of its own, and is waited for
//! up to a limit.
//!
//! A call that hangs in a resolver or on a network file system cannot be cancelled. Its thread is
//! abandoned, delays no other work, and is not joined when the process ends.

use super::{mutex::Mutex, task::boxed};
use std::{
    io,
    sync::{
        Arc,
        mpsc::{RecvTimeoutError, sync_channel},
    },
    time::Duration,
};
use tokio::{
    sync::{Semaphore, oneshot},
    task::JoinHandle,
};

/// For opening and reading files. Longer than [`crate::sys::files::SILENCE`], whose error is more
/// specific.
pub const LIMIT: Duration = Duration::from_secs(12);

/// The result of `work`, or an error of the kind `TimedOut`. After that `work` goes on, and what it
/// returns is dropped.
pub async fn call<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let result = Arc::new(Mutex::new(None));
    let (end, ended) = oneshot::channel();
    let kept = Arc::clone(&result);
    spawn(Box::new(move || {
        let value = work();
        *kept.lock() = Some(value);
        let _ = end.send(());
    }))?;
    wait(limit, ended).await?;
    result.lock().take().ok_or_else(panicked)
}

/// Compiled once, not for each type of result.
async fn wait(limit: Duration, ended: oneshot::Receiver<()>) -> io::Result<()> {
    match tokio::time::timeout(limit, ended).await {
        Ok(ended) => ended.map_err(|_| panicked()),
        Err(_) => Err(timed_out(limit)),
    }
}

/// Calls of which few are under way at a time, however many are to be made: a hundred threads at
/// once would keep the others of the process from the memory that they share.
pub struct Calls(Arc<Semaphore>);

/// So many at a time,
const MOST: usize = 8;
/// and one more each time that none of them has ended for so long. A call that hangs holds up the
/// others no longer.
const STUCK: Duration = Duration::from_millis(50);

impl Default for Calls {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MOST)))
    }
}

impl Calls {
    /// Begins [`call`] when those before it have.
    pub async fn begin<T: Send + 'static>(
        &self,
        limit: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<io::Result<T>> {
        let place = Arc::clone(&self.0).acquire_owned();
        let place = tokio::time::timeout(STUCK, place).await;
        tokio::spawn(boxed(async move {
            let result = call(limit, work).await;
            drop(place);
            result
        }))
    }
}

/// The same without tokio.
pub fn call_and_wait<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (sender, result) = sync_channel(1);
    spawn(Box::new(move || {
        let _ = sender.try_send(work());
    }))?;
    result.recv_timeout(limit).map_err(|e| match e {
        RecvTimeoutError::Timeout => timed_out(limit),
        RecvTimeoutError::Disconnected => panicked(),
    })
}

fn spawn(work: Box<dyn FnOnce() + Send>) -> io::Result<()> {
    let thread = std::thread::Builder::new().name("blocking".to_owned());
    thread.spawn(work).map(drop)
}

fn timed_out(limit: Duration) -> io::Error {
    let text = format!("no answer within {} s", limit.as_secs_f64());
    io::Error::new(io::ErrorKind::TimedOut, text)
}

fn panicked() -> io::Error {
    io::Error::other("the call ended in a panic")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::{
            atomic::{AtomicUsize, Ordering::SeqCst},
            mpsc::channel,
        },
        time::Instant,
    };

    #[test]
    fn few_of_many_calls_are_under_way_at_a_time() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
        let (now, most) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        runtime.block_on(async {
            let calls = Calls::default();
            let mut begun = Vec::new();
            for _ in 0..100 {
                let (now, most) = (Arc::clone(&now), Arc::clone(&most));
                let work = move || {
                    most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                    std::thread::yield_now();
                    now.fetch_sub(1, SeqCst);
                };
                begun.push(calls.begin(LIMIT, work).await);
            }
            for call in begun {
                call.await.expect("no panic").expect("in time");
            }
        });
        // One that a busy machine keeps from running for long lets another one begin.
        let most = most.load(SeqCst);
        assert!((1..2 * MOST).contains(&most), "{most} at a time");
    }

    #[test]
    fn calls_that_hang_hold_up_no_other_for_long() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let calls = Calls::default();
            let (mut releases, began) = (Vec::new(), Instant::now());
            for _ in 0..MOST + 2 {
                let (release, hang) = channel::<()>();
                releases.push((release, calls.begin(LIMIT, move || hang.recv()).await));
            }
            let other = calls.begin(LIMIT, || 7).await;
            assert_eq!(other.await.expect("no panic").expect("in time"), 7);
            assert!(began.elapsed() >= 3 * STUCK);
        });
    }

    #[test]
    fn a_call_that_hangs_is_abandoned_and_delays_no_other() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
        let (release, hang) = channel::<()>();
        let limit = Duration::from_millis(20);
        runtime.block_on(async {
            let hanging = call(limit, move || hang.recv());
            let error = hanging.await.expect_err("it hangs");
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert_eq!(call(LIMIT, || 7).await.expect("a result"), 7);
        });
        assert_eq!(call_and_wait(LIMIT, || 8).expect("a result"), 8);
        let (release_other, hang) = channel::<()>();
        assert!(call_and_wait(limit, move || hang.recv()).is_err());
        drop((release, release_other));
    }
}
