//! The answers of Redis, as far as checks read them. Pure.

/// One answer. What stands in it is borrowed from the bytes that came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reply<'a> {
    Status(&'a [u8]),
    Error(&'a [u8]),
    Number(i64),
    /// `None`: null, also of a list where [`Limits`] allow one.
    Text(Option<&'a [u8]>),
    List(Vec<Reply<'a>>),
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// More is needed.
    Incomplete,
    /// This is no answer of Redis.
    Wrong,
    /// It may be one, but more than is read.
    TooLong,
}

/// A primary lists each of its replicas, twice; and some have hundreds.
pub(super) const MAX_BYTES: usize = 256 << 10;
/// No answer to a check is deeper, wider or longer.
const DEEPEST: usize = 4;
const WIDEST: usize = 8192;
const LONGEST: usize = MAX_BYTES;

/// Of one answer: how deep lists may be in each other, how many elements one may have, and how many
/// bytes a text.
pub(crate) struct Limits {
    pub(crate) deepest: usize,
    pub(crate) widest: usize,
    pub(crate) longest: usize,
    /// Whether a list may be null.
    pub(crate) has_null_lists: bool,
}

const OF_CHECKS: Limits = Limits {
    deepest: DEEPEST,
    widest: WIDEST,
    longest: LONGEST,
    has_null_lists: false,
};

/// The same for a line.
const LINE: usize = 8192;

/// The answer that `bytes` begins with, and what follows it.
pub(super) fn read(bytes: &[u8]) -> Result<(Reply<'_>, &[u8]), Stop> {
    read_within(bytes, &OF_CHECKS)
}

/// The same with other limits.
pub(crate) fn read_within<'a>(
    bytes: &'a [u8],
    limits: &Limits,
) -> Result<(Reply<'a>, &'a [u8]), Stop> {
    read_at(bytes, limits, limits.deepest)
}

/// Appends a command of these parts.
pub(crate) fn write_command(out: &mut Vec<u8>, parts: &[&[u8]]) {
    out.extend_from_slice(format!("*{}\r\n", parts.len()).as_bytes());
    for part in parts {
        out.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
        out.extend_from_slice(part);
        out.extend_from_slice(b"\r\n");
    }
}

fn read_at<'a>(
    bytes: &'a [u8],
    limits: &Limits,
    deeper: usize,
) -> Result<(Reply<'a>, &'a [u8]), Stop> {
    let (&kind, rest) = bytes.split_first().ok_or(Stop::Incomplete)?;
    if !b"+-:$*".contains(&kind) {
        return Err(Stop::Wrong);
    }
    let (line, rest) = line(rest)?;
    match kind {
        b'+' => Ok((Reply::Status(line), rest)),
        b'-' => Ok((Reply::Error(line), rest)),
        b':' => number(line).map(|number| (Reply::Number(number), rest)),
        b'$' => match length(line, limits.longest)? {
            None => Ok((Reply::Text(None), rest)),
            Some(n) => {
                let text = rest.get(..n).ok_or(Stop::Incomplete)?;
                match &rest[n..] {
                    [b'\r', b'\n', rest @ ..] => Ok((Reply::Text(Some(text)), rest)),
                    [] | [b'\r'] => Err(Stop::Incomplete),
                    _ => Err(Stop::Wrong),
                }
            }
        },
        _ => {
            let n = match length(line, limits.widest)? {
                Some(n) => n,
                None if limits.has_null_lists => return Ok((Reply::Text(None), rest)),
                None => return Err(Stop::Wrong),
            };
            if deeper == 0 {
                return Err(Stop::Wrong);
            }
            let mut items = Vec::new();
            let mut rest = rest;
            for _ in 0..n {
                let (item, after) = read_at(rest, limits, deeper - 1)?;
                items.push(item);
                rest = after;
            }
            Ok((Reply::List(items), rest))
        }
    }
}

fn line(bytes: &[u8]) -> Result<(&[u8], &[u8]), Stop> {
    let end = bytes.iter().position(|b| matches!(b, b'\r' | b'\n'));
    match end {
        None if bytes.len() > LINE => Err(Stop::TooLong),
        None => Err(Stop::Incomplete),
        Some(end) => match &bytes[end..] {
            [b'\r', b'\n', rest @ ..] => Ok((&bytes[..end], rest)),
            [b'\r'] => Err(Stop::Incomplete),
            _ => Err(Stop::Wrong),
        },
    }
}

fn number(line: &[u8]) -> Result<i64, Stop> {
    let text = std::str::from_utf8(line).map_err(|_| Stop::Wrong)?;
    text.parse().map_err(|_| Stop::Wrong)
}

/// `None`: null.
fn length(line: &[u8], most: usize) -> Result<Option<usize>, Stop> {
    match number(line)? {
        -1 => Ok(None),
        n => match usize::try_from(n) {
            Ok(n) if n <= most => Ok(Some(n)),
            Ok(_) => Err(Stop::TooLong),
            Err(_) => Err(Stop::Wrong),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn answers_a_byte_at_a_time() {
        for whole in [
            &b"+PONG\r\n"[..],
            b"-LOADING Redis is loading the dataset in memory\r\n",
            b":-42\r\n",
            b"$6\r\nma\r\ner\r\n",
            b"$-1\r\n",
            b"*3\r\n$6\r\nmaster\r\n:3129659\r\n*1\r\n*2\r\n$9\r\n127.0.0.1\r\n$4\r\n9001\r\n",
        ] {
            for n in 0..whole.len() {
                assert_eq!(read(&whole[..n]), Err(Stop::Incomplete), "{n} of {whole:?}");
            }
            let more = [whole, b"+OK\r\n"].concat();
            let (_, rest) = read(&more).expect("complete");
            assert_eq!(rest, b"+OK\r\n");
        }
    }

    #[test]
    fn what_is_none() {
        let deep = b"*1\r\n".repeat(100);
        for bytes in [
            &b"HTTP/1.1 400 Bad Request\r\n"[..],
            b"+PONG\n",
            b":4x\r\n",
            b"$3\r\nabcd\r\n",
            b"$99999999999999999999\r\n",
            b"$-2\r\n",
            b"*-1\r\n",
            b"+a\rb\r\n",
            &deep,
        ] {
            assert_eq!(read(bytes), Err(Stop::Wrong), "{}", bytes.escape_ascii());
        }
        let endless = [&b"+"[..], &[b'a'; LINE + 1]].concat();
        for bytes in [&endless[..], b"$262145\r\n", b"*8193\r\n"] {
            assert_eq!(read(bytes), Err(Stop::TooLong));
        }
        assert_eq!(read(b"$262144\r\n"), Err(Stop::Incomplete));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, text in "[-+:$*0-9\r\na]{0,40}") {
            let _ = read(&bytes);
            let _ = read(text.as_bytes());
        }
    }
}
