//! The process that sessions come to.

use super::{Carriers, WITH_CLAIM};
use crate::{
    control::View,
    handover::{
        channel::{Channel, ChannelError},
        claim::Claim,
        message::{Descriptors, Kind, Message},
        record::Malformed,
        session::{SessionRecord, read_all, waiting::WaitingRecord, write_verdicts},
    },
    proxy::tcp::handover::{
        Arriving, Continuation, SessionState, Silences, Unsuitable, WaitingArrival,
    },
    session::service::Service,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// How long the other process has to take an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Takes the sessions of another process. Blocking: for a thread of its own.
pub struct SessionReceiver {
    view: Arc<View>,
    carriers: Carriers,
    /// Of the format of answers.
    version: u16,
    /// Of sessions whose listener has another upstream by now.
    others: Vec<Arc<Service>>,
    taken: usize,
    silences: Arc<Silences>,
}

/// What a message has.
enum Records {
    Relayed(Vec<SessionRecord>),
    Waiting(Vec<WaitingRecord>),
}

impl Records {
    fn len(&self) -> usize {
        match self {
            Self::Relayed(records) => records.len(),
            Self::Waiting(records) => records.len(),
        }
    }
}

impl SessionReceiver {
    pub fn new(view: Arc<View>, carriers: Carriers, version: u16) -> Self {
        Self {
            view,
            carriers,
            version,
            others: Vec::new(),
            taken: 0,
            silences: Arc::default(),
        }
    }

    /// How many it has taken so far.
    pub fn taken(&self) -> usize {
        self.taken
    }

    /// For how long they were relayed by neither process.
    pub fn log_taken(&self) {
        let sessions = self.taken;
        if let Some([p50, p99, longest]) = self.silences.quantiles([500, 990, 1_000]) {
            tracing::info!(
                sessions,
                silence_p50_us = p50.as_micros() as u64,
                silence_p99_us = p99.as_micros() as u64,
                silence_max_us = longest.as_micros() as u64,
                "sessions taken over"
            );
        }
    }

    /// Answers a message with sessions, and goes on with those that it has taken.
    pub fn receive(
        &mut self,
        mut message: Message,
        channel: &mut Channel,
    ) -> Result<(), ChannelError> {
        let has_claim = message.kind == Kind::Waiting || message.version >= WITH_CLAIM;
        let has_claim = has_claim && !message.is_short;
        let claim = has_claim.then(|| message.descriptors.pop()).flatten();
        let claim = claim.map(Claim::of_descriptor);
        let mut sessions = self.read(message);
        // From here on they are those of this process, whatever becomes of the other. Of an older
        // program they are with the answer.
        if let Some(claim) = &claim
            && sessions.iter().any(Result::is_ok)
            && !claim.take()
        {
            let withdrawn = |_| Err(Unsuitable::Withdrawn);
            sessions = sessions.into_iter().map(withdrawn).collect();
        }
        let verdicts = sessions.iter().map(|session| match session {
            Ok(_) => None,
            Err(unsuitable) => Some(unsuitable.word()),
        });
        let answer = write_verdicts(verdicts);
        let deadline = Instant::now() + PATIENCE;
        let sent = channel.send(Kind::SessionsTaken, self.version, &answer, &[], deadline);
        match sent {
            // Also where it has ended before a message could reach it.
            Ok(_) | Err(ChannelError::Closed) => {}
            Err(error) if claim.is_none() => return Err(error),
            Err(_) => {}
        }
        for mut arriving in sessions.into_iter().flatten() {
            if let Arriving::Waiting(waiting) = &mut arriving {
                // Here, in the order of the message: workers take it later.
                waiting.line_up();
            }
            self.carriers.resume_session(arriving, self.taken);
            self.taken += 1;
        }
        match sent {
            Err(ChannelError::Closed) => Ok(()),
            sent => sent.map(drop),
        }
    }

    fn read(&mut self, message: Message) -> Vec<Result<Arriving, Unsuitable>> {
        let records = match message.kind {
            Kind::Waiting => read_all(&message.body).map(Records::Waiting),
            _ => read_all(&message.body).map(Records::Relayed),
        };
        let records = match records {
            Ok(records) => records,
            Err(error) => {
                log_malformed(error);
                // The other process takes a missing answer for a refusal.
                return Vec::new();
            }
        };
        if message.is_short {
            let sessions = records.len();
            tracing::warn!(
                sessions,
                "descriptors of sessions were lost on the way, the other process keeps them"
            );
            let refused = |_| Err(Unsuitable::NoDescriptors);
            return (0..sessions).map(refused).collect();
        }
        let mut descriptors = Descriptors::new(message.descriptors);
        match records {
            Records::Relayed(records) => {
                let read = |record| self.read_relayed(record, &mut descriptors);
                records.into_iter().map(read).collect()
            }
            Records::Waiting(records) => {
                let read = |record| self.read_waiting(record, &mut descriptors);
                records.into_iter().map(read).collect()
            }
        }
    }

    fn read_relayed(
        &mut self,
        record: SessionRecord,
        descriptors: &mut Descriptors,
    ) -> Result<Arriving, Unsuitable> {
        let descriptors = descriptors.take(record.descriptors());
        let descriptors = descriptors.ok_or(Unsuitable::NoConnection)?;
        let service = self.service_for(&record)?;
        let state = SessionState::of_record(record, descriptors)?;
        Continuation::new(state, service, &self.silences).map(Arriving::Relayed)
    }

    /// It has no backend yet, so that it gets one of the upstream that its listener has now.
    fn read_waiting(
        &mut self,
        record: WaitingRecord,
        descriptors: &mut Descriptors,
    ) -> Result<Arriving, Unsuitable> {
        let socket = descriptors.take(1).and_then(|mut all| all.pop());
        let socket = socket.ok_or(Unsuitable::NoConnection)?;
        let service = self.service_of(&record.listener);
        let service = Arc::clone(service.ok_or(Unsuitable::NoListener)?);
        let waiting = WaitingArrival::new(record, socket, service, &self.silences)?;
        Ok(Arriving::Waiting(Box::new(waiting)))
    }

    fn service_of(&self, listener: &str) -> Option<&Arc<Service>> {
        let mut services = self.view.services();
        services.find(|service| service.plan.name == listener && !service.is_udp())
    }

    fn service_for(&mut self, record: &SessionRecord) -> Result<Arc<Service>, Unsuitable> {
        let service = self.service_of(&record.listener);
        let service = service.ok_or(Unsuitable::NoListener)?;
        if *service.pool.name == *record.upstream {
            return Ok(Arc::clone(service));
        }
        let is_both =
            |s: &&Arc<Service>| s.plan.name == record.listener && *s.pool.name == *record.upstream;
        if let Some(other) = self.others.iter().find(is_both) {
            return Ok(Arc::clone(other));
        }
        let mut pools = self.view.pools();
        let pool = pools.find(|pool| *pool.name == *record.upstream);
        let other = Arc::new(service.with_pool(pool.ok_or(Unsuitable::NoBackend)?));
        self.others.push(Arc::clone(&other));
        Ok(other)
    }
}

fn log_malformed(error: Malformed) {
    tracing::warn!(%error, "sessions of the other process are not understood, it keeps them");
}
