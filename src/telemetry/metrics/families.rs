//! Every family of metrics: its name, its help text and where its samples come from, in the order
//! of a scrape.

use super::{
    BackendFigures, BackendMetrics, Figures, ListenerFigures, ListenerMetrics, SourceFigures,
    UpstreamFigures, WaitMetrics,
    text::{Family, Samples, Text, labels},
};
use crate::{
    plan::{
        CheckProtocol, Role,
        reason::{
            BackendState, CheckResult, CloseReason, ConnectError, DropReason, LimitKind, OverLimit,
            RejectReason, SpliceFallback, WaitResult,
        },
    },
    sys::process,
};
use bytes::Bytes;

/// The text of a scrape, in pieces of some 64 KiB.
pub fn render(figures: &Figures<'_>) -> Vec<Bytes> {
    let read = Read {
        of: figures,
        process: process::usage(),
    };
    let mut text = Text::default();
    for (family, write) in FAMILIES {
        write(&read, &mut text.samples(family));
    }
    text.finish()
}

/// Of tests of the documents.
pub fn family_names() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|(family, _)| family.name)
}

/// The figures of the program, and those of the process from the system.
struct Read<'a> {
    of: &'a Figures<'a>,
    process: process::Usage,
}

type Write = fn(&Read<'_>, &mut Samples<'_>);

/// A row for each family: its type, its name, what it is, and what writes its samples.
macro_rules! families {
    ($($kind:ident $name:literal: $help:literal, $write:expr;)*) => {
        &[$((
            Family { name: $name, kind: stringify!($kind), help: $help },
            $write,
        ),)*]
    };
}

