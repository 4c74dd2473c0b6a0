//! `mysql`: a login as every client makes it, one query or two, and a quit. MySQL and MariaDB.
//! Pure.
//!
//! A server counts connections that end before a login, and blocks their address after
//! `max_connect_errors` of them: that of all clients that come through here. So a check always
//! logs in.

mod greeting;
mod login;
mod packet;
mod result_set;
mod server_error;

use super::{
    Secret,
    dialogue::{self, Answer, Step},
    transcript::quote,
};
use crate::{
    plan::{Role, reason::CheckResult},
    upstream::health::Finding,
};
use greeting::Greeting;
use login::Plugin;
use packet::{Wrong, frame, read};
use result_set::ResultSet;
use server_error::ServerError;
use std::{fmt, time::Duration};

const QUIT: u8 = 1;
const QUERY: u8 = 3;

/// Asks for variables by name, since MariaDB has no `super_read_only`, and only InnoDB has
/// `innodb_read_only`, which is what marks the readers of an Aurora.
const ROLE: &str = "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('read_only', 'super_read_only', \
    'innodb_read_only', 'wsrep_on', 'group_replication_group_name', 'server_uuid', 'server_uid', \
    'server_id', 'hostname', 'port', 'datadir')";
/// What identifies a running server. A UUID alone is copied with the data, and MariaDB has
/// none; no two servers on one machine share their data.
const IDENTITY: [&str; 6] = [
    "server_uuid",
    "server_uid",
    "server_id",
    "hostname",
    "port",
    "datadir",
];
/// A server without these is not identified.
const ESSENTIAL: [&str; 3] = ["hostname", "port", "datadir"];
/// Where one of these is set, the server may have its data without following a primary: from the
/// storage that it shares (Aurora), from Galera, or from group replication.
const SHARES_DATA: [&str; 3] = [
    "innodb_read_only",
    "wsrep_on",
    "group_replication_group_name",
];
/// In the order in which they are tried: the statement was renamed.
const LAG: [&str; 2] = ["SHOW REPLICA STATUS", "SHOW SLAVE STATUS"];
/// Of all its primaries; otherwise MariaDB reports one.
const LAG_MARIADB: [&str; 1] = ["SHOW ALL SLAVES STATUS"];
const BEHIND: [&str; 2] = ["Seconds_Behind_Source", "Seconds_Behind_Master"];
/// The thread that receives, and the one that applies; and the error that each of them ended with.
const IO_RUNS: [&str; 2] = ["Replica_IO_Running", "Slave_IO_Running"];
const SQL_RUNS: [&str; 2] = ["Replica_SQL_Running", "Slave_SQL_Running"];
const IO_ERROR: [&str; 1] = ["Last_IO_Errno"];
const SQL_ERROR: [&str; 1] = ["Last_SQL_Errno"];
/// The state of replication may hold long lists of transactions.
const MOST_OF_LAG: usize = 256 << 10;

/// The settings of a check.
pub(super) struct MysqlCheck {
    pub(super) role: Option<Role>,
    /// Whether the threads of a replica must run.
    pub(super) replicating: bool,
    pub(super) max_lag: Option<Duration>,
    pub(super) user: String,
    pub(super) secret: Option<Secret>,
    /// Whether TLS is required.
    pub(super) encrypted: bool,
    /// Whether it is a unix socket, on which nothing can be intercepted.
    pub(super) local: bool,
    /// Whether the certificate of the server is verified.
    pub(super) verified: bool,
}

pub(super) struct MysqlDialogue<'a> {
    settings: &'a MysqlCheck,
    stage: Stage,
    /// Of the next packet, in either direction.
    number: u8,
    is_mariadb: bool,
    /// Whether it may get its data in another way than by the binary log of a server.
    shares_data: bool,
    server: Option<String>,
}

enum Stage {
    Greeting,
    /// TLS was requested.
    BeforeTls(Greeting),
    InsideTls(Greeting),
    Login(Login),
    /// A login that cannot be completed, and the answer of the check. Empty answers are sent until
    /// the server ends it: a client that leaves before counts as an error of the address that all
    /// clients share.
    GivenUp(Answer),
    Role(ResultSet),
    /// Which statement for the state of replication is tried, and its answer so far.
    Lag(usize, ResultSet),
    Ended,
}

struct Login {
    plugin: Plugin,
    nonce: Vec<u8>,
    /// The account wanted another plugin than the server.
    switched: bool,
    /// The server's key was requested.
    awaits_key: bool,
}

