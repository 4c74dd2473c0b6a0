//! The last changes of backends' states, for operators.

use crate::{
    handover::journal::JournalRecord,
    plan::reason::BackendState,
    sys::mutex::Mutex,
    upstream::{
        backend::Backend,
        pool::{Transition, WeightSet},
    },
};
use serde::{Deserialize, Serialize};
use std::{
    borrow::Cow,
    collections::VecDeque,
    fmt,
    str::FromStr,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::sync::watch;

/// Older ones are in the log.
const MOST: usize = 256;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JournalEntry {
    /// Counts the events of the process.
    pub number: u64,
    /// Counts what is written to the journal; of the last that concerns this event.
    pub revision: u64,
    /// What has changed: "state", "weight", "role_fallback", whether primaries are used because no
    /// replica is up, "backends", how many there are, "source", whether it answers, "reload", the
    /// configuration, or "upgrade", which process serves. The last two have no upstream.
    pub kind: Cow<'static, str>,
    pub time: String,
    pub upstream: String,
    pub backend: String,
    /// Which of its addresses; what concerns all of them has the backend here.
    pub address: String,
    pub from: String,
    pub to: String,
    pub reason: Cow<'static, str>,
    /// What the check saw, or what else there is to know; `None` for other causes.
    pub transcript: Option<String>,
    /// From the first doubt to the verdict.
    pub doubt_seconds: f64,
    /// How many sessions were on it then.
    pub sessions: u64,
    /// From this change until the last of them was over; `None` while that has not happened.
    pub last_session_closed_seconds: Option<f64>,
    /// From this change until another backend had taken a session, and which; `None` while that has
    /// not happened.
    pub next_session_seconds: Option<f64>,
    pub next_session_on: Option<String>,
    /// How long that session had waited for a backend; 0: it came when there was one.
    pub next_session_waited_seconds: Option<f64>,
    /// How many clients of the upstream got no backend from this change until then.
    pub unserved_clients: Option<u64>,
}

#[derive(Debug)]
pub struct Journal {
    book: Mutex<Book>,
    /// The revision of the last addition, for readers that wait for the next.
    revision: watch::Sender<u64>,
    /// When it was begun, in milliseconds since 1970: distinguishes the journals of two
    /// processes.
    begun: u64,
}

#[derive(Debug, Default)]
struct Book {
    events: VecDeque<JournalEntry>,
    /// The number of the first of them.
    first: u64,
    /// How much has been written.
    revision: u64,
}

/// Backends that came or went at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BackendCount {
    pub(super) added: usize,
    pub(super) removed: usize,
    /// Backends afterwards.
    pub(super) now: usize,
    /// On those that went.
    pub(super) sessions: u64,
    pub(super) reason: &'static str,
}

/// What has become of a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReloadResult {
    Reloaded,
    Failed,
}

impl ReloadResult {
    fn word(self) -> &'static str {
        match self {
            Self::Reloaded => "reloaded",
            Self::Failed => "failed",
        }
    }
}

/// How far an upgrade is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UpgradeStage {
    /// `successor` is to serve.
    Started {
        successor: u32,
    },
    /// This process serves, instead of `predecessor`.
    Done {
        predecessor: u32,
    },
    Failed,
}

impl UpgradeStage {
    fn word(self) -> &'static str {
        match self {
            Self::Started { .. } => "started",
            Self::Done { .. } => "done",
            Self::Failed => "failed",
        }
    }
}

/// What a reader has seen of a journal, as text for the next request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    begun: u64,
    /// The number of the first event that it has not seen.
    next: u64,
    revision: u64,
}

/// What there is to read.
#[derive(Debug, Serialize)]
pub struct Page {
    /// In the order in which they were written last.
    pub events: Vec<JournalEntry>,
    /// For the next page.
    pub cursor: String,
    /// How many events the journal has dropped that the reader has not seen.
    pub lost: u64,
}

/// Identifies an event, also after it has been dropped from the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Number(u64);

