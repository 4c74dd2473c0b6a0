//! What an import makes: a configuration whose lines name where they come from, and lists of what
//! became of each directive.

use crate::config::{
    text::{
        problem::{Problem, Problems},
        quote::{key, quoted},
    },
    value::access::UNDECIDED,
};
use ipnet::IpNet;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    net::IpAddr,
    rc::Rc,
};

pub(super) use super::report::{List, Place, Reasons, left_out};
use super::{
    Program,
    report::{Note, Report, comment, verdict},
};

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
        let line = format!("{key} = {}", as_toml(value.to_string()));
        let comment = match meaning_of_zero(&line) {
            Some(meaning) => format!("{comment}; {meaning}"),
            None => comment.to_owned(),
        };
        let line = (line, Some(comment));
        // Of several values the last holds, as in the other program.
        match self.position(key) {
            Some(position) => self.lines[position] = line,
            None => self.lines.push(line),
        }
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.position(key).is_some()
    }

    /// Whether `key = value` is one of its lines.
    pub(super) fn has_line(&self, wanted: &str) -> bool {
        self.lines.iter().any(|(line, _)| line == wanted)
    }

    fn position(&self, key: &str) -> Option<usize> {
        let is_it = |line: &str| line.split_once(" = ").is_some_and(|(name, _)| name == key);
        self.lines.iter().position(|(line, _)| is_it(line))
    }

    /// The addresses of a listener.
    fn bound(&self) -> impl Iterator<Item = &str> {
        let lines = self.lines.iter().map(|(line, _)| line);
        let binds = lines.filter(|line| line.starts_with("bind = "));
        binds.flat_map(|line| line.split('"').skip(1).step_by(2))
    }

    fn is_udp(&self) -> bool {
        self.has_line("protocol = \"udp\"")
    }

    /// A list with a line for each item, which is TOML, and its comment.
    pub(super) fn set_list(&mut self, key: &str, items: Vec<(String, String)>) {
        self.lines.push((format!("{key} = ["), None));
        let items = items.into_iter();
        self.lines
            .extend(items.map(|(item, comment)| (format!("  {},", as_toml(item)), Some(comment))));
        self.lines.push(("]".to_owned(), None));
    }
}

/// What a time of zero means, which is no time.
fn meaning_of_zero(line: &str) -> Option<&'static str> {
    match line {
        "idle_timeout = \"0s\"" => Some("0s: no limit"),
        "half_close_timeout = \"0s\"" => Some("0s: no limit but `idle_timeout`"),
        "user_timeout = \"0s\"" => Some("0s: off, the kernel decides"),
        _ => None,
    }
}

/// A value as it is or, of a word of the other program that is none in TOML, in quotes: `check`
/// then refuses it at its place, and the rest of the file is read.
fn as_toml(value: String) -> String {
    let table = format!("v = {value}").parse::<toml::Table>();
    match table.is_ok_and(|table| table.len() == 1) {
        true => value,
        false => quoted(&value),
    }
}

/// What stands for an access rule that cannot be carried over: `check` refuses it.
pub(super) fn undecided(place: &Place, text: &str) -> (String, String) {
    (quoted(UNDECIDED), format!("{place}: {}", shown(text)))
}

/// The network of an access rule, without bits beyond its length, which other programs ignore.
pub(super) fn network(text: &str) -> Option<String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address.to_string());
    }
    let (address, length) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let network = match length.parse::<IpAddr>() {
        Ok(mask) => IpNet::with_netmask(address, mask).ok()?,
        Err(_) => IpNet::new(address, length.parse().ok()?).ok()?,
    };
    Some(network.trunc().to_string())
}

/// What becomes of name servers that are named.
pub(super) const RESOLVERS: &str =
    "names are looked up by the name servers of the system, every 30s (resolve_interval)";

/// What becomes of a stop that waits for sessions without a limit.
pub(super) const NO_DRAIN_LIMIT: &str = "it is no limit: drain_timeout has one, 30s by default";

/// What becomes of the format of an access log.
pub(super) const FIXED_FIELDS: &str = "a record of a session has fixed fields";
const RECORD: &str = "a record of a session is JSON with the fields remote_addr, listener, \
                      upstream, backend, connect_time, session_time, bytes_sent, bytes_received, \
                      close_reason and others";

