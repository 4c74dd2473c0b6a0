//! Talks to a running process over its admin socket.

use super::{ConfigFile, complain};
use crate::{
    cli::response::{
        self, CommandError, Events, History, ReloadProblems, ReloadReport, Status, clean,
        clean_lines,
    },
    config::{self, Problems},
    control::reload::Mode,
    plan::counted,
};
use clap::Args;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use socket2::{Domain, SockAddr, Socket, Type};
use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

/// For each step of a call: a process that works answers at once.
const PATIENCE: Duration = Duration::from_secs(5);
/// A reload may wait for others, for name servers and for files.
const RELOAD_PATIENCE: Duration = Duration::from_secs(120);
/// A longer answer is not one of tembuku.
const MOST_BYTES: u64 = 256 << 20;

/// The longest line of an answer that is read line by line.
const MOST_OF_LINE: u64 = 1 << 20;

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
pub(super) struct AdminClient(PathBuf);

pub(super) struct Readiness {
    pub(super) is_ready: bool,
    /// "ok", or a reason on each line.
    pub(super) text: String,
}

/// What a reload changed, also as it was sent.
pub(super) struct Reload {
    pub(super) report: ReloadReport,
    pub(super) sent: String,
}

impl AdminClient {
    /// Errors are whole messages.
    pub(super) fn find(at: &At) -> Result<Self, String> {
        let (client, warning) = Self::locate(at)?;
        complain(&warning);
        Ok(client)
    }

    /// For a command by which the process reads its file: what is wrong with the file is in the
    /// error then, and no warning comes before it.
    pub(super) fn find_to_read<T>(
        at: &At,
        command: impl FnOnce(&Self) -> Result<T, String>,
    ) -> Result<T, String> {
        let (client, warning) = Self::locate(at)?;
        let result = command(&client);
        let file = at.file.config.display().to_string();
        if result.as_ref().err().is_none_or(|why| !why.contains(&file)) {
            complain(&warning);
        }
        result
    }

    /// With a warning, or an empty text.
    fn locate(at: &At) -> Result<(Self, String), String> {
        if let Some(path) = &at.socket {
            return Ok((Self(path.clone()), String::new()));
        }
        let file = &at.file.config;
        let plan = match config::load(file) {
            Ok(plan) => plan,
            Err(problems) => return Self::find_by_invalid(file, &problems),
        };
        match plan.admin.and_then(|admin| admin.socket) {
            Some(path) => Ok((Self(path), String::new())),
            None => Err(format!(
                "error: {} names no admin socket\
                 \n  hint: write socket = \"/run/tembuku/admin.sock\" below [admin] and restart, \
                 or name the socket of the process with --socket PATH\n",
                file.display()
            )),
        }
    }

    /// What is wrong with its file is no reason to leave a process that serves without a command:
    /// it was started before, and answers for its file itself in a reload.
    fn find_by_invalid(file: &Path, problems: &Problems) -> Result<(Self, String), String> {
        let Some(socket) = config::admin_socket_of_invalid(file) else {
            return Err(format!(
                "{problems}error: so the admin socket of the running process is not known\n  hint: \
                 name the socket itself: --socket PATH, as in --socket /run/tembuku/admin.sock\n"
            ));
        };
        let (name, count) = (file.display(), counted(problems.len(), "problem"));
        let warning = format!(
            "warning: {name} has {count}, see `tembuku check -c {name}`; the running process is \
             reached by the socket that it names, {}\n",
            socket.display()
        );
        Ok((Self(socket), warning))
    }

    /// The state of everything, also as it was sent.
    pub(super) fn status(&self) -> Result<(Status, String), String> {
        let path = "/api/v1/status";
        match self.call("GET", path, "", PATIENCE)? {
            (200, body) => match response::read(&body) {
                Ok(status) => Ok((status, body)),
                Err(why) => Err(self.strange(path, &why)),
            },
            (code, _) => Err(self.strange(path, &format!("the code is {code}"))),
        }
    }

