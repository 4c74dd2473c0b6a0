//! What the program runs on: validated, complete, and free of "maybe".
//!
//! `config` turns what the user wrote into a [`Plan`]; from there on no code asks whether a value
//! was given or makes sense. Only the standard library is used here. `Default` gives the values
//! that a field has before its key is read; the defaults of keys are in `config::keys`.

pub mod access;
pub mod diff;
pub mod reason;

mod check;
mod discover;
mod dns;
mod limits;
mod nodes;
mod udp;
mod words;

pub use check::{
    Check, CheckAt, CheckKind, CheckProtocol, Expect, KindInfo, LagLimit, Login, PasswordFrom,
    Role, SessionAction, StartTls, Tls, Version,
};
pub use discover::{
    Discover, DiscoverKind, DiscoverSource, Origin, RedisLogin, ServerAddress, Want,
};
pub use dns::{Rcode, RecordType};
pub use limits::{Bandwidth, Limits, OverRate, Period, Rate, Source, SourcePrefix};
pub use udp::{FlowsMove, Protocol, ProxyOn, Udp, WhenFull};
pub use words::{counted, no_backend_left};

use reason::{Shortage, words};
use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

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

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Process {
    /// Threads that carry traffic; 0 means one for each CPU the process may use.
    pub workers: usize,
    /// Sessions over all TCP listeners; 0 means what RLIMIT_NOFILE allows.
    pub max_connections: u64,
    /// Flows over all UDP listeners; 0 means what RLIMIT_NOFILE and the range of local ports allow.
    pub max_flows: u64,
    /// How long listeners wait for the first verdicts of their upstreams before they accept.
    pub start_wait: StartWait,
    /// How long clients are accepted after a stop was requested, while the node is not ready.
    pub drain_delay: Duration,
    /// A delay ends early when no client has come for so long; zero: it does not.
    pub drain_quiet: Duration,
    /// How long sessions may go on after that.
    pub drain_timeout: Duration,
    /// A file that other programs watch: 0 while this node should get clients, otherwise 1.
    pub ready_file: Option<PathBuf>,
    /// Whether a reload follows a change of the file or of a file that it names.
    pub reload_on_change: bool,
    pub handover: Handover,
    /// How many nodes share the limits of listeners and backends; each has its part of them.
    pub nodes: u32,
}

/// What an upgrade hands over to the new process, beside listeners and state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Handover {
    /// Live sessions.
    #[default]
    Sessions,
    /// No session: the old process drains its own.
    Listeners,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StartWait {
    /// As long as a first check takes that ends by its timeout.
    #[default]
    Auto,
    AtMost(Duration),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Where status and metrics are served. This or `socket` is there.
    pub listen: Option<SocketAddr>,
    /// The path of a unix socket, on which alone there is control.
    pub socket: Option<PathBuf>,
    /// Names that the Host header of a request to `listen` may have, besides IP addresses and
    /// localhost: in lower case, without a dot at the end.
    pub hosts: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Log {
    pub level: LogLevel,
    pub format: LogFormat,
    pub access: AccessLog,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    #[default]
    Auto,
    Text,
    Json,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum AccessLog {
    #[default]
    Off,
    Stdout,
    File(PathBuf),
}

/// Where clients arrive.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listener {
    pub name: String,
    pub protocol: Protocol,
    /// At least one.
    pub bind: Vec<Bind>,
    /// The name of an upstream of the same plan.
    pub upstream: String,
    /// The time limit of each attempt to connect; never zero.
    pub connect_timeout: Duration,
    /// No byte in either direction for this long ends the session; `None`: no limit.
    pub idle_timeout: Option<Duration>,
    /// The same limit once one side has ended; `None`: only `idle_timeout` counts.
    pub half_close_timeout: Option<Duration>,
    /// Whether the other side goes on when one has ended.
    pub half_close: bool,
    /// Further backends tried after a failed connect.
    pub retries: u32,
    /// Sessions at once; 0 means no limit of this listener's own, or for UDP an equal share of
    /// `max_flows`.
    pub max_connections: u64,
    pub limits: Limits,
    /// The first match decides; no match: allowed.
    pub access: Vec<AccessRule>,
    /// Whether clients come through proxies that name them.
    pub accept_proxy: Option<AcceptProxy>,
    /// What backends get from sessions of this listener; `None`: as the upstream has it. Of v2 the
    /// TLVs are always those of the upstream.
    pub send_proxy: Option<SendProxy>,
    /// Where its sessions are recorded; `None`: in the access log of the process.
    pub access_log: Option<AccessLog>,
    pub backlog: u32,
    /// Whether addresses may be bound that this host does not have.
    pub freebind: bool,
    pub socket: SocketOptions,
    /// Owner and rights of the unix sockets among `bind`.
    pub unix: UnixFile,
}

impl Listener {
    /// The header that sessions of this listener send to the backends of `upstream`.
    pub fn send_proxy_to(&self, upstream: &Upstream) -> SendProxy {
        match (self.send_proxy, upstream.send_proxy) {
            (None, of_upstream) => of_upstream,
            (Some(SendProxy::V2 { .. }), of_upstream @ SendProxy::V2 { .. }) => of_upstream,
            (Some(own), _) => own,
        }
    }
}

/// Which peers begin with a PROXY protocol header, and in what time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AcceptProxy {
    /// From these a header is required, from others none is accepted. At least one.
    pub trust: Vec<PeerSet>,
    /// From the accept to the end of the header; never zero.
    pub timeout: Duration,
}

/// The rights of the file of a unix socket.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UnixFile {
    /// Permission bits.
    pub mode: u32,
    /// A user's name or number; `None`: the user that the process runs as.
    pub owner: Option<String>,
    /// A group's name or number; `None`: the group that the process runs as.
    pub group: Option<String>,
}

