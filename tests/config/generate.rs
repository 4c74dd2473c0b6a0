// Arbitrary plans, texts and mutations, and what holds for all of them.

use std::net::{IpAddr, SocketAddr};
use std::{path::PathBuf, time::Duration};

use proptest::{
    collection::vec,
    option,
    prelude::*,
    sample::{Index, select},
};
use tembuku::internals::{config, plan::*};

fn name() -> impl Strategy<Value = String> {
    "[A-Za-z0-9_.-]{1,64}"
}

fn ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|n| IpAddr::V4(n.into())),
        any::<u128>().prop_map(|n| IpAddr::V6(n.into()))
    ]
}

/// An address that one machine may have, in a network of this number: those of backends and
/// listeners differ, or a listener could be its own backend.
fn host(net: u8) -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(move |n| IpAddr::V4((n >> 8 | u32::from(net) << 24).into())),
        any::<u128>().prop_map(move |n| {
            let net = (0x2000 | u128::from(net)) << 112;
            IpAddr::V6((n >> 16 | net).into())
        })
    ]
}

fn address() -> impl Strategy<Value = SocketAddr> {
    (host(10), 1u16..).prop_map(|(ip, port)| SocketAddr::new(ip, port))
}

fn unix() -> impl Strategy<Value = String> {
    "/[^/\0]{1,8}/[a-z \"\\\\\u{7f}é\t\n]{0,10}x"
}

fn time(millis: impl Strategy<Value = u64>) -> impl Strategy<Value = Duration> {
    millis.prop_map(Duration::from_millis)
}

/// At most a year; any nanosecond.
fn long() -> impl Strategy<Value = Duration> {
    prop_oneof![
        time(1..=365 * 86_400_000u64),
        (1..=365 * 86_400u64).prop_map(Duration::from_secs),
        (1..=365 * 86_400_000_000_000u64).prop_map(Duration::from_nanos),
    ]
}

fn peers() -> impl Strategy<Value = PeerSet> {
    let net = (ip(), any::<Index>()).prop_map(|(ip, index)| {
        let most = if ip.is_ipv4() { 32 } else { 128 };
        let net = ipnet::IpNet::new(ip, index.index(most + 1) as u8)
            .expect("in range")
            .trunc();
        PeerSet::Net(net.addr(), net.prefix_len())
    });
    prop_oneof![Just(PeerSet::All), Just(PeerSet::Unix), net]
}

fn rule() -> impl Strategy<Value = AccessRule> {
    (any::<bool>(), peers()).prop_map(|(allow, peers)| AccessRule { allow, peers })
}

fn accept_proxy() -> impl Strategy<Value = AcceptProxy> {
    (vec(peers(), 1..4), long()).prop_map(|(trust, timeout)| AcceptProxy { trust, timeout })
}

fn send_proxy() -> impl Strategy<Value = SendProxy> {
    prop_oneof![
        Just(SendProxy::Off),
        Just(SendProxy::V1),
        any::<bool>().prop_map(|tlvs| SendProxy::V2 { tlvs })
    ]
}

fn backend() -> BoxedStrategy<Backend> {
    let ip = address().prop_map(|a| (a.to_string(), Target::Addr(Addr::Tcp(a))));
    let unix = unix().prop_map(|p| (format!("unix:{p}"), Target::Addr(Addr::Unix(p.into()))));
    let host = (
        "[a-z]([a-z0-9_-]{0,20}[a-z0-9])?(\\.[a-z]{1,9}){0,3}\\.?",
        1u16..,
    )
        .prop_map(|(host, port)| (format!("{host}:{port}"), Target::Name { host, port }));
    (
        prop_oneof![ip, unix, host],
        0u32..=65_535,
        0u32..=1000,
        long(),
        0u64..=1_000_000_000,
        option::of(long()),
        any::<(bool, bool)>(),
    )
        .prop_map(
            |(
                (text, target),
                weight,
                max_fails,
                fail_timeout,
                max_connections,
                slow_start,
                (backup, down),
            )| {
                Backend {
                    origin: Origin::Configured,
                    text,
                    target,
                    weight,
                    max_fails,
                    fail_timeout,
                    max_connections,
                    slow_start: slow_start.unwrap_or_default(),
                    backup,
                    down,
                }
            },
        )
        .boxed()
}

/// At least one variable, and no two texts in a row: those would be read as one.
fn hash_key() -> impl Strategy<Value = HashKey> {
    let variable = || select(Variable::ALL.to_vec()).prop_map(KeyPart::Variable);
    let text = option::of("[a-z0-9_:{} .-]{1,5}");
    (variable(), vec((text, variable()), 0..3)).prop_map(|(first, rest)| {
        let parts = rest
            .into_iter()
            .flat_map(|(text, variable)| text.map(KeyPart::Text).into_iter().chain([variable]));
        HashKey(std::iter::once(first).chain(parts).collect())
    })
}

