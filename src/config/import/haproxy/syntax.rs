//! The text of a HAProxy configuration: words, lines and sections.

use super::super::document::{Place, duration};
use std::{cell::OnceCell, collections::HashMap, rc::Rc, str::Chars};

/// What is in the way of an address with a variable of the environment.
pub(super) const VARIABLE: &str = "a variable of the environment: write its value";

/// A line of a section.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) words: Vec<String>,
    pub(super) place: Place,
}

impl Line {
    pub(super) fn word(&self, n: usize) -> &str {
        self.words.get(n).map_or("", String::as_str)
    }

    pub(super) fn text(&self) -> String {
        self.words.join(" ")
    }

    /// The text as it is quoted in lists: without a password.
    pub(super) fn shown(&self) -> String {
        let secret = match (self.word(0), self.word(1)) {
            ("user", _) => self
                .words
                .iter()
                .rposition(|word| word.contains("password")),
            ("stats", "auth") => Some(1),
            ("tcp-check" | "http-check", _) => {
                let is_login = |word: &String| {
                    let word = word.trim_start().to_ascii_uppercase();
                    word.starts_with("AUTH") || word.contains("AUTHORIZATION")
                };
                self.words.iter().position(is_login)
            }
            _ => None,
        };
        match secret {
            None => self.text(),
            Some(at) => {
                let before = self.words[..at].join(" ");
                let word = self.words[at].split_whitespace().next().unwrap_or_default();
                format!("{before} {word} ***")
            }
        }
    }

    /// What one line of a section overrides of another: `timeout client` and `option tcpka` are
    /// two things each.
    pub(super) fn key(&self) -> String {
        match self.word(0) {
            "timeout" | "option" | "stats" => format!("{} {}", self.word(0), self.word(1)),
            "no" => self.words[1..].join(" "),
            word => word.to_owned(),
        }
    }
}

#[derive(Debug)]
pub(super) struct Block {
    /// The words of its first line.
    pub(super) header: Line,
    /// `frontend`, `backend`, `listen`, `global`, `defaults` or another.
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) place: Place,
    pub(super) lines: Vec<Line>,
    /// The lines of the `defaults` that hold for it, which sections share.
    pub(super) defaults: Rc<[Line]>,
    /// Where an `acl` of a name is, of all lines.
    acls: OnceCell<HashMap<String, Vec<usize>>>,
}

impl Block {
    /// Its lines, behind those of the defaults.
    pub(super) fn all(&self) -> impl Iterator<Item = &Line> {
        self.defaults.iter().chain(&self.lines)
    }

    /// All `acl` lines of a name.
    pub(super) fn acls(&self, name: &str) -> impl Iterator<Item = &Line> {
        let acls = self.acls.get_or_init(|| {
            let mut acls = HashMap::<String, Vec<usize>>::new();
            for (n, acl) in self.all().enumerate().filter(|(_, l)| l.word(0) == "acl") {
                acls.entry(acl.word(1).to_owned()).or_default().push(n);
            }
            acls
        });
        let of_name = acls.get(name).into_iter().flatten();
        of_name.map(|n| match n.checked_sub(self.defaults.len()) {
            Some(own) => &self.lines[own],
            None => &self.defaults[*n],
        })
    }

    /// All lines that begin with `word`; its own replace those of the defaults.
    pub(super) fn rules(&self, word: &str) -> Vec<&Line> {
        let of = |lines: &'_ [Line]| lines.iter().any(|line| line.word(0) == word);
        let lines: &[Line] = match of(&self.lines) {
            true => &self.lines,
            false => &self.defaults,
        };
        lines.iter().filter(|line| line.word(0) == word).collect()
    }

    /// The last line of this key, here or in the defaults; `no option` is none.
    pub(super) fn last(&self, key: &str) -> Option<&Line> {
        let own = |lines: &'_ [Line]| lines.iter().rposition(|line| line.key() == key);
        let found = match (own(&self.lines), own(&self.defaults)) {
            (Some(n), _) => &self.lines[n],
            (None, Some(n)) => &self.defaults[n],
            (None, None) => return None,
        };
        (found.word(0) != "no").then_some(found)
    }
}

/// More are no configuration.
const MOST_LINES: usize = 1_000_000;

/// A section begins with one of these words.
const KINDS: [&str; 17] = [
    "acme",
    "backend",
    "cache",
    "crt-store",
    "defaults",
    "fcgi-app",
    "frontend",
    "global",
    "http-errors",
    "listen",
    "log-forward",
    "mailers",
    "peers",
    "program",
    "resolvers",
    "ring",
    "userlist",
];

