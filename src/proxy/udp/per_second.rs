//! A limit on how often something is done in each second.

pub(super) struct PerSecond {
    most: u32,
    second: u64,
    count: u32,
}

impl PerSecond {
    pub(super) fn new(most: u32) -> Self {
        Self {
            most,
            second: 0,
            count: 0,
        }
    }

    /// Counts one more at this time, in milliseconds, if the limit allows it.
    pub(super) fn take(&mut self, ms: u64) -> bool {
        let second = ms / 1_000;
        if self.second != second {
            self.second = second;
            self.count = 0;
        }
        let may = self.count < self.most;
        self.count += u32::from(may);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_second_begins_anew() {
        let mut limit = PerSecond::new(2);
        let times = [0, 1, 999, 1_000, 1_001, 1_500, 9_000, 9_000, 9_999, 10_000];
        let taken = times.map(|ms| limit.take(ms));
        let (yes, no) = (true, false);
        assert_eq!(taken, [yes, yes, no, yes, yes, no, yes, yes, no, yes]);
    }
}
