//! The dialogue of one check: what is sent, and what the bytes that come back mean. Pure.

use super::transcript;
use crate::{plan::reason::CheckResult, upstream::health::Finding};

/// More bytes than this are not read for an answer.
pub(super) const MAX_BYTES: usize = 16 << 10;

/// The result of a dialogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) result: CheckResult,
    pub(super) finding: Finding,
    /// A summary of what was received.
    pub(super) transcript: String,
    /// The regular end of the connection, if the protocol has one.
    pub(super) last_message: Vec<u8>,
}

impl Answer {
    pub(super) fn new(result: CheckResult, transcript: impl Into<String>) -> Self {
        Self {
            result,
            finding: Finding::default(),
            transcript: transcript.into(),
            last_message: Vec::new(),
        }
    }
}

/// What comes next in a dialogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// More bytes are needed.
    Wait,
    /// So many bytes are consumed, and these are sent; then the dialogue goes on. One of the two is
    /// not empty.
    Send {
        consumed: usize,
        bytes: Vec<u8>,
    },
    /// So many bytes are consumed, and TLS begins.
    StartTls {
        consumed: usize,
    },
    Done(Answer),
}

/// One check's dialogue.
pub(super) trait Dialogue: Send {
    /// `bytes` is what was received and is not consumed; at the beginning it is empty. `ended`:
    /// nothing more will come.
    fn receive(&mut self, bytes: &[u8], ended: bool) -> Step;

    /// TLS has begun; `end_point` is what a login can be bound to.
    fn encrypted(&mut self, _end_point: Option<Vec<u8>>) {}

    /// More bytes than this are not read.
    fn max_bytes(&self) -> usize {
        MAX_BYTES
    }

    /// What was received, for the transcript, as far as it may be shown.
    fn show(&self, bytes: &[u8]) -> String {
        transcript::quote(bytes)
    }
}

/// A dialogue of one request and one answer.
pub(super) struct RequestAnswer<F> {
    /// Until it is sent.
    pub(super) request: Option<Vec<u8>>,
    /// `None`: more bytes are needed.
    pub(super) read: F,
    pub(super) max_bytes: usize,
    /// Whether the request has a password in it, which an echo would show.
    pub(super) is_secret: bool,
}

impl<F: FnMut(&[u8], bool) -> Option<Answer> + Send> Dialogue for RequestAnswer<F> {
    fn receive(&mut self, bytes: &[u8], ended: bool) -> Step {
        if let Some(bytes) = self.request.take().filter(|bytes| !bytes.is_empty()) {
            return Step::Send { consumed: 0, bytes };
        }
        (self.read)(bytes, ended).map_or(Step::Wait, Step::Done)
    }

    fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    fn show(&self, bytes: &[u8]) -> String {
        match self.is_secret {
            true => format!("{} bytes", bytes.len()),
            false => transcript::quote(bytes),
        }
    }
}
