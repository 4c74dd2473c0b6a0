//! The answer for people.

use super::question::Question;
use crate::{
    cli::table::{terminal_width, wrap_after_first},
    config,
    plan::{Backend, Balance},
    upstream::explain::{Client, Counts, Move, Outcome, Process, Survey, survey},
};
use std::io::{self, Write};

/// Of clients that were not named one by one, and of those that move, so many are shown.
const MOST_LINES: usize = 10;
/// Where the terminal has no width.
const WIDTH: usize = 80;
const WIDEST_BAR: usize = 40;

pub(super) fn write(
    out: &mut impl Write,
    question: &Question<'_>,
    mut whole: Process<'_>,
    mut rest: Option<Process<'_>>,
) -> io::Result<()> {
    let upstream = question.upstream;
    let key = upstream.balance.hash_key().map(config::hash_key_text);
    let layout = Layout::of(question);
    let mut head = vec![
        format!(
            "listener {}, upstream {}: {}{}",
            question.listener.name,
            upstream.name,
            upstream.balance.word(),
            key.map_or_else(String::new, |key| format!(" of {key}")),
        ),
        format!("as in {}", question.model()),
    ];
    head.extend(question.unknown_role().map(|role| {
        format!(
            "which backend is a {} is not known here, so that all of them are counted in: \
             --running knows it",
            role.word(),
        )
    }));
    for line in head {
        write!(out, "{}", wrap_after_first(&line, layout.terminal))?;
    }
    writeln!(out)?;
    let mut left = layout.clients;
    let each = |process: &Process<'_>, client: Client, outcome: &Outcome| {
        if left == 0 {
            return Ok(());
        }
        left -= 1;
        let (wide, wider) = (layout.client, layout.backend);
        let reason = process.reason(client, outcome);
        match outcome.backend() {
            Some(b) => {
                let text = &upstream.backends[b].text;
                writeln!(out, "{client:wide$}  {text:wider$}  {reason}")
            }
            None => writeln!(out, "{client:wide$}  {reason}"),
        }
    };
    let survey = survey(&question.clients, &mut whole, rest.as_mut(), each)?;
    more(out, question.clients.len() - layout.clients)?;
    let counts = &survey.whole;
    if counts.clients > 1 {
        writeln!(out)?;
        table(out, &layout, &whole, counts)?;
    }
    if let Some(rest) = &rest {
        without(out, question, &layout, rest, &survey)?;
    }
    let mut notes = whole.caveats(question.seed);
    notes.extend(question.notes());
    let goes_by_key = upstream.balance.hash_key().is_some() || upstream.balance == Balance::IpHash;
    if counts.in_rotation > 0 && goes_by_key {
        let clients = grouped(counts.in_rotation);
        notes.push(format!(
            "{clients} clients were assigned in rotation, not by their keys"
        ));
    }
    for (i, note) in notes.iter().enumerate() {
        writeln!(out, "{}note: {note}", if i == 0 { "\n" } else { "" })?;
    }
    Ok(())
}

/// Which clients move, and the shares of the other backends then.
fn without(
    out: &mut impl Write,
    question: &Question<'_>,
    layout: &Layout,
    rest: &Process<'_>,
    survey: &Survey,
) -> io::Result<()> {
    let name = |b: usize| question.upstream.backends[b].text.as_str();
    let lost: Vec<&str> = question.without.iter().map(|&b| name(b)).collect();
    let moved = survey.moves.len() as u64;
    let counts = &survey.whole;
    let verb = match counts.let_in() {
        1 => "client moves",
        _ => "clients move",
    };
    writeln!(
        out,
        "\nwithout {}: {} of {} {verb} ({})",
        lost.join(", "),
        percent(counts.share(moved)),
        grouped(counts.let_in()),
        grouped(moved),
    )?;
    for Move { client, from, to } in survey.moves.iter().take(MOST_LINES) {
        let [from, to] = [from, to].map(|b| b.map_or("none", name));
        let (wide, wider) = (layout.client, layout.backend);
        writeln!(out, "{client:wide$}  {from:wider$}  -> {to}")?;
    }
    more(out, survey.moves.len().saturating_sub(MOST_LINES))?;
    if counts.clients > 1 {
        writeln!(out)?;
        table(out, layout, rest, &survey.rest)?;
    }
    Ok(())
}

