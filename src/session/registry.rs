//! The sessions that live now: their clients, what they have carried, and how they are terminated.

mod descriptors;

pub use descriptors::Descriptors;

use crate::{
    plan::reason::{CloseReason, RejectReason},
    runtime::net::Client,
    telemetry::metrics::Sharded,
};
use ahash::AHashMap;
use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Waker,
};

/// A connection that was accepted, or the first datagram of a flow.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    pub peer: Client,
    /// The client that a PROXY protocol header has named, where the header is read by now.
    pub named: Option<Client>,
    /// The port of the listener; `None` on a unix socket.
    pub server_port: Option<u16>,
}

/// Connections and flows have a budget each: a flood of one kind leaves the other alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Connection,
    Flow,
}

/// One live session, as other threads see it.
#[derive(Debug)]
pub struct Session {
    id: u64,
    /// The other end of the connection: the client, or a proxy in front.
    pub peer: Client,
    /// The port that it connected to; `None` on a unix socket.
    pub server_port: Option<u16>,
    pub kind: Kind,
    /// The process is stopping: a session with one side finished then waits only briefly.
    is_stopping: AtomicBool,
    /// Which table of the registry has it.
    shard: u16,
    /// The client that a PROXY protocol header named. In a box: most sessions have none.
    proxied: OnceLock<Box<Client>>,
    /// Bytes from the client.
    pub received: AtomicU64,
    /// Bytes to the client.
    pub sent: AtomicU64,
    /// A [`Placement`], so that its parts change together: a termination that is meant for one
    /// backend never reaches the session on the next.
    placement: AtomicU64,
    /// Of the task that carries it; set before the first wait.
    waker: Mutex<Option<Waker>>,
}

/// The backend of a session, and why it must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Placement {
    /// The id of the backend; 0 for none.
    backend: u64,
    /// 0, or one more than the index of the reason to end for.
    end: u8,
    /// The reason holds on that backend only.
    is_of_backend: bool,
}

impl Placement {
    fn of(bits: u64) -> Self {
        Self {
            backend: bits >> 8,
            end: bits as u8 >> 1,
            is_of_backend: bits & 1 == 1,
        }
    }

    fn bits(self) -> u64 {
        self.backend << 8 | u64::from(self.end) << 1 | u64::from(self.is_of_backend)
    }

    /// The first reason stands.
    fn ending(self, reason: CloseReason, is_of_backend: bool) -> Self {
        match self.end {
            0 => Self {
                end: (reason as u8 + 1) & 0x7f,
                is_of_backend,
                ..self
            },
            _ => Self {
                is_of_backend: self.is_of_backend && is_of_backend,
                ..self
            },
        }
    }
}

impl Arrival {
    /// The client that the session is for.
    pub fn client(&self) -> Client {
        self.named.unwrap_or(self.peer)
    }
}

impl Session {
    /// The client that the session is for.
    pub fn client(&self) -> Client {
        self.proxied().unwrap_or(self.peer)
    }

    /// The client that a PROXY protocol header named, if there was one.
    pub fn proxied(&self) -> Option<Client> {
        self.proxied.get().map(|client| **client)
    }

    pub fn set_proxied(&self, client: Client) {
        // A session has one header.
        let _ = self.proxied.set(Box::new(client));
    }

    /// Enters the session on a backend, by its id; 0 for none. A session enters first and then asks
    /// the pool whether sessions of that backend were terminated since it was picked. If not, a
    /// later termination finds it by [`Sessions::on`]. If so, the session moves on, and a reason to
    /// end that was meant for that backend is cleared.
    pub fn set_backend(&self, id: u64) {
        self.update(|placement| match placement.is_of_backend {
            true => Placement::of(id << 8),
            false => Placement {
                backend: id,
                ..placement
            },
        });
    }

    /// Why it must end, if it must. Cheap: asked at every poll of the relay.
    pub fn must_end(&self) -> Option<CloseReason> {
        match Placement::of(self.placement.load(Ordering::Acquire)).end {
            0 => None,
            n => CloseReason::ALL.get(usize::from(n) - 1).copied(),
        }
    }

