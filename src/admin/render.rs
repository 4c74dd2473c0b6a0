//! The documents that are expensive to render: one thread renders them, one at a time, and all
//! requests that wait for the same one share it.
//!
//! A request that comes while its document is being rendered waits for the next one, so that no
//! response is older than its request. A request whose client has disconnected by then is dropped;
//! without any request nothing is rendered.
//!
//! Between documents the thread takes the samples of the [`History`].

use super::{
    ages,
    history::{self, History},
    overview::{self, Rows},
    page,
    scrape::scrape,
    status,
};
use crate::{control::State, sys::mutex::Mutex};
use hyper::body::{Body, Bytes, Frame, SizeHint};
use std::{
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, Condvar, PoisonError, Weak},
    task::{Context, Poll},
    time::{Instant, SystemTime},
};
use tokio::sync::oneshot;

/// The memory of all documents that slow clients still read, unless the last two are larger: for a
/// new one the oldest are withdrawn.
const MAX_BYTES: u64 = 64 * 1024 * 1024;
const PIECE: usize = 64 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DocumentKind {
    Page,
    Metrics,
    Status,
    Events,
    History,
    Ages,
    Overview,
}

impl DocumentKind {
    const COUNT: usize = 7;
    const ALL: [Self; Self::COUNT] = [
        Self::Page,
        Self::Metrics,
        Self::Status,
        Self::Events,
        Self::History,
        Self::Ages,
        Self::Overview,
    ];

    pub(super) fn at(path: &str) -> Option<Self> {
        match path {
            "/" => Some(Self::Page),
            "/metrics" => Some(Self::Metrics),
            "/api/v1/status" => Some(Self::Status),
            "/api/v1/events" => Some(Self::Events),
            "/api/v1/history" => Some(Self::History),
            "/api/v1/sessions/ages" => Some(Self::Ages),
            overview::PATH => Some(Self::Overview),
            _ => None,
        }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Page => "text/html; charset=utf-8",
            Self::Metrics => "text/plain; version=0.0.4; charset=utf-8",
            Self::Status | Self::Events | Self::History | Self::Ages | Self::Overview => {
                "application/json"
            }
        }
    }
}

/// The thread, as requests see it; it ends when this is dropped.
pub struct Renderer(Arc<Queue>);

#[derive(Default)]
struct Queue {
    requests: Mutex<Requests>,
    changed: Condvar,
}

/// Which part of a document is meant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Part {
    /// The number of the last sample that the client has: of [`DocumentKind::History`] and
    /// [`DocumentKind::Overview`].
    pub(super) after: u64,
    /// Of [`DocumentKind::Overview`].
    pub(super) rows: Rows,
}

/// A request for a document.
struct Request {
    part: Part,
    reply: oneshot::Sender<Arc<Document>>,
}

/// Requests for the same document.
struct Batch {
    kind: DocumentKind,
    part: Part,
    requests: Vec<Request>,
}

/// What the thread does next.
enum Task {
    Render(Batch),
    TakeSample,
    End,
}

#[derive(Default)]
struct Requests {
    /// By kind.
    waiting: [Vec<Request>; DocumentKind::COUNT],
    /// The kind that is served first: kinds are served in rotation.
    first: usize,
    is_closed: bool,
}

impl Renderer {
    pub fn start(state: &Arc<State>) -> io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let (requests, state) = (Arc::clone(&queue), Arc::downgrade(state));
        std::thread::Builder::new()
            .name("admin".to_owned())
            .spawn(move || run(&requests, &state))?;
        Ok(Self(queue))
    }

    /// `None` if it cannot be made. Dropping the future withdraws the request.
    pub(super) async fn document(&self, kind: DocumentKind, part: Part) -> Option<SharedBody> {
        let (reply, receive) = oneshot::channel();
        self.0.requests.lock().waiting[kind as usize].push(Request { part, reply });
        self.0.changed.notify_one();
        receive.await.ok().map(SharedBody::new)
    }
}

impl Drop for Renderer {
    fn drop(&mut self) {
        self.0.requests.lock().is_closed = true;
        self.0.changed.notify_one();
    }
}

