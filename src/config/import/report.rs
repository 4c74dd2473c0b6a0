//! What became of each directive of a file that is imported, as lists.

use std::{fmt, rc::Rc};

/// A directive of a file that is imported.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Place {
    pub(super) file: Rc<str>,
    /// From 1.
    pub(super) line: usize,
    /// The position among the words of the file: several directives may stand on a line.
    pub(super) word: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// What became of a directive. Of several the last one in this order is that of the directive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum List {
    /// Nothing has to be written for it.
    Unneeded,
    Carried,
    Differs,
    Lost,
}

/// More entries of a list than this are no comments of a file.
const MOST_COMMENTS: usize = 100;

/// All of them, as they are shown: what is lost is the last that is seen.
const LISTS: [List; 4] = [List::Carried, List::Unneeded, List::Differs, List::Lost];

impl List {
    fn title(self) -> &'static str {
        match self {
            List::Carried => "carried over",
            List::Unneeded => "not needed",
            List::Differs => "differs",
            List::Lost => "not carried over",
        }
    }
}

/// What is said of a directive.
#[derive(Debug)]
pub(super) struct Note {
    pub(super) list: List,
    pub(super) place: Place,
    /// Shared by all notes with this text.
    pub(super) text: Rc<str>,
}

/// Why a block is left out, and where that stands.
pub(super) type Reasons = Vec<(Place, String)>;

/// More places with the same reason than this are counted.
const MOST_PLACES: usize = 5;

/// That the `block` is left out, with all reasons: whatever is mended, nothing else is in the way.
pub(super) fn left_out(block: &Place, mut reasons: Reasons) -> String {
    reasons.sort();
    let mut places_of = Vec::<(String, Vec<String>)>::new();
    for (place, why) in reasons {
        let place = place.to_string();
        match places_of.iter_mut().find(|(known, _)| *known == why) {
            Some((_, places)) if places.contains(&place) => {}
            Some((_, places)) => places.push(place),
            None => places_of.push((why, vec![place])),
        }
    }
    let block = block.to_string();
    let part = |(why, places): &(String, Vec<String>)| {
        let rest = places.len().saturating_sub(MOST_PLACES);
        let first = places[..places.len() - rest].join(", ");
        match places.as_slice() {
            [place] if *place == block => format!(": {why}"),
            _ if rest > 0 => format!(" because of {first} and {rest} others: {why}"),
            _ => format!(" because of {first}: {why}"),
        }
    };
    let parts: Vec<String> = places_of.iter().map(part).collect();
    format!("left out{}", parts.join("; also"))
}

/// A line of a list. A file may have a million directives, hence no text of its own.
#[derive(Debug)]
struct Entry {
    list: List,
    place: Place,
    last: usize,
    directive: Rc<str>,
    text: Rc<str>,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.place)?;
        if self.last > self.place.line {
            write!(f, "-{}", self.last)?;
        }
        match self.text.is_empty() {
            true => write!(f, ": {}", self.directive),
            false => write!(f, ": `{}`: {}", self.directive, self.text),
        }
    }
}

/// The lists.
#[derive(Debug, Default)]
pub struct Report {
    entries: Vec<Entry>,
    /// Where only the other program listens.
    unserved: Vec<String>,
}

impl Report {
    pub(super) fn new(unserved: Vec<String>) -> Self {
        Self {
            entries: Vec::new(),
            unserved,
        }
    }

    /// `directive` as it is quoted, from `place` to the line `last`.
    pub(super) fn add(
        &mut self,
        list: List,
        place: &Place,
        last: usize,
        directive: Rc<str>,
        text: Rc<str>,
    ) {
        self.entries.push(Entry {
            list,
            place: place.clone(),
            last,
            directive,
            text,
        });
    }

    /// By list, and by place in it.
    pub(super) fn sort(&mut self) {
        self.entries
            .sort_by(|a, b| (a.list, &a.place).cmp(&(b.list, &b.place)));
    }

    pub fn has(&self, list: List) -> bool {
        self.of(list).next().is_some()
    }

    fn of(&self, list: List) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(move |entry| entry.list == list)
    }

    fn unserved(&self) -> impl Iterator<Item = String> {
        let line = |address: &String| format!("nothing will listen at {address}");
        self.unserved.iter().map(line)
    }

    /// For the head of a file, which then says on its own what it lacks: comments, with what
    /// nothing listens at, a list for what is lost and one for what differs. `command`: what has
    /// made it.
    pub fn comments(&self, command: &str) -> String {
        let mut out = String::new();
        let mut add = |text: &str| {
            out.push_str(comment(text).trim_end());
            out.push('\n');
        };
        add(&format!(
            "Made by `{command}`; each line names where it comes from."
        ));
        let mut add_list = |title: Option<String>, count: usize, lines: Vec<String>| {
            let rest = count.saturating_sub(MOST_COMMENTS);
            if count > 0 {
                add("");
            }
            title.iter().for_each(|title| add(title));
            lines.iter().for_each(|line| add(line));
            if rest > 0 {
                add(&format!(
                    "  and {rest} more, which the command lists on standard error"
                ));
            }
        };
        let unserved = self.unserved().take(MOST_COMMENTS).collect();
        add_list(None, self.unserved.len(), unserved);
        for list in [List::Lost, List::Differs] {
            let lines = self.of(list).take(MOST_COMMENTS);
            let lines = lines.map(|entry| format!("  {entry}")).collect();
            let count = self.of(list).count();
            let title = format!("{}: {count}", list.title());
            add_list(Some(title).filter(|_| count > 0), count, lines);
        }
        out.push('\n');
        out
    }
}

/// As a comment of TOML, which may hold no control characters.
pub(super) fn comment(text: &str) -> String {
    format!("# {}", text.replace(char::is_control, "?"))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in self.unserved() {
            writeln!(f, "{line}")?;
        }
        for list in LISTS {
            writeln!(f, "{}: {}", list.title(), self.of(list).count())?;
            for line in self.of(list) {
                writeln!(f, "  {line}")?;
            }
        }
        let count = |list: List| format!("{} {}", list.title(), self.of(list).count());
        write!(f, "{}", LISTS.map(count).join(", "))?;
        match self.unserved.len() {
            0 => writeln!(f),
            n => writeln!(f, "; addresses at which nothing will listen: {n}"),
        }
    }
}

/// The list of a directive, and the text of its notes there.
pub(super) fn verdict(notes: &[&Note]) -> (List, Rc<str>) {
    let Some(list) = notes.iter().map(|note| note.list).max() else {
        return (List::Lost, "nothing is known of it".into());
    };
    let mut texts: Vec<&Rc<str>> = Vec::new();
    let is_of = |note: &&&Note| match list {
        List::Lost => note.list >= List::Differs,
        list => note.list == list,
    };
    for note in notes.iter().filter(is_of) {
        // What holds for several servers is said once.
        if !note.text.is_empty() && !texts.contains(&&note.text) {
            texts.push(&note.text);
        }
    }
    let text = match texts[..] {
        [] => "".into(),
        [text] => text.clone(),
        _ => {
            let texts: Vec<&str> = texts.iter().map(|text| &***text).collect();
            texts.join("; ").into()
        }
    };
    (list, text)
}
