//! Gives the listeners of a plan their sockets: those that the process has already, and new ones.

use super::{
    Runtime, is_local,
    listener::{ListenerRuntime, ListenerSockets},
    tcp_sockets::{ClosingStreams, StreamSocket},
    udp_sockets::{DatagramSockets, Kept},
    with_share,
};
use crate::{
    control::{
        Prepared, StartError, StartErrors,
        bind::{BindRequest, BoundSockets, bind_all},
        budget::Budget,
        inherited::HandedSocket,
    },
    plan::{Addr, Listener, Plan, Protocol},
    proxy::udp::{self, ListenerId, OwnAddresses},
    session::service::Service,
    sys::blocking,
};
use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc};

/// Which listener of a plan gets which of the sockets that there are.
#[derive(Debug, PartialEq, Eq)]
struct Distribution<T> {
    /// By the name of the listener.
    given: BTreeMap<String, Vec<T>>,
    /// Of these addresses there is no socket.
    missing: Vec<(String, Addr)>,
    /// These belong to no listener any more; with the name of that which they had.
    unused: Vec<(String, T)>,
}

/// A listener keeps the sockets of its addresses; what a listener does not keep goes to another one
/// that has the address. `held`: with the name of the listener that has it.
fn distribute<T>(
    mut held: Vec<(String, T)>,
    addr_of: impl Fn(&T) -> &Addr,
    listeners: &[Listener],
) -> Distribution<T> {
    let mut given: BTreeMap<String, Vec<T>> = BTreeMap::new();
    let mut wanted: Vec<(String, Addr)> = Vec::new();
    for listener in listeners {
        wanted.extend(addrs(listener).map(|addr| (listener.name.clone(), addr.clone())));
    }
    let mut take = |wanted: &(String, Addr), may_move: bool| {
        let (listener, addr) = wanted;
        let is_wanted = |(owner, item): &(String, T)| {
            addr_of(item) == addr && (owner == listener || may_move && !is_any_port(addr))
        };
        let found = held.iter().position(is_wanted);
        if let Some(found) = found {
            let (_, item) = held.remove(found);
            given.entry(listener.clone()).or_default().push(item);
        }
        found.is_none()
    };
    wanted.retain(|wanted| take(wanted, false));
    wanted.retain(|wanted| take(wanted, true));
    Distribution {
        given,
        missing: wanted,
        unused: held,
    }
}

/// Whether the kernel chooses the port: then the address does not name a socket.
fn is_any_port(addr: &Addr) -> bool {
    matches!(addr, Addr::Tcp(address) if address.port() == 0)
}

fn addrs(listener: &Listener) -> impl Iterator<Item = &Addr> {
    listener.bind.iter().flat_map(|bind| &bind.addrs)
}

fn of_kind(plan: &Plan, is_udp: bool) -> Vec<Listener> {
    let matches = |l: &&Listener| matches!(l.protocol, Protocol::Udp(_)) == is_udp;
    plan.listeners.iter().filter(matches).cloned().collect()
}

impl Runtime {
    /// Binds the addresses of the plan that there are no sockets of, and changes the rights of
    /// unix sockets that stay.
    pub(super) async fn bind(
        &self,
        plan: &Plan,
        prepared: &Prepared,
        handed: Vec<HandedSocket>,
    ) -> Result<(BoundSockets, BTreeMap<String, Vec<Kept>>), StartErrors> {
        let streams = distribute(self.stream_addrs(), |addr| addr, &of_kind(plan, false));
        let mut missing = streams.missing;
        let assigned = self.assign_datagrams(plan);
        let mut kept: BTreeMap<String, Vec<Kept>> = BTreeMap::new();
        let mut held = Vec::new();
        for listener in of_kind(plan, true) {
            let sockets = assigned.get(&listener.name).copied();
            for addr in addrs(&listener) {
                let keep = async { sockets?.keep(addr).await };
                match keep.await {
                    Some(address) => kept.entry(listener.name.clone()).or_default().push(address),
                    None => {
                        held.extend(self.held_by_flows(&listener.name, addr));
                        missing.push((listener.name.clone(), addr.clone()));
                    }
                }
            }
        }
        if !held.is_empty() {
            return Err(StartErrors(held));
        }
        let requests = missing.into_iter().filter_map(|(name, addr)| {
            let mut listeners = prepared.listeners.iter();
            let (listener, rights) = listeners.find(|(listener, _)| listener.name == name)?;
            Some(BindRequest {
                listener: listener.clone(),
                rights: *rights,
                addr,
            })
        });
        let mut held = self.held();
        held.extend(&prepared.shared);
        let bound = bind_all(requests.collect(), held, handed, self.host.workers).await;
        let bound = bound
            .map_err(|errors| StartErrors(errors.into_iter().map(StartError::Bind).collect()))?;
        self.change_rights(prepared).await?;
        Ok((bound, kept))
    }

