//! The process that sessions leave.

use super::Carriers;
use crate::{
    handover::{
        channel::{Channel, ChannelError},
        message::{Kind, MOST_DESCRIPTORS, Message},
        session::{read_verdicts, write_all},
    },
    proxy::tcp::handover::{Answer, Departure},
    session::registry::{self, Phase, Session, Sessions},
};
use ahash::{AHashMap, AHashSet};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        mpsc::{self, Receiver},
    },
    thread,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// Sessions in a message.
const BATCH: usize = 40;
/// Descriptors of one session, at most.
const DESCRIPTORS: usize = 6;
/// Bytes that the sessions of a message hold, at most, and those of the last one.
const HELD: usize = 256 << 10;
/// Messages without an answer.
const WINDOW: usize = 2;
/// How long the sessions that were asked to leave wait for the next of them.
const STRAGGLER: Duration = Duration::from_millis(2);
/// A session that has not left for so long is not waited for. It follows when it does.
const LATE: Duration = Duration::from_secs(1);
/// How long sessions that were taken are waited for.
const CLOSED: Duration = Duration::from_millis(200);
/// How long the other process has to take a message, or to answer it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sends the sessions of this process to another one. Blocking: for a thread of its own.
pub struct SessionSender {
    sessions: Arc<registry::Sessions>,
    carriers: Carriers,
    /// Of the format.
    version: u16,
    departures: Receiver<Departure>,
    /// Has arrived and was not sent.
    next: Option<Departure>,
    /// Asked and not yet arrived, with the time, by number.
    asked: AHashMap<u64, (Arc<Session>, Instant)>,
    /// To be asked, the last one first.
    candidates: Vec<Arc<Session>>,
    /// Messages that were not answered, in their order.
    unanswered: VecDeque<Vec<Waiting>>,
    refused: AHashSet<u64>,
    report: SessionsReport,
}

/// A session that was sent.
struct Waiting {
    id: u64,
    answer: oneshot::Sender<Answer>,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct SessionsReport {
    pub taken: u64,
    /// Those that stay, by the reason that the other process has given.
    pub refused: BTreeMap<String, u64>,
}

impl SessionSender {
    pub fn new(sessions: &Arc<Sessions>, carriers: Carriers, version: u16) -> Self {
        let (exit, departures) = mpsc::channel();
        carriers.set_exit(Some(&exit));
        Self {
            sessions: Arc::clone(sessions),
            carriers,
            version,
            departures,
            next: None,
            asked: AHashMap::new(),
            candidates: Vec::new(),
            unanswered: VecDeque::new(),
            refused: AHashSet::new(),
            report: SessionsReport::default(),
        }
    }

    pub fn report(&self) -> &SessionsReport {
        &self.report
    }

    /// Sends all sessions that are relayed, those first that have been idle for longest. Returns
    /// when none is left that could leave now. Sessions that have no backend yet leave later: call
    /// it again, after [`Self::wait`].
    ///
    /// After an error it is not known which sessions of the last messages the other process has
    /// taken: make sure that it is dead, then call [`Self::end`].
    pub fn send_all(&mut self, channel: &mut Channel) -> Result<(), ChannelError> {
        loop {
            self.ask_some();
            if self.unanswered.len() >= WINDOW || self.asked.is_empty() && self.next.is_none() {
                self.read_answer(channel)?;
            }
            let batch = self.collect();
            if !batch.is_empty() {
                self.send(batch, channel)?;
            } else if self.unanswered.is_empty()
                && self.asked.is_empty()
                && self.candidates.is_empty()
            {
                self.wait_until_closed();
                return Ok(());
            }
        }
    }