/// Sorted by name. A family without samples is omitted.
const FAMILIES: &[(Family, Write)] = families! {
    counter "process_cpu_seconds_total": "Total user and system CPU time spent in seconds.",
        |f, out| out.add_if("", f.process.cpu_seconds);
    gauge "process_max_fds": "Maximum number of open file descriptors.",
        |f, out| out.add_if("", f.process.most_descriptors);
    gauge "process_open_fds": "Number of open file descriptors.",
        |f, out| out.add_if("", f.process.descriptors);
    gauge "process_resident_memory_bytes": "Resident memory size in bytes.",
        |f, out| out.add_if("", f.process.resident_bytes);
    gauge "process_start_time_seconds": "Start time of the process since unix epoch in seconds.",
        |f, out| out.add_if("", f.process.start_time);
    gauge "process_threads": "Number of OS threads in the process.",
        |f, out| out.add_if("", f.process.threads);
    gauge "process_virtual_memory_bytes": "Virtual memory size in bytes.",
        |f, out| out.add_if("", f.process.virtual_bytes);
    gauge "process_virtual_memory_max_bytes":
        "Maximum amount of virtual memory available in bytes.",
        |f, out| out.add_if("", f.process.most_virtual_bytes);
    counter "tembuku_accept_errors_total":
        "Accepts that failed for want of descriptors or memory, and calls for datagrams \
         that failed.",
        |f, out| out.add("", f.of.process.accept_errors.get());
    counter "tembuku_access_log_dropped_total":
        "Access log records dropped because the writer could not keep up.",
        |f, out| out.add("", f.of.access_log_dropped);
    gauge "tembuku_active_connections": "Connections that live now, of all listeners.",
        |f, out| out.add("", f.of.connections.active);
    gauge "tembuku_active_flows": "Flows of datagrams that live now, of all listeners.",
        |f, out| out.add("", f.of.flows.active);
    gauge "tembuku_backend_active_connections":
        "Sessions on the backend now, those being connected included.",
        |f, out| backends(f, |b| out.add(&b.metrics.labels, b.metrics.active()));
    histogram "tembuku_backend_connect_duration_seconds":
        "How long successful connects to the backend took.",
        |f, out| backends(f, |b| out.histogram_if_any(&b.metrics.labels, &b.metrics.connect_duration));
    counter "tembuku_backend_connect_errors_total":
        "Connects to the backend that failed, by reason; of flows, refusals by the \
         network and replies that did not come.",
        |f, out| {
            backends(f, |b| {
                for reason in ConnectError::ALL {
                    let errors = b.totals.connect_errors[reason as usize];
                    out.add_with(&b.metrics.labels, ("reason", reason.word()), errors);
                }
            });
        };
    counter "tembuku_backend_connections_total":
        "Connections established to the backend, and flows that were given to it.",
        |f, out| backends(f, |b| out.add(&b.metrics.labels, b.totals.connections));
    gauge "tembuku_backend_max_connections":
        "Most sessions on the backend at once, where it has a limit.",
        |f, out| backends(f, |b| limit(out, &b.metrics.labels, b.max_connections));
    counter "tembuku_backend_received_bytes_total": "Bytes received from the backend.",
        |f, out| backends(f, |b| out.add(&b.metrics.labels, b.totals.received));
    gauge "tembuku_backend_replication_lag_bytes":
        "How much the replica has received and not replayed, by its last answer; NaN \
         while it reports none.",
        |f, out| lag(f, out, 1);
    gauge "tembuku_backend_replication_lag_seconds":
        "How old what the replica has is, by its last answer; NaN while it reports none.",
        |f, out| lag(f, out, 0);
    counter "tembuku_backend_retries_total":
        "Connects tried here because another backend had failed, and flows that left \
         another one.",
        |f, out| backends(f, |b| out.add(&b.metrics.labels, b.totals.retries));
    gauge "tembuku_backend_role": "1 for the role in the last answer, 0 for the others.",
        |f, out| {
            backends(f, |b| {
                for role in b.roles.as_ref().map_or(&[][..], |_| &Role::ALL) {
                    let is = b.roles.iter().flatten().any(|r| r == role);
                    out.add_with(&b.metrics.labels, ("role", role.word()), is);
                }
            });
        };
    counter "tembuku_backend_sent_bytes_total": "Bytes sent to the backend.",
        |f, out| backends(f, |b| out.add(&b.metrics.labels, b.totals.sent));
    gauge "tembuku_backend_state": "1 for the state that the backend is in, 0 for the others.",
        |f, out| {
            backends(f, |b| {
                for state in BackendState::ALL {
                    let is = state == b.state;
                    out.add_with(&b.metrics.labels, ("state", state.word()), is);
                }
            });
        };
    counter "tembuku_backend_transitions_total":
        "How often the backend has come into the state in the label to, by a check, by connects \
         or by an operator; of a name each address counts.",
        |f, out| {
            backends(f, |b| {
                let protocol = b.metrics.checked_by.get();
                let has_role = protocol.is_some_and(|protocol| protocol.info().logs_in);
                // That one comes by time alone.
                let entered = BackendState::ALL.into_iter();
                for to in entered.filter(|to| *to != BackendState::Unproven) {
                    let n = b.metrics.transitions[to as usize].get();
                    if has_role || !to.is_of_role() || n > 0 {
                        out.add_with(&b.metrics.labels, ("to", to.word()), n);
                    }
                }
            });
        };
    gauge "tembuku_backend_weight": "The weight in force: of the file, or set by an operator.",
        |f, out| backends(f, |b| out.add(&b.metrics.labels, u64::from(b.weight)));
    gauge "tembuku_build_info": "Always 1; the label is the version.",
        |_, out| out.add_with("", ("version", env!("CARGO_PKG_VERSION")), true);
    histogram "tembuku_check_duration_seconds":
        "How long checks of the backend took, those that failed included.",
        |f, out| checked(f, |b, _| out.histogram_if_any(&b.labels, &b.checks.duration));
    counter "tembuku_check_results_total": "Checks of the backend, by result.",
        |f, out| {
            checked(f, |b, protocol| {
                for result in CheckResult::ALL {
                    let n = b.checks.results[result as usize].get();
                    // What has happened is shown, even if it was not expected here.
                    if protocol.can_find(result) || n > 0 {
                        out.add_with(&b.labels, ("result", result.word()), n);
                    }
                }
            });
        };
    gauge "tembuku_config_info": "The hash of the effective configuration; always 1.",
        |f, out| out.add(&labels(&[("hash", f.of.config_hash)]), 1);
    gauge "tembuku_config_last_reload_success_timestamp_seconds":
        "When the configuration was last reloaded successfully.",
        |f, out| {
            let last = f.of.last_reload.as_ref();
            if let Some(at) = last.and_then(|reload| reload.last_success) {
                out.add("", at);
            }
        };
    gauge "tembuku_config_last_reload_successful":
        "Whether the last reload of the configuration was successful.",
        |f, out| {
            if let Some(reload) = &f.of.last_reload {
                out.add("", reload.is_successful);
            }
        };
    gauge "tembuku_discovery_backends":
        "Backends that a source has found, those that are held included.",
        |f, out| sources(f, |source| out.add(&source.metrics.labels, source.backends));
    gauge "tembuku_discovery_held":
        "Backends that stay for now although their source does not name them any more.",
        |f, out| sources(f, |source| out.add(&source.metrics.labels, source.held));
    gauge "tembuku_discovery_last_success_timestamp_seconds":
        "When a source of backends last answered.",
        |f, out| sources(f, |source| out.add_if(&source.metrics.labels, source.last_success));
    counter "tembuku_discovery_updates_total":
        "Answers of a source of backends, by what they led to.",
        |f, out| {
            sources(f, |source| {
                for (result, count) in &source.updates {
                    out.add_with(&source.metrics.labels, ("result", result), *count);
                }
            });
        };
    histogram "tembuku_first_byte_duration_seconds":
        "From the start of the connect, or of the flow, to the backend's first byte.",
        |f, out| listeners(f, |l| out.histogram(&l.metrics.labels, &l.metrics.first_byte_duration));
    gauge "tembuku_listener_active_connections": "Sessions that live now.",
        |f, out| listeners(f, |l| out.add(&l.metrics.labels, l.metrics.active()));
    counter "tembuku_listener_connections_total": "Connections accepted, or flows begun.",
        |f, out| listeners(f, |l|
            out.add(&l.metrics.labels, l.metrics.counts.sum(|c| &c.connections)));
    counter "tembuku_listener_dropped_datagrams_total":
        "Datagrams of clients and backends that were not passed on, by reason.",
        |f, out| {
            udp_listeners(f, |l| {
                for reason in DropReason::ALL {
                    let n = l.counts.sum(|c| &c.dropped_datagrams[reason as usize]);
                    out.add_with(&l.labels, ("reason", reason.word()), n);
                }
            });
        };
    gauge "tembuku_listener_max_connections":
        "Most sessions at once, where the listener has a limit of its own.",
        |f, out| listeners(f, |l| limit(out, &l.metrics.labels, l.max_connections));
    counter "tembuku_listener_over_limit_total":
        "Clients over a limit that were not refused, by limit and what became of them.",
        |f, out| {
            listeners(f, |l| {
                for limit in LimitKind::ALL {
                    for result in OverLimit::ALL {
                        let (limit_at, result_at) = (limit as usize, result as usize);
                        let counts = &l.metrics.counts;
                        let n = counts.sum(|c| &c.over_limit[limit_at][result_at]);
                        // A series for each limit that is there for nothing would be many.
                        if n > 0 {
                            let labels = format!("{},limit=\"{}\"", l.metrics.labels, limit.word());
                            out.add_with(&labels, ("result", result.word()), n);
                        }
                    }
                }
            });
        };
    counter "tembuku_listener_received_bytes_total": "Bytes received from clients.",
        |f, out| listeners(f, |l|
            out.add(&l.metrics.labels, l.metrics.counts.sum(|c| &c.received)));
    counter "tembuku_listener_received_datagrams_total": "Datagrams received from clients.",
        |f, out| udp_listeners(f, |l| out.add(&l.labels, l.counts.sum(|c| &c.received_datagrams)));
    counter "tembuku_listener_rejected_total":
        "Connections and flows rejected before a backend was looked for, by reason.",
        |f, out| {
            listeners(f, |l| {
                for reason in RejectReason::ALL {
                    let n = l.metrics.counts.sum(|c| &c.rejected[reason as usize]);
                    // What has happened is shown, even if it was not expected here.
                    if reason.can_befall(l.is_udp) || n > 0 {
                        out.add_with(&l.metrics.labels, ("reason", reason.word()), n);
                    }
                }
            });
        };
    counter "tembuku_listener_sent_bytes_total": "Bytes sent to clients.",
        |f, out| {
            listeners(f, |l| {
                let sent = l.metrics.counts.sum(|c| &c.sent);
                out.add(&l.metrics.labels, l.metrics.sent_shown.raise(sent));
            });
        };
    counter "tembuku_listener_sent_datagrams_total": "Datagrams sent to clients.",
        |f, out| udp_listeners(f, |l| out.add(&l.labels, l.counts.sum(|c| &c.sent_datagrams)));
    gauge "tembuku_max_connections": "Most connections at once, of all listeners.",
        |f, out| out.add("", f.of.connections.most);
    gauge "tembuku_max_flows": "Most flows of datagrams at once, of all listeners.",
        |f, out| out.add("", f.of.flows.most);
    counter "tembuku_relayed_bytes_total":
        "Bytes of connections relayed in both directions, by mode.",
        |f, out| {
            let process = f.of.process;
            let copied = process.relayed.sum(|r| &r.copy);
            let spliced = process.relayed.sum(|r| &r.splice);
            out.add_with("", ("mode", "copy"), process.copied_shown.raise(copied));
            out.add_with("", ("mode", "splice"), spliced);
        };
    histogram "tembuku_session_duration_seconds": "How long sessions lived.",
        |f, out| listeners(f, |l| out.histogram(&l.metrics.labels, &l.metrics.session_duration));
    counter "tembuku_sessions_closed_total": "Sessions that ended, by reason.",
        |f, out| {
            listeners(f, |l| {
                for reason in CloseReason::ALL {
                    let n = l.metrics.counts.sum(|c| &c.closed[reason as usize]);
                    if reason.can_befall(l.is_udp) || n > 0 {
                        out.add_with(&l.metrics.labels, ("reason", reason.word()), n);
                    }
                }
            });
        };
    counter "tembuku_splice_fallbacks_total":
        "Times that bulk data was copied because it could not be spliced, by reason.",
        |f, out| {
            for reason in SpliceFallback::ALL {
                let n = f.of.process.relayed.sum(|r| &r.fallbacks[reason as usize]);
                out.add_with("", ("reason", reason.word()), n);
            }
        };
    gauge "tembuku_upstream_available_backends":
        "Backends that are fit for sessions, full ones included, and have proved to work.",
        |f, out| upstreams(f, |u| out.add(&u.metrics.labels, u.available));
    histogram "tembuku_upstream_doubt_duration_seconds":
        "From the first sign that a backend was not to be used to the verdict.",
        |f, out| upstreams(f, |u| out.histogram(&u.metrics.labels, &u.metrics.doubt_duration));
    gauge "tembuku_upstream_effective_hash_info":
        "A hash of the policy and of the backends that are up, equal on nodes that pick the \
         same backends by key now; always 1.",
        |f, out| pick_hashes(f, out, 1);
    gauge "tembuku_upstream_full_backends":
        "Backends that are available, and have reached their max_connections.",
        |f, out| upstreams(f, |u| out.add(&u.metrics.labels, u.full));
    histogram "tembuku_upstream_leave_duration_seconds":
        "From the verdict, failed connect or admin_state that took a backend out until its last \
         session was over.",
        |f, out| upstreams(f, |u| out.histogram(&u.metrics.labels, &u.metrics.leave_duration));
    gauge "tembuku_upstream_max_waiting_sessions":
        "Most sessions that wait at once for a place at a backend (queue) or for a fit backend \
         (hold).",
        |f, out| waits(f, |w, _, most| out.add(&w.labels, most));
    gauge "tembuku_upstream_panic":
        "Whether so few backends are up that all are used whatever the results of their checks.",
        |f, out| upstreams(f, |u| out.add_if(&u.metrics.labels, u.in_panic));
    gauge "tembuku_upstream_primaries":
        "Backends that report to be the primary, where there is to be one.",
        |f, out| upstreams(f, |u| out.add_if(&u.metrics.labels, u.primaries));
    histogram "tembuku_upstream_resume_duration_seconds":
        "From the verdict, failed connect or admin_state that took a backend out until another \
         one had taken a session.",
        |f, out| upstreams(f, |u| out.histogram(&u.metrics.labels, &u.metrics.resume_duration));
    gauge "tembuku_upstream_ring_hash_info":
        "A hash of the policy and of the backends as configured, equal on nodes that pick the \
         same backends by key while the same are up; always 1.",
        |f, out| pick_hashes(f, out, 0);
    gauge "tembuku_upstream_role_fallback": "Whether primaries are used because no replica is up.",
        |f, out| upstreams(f, |u| out.add_if(&u.metrics.labels, u.in_role_fallback));
    histogram "tembuku_upstream_wait_duration_seconds":
        "How long sessions waited for a place at a backend (queue) or for a fit backend (hold), \
         served or not.",
        |f, out| waits(f, |w, _, _| out.histogram(&w.labels, &w.duration));
    gauge "tembuku_upstream_waiting_sessions":
        "Sessions that wait now for a place at a backend (queue) or for a fit backend (hold).",
        |f, out| waits(f, |w, waiting, _| out.add(&w.labels, waiting));
    counter "tembuku_upstream_waits_total": "Waits of sessions that have ended, by how.",
        |f, out| {
            waits(f, |w, _, _| {
                for result in WaitResult::ALL {
                    let count = w.results[result as usize].get();
                    out.add_with(&w.labels, ("result", result.word()), count);
                }
            });
        };
    gauge "tembuku_worker_longest_pause_seconds":
        "Longest time since the start for which a change of the configuration or of backends kept \
         a worker from its sessions.",
        |f, out| out.add("", f.of.longest_pause);
};

