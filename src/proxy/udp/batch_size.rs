//! How many datagrams one receive asks for. Pure.

/// Adapts to the traffic of one socket. A receive that asks for more than there is makes the kernel
/// check the socket once more, a good part of its cost where datagrams come one at a time; one that
/// asks for too few needs another call.
#[derive(Debug, Clone, Copy)]
pub(super) struct BatchSize {
    size: u8,
    /// The turn of the reactor at the last receive.
    turn: u32,
}

impl BatchSize {
    pub(super) const ONE: Self = Self { size: 1, turn: 0 };

    pub(super) fn get(self) -> usize {
        usize::from(self.size)
    }

    /// `count`: the result of the receive in this `turn`. A socket with more datagrams is ready
    /// again in the next turn; one that gets a single datagram at a time is not. `max`: at most
    /// 255.
    pub(super) fn adapt(&mut self, count: usize, turn: u32, max: usize) {
        let size = self.get();
        let follows = turn.wrapping_sub(self.turn) <= 1;
        let size = if count >= size && (size > 1 || follows) {
            (size * 2).min(max)
        } else if count * 2 <= size {
            (size / 2).max(1)
        } else {
            size
        };
        self.size = u8::try_from(size).unwrap_or(u8::MAX);
        self.turn = turn;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The batch size of each receive, by the number of datagrams that wait; `turns` from one
    /// receive to the next.
    fn sizes(waiting: &[usize], turns: u32) -> Vec<usize> {
        let mut size = BatchSize::ONE;
        let mut turn = 10;
        let step = |waiting: &usize| {
            let asked = size.get();
            turn += turns;
            size.adapt(asked.min(*waiting), turn, 16);
            asked
        };
        waiting.iter().map(step).collect()
    }

    #[test]
    fn one_datagram_at_a_time_is_asked_for_alone() {
        // A request and its reply are two turns.
        assert_eq!(sizes(&[1; 6], 2), [1; 6]);
    }

    #[test]
    fn grows_while_receives_are_full() {
        assert_eq!(sizes(&[99; 8], 1), [1, 1, 2, 4, 8, 16, 16, 16]);
        // Also where several are received in one turn.
        assert_eq!(sizes(&[99; 8], 0), [1, 1, 2, 4, 8, 16, 16, 16]);
    }

    #[test]
    fn shrinks_when_half_of_it_is_not_there() {
        let waiting = [99, 99, 99, 99, 4, 1, 1, 1];
        assert_eq!(sizes(&waiting, 1), [1, 1, 2, 4, 8, 4, 2, 1]);
        // More than half is what it should be.
        assert_eq!(sizes(&[99, 99, 99, 3, 3, 3], 1), [1, 1, 2, 4, 4, 4]);
    }

    #[test]
    fn the_number_of_the_turn_may_wrap() {
        let mut size = BatchSize {
            size: 1,
            turn: u32::MAX,
        };
        size.adapt(1, 0, 16);
        assert_eq!(size.get(), 2);
    }
}
