//! `mysql`: a login as every client makes it, one question or two, and a goodbye. MySQL and
//! MariaDB. Pure.
//!
//! A server counts connections that end before a login, and blocks their address after
//! `max_connect_errors` of them: that of all clients that come through here. So a check logs in,
//! always.

mod greeting;
mod login;
mod packet;
mod refusal;
mod result_set;

use super::{Answer, Secret, Turn, transcript::quote};
use crate::{
    plan::{Role, reason::CheckResult},
    upstream::health::Finding,
};
use greeting::Greeting;
use login::Plugin;
use packet::{Wrong, frame, read};
use refusal::Refusal;
use result_set::ResultSet;
use std::time::Duration;

const QUIT: u8 = 1;
const QUERY: u8 = 3;

/// Asks for variables by name, since MariaDB has no `super_read_only`, and only InnoDB has
/// `innodb_read_only`, which is what marks the readers of an Aurora.
const ROLE: &str = "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('read_only', 'super_read_only', 'innodb_read_only', \
    'wsrep_on', 'group_replication_group_name', \
    'server_uuid', 'server_uid', 'server_id', 'hostname', 'port', 'datadir')";
/// What tells a running server from others. A UUID alone is copied with the data, and MariaDB has
/// none; no two servers on one machine share their data.
const IDENTITY: [&str; 6] = [
    "server_uuid",
    "server_uid",
    "server_id",
    "hostname",
    "port",
    "datadir",
];
/// Without these it is not known.
const ESSENTIAL: [&str; 3] = ["hostname", "port", "datadir"];
/// Where one of these is set, the server may have its data without following a primary: from the
/// storage that it shares (Aurora), from Galera, or from group replication.
const SHARES_DATA: [&str; 3] = [
    "innodb_read_only",
    "wsrep_on",
    "group_replication_group_name",
];
/// In the order in which they are tried: the word for it has changed.
const LAG: [&str; 2] = ["SHOW REPLICA STATUS", "SHOW SLAVE STATUS"];
/// Of all its primaries; otherwise MariaDB speaks of one.
const LAG_MARIADB: [&str; 1] = ["SHOW ALL SLAVES STATUS"];
const BEHIND: [&str; 2] = ["Seconds_Behind_Source", "Seconds_Behind_Master"];
/// The thread that receives, and the one that applies; and the error that each of them ended with.
const IO_RUNS: [&str; 2] = ["Replica_IO_Running", "Slave_IO_Running"];
const SQL_RUNS: [&str; 2] = ["Replica_SQL_Running", "Slave_SQL_Running"];
const IO_ERROR: [&str; 1] = ["Last_IO_Errno"];
const SQL_ERROR: [&str; 1] = ["Last_SQL_Errno"];
/// What a server is asked for about its replication may hold long lists of transactions.
const MOST_OF_LAG: usize = 256 << 10;

/// What is asked; the same for all checks.
pub(super) struct Asked {
    pub(super) role: Option<Role>,
    /// Whether the threads of a replica must run.
    pub(super) replicating: bool,
    pub(super) max_lag: Option<Duration>,
    pub(super) user: String,
    pub(super) secret: Option<Secret>,
    /// Whether it is to be inside TLS.
    pub(super) encrypted: bool,
    /// A unix socket: nobody listens there.
    pub(super) local: bool,
    /// The server has shown who it is.
    pub(super) verified: bool,
}

pub(super) struct Talk<'a> {
    asked: &'a Asked,
    stage: Stage,
    /// Of the next packet, whoever sends it.
    number: u8,
    is_mariadb: bool,
    /// Whether it may have its data from elsewhere than the binary log of another server.
    shares_data: bool,
    server: Option<String>,
}

enum Stage {
    Greeting,
    /// It has been told that TLS follows.
    BeforeTls(Greeting),
    InsideTls(Greeting),
    Login(Login),
    /// A login that cannot be made, and what the check will say. The server is told nothing, again
    /// and again, until it has ended it: whoever leaves before counts as an error of all clients
    /// that come from here.
    GivenUp(Answer),
    Role(ResultSet),
    /// The word for replication that is tried, and what the answer to the question before was.
    Lag(usize, ResultSet),
    Ended,
}

