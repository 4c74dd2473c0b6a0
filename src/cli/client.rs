//! Talks to a running process over its admin socket.

use super::ConfigFile;
use crate::config;
use clap::Args;
use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};
use std::{
    io::{self, Read as _, Write as _},
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

/// For each step of a call: whoever works answers at once.
const PATIENCE: Duration = Duration::from_secs(5);
/// No answer of ours is as long.
const MOST_BYTES: u64 = 256 << 20;

/// Where the process is to be found.
#[derive(Debug, Args)]
pub(super) struct At {
    #[command(flatten)]
    pub(super) file: ConfigFile,
    /// Its admin socket; without this the one that the configuration file names
    #[arg(long, value_name = "PATH")]
    pub(super) socket: Option<PathBuf>,
}

#[derive(Debug)]
pub(super) struct Client(PathBuf);

impl Client {
    /// Errors are whole messages.
    pub(super) fn find(at: &At) -> Result<Self, String> {
        if let Some(path) = &at.socket {
            return Ok(Self(path.clone()));
        }
        let file = &at.file.config;
        let plan = config::load(file).map_err(|problems| {
            format!("{problems}  hint: --socket PATH finds the process without its file\n")
        })?;
        match plan.admin.and_then(|admin| admin.socket) {
            Some(path) => Ok(Self(path)),
            None => Err(format!(
                "error: {} names no admin socket\n  hint: write socket = \"/run/tembuku/admin.sock\" below [admin] and \
                 restart, or name the socket of the process with --socket PATH\n",
                file.display()
            )),
        }
    }

    /// The JSON at a path.
    pub(super) fn get(&self, path: &str) -> Result<Value, String> {
        parsed(&self.get_text(path)?)
    }

    pub(super) fn get_text(&self, path: &str) -> Result<String, String> {
        match self.call("GET", path, "")? {
            (200, body) => Ok(body),
            (code, _) => Err(format!(
                "error: whoever listens on {} answers {path} with {code}: is that tembuku?\n",
                self.0.display()
            )),
        }
    }

    /// What was done; a refusal is an error.
    pub(super) fn post(&self, path: &str, body: &Value) -> Result<Value, String> {
        let (code, answer) = self.call("POST", path, &body.to_string())?;
        let answer = parsed(&answer).map_err(|e| format!("{e}  (its answer is a {code})\n"))?;
        if code == 200 {
            return Ok(answer);
        }
        let say = |key: &str| {
            answer[key]
                .as_str()
                .unwrap_or("?")
                .replace(char::is_control, "\u{fffd}")
        };
        Err(format!(
            "error: {}\n  hint: {}\n",
            say("error"),
            say("hint")
        ))
    }

    fn call(&self, method: &str, path: &str, body: &str) -> Result<(u16, String), String> {
        let answer = exchange(&self.0, method, path, body).map_err(|e| self.describe(&e))?;
        split(&answer).ok_or_else(|| {
            format!(
                "error: what listens on {} does not speak HTTP: is that tembuku's admin socket?\n",
                self.0.display()
            )
        })
    }

    fn is_socket(&self) -> bool {
        let meta = std::fs::metadata(&self.0);
        meta.is_ok_and(|meta| meta.file_type().is_socket())
    }

    fn describe(&self, e: &io::Error) -> String {
        let (what, hint) = match e.kind() {
            io::ErrorKind::NotFound => (
                "there is no such socket".to_owned(),
                "is it running, and did it start with this configuration?",
            ),
            // The kernel says the same of a plain file.
            io::ErrorKind::ConnectionRefused if !self.is_socket() => (
                "that is no socket".to_owned(),
                "name the admin socket, `socket` in [admin]",
            ),
            io::ErrorKind::ConnectionRefused => (
                "nobody listens there".to_owned(),
                "the process that made it has ended: is another one running?",
            ),
            io::ErrorKind::PermissionDenied => (
                "permission denied".to_owned(),
                "the socket is for the user that runs tembuku alone: be that user, or root",
            ),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => (
                format!("no answer within {} s", PATIENCE.as_secs()),
                "the process may be stopped or hang",
            ),
            _ => (e.to_string(), "name another one with --socket PATH"),
        };
        format!(
            "error: cannot reach tembuku at {}: {what}\n  hint: {hint}\n",
            self.0.display()
        )
    }
}

/// As one piece of a path.
pub(super) fn encode(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    name.bytes()
        .map(|b| match plain(b) {
            true => char::from(b).to_string(),
            false => format!("%{b:02X}"),
        })
        .collect()
}

fn parsed(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|e| format!("error: the answer is no JSON: {e}\n"))
}

fn exchange(socket: &Path, method: &str, path: &str, body: &str) -> io::Result<Vec<u8>> {
    let mut stream = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // That of a connect as well: the queue may be full.
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.connect(&SockAddr::unix(socket)?)?;
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: tembuku\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(MOST_BYTES).read_to_end(&mut answer)?;
    Ok(answer)
}

/// The code and the body. With `Connection: close` the body ends where the stream does.
fn split(answer: &[u8]) -> Option<(u16, String)> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let code = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let body = String::from_utf8(answer[end + 4..].to_vec()).ok()?;
    Some((code, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_taken_apart() {
        let answer = b"HTTP/1.1 404 Not Found\r\na: b\r\n\r\n{}\n";
        assert_eq!(split(answer), Some((404, "{}\n".to_owned())));
        for other in [
            "",
            "HTTP/1.1 200 OK\r\n",
            "SSH-2.0\r\n\r\n",
            "HTTP/1.1 x\r\n\r\n",
        ] {
            assert_eq!(split(other.as_bytes()), None, "{other}");
        }
        assert_eq!(encode("unix:/a b"), "unix%3A%2Fa%20b");
    }
}
