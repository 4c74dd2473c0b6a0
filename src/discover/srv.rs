//! `srv`: the SRV records of a name, and the addresses of their targets.

mod answer;
mod message;
mod name;
mod resolv_conf;
mod resolver;
#[cfg(test)]
mod tests;

use super::{Found, Gap, Interval, Snapshot, Source, SourceError, Unknown};
use crate::{
    plan::{Discover, Rcode, RecordType},
    sys::{blocking, files, task::boxed},
};
use answer::{Followed, MOST_ALIASES};
use message::{Data, Edns, Reply, Srv};
use name::{Name, NameError};
use resolver::{Aside, AskError, Resolver};
use std::{
    collections::{HashMap, HashSet},
    fmt, io,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};
use tokio::{task::JoinSet, time::Instant};
use xxhash_rust::xxh3::xxh3_64;

/// As many targets are asked for at once.
const AT_ONCE: usize = 32;
/// An answer is not kept for less, or the servers would be asked without end; nor for more.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(3600);
const MOST_OF_RESOLV_CONF: u64 = 1 << 20;

pub(crate) struct SrvRecords {
    name: String,
    /// Empty: those of the system.
    servers: Vec<SocketAddr>,
    timeout: Duration,
    interval: Interval,
    aside: Aside,
    /// What is known of targets, and until when.
    known: HashMap<(Name, RecordType), (Vec<IpAddr>, Instant)>,
}

impl SrvRecords {
    pub(crate) fn new(name: &str, servers: &[SocketAddr], discover: &Discover) -> Self {
        Self {
            name: name.to_owned(),
            servers: servers.to_vec(),
            timeout: discover.timeout,
            interval: Interval::new(discover.interval),
            aside: Aside::default(),
            known: HashMap::new(),
        }
    }

    async fn resolve(&mut self) -> Result<Snapshot, SrvError> {
        let name: Name = self.name.parse().map_err(SrvError::Name)?;
        let resolver = self.resolver().await?;
        let (reply, found, ttl) = look_up(&resolver, name, RecordType::Srv).await?;
        let mut records = Vec::new();
        for data in found {
            match data {
                // RFC 2782: the service is decidedly not available there.
                Data::Srv(srv) if srv.target.is_root() => {}
                Data::Srv(srv) => records.push(srv),
                _ => {}
            }
        }
        let now = Instant::now();
        self.known.retain(|_, (_, until)| *until > now);
        let targets: HashSet<Name> = records.iter().map(|r| r.target.clone()).collect();
        for target in &targets {
            for kind in [RecordType::A, RecordType::Aaaa] {
                if let Some((addresses, ttl)) = answer::additional(&reply, target, kind) {
                    self.learn(target.clone(), kind, addresses, ttl);
                }
            }
        }
        let open = self.ask_for(&targets, &resolver).await?;
        let gap = gap(&open, &records);
        let mut addresses: HashMap<Name, Vec<IpAddr>> = HashMap::new();
        let mut until = now + lasting(ttl);
        for target in targets {
            for kind in [RecordType::A, RecordType::Aaaa] {
                if let Some((found, valid)) = self.known.get(&(target.clone(), kind)) {
                    until = until.min(*valid);
                    addresses
                        .entry(target.clone())
                        .or_default()
                        .extend_from_slice(found);
                }
            }
        }
        let backends = answer::backends(&records, &addresses);
        let text: String = backends
            .iter()
            .map(|b| format!("{} {} {}\n", b.address, b.weight, b.backup))
            .collect();
        Ok(Snapshot {
            backends,
            version: format!("answer {:016x}", xxh3_64(text.as_bytes())),
            valid_for: Some(until.saturating_duration_since(now).max(SHORTEST)),
            gap,
        })
    }

    /// What is not known of these targets. A target that does not exist has no addresses; one that
    /// no address can be learned of is an error. Returns what is open: addresses of one family,
    /// where there are some of the other.
    async fn ask_for(
        &mut self,
        targets: &HashSet<Name>,
        resolver: &Resolver,
    ) -> Result<Vec<Open>, SrvError> {
        let kinds = [RecordType::A, RecordType::Aaaa];
        let all = targets
            .iter()
            .flat_map(|t| kinds.map(|kind| (t.clone(), kind)));
        let mut open: Vec<(Name, RecordType)> =
            all.filter(|key| !self.known.contains_key(key)).collect();
        let mut asked = JoinSet::new();
        let (mut failed, mut nowhere) = (Vec::new(), HashSet::new());
        loop {
            while asked.len() < AT_ONCE
                && let Some((name, kind)) = open.pop()
            {
                let resolver = resolver.clone();
                asked.spawn(boxed(async move {
                    let found = look_up(&resolver, name.clone(), kind).await;
                    (name, kind, found)
                }));
            }
            let Some(next) = asked.join_next().await else {
                break;
            };
            let (name, kind, found) = next.map_err(|_| SrvError::Panic)?;
            match found {
                Ok((reply, data, ttl)) => {
                    if Rcode::of_extended(reply.code) == Some(Rcode::NxDomain) {
                        nowhere.insert(name.clone());
                    }
                    let addresses = data.iter().filter_map(answer::address).collect();
                    self.learn(name, kind, addresses, ttl);
                }
                Err(error) => failed.push((name, kind, error)),
            }
        }
        // The reply to the other question says that there is no such name.
        failed.retain(|(name, ..): &Open| !nowhere.contains(name));
        // Of several failures the first in order is reported.
        failed.sort_by_key(|(name, kind, _)| (name.clone(), *kind == RecordType::Aaaa));
        let has_any = |name: &Name| {
            let known = kinds.map(|kind| self.known.get(&(name.clone(), kind)));
            let mut known = known.iter().flatten();
            known.any(|(addresses, _)| !addresses.is_empty())
        };
        match failed.iter().position(|(name, ..)| !has_any(name)) {
            Some(n) => Err(failed.swap_remove(n).2),
            None => Ok(failed),
        }
    }