fn more(out: &mut impl Write, count: usize) -> io::Result<()> {
    match count {
        0 => Ok(()),
        n => writeln!(out, "… and {} more, --json has all", grouped(n as u64)),
    }
}

/// How wide the columns are, and how many clients are shown.
struct Layout {
    clients: usize,
    client: usize,
    backend: usize,
    terminal: usize,
    /// Marks backends that take nothing, whatever their weight.
    out: &'static str,
}

impl Layout {
    fn of(question: &Question<'_>) -> Self {
        let count = question.clients.len();
        let clients = if question.named {
            count
        } else {
            count.min(MOST_LINES)
        };
        // Those that move may be any of them, so the column is as wide as the longest of all.
        let client = question.clients.iter().map(|c| c.to_string().len()).max();
        let backends = question.upstream.backends.iter();
        Self {
            clients,
            client: client.unwrap_or_default(),
            backend: backends
                .map(|b| b.text.chars().count())
                .max()
                .unwrap_or_default(),
            terminal: terminal_width().unwrap_or(WIDTH),
            out: match question.running {
                None => " (down)",
                // It may be drained, or a standby.
                Some(_) => " (takes nothing)",
            },
        }
    }
}

/// A row for each backend, also for those without a client.
fn table(
    out: &mut impl Write,
    layout: &Layout,
    process: &Process<'_>,
    counts: &Counts,
) -> io::Result<()> {
    let rows = process.upstream().backends.iter();
    let names: Vec<String> = rows.map(|b| labelled(b, layout.out)).collect();
    let longest = names.iter().map(|name| name.chars().count()).max();
    let wide = longest.unwrap_or_default().max("backend".len());
    let head = format!(
        "{:wide$}  {:>6}  {:>8}  {:>9}  {:>7}  {:>6}",
        "backend", "weight", "expected", "clients", "share", "diff"
    );
    writeln!(out, "{head}")?;
    let width = layout
        .terminal
        .saturating_sub(head.len() + 3)
        .min(WIDEST_BAR);
    let most = counts.got.iter().max().copied().unwrap_or_default().max(1);
    let backends = process.upstream().backends.iter();
    let figures = process.expected().into_iter().zip(&counts.got);
    for ((backend, name), (expected, &got)) in backends.zip(&names).zip(figures) {
        let share = counts.share(got);
        let bar = "#".repeat((got as f64 / most as f64 * width as f64).round() as usize);
        let line = format!(
            "{:wide$}  {:>6}  {:>8}  {:>9}  {:>7}  {:>+6.1}  {bar}",
            name,
            backend.weight,
            percent(expected),
            grouped(got),
            percent(share),
            100.0 * (share - expected),
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    for (count, what) in [(counts.denied, "denied"), (counts.no_backend, "no backend")] {
        if count > 0 {
            writeln!(
                out,
                "{what:wide$}  {:>6}  {:>8}  {:>9}",
                "",
                "",
                grouped(count)
            )?;
        }
    }
    Ok(())
}

fn labelled(backend: &Backend, out: &str) -> String {
    let mut name = backend.text.clone();
    if backend.backup {
        name.push_str(" (backup)");
    }
    if backend.weight == 0 {
        name.push_str(" (weight 0)");
    } else if backend.down {
        name.push_str(out);
    }
    name
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// 1,234,567.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_of_0_is_not_down() {
        let backend = |weight, down| {
            let plan = format!(
                "[upstreams.u]\nbackends = [\"b:1\", \
                 {{ address = \"a:1\", weight = {weight}, down = {down} }}]\n\
                 [listeners.l]\nbind = \"0.0.0.0:1\"\nupstream = \"u\"\n"
            );
            let plan = config::parse(&plan, "test").expect("valid");
            labelled(&plan.upstreams[0].backends[1], " (takes nothing)")
        };
        assert_eq!(backend(1, false), "a:1");
        assert_eq!(backend(0, false), "a:1 (weight 0)");
        assert_eq!(backend(1, true), "a:1 (takes nothing)");
    }

    #[test]
    fn numbers_in_groups() {
        let all = [0, 999, 1000, 12_345, 1_048_576].map(grouped);
        assert_eq!(all, ["0", "999", "1,000", "12,345", "1,048,576"]);
    }
}
