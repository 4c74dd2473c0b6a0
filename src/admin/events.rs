//! `GET /api/v1/events?after=CURSOR&wait=20s`: what the journal has since a reader was there last.

use super::{
    fields::Fields,
    request::{Refusal, bad},
};
use crate::{
    config::Fault,
    control::{
        State,
        journal::{Cursor, NoCursor, Page},
    },
};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

pub(super) const PATH: &str = "/api/v1/events";

/// Less than the lifetime of any connection of the admin side.
const LONGEST_WAIT: Duration = Duration::from_secs(20);
const KEYS: [&str; 2] = ["after", "wait"];

#[derive(Debug, Default, PartialEq, Eq)]
struct Query {
    after: Option<Cursor>,
    /// For the next event, if there is none yet.
    wait: Duration,
}

/// The next page, as soon as it has an event, or when the time is over.
pub(super) async fn answer(query: &str, state: &State) -> Result<Page, Refusal> {
    let Query { after, wait } = Query::read(query)?;
    let until = Instant::now() + wait;
    let mut revisions = state.journal.revisions();
    loop {
        revisions.mark_unchanged();
        let page = state.journal.since(after);
        if !page.events.is_empty() {
            return Ok(page);
        }
        let is_over = tokio::select! {
            changed = timeout_at(until, revisions.changed()) => changed.is_err(),
            () = state.ending.cancelled() => true,
        };
        if is_over {
            return Ok(page);
        }
    }
}

impl Query {
    fn read(text: &str) -> Result<Self, Refusal> {
        let mut fields = Fields::of_query(text)?;
        let no_cursor = |NoCursor| {
            Fault::new("not a cursor of the journal").hint("the answer before has `cursor`")
        };
        let after = fields.parsed("after", |text| text.parse().map_err(no_cursor))?;
        let wait = fields.duration("wait")?.unwrap_or_default();
        fields.finish(&KEYS)?;
        match wait <= LONGEST_WAIT {
            true => Ok(Self { after, wait }),
            false => Err(bad(
                format!("`wait` is longer than {LONGEST_WAIT:?}"),
                "ask again with the cursor of the answer",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_or_refused() {
        let read =
            |text| Query::read(text).map_err(|Refusal(code, error, hint)| (code, error, hint));
        assert_eq!(read(""), Ok(Query::default()));
        let query = read("wait=1500ms&after=1%2D2-3").expect("good");
        assert_eq!(query.after.expect("one").to_string(), "1-2-3");
        assert_eq!(query.wait, Duration::from_millis(1_500));
        for (wrong, error, hint) in [
            ("after=x", "`after`: not a cursor", "`cursor`"),
            ("after", "`after`", ""),
            ("wait=20", "without a unit", "20s"),
            ("wait=21s", "longer than 20s", "ask again"),
            ("afer=1-2-3", "\"afer\"", "did you mean \"after\"?"),
            ("limit=1", "\"limit\"", "there is after, wait"),
        ] {
            let (_, e, h) = read(wrong).expect_err(wrong);
            assert!(e.contains(error) && h.contains(hint), "{wrong}: {e}, {h}");
        }
    }
}