struct Login {
    plugin: Plugin,
    nonce: Vec<u8>,
    /// The account wanted another plugin than the server.
    switched: bool,
    /// The server was asked for its key.
    awaits_key: bool,
}

/// Why a conversation ends.
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

impl<'a> Talk<'a> {
    pub(super) fn new(asked: &'a Asked) -> Self {
        Self {
            asked,
            stage: Stage::Greeting,
            number: 0,
            is_mariadb: false,
            shares_data: false,
            server: None,
        }
    }

    fn password(&self) -> &'a [u8] {
        self.asked.secret.as_ref().map_or(&[], Secret::bytes)
    }

    /// What is made of a packet: what is said, if anything.
    fn step(&mut self, payload: &[u8]) -> Result<Option<Vec<u8>>, End> {
        if let Some(refusal) = Refusal::read(payload)? {
            return self.refused(&refusal);
        }
        match std::mem::replace(&mut self.stage, Stage::Ended) {
            Stage::Greeting => self.greeted(Greeting::read(payload)?).map(Some),
            Stage::Login(login) => self.log_in(login, payload),
            // Who is let in by that has still not proved that the password is right.
            Stage::GivenUp(mut answer) if payload.first() == Some(&0) => {
                answer.goodbye = frame(0, &[QUIT]);
                Err(answer.into())
            }
            Stage::GivenUp(answer) => {
                self.stage = Stage::GivenUp(answer);
                Ok(Some(Vec::new()))
            }
            Stage::Role(mut set) => {
                if !set.hear(payload)? {
                    self.stage = Stage::Role(set);
                    return Ok(None);
                }
                self.role_told(&set)
            }
            Stage::Lag(tried, mut set) => {
                if !set.hear(payload)? {
                    self.stage = Stage::Lag(tried, set);
                    return Ok(None);
                }
                Err(self.lag_told(&set)?.into())
            }
            Stage::BeforeTls(_) | Stage::InsideTls(_) | Stage::Ended => {
                Err(Wrong("more than was asked for").into())
            }
        }
    }

    fn greeted(&mut self, greeting: Greeting) -> Result<Vec<u8>, End> {
        self.is_mariadb = greeting.is_mariadb;
        if !self.asked.encrypted {
            return Ok(self.introduce(greeting));
        }
        if greeting.speaks_tls() {
            let words = greeting.request_tls();
            self.stage = Stage::BeforeTls(greeting);
            return Ok(words);
        }
        // To leave here would count as one of those errors: it is refused as nobody in particular,
        // without a password.
        let nobody = greeting.log_in(false, "", Plugin::Native.name(), b"");
        let mut answer = Answer::new(CheckResult::Tls, "the server does not offer TLS");
        answer.goodbye = [frame(self.number, &nobody), frame(0, &[QUIT])].concat();
        Err(answer.into())
    }

    /// Begins with the plugin that the server would like, which spares a turn if it is also the
    /// account's.
    fn introduce(&mut self, greeting: Greeting) -> Vec<u8> {
        let plugin = (Plugin::named(&greeting.plugin).filter(|p| *p != Plugin::Clear))
            .unwrap_or(Plugin::Native);
        let answer = plugin.answer(self.password(), &greeting.nonce);
        let words = greeting.log_in(
            self.asked.encrypted,
            &self.asked.user,
            plugin.name(),
            &answer,
        );
        self.stage = Stage::Login(Login {
            plugin,
            nonce: greeting.nonce,
            switched: false,
            awaits_key: false,
        });
        words
    }

    fn log_in(&mut self, mut login: Login, payload: &[u8]) -> Result<Option<Vec<u8>>, End> {
        let words = match (payload, login.plugin) {
            ([0, ..], _) => {
                self.stage = Stage::Role(ResultSet::default());
                return Ok(Some(self.query(ROLE)));
            }
            ([0xfe, ..], _) if login.switched => {
                return Ok(Some(self.give_up("it asks for one plugin after another")));
            }
            ([0xfe, wanted @ ..], _) => {
                match login.switch(wanted, self.asked.local || self.asked.verified) {
                    Ok(()) => login.plugin.answer(self.password(), &login.nonce),
                    Err(why) => {
                        self.give_up(&why);
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
            // It knows the password from before: all is well.
            ([1, 3], Plugin::CachingSha2) => {
                self.stage = Stage::Login(login);
                return Ok(None);
            }
            ([1, 4], Plugin::CachingSha2) if self.asked.encrypted || self.asked.local => {
                login::clear(self.password())
            }
            ([1, 4], Plugin::CachingSha2) => {
                login.awaits_key = true;
                vec![2]
            }
            _ => return Err(Wrong("no answer to a login").into()),
        };
        self.stage = Stage::Login(login);
        Ok(Some(words))
    }

    /// What is said instead of a password: nothing.
    fn give_up(&mut self, why: &str) -> Vec<u8> {
        self.stage = Stage::GivenUp(Answer::new(CheckResult::Auth, format!("login: {why}")));
        Vec::new()
    }

    /// The numbers of packets begin anew with a question.
    fn query(&mut self, text: &str) -> Vec<u8> {
        self.number = 0;
        [&[QUERY], text.as_bytes()].concat()
    }

    fn role_told(&mut self, set: &ResultSet) -> Result<Option<Vec<u8>>, End> {
        let mut on = Vec::new();
        let mut is_known = false;
        self.server = identity(set.rows());
        for row in set.rows() {
            let [Some(name), Some(value)] = &row[..] else {
                return Err(Wrong("variables of another form").into());
            };
            // New MariaDB has more words than ON for it.
            let is_on = !matches!(&value.to_ascii_uppercase()[..], b"OFF" | b"0" | b"NO" | b"");
            self.shares_data |= is_on && SHARES_DATA.iter().any(|known| name == known.as_bytes());
            if name.ends_with(b"read_only") {
                is_known |= name == b"read_only";
                on.extend(is_on.then(|| String::from_utf8_lossy(name).into_owned()));
            }
        }
        if !is_known {
            return Err(Wrong("no read_only among its variables").into());
        }
        let (role, heard) = match &on[..] {
            [] => (Role::Primary, "read_only is off".to_owned()),
            on => (Role::Replica, format!("{} is on", on.join(", "))),
        };
        let is_other = self.asked.role.is_some_and(|wanted| wanted != role);
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
            ..Answer::new(result, heard)
        }))
    }

    fn asks_for_replication(&self) -> bool {
        self.asked.replicating || self.asked.max_lag.is_some()
    }

    fn lag_questions(&self) -> &'static [&'static str] {
        if self.is_mariadb { &LAG_MARIADB } else { &LAG }
    }

    /// One row for each primary that it follows: it is as far behind as behind the one that it is
    /// behind most.
    fn lag_told(&self, set: &ResultSet) -> Result<Answer, Wrong> {
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
        let mut heard = match lag {
            None if fault.is_none() && self.asked.max_lag.is_none() => "a replica".to_owned(),
            None => "a replica that does not replicate".to_owned(),
            Some(lag) => format!("a replica, {} s behind", lag.as_secs()),
        };
        let is_late = |most| lag.is_none_or(|lag| lag > most);
        let result = match &fault {
            _ if self.asked.max_lag.is_some_and(is_late) => CheckResult::Lagging,
            Some(fault) if self.asked.replicating => {
                heard += &format!(": {fault}");
                CheckResult::NotReplicating
            }
            _ => CheckResult::Ok,
        };
        let mut answer = Answer::new(result, heard);
        answer.finding.role = Some(Role::Replica);
        answer.finding.lag.time = lag;
        answer.finding.fault = fault;
        Ok(answer)
    }

    /// What keeps it from replicating from one of its primaries. The errors are told by their
    /// numbers: their texts may hold what clients have written.
    fn replication_fault(&self, set: &ResultSet) -> Result<Option<String>, Wrong> {
        let (Some(io), Some(sql)) = (set.column(&IO_RUNS), set.column(&SQL_RUNS)) else {
            return match self.asked.replicating {
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

    fn refused(&mut self, refusal: &Refusal) -> Result<Option<Vec<u8>>, End> {
        if let Stage::Lag(tried, _) = self.stage
            && refusal.code == refusal::SYNTAX
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
        let mut heard = format!("{question}error {}{}", refusal.code, self.message(refusal));
        if role.is_some() && refusal.code == refusal::DENIED {
            heard += "; grant REPLICATION CLIENT (MariaDB: REPLICA MONITOR)";
            if self.asked.max_lag.is_none() {
                heard += " or set replicating = false";
            }
        }
        let mut answer = Answer::new(refusal.result(), heard);
        answer.finding.role = role;
        Err(answer.into())
    }

    /// A message that has the password in it is not shown: it would be our own words that came
    /// back.
    fn message(&self, refusal: &Refusal) -> String {
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

impl Login {
    /// Why that cannot be is the error.
    /// `trusted`: nobody but the server can hear.
    fn switch(&mut self, wanted: &[u8], trusted: bool) -> Result<(), String> {
        let end = wanted.iter().position(|b| *b == 0);
        let (name, nonce) = wanted.split_at(end.unwrap_or(wanted.len()));
        let plugin = match Plugin::named(name) {
            // Whoever it is could ask for it.
            Some(Plugin::Clear) if !trusted => {
                return Err("it asks for the password in the clear, which takes tls = \"verify\" or a unix socket".to_owned());
            }
            Some(plugin) => plugin,
            // In those days packets had no names of plugins in them.
            None if name.is_empty() => {
                return Err("the account has a password from before 4.1".to_owned());
            }
            None => {
                let name = quote(name);
                return Err(format!(
                    "it asks for the plugin {name}, which is not supported here"
                ));
            }
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

impl super::Talk for Talk<'_> {
    fn hear(&mut self, bytes: &[u8], ended: bool) -> Turn {
        match std::mem::replace(&mut self.stage, Stage::Ended) {
            Stage::BeforeTls(greeting) => {
                self.stage = Stage::InsideTls(greeting);
                return Turn::Encrypt { read: 0 };
            }
            Stage::InsideTls(greeting) => {
                let words = frame(self.number, &self.introduce(greeting));
                self.number = self.number.wrapping_add(1);
                return Turn::Say { read: 0, words };
            }
            stage => self.stage = stage,
        }
        // Whatever it is, it has let us in, and is taken leave of.
        let goodbye = match self.stage {
            Stage::Role(_) | Stage::Lag(..) => frame(0, &[QUIT]),
            _ => Vec::new(),
        };
        let shown = self.show(bytes);
        let wrong = |Wrong(why), goodbye| {
            let text = format!("this is not MySQL: {why}; got {shown}");
            Turn::Answer(Answer {
                goodbye,
                ..Answer::new(CheckResult::Protocol, text)
            })
        };
        let (payload, read) = match read(bytes, self.number, self.most()) {
            Ok(Some(packet)) => packet,
            Ok(None) => {
                return match &self.stage {
                    Stage::GivenUp(answer) if ended => Turn::Answer(answer.clone()),
                    _ => Turn::Wait,
                };
            }
            Err(why) => return wrong(why, goodbye),
        };
        self.number = self.number.wrapping_add(1);
        match self.step(payload) {
            Ok(None) => Turn::Say {
                read,
                words: Vec::new(),
            },
            Ok(Some(payload)) => {
                let words = frame(self.number, &payload);
                self.number = self.number.wrapping_add(1);
                Turn::Say { read, words }
            }
            Err(End::Answer(mut answer)) => {
                if !goodbye.is_empty() {
                    answer.goodbye = goodbye;
                }
                Turn::Answer(*answer)
            }
            Err(End::Wrong(why)) => wrong(why, goodbye),
        }
    }

    fn most(&self) -> usize {
        match self.asks_for_replication() {
            true => MOST_OF_LAG,
            false => super::MOST,
        }
    }

    /// Once a password has been told, nothing: what sends our own words back would show it.
    fn show(&self, bytes: &[u8]) -> String {
        let is_told = self.asked.secret.is_some() && !matches!(self.stage, Stage::Greeting);
        match is_told {
            true => format!("{} bytes", bytes.len()),
            false => quote(bytes),
        }
    }
}

#[cfg(test)]
mod tests;
