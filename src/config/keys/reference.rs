//! The reference of the configuration, as a page and as a file: both are made from the table of
//! keys. After a change on purpose: TEMBUKU_BLESS=1 cargo test --lib reference, and read the
//! difference.

use std::{collections::HashSet, fmt::Write as _, fs, path::Path};

use super::{
    ALL, Keys,
    check::{self as check_rows, CHECK, rows_of},
    discover::{self as discover_rows, DISCOVER},
    limits as limit_rows, listener as listener_rows, process,
    row::{Form, Key, Row, Rule},
    upstream::{self as upstream_rows, BACKEND, UpstreamKeys},
};
use crate::{
    config::{
        check::{self, Found},
        discover, listener, parse,
        references::References,
        text::quote::quoted,
        upstream,
        value::duration,
    },
    plan::{Backend, CheckProtocol, DiscoverKind, Plan, Protocol, Upstream},
};

const WIDTH: usize = 100;

const FILE_HEAD: &str = "\
Every key, as it is by default or with an example. This file is generated, as \
docs/configuration.md is; values that are shown once as defaults are not repeated. Durations are \
text with a unit (\"250ms\", \"10s\", \"5m\"), sizes as well (\"64k\", \"16m\", in units of 1024). \
A section that is absent is off ([admin], [upstreams.NAME.check], [upstreams.NAME.discover]) or \
has its defaults.";

const PAGE_HEAD: &str = "\
# Configuration

