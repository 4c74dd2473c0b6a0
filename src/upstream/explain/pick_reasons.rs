//! Explanations of outcomes, with figures.

use super::{Client, Outcome, Process};
use crate::{
    config::access_rule_text,
    plan::{Balance, Target, counted},
    upstream::balance::Why,
};

impl Process<'_> {
    /// Why the client has this outcome.
    pub fn reason(&self, client: Client, outcome: &Outcome) -> String {
        match *outcome {
            Outcome::Denied { rule } => {
                let rules = &self.listener.access;
                let text = access_rule_text(&rules[rule]);
                format!(
                    "denied by access rule {} of {}: {text:?}",
                    rule + 1,
                    rules.len()
                )
            }
            Outcome::NoBackend => "no backend can be picked".to_owned(),
            Outcome::Backend { backend, why } if self.upstream.backends[backend].backup => {
                let among = match why {
                    Why::Rotation | Why::RotationInsteadOfKey => {
                        "it was next in rotation".to_owned()
                    }
                    why => self.picked(client, why),
                };
                format!("no primary can be picked; of the backups, {among}")
            }
            Outcome::Backend { why, .. } => self.picked(client, why),
        }
    }

    fn picked(&self, client: Client, why: Why) -> String {
        match why {
            Why::Only => "the only backend".to_owned(),
            Why::Rotation => "it was next in rotation".to_owned(),
            Why::FirstInOrder => "the first in order that can be picked".to_owned(),
            Why::FewestConnections { connections } => format!(
                "{} on it, the fewest for its weight; equals are picked in rotation",
                counted(connections, "session")
            ),
            Why::Drawn { other: None } => "drawn by lot, alone".to_owned(),
            Why::Drawn { other: Some(other) } => format!(
                "drawn by lot with {}, which has no fewer sessions for its weight",
                self.upstream.backends[other].text
            ),
            Why::LeastScore { score } => {
                format!(
                    "its score of time, sessions and weight is {score}, the least; equals are \
                                         picked in rotation"
                )
            }
            Why::Hash {
                hash,
                at,
                total,
                tries,
            } => {
                let tries = match tries {
                    1 => String::new(),
                    n => format!(", at try {n}: before, it fell to backends that cannot be picked"),
                };
                format!("the hash {hash} falls on {at} of {total} in the weights{tries}")
            }
            Why::Point { key, point, steps } => format!(
                "the key's hash is {key:08x}, {} on the ring is {point:08x}",
                match steps {
                    0 => "the next point".to_owned(),
                    n => format!("the first point that can be used, {n} after the next,"),
                }
            ),
            Why::Slot { slot, steps: 0 } => {
                format!("the key's hash falls on slot {slot} of the table")
            }
            Why::Slot { slot, steps } => format!(
                "slot {slot} of the table is the first that can be used, {steps} after that of the \
                 key's hash"
            ),
            Why::KeyAmongTheRest { tries } => format!(
                "{tries} positions in a row led to backends that cannot be picked: the key's hash, \
                 by weight, among those that can"
            ),
            Why::RotationInsteadOfKey if self.has_empty_key(client) => {
                "the hash key is empty: it was next in rotation".to_owned()
            }
            Why::RotationInsteadOfKey => {
                "the key led to no backend that can be picked: it was next in rotation".to_owned()
            }
        }
    }

    fn has_empty_key(&self, client: Client) -> bool {
        let key = self.upstream.balance.hash_key();
        key.is_some_and(|key| !self.hash_input(client).has_key(key))
    }

    /// How a running process may differ from these outcomes, because of this configuration.
    pub fn caveats(&self, seed: u64) -> Vec<String> {
        let balance = &self.upstream.balance;
        let mut caveats = Vec::new();
        match balance {
            Balance::RoundRobin | Balance::LeastConn | Balance::LeastTime(_) => {
                caveats.push(format!(
                    "{} picks in rotation: no client has a backend of its own, and moves have no \
                     meaning",
                    balance.word()
                ));
            }
            Balance::RandomTwo => caveats.push(format!(
                "random_two draws, here with seed {seed}: another process draws otherwise, no \
                 client has a backend of its own, and moves have no meaning"
            )),
            Balance::ConsistentHash(_, Some(_)) | Balance::Maglev(_, Some(_)) => caveats.push(
                "hash_balance_factor moves clients off backends that hold too many sessions; here \
                 none stays"
                    .to_owned(),
            ),
            _ => {}
        }
        let mut names = self
            .upstream
            .backends
            .iter()
            .filter(|backend| matches!(backend.target, Target::Name { .. }));
        if let Some(first) = names.next() {
            let others = match names.count() {
                0 => String::new(),
                n => format!(" (and {n} more)"),
            };
            caveats.push(format!(
                "names are not resolved: {}{others} counts as one backend; {}",
                first.text,
                match balance {
                    Balance::ConsistentHash(..) | Balance::Maglev(..) =>
                        "of several addresses each would get a part of its clients",
                    _ => "with several addresses each would count with the whole weight",
                }
            ));
        }
        caveats
    }
}