fn session_action() -> impl Strategy<Value = SessionAction> {
    prop_oneof![
        Just(SessionAction::Keep),
        Just(SessionAction::Move),
        Just(SessionAction::Close),
        long().prop_map(SessionAction::CloseAfter)
    ]
}

/// What is left of an action where nothing moves.
fn still(action: SessionAction) -> SessionAction {
    match action {
        SessionAction::Move => SessionAction::Keep,
        action => action,
    }
}

fn check_kind() -> BoxedStrategy<CheckKind> {
    let expect = prop_oneof![
        vec(any::<u8>(), 1..9).prop_map(Expect::Bytes),
        "[a-z\"\\\\.é]{1,9}"
            .prop_filter("a regex", |text| regex::bytes::Regex::new(text).is_ok())
            .prop_map(Expect::Regex)
    ];
    let talk = (vec(any::<u8>(), 0..9), expect)
        .prop_map(|(send, expect)| CheckKind::SendExpect { send, expect });
    let status = (100..=599u16, 0..9u16).prop_map(|(from, more)| (from, (from + more).min(599)));
    let http = (
        "/[!-~]{0,9}",
        option::of("[a-z0-9.:-]{1,9}"),
        vec(status, 1..4),
    )
        .prop_map(|(path, host, status)| CheckKind::Http { path, host, status });
    let role = option::of(select(Role::ALL.to_vec()));
    let login = option::of((option::of("\\PC{0,9}"), password()));
    let version = option::of(any::<[u32; 3]>().prop_map(Version));
    let flags = any::<(bool, bool)>();
    let redis = (role, login, flags, option::of(long()), version).prop_map(
        |(role, login, (replicating, require_writes), max_lag, min_version)| {
            let (user, password) = login.map_or((None, None), |(user, from)| (user, Some(from)));
            CheckKind::Redis {
                role,
                user,
                password,
                replicating: replicating && role == Some(Role::Replica),
                // A primary has no lag.
                max_lag: max_lag.filter(|_| role != Some(Role::Primary)),
                min_version,
                require_writes,
            }
        },
    );
    prop_oneof![
        Just(CheckKind::Tcp),
        talk,
        http,
        redis,
        postgres(),
        mysql(),
        dns()
    ]
    .boxed()
}

/// A primary has no lag.
fn limit(role: Option<Role>) -> impl Strategy<Value = LagLimit> {
    let times = option::of(long());
    (times, option::of(1..=1u64 << 50)).prop_map(move |(time, bytes)| match role {
        Some(Role::Primary) => LagLimit::default(),
        _ => LagLimit { time, bytes },
    })
}

fn password() -> impl Strategy<Value = PasswordFrom> {
    prop_oneof![
        unix().prop_map(|path| PasswordFrom::File(path.into())),
        "[A-Z_]{1,9}".prop_map(PasswordFrom::Variable)
    ]
}

fn postgres() -> impl Strategy<Value = CheckKind> {
    let login = ("\\PC{1,9}", option::of(password()), "\\PC{1,9}");
    let login = login.prop_map(|(user, password, database)| Login {
        user,
        password,
        database,
    });
    let role = option::of(select(Role::ALL.to_vec()));
    let asks = (role, login, any::<bool>()).prop_flat_map(|(role, login, replicating)| {
        limit(role).prop_map(move |limit| CheckKind::Postgres {
            role,
            login: Some(login.clone()),
            startup: None,
            replicating: replicating && role == Some(Role::Replica),
            limit,
        })
    });
    let startup = option::of(("\\PC{1,9}", "\\PC{1,9}"));
    let looks = startup.prop_map(|startup| CheckKind::Postgres {
        role: None,
        login: None,
        startup,
        replicating: false,
        limit: LagLimit::default(),
    });
    prop_oneof![1 => looks, 4 => asks]
}

fn mysql() -> impl Strategy<Value = CheckKind> {
    (
        option::of(select(Role::ALL.to_vec())),
        "\\PC{1,9}",
        option::of(password()),
        any::<bool>(),
        option::of(long()),
    )
        .prop_map(
            |(role, user, password, replicating, max_lag)| CheckKind::Mysql {
                role,
                user,
                password,
                replicating: replicating && role == Some(Role::Replica),
                // A primary has no lag.
                max_lag: max_lag.filter(|_| role != Some(Role::Primary)),
            },
        )
}

