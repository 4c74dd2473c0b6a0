//! `redis`: AUTH where there is a password, PING, ROLE, INFO where that is not enough, QUIT. Pure.
//!
//! They are sent together, so that a check takes one round trip.

mod info;

use super::{
    Secret,
    dialogue::Answer,
    resp::{Reply, Stop, read, write_command},
    transcript::quote,
};
use crate::{
    plan::{LagLimit, Role, Version, reason::CheckResult},
    upstream::health::Finding,
};
use std::time::Duration;

/// What a server answers that refuses writes, and would answer readers: it cannot save, has no
/// memory left, has not enough replicas, or is one. Not among them: LOADING, MASTERDOWN and
/// CLUSTERDOWN, with which reads are refused as well.
const REFUSES_WRITES: [&[u8]; 4] = [b"MISCONF", b"OOM", b"NOREPLICAS", b"READONLY"];
/// What it answers to everything but SCRIPT KILL and a few more while a script runs for too long.
const BUSY: &[u8] = b"BUSY";

pub(super) struct RedisCheck {
    pub(super) wanted: Option<Role>,
    /// Whether a replica must be connected to its primary and synced.
    pub(super) replicating: bool,
    pub(super) user: Option<String>,
    pub(super) secret: Option<Secret>,
    pub(super) max_lag: Option<Duration>,
    pub(super) min_version: Option<Version>,
    /// Whether one that refuses writes is down.
    pub(super) require_writes: bool,
}

/// The reply to PING. `Ok(Some)`: the server refuses writes, which are not required; `Err`: it
/// refuses more.
type Alive = Result<Option<Answer>, Answer>;

/// The reply to ROLE.
struct RoleReply {
    role: Option<Role>,
    /// What is wrong with the link of a replica.
    fault: Option<&'static str>,
    name: &'static str,
}

/// Why the replies that follow do not matter, or cannot be read.
enum End {
    Answer(Box<Answer>),
    Stop(Stop),
}

impl From<Answer> for End {
    fn from(answer: Answer) -> Self {
        Self::Answer(Box::new(answer))
    }
}

impl From<Stop> for End {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

impl RedisCheck {
    pub(super) fn has_secret(&self) -> bool {
        self.secret.is_some()
    }

    pub(super) fn write_commands(&self, out: &mut Vec<u8>) {
        if let Some(secret) = &self.secret {
            let user = self.user.as_deref().map(str::as_bytes);
            let parts: Vec<&[u8]> = [Some(&b"AUTH"[..]), user, Some(secret.bytes())]
                .into_iter()
                .flatten()
                .collect();
            write_command(out, &parts);
        }
        write_command(out, &[b"PING"]);
        write_command(out, &[b"ROLE"]);
        if self.asks_for_position() {
            write_command(out, &[b"INFO", b"replication"]);
        }
        if self.asks_for_server() {
            write_command(out, &[b"INFO", b"server"]);
        }
        write_command(out, &[b"QUIT"]);
    }

    /// Without such a setting the account need not be allowed to use INFO.
    fn asks_for_position(&self) -> bool {
        self.wanted.is_some() || self.max_lag.is_some()
    }

    /// Two addresses may belong to one primary, which its run id shows.
    fn asks_for_server(&self) -> bool {
        self.wanted == Some(Role::Primary) || self.min_version.is_some()
    }

    /// An answer when all questions have been answered, or one so that the others do not matter.
    pub(super) fn receive(&self, bytes: &[u8]) -> Option<Answer> {
        match self.judge(bytes) {
            Ok(answer) => Some(answer),
            Err(Stop::Incomplete) => None,
            Err(Stop::TooLong) => Some(Answer::new(
                CheckResult::Protocol,
                format!("an answer that is too long: got {}", self.show(bytes)),
            )),
            Err(Stop::Wrong) => Some(Answer::new(
                CheckResult::Protocol,
                format!("this is not Redis: got {}", self.show(bytes)),
            )),
        }
    }

    fn judge(&self, bytes: &[u8]) -> Result<Answer, Stop> {
        match self.judge_replies(bytes) {
            Ok(answer) => Ok(answer),
            Err(End::Answer(answer)) => Ok(*answer),
            Err(End::Stop(stop)) => Err(stop),
        }
    }

