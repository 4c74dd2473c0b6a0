//! What has happened to the backends of an upstream, in the order in which it happened.

use crate::{
    plan::{
        Addr,
        reason::{BackendState, CheckResult, ConnectError},
    },
    telemetry::metrics::BackendMetrics,
    upstream::{
        backend::Backend,
        notifier::Notifier,
        pool::{AdminOrder, AdminState, WeightSet, preparation::Exchange},
    },
};
use ahash::HashMap;
use std::{
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::{Duration, Instant},
};

#[derive(Debug)]
pub enum Event {
    Transition(Transition),
    /// The first session that another backend has taken since this one went out of service.
    FailedOver {
        backend: Arc<Backend>,
        to: Arc<str>,
        /// For how long that session had waited.
        waited: Duration,
        at: Instant,
    },
    /// An operator has set the admin state of a configured backend. If it is another one than
    /// before, a transition of each of its addresses follows.
    AdminStateSet(AdminStateSet),
    WeightSet(WeightSet),
    /// A primary has given no certain answer for too long. Its state stays what it is, but it
    /// takes no new sessions.
    Stale(Arc<Backend>),
    /// The opposite of `Stale`.
    Fresh(Arc<Backend>),
    /// Fewer backends are up than the panic threshold demands: all are used from now on.
    PanicStarted {
        up: usize,
        total: usize,
    },
    /// Checks decide again.
    PanicEnded,
    /// No replica is up: primaries are used from now on, this one among them.
    FallbackStarted {
        backend: Arc<Backend>,
        at: Instant,
    },
    /// Primaries are not used any more.
    FallbackEnded {
        /// Whether it is because a replica is up, and not because no primary is there.
        is_any_up: bool,
        at: Instant,
    },
}

/// A change of the state of one address.
#[derive(Debug)]
pub struct Transition {
    pub backend: Arc<Backend>,
    pub is_backup: bool,
    /// `None`: it was no address of the upstream.
    pub from: Option<BackendState>,
    /// `None`: it is no address of the upstream any more.
    pub to: Option<BackendState>,
    pub cause: Cause,
    /// Whether it is about what checks have found while the operator or the configuration keeps
    /// sessions away: no session comes or stays away because of it.
    pub is_kept_out: bool,
    /// From the first sign of the change until the change.
    pub doubted_for: Duration,
    /// On the backend then, those that were connecting included. A connection whose failure is the
    /// cause is none, though its lease lives a little longer.
    pub sessions: u64,
    pub at: Instant,
}

/// What caused a transition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// A check of this address.
    Check {
        result: CheckResult,
        transcript: String,
    },
    /// Another server has proven to be the newer primary; how.
    Superseded(String),
    /// Another server claims to be the primary, too; which, and why it is the one believed.
    TwoPrimaries(String),
    /// The other primary is gone.
    OnePrimary,
    /// Connects or sessions failed; the last error.
    Failure {
        reason: ConnectError,
        error: String,
    },
    /// A connect succeeded after failures.
    Connected,
    /// An answer began after failures.
    Answered,
    /// A check succeeded after failed connects.
    CheckPassed,
    Operator(AdminState),
    Resolver,
    /// Another configuration.
    Plan,
    /// Another answer of the source of backends.
    Discovery,
}

#[derive(Debug)]
pub struct AdminStateSet {
    pub metrics: Arc<BackendMetrics>,
    /// Its addresses, with those that are no longer named, and whether it is a backup.
    pub backends: Vec<(Arc<Backend>, bool)>,
    pub order: AdminOrder,
    pub was: AdminState,
    pub change: AdminChange,
}

/// What setting an admin state did to a configured backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdminChange {
    pub from: BackendState,
    pub to: BackendState,
    /// Sessions on it, those that are being connected included.
    pub sessions: u64,
    /// For how long the setting has been in effect.
    pub age: Duration,
    /// After what time its sessions are terminated, if the last order that named one still holds.
    pub close_after: Option<Duration>,
}

/// Events that the consumer has not taken yet, as short as they can be written down under the lock
/// of the pool.
#[derive(Debug, Default)]
pub(super) struct Events {
    queue: Vec<Queued>,
    notifier: Arc<Notifier>,
    reported: Reported,
    /// Of the sessions that have left the line since backends went out of service, the longest
    /// wait.
    longest_wait: Duration,
}