fn dns() -> impl Strategy<Value = CheckKind> {
    (
        "\\.|[a-z0-9_-]{1,9}(\\.[a-z]{1,9}){0,2}\\.?",
        select(RecordType::ALL.to_vec()),
        vec(select(Rcode::ALL.to_vec()), 1..3),
    )
        .prop_map(|(query, query_type, rcode)| CheckKind::Dns {
            query,
            query_type,
            rcode,
        })
}

fn tls() -> impl Strategy<Value = Tls> {
    let ca = option::of(unix().prop_map(PathBuf::from));
    let name = option::of("[a-z]{1,9}(\\.[a-z]{1,9}){0,2}|10\\.0\\.0\\.[1-9]");
    let verify = (ca, name).prop_map(|(ca, name)| Tls::Verify { ca, name });
    prop_oneof![Just(Tls::Off), Just(Tls::Require), verify]
}

fn check_plan() -> BoxedStrategy<Check> {
    let at = prop_oneof![
        Just(CheckAt::Backend),
        (1u16..).prop_map(CheckAt::Port),
        address().prop_map(|a| CheckAt::Addr(Addr::Tcp(a))),
        unix().prop_map(|p| CheckAt::Addr(Addr::Unix(p.into()))),
    ];
    let counts = (1..=1000u32, 1..=1000u32);
    (
        check_kind(),
        (10..60_000u64, 10..60_000u64),
        long(),
        counts,
        any::<bool>(),
        at,
        tls(),
        (
            session_action(),
            session_action(),
            session_action(),
            session_action(),
        ),
        (option::of(long()), 0..=100u32, any::<bool>()),
    )
        .prop_map(
            |(
                kind,
                (interval, fast),
                timeout,
                (rise, fall),
                start_up,
                at,
                tls,
                (on_down, on_role_lost, on_lag, on_recover),
                (stale_after, panic_threshold, role_fallback),
            )| Check {
                // Not below what one check may take, and not above a year.
                stale_after: stale_after
                    .filter(|_| kind.role() == Some(Role::Primary))
                    .map(|more| more + timeout + Duration::from_millis(interval))
                    .map(|after| after.min(Duration::from_secs(365 * 86_400))),
                panic_threshold: if kind.role().is_none() {
                    panic_threshold
                } else {
                    0
                },
                role_fallback: role_fallback && kind.role() == Some(Role::Replica),
                on_lag: if kind.limits_lag() {
                    on_lag
                } else {
                    SessionAction::Keep
                },
                tls: if kind.info().tls != StartTls::Never {
                    tls
                } else {
                    Tls::Off
                },
                // Without a role there is none to lose.
                on_role_lost: if kind.role().is_some() {
                    on_role_lost
                } else {
                    SessionAction::Close
                },
                kind,
                interval: Duration::from_millis(interval),
                fast_interval: Duration::from_millis(fast.min(interval)),
                timeout,
                rise,
                fall,
                start_up,
                at,
                on_down,
                // The file has no value for it.
                on_recover: still(on_recover),
            },
        )
        .boxed()
}

const NO_WAITS: Waits = Waits {
    queue_timeout: Duration::ZERO,
    queue_length: 1000,
    queue_stick: Duration::ZERO,
    hold_timeout: Duration::ZERO,
    hold_length: 1000,
};

fn waits() -> impl Strategy<Value = Waits> {
    let time = || option::of(long()).prop_map(Option::unwrap_or_default);
    let length = || 1..=1_000_000u64;
    (time(), length(), time(), time(), length()).prop_map(
        |(queue_timeout, queue_length, queue_stick, hold_timeout, hold_length)| Waits {
            queue_timeout,
            queue_length,
            queue_stick,
            hold_timeout,
            hold_length,
        },
    )
}

fn balance() -> BoxedStrategy<Balance> {
    let bound = || option::of(101..1000u32);
    prop_oneof![
        Just(Balance::RoundRobin),
        Just(Balance::LeastConn),
        Just(Balance::RandomTwo),
        Just(Balance::LeastTime(TimeOf::Connect)),
        Just(Balance::LeastTime(TimeOf::FirstByte)),
        Just(Balance::First),
        Just(Balance::IpHash),
        hash_key().prop_map(Balance::Hash),
        (hash_key(), bound()).prop_map(|(key, bound)| Balance::ConsistentHash(key, bound)),
        (hash_key(), bound()).prop_map(|(key, bound)| Balance::Maglev(key, bound)),
    ]
    .boxed()
}

