//! Keys, from the bytes that a terminal sends for them.

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::read as read_bytes,
};
use std::io;
use tokio::sync::mpsc;

/// How long the rest of a sequence that begins with ESC may take.
const REST: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Char(char),
    Enter,
    Escape,
    Tab,
    Backspace,
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
    /// Ctrl-C.
    Interrupt,
    /// Ctrl-Z.
    Suspend,
    /// Ctrl-L.
    Redraw,
}

/// Keys as they are pressed; the channel is closed when the terminal is gone.
pub(super) fn read() -> io::Result<mpsc::UnboundedReceiver<Key>> {
    let (send, receive) = super::channel();
    // It ends with the process: nothing interrupts a read.
    std::thread::Builder::new()
        .name("keys".to_owned())
        .spawn(move || {
            let mut bytes = Vec::new();
            while let Ok(true) = read_more(&mut bytes) {
                for key in take_keys(&mut bytes) {
                    if send.send(key).is_err() {
                        return;
                    }
                }
            }
        })?;
    Ok(receive)
}

/// Returns whether there is more to come. A sequence is read to its end, unless that takes too
/// long.
fn read_more(bytes: &mut Vec<u8>) -> io::Result<bool> {
    let mut buffer = [0; 256];
    loop {
        let length = match read_bytes(io::stdin(), &mut buffer) {
            Err(rustix::io::Errno::INTR) => continue,
            length => length?,
        };
        bytes.extend(&buffer[..length]);
        if length == 0 {
            return Ok(false);
        }
        let stdin = io::stdin();
        let mut input = [PollFd::new(&stdin, PollFlags::IN)];
        if !is_incomplete(bytes) || poll(&mut input, Some(&REST)) != Ok(1) {
            return Ok(true);
        }
    }
}

/// Whether a sequence at the end may go on.
fn is_incomplete(bytes: &[u8]) -> bool {
    let Some(start) = bytes.iter().rposition(|byte| *byte == 0x1b) else {
        // A character of several bytes.
        return std::str::from_utf8(bytes).is_err_and(|e| e.error_len().is_none());
    };
    match &bytes[start + 1..] {
        [] | [b'[' | b'O'] => true,
        [b'[', rest @ ..] => rest.iter().all(|byte| !(0x40..0x7f).contains(byte)),
        _ => false,
    }
}

/// All keys; unknown ones are left out.
fn take_keys(bytes: &mut Vec<u8>) -> Vec<Key> {
    let text = String::from_utf8_lossy(bytes).into_owned();
    bytes.clear();
    let mut keys = Vec::new();
    let mut rest = text.as_str();
    while let Some(first) = rest.chars().next() {
        rest = &rest[first.len_utf8()..];
        let key = match first {
            '\x1b' => match rest.chars().next() {
                Some('[' | 'O') => {
                    let end = rest[1..].find(|c: char| ('@'..='~').contains(&c));
                    let end = end.map_or(rest.len(), |end| end + 2);
                    let sequence = &rest[1..end];
                    rest = &rest[end..];
                    of_sequence(sequence)
                }
                _ => Some(Key::Escape),
            },
            '\r' | '\n' => Some(Key::Enter),
            '\t' => Some(Key::Tab),
            '\x7f' | '\x08' => Some(Key::Backspace),
            '\x03' => Some(Key::Interrupt),
            '\x1a' => Some(Key::Suspend),
            '\x0c' => Some(Key::Redraw),
            c if c.is_control() => None,
            c => Some(Key::Char(c)),
        };
        keys.extend(key);
    }
    keys
}

/// What follows `ESC [` or `ESC O`.
fn of_sequence(sequence: &str) -> Option<Key> {
    match sequence {
        "A" => Some(Key::Up),
        "B" => Some(Key::Down),
        "5~" => Some(Key::PageUp),
        "6~" => Some(Key::PageDown),
        "H" | "1~" | "7~" => Some(Key::Home),
        "F" | "4~" | "8~" => Some(Key::End),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_are_keys() {
        let keys = |bytes: &[u8]| take_keys(&mut bytes.to_vec());
        assert_eq!(keys(b"q"), [Key::Char('q')]);
        assert_eq!(keys("ü\r".as_bytes()), [Key::Char('ü'), Key::Enter]);
        assert_eq!(
            keys(b"\x1b[A\x1bOB\x1b[5~x"),
            [Key::Up, Key::Down, Key::PageUp, Key::Char('x')]
        );
        // Escape alone, and a sequence that means nothing here.
        assert_eq!(keys(b"\x1b"), [Key::Escape]);
        assert_eq!(keys(b"\x1b[1;5Dx"), [Key::Char('x')]);
        assert_eq!(keys(b"\x1b["), []);
        assert_eq!(
            keys(b"\x03\x1a\x0c\x01"),
            [Key::Interrupt, Key::Suspend, Key::Redraw]
        );
    }

    #[test]
    fn a_sequence_is_awaited() {
        for (bytes, is_more) in [
            (&b"a"[..], false),
            (b"\x1b", true),
            (b"\x1b[", true),
            (b"\x1b[5", true),
            (b"\x1b[5~", false),
            (b"\x1b[A", false),
            (b"\x1bx", false),
            (b"\xc3", true),
        ] {
            assert_eq!(is_incomplete(bytes), is_more, "{bytes:?}");
        }
    }
}
