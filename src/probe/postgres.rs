//! `postgres`: a login, and where the server stands; or whether it would let a user log in. No I/O.
//!
//! Without a login the server gets a startup message, and whatever it answers to that but an error
//! shows that it takes sessions: it asks for a password only when it does. A client that leaves
//! instead of giving one is not written down in its log.

mod login;
mod message;

use super::{Answer, Secret, Turn};
use crate::{
    plan::{LagLimit, Role, reason::CheckResult},
    upstream::health::{Epoch, Finding, Lag},
};
use login::{Login, Refusal, say};
use message::{Error, Old, Wrong, row};
use postgres_protocol::message::frontend;
use std::time::Duration;

/// Every name with its schema, here and below: who may set the search path of a database or create
/// in it could otherwise put functions and operators of his own in front, and we would run them.
const ROLE: &str = "SELECT pg_catalog.pg_is_in_recovery()";

/// What every user may see, from version 10 on: the timeline of a primary; of a replica whether it
/// receives anything, how many bytes of what it has received it has still to replay, how old the
/// last transaction is that it has, whether its replay is paused, and whether it restores an
/// archive and has never tried to receive anything; and of every server when it was started, to the
/// microsecond, and its port: a replica has the system identifier of its primary, so that tells no
/// server from another.
const PLACE: &str = "SELECT \
    CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN \
    pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8) END, \
    EXISTS (SELECT 1 FROM pg_catalog.pg_stat_wal_receiver), \
    pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_last_wal_receive_lsn(), pg_catalog.pg_last_wal_replay_lsn()), \
    extract(epoch FROM pg_catalog.now() OPERATOR(pg_catalog.-) pg_catalog.pg_last_xact_replay_timestamp()), \
    CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_is_wal_replay_paused() END, \
    pg_catalog.pg_last_wal_receive_lsn() IS NULL \
    AND coalesce(pg_catalog.current_setting('restore_command', true), '') OPERATOR(pg_catalog.<>) '', \
    extract(epoch FROM pg_catalog.pg_postmaster_start_time()), pg_catalog.current_setting('port')";

/// So much may a server say on its own, in notices and settings, beside its short answers.
const MOST: usize = 64 << 10;

/// As whom to ask.
pub(super) struct User {
    pub(super) name: String,
    pub(super) database: String,
    pub(super) secret: Option<Secret>,
}

/// The user and the database that are named without a login where none are configured: they exist
/// almost everywhere, and where they do not the server still answers.
const ANYONE: (&str, &str) = ("postgres", "postgres");

pub(super) struct Talk {
    pub(super) wanted: Option<Role>,
    /// `None`: without a login.
    pub(super) user: Option<User>,
    /// The user and the database that are named then, if it matters what the server has against
    /// them.
    pub(super) startup: Option<(String, String)>,
    /// Whether a replica must receive and replay.
    pub(super) replicating: bool,
    pub(super) limit: LagLimit,
    /// Whether nothing but TLS will do.
    pub(super) encrypted: bool,
    /// Whether the line does not leave this machine.
    pub(super) local: bool,
}

/// One time through it.
pub(super) struct Conversation<'a> {
    talk: &'a Talk,
    stage: Stage<'a>,
    end_point: Option<Vec<u8>>,
}

enum Stage<'a> {
    Begin,
    /// The server is asked whether it speaks TLS.
    Offered,
    Encrypted,
    /// The server has been told who would like to log in.
    Startup,
    Login(Login<'a>),
    Asked(Found),
}

/// What the questions have brought up to now.
#[derive(Default)]
struct Found {
    /// How many have been answered to the end.
    answered: usize,
    role: Option<Role>,
    place: Option<Place>,
    /// What the server had against the second question.
    refused: Option<Error>,
}

#[derive(Default)]
struct Place {
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

impl Talk {
    pub(super) fn begin(&self) -> Conversation<'_> {
        Conversation {
            talk: self,
            stage: Stage::Begin,
            end_point: None,
        }
    }

    /// Who does not care for more than the role need not be able to ask for it.
    fn asks_for_place(&self) -> bool {
        self.wanted.is_some() || self.limit != LagLimit::default()
    }

