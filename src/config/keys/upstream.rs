//! Keys of [upstreams.NAME] and of backends, and their values as they are written.

use std::time::Duration;

use super::{
    applies::Applies::{
        self, Always, Backup as NeedsBackup, FailOnReset, Hold, OnDown, OnDrain, OnLag, OnRecover,
        OnRoleLost, PanicThreshold, Queue, QueueStick, SendProxyOn, SendProxyV2, Wait,
    },
    inline,
    process::MOST_CONNECTIONS,
    row::{Form, Row, Rule, code, rows, value},
    scalar::Word,
    words::{PolicyName, ProxyVersion},
};
use crate::{
    config::{
        text::quote::{quoted, time},
        value::hash_key,
    },
    plan::{
        Backend, BackupWhen, Balance, HashKey, ProxyOn, SendProxy, SessionAction, TimeOf, Upstream,
    },
};

/// The keys of an upstream as they are written: in the plan some belong to others.
#[derive(Clone)]
pub(crate) struct UpstreamKeys {
    /// What is written as it is in the plan; the rest of it is not used.
    pub(crate) plan: Upstream,
    pub(crate) policy: PolicyName,
    pub(crate) hash_key: HashKey,
    pub(crate) hash_balance_factor: u32,
    pub(crate) least_time: TimeOf,
    pub(crate) send_proxy: ProxyVersion,
    pub(crate) send_proxy_tlvs: bool,
    pub(crate) panic_threshold: u32,
    pub(crate) on_down: SessionAction,
    pub(crate) on_role_lost: SessionAction,
    pub(crate) on_lag: SessionAction,
    pub(crate) on_recover: SessionAction,
}

impl UpstreamKeys {
    /// What would be written for this upstream.
    pub(crate) fn of(upstream: &Upstream) -> Self {
        let (send_proxy, send_proxy_tlvs) = match upstream.send_proxy {
            SendProxy::Off => (ProxyVersion::Off, false),
            SendProxy::V1 => (ProxyVersion::V1, false),
            SendProxy::V2 { tlvs } => (ProxyVersion::V2, tlvs),
        };
        let check = upstream.check.as_ref();
        let flows_leave = match upstream.flows_move.down {
            true => SessionAction::Move,
            false => SessionAction::Keep,
        };
        let mut keys = Self {
            plan: upstream.clone(),
            policy: PolicyName::RoundRobin,
            hash_key: HashKey::default(),
            hash_balance_factor: 0,
            least_time: TimeOf::Connect,
            send_proxy,
            send_proxy_tlvs,
            panic_threshold: check.map_or(0, |check| check.panic_threshold),
            on_down: check.map_or(flows_leave, |check| check.on_down),
            on_role_lost: check.map_or(SessionAction::Close, |check| check.on_role_lost),
            on_lag: check.map_or(SessionAction::Keep, |check| check.on_lag),
            on_recover: check.map_or(SessionAction::Keep, |check| check.on_recover),
        };
        keys.set_balance(&upstream.balance);
        keys
    }

    fn set_balance(&mut self, balance: &Balance) {
        let mut hash = |policy, key: &HashKey, bound: Option<u32>| {
            self.hash_key = key.clone();
            self.hash_balance_factor = bound.unwrap_or(0);
            policy
        };
        self.policy = match balance {
            Balance::RoundRobin => PolicyName::RoundRobin,
            Balance::LeastConn => PolicyName::LeastConn,
            Balance::RandomTwo => PolicyName::RandomTwo,
            Balance::First => PolicyName::First,
            Balance::IpHash => PolicyName::IpHash,
            Balance::Hash(key) => hash(PolicyName::Hash, key, None),
            Balance::ConsistentHash(key, bound) => hash(PolicyName::ConsistentHash, key, *bound),
            Balance::Maglev(key, bound) => hash(PolicyName::Maglev, key, *bound),
            Balance::LeastTime(time) => {
                self.least_time = *time;
                PolicyName::LeastTime
            }
        };
    }

    /// Whether a backup is configured, or may be discovered.
    pub(crate) fn has_backup(&self) -> bool {
        let mut backends = self.plan.backends.iter();
        self.plan.discover.is_some() || backends.any(|backend| backend.backup)
    }

    pub(crate) fn balance(&self) -> Balance {
        let key = self.hash_key.clone();
        let bound = Some(self.hash_balance_factor).filter(|percent| *percent > 0);
        match self.policy {
            PolicyName::RoundRobin => Balance::RoundRobin,
            PolicyName::LeastConn => Balance::LeastConn,
            PolicyName::RandomTwo => Balance::RandomTwo,
            PolicyName::LeastTime => Balance::LeastTime(self.least_time),
            PolicyName::First => Balance::First,
            PolicyName::Hash => Balance::Hash(key),
            PolicyName::IpHash => Balance::IpHash,
            PolicyName::ConsistentHash => Balance::ConsistentHash(key, bound),
            PolicyName::Maglev => Balance::Maglev(key, bound),
        }
    }

