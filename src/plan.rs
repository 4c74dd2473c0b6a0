//! What the program runs on: validated, complete, and free of "maybe".
//!
//! `config` turns what the user wrote into a [`Plan`]; from there on nobody asks whether a value
//! was given or makes sense. Only the standard library is used here.

pub mod access;
pub mod diff;
pub mod reason;

mod udp;

pub use udp::{FlowsMove, Protocol, ProxyOn, Udp, WhenFull};

use std::{fmt, net::IpAddr, net::SocketAddr, path::PathBuf, time::Duration};

/// Everything one process does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub process: Process,
    pub admin: Option<Admin>,
    pub log: Log,
    /// In the order of the file. Names are unique.
    pub listeners: Vec<Listener>,
    /// In the order of the file. Names are unique; every listener names one of these.
    pub upstreams: Vec<Upstream>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Threads that carry traffic; 0 means one for each CPU the process may use.
    pub workers: usize,
    /// Sessions over all TCP listeners; 0 means what RLIMIT_NOFILE allows.
    pub max_connections: u64,
    /// Flows over all UDP listeners; 0 means what RLIMIT_NOFILE and the range of local ports allow.
    pub max_flows: u64,
    /// How long listeners wait for the first verdicts of their upstreams before they accept.
    pub start_wait: StartWait,
    /// How long sessions may go on after the process was asked to stop.
    pub drain_timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartWait {
    /// As long as a first check takes that ends by its timeout.
    Auto,
    AtMost(Duration),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// One of the two is there.
    pub listen: Option<SocketAddr>,
    /// The path of a unix socket, on which alone there is control.
    pub socket: Option<PathBuf>,
    /// Names that the Host header of a request to `listen` may have, besides IP addresses and
    /// localhost: in lower case, without a dot at the end.
    pub hosts: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    pub level: LogLevel,
    pub format: LogFormat,
    pub access: AccessLog,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    Text,
    Json,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessLog {
    Off,
    Stdout,
    File(PathBuf),
}

/// A place where clients arrive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    pub name: String,
    pub protocol: Protocol,
    /// At least one.
    pub bind: Vec<Bind>,
    /// The name of an upstream of the same plan.
    pub upstream: String,
    /// For each attempt; never zero.
    pub connect_timeout: Duration,
    /// No byte in either direction for this long ends the session; `None`: no limit.
    pub idle_timeout: Option<Duration>,
    /// The same once one side has ended; `None`: only `idle_timeout` counts.
    pub half_close_timeout: Option<Duration>,
    /// Whether the other side goes on when one has ended.
    pub half_close: bool,
    /// Further backends tried after a failed connect.
    pub retries: u32,
    /// Sessions at once; 0 means no limit of this listener's own, or for UDP an equal share of
    /// `max_flows`.
    pub max_connections: u64,
    /// The first match decides; no match: allowed.
    pub access: Vec<AccessRule>,
    /// Whether clients come through proxies that say who they are.
    pub accept_proxy: Option<AcceptProxy>,
    pub backlog: u32,
    pub socket: SocketOptions,
    /// Of the unix sockets among `bind`.
    pub unix: UnixFile,
}

/// Who begins with a PROXY protocol header, and in what time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptProxy {
    /// From these a header is required, from others none is accepted. At least one.
    pub trust: Vec<Who>,
    /// From the accept to the end of the header; never zero.
    pub timeout: Duration,
}

/// The rights of the file of a unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnixFile {
    /// Permission bits.
    pub mode: u32,
    /// A user's name or number; `None`: the user that the process runs as.
    pub owner: Option<String>,
    /// The same of a group.
    pub group: Option<String>,
}

/// Options set on both sockets of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketOptions {
    pub nodelay: bool,
    pub keepalive: Option<Keepalive>,
    /// How long data may not be acknowledged, while the peer's window is open or probes of it are
    /// not answered; `None` leaves it to the kernel.
    pub user_timeout: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    pub idle: Duration,
    pub interval: Duration,
    pub count: u32,
}

/// One `bind` entry: the text as configured, and every place it stands for (a port range is many).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    pub text: String,
    pub addrs: Vec<Addr>,
}

/// Where a socket can be bound or connected to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Addr {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessRule {
    pub allow: bool,
    pub who: Who,
}

/// Whom an access rule or a list of those who are trusted speaks of. Clients on a unix socket match
/// `All` and `Unix` only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    All,
    Unix,
    /// The network address with host bits cleared, and the prefix length.
    Net(IpAddr, u8),
}

