//! The sessions that live now: who they are, what they have moved, and a way to end them.

mod descriptors;

pub use descriptors::Descriptors;

use crate::{plan::reason::CloseReason, runtime::net::Client, telemetry::metrics::Sharded};
use ahash::AHashMap;
use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
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
    /// Which of the budgets it is counted in.
    is_flow: bool,
    /// The process is to stop: a session that waits for nothing much then ends.
    is_stopping: AtomicBool,
    /// Whom a PROXY protocol header named. In a box: most sessions have none.
    proxied: OnceLock<Box<Client>>,
    /// Bytes from the client.
    pub received: AtomicU64,
    /// Bytes to the client.
    pub sent: AtomicU64,
    /// Where it is and why it must end, as one: who tells it to leave a backend never meets it on
    /// the next.
    stand: AtomicU64,
    /// Of the task that carries it; set before the first wait.
    waker: Mutex<Option<Waker>>,
}

/// What a session is told, and where it is when it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stand {
    /// The number of the backend that it is on; 0 for none.
    backend: u64,
    /// 0, or one more than the index of the reason to end for.
    end: u8,
    /// It must end only because it is on that backend.
    leaves: bool,
}

impl Stand {
    fn of(bits: u64) -> Self {
        Self {
            backend: bits >> 8,
            end: bits as u8 >> 1,
            leaves: bits & 1 == 1,
        }
    }

    fn bits(self) -> u64 {
        self.backend << 8 | u64::from(self.end) << 1 | u64::from(self.leaves)
    }

    /// The first reason stands.
    fn ending(self, reason: CloseReason, leaves: bool) -> Self {
        match self.end {
            0 => Self {
                end: (reason as u8 + 1) & 0x7f,
                leaves,
                ..self
            },
            _ => Self {
                leaves: self.leaves && leaves,
                ..self
            },
        }
    }
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

    /// Says which backend it is on, by its number; 0 for none. Whoever asks the pool afterwards
    /// whether that backend has been left meanwhile, and hears no, is found by [`Sessions::on`]
    /// when it is. Whoever hears yes goes elsewhere: what it was told because of the one is not
    /// meant for the other.
    pub fn set_backend(&self, id: u64) {
        self.turn(|stand| match stand.leaves {
            true => Stand::of(id << 8),
            false => Stand {
                backend: id,
                ..stand
            },
        });
    }

    /// Why it must end, if it must. Cheap: asked at every turn of the relay.
    pub fn must_end(&self) -> Option<CloseReason> {
        match Stand::of(self.stand.load(Ordering::Acquire)).end {
            0 => None,
            n => CloseReason::ALL.get(usize::from(n) - 1).copied(),
        }
    }

    pub fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Relaxed)
    }

    /// Wherever it is.
    pub fn end(&self, reason: CloseReason) {
        self.turn(|stand| stand.ending(reason, false));
        self.wake();
    }

    /// Unless it is on another backend by now.
    pub fn end_if_on(&self, backend: u64, reason: CloseReason) {
        let before = self.turn(|stand| match stand.backend == backend {
            true => stand.ending(reason, true),
            false => stand,
        });
        if before.backend == backend {
            self.wake();
        }
    }

    fn turn(&self, to: impl Fn(Stand) -> Stand) -> Stand {
        let turn = |bits| Some(to(Stand::of(bits)).bits());
        let turned = self
            .stand
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, turn);
        Stand::of(turned.unwrap_or_else(|bits| bits))
    }

    fn wake(&self) {
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
    connections: Budget,
    flows: Budget,
    /// Those of flows are taken with their sockets.
    descriptors: Arc<Descriptors>,
    is_stopping: AtomicBool,
}

/// So many at once and no more. Connections and flows have one each: a flood of the one leaves the
/// other alone.
#[derive(Debug)]
pub struct Budget {
    count: AtomicU64,
    most: AtomicU64,
}

impl Budget {
    fn new(most: u64) -> Self {
        Self {
            count: AtomicU64::default(),
            most: AtomicU64::new(most),
        }
    }

    fn take(&self) -> bool {
        take_place(&self.count, self.most())
    }

    fn give_back(&self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    pub fn most(&self) -> u64 {
        self.most.load(Ordering::Relaxed)
    }

    /// Sessions beyond a lower limit go on; no new one is admitted until enough have ended.
    pub fn set_most(&self, most: u64) {
        self.most.store(most, Ordering::Relaxed);
    }
}

/// Takes one of so many places. Never counts beyond them, not for a moment: another worker that
/// sees one too many turns somebody away for whom there is room.
pub fn take_place(count: &AtomicU64, most: u64) -> bool {
    let one_more = |n| (n < most).then(|| n + 1);
    count
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
        .is_ok()
}

/// A session's place on the list, given back when dropped.
#[derive(Debug)]
pub struct Listed {
    sessions: Arc<Sessions>,
    table: Table,
    session: Arc<Session>,
}

impl Sessions {
    pub fn new(
        shards: usize,
        connections: u64,
        flows: u64,
        descriptors: &Arc<Descriptors>,
    ) -> Self {
        Self {
            is_stopping: AtomicBool::new(false),
            tables: Sharded::new(shards),
            next: AtomicU64::default(),
            connections: Budget::new(connections),
            flows: Budget::new(flows),
            descriptors: Arc::clone(descriptors),
        }
    }

    /// A connection; `None` when there are as many as there may be.
    pub fn list(self: &Arc<Self>, peer: Client, server_port: Option<u16>) -> Option<Listed> {
        self.add(peer, server_port, false)
    }