/// The sections of a file. An error is a whole message.
pub(super) fn read(text: &str, origin: &str) -> Result<Vec<Block>, String> {
    let file: Rc<str> = origin.into();
    let mut blocks: Vec<Block> = Vec::new();
    // Each with its name.
    let mut defaults: Vec<(String, Rc<[Line]>)> = Vec::new();
    let text = text.trim_start_matches('\u{feff}');
    for (n, line) in text.lines().enumerate() {
        let place = Place {
            file: file.clone(),
            line: n + 1,
            word: 0,
        };
        if n >= MOST_LINES {
            return Err(format!(
                "{place}: more than {MOST_LINES} lines\n  hint: import it in parts, with \
                 --sections"
            ));
        }
        let mut words = words(line).map_err(|why| format!("{place}: {why}"))?;
        // The names before HAProxy 1.3.
        let of_timeout = match words.first().map(String::as_str) {
            Some("contimeout") => "connect",
            Some("clitimeout") => "client",
            Some("srvtimeout") => "server",
            _ => "",
        };
        if !of_timeout.is_empty() {
            words.splice(..1, ["timeout".to_owned(), of_timeout.to_owned()]);
        }
        let Some(first) = words.first().cloned() else {
            continue;
        };
        // At any indentation.
        if KINDS.contains(&first.as_str()) {
            if let Some(block) = blocks.last().filter(|block| block.kind == "defaults") {
                let all = block.all().cloned().collect();
                defaults.push((block.name.clone(), all));
            }
            let from = words.iter().position(|word| word == "from");
            let name = from.and_then(|n| words.get(n + 1));
            let found = match name {
                Some(name) => defaults.iter().rfind(|(known, _)| known == name),
                None => defaults.last(),
            };
            let inherited = match first.as_str() {
                "frontend" | "backend" | "listen" | "defaults" if name.is_some() => found,
                "frontend" | "backend" | "listen" => found,
                _ => None,
            };
            let inherited = inherited.map_or_else(Rc::default, |(_, lines)| lines.clone());
            let name = words.get(1).cloned().unwrap_or_default();
            blocks.push(Block {
                header: Line {
                    words,
                    place: place.clone(),
                },
                kind: first,
                name,
                place,
                lines: Vec::new(),
                defaults: inherited,
                acls: OnceCell::new(),
            });
        } else if let Some(block) = blocks.last_mut() {
            block.lines.push(Line { words, place });
        } else {
            return Err(format!(
                "{place}: `{first}` stands before the first section"
            ));
        }
    }
    Ok(blocks)
}

/// The words of a line, without its comment.
fn words(line: &str) -> Result<Vec<String>, &'static str> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', None | Some('"')) => {
                let word = word.get_or_insert_default();
                match chars.next() {
                    Some('r') => word.push('\r'),
                    Some('n') => word.push('\n'),
                    Some('t') => word.push('\t'),
                    Some('x') => word.push_str(&byte(&mut chars)),
                    Some(other @ (' ' | '\\' | '#' | '"' | '\'')) => word.push(other),
                    Some('$') if quote.is_some() => word.push('$'),
                    // Others mean something to what reads the word, as in a regular expression.
                    other => {
                        word.push('\\');
                        word.extend(other);
                    }
                }
            }
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, Some(end)) if c == end => quote = None,
            ('#', None) => break,
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    match quote {
        None => Ok(words),
        Some(_) => Err("a quote is not closed"),
    }
}

/// The character behind `\x`, or the text as it stands where that is none of ASCII.
fn byte(chars: &mut Chars<'_>) -> String {
    let digits = chars.as_str().get(..2);
    let digits = digits.filter(|two| two.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let code = digits.and_then(|two| u8::from_str_radix(two, 16).ok());
    match code.filter(u8::is_ascii) {
        Some(code) => {
            chars.nth(1);
            char::from(code).to_string()
        }
        None => "\\x".to_owned(),
    }
}

/// A time of HAProxy as a duration.
pub(super) fn time(text: &str) -> Option<String> {
    milliseconds(text).map(duration)
}

/// A number alone is of milliseconds.
pub(super) fn milliseconds(text: &str) -> Option<u64> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    match unit {
        "us" => number.checked_div(1_000),
        "" | "ms" => Some(number),
        "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        "d" => number.checked_mul(86_400_000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_quotes() {
        let words = |line| words(line).expect("words");
        assert_eq!(words("  server a 1:2 # c"), ["server", "a", "1:2"]);
        assert_eq!(
            words("send \"a b\\\"\" 'c\\d' e\\ f\\#\\r"),
            ["send", "a b\"", "c\\d", "e f#\r"]
        );
        assert_eq!(
            words("^ID\\ 2\\d+ \"\\s\\$x\" \\x41\\x0a\\xff\\x4 a\\\\b \\"),
            ["^ID 2\\d+", "\\s$x", "A\n\\xff\\x4", "a\\b", "\\"]
        );
        assert_eq!(words("x ''"), ["x", ""]);
        assert!(super::words("x \"a").is_err());
    }

    #[test]
    fn defaults_hold_for_the_sections_after_them() {
        let text = "defaults a\n timeout client 5s\nfrontend f\n bind :1\ndefaults b\n mode http\n\
                    backend g\nbackend h from a\n no option x\n";
        let blocks = read(text, "f").expect("valid");
        assert_eq!(
            blocks[1].last("timeout client").map(Line::text).as_deref(),
            Some("timeout client 5s")
        );
        assert!(blocks[3].last("mode").is_some() && blocks[3].last("timeout client").is_none());
        assert!(blocks[4].last("timeout client").is_some() && blocks[4].last("option x").is_none());
        assert!(read("bind :1\n", "f").is_err());
        let long = "\n".repeat(MOST_LINES) + "listen a\n";
        let error = read(&long, "f").expect_err("too many lines");
        assert!(
            error.starts_with("f:1000001: more than 1000000 lines\n  hint: "),
            "{error}"
        );
    }

    #[test]
    fn times() {
        for (text, wanted) in [
            ("500", Some("500ms")),
            ("10s", Some("10s")),
            ("1d", Some("24h")),
            ("x", None),
        ] {
            assert_eq!(time(text).as_deref(), wanted);
        }
    }
}
