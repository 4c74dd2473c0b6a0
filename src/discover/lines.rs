//! A stream of JSON objects, one a line.

use super::client::{HttpError, MOST_BYTES, Response};
use std::collections::VecDeque;

/// Bytes to lines; pure.
#[derive(Debug, Default)]
struct Splitter {
    /// The beginning of a line.
    rest: Vec<u8>,
    lines: VecDeque<Vec<u8>>,
}

/// A line is longer than is allowed.
#[derive(Debug, PartialEq, Eq)]
struct TooLong;

impl Splitter {
    fn add(&mut self, mut bytes: &[u8], most: usize) -> Result<(), TooLong> {
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

    /// A line that is here already.
    pub(super) fn next_received(&mut self) -> Option<Vec<u8>> {
        self.splitter.lines.pop_front()
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