    /// Whether UDP sockets of this process are in the way of a listener that is to have this
    /// address.
    fn held_by_flows(&self, listener: &str, addr: &Addr) -> Option<StartError> {
        let mut datagrams = self.datagram_sockets();
        let is_in_the_way = |sockets: &DatagramSockets| !is_any_port(addr) && sockets.has(addr);
        let (owner, _) = datagrams.find(|(_, sockets)| is_in_the_way(sockets))?;
        Some(StartError::HeldByFlows {
            listener: listener.to_owned(),
            addr: addr.clone(),
            owner: owner.clone(),
        })
    }

    /// All UDP sockets, with the names of the listeners that have, or had, them.
    fn datagram_sockets(&self) -> impl Iterator<Item = (&String, &DatagramSockets)> {
        let listeners = self
            .listeners
            .iter()
            .filter_map(|(name, l)| match &l.sockets {
                ListenerSockets::Datagrams(sockets) => Some((name, sockets)),
                ListenerSockets::Streams(_) => None,
            });
        let closing = self.closing.iter().map(|(name, sockets)| (name, sockets));
        listeners.chain(closing)
    }

    /// The configured addresses of the TCP sockets, with the names of their listeners.
    fn stream_addrs(&self) -> Vec<(String, Addr)> {
        let mut addrs = Vec::new();
        for (name, listener) in &self.listeners {
            if let ListenerSockets::Streams(sockets) = &listener.sockets {
                addrs.extend(sockets.iter().map(|s| (name.clone(), s.configured.clone())));
            }
        }
        addrs
    }

    /// Where TCP sockets really listen.
    fn held(&self) -> Vec<SocketAddr> {
        let views = self
            .listeners
            .values()
            .map(|listener| (listener, listener.view()));
        let streams = views.filter(|(l, _)| matches!(l.sockets, ListenerSockets::Streams(_)));
        let addrs = streams.flat_map(|(_, view)| view.addresses);
        let addresses = addrs.filter_map(|addr| match addr {
            Addr::Tcp(address) => Some(address),
            Addr::Unix(_) => None,
        });
        addresses.collect()
    }

    async fn change_rights(&self, prepared: &Prepared) -> Result<(), StartError> {
        let mut changed: Vec<(PathBuf, _)> = Vec::new();
        for (listener, rights) in &prepared.listeners {
            for addr in addrs(listener) {
                let before = self
                    .plan
                    .listeners
                    .iter()
                    .find(|l| addrs(l).any(|a| a == addr));
                if let (Addr::Unix(path), Some(before)) = (addr, before)
                    && before.unix != listener.unix
                {
                    changed.push((path.clone(), *rights));
                }
            }
        }
        if changed.is_empty() {
            return Ok(());
        }
        let change = move || {
            let mut changed = changed.iter();
            changed.try_for_each(|(path, rights)| rights.apply(path))
        };
        let changed = blocking::call(blocking::LIMIT, change).await.flatten();
        changed.map_err(StartError::Rights)
    }

    /// The sockets that each UDP listener of the plan goes on with: its own, or those of a listener
    /// that is not in the plan and had one of its addresses. An address whose flows go on with
    /// other sockets cannot be bound before they have ended.
    fn assign_datagrams(&self, plan: &Plan) -> BTreeMap<String, &DatagramSockets> {
        let mut assigned = BTreeMap::new();
        let mut free: Vec<(&String, &DatagramSockets)> = Vec::new();
        for (name, listener) in &self.listeners {
            if let ListenerSockets::Datagrams(sockets) = &listener.sockets {
                match plan.listeners.iter().any(|l| l.name == *name) {
                    true => drop(assigned.insert(name.clone(), sockets)),
                    false => free.push((name, sockets)),
                }
            }
        }
        free.extend(self.closing.iter().map(|(name, sockets)| (name, sockets)));
        for listener in of_kind(plan, true) {
            if assigned.contains_key(&listener.name) {
                continue;
            }
            let has_addr = |sockets: &DatagramSockets| addrs(&listener).any(|a| sockets.has(a));
            let by_addr = free.iter().position(|(_, sockets)| has_addr(sockets));
            let by_name = || free.iter().position(|(name, _)| **name == listener.name);
            if let Some(n) = by_addr.or_else(by_name) {
                assigned.insert(listener.name.clone(), free.remove(n).1);
            }
        }
        assigned
    }

