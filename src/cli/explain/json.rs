//! The answer as one JSON object, a line for each client; the names of the fields stay as they are.

use super::question::Question;
use crate::{
    config, plan,
    upstream::{
        balance::Why,
        explain::{Client, Counts, Move, Outcome, Process, survey},
    },
};
use serde::Serialize;
use std::{
    fmt::Display,
    io::{self, Write},
};

#[derive(Serialize)]
struct Head<'a> {
    listener: &'a str,
    upstream: &'a str,
    balance: &'a str,
    hash_key: Option<String>,
    model: &'a str,
    notes: Vec<String>,
    seed: u64,
}

#[derive(Serialize)]
struct OneClient<'a> {
    #[serde(serialize_with = "as_text")]
    client: Client,
    backend: Option<&'a str>,
    backup: bool,
    denied: bool,
    reason: Reason<'a>,
    text: String,
}

#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Reason<'a> {
    Denied {
        position: usize,
        rule: String,
    },
    NoBackend,
    Only,
    Rotation,
    FirstInOrder,
    FewestConnections {
        connections: u64,
    },
    Drawn {
        other: Option<&'a str>,
    },
    LeastScore {
        score: f64,
    },
    Hash {
        hash: u64,
        at: u64,
        total: u64,
        tries: u32,
    },
    Point {
        key: String,
        point: String,
        steps: u32,
    },
    Slot {
        slot: u32,
        steps: u32,
    },
    KeyAmongTheRest {
        tries: u32,
    },
    RotationInsteadOfKey,
}

#[derive(Serialize)]
struct Row<'a> {
    backend: &'a str,
    weight: u32,
    expected: f64,
    got: u64,
    share: f64,
}

#[derive(Serialize)]
struct OneMove<'a> {
    #[serde(serialize_with = "as_text")]
    client: Client,
    from: Option<&'a str>,
    to: Option<&'a str>,
}

pub(super) fn write(
    out: &mut impl Write,
    question: &Question<'_>,
    mut whole: Process<'_>,
    mut rest: Option<Process<'_>>,
) -> io::Result<()> {
    let upstream = question.upstream;
    let backends = upstream.backends.as_slice();
    let name = |backend: Option<usize>| backend.map(|b| backends[b].text.as_str());
    let mut notes = whole.caveats(question.seed);
    notes.extend(question.notes());
    let head = serde_json::to_string(&Head {
        listener: &question.listener.name,
        upstream: &upstream.name,
        balance: upstream.balance.word(),
        hash_key: upstream.balance.hash_key().map(config::hash_key_text),
        model: question.model(),
        notes,
        seed: question.seed,
    })?;
    // The lists that may be long are written one by one instead of being held.
    write!(out, "{},\n\"clients\":[", head.trim_end_matches('}'))?;
    let mut separator = "\n";
    let each = |process: &Process<'_>, client: Client, outcome: &Outcome| {
        let backend = outcome.backend();
        let one = OneClient {
            client,
            backend: name(backend),
            backup: backend.is_some_and(|b| backends[b].backup),
            denied: matches!(outcome, Outcome::Denied { .. }),
            reason: reason(outcome, question),
            text: process.reason(client, outcome),
        };
        write_item(out, &mut separator, &one)
    };
    let survey = survey(&question.clients, &mut whole, rest.as_mut(), each)?;
    let counts = &survey.whole;
    write!(
        out,
        "\n],\n\"counts\":{{\"clients\":{},\"denied\":{},\"no_backend\":{},\"in_rotation\":{}}},\n\
         \"distribution\":",
        counts.clients, counts.denied, counts.no_backend, counts.in_rotation
    )?;
    serde_json::to_writer(&mut *out, &rows(&whole, counts))?;
    write!(out, ",\n\"without\":")?;
    match rest {
        None => write!(out, "null")?,
        Some(rest) => {
            let lost: Vec<_> = question.without.iter().map(|&b| name(Some(b))).collect();
            let moved = survey.moves.len() as u64;
            write!(out, "{{\"backends\":")?;
            serde_json::to_writer(&mut *out, &lost)?;
            write!(out, ",\"moved\":{moved},\"share\":")?;
            serde_json::to_writer(&mut *out, &counts.share(moved))?;
            write!(out, ",\"distribution\":")?;
            serde_json::to_writer(&mut *out, &rows(&rest, &survey.rest))?;
            write!(out, ",\"moves\":[")?;
            let mut separator = "\n";
            for Move { client, from, to } in survey.moves {
                let (from, to) = (name(from), name(to));
                write_item(out, &mut separator, &OneMove { client, from, to })?;
            }
            write!(out, "\n]}}")?;
        }
    }
    writeln!(out, "}}")
}

fn write_item(
    out: &mut impl Write,
    separator: &mut &'static str,
    item: &impl Serialize,
) -> io::Result<()> {
    out.write_all(separator.as_bytes())?;
    *separator = ",\n";
    Ok(serde_json::to_writer(out, item)?)
}

fn rows<'a>(process: &Process<'a>, counts: &Counts) -> Vec<Row<'a>> {
    let expected = process.expected().into_iter();
    let backends = process.upstream().backends.iter();
    let each = backends.zip(expected).zip(&counts.got);
    let row = |((backend, expected), &got): ((&'a plan::Backend, f64), &u64)| Row {
        backend: &backend.text,
        weight: backend.weight,
        expected,
        got,
        share: counts.share(got),
    };
    each.map(row).collect()
}

fn reason<'a>(outcome: &Outcome, question: &Question<'a>) -> Reason<'a> {
    let backends = &question.upstream.backends;
    let why = match outcome {
        Outcome::Denied { rule } => {
            return Reason::Denied {
                position: rule + 1,
                rule: config::access_rule_text(&question.listener.access[*rule]),
            };
        }
        Outcome::NoBackend => return Reason::NoBackend,
        Outcome::Backend { why, .. } => *why,
    };
    match why {
        Why::Only => Reason::Only,
        Why::Rotation => Reason::Rotation,
        Why::FirstInOrder => Reason::FirstInOrder,
        Why::FewestConnections { connections } => Reason::FewestConnections { connections },
        Why::Drawn { other } => Reason::Drawn {
            other: other.map(|b| backends[b].text.as_str()),
        },
        Why::LeastScore { score } => Reason::LeastScore { score },
        Why::Hash {
            hash,
            at,
            total,
            tries,
        } => Reason::Hash {
            hash,
            at,
            total,
            tries,
        },
        Why::Point { key, point, steps } => Reason::Point {
            key: format!("{key:08x}"),
            point: format!("{point:08x}"),
            steps,
        },
        Why::Slot { slot, steps } => Reason::Slot { slot, steps },
        Why::KeyAmongTheRest { tries } => Reason::KeyAmongTheRest { tries },
        Why::RotationInsteadOfKey => Reason::RotationInsteadOfKey,
    }
}

fn as_text<S: serde::Serializer>(value: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}