/// Why a dialogue ends.
enum End {
    Wrong(Wrong),
    Answer(Box<Answer>),
}

impl From<Answer> for End {
    fn from(answer: Answer) -> Self {
        Self::Answer(Box::new(answer))
    }
}

impl From<Wrong> for End {
    fn from(wrong: Wrong) -> Self {
        Self::Wrong(wrong)
    }
}

impl<'a> MysqlDialogue<'a> {
    pub(super) fn new(settings: &'a MysqlCheck) -> Self {
        Self {
            settings,
            stage: Stage::Greeting,
            number: 0,
            is_mariadb: false,
            shares_data: false,
            server: None,
        }
    }

    fn password(&self) -> &'a [u8] {
        self.settings.secret.as_ref().map_or(&[], Secret::bytes)
    }

    /// Handles a packet. `Some`: the payload of an answer.
    fn step(&mut self, payload: &[u8]) -> Result<Option<Vec<u8>>, End> {
        if let Some(refusal) = ServerError::read(payload)? {
            return self.refused(&refusal);
        }
        match std::mem::replace(&mut self.stage, Stage::Ended) {
            Stage::Greeting => self.greeted(Greeting::read(payload)?).map(Some),
            Stage::Login(login) => self.log_in(login, payload),
            // A login without a proof does not show that the password is right.
            Stage::GivenUp(mut answer) if payload.first() == Some(&0) => {
                answer.last_message = frame(0, &[QUIT]);
                Err(answer.into())
            }
            Stage::GivenUp(answer) => {
                self.stage = Stage::GivenUp(answer);
                Ok(Some(Vec::new()))
            }
            Stage::Role(mut set) => {
                if !set.receive(payload)? {
                    self.stage = Stage::Role(set);
                    return Ok(None);
                }
                self.read_role(&set)
            }
            Stage::Lag(tried, mut set) => {
                if !set.receive(payload)? {
                    self.stage = Stage::Lag(tried, set);
                    return Ok(None);
                }
                Err(self.read_lag(&set)?.into())
            }
            Stage::BeforeTls(_) | Stage::InsideTls(_) | Stage::Ended => {
                Err(Wrong("more than was asked for").into())
            }
        }
    }

    fn greeted(&mut self, greeting: Greeting) -> Result<Vec<u8>, End> {
        self.is_mariadb = greeting.is_mariadb;
        if !self.settings.encrypted {
            return Ok(self.introduce(greeting));
        }
        if greeting.offers_tls() {
            let message = greeting.request_tls();
            self.stage = Stage::BeforeTls(greeting);
            return Ok(message);
        }
        // To leave here would count as one of those errors: a login without a user and a password
        // makes the server refuse it.
        let anonymous = greeting.log_in(false, "", Plugin::Native.name(), b"");
        let mut answer = Answer::new(CheckResult::Tls, "the server does not offer TLS");
        answer.last_message = [frame(self.number, &anonymous), frame(0, &[QUIT])].concat();
        Err(answer.into())
    }

    /// Begins with the plugin that the server proposes, which saves a round trip if it is also the
    /// account's.
    fn introduce(&mut self, greeting: Greeting) -> Vec<u8> {
        let plugin = (Plugin::named(&greeting.plugin).filter(|p| *p != Plugin::Clear))
            .unwrap_or(Plugin::Native);
        let answer = plugin.answer(self.password(), &greeting.nonce);
        let message = greeting.log_in(
            self.settings.encrypted,
            &self.settings.user,
            plugin.name(),
            &answer,
        );
        self.stage = Stage::Login(Login {
            plugin,
            nonce: greeting.nonce,
            switched: false,
            awaits_key: false,
        });
        message
    }

    fn log_in(&mut self, mut login: Login, payload: &[u8]) -> Result<Option<Vec<u8>>, End> {
        let message = match (payload, login.plugin) {
            ([0, ..], _) => {
                self.stage = Stage::Role(ResultSet::default());
                return Ok(Some(self.query(ROLE)));
            }
            ([0xfe, ..], _) if login.switched => {
                return Ok(Some(self.give_up("it asks for one plugin after another")));
            }
            ([0xfe, wanted @ ..], _) => {
                match login.switch(wanted, self.settings.local || self.settings.verified) {
                    Ok(()) => login.plugin.answer(self.password(), &login.nonce),
                    Err(why) => {
                        self.give_up(&why.to_string());
                        return Ok(Some(login::nothing(wanted)));
                    }
                }
            }
            ([2, ..], _) => return Ok(Some(self.give_up("it asks for a second factor"))),
            ([1, key @ ..], Plugin::CachingSha2) if login.awaits_key => {
                login.awaits_key = false;
                match login::sealed(key, self.password(), &login.nonce) {
                    Some(sealed) => sealed,
                    None => return Ok(Some(self.give_up("the key of the server cannot be used"))),
                }
            }
            // The server has the password in its cache.
            ([1, 3], Plugin::CachingSha2) => {
                self.stage = Stage::Login(login);
                return Ok(None);
            }
            ([1, 4], Plugin::CachingSha2) if self.settings.encrypted || self.settings.local => {
                login::clear(self.password())
            }
            ([1, 4], Plugin::CachingSha2) => {
                login.awaits_key = true;
                vec![2]
            }
            _ => return Err(Wrong("no answer to a login").into()),
        };
        self.stage = Stage::Login(login);
        Ok(Some(message))
    }

    /// Returns an empty answer, which replaces the password.
    fn give_up(&mut self, why: &str) -> Vec<u8> {
        self.stage = Stage::GivenUp(Answer::new(CheckResult::Auth, format!("login: {why}")));
        Vec::new()
    }

    /// The numbers of packets begin anew with a question.
    fn query(&mut self, text: &str) -> Vec<u8> {
        self.number = 0;
        [&[QUERY], text.as_bytes()].concat()
    }

    fn read_role(&mut self, set: &ResultSet) -> Result<Option<Vec<u8>>, End> {
        let mut on = Vec::new();
        let mut is_known = false;
        self.server = identity(set.rows());
        for row in set.rows() {
            let [Some(name), Some(value)] = &row[..] else {
                return Err(Wrong("variables of another form").into());
            };
            // New MariaDB has more values than ON for it.
            let is_on = !matches!(&value.to_ascii_uppercase()[..], b"OFF" | b"0" | b"NO" | b"");
            self.shares_data |= is_on
                && SHARES_DATA
                    .iter()
                    .any(|variable| name == variable.as_bytes());
            if name.ends_with(b"read_only") {
                is_known |= name == b"read_only";
                on.extend(is_on.then(|| String::from_utf8_lossy(name).into_owned()));
            }
        }
        if !is_known {
            return Err(Wrong("no read_only among its variables").into());
        }
        let (role, transcript) = match &on[..] {
            [] => (Role::Primary, "read_only is off".to_owned()),
            on => (Role::Replica, format!("{} is on", on.join(", "))),
        };
        let is_other = self.settings.role.is_some_and(|wanted| wanted != role);
        if role == Role::Replica && !is_other && self.asks_for_replication() {
            self.stage = Stage::Lag(0, ResultSet::default());
            return Ok(Some(self.query(self.lag_questions()[0])));
        }
        let result = if is_other {
            CheckResult::Standby
        } else {
            CheckResult::Ok
        };
        Err(End::from(Answer {
            finding: Finding {
                role: Some(role),
                server: self.server.take(),
                ..Finding::default()
            },
            ..Answer::new(result, transcript)
        }))
    }

    fn asks_for_replication(&self) -> bool {
        self.settings.replicating || self.settings.max_lag.is_some()
    }

    fn lag_questions(&self) -> &'static [&'static str] {
        if self.is_mariadb { &LAG_MARIADB } else { &LAG }
    }

    /// One row for each primary that it follows: it is as far behind as behind the one that it is
    /// behind most.
    fn read_lag(&self, set: &ResultSet) -> Result<Answer, Wrong> {
        let column = set
            .column(&BEHIND)
            .ok_or(Wrong("no seconds in the state of replication"))?;
        let mut most = None;
        let mut runs = !set.rows().is_empty();
        for row in set.rows() {
            match &row[column] {
                None => runs = false,
                Some(text) => {
                    let seconds = std::str::from_utf8(text)
                        .ok()
                        .and_then(|text| text.parse().ok());
                    most = most.max(Some(seconds.ok_or(Wrong("a lag that is no number"))?));
                }
            }
        }
        let lag = most.filter(|_| runs).map(Duration::from_secs);
        let fault = self.replication_fault(set)?;
        let mut transcript = match lag {
            None if fault.is_none() && self.settings.max_lag.is_none() => "a replica".to_owned(),
            None => "a replica that does not replicate".to_owned(),
            Some(lag) => format!("a replica, {} s behind", lag.as_secs()),
        };
        let is_late = |most| lag.is_none_or(|lag| lag > most);
        let result = match &fault {
            _ if self.settings.max_lag.is_some_and(is_late) => CheckResult::Lagging,
            Some(fault) if self.settings.replicating => {
                transcript += &format!(": {fault}");
                CheckResult::NotReplicating
            }
            _ => CheckResult::Ok,
        };
        let mut answer = Answer::new(result, transcript);
        answer.finding.role = Some(Role::Replica);
        answer.finding.lag.time = lag;
        answer.finding.fault = fault;
        Ok(answer)
    }

    /// What keeps it from replicating from one of its primaries. The errors are shown by their
    /// numbers: their texts may hold what clients have written.
    fn replication_fault(&self, set: &ResultSet) -> Result<Option<String>, Wrong> {
        let (Some(io), Some(sql)) = (set.column(&IO_RUNS), set.column(&SQL_RUNS)) else {
            return match self.settings.replicating {
                true => Err(Wrong("no threads in the state of replication")),
                false => Ok(None),
            };
        };
        if set.rows().is_empty() {
            return Ok((!self.shares_data).then(|| "it follows no primary".to_owned()));
        }
        for row in set.rows() {
            let is = |at: usize, word: &[u8]| {
                row[at]
                    .as_deref()
                    .is_some_and(|v| v.eq_ignore_ascii_case(word))
            };
            let error = |names: &[&str]| {
                let number = row[set.column(names)?].as_deref()?;
                let is_one = number != b"0" && number.iter().all(u8::is_ascii_digit);
                is_one.then(|| format!(" (error {})", String::from_utf8_lossy(number)))
            };
            let fault = if !is(sql, b"Yes") {
                ("its SQL thread has stopped", error(&SQL_ERROR))
            } else if is(io, b"No") {
                ("its I/O thread has stopped", error(&IO_ERROR))
            } else if !is(io, b"Yes") {
                ("its link to its primary is down", error(&IO_ERROR))
            } else {
                continue;
            };
            return Ok(Some(fault.0.to_owned() + &fault.1.unwrap_or_default()));
        }
        Ok(None)
    }

    fn refused(&mut self, refusal: &ServerError) -> Result<Option<Vec<u8>>, End> {
        if let Stage::Lag(tried, _) = self.stage
            && refusal.code == server_error::SYNTAX
            && let Some(question) = self.lag_questions().get(tried + 1)
        {
            self.stage = Stage::Lag(tried + 1, ResultSet::default());
            return Ok(Some(self.query(question)));
        }
        let (question, role) = match &self.stage {
            Stage::GivenUp(answer) => return Err(answer.clone().into()),
            Stage::Role(_) => ("read_only: ", None),
            Stage::Lag(..) => ("replication: ", Some(Role::Replica)),
            Stage::Login(_) => ("login: ", None),
            _ => ("", None),
        };
        let mut transcript = format!("{question}error {}{}", refusal.code, self.message(refusal));
        if role.is_some() && refusal.code == server_error::DENIED {
            transcript += "; grant REPLICATION CLIENT (MariaDB: REPLICA MONITOR)";
            if self.settings.max_lag.is_none() {
                transcript += " or set replicating = false";
            }
        }
        let mut answer = Answer::new(refusal.result(), transcript);
        answer.finding.role = role;
        Err(answer.into())
    }

    /// A message with the password in it, an echo of what was sent, is not shown.
    fn message(&self, refusal: &ServerError) -> String {
        let password = self.password();
        let has_it = !password.is_empty()
            && refusal
                .message
                .windows(password.len())
                .any(|part| part == password);
        match has_it {
            true => String::new(),
            false => format!(": {}", quote(&refusal.message)),
        }
    }
}

