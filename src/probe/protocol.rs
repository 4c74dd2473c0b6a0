//! Which dialogue each kind of check begins.

use super::{
    Secret,
    dialogue::{Answer, Dialogue, MAX_BYTES, RequestAnswer},
    dns, expect, http, mysql, postgres, redis, resp,
};
use crate::plan::{Addr, Check, CheckKind, Tls, reason::CheckResult};

/// A protocol with the settings of a check: begins one dialogue for each time.
pub(super) trait Protocol: Send + Sync {
    fn begin(&self) -> Box<dyn Dialogue + '_>;
}

/// How a check reaches its server.
pub(super) enum Exchange {
    Stream(Box<dyn Protocol>),
    Datagram(dns::DnsCheck),
}

impl Exchange {
    /// `addr` is the address that is checked.
    pub(super) fn new(check: &Check, addr: &Addr, secret: Option<Secret>) -> Self {
        let is_encrypted = check.tls != Tls::Off;
        let is_local = matches!(addr, Addr::Unix(_));
        Self::Stream(match &check.kind {
            CheckKind::Tcp => Box::new(Connect),
            CheckKind::SendExpect { send, expect } => {
                Box::new(expect::ExpectCheck::new(send, expect))
            }
            CheckKind::Http { path, host, status } => {
                let default = || http::host_of(addr, is_encrypted);
                let host = host.clone().unwrap_or_else(default);
                Box::new(http::HttpCheck::new(path, &host, status))
            }
            CheckKind::Redis {
                role,
                user,
                password: _,
                replicating,
                max_lag,
                min_version,
                require_writes,
            } => Box::new(redis::RedisCheck {
                wanted: *role,
                replicating: *replicating,
                user: user.clone(),
                secret,
                max_lag: *max_lag,
                min_version: *min_version,
                require_writes: *require_writes,
            }),
            CheckKind::Postgres {
                role,
                login,
                startup,
                replicating,
                limit,
            } => Box::new(postgres::PostgresCheck {
                wanted: *role,
                replicating: *replicating,
                user: login.as_ref().map(|login| postgres::User {
                    name: login.user.clone(),
                    database: login.database.clone(),
                    secret,
                }),
                startup: startup.clone(),
                limit: *limit,
                encrypted: is_encrypted,
                local: is_local,
            }),
            CheckKind::Mysql {
                role,
                user,
                password: _,
                replicating,
                max_lag,
            } => Box::new(mysql::MysqlCheck {
                role: *role,
                replicating: *replicating,
                max_lag: *max_lag,
                user: user.clone(),
                secret,
                encrypted: is_encrypted,
                verified: matches!(check.tls, Tls::Verify { .. }),
                local: is_local,
            }),
            CheckKind::Dns {
                query,
                query_type,
                rcode,
            } => return Self::Datagram(dns::DnsCheck::new(query, *query_type, rcode)),
        })
    }
}

/// Only connects.
struct Connect;

impl Protocol for Connect {
    fn begin(&self) -> Box<dyn Dialogue + '_> {
        let connected = || Answer::new(CheckResult::Ok, "connected");
        Box::new(RequestAnswer {
            request: None,
            read: move |_: &[u8], _| Some(connected()),
            max_bytes: MAX_BYTES,
            is_secret: false,
        })
    }
}

impl Protocol for expect::ExpectCheck {
    fn begin(&self) -> Box<dyn Dialogue + '_> {
        Box::new(RequestAnswer {
            request: Some(self.request().to_vec()),
            read: |bytes: &[u8], ended| self.receive(bytes, ended),
            max_bytes: MAX_BYTES,
            is_secret: false,
        })
    }
}

impl Protocol for http::HttpCheck {
    fn begin(&self) -> Box<dyn Dialogue + '_> {
        Box::new(RequestAnswer {
            request: Some(self.request().to_vec()),
            read: |bytes: &[u8], _| self.receive(bytes),
            max_bytes: MAX_BYTES,
            is_secret: false,
        })
    }
}

impl Protocol for redis::RedisCheck {
    fn begin(&self) -> Box<dyn Dialogue + '_> {
        let mut commands = Vec::new();
        self.write_commands(&mut commands);
        Box::new(RequestAnswer {
            request: Some(commands),
            read: |bytes: &[u8], _| self.receive(bytes),
            max_bytes: resp::MAX_BYTES,
            is_secret: self.has_secret(),
        })
    }
}

impl Protocol for postgres::PostgresCheck {
    fn begin(&self) -> Box<dyn Dialogue + '_> {
        Box::new(self.dialogue())
    }
}

impl Protocol for mysql::MysqlCheck {
    fn begin(&self) -> Box<dyn Dialogue + '_> {
        Box::new(mysql::MysqlDialogue::new(self))
    }
}
