//! What an import makes: a configuration whose lines name where they come from, and three lists.

use crate::config::text::quote::{key, quoted};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    rc::Rc,
};

/// A line of a file that is imported.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
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
    /// The header, then the keys; each with its comment, which is where it comes from.
    lines: Vec<(String, Option<String>)>,
}

impl Section {
    pub(super) fn new(header: String, place: &Place) -> Self {
        Self {
            lines: vec![(header, Some(place.to_string()))],
        }
    }

    /// One that comes from no line.
    fn without_place(header: &str) -> Self {
        Self {
            lines: vec![(header.to_owned(), None)],
        }
    }

    /// `value` is TOML.
    pub(super) fn set(&mut self, key: &str, value: impl fmt::Display, place: &Place) {
        self.set_with(key, value, &place.to_string());
    }

    fn set_with(&mut self, key: &str, value: impl fmt::Display, comment: &str) {
        let line = format!("{key} = {value}");
        self.lines.push((line, Some(comment.to_owned())));
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
            .extend(items.map(|(item, place)| (format!("  {item},"), Some(place.to_string()))));
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
    noted: BTreeSet<Place>,
    /// What the other program does where its configuration says nothing, and this one does not.
    defaults: BTreeMap<&'static str, String>,
}

impl Document {
    pub(super) fn note(&mut self, list: List, place: &Place, text: impl Into<String>) {
        let place = place.clone();
        let text = text.into().replace('\r', "\\r").replace('\n', "\\n");
        // What holds for several servers is listed once.
        if !self.listed.insert(format!("{list:?} {place} {text}")) {
            return;
        }
        self.noted.insert(place.clone());
        self.notes.push(Note { list, place, text });
    }

    /// Whether a list has this line.
    pub(super) fn is_noted(&self, place: &Place) -> bool {
        self.noted.contains(place)
    }

    /// For every section that does not set this key itself. `value` is TOML.
    pub(super) fn set_default(&mut self, key: &'static str, value: impl Into<String>) {
        self.defaults.insert(key, value.into());
    }

    /// The first of the names that no other section of this `kind` has.
    pub(super) fn first_name(&mut self, kind: &str, wanted: &[String]) -> String {
        let is_free = |name: &&String| !self.names.contains(&format!("{kind} {}", plain(name)));
        let free = wanted.iter().find(is_free).or(wanted.last());
        let free = free.cloned().unwrap_or_default();
        self.name(kind, &free)
    }

    /// A name like `wanted` that no other section of this `kind` has.
    pub(super) fn name(&mut self, kind: &str, wanted: &str) -> String {
        let plain = plain(wanted);
        let mut names = (1..).map(|n| match n {
            1 => plain.clone(),
            n => format!("{plain}-{n}"),
        });
        let free = names.find(|name| self.names.insert(format!("{kind} {name}")));
        free.unwrap_or(plain)
    }

    /// Puts what no line of the other program is for before the sections: the commands need
    /// `[admin]`, and the other program `of` has other defaults.
    pub(super) fn complete(&mut self, of: &str) {
        let lines = || self.sections.iter().flat_map(|section| &section.lines);
        let is_taken = |port: u16| {
            let end = format!(":{port}\"");
            lines().any(|(line, _)| line.starts_with("bind = ") && line.contains(&end))
        };
        let mut ports = 9_900..10_000;
        let port = ports.find(|port| !is_taken(*port)).unwrap_or(9_900);
        let mut admin = Section::without_place("[admin]");
        let address = quoted(&format!("127.0.0.1:{port}"));
        admin.set_with("listen", address, "status page, /metrics, readiness");
        let socket = quoted("/run/tembuku/admin.sock");
        admin.set_with("socket", socket, "for tembuku status, top, drain, reload");
        let mut added = vec![admin];
        if !self.defaults.is_empty() {
            let mut defaults = Section::without_place("[defaults]");
            for (key, value) in &self.defaults {
                defaults.set_with(key, value, &format!("{of}'s default"));
            }
            added.push(defaults);
        }
        self.sections.splice(0..0, added);
    }

    pub(super) fn has_listener(&self) -> bool {
        let mut headers = self
            .sections
            .iter()
            .flat_map(|section| section.lines.first());
        headers.any(|(header, _)| header.starts_with("[listeners."))
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
            let mut notes: Vec<&Note> = self.notes.iter().filter(|n| n.list == list).collect();
            notes.sort_by_key(|note| (&note.place.file, note.place.line));
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

/// A name that needs no quotes.
fn plain(wanted: &str) -> String {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    let replaced = wanted.chars().map(|c| if is_allowed(c) { c } else { '-' });
    let plain: String = replaced.take(50).collect();
    match plain.trim_matches('-') {
        "" => "main".to_owned(),
        plain => plain.to_owned(),
    }
}

/// Where sessions are recorded instead of in the `path` of the other program, which may still
/// write there.
pub(super) fn log_file(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or_default();
    format!("/var/log/tembuku/{name}")
}

/// The header of a table with a name.
pub(super) fn header(kind: &str, name: &str) -> String {
    format!("[{kind}.{}]", key(name))
}
