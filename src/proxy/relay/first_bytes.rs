//! What goes to the backend before anything else is read from the client.

/// Our own PROXY protocol header, and what the client sent while its own header was read, or before
/// a backend was picked.
#[derive(Debug)]
pub struct FirstBytes {
    bytes: Vec<u8>,
    at: usize,
    /// How many bytes at the front are our own header.
    header: usize,
}

impl FirstBytes {
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

    /// What is left of the header, and of the payload.
    pub(super) fn parts(&self) -> (&[u8], &[u8]) {
        self.remaining()
            .split_at(self.header.saturating_sub(self.at))
    }

    pub(super) fn has_header(&self) -> bool {
        self.header > 0
    }

    /// How many bytes are the client's.
    pub(super) fn payload(&self) -> usize {
        self.bytes.len() - self.header
    }

    pub(super) fn remaining(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    /// Notes that `n` bytes were sent, and returns how many of them are payload.
    pub(super) fn advance(&mut self, n: usize) -> usize {
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
            let mut first =
                FirstBytes::new(b"header".to_vec(), b"load".to_vec()).expect("something");
            let mut payload = 0;
            while !first.remaining().is_empty() {
                payload += first.advance(piece.min(first.remaining().len()));
                let (header, rest) = first.parts();
                assert_eq!([header, rest].concat(), first.remaining());
                assert_eq!(rest.len(), 4 - payload);
            }
            assert_eq!(payload, 4, "{piece} at a time");
        }
        assert!(FirstBytes::new(Vec::new(), Vec::new()).is_none());
    }

    #[test]
    fn a_header_is_no_payload() {
        let has_payload = |header: &[u8], payload: &[u8]| {
            let first = FirstBytes::new(header.to_vec(), payload.to_vec());
            first.expect("something").payload() > 0
        };
        assert!(has_payload(b"", b"?") && has_payload(b"header", b"?"));
        assert!(!has_payload(b"header", b""));
    }
}
