//! A client that connects again and again, and counts what becomes of it.

use super::{millis, secs, wait_until};
use std::{
    io::Read,
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Until it is dropped.
pub(crate) struct Load {
    counts: Arc<Mutex<Counts>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) served: u64,
    /// Connects that failed.
    pub(crate) refused: u64,
    /// Connected, and not served.
    pub(crate) cut: u64,
    /// The longest time from the beginning of a connect to the answer, or the failure.
    pub(crate) longest: Duration,
}

impl Load {
    /// To a listener before servers that greet. `spawn` runs it on a thread.
    pub(crate) fn start(
        front: SocketAddr,
        spawn: impl FnOnce(Box<dyn FnOnce() + Send>) -> JoinHandle<()>,
    ) -> Load {
        let (counts, stop) = (
            Arc::<Mutex<Counts>>::default(),
            Arc::<AtomicBool>::default(),
        );
        let run = {
            let (counts, stop) = (Arc::clone(&counts), Arc::clone(&stop));
            move || {
                while !stop.load(Relaxed) {
                    let (outcome, took) = connect(front);
                    let mut counts = counts.lock().unwrap();
                    match outcome {
                        Some(true) => counts.served += 1,
                        Some(false) => counts.cut += 1,
                        None => counts.refused += 1,
                    }
                    counts.longest = counts.longest.max(took);
                    drop(counts);
                    thread::sleep(millis(2));
                }
            }
        };
        Load {
            counts,
            stop,
            thread: Some(spawn(Box::new(run))),
        }
    }

    /// Waits until clients are served; what has become of them since the last call.
    #[track_caller]
    pub(crate) fn take(&self, what: &str) -> Counts {
        let before = self.counts.lock().unwrap().served;
        wait_until("clients are served", secs(20), || {
            self.counts.lock().unwrap().served > before + 50
        });
        let counts = std::mem::take(&mut *self.counts.lock().unwrap());
        println!("{what}: {counts:?}");
        counts
    }
}

/// Whether it was served; `None`: the connect failed.
fn connect(front: SocketAddr) -> (Option<bool>, Duration) {
    let began = Instant::now();
    let connected = TcpStream::connect_timeout(&front, secs(5));
    let served = connected.ok().map(|mut stream| {
        stream.set_read_timeout(Some(secs(5))).unwrap();
        stream.read_exact(&mut [0; 2]).is_ok()
    });
    (served, began.elapsed())
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
