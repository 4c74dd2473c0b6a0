//! The text format of Prometheus, read strictly.

use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    pub(crate) series: Vec<Series>,
    pub(crate) types: BTreeMap<String, String>,
    pub(crate) helps: BTreeSet<String>,
    pub(crate) text: String,
}

impl Metrics {
    pub(crate) fn parse(text: &str) -> Result<Metrics, String> {
        let mut series: Vec<Series> = Vec::new();
        let mut types = BTreeMap::new();
        let mut helps = BTreeSet::new();
        let mut seen = BTreeSet::new();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest
                    .split_once(' ')
                    .ok_or_else(|| format!("no type in: {line}"))?;
                if !["counter", "gauge", "histogram", "summary", "untyped"].contains(&kind) {
                    return Err(format!("unknown type in: {line}"));
                }
                if types.insert(name.to_owned(), kind.to_owned()).is_some() {
                    return Err(format!("a second type for one name: {line}"));
                }
            } else if let Some(rest) = line.strip_prefix("# HELP ") {
                let name = rest.split(' ').next().unwrap_or_default();
                if !helps.insert(name.to_owned()) {
                    return Err(format!("a second help text for one name: {line}"));
                }
            } else if !line.starts_with('#') {
                let one = parse_series(line)?;
                let family = family(&one.name, &types);
                if !types.contains_key(&family) {
                    return Err(format!("a series before, or without, its type: {line}"));
                }
                if !seen.insert((one.name.clone(), one.labels.clone())) {
                    return Err(format!("a series twice: {line}"));
                }
                series.push(one);
            }
        }
        Ok(Metrics {
            series,
            types,
            helps,
            text: text.to_owned(),
        })
    }

    /// The sum over every series of that name which has all these labels. The prefix is added here.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.select(name, labels).map(|series| series.value).sum()
    }

    pub(crate) fn has(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        self.select(name, labels).next().is_some()
    }

    fn select<'a>(
        &'a self,
        name: &str,
        labels: &'a [(&str, &str)],
    ) -> impl Iterator<Item = &'a Series> {
        let name = format!("tembuku_{name}");
        self.series.iter().filter(move |series| {
            series.name == name
                && labels
                    .iter()
                    .all(|(key, value)| series.labels.get(*key).map(String::as_str) == Some(*value))
        })
    }
}

/// The name that stands in the TYPE line: histograms have three kinds of series.
pub(crate) fn family(name: &str, types: &BTreeMap<String, String>) -> String {
    for suffix in ["_bucket", "_sum", "_count"] {
        if let Some(base) = name.strip_suffix(suffix)
            && types
                .get(base)
                .is_some_and(|kind| kind == "histogram" || kind == "summary")
        {
            return base.to_owned();
        }
    }
    name.to_owned()
}

fn parse_series(line: &str) -> Result<Series, String> {
    let bad = |what: &str| format!("{what}: {line}");
    let (head, labels, rest) = match line.split_once('{') {
        Some((head, rest)) => {
            let (labels, rest) = parse_labels(rest).ok_or_else(|| bad("bad labels"))?;
            (head, labels, rest)
        }
        None => {
            let (head, rest) = line.split_once(' ').ok_or_else(|| bad("no value"))?;
            (head, BTreeMap::new(), rest)
        }
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    if head.is_empty() || head.starts_with(|c: char| c.is_ascii_digit()) || !head.chars().all(plain)
    {
        return Err(bad("bad name"));
    }
    let value = match rest.trim() {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        number => number.parse().map_err(|_| bad("bad value"))?,
    };
    Ok(Series {
        name: head.to_owned(),
        labels,
        value,
    })
}

/// Labels up to the closing brace, and what follows it.
fn parse_labels(mut rest: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (key, quoted) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut chars = quoted.char_indices();
        let end = loop {
            match chars.next()? {
                (at, '"') => break at,
                (_, '\\') => match chars.next()?.1 {
                    'n' => value.push('\n'),
                    c @ ('\\' | '"') => value.push(c),
                    _ => return None,
                },
                (_, c) => value.push(c),
            }
        };
        if labels.insert(key.to_owned(), value).is_some() {
            return None;
        }
        rest = &quoted[end + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
}