    fn judge_replies(&self, bytes: &[u8]) -> Result<Answer, End> {
        let rest = self.read_auth(bytes)?;
        let (alive, rest) = self.read_ping(rest)?;
        let (RoleReply { role, fault, name }, rest) = self.read_role(rest)?;
        let mut transcript = format!("ROLE: {name}");
        let mut finding = Finding {
            role,
            fault: fault.map(str::to_owned),
            ..Finding::default()
        };
        let answer = match alive {
            // The role counts, whatever else is wrong.
            _ if self.wanted.is_some() && role != self.wanted => {
                // Its primary is shown, and not required.
                if let (true, Ok((Reply::Text(Some(text)), _))) =
                    (self.asks_for_position(), read(rest))
                {
                    finding.epoch = info::epoch(text);
                }
                let is_well = alive.is_ok() && role.is_some() && fault.is_none();
                let result = match is_well {
                    true => CheckResult::Standby,
                    false => CheckResult::WrongRole,
                };
                if let Err(refused) = alive {
                    transcript = format!("{}, {transcript}", refused.transcript);
                }
                if let Some(fault) = fault {
                    transcript = format!("{transcript}, {fault}");
                }
                Answer::new(result, transcript)
            }
            Ok(refused) => {
                let ping = match refused {
                    Some(refused) => {
                        finding.fault = finding.fault.or(refused.finding.fault);
                        refused.transcript
                    }
                    None => "PING: PONG".to_owned(),
                };
                let good = Answer::new(CheckResult::Ok, format!("{ping}, {transcript}"));
                return Ok(self.judge_info(Answer { finding, ..good }, fault, rest)?);
            }
            Err(refused) => {
                finding.fault = finding.fault.or_else(|| refused.finding.fault.clone());
                Answer {
                    transcript: format!("{}, {transcript}", refused.transcript),
                    ..refused
                }
            }
        };
        Ok(Answer { finding, ..answer })
    }

