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
    pub(super) text: String,
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

/// The lists.
#[derive(Debug, Default)]
pub struct Report {
    lines: Vec<(List, Place, String)>,
    /// Where only the other program listens.
    unserved: Vec<String>,
}

impl Report {
    pub(super) fn new(unserved: Vec<String>) -> Self {
        Self {
            lines: Vec::new(),
            unserved,
        }
    }

    /// `directive` as it is quoted, from `place` to the line `last`.
    pub(super) fn add(
        &mut self,
        list: List,
        place: &Place,
        last: usize,
        directive: &str,
        text: &str,
    ) {
        let range = match last > place.line {
            true => format!("{place}-{last}"),
            false => place.to_string(),
        };
        let line = match text.is_empty() {
            true => format!("{range}: {directive}"),
            false => format!("{range}: `{directive}`: {text}"),
        };
        self.lines.push((list, place.clone(), line));
    }

    /// By list, and by place in it.
    pub(super) fn sort(&mut self) {
        self.lines.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
    }

    pub fn has(&self, list: List) -> bool {
        self.lines.iter().any(|(of, ..)| *of == list)
    }

    fn of(&self, list: List) -> impl Iterator<Item = &str> {
        let lines = self.lines.iter().filter(move |(of, ..)| *of == list);
        lines.map(|(_, _, line)| line.as_str())
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
        let mut add_list = |title: Option<String>, lines: Vec<String>| {
            let rest = lines.len().saturating_sub(MOST_COMMENTS);
            if !lines.is_empty() {
                add("");
            }
            title.iter().for_each(|title| add(title));
            lines.iter().take(MOST_COMMENTS).for_each(|line| add(line));
            if rest > 0 {
                add(&format!(
                    "  and {rest} more, which the command lists on standard error"
                ));
            }
        };
        add_list(None, self.unserved().collect());
        for list in [List::Lost, List::Differs] {
            let lines: Vec<String> = self.of(list).map(|line| format!("  {line}")).collect();
            let title = format!("{}: {}", list.title(), lines.len());
            add_list(Some(title).filter(|_| !lines.is_empty()), lines);
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
pub(super) fn verdict(notes: &[&Note]) -> (List, String) {
    let Some(list) = notes.iter().map(|note| note.list).max() else {
        return (List::Lost, "nothing is known of it".to_owned());
    };
    let mut texts: Vec<&str> = Vec::new();
    let is_of = |note: &&&Note| match list {
        List::Lost => note.list >= List::Differs,
        list => note.list == list,
    };
    for note in notes.iter().filter(is_of) {
        // What holds for several servers is said once.
        if !note.text.is_empty() && !texts.contains(&note.text.as_str()) {
            texts.push(&note.text);
        }
    }
    (list, texts.join("; "))
}