impl JournalEntry {
    pub(super) fn new(upstream: &str, transition: &Transition) -> Self {
        let state = |state: Option<BackendState>, none| state.map_or(none, BackendState::word);
        let backend = &transition.backend;
        Self {
            address: backend.addr.to_string(),
            from: state(transition.from, "added").to_owned(),
            to: state(transition.to, "removed").to_owned(),
            transcript: transition.cause.transcript().map(str::to_owned),
            doubt_seconds: seconds(transition.doubted_for),
            sessions: transition.sessions,
            ..Self::of(
                upstream,
                backend.text(),
                transition.cause.word(),
                transition.at,
            )
        }
    }

    pub(super) fn of_weight(upstream: &str, set: &WeightSet) -> Self {
        let in_file = format!("{} in the file", set.in_file);
        Self {
            kind: "weight".into(),
            from: set.from.to_string(),
            to: set.to.to_string(),
            transcript: set.is_by_operator.then_some(in_file),
            sessions: set.metrics.active(),
            ..Self::of(upstream, &set.metrics.text, "operator", set.at)
        }
    }

    /// `to`: a primary that is used from now on; `None`: no primary is used any more.
    pub(super) fn of_fallback(
        upstream: &str,
        to: Option<&Backend>,
        reason: &'static str,
        at: Instant,
    ) -> Self {
        let words = |is_on| if is_on { "on" } else { "off" }.to_owned();
        Self {
            kind: "role_fallback".into(),
            address: to.map_or_else(String::new, |backend| backend.addr.to_string()),
            from: words(to.is_none()),
            to: words(to.is_some()),
            sessions: to.map_or(0, Backend::active),
            ..Self::of(
                upstream,
                to.map_or("", |backend| backend.text()),
                reason,
                at,
            )
        }
    }

    /// Many backends came or went at once.
    pub(super) fn of_backends(upstream: &str, count: &BackendCount, at: Instant) -> Self {
        let BackendCount { added, removed, .. } = count;
        Self {
            kind: "backends".into(),
            from: (count.now + removed).saturating_sub(*added).to_string(),
            to: count.now.to_string(),
            transcript: Some(format!("{added} added, {removed} removed")),
            sessions: count.sessions,
            ..Self::of(upstream, "", count.reason, at)
        }
    }

    /// The source of its backends has been without an answer for a while, or has one again.
    pub(super) fn of_source(upstream: &str, error: Option<&str>, at: Instant) -> Self {
        let word = |answers| if answers { "answers" } else { "silent" }.to_owned();
        Self {
            kind: "source".into(),
            from: word(error.is_some()),
            to: word(error.is_none()),
            transcript: error.map(str::to_owned),
            ..Self::of(upstream, "", "discovery", at)
        }
    }

    /// A configuration was put into effect, or refused: then `to` is the one before.
    pub(super) fn of_reload(from: &str, to: &str, result: ReloadResult, what: String) -> Self {
        Self {
            kind: "reload".into(),
            from: from.to_owned(),
            to: to.to_owned(),
            transcript: Some(what),
            ..Self::of("", "", result.word(), Instant::now())
        }
    }

    /// The process that serves becomes another one, or is to.
    pub(super) fn of_upgrade(stage: UpgradeStage, what: String) -> Self {
        let process = |pid: u32| format!("process {pid}");
        let own = std::process::id();
        let (from, to) = match stage {
            UpgradeStage::Started { successor } => (process(own), process(successor)),
            UpgradeStage::Done { predecessor } => (process(predecessor), process(own)),
            UpgradeStage::Failed => (process(own), process(own)),
        };
        Self {
            kind: "upgrade".into(),
            from,
            to,
            transcript: Some(what),
            ..Self::of("", "", stage.word(), Instant::now())
        }
    }

    /// Of all addresses of a backend.
    fn of(upstream: &str, backend: &str, reason: &'static str, at: Instant) -> Self {
        let time = SystemTime::now() - at.elapsed();
        Self {
            number: 0,
            revision: 0,
            kind: "state".into(),
            time: humantime::format_rfc3339_millis(time).to_string(),
            upstream: upstream.to_owned(),
            backend: backend.to_owned(),
            address: backend.to_owned(),
            from: String::new(),
            to: String::new(),
            reason: reason.into(),
            transcript: None,
            doubt_seconds: 0.0,
            sessions: 0,
            last_session_closed_seconds: None,
            next_session_seconds: None,
            next_session_on: None,
            next_session_waited_seconds: None,
            unserved_clients: None,
        }
    }
}

