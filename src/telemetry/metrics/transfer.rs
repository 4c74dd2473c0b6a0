//! All that is counted, by words, to be read as a whole or added to: the sums of another process
//! that this one has replaced. What falls again, such as the number of live sessions, is not among
//! it.

use super::{BackendMetrics, Counter, ListenerMetrics, ProcessMetrics, Sharded, UpstreamMetrics};
use crate::{
    handover::counters::Figures,
    plan::reason::{
        BackendState, CheckResult, CloseReason, ConnectError, DropReason, LimitKind, OverLimit,
        RejectReason, SpliceFallback, WaitResult,
    },
};

/// Sees each figure with its word, its value and a way to add to it.
pub trait Visitor {
    fn count(&mut self, word: &str, value: u64, add: &dyn Fn(u64));
    fn amount(&mut self, word: &str, value: f64, add: &dyn Fn(f64));
}

/// What has figures.
pub trait Transfer {
    fn visit(&self, visitor: &mut dyn Visitor);

    fn figures(&self) -> Figures {
        let mut reader = Reader(Figures::default());
        self.visit(&mut reader);
        reader.0
    }

    /// Those that this program does not know are left out.
    fn add(&self, figures: &Figures) {
        self.visit(&mut Adder(figures));
    }
}

struct Reader(Figures);

impl Visitor for Reader {
    fn count(&mut self, word: &str, value: u64, _: &dyn Fn(u64)) {
        if value > 0 {
            self.0.counts.insert(word.to_owned(), value);
        }
    }

    fn amount(&mut self, word: &str, value: f64, _: &dyn Fn(f64)) {
        if value > 0.0 {
            self.0.amounts.insert(word.to_owned(), value);
        }
    }
}

struct Adder<'a>(&'a Figures);

impl Visitor for Adder<'_> {
    fn count(&mut self, word: &str, _: u64, add: &dyn Fn(u64)) {
        if let Some(n) = self.0.counts.get(word) {
            add(*n);
        }
    }

    fn amount(&mut self, word: &str, _: f64, add: &dyn Fn(f64)) {
        if let Some(n) = self.0.amounts.get(word) {
            add(*n);
        }
    }
}

fn visit_sharded<T>(
    visitor: &mut dyn Visitor,
    word: &str,
    counts: &Sharded<T>,
    counter: impl Fn(&T) -> &Counter,
) {
    let add = |n| counter(counts.mine()).add(n);
    visitor.count(word, counts.sum(&counter), &add);
}

fn visit_counter(visitor: &mut dyn Visitor, word: &str, counter: &Counter) {
    visitor.count(word, counter.get(), &|n| counter.add(n));
}

/// The counters with these names, and one of a name for each of several words.
macro_rules! visit_all {
    ($visitor:ident, $counts:expr, $($field:ident)* $(; $each:ident by $words:ident)*) => {
        $(visit_sharded($visitor, stringify!($field), $counts, |c| &c.$field);)*
        $(for one in $words::ALL {
            let word = format!("{}.{}", stringify!($each), one.word());
            visit_sharded($visitor, &word, $counts, |c| &c.$each[one as usize]);
        })*
    };
}

impl Transfer for ListenerMetrics {
    fn visit(&self, visitor: &mut dyn Visitor) {
        let counts = &self.counts;
        visit_all!(
            visitor, counts, connections received sent received_datagrams sent_datagrams;
            rejected by RejectReason; closed by CloseReason; dropped_datagrams by DropReason
        );
        for limit in LimitKind::ALL {
            for result in OverLimit::ALL {
                let word = format!("over_limit.{}.{}", limit.word(), result.word());
                visit_sharded(visitor, &word, counts, |c| {
                    &c.over_limit[limit as usize][result as usize]
                });
            }
        }
        self.session_duration.visit("session_duration", visitor);
        self.first_byte_duration
            .visit("first_byte_duration", visitor);
    }
}

impl Transfer for UpstreamMetrics {
    fn visit(&self, visitor: &mut dyn Visitor) {
        self.doubt_duration.visit("doubt_duration", visitor);
        self.leave_duration.visit("leave_duration", visitor);
        self.resume_duration.visit("resume_duration", visitor);
        for (n, waits) in self.waits.iter().enumerate() {
            for result in WaitResult::ALL {
                let word = format!("waits.{n}.{}", result.word());
                visit_counter(visitor, &word, &waits.results[result as usize]);
            }
            let word = format!("waits.{n}.duration");
            waits.duration.visit(&word, visitor);
        }
    }
}

impl Transfer for BackendMetrics {
    fn visit(&self, visitor: &mut dyn Visitor) {
        visit_all!(
            visitor, &self.counts, connections retries received sent;
            connect_errors by ConnectError
        );
        self.connect_duration.visit("connect_duration", visitor);
        for state in BackendState::ALL {
            let word = format!("transitions.{}", state.word());
            visit_counter(visitor, &word, &self.transitions[state as usize]);
        }
        for result in CheckResult::ALL {
            let word = format!("checks.{}", result.word());
            visit_counter(visitor, &word, &self.checks.results[result as usize]);
        }
        self.checks.duration.visit("check_duration", visitor);
    }
}