/// The host of an address with a port, if it is looked up.
pub(super) fn host_name(address: &str) -> Option<&str> {
    let (host, _) = address.rsplit_once(':')?;
    let is_name = !host.starts_with(['[', '/'])
        && !address.starts_with("unix:")
        && host.parse::<IpAddr>().is_err();
    (is_name && host != "localhost").then_some(host)
}

/// The whole result.
#[derive(Debug, Default)]
pub struct Document {
    pub(super) sections: Vec<Section>,
    /// What is read, as it is quoted.
    directives: BTreeMap<Place, Rc<str>>,
    notes: Vec<Note>,
    /// Those of notes, each once.
    texts: HashSet<Rc<str>>,
    /// How many notes a directive has.
    noted: HashMap<Place, usize>,
    /// Where the other program listens, by UDP or not.
    listens: Vec<(Place, bool, String)>,
    /// The files that the other program would not start without, and what names them.
    missing: BTreeMap<Place, String>,
    /// The blocks that are in a list as a whole, and the directives in them.
    whole: Vec<(Place, Vec<Place>)>,
    /// The first directive of which the fields of a record are said.
    record: Option<Place>,
    /// The names of sections, each with the largest number behind it.
    names: HashMap<String, usize>,
    /// What the other program does where its configuration says nothing, and this one does not.
    defaults: BTreeMap<&'static str, String>,
}

impl Document {
    /// A directive that has to be in one of the lists.
    pub(super) fn read(&mut self, place: &Place, text: &str) {
        if !self.directives.contains_key(place) {
            self.directives.insert(place.clone(), shown(text).into());
        }
    }

    /// `text` says why; it may be empty for what is carried over.
    pub(super) fn note(&mut self, list: List, place: &Place, text: impl Into<String>) {
        let (place, text) = (place.clone(), one_line(&text.into()));
        let text = self.texts.get(text.as_str()).cloned().unwrap_or_else(|| {
            let text: Rc<str> = text.into();
            self.texts.insert(text.clone());
            text
        });
        *self.noted.entry(place.clone()).or_default() += 1;
        self.notes.push(Note { list, place, text });
    }

    /// An address at which the other program listens.
    pub(super) fn listens(&mut self, place: &Place, is_udp: bool, address: String) {
        self.listens.push((place.clone(), is_udp, address));
    }

    /// Where only the other program listens.
    fn unserved(&self) -> Vec<String> {
        let sections = self.sections.iter();
        let bound = sections.flat_map(|s| s.bound().map(|address| (s.is_udp(), address)));
        let mut known: HashSet<(bool, &str)> = bound.collect();
        let mut all: Vec<String> = Vec::new();
        for (place, is_udp, address) in &self.listens {
            if known.insert((*is_udp, address)) {
                let udp = if *is_udp { " (UDP)" } else { "" };
                all.push(format!("{}{udp} ({place})", shown(address)));
            }
        }
        all
    }

    /// A directive that names a file which is not here: what it holds is missing from the result.
    pub(super) fn misses(&mut self, place: &Place, text: &str) {
        self.missing.insert(place.clone(), shown(text));
    }

    /// Why the result is not all that was asked for, as whole messages: what is missing, and what
    /// `problems` say of `toml`, in which one rule may stand for each of many listeners.
    pub fn errors(&self, toml: &str, problems: Option<Problems>) -> Vec<String> {
        let missing = self.missing.iter();
        let mut errors: Vec<String> = missing
            .map(|(place, text)| {
                format!(
                    "error: {place}: `{text}`: there is no such file: the result lacks what it \
                     holds\n  hint: copy it there; or import what `nginx -T` prints, which has all \
                     files\n"
                )
            })
            .collect();
        let lines: Vec<&str> = toml.lines().collect();
        let rule_of = |problem: &Problem| {
            let line = lines.get(problem.position.as_ref()?.line - 1)?.trim_start();
            let rest = line.strip_prefix(&quoted(UNDECIDED))?;
            rest.split_once("# ").map(|(_, comment)| comment)
        };
        let is_missing = |rule: &str| {
            let mut missing = self.missing.iter();
            missing.any(|(place, text)| *rule == undecided(place, text).1)
        };
        let all = |problems: &Problems| problems.iter().cloned().collect::<Vec<Problem>>();
        let (mut counts, mut first) = (HashMap::<&str, usize>::new(), Vec::new());
        for problem in problems.iter().flat_map(all) {
            match rule_of(&problem) {
                Some(rule) if is_missing(rule) => continue,
                Some(rule) => {
                    let count = counts.entry(rule).or_default();
                    *count += 1;
                    if *count == 1 {
                        first.push(problem);
                    }
                }
                None => first.push(problem),
            }
        }
        for problem in &mut first {
            let count = rule_of(problem).and_then(|rule| counts.get(rule));
            if let Some(count) = count.filter(|count| **count > 1) {
                problem.message.push_str(&format!(", in {count} listeners"));
            }
        }
        let origin = problems.iter().map(Problems::origin).next();
        let rest = origin.and_then(|origin| Problems::new(origin, first));
        errors.extend(rest.map(|problems| problems.to_string()));
        errors
    }

