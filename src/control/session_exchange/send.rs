//! The process that sessions leave.

use super::{Carriers, HandedPlaces, WITH_CLAIM, places::PlacesReport};
use crate::{
    handover::{
        channel::{Channel, ChannelError},
        claim::Claim,
        message::{Kind, MOST_DESCRIPTORS, Message},
        places::{self, PlacesRecord},
        session::{Verdicts, read_verdicts, write_all},
    },
    proxy::tcp::handover::{Departing, Departure, HandoverAnswer},
    session::registry::{self, Phase, Session, Sessions},
};
use ahash::{AHashMap, AHashSet};
use std::{
    collections::{BTreeMap, VecDeque},
    os::fd::AsFd as _,
    sync::{
        Arc,
        mpsc::{self, Receiver},
    },
    thread,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// Of the formats, for as long as there is one.
const WAITING_VERSION: u16 = 1;
const PLACES_VERSION: u16 = 1;
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
/// How long sessions that were taken are waited for: a worker closes them when it gets a CPU.
const CLOSED: Duration = Duration::from_secs(2);
/// How long the other process has to take a message, or to answer it.
const PATIENCE: Duration = Duration::from_secs(10);
/// Sessions that the other process has not taken for so long go on here meanwhile.
const HELD_UP: Duration = Duration::from_secs(1);
/// Between two reports of the sessions that backends still have here, while sessions are sent.
const REPORT: Duration = Duration::from_millis(20);
/// Between two looks at what is held up.
const LOOK: Duration = Duration::from_millis(100);

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
    unanswered: VecDeque<Offer>,
    refused: AHashSet<u64>,
    /// Taken, and perhaps not closed here yet.
    taken: AHashSet<u64>,
    report: SessionsReport,
    /// `None`: this process gives places still, and sessions that wait stay.
    places: Option<PlacesReport>,
}

/// A message that was sent.
struct Offer {
    /// None are left once it is withdrawn.
    sessions: Vec<Waiting>,
    /// `None`: the other process knows no claims, and has these sessions unless it is dead.
    claim: Option<Claim>,
    at: Instant,
    is_withdrawn: bool,
}

/// A session that was sent.
struct Waiting {
    id: u64,
    answer: oneshot::Sender<HandoverAnswer>,
}