    pub(crate) fn send_proxy(&self) -> SendProxy {
        match self.send_proxy {
            ProxyVersion::Off => SendProxy::Off,
            ProxyVersion::V1 => SendProxy::V1,
            ProxyVersion::V2 => SendProxy::V2 {
                tlvs: self.send_proxy_tlvs,
            },
        }
    }
}

const ACTION: Form = Form::Other("\"keep\", \"move\", \"close\" or { close_after = \"30s\" }");
const BOUNDED: Applies = Applies::Policy(&[PolicyName::ConsistentHash, PolicyName::Maglev]);
const HASHED: Applies = Applies::Policy(&[
    PolicyName::Hash,
    PolicyName::ConsistentHash,
    PolicyName::Maglev,
]);
const TIMED: Applies = Applies::Policy(&[PolicyName::LeastTime]);

pub(crate) static UPSTREAM: &[Row<UpstreamKeys>] = rows! {
    "balance" Form::Word(PolicyName::words), "round_robin", Always, value!(policy),
        "Which backend gets the next session.";
    "hash_key" Form::Other("text with variables"), "$remote_addr", HASHED,
        code!(hash_key, |keys| Some(quoted(&hash_key::format(&keys.hash_key)))),
        "What is hashed: text with $remote_addr, $binary_remote_addr, $remote_port, $server_port, \
         $proxy_protocol_addr.";
    "hash_balance_factor" Form::Number(0, 100_000), "0", BOUNDED, value!(hash_balance_factor),
        "No backend holds more than so many percent of its even share of the sessions, above 100; \
         what does not fit goes to the next; 0 = off.";
    "least_time" Form::Word(TimeOf::words), "connect", TIMED, value!(least_time),
        "Which time is compared; over UDP both are the time to the first reply.";
    "backends" Form::Other("a list of addresses or tables"), "", Always,
        code!(|keys| {
            let backend = |backend| format!("  {},\n", inline(BACKEND, backend, |_| true));
            let backends = keys.plan.backends.iter();
            let mut configured = backends.filter(|b| !b.origin.is_discovered()).peekable();
            configured.peek()?;
            let backends: String = configured.map(backend).collect();
            Some(format!("[\n{backends}]"))
        }),
        "\"host:port\", \"[::1]:53\", \"unix:/path\", or a table with `address` and the keys of a \
         backend. With `discover` these are always there, beside those of the source, and keep \
         these settings where the source names them as well.";
    "resolve_interval" Form::Duration(Rule::Any), "30s", Always, value!(plan.resolve_interval),
        "How often host names are looked up again; \"0s\" = only at the start.";
    "resolve_required" Form::Flag, "true", Always, value!(plan.resolve_required),
        "false: a name that does not resolve at the start is tried again later.";
    "send_proxy" Form::Word(ProxyVersion::words), "off", Always, value!(send_proxy),
        "The PROXY protocol header that names the client to a backend; UDP: not \"v1\".";
    "send_proxy_tlvs" Form::Flag, "false", SendProxyV2, value!(send_proxy_tlvs),
        "Whether the TLVs of an accepted v2 header are passed on, such as its authority and unique \
         id.";
    "send_proxy_on" Form::Word(ProxyOn::words), "first", SendProxyOn, value!(plan.send_proxy_on),
        "Which datagrams of a flow begin with the header.";
    "fail_on_reset" Form::Flag, "false", FailOnReset, value!(plan.fail_on_reset),
        "Whether a session that the backend resets, or times out, before the first byte of an \
         answer counts as a failed connect (`max_fails`), and only that byte as a good one.";
    "backup_when" Form::Word(BackupWhen::words), "full", NeedsBackup, value!(plan.backup_when),
        "\"full\": a backup takes a session that no other backend can take, since all are out of \
         service, have reached their `max_connections`, or have failed for it; \"down\": only \
         while all are out of service.";
    "queue_timeout" Form::Duration(Rule::Any), "0s", Wait, value!(plan.waits.queue_timeout),
        "How long a session waits for a place when all backends that are fit have reached their \
         `max_connections`, first come first served; \"0s\" = it is closed at once.";
    "queue_length" Form::Number(1, MOST_CONNECTIONS), "1000", Queue,
        value!(plan.waits.queue_length),
        "Sessions that wait for a place at once; what comes beyond is closed at once.";
    "queue_stick" Form::Duration(Rule::Any), "0s", QueueStick, value!(plan.waits.queue_stick),
        "How long a session waits for the full backend of its key before it takes another; \
         \"0s\" = it takes another at once.";
    "hold_timeout" Form::Duration(Rule::Any), "0s", Wait, value!(plan.waits.hold_timeout),
        "How long a session waits for a backend when none is fit (all down or drained, no primary \
         known) or all that it tried have failed; \"0s\" = it is closed at once.";
    "hold_length" Form::Number(1, MOST_CONNECTIONS), "1000", Hold, value!(plan.waits.hold_length),
        "Sessions that wait for a fit backend at once; what comes beyond is closed at once.";
    "panic_threshold" Form::Number(0, 100), "0", PanicThreshold, value!(panic_threshold),
        "In percent: while fewer of the backends are up, backups not counted, all are used \
         whatever their checks say; 0 = never.";
    "check" Form::Other("a section [upstreams.NAME.check]"), "", Always, code!(|_| None),
        "Active health checks, beside the passive ones; without this section there are none.";
    "discover" Form::Other("a section [upstreams.NAME.discover]"), "", Always, code!(|_| None),
        "Discovered backends, beside those of `backends`, which then may be left out.";
    "on_down" ACTION, "", OnDown, code!(on_down, |keys| Some(action(keys.on_down))),
        "What becomes of the sessions of a backend that its check calls down; `close_after`: \
         unless it is up again by then. The default is \"move\" where a UDP listener uses the \
         upstream, otherwise \"keep\". \"move\": flows go to another backend at their next \
         datagram, sessions of TCP are kept.";
    "on_role_lost" ACTION, "close", OnRoleLost,
        code!(on_role_lost, |keys| Some(action(keys.on_role_lost))),
        "The same when it has another role than the one that the check asks for.";
    "on_lag" ACTION, "keep", OnLag, code!(on_lag, |keys| Some(action(keys.on_lag))),
        "The same when it is too far behind.";
    "on_recover" ACTION, "keep", OnRecover, code!(on_recover, |keys| Some(action(keys.on_recover))),
        "The same for sessions on backups when a backend that is none is up again; not \"move\".";
    "on_drain" ACTION, "", OnDrain,
        code!(plan.on_drain, |keys| Some(action(keys.plan.on_drain))),
        "The same when the operator drains a backend or takes it into maintenance, for as long as \
         that lasts. The default is that of `on_down`.";
    "on_removed" ACTION, "", Always,
        code!(plan.on_removed, |keys| Some(action(keys.plan.on_removed))),
        "The same when the backend is removed from the configuration, or its name no longer has \
         the address; `close_after`: unless it is back by then. The default is that of `on_down`.";
};

