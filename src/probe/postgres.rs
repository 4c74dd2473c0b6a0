//! `postgres`: a login and queries for role and replication; or only whether it accepts logins.
//! Pure.
//!
//! Without a login the server gets a startup message, and any answer to it but an error shows that
//! it accepts sessions: it requests a password only when it does. A client that disconnects then is
//! not written to its log.

mod login;
mod message;

use super::{
    Secret,
    dialogue::{self, Answer, Step},
};
use crate::{
    plan::{LagLimit, Role, reason::CheckResult},
    upstream::health::{Epoch, Finding, Lag},
};
use login::{Login, LoginError, encode};
use message::{Error, Old, Wrong, row};
use postgres_protocol::message::frontend;
use std::time::Duration;

/// Every name with its schema, here and below: a user that may set the search path of a database or
/// create in it could otherwise put functions and operators in front, and checks would run them.
const ROLE: &str = "SELECT pg_catalog.pg_is_in_recovery()";

/// What every user may see, from version 10 on: the timeline of a primary; of a replica whether it
/// receives anything, how many bytes of what it has received it has still to replay, how old the
/// last transaction is that it has, whether its replay is paused, and whether it restores an
/// archive and has never tried to receive anything; and of every server when it was started, to the
/// microsecond, and its port: a replica has the system identifier of its primary, so that does
/// not identify a server.
const POSITION: &str = "SELECT \
    CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN \
    pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8) END, \
    EXISTS (SELECT 1 FROM pg_catalog.pg_stat_wal_receiver), \
    pg_catalog.pg_wal_lsn_diff(\
    pg_catalog.pg_last_wal_receive_lsn(), pg_catalog.pg_last_wal_replay_lsn()), \
    extract(epoch FROM pg_catalog.now() \
    OPERATOR(pg_catalog.-) pg_catalog.pg_last_xact_replay_timestamp()), \
    CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_is_wal_replay_paused() END, \
    pg_catalog.pg_last_wal_receive_lsn() IS NULL \
    AND coalesce(pg_catalog.current_setting('restore_command', true), '') \
    OPERATOR(pg_catalog.<>) '', \
    extract(epoch FROM pg_catalog.pg_postmaster_start_time()), pg_catalog.current_setting('port')";

/// Notices and settings of a server may have so many bytes, besides its short answers.
const MAX_BYTES: usize = 64 << 10;

/// The user that logs in.
pub(super) struct User {
    pub(super) name: String,
    pub(super) database: String,
    pub(super) secret: Option<Secret>,
}

/// The user and the database that are named without a login where none are configured: they exist
/// almost everywhere, and where they do not the server still answers.
const ANYONE: (&str, &str) = ("postgres", "postgres");

pub(super) struct PostgresCheck {
    pub(super) wanted: Option<Role>,
    /// `None`: without a login.
    pub(super) user: Option<User>,
    /// The user and the database that are named then, if an error about
    /// them counts.
    pub(super) startup: Option<(String, String)>,
    /// Whether a replica must receive and replay.
    pub(super) replicating: bool,
    pub(super) limit: LagLimit,
    /// Whether TLS is required.
    pub(super) encrypted: bool,
    /// Whether the connection does not leave this machine.
    pub(super) local: bool,
}

/// One check.
pub(super) struct PostgresDialogue<'a> {
    settings: &'a PostgresCheck,
    stage: Stage<'a>,
    /// Whether a message has come: the old protocol has nothing before an error.
    has_message: bool,
    end_point: Option<Vec<u8>>,
}

enum Stage<'a> {
    Begin,
    /// TLS was requested.
    Offered,
    Encrypted,
    /// The startup message is sent.
    Startup,
    Login(Login<'a>),
    Asked(Found),
}

/// The answers to the queries so far.
#[derive(Default)]
struct Found {
    /// How many have been answered to the end.
    answered: usize,
    role: Option<Role>,
    position: Option<Position>,
    /// The error of the second query.
    refused: Option<Error>,
}

#[derive(Default)]
struct Position {
    timeline: Option<u32>,
    receives: bool,
    /// Received, and not replayed.
    behind: Option<u64>,
    /// How old the last transaction is.
    age: Option<Duration>,
    paused: bool,
    /// It restores what its primary archives, and has no primary to receive from.
    archive: bool,
    server: Option<String>,
}

