//! One answer of each source, for an operator who wants to know what a process would begin with.

use super::backends;
use crate::{
    discover::{SourceError, ask_once},
    plan::Plan,
    sys::task::boxed,
};
use tokio::task::JoinSet;

/// What became of asking the source of one upstream.
#[derive(Debug)]
pub struct SourceAnswer {
    pub upstream: String,
    pub kind: &'static str,
    /// How many backends it names, or why it gave no usable answer.
    pub backends: Result<usize, SourceError>,
}

/// Asks every source of the plan once, and gives the upstreams the backends of the answers. In the
/// order of the file.
pub async fn ask_sources_once(plan: &mut Plan) -> Vec<SourceAnswer> {
    // All at once: sources that do not answer are waited for together.
    let mut asked = JoinSet::new();
    for (number, upstream) in plan.upstreams.iter().enumerate() {
        if let Some(discover) = upstream.discover.clone() {
            asked.spawn(boxed(async move { (number, ask_once(&discover).await) }));
        }
    }
    // One that panics has reported it.
    let mut answers: Vec<_> = asked.join_all().await;
    answers.sort_unstable_by_key(|(number, _)| *number);
    let answers = answers.into_iter().filter_map(|(number, answer)| {
        let upstream = plan.upstreams.get_mut(number)?;
        let kind = upstream.discover.as_ref()?.source.kind().word();
        let set = answer.and_then(|snapshot| backends::read(snapshot.backends));
        let backends = set.map(|set| {
            backends::replace(upstream, &set);
            set.len()
        });
        Some(SourceAnswer {
            upstream: upstream.name.clone(),
            kind,
            backends,
        })
    });
    answers.collect()
}