/// What is known of the process that sessions were sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtherProcess {
    Dead,
    /// It may have taken what it has not answered.
    Alive,
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
            taken: AHashSet::new(),
            report: SessionsReport::default(),
            places: None,
        }
    }

    /// The other process gives places from now on, so that sessions which wait go there as well.
    /// `sent`: what it knows of places.
    pub fn set_places(&mut self, places: &Arc<HandedPlaces>, sent: Vec<PlacesRecord>) {
        self.places = Some(PlacesReport::new(Arc::clone(places), sent));
    }

    pub fn report(&self) -> &SessionsReport {
        &self.report
    }

    /// Sends the sessions that wait for a backend, before all others: until then the other process
    /// gives no place to a session that has come later.
    ///
    /// Call [`Self::end`] after an error.
    pub fn send_waiting(&mut self, channel: &mut Channel) -> Result<(), ChannelError> {
        let given_up = Instant::now() + LATE;
        while self.has_line() && Instant::now() < given_up {
            self.ask_connecting();
            // All that have arrived by then.
            self.wait(STRAGGLER);
            loop {
                let batch = self.collect();
                if batch.is_empty() {
                    break;
                }
                self.send(batch, channel)?;
                if self.unanswered.len() >= WINDOW {
                    self.read_answer(channel)?;
                }
            }
            while !self.unanswered.is_empty() {
                self.read_answer(channel)?;
            }
        }
        self.report_places(channel)
    }

    /// Whether sessions wait that may leave.
    fn has_line(&self) -> bool {
        let waiting = self.places.as_ref().map(PlacesReport::waiting);
        waiting.unwrap_or_default() > self.refused.len()
    }

    fn report_places(&mut self, channel: &mut Channel) -> Result<(), ChannelError> {
        let changes = self.places.as_mut().map(PlacesReport::changes);
        let changes = changes.unwrap_or_default();
        if changes.is_empty() {
            return Ok(());
        }
        let (version, body) = (PLACES_VERSION, places::write(&changes));
        let deadline = Instant::now() + PATIENCE;
        let sent = channel.send(Kind::Places, version, &body, &[], deadline);
        sent.map(drop)
    }

    /// Sends all sessions that are relayed, those first that have been idle for longest. Returns
    /// when none is left that could leave now. Sessions that have no backend yet leave later: call
    /// it again, after [`Self::wait`].
    ///
    /// Call [`Self::end`] after an error.
    pub fn send_all(&mut self, channel: &mut Channel) -> Result<(), ChannelError> {
        loop {
            if self.places.as_ref().is_some_and(|p| p.is_due(REPORT)) {
                self.report_places(channel)?;
            }
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
                return self.report_places(channel);
            }
        }
    }

    /// The sockets of sessions that were taken are closed by their workers, and counted until then.
    fn wait_until_closed(&mut self) {
        let deadline = Instant::now() + CLOSED;
        let taken = std::mem::take(&mut self.taken);
        let is_left = |session: &Session| taken.contains(&session.id);
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

    /// Sessions that the other process has not taken go on in this process. `channel`: its last
    /// answers may not have been read.
    pub fn end(mut self, channel: Option<&mut Channel>, other: OtherProcess) -> SessionsReport {
        if let Some(channel) = channel {
            while !self.unanswered.is_empty()
                && channel.has_message().unwrap_or_default()
                && self.read_answer(channel).is_ok()
            {}
        }
        for offer in std::mem::take(&mut self.unanswered) {
            let is_taken = match (&offer.claim, other) {
                (Some(_), _) => !offer.is_withdrawn && !offer.take_claim(),
                (None, OtherProcess::Dead) => false,
                // It may relay them: this process must not.
                (None, OtherProcess::Alive) => true,
            };
            if is_taken {
                self.report.taken += offer.sessions.len() as u64;
                for waiting in offer.sessions {
                    let _ = waiting.answer.send(HandoverAnswer::Taken);
                }
            }
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
        let found = self.sessions.find(|session| self.could_leave(session));
        let (mut relaying, others): (Vec<_>, Vec<_>) = found
            .into_iter()
            .partition(|session| session.phase() == Phase::Relaying);
        // Once each: sessions go on meanwhile, and a time that changes has no order.
        relaying.sort_by_cached_key(|session| std::cmp::Reverse(session.active_millis()));
        self.candidates = relaying;
        ask_those_that_connect(&others);
    }

    fn ask_connecting(&self) {
        let others = self.sessions.find(|session| self.could_leave(session));
        ask_those_that_connect(&others);
    }

    fn could_leave(&self, session: &Session) -> bool {
        session.origin.kind == registry::SessionKind::Connection
            && session.interruption().is_none()
            && !self.refused.contains(&session.id)
    }

    /// Those that have left, as many as go into one message.
    fn collect(&mut self) -> Vec<Departure> {
        let (mut batch, mut descriptors, mut held) = (Vec::<Departure>::new(), 0, 0);
        while batch.len() < BATCH
            && descriptors + DESCRIPTORS < MOST_DESCRIPTORS
            && held < HELD
            && let Some(departure) = self.next_departure()
        {
            // A message has one kind of sessions.
            if let Some(first) = batch.first()
                && first.state.kind() != departure.state.kind()
            {
                self.next = Some(departure);
                break;
            }
            self.asked.remove(&departure.state.id());
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
        let claim = match self.version {
            ..WITH_CLAIM => None,
            _ => match Claim::new() {
                Ok(claim) => Some(claim),
                Err(error) => {
                    self.keep(batch, &error);
                    return Ok(());
                }
            },
        };
        let (states, sessions): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .map(|Departure { state, answer }| {
                let id = state.id();
                (state, Waiting { id, answer })
            })
            .unzip();
        let (kind, version, body) = self.message(&states);
        let mut descriptors: Vec<_> = states
            .iter()
            .flat_map(|state| state.descriptors())
            .collect();
        descriptors.extend(claim.as_ref().map(|claim| claim.as_fd()));
        let now = Instant::now();
        let deadline = now + PATIENCE;
        let sent = channel.send(kind, version, &body, &descriptors, deadline);
        // Also after an error: it may have arrived.
        self.unanswered.push_back(Offer {
            sessions,
            claim,
            at: now,
            is_withdrawn: false,
        });
        sent.map(drop)
    }

    /// Its kind, the version of the format, and its body.
    fn message(&self, states: &[Departing]) -> (Kind, u16, Vec<u8>) {
        let relayed = states.iter().filter_map(|state| match state {
            Departing::Relayed(state) => Some(state.record()),
            Departing::Waiting(_) => None,
        });
        let waiting = states.iter().filter_map(|state| match state {
            Departing::Waiting(state) => Some(state.record()),
            Departing::Relayed(_) => None,
        });
        match states.first().map_or(Kind::Sessions, Departing::kind) {
            Kind::Waiting => {
                let body = write_all(&waiting.collect::<Vec<_>>());
                (Kind::Waiting, WAITING_VERSION, body)
            }
            kind => (kind, self.version, write_all(&relayed.collect::<Vec<_>>())),
        }
    }

    /// They cannot be sent.
    fn keep(&mut self, batch: Vec<Departure>, error: &std::io::Error) {
        tracing::warn!(%error, sessions = batch.len(), "sessions cannot be sent");
        let kept = self.report.refused.entry("no_descriptors".to_owned());
        *kept.or_default() += batch.len() as u64;
        let ids = batch.iter().map(|departure| departure.state.id());
        self.refused.extend(ids);
    }

    /// Of the first message that has none. While there is none, sessions are not held up for long.
    fn read_answer(&mut self, channel: &mut Channel) -> Result<(), ChannelError> {
        let Some(first) = self.unanswered.front() else {
            return Ok(());
        };
        let (held_up, given_up) = (first.at + HELD_UP, Instant::now() + PATIENCE);
        let mut deadline = held_up;
        let answer = loop {
            match channel.receive(deadline) {
                Err(ChannelError::TimedOut) if Instant::now() < given_up => {
                    self.withdraw();
                    deadline = Instant::now() + LOOK;
                }
                answer => break answer?,
            }
        };
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
        if let Some(offer) = self.unanswered.pop_front() {
            self.settle(offer, verdicts);
        }
        Ok(())
    }

    fn settle(&mut self, offer: Offer, verdicts: Verdicts) {
        let mut verdicts = verdicts.into_iter();
        for Waiting { id, answer } in offer.sessions {
            let refused = match verdicts.next() {
                Some(None) => None,
                Some(Some(reason)) => Some(reason),
                None => Some("not_answered".to_owned()),
            };
            let verdict = match refused {
                None => {
                    self.report.taken += 1;
                    self.taken.insert(id);
                    HandoverAnswer::Taken
                }
                Some(reason) => {
                    *self.report.refused.entry(reason).or_default() += 1;
                    self.refused.insert(id);
                    HandoverAnswer::Refused
                }
            };
            // It fails only where the worker has ended.
            let _ = answer.send(verdict);
        }
    }

    /// What the other process has not taken goes on here, and is sent again later.
    fn withdraw(&mut self) {
        if self.version < WITH_CLAIM {
            return;
        }
        for offer in self.unanswered.iter_mut().filter(|o| !o.is_withdrawn) {
            if offer.take_claim() {
                offer.is_withdrawn = true;
                tracing::warn!(
                    sessions = offer.sessions.len(),
                    "sessions were not taken in time, they go on here"
                );
                // They learn it by that.
                offer.sessions.clear();
            }
        }
        // So do those that wait to be sent.
        for (_, (session, _)) in self.asked.drain() {
            session.stay();
        }
        self.next = None;
        while self.departures.try_recv().is_ok() {}
    }
}

fn ask_those_that_connect(sessions: &[Arc<Session>]) {
    for session in sessions.iter().filter(|s| s.phase().seeks_backend()) {
        session.ask_to_leave();
    }
}

impl Offer {
    fn take_claim(&self) -> bool {
        self.claim.as_ref().is_some_and(Claim::take)
    }
}