impl PostgresCheck {
    pub(super) fn dialogue(&self) -> PostgresDialogue<'_> {
        PostgresDialogue {
            settings: self,
            stage: Stage::Begin,
            has_message: false,
            end_point: None,
        }
    }

    /// Without such a setting the account need not be able to query it.
    fn asks_for_position(&self) -> bool {
        self.wanted.is_some() || self.limit != LagLimit::default()
    }

    fn questions(&self) -> Result<Vec<u8>, LoginError> {
        encode(|out| {
            frontend::query(ROLE, out)?;
            match self.asks_for_position() {
                true => frontend::query(POSITION, out),
                false => Ok(()),
            }
        })
    }

    /// With the last of the answers.
    fn judge(&self, found: Found) -> Answer {
        let Some(role) = found.role else {
            return not_postgres();
        };
        let mut finding = Finding {
            role: Some(role),
            ..Finding::default()
        };
        let mut transcript = role.word().to_owned();
        let mut result = match self.wanted {
            Some(wanted) if wanted != role => CheckResult::Standby,
            _ => CheckResult::Ok,
        };
        let needs_position = self.replicating || self.limit != LagLimit::default();
        let mut position = found.position.unwrap_or_default();
        finding.server = position.server.take();
        match (role, found.refused) {
            (Role::Primary, _) => {
                if let Some(timeline) = position.timeline {
                    finding.epoch = Some(Epoch::Timeline(timeline));
                    transcript += &format!(", timeline {timeline}");
                }
            }
            (Role::Replica, Some(error)) => {
                transcript += &format!(", and does not report its lag: {error}");
                if result == CheckResult::Ok && needs_position {
                    result = CheckResult::Unexpected;
                }
            }
            (Role::Replica, None) if self.asks_for_position() => {
                finding.lag = position.lag();
                transcript += &position.describe();
                let fault = position.fault();
                finding.fault = fault.map(str::to_owned);
                result = match result {
                    CheckResult::Ok if finding.lag.exceeds(&self.limit) => CheckResult::Lagging,
                    CheckResult::Ok if self.replicating && fault.is_some() => {
                        CheckResult::NotReplicating
                    }
                    CheckResult::Standby if fault.is_some() => CheckResult::WrongRole,
                    result => result,
                };
            }
            (Role::Replica, None) => {}
        }
        let last_message = encode(|out| {
            frontend::terminate(out);
            Ok(())
        });
        Answer {
            finding,
            last_message: last_message.unwrap_or_default(),
            ..Answer::new(result, transcript)
        }
    }
}

impl Position {
    /// One that receives nothing does not know what there is: it may be as far behind as its last
    /// transaction is old.
    fn lag(&self) -> Lag {
        match self.receives {
            true => Lag {
                bytes: self.behind,
                time: if self.behind == Some(0) {
                    Some(Duration::ZERO)
                } else {
                    self.age
                },
            },
            false => Lag {
                bytes: None,
                time: self.age,
            },
        }
    }

    /// What keeps it from replicating. Whatever a replica that restores an archive has not found
    /// there yet, it cannot know.
    fn fault(&self) -> Option<&'static str> {
        match (self.receives || self.archive, self.paused) {
            (false, _) => Some("its link to its primary is down"),
            (true, true) => Some("its replay is paused"),
            (true, false) => None,
        }
    }

    fn describe(&self) -> String {
        let lag = self.lag();
        let time = lag.time.map(|time| format!("{:.1} s", time.as_secs_f64()));
        let paused = if self.paused {
            ", its replay is paused"
        } else {
            ""
        };
        let from = match self.archive {
            true => ", restores an archive",
            false => ", receives nothing",
        };
        let text = match (self.receives, lag.bytes, time) {
            (false, _, None) => from.to_owned(),
            (false, _, Some(age)) => {
                format!("{from}, its last transaction is {age} old")
            }
            (true, bytes, time) => {
                let bytes = bytes.map(|bytes| format!("{bytes} bytes"));
                let parts: Vec<String> = bytes.into_iter().chain(time).collect();
                match parts.is_empty() {
                    true => String::new(),
                    false => format!(", {} behind", parts.join(" and ")),
                }
            }
        };
        text + paused
    }

    fn read(columns: &[Option<&str>]) -> Option<Self> {
        let [
            timeline,
            receives,
            behind,
            age,
            paused,
            archive,
            started,
            port,
        ] = columns
        else {
            return None;
        };
        let timeline = timeline.map(|digits| u32::from_str_radix(digits, 16));
        // The two are not read at one moment: a little less than nothing is nothing.
        let behind = behind.map(|n| n.parse().map(|n: i64| n.max(0).unsigned_abs()));
        // Nor need two clocks agree.
        let age = match age.map(str::parse) {
            None => None,
            Some(seconds) => Some(Duration::try_from_secs_f64(f64::max(seconds.ok()?, 0.0)).ok()?),
        };
        Some(Self {
            timeline: timeline.transpose().ok()?,
            receives: boolean(*receives)?,
            behind: behind.transpose().ok()?,
            age,
            paused: paused.is_some() && boolean(*paused)?,
            archive: boolean(*archive)?,
            server: started
                .zip(*port)
                .map(|(at, port)| format!("{port} since {at}")),
        })
    }
}

