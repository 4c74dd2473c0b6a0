//! `send_expect`: bytes are sent, and others must come back. Pure.

use super::{dialogue::Answer, transcript::quote};
use crate::plan::{Expect, reason::CheckResult};
use regex::bytes::Regex;

pub(super) struct ExpectCheck {
    send: Vec<u8>,
    wanted: Wanted,
}

enum Wanted {
    Bytes(Vec<u8>),
    Regex(Regex),
    /// An expression that does not compile, in a plan that was not validated.
    Nothing,
}

impl ExpectCheck {
    pub(super) fn new(send: &[u8], expect: &Expect) -> Self {
        Self {
            send: send.to_vec(),
            wanted: match expect {
                Expect::Bytes(bytes) => Wanted::Bytes(bytes.clone()),
                Expect::Regex(text) => Regex::new(text).map_or(Wanted::Nothing, Wanted::Regex),
            },
        }
    }

    fn describe_wanted(&self) -> String {
        match &self.wanted {
            Wanted::Bytes(wanted) => quote(wanted),
            Wanted::Regex(regex) => format!("a match of {}", quote(regex.as_str().as_bytes())),
            Wanted::Nothing => "what is expected".to_owned(),
        }
    }

    pub(super) fn request(&self) -> &[u8] {
        &self.send
    }

    pub(super) fn receive(&self, bytes: &[u8], ended: bool) -> Option<Answer> {
        if bytes.is_empty() {
            return None;
        }
        let found = match &self.wanted {
            Wanted::Bytes(wanted) => {
                let width = wanted.len().max(1);
                bytes.windows(width).any(|part| part == wanted)
            }
            Wanted::Regex(regex) => regex.is_match(bytes),
            Wanted::Nothing => false,
        };
        let full = bytes.len() >= super::dialogue::MAX_BYTES;
        let result = match found {
            true => CheckResult::Ok,
            false if ended || full => CheckResult::Unexpected,
            false => return None,
        };
        let text = match result {
            CheckResult::Ok => format!("got {}", quote(bytes)),
            _ => format!("got {} without {}", quote(bytes), self.describe_wanted()),
        };
        Some(Answer::new(result, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn result(expect: &Expect, bytes: &[u8], ended: bool) -> Option<CheckResult> {
        ExpectCheck::new(b"", expect)
            .receive(bytes, ended)
            .map(|a| a.result)
    }

    #[test]
    fn found_wherever_it_stands_and_as_soon_as_it_is_there() {
        let answer = b"220 mail ESMTP\r\n";
        let bytes = Expect::Bytes(b"ESMTP".to_vec());
        let regex = Expect::Regex("^220 \\S+ ESMTP".into());
        for expect in [bytes, regex] {
            for n in 0..=answer.len() {
                let wanted = (n >= 14).then_some(CheckResult::Ok);
                assert_eq!(
                    result(&expect, &answer[..n], false),
                    wanted,
                    "{expect:?} {n}"
                );
            }
            assert_eq!(
                result(&expect, b"554 no", true),
                Some(CheckResult::Unexpected)
            );
            assert_eq!(
                result(&expect, b"", true),
                None,
                "that is a close without an answer"
            );
            let much = vec![b'x'; super::super::dialogue::MAX_BYTES];
            assert_eq!(result(&expect, &much, false), Some(CheckResult::Unexpected));
        }
    }

    #[test]
    fn bytes_that_are_no_text_match() {
        let zero = Expect::Bytes(vec![0, 255]);
        assert_eq!(result(&zero, &[7, 0, 255], false), Some(CheckResult::Ok));
        let regex = Expect::Regex("(?-u)\\x00\\xff".into());
        assert_eq!(result(&regex, &[7, 0, 255], false), Some(CheckResult::Ok));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, ended: bool) {
            let _ = result(&Expect::Regex("a+b$".into()), &bytes, ended);
        }
    }
}
