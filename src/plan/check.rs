//! Health checks: how backends are checked, and what becomes of their sessions.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Addr, Rcode, RecordType,
    reason::{CheckResult, words},
};

/// How the backends of an upstream are checked, and what becomes of their sessions when a check
/// fails.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Check {
    pub kind: CheckKind,
    /// From the beginning of one check to that of the next.
    pub interval: Duration,
    /// The same while the verdict is changing; not longer than `interval`.
    pub fast_interval: Duration,
    /// For the whole of a check.
    pub timeout: Duration,
    /// So many good answers in a row bring a backend back; at least 1.
    pub rise: u32,
    /// So many failures in a row take it out; at least 1.
    pub fall: u32,
    /// A primary that has given no certain answer for so long takes nothing new; `None`: there is
    /// no limit.
    pub stale_after: Option<Duration>,
    /// In percent: while fewer of the backends are up by their checks, all are used. 0: never.
    /// Only without a role.
    pub panic_threshold: u32,
    /// Whether standbys, which are primaries, are used while no replica is up; only with the role
    /// of a replica.
    pub role_fallback: bool,
    /// Whether a backend may be used before its first check has ended.
    pub start_up: bool,
    pub at: CheckAt,
    pub tls: Tls,
    pub on_down: SessionAction,
    pub on_role_lost: SessionAction,
    pub on_lag: SessionAction,
    /// For the sessions on backups.
    pub on_recover: SessionAction,
}

impl Check {
    /// The files that it reads, by their keys.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let password = match self.kind.password() {
            Some(PasswordFrom::File(path)) => Some(("password_file", path.as_path())),
            Some(PasswordFrom::Variable(_)) | None => None,
        };
        let ca = match &self.tls {
            Tls::Verify { ca: Some(path), .. } => Some(("tls_ca", path.as_path())),
            Tls::Verify { ca: None, .. } | Tls::Off | Tls::Require => None,
        };
        password.into_iter().chain(ca)
    }

    /// Whether it needs files, its own or those of the system.
    pub fn reads_files(&self) -> bool {
        self.files().next().is_some() || matches!(self.tls, Tls::Verify { .. })
    }
}

/// Where the check goes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum CheckAt {
    #[default]
    Backend,
    /// The same host, another port.
    Port(u16),
    /// One address for all backends.
    Addr(Addr),
}

/// Whether a check is encrypted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Tls {
    #[default]
    Off,
    /// With any certificate.
    Require,
    Verify {
        /// The certificates that are trusted; `None`: those of the system.
        ca: Option<PathBuf>,
        /// What the certificate must name; `None`: the host or address that is checked.
        name: Option<String>,
    },
}

/// What becomes of sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SessionAction {
    #[default]
    Keep,
    /// Those of TCP are kept; flows of UDP go to another backend at their next datagram.
    Move,
    Close,
    /// Unless things are well again by then.
    CloseAfter(Duration),
}

impl SessionAction {
    pub fn word(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Move => "move",
            Self::Close => "close",
            Self::CloseAfter(_) => "close_after",
        }
    }
}

/// A protocol of checks. It is declared by [`CheckProtocol::info`], its keys by
/// `config::check::kind`, and its dialogue by `probe`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckProtocol {
    Tcp,
    SendExpect,
    Http,
    Redis,
    Postgres,
    Mysql,
    Dns,
}

/// What a kind of check can do.
#[derive(Debug, PartialEq, Eq)]
pub struct KindInfo {
    pub kind: CheckProtocol,
    /// As it is written in the configuration.
    pub name: &'static str,
    pub tls: StartTls,
    /// Whether it can log in; a kind that does can require a role, replication and a limited lag.
    pub logs_in: bool,
}

/// When TLS begins, in a check that uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartTls {
    /// The protocol is never encrypted.
    Never,
    /// Right after the connect.
    AtOnce,
    /// After a request in the clear.
    OnRequest,
}

impl CheckProtocol {
    pub const ALL: [Self; 7] = [
        Self::Tcp,
        Self::SendExpect,
        Self::Http,
        Self::Redis,
        Self::Postgres,
        Self::Mysql,
        Self::Dns,
    ];

    pub fn info(self) -> &'static KindInfo {
        use StartTls::{AtOnce, Never, OnRequest};
        macro_rules! info {
            ($($kind:ident $name:literal $tls:ident $logs_in:literal;)*) => {
                match self {
                    $(Self::$kind => &KindInfo {
                        kind: Self::$kind,
                        name: $name,
                        tls: $tls,
                        logs_in: $logs_in,
                    },)*
                }
            };
        }
        info! {
            Tcp "tcp" Never false;
            SendExpect "send_expect" Never false;
            Http "http" AtOnce false;
            Redis "redis" AtOnce true;
            Postgres "postgres" OnRequest true;
            Mysql "mysql" OnRequest true;
            Dns "dns" Never false;
        }
    }
}