    /// Creates, updates and removes listeners. Returns the sockets that are to be closed, and
    /// what removed listeners served with.
    pub(super) fn apply_listeners(
        &mut self,
        bound: BoundSockets,
        kept: BTreeMap<String, Vec<Kept>>,
        budget: &Budget,
    ) -> (ClosingStreams, Vec<Arc<Service>>) {
        let assigned = self.assign_datagrams(&self.plan);
        let assigned: BTreeMap<ListenerId, String> = assigned
            .into_iter()
            .map(|(name, sockets)| (sockets.id(), name))
            .collect();
        let mut before = std::mem::take(&mut self.listeners);
        let (mut held, mut datagrams) = (Vec::new(), BTreeMap::new());
        for (name, listener) in &mut before {
            match listener.take_sockets() {
                ListenerSockets::Streams(sockets) => {
                    held.extend(sockets.into_iter().map(|socket| (name.clone(), socket)));
                }
                ListenerSockets::Datagrams(sockets) => self.closing.push((name.clone(), sockets)),
            }
        }
        for (_, sockets) in self
            .closing
            .extract_if(.., |(_, s)| assigned.contains_key(&s.id()))
        {
            datagrams.insert(assigned[&sockets.id()].clone(), sockets);
        }
        let streams = distribute(
            held,
            |s: &StreamSocket| &s.configured,
            &of_kind(&self.plan, false),
        );
        let mut sockets = NewSockets {
            streams: streams.given,
            datagrams,
            kept,
            bound,
        };
        let plans = self.plan.listeners.clone();
        for plan in plans {
            let plan = with_share(&plan, &self.plan, budget);
            let Some(upstream) = self.upstreams.get(&plan.upstream) else {
                continue;
            };
            let name = plan.name.clone();
            let sockets = sockets.take(&plan);
            let listener = match before.remove(&name) {
                Some(before) => before.update(plan, upstream, sockets, self),
                None => {
                    let removed = self.removed_listeners.take(&name);
                    ListenerRuntime::new(plan, upstream, sockets, removed.as_deref(), self)
                }
            };
            self.listeners.insert(name, listener);
        }
        self.set_own_addresses();
        for listener in self.listeners.values_mut().filter(|l| !l.is_waiting()) {
            listener.serve(&self.own, &self.workers, &self.tasks);
        }
        for listener in before.values() {
            listener.service.log_rest();
        }
        self.close_datagrams(&before);
        let closing = self.take_closing_streams(streams.unused, &before);
        let gone = before.into_values().map(|listener| listener.service);
        (closing, gone.collect())
    }

    /// Begins to close the UDP sockets of listeners that are gone.
    fn close_datagrams(&mut self, gone: &BTreeMap<String, ListenerRuntime>) {
        for (name, sockets) in &mut self.closing {
            let Some(listener) = gone.get(name).filter(|_| !sockets.is_closing()) else {
                continue;
            };
            let serve = |sockets: &mut DatagramSockets| {
                sockets.serve(&listener.service, &self.own, &self.workers, &self.tasks);
            };
            // Datagrams that have arrived while it waited for checks are served.
            if listener.is_waiting() {
                serve(sockets);
            }
            sockets.change(Vec::new(), Vec::new());
            serve(sockets);
        }
    }

    /// Serves the clients in the queues of TCP sockets that are to be closed, also of a listener
    /// that has not accepted yet.
    fn take_closing_streams(
        &self,
        unused: Vec<(String, StreamSocket)>,
        gone: &BTreeMap<String, ListenerRuntime>,
    ) -> ClosingStreams {
        let mut closing = ClosingStreams::default();
        for (name, mut socket) in unused {
            let listener = gone.get(&name).or_else(|| self.listeners.get(&name));
            if let Some(listener) = listener {
                socket.serve_if_waiting(&listener.service, &self.workers, &self.tasks);
            }
            closing.add(socket);
        }
        closing
    }