#[derive(Debug)]
enum Queued {
    Event(Event),
    /// Transitions of thousands at once.
    Exchange(Box<Exchange>),
    /// A backend has taken a session since others went out of service.
    Session {
        taker: u64,
        /// Whether it serves again itself, though not as it is meant to.
        stands_in: bool,
        text: Arc<str>,
        waited: Duration,
        at: Instant,
    },
}

/// Which sessions are reported, because backends went out of service before.
#[derive(Debug, Default)]
enum Reported {
    #[default]
    None,
    /// Those on any backend.
    All,
    /// Those on another backend than this one, which has taken one and may be out of service.
    NotOn(u64),
}

/// The consumer's part: the outages that a session may still end.
#[derive(Debug, Default)]
pub(super) struct Outages {
    /// Backends out of service since which no session has gone to another one, by their addresses,
    /// each with its place in the order of these events. Weak, so that those that are gone do not
    /// pile up.
    awaiting_failover: HashMap<Addr, (u64, Weak<Backend>)>,
    /// How many outages there have been.
    count: u64,
}

impl Cause {
    /// As in the log and the journal.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Check { result, .. } => result.word(),
            Self::Superseded(_) => "superseded",
            Self::TwoPrimaries(_) => "two_primaries",
            Self::OnePrimary => "one_primary",
            Self::Failure { reason, .. } => reason.word(),
            Self::Connected => "connected",
            Self::Answered => "answered",
            Self::CheckPassed => "checked",
            Self::Operator(_) => "operator",
            Self::Resolver => "resolver",
            Self::Plan => "configuration",
            Self::Discovery => "discovery",
        }
    }

    /// What a check saw, or what other servers have to do with it.
    pub fn transcript(&self) -> Option<&str> {
        match self {
            Self::Check { transcript, .. } => Some(transcript),
            Self::Superseded(how) | Self::TwoPrimaries(how) => Some(how),
            Self::OnePrimary
            | Self::Failure { .. }
            | Self::Connected
            | Self::Answered
            | Self::CheckPassed
            | Self::Operator(_)
            | Self::Resolver
            | Self::Plan
            | Self::Discovery => None,
        }
    }
}

impl Transition {
    /// Whether what follows is not due to an outage that began before.
    pub fn ends_outage(&self) -> bool {
        self.from.is_none() || self.to == Some(BackendState::Up) && !self.is_kept_out
    }

    /// Whether the address served before it, or was removed by it.
    pub fn is_outage(&self) -> bool {
        match self.to {
            None => true,
            Some(to) => {
                let has_served = self.from == Some(BackendState::Up) && !self.is_kept_out;
                has_served && to != BackendState::Up
            }
        }
    }
}

impl Events {
    pub(super) fn notifier(&self) -> &Arc<Notifier> {
        &self.notifier
    }

    pub(super) fn push(&mut self, event: Event) {
        if let Event::Transition(transition) = &event
            && transition.is_outage()
        {
            self.report_all();
        }
        self.enqueue(Queued::Event(event));
    }

    /// The transitions are made when the consumer takes them. `at`: what [`Self::len`] was when its
    /// consequences began.
    pub(super) fn insert_exchange(&mut self, at: usize, exchange: Exchange) {
        if exchange.may_have_outage() {
            self.report_all();
        }
        self.queue.insert(at, Queued::Exchange(Box::new(exchange)));
        self.notifier.notify();
    }

