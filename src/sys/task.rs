//! Futures of one type, for the tasks of tokio.

use std::pin::Pin;

/// The future on the heap, where a task of tokio has it anyway. Tokio's code for a task, and the
/// future itself, are compiled once more for each type of future given to it: that took some
/// seconds of each build.
pub fn boxed<T>(
    future: impl Future<Output = T> + Send + 'static,
) -> Pin<Box<dyn Future<Output = T> + Send>> {
    Box::pin(future)
}