/// To the millisecond: more digits would be noise.
pub fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e3).round() / 1e3
}

impl Default for Journal {
    fn default() -> Self {
        let begun = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            book: Mutex::default(),
            revision: watch::Sender::new(0),
            begun: u64::try_from(begun.unwrap_or_default().as_millis()).unwrap_or_default(),
        }
    }
}

impl Journal {
    /// Goes on with that of another process. What is not understood of it is left out.
    pub(super) fn resume(record: &JournalRecord) -> Self {
        let parse = |text: &String| serde_json::from_str(text).ok();
        let events: Option<VecDeque<JournalEntry>> = record.events.iter().map(parse).collect();
        let book = match events {
            Some(events) => Book {
                events,
                first: record.first,
                revision: record.revision,
            },
            // Their numbers go on.
            None => Book {
                events: VecDeque::new(),
                first: record.first + record.events.len() as u64,
                revision: record.revision,
            },
        };
        Self {
            revision: watch::Sender::new(book.revision),
            book: Mutex::new(book),
            begun: record.begun,
        }
    }

    /// All of it, for another process.
    pub(super) fn to_record(&self) -> JournalRecord {
        let book = self.book.lock();
        let events = book.events.iter();
        JournalRecord {
            begun: self.begun,
            first: book.first,
            revision: book.revision,
            events: events
                .map(|event| serde_json::to_string(event).unwrap_or_default())
                .collect(),
        }
    }

    /// Gives the event its number.
    pub(super) fn record(&self, mut event: JournalEntry) -> Number {
        let mut book = self.book.lock();
        if book.events.len() == MOST {
            book.events.pop_front();
            book.first += 1;
        }
        book.revision += 1;
        event.number = book.first + book.events.len() as u64;
        event.revision = book.revision;
        let number = Number(event.number);
        book.events.push_back(event);
        self.revision.send_replace(book.revision);
        number
    }

    /// Completes an event, if it has not been dropped.
    pub(super) fn add(&self, number: Number, change: impl FnOnce(&mut JournalEntry)) {
        let mut book = self.book.lock();
        let index = number.0.checked_sub(book.first);
        let index = index.and_then(|index| usize::try_from(index).ok());
        let revision = book.revision + 1;
        if let Some(event) = index.and_then(|i| book.events.get_mut(i)) {
            change(event);
            event.revision = revision;
            book.revision = revision;
            self.revision.send_replace(revision);
        }
    }

    /// Whether the event has not been dropped yet.
    pub(super) fn holds(&self, number: Number) -> bool {
        number.0 >= self.book.lock().first
    }

    /// What has been written since a reader was at this cursor: events that it has not seen, and
    /// those that have been completed since. A cursor of another process has seen nothing.
    pub fn since(&self, cursor: Option<Cursor>) -> Page {
        let book = self.book.lock();
        let next = book.first + book.events.len() as u64;
        let is_of_this = |c: &Cursor| {
            (c.begun, c.next <= next, c.revision <= book.revision) == (self.begun, true, true)
        };
        let seen = cursor.filter(is_of_this);
        let after = seen.map_or(0, |c| c.revision);
        let mut events: Vec<JournalEntry> = book
            .events
            .iter()
            .filter(|e| e.revision > after)
            .cloned()
            .collect();
        // Without a cursor, and after one of another process, as they happened.
        if seen.is_some() {
            events.sort_unstable_by_key(|e| e.revision);
        }
        let lost = cursor.map_or(0, |_| book.first.saturating_sub(seen.map_or(0, |c| c.next)));
        let cursor = Cursor {
            begun: self.begun,
            next,
            revision: book.revision,
        };
        Page {
            events,
            cursor: cursor.to_string(),
            lost,
        }
    }

    /// Changes with each addition.
    pub fn revisions(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.begun, self.next, self.revision)
    }
}

/// It is no cursor of a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoCursor;

impl FromStr for Cursor {
    type Err = NoCursor;