/// Options set on both sockets of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SocketOptions {
    pub nodelay: bool,
    pub keepalive: Option<Keepalive>,
    /// How long data may not be acknowledged, while the peer's window is open or probes of it are
    /// not answered; `None` leaves it to the kernel.
    pub user_timeout: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Keepalive {
    pub idle: Duration,
    pub interval: Duration,
    pub count: u32,
}

/// One `bind` entry: the text as configured, and every address it stands for (a port range is
/// many).
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

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessRule {
    pub allow: bool,
    pub peers: PeerSet,
}

/// The addresses that an access rule or a list of trusted peers names. Clients on a unix socket
/// match `All` and `Unix` only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerSet {
    All,
    Unix,
    /// The network address with host bits cleared, and the prefix length.
    Net(IpAddr, u8),
}

/// The sum of the weights of an upstream with `consistent_hash`: its ring has 160 points for each
/// unit of weight.
pub const MOST_RING_WEIGHT: u64 = 65_536;

/// The largest weight of a backend.
pub const MOST_WEIGHT: u32 = 65_535;

/// A named group of backends with one balancing policy.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Upstream {
    pub name: String,
    pub balance: Balance,
    /// In the order of the file, which decides ties; then those that were discovered, sorted by
    /// address. Texts are unique. At least one, unless they are discovered.
    pub backends: Vec<Backend>,
    /// Where more backends come from; `None`: there are only those of the file.
    pub discover: Option<Discover>,
    /// How often host names are looked up again; `None`: only at the start.
    pub resolve_interval: Option<Duration>,
    /// Whether a name that does not resolve at the start is an error.
    pub resolve_required: bool,
    pub send_proxy: SendProxy,
    /// Which datagrams of a flow get the header.
    pub send_proxy_on: ProxyOn,
    /// Whether a session that the backend resets before the first byte of an answer counts as a
    /// failed connect.
    pub fail_on_reset: bool,
    pub waits: Waits,
    pub backup_when: BackupWhen,
    /// Active health checks; `None`: passive ones only.
    pub check: Option<Check>,
    /// What becomes of the sessions of a backend that the operator takes out; `Keep` or
    /// `Move` where there is no admin socket.
    pub on_drain: SessionAction,
    /// What becomes of the sessions of a backend that leaves the configuration, and of an address
    /// that its name no longer resolves to.
    pub on_removed: SessionAction,
    /// What the actions mean for flows; `down` also without a check.
    pub flows_move: FlowsMove,
}

impl Upstream {
    /// `None`: its backends are not checked.
    pub fn checked_by(&self) -> Option<CheckProtocol> {
        let check = self.check.as_ref();
        check.map(|check| check.kind.info().kind)
    }
}

/// When backups take sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BackupWhen {
    /// No regular backend can take this one: none is in service, or those that are have reached
    /// their `max_connections`, or have failed for this session.
    #[default]
    Full,
    /// No regular backend is in service.
    Down,
}

/// For what sessions wait that find no backend, and how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Waits {
    /// How long sessions wait for a place, while all fit backends are full. 0: not at all.
    pub queue_timeout: Duration,
    /// Sessions that wait for a place at once.
    pub queue_length: u64,
    /// How long a session waits for the backend of its key before it takes another.
    pub queue_stick: Duration,
    /// How long sessions wait for a backend that is fit. 0: not at all.
    pub hold_timeout: Duration,
    /// Sessions that wait for a fit backend at once.
    pub hold_length: u64,
}

impl Waits {
    /// How long a session waits for what it lacks; 0: not at all.
    pub fn limit(&self, lacks: Shortage) -> Duration {
        match lacks {
            Shortage::Full => self.queue_timeout,
            Shortage::NoneFit => self.hold_timeout,
        }
    }

    /// How many sessions wait for that at once.
    pub fn most(&self, lacks: Shortage) -> u64 {
        match lacks {
            Shortage::Full => self.queue_length,
            Shortage::NoneFit => self.hold_length,
        }
    }

    pub fn is_any(&self) -> bool {
        !self.queue_timeout.is_zero() || !self.hold_timeout.is_zero()
    }
}

/// The PROXY protocol header that a backend gets before anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SendProxy {
    #[default]
    Off,
    V1,
    V2 {
        /// Whether the TLVs of an accepted header are passed on.
        tlvs: bool,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Balance {
    #[default]
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

    /// Whether each client has a backend of its own.
    pub fn is_by_key(&self) -> bool {
        match self {
            Self::Hash(_) | Self::IpHash | Self::ConsistentHash(..) | Self::Maglev(..) => true,
            Self::RoundRobin
            | Self::LeastConn
            | Self::RandomTwo
            | Self::LeastTime(_)
            | Self::First => false,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TimeOf {
    #[default]
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

words! {
    /// Its word is the name that nginx has for it.
    Variable {
        /// The client's address as text; `unix:` for one on a unix socket.
        RemoteAddr = "remote_addr",
        /// Its 4 or 16 bytes.
        BinaryRemoteAddr = "binary_remote_addr",
        /// Empty on a unix socket.
        RemotePort = "remote_port",
        /// The port that the client connected to; empty on a unix socket.
        ServerPort = "server_port",
        /// The address in an accepted PROXY header; empty without one.
        ProxyProtocolAddr = "proxy_protocol_addr",
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

#[derive(Debug, Clone, PartialEq, Eq, Default)]
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
    pub origin: Origin,
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

/// Stands in for an address that could not be read.
impl Default for Target {
    fn default() -> Self {
        Self::Addr(Addr::Unix(PathBuf::new()))
    }
}
