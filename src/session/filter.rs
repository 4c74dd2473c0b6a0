//! Which sessions an operator means, and the search for them.

use crate::{
    plan::{PeerSet, access},
    session::registry::{Phase, Session, Sessions, TablePosition},
    upstream::backend::Backend,
};
use ahash::AHashMap;
use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

/// What sessions have to match; `None` matches all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    pub id: Option<u64>,
    pub listener: Option<String>,
    pub upstream: Option<String>,
    /// As configured, or the address behind a host name.
    pub backend: Option<String>,
    pub client: Option<PeerSet>,
    pub older_than: Option<Duration>,
    /// Nothing was carried for this long.
    pub idle: Option<Duration>,
    /// Our own port towards the backend.
    pub backend_port: Option<u16>,
}

/// Which of the sessions that match are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatchScope {
    All,
    /// Those that have begun before one with this id and are not closing: what a termination that
    /// starts now is meant for. A client that comes back is not terminated again.
    LiveBefore(u64),
}

/// A search for sessions, in pieces: workers never wait long for it, and it needs the same memory
/// however many sessions there are.
#[derive(Debug)]
pub struct Selection {
    sessions: Arc<Sessions>,
    filter: Filter,
    scope: MatchScope,
    /// `None` at the end.
    position: Option<TablePosition>,
    /// By id.
    backends: AHashMap<u64, KnownBackend>,
}

#[derive(Debug)]
struct KnownBackend {
    backend: Arc<Backend>,
    matches: bool,
}

/// A session that matches, with its backend, if it has one.
#[derive(Debug)]
pub struct FoundSession {
    pub session: Arc<Session>,
    pub backend: Option<Arc<Backend>>,
}

/// As the command line has it.
impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |time: &Option<Duration>| time.map(|time| format!("{time:?}"));
        let client = self.client.map(|peers| match peers {
            PeerSet::All => "all".to_owned(),
            PeerSet::Unix => "unix".to_owned(),
            PeerSet::Net(ip, length) => format!("{ip}/{length}"),
        });
        let fields = [
            ("id", self.id.map(|id| id.to_string())),
            ("listener", self.listener.clone()),
            ("upstream", self.upstream.clone()),
            ("backend", self.backend.clone()),
            ("client", client),
            ("older-than", time(&self.older_than)),
            ("idle", time(&self.idle)),
            (
                "backend-port",
                self.backend_port.map(|port| port.to_string()),
            ),
        ];
        let set = fields.into_iter();
        let set = set.filter_map(|(name, value)| Some(format!("--{name} {}", value?)));
        let set: Vec<String> = set.collect();
        f.write_str(if set.is_empty() { "--all" } else { "" })?;
        f.write_str(&set.join(" "))
    }
}

impl Filter {
    /// Whether it matches every session.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What can be decided without a system call and without the backend's name.
    fn may_match(&self, session: &Session, sessions: &Sessions, now: Instant) -> bool {
        let origin = &session.origin;
        (self.id).is_none_or(|id| session.id == id)
            && is_or_any(&self.listener, &origin.listener)
            && is_or_any(&self.upstream, &origin.pool.name)
            && (self.client).is_none_or(|peers| access::contains(peers, session.client().ip()))
            && (self.older_than).is_none_or(|age| session.is_older(sessions, age, now))
            && (self.idle).is_none_or(|idle| sessions.idle(session, now) >= idle)
    }

    fn matches_backend(&self, backend: &Backend) -> bool {
        (self.backend.as_ref())
            .is_none_or(|name| **backend.text() == **name || backend.addr.to_string() == *name)
    }
}

fn is_or_any(wanted: &Option<String>, name: &str) -> bool {
    wanted.as_ref().is_none_or(|wanted| wanted == name)
}

impl Session {
    fn is_older(&self, sessions: &Sessions, age: Duration, now: Instant) -> bool {
        now.saturating_duration_since(sessions.began_at(self)) >= age
    }
}

impl Selection {
    pub fn new(sessions: &Arc<Sessions>, filter: Filter, scope: MatchScope) -> Self {
        Self {
            sessions: Arc::clone(sessions),
            filter,
            scope,
            position: Some(TablePosition::default()),
            backends: AHashMap::new(),
        }
    }

    /// Some more sessions that match, possibly none; `None` at the end.
    pub fn next_some(&mut self, now: Instant) -> Option<Vec<FoundSession>> {
        let position = self.position.as_mut()?;
        let (filter, sessions, scope) = (&self.filter, &*self.sessions, self.scope);
        let backends = &self.backends;
        let has_backend = |session: &Session| match backends.get(&session.backend()) {
            Some(known) => known.matches,
            // To be decided when its name has been looked up.
            None => session.backend() != 0 || filter.backend.is_none(),
        };
        let selects = |session: &Session| {
            scope.includes(session)
                && filter.may_match(session, sessions, now)
                && has_backend(session)
        };
        let mut selected = Vec::new();
        if !sessions.look_at_some(position, selects, &mut selected) {
            self.position = None;
        }
        let found = selected
            .into_iter()
            .filter_map(|session| self.find(session));
        Some(found.collect())
    }