    pub fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Relaxed)
    }

    /// Terminates it, on whatever backend it is.
    pub fn end(&self, reason: CloseReason) {
        self.update(|placement| placement.ending(reason, false));
        self.wake();
    }

    /// Terminates it unless it is on another backend by now.
    pub fn end_if_on(&self, backend: u64, reason: CloseReason) {
        let before = self.update(|placement| match placement.backend == backend {
            true => placement.ending(reason, true),
            false => placement,
        });
        if before.backend == backend {
            self.wake();
        }
    }

    /// Returns what was there before.
    fn update(&self, to: impl Fn(Placement) -> Placement) -> Placement {
        let update = |bits| Some(to(Placement::of(bits)).bits());
        let updated = self
            .placement
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, update);
        Placement::of(updated.unwrap_or_else(|bits| bits))
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

type Table = Mutex<AHashMap<u64, Arc<Session>>>;

/// All sessions of the process, one table a worker.
#[derive(Debug)]
pub struct Sessions {
    tables: Sharded<Table>,
    next_id: AtomicU64,
    connections: Budget,
    flows: Budget,
    /// Those of flows are taken with their sockets.
    descriptors: Arc<Descriptors>,
    is_stopping: AtomicBool,
}

/// How many sessions of one kind the process has, and may have.
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
        take_below(&self.count, self.most())
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