    /// The version of the process, if it tells one.
    fn version(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Status {
            process: Process,
        }
        #[derive(Deserialize)]
        struct Process {
            version: String,
        }
        let (_, body) = self.call("GET", "/api/v1/status", "", PATIENCE).ok()?;
        let Status { process } = response::read(&body).ok()?;
        Some(process.version)
    }

    /// What the journal has after this cursor, waiting so long for the first event.
    pub(super) fn events(&self, after: Option<&str>, wait: Duration) -> Result<Events, String> {
        let path = match after {
            None => "/api/v1/events".to_owned(),
            Some(after) => {
                let (after, wait) = (encode(after), wait.as_millis());
                format!("/api/v1/events?after={after}&wait={wait}ms")
            }
        };
        let (code, answer) = self.call("GET", &path, "", PATIENCE + wait)?;
        if code == 200 {
            return response::read(&answer).map_err(|why| self.strange(&path, &why));
        }
        Err(self.refusal(&path, code, &answer))
    }

    /// The last ten minutes.
    pub(super) fn history(&self) -> Result<History, String> {
        let path = "/api/v1/history";
        match self.call("GET", path, "", PATIENCE)? {
            (200, body) => response::read(&body).map_err(|why| self.strange(path, &why)),
            (code, answer) => Err(self.refusal(path, code, &answer)),
        }
    }

    /// Whether the node should get clients.
    pub(super) fn node_readiness(&self) -> Result<Readiness, String> {
        let path = "/readyz/node";
        match self.call("GET", path, "", PATIENCE)? {
            (code @ (200 | 503), text) => Ok(Readiness {
                is_ready: code == 200,
                text,
            }),
            (code, answer) => Err(self.refusal(path, code, &answer)),
        }
    }

    /// What was done; a refusal is an error.
    pub(super) fn post<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T, String> {
        let (code, answer) = self.call("POST", path, &body.to_string(), PATIENCE)?;
        if code == 200 {
            return response::read(&answer).map_err(|why| self.strange(path, &why));
        }
        Err(self.refusal(path, code, &answer))
    }

    /// Returns when the reload has ended.
    pub(super) fn reload(&self, mode: Mode) -> Result<Reload, String> {
        let path = "/api/v1/reload";
        let body = json!({ "dry_run": mode == Mode::DryRun }).to_string();
        match self.call("POST", path, &body, RELOAD_PATIENCE)? {
            (200, sent) => match response::read(&sent) {
                Ok(report) => Ok(Reload { report, sent }),
                Err(why) => Err(self.strange(path, &why)),
            },
            (422, answer) => match response::read(&answer) {
                Ok(ReloadProblems { text }) => Err(clean_lines(&text)
                    + "nothing was changed: the running configuration stays in effect\n"),
                Err(why) => Err(self.strange(path, &why)),
            },
            (code, answer) => Err(self.refusal(path, code, &answer)),
        }
    }

