//! Look-ups of host names, each on a thread of its own.
//!
//! The system's resolver cannot be cancelled. A look-up that hangs must not delay other look-ups,
//! scrapes or file accesses, nor the end of the process; so there is no thread pool. There is at
//! most one look-up of a name at a time: requests for it share the answer.

use crate::{
    plan::Addr,
    sys::{mutex::Mutex, names},
};
use std::{
    collections::HashMap,
    io,
    net::{SocketAddr, ToSocketAddrs as _},
    sync::Arc,
    time::Duration,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Time limit for an answer. The look-up goes on, and a later request may get its answer.
const LIMIT: Duration = Duration::from_secs(10);

/// At most so many look-ups at a time: a source of backends may have thousands of names, and the
/// process may not have as many threads.
const MOST: usize = 256;

#[derive(Debug, Clone)]
pub(in crate::control) struct Resolver {
    under_way: Arc<Mutex<UnderWay>>,
    threads: Arc<Semaphore>,
}

impl Default for Resolver {
    fn default() -> Self {
        Self {
            under_way: Arc::default(),
            threads: Arc::new(Semaphore::new(MOST)),
        }
    }
}

type UnderWay = HashMap<(String, Question), watch::Receiver<Option<Answer>>>;

/// What is asked about a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Question {
    Addresses,
    /// Whether it has none of this family: [`io::ErrorKind::NotFound`] if that is certain.
    Family {
        is_ipv6: bool,
    },
}

/// Addresses with port 0. An error is shared, which `io::Error` cannot be.
type Answer = Result<Vec<SocketAddr>, (io::ErrorKind, String)>;

impl Resolver {
    /// The addresses of `host`, sorted: resolvers rotate their answers, and picks have to be the
    /// same everywhere.
    pub(super) async fn look_up(&self, host: &str) -> io::Result<Vec<SocketAddr>> {
        self.look_up_by(host, Question::Addresses, system).await
    }

    /// Whether a name that has addresses is certain to have none of this family: the system's
    /// resolver gives those of one family, and no error, where it fails for the other.
    pub(super) async fn is_without(&self, host: &str, is_ipv6: bool) -> bool {
        let question = Question::Family { is_ipv6 };
        let answer = self.look_up_by(host, question, system).await;
        answer.is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
    }

    /// The same with a port.
    pub(in crate::control) async fn addresses(
        &self,
        host: &str,
        port: u16,
    ) -> io::Result<Vec<Addr>> {
        let addresses = self.look_up(host).await?.into_iter();
        let with_port = addresses.map(|mut address| {
            address.set_port(port);
            Addr::Tcp(address)
        });
        Ok(with_port.collect())
    }

    async fn look_up_by(
        &self,
        host: &str,
        question: Question,
        how: fn(&str, Question) -> Answer,
    ) -> io::Result<Vec<SocketAddr>> {
        let deadline = tokio::time::Instant::now() + LIMIT;
        let threads = Arc::clone(&self.threads);
        let permit = tokio::time::timeout_at(deadline, threads.acquire_owned()).await;
        let permit = permit.map_err(|_| {
            let text = format!("{MOST} other look-ups are under way, and have no answer");
            io::Error::new(io::ErrorKind::TimedOut, text)
        })?;
        let mut answer = self.join_or_begin(host, question, how, permit.ok())?;
        let known = tokio::time::timeout_at(deadline, answer.wait_for(Option::is_some)).await;
        match known {
            Ok(Ok(answer)) => match &*answer {
                Some(Ok(addresses)) => Ok(addresses.clone()),
                Some(Err((kind, text))) => Err(io::Error::new(*kind, text.clone())),
                None => Err(io::Error::other("the look-up has no answer")),
            },
            Ok(Err(_)) => Err(io::Error::other("the look-up ended in a panic")),
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the resolver did not answer",
            )),
        }
    }

    fn join_or_begin(
        &self,
        host: &str,
        question: Question,
        how: fn(&str, Question) -> Answer,
        permit: Option<OwnedSemaphorePermit>,
    ) -> io::Result<watch::Receiver<Option<Answer>>> {
        let mut under_way = self.under_way.lock();
        let key = (host.to_owned(), question);
        // A look-up whose thread has panicked never answers.
        if let Some(answer) = under_way.get(&key).filter(|a| a.has_changed().is_ok()) {
            return Ok(answer.clone());
        }
        let (sender, answer) = watch::channel(None);
        let (this, (name, _)) = (self.clone(), key.clone());
        let thread = std::thread::Builder::new().name("resolve".to_owned());
        thread.spawn(move || {
            let found = how(&name, question);
            drop(permit);
            // First, so that a request that comes after the answer begins anew.
            this.under_way.lock().remove(&(name, question));
            let _ = sender.send(Some(found));
        })?;
        under_way.insert(key, answer.clone());
        Ok(answer)
    }
}

fn system(host: &str, question: Question) -> Answer {
    if let Question::Family { is_ipv6 } = question {
        return match names::is_without(host, is_ipv6) {
            true => Err((
                io::ErrorKind::NotFound,
                format!("{host} has no such address"),
            )),
            false => Ok(Vec::new()),
        };
    }
    let found = (host, 0).to_socket_addrs();
    let found = found.map_err(|e| (e.kind(), format!("{host} does not resolve: {e}")))?;
    let mut addresses: Vec<SocketAddr> = found.collect();
    addresses.sort_unstable();
    addresses.dedup();
    if addresses.is_empty() {
        let text = format!("{host} has no address");
        return Err((io::ErrorKind::NotFound, text));
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering::Relaxed},
    };

    static STARTED: AtomicUsize = AtomicUsize::new(0);
    static RELEASE: Barrier = Barrier::new(2);

    /// "hangs" until it is released, others answer at once.
    fn slow(host: &str, _: Question) -> Answer {
        if host == "hangs" {
            STARTED.fetch_add(1, Relaxed);
            RELEASE.wait();
        }
        Ok(vec![SocketAddr::from(([127, 0, 0, 1], 0))])
    }

    #[test]
    fn a_look_up_that_hangs_is_one_thread_and_delays_no_other() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
        let resolver = Resolver::default();
        runtime.block_on(async {
            let first = resolver.look_up_by("hangs", Question::Addresses, slow);
            let second = resolver.look_up_by("hangs", Question::Addresses, slow);
            let both = async { tokio::join!(first, second) };
            let other = async {
                let answer = resolver.look_up_by("answers", Question::Addresses, slow);
                let answer = answer.await;
                assert!(answer.is_ok());
                tokio::task::yield_now().await;
                RELEASE.wait();
            };
            let ((first, second), ()) = tokio::join!(both, other);
            assert!(first.is_ok() && second.is_ok());
            assert_eq!(STARTED.load(Relaxed), 1);
        });
        assert!(resolver.under_way.lock().is_empty());
    }
}
