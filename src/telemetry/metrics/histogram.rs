//! Histograms with fixed buckets: recording takes two atomic operations and no memory.

use super::transfer::Visitor;
use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// The upper bound of a bucket in seconds, and the same as text for the label `le`.
pub(super) type Bound = (f64, &'static str);

/// Connects and first bytes: from a loopback's 50 us to a retransmitted SYN.
pub(super) const LATENCY: &[Bound] = &[
    (0.000_05, "0.00005"),
    (0.000_1, "0.0001"),
    (0.000_25, "0.00025"),
    (0.000_5, "0.0005"),
    (0.001, "0.001"),
    (0.002_5, "0.0025"),
    (0.005, "0.005"),
    (0.01, "0.01"),
    (0.025, "0.025"),
    (0.05, "0.05"),
    (0.1, "0.1"),
    (0.25, "0.25"),
    (0.5, "0.5"),
    (1.0, "1"),
    (2.5, "2.5"),
    (5.0, "5"),
    (10.0, "10"),
];

/// Checks, of which each backend has its own: whether they are near their timeout.
pub(super) const CHECKS: &[Bound] = &[
    (0.001, "0.001"),
    (0.005, "0.005"),
    (0.025, "0.025"),
    (0.1, "0.1"),
    (0.5, "0.5"),
    (1.0, "1"),
    (2.5, "2.5"),
    (10.0, "10"),
];

/// Sessions: from one short request to a pooled connection of a day.
pub(super) const LIFETIME: &[Bound] = &[
    (0.001, "0.001"),
    (0.005, "0.005"),
    (0.025, "0.025"),
    (0.1, "0.1"),
    (0.5, "0.5"),
    (1.0, "1"),
    (5.0, "5"),
    (10.0, "10"),
    (60.0, "60"),
    (300.0, "300"),
    (1_800.0, "1800"),
    (7_200.0, "7200"),
    (43_200.0, "43200"),
    (86_400.0, "86400"),
];

#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [Bound],
    /// Samples of each bucket alone, and one count more for samples above the last bound.
    counts: Box<[AtomicU64]>,
    /// The sum of all samples: the bits of an `f64`.
    sum: AtomicU64,
}

impl Histogram {
    /// `bounds` are in ascending order.
    pub(super) fn new(bounds: &'static [Bound]) -> Self {
        Self {
            bounds,
            counts: (0..=bounds.len()).map(|_| AtomicU64::default()).collect(),
            sum: AtomicU64::default(),
        }
    }

    pub fn record(&self, sample: Duration) {
        let sample = sample.as_secs_f64();
        let bucket = self.bounds.partition_point(|(bound, _)| *bound < sample);
        self.counts[bucket].fetch_add(1, Relaxed);
        let add = |sum| Some((f64::from_bits(sum) + sample).to_bits());
        let _ = self.sum.fetch_update(Relaxed, Relaxed, add);
    }

    pub(super) fn is_any(&self) -> bool {
        self.counts.iter().any(|count| count.load(Relaxed) > 0)
    }

    /// Every bucket's `le` and the number of samples at or below it; the last one, `+Inf`, has all.
    pub(super) fn buckets(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let bounds = self.bounds.iter().map(|(_, text)| *text);
        let mut total = 0;
        bounds
            .chain(["+Inf"])
            .zip(&self.counts)
            .map(move |(le, n)| {
                total += n.load(Relaxed);
                (le, total)
            })
    }

    /// Each bucket alone, by its bound.
    pub(super) fn visit(&self, word: &str, visitor: &mut dyn Visitor) {
        let bounds = self.bounds.iter().map(|(_, text)| *text).chain(["+Inf"]);
        for (le, count) in bounds.zip(&self.counts) {
            let add = |n| {
                count.fetch_add(n, Relaxed);
            };
            visitor.count(&format!("{word}.{le}"), count.load(Relaxed), &add);
        }
        let add = |n: f64| {
            let add = |sum| Some((f64::from_bits(sum) + n).to_bits());
            let _ = self.sum.fetch_update(Relaxed, Relaxed, add);
        };
        visitor.amount(word, self.sum(), &add);
    }

    pub(super) fn sum(&self) -> f64 {
        f64::from_bits(self.sum.load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_ascend_and_their_text_is_their_value() {
        for bounds in [LATENCY, CHECKS, LIFETIME] {
            assert!(bounds.is_sorted_by(|a, b| a.0 < b.0));
            for (bound, text) in bounds {
                assert_eq!(text.parse(), Ok(*bound));
            }
        }
    }

    #[test]
    fn buckets_are_cumulative_and_include_their_bound() {
        let histogram = Histogram::new(&[(0.5, "0.5"), (1.0, "1")]);
        for milliseconds in [250, 500, 750, 1_000, 8_000, 500] {
            histogram.record(Duration::from_millis(milliseconds));
        }
        let buckets: Vec<_> = histogram.buckets().collect();
        assert_eq!(buckets, [("0.5", 3), ("1", 5), ("+Inf", 6)]);
        assert_eq!(histogram.sum(), 11.0);
    }

    #[test]
    fn samples_of_several_threads_add_up() {
        let histogram = Histogram::new(LATENCY);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let record = |_| histogram.record(Duration::from_millis(250));
                scope.spawn(move || (0..1_000).for_each(record));
            }
        });
        assert_eq!(histogram.buckets().last(), Some(("+Inf", 4_000)));
        assert_eq!(histogram.sum(), 1_000.0);
    }
}
