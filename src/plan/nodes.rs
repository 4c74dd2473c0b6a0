//! The part of a limit that one of several nodes enforces.
//!
//! Nodes do not count together: each gets the limit divided by their number, rounded up, so that no
//! limit becomes 0, which is none.

use super::{Bandwidth, Listener, Period, Rate, Upstream};

impl Listener {
    /// With the limits of one of so many nodes. Those of a source and of a session stay whole: a
    /// client may always come to the same node.
    pub fn on_one_of(&self, nodes: u32) -> Self {
        let mut listener = self.clone();
        listener.max_connections = part(listener.max_connections, nodes);
        let limits = &mut listener.limits;
        limits.connection_rate = limits.connection_rate.on_one_of(nodes);
        limits.bandwidth_total = limits.bandwidth_total.on_one_of(nodes);
        listener
    }
}

impl Upstream {
    /// With the limits of one of so many nodes.
    pub fn on_one_of(&self, nodes: u32) -> Self {
        let mut upstream = self.clone();
        for backend in &mut upstream.backends {
            backend.max_connections = part(backend.max_connections, nodes);
        }
        upstream
    }
}

impl Bandwidth {
    fn on_one_of(self, nodes: u32) -> Self {
        Self {
            up: part(self.up, nodes),
            down: part(self.down, nodes),
        }
    }
}

impl Rate {
    /// Of what does not divide evenly the part is that of a minute, which is closer.
    fn on_one_of(self, nodes: u32) -> Self {
        let nodes = nodes.max(1);
        let in_a_minute = match self.per {
            Period::Second if !self.connections.is_multiple_of(nodes) => {
                self.connections.checked_mul(60)
            }
            Period::Second | Period::Minute => None,
        };
        match in_a_minute {
            Some(connections) => Self {
                connections: connections.div_ceil(nodes),
                per: Period::Minute,
            },
            None => Self {
                connections: self.connections.div_ceil(nodes),
                per: self.per,
            },
        }
    }
}

/// 0, no limit, stays 0.
fn part(limit: u64, nodes: u32) -> u64 {
    limit.div_ceil(u64::from(nodes.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Backend, Limits};

    #[test]
    fn limits_are_divided_and_rounded_up() {
        for (limit, nodes, part) in [
            (0, 3, 0),
            (1, 3, 1),
            (100, 3, 34),
            (99, 3, 33),
            (7, 1, 7),
            (7, 0, 7),
            (u64::MAX, 2, u64::MAX / 2 + 1),
        ] {
            assert_eq!(super::part(limit, nodes), part, "{limit} {nodes}");
        }
    }

    #[test]
    fn rates_are_divided_by_the_minute_where_that_is_closer() {
        let rate = |connections, per| Rate { connections, per };
        use Period::{Minute, Second};
        for (whole, nodes, part) in [
            (rate(0, Second), 3, rate(0, Second)),
            (rate(90, Second), 3, rate(30, Second)),
            (rate(100, Second), 3, rate(2000, Minute)),
            (rate(1, Second), 4, rate(15, Minute)),
            (rate(10, Minute), 4, rate(3, Minute)),
            (rate(1, Minute), 4, rate(1, Minute)),
            (rate(u32::MAX, Second), 2, rate(u32::MAX / 2 + 1, Second)),
        ] {
            assert_eq!(whole.on_one_of(nodes), part, "{whole:?} {nodes}");
        }
    }

    #[test]
    fn limits_of_a_source_and_of_a_session_stay_whole() {
        let bandwidth = Bandwidth { up: 10, down: 0 };
        let rate = Rate {
            connections: 10,
            per: Period::Second,
        };
        let whole = Listener {
            max_connections: 10,
            limits: Limits {
                max_connections_per_source: 10,
                connection_rate: rate,
                connection_rate_per_source: rate,
                bandwidth,
                bandwidth_per_source: bandwidth,
                bandwidth_total: bandwidth,
                ..Limits::default()
            },
            ..Listener::default()
        };
        let half = whole.on_one_of(2);
        let divided = Listener {
            max_connections: 5,
            limits: Limits {
                connection_rate: Rate {
                    connections: 5,
                    ..rate
                },
                bandwidth_total: Bandwidth { up: 5, down: 0 },
                ..whole.limits
            },
            ..whole.clone()
        };
        assert_eq!(half, divided);
        let backend = Backend {
            max_connections: 9,
            ..Backend::default()
        };
        let upstream = Upstream {
            backends: vec![backend],
            ..Upstream::default()
        };
        assert_eq!(upstream.on_one_of(2).backends[0].max_connections, 5);
    }
}