    /// Those since [`Self::len`] was `first`.
    pub(super) fn transitions_from(&self, first: usize) -> impl Iterator<Item = &Transition> {
        self.queue[first..]
            .iter()
            .filter_map(|queued| match queued {
                Queued::Event(Event::Transition(transition)) => Some(transition),
                Queued::Event(_) | Queued::Exchange(_) | Queued::Session { .. } => None,
            })
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// `at`: what [`Self::len`] was when its consequences began.
    pub(super) fn insert_admin_state(&mut self, at: usize, set: AdminStateSet) {
        let event = Queued::Event(Event::AdminStateSet(set));
        self.queue.insert(at, event);
        self.notifier.notify();
    }

    /// Backends have gone out of service.
    fn report_all(&mut self) {
        if matches!(self.reported, Reported::None) {
            self.longest_wait = Duration::ZERO;
        }
        self.reported = Reported::All;
    }

    /// Whether any session that a backend takes may be an event.
    #[inline]
    pub(super) fn may_report_session(&self) -> bool {
        !matches!(self.reported, Reported::None)
    }

    /// A session gets its place after it has waited for so long. Another one that has waited less
    /// may be the first to be connected.
    #[inline]
    pub(super) fn note_wait(&mut self, waited: Duration) {
        if self.may_report_session() {
            self.longest_wait = self.longest_wait.max(waited);
        }
    }

    /// A session has been taken by this backend. `stands_in`: that backend may be out of service
    /// itself, and serves again, though not as it is meant to.
    pub(super) fn report_session(
        &mut self,
        taker: &Backend,
        stands_in: bool,
        waited: Duration,
        at: Instant,
    ) {
        self.reported = match self.reported {
            Reported::None => return,
            Reported::NotOn(id) if id == taker.id && !stands_in => return,
            // It can be out of service itself, until another one takes a session.
            Reported::All if !stands_in => Reported::NotOn(taker.id),
            Reported::All | Reported::NotOn(_) => Reported::None,
        };
        let waited = waited.max(self.longest_wait);
        self.enqueue(Queued::Session {
            taker: taker.id,
            stands_in,
            text: Arc::clone(taker.text()),
            waited,
            at,
        });
    }

    fn enqueue(&mut self, queued: Queued) {
        self.queue.push(queued);
        self.notifier.notify();
    }
}

impl Outages {
    /// The events that these stand for.
    fn follow_all(&mut self, queue: Vec<Queued>) -> Vec<Event> {
        let mut events = Vec::with_capacity(queue.len());
        for queued in queue {
            match queued {
                Queued::Event(event) => {
                    if let Event::Transition(transition) = &event {
                        self.follow(transition);
                    }
                    events.push(event);
                }
                Queued::Exchange(exchange) => {
                    for transition in exchange.transitions() {
                        self.follow(&transition);
                        events.push(Event::Transition(transition));
                    }
                }
                Queued::Session {
                    taker,
                    stands_in,
                    text,
                    waited,
                    at,
                } => {
                    let kept = (!stands_in).then_some(taker);
                    events.extend(self.end_by_session(kept, &text, waited, at));
                }
            }
        }
        events
    }

    /// That an address serves again ends its outage, and so does the next one. What checks find of
    /// it meanwhile does not: clients have been without it since its beginning.
    fn follow(&mut self, transition: &Transition) {
        if !transition.ends_outage() && !transition.is_outage() {
            return;
        }
        let backend = &transition.backend;
        let awaiting = &mut self.awaiting_failover;
        if !awaiting.is_empty() {
            awaiting.remove(&backend.addr);
        }
        backend.notify_when_empty(transition.is_outage());
        if transition.is_outage() {
            if awaiting.len() == awaiting.capacity() {
                awaiting.retain(|_, (_, backend)| backend.strong_count() > 0);
            }
            self.count += 1;
            let entry = (self.count, Arc::downgrade(backend));
            awaiting.insert(backend.addr.clone(), entry);
        }
    }

    /// A session has been taken by the backend with this text. `kept`: the one whose own outage
    /// goes on.
    fn end_by_session(
        &mut self,
        kept: Option<u64>,
        text: &Arc<str>,
        waited: Duration,
        at: Instant,
    ) -> impl Iterator<Item = Event> {
        let is_kept = |b: &Weak<Backend>| b.upgrade().is_some_and(|b| Some(b.id) == kept);
        let awaiting = std::mem::take(&mut self.awaiting_failover).into_iter();
        let (own, mut others): (Vec<_>, Vec<_>) = awaiting.partition(|(_, (_, b))| is_kept(b));
        self.awaiting_failover.extend(own);
        others.sort_unstable_by_key(|(_, (order, _))| *order);
        let text = Arc::clone(text);
        let backends = others.into_iter().filter_map(|(_, (_, b))| b.upgrade());
        backends.map(move |backend| Event::FailedOver {
            backend,
            to: Arc::clone(&text),
            waited,
            at,
        })
    }
}

impl super::Pool {
    /// Ready when [`super::Pool::take_events`] may have something new, or the last session of a
    /// backend that is out of service has ended.
    pub fn poll_events(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.notifier.poll(cx)
    }

    /// What has happened since this was called last; and when to call it again even if nothing is
    /// notified, since time alone can make a verdict stale, or let a
    /// session in that waits.
    pub fn take_events(&self, now: Instant) -> (Vec<Event>, Option<Instant>) {
        // Held beyond the lock of the pool, so that what two callers get is in order.
        let mut outages = self.outages.lock();
        let mut inner = self.lock();
        inner.review_if_due(now);
        inner.serve(now);
        let next = inner.review.next(now).into_iter().chain(inner.service_due);
        let next = next.min();
        let queue = std::mem::take(&mut inner.events.queue);
        drop(inner);
        (outages.follow_all(queue), next)
    }
}