    /// What could not be decided before.
    fn find(&mut self, session: Arc<Session>) -> Option<FoundSession> {
        let must_match = self.filter.backend.is_some();
        let backend = self.backend_of(&session, session.backend());
        if must_match && backend.is_none_or(|known| !known.matches) {
            return None;
        }
        let backend = backend.map(|known| Arc::clone(&known.backend));
        if let Some(port) = self.filter.backend_port
            && session.backend_port() != Some(port)
        {
            return None;
        }
        Some(FoundSession { session, backend })
    }

    fn backend_of(&mut self, session: &Session, id: u64) -> Option<&KnownBackend> {
        if id != 0 && !self.backends.contains_key(&id) {
            for backend in session.origin.pool.backends() {
                let matches = self.filter.matches_backend(&backend);
                let known = KnownBackend { backend, matches };
                self.backends.insert(known.backend.id, known);
            }
        }
        self.backends.get(&id)
    }
}

impl MatchScope {
    fn includes(self, session: &Session) -> bool {
        match self {
            Self::All => true,
            Self::LiveBefore(id) => session.id < id && session.phase() != Phase::Closing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        plan::CheckKind,
        runtime::net::Client,
        session::registry::{Arrival, Descriptors, SessionKind, SessionOrigin},
        upstream::pool::tests::{check, of, planned, upstream},
    };
    use std::io::Write as _;

    /// Two upstreams of two backends each, and many sessions: of client 10.0.0.N, through listener
    /// `l` to upstream `u`, on a backend by the parity of N.
    struct Rig {
        sessions: Arc<Sessions>,
        origin: Arc<SessionOrigin>,
        live: Vec<Arc<Session>>,
        now: Instant,
    }

    const COUNT: usize = 2_000;

    impl Rig {
        fn new() -> Self {
            Self::with(COUNT, 0)
        }

        /// So many sessions, and as many that may come besides.
        fn with(count: usize, more: u64) -> Self {
            let now = Instant::now();
            let plan = upstream(vec![planned(1), planned(2)], check(CheckKind::Tcp));
            let most = count as u64 + more;
            let descriptors = Arc::new(Descriptors::new(2 * most, 0, 0));
            let sessions = Sessions::new(2, most, 0, &descriptors, now);
            let origin = SessionOrigin {
                listener: "l".to_owned(),
                pool: Arc::new(of(&plan, now)),
                kind: SessionKind::Connection,
            };
            let mut rig = Self {
                sessions: Arc::new(sessions),
                origin: Arc::new(origin),
                live: Vec::new(),
                now,
            };
            for n in 0..count {
                let session = rig.begin(n);
                rig.live.push(session);
            }
            rig
        }

        fn begin(&self, n: usize) -> Arc<Session> {
            let ip = [10, 0, (n >> 8) as u8, n as u8];
            let arrival = Arrival {
                peer: Client::Ip((ip, 1_000).into()),
                named: None,
                server_port: Some(1),
                at: self.now + Duration::from_secs(n as u64),
            };
            let session = self.sessions.add(arrival, &self.origin).expect("a place");
            session.set_backend(self.origin.pool.backends()[n % 2].id);
            session
        }

        fn found(&self, filter: Filter, scope: MatchScope) -> Vec<u64> {
            let mut selection = Selection::new(&self.sessions, filter, scope);
            let now = self.now + Duration::from_secs(COUNT as u64);
            let mut ids = Vec::new();
            while let Some(found) = selection.next_some(now) {
                assert!(found.iter().all(|found| found.backend.is_some()));
                ids.extend(found.iter().map(|found| found.session.id));
            }
            ids.sort_unstable();
            ids
        }

        fn count(&self, filter: Filter) -> usize {
            self.found(filter, MatchScope::All).len()
        }
    }

    fn named(name: &str) -> Option<String> {
        Some(name.to_owned())
    }

    #[test]
    fn each_filter_selects_its_sessions() {
        let rig = Rig::new();
        let all = Filter::default;
        assert_eq!(rig.count(all()), COUNT);
        for (filter, count) in [
            (
                Filter {
                    listener: named("l"),
                    ..all()
                },
                COUNT,
            ),
            (
                Filter {
                    listener: named("x"),
                    ..all()
                },
                0,
            ),
            (
                Filter {
                    upstream: named("u"),
                    ..all()
                },
                COUNT,
            ),
            (
                Filter {
                    upstream: named("l"),
                    ..all()
                },
                0,
            ),
            (
                Filter {
                    backend: named("10.0.0.1:1"),
                    ..all()
                },
                COUNT / 2,
            ),
            (
                Filter {
                    backend: named("10.0.0.9:1"),
                    ..all()
                },
                0,
            ),
            (
                Filter {
                    id: Some(7),
                    ..all()
                },
                1,
            ),
            // They have no socket.
            (
                Filter {
                    backend_port: Some(1),
                    ..all()
                },
                0,
            ),
        ] {
            assert_eq!(rig.count(filter.clone()), count, "{filter:?}");
        }
        let client = |net: [u8; 4], length| Filter {
            client: Some(PeerSet::Net(net.into(), length)),
            ..all()
        };
        assert_eq!(rig.count(client([10, 0, 1, 0], 24)), 256);
        assert_eq!(rig.count(client([10, 0, 1, 7], 32)), 1);
        let seconds = |n| Some(Duration::from_secs(n));
        let filter = Filter {
            older_than: seconds(COUNT as u64 - 9),
            ..all()
        };
        assert_eq!(rig.found(filter, MatchScope::All), Vec::from_iter(1..=10));
        rig.live[3].set_active(COUNT as u64 * 1_000);
        let filter = Filter {
            idle: seconds(COUNT as u64 - 9),
            ..all()
        };
        assert_eq!(rig.count(filter), 9);
    }

    #[test]
    fn a_termination_concerns_what_lived_when_it_began() {
        let rig = Rig::new();
        let scope = MatchScope::LiveBefore(rig.sessions.next_id());
        rig.sessions.remove(&rig.live[5]);
        rig.live[6].set_closing();
        let late = rig.begin(5);
        let found = rig.found(Filter::default(), scope);
        assert_eq!(found.len(), COUNT - 2);
        assert!(!found.contains(&late.id));
    }

    /// Sessions begin and end at any slot while the others are looked at.
    #[test]
    fn a_session_that_stays_is_found_once_whatever_comes_and_goes() {
        let mut rig = Rig::new();
        let staying: Vec<u64> = rig
            .live
            .iter()
            .map(|s| s.id)
            .filter(|id| id.is_multiple_of(3))
            .collect();
        let mut selection = Selection::new(&rig.sessions, Filter::default(), MatchScope::All);
        let mut seen = Vec::new();
        let mut n = 0;
        while let Some(found) = selection.next_some(rig.now) {
            seen.extend(found.iter().map(|found| found.session.id));
            for _ in 0..100 {
                n = (n + 7) % COUNT;
                if !rig.live[n].id.is_multiple_of(3) {
                    rig.sessions.remove(&rig.live[n]);
                    rig.live[n] = rig.begin(n);
                }
            }
        }
        for id in staying {
            let times = seen.iter().filter(|seen| **seen == id).count();
            // A session that replaced another one has another id.
            assert_eq!(times, 1, "{id}");
        }
    }

    /// A worker that begins and ends sessions all the time, while another thread looks at 100,000
    /// others again and again. What it measures depends on the machine: run it by name.
    #[test]
    #[ignore = "prints figures"]
    fn a_worker_hardly_waits_for_a_look_at_100_000_sessions() {
        const MANY: usize = 100_000;
        let rig = Rig::with(MANY, 1);
        let stop = std::sync::atomic::AtomicBool::new(false);
        let longest = |looks: bool| {
            stop.store(false, std::sync::atomic::Ordering::Relaxed);
            std::thread::scope(|scope| {
                let worker = scope.spawn(|| {
                    let mut pauses = Vec::new();
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        let before = Instant::now();
                        rig.sessions.remove(&rig.begin(1));
                        pauses.push(before.elapsed());
                    }
                    pauses.sort_unstable();
                    let at = |share: f64| pauses[(pauses.len() as f64 * share) as usize];
                    (at(0.5), at(0.999), at(0.99999), pauses[pauses.len() - 1])
                });
                let until = Instant::now() + Duration::from_secs(3);
                let mut times = Vec::new();
                while Instant::now() < until {
                    if looks {
                        let began = Instant::now();
                        let client = Some(PeerSet::Net([10, 0, 1, 7].into(), 32));
                        let filter = Filter {
                            client,
                            ..Filter::default()
                        };
                        assert!(rig.count(filter) < 10);
                        times.push(began.elapsed());
                    }
                }
                stop.store(true, std::sync::atomic::Ordering::Relaxed);
                times.sort_unstable();
                let look = times.get(times.len() / 2);
                let session = worker.join();
                let figures = format!("a look: {look:?}, a session: {session:?}\n");
                let _ = std::io::stderr().write_all(figures.as_bytes());
            });
        };
        longest(false);
        longest(true);
    }
}
