//! What goes to the backend before anything else is read from the client.

/// Our own header, and what the client said while a header of its own was read, or before a backend
/// was looked for.
#[derive(Debug)]
pub struct First {
    bytes: Vec<u8>,
    at: usize,
    /// So many at the front are our own header, and nobody's payload.
    header: usize,
}

impl First {
    /// `None` when there is nothing to send.
    pub fn new(header: Vec<u8>, payload: Vec<u8>) -> Option<Box<Self>> {
        let length = header.len();
        let bytes = match header.is_empty() {
            true => payload,
            false => [header, payload].concat(),
        };
        if bytes.is_empty() {
            return None;
        }
        Some(Box::new(Self {
            bytes,
            at: 0,
            header: length,
        }))
    }

    pub(super) fn has_header(&self) -> bool {
        self.header > 0
    }

    pub(super) fn has_payload(&self) -> bool {
        self.bytes.len() > self.header
    }

    pub(super) fn left(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    /// How much of what was sent now is payload.
    pub(super) fn sent(&mut self, n: usize) -> usize {
        let before = self.at.max(self.header);
        self.at += n;
        self.at.max(self.header) - before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_payload_counts() {
        for piece in 1..12 {
            let mut first = First::new(b"header".to_vec(), b"load".to_vec()).expect("something");
            let mut payload = 0;
            while !first.left().is_empty() {
                payload += first.sent(piece.min(first.left().len()));
            }
            assert_eq!(payload, 4, "{piece} at a time");
        }
        assert!(First::new(Vec::new(), Vec::new()).is_none());
    }

    #[test]
    fn a_header_is_nothing_that_the_client_has_said() {
        let has_payload = |header: &[u8], payload: &[u8]| {
            let first = First::new(header.to_vec(), payload.to_vec());
            first.expect("something").has_payload()
        };
        assert!(has_payload(b"", b"?") && has_payload(b"header", b"?"));
        assert!(!has_payload(b"header", b""));
    }
}