/// Takes from the waits what has no effect with this policy and these backends.
fn restrict_waits(waits: &mut Waits, balance: &Balance, backends: &[Backend]) {
    if backends.iter().all(|backend| backend.max_connections == 0) {
        waits.queue_timeout = Duration::ZERO;
    }
    let hashes = matches!(
        balance,
        Balance::Hash(_) | Balance::IpHash | Balance::ConsistentHash(..) | Balance::Maglev(..)
    );
    if waits.queue_timeout.is_zero() || !hashes {
        waits.queue_stick = Duration::ZERO;
    }
    if waits.queue_timeout.is_zero() {
        waits.queue_length = NO_WAITS.queue_length;
    }
    if waits.hold_timeout.is_zero() {
        waits.hold_length = NO_WAITS.hold_length;
    }
}

/// Takes from a check what cannot be with these backends.
fn restrict_check(check: &mut Check, backends: &[Backend], send_proxy: SendProxy) {
    if backends.iter().all(|b| !b.backup) {
        check.on_recover = SessionAction::Keep;
    }
    let unix = |b: &Backend| matches!(b.target, Target::Addr(Addr::Unix(_)));
    let one_for_all = matches!(check.at, CheckAt::Addr(_)) && backends.len() > 1;
    if one_for_all && check.kind.role().is_some() {
        check.at = CheckAt::Backend;
    }
    if matches!(check.at, CheckAt::Port(_)) && backends.iter().any(unix) {
        check.at = CheckAt::Backend;
    }
    // A datagram gets no header, and goes to no unix socket.
    let unix_place = matches!(&check.at, CheckAt::Addr(Addr::Unix(_)));
    if matches!(check.kind, CheckKind::Dns { .. })
        && (unix_place || send_proxy != SendProxy::Off || backends.iter().any(unix))
    {
        check.kind = CheckKind::Tcp;
    }
    // Nor does PostgreSQL speak TLS there.
    let asked_on_unix = match &check.at {
        CheckAt::Addr(addr) => matches!(addr, Addr::Unix(_)),
        _ => backends.iter().any(unix),
    };
    if matches!(check.kind, CheckKind::Postgres { .. }) && asked_on_unix {
        check.tls = Tls::Off;
    }
}

fn upstream() -> BoxedStrategy<Upstream> {
    (
        name(),
        balance(),
        vec(backend(), 1..5),
        option::of(long()),
        any::<bool>(),
        (
            send_proxy(),
            any::<bool>(),
            option::of(check_plan()),
            (session_action(), session_action()),
            (any::<bool>(), any::<bool>()),
            waits(),
        ),
    )
        .prop_map(
            |(
                name,
                balance,
                mut backends,
                resolve_interval,
                resolve_required,
                (
                    send_proxy,
                    fail_on_reset,
                    mut check,
                    (on_drain, on_removed),
                    (each, down),
                    mut waits,
                ),
            )| {
                let mut seen = std::collections::HashSet::new();
                backends.retain(|backend| seen.insert(backend.text.clone()));
                let max_fails = backends.iter().any(|backend| backend.max_fails > 0);
                backends[0].backup = false;
                restrict_waits(&mut waits, &balance, &backends);
                if balance != Balance::RoundRobin {
                    // The ring holds 65536 units of weight.
                    backends
                        .iter_mut()
                        .for_each(|backend| backend.weight %= 10_000);
                }
                if let Some(check) = &mut check {
                    restrict_check(check, &backends, send_proxy);
                }
                let has_backup = backends.iter().any(|backend| backend.backup);
                Upstream {
                    discover: None,
                    name,
                    balance,
                    backup_when: match has_backup && fail_on_reset {
                        true => BackupWhen::Down,
                        false => BackupWhen::Full,
                    },
                    backends,
                    resolve_interval,
                    resolve_required,
                    send_proxy,
                    fail_on_reset: fail_on_reset && max_fails,
                    waits,
                    check,
                    on_drain,
                    on_removed,
                    send_proxy_on: match each {
                        true => ProxyOn::Each,
                        false => ProxyOn::First,
                    },
                    // Of these `down` alone is a choice, and only without a check: see `used`.
                    flows_move: FlowsMove {
                        down,
                        role_lost: true,
                        lag: false,
                        drain: true,
                        removed: true,
                    },
                }
            },
        )
        .boxed()
}

