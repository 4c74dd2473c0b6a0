//! A configuration from the command line: `tembuku run --listen ADDR --to ADDR`.
//!
//! The flags become the same tree that a file becomes, over the text of the command line, so that
//! every rule and every message is the same; a problem is then reported at its flag.

use std::borrow::Cow;

use toml::{
    Spanned,
    de::{DeArray, DeTable, DeValue},
};

use crate::{
    config::{
        file,
        text::{
            problem::Problems,
            report::{Report, Source, Span, fault},
        },
    },
    plan::Plan,
};

/// What stands on the command line, unread.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags {
    pub listen: Vec<String>,
    pub to: Vec<String>,
    pub udp: bool,
    pub balance: Option<String>,
    pub admin: Option<String>,
}

/// The name of the one listener and the one upstream.
const NAME: &str = "main";

pub fn from_flags(flags: &Flags) -> Result<Plan, Problems> {
    let mut line = Line::default();
    let listen: Vec<Span> = flags
        .listen
        .iter()
        .map(|value| line.push("--listen", value))
        .collect();
    let to: Vec<Span> = flags
        .to
        .iter()
        .map(|value| line.push("--to", value))
        .collect();
    let udp = flags.udp.then(|| line.push("--udp", ""));
    let balance = flags
        .balance
        .as_ref()
        .map(|value| line.push("--balance", value));
    let admin = flags
        .admin
        .as_ref()
        .map(|value| line.push("--admin", value));

    let report = Report::default();
    let source = Source {
        origin: "the command line",
        text: &line.text,
        flags: line.flags,
    };
    for (flag, missing) in [("--listen", listen.is_empty()), ("--to", to.is_empty())] {
        if missing {
            report.add_whole(
                fault!("`{flag}` is missing")
                    .hint("as in: tembuku run --listen 0.0.0.0:6379 --to 10.0.0.1:6379"),
            );
        }
    }
    report.finish(&source)?;
    let report = Report::default();

    let text = |span: &Span| {
        let value = source.text.get(span.clone()).unwrap_or_default();
        Spanned::new(span.clone(), DeValue::String(Cow::Borrowed(value)))
    };
    let list = |spans: &[Span]| {
        let mut array = DeArray::new();
        spans.iter().for_each(|span| array.push(text(span)));
        spanned(DeValue::Array(array))
    };
    let mut listener = vec![
        ("bind", list(&listen)),
        ("upstream", spanned(DeValue::String(Cow::Borrowed(NAME)))),
    ];
    listener
        .retain(|(_, value)| !matches!(value.get_ref(), DeValue::Array(array) if array.is_empty()));
    listener.extend(udp.iter().map(|span| {
        let word = DeValue::String(Cow::Borrowed("udp"));
        ("protocol", Spanned::new(span.clone(), word))
    }));
    let mut upstream = vec![("backends", list(&to))];
    upstream.extend(balance.iter().map(|span| ("balance", text(span))));
    let mut root = vec![
        ("listeners", table(vec![(NAME, table(listener))])),
        ("upstreams", table(vec![(NAME, table(upstream))])),
    ];
    root.extend(
        admin
            .iter()
            .map(|span| ("admin", table(vec![("listen", text(span))]))),
    );
    let root = root
        .into_iter()
        .map(|(key, value)| (Spanned::new(0..0, Cow::Borrowed(key)), value))
        .collect::<DeTable<'_>>();
    file::plan(&root, &source, report)
}

/// The command line as text, in the order of [`Flags`].
#[derive(Default)]
struct Line {
    text: String,
    flags: Vec<(Span, &'static str)>,
}

impl Line {
    /// The position of the value, or of the flag where it has none.
    fn push(&mut self, flag: &'static str, value: &str) -> Span {
        if !self.text.is_empty() {
            self.text.push(' ');
        }
        let start = self.text.len();
        self.text.push_str(flag);
        if flag == "--udp" {
            self.flags.push((start..self.text.len(), flag));
            return start..self.text.len();
        }
        self.text.push(' ');
        let value_start = self.text.len();
        self.text.push_str(value);
        // One more, for an empty value at the end of the line.
        self.flags.push((start..self.text.len() + 1, flag));
        value_start..self.text.len()
    }
}

fn spanned(value: DeValue<'_>) -> Spanned<DeValue<'_>> {
    Spanned::new(0..0, value)
}

fn table<'a>(entries: Vec<(&'static str, Spanned<DeValue<'a>>)>) -> Spanned<DeValue<'a>> {
    let entries = entries
        .into_iter()
        .map(|(key, value)| (Spanned::new(0..0, Cow::Borrowed(key)), value));
    spanned(DeValue::Table(entries.collect()))
}
