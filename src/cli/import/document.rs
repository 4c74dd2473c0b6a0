//! What an import makes: a configuration whose lines name where they come from, and three lists.

use crate::config::text::quote::key;
use std::{collections::BTreeSet, fmt, rc::Rc};

/// A line of a file that is imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) file: Rc<str>,
    /// From 1.
    pub(super) line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// What became of a directive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum List {
    Carried,
    Differs,
    Lost,
}

#[derive(Debug)]
pub(super) struct Note {
    pub(super) list: List,
    pub(super) place: Place,
    pub(super) text: String,
}

/// A table of the configuration.
#[derive(Debug)]
pub(super) struct Section {
    /// The header, then the keys; each with where it comes from.
    lines: Vec<(String, Option<Place>)>,
}

impl Section {
    pub(super) fn new(header: String, place: &Place) -> Self {
        Self {
            lines: vec![(header, Some(place.clone()))],
        }
    }

    /// `value` is TOML.
    pub(super) fn set(&mut self, key: &str, value: impl fmt::Display, place: &Place) {
        let line = format!("{key} = {value}");
        self.lines.push((line, Some(place.clone())));
    }

    pub(super) fn has(&self, key: &str) -> bool {
        let is_it = |line: &str| line.split_once(" = ").is_some_and(|(name, _)| name == key);
        self.lines.iter().any(|(line, _)| is_it(line))
    }

    /// A list with a line for each item; each item is TOML.
    pub(super) fn set_list(&mut self, key: &str, items: Vec<(String, Place)>) {
        self.lines.push((format!("{key} = ["), None));
        let items = items.into_iter();
        self.lines
            .extend(items.map(|(item, place)| (format!("  {item},"), Some(place))));
        self.lines.push(("]".to_owned(), None));
    }
}

/// The whole result.
#[derive(Debug, Default)]
pub(super) struct Document {
    pub(super) sections: Vec<Section>,
    pub(super) notes: Vec<Note>,
    names: BTreeSet<String>,
    listed: BTreeSet<String>,
}

impl Document {
    pub(super) fn note(&mut self, list: List, place: &Place, text: impl Into<String>) {
        let (place, text) = (place.clone(), text.into());
        // What holds for several servers is listed once.
        if !self.listed.insert(format!("{list:?} {place} {text}")) {
            return;
        }
        self.notes.push(Note { list, place, text });
    }

    /// A name like `wanted` that no other section of this `kind` has.
    pub(super) fn name(&mut self, kind: &str, wanted: &str) -> String {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        let plain: String = wanted
            .chars()
            .map(|c| if allowed(c) { c } else { '-' })
            .take(50)
            .collect();
        let plain = plain.trim_matches('-').to_owned();
        let plain = if plain.is_empty() {
            "main".to_owned()
        } else {
            plain
        };
        let mut names = (1..).map(|n| match n {
            1 => plain.clone(),
            n => format!("{plain}-{n}"),
        });
        let free = names.find(|name| self.names.insert(format!("{kind} {name}")));
        free.unwrap_or(plain)
    }

    pub(super) fn has(&self, list: List) -> bool {
        self.notes.iter().any(|note| note.list == list)
    }

    /// The configuration.
    pub(super) fn toml(&self) -> String {
        const COLUMN: usize = 50;
        let mut out = String::new();
        for section in &self.sections {
            for (line, place) in &section.lines {
                match place {
                    Some(place) => out.push_str(&format!("{line:<COLUMN$} # {place}\n")),
                    None => out.push_str(&format!("{line}\n")),
                }
            }
            out.push('\n');
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
        out
    }

    /// The three lists, as text.
    pub(super) fn lists(&self) -> String {
        let mut out = String::new();
        for (list, title) in [
            (List::Carried, "carried over"),
            (List::Differs, "differs"),
            (List::Lost, "not carried over"),
        ] {
            let notes: Vec<&Note> = self.notes.iter().filter(|n| n.list == list).collect();
            out.push_str(&format!("{title}: {}\n", notes.len()));
            for note in notes {
                out.push_str(&format!("  {}: {}\n", note.place, note.text));
            }
        }
        out
    }
}

/// A duration in the largest unit that leaves a whole number.
pub(super) fn duration(milliseconds: u64) -> String {
    let units = [("h", 3_600_000), ("m", 60_000), ("s", 1_000)];
    let fits = |(_, size): &&(&str, u64)| milliseconds > 0 && milliseconds.is_multiple_of(*size);
    match units.iter().find(fits) {
        Some((unit, size)) => format!("{}{unit}", milliseconds / size),
        None if milliseconds == 0 => "0s".to_owned(),
        None => format!("{milliseconds}ms"),
    }
}

/// The header of a table with a name.
pub(super) fn header(kind: &str, name: &str) -> String {
    format!("[{kind}.{}]", key(name))
}