fn listeners(read: &Read<'_>, each: impl FnMut(&ListenerFigures<'_>)) {
    read.of.listeners.iter().for_each(each);
}

fn udp_listeners(read: &Read<'_>, mut each: impl FnMut(&ListenerMetrics)) {
    let udp = read.of.listeners.iter().filter(|l| l.is_udp);
    udp.for_each(|l| each(l.metrics));
}

fn upstreams(read: &Read<'_>, each: impl FnMut(&UpstreamFigures<'_>)) {
    read.of.upstreams.iter().for_each(each);
}

fn sources(read: &Read<'_>, each: impl FnMut(&SourceFigures<'_>)) {
    read.of.sources.iter().for_each(each);
}

fn backends(read: &Read<'_>, each: impl FnMut(&BackendFigures)) {
    read.of.backends.iter().for_each(each);
}

/// What is counted of each wait that sessions may have, how many wait so now, and how many may.
fn waits(read: &Read<'_>, mut each: impl FnMut(&WaitMetrics, u64, u64)) {
    upstreams(read, |u| {
        let limits = u.waiting.into_iter().zip(u.most_waiting);
        for (metrics, (waiting, most)) in u.metrics.waits.iter().zip(limits) {
            if let Some(waiting) = waiting {
                each(metrics, waiting, most);
            }
        }
    });
}

