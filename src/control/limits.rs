//! How many connections and flows there may be, by the descriptors and local ports that the process
//! has. Pure.

/// What there is, and what the configuration asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Given {
    /// Descriptors that sessions may use: those of the process without its own.
    pub(super) descriptors: u64,
    /// Local ports that flows may use.
    pub(super) ports: u64,
    pub(super) has_tcp: bool,
    pub(super) has_udp: bool,
    /// Keys of `[process]`; 0: as many as possible.
    pub(super) max_connections: u64,
    pub(super) max_flows: u64,
    /// Whether a full UDP listener ends an old flow for a new one.
    pub(super) evicts: bool,
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

/// Each kind has a quarter of the descriptors for itself, or what its limit needs if that is
/// configured; the rest is shared. A connection takes two, a flow one.
pub(super) fn divide(given: Given) -> Budget {
    let free = given.descriptors;
    let reserve = |wanted: u64, each: u64| match wanted {
        0 => (free / 4).max(1),
        wanted => wanted.saturating_mul(each),
    };
    let for_flows = match (given.has_udp, given.has_tcp) {
        (false, _) => 0,
        (true, false) => free,
        (true, true) => reserve(given.max_flows, 1).min(given.ports).min(free / 2),
    };
    let for_connections = match (given.has_tcp, given.has_udp) {
        (false, true) => 0,
        (_, false) => free,
        (true, true) => reserve(given.max_connections, 2).min(free - for_flows),
    };
    let possible_flows = match given.has_udp {
        true => (free - for_connections).min(given.ports),
        false => 0,
    };
    let flows = match given.max_flows {
        // A flow that is pushed out leaves a socket behind for a moment.
        0 if given.evicts => (possible_flows / 2).max(1).min(possible_flows),
        0 => possible_flows,
        wanted => wanted.min(possible_flows),
    };
    let possible_connections = ((free - for_flows) / 2).max(1);
    Budget {
        connections: match given.max_connections {
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

    const BOTH: Given = Given {
        descriptors: 20_000,
        ports: 22_000,
        has_tcp: true,
        has_udp: true,
        max_connections: 0,
        max_flows: 0,
        evicts: false,
    };

    #[test]
    fn one_kind_alone_has_everything() {
        let tcp = divide(Given {
            has_udp: false,
            ..BOTH
        });
        assert_eq!((tcp.connections, tcp.flows, tcp.sockets), (10_000, 0, 0));
        assert_eq!((tcp.for_connections, tcp.shared), (20_000, 0));
        let udp = divide(Given {
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
        let many = divide(Given {
            descriptors: 1_000_000,
            ..BOTH
        });
        assert_eq!((many.for_flows, many.flows), (22_000, 22_000));
        assert_eq!(many.connections, 489_000);
    }

    #[test]
    fn a_configured_limit_is_what_is_reserved() {
        let few = divide(Given {
            max_connections: 100,
            ..BOTH
        });
        assert_eq!((few.for_connections, few.connections), (200, 100));
        assert_eq!(few.flows, 19_800);
        let few = divide(Given {
            max_flows: 100,
            ..BOTH
        });
        assert_eq!((few.for_flows, few.flows, few.sockets), (100, 100, 400));
        assert_eq!(few.connections, 9_950);
    }

    #[test]
    fn limits_that_do_not_fit_leave_half_to_the_other_kind() {
        let all = divide(Given {
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
        let evicts = divide(Given {
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
                        let budget = divide(Given {
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