    /// What follows the reply to AUTH, if that was sent.
    fn read_auth<'b>(&self, bytes: &'b [u8]) -> Result<&'b [u8], End> {
        if self.secret.is_none() {
            return Ok(bytes);
        }
        match read(bytes)? {
            (Reply::Status(b"OK"), rest) => Ok(rest),
            (Reply::Error(text), _) if first_word(text) == BUSY => {
                Err(self.busy("AUTH", text).into())
            }
            (Reply::Error(text), _) => {
                // Old servers reply ERR to a wrong password, and to much else.
                let contains = |word: &[u8]| text.windows(word.len()).any(|part| part == word);
                let otherwise = match contains(b"AUTH") || contains(b"password") {
                    true => CheckResult::Auth,
                    false => CheckResult::Unexpected,
                };
                Err(self.refused("AUTH", text, otherwise).into())
            }
            _ => Err(Stop::Wrong.into()),
        }
    }

    fn read_ping<'b>(&self, bytes: &'b [u8]) -> Result<(Alive, &'b [u8]), End> {
        let (reply, rest) = read(bytes)?;
        let alive = match reply {
            Reply::Status(b"PONG") => Ok(None),
            Reply::Error(text) if first_word(text) == BUSY => {
                return Err(self.busy("PING", text).into());
            }
            Reply::Error(text) if REFUSES_WRITES.contains(&first_word(text)) => {
                let mut answer = self.refused("PING", text, CheckResult::RefusesWrites);
                let word = String::from_utf8_lossy(first_word(text));
                answer.finding.fault = Some(format!("it refuses writes: {word}"));
                match self.require_writes {
                    true => Err(answer),
                    false => Ok(Some(answer)),
                }
            }
            Reply::Error(text) => Err(self.refused("PING", text, CheckResult::Unexpected)),
            _ => return Err(Stop::Wrong.into()),
        };
        match alive {
            // A server that refuses the login answers nothing else, and one that is full sends
            // nothing else.
            Err(answer) if matches!(answer.result, CheckResult::Auth | CheckResult::Unexpected) => {
                Err(answer.into())
            }
            alive => Ok((alive, rest)),
        }
    }

    fn read_role<'b>(&self, bytes: &'b [u8]) -> Result<(RoleReply, &'b [u8]), End> {
        let (reply, rest) = read(bytes)?;
        let mut fault = None;
        let (role, name) = match &reply {
            Reply::List(items) => match items.first() {
                Some(Reply::Text(Some(b"master"))) => (Some(Role::Primary), "master"),
                Some(Reply::Text(Some(b"slave"))) => {
                    fault = link_fault(items);
                    (Some(Role::Replica), "slave")
                }
                Some(Reply::Text(Some(b"sentinel"))) => (None, "sentinel"),
                _ => return Err(Stop::Wrong.into()),
            },
            // Without a required role the account need not be allowed to use ROLE.
            Reply::Error(_) if self.wanted.is_none() => (None, "refused"),
            Reply::Error(text) if first_word(text) == BUSY => {
                return Err(self.busy("ROLE", text).into());
            }
            Reply::Error(text) => {
                return Err(self.refused("ROLE", text, CheckResult::Unexpected).into());
            }
            _ => return Err(Stop::Wrong.into()),
        };
        Ok((RoleReply { role, fault, name }, rest))
    }

    /// Why a server that is good so far is not, by INFO.
    fn judge_info(
        &self,
        mut answer: Answer,
        mut fault: Option<&'static str>,
        mut rest: &[u8],
    ) -> Result<Answer, Stop> {
        if self.asks_for_position() {
            let (reply, after) = read(rest)?;
            rest = after;
            let replica = answer.finding.role == Some(Role::Replica);
            let limit = LagLimit {
                time: self.max_lag.filter(|_| replica),
                bytes: None,
            };
            match reply {
                Reply::Text(Some(text)) if replica => {
                    answer.finding.epoch = info::epoch(text);
                    answer.finding.lag.time = info::lag(text);
                    if fault.is_none() {
                        fault = info::fault(text);
                        answer.finding.fault = fault.map(str::to_owned).or(answer.finding.fault);
                    }
                    if answer.finding.lag.exceeds(&limit) {
                        answer.result = CheckResult::Lagging;
                        answer.transcript += &match answer.finding.lag.time {
                            Some(time) => {
                                format!(
                                    ", {} s since the last data from its primary",
                                    time.as_secs()
                                )
                            }
                            None => ", cut off from its primary".to_owned(),
                        };
                    }
                }
                Reply::Text(Some(text)) => answer.finding.epoch = info::epoch(text),
                // Where nothing hangs on it.
                Reply::Error(_) if limit == LagLimit::default() => {}
                Reply::Error(text) => return Ok(self.without_info(answer, text)),
                _ => return Err(Stop::Wrong),
            }
            if self.replicating
                && answer.result == CheckResult::Ok
                && let Some(fault) = fault
            {
                answer.result = CheckResult::NotReplicating;
                answer.transcript += &format!(", {fault}");
            }
        }
        if !self.asks_for_server() {
            return Ok(answer);
        }
        let (reply, _) = read(rest)?;
        if let Reply::Text(Some(text)) = reply {
            answer.finding.server = info::run_id(text);
        }
        let Some(wanted) = self.min_version else {
            return Ok(answer);
        };
        let (result, why) = match reply {
            Reply::Text(Some(text)) => match info::version(text) {
                Some(version) if version >= wanted => return Ok(answer),
                Some(version) => (
                    CheckResult::Unexpected,
                    format!("version {version} is older than {wanted}"),
                ),
                None => (
                    CheckResult::Unexpected,
                    "INFO does not report its version".to_owned(),
                ),
            },
            Reply::Error(text) => return Ok(self.without_info(answer, text)),
            _ => return Err(Stop::Wrong),
        };
        Ok(Answer {
            result,
            transcript: format!("{}, {why}", answer.transcript),
            ..answer
        })
    }

    /// It is busy with a script. Where nothing else is required, it is enough that it answers.
    fn busy(&self, question: &str, text: &[u8]) -> Answer {
        let asks_more = self.asks_for_position() || self.min_version.is_some();
        let result = match (self.require_writes, asks_more) {
            (true, _) => CheckResult::RefusesWrites,
            (false, true) => CheckResult::Busy,
            (false, false) => CheckResult::Ok,
        };
        let mut answer = self.refused(question, text, result);
        answer.finding.fault = Some("it is busy with a script".to_owned());
        answer
    }

    fn without_info(&self, answer: Answer, text: &[u8]) -> Answer {
        if first_word(text) == BUSY {
            return self.busy("INFO", text);
        }
        let refused = self.refused("INFO", text, CheckResult::Unexpected);
        Answer {
            transcript: format!("{}, {}", answer.transcript, refused.transcript),
            ..Answer {
                finding: answer.finding,
                ..refused
            }
        }
    }

    /// The first word of an error is its kind.
    fn refused(&self, question: &str, text: &[u8], otherwise: CheckResult) -> Answer {
        let result = match first_word(text) {
            b"NOAUTH" | b"WRONGPASS" | b"NOPERM" => CheckResult::Auth,
            // Protected mode: neither a password nor an address that it trusts.
            b"DENIED" => CheckResult::Auth,
            b"LOADING" => CheckResult::Loading,
            b"MASTERDOWN" => CheckResult::MasterDown,
            _ => otherwise,
        };
        Answer::new(result, format!("{question}: {}", self.show(text)))
    }

    /// With a password only a word in capitals is shown: an echo would show the password.
    fn show(&self, bytes: &[u8]) -> String {
        if self.secret.is_none() {
            return quote(bytes);
        }
        let word = first_word(bytes);
        let kinds: [&[u8]; 12] = [
            b"NOAUTH",
            b"WRONGPASS",
            b"NOPERM",
            b"DENIED",
            b"LOADING",
            b"MASTERDOWN",
            b"MISCONF",
            b"OOM",
            b"NOREPLICAS",
            b"READONLY",
            BUSY,
            b"ERR",
        ];
        match kinds.contains(&word) {
            true => String::from_utf8_lossy(word).into_owned(),
            false => format!("{} bytes", bytes.len()),
        }
    }
}