/// Takes from an upstream what cannot be there with the listeners that use it.
fn used(upstream: &mut Upstream, users: &[&Listener], operator: bool) {
    let is_udp = |listener: &&&Listener| listener.protocol != Protocol::Tcp;
    let udp = users.iter().any(|user| is_udp(&user));
    let tcp = users.iter().any(|user| !is_udp(&user));
    let sends_v2 = |user: &&Listener| matches!(user.send_proxy, Some(SendProxy::V2 { .. }));
    let mut of_udp = users.iter().filter(is_udp);
    let has_v2 = matches!(upstream.send_proxy, SendProxy::V2 { .. });
    let has_v2 = has_v2 || of_udp.any(sends_v2);
    if udp {
        for (port, backend) in (1..).zip(&mut upstream.backends) {
            if let Target::Addr(Addr::Unix(_)) = backend.target {
                let address = SocketAddr::from(([192, 0, 2, 1], port));
                backend.text = address.to_string();
                backend.target = Target::Addr(Addr::Tcp(address));
            }
        }
        if upstream.send_proxy == SendProxy::V1 {
            upstream.send_proxy = SendProxy::Off;
        }
        upstream.fail_on_reset &= tcp;
        if !tcp {
            upstream.waits = NO_WAITS;
        }
        if !operator {
            upstream.on_drain = SessionAction::Move;
        }
    } else {
        upstream.on_drain = match operator {
            true => still(upstream.on_drain),
            false => SessionAction::Keep,
        };
        upstream.on_removed = still(upstream.on_removed);
        if let Some(check) = &mut upstream.check {
            check.on_down = still(check.on_down);
            check.on_role_lost = still(check.on_role_lost);
            check.on_lag = still(check.on_lag);
        }
    }
    if !udp || !has_v2 {
        upstream.send_proxy_on = ProxyOn::First;
    }
    let moves = |action: SessionAction| action != SessionAction::Keep;
    upstream.flows_move.drain = moves(upstream.on_drain);
    upstream.flows_move.removed = moves(upstream.on_removed);
    match &upstream.check {
        Some(check) => {
            upstream.flows_move.down = moves(check.on_down);
            upstream.flows_move.role_lost = moves(check.on_role_lost);
            upstream.flows_move.lag = moves(check.on_lag);
        }
        None => upstream.flows_move.down &= udp,
    }
}

fn keepalive() -> impl Strategy<Value = Keepalive> {
    let seconds = || (1..=32_767u64).prop_map(Duration::from_secs);
    (seconds(), seconds(), 1..=127u32).prop_map(|(idle, interval, count)| Keepalive {
        idle,
        interval,
        count,
    })
}

/// The ports are counted up, so that no two listeners meet.
fn bind() -> impl Strategy<Value = (IpAddr, u16)> {
    (host(172), 0u16..20)
}

fn udp() -> impl Strategy<Value = Udp> {
    (
        0..=1_000_000u32,
        0..=1_000_000u32,
        any::<bool>(),
        select(vec![WhenFull::Refuse, WhenFull::Evict]),
    )
        .prop_map(|(responses, requests, per_packet, when_full)| Udp {
            responses,
            requests: if per_packet { 0 } else { requests },
            per_packet,
            when_full,
        })
}

fn access_log() -> impl Strategy<Value = AccessLog> {
    prop_oneof![
        Just(AccessLog::Off),
        Just(AccessLog::Stdout),
        "\\PC{0,9}/\\PC{0,9}x".prop_map(|path| AccessLog::File(path.into()))
    ]
}

fn rate() -> impl Strategy<Value = Rate> {
    (0..=1_000_000u32, any::<bool>()).prop_map(|(connections, is_per_minute)| Rate {
        connections,
        per: match is_per_minute && connections > 0 {
            true => Period::Minute,
            false => Period::Second,
        },
    })
}

fn bandwidth() -> impl Strategy<Value = Bandwidth> {
    let size = || prop_oneof![Just(0), 1..=1u64 << 50];
    (size(), size()).prop_map(|(up, down)| Bandwidth { up, down })
}

fn limits() -> BoxedStrategy<Limits> {
    let bandwidths = (bandwidth(), bandwidth(), bandwidth());
    let rates = (
        prop_oneof![Just(Rate::default()), rate()],
        prop_oneof![Just(Rate::default()), rate()],
        any::<bool>(),
    );
    let prefix = (1..=32u8, 1..=128u8).prop_map(|(v4, v6)| SourcePrefix { v4, v6 });
    (
        0..=1_000_000_000u64,
        prefix,
        rates,
        bandwidths,
        any::<bool>(),
    )
        .prop_map(
            |(max_connections_per_source, prefix, (all, each, is_delayed), bandwidths, dry_run)| {
                let has_rates = all.connections > 0 || each.connections > 0;
                let limits = Limits {
                    max_connections_per_source,
                    connection_rate: all,
                    connection_rate_per_source: each,
                    over_rate: match is_delayed && has_rates {
                        true => OverRate::Delay,
                        false => OverRate::Refuse,
                    },
                    bandwidth: bandwidths.0,
                    bandwidth_per_source: bandwidths.1,
                    bandwidth_total: bandwidths.2,
                    ..Limits::default()
                };
                Limits {
                    source_prefix: match limits.has_sources() {
                        true => prefix,
                        false => SourcePrefix::default(),
                    },
                    dry_run: dry_run && limits.is_any(),
                    ..limits
                }
            },
        )
        .boxed()
}

