//! What a primary can prove about its promotion.

/// Identifies a promotion, as far as the protocol does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Epoch {
    /// PostgreSQL: a promotion begins a new timeline.
    Timeline(u32),
    /// Redis: the data set has an id; a replica that is promoted gives it a new one, and keeps the
    /// one before.
    Replication { id: String, before: Option<String> },
}

impl Epoch {
    /// Whether both are of one data set: one is the other's primary, or they follow the same.
    pub fn is_of_one_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Timeline(mine), Self::Timeline(theirs)) => mine == theirs,
            (Self::Replication { id, .. }, Self::Replication { id: other, .. }) => id == other,
            _ => false,
        }
    }

    /// Whether this is a promotion after `other`; false where that cannot be determined.
    pub fn is_newer_than(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Timeline(mine), Self::Timeline(theirs)) => mine > theirs,
            (
                Self::Replication {
                    before: Some(before),
                    ..
                },
                Self::Replication { id, .. },
            ) => before == id,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_newer_where_the_two_compare() {
        let redis = |id: &str, before: Option<&str>| Epoch::Replication {
            id: id.into(),
            before: before.map(str::to_owned),
        };
        for (one, other, newer, older) in [
            (Epoch::Timeline(2), Epoch::Timeline(1), true, false),
            (Epoch::Timeline(2), Epoch::Timeline(2), false, false),
            (redis("b", Some("a")), redis("a", None), true, false),
            (redis("b", None), redis("a", None), false, false),
            (redis("b", None), Epoch::Timeline(1), false, false),
        ] {
            assert_eq!(one.is_newer_than(&other), newer, "{one:?} {other:?}");
            assert_eq!(other.is_newer_than(&one), older, "{other:?} {one:?}");
        }
    }
}