    /// The same for a flow of datagrams.
    pub fn list_flow(self: &Arc<Self>, peer: Client, server_port: u16) -> Option<Listed> {
        self.add(peer, Some(server_port), true)
    }

    fn add(
        self: &Arc<Self>,
        peer: Client,
        server_port: Option<u16>,
        is_flow: bool,
    ) -> Option<Listed> {
        if !self.budget(is_flow).take() {
            return None;
        }
        if !is_flow && !self.descriptors.take_for_connection() {
            self.budget(is_flow).give_back();
            return None;
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let session = Arc::new(Session {
            id,
            peer,
            server_port,
            is_flow,
            is_stopping: AtomicBool::new(false),
            proxied: OnceLock::new(),
            received: AtomicU64::default(),
            sent: AtomicU64::default(),
            stand: AtomicU64::default(),
            waker: Mutex::default(),
        });
        let table = Arc::clone(self.tables.mine());
        lock(&table).insert(id, Arc::clone(&session));
        // After it is on the list: a stop finds it there, or has been noted before.
        if self.is_stopping.load(Ordering::Relaxed) {
            session.is_stopping.store(true, Ordering::Relaxed);
        }
        Some(Listed {
            sessions: Arc::clone(self),
            table,
            session,
        })
    }

    fn budget(&self, is_flow: bool) -> &Budget {
        if is_flow {
            &self.flows
        } else {
            &self.connections
        }
    }

    pub fn connections(&self) -> &Budget {
        &self.connections
    }

    pub fn flows(&self) -> &Budget {
        &self.flows
    }

    /// Connections and flows.
    pub fn count(&self) -> u64 {
        self.connections.count() + self.flows.count()
    }

    /// Those that are on a backend now.
    pub fn on(&self, backend: u64) -> Vec<Arc<Session>> {
        let mut found = Vec::new();
        for table in self.tables.all() {
            let table = lock(table);
            let place = |s: &Session| Stand::of(s.stand.load(Ordering::Acquire)).backend;
            let here = table.values().filter(|s| place(s) == backend);
            found.extend(here.cloned());
        }
        found
    }

    /// Whether the process takes no new sessions because it is to stop.
    pub fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Relaxed)
    }

    /// Tells every session that the process is to stop. None has to end because of that alone.
    pub fn stop(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
        for table in self.tables.all() {
            let sessions: Vec<Arc<Session>> = lock(table).values().cloned().collect();
            for session in sessions.iter().filter(|session| !session.is_flow) {
                session.is_stopping.store(true, Ordering::Relaxed);
                session.wake();
            }
        }
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
        if !self.session.is_flow {
            self.sessions.descriptors.give_back_of_connection();
        }
        self.sessions.budget(self.session.is_flow).give_back();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Listed {
        let sessions = Arc::new(Sessions::new(1, 1, 0, &Arc::new(Descriptors::new(2, 0, 0))));
        let session = sessions.list(Client::Unix, None).expect("room for one");
        session.set_backend(7);
        session
    }

    #[test]
    fn who_has_moved_on_is_not_ended_for_where_it_was() {
        let session = session();
        session.set_backend(8);
        session.end_if_on(7, CloseReason::BackendDown);
        assert_eq!(session.must_end(), None);
        assert_eq!(session.sessions.on(8).len(), 1);
        session.end_if_on(8, CloseReason::Recovered);
        assert_eq!(session.must_end(), Some(CloseReason::Recovered));
    }

    /// It was found before it could hear from the pool that it must not stay.
    #[test]
    fn a_session_that_moves_clears_its_termination() {
        let session = session();
        session.end_if_on(7, CloseReason::BackendDown);
        assert_eq!(session.must_end(), Some(CloseReason::BackendDown));
        session.set_backend(0);
        assert_eq!(session.must_end(), None);
        assert_eq!(session.sessions.on(7).len(), 0);
    }

    /// What holds wherever it is: a stop.
    #[test]
    fn who_must_end_anyway_must_wherever_it_goes() {
        for first in [true, false] {
            let session = session();
            if first {
                session.end_if_on(7, CloseReason::BackendDown);
            }
            session.end(CloseReason::Drained);
            session.end_if_on(7, CloseReason::RoleLost);
            let told = session.must_end();
            session.set_backend(8);
            assert_eq!(session.must_end(), told);
            assert_eq!(told == Some(CloseReason::BackendDown), first);
        }
    }

    #[test]
    fn every_reason_and_any_number_keep() {
        for (n, reason) in CloseReason::ALL.iter().enumerate() {
            let backend = u64::MAX >> 8 >> n;
            let session = session();
            session.set_backend(backend);
            session.end_if_on(backend, *reason);
            assert_eq!(session.must_end(), Some(*reason));
            assert_eq!(session.sessions.on(backend).len(), 1);
        }
    }

    #[test]
    fn there_are_never_more_than_there_may_be() {
        let (count, over) = (AtomicU64::new(1), AtomicU64::new(0));
        // One place is taken for good: who is turned away is counted neither while it asks nor when
        // it has heard.
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while over.load(Ordering::Relaxed) == 0 {
                        assert!(!take_place(&count, 1));
                    }
                });
            }
            for _ in 0..2_000_000 {
                let seen = count.load(Ordering::Relaxed);
                over.store(u64::from(seen > 1) << 1, Ordering::Relaxed);
                if seen > 1 {
                    break;
                }
            }
            over.fetch_or(1, Ordering::Relaxed);
        });
        assert_eq!(over.into_inner(), 1);
        assert!(take_place(&count, 2));
        assert!(!take_place(&count, 2));
        assert_eq!(count.into_inner(), 2);
    }
}
