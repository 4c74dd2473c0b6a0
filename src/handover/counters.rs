//! Sums of metrics, by what counts and by the word of the figure, so that a program which counts
//! more or less understands what it knows.

pub use super::fields::{read_list as read, write_list as write};

use super::fields::{Pairs, record};
use std::collections::BTreeMap;

record! {
    /// The figures of one listener, upstream or backend, or of the process.
    #[derive(Debug, Clone, Default, PartialEq)]
    Account {
        /// "listener", "upstream", "backend" or "process".
        of: String = 1,
        /// Its name; of a backend that of the upstream and its own.
        names: Vec<String> = 2,
        figures: Figures = inline,
    }
}

type WordAndValue = Pairs<1, 2>;

record! {
    /// By their words.
    #[derive(Debug, Clone, Default, PartialEq)]
    Figures {
        counts: BTreeMap<String, u64> = 3 as WordAndValue,
        amounts: BTreeMap<String, f64> = 4 as WordAndValue,
    }
}

impl Figures {
    /// What has been added since they were `before`.
    pub fn since(&self, before: &Self) -> Self {
        let counts = self.counts.iter().map(|(word, now)| {
            let before = before.counts.get(word).copied().unwrap_or_default();
            (word.clone(), now.saturating_sub(before))
        });
        let amounts = self.amounts.iter().map(|(word, now)| {
            let before = before.amounts.get(word).copied().unwrap_or_default();
            (word.clone(), (now - before).max(0.0))
        });
        Self {
            counts: counts.filter(|(_, n)| *n > 0).collect(),
            amounts: amounts.filter(|(_, n)| *n > 0.0).collect(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.counts.is_empty() && self.amounts.is_empty()
    }
}

impl Account {
    fn is_of_one_with(&self, other: &Self) -> bool {
        (&self.of, &self.names) == (&other.of, &other.names)
    }
}

/// The accounts in which something was added, with what that is.
pub fn since(now: &[Account], before: &[Account]) -> Vec<Account> {
    let none = Figures::default();
    let changed = now.iter().map(|account| {
        let mut before = before.iter();
        let before = before.find(|before| before.is_of_one_with(account));
        let before = before.map_or(&none, |before| &before.figures);
        Account {
            figures: account.figures.since(before),
            ..account.clone()
        }
    });
    changed.filter(|a| !a.figures.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(of: &str, names: &[&str], counts: &[(&str, u64)], amount: f64) -> Account {
        let counts = counts.iter().map(|(word, n)| ((*word).to_owned(), *n));
        Account {
            of: of.to_owned(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            figures: Figures {
                counts: counts.collect(),
                amounts: [("seconds".to_owned(), amount)].into(),
            },
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let accounts = [
            account(
                "listener",
                &["l"],
                &[("connections", 5), ("closed.ok", 4)],
                1.5,
            ),
            account("backend", &["u", "10.0.0.1:1"], &[], 0.0),
            account("process", &[], &[], 0.25),
        ];
        assert_eq!(read(&write(&accounts)).as_deref(), Ok(&accounts[..]));
        assert!(read::<Account>(b"x").is_err());
    }

    #[test]
    fn a_difference_has_only_what_was_added() {
        let before = [
            account("listener", &["l"], &[("a", 5), ("b", 4)], 1.5),
            account("listener", &["same"], &[("a", 5)], 1.5),
        ];
        let now = [
            account("listener", &["l"], &[("a", 7), ("b", 4)], 2.0),
            account("listener", &["same"], &[("a", 5)], 1.5),
            account("listener", &["new"], &[("a", 1)], 0.0),
        ];
        let mut new = account("listener", &["new"], &[("a", 1)], 0.0);
        new.figures.amounts.clear();
        let expected = [account("listener", &["l"], &[("a", 2)], 0.5), new];
        assert_eq!(since(&now, &before), expected);
        assert!(since(&now, &now).is_empty());
    }
}
