//! `tembuku weight`: the weight of a backend, instead of that of the file.

use super::{
    admin_state::{self, Name, Target},
    client::{AdminClient, At},
    code, complain, print,
};
use crate::{
    cli::response::{Backend, WeightChange, clean},
    plan::MOST_WEIGHT,
};
use clap::Args;
use serde_json::json;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[arg(
        value_name = "UPSTREAM/BACKEND|ADDRESS",
        value_parser = admin_state::target,
        help = "The backend, as configured: redis/10.0.0.1:6379; without an upstream in every \
            upstream that has the address: 10.0.0.1:6379"
    )]
    backend: Target,
    /// Its weight from now on, until the process ends; without it the weight is printed
    #[arg(
        value_name = "N",
        conflicts_with = "reset",
        allow_negative_numbers = true,
        value_parser = weight
    )]
    weight: Option<u32>,
    /// The weight of the file again
    #[arg(long)]
    reset: bool,
    #[command(flatten)]
    pub(super) at: At,
}

fn weight(text: &str) -> Result<u32, String> {
    let weight = text.parse().ok().filter(|weight| *weight <= MOST_WEIGHT);
    weight.ok_or_else(|| {
        let rule = format!("a weight is a whole number from 0 (no new sessions) to {MOST_WEIGHT}");
        match text.ends_with('%') {
            // As HAProxy takes it from an agent and from `set server`.
            true => format!("{rule}, and not percent of the one in the file"),
            false => rule,
        }
    })
}

pub(super) fn run(args: &Arguments) -> ExitCode {
    code(AdminClient::find(&args.at).and_then(|client| show_or_set(&client, args)))
}

fn show_or_set(client: &AdminClient, args: &Arguments) -> Result<(), String> {
    let is_shown = args.weight.is_none() && !args.reset;
    let names = match &args.backend {
        // A process that does not know it says which one is meant.
        Target::Backend(name) if !is_shown => vec![name.clone()],
        target => {
            let (status, _) = client.status()?;
            let names = Name::find(&status, target)?;
            if is_shown {
                let found = names
                    .iter()
                    .filter_map(|name| Some(weight_text(name, admin_state::find(&status, name)?)));
                return print(&found.collect::<String>());
            }
            names
        }
    };
    // One that fails is no reason to leave the others as they are.
    let mut result = Ok(());
    for name in names {
        let done = put(client, &name, args.weight).and_then(|change| {
            print(&(text(&name, &change) + "\n"))?;
            if let Some(warning) = warning(&change) {
                complain(&format!("warning: {warning}\n"));
            }
            Ok(())
        });
        if let Err(why) = done {
            result = Err(result.err().unwrap_or_default() + why.as_str());
        }
    }
    result
}

/// Sets one backend, for [`super::top`]; what has changed, in one line.
pub(super) fn set(
    client: &AdminClient,
    backend: &Name,
    weight: Option<u32>,
) -> Result<String, String> {
    let change = put(client, backend, weight)?;
    let warning = warning(&change).map(|text| format!(" ({text})"));
    Ok(text(backend, &change) + &warning.unwrap_or_default())
}

/// `None`: the weight of the file again.
fn put(client: &AdminClient, backend: &Name, weight: Option<u32>) -> Result<WeightChange, String> {
    let body = json!({ "weight": weight });
    let change: WeightChange = client.post(&backend.path(), &body)?;
    match is_answer(backend, weight, &change) {
        true => Ok(change),
        false => Err(format!(
            "error: the answer is not about {backend} and this weight\n  hint: is that the admin \
             socket of tembuku?\n"
        )),
    }
}

fn is_answer(backend: &Name, weight: Option<u32>, change: &WeightChange) -> bool {
    let by_operator = weight.is_some();
    let weight = weight.map_or(change.weight_in_file, u64::from);
    backend.is(&change.upstream, &change.backend)
        && (change.weight, change.by_operator) == (weight, by_operator)
}

fn text(backend: &Name, change: &WeightChange) -> String {
    let (from, to, in_file) = (change.from, change.weight, change.weight_in_file);
    let weights = match from == to {
        true => format!("weight {to} already"),
        false => format!("weight {from} -> {to}"),
    };
    match change.by_operator {
        true => format!("{backend}: {weights} by operator, {in_file} in the file"),
        false => format!("{backend}: {weights}, as in the file"),
    }
}

/// That no backend of the upstream has a weight and is fit for sessions.
fn warning(change: &WeightChange) -> Option<String> {
    let without = change.without_backend.as_ref()?;
    Some(without.warning(&change.upstream))
}

/// The weight in effect.
fn weight_text(name: &Name, backend: &Backend) -> String {
    let (weight, in_file) = (backend.weight, backend.weight_in_file);
    match &backend.weight_since {
        Some(since) => format!(
            "{name}: weight {weight} by operator since {}, {in_file} in the file\n",
            clean(since)
        ),
        None => format!("{name}: weight {weight}, as in the file\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_is_no_weight() {
        let error = |text: &str| weight(text).expect_err("a mistake");
        assert!(error("50%").ends_with("to 65535, and not percent of the one in the file"));
        assert!(error("x").ends_with("to 65535"));
        assert_eq!(weight("50"), Ok(50));
    }
}