    fn questions(&self) -> Result<Vec<u8>, Refusal> {
        say(|out| {
            frontend::query(ROLE, out)?;
            match self.asks_for_place() {
                true => frontend::query(PLACE, out),
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
        let mut heard = role.word().to_owned();
        let mut result = match self.wanted {
            Some(wanted) if wanted != role => CheckResult::Standby,
            _ => CheckResult::Ok,
        };
        let needs_place = self.replicating || self.limit != LagLimit::default();
        let mut place = found.place.unwrap_or_default();
        finding.server = place.server.take();
        match (role, found.refused) {
            (Role::Primary, _) => {
                if let Some(timeline) = place.timeline {
                    finding.epoch = Some(Epoch::Timeline(timeline));
                    heard += &format!(", timeline {timeline}");
                }
            }
            (Role::Replica, Some(error)) => {
                heard += &format!(", and does not tell how far behind it is: {error}");
                if result == CheckResult::Ok && needs_place {
                    result = CheckResult::Unexpected;
                }
            }
            (Role::Replica, None) if self.asks_for_place() => {
                finding.lag = place.lag();
                heard += &place.words();
                let fault = place.fault();
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
        let goodbye = say(|out| {
            frontend::terminate(out);
            Ok(())
        });
        Answer {
            finding,
            goodbye: goodbye.unwrap_or_default(),
            ..Answer::new(result, heard)
        }
    }
}

impl Place {
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

    fn words(&self) -> String {
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
        let words = match (self.receives, lag.bytes, time) {
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
        words + paused
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

impl super::Talk for Conversation<'_> {
    fn hear(&mut self, bytes: &[u8], ended: bool) -> Turn {
        match self.stage {
            Stage::Begin if self.talk.encrypted => {
                self.stage = Stage::Offered;
                turn(
                    0,
                    say(|out| {
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

    fn most(&self) -> usize {
        MOST
    }

    /// What comes may be an echo of what was said.
    fn show(&self, bytes: &[u8]) -> String {
        match self.secret() {
            Some(_) => format!("{} bytes", bytes.len()),
            None => super::transcript::quote(bytes),
        }
    }
}

impl Conversation<'_> {
    fn secret(&self) -> Option<&Secret> {
        self.talk.user.as_ref()?.secret.as_ref()
    }

    /// To the answer about TLS, which is a single letter.
    fn offered(&mut self, bytes: &[u8], ended: bool) -> Turn {
        let answer = match bytes {
            [] => return Turn::Wait,
            // What follows it is looked at by whoever begins TLS.
            [b'S', ..] => {
                self.stage = Stage::Encrypted;
                return Turn::Encrypt { read: 1 };
            }
            [b'N'] => Answer::new(CheckResult::Tls, "it does not speak TLS"),
            // An error: out of processes, as a rule.
            [b'E', ..] => return self.messages(bytes, ended),
            // Other servers, too, begin with such a letter, and go on.
            _ => self.wrong(bytes),
        };
        Turn::Answer(answer)
    }

    fn start(&mut self) -> Turn {
        let talk = self.talk;
        let Some(user) = &talk.user else {
            self.stage = Stage::Startup;
            let startup = talk.startup.as_ref();
            let (user, database) = startup.map_or(ANYONE, |(user, database)| (user, database));
            return turn(0, say_startup(user, database));
        };
        let covered = talk.local || matches!(self.stage, Stage::Encrypted);
        self.stage = Stage::Login(Login::new(
            &user.name,
            user.secret.as_ref(),
            covered,
            self.end_point.take(),
        ));
        turn(0, say_startup(&user.name, &user.database))
    }

    /// The server takes sessions: it asks for a password, or it lets the user in, who takes leave
    /// then.
    fn takes_sessions(&self, inside: &[u8]) -> Result<Turn, Wrong> {
        let method = inside.first_chunk().ok_or(Wrong)?;
        let mut answer = Answer::new(CheckResult::Ok, "it asks for a password");
        if u32::from_be_bytes(*method) == 0 {
            answer.heard = "it lets in".to_owned();
            let goodbye = say(|out| {
                frontend::terminate(out);
                Ok(())
            });
            answer.goodbye = goodbye.unwrap_or_default();
        }
        Ok(Turn::Answer(answer))
    }

    /// What an error means to a user that is only named: one that was invented for it may be
    /// refused, as long as that does not mean that nobody is let in.
    fn startup_result(&self, error: &Error) -> CheckResult {
        match error.result() {
            _ if self.talk.startup.is_none() && !error.concerns_everyone() => CheckResult::Ok,
            result => result,
        }
    }

    /// Deals with as many whole messages as there are, until one asks for an answer or is one.
    fn messages(&mut self, bytes: &[u8], ended: bool) -> Turn {
        if self.has_heard_nothing() {
            match message::old_error(bytes, ended) {
                Some(Old::Wait) => return Turn::Wait,
                Some(Old::Error(text)) => {
                    let text = match self.is_secret_in(text.as_bytes()) {
                        true => "(not shown)",
                        false => &text,
                    };
                    let heard = format!("ERROR: {text}");
                    return Turn::Answer(Answer::new(CheckResult::Unexpected, heard));
                }
                None => {}
            }
        }
        let mut rest = bytes;
        loop {
            let (kind, inside, after) = match message::read(rest) {
                Ok(Some(message)) => message,
                Ok(None) if rest.len() == bytes.len() => return Turn::Wait,
                Ok(None) => return turn(bytes.len() - rest.len(), Ok(Vec::new())),
                Err(Wrong) => return Turn::Answer(self.wrong(rest)),
            };
            let read = bytes.len() - after.len();
            match self.message(kind, inside) {
                Ok(Some(Turn::Say { words, .. })) => return Turn::Say { read, words },
                Ok(Some(turn)) => return turn,
                Ok(None) => rest = after,
                Err(Wrong) => return Turn::Answer(self.wrong(rest)),
            }
        }
    }

    /// `None`: the next one is heard.
    fn message(&mut self, kind: u8, inside: &[u8]) -> Result<Option<Turn>, Wrong> {
        match (kind, &mut self.stage) {
            // Settings, notices, notifications, a key to cancel by, another version: at any time,
            // any number of them.
            (b'S' | b'N' | b'A' | b'K' | b'v', _) => {}
            (b'R', Stage::Startup) => return self.takes_sessions(inside).map(Some),
            (b'R', Stage::Login(login)) if !login.is_in() => {
                let said = login.hear(inside);
                if !matches!(&said, Ok(words) if words.is_empty()) {
                    return Ok(Some(turn(0, said)));
                }
            }
            (b'Z', Stage::Login(login)) if login.is_in() => {
                self.stage = Stage::Asked(Found::default());
                return Ok(Some(turn(0, self.talk.questions())));
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
                    (1, columns) => found.place = Some(Place::read(columns).ok_or(Wrong)?),
                    _ => return Err(Wrong),
                }
            }
            (b'T' | b'C' | b'I', Stage::Asked(_)) => {}
            (b'E', _) => {
                let error = self.error(inside)?;
                match &mut self.stage {
                    // The role is known all the same.
                    Stage::Asked(found) if found.answered == 1 => found.refused = Some(error),
                    Stage::Startup => {
                        let answer = Answer::new(self.startup_result(&error), error.to_string());
                        return Ok(Some(Turn::Answer(answer)));
                    }
                    _ => {
                        let answer = Answer::new(error.result(), error.to_string());
                        return Ok(Some(Turn::Answer(answer)));
                    }
                }
            }
            (b'Z', Stage::Asked(found)) => {
                found.answered += 1;
                if found.answered == 1 + usize::from(self.talk.asks_for_place()) {
                    let found = std::mem::take(found);
                    return Ok(Some(Turn::Answer(self.talk.judge(found))));
                }
            }
            _ => return Err(Wrong),
        }
        Ok(None)
    }

    /// Whether the next that comes is the first.
    fn has_heard_nothing(&self) -> bool {
        match &self.stage {
            Stage::Login(login) => login.is_open(),
            Stage::Offered | Stage::Startup => true,
            _ => false,
        }
    }

    /// A server that was told the password in the clear could say it.
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
        let heard = format!(
            "this is not PostgreSQL: got {}",
            super::Talk::show(self, bytes)
        );
        Answer {
            heard,
            ..not_postgres()
        }
    }
}

fn not_postgres() -> Answer {
    Answer::new(CheckResult::Protocol, "this is not PostgreSQL")
}

fn say_startup(user: &str, database: &str) -> Result<Vec<u8>, Refusal> {
    let parameters = [
        ("user", user),
        ("database", database),
        ("application_name", "tembuku"),
    ];
    say(|out| frontend::startup_message(parameters, out))
}

fn turn(read: usize, words: Result<Vec<u8>, Refusal>) -> Turn {
    match words {
        Ok(words) => Turn::Say { read, words },
        Err(Refusal { result, why }) => Turn::Answer(Answer::new(result, why)),
    }
}

#[cfg(test)]
mod tests;
