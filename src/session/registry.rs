//! The sessions that live now: their clients, what they have carried, and how they are terminated.

mod budget;
mod descriptors;
mod live_session;
mod table;

pub use budget::{SessionBudget, take_below};
pub use descriptors::Descriptors;
pub use live_session::{
    Arrival, Continued, Interruption, Phase, Session, SessionKind, SessionOrigin,
};
pub use table::TablePosition;

use crate::{
    plan::reason::{CloseReason, RejectReason},
    telemetry::metrics::Sharded,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use table::Table;

/// All sessions of the process, one table a worker.
#[derive(Debug)]
pub struct Sessions {
    tables: Sharded<Table>,
    next_id: AtomicU64,
    connections: SessionBudget,
    flows: SessionBudget,
    /// Those of flows are taken with their sockets.
    descriptors: Arc<Descriptors>,
    is_stopping: AtomicBool,
    refuses_flows: AtomicBool,
    /// Where the clocks of the workers count from.
    epoch: Instant,
}

impl Sessions {
    /// `epoch`: where the clocks of the workers count from.
    pub fn new(
        shards: usize,
        connections: u64,
        flows: u64,
        descriptors: &Arc<Descriptors>,
        epoch: Instant,
    ) -> Self {
        Self {
            is_stopping: AtomicBool::new(false),
            refuses_flows: AtomicBool::new(false),
            tables: Sharded::new(shards),
            next_id: AtomicU64::new(1),
            connections: SessionBudget::new(connections),
            flows: SessionBudget::new(flows),
            descriptors: Arc::clone(descriptors),
            epoch,
        }
    }

    /// Enters a session, within the limits of the process. It is counted until
    /// [`Self::remove`].
    pub fn add(
        &self,
        arrival: Arrival,
        origin: &Arc<SessionOrigin>,
    ) -> Result<Arc<Session>, RejectReason> {
        self.count_in(origin.kind)?;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        Ok(self.insert(id, arrival, origin))
    }

    /// Enters a session of another process, whatever the limits are. The descriptor of a flow is
    /// taken with its socket.
    pub fn go_on_with(
        &self,
        continued: &Continued,
        arrival: Arrival,
        origin: &Arc<SessionOrigin>,
    ) -> Arc<Session> {
        match origin.kind {
            SessionKind::Connection => {
                self.connections.take_anyway();
                self.descriptors.take_for_connection_anyway();
            }
            SessionKind::Flow => self.flows.take_anyway(),
        }
        self.reserve_ids(continued.id.saturating_add(1));
        let session = self.insert(continued.id, arrival, origin);
        session.restore(continued);
        session
    }

    /// Sessions that begin from now on have ids from `next` on, at least.
    pub fn reserve_ids(&self, next: u64) {
        self.next_id.fetch_max(next, Ordering::Relaxed);
    }

    fn insert(&self, id: u64, arrival: Arrival, origin: &Arc<SessionOrigin>) -> Arc<Session> {
        let shard = self.tables.own_index() as u16;
        let make = |slot| Session::new(id, arrival, origin, (shard, slot), self.epoch);
        let session = self.tables.at(shard.into()).insert(make);
        // After it is in the table: a stop finds it there, or has been noted before.
        if self.is_stopping.load(Ordering::Relaxed) {
            session.is_stopping.store(true, Ordering::Relaxed);
        }
        session
    }

    pub fn remove(&self, session: &Session) {
        // Before it is out of the table: what is not found any more is not counted either.
        match session.origin.kind {
            SessionKind::Connection => {
                self.descriptors.give_back_of_connection();
                self.connections.give_back();
            }
            SessionKind::Flow => self.flows.give_back(),
        }
        self.tables.at(session.shard.into()).remove(session.slot);
    }

    fn count_in(&self, kind: SessionKind) -> Result<(), RejectReason> {
        match kind {
            SessionKind::Connection if !self.connections.take() => {
                Err(RejectReason::ProcessMaxConnections)
            }
            SessionKind::Connection if !self.descriptors.take_for_connection() => {
                self.connections.give_back();
                Err(RejectReason::ProcessMaxConnections)
            }
            SessionKind::Flow if !self.flows.take() => Err(RejectReason::ProcessMaxFlows),
            SessionKind::Connection | SessionKind::Flow => Ok(()),
        }
    }

    pub fn connections(&self) -> &SessionBudget {
        &self.connections
    }

    pub fn flows(&self) -> &SessionBudget {
        &self.flows
    }

    /// Connections and flows.
    pub fn count(&self) -> u64 {
        self.connections.count() + self.flows.count()
    }

    /// The id of a session that would begin now: those that have begun have smaller ones.
    pub fn next_id(&self) -> u64 {
        self.next_id.load(Ordering::Relaxed)
    }

    pub fn began_at(&self, session: &Session) -> Instant {
        self.epoch + session.began()
    }

    /// For how long a session has carried nothing, to the millisecond.
    pub fn idle(&self, session: &Session, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.epoch);
        passed.saturating_sub(Duration::from_millis(session.active_millis()))
    }

    /// Looks at the next sessions from `position` on, and appends those that `selects` to `found`.
    /// Returns whether there are more. A session that lives from the first call to the last is
    /// looked at once, whatever begins and ends meanwhile.
    ///
    /// Each call looks at some hundred sessions of one worker, which waits for it if it begins or
    /// ends a session just then: `selects` must not block, and make no system calls.
    pub fn look_at_some(
        &self,
        position: &mut TablePosition,
        selects: impl FnMut(&Session) -> bool,
        found: &mut Vec<Arc<Session>>,
    ) -> bool {
        let mut tables = self.tables.all().skip(position.table);
        let Some(table) = tables.next() else {
            return false;
        };
        if table.look_at_some(&mut position.slot, selects, found) {
            return true;
        }
        *position = TablePosition {
            table: position.table + 1,
            slot: 0,
        };
        tables.next().is_some()
    }

    /// All sessions that `selects`, which is called as by [`Self::look_at_some`].
    pub fn find(&self, mut selects: impl FnMut(&Session) -> bool) -> Vec<Arc<Session>> {
        let (mut position, mut found) = (TablePosition::default(), Vec::new());
        while self.look_at_some(&mut position, &mut selects, &mut found) {}
        found
    }

    /// The sessions that are on this backend now.
    pub fn on(&self, backend: u64) -> Vec<Arc<Session>> {
        self.find(|session| session.backend() == backend)
    }

    /// Whether one more connection could have its descriptors now.
    pub fn has_descriptors_for_connection(&self) -> bool {
        self.descriptors.has_free_for_connection()
    }

    /// Whether one more flow could have its descriptor now.
    pub fn has_descriptor_for_flow(&self) -> bool {
        self.descriptors.has_free_for_flow()
    }

    /// Whether no flow may begin. Flows that have begun go on.
    pub fn refuse_flows(&self, refuses: bool) {
        self.refuses_flows.store(refuses, Ordering::Relaxed);
    }

    pub fn refuses_flows(&self) -> bool {
        self.refuses_flows.load(Ordering::Relaxed)
    }

    /// Whether the process takes no new sessions because it is to stop.
    pub fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Relaxed)
    }

    /// Notifies every session that the process is to stop. None has to end because of that alone.
    pub fn stop(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
        for session in self.find(|session| session.origin.kind == SessionKind::Connection) {
            session.is_stopping.store(true, Ordering::Relaxed);
            session.wake();
        }
    }

    /// Terminates every flow.
    pub fn end_flows(&self, reason: CloseReason) {
        self.end_those(|session| session.origin.kind == SessionKind::Flow, reason);
    }

    /// Terminates every session, and returns how many there were.
    pub fn end_all(&self, reason: CloseReason) -> u64 {
        self.end_those(|_| true, reason)
    }

    fn end_those(&self, is_meant: impl Fn(&Session) -> bool, reason: CloseReason) -> u64 {
        let sessions = self.find(is_meant);
        for session in &sessions {
            session.end(reason);
        }
        sessions.len() as u64
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{
        plan::CheckKind,
        runtime::net::Client,
        upstream::pool::tests::{check, of, planned, upstream},
    };

    /// The origin of sessions of a listener `l`.
    pub(crate) fn origin(kind: SessionKind) -> Arc<SessionOrigin> {
        let plan = upstream(vec![planned(1)], check(CheckKind::Tcp));
        Arc::new(SessionOrigin {
            listener: "l".to_owned(),
            pool: Arc::new(of(&plan, Instant::now())),
            kind,
        })
    }

    pub(crate) fn arrival() -> Arrival {
        Arrival {
            peer: Client::Unix,
            named: None,
            server_port: None,
            at: Instant::now(),
        }
    }

    /// One session on backend 7, and the registry that has it.
    fn one() -> (Arc<Session>, Sessions) {
        let sessions = Sessions::new(
            1,
            1,
            0,
            &Arc::new(Descriptors::new(2, 0, 0)),
            Instant::now(),
        );
        let session = sessions
            .add(arrival(), &origin(SessionKind::Connection))
            .expect("a permit");
        session.set_backend(7);
        (session, sessions)
    }

    #[test]
    fn a_removed_session_frees_its_slot_and_is_not_found() {
        let (session, sessions) = one();
        let refused = sessions
            .add(arrival(), &origin(SessionKind::Connection))
            .err();
        assert_eq!(refused, Some(RejectReason::ProcessMaxConnections));
        assert_eq!(sessions.on(7).len(), 1);
        sessions.remove(&session);
        assert_eq!((sessions.on(7).len(), sessions.count()), (0, 0));
        assert!(
            sessions
                .add(arrival(), &origin(SessionKind::Connection))
                .is_ok()
        );
        let refused = sessions.add(arrival(), &origin(SessionKind::Flow)).err();
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

    #[test]
    fn a_session_that_is_to_leave_leaves_unless_it_must_end() {
        let (session, sessions) = one();
        session.ask_to_leave();
        assert_eq!(session.interruption(), Some(Interruption::Leave));
        assert_eq!((session.must_end(), sessions.on(7).len()), (None, 1));
        // It was connecting, and tries another backend.
        session.set_backend(8);
        assert!(session.is_to_leave());
        session.stay();
        assert_eq!(session.interruption(), None);
        session.ask_to_leave();
        assert!(session.end_if_on(8, CloseReason::RoleLost));
        session.stay();
        session.ask_to_leave();
        let end = Interruption::End(CloseReason::RoleLost);
        assert_eq!(session.interruption(), Some(end));
    }

    #[test]
    fn a_session_of_another_process_goes_on_beyond_the_limits() {
        let (_, sessions) = one();
        let continued = Continued {
            id: 70,
            active_millis: 3,
            received: 4,
            sent: 5,
        };
        let second = sessions.go_on_with(&continued, arrival(), &origin(SessionKind::Connection));
        assert_eq!(
            (second.id, sessions.count(), sessions.next_id()),
            (70, 2, 71)
        );
        assert_eq!((second.received(), second.sent()), (4, 5));
        assert_eq!(second.active_millis(), 3);
        sessions.remove(&second);
        assert_eq!(sessions.count(), 1);
    }

    /// It was found before the pool ordered it to move.
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
}
