//! How many clients get another backend when a plan changes.

use super::{Client, ClientSet, Outcome, Process, draw_ports};
use crate::upstream::balance::{Chance, Why};

/// So many clients stand for all: the share is exact to a percent or two.
const SAMPLE: u64 = 4096;

/// Where a client is led.
#[derive(PartialEq, Eq)]
enum Goal<'a> {
    /// By its key, or because there is no other backend: always to the backend with this address.
    Backend(&'a str),
    /// Now to one, now to another.
    Any,
    None,
}

/// The share of clients, from 0 to 1, that `after` leads to another backend than `before`. Backends
/// are identified by their addresses as configured; access rules do not count.
pub fn moved_share(before: &mut Process<'_>, after: &mut Process<'_>) -> f64 {
    let mut chance = Chance::from_seed(0);
    let clients = ClientSet::internet().sample(SAMPLE, &mut chance);
    let mut clients = clients.unwrap_or_default();
    draw_ports(&mut clients, &mut chance);
    let moved = clients
        .iter()
        .filter(|&&c| goal(before, c) != goal(after, c));
    moved.count() as f64 / clients.len().max(1) as f64
}

fn goal<'a>(process: &mut Process<'a>, client: Client) -> Goal<'a> {
    match process.pick(client) {
        Outcome::Denied { .. } | Outcome::NoBackend => Goal::None,
        Outcome::Backend { backend, why } => match why {
            Why::Only
            | Why::Hash { .. }
            | Why::Point { .. }
            | Why::Slot { .. }
            | Why::KeyAmongTheRest { .. } => {
                Goal::Backend(&process.upstream().backends[backend].text)
            }
            Why::Rotation
            | Why::RotationInsteadOfKey
            | Why::FirstInOrder
            | Why::FewestConnections { .. }
            | Why::Drawn { .. }
            | Why::LeastScore { .. } => Goal::Any,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config, plan::Plan};

    fn plan(balance: &str, backends: &str) -> Plan {
        let text = format!(
            "[listeners.l]\nbind = \"127.0.0.1:1\"\nupstream = \"u\"\n\
             [upstreams.u]\nbalance = \"{balance}\"\nbackends = [{backends}]\n"
        );
        config::parse(&text, "test").expect("valid")
    }

    fn process<'a>(of: &'a Plan, without: &[usize]) -> Process<'a> {
        Process::new(&of.listeners[0], &of.upstreams[0], None, without, 0)
    }

    fn share(before: &Plan, after: &Plan, without: &[usize]) -> f64 {
        moved_share(&mut process(before, &[]), &mut process(after, without))
    }

    #[test]
    fn as_many_clients_move_as_the_policy_promises() {
        let four = r#""10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1", "10.0.0.4:1""#;
        let five = &format!(r#"{four}, "10.0.0.5:1""#);
        for balance in ["consistent_hash", "maglev"] {
            let (before, after) = (plan(balance, four), plan(balance, five));
            for (share, expected) in [
                (share(&before, &before, &[]), 0.0),
                (share(&before, &after, &[]), 0.2),
                (share(&after, &before, &[]), 0.2),
                (share(&before, &before, &[1]), 0.25),
            ] {
                let distance = (share - expected).abs();
                assert!(distance < 0.05, "{balance}: {share}, not {expected}");
            }
        }
        // Modulo the sum of the weights: four of five move.
        let moved = share(&plan("hash", four), &plan("hash", five), &[]);
        assert!((moved - 0.8).abs() < 0.05, "{moved}");
    }

    #[test]
    fn the_order_of_backends_moves_no_client_of_a_ring() {
        let (one, two) = (r#""10.0.0.1:1""#, r#""10.0.0.2:1""#);
        let plan = |first, second| plan("consistent_hash", &format!("{first}, {second}"));
        assert_eq!(share(&plan(one, two), &plan(two, one), &[]), 0.0);
    }

    #[test]
    fn clients_without_a_backend_of_their_own_do_not_move() {
        let two = r#""10.0.0.1:1", { address = "10.0.0.2:1", backup = true }"#;
        let two = plan("consistent_hash", two);
        // All are on the only regular one, or on the only backup, in rotation.
        assert_eq!(share(&two, &two, &[0]), 1.0);
        let (mut before, mut after) = (process(&two, &[0]), process(&two, &[0]));
        assert_eq!(moved_share(&mut before, &mut after), 0.0);
    }
}
