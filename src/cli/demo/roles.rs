//! Two servers of which one is the primary. They speak as much of the protocol of Redis as its
//! check asks for, and any of them can be promoted.

use super::super::print;
use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::Builder,
    time::Duration,
};

/// A client may be silent for so long.
const PATIENCE: Duration = Duration::from_secs(600);
/// No line and no list of a client is longer.
const MOST: usize = 64;

/// Which of them is the primary, as an index.
type Primary = Arc<AtomicUsize>;

/// The first is the primary.
pub(super) fn start(servers: Vec<(&'static str, TcpListener)>) -> io::Result<()> {
    let primary = Primary::default();
    for (n, (name, listener)) in servers.into_iter().enumerate() {
        let primary = Arc::clone(&primary);
        let thread = Builder::new().name(name.to_owned());
        thread.spawn(move || {
            for stream in listener.incoming().flatten() {
                let primary = Arc::clone(&primary);
                let thread = Builder::new().name(format!("{name} client"));
                // A client that cannot be served is disconnected.
                let _ = thread.spawn(move || serve(name, n, stream, &primary));
            }
        })?;
    }
    Ok(())
}

fn serve(name: &str, n: usize, stream: TcpStream, primary: &AtomicUsize) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut input = BufReader::new(stream.try_clone()?);
    let mut output = stream;
    while let Some(command) = read_command(&mut input)? {
        let is_primary = primary.load(Ordering::Relaxed) == n;
        let answer = match command.to_ascii_lowercase().as_str() {
            "ping" => "+PONG\r\n".to_owned(),
            "role" if is_primary => "*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n".to_owned(),
            "role" => {
                "*5\r\n$5\r\nslave\r\n$9\r\n127.0.0.1\r\n:0\r\n$9\r\nconnected\r\n:0\r\n".to_owned()
            }
            "info" => "-ERR this is a demo\r\n".to_owned(),
            "quit" => return output.write_all(b"+OK\r\n"),
            "promote" => {
                primary.store(n, Ordering::Relaxed);
                let _ = print(&format!("{name}: promoted, the primary from now on\n"));
                format!("{name}, primary\n")
            }
            _ if is_primary => format!("{name}, primary\n"),
            _ => format!("{name}, replica\n"),
        };
        output.write_all(answer.as_bytes())?;
    }
    Ok(())
}

/// The first word of a line, or of a list as the protocol has it; `None` at the end.
fn read_command(input: &mut impl io::BufRead) -> io::Result<Option<String>> {
    let Some(line) = read_line(input)? else {
        return Ok(None);
    };
    let count: usize = match line.strip_prefix('*').map(str::parse) {
        None => return Ok(Some(line)),
        Some(Ok(count)) if count <= MOST => count,
        Some(_) => return Ok(None),
    };
    let mut words = Vec::new();
    for _ in 0..count {
        // Its length, and then the word.
        for _ in 0..2 {
            words.extend(read_line(input)?);
        }
    }
    Ok(words.into_iter().nth(1))
}

fn read_line(input: &mut impl io::BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    let read = io::Read::take(input, MOST as u64).read_until(b'\n', &mut line)?;
    let line = String::from_utf8_lossy(&line).trim().to_owned();
    Ok((read > 0).then_some(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_lines_or_lists() {
        let mut input: &[u8] =
            b"who\n*1\r\n$4\r\nPING\r\n*2\r\n$4\r\nINFO\r\n$6\r\nserver\r\nQUIT\r\n*x\r\n";
        let mut next = || read_command(&mut input).expect("no error");
        for expected in [Some("who"), Some("PING"), Some("INFO"), Some("QUIT"), None] {
            assert_eq!(next().as_deref(), expected);
        }
    }
}
