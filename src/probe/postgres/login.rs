//! How a user logs in: by trust, with the password, MD5 or SCRAM-SHA-256. No I/O; SCRAM
//! draws a nonce.

use super::super::Secret;
use crate::plan::reason::CheckResult;
use bytes::BytesMut;
use postgres_protocol::{
    authentication::{
        md5_hash,
        sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256},
    },
    message::frontend,
};
use std::io;

/// The library refuses more, which would take too long, but its error does not give this reason.
const MOST_ITERATIONS: u64 = 100_000;

/// Why a login cannot succeed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LoginError {
    pub(super) result: CheckResult,
    pub(super) why: String,
}

pub(super) struct Login<'a> {
    user: &'a str,
    secret: Option<&'a Secret>,
    /// Whether the connection cannot be eavesdropped on.
    covered: bool,
    /// What proves that the TLS on this line is the server's own.
    end_point: Option<Vec<u8>>,
    step: LoginStep,
}

enum LoginStep {
    /// The server has not requested anything yet.
    Open,
    /// It has what it requested, and has not accepted it yet.
    Answered,
    /// The first message of SCRAM is sent.
    Begun(ScramSha256),
    /// The second one is sent, and the server has to prove that it knows the password.
    Proved(ScramSha256),
    In,
}

impl<'a> Login<'a> {
    pub(super) fn new(
        user: &'a str,
        secret: Option<&'a Secret>,
        covered: bool,
        end_point: Option<Vec<u8>>,
    ) -> Self {
        Self {
            user,
            secret,
            covered,
            end_point,
            step: LoginStep::Open,
        }
    }

    pub(super) fn is_in(&self) -> bool {
        matches!(self.step, LoginStep::In)
    }

    /// What is answered to a message about authentication, if anything.
    pub(super) fn receive(&mut self, inside: &[u8]) -> Result<Vec<u8>, LoginError> {
        let (method, rest) = inside.split_first_chunk().ok_or_else(wrong)?;
        let step = std::mem::replace(&mut self.step, LoginStep::Answered);
        match (u32::from_be_bytes(*method), step) {
            // After SCRAM has begun, a server that skips its proof does not know the password.
            (0, LoginStep::Open | LoginStep::Answered) => {
                self.step = LoginStep::In;
                Ok(Vec::new())
            }
            (0, LoginStep::Begun(_) | LoginStep::Proved(_)) => Err(refused(
                "it let us in before it had proved that it knows the password",
            )),
            (3, LoginStep::Open) if !self.covered => Err(refused(
                "it asks for the password in clear text, which is sent only inside TLS",
            )),
            (3, LoginStep::Open) => encode(|out| frontend::password_message(self.password()?, out)),
            (5, LoginStep::Open) => {
                let salt = rest.try_into().map_err(|_| wrong())?;
                let user = self.user.as_bytes();
                encode(|out| {
                    let hash = md5_hash(user, self.password()?, salt);
                    frontend::password_message(hash.as_bytes(), out)
                })
            }
            (10, LoginStep::Open) => self.begin(rest),
            (11, LoginStep::Begun(mut scram)) => {
                scram.update(rest).map_err(|_| match iterations(rest) {
                    Some(n) if n > MOST_ITERATIONS => refused(&format!(
                        "it asks for {n} iterations of SCRAM, more than the {MOST_ITERATIONS} \
                         that are done here"
                    )),
                    _ => LoginError {
                        why: "its half of SCRAM makes no sense".to_owned(),
                        ..wrong()
                    },
                })?;
                let message = encode(|out| frontend::sasl_response(scram.message(), out));
                self.step = LoginStep::Proved(scram);
                message
            }
            (12, LoginStep::Proved(mut scram)) => {
                let proof = scram.finish(rest);
                proof.map_err(|_| refused("it cannot prove that it knows the password"))?;
                Ok(Vec::new())
            }
            // The middle of something that has not begun.
            (8 | 11 | 12, _) => Err(wrong()),
            (method, LoginStep::Open) => Err(refused(&format!(
                "it asks for authentication that is not supported here: {}",
                match method {
                    2 => "Kerberos 5".to_owned(),
                    7 => "GSSAPI".to_owned(),
                    9 => "SSPI".to_owned(),
                    other => format!("method {other}"),
                }
            ))),
            _ => Err(wrong()),
        }
    }

    /// As libpq does: bound to the certificate where the server offers it; where it does not, the
    /// message states that this client supports it, so that an attack that removes the offer is
    /// detected.
    fn begin(&mut self, offered: &[u8]) -> Result<Vec<u8>, LoginError> {
        let offers = |name: &str| offered.split(|b| *b == 0).any(|o| o == name.as_bytes());
        let (mechanism, binding) = match self.end_point.take() {
            Some(end_point) if offers(SCRAM_SHA_256_PLUS) => (
                SCRAM_SHA_256_PLUS,
                ChannelBinding::tls_server_end_point(end_point),
            ),
            Some(_) => (SCRAM_SHA_256, ChannelBinding::unrequested()),
            None => (SCRAM_SHA_256, ChannelBinding::unsupported()),
        };
        if !offers(mechanism) {
            return Err(refused(
                "it asks for authentication that is not supported here: SASL without SCRAM-SHA-256",
            ));
        }
        let password = self.password().map_err(|e| refused(&e.to_string()))?;
        let scram = ScramSha256::new(password, binding);
        let message =
            encode(|out| frontend::sasl_initial_response(mechanism, scram.message(), out));
        self.step = LoginStep::Begun(scram);
        message
    }

    fn password(&self) -> io::Result<&[u8]> {
        let none = || io::Error::other("it asks for a password, and none is configured");
        self.secret.map(Secret::bytes).ok_or_else(none)
    }
}

/// The number of hash iterations that the server requires.
fn iterations(message: &[u8]) -> Option<u64> {
    let message = std::str::from_utf8(message).ok()?;
    let digits = message
        .split(',')
        .find_map(|part| part.strip_prefix("i="))?;
    digits.parse().ok()
}

pub(super) fn encode(
    write: impl FnOnce(&mut BytesMut) -> io::Result<()>,
) -> Result<Vec<u8>, LoginError> {
    let mut out = BytesMut::new();
    // The library's own reason is that there is a zero byte in a text.
    write(&mut out).map_err(|e| refused(&e.to_string()))?;
    Ok(out.to_vec())
}

fn refused(why: &str) -> LoginError {
    LoginError {
        result: CheckResult::Auth,
        why: why.to_owned(),
    }
}

fn wrong() -> LoginError {
    LoginError {
        result: CheckResult::Protocol,
        why: "this is not PostgreSQL: its authentication makes no sense".to_owned(),
    }
}
