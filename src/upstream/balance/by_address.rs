//! Candidates by the text of their address: a host name can have several.

use super::Entry;
use ahash::AHashMap;

#[derive(Debug)]
pub(super) struct Named {
    candidates: Vec<Vec<usize>>,
}

impl Named {
    /// Also the distinct names with their weights, in the order in which they first appear: of
    /// several candidates the first one's weight counts.
    pub(super) fn new<'a>(entries: &[Entry<'a>]) -> (Self, Vec<Entry<'a>>) {
        let mut numbers: AHashMap<&str, usize> = AHashMap::new();
        let mut names: Vec<Entry<'a>> = Vec::new();
        let mut candidates: Vec<Vec<usize>> = Vec::new();
        for (candidate, entry) in entries.iter().enumerate() {
            let name = *numbers.entry(entry.text).or_insert_with(|| {
                names.push(*entry);
                candidates.push(Vec::new());
                names.len() - 1
            });
            candidates[name].push(candidate);
        }
        (Self { candidates }, names)
    }

    pub(super) fn of(&self, name: usize) -> &[usize] {
        &self.candidates[name]
    }
}