/// A share of what is not limited would be infinite, or zero, and neither is worth a series.
fn limit(out: &mut Samples<'_>, labels: &str, most: u64) {
    if most > 0 {
        out.add(labels, most);
    }
}

fn checked(read: &Read<'_>, mut each: impl FnMut(&BackendMetrics, CheckProtocol)) {
    for backend in &read.of.backends {
        if let Some(protocol) = backend.metrics.checked_by.get() {
            each(&backend.metrics, protocol);
        }
    }
}

/// `which`: 0 as configured, 1 with what is up.
fn pick_hashes(read: &Read<'_>, out: &mut Samples<'_>, which: usize) {
    upstreams(read, |u| {
        if let Some(hashes) = &u.pick_hashes {
            let named = [("upstream", &*u.metrics.name), ("hash", &*hashes[which])];
            out.add(&labels(&named), 1);
        }
    });
}

/// `unit`: 0 in seconds, 1 in bytes.
fn lag(read: &Read<'_>, out: &mut Samples<'_>, unit: usize) {
    for backend in &read.of.backends {
        if let Some(lag) = backend.lag[unit] {
            out.add(&backend.metrics.labels, lag);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Exporter, SessionFigures,
            histogram::{CHECKS, LATENCY},
        },
        *,
    };
    use std::{sync::Arc, time::Duration};

    #[test]
    fn help_texts_need_no_escapes() {
        for (family, _) in FAMILIES {
            let help = family.help;
            assert!(!help.contains(['\\', '\n']) && !help.is_empty(), "{help}");
        }
    }

    #[test]
    fn a_scrape_has_no_series_of_what_is_gone() {
        let exporter = Exporter::new(1);
        let process = exporter.process();
        let listeners = ["gone", "kept"].map(|name| exporter.listener(name));
        let upstreams = ["gone", "kept"].map(|name| exporter.upstream(name));
        let backends = [("gone", 0), ("kept", 1)].map(|(text, of)| {
            Arc::new(exporter.backend(&upstreams[of], text, Some(CheckProtocol::Redis)))
        });
        let scrape = |from: usize| {
            let figures = Figures {
                listeners: listeners[from..]
                    .iter()
                    .map(|metrics| ListenerFigures {
                        metrics,
                        is_udp: true,
                        max_connections: 1,
                    })
                    .collect(),
                upstreams: upstreams[from..]
                    .iter()
                    .map(|metrics| UpstreamFigures {
                        full: 0,
                        waiting: [Some(0); 2],
                        most_waiting: [1; 2],
                        metrics,
                        available: 1,
                        primaries: Some(1),
                        in_panic: Some(false),
                        in_role_fallback: Some(true),
                        pick_hashes: Some(["0".to_owned(), "1".to_owned()]),
                    })
                    .collect(),
                backends: backends[from..]
                    .iter()
                    .map(|metrics| {
                        let roles = Some(vec![Role::Primary]);
                        BackendFigures::new(metrics, BackendState::Up, 1, roles, [Some(0.0); 2])
                    })
                    .collect(),
                sources: upstreams[from..]
                    .iter()
                    .map(|metrics| SourceFigures {
                        metrics,
                        backends: 1,
                        held: 0,
                        last_success: Some(1.0),
                        updates: vec![("changed", 1)],
                    })
                    .collect(),
                process: &process,
                connections: SessionFigures { active: 0, most: 1 },
                flows: SessionFigures { active: 0, most: 1 },
                access_log_dropped: 0,
                config_hash: "0123",
                last_reload: None,
                longest_pause: 0.0,
            };
            String::from_utf8(render(&figures).concat()).expect("text")
        };
        let series = |text: &str, of: &str| text.matches(&format!("=\"{of}\"")).count();
        let (before, after) = (scrape(0), scrape(1));
        assert!(series(&before, "gone") > 100);
        assert_eq!(series(&before, "gone"), series(&before, "kept"));
        assert_eq!(series(&after, "gone"), 0);
        assert_eq!(series(&after, "kept"), series(&before, "kept"));
    }

    /// Of the backends there may be thousands.
    #[test]
    fn a_backend_has_few_series_of_what_does_not_happen() {
        let exporter = Exporter::new(1);
        let (process, upstream) = (exporter.process(), exporter.upstream("u"));
        let series = |checked_by, use_it: fn(&BackendMetrics)| {
            let metrics = Arc::new(exporter.backend(&upstream, "b", checked_by));
            use_it(&metrics);
            let backend = BackendFigures::new(&metrics, BackendState::Up, 1, None, [None; 2]);
            let figures = Figures {
                listeners: Vec::new(),
                upstreams: Vec::new(),
                backends: vec![backend],
                sources: Vec::new(),
                process: &process,
                connections: SessionFigures { active: 0, most: 1 },
                flows: SessionFigures { active: 0, most: 1 },
                access_log_dropped: 0,
                config_hash: "0123",
                last_reload: None,
                longest_pause: 0.0,
            };
            let text = String::from_utf8(render(&figures).concat()).expect("text");
            text.matches("backend=\"b\"").count()
        };
        let idle = |_: &BackendMetrics| ();
        let none = series(None, idle);
        assert!(none <= 35, "{none}");
        let by = |protocol| series(Some(protocol), idle) - none;
        assert_eq!(by(CheckProtocol::Tcp), 6);
        assert_eq!(by(CheckProtocol::Http), 10);
        // All results, and four states.
        assert_eq!(by(CheckProtocol::Redis), CheckResult::COUNT + 4);
        // What was not expected is shown once it has happened.
        let unexpected = |b: &BackendMetrics| {
            b.checks.results[CheckResult::Busy as usize].add(1);
            b.entered(BackendState::Lagging);
        };
        assert_eq!(series(Some(CheckProtocol::Tcp), unexpected), none + 6 + 2);
        // A histogram has all its buckets at once, so that they can be added to those of others.
        let connected = |b: &BackendMetrics| b.connect_duration.record(Duration::from_secs(1));
        assert_eq!(series(None, connected), none + LATENCY.len() + 3);
        let checked = |b: &BackendMetrics| b.checks.duration.record(Duration::from_secs(1));
        assert_eq!(
            series(Some(CheckProtocol::Tcp), checked),
            none + 6 + CHECKS.len() + 3
        );
    }

    #[test]
    fn families_are_sorted_and_named_by_convention() {
        assert!(FAMILIES.is_sorted_by(|(a, _), (b, _)| a.name < b.name));
        for (Family { name, kind, help }, _) in FAMILIES {
            assert!(name.starts_with("tembuku_") || name.starts_with("process_"));
            assert_eq!(*kind == "counter", name.ends_with("_total"), "{name}");
            assert_eq!(
                *kind == "histogram",
                name.ends_with("_duration_seconds"),
                "{name}"
            );
            assert!(
                help.ends_with('.') && !help.contains(['\\', '\n']),
                "{name}"
            );
        }
    }
}
