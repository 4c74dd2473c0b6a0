//! How much of a reply of Redis has come: with each piece it goes on where it was, so that a long
//! reply in small pieces is not read again and again from its beginning. Pure.

use crate::probe::resp::Limits;

/// A longer line is for the reader to refuse.
const LINE: usize = 8192;

#[derive(Debug)]
pub(super) struct Progress {
    /// What is before this is complete.
    at: usize,
    /// Elements that are not complete, as far as is known.
    missing: usize,
}

impl Default for Progress {
    fn default() -> Self {
        Self { at: 0, missing: 1 }
    }
}

impl Progress {
    /// Whether `bytes`, which begin as those of the call before, are to be read: they are a whole
    /// reply, or none within the limits.
    pub(super) fn is_due(&mut self, bytes: &[u8], limits: &Limits) -> bool {
        while self.missing > 0 {
            let rest = bytes.get(self.at..).unwrap_or_default();
            let Some(end) = rest.iter().take(LINE).position(|byte| *byte == b'\n') else {
                return rest.len() > LINE;
            };
            let (line, head) = (rest[..end].trim_ascii_end(), end + 1);
            let number = || str::from_utf8(line.get(1..)?).ok()?.parse::<i64>().ok();
            let length = match (line.first(), number()) {
                (Some(b'+' | b'-' | b':'), _) => head,
                (Some(b'$'), Some(-1)) => head,
                (Some(b'$'), Some(n)) => match usize::try_from(n) {
                    Ok(n) if n <= limits.longest => head + n + 2,
                    _ => return true,
                },
                (Some(b'*'), Some(n)) => {
                    match usize::try_from(n.max(0)) {
                        Ok(n) if n <= limits.widest => self.missing += n,
                        _ => return true,
                    }
                    head
                }
                _ => return true,
            };
            if rest.len() < length {
                return false;
            }
            self.at += length;
            self.missing -= 1;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    const LIMITS: Limits = Limits {
        deepest: 4,
        widest: 9,
        longest: 20,
        has_null_lists: true,
    };

    fn whole() -> Vec<u8> {
        b"*4\r\n$6\r\nma\r\ner\r\n:3129659\r\n*1\r\n*2\r\n$9\r\n127.0.0.1\r\n$-1\r\n*0\r\n".to_vec()
    }

    #[test]
    fn a_reply_is_due_when_it_is_complete_and_garbage_at_once() {
        for whole in [whole(), b"+PONG\r\n".to_vec(), b"*-1\r\n".to_vec()] {
            let mut progress = Progress::default();
            for n in 0..whole.len() {
                assert!(!progress.is_due(&whole[..n], &LIMITS), "{n}");
            }
            assert!(progress.is_due(&whole, &LIMITS));
        }
        for garbage in [
            &b"HTTP/1.1 400\r\n"[..],
            b"*x\r\n",
            b"$-7\r\n",
            b"$21\r\n",
            b"*10\r\n",
            &[b'+'; LINE + 1],
        ] {
            assert!(Progress::default().is_due(garbage, &LIMITS));
        }
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(cuts in vec(0..80_usize, 0..6), bytes: Vec<u8>) {
            let whole = whole();
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|cut| *cut < whole.len()).collect();
            cuts.sort_unstable();
            let mut progress = Progress::default();
            for cut in cuts {
                prop_assert!(!progress.is_due(&whole[..cut], &LIMITS));
            }
            prop_assert!(progress.is_due(&whole, &LIMITS));
            let _ = Progress::default().is_due(&bytes, &LIMITS);
        }
    }
}
