//! `dns`: a question in one datagram, and the result of a reply to it. Pure; only the header and
//! the question of a reply are read.

use super::dialogue::Answer;
use crate::plan::{Rcode, RecordType, reason::CheckResult};

const HEADER: usize = 12;
/// Byte 2: this is a reply; the operation, which is 0 for a query; the question is to be answered
/// recursively.
const REPLY: u8 = 0x80;
const OPERATION: u8 = 0x78;
const RECURSION: u8 = 0x01;
/// Internet.
const CLASS: [u8; 2] = [0, 1];

pub(super) struct DnsCheck {
    /// Name, type and class.
    question: Vec<u8>,
    accepted: Vec<Rcode>,
    /// The question as it is shown.
    pub(super) shown: String,
}

impl DnsCheck {
    /// `name` is one that can be written: the configuration has looked.
    pub(super) fn new(name: &str, kind: RecordType, accepted: &[Rcode]) -> Self {
        let mut question = Vec::new();
        for label in name.split('.').filter(|label| !label.is_empty()) {
            question.push(u8::try_from(label.len()).unwrap_or(0));
            question.extend_from_slice(label.as_bytes());
        }
        question.push(0);
        question.extend_from_slice(&kind.number().to_be_bytes());
        question.extend_from_slice(&CLASS);
        Self {
            question,
            accepted: accepted.to_vec(),
            shown: format!("asked {name} {}", kind.word()),
        }
    }

    pub(super) fn ask(&self, id: u16) -> Vec<u8> {
        let mut datagram = id.to_be_bytes().to_vec();
        datagram.extend_from_slice(&[RECURSION, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        datagram.extend_from_slice(&self.question);
        datagram
    }

    /// Why it is no reply to this question is the error: then the reply may still come.
    pub(super) fn receive(&self, id: u16, bytes: &[u8]) -> Result<Answer, &'static str> {
        let header = bytes.first_chunk::<HEADER>().ok_or("too short")?;
        if header[..2] != id.to_be_bytes() {
            return Err("another id");
        }
        if header[2] & (REPLY | OPERATION) != REPLY {
            return Err("no reply to a query");
        }
        let code = header[3] & 0x0f;
        let is_repeated = match header[4..6] {
            // A name in its first question could point nowhere but to itself: it is written out.
            [0, 1] => bytes[HEADER..]
                .get(..self.question.len())
                .is_some_and(|question| question.eq_ignore_ascii_case(&self.question)),
            // A server that cannot or will not read it need not repeat it.
            [0, 0] => code != Rcode::NoError.number(),
            _ => false,
        };
        if !is_repeated {
            return Err("another question");
        }
        let name = Rcode::describe(code.into());
        let result = match Rcode::of(code).is_some_and(|rcode| self.accepted.contains(&rcode)) {
            true => CheckResult::Ok,
            false => CheckResult::Unexpected,
        };
        let count = u16::from_be_bytes([header[6], header[7]]);
        Ok(Answer::new(result, format!("{name}, answers: {count}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn settings() -> DnsCheck {
        DnsCheck::new(
            "www.Example.com.",
            RecordType::Aaaa,
            &[Rcode::NoError, Rcode::NxDomain],
        )
    }

    const QUESTION: &[u8] = b"\x03www\x07Example\x03com\0\0\x1c\0\x01";

    fn reply(flags: [u8; 2], counts: [u8; 4], rest: &[u8]) -> Vec<u8> {
        [b"\x12\x34", &flags[..], &counts[..], &[0; 4], rest].concat()
    }

    #[test]
    fn what_is_asked() {
        let asked = settings().ask(0x1234);
        assert_eq!(
            asked,
            [b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0", QUESTION].concat()
        );
        // Of the root; RFC 1035, 4.1.
        let root = DnsCheck::new(".", RecordType::Ns, &[]).ask(1);
        assert_eq!(root, b"\0\x01\x01\0\0\x01\0\0\0\0\0\0\0\0\x02\0\x01");
    }

    #[test]
    fn replies() {
        let lower = QUESTION.to_ascii_lowercase();
        let answer = b"\xc0\x0c\0\x1c\0\x01\0\0\0\x3c\0\x10aaaaaaaaaaaaaaaa";
        for (reply, result, transcript) in [
            (
                reply([0x85, 0x80], [0, 1, 0, 1], &[QUESTION, answer].concat()),
                CheckResult::Ok,
                "NOERROR, answers: 1",
            ),
            // In another case, and cut off: an answer all the same.
            (
                reply([0x87, 0x80], [0, 1, 0, 0], &lower),
                CheckResult::Ok,
                "NOERROR, answers: 0",
            ),
            (
                reply([0x81, 0x83], [0, 1, 0, 0], QUESTION),
                CheckResult::Ok,
                "NXDOMAIN, answers: 0",
            ),
            (
                reply([0x81, 0x82], [0, 1, 0, 0], QUESTION),
                CheckResult::Unexpected,
                "SERVFAIL, answers: 0",
            ),
            (
                reply([0x81, 0x85], [0, 0, 0, 0], b""),
                CheckResult::Unexpected,
                "REFUSED, answers: 0",
            ),
            (
                reply([0x81, 0x89], [0, 1, 0, 0], QUESTION),
                CheckResult::Unexpected,
                "code 9, answers: 0",
            ),
        ] {
            let answer = settings().receive(0x1234, &reply).expect("a reply");
            assert_eq!(
                (answer.result, &answer.transcript[..]),
                (result, transcript)
            );
            assert_eq!(settings().receive(0x1235, &reply), Err("another id"));
        }
    }

    #[test]
    fn what_is_no_reply() {
        let other = b"\x03www\x07Example\x03net\0\0\x1c\0\x01";
        let kind = b"\x03www\x07Example\x03com\0\0\x01\0\x01";
        for (bytes, why) in [
            (b"x".to_vec(), "too short"),
            (settings().ask(0x1234), "no reply to a query"),
            (
                reply([0xa8, 0], [0, 1, 0, 0], QUESTION),
                "no reply to a query",
            ),
            (reply([0x80, 0], [0, 1, 0, 0], other), "another question"),
            (reply([0x80, 0], [0, 1, 0, 0], kind), "another question"),
            (
                reply([0x80, 0], [0, 1, 0, 0], &QUESTION[..9]),
                "another question",
            ),
            (
                reply([0x80, 0], [0, 1, 0, 0], b"\xc0\x0c\0\x1c\0\x01"),
                "another question",
            ),
            (reply([0x80, 0], [0, 2, 0, 0], QUESTION), "another question"),
            (reply([0x80, 0], [0, 0, 0, 0], b""), "another question"),
        ] {
            assert_eq!(settings().receive(0x1234, &bytes), Err(why), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, id: u16) {
            let _ = settings().receive(id, &bytes);
            let reply = [&id.to_be_bytes()[..], &[0x80, 0, 0, 1], &bytes].concat();
            let _ = settings().receive(id, &reply);
        }

        #[test]
        fn what_is_asked_is_known_again(id: u16, name in "([a-z]{1,9}\\.){0,3}") {
            let settings = DnsCheck::new(&name, RecordType::A, &[Rcode::NoError]);
            let mut reply = settings.ask(id);
            reply[2] |= 0x80;
            prop_assert!(settings.receive(id, &reply).is_ok());
        }
    }
}
