//! Sums of metrics, by what counts and by the word of the figure, so that a program which counts
//! more or less understands what it knows.

use super::record::{Malformed, Record, Tag, Writer};
use std::collections::BTreeMap;

/// The figures of one listener, upstream or backend, or of the process.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Account {
    /// "listener", "upstream", "backend" or "process".
    pub of: String,
    /// Its name; of a backend that of the upstream and its own.
    pub names: Vec<String>,
    pub figures: Figures,
}

/// By their words.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figures {
    pub counts: BTreeMap<String, u64>,
    pub amounts: BTreeMap<String, f64>,
}

const ACCOUNT: Tag = Tag::new(1);

/// Within [`ACCOUNT`].
const OF: Tag = Tag::new(1);
const NAME: Tag = Tag::new(2);
const COUNT: Tag = Tag::new(3);
const AMOUNT: Tag = Tag::new(4);

/// Within [`COUNT`] and [`AMOUNT`].
const WORD: Tag = Tag::new(1);
const VALUE: Tag = Tag::new(2);

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

pub fn write(accounts: &[Account]) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.list(ACCOUNT, accounts, |account, writer| {
        writer.text(OF, &account.of);
        for name in &account.names {
            writer.text(NAME, name);
        }
        let counts = account.figures.counts.iter();
        writer.list(COUNT, counts, |(word, value), writer| {
            writer.text(WORD, word).u64(VALUE, *value);
        });
        let amounts = account.figures.amounts.iter();
        writer.list(AMOUNT, amounts, |(word, value), writer| {
            writer.text(WORD, word).f64(VALUE, *value);
        });
    });
    writer.into_bytes()
}

pub fn read(bytes: &[u8]) -> Result<Vec<Account>, Malformed> {
    let record = Record::parse(bytes, &[ACCOUNT])?;
    record.list(ACCOUNT, &[OF, NAME, COUNT, AMOUNT], |account| {
        let names = account.texts(NAME)?.into_iter().map(str::to_owned);
        let counts = account.list(COUNT, &[WORD, VALUE], |count| {
            Ok((count.text(WORD)?.to_owned(), count.u64(VALUE)?))
        })?;
        let amounts = account.list(AMOUNT, &[WORD, VALUE], |amount| {
            Ok((amount.text(WORD)?.to_owned(), amount.f64(VALUE)?))
        })?;
        Ok(Account {
            of: account.text(OF)?.to_owned(),
            names: names.collect(),
            figures: Figures {
                counts: counts.into_iter().collect(),
                // One that is no number would spoil the sum.
                amounts: amounts.into_iter().filter(|(_, n)| n.is_finite()).collect(),
            },
        })
    })
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
        assert!(read(b"x").is_err());
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