    /// The sockets of sessions that were taken are closed by their workers.
    fn wait_until_closed(&self) {
        let deadline = Instant::now() + CLOSED;
        let is_left =
            |session: &Session| session.is_to_leave() && session.phase() == Phase::Relaying;
        while !self.sessions.find(is_left).is_empty() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until a session begins to be relayed, at most so long.
    pub fn wait(&mut self, time: Duration) {
        if self.next.is_none() {
            self.next = self.departures.recv_timeout(time).ok();
        }
    }

    /// Sessions that have not left go on in this process. `channel`: if the other process has died,
    /// since its last answers may not have been read.
    pub fn end(mut self, channel: Option<&mut Channel>) -> SessionsReport {
        if let Some(channel) = channel {
            while !self.unanswered.is_empty() && self.read_answer(channel).is_ok() {}
        }
        self.carriers.set_exit(None);
        for session in self.sessions.find(|session| session.is_to_leave()) {
            session.stay();
        }
        // With the departures and what was not answered, sessions learn that they stay.
        self.report
    }

    fn ask_some(&mut self) {
        if self.candidates.is_empty() {
            self.find_candidates();
        }
        let now = Instant::now();
        while self.asked.len() < BATCH
            && let Some(session) = self.candidates.pop()
        {
            session.ask_to_leave();
            self.asked.insert(session.id, (session, now));
        }
    }

    fn find_candidates(&mut self) {
        let could_leave = |session: &Session| {
            session.origin.kind == registry::Kind::Connection
                && session.interruption().is_none()
                && !self.refused.contains(&session.id)
        };
        let found = self.sessions.find(could_leave);
        let (mut relaying, others): (Vec<_>, Vec<_>) = found
            .into_iter()
            .partition(|session| session.phase() == Phase::Relaying);
        // Once each: sessions go on meanwhile, and a time that changes has no order.
        relaying.sort_by_cached_key(|session| std::cmp::Reverse(session.active_millis()));
        self.candidates = relaying;
        for session in others.iter().filter(|s| s.phase() == Phase::Connecting) {
            session.ask_to_leave();
        }
    }

    /// Those that have left, as many as go into one message.
    fn collect(&mut self) -> Vec<Departure> {
        let (mut batch, mut descriptors, mut held) = (Vec::new(), 0, 0);
        while batch.len() < BATCH
            && descriptors + DESCRIPTORS <= MOST_DESCRIPTORS
            && held < HELD
            && let Some(departure) = self.next_departure()
        {
            self.asked.remove(&departure.state.continued.id);
            descriptors += departure.state.descriptors().len();
            held += departure.state.held_bytes();
            batch.push(departure);
        }
        self.asked.retain(|_, (session, since)| {
            session.is_to_leave() && session.phase() == Phase::Relaying && since.elapsed() < LATE
        });
        batch
    }

    fn next_departure(&mut self) -> Option<Departure> {
        let next = self.next.take();
        next.or_else(|| self.departures.try_recv().ok())
            .or_else(|| match self.asked.is_empty() {
                true => None,
                false => self.departures.recv_timeout(STRAGGLER).ok(),
            })
    }

    fn send(&mut self, batch: Vec<Departure>, channel: &mut Channel) -> Result<(), ChannelError> {
        let (states, waiting): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .map(|Departure { state, answer }| {
                let id = state.continued.id;
                (state, Waiting { id, answer })
            })
            .unzip();
        let records: Vec<_> = states.iter().map(|state| state.record()).collect();
        let descriptors: Vec<_> = states
            .iter()
            .flat_map(|state| state.descriptors())
            .collect();
        // Before it is sent: it may have arrived even if that returns an error.
        self.unanswered.push_back(waiting);
        let deadline = Instant::now() + PATIENCE;
        let body = write_all(&records);
        channel.send(Kind::Sessions, self.version, &body, &descriptors, deadline)?;
        Ok(())
    }

    /// Of the first message that has none.
    fn read_answer(&mut self, channel: &mut Channel) -> Result<(), ChannelError> {
        if self.unanswered.is_empty() {
            return Ok(());
        }
        let answer = channel.receive(Instant::now() + PATIENCE)?;
        let verdicts = match answer {
            Message {
                kind: Kind::SessionsTaken,
                body,
                ..
            } => read_verdicts(&body),
            _ => return Err(ChannelError::Garbage("an answer to sessions is missing")),
        };
        let verdicts =
            verdicts.map_err(|_| ChannelError::Garbage("an answer to sessions has no sense"))?;
        let batch = self.unanswered.pop_front().unwrap_or_default();
        let mut verdicts = verdicts.into_iter();
        for Waiting { id, answer } in batch {
            let refused = match verdicts.next() {
                Some(None) => None,
                Some(Some(reason)) => Some(reason),
                None => Some("not_answered".to_owned()),
            };
            let said = match refused {
                None => {
                    self.report.taken += 1;
                    Answer::Taken
                }
                Some(reason) => {
                    *self.report.refused.entry(reason).or_default() += 1;
                    self.refused.insert(id);
                    Answer::Refused
                }
            };
            // It fails only where the worker has ended.
            let _ = answer.send(said);
        }
        Ok(())
    }
}