fn boolean(text: Option<&str>) -> Option<bool> {
    match text? {
        "t" => Some(true),
        "f" => Some(false),
        _ => None,
    }
}

impl dialogue::Dialogue for PostgresDialogue<'_> {
    fn receive(&mut self, bytes: &[u8], ended: bool) -> Step {
        match self.stage {
            Stage::Begin if self.settings.encrypted => {
                self.stage = Stage::Offered;
                send(
                    0,
                    encode(|out| {
                        frontend::ssl_request(out);
                        Ok(())
                    }),
                )
            }
            Stage::Begin | Stage::Encrypted => self.start(),
            Stage::Offered => self.offered(bytes, ended),
            Stage::Startup | Stage::Login(_) | Stage::Asked(_) => self.messages(bytes, ended),
        }
    }

    fn encrypted(&mut self, end_point: Option<Vec<u8>>) {
        self.end_point = end_point;
    }

    fn max_bytes(&self) -> usize {
        MAX_BYTES
    }

    /// What was received may be an echo of what was sent.
    fn show(&self, bytes: &[u8]) -> String {
        match self.secret() {
            Some(_) => format!("{} bytes", bytes.len()),
            None => super::transcript::quote(bytes),
        }
    }
}

impl PostgresDialogue<'_> {
    fn secret(&self) -> Option<&Secret> {
        self.settings.user.as_ref()?.secret.as_ref()
    }

    /// The answer to the request for TLS, a single character.
    fn offered(&mut self, bytes: &[u8], ended: bool) -> Step {
        let answer = match bytes {
            [] => return Step::Wait,
            // Bytes that follow are refused where TLS begins.
            [b'S', ..] => {
                self.stage = Stage::Encrypted;
                return Step::StartTls { consumed: 1 };
            }
            [b'N'] => Answer::new(CheckResult::Tls, "it does not speak TLS"),
            // An error: out of processes, as a rule.
            [b'E', ..] => return self.messages(bytes, ended),
            // Answers of other servers may begin with this character, too.
            _ => self.wrong(bytes),
        };
        Step::Done(answer)
    }

    fn start(&mut self) -> Step {
        let settings = self.settings;
        let Some(user) = &settings.user else {
            self.stage = Stage::Startup;
            let startup = settings.startup.as_ref();
            let (user, database) = startup.map_or(ANYONE, |(user, database)| (user, database));
            return send(0, encode_startup(user, database));
        };
        let covered = settings.local || matches!(self.stage, Stage::Encrypted);
        self.stage = Stage::Login(Login::new(
            &user.name,
            user.secret.as_ref(),
            covered,
            self.end_point.take(),
        ));
        send(0, encode_startup(&user.name, &user.database))
    }

    /// The server accepts sessions: it requests a password, or it lets the user in, and the session
    /// is ended.
    fn takes_sessions(&self, inside: &[u8]) -> Result<Step, Wrong> {
        let method = inside.first_chunk().ok_or(Wrong)?;
        let mut answer = Answer::new(CheckResult::Ok, "it asks for a password");
        if u32::from_be_bytes(*method) == 0 {
            answer.transcript = "it lets in".to_owned();
            let last_message = encode(|out| {
                frontend::terminate(out);
                Ok(())
            });
            answer.last_message = last_message.unwrap_or_default();
        }
        Ok(Step::Done(answer))
    }

    /// What an error about the user of a startup message means: a default user may be refused,
    /// unless the error concerns every user.
    fn startup_result(&self, error: &Error) -> CheckResult {
        match error.result() {
            _ if self.settings.startup.is_none() && !error.concerns_everyone() => CheckResult::Ok,
            result => result,
        }
    }

    /// Handles the whole messages that there are, until one needs an answer or is one.
    fn messages(&mut self, bytes: &[u8], ended: bool) -> Step {
        if !self.has_message {
            match message::old_error(bytes, ended) {
                Some(Old::Wait) => return Step::Wait,
                Some(Old::Error(text)) => {
                    let text = match self.is_secret_in(text.as_bytes()) {
                        true => "(not shown)",
                        false => &text,
                    };
                    let transcript = format!("ERROR: {text}");
                    return Step::Done(Answer::new(CheckResult::Unexpected, transcript));
                }
                None => {}
            }
        }
        let mut rest = bytes;
        loop {
            let (kind, inside, after) = match message::read(rest) {
                Ok(Some(message)) => message,
                Ok(None) if rest.len() == bytes.len() => return Step::Wait,
                Ok(None) => return send(bytes.len() - rest.len(), Ok(Vec::new())),
                Err(Wrong) => return Step::Done(self.wrong(rest)),
            };
            self.has_message = true;
            let consumed = bytes.len() - after.len();
            match self.message(kind, inside) {
                Ok(Some(Step::Send { bytes, .. })) => return Step::Send { consumed, bytes },
                Ok(Some(step)) => return step,
                Ok(None) => rest = after,
                Err(Wrong) => return Step::Done(self.wrong(rest)),
            }
        }
    }

    /// `None`: the next one is transcript.
    fn message(&mut self, kind: u8, inside: &[u8]) -> Result<Option<Step>, Wrong> {
        match (kind, &mut self.stage) {
            // Settings, notices, notifications, a key to cancel by, another version: at any time,
            // any number of them.
            (b'S' | b'N' | b'A' | b'K' | b'v', _) => {}
            (b'R', Stage::Startup) => return self.takes_sessions(inside).map(Some),
            (b'R', Stage::Login(login)) if !login.is_in() => {
                let message = login.receive(inside);
                if !matches!(&message, Ok(bytes) if bytes.is_empty()) {
                    return Ok(Some(send(0, message)));
                }
            }
            (b'Z', Stage::Login(login)) if login.is_in() => {
                self.stage = Stage::Asked(Found::default());
                return Ok(Some(send(0, self.settings.questions())));
            }
            (b'D', Stage::Asked(found)) => {
                let columns = row(inside)?;
                match (found.answered, &columns[..]) {
                    (0, [role]) => {
                        let replica = boolean(*role).ok_or(Wrong)?;
                        found.role = Some(if replica {
                            Role::Replica
                        } else {
                            Role::Primary
                        });
                    }
                    (1, columns) => found.position = Some(Position::read(columns).ok_or(Wrong)?),
                    _ => return Err(Wrong),
                }
            }
            (b'T' | b'C' | b'I', Stage::Asked(_)) => {}
            (b'E', _) => {
                let error = self.error(inside)?;
                match &mut self.stage {
                    // The role was received before the error.
                    Stage::Asked(found) if found.answered == 1 => found.refused = Some(error),
                    Stage::Startup => {
                        let answer = Answer::new(self.startup_result(&error), error.to_string());
                        return Ok(Some(Step::Done(answer)));
                    }
                    _ => {
                        let answer = Answer::new(error.result(), error.to_string());
                        return Ok(Some(Step::Done(answer)));
                    }
                }
            }
            (b'Z', Stage::Asked(found)) => {
                found.answered += 1;
                if found.answered == 1 + usize::from(self.settings.asks_for_position()) {
                    let found = std::mem::take(found);
                    return Ok(Some(Step::Done(self.settings.judge(found))));
                }
            }
            _ => return Err(Wrong),
        }
        Ok(None)
    }

    /// Whether nothing was received yet.
    /// A server that got the password in the clear could echo it.
    fn error(&self, inside: &[u8]) -> Result<Error, Wrong> {
        let mut error = Error::read(inside)?;
        if self.is_secret_in(inside) {
            error.conceal();
        }
        Ok(error)
    }

    fn is_secret_in(&self, text: &[u8]) -> bool {
        let holds = |secret: &[u8]| text.windows(secret.len()).any(|part| part == secret);
        self.secret().is_some_and(|secret| holds(secret.bytes()))
    }

    fn wrong(&self, bytes: &[u8]) -> Answer {
        let transcript = format!(
            "this is not PostgreSQL: got {}",
            dialogue::Dialogue::show(self, bytes)
        );
        Answer {
            transcript,
            ..not_postgres()
        }
    }
}

fn not_postgres() -> Answer {
    Answer::new(CheckResult::Protocol, "this is not PostgreSQL")
}

fn encode_startup(user: &str, database: &str) -> Result<Vec<u8>, LoginError> {
    let parameters = [
        ("user", user),
        ("database", database),
        ("application_name", "tembuku"),
    ];
    encode(|out| frontend::startup_message(parameters, out))
}

fn send(consumed: usize, bytes: Result<Vec<u8>, LoginError>) -> Step {
    match bytes {
        Ok(bytes) => Step::Send { consumed, bytes },
        Err(LoginError { result, why }) => Step::Done(Answer::new(result, why)),
    }
}

#[cfg(test)]
mod tests;