pub(crate) static BACKEND: &[Row<Backend>] = rows! {
    "address" Form::Other("an address"), "", Always, code!(|backend| Some(quoted(&backend.text))),
        "\"host:port\", \"[::1]:53\" or \"unix:/path\".";
    "weight" Form::Number(0, 65_535), "1", Always, value!(weight),
        "Its share of the sessions, relative to the others; 0 = nothing new.";
    "max_fails" Form::Number(0, 1_000_000), "1", Always, value!(max_fails),
        "Failed attempts within `fail_timeout` that make it unavailable for as long; 0 = never.";
    "fail_timeout" Form::Duration(Rule::AboveZero), "10s", Always, value!(fail_timeout),
        "See `max_fails`.";
    "max_connections" Form::Number(0, MOST_CONNECTIONS), "0", Always, value!(max_connections),
        "Sessions at once; 0 = no limit.";
    "slow_start" Form::Duration(Rule::Any), "0s", Always, value!(slow_start),
        "After it has come back its weight grows from nothing to the whole over this time.";
    "backup" Form::Flag, "false", Always, value!(backup),
        "Used only when no other backend is left.";
    "down" Form::Flag, "false", Always, value!(down),
        "Takes nothing.";
};

/// The value of `close_after` in a table of an action.
pub(crate) static CLOSE_AFTER: &[Row<Duration>] = rows! {
    "close_after" Form::Duration(Rule::AboveZero), "30s", Always,
        code!(|wait| Some(time(*wait))),
        "Sessions are closed after this time, unless the cause is gone by then.";
};

fn action(action: SessionAction) -> String {
    match action {
        SessionAction::Keep => quoted("keep"),
        SessionAction::Move => quoted("move"),
        SessionAction::Close => quoted("close"),
        SessionAction::CloseAfter(wait) => inline(CLOSE_AFTER, &wait, |_| true),
    }
}
