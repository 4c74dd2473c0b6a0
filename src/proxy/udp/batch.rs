//! Which datagrams of a batch leave together. Pure.
//!
//! The kernel sends a run of datagrams of one size, of which the last may be shorter, at little
//! more than the cost of one (UDP_SEGMENT). The receiver gets the same datagrams.

/// The most datagrams of one run, and parts of one message, that every kernel takes.
pub(super) const MAX_DATAGRAMS: usize = 64;
/// The most bytes of one run, and of one datagram over IPv4.
pub(super) const MAX_BYTES: usize = 65_507;

/// Consecutive bytes that were received together: one datagram, or several of one size of which the
/// last may be shorter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) len: usize,
    /// The size of each datagram; 0 if there is only one.
    pub(super) segment: usize,
}

impl Piece {
    pub(super) fn datagrams(self) -> usize {
        match self.segment {
            0 => 1,
            segment => self.len.div_ceil(segment),
        }
    }

    fn size(self) -> usize {
        match self.segment {
            0 => self.len,
            segment => segment,
        }
    }
}

/// How many bytes of datagrams of this size fit into one run; a whole number of datagrams.
pub(super) fn max_bytes(segment: usize) -> usize {
    segment * (MAX_BYTES / segment).clamp(1, MAX_DATAGRAMS)
}

/// How many of the pieces, from the first on, are sent as one run, and the size of its datagrams; 0
/// if there is only one. No piece may be longer than [`max_bytes`].
pub(super) fn run(pieces: impl IntoIterator<Item = Piece>) -> (usize, usize) {
    let mut pieces = pieces.into_iter();
    let Some(first) = pieces.next() else {
        return (0, 0);
    };
    let size = first.size();
    let (mut parts, mut total, mut datagrams) = (1, first.len, first.datagrams());
    // Empty datagrams cannot be joined.
    let mut is_open = size > 0 && first.len.is_multiple_of(size);
    for piece in pieces {
        let fits = is_open
            && piece.len > 0
            && piece.size() <= size
            && (piece.segment == 0 || piece.segment == size)
            && parts < MAX_DATAGRAMS
            && datagrams + piece.datagrams() <= MAX_DATAGRAMS
            && total + piece.len <= MAX_BYTES;
        if !fits {
            break;
        }
        parts += 1;
        total += piece.len;
        datagrams += piece.datagrams();
        is_open = total.is_multiple_of(size);
    }
    (parts, if datagrams > 1 { size } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(len: usize) -> Piece {
        Piece { len, segment: 0 }
    }

    fn many(len: usize, segment: usize) -> Piece {
        Piece { len, segment }
    }

    #[test]
    fn equal_ones_leave_together_and_a_shorter_one_is_the_last() {
        assert_eq!(run([one(5)]), (1, 0));
        assert_eq!(run([one(5), one(5), one(3), one(3)]), (3, 5));
        assert_eq!(run([one(5), one(6)]), (1, 0));
        assert_eq!(run([one(5), one(0), one(5)]), (1, 0));
        assert_eq!(run([one(0), one(0)]), (1, 0));
        assert_eq!(run([many(15, 5), one(5), one(2)]), (3, 5));
        assert_eq!(run([many(13, 5), one(5)]), (1, 5));
        assert_eq!(run([many(15, 5), many(11, 5), one(1)]), (2, 5));
        assert_eq!(run([many(15, 5), many(15, 3)]), (1, 5));
        assert_eq!(run(vec![one(1); 100]), (64, 1));
        assert_eq!(run(vec![one(1_200); 100]), (54, 1_200));
        assert_eq!(run([]), (0, 0));
    }

    proptest! {
        /// What the kernel makes of a run are the datagrams that went in.
        #[test]
        fn the_kernel_splits_it_as_it_was(
            sizes in prop::collection::vec((0usize..6, 1usize..5, any::<bool>()), 1..80),
        ) {
            // From sizes to pieces: some are several of one size.
            let pieces: Vec<Piece> = sizes.iter().map(|(size, count, many)| match (size, many) {
                (0, _) | (_, false) => one(*size),
                (size, true) => Piece { len: size * count - size / 2, segment: *size },
            }).collect();
            let datagrams = |piece: &Piece| -> Vec<usize> {
                if piece.segment == 0 {
                    return vec![piece.len];
                }
                let whole = vec![piece.segment; piece.len / piece.segment];
                let rest = Some(piece.len % piece.segment).filter(|rest| *rest > 0);
                whole.into_iter().chain(rest).collect()
            };
            let mut at = 0;
            while at < pieces.len() {
                let (n, segment) = run(pieces[at..].iter().copied());
                prop_assert!(n > 0);
                let went_in: Vec<usize> = pieces[at..at + n].iter().flat_map(datagrams).collect();
                let whole = Piece { len: went_in.iter().sum(), segment };
                prop_assert!(went_in.len() <= MAX_DATAGRAMS);
                prop_assert_eq!(datagrams(&whole), went_in);
                at += n;
            }
        }
    }
}