    /// The lines of an answer, whose end is that of the connection: each has [`PATIENCE`].
    pub(super) fn lines(&self, method: &str, path: &str, body: &str) -> Result<Lines<'_>, String> {
        self.lines_within(method, path, body, PATIENCE)
    }

    /// As [`Self::lines`], with another limit for each line.
    pub(super) fn lines_within(
        &self,
        method: &str,
        path: &str,
        body: &str,
        patience: Duration,
    ) -> Result<Lines<'_>, String> {
        // The older version, in which the body has no parts of its own.
        let sent = request(&self.0, ["HTTP/1.0", method, path, body], patience);
        let mut lines = Lines {
            client: self,
            path: path.to_owned(),
            patience,
            answer: BufReader::new(sent.map_err(|e| self.describe(&e, patience))?),
        };
        let code = lines.read_head()?;
        if code == 200 {
            return Ok(lines);
        }
        let mut rest = String::new();
        while let Some(line) = lines.next()? {
            rest += &line;
            rest.push('\n');
        }
        Err(self.refusal(path, code, &rest))
    }

    fn refusal(&self, path: &str, code: u16, answer: &str) -> String {
        match response::read(answer) {
            Ok(CommandError { error, hint }) => {
                format!("error: {}\n  hint: {}\n", clean(&error), clean(&hint))
            }
            // One of ours that does not know a path answers with a text.
            Err(why) => match self.version().filter(|_| code == 404) {
                Some(version) => self.unknown_path(path, &version),
                None => self.strange(path, &format!("the code is {code}, and {why}")),
            },
        }
    }

    fn unknown_path(&self, path: &str, version: &str) -> String {
        let path = path.split('?').next().unwrap_or_default();
        let (own, version) = (env!("CARGO_PKG_VERSION"), clean(version));
        let build = match version == own {
            true => " of another build",
            false => "",
        };
        format!(
            "error: the running process is tembuku {version}{build} and does not know {}; this \
             program is {own}\n  hint: for this command restart the process with this program, \
             or run the command of the program that it was started from\n",
            clean(path)
        )
    }

    /// For an answer that is not one of ours.
    fn strange(&self, path: &str, why: &str) -> String {
        format!(
            "error: what listens on {} does not answer {} as tembuku does: {}\n  hint: is that the \
             admin socket of a process of this version?\n",
            self.0.display(),
            clean(path),
            clean(why)
        )
    }

    fn call(
        &self,
        method: &str,
        path: &str,
        body: &str,
        patience: Duration,
    ) -> Result<(u16, String), String> {
        let answer = exchange(&self.0, method, path, body, patience);
        let answer = answer.map_err(|e| self.describe(&e, patience))?;
        split(&answer).map_err(|why| self.strange(path, why))
    }

    fn is_socket(&self) -> bool {
        let meta = std::fs::metadata(&self.0);
        meta.is_ok_and(|meta| meta.file_type().is_socket())
    }

    fn describe(&self, e: &io::Error, patience: Duration) -> String {
        let (what, hint) = match e.kind() {
            io::ErrorKind::NotFound => (
                "there is no such socket".to_owned(),
                "is it running with this configuration? --socket PATH names another socket",
            ),
            // The error of the kernel is the same for a plain file.
            io::ErrorKind::ConnectionRefused if !self.is_socket() => (
                "that is no socket".to_owned(),
                "name the admin socket, `socket` in [admin]",
            ),
            io::ErrorKind::ConnectionRefused => (
                "no process listens there".to_owned(),
                "the process that made it has ended: is another one running?",
            ),
            io::ErrorKind::PermissionDenied => (
                "permission denied".to_owned(),
                "the socket is for the user that runs tembuku alone: be that user, or root",
            ),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => (
                format!("no answer within {} s", patience.as_secs()),
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

/// What has become of the addresses of a process with the same admin socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Release {
    /// It drains, and has given them up.
    Done,
    /// It serves.
    Refused,
    /// There is none that answers.
    NoAnswer,
}

/// Asks a process with this admin socket to give up its addresses, which it does while it drains.
pub(super) fn request_release(socket: PathBuf) -> Release {
    match AdminClient(socket).call("POST", "/api/v1/release", "", PATIENCE) {
        Ok((200, _)) => Release::Done,
        Ok(_) => Release::Refused,
        Err(_) => Release::NoAnswer,
    }
}

/// For a start that fails while a process with the same admin socket serves.
pub(super) fn hint_at_running(socket: PathBuf) -> Option<String> {
    let (Status { process, .. }, _) = AdminClient(socket).status().ok()?;
    Some(format!(
        "  hint: another tembuku (pid {}) runs with this file: `tembuku reload` reads the file \
         again, `tembuku upgrade` replaces that process\n",
        process.pid
    ))
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

/// The lines of an answer that is read while it is made.
pub(super) struct Lines<'a> {
    client: &'a AdminClient,
    path: String,
    patience: Duration,
    answer: BufReader<Socket>,
}

impl Lines<'_> {
    /// Without its end; `None` at the end of the answer.
    pub(super) fn next(&mut self) -> Result<Option<String>, String> {
        let mut line = String::new();
        let read = (&mut self.answer).take(MOST_OF_LINE).read_line(&mut line);
        match read {
            Ok(0) => Ok(None),
            Ok(_) if line.ends_with('\n') => {
                line.pop();
                Ok(Some(line))
            }
            Ok(_) => Err(self.strange("the answer is cut off")),
            Err(e) => Err(self.client.describe(&e, self.patience)),
        }
    }

    pub(super) fn strange(&self, why: &str) -> String {
        self.client.strange(&self.path, why)
    }

    /// The next line as JSON: an answer without its last line has one.
    pub(super) fn read<T: DeserializeOwned>(&mut self) -> Result<T, String> {
        let line = self.next()?;
        let line = line.ok_or_else(|| self.strange("the answer is cut off"))?;
        response::read(&line).map_err(|why| self.strange(&why))
    }

    /// The head of the answer; the code.
    fn read_head(&mut self) -> Result<u16, String> {
        let http = "it does not speak HTTP";
        let first = self.next()?.unwrap_or_default();
        let code = first
            .split(' ')
            .nth(1)
            .filter(|_| first.starts_with("HTTP/1."));
        let code = code.and_then(|code| code.parse().ok());
        let code = code.ok_or_else(|| self.strange(http))?;
        loop {
            match self.next()? {
                Some(line) if line.trim_end().is_empty() => return Ok(code),
                Some(_) => {}
                None => return Err(self.strange(http)),
            }
        }
    }
}

fn exchange(
    socket: &Path,
    method: &str,
    path: &str,
    body: &str,
    patience: Duration,
) -> io::Result<Vec<u8>> {
    let stream = request(socket, ["HTTP/1.1", method, path, body], patience)?;
    let mut answer = Vec::new();
    stream.take(MOST_BYTES).read_to_end(&mut answer)?;
    Ok(answer)
}

/// Sends a request; the answer is to be read.
fn request(
    socket: &Path,
    [version, method, path, body]: [&str; 4],
    patience: Duration,
) -> io::Result<Socket> {
    let mut stream = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    stream.set_read_timeout(Some(patience))?;
    // That of a connect as well: the queue may be full.
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.connect(&SockAddr::unix(socket)?)?;
    let length = body.len();
    let request = format!(
        "{method} {path} {version}\r\nHost: tembuku\r\nConnection: close\r\nContent-Length: \
         {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes())?;
    Ok(stream)
}

/// The code and the body. With `Connection: close` the body ends where the stream does.
fn split(answer: &[u8]) -> Result<(u16, String), &'static str> {
    let http = "it does not speak HTTP";
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let (head, body) = answer.split_at(end.ok_or(http)?);
    let body = &body[4..];
    let head = std::str::from_utf8(head).map_err(|_| http)?;
    let code = head
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3));
    let code = code.and_then(|code| code.parse().ok()).ok_or(http)?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then_some(value)
    });
    if length.is_some_and(|length| length.trim() != body.len().to_string()) {
        return Err("the answer is cut off");
    }
    let body = String::from_utf8(body.to_vec()).map_err(|_| "the answer is not UTF-8")?;
    Ok((code, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_taken_apart() {
        let answer = b"HTTP/1.1 404 Not Found\r\na: b\r\n\r\n{}\n";
        assert_eq!(split(answer), Ok((404, "{}\n".to_owned())));
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}\n";
        assert_eq!(split(answer), Ok((200, "{}\n".to_owned())));
        for other in [
            "",
            "HTTP/1.1 200 OK\r\n",
            "SSH-2.0\r\n\r\n",
            "HTTP/1.1 x\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n{}\n",
            "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n{}\n",
        ] {
            assert!(split(other.as_bytes()).is_err(), "{other}");
        }
        assert_eq!(encode("unix:/a b"), "unix%3A%2Fa%20b");
    }
}
