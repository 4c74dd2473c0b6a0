//! Conditions on the source address: by the names of `acl` lines or in braces, negated and joined.

use super::{
    super::document,
    syntax::{Block, Line},
};
use crate::sys::{blocking, files};
use std::{cell::RefCell, collections::HashMap, path::PathBuf};

/// Why a rule cannot be in a list.
pub(super) const NO_LIST: &str =
    "`access` knows addresses alone, and the first rule that matches decides";
/// A list in a larger file is not read.
const MOST_BYTES: u64 = 1 << 20;

/// The networks in files that conditions name, each read once: a FIFO has its content once, and one
/// without a writer is waited for.
#[derive(Default)]
pub(super) struct Lists(RefCell<HashMap<String, Result<Vec<String>, String>>>);

/// A part of a condition: the name of an `acl`, or what stands in braces.
struct Term<'a> {
    is_negated: bool,
    is_name: bool,
    words: Vec<&'a str>,
}

impl Lists {
    /// The networks that the words of a line from this one on look for the source in, and whether
    /// it has to be outside of them; none: any source. The error is why it is another condition.
    pub(super) fn condition(
        &self,
        block: &Block,
        line: &Line,
        from: usize,
    ) -> Result<(bool, Vec<String>), String> {
        let words = line.words.get(from..).unwrap_or_default();
        let Some((condition, rest)) = words.split_first() else {
            return Ok((false, Vec::new()));
        };
        let is_condition = ["if", "unless"].contains(&condition.as_str());
        let all = alternatives(rest).filter(|_| is_condition);
        let all = all.ok_or_else(|| NO_LIST.to_owned())?;
        let terms = || all.iter().flatten();
        let networks = terms().map(|term| self.sources(block, term));
        let networks = networks.collect::<Result<Vec<_>, _>>()?.concat();
        // In one of several, or in none of them. Others have no list.
        let is_one_of = all.iter().all(|terms| terms.len() == 1) && terms().all(|t| !t.is_negated);
        let is_none_of = all.len() == 1 && terms().all(|term| term.is_negated);
        match is_one_of || is_none_of {
            true => Ok((is_none_of ^ (condition == "unless"), networks)),
            false => Err(NO_LIST.to_owned()),
        }
    }

    fn sources(&self, block: &Block, term: &Term<'_>) -> Result<Vec<String>, String> {
        if !term.is_name {
            return self.networks(&term.words);
        }
        let mut acls = block.acls(term.words[0]).peekable();
        acls.peek().ok_or_else(|| NO_LIST.to_owned())?;
        let of = |acl: &Line| {
            let words: Vec<&str> = acl.words.iter().skip(2).map(String::as_str).collect();
            self.networks(&words)
        };
        Ok(acls.map(of).collect::<Result<Vec<_>, _>>()?.concat())
    }

    /// Of `src NETWORK...`, where `-f FILE` stands for the networks in a file.
    fn networks(&self, words: &[&str]) -> Result<Vec<String>, String> {
        let no_list = || NO_LIST.to_owned();
        let Some((&"src", words)) = words.split_first() else {
            return Err(no_list());
        };
        let mut networks = Vec::new();
        let mut words = words.iter().copied();
        while let Some(word) = words.next() {
            match word {
                // Of names and of upper case, which networks are not.
                "-n" | "-i" | "--" => {}
                "-m" if words.next() == Some("ip") => {}
                "-f" => networks.extend(self.file(words.next().ok_or_else(no_list)?)?),
                word => networks.push(document::network(word).ok_or_else(no_list)?),
            }
        }
        match networks.is_empty() {
            true => Err(no_list()),
            false => Ok(networks),
        }
    }

    fn file(&self, name: &str) -> Result<Vec<String>, String> {
        let mut lists = self.0.borrow_mut();
        let list = lists.entry(name.to_owned()).or_insert_with(|| {
            let path = PathBuf::from(name);
            let read = move || files::read(&path, MOST_BYTES);
            let read = blocking::call_and_wait(blocking::LIMIT, read).flatten();
            let bytes = read.map_err(|e| format!("cannot read {name}: {e}"))?;
            let text = String::from_utf8_lossy(&bytes);
            let lines = text.lines().map(str::trim).enumerate();
            let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
            let network = |(n, line)| {
                let network = document::network(line);
                network.ok_or_else(|| format!("{name}:{}: this is no network", n + 1))
            };
            lines.map(network).collect()
        });
        list.clone()
    }
}

/// The terms of a condition: all of one of the lists have to hold. `None`: it is none.
fn alternatives(words: &[String]) -> Option<Vec<Vec<Term<'_>>>> {
    let mut all = vec![Vec::new()];
    let mut is_negated = false;
    let mut rest = words.iter().map(String::as_str);
    while let Some(word) = rest.next() {
        if ["or", "||"].contains(&word) {
            all.push(Vec::new());
            continue;
        }
        let plain = word.trim_start_matches('!');
        is_negated ^= (word.len() - plain.len()) % 2 == 1;
        let words = match plain {
            "" => continue,
            "{" => {
                let end = rest.clone().position(|word| word == "}")?;
                let inside = rest.by_ref().take(end).collect();
                rest.next();
                inside
            }
            name => vec![name],
        };
        let is_negated = std::mem::take(&mut is_negated);
        let is_name = plain != "{";
        all.last_mut()?.push(Term {
            is_negated,
            is_name,
            words,
        });
    }
    all.iter().all(|terms| !terms.is_empty()).then_some(all)
}