    /// What a record of a session is; the fields are said once.
    pub(super) fn record(&mut self, place: &Place) -> &'static str {
        match self.record.get_or_insert_with(|| place.clone()) == place {
            true => RECORD,
            false => FIXED_FIELDS,
        }
    }

    /// Whether something is said of the directive.
    pub(super) fn is_noted(&self, place: &Place) -> bool {
        self.noted.get(place).is_some_and(|count| *count > 0)
    }

    /// For `take_back`.
    pub(super) fn count(&self) -> [usize; 2] {
        [self.notes.len(), self.whole.len()]
    }

    /// Takes back all notes but the first ones, as many as there were, and returns them.
    pub(super) fn take_back(&mut self, [notes, whole]: [usize; 2]) -> Vec<Note> {
        self.whole.truncate(whole);
        let taken = self.notes.split_off(notes);
        for note in &taken {
            if let Some(count) = self.noted.get_mut(&note.place) {
                *count -= 1;
            }
        }
        taken
    }

    /// A block with everything in it of which nothing else is said.
    pub(super) fn note_whole(
        &mut self,
        list: List,
        place: &Place,
        inside: Vec<Place>,
        text: impl Into<String>,
    ) {
        self.note(list, place, text);
        self.whole.push((place.clone(), inside));
    }

    /// The directives in blocks that are in a list as a whole.
    pub(super) fn in_whole_blocks(&self) -> HashSet<&Place> {
        self.whole.iter().flat_map(|(_, inside)| inside).collect()
    }

    /// The section with this header, which is made if it is not there yet.
    pub(super) fn section(&mut self, header: &str, place: &Place) -> &mut Section {
        let is_it = |section: &Section| section.lines.first().is_some_and(|(l, _)| l == header);
        let position = self.sections.iter().position(is_it).unwrap_or_else(|| {
            self.sections.push(Section::new(header.to_owned(), place));
            self.sections.len() - 1
        });
        &mut self.sections[position]
    }

    /// For every section that does not set this key itself. `value` is TOML.
    pub(super) fn set_default(&mut self, key: &'static str, value: impl Into<String>) {
        self.defaults.insert(key, value.into());
    }

    /// The first of the names that no other section of this `kind` has.
    pub(super) fn first_name(&mut self, kind: &str, wanted: &[String]) -> String {
        let is_free = |name: &&String| !self.names.contains_key(&format!("{kind} {}", plain(name)));
        let free = wanted.iter().find(is_free).or(wanted.last());
        let free = free.cloned().unwrap_or_default();
        self.name(kind, &free)
    }

    /// A name like `wanted` that no other section of this `kind` has.
    pub(super) fn name(&mut self, kind: &str, wanted: &str) -> String {
        let plain = plain(wanted);
        let key = |name: &str| format!("{kind} {name}");
        // The numbers up to this one are taken.
        let mut number = self.names.get(&key(&plain)).copied().unwrap_or(0);
        let mut name = plain.clone();
        while self.names.contains_key(&key(&name)) {
            number += 1;
            name = format!("{plain}-{}", number + 1);
        }
        self.names.insert(key(&plain), number);
        self.names.insert(key(&name), 0);
        name
    }

    /// Puts what no line of the other program is for before the sections: the commands need
    /// `[admin]`, and the other program `of` has other defaults.
    pub fn complete(&mut self, of: Program) {
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
                defaults.set_with(key, value, &format!("{}'s default", of.name()));
            }
            added.push(defaults);
        }
        self.sections.splice(0..0, added);
    }

    /// Makes the sections of listeners whole, so that they can be appended to another
    /// configuration, whatever its `[defaults]` say. What there is once becomes comments.
    pub fn complete_sections(&mut self, of: Program) {
        // Keys that an import writes into `[defaults]`, and what holds without them.
        let own = [("half_close", "true"), ("idle_timeout", "\"10m\"")];
        let own = own.map(|(key, value)| (key, value.to_owned()));
        let defaults: Vec<(&str, String)> = std::mem::take(&mut self.defaults)
            .into_iter()
            .chain(own)
            .collect();
        for section in &mut self.sections {
            let header = section.lines.first().map_or("", |(line, _)| line);
            if !header.starts_with("[listeners.") && !header.starts_with("[upstreams.") {
                for (line, _) in &mut section.lines {
                    line.insert_str(0, "# ");
                }
            } else if header.starts_with("[listeners.") {
                let is_udp = section.is_udp();
                for (key, value) in &defaults {
                    if !section.has(key) && (!is_udp || *key == "idle_timeout") {
                        section.set_with(key, value, &format!("{}'s default", of.name()));
                    }
                }
            }
        }
    }

    pub fn has_listener(&self) -> bool {
        let mut headers = self
            .sections
            .iter()
            .flat_map(|section| section.lines.first());
        headers.any(|(header, _)| header.starts_with("[listeners."))
    }

    /// The configuration.
    pub fn toml(&self) -> String {
        const COLUMN: usize = 50;
        let mut out = String::new();
        for section in &self.sections {
            for (line, place) in &section.lines {
                match place {
                    Some(place) => {
                        out.push_str(&format!("{line:<COLUMN$} {}\n", comment(place)));
                    }
                    None => out.push_str(&format!("{line}\n")),
                }
            }
            out.push('\n');
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
        out
    }

    fn quoted(&self, place: &Place) -> Rc<str> {
        self.directives.get(place).cloned().unwrap_or_default()
    }

    /// Each directive in one list.
    pub fn report(&self) -> Report {
        let mut notes: Vec<&Note> = self.notes.iter().collect();
        notes.sort_by(|a, b| a.place.cmp(&b.place));
        let of = |place: &Place| {
            let begin = notes.partition_point(|note| note.place < *place);
            let rest = &notes[begin..];
            &rest[..rest.partition_point(|note| note.place == *place)]
        };
        let mut report = Report::new(self.unserved());
        let mut covered = HashSet::<&Place>::new();
        for (block, inside) in &self.whole {
            // What is noted for several listeners is one entry.
            if covered.contains(block) {
                continue;
            }
            let list = verdict(of(block)).0;
            let is_open = |place: &&Place| of(place).is_empty() && !covered.contains(place);
            let mut inside: Vec<&Place> = inside.iter().filter(is_open).collect();
            // The file of the block first.
            inside.sort_by_key(|place| (place.file != block.file, *place));
            covered.extend(&inside);
            let mut rest = inside.into_iter().peekable();
            let mut first = block;
            loop {
                let mut last = first;
                // Another file, or something between them that is said on its own.
                let mut others = self
                    .directives
                    .range(first..)
                    .skip(1)
                    .map(|(place, _)| place);
                while let Some(next) =
                    rest.next_if(|next| next.file == first.file && others.next() == Some(*next))
                {
                    last = next;
                }
                let text = match first == block {
                    true => verdict(of(block)).1,
                    false => format!("in {block}").into(),
                };
                report.add(list, first, last.line, self.quoted(first), text);
                match rest.next() {
                    Some(next) => first = next,
                    None => break,
                }
            }
            covered.insert(block);
        }
        for place in self
            .directives
            .keys()
            .filter(|place| !covered.contains(place))
        {
            let (list, text) = verdict(of(place));
            report.add(list, place, place.line, self.quoted(place), text);
        }
        report.sort();
        report
    }
}

fn one_line(text: &str) -> String {
    text.replace('\r', "\\r").replace('\n', "\\n")
}

/// A directive as it is quoted: not all of a long one.
pub(super) fn shown(text: &str) -> String {
    let text = one_line(text.trim_end());
    match text.char_indices().nth(80) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
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