/// What a listener sets for itself.
fn overrides() -> impl Strategy<Value = (Option<SendProxy>, Option<AccessLog>)> {
    let send_proxy = select(vec![
        SendProxy::Off,
        SendProxy::V1,
        SendProxy::V2 { tlvs: false },
    ]);
    (option::of(send_proxy), option::of(access_log()))
}

/// A listener of TCP as one of UDP.
fn with_datagrams(listener: Listener, udp: Udp) -> Listener {
    let seconds = Duration::from_secs;
    let idle = listener.idle_timeout.unwrap_or(seconds(60));
    Listener {
        protocol: Protocol::Udp(udp),
        connect_timeout: seconds(5),
        idle_timeout: Some(idle.max(Duration::from_millis(1))),
        half_close_timeout: Some(seconds(60)),
        half_close: true,
        accept_proxy: listener.accept_proxy.map(|accept| AcceptProxy {
            timeout: seconds(3),
            ..accept
        }),
        send_proxy: listener.send_proxy.filter(|own| *own != SendProxy::V1),
        limits: Limits {
            over_rate: OverRate::Refuse,
            ..listener.limits
        },
        backlog: 4096,
        socket: SocketOptions {
            nodelay: true,
            keepalive: Some(Keepalive {
                idle: seconds(60),
                interval: seconds(10),
                count: 3,
            }),
            user_timeout: Some(seconds(90)),
        },
        ..listener
    }
}

fn listener() -> BoxedStrategy<Listener> {
    let times = (long(), option::of(long()), option::of(long()));
    let socket = (
        any::<[bool; 3]>(),
        option::of(keepalive()),
        option::of(time(1..=i32::MAX as u64)),
    )
        .prop_map(
            |([nodelay, half_close, freebind], keepalive, user_timeout)| {
                let socket = SocketOptions {
                    nodelay,
                    keepalive,
                    user_timeout,
                };
                (socket, half_close, freebind)
            },
        );
    let numbers = (0..=1000u32, 0..=1_000_000_000u64, 1..=65_535u32);
    (
        name(),
        vec(bind(), 1..4),
        times,
        numbers,
        (
            vec(rule(), 0..4),
            option::of(accept_proxy()),
            overrides(),
            limits(),
        ),
        (socket, option::of(udp())),
    )
        .prop_map(
            |(
                name,
                binds,
                (connect_timeout, idle_timeout, half_close_timeout),
                (retries, max_connections, backlog),
                (access, accept_proxy, (send_proxy, access_log), limits),
                ((socket, half_close, freebind), udp),
            )| {
                let bind = binds
                    .into_iter()
                    .map(|(ip, extra)| Bind {
                        text: String::new(),
                        addrs: (0..=extra)
                            .map(|port| Addr::Tcp(SocketAddr::new(ip, port)))
                            .collect(),
                    })
                    .collect();
                let listener = Listener {
                    name,
                    protocol: Protocol::Tcp,
                    bind,
                    upstream: String::new(),
                    connect_timeout,
                    idle_timeout,
                    half_close_timeout,
                    half_close,
                    retries,
                    max_connections,
                    limits,
                    access,
                    accept_proxy,
                    send_proxy,
                    access_log,
                    backlog,
                    freebind,
                    socket,
                    unix: UnixFile {
                        mode: 0o666,
                        owner: None,
                        group: None,
                    },
                };
                match udp {
                    Some(udp) => with_datagrams(listener, udp),
                    None => listener,
                }
            },
        )
        .boxed()
}

fn process() -> BoxedStrategy<Process> {
    (
        0..=1024usize,
        (0..=1_000_000_000u64, 0..=1_000_000_000u64),
        prop_oneof![
            Just(StartWait::Auto),
            Just(StartWait::AtMost(Duration::ZERO)),
            long().prop_map(StartWait::AtMost)
        ],
        (
            prop_oneof![Just(Duration::ZERO), long()],
            prop_oneof![Just((Duration::ZERO, Duration::ZERO)), (long(), long())],
        ),
        (
            option::of(unix().prop_map(PathBuf::from)),
            any::<bool>(),
            prop_oneof![Just(Handover::Sessions), Just(Handover::Listeners)],
            1..=1000u32,
        ),
    )
        .prop_map(
            |(
                workers,
                (max_connections, max_flows),
                start_wait,
                drain,
                (ready_file, reload_on_change, handover, nodes),
            )| Process {
                workers,
                max_connections,
                max_flows,
                start_wait,
                drain_delay: drain.1.0,
                drain_quiet: drain.1.1,
                drain_timeout: drain.0,
                ready_file,
                reload_on_change,
                handover,
                nodes,
            },
        )
        .boxed()
}