/// A named group of backends with one balancing policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    pub name: String,
    pub balance: Balance,
    /// In the order of the file: it decides ties. Texts are unique; at least one.
    pub backends: Vec<Backend>,
    /// How often host names are looked up again; `None`: only at the start.
    pub resolve_interval: Option<Duration>,
    /// Whether a name that does not resolve at the start is an error.
    pub resolve_required: bool,
    pub send_proxy: SendProxy,
    /// Over UDP.
    pub send_proxy_on: ProxyOn,
    /// Whether a session that the backend resets before the first byte of an answer counts as a
    /// failed connect.
    pub fail_on_reset: bool,
    /// Active health checks; `None`: passive ones only.
    pub check: Option<Check>,
    /// What becomes of the sessions of a backend that the operator takes out; nobody is told to end
    /// where there is no operator.
    pub on_drain: OnLeave,
    /// What the actions mean for flows; `down` and `drain` also without a check and an operator.
    pub flows_move: FlowsMove,
}

/// How the backends of an upstream are asked whether they are well, and what becomes of their
/// sessions when they are not.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// A primary that has given no certain answer for so long takes nothing new; `None`: however
    /// long.
    pub stale_after: Option<Duration>,
    /// In percent: while fewer of the backends are up by their checks, all are used. 0: never.
    /// Only without a role.
    pub panic_threshold: u32,
    /// Whether a backend may be used before its first check has ended.
    pub start_up: bool,
    pub at: CheckAt,
    pub tls: Tls,
    pub on_down: OnLeave,
    pub on_role_lost: OnLeave,
    pub on_lag: OnLeave,
    /// For the sessions on backups.
    pub on_recover: OnLeave,
}

/// Where the check goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckAt {
    Backend,
    /// The same host, another port.
    Port(u16),
    /// One place for all backends.
    Addr(Addr),
}

/// Whether a check is encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tls {
    Off,
    /// Whoever the server is.
    Require,
    Verify {
        /// The certificates that are trusted; `None`: those of the system.
        ca: Option<PathBuf>,
        /// Whom the certificate must name; `None`: the host or address that is asked.
        name: Option<String>,
    },
}

/// What becomes of sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnLeave {
    Keep,
    /// Those of TCP are kept; flows of UDP go to another backend at their next datagram.
    Move,
    Close,
    /// Unless things are well again by then.
    CloseAfter(Duration),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckKind {
    Tcp,
    SendExpect {
        send: Vec<u8>,
        expect: Expect,
    },
    Http {
        /// What follows GET.
        path: String,
        /// `None`: the address that is asked.
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
        /// Since a replica last heard from its primary; `None`: it does not matter.
        max_lag: Option<Duration>,
        min_version: Option<Version>,
        /// Whether one that refuses writes is down.
        require_writes: bool,
    },
    Postgres {
        /// `None`: any.
        role: Option<Role>,
        /// `None`: nothing is asked but whether the server would let a user log in.
        login: Option<Login>,
        /// As whom that is asked: user and database. `None`: as one that need not exist.
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
        query_type: DnsType,
        /// What is well; at least one.
        rcode: Vec<Rcode>,
    },
}

/// Declares what the DNS has a word and a number for.
macro_rules! dns_words {
    ($(#[$doc:meta])* $name:ident: $number:ty { $($variant:ident = $word:literal $value:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($variant,)* }

        impl $name {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            pub fn number(self) -> $number {
                match self { $(Self::$variant => $value,)* }
            }
        }
    };
}

dns_words! {
    /// What is asked for.
    DnsType: u16 {
        A = "A" 1,
        Ns = "NS" 2,
        Cname = "CNAME" 5,
        Soa = "SOA" 6,
        Ptr = "PTR" 12,
        Mx = "MX" 15,
        Txt = "TXT" 16,
        Aaaa = "AAAA" 28,
        Srv = "SRV" 33,
    }
}

dns_words! {
    /// What came of a question.
    Rcode: u8 {
        NoError = "NOERROR" 0,
        FormErr = "FORMERR" 1,
        ServFail = "SERVFAIL" 2,
        NxDomain = "NXDOMAIN" 3,
        NotImp = "NOTIMP" 4,
        Refused = "REFUSED" 5,
    }
}

/// As whom a check asks.
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
    /// As it is written in the configuration.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::SendExpect { .. } => "send_expect",
            Self::Http { .. } => "http",
            Self::Redis { .. } => "redis",
            Self::Postgres { .. } => "postgres",
            Self::Mysql { .. } => "mysql",
            Self::Dns { .. } => "dns",
        }
    }

    /// Whether it knows how to be encrypted.
    pub fn speaks_tls(&self) -> bool {
        matches!(
            self,
            Self::Http { .. } | Self::Redis { .. } | Self::Postgres { .. } | Self::Mysql { .. }
        )
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
        if self.requires_replication() {
            return true;
        }
        match self {
            Self::Redis { max_lag, .. } | Self::Mysql { max_lag, .. } => max_lag.is_some(),
            Self::Postgres { limit, .. } => *limit != LagLimit::default(),
            _ => false,
        }
    }

    /// Whether the answers tell a role, be one asked for or not.
    pub fn tells_role(&self) -> bool {
        match self {
            Self::Redis { .. } | Self::Mysql { .. } => true,
            Self::Postgres { login, .. } => login.is_some(),
            _ => false,
        }
    }

    /// The role that is asked for.
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
    /// Known to compile.
    Regex(String),
}