fn first_word(text: &[u8]) -> &[u8] {
    text.split(|b| *b == b' ').next().unwrap_or_default()
}

/// What is wrong by the state of its link, the fourth item of a replica's answer to ROLE.
fn link_fault(role: &[Reply<'_>]) -> Option<&'static str> {
    match role.get(3)? {
        Reply::Text(Some(b"connected")) => None,
        Reply::Text(Some(b"sync")) => Some(info::SYNCING),
        _ => Some(info::LINK_DOWN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MASTER: &str = "*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n";
    const DENIED: &str = "-NOPERM this user has no permissions\r\n";
    const SLAVE: &str =
        "*5\r\n$5\r\nslave\r\n$9\r\n127.0.0.1\r\n:9000\r\n$9\r\nconnected\r\n:3167038\r\n";

    fn settings(wanted: Option<Role>, password: bool) -> RedisCheck {
        let secret = password.then(|| {
            // The only way to a secret is the one that the program takes.
            let path = std::env::temp_dir().join(format!(
                "tembuku-redis-{}-{:?}",
                std::process::id(),
                std::thread::current().id()
            ));
            std::fs::write(&path, "xyzzy").expect("writable");
            let secret = Secret::load(&crate::plan::PasswordFrom::File(path.clone()));
            std::fs::remove_file(path).expect("there");
            secret.expect("a password")
        });
        RedisCheck {
            wanted,
            user: Some("check".into()).filter(|_| password),
            secret,
            replicating: wanted == Some(Role::Replica),
            max_lag: None,
            min_version: None,
            require_writes: wanted == Some(Role::Primary),
        }
    }

    fn text(text: &str) -> String {
        format!("${}\r\n{text}\r\n", text.len())
    }

    fn result(wanted: Option<Role>, bytes: &str) -> CheckResult {
        answer(&settings(wanted, false), bytes).result
    }

    /// Not before the last byte.
    fn answer(settings: &RedisCheck, bytes: &str) -> Answer {
        for n in 0..bytes.len() {
            assert_eq!(
                settings.receive(&bytes.as_bytes()[..n]),
                None,
                "{n} of {bytes:?}"
            );
        }
        settings.receive(bytes.as_bytes()).expect("an answer")
    }

    #[test]
    fn lag_limits() {
        let (replica, primary) = (Some(Role::Replica), Some(Role::Primary));
        let up = text("master_link_status:up\r\nmaster_last_io_seconds_ago:11\r\n");
        let down = text("master_link_status:down\r\nmaster_last_io_seconds_ago:-1\r\n");
        let denied = DENIED.to_owned();
        let seconds = |n| Some(Duration::from_secs(n));
        let late = ", 11 s since the last data from its primary";
        for (wanted, role, max_lag, info, result, transcript) in [
            (replica, SLAVE, None, &up, CheckResult::Ok, ""),
            (replica, SLAVE, seconds(11), &up, CheckResult::Ok, ""),
            (replica, SLAVE, seconds(10), &up, CheckResult::Lagging, late),
            (None, SLAVE, seconds(10), &up, CheckResult::Lagging, late),
            (
                replica,
                SLAVE,
                seconds(10),
                &down,
                CheckResult::Lagging,
                ", cut off from its primary",
            ),
            (replica, SLAVE, None, &down, CheckResult::Ok, ""),
            (None, MASTER, seconds(10), &down, CheckResult::Ok, ""),
            (None, MASTER, seconds(10), &denied, CheckResult::Ok, ""),
            (primary, MASTER, None, &denied, CheckResult::Ok, ""),
            (replica, SLAVE, None, &denied, CheckResult::Ok, ""),
            (
                replica,
                SLAVE,
                seconds(10),
                &denied,
                CheckResult::Auth,
                ", INFO: \"NOPERM this user has no permissions\"",
            ),
        ] {
            let settings = RedisCheck {
                replicating: false,
                max_lag,
                ..settings(wanted, false)
            };
            // More is queried of a primary, and refused here.
            let server = match wanted {
                Some(Role::Primary) => "-NOPERM no\r\n",
                _ => "",
            };
            let answer = answer(&settings, &format!("+PONG\r\n{role}{info}{server}"));
            assert_eq!(answer.finding.server, None);
            assert_eq!(answer.result, result, "{role} {max_lag:?} {info}");
            let name = if role == MASTER { "master" } else { "slave" };
            assert_eq!(
                answer.transcript,
                format!("PING: PONG, ROLE: {name}{transcript}")
            );
            assert_eq!(answer.finding.lag.time, seconds(11).filter(|_| *info == up));
            assert_eq!(
                answer.finding.role.map(|r| r == Role::Primary),
                Some(role == MASTER)
            );
        }
    }

    #[test]
    fn identity_of_a_primary() {
        let id = text("master_replid:ab\r\nmaster_replid2:00\r\n");
        let run = text("redis_version:7.0.15\r\nrun_id:abc0123\r\n");
        let finding = answer(
            &settings(Some(Role::Primary), false),
            &format!("+PONG\r\n{MASTER}{id}{run}"),
        )
        .finding;
        assert_eq!(finding.server.as_deref(), Some("abc0123"));
        let before = None;
        assert_eq!(
            finding.epoch,
            Some(crate::upstream::health::Epoch::Replication {
                id: "ab".into(),
                before
            })
        );
    }

    #[test]
    fn least_version() {
        for (info, result, transcript) in [
            (text("redis_version:7.0.0\r\n"), CheckResult::Ok, ""),
            (
                text("redis_version:6.2.14\r\n"),
                CheckResult::Unexpected,
                ", version 6.2.14 is older than 7.0.0",
            ),
            (
                text("x"),
                CheckResult::Unexpected,
                ", INFO does not report its version",
            ),
            (
                DENIED.to_owned(),
                CheckResult::Auth,
                ", INFO: \"NOPERM this user has no permissions\"",
            ),
        ] {
            let settings = RedisCheck {
                min_version: Some(Version([7, 0, 0])),
                ..settings(None, false)
            };
            let answer = answer(&settings, &format!("+PONG\r\n{MASTER}{info}"));
            assert_eq!(answer.result, result, "{info}");
            assert_eq!(
                answer.transcript,
                format!("PING: PONG, ROLE: master{transcript}")
            );
        }
    }

    #[test]
    fn a_replica_that_does_not_replicate() {
        let replica = Some(Role::Replica);
        let slave = |state: &str| SLAVE.replace("$9\r\nconnected", text(state).trim_end());
        let up = text("master_link_status:up\r\nmaster_sync_in_progress:0\r\n");
        let down = text("master_link_status:down\r\nmaster_sync_in_progress:0\r\n");
        let syncing = text("master_link_status:down\r\nmaster_sync_in_progress:1\r\n");
        let denied = DENIED.to_owned();
        for (state, info, fault) in [
            ("connected", &up, None),
            ("connected", &denied, None),
            ("connected", &down, Some(info::LINK_DOWN)),
            ("connected", &syncing, Some(info::SYNCING)),
            ("sync", &up, Some(info::SYNCING)),
            ("sync", &denied, Some(info::SYNCING)),
            ("connect", &denied, Some(info::LINK_DOWN)),
            ("connecting", &down, Some(info::LINK_DOWN)),
            ("handshake", &down, Some(info::LINK_DOWN)),
            ("none", &denied, Some(info::LINK_DOWN)),
        ] {
            let bytes = format!("+PONG\r\n{}{info}", slave(state));
            let found = answer(&settings(replica, false), &bytes);
            let transcript = fault.map_or(String::new(), |fault| format!(", {fault}"));
            assert_eq!(
                found.transcript,
                format!("PING: PONG, ROLE: slave{transcript}")
            );
            assert_eq!(found.finding.fault.as_deref(), fault);
            let expected = match fault {
                None => CheckResult::Ok,
                Some(_) => CheckResult::NotReplicating,
            };
            assert_eq!(found.result, expected, "{state} {info}");
            let careless = RedisCheck {
                replicating: false,
                ..settings(replica, false)
            };
            assert_eq!(answer(&careless, &bytes).result, CheckResult::Ok);
            // It is as little of a standby.
            let standby = answer(
                &settings(Some(Role::Primary), false),
                &format!("+PONG\r\n{}", slave(state)),
            );
            let expected = match state {
                "connected" => CheckResult::Standby,
                _ => CheckResult::WrongRole,
            };
            assert_eq!(standby.result, expected, "{state}");
        }
    }

    #[test]
    fn commands() {
        let mut bytes = Vec::new();
        settings(None, true).write_commands(&mut bytes);
        let expected = "*3\r\n$4\r\nAUTH\r\n$5\r\ncheck\r\n$5\r\nxyzzy\r\n*1\r\n$4\r\nPING\r\n\
            *1\r\n$4\r\nROLE\r\n*1\r\n$4\r\nQUIT\r\n";
        assert_eq!(String::from_utf8_lossy(&bytes), expected);
        bytes.clear();
        let min_version = Some(Version([7, 0, 0]));
        let settings = settings(Some(Role::Replica), false);
        RedisCheck {
            min_version,
            ..settings
        }
        .write_commands(&mut bytes);
        let expected = "*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nROLE\r\n*2\r\n$4\r\nINFO\r\n$11\r\n\
            replication\r\n\
            *2\r\n$4\r\nINFO\r\n$6\r\nserver\r\n*1\r\n$4\r\nQUIT\r\n";
        assert_eq!(String::from_utf8_lossy(&bytes), expected);
    }

    #[test]
    fn roles() {
        let (primary, replica) = (Some(Role::Primary), Some(Role::Replica));
        for (wanted, role, expected) in [
            (None, MASTER, CheckResult::Ok),
            (None, SLAVE, CheckResult::Ok),
            (primary, MASTER, CheckResult::Ok),
            (primary, SLAVE, CheckResult::Standby),
            (replica, MASTER, CheckResult::Standby),
            (replica, SLAVE, CheckResult::Ok),
            (
                primary,
                "*2\r\n$8\r\nsentinel\r\n*0\r\n",
                CheckResult::WrongRole,
            ),
            (
                primary,
                "-NOPERM this user has no permissions\r\n",
                CheckResult::Auth,
            ),
            (primary, "-ERR unknown command\r\n", CheckResult::Unexpected),
            (
                None,
                "-NOPERM this user has no permissions\r\n",
                CheckResult::Ok,
            ),
        ] {
            // More is queried of a server that is good so far.
            let info = match (wanted, expected) {
                (Some(Role::Primary), CheckResult::Ok) => text("role:whatever").repeat(2),
                (Some(_), CheckResult::Ok) => text("role:whatever"),
                _ => String::new(),
            };
            let bytes = format!("+PONG\r\n{role}{info}");
            assert_eq!(result(wanted, &bytes), expected, "{role}");
        }
        let answer = settings(None, false).receive(format!("+PONG\r\n{SLAVE}").as_bytes());
        assert_eq!(answer.and_then(|a| a.finding.role), replica);
    }

    /// Some have very many.
    #[test]
    fn a_primary_tells_of_each_of_its_replicas() {
        let primary = Some(Role::Primary);
        let one = "*3\r\n$15\r\n192.168.100.100\r\n$4\r\n6379\r\n$9\r\n123456789\r\n";
        let line = "slave0:ip=192.168.100.100,port=6379,state=online,offset=123456789,lag=0\r\n";
        let bytes = |count: usize| {
            let role = format!(
                "*3\r\n$6\r\nmaster\r\n:0\r\n*{count}\r\n{}",
                one.repeat(count)
            );
            let info = format!("{}master_replid:ab\r\n", line.repeat(count));
            format!("+PONG\r\n{role}{}{}", text(&info), text("run_id:ab\r\n"))
        };
        let many = bytes(2000);
        assert!(many.len() < crate::probe::resp::MAX_BYTES);
        let settings = settings(primary, false);
        let answer = settings.receive(many.as_bytes()).expect("an answer");
        assert_eq!(answer.result, CheckResult::Ok, "{}", answer.transcript);
        assert!(answer.finding.epoch.is_some());
        let answer = settings.receive(bytes(9000).as_bytes()).expect("an answer");
        assert_eq!(answer.result, CheckResult::Protocol);
        assert!(
            answer
                .transcript
                .starts_with("an answer that is too long: got "),
            "{}",
            answer.transcript
        );
    }

    #[test]
    fn errors_are_distinguished() {
        let loading = "-LOADING Redis is loading the dataset in memory\r\n";
        let down = "-MASTERDOWN Link with MASTER is down\r\n";
        let primary = Some(Role::Primary);
        assert_eq!(
            result(primary, &format!("{loading}{MASTER}")),
            CheckResult::Loading
        );
        assert_eq!(
            result(None, &format!("{down}{SLAVE}")),
            CheckResult::MasterDown
        );
        // A replica that has other troubles, too.
        assert_eq!(
            result(primary, &format!("{down}{SLAVE}")),
            CheckResult::WrongRole
        );
        assert_eq!(
            result(None, "-NOAUTH Authentication required.\r\n"),
            CheckResult::Auth
        );
        assert_eq!(
            result(None, "-ERR max number of clients reached\r\n"),
            CheckResult::Unexpected
        );
        let protected = "-DENIED Redis is running in protected mode because\r\n";
        assert_eq!(result(primary, protected), CheckResult::Auth);
        let settings = settings(None, true);
        for text in [
            "-WRONGPASS invalid username-password pair\r\n",
            "-ERR AUTH <password> called without any\r\n",
        ] {
            assert_eq!(
                settings.receive(text.as_bytes()).expect("an answer").result,
                CheckResult::Auth
            );
        }
        let whole = format!("+OK\r\n+PONG\r\n{MASTER}");
        assert_eq!(
            settings
                .receive(whole.as_bytes())
                .expect("an answer")
                .result,
            CheckResult::Ok
        );
    }

    #[test]
    fn one_that_refuses_writes() {
        let (primary, replica) = (Some(Role::Primary), Some(Role::Replica));
        let info = text("master_link_status:up\r\n");
        for word in ["MISCONF", "OOM", "NOREPLICAS", "READONLY"] {
            let refusal = format!("-{word} this or that\r\n");
            let fault = format!("it refuses writes: {word}");
            let refused = answer(&settings(primary, false), &format!("{refusal}{MASTER}"));
            assert_eq!(refused.result, CheckResult::RefusesWrites);
            assert_eq!(refused.finding.fault.as_ref(), Some(&fault));
            assert_eq!(refused.finding.role, primary);
            let no_standby = answer(&settings(primary, false), &format!("{refusal}{SLAVE}"));
            assert_eq!(no_standby.result, CheckResult::WrongRole);
            let reads = RedisCheck {
                require_writes: false,
                ..settings(primary, false)
            };
            for (settings, bytes) in [
                (settings(None, false), format!("{refusal}{MASTER}")),
                (settings(None, false), format!("{refusal}{SLAVE}")),
                (settings(replica, false), format!("{refusal}{SLAVE}{info}")),
                (reads, format!("{refusal}{MASTER}{}", info.repeat(2))),
            ] {
                let answer = answer(&settings, &bytes);
                assert_eq!(answer.result, CheckResult::Ok, "{}", answer.transcript);
                assert_eq!(answer.finding.fault.as_ref(), Some(&fault));
                let transcript = format!("PING: \"{word} this or that\", ROLE: ");
                assert!(
                    answer.transcript.starts_with(&transcript),
                    "{}",
                    answer.transcript
                );
            }
            // What it has against its replication counts, whatever it refuses.
            let down = text("master_link_status:down\r\n");
            let cut_off = answer(
                &settings(replica, false),
                &format!("{refusal}{SLAVE}{down}"),
            );
            assert_eq!(cut_off.result, CheckResult::NotReplicating);
            assert_eq!(cut_off.finding.fault.as_deref(), Some(info::LINK_DOWN));
        }
        let busy = "-BUSY Redis is busy running a script. You can only call SCRIPT KILL\r\n";
        let reads = RedisCheck {
            require_writes: false,
            ..settings(primary, false)
        };
        for (settings, result) in [
            (settings(primary, false), CheckResult::RefusesWrites),
            (settings(replica, false), CheckResult::Busy),
            (settings(None, false), CheckResult::Ok),
            (settings(None, true), CheckResult::Ok),
            (reads, CheckResult::Busy),
        ] {
            assert_eq!(answer(&settings, busy).result, result);
        }
        let begun = answer(&settings(replica, false), &format!("+PONG\r\n{busy}"));
        assert_eq!(begun.result, CheckResult::Busy);
        let begun = answer(
            &settings(replica, false),
            &format!("+PONG\r\n{SLAVE}{busy}"),
        );
        assert_eq!(begun.result, CheckResult::Ok, "{}", begun.transcript);
    }

    #[test]
    fn an_echo_does_not_show_the_password() {
        let settings = settings(None, true);
        let mut echo = Vec::new();
        settings.write_commands(&mut echo);
        for prefix in ["", "-", "-ERR ", "-WRONGPASS ", "+", "+OK\r\n-"] {
            for end in ["", "\r\n"] {
                let bytes = [prefix.as_bytes(), &echo, end.as_bytes()].concat();
                for answer in (0..=bytes.len()).filter_map(|n| settings.receive(&bytes[..n])) {
                    assert!(
                        !answer.transcript.contains("xyz"),
                        "{prefix}: {}",
                        answer.transcript
                    );
                }
            }
        }
        let echo = settings
            .receive(b"-ERR xyzzy xyzzy\r\n")
            .expect("an answer");
        assert_eq!(echo.transcript, "AUTH: ERR");
        assert_eq!(
            settings
                .receive(b"-xyzzy xyzzy\r\n")
                .expect("an answer")
                .transcript,
            "AUTH: 11 bytes"
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, text in "[-+:$*0-9\r\na]{0,40}") {
            let settings = settings(Some(Role::Primary), false);
            let _ = (settings.receive(&bytes), settings.receive(text.as_bytes()));
        }
    }
}
