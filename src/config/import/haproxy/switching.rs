//! `use_backend`: to which section with servers all clients of a listener go.

use super::{
    super::document::List,
    Import,
    syntax::{Block, Line},
};

/// For which clients a rule holds.
enum Holds {
    All,
    None,
    /// It depends on the client, or on what it sends.
    Some,
    /// HAProxy does not start with it, for this reason.
    Refused(String),
}

/// The line that names where the clients go for which no condition holds: of the first rule without
/// one, or `default_backend`. A `listen` section without either has its own servers.
pub(super) fn target(block: &Block) -> Option<&Line> {
    let mut rules = block.lines.iter().filter(|l| l.word(0) == "use_backend");
    let all = rules.find(|line| matches!(holds(block, line), Holds::All));
    all.or(block.last("default_backend"))
}

impl Import<'_> {
    /// What becomes of all rules of a section.
    pub(super) fn switching(&mut self, block: &Block) {
        let target = target(block);
        let place = target.map(|line| &line.place);
        let name = match target {
            Some(line) => format!("`{}`", line.word(1)),
            None => "this section".to_owned(),
        };
        let mut is_decided = false;
        for line in block.lines.iter().filter(|l| l.word(0) == "use_backend") {
            let (list, text) = match holds(block, line) {
                Holds::Refused(why) => {
                    let text =
                        format!("HAProxy itself refuses it: {why}; its clients go to {name}");
                    (List::Lost, text)
                }
                _ if is_decided => (
                    List::Unneeded,
                    format!("all clients go to {name} before it"),
                ),
                Holds::All => (List::Carried, String::new()),
                Holds::None => {
                    let text = "its condition is empty, or never true: no client goes by it";
                    (List::Unneeded, text.to_owned())
                }
                Holds::Some => {
                    let text = "conditions do not select an upstream: its clients go to";
                    (List::Lost, format!("{text} {name}"))
                }
            };
            is_decided |= Some(&line.place) == place;
            self.note(list, &line.place, &text);
        }
        if let Some(line) = block.last("default_backend") {
            match is_decided {
                true => self.harmless(line, &format!("all clients go to {name}")),
                false => self.carried(line),
            }
        }
    }
}

/// As HAProxy 2.6 reads it: of several alternatives one that is empty never holds.
fn holds(block: &Block, line: &Line) -> Holds {
    let is_unless = match line.word(2) {
        "" => return Holds::All,
        "if" => false,
        "unless" => true,
        other => return Holds::Refused(format!("`if` and `unless` may follow, not `{other}`")),
    };
    let (mut may_hold, mut always_holds) = (false, false);
    for terms in line.words[3..].split(|word| ["or", "||"].contains(&word.as_str())) {
        let (mut is_never, mut is_always, mut count) = (false, true, 0);
        let mut rest = terms.iter().map(String::as_str);
        let mut is_negated = false;
        while let Some(word) = rest.next() {
            let plain = word.trim_start_matches('!');
            is_negated ^= (word.len() - plain.len()) % 2 == 1;
            let value = match plain {
                "" => continue,
                "TRUE" => Some(true),
                "FALSE" => Some(false),
                "{" if !rest.any(|word| word == "}") => {
                    return Holds::Refused("a `}` is missing".to_owned());
                }
                "{" => None,
                name if is_known(block, name) => None,
                name => return Holds::Refused(format!("there is no `acl {name}`")),
            };
            count += 1;
            let value = value.map(|value| value ^ std::mem::take(&mut is_negated));
            is_negated = false;
            is_never |= value == Some(false);
            is_always &= value == Some(true);
        }
        may_hold |= count > 0 && !is_never;
        always_holds |= count > 0 && is_always;
    }
    match (may_hold, always_holds, is_unless) {
        (_, true, false) | (false, _, true) => Holds::All,
        (_, true, true) | (false, _, false) => Holds::None,
        (true, false, _) => Holds::Some,
    }
}

/// Whether the section has the `acl`, or HAProxy itself.
fn is_known(block: &Block, name: &str) -> bool {
    let is_its_own = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || "_.".contains(c);
    name.chars().all(is_its_own) || block.acls(name).next().is_some()
}