fn log() -> impl Strategy<Value = Log> {
    let level = prop_oneof![
        Just(LogLevel::Error),
        Just(LogLevel::Warn),
        Just(LogLevel::Info),
        Just(LogLevel::Debug),
        Just(LogLevel::Trace)
    ];
    let format = prop_oneof![
        Just(LogFormat::Auto),
        Just(LogFormat::Text),
        Just(LogFormat::Json)
    ];
    (level, format, access_log()).prop_map(|(level, format, access)| Log {
        level,
        format,
        access,
    })
}

fn admin() -> BoxedStrategy<Admin> {
    let path = || unix().prop_map(PathBuf::from);
    prop_oneof![
        (
            address(),
            option::of(path()),
            vec("[a-z][a-z0-9]{0,9}", 0..3)
        )
            .prop_map(|(listen, socket, mut hosts)| {
                hosts.sort();
                hosts.dedup();
                Admin {
                    listen: Some(listen),
                    socket,
                    hosts,
                }
            }),
        path().prop_map(|socket| Admin {
            listen: None,
            socket: Some(socket),
            hosts: Vec::new(),
        }),
    ]
    .boxed()
}

pub(crate) fn plan() -> BoxedStrategy<Plan> {
    (
        process(),
        option::of(admin()),
        log(),
        vec((listener(), any::<Index>()), 1..4),
        vec(upstream(), 1..4),
    )
        .prop_map(|(mut process, admin, log, listeners, mut upstreams)| {
            let mut seen = std::collections::HashSet::new();
            upstreams.retain(|upstream| seen.insert(upstream.name.clone()));
            seen.clear();
            let mut next = 1;
            let mut listeners: Vec<Listener> = listeners
                .into_iter()
                .map(|(mut listener, index)| {
                    listener.upstream = index.get(&upstreams).name.clone();
                    listener
                        .bind
                        .iter_mut()
                        .for_each(|bind| number(bind, &mut next));
                    listener
                })
                .collect();
            listeners.retain(|listener| seen.insert(listener.name.clone()));
            // Ports from 1000 up are not bound by listeners.
            let admin = admin.map(|admin| Admin {
                listen: admin
                    .listen
                    .map(|at| SocketAddr::new(at.ip(), at.port() | 1024)),
                ..admin
            });
            // Without a socket nothing can be drained.
            let operator = admin.as_ref().is_some_and(|admin| admin.socket.is_some());
            let udp = |listener: &Listener| listener.protocol != Protocol::Tcp;
            for upstream in &mut upstreams {
                let uses = |listener: &&Listener| listener.upstream == upstream.name;
                let users: Vec<&Listener> = listeners.iter().filter(uses).collect();
                used(upstream, &users, operator);
            }
            if !listeners.iter().any(udp) {
                process.max_flows = 0;
            }
            Plan {
                process,
                admin,
                log,
                listeners,
                upstreams,
            }
        })
        .boxed()
}

/// Gives a bind entry ports that no other has, and the text that stands for them.
fn number(bind: &mut Bind, next: &mut u16) {
    let first = *next;
    let mut text = String::new();
    for addr in &mut bind.addrs {
        if let Addr::Tcp(address) = addr {
            address.set_port(*next);
            text = address.to_string();
            *next += 1;
        }
    }
    if bind.addrs.len() > 1 {
        let host = text.rsplit_once(':').expect("a port").0;
        text = format!("{host}:{first}-{}", *next - 1);
    }
    bind.text = text;
}

const VALID: &[&str] = &[
    include_str!("valid/everything.toml"),
    include_str!("valid/udp.toml"),
    include_str!("../../conf/reference.toml"),
    include_str!("invalid/types.toml"),
    include_str!("invalid/bind_addresses.toml"),
    include_str!("invalid/syntax_brackets.toml"),
];