impl Queue {
    /// Waits for requests, and takes those for one document, or until a sample is due.
    fn next(&self, sample_at: Instant) -> Task {
        let mut requests = self.requests.lock();
        loop {
            if requests.is_closed {
                return Task::End;
            }
            let left = sample_at.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Task::TakeSample;
            }
            if let Some(batch) = requests.take() {
                return Task::Render(batch);
            }
            let waited = self.changed.wait_timeout(requests, left);
            (requests, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Requests {
    fn take(&mut self) -> Option<Batch> {
        for n in 0..DocumentKind::COUNT {
            let kind = DocumentKind::ALL[(self.first + n) % DocumentKind::COUNT];
            let waiting = &mut self.waiting[kind as usize];
            waiting.retain(|request| !request.reply.is_closed());
            if let Some(first) = waiting.first() {
                let part = first.part.clone();
                let requests = waiting.extract_if(.., |request| request.part == part);
                let requests = requests.collect();
                self.first = (kind as usize + 1) % DocumentKind::COUNT;
                return Some(Batch {
                    kind,
                    part,
                    requests,
                });
            }
        }
        None
    }
}

fn run(queue: &Queue, state: &Weak<State>) {
    let mut kept = Kept::default();
    let mut history = History::default();
    let mut sample_at = Instant::now();
    loop {
        let task = queue.next(sample_at);
        let Some(state) = state.upgrade() else {
            return;
        };
        match task {
            Task::Render(batch) => render(batch, &state, &history, &mut kept),
            Task::TakeSample => {
                let now = Instant::now();
                let taken = catch_unwind(AssertUnwindSafe(|| {
                    history.take_sample(&state, now, SystemTime::now());
                }));
                if taken.is_err() {
                    tracing::error!("cannot take a sample for the history");
                }
                // After a document that took long, or a suspend, the next interval is a whole one.
                sample_at = (sample_at + history::INTERVAL).max(now + history::INTERVAL / 2);
            }
            Task::End => return,
        }
    }
}

fn render(batch: Batch, state: &State, history: &History, kept: &mut Kept) {
    let Batch {
        kind,
        part,
        requests,
    } = batch;
    let made = catch_unwind(AssertUnwindSafe(|| make(kind, &part, state, history)));
    let Ok(Some(pieces)) = made else {
        tracing::error!(document = ?kind, "cannot render an admin document");
        // Dropping the requests answers them with an error.
        return;
    };
    let document = Document::new(pieces);
    kept.add(&document, MAX_BYTES);
    for request in requests {
        // Its client may have disconnected.
        let _ = request.reply.send(Arc::clone(&document));
    }
}

fn make(kind: DocumentKind, part: &Part, state: &State, history: &History) -> Option<Vec<Bytes>> {
    let whole = match kind {
        DocumentKind::Metrics => return Some(scrape(state)),
        DocumentKind::Page => page::render(state),
        DocumentKind::Status => serde_json::to_string_pretty(&status::of(state)).ok()? + "\n",
        DocumentKind::Events => {
            serde_json::to_string_pretty(&state.journal.since(None)).ok()? + "\n"
        }
        DocumentKind::History => history.write(state.started, part.after),
        DocumentKind::Overview => {
            let overview = overview::of(state, history, &part.rows, part.after);
            serde_json::to_string(&overview).ok()? + "\n"
        }
        DocumentKind::Ages => serde_json::to_string(&ages::of(state)).ok()? + "\n",
    };
    Some(in_pieces(&whole))
}

/// Each piece is allocated by itself: a response holds only one piece of a withdrawn document.
fn in_pieces(whole: &str) -> Vec<Bytes> {
    let pieces = whole.as_bytes().chunks(PIECE);
    pieces.map(Bytes::copy_from_slice).collect()
}

/// A rendered document, for as long as a response needs it and there is memory for it.
pub(super) struct Document {
    bytes: u64,
    /// Empty once it has been withdrawn.
    pieces: Mutex<Vec<Bytes>>,
}

impl Document {
    fn new(pieces: Vec<Bytes>) -> Arc<Self> {
        Arc::new(Self {
            bytes: pieces.iter().map(|piece| piece.len() as u64).sum(),
            pieces: Mutex::new(pieces),
        })
    }

    fn piece(&self, n: usize) -> Option<Bytes> {
        self.pieces.lock().get(n).cloned()
    }

    fn withdraw(&self) {
        drop(std::mem::take(&mut *self.pieces.lock()));
    }
}

/// Documents that responses may still need, the oldest first.
#[derive(Default)]
struct Kept(Vec<Weak<Document>>);

impl Kept {
    /// Withdraws the oldest documents until there are at most `max` bytes, or two documents.
    fn add(&mut self, document: &Arc<Document>, max: u64) {
        self.0.retain(|kept| kept.strong_count() > 0);
        self.0.push(Arc::downgrade(document));
        let size = |kept: &Weak<Document>| kept.upgrade().map_or(0, |kept| kept.bytes);
        let mut bytes: u64 = self.0.iter().map(size).sum();
        while bytes > max && self.0.len() > 2 {
            let oldest = self.0.remove(0);
            bytes -= size(&oldest).min(bytes);
            if let Some(oldest) = oldest.upgrade() {
                oldest.withdraw();
            }
        }
    }
}

/// The body of one of the responses that share a document.
pub(super) struct SharedBody {
    document: Arc<Document>,
    next: usize,
    left: u64,
}

impl SharedBody {
    fn new(document: Arc<Document>) -> Self {
        Self {
            next: 0,
            left: document.bytes,
            document,
        }
    }
}

impl Body for SharedBody {
    type Data = Bytes;
    type Error = Withdrawn;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Withdrawn>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let Some(piece) = self.document.piece(self.next) else {
            self.left = 0;
            return Poll::Ready(Some(Err(Withdrawn)));
        };
        self.next += 1;
        self.left = self.left.saturating_sub(piece.len() as u64);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// The client reads so slowly that newer documents needed the memory.
#[derive(Debug)]
pub(super) struct Withdrawn;

impl fmt::Display for Withdrawn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the client reads too slowly")
    }
}

impl std::error::Error for Withdrawn {}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(bytes: usize) -> Arc<Document> {
        Document::new(vec![Bytes::from(vec![b'x'; bytes])])
    }

    /// The kind that is rendered next, and for how many requests.
    fn next(requests: &mut Requests) -> Option<(DocumentKind, usize)> {
        let taken = requests.take();
        taken.map(|batch| (batch.kind, batch.requests.len()))
    }

    #[test]
    fn requests_share_a_document_and_kinds_alternate() {
        let mut requests = Requests::default();
        let mut receivers = Vec::new();
        let mut ask_after = |requests: &mut Requests, kind: DocumentKind, after: u64| {
            let (reply, receive) = oneshot::channel();
            let rows = Rows::default();
            let part = Part { after, rows };
            requests.waiting[kind as usize].push(Request { part, reply });
            receivers.push(receive);
        };
        assert_eq!(next(&mut requests), None);
        for after in [7, 8, 7] {
            ask_after(&mut requests, DocumentKind::History, after);
        }
        assert_eq!(next(&mut requests), Some((DocumentKind::History, 2)));
        assert_eq!(next(&mut requests), Some((DocumentKind::History, 1)));
        let mut ask = |requests: &mut Requests, kind| ask_after(requests, kind, 0);
        for kind in [
            DocumentKind::Metrics,
            DocumentKind::Events,
            DocumentKind::Metrics,
        ] {
            ask(&mut requests, kind);
        }
        assert_eq!(next(&mut requests), Some((DocumentKind::Metrics, 2)));
        // A client that asks for the same all the time does not keep others waiting.
        ask(&mut requests, DocumentKind::Metrics);
        assert_eq!(next(&mut requests), Some((DocumentKind::Events, 1)));
        assert_eq!(next(&mut requests), Some((DocumentKind::Metrics, 1)));
        assert_eq!(next(&mut requests), None);
    }

    #[test]
    fn nothing_is_rendered_for_clients_that_disconnected() {
        let mut requests = Requests::default();
        let (reply, receive) = oneshot::channel();
        requests.waiting[DocumentKind::Metrics as usize].push(Request {
            part: Part::default(),
            reply,
        });
        drop(receive);
        assert_eq!(next(&mut requests), None);
        assert!(requests.waiting.iter().all(Vec::is_empty));
    }

    #[test]
    fn only_the_oldest_documents_are_withdrawn_and_two_always_stay() {
        let mut kept = Kept::default();
        let documents = [60, 30, 30, 200, 200].map(document);
        let readable = || documents.each_ref().map(|d| d.piece(0).is_some());
        for (n, expected) in [
            [true; 5],
            [true; 5],
            [false, true, true, true, true],
            [false, false, true, true, true],
            [false, false, false, true, true],
        ]
        .into_iter()
        .enumerate()
        {
            kept.add(&documents[n], 100);
            assert_eq!(readable(), expected, "{n}");
        }
        drop(documents);
        kept.add(&document(1), 100);
        assert_eq!(kept.0.len(), 1);
    }

    #[test]
    fn a_body_is_whole_or_ends_in_an_error() {
        let document = Document::new(vec![Bytes::from("ab"), Bytes::from("c")]);
        let mut context = Context::from_waker(std::task::Waker::noop());
        let mut body = SharedBody::new(Arc::clone(&document));
        let mut frame = |body: &mut SharedBody| match Pin::new(body).poll_frame(&mut context) {
            Poll::Ready(frame) => frame.map(|f| f.map(|f| f.into_data().unwrap_or_default()).ok()),
            Poll::Pending => None,
        };
        assert_eq!(body.size_hint().exact(), Some(3));
        assert_eq!(frame(&mut body), Some(Some(Bytes::from("ab"))));
        let mut late = SharedBody::new(Arc::clone(&document));
        assert_eq!(frame(&mut late), Some(Some(Bytes::from("ab"))));
        assert_eq!(frame(&mut body), Some(Some(Bytes::from("c"))));
        assert_eq!(frame(&mut body), None);
        document.withdraw();
        assert_eq!(frame(&mut late), Some(None));
        assert!(body.is_end_stream() && late.is_end_stream());
    }
}
