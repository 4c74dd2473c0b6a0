//! A stream of JSON objects, one a line.

use super::client::{HttpError, MOST_BYTES, Response};
use std::{
    collections::VecDeque,
    future::{Future as _, poll_fn},
    pin::pin,
    task::Poll,
    time::{Duration, Instant},
};

/// For so long a snapshot waits for lines that have come already.
pub(super) const GATHERING: Duration = Duration::from_millis(50);

/// Bytes to lines; pure.
#[derive(Debug, Default)]
struct Splitter {
    /// The beginning of a line.
    rest: Vec<u8>,
    lines: VecDeque<Vec<u8>>,
    /// There was a line that is too long; what follows cannot be understood without it.
    is_broken: bool,
}

/// A line is longer than is allowed.
#[derive(Debug, PartialEq, Eq)]
struct TooLong;

impl Splitter {
    fn add(&mut self, bytes: &[u8], most: usize) -> Result<(), TooLong> {
        self.is_broken = self.is_broken || self.split(bytes, most).is_err();
        match self.is_broken {
            true => Err(TooLong),
            false => Ok(()),
        }
    }

    fn split(&mut self, mut bytes: &[u8], most: usize) -> Result<(), TooLong> {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(&bytes[..end]);
            bytes = &bytes[end + 1..];
            let line = std::mem::take(&mut self.rest);
            if line.len() > most {
                return Err(TooLong);
            }
            if !line.trim_ascii().is_empty() {
                self.lines.push_back(line);
            }
        }
        self.rest.extend_from_slice(bytes);
        match self.rest.len() > most {
            true => Err(TooLong),
            false => Ok(()),
        }
    }
}

/// The lines of a response.
pub(super) struct Lines {
    response: Response,
    splitter: Splitter,
}

impl Lines {
    pub(super) fn new(response: Response) -> Self {
        Self {
            response,
            splitter: Splitter::default(),
        }
    }

    /// `None`: the stream has ended; a line that was not complete is dropped. Can be dropped
    /// without a loss.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<u8>>, HttpError> {
        loop {
            if let Some(line) = self.splitter.lines.pop_front() {
                return Ok(Some(line));
            }
            let Some(bytes) = self.response.chunk().await? else {
                return Ok(None);
            };
            let added = self.splitter.add(&bytes, MOST_BYTES);
            added.map_err(|TooLong| HttpError::TooLong(MOST_BYTES))?;
        }
    }

    /// A line that is here already, though not for ever: a server that sends all the time has an
    /// end here, too. How the stream ends is seen by [`Self::next`].
    pub(super) async fn next_received(&mut self, until: Instant) -> Option<Vec<u8>> {
        loop {
            let line = self.splitter.lines.pop_front();
            if line.is_some() || Instant::now() >= until {
                return line;
            }
            let mut chunk = pin!(self.response.chunk());
            let received = poll_fn(|cx| Poll::Ready(chunk.as_mut().poll(cx))).await;
            let Poll::Ready(Ok(Some(bytes))) = received else {
                return None;
            };
            // It is so for all later calls.
            let Ok(()) = self.splitter.add(&bytes, MOST_BYTES) else {
                return None;
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(chunks: &[&[u8]], most: usize) -> Result<Vec<Vec<u8>>, TooLong> {
        let mut splitter = Splitter::default();
        for chunk in chunks {
            splitter.add(chunk, most)?;
        }
        Ok(splitter.lines.into())
    }

    #[test]
    fn a_line_is_complete_with_its_end() {
        let lines = split(&[b"{\"a\"", b":1}\n\n \n{}", b"\n{"], 9);
        assert_eq!(lines, Ok(vec![b"{\"a\":1}".to_vec(), b"{}".to_vec()]));
        assert_eq!(split(&[b"123", b"456"], 5), Err(TooLong));
        assert_eq!(split(&[b"123456\n"], 5), Err(TooLong));
        assert_eq!(split(&[b"12345\n1"], 5), Ok(vec![b"12345".to_vec()]));
    }

    proptest! {
        #[test]
        fn chunks_do_not_matter(chunks: Vec<Vec<u8>>) {
            let whole = chunks.concat();
            let chunks: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(split(&chunks, 1 << 20), split(&[&whole], 1 << 20));
        }
    }
}