/// Any report must be consistent.
fn check(text: &str) -> Result<(), TestCaseError> {
    match config::parse(text, "test") {
        Ok(plan) => prop_assert_eq!(
            config::parse(&config::dump(&plan), "dump").expect("a dump is valid"),
            plan
        ),
        Err(problems) => {
            prop_assert!(problems.len() > 0);
            prop_assert!(problems.to_string().contains("in test\n"));
            let lines = text.split('\n').count();
            let mut last = (0, 0);
            for position in problems
                .iter()
                .filter_map(|problem| problem.position.as_ref())
            {
                prop_assert!((1..=lines).contains(&position.line) && position.column >= 1);
                prop_assert!(
                    (position.line, position.column) >= last,
                    "sorted by position"
                );
                last = (position.line, position.column);
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_dump_is_read_as_the_same_plan(plan in plan()) {
        let dump = config::dump(&plan);
        match config::parse(&dump, "dump") {
            Ok(again) => prop_assert_eq!(again, plan),
            Err(problems) => prop_assert!(false, "{}\n{}", problems, dump),
        }
    }

    #[test]
    fn arbitrary_text_does_not_panic(
        text in "\\PC{0,200}|[\\[\\]{}=\"'#.,\n\ra-c0-9 \t\\\\-]{0,100}",
    ) {
        check(&text)?;
    }

    #[test]
    fn arbitrary_flags_do_not_panic(
        listen in vec("\\PC{0,20}|0.0.0.0:[0-9]{1,6}", 0..3),
        to in vec("\\PC{0,20}|[a-z.]{1,5}:[0-9]{1,6}", 0..3),
        balance in option::of("\\PC{0,9}"),
        admin in option::of("\\PC{0,9}"),
        udp in any::<bool>(),
    ) {
        let flags = config::Flags { listen, to, udp, balance, admin };
        match config::from_flags(&flags) {
            Ok(plan) => prop_assert_eq!(config::parse(&config::dump(&plan), "dump"), Ok(plan)),
            Err(problems) => prop_assert!(problems.to_string().ends_with("in the command line\n")),
        }
    }

    #[test]
    fn mutated_files_do_not_panic(
        which in any::<Index>(),
        edits in vec(
            (any::<Index>(), 0usize..20, "\\PC{0,3}|[\\[\\]{}=\"'#.,\n\t\r\u{0}-]{0,3}"),
            1..6,
        ),
    ) {
        let mut text: Vec<char> = which.get(VALID).chars().collect();
        for (at, length, with) in edits {
            let at = at.index(text.len() + 1);
            let end = (at + length).min(text.len());
            text.splice(at..end, with.chars());
        }
        check(&text.into_iter().collect::<String>())?;
    }

    #[test]
    fn any_text_may_stand_for_any_value(
        text in "\\PC{0,40}|[0-9.:/\\[\\]a-f%-]{0,30}|unix:/?.{0,120}|\
                 (allow|deny) [0-9a-f.:/]{0,12}|[0-9.]{1,9}[a-z]{0,2}",
    ) {
        let escaped = text.chars().map(|c| format!("\\U{:08X}", u32::from(c)));
        let quoted = format!("\"{}\"", escaped.collect::<String>());
        for key in [
            "bind", "upstream", "idle_timeout", "access", "protocol", "keepalive", "accept_proxy",
            "send_proxy", "when_full", "on_drain", "on_down", "on_recover", "send_proxy_on",
        ] {
            let value = if key == "access" { format!("[{quoted}]") } else { quoted.clone() };
            check(&format!("[listeners.a]\nbind = \"0.0.0.0:1\"\nupstream = \"u\"\n\
                [upstreams.u]\nbackends = [\"a:1\"]\n[defaults]\n{key} = {value}\n"))?;
            check(&format!("[listeners.a]\nbind = \"0.0.0.0:1\"\nprotocol = \"udp\"\n\
                upstream = \"u\"\n[upstreams.u]\nbackends = [\"a:1\"]\n\
                [defaults]\n{key} = {value}\n"))?;
            check(&format!("[listeners.a]\n{key} = {value}\n\
                [defaults]\nbind = \"0.0.0.0:1\"\nupstream = \"u\"\n\
                [upstreams.u]\nbackends = [\"a:1\"]\n"))?;
        }
        check(&format!("[listeners.a]\nbind = \"0.0.0.0:1\"\nupstream = \"u\"\n\
            [upstreams.u]\nbackends = [{quoted}]\n"))?;
        for (kind, key) in [
            ("tcp", "address"), ("tcp", "start"), ("http", "path"), ("http", "host"),
            ("http", "status"), ("redis", "role"), ("redis", "password_file"),
            ("redis", "password_env"), ("send_expect", "send_hex"), ("send_expect", "expect"),
            ("send_expect", "expect_regex"), ("mysql", "user"), ("dns", "query"), ("dns", "rcode"),
            ("dns", "query_type"), ("mysql", "max_lag"),
        ] {
            check(&format!("[listeners.a]\nbind = \"0.0.0.0:1\"\nupstream = \"u\"\n\
                [upstreams.u]\non_down = {quoted}\nbackends = [\"a:1\"]\n\
                [upstreams.u.check]\nkind = \"{kind}\"\n{key} = {quoted}\n"))?;
            check(&format!("[listeners.a]\nbind = \"0.0.0.0:1\"\nupstream = \"u\"\n\
                [upstreams.u]\nbackends = [\"a:1\"]\n\
                [upstreams.u.check]\nkind = \"{kind}\"\n{key} = {quoted}\n"))?;
        }
    }
}