impl CheckProtocol {
    /// Whether a check by this protocol can end so.
    pub fn can_find(self, result: CheckResult) -> bool {
        match result {
            CheckResult::Ok
            | CheckResult::Refused
            | CheckResult::Timeout
            | CheckResult::Unreachable
            | CheckResult::Reset
            | CheckResult::Local => true,
            // A connect is no dialogue.
            CheckResult::Closed | CheckResult::Protocol | CheckResult::Unexpected => {
                self != Self::Tcp
            }
            CheckResult::Tls => self.info().tls != StartTls::Never,
            CheckResult::Standby
            | CheckResult::WrongRole
            | CheckResult::Auth
            | CheckResult::Loading
            | CheckResult::Lagging
            | CheckResult::NotReplicating => self.info().logs_in,
            CheckResult::RefusesWrites | CheckResult::Busy | CheckResult::MasterDown => {
                self == Self::Redis
            }
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum CheckKind {
    #[default]
    Tcp,
    SendExpect {
        send: Vec<u8>,
        expect: Expect,
    },
    Http {
        /// What follows GET.
        path: String,
        /// `None`: the address that is checked.
        host: Option<String>,
        /// Ranges of what is well, both ends included; at least one.
        status: Vec<(u16, u16)>,
    },
    Redis {
        /// `None`: any.
        role: Option<Role>,
        user: Option<String>,
        password: Option<PasswordFrom>,
        /// Whether a replica must be connected to its primary and synced; only with the role of a
        /// replica.
        replicating: bool,
        /// Since a replica last received anything from its primary; `None`: it does not matter.
        max_lag: Option<Duration>,
        min_version: Option<Version>,
        /// Whether one that refuses writes is down.
        require_writes: bool,
    },
    Postgres {
        /// `None`: any.
        role: Option<Role>,
        /// `None`: the check only sees whether the server accepts logins.
        login: Option<Login>,
        /// User and database of such a check. `None`: ones that need not exist.
        startup: Option<(String, String)>,
        /// Whether a replica must receive and replay; only with the role of a replica.
        replicating: bool,
        limit: LagLimit,
    },
    Mysql {
        /// `None`: any.
        role: Option<Role>,
        user: String,
        password: Option<PasswordFrom>,
        /// Whether the threads of a replica must run; only with the role of a replica.
        replicating: bool,
        /// A replica may be so far behind; `None`: as far as it will.
        max_lag: Option<Duration>,
    },
    /// Over UDP.
    Dns {
        /// Can be written in a question: labels of 1 to 63 bytes, at most 253 together; "." is the
        /// root.
        query: String,
        query_type: RecordType,
        /// What is well; at least one.
        rcode: Vec<Rcode>,
    },
}

/// The account that a check uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    pub user: String,
    pub password: Option<PasswordFrom>,
    pub database: String,
}

/// Of a server: as in 7.0.15.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub [u32; 3]);

impl Version {
    /// One to three numbers with points between them.
    pub fn read(text: &str) -> Option<Self> {
        let mut numbers = [0; 3];
        let mut parts = text.split('.');
        for (at, number) in numbers.iter_mut().enumerate() {
            match parts.next() {
                Some(part) if part.bytes().all(|b| b.is_ascii_digit()) => {
                    *number = part.parse().ok()?;
                }
                None if at > 0 => {}
                _ => return None,
            }
        }
        parts.next().is_none().then_some(Self(numbers))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.0;
        write!(f, "{major}.{minor}.{patch}")
    }
}

/// How far a replica may be behind; `None`: it does not matter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LagLimit {
    pub time: Option<Duration>,
    pub bytes: Option<u64>,
}

impl CheckKind {
    pub fn info(&self) -> &'static KindInfo {
        let kind = match self {
            Self::Tcp => CheckProtocol::Tcp,
            Self::SendExpect { .. } => CheckProtocol::SendExpect,
            Self::Http { .. } => CheckProtocol::Http,
            Self::Redis { .. } => CheckProtocol::Redis,
            Self::Postgres { .. } => CheckProtocol::Postgres,
            Self::Mysql { .. } => CheckProtocol::Mysql,
            Self::Dns { .. } => CheckProtocol::Dns,
        };
        kind.info()
    }

    /// How far a replica may be behind.
    pub fn lag_limit(&self) -> LagLimit {
        match self {
            Self::Redis { max_lag, .. } | Self::Mysql { max_lag, .. } => LagLimit {
                time: *max_lag,
                bytes: None,
            },
            Self::Postgres { limit, .. } => *limit,
            Self::Tcp | Self::SendExpect { .. } | Self::Http { .. } | Self::Dns { .. } => {
                LagLimit::default()
            }
        }
    }

    pub fn password(&self) -> Option<&PasswordFrom> {
        match self {
            Self::Redis { password, .. } | Self::Mysql { password, .. } => password.as_ref(),
            Self::Postgres { login, .. } => login.as_ref()?.password.as_ref(),
            _ => None,
        }
    }

    /// Whether a replica is left out that does not replicate.
    pub fn requires_replication(&self) -> bool {
        match self {
            Self::Redis { replicating, .. }
            | Self::Postgres { replicating, .. }
            | Self::Mysql { replicating, .. } => *replicating,
            _ => false,
        }
    }

    /// Whether it can find a replica to be lagging.
    pub fn limits_lag(&self) -> bool {
        self.requires_replication() || self.lag_limit() != LagLimit::default()
    }

    /// Whether the answers show a role, whether one is required or not.
    pub fn tells_role(&self) -> bool {
        match self {
            Self::Redis { .. } | Self::Mysql { .. } => true,
            Self::Postgres { login, .. } => login.is_some(),
            _ => false,
        }
    }

    /// The role that is required.
    pub fn role(&self) -> Option<Role> {
        match self {
            Self::Redis { role, .. } | Self::Postgres { role, .. } | Self::Mysql { role, .. } => {
                *role
            }
            _ => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    Bytes(Vec<u8>),
    /// Validated: it compiles.
    Regex(String),
}

/// Where a password is to be found; never the password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PasswordFrom {
    File(PathBuf),
    Variable(String),
}

words! {
    Role {
        Primary = "primary",
        Replica = "replica",
    }
}
