//! What the benchmarks have in common.

use criterion::Criterion;
use std::time::Duration;

/// Short enough to run often, with enough samples to see a change of a few percent.
pub(crate) fn criterion(warm_up: Duration, measurement: Duration) -> Criterion {
    Criterion::default()
        .warm_up_time(warm_up)
        .measurement_time(measurement)
        .sample_size(30)
}