/// `None` where one of the variables that it takes is missing.
fn identity(rows: &[Vec<Option<Vec<u8>>>]) -> Option<String> {
    let value = |name: &str| {
        let mut rows = rows.iter().filter(|row| row.len() == 2);
        let row = rows.find(|row| row[0].as_deref() == Some(name.as_bytes()))?;
        row[1].as_deref().map(String::from_utf8_lossy)
    };
    let is_known = ESSENTIAL.iter().all(|name| value(name).is_some());
    let values = IDENTITY.iter().map(|name| value(name).unwrap_or_default());
    is_known.then(|| values.collect::<Vec<_>>().join("\n"))
}

/// Why a login cannot go on with the plugin that the account requires.
enum SwitchError {
    ClearPassword,
    OldPassword,
    /// The name of the plugin.
    Unsupported(String),
}

impl fmt::Display for SwitchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClearPassword => f.write_str(
                "it asks for the password in the clear, which takes tls = \"verify\" or a unix \
                 socket",
            ),
            Self::OldPassword => f.write_str("the account has a password from before 4.1"),
            Self::Unsupported(name) => {
                write!(
                    f,
                    "it asks for the plugin {name}, which is not supported here"
                )
            }
        }
    }
}

impl Login {
    /// `trusted`: only the server can read what is sent.
    fn switch(&mut self, wanted: &[u8], trusted: bool) -> Result<(), SwitchError> {
        let end = wanted.iter().position(|b| *b == 0);
        let (name, nonce) = wanted.split_at(end.unwrap_or(wanted.len()));
        let plugin = match Plugin::named(name) {
            // An impostor could ask for it.
            Some(Plugin::Clear) if !trusted => return Err(SwitchError::ClearPassword),
            Some(plugin) => plugin,
            // In those days packets had no names of plugins in them.
            None if name.is_empty() => return Err(SwitchError::OldPassword),
            None => return Err(SwitchError::Unsupported(quote(name))),
        };
        let nonce = nonce.get(1..).unwrap_or_default();
        *self = Self {
            plugin,
            nonce: nonce.iter().take(greeting::NONCE).copied().collect(),
            switched: true,
            awaits_key: false,
        };
        Ok(())
    }
}

