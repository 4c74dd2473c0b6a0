//! A small seeded generator: the same seed gives the same test, on every machine.

use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// The next 64 bits (SplitMix64).
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From `0` to `end - 1`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// From `first` to `last`, both included.
    pub(crate) fn range(&mut self, first: u64, last: u64) -> u64 {
        first + self.below(last - first + 1)
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// From 0 up to, but without, 1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Up to 2^`bits`, every order of magnitude as likely as another.
    pub(crate) fn magnitude(&mut self, bits: f64) -> u64 {
        (2f64.powf(self.unit() * bits)) as u64
    }
}

/// The seed of this run, printed so that a failure can be repeated.
pub(crate) fn seed(test: &str) -> u64 {
    let seed = match std::env::var("TEMBUKU_TEST_SEED") {
        Ok(text) => text
            .trim()
            .parse()
            .expect("TEMBUKU_TEST_SEED is a number without a sign"),
        Err(_) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            now.as_nanos() as u64 % 1_000_000_000
        }
    };
    println!("{test}: TEMBUKU_TEST_SEED={seed}");
    seed
}