impl Transfer for ProcessMetrics {
    fn visit(&self, visitor: &mut dyn Visitor) {
        visit_sharded(visitor, "relayed.splice", &self.relayed, |c| &c.splice);
        visit_sharded(visitor, "relayed.copy", &self.relayed, |c| &c.copy);
        visit_all!(visitor, &self.relayed, ; fallbacks by SpliceFallback);
        visit_counter(visitor, "accept_errors", &self.accept_errors);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BackendCounts, Exporter, ListenerCounts, RelayCounts};
    use super::*;
    use crate::plan::CheckProtocol;
    use std::time::Duration;

    /// What is counted by several threads. A counter that is added there has to be added here.
    trait All {
        fn all(&self) -> Vec<&Counter>;
    }

    impl All for ListenerCounts {
        fn all(&self) -> Vec<&Counter> {
            let Self {
                connections,
                rejected,
                over_limit,
                received,
                sent,
                closed,
                received_datagrams,
                sent_datagrams,
                dropped_datagrams,
            } = self;
            let mut all = vec![
                connections,
                received,
                sent,
                received_datagrams,
                sent_datagrams,
            ];
            all.extend(rejected.iter().chain(closed).chain(dropped_datagrams));
            all.extend(over_limit.as_flattened());
            all
        }
    }

    impl All for BackendCounts {
        fn all(&self) -> Vec<&Counter> {
            let Self {
                connections,
                connect_errors,
                retries,
                received,
                sent,
            } = self;
            let mut all = vec![connections, retries, received, sent];
            all.extend(connect_errors);
            all
        }
    }

    impl All for RelayCounts {
        fn all(&self) -> Vec<&Counter> {
            let Self {
                splice,
                copy,
                fallbacks,
            } = self;
            let mut all = vec![splice, copy];
            all.extend(fallbacks);
            all
        }
    }

    /// Every counter of one process arrives in the other.
    fn check_all<T: All>(from: &Sharded<T>, to: &Sharded<T>, transfer: impl Fn()) {
        for (n, counter) in from.mine().all().into_iter().enumerate() {
            counter.add(n as u64 + 1);
        }
        transfer();
        for n in 0..from.mine().all().len() {
            assert_eq!(to.sum(|counts| counts.all()[n]), n as u64 + 1, "the {n}th");
        }
    }

    #[test]
    fn every_counter_of_several_threads_is_added_to_that_of_the_other_process() {
        let (old, new) = (Exporter::new(2), Exporter::new(3));
        let (from, to) = (old.listener("l"), new.listener("l"));
        check_all(&from.counts, &to.counts, || to.add(&from.figures()));
        let (from, to) = (old.upstream("u"), new.upstream("u"));
        let (from, to) = (
            old.backend(&from, "b", Some(CheckProtocol::Redis)),
            new.backend(&to, "b", Some(CheckProtocol::Redis)),
        );
        check_all(&from.counts, &to.counts, || to.add(&from.figures()));
        let (from, to) = (old.process(), new.process());
        check_all(&from.relayed, &to.relayed, || to.add(&from.figures()));
    }

    #[test]
    fn the_figures_of_one_process_are_those_of_another_after_they_were_added() {
        let (old, new) = (Exporter::new(2), Exporter::new(3));
        let (from, to) = (old.listener("l"), new.listener("l"));
        from.counts.mine().connections.add(5);
        from.rejected(RejectReason::ALL[0]);
        from.closed(CloseReason::Ok);
        from.dropped(DropReason::ALL[1], 3);
        from.session_duration.record(Duration::from_secs(2));
        to.counts.mine().connections.add(1);
        to.add(&from.figures());
        assert_eq!(to.counts.sum(|c| &c.connections), 6);
        to.counts.mine().connections.take_back(1);
        assert_eq!(to.figures(), from.figures());

        let (from_up, to_up) = (old.upstream("u"), new.upstream("u"));
        from_up.waits[1].duration.record(Duration::from_millis(7));
        from_up.waits[1].results[0].add(2);
        to_up.add(&from_up.figures());
        assert_eq!(to_up.figures(), from_up.figures());

        let from = old.backend(&from_up, "b", Some(CheckProtocol::Redis));
        let to = new.backend(&to_up, "b", Some(CheckProtocol::Redis));
        from.entered(BackendState::Down);
        from.checks.results[0].add(9);
        from.connect_duration.record(Duration::from_millis(1));
        to.add(&from.figures());
        assert_eq!(to.figures(), from.figures());
        assert!(!to.figures().is_empty());

        let (from, to) = (old.process(), new.process());
        from.relayed.mine().copy.add(100);
        from.accept_errors.add(1);
        to.add(&from.figures());
        assert_eq!(to.figures(), from.figures());
    }
}