    fn from_str(text: &str) -> Result<Self, NoCursor> {
        let mut parts = text
            .split('-')
            .map(|part| part.parse().map_err(|_| NoCursor));
        let mut part = || parts.next().unwrap_or(Err(NoCursor));
        let cursor = Self {
            begun: part()?,
            next: part()?,
            revision: part()?,
        };
        match parts.next() {
            None => Ok(cursor),
            Some(_) => Err(NoCursor),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(n: usize, address: &str) -> JournalEntry {
        JournalEntry {
            time: n.to_string(),
            address: address.to_owned(),
            ..JournalEntry::of("u", "b", "timeout", Instant::now())
        }
    }

    #[test]
    fn the_oldest_are_dropped() {
        let journal = Journal::default();
        let recorded: Vec<_> = (0..MOST + 3)
            .map(|n| journal.record(event(n, "a")))
            .collect();
        for (n, one) in recorded.iter().enumerate() {
            journal.add(*one, |event| event.sessions = n as u64);
        }
        let events = journal.since(None).events;
        assert_eq!(events.len(), MOST);
        for (event, n) in events.iter().zip(3..) {
            assert_eq!((event.time.parse(), event.sessions), (Ok(n), n));
        }
    }
    fn read(journal: &Journal, at: &mut Option<Cursor>) -> (Vec<u64>, u64) {
        let page = journal.since(*at);
        *at = Some(page.cursor.parse().expect("a cursor"));
        (page.events.iter().map(|e| e.number).collect(), page.lost)
    }

    #[test]
    fn a_reader_sees_every_addition_once() {
        let journal = Journal::default();
        let mut at = None;
        assert_eq!(read(&journal, &mut at), (vec![], 0));
        let first = journal.record(event(0, "a"));
        journal.record(event(1, "a"));
        assert_eq!(read(&journal, &mut at), (vec![0, 1], 0));
        assert_eq!(read(&journal, &mut at), (vec![], 0));
        journal.record(event(2, "a"));
        journal.add(first, |event| event.sessions = 7);
        assert_eq!(read(&journal, &mut at), (vec![2, 0], 0));
        // As they happened, for a reader that begins.
        assert_eq!(read(&journal, &mut None), (vec![0, 1, 2], 0));
    }

    #[test]
    fn a_reader_goes_on_in_the_journal_of_the_next_process() {
        let old = Journal::default();
        let mut at = None;
        let first = old.record(event(0, "a"));
        old.record(event(1, "b"));
        read(&old, &mut at);
        old.record(event(2, "c"));
        old.add(first, |event| event.sessions = 7);
        let record = old.to_record();
        let new = Journal::resume(&record);
        assert_eq!(new.to_record(), record);
        assert_eq!(read(&new, &mut at), (vec![2, 0], 0));
        new.record(event(3, "d"));
        assert_eq!(read(&new, &mut at), (vec![3], 0));
        let strange = JournalRecord {
            events: vec!["{}".to_owned(); 3],
            ..record
        };
        assert_eq!(read(&Journal::resume(&strange), &mut None), (vec![], 0));
    }

    #[test]
    fn a_reader_learns_how_many_events_it_has_missed() {
        let journal = Journal::default();
        let mut at = None;
        journal.record(event(0, "a"));
        read(&journal, &mut at);
        for n in 1..MOST + 3 {
            journal.record(event(n, "a"));
        }
        let (numbers, lost) = read(&journal, &mut at);
        assert_eq!((numbers.len(), numbers[0], lost), (MOST, 3, 2));
        assert_eq!(read(&journal, &mut at), (vec![], 0));
        // After a restart it has seen nothing.
        let of_other = "12-100-100".parse().ok();
        let page = journal.since(of_other);
        assert_eq!((page.events.len(), page.lost), (MOST, 3));
        let ahead = Cursor {
            next: 9_000,
            ..at.expect("a cursor")
        };
        assert_eq!(journal.since(Some(ahead)).events.len(), MOST);
        for wrong in ["", "1", "1-2", "1-2-x", "1-2-3-4", "-1-2-3"] {
            assert_eq!(wrong.parse::<Cursor>(), Err(NoCursor), "{wrong}");
        }
    }
}