impl dialogue::Dialogue for MysqlDialogue<'_> {
    fn receive(&mut self, bytes: &[u8], ended: bool) -> Step {
        match std::mem::replace(&mut self.stage, Stage::Ended) {
            Stage::BeforeTls(greeting) => {
                self.stage = Stage::InsideTls(greeting);
                return Step::StartTls { consumed: 0 };
            }
            Stage::InsideTls(greeting) => {
                let bytes = frame(self.number, &self.introduce(greeting));
                self.number = self.number.wrapping_add(1);
                return Step::Send { consumed: 0, bytes };
            }
            stage => self.stage = stage,
        }
        // The login has succeeded, so it is ended by a quit.
        let last_message = match self.stage {
            Stage::Role(_) | Stage::Lag(..) => frame(0, &[QUIT]),
            _ => Vec::new(),
        };
        let shown = self.show(bytes);
        let wrong = |Wrong(why), last_message| {
            let text = format!("this is not MySQL: {why}; got {shown}");
            Step::Done(Answer {
                last_message,
                ..Answer::new(CheckResult::Protocol, text)
            })
        };
        let (payload, consumed) = match read(bytes, self.number, self.max_bytes()) {
            Ok(Some(packet)) => packet,
            Ok(None) => {
                return match &self.stage {
                    Stage::GivenUp(answer) if ended => Step::Done(answer.clone()),
                    _ => Step::Wait,
                };
            }
            Err(why) => return wrong(why, last_message),
        };
        self.number = self.number.wrapping_add(1);
        match self.step(payload) {
            Ok(None) => Step::Send {
                consumed,
                bytes: Vec::new(),
            },
            Ok(Some(payload)) => {
                let bytes = frame(self.number, &payload);
                self.number = self.number.wrapping_add(1);
                Step::Send { consumed, bytes }
            }
            Err(End::Answer(mut answer)) => {
                if !last_message.is_empty() {
                    answer.last_message = last_message;
                }
                Step::Done(*answer)
            }
            Err(End::Wrong(why)) => wrong(why, last_message),
        }
    }

    fn max_bytes(&self) -> usize {
        match self.asks_for_replication() {
            true => MOST_OF_LAG,
            false => dialogue::MAX_BYTES,
        }
    }

    /// Once a password was sent, nothing: an echo of it would be shown.
    fn show(&self, bytes: &[u8]) -> String {
        let is_hidden = self.settings.secret.is_some() && !matches!(self.stage, Stage::Greeting);
        match is_hidden {
            true => format!("{} bytes", bytes.len()),
            false => quote(bytes),
        }
    }
}

#[cfg(test)]
mod tests;