    fn learn(&mut self, name: Name, kind: RecordType, addresses: Vec<IpAddr>, ttl: u32) {
        let until = Instant::now() + lasting(ttl);
        self.known.insert((name, kind), (addresses, until));
    }

    async fn resolver(&self) -> Result<Resolver, SrvError> {
        let servers = match self.servers.is_empty() {
            false => self.servers.clone(),
            true => {
                let read = || files::read(Path::new(resolv_conf::PATH), MOST_OF_RESOLV_CONF);
                let bytes = blocking::call(blocking::LIMIT, read).await.flatten();
                let bytes = match bytes {
                    // Without it there is the one of this machine.
                    Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
                    bytes => bytes.map_err(SrvError::ResolvConf)?,
                };
                resolv_conf::read(&String::from_utf8_lossy(&bytes))
            }
        };
        Ok(Resolver {
            servers,
            timeout: self.timeout,
            aside: self.aside.clone(),
        })
    }
}

impl Source for SrvRecords {
    async fn next(&mut self) -> Result<Snapshot, SourceError> {
        self.interval.wait().await;
        let resolved = self.resolve().await;
        let snapshot = resolved.as_ref().ok();
        if let Some(snapshot) = snapshot {
            self.interval.answered(snapshot.valid_for);
        }
        resolved.map_err(|e| SourceError::new(format!("SRV {}: {e}", self.name)))
    }
}

/// A question that has failed.
type Open = (Name, RecordType, SrvError);

fn gap(open: &[Open], records: &[Srv]) -> Option<Gap> {
    let (.., first) = open.first()?;
    let unknown = open.iter().flat_map(|(name, kind, _)| {
        let of_it = records.iter().filter(move |record| record.target == *name);
        of_it.map(|record| Unknown {
            name: name.to_string(),
            port: record.port,
            is_ipv6: *kind == RecordType::Aaaa,
        })
    });
    Some(Gap {
        error: SourceError::new(first.to_string()),
        unknown: unknown.collect(),
    })
}

fn lasting(ttl: u32) -> Duration {
    Duration::from_secs(ttl.into()).clamp(SHORTEST, LONGEST)
}

/// The records of a name, the reply that they are in, and for how many seconds they are valid.
async fn look_up(
    resolver: &Resolver,
    mut name: Name,
    kind: RecordType,
) -> Result<(Reply, Vec<Data>, u32), SrvError> {
    let mut shortest = u32::MAX;
    for _ in 0..=MOST_ALIASES {
        let reply = resolver.ask(&name, kind).await.map_err(SrvError::Ask)?;
        let (followed, ttl) = answer::follow(&reply, &name, kind);
        shortest = shortest.min(ttl);
        match followed {
            Followed::Records(records) => return Ok((reply, records, shortest)),
            Followed::Nothing => return Ok((reply, Vec::new(), shortest)),
            Followed::Alias(next) => name = next,
            Followed::Referral => return Err(SrvError::Referral(name, kind)),
            Followed::Loop => break,
        }
    }
    Err(SrvError::Loop(name))
}

/// What a reply stands for that begins with these bits and counts, and has these records.
pub(super) fn replay(bytes: &[u8]) -> Result<Vec<Found>, SourceError> {
    let nothing = Ok(Vec::new());
    let Some(([a, b, counts @ ..], sections)) = bytes.split_first_chunk::<8>() else {
        return nothing;
    };
    let name = "s.example".parse::<Name>();
    let name = name.map_err(|e| SourceError::new(e.to_string()))?;
    let mut message = message::ask(7, &name, RecordType::Srv, Edns::No);
    message[2..4].copy_from_slice(&[0x80 | *a, *b]);
    message[6..12].copy_from_slice(counts);
    message.extend_from_slice(sections);
    let Ok(reply) = message::read(7, &name, RecordType::Srv, &message) else {
        return nothing;
    };
    let (Followed::Records(found), _) = answer::follow(&reply, &name, RecordType::Srv) else {
        return nothing;
    };
    let mut addresses = HashMap::<Name, Vec<IpAddr>>::new();
    let mut records = Vec::new();
    for data in found {
        if let Data::Srv(srv) = data {
            for kind in [RecordType::A, RecordType::Aaaa] {
                let more = answer::additional(&reply, &srv.target, kind);
                let known = addresses.entry(srv.target.clone()).or_default();
                known.extend(more.into_iter().flat_map(|(more, _)| more));
            }
            records.push(srv);
        }
    }
    Ok(answer::backends(&records, &addresses))
}

#[derive(Debug)]
enum SrvError {
    Name(NameError),
    ResolvConf(io::Error),
    Ask(AskError),
    Referral(Name, RecordType),
    Loop(Name),
    /// A question ended in one.
    Panic,
}

impl std::error::Error for SrvError {}

impl fmt::Display for SrvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(e) => e.fmt(f),
            Self::ResolvConf(e) => write!(f, "cannot read {}: {e}", resolv_conf::PATH),
            Self::Ask(e) => e.fmt(f),
            Self::Referral(name, kind) => write!(
                f,
                "{name} {kind}: the name server refers to others; \
                 name one with `nameservers` that resolves recursively"
            ),
            Self::Loop(name) => write!(f, "{name}: the chain of aliases does not end"),
            Self::Panic => f.write_str("a question ended in a panic"),
        }
    }
}