/// Counts one more if fewer than `max` are counted. Never exceeds `max`, not for a moment: another
/// worker that saw one too many would refuse a client for no reason.
pub fn take_below(count: &AtomicU64, max: u64) -> bool {
    let one_more = |n| (n < max).then(|| n + 1);
    count
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
        .is_ok()
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
            next_id: AtomicU64::default(),
            connections: Budget::new(connections),
            flows: Budget::new(flows),
            descriptors: Arc::clone(descriptors),
        }
    }

    /// Enters a session, within the limits of the process. It is counted until
    /// [`Self::remove`].
    pub fn add(&self, arrival: Arrival, kind: Kind) -> Result<Arc<Session>, RejectReason> {
        self.count_in(kind)?;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let session = Arc::new(Session {
            id,
            peer: arrival.peer,
            server_port: arrival.server_port,
            kind,
            is_stopping: AtomicBool::new(false),
            shard: self.tables.own_index() as u16,
            proxied: arrival
                .named
                .map_or_else(OnceLock::new, |client| Box::new(client).into()),
            received: AtomicU64::default(),
            sent: AtomicU64::default(),
            placement: AtomicU64::default(),
            waker: Mutex::default(),
        });
        lock(self.table_of(&session)).insert(id, Arc::clone(&session));
        // After it is in the table: a stop finds it there, or has been noted before.
        if self.is_stopping.load(Ordering::Relaxed) {
            session.is_stopping.store(true, Ordering::Relaxed);
        }
        Ok(session)
    }

    pub fn remove(&self, session: &Session) {
        lock(self.table_of(session)).remove(&session.id);
        match session.kind {
            Kind::Connection => {
                self.descriptors.give_back_of_connection();
                self.connections.give_back();
            }
            Kind::Flow => self.flows.give_back(),
        }
    }

    fn count_in(&self, kind: Kind) -> Result<(), RejectReason> {
        match kind {
            Kind::Connection if !self.connections.take() => {
                Err(RejectReason::ProcessMaxConnections)
            }
            Kind::Connection if !self.descriptors.take_for_connection() => {
                self.connections.give_back();
                Err(RejectReason::ProcessMaxConnections)
            }
            Kind::Flow if !self.flows.take() => Err(RejectReason::ProcessMaxFlows),
            Kind::Connection | Kind::Flow => Ok(()),
        }
    }

    fn table_of(&self, session: &Session) -> &Table {
        self.tables.at(session.shard.into())
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

    /// The sessions that are on this backend now.
    pub fn on(&self, backend: u64) -> Vec<Arc<Session>> {
        let is_on = |session: &&Arc<Session>| {
            Placement::of(session.placement.load(Ordering::Acquire)).backend == backend
        };
        let mut found = Vec::new();
        for table in self.tables.all() {
            found.extend(lock(table).values().filter(is_on).cloned());
        }
        found
    }

    /// Whether one more connection could have its descriptors now.
    pub fn has_descriptors_for_connection(&self) -> bool {
        self.descriptors.has_free_for_connection()
    }

    /// Whether one more flow could have its descriptor now.
    pub fn has_descriptor_for_flow(&self) -> bool {
        self.descriptors.has_free_for_flow()
    }

    /// Whether the process takes no new sessions because it is to stop.
    pub fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Relaxed)
    }

    /// Tells every session that the process is to stop. None has to end because of that alone.
    pub fn stop(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
        for session in self.all() {
            if session.kind == Kind::Connection {
                session.is_stopping.store(true, Ordering::Relaxed);
                session.wake();
            }
        }
    }

    /// Terminates every session, and returns how many there were.
    pub fn end_all(&self, reason: CloseReason) -> u64 {
        let sessions = self.all();
        sessions.iter().for_each(|session| session.end(reason));
        sessions.len() as u64
    }

    fn all(&self) -> Vec<Arc<Session>> {
        let mut all = Vec::new();
        for table in self.tables.all() {
            all.extend(lock(table).values().cloned());
        }
        all
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARRIVAL: Arrival = Arrival {
        peer: Client::Unix,
        named: None,
        server_port: None,
    };

    /// One session on backend 7, and the registry that has it.
    fn one() -> (Arc<Session>, Sessions) {
        let sessions = Sessions::new(1, 1, 0, &Arc::new(Descriptors::new(2, 0, 0)));
        let session = sessions.add(ARRIVAL, Kind::Connection).expect("room");
        session.set_backend(7);
        (session, sessions)
    }

    #[test]
    fn a_session_that_is_removed_makes_room_and_is_not_found() {
        let (session, sessions) = one();
        let refused = sessions.add(ARRIVAL, Kind::Connection).err();
        assert_eq!(refused, Some(RejectReason::ProcessMaxConnections));
        assert_eq!(sessions.on(7).len(), 1);
        sessions.remove(&session);
        assert_eq!((sessions.on(7).len(), sessions.count()), (0, 0));
        assert!(sessions.add(ARRIVAL, Kind::Connection).is_ok());
        let refused = sessions.add(ARRIVAL, Kind::Flow).err();
        assert_eq!(refused, Some(RejectReason::ProcessMaxFlows));
    }

    #[test]
    fn a_session_that_moved_is_not_ended_for_its_old_backend() {
        let (session, sessions) = one();
        session.set_backend(8);
        session.end_if_on(7, CloseReason::BackendDown);
        assert_eq!(session.must_end(), None);
        assert_eq!(sessions.on(8).len(), 1);
        session.end_if_on(8, CloseReason::Recovered);
        assert_eq!(session.must_end(), Some(CloseReason::Recovered));
    }

    /// It was found before the pool told it to move on.
    #[test]
    fn a_session_that_moves_clears_its_termination() {
        let (session, sessions) = one();
        session.end_if_on(7, CloseReason::BackendDown);
        assert_eq!(session.must_end(), Some(CloseReason::BackendDown));
        session.set_backend(0);
        assert_eq!(session.must_end(), None);
        assert_eq!(sessions.on(7).len(), 0);
    }

    /// Such as a stop.
    #[test]
    fn a_reason_of_no_backend_holds_on_every_backend() {
        for first in [true, false] {
            let (session, _) = one();
            if first {
                session.end_if_on(7, CloseReason::BackendDown);
            }
            session.end(CloseReason::Drained);
            session.end_if_on(7, CloseReason::RoleLost);
            let reason = session.must_end();
            session.set_backend(8);
            assert_eq!(session.must_end(), reason);
            assert_eq!(reason == Some(CloseReason::BackendDown), first);
        }
    }

    #[test]
    fn a_placement_keeps_every_reason_and_any_id() {
        for (n, reason) in CloseReason::ALL.iter().enumerate() {
            let backend = u64::MAX >> 8 >> n;
            let (session, sessions) = one();
            session.set_backend(backend);
            session.end_if_on(backend, *reason);
            assert_eq!(session.must_end(), Some(*reason));
            assert_eq!(sessions.on(backend).len(), 1);
        }
    }

    #[test]
    fn a_count_never_exceeds_its_limit() {
        let (count, over) = (AtomicU64::new(1), AtomicU64::new(0));
        // The one permit is taken for good: a refused attempt is not counted, not even while it is
        // made.
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while over.load(Ordering::Relaxed) == 0 {
                        assert!(!take_below(&count, 1));
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
        assert!(take_below(&count, 2));
        assert!(!take_below(&count, 2));
        assert_eq!(count.into_inner(), 2);
    }
}
