//! The log of sessions: syslog in HAProxy, standard output here, which the journal of a service
//! keeps.

use super::{
    super::document::{List, Place, Section},
    Import,
    syntax::{Block, Line},
};
use crate::config::text::quote::quoted;

const TARGET: &str = "sessions are recorded on standard output, which the journal of a service \
                      keeps, instead of syslog; [log] access may name a file";

/// What lines are about records of sessions.
pub(super) const KEYS: [&str; 11] = [
    "log",
    "log-format",
    "log-format-sd",
    "log-tag",
    "option dontlog-normal",
    "option dontlognull",
    "option httplog",
    "option httpslog",
    "option log-separate-errors",
    "option logasap",
    "option tcplog",
];

/// What is known of logs while a configuration is converted.
pub(super) struct Logs {
    /// The section `global` has a target.
    has_global: bool,
    /// Where the first log of sessions is asked for.
    first: Option<Place>,
    /// The positions of the sections of listeners without one, and the place that says so.
    without: Vec<(usize, Place)>,
}

impl Logs {
    pub(super) fn new(blocks: &[Block]) -> Self {
        let mut global = blocks.iter().filter(|block| block.kind == "global");
        Self {
            has_global: global.any(|b| b.lines.iter().any(|line| line.word(0) == "log")),
            first: None,
            without: Vec::new(),
        }
    }
}

impl Import<'_> {
    /// Whether HAProxy records the sessions of a frontend, whose section is the next one.
    pub(super) fn log(&mut self, block: &Block) {
        let targets = block.all().filter(|line| line.key() == "log");
        // `no log` forgets those before it.
        let mut targets: Vec<&Line> = targets.collect();
        if let Some(off) = targets.iter().rposition(|line| line.word(0) == "no") {
            targets.drain(..=off);
        }
        targets.retain(|line| line.word(1) != "global" || self.log.has_global);
        let is_logged = !targets.is_empty();
        match targets.first() {
            Some(target) => {
                self.log.first.get_or_insert_with(|| target.place.clone());
            }
            None => {
                let position = self.document.sections.len();
                self.log.without.push((position, block.place.clone()));
            }
        }
        for line in block.all() {
            let key = line.key();
            let (list, text) = match key.as_str() {
                key if !KEYS.contains(&key) => continue,
                "log" if line.word(0) == "no" => (List::Carried, ""),
                _ if !is_logged => {
                    let text = "without a target of `log` HAProxy records no session";
                    (List::Unneeded, text)
                }
                "log" => (List::Differs, TARGET),
                "log-tag" => (List::Unneeded, "a record has the name of its listener"),
                "option dontlognull" | "option dontlog-normal" => {
                    (List::Differs, "all sessions are recorded")
                }
                "option logasap" => (List::Differs, "a record is written at the end"),
                "option log-separate-errors" => {
                    (List::Differs, "close_reason of a record says what it is")
                }
                _ => (List::Differs, self.document.record(&line.place)),
            };
            self.note(list, &line.place, text);
        }
    }

    /// The section `[log]`, and `access_log = "off"` for listeners without a record.
    pub(super) fn write_log(&mut self) {
        let Some(place) = self.log.first.take() else {
            return;
        };
        for (position, place) in std::mem::take(&mut self.log.without) {
            let section = &mut self.document.sections[position];
            section.set("access_log", quoted("off"), &place);
        }
        let mut section = Section::new("[log]".to_owned(), &place);
        section.set("access", quoted("stdout"), &place);
        self.document.sections.insert(0, section);
    }
}
