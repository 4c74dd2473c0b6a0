//! How many connections and flows there may be, by the descriptors and local ports that the process
//! has. Pure.

use crate::plan::{Plan, Protocol, WhenFull};

/// What the process has.
#[derive(Debug, Clone, Copy)]
pub(super) struct HostLimits {
    pub(super) descriptors: u64,
    /// Local ports that the kernel gives out.
    pub(super) ports: u64,
    pub(super) workers: usize,
    /// Whether there are threads for datagrams: flows may be left of listeners that are gone, and
    /// must be able to move.
    pub(super) has_datagram_workers: bool,
}

/// What sessions can use, and what the configuration asks for.
#[derive(Debug, Clone, Copy)]
struct Demand {
    /// Descriptors that sessions may use: those of the process without its own.
    descriptors: u64,
    /// Local ports that flows may use.
    ports: u64,
    has_tcp: bool,
    has_udp: bool,
    /// Keys of `[process]`; 0: as many as possible.
    max_connections: u64,
    max_flows: u64,
    /// Whether a full UDP listener ends an old flow for a new one.
    evicts: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Budget {
    pub(super) connections: u64,
    /// What `connections` would be without `max_connections`.
    pub(super) possible_connections: u64,
    pub(super) flows: u64,
    pub(super) possible_flows: u64,
    /// Sockets of flows, those included that are kept for late replies.
    pub(super) sockets: u64,
    /// Descriptors that the one kind has for itself...
    pub(super) for_connections: u64,
    pub(super) for_flows: u64,
    /// ... and those that both share by demand.
    pub(super) shared: u64,
}

/// What sessions may use of what the process has, once it has what it needs itself.
pub(super) fn budget(plan: &Plan, host: HostLimits) -> Budget {
    let HostLimits {
        descriptors,
        ports,
        workers,
        has_datagram_workers,
    } = host;
    let pipes = pipes(descriptors) as u64;
    let binds = plan.listeners.iter().flat_map(|listener| &listener.bind);
    let addresses: usize = binds.map(|bind| bind.addrs.len()).sum();
    // For each worker: its event loop, a reserve and its listening sockets; then standard streams,
    // files, and the admin side with some clients.
    let fixed = (workers as u64 + 1) * 8 + (workers * addresses) as u64 + 20;
    // Each check that is under way has a socket.
    let checked = plan.upstreams.iter().filter(|u| u.check.is_some());
    let fixed = fixed + checked.map(|u| u.backends.len() as u64).sum::<u64>();
    let udp_listeners = count_udp(plan);
    let evicts =
        |protocol| matches!(protocol, Protocol::Udp(udp) if udp.when_full == WhenFull::Evict);
    let demand = Demand {
        descriptors: descriptors.saturating_sub(pipes * 2 + fixed).max(2),
        ports: ports * 4 / 5,
        has_tcp: plan.listeners.len() > udp_listeners,
        has_udp: has_datagram_workers || udp_listeners > 0,
        max_connections: plan.process.max_connections,
        max_flows: plan.process.max_flows,
        evicts: plan.listeners.iter().any(|l| evicts(l.protocol)),
    };
    divide(demand)
}

/// How many pipes there may be for splicing, of two descriptors each.
pub(super) fn pipes(descriptors: u64) -> usize {
    (descriptors / 64).clamp(1, 1024) as usize
}

pub(super) fn count_udp(plan: &Plan) -> usize {
    let is_udp = |l: &&crate::plan::Listener| matches!(l.protocol, Protocol::Udp(_));
    plan.listeners.iter().filter(is_udp).count()
}

/// Each kind has a quarter of the descriptors for itself, or what its limit needs if that is
/// configured; the rest is shared. A connection takes two, a flow one.
fn divide(demand: Demand) -> Budget {
    let free = demand.descriptors;
    let reserve = |wanted: u64, each: u64| match wanted {
        0 => (free / 4).max(1),
        wanted => wanted.saturating_mul(each),
    };
    let for_flows = match (demand.has_udp, demand.has_tcp) {
        (false, _) => 0,
        (true, false) => free,
        (true, true) => reserve(demand.max_flows, 1).min(demand.ports).min(free / 2),
    };
    let for_connections = match (demand.has_tcp, demand.has_udp) {
        (false, true) => 0,
        (_, false) => free,
        (true, true) => reserve(demand.max_connections, 2).min(free - for_flows),
    };
    let possible_flows = match demand.has_udp {
        true => (free - for_connections).min(demand.ports),
        false => 0,
    };
    let flows = match demand.max_flows {
        // A flow that is pushed out leaves a socket behind for a moment.
        0 if demand.evicts => (possible_flows / 2).max(1).min(possible_flows),
        0 => possible_flows,
        wanted => wanted.min(possible_flows),
    };
    let possible_connections = ((free - for_flows) / 2).max(1);
    Budget {
        connections: match demand.max_connections {
            0 => possible_connections,
            wanted => wanted.min(possible_connections),
        },
        possible_connections,
        flows,
        possible_flows,
        sockets: possible_flows.min(flows.saturating_mul(4)),
        for_connections,
        for_flows,
        shared: free - for_connections - for_flows,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Demand = Demand {
        descriptors: 20_000,
        ports: 22_000,
        has_tcp: true,
        has_udp: true,
        max_connections: 0,
        max_flows: 0,
        evicts: false,
    };

    const HOST: HostLimits = HostLimits {
        descriptors: 6_400,
        ports: 20_000,
        workers: 3,
        has_datagram_workers: false,
    };

    fn plan(text: &str) -> Plan {
        let text = format!("{text}\n[upstreams.u]\nbackends = [\"10.0.0.1:1\", \"10.0.0.2:1\"]\n");
        crate::config::parse(&text, "test").unwrap_or_else(|problems| panic!("{problems}"))
    }

    #[test]
    fn the_process_keeps_what_it_needs_itself() {
        let tcp = "[listeners.a]\nbind = \"127.0.0.1:1000-1004\"\nupstream = \"u\"";
        // 100 pipes, 4 times 8 for threads, 3 times 5 sockets, and 20.
        let free = 6_400 - 200 - 32 - 15 - 20;
        let alone = budget(&plan(tcp), HOST);
        assert_eq!((alone.for_connections, alone.flows), (free, 0));
        let checked = format!("[defaults]\ncheck = {{ kind = \"tcp\" }}\n{tcp}");
        assert_eq!(budget(&plan(&checked), HOST).for_connections, free - 2);
        let carried = HostLimits {
            has_datagram_workers: true,
            ..HOST
        };
        assert!(budget(&plan(tcp), carried).flows > 0, "flows may be left");
        assert_eq!(pipes(10), 1);
        assert_eq!(pipes(1_000_000), 1024);
    }

    #[test]
    fn flows_may_use_most_of_the_local_ports() {
        let udp = "[listeners.a]\nbind = \"127.0.0.1:1000\"\nprotocol = \"udp\"\nupstream = \"u\"";
        let few = HostLimits {
            ports: 1_000,
            ..HOST
        };
        let budget_of = |text: &str| budget(&plan(text), few);
        assert_eq!(budget_of(udp).flows, 800);
        let evicts = format!("{udp}\nwhen_full = \"evict\"");
        assert_eq!(
            (budget_of(&evicts).flows, budget_of(&evicts).sockets),
            (400, 800)
        );
        let limited = format!("[process]\nmax_flows = 5000\n{udp}");
        assert_eq!(
            (
                budget_of(&limited).flows,
                budget_of(&limited).possible_flows
            ),
            (800, 800)
        );
    }

    #[test]
    fn one_kind_alone_has_everything() {
        let tcp = divide(Demand {
            has_udp: false,
            ..BOTH
        });
        assert_eq!((tcp.connections, tcp.flows, tcp.sockets), (10_000, 0, 0));
        assert_eq!((tcp.for_connections, tcp.shared), (20_000, 0));
        let udp = divide(Demand {
            has_tcp: false,
            ..BOTH
        });
        assert_eq!(
            (udp.flows, udp.sockets, udp.for_flows),
            (20_000, 20_000, 20_000)
        );
    }

    #[test]
    fn both_have_a_quarter_and_share_the_rest() {
        let both = divide(BOTH);
        assert_eq!((both.for_connections, both.for_flows), (5_000, 5_000));
        assert_eq!(both.shared, 10_000);
        assert_eq!(
            (both.connections, both.flows, both.sockets),
            (7_500, 15_000, 15_000)
        );
    }

    #[test]
    fn flows_reserve_no_more_than_there_are_ports() {
        let many = divide(Demand {
            descriptors: 1_000_000,
            ..BOTH
        });
        assert_eq!((many.for_flows, many.flows), (22_000, 22_000));
        assert_eq!(many.connections, 489_000);
    }

    #[test]
    fn a_configured_limit_is_what_is_reserved() {
        let few = divide(Demand {
            max_connections: 100,
            ..BOTH
        });
        assert_eq!((few.for_connections, few.connections), (200, 100));
        assert_eq!(few.flows, 19_800);
        let few = divide(Demand {
            max_flows: 100,
            ..BOTH
        });
        assert_eq!((few.for_flows, few.flows, few.sockets), (100, 100, 400));
        assert_eq!(few.connections, 9_950);
    }

    #[test]
    fn limits_that_do_not_fit_leave_half_to_the_other_kind() {
        let all = divide(Demand {
            max_connections: 1_000_000,
            max_flows: 1_000_000,
            ..BOTH
        });
        assert_eq!(
            (all.for_connections, all.for_flows, all.shared),
            (10_000, 10_000, 0)
        );
        assert_eq!((all.connections, all.possible_connections), (5_000, 5_000));
        assert_eq!((all.flows, all.possible_flows), (10_000, 10_000));
    }

    #[test]
    fn evicting_needs_sockets_for_flows_that_are_over() {
        let evicts = divide(Demand {
            evicts: true,
            ..BOTH
        });
        assert_eq!((evicts.flows, evicts.sockets), (7_500, 15_000));
    }

    /// Never more than there are, and never none, whatever is asked for.
    #[test]
    fn parts_add_up() {
        let sizes = [2, 3, 7, 100, 19_333, u64::MAX];
        for descriptors in sizes {
            for (max_connections, max_flows) in sizes
                .map(|n| (n, 0))
                .into_iter()
                .chain(sizes.map(|n| (0, n)))
            {
                for (has_tcp, has_udp) in [(true, false), (false, true), (true, true)] {
                    for evicts in [false, true] {
                        let budget = divide(Demand {
                            descriptors,
                            max_connections,
                            max_flows,
                            has_tcp,
                            has_udp,
                            evicts,
                            ..BOTH
                        });
                        let reserved = budget.for_connections + budget.for_flows;
                        assert_eq!(reserved + budget.shared, descriptors);
                        assert!(budget.connections > 0);
                        assert!(!has_udp || budget.flows > 0 && budget.sockets >= budget.flows);
                        assert!(budget.flows <= budget.possible_flows);
                    }
                }
            }
        }
    }
}
