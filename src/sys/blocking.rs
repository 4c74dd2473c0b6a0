//! Calls that may block for long, or for ever: each runs on a thread of its own, and is waited for
//! up to a limit.
//!
//! A call that hangs in a resolver or on a network file system cannot be cancelled. Its thread is
//! abandoned, delays no other work, and is not joined when the process ends.

use std::{
    io,
    sync::mpsc::{RecvTimeoutError, sync_channel},
    time::Duration,
};
use tokio::sync::oneshot;

/// For opening and reading files. Longer than [`crate::sys::files::SILENCE`], whose error is more
/// specific.
pub const LIMIT: Duration = Duration::from_secs(12);

/// The result of `work`, or an error of the kind `TimedOut`. After that `work` goes on, and what it
/// returns is dropped.
pub async fn call<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (sender, result) = oneshot::channel();
    spawn(move || {
        let _ = sender.send(work());
    })?;
    match tokio::time::timeout(limit, result).await {
        Ok(result) => result.map_err(|_| panicked()),
        Err(_) => Err(timed_out(limit)),
    }
}

/// The same without tokio.
pub fn call_and_wait<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (sender, result) = sync_channel(1);
    spawn(move || {
        let _ = sender.try_send(work());
    })?;
    result.recv_timeout(limit).map_err(|e| match e {
        RecvTimeoutError::Timeout => timed_out(limit),
        RecvTimeoutError::Disconnected => panicked(),
    })
}

fn spawn(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
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
    use std::sync::mpsc::channel;

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
