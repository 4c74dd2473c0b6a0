//! Listeners that are their own backend, directly or through others: a session through one begins
//! the next, without end.

use crate::plan::{Addr, Backend, Listener, Protocol, Upstream};
use std::{
    collections::{HashMap, HashSet, VecDeque, hash_map::Entry},
    net::{IpAddr, SocketAddr},
    path::Path,
};

/// A way from a listener back to itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardingLoop {
    /// Indexes of the first listener and of its `bind` entry that is reached again.
    pub listener: usize,
    pub bind: usize,
    /// As in `a -> "127.0.0.1:81" -> b -> "127.0.0.1:80" -> a`.
    pub way: String,
    /// For each listener on this way the upstream, and all of its backends that lead to the next.
    pub steps: Vec<(String, Vec<String>)>,
}

/// Where something is bound, without the address.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Key<'a> {
    Port { is_udp: bool, port: u16 },
    Path(&'a Path),
}

/// A backend of one listener that is an address of another, or of itself.
struct Edge<'a> {
    backend: &'a str,
    to: usize,
    bind: usize,
}

/// Each listener is in one of them at most. `addrs`: what a backend stands for; `is_local`:
/// whether an address is one of this machine.
pub fn find_forwarding_loops(
    listeners: &[Listener],
    upstreams: &[Upstream],
    addrs: impl Fn(&Upstream, usize) -> Vec<Addr>,
    is_local: impl Fn(IpAddr) -> bool,
) -> Vec<ForwardingLoop> {
    let edges = edges(listeners, upstreams, addrs, is_local);
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    for start in 0..listeners.len() {
        if seen.contains(&start) {
            continue;
        }
        let Some(way) = way_back(&edges, start) else {
            continue;
        };
        let mut text = listeners[start].name.clone();
        for edge in &way {
            text.push_str(&format!(
                " -> {:?} -> {}",
                edge.backend, listeners[edge.to].name
            ));
        }
        // From each listener its upstream's backend leads to the next.
        let from = [start].into_iter().chain(way.iter().map(|edge| edge.to));
        let steps = from.zip(&way).map(|(n, edge)| {
            let to_next = edges[n].iter().filter(|other| other.to == edge.to);
            let texts = to_next.map(|edge| edge.backend.to_owned()).collect();
            (listeners[n].upstream.clone(), texts)
        });
        let steps = steps.collect();
        seen.extend(way.iter().map(|edge| edge.to));
        found.extend(way.last().map(|last| ForwardingLoop {
            listener: start,
            bind: last.bind,
            way: text,
            steps,
        }));
    }
    found
}

fn edges<'a>(
    listeners: &'a [Listener],
    upstreams: &'a [Upstream],
    addrs: impl Fn(&Upstream, usize) -> Vec<Addr>,
    is_local: impl Fn(IpAddr) -> bool,
) -> Vec<Vec<Edge<'a>>> {
    let mut bound: HashMap<Key<'_>, Vec<(usize, usize, &Addr)>> = HashMap::new();
    for (n, listener) in listeners.iter().enumerate() {
        for (b, bind) in listener.bind.iter().enumerate() {
            for addr in &bind.addrs {
                let key = key(addr, is_udp(listener));
                bound.entry(key).or_default().push((n, b, addr));
            }
        }
    }
    let by_name = upstreams
        .iter()
        .map(|upstream| (upstream.name.as_str(), upstream));
    let by_name: HashMap<&str, &Upstream> = by_name.collect();
    let reached = |listener: &Listener| {
        let upstream = by_name.get(listener.upstream.as_str()).copied();
        let mut edges = Vec::new();
        for (n, backend) in upstream.iter().flat_map(|u| u.backends.iter().enumerate()) {
            if !takes_sessions(backend) {
                continue;
            }
            for addr in upstream.map(|u| addrs(u, n)).unwrap_or_default() {
                let candidates = bound.get(&key(&addr, is_udp(listener)));
                for (to, bind, own) in candidates.into_iter().flatten() {
                    if leads_to(&addr, own, &is_local) {
                        let backend = backend.text.as_str();
                        edges.push(Edge {
                            backend,
                            to: *to,
                            bind: *bind,
                        });
                    }
                }
            }
        }
        edges
    };
    listeners.iter().map(reached).collect()
}

/// The shortest way.
fn way_back<'a>(edges: &'a [Vec<Edge<'a>>], start: usize) -> Option<Vec<&'a Edge<'a>>> {
    let mut came_by: HashMap<usize, (usize, &Edge<'_>)> = HashMap::new();
    let mut next = VecDeque::from([start]);
    while let Some(at) = next.pop_front() {
        for edge in &edges[at] {
            if edge.to == start {
                let mut way = vec![edge];
                let mut at = at;
                while let Some((from, edge)) = came_by.get(&at) {
                    way.push(edge);
                    at = *from;
                }
                way.reverse();
                return Some(way);
            }
            if let Entry::Vacant(vacant) = came_by.entry(edge.to) {
                vacant.insert((at, edge));
                next.push_back(edge.to);
            }
        }
    }
    None
}

fn is_udp(listener: &Listener) -> bool {
    matches!(listener.protocol, Protocol::Udp(_))
}

fn takes_sessions(backend: &Backend) -> bool {
    !backend.down && backend.weight > 0
}

fn key(addr: &Addr, is_udp: bool) -> Key<'_> {
    match addr {
        Addr::Tcp(address) => Key::Port {
            is_udp,
            port: address.port(),
        },
        Addr::Unix(path) => Key::Path(path),
    }
}

