//! The sessions that live now: who they are, what they have moved, and a way to end them.

use crate::{metrics::Sharded, net::Client, reason::CloseReason};
use ahash::AHashMap;
use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    task::Waker,
};

/// One live session, as others see it.
#[derive(Debug)]
pub struct Session {
    id: u64,
    /// Whose connection it is. Usually this is the client.
    pub peer: Client,
    /// The port that it connected to; `None` on a unix socket.
    pub server_port: Option<u16>,
    /// Whom a PROXY protocol header named. In a box: most sessions have none.
    proxied: OnceLock<Box<Client>>,
    /// Bytes from the client.
    pub received: AtomicU64,
    /// Bytes to the client.
    pub sent: AtomicU64,
    /// The number of the backend that it is on; 0 for none.
    backend: AtomicU64,
    /// 0, or one more than the index of the reason to end for.
    end: AtomicU8,
    /// Of the task that carries it; set before the first wait.
    waker: Mutex<Option<Waker>>,
}

impl Session {
    /// Whom this session is for.
    pub fn client(&self) -> Client {
        self.proxied().unwrap_or(self.peer)
    }

    /// Whom the PROXY protocol header named that came with it, if one did.
    pub fn proxied(&self) -> Option<Client> {
        self.proxied.get().map(|client| **client)
    }

    pub fn set_proxied(&self, client: Client) {
        // A session has one header.
        let _ = self.proxied.set(Box::new(client));
    }

    /// Says which backend it is on, by its number; 0 for none. Whoever asks the pool afterwards whether that backend has been
    /// left meanwhile, and hears no, is found by [`Sessions::on`] when it is.
    pub fn set_backend(&self, id: u64) {
        self.backend.store(id, Ordering::Release);
    }

    /// Why it must end, if it must. Cheap: asked at every turn of the relay.
    pub fn must_end(&self) -> Option<CloseReason> {
        match self.end.load(Ordering::Acquire) {
            0 => None,
            n => CloseReason::ALL.get(usize::from(n) - 1).copied(),
        }
    }

    pub fn end(&self, reason: CloseReason) {
        let code = u8::try_from(reason as usize + 1).unwrap_or(u8::MAX);
        // The first reason stands.
        let _ = self
            .end
            .compare_exchange(0, code, Ordering::AcqRel, Ordering::Acquire);
        if let Some(waker) = &*lock(&self.waker) {
            waker.wake_by_ref();
        }
    }

    /// Must be called before the first look at [`Self::must_end`] that leads to a wait.
    pub fn wake_by(&self, waker: &Waker) {
        *lock(&self.waker) = Some(waker.clone());
    }
}

type Table = Arc<Mutex<AHashMap<u64, Arc<Session>>>>;

/// All sessions of the process, one table a worker.
#[derive(Debug)]
pub struct Sessions {
    tables: Sharded<Table>,
    next: AtomicU64,
    count: AtomicU64,
    /// So many at once and no more.
    most: u64,
}

/// A session's place on the list, given back when dropped.
#[derive(Debug)]
pub struct Listed {
    sessions: Arc<Sessions>,
    table: Table,
    session: Arc<Session>,
}

impl Sessions {
    pub fn new(shards: usize, most: u64) -> Self {
        Self {
            tables: Sharded::new(shards),
            next: AtomicU64::default(),
            count: AtomicU64::default(),
            most,
        }
    }

    /// `None` when there are as many as there may be.
    pub fn list(self: &Arc<Self>, peer: Client, server_port: Option<u16>) -> Option<Listed> {
        if self.count.fetch_add(1, Ordering::Relaxed) >= self.most {
            self.count.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let session = Arc::new(Session {
            id,
            peer,
            server_port,
            proxied: OnceLock::new(),
            received: AtomicU64::default(),
            sent: AtomicU64::default(),
            backend: AtomicU64::default(),
            end: AtomicU8::default(),
            waker: Mutex::default(),
        });
        let table = Arc::clone(self.tables.mine());
        lock(&table).insert(id, Arc::clone(&session));
        Some(Listed {
            sessions: Arc::clone(self),
            table,
            session,
        })
    }

    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    pub fn most(&self) -> u64 {
        self.most
    }

    /// Those that are on a backend now.
    pub fn on(&self, backend: u64) -> Vec<Arc<Session>> {
        let mut found = Vec::new();
        for table in self.tables.all() {
            let table = lock(table);
            let here = table
                .values()
                .filter(|s| s.backend.load(Ordering::Acquire) == backend);
            found.extend(here.cloned());
        }
        found
    }

    /// Tells every session to end, and returns how many were told.
    pub fn end_all(&self, reason: CloseReason) -> u64 {
        let mut told = 0;
        for table in self.tables.all() {
            let sessions: Vec<Arc<Session>> = lock(table).values().cloned().collect();
            for session in sessions {
                session.end(reason);
                told += 1;
            }
        }
        told
    }
}

impl Listed {
    /// Takes the session off the list; its figures are still wanted.
    pub fn give_back(self) -> Arc<Session> {
        Arc::clone(&self.session)
    }
}

impl std::ops::Deref for Listed {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        lock(&self.table).remove(&self.session.id);
        self.sessions.count.fetch_sub(1, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
