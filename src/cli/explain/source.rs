//! Backends that a source has, where the running process is not asked. No source is asked either.

use crate::{
    control::apply_saved,
    plan::{Plan, Upstream, counted},
};
use std::collections::BTreeMap;

/// Where the backends of upstreams with a source come from, by the names of the upstreams.
pub(super) struct Sources(BTreeMap<String, String>);

impl Sources {
    /// Gives upstreams the backends that a process has saved.
    pub(super) fn apply(plan: &mut Plan) -> Self {
        let upstreams = plan.upstreams.iter_mut();
        Self(upstreams.filter_map(apply_to).collect())
    }

    pub(super) fn note_of(mut self, upstream: &str) -> Option<String> {
        self.0.remove(upstream)
    }
}

fn apply_to(upstream: &mut Upstream) -> Option<(String, String)> {
    let kind = upstream.discover.as_ref()?.source.kind().word();
    let note = match apply_saved(upstream) {
        Ok(Some((count, time))) => {
            let time = humantime::format_rfc3339_seconds(time);
            format!(
                "{} from the source (kind {kind}), saved at {time}",
                counted(count, "backend")
            )
        }
        Ok(None) => format!(
            "backends of the source (kind {kind}) are not known here: --running asks the process \
             that has them"
        ),
        Err(error) => {
            format!("saved backends of the source (kind {kind}) cannot be read: {error}")
        }
    };
    Some((upstream.name.clone(), note))
}