    fn set_own_addresses(&mut self) {
        let addresses = self
            .listeners
            .values()
            .flat_map(|listener| match &listener.sockets {
                ListenerSockets::Datagrams(sockets) => sockets.addresses().collect(),
                ListenerSockets::Streams(_) => Vec::new(),
            });
        self.own = Arc::new(OwnAddresses::new(addresses, is_local));
        for worker in &self.workers.datagrams {
            worker.send(udp::Order::SetOwnAddresses(Arc::clone(&self.own)));
        }
    }
}

fn log_listening(listener: &str, address: &Addr) {
    tracing::info!(listener, %address, "listening");
}

/// The sockets from which the listeners of a plan take theirs.
struct NewSockets {
    streams: BTreeMap<String, Vec<StreamSocket>>,
    datagrams: BTreeMap<String, DatagramSockets>,
    kept: BTreeMap<String, Vec<Kept>>,
    bound: BoundSockets,
}

impl NewSockets {
    fn take(&mut self, listener: &Listener) -> ListenerSockets {
        let name = &listener.name;
        match listener.protocol {
            Protocol::Tcp => {
                let mut sockets = self.streams.remove(name).unwrap_or_default();
                let added = self.bound.streams.extract_if(.., |s| s.listener == *name);
                for added in added {
                    log_listening(name, &added.bound);
                    sockets.push(StreamSocket::new(added));
                }
                let place = |s: &StreamSocket| addrs(listener).position(|a| *a == s.configured);
                sockets.sort_by_key(place);
                ListenerSockets::Streams(sockets)
            }
            Protocol::Udp(_) => {
                let sockets = self.datagrams.remove(name);
                let mut sockets = sockets.unwrap_or_else(DatagramSockets::new);
                let added = self.bound.datagrams.extract_if(.., |s| s.listener == *name);
                let added: Vec<_> = added.collect();
                for added in &added {
                    log_listening(name, &added.bound);
                }
                sockets.change(self.kept.remove(name).unwrap_or_default(), added);
                ListenerSockets::Datagrams(sockets)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> Addr {
        Addr::Tcp(text.parse().expect("an address"))
    }

    /// Listeners with these names and addresses.
    fn listeners(wanted: &[(&str, &str)]) -> Vec<Listener> {
        let mut text = "[upstreams.u]\nbackends = [\"10.0.0.1:1\"]\n".to_owned();
        for (name, addr) in wanted {
            text += &format!("[listeners.{name}]\nbind = \"{addr}\"\nupstream = \"u\"\n");
        }
        let plan = crate::config::parse(&text, "test");
        plan.unwrap_or_else(|problems| panic!("{problems}"))
            .listeners
    }

    fn distributed(held: &[(&str, &str)], wanted: &[(&str, &str)]) -> Distribution<Addr> {
        let held = held.iter().map(|(name, at)| ((*name).to_owned(), addr(at)));
        distribute(held.collect(), |addr| addr, &listeners(wanted))
    }

    #[test]
    fn sockets_stay_with_their_listener_and_go_to_another_with_the_address() {
        let held = [
            ("stays", "127.0.0.1:1"),
            ("moves", "127.0.0.1:2"),
            ("moves", "127.0.0.1:3"),
            ("goes", "127.0.0.1:4"),
        ];
        let wanted = [
            ("renamed", "127.0.0.1:3"),
            ("stays", "127.0.0.1:1"),
            ("moves", "127.0.0.1:2"),
            ("added", "127.0.0.1:5"),
        ];
        let distribution = distributed(&held, &wanted);
        let given = [
            ("moves", "127.0.0.1:2"),
            ("renamed", "127.0.0.1:3"),
            ("stays", "127.0.0.1:1"),
        ];
        let given = given.map(|(name, at)| (name.to_owned(), vec![addr(at)]));
        assert_eq!(distribution.given, given.into());
        assert_eq!(
            distribution.missing,
            [("added".to_owned(), addr("127.0.0.1:5"))]
        );
        assert_eq!(
            distribution.unused,
            [("goes".to_owned(), addr("127.0.0.1:4"))]
        );
    }

    #[test]
    fn a_port_that_the_kernel_chose_stays_with_its_listener_alone() {
        let held = [("a", "127.0.0.1:0")];
        let kept = distributed(&held, &[("a", "127.0.0.1:0")]);
        assert!(kept.missing.is_empty() && kept.unused.is_empty());
        let renamed = distributed(&held, &[("b", "127.0.0.1:0")]);
        assert_eq!((renamed.missing.len(), renamed.unused.len()), (1, 1));
    }
}
