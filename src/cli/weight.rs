//! `tembuku weight`: the weight of a backend, instead of that of the file.

use super::{
    admin_state::Name,
    client::{AdminClient, At},
    code, print,
};
use crate::{cli::response::WeightChange, plan::MOST_WEIGHT};
use clap::Args;
use serde_json::json;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The backend, as configured: redis/10.0.0.1:6379
    #[arg(value_name = "UPSTREAM/BACKEND")]
    backend: Name,
    /// Its weight from now on, until the process ends
    #[arg(
        value_name = "N",
        required_unless_present = "reset",
        conflicts_with = "reset",
        value_parser = clap::value_parser!(u32).range(..=i64::from(MOST_WEIGHT))
    )]
    weight: Option<u32>,
    /// The weight of the file again
    #[arg(long)]
    reset: bool,
    #[command(flatten)]
    pub(super) at: At,
}

pub(super) fn run(args: &Arguments) -> ExitCode {
    let Arguments {
        backend,
        weight,
        at,
        ..
    } = args;
    let changed = AdminClient::find(at).and_then(|client| set(&client, backend, *weight));
    code(changed.and_then(|what| print(&(what + "\n"))))
}

/// What has changed, in one line. `None`: the weight of the file again.
pub(super) fn set(
    client: &AdminClient,
    backend: &Name,
    weight: Option<u32>,
) -> Result<String, String> {
    let body = json!({ "weight": weight });
    let change: WeightChange = client.post(&backend.path(), &body)?;
    match is_answer(backend, weight, &change) {
        true => Ok(text(backend, &change)),
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