/// Where a password is to be found; never the password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PasswordFrom {
    File(PathBuf),
    Variable(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Primary,
    Replica,
}

impl Role {
    pub const ALL: [Self; 2] = [Self::Primary, Self::Replica];

    pub fn word(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Replica => "replica",
        }
    }
}

/// The PROXY protocol header that a backend gets before anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendProxy {
    Off,
    V1,
    V2 {
        /// Whether the TLVs of an accepted header are passed on.
        tlvs: bool,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Balance {
    RoundRobin,
    LeastConn,
    RandomTwo,
    LeastTime(TimeOf),
    First,
    Hash(HashKey),
    IpHash,
    ConsistentHash(HashKey, Bound),
    Maglev(HashKey, Bound),
}

impl Balance {
    /// As it is written in the configuration.
    pub fn word(&self) -> &'static str {
        match self {
            Self::RoundRobin => "round_robin",
            Self::LeastConn => "least_conn",
            Self::RandomTwo => "random_two",
            Self::LeastTime(_) => "least_time",
            Self::First => "first",
            Self::Hash(_) => "hash",
            Self::IpHash => "ip_hash",
            Self::ConsistentHash(..) => "consistent_hash",
            Self::Maglev(..) => "maglev",
        }
    }

    /// What it hashes, if it is given a key to hash.
    pub fn hash_key(&self) -> Option<&HashKey> {
        match self {
            Self::Hash(key) | Self::ConsistentHash(key, _) | Self::Maglev(key, _) => Some(key),
            _ => None,
        }
    }
}

/// Which time `least_time` compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeOf {
    Connect,
    /// From the beginning of the connect to the first byte of an answer.
    FirstByte,
}

/// Bounded load: in percent of the even share, above 100; `None`: not bounded.
pub type Bound = Option<u32>;

/// What a hash policy hashes: its parts one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashKey(pub Vec<KeyPart>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyPart {
    Text(String),
    Variable(Variable),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variable {
    /// The client's address as text; `unix:` for one on a unix socket.
    RemoteAddr,
    /// Its 4 or 16 bytes.
    BinaryRemoteAddr,
    /// Empty on a unix socket.
    RemotePort,
    /// The port that the client connected to; empty on a unix socket.
    ServerPort,
    /// The address in an accepted PROXY header; empty without one.
    ProxyProtocolAddr,
}

impl Variable {
    pub const ALL: [Self; 5] = [
        Self::RemoteAddr,
        Self::BinaryRemoteAddr,
        Self::RemotePort,
        Self::ServerPort,
        Self::ProxyProtocolAddr,
    ];

    /// Its name, as nginx has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::RemoteAddr => "remote_addr",
            Self::BinaryRemoteAddr => "binary_remote_addr",
            Self::RemotePort => "remote_port",
            Self::ServerPort => "server_port",
            Self::ProxyProtocolAddr => "proxy_protocol_addr",
        }
    }
}

impl HashKey {
    pub fn uses(&self, variable: Variable) -> bool {
        self.0.contains(&KeyPart::Variable(variable))
    }
}

impl Default for HashKey {
    fn default() -> Self {
        Self(vec![KeyPart::Variable(Variable::RemoteAddr)])
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// The address exactly as configured: label, log word and hash input.
    pub text: String,
    pub target: Target,
    /// 0 means: takes nothing new.
    pub weight: u32,
    /// Failed attempts within `fail_timeout` that make it unavailable; 0 means never.
    pub max_fails: u32,
    pub fail_timeout: Duration,
    /// Sessions at once; 0 means no limit.
    pub max_connections: u64,
    /// After it has come back, its weight grows from nothing to the whole over this time; zero: at
    /// once.
    pub slow_start: Duration,
    pub backup: bool,
    pub down: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Addr(Addr),
    /// A host name, resolved at the start and again later; it may stand for several addresses.
    Name {
        host: String,
        port: u16,
    },
}
