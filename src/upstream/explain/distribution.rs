//! Counts the backends that many clients get, and the clients that move when backends are gone.

use super::{Client, Outcome, Process};
use crate::upstream::balance::Why;

/// How many clients had which outcome.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Counts {
    pub clients: u64,
    pub denied: u64,
    pub no_backend: u64,
    /// Those that got a backend in rotation, whatever their address.
    pub in_rotation: u64,
    /// For each backend, in the order of the configuration.
    pub got: Vec<u64>,
}

impl Counts {
    fn new(backends: usize) -> Self {
        Self {
            got: vec![0; backends],
            ..Self::default()
        }
    }

    fn count(&mut self, outcome: &Outcome) {
        self.clients += 1;
        match outcome {
            Outcome::Denied { .. } => self.denied += 1,
            Outcome::NoBackend => self.no_backend += 1,
            Outcome::Backend { backend, why } => {
                self.got[*backend] += 1;
                self.in_rotation +=
                    u64::from(matches!(why, Why::Rotation | Why::RotationInsteadOfKey));
            }
        }
    }

    /// Those that the access rules allow.
    pub fn let_in(&self) -> u64 {
        self.clients - self.denied
    }

    /// As a part of those that are allowed.
    pub fn share(&self, count: u64) -> f64 {
        match self.let_in() {
            0 => 0.0,
            all => count as f64 / all as f64,
        }
    }
}

/// A client that gets another backend, or none, when some are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    pub client: Client,
    pub from: Option<usize>,
    pub to: Option<usize>,
}

#[derive(Debug)]
pub struct Survey {
    pub whole: Counts,
    pub rest: Counts,
    pub moves: Vec<Move>,
}

/// Lets the clients come to `whole` and, in comparison, to `rest`; `each` is called with their
/// outcomes at `whole`.
pub fn survey<E>(
    clients: &[Client],
    whole: &mut Process<'_>,
    mut rest: Option<&mut Process<'_>>,
    mut each: impl FnMut(&Process<'_>, Client, &Outcome) -> Result<(), E>,
) -> Result<Survey, E> {
    let backends = whole.upstream().backends.len();
    let mut survey = Survey {
        whole: Counts::new(backends),
        rest: Counts::new(backends),
        moves: Vec::new(),
    };
    for &client in clients {
        let outcome = whole.accept(client);
        survey.whole.count(&outcome);
        if let Some(rest) = &mut rest {
            let other = rest.accept(client);
            survey.rest.count(&other);
            let (from, to) = (outcome.backend(), other.backend());
            if from != to {
                survey.moves.push(Move { client, from, to });
            }
        }
        each(whole, client, &outcome)?;
    }
    Ok(survey)
}