This page is generated from the table of keys (`src/config/keys`); `conf/reference.toml` shows the \
same keys in a file. A configuration is TOML 1.0. Durations are text with a unit (\"250ms\", \
\"10s\", \"5m\"), sizes as well (\"64k\", \"16m\", in units of 1024). Keys that are not known, and \
keys that have no effect where they stand, are errors.";

/// Appends `text` in lines of at most [`WIDTH`] columns, of which those after the first begin with
/// `indent`.
fn wrap(first: &str, indent: &str, text: &str, out: &mut String) {
    let mut line = first.to_owned();
    let mut is_empty = true;
    for word in text.split_whitespace() {
        if !is_empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
            let _ = writeln!(out, "{}", line.trim_end());
            line = indent.to_owned();
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    let _ = writeln!(out, "{}", line.trim_end());
}

fn form(form: &Form) -> String {
    match form {
        Form::Flag => "true or false".to_owned(),
        Form::Number(least, most) => format!("a whole number from {least} to {most}"),
        Form::Duration(Rule::Any) => "a duration".to_owned(),
        Form::Duration(Rule::AboveZero) => "a duration above zero".to_owned(),
        Form::Duration(Rule::AtLeast(least)) => {
            format!("a duration of at least {}", duration::format(*least))
        }
        Form::Duration(Rule::WholeSeconds) => {
            "a duration of whole seconds, up to 32767s".to_owned()
        }
        Form::Size => "a size".to_owned(),
        Form::Word(words) => {
            let words: Vec<String> = words().iter().map(|word| format!("{word:?}")).collect();
            words.join(", ")
        }
        Form::Other(text) => (*text).to_owned(),
    }
}

/// The default as TOML.
fn default(key: &Key) -> Option<String> {
    let is_bare = match &key.form {
        Form::Flag | Form::Number(..) => true,
        Form::Duration(_) | Form::Size | Form::Word(_) => false,
        Form::Other(_) => key.default.starts_with('[') || key.default == "false",
    };
    match (key.default, is_bare) {
        ("", _) => None,
        (default, true) => Some(default.to_owned()),
        (default, false) => Some(quoted(default)),
    }
}

fn page() -> String {
    let mut out = String::new();
    let (title, text) = PAGE_HEAD.split_once("\n\n").unwrap_or_default();
    let _ = writeln!(out, "{title}\n");
    wrap("", "", text, &mut out);
    for keys in ALL {
        let _ = writeln!(out, "\n## {}\n", heading(keys));
        for key in keys.keys() {
            let mut text = format!("`{}`: {}", key.name, form(&key.form));
            if let Some(default) = default(key) {
                let _ = write!(text, "; default `{default}`");
            }
            if std::ptr::eq(*keys, &super::CHECK) {
                text.push_str(&owners(key.name));
            }
            if std::ptr::eq(*keys, &super::DISCOVER) {
                text.push_str(&kinds_of_sources(key.name));
            }
            let applies = key.applies.text();
            if !applies.is_empty() {
                let _ = write!(text, "; needs {applies}");
            }
            let _ = write!(text, ". {}", key.doc);
            wrap("- ", "  ", &text, &mut out);
        }
    }
    out
}

fn heading(keys: &Keys) -> String {
    match keys.label {
        "the file" => "Sections".to_owned(),
        label if label.starts_with('[') => format!("`{label}`"),
        label => format!("Tables: {label}"),
    }
}

/// The kinds of checks that a key is for, unless it is for all.
fn owners(name: &str) -> String {
    let owners: Vec<&str> = CheckProtocol::ALL
        .iter()
        .filter(|kind| rows_of(kind.info()).any(|row| row.key.name == name))
        .map(|kind| kind.info().name)
        .collect();
    match &owners[..] {
        [] => String::new(),
        owners => format!("; kinds: {}", owners.join(", ")),
    }
}

/// The kinds of sources that a key is for, unless it is for all.
fn kinds_of_sources(name: &str) -> String {
    let is_for = |kind: &DiscoverKind| kind.keys().contains(&name);
    let kinds = DiscoverKind::ALL.into_iter().filter(is_for);
    let kinds: Vec<&str> = kinds.map(DiscoverKind::word).collect();
    match kinds.is_empty() {
        true => String::new(),
        false => format!("; kinds: {}", kinds.join(", ")),
    }
}

/// The file, while it is written.
#[derive(Default)]
struct File {
    out: String,
    /// Keys that have been explained, by the table of rows.
    shown: HashSet<*const Key>,
}

impl File {
    fn header(&mut self, header: &str) {
        let _ = writeln!(self.out, "\n{header}");
    }

    fn comment(&mut self, text: &str) {
        wrap("# ", "# ", text, &mut self.out);
    }

    fn rows<'r, T: 'static>(
        &mut self,
        rows: impl IntoIterator<Item = &'r Row<T>>,
        target: &T,
        has_effect: impl Fn(&Key) -> bool,
    ) {
        for row in rows {
            let Some(value) = row.write(target).filter(|_| has_effect(&row.key)) else {
                continue;
            };
            let is_new = self.shown.insert(&raw const row.key);
            if is_new {
                let mut text = row.key.doc.to_owned();
                if let Form::Word(_) = row.key.form {
                    let _ = write!(text, " One of: {}.", form(&row.key.form));
                }
                self.out.push('\n');
                self.comment(&text);
            } else if Some(&value) == default(&row.key).as_ref() {
                continue;
            }
            let _ = writeln!(self.out, "{} = {value}", row.key.name);
        }
    }

    fn upstream(&mut self, upstream: &Upstream, plan: &Plan, is_first: bool) {
        let keys = UpstreamKeys::of(upstream);
        let references = References::of(&upstream.name, plan.listeners.iter(), true, true);
        let found = match &upstream.check {
            Some(check) => Found::Check(Box::new(check.clone())),
            None => Found::None,
        };
        let name = &upstream.name;
        self.header(&format!("[upstreams.{name}]"));
        self.rows(upstream_rows::UPSTREAM, &keys, |key| {
            let found = upstream::no_effect(&keys, key.applies, &references, &found);
            found.is_none() && key.name != "backends"
        });
        if is_first {
            for backend in &upstream.backends {
                self.header(&format!("[[upstreams.{name}.backends]]"));
                self.rows(BACKEND, backend, |_| true);
            }
        } else {
            let backend = |b: &Backend| match b.max_connections {
                0 => quoted(&b.text),
                max => {
                    let address = quoted(&b.text);
                    format!("{{ address = {address}, max_connections = {max} }}")
                }
            };
            let texts: Vec<String> = upstream.backends.iter().map(backend).collect();
            if !texts.is_empty() {
                let _ = writeln!(self.out, "backends = [{}]", texts.join(", "));
            }
        }
        if let Some(discover) = &upstream.discover {
            self.header(&format!("[upstreams.{name}.discover]"));
            let rows = DISCOVER
                .iter()
                .chain(discover_rows::rows_of(discover.source.kind()));
            self.rows(rows, discover, |key| {
                discover::no_effect(discover, key.applies).is_none()
            });
        }
        if let Some(check) = &upstream.check {
            self.header(&format!("[upstreams.{name}.check]"));
            let rows = CHECK.iter().chain(check_rows::rows_of(check.kind.info()));
            self.rows(rows, check, |key| {
                check::no_effect(check, key.applies).is_none()
            });
        }
    }
}

/// `plan` has every kind of section, with the examples that are to be shown.
fn file(plan: &Plan) -> String {
    let mut file = File::default();
    file.comment(FILE_HEAD);
    file.header("[process]");
    file.rows(process::PROCESS, &plan.process, |_| true);
    if let Some(admin) = &plan.admin {
        file.header("[admin]");
        file.rows(process::ADMIN, admin, |_| true);
    }
    file.header("[log]");
    file.rows(process::LOG, &plan.log, |_| true);
    file.header("[defaults]");
    file.comment("Any key of a listener or an upstream may stand here; their own value wins.");
    for listener in &plan.listeners {
        let has_effect = |key: &Key| listener::no_effect(listener, key.applies).is_none();
        file.header(&format!("[listeners.{}]", listener.name));
        file.rows(listener_rows::LISTENER, listener, has_effect);
        file.rows(listener_rows::OWN, listener, has_effect);
        file.rows(limit_rows::LIMITS, listener, has_effect);
        if let Protocol::Udp(udp) = &listener.protocol {
            file.rows(listener_rows::UDP, udp, has_effect);
        }
    }
    for (at, upstream) in plan.upstreams.iter().enumerate() {
        file.upstream(upstream, plan, at == 0);
    }
    file.out
}

fn compare(path: &str, generated: &str) {
    let whole = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join(path);
    if std::env::var_os("TEMBUKU_BLESS").is_some() {
        fs::write(&whole, generated).expect("writable");
    }
    let found = fs::read_to_string(&whole).unwrap_or_default();
    assert!(
        found == generated,
        "{path} differs from the table of keys: TEMBUKU_BLESS=1 cargo test --lib reference"
    );
}

#[test]
fn the_reference_page_is_generated() {
    compare("docs/configuration.md", &page());
}

#[test]
fn the_reference_file_is_generated() {
    let example = include_str!("../../../tests/config/reference.toml");
    let plan = parse(example, "tests/config/reference.toml").expect("valid");
    let file = file(&plan);
    assert_eq!(parse(&file, "reference").as_ref(), Ok(&plan), "{file}");
    compare("conf/reference.toml", &file);
    let longest = file.lines().map(|line| line.chars().count()).max();
    assert!(longest.is_some_and(|longest| longest <= WIDTH));
}