/// Whether a connect to `addr` arrives at what is bound as `own`, where port or path are the same.
fn leads_to(addr: &Addr, own: &Addr, is_local: impl Fn(IpAddr) -> bool) -> bool {
    let (Addr::Tcp(to), Addr::Tcp(own)) = (addr, own) else {
        return addr == own;
    };
    // Port 0 becomes another one.
    if own.port() == 0 {
        return false;
    }
    let (ip, own_ip) = (to.ip().to_canonical(), own.ip());
    let same_zone = match (to, own) {
        (SocketAddr::V6(to), SocketAddr::V6(own)) => to.scope_id() == own.scope_id(),
        _ => true,
    };
    let same_family = ip.is_ipv4() == own_ip.is_ipv4();
    (ip == own_ip && same_zone)
        || (own_ip.is_unspecified() && same_family && (ip.is_loopback() || is_local(ip)))
}

#[cfg(test)]
mod tests {
    use super::{super::parse, *};
    use crate::plan::Target;

    /// The ways in this configuration, where 192.0.2.1 is an address of the machine. A file with a
    /// loop is refused, so the ports of backends are above 1000 here, and 1080 stands for 80.
    fn ways(listeners: &[(&str, &str, &str)], upstreams: &[(&str, &str)]) -> Vec<String> {
        let mut text = String::new();
        for (name, bind, upstream) in listeners {
            let protocol = if name.starts_with("udp") {
                "udp"
            } else {
                "tcp"
            };
            text += &format!("[listeners.{name}]\nbind = {bind}\nupstream = \"{upstream}\"\n");
            text += &format!("protocol = \"{protocol}\"\n");
        }
        for (name, backends) in upstreams {
            text += &format!("[upstreams.{name}]\nbackends = [{backends}]\n");
        }
        let plan = parse(&text, "t").expect("valid");
        let addr = |upstream: &Upstream, n: usize| match &upstream.backends[n].target {
            Target::Addr(Addr::Tcp(address)) => {
                let mut address = *address;
                address.set_port(address.port() % 1000);
                vec![Addr::Tcp(address)]
            }
            Target::Addr(addr) => vec![addr.clone()],
            Target::Name { .. } => Vec::new(),
        };
        let local: IpAddr = "192.0.2.1".parse().expect("an address");
        let found = find_forwarding_loops(&plan.listeners, &plan.upstreams, addr, |ip| ip == local);
        found.into_iter().map(|found| found.way).collect()
    }

    #[test]
    fn a_listener_that_is_its_own_backend() {
        let own = |bind: &str, backend: &str| ways(&[("a", bind, "u")], &[("u", backend)]).len();
        assert_eq!(own("\"127.0.0.1:80\"", "\"127.0.0.1:1080\""), 1);
        assert_eq!(own("\"0.0.0.0:80\"", "\"127.9.9.9:1080\""), 1);
        assert_eq!(own("\"0.0.0.0:80\"", "\"[::ffff:127.0.0.1]:1080\""), 1);
        assert_eq!(own("\"[::]:80\"", "\"[::1]:1080\""), 1);
        assert_eq!(own("\"0.0.0.0:70-90\"", "\"192.0.2.1:1080\""), 1);
        assert_eq!(own("\"0.0.0.0:80\"", "\"192.0.2.2:1080\""), 0);
        assert_eq!(own("\"0.0.0.0:80\"", "\"[::1]:1080\""), 0);
        assert_eq!(own("\"[::]:80\"", "\"127.0.0.1:1080\""), 0);
        assert_eq!(own("\"127.0.0.1:80\"", "\"127.0.0.2:1080\""), 0);
        assert_eq!(own("\"127.0.0.1:80\"", "\"127.0.0.1:1081\""), 0);
        let down = "{ address = \"127.0.0.1:1080\", down = true }";
        assert_eq!(own("\"127.0.0.1:80\"", down), 0);
        let nothing = "{ address = \"127.0.0.1:1080\", weight = 0 }, \"127.0.0.1:1081\"";
        assert_eq!(own("\"127.0.0.1:80\"", nothing), 0);
    }

    #[test]
    fn through_others() {
        let listeners = [
            ("a", "\"127.0.0.1:80\"", "u"),
            ("b", "\"0.0.0.0:81\"", "v"),
            ("c", "\"127.0.0.1:82\"", "w"),
        ];
        let upstreams = [
            ("u", "\"192.0.2.9:1080\", \"192.0.2.1:1081\""),
            ("v", "\"127.0.0.1:1082\""),
            ("w", "\"127.0.0.1:1080\""),
        ];
        let way =
            "a -> \"192.0.2.1:1081\" -> b -> \"127.0.0.1:1082\" -> c -> \"127.0.0.1:1080\" -> a";
        assert_eq!(ways(&listeners, &upstreams), [way]);
        // A chain with an end is none.
        let upstreams = [upstreams[0], upstreams[1], ("w", "\"127.0.0.1:1083\"")];
        assert!(ways(&listeners, &upstreams).is_empty());
    }

    #[test]
    fn protocols_do_not_meet() {
        let listeners = [
            ("a", "\"127.0.0.1:80\"", "u"),
            ("udp", "\"127.0.0.1:81\"", "v"),
        ];
        let upstreams = [("u", "\"127.0.0.1:1081\""), ("v", "\"127.0.0.1:1080\"")];
        assert!(ways(&listeners, &upstreams).is_empty());
        let listeners = [
            ("udp", "\"127.0.0.1:80\"", "u"),
            ("udp2", "\"127.0.0.1:81\"", "v"),
        ];
        assert_eq!(ways(&listeners, &upstreams).len(), 1);
    }
}
