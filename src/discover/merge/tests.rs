use super::*;
use proptest::{collection::vec, option, prelude::*};
use std::collections::BTreeSet;

const RULES: Rules = Rules {
    empty_after: Some(Duration::from_secs(30)),
    max_removed: 50,
    confirm: Duration::from_secs(10),
};

fn set(addresses: &str) -> Set {
    collect(addresses.chars().map(Found::new))
}

/// Of one target, in one family, at one port.
#[test]
fn what_an_answer_does_not_tell_stays() {
    let named = |name: &str, address: &str| Found {
        name: Some(name.to_owned()),
        ..Found::new(address)
    };
    let all = [
        named("a", "10.0.0.1:1"),
        named("a", "[2001:db8::1]:1"),
        named("a", "[2001:db8::1]:2"),
        named("b", "[2001:db8::2]:1"),
        Found::new("[2001:db8::3]:1"),
        Found::new("a:1"),
    ];
    let mut merged = Merged::default();
    merged.merge(Some(collect(all)), RULES, Instant::now());
    let unknown = [Unknown {
        name: "A".to_owned(),
        port: 1,
        is_ipv6: true,
    }];
    let mut answer = collect([named("a", "10.0.0.2:1")]);
    merged.fill(&mut answer, &unknown);
    let addresses: Vec<&str> = answer.keys().map(String::as_str).collect();
    assert_eq!(addresses, ["10.0.0.2:1", "[2001:db8::1]:1"]);
}

/// A source in virtual time.
struct Source {
    merged: Merged,
    rules: Rules,
    now: Instant,
    /// When to look again.
    deadline: Option<Instant>,
}

impl Source {
    fn new(rules: Rules) -> Self {
        Self {
            merged: Merged::default(),
            rules,
            now: Instant::now(),
            deadline: None,
        }
    }

    fn answer(&mut self, answer: Option<&str>) -> Outcome {
        let outcome = self.merged.merge(answer.map(set), self.rules, self.now);
        self.deadline = outcome.deadline;
        outcome
    }

    /// Time passes; the changes meanwhile.
    fn pass(&mut self, time: Duration) -> Vec<(Instant, Changes)> {
        let end = self.now + time;
        let mut changes = Vec::new();
        while let Some(next) = self.deadline.filter(|at| *at <= end) {
            assert!(next > self.now, "a deadline lies ahead");
            self.now = next;
            let outcome = self.merged.tick(self.rules, next);
            self.deadline = outcome.deadline;
            changes.extend(outcome.changes.map(|change| (next, change)));
        }
        self.now = end;
        changes
    }

    fn in_effect(&self) -> String {
        self.merged.in_effect.keys().map(String::as_str).collect()
    }
}

#[test]
fn an_error_changes_nothing() {
    let mut source = Source::new(RULES);
    source.answer(Some("abc"));
    source.pass(Duration::from_secs(1));
    assert_eq!(source.answer(None), Outcome::default());
    assert!(source.pass(Duration::from_secs(3600)).is_empty());
    assert_eq!(source.in_effect(), "abc");
}

#[test]
fn an_empty_answer_counts_after_its_time() {
    let mut source = Source::new(RULES);
    source.answer(Some("abc"));
    source.pass(Duration::from_secs(1));
    source.answer(Some(""));
    source.pass(Duration::from_secs(29));
    assert_eq!(source.in_effect(), "abc");
    assert_eq!(source.merged.held(RULES, source.now).len(), 3);
    source.pass(Duration::from_secs(1));
    assert_eq!(source.in_effect(), "");
}

#[test]
fn an_error_begins_the_time_of_an_empty_answer_anew() {
    let mut source = Source::new(RULES);
    source.answer(Some("abc"));
    source.pass(Duration::from_secs(1));
    source.answer(Some(""));
    source.pass(Duration::from_secs(29));
    source.answer(None);
    source.pass(Duration::from_secs(29));
    source.answer(Some(""));
    source.pass(Duration::from_secs(29));
    assert_eq!(source.in_effect(), "abc");
    source.pass(Duration::from_secs(1));
    assert_eq!(source.in_effect(), "");
}

#[test]
fn an_empty_answer_never_counts_where_the_rules_say_so() {
    let mut source = Source::new(Rules {
        empty_after: None,
        ..RULES
    });
    source.answer(Some("abc"));
    source.pass(Duration::from_secs(1));
    source.answer(Some(""));
    source.pass(Duration::from_secs(360_000));
    assert_eq!(source.in_effect(), "abc");
}

#[test]
fn a_large_loss_is_confirmed_and_what_is_new_is_not_held_back() {
    let mut source = Source::new(RULES);
    source.answer(Some("abcd"));
    source.pass(Duration::from_secs(1));
    source.answer(Some("dx"));
    assert_eq!(source.in_effect(), "abcdx");
    source.pass(Duration::from_secs(5));
    // One that was seen meanwhile has not been missing.
    source.answer(Some("adx"));
    assert_eq!(source.in_effect(), "adx", "two of five may vanish at once");
}

#[test]
fn a_loss_in_small_steps_is_a_large_loss() {
    let mut source = Source::new(RULES);
    source.answer(Some("abcdefgh"));
    source.pass(Duration::from_secs(1));
    for answer in ["abcdef", "abcd", "ab", "a"] {
        source.answer(Some(answer));
        source.pass(Duration::from_secs(1));
    }
    assert_eq!(source.in_effect(), "abcd");
    source.pass(Duration::from_secs(10));
    assert_eq!(source.in_effect(), "a");
}

#[test]
fn a_set_of_an_earlier_process_is_kept_by_the_same_rules() {
    let mut source = Source::new(RULES);
    source.merged.restore(set("abcd"));
    assert_eq!(source.merged.known, Known::Saved);
    source.answer(None);
    assert_eq!(source.in_effect(), "abcd");
    source.answer(Some("ax"));
    assert_eq!(source.in_effect(), "abcdx");
    assert_eq!(source.merged.known, Known::Answered);
    source.pass(Duration::from_secs(10));
    assert_eq!(source.in_effect(), "ax");
}

#[test]
fn a_flag_or_a_weight_counts_at_once() {
    let mut source = Source::new(RULES);
    source.answer(Some("ab"));
    source.pass(Duration::from_secs(1));
    let mut answer = set("ab");
    let found = answer.get_mut("a").expect("there");
    (found.draining, found.weight) = (true, 7);
    let outcome = source.merged.merge(Some(answer), RULES, source.now);
    let changes = outcome.changes.expect("a change");
    assert_eq!(changes.changed, ["a"]);
    assert!(changes.added.is_empty() && changes.removed.is_empty());
}

#[derive(Debug, Clone)]
enum Step {
    Answer(Option<String>),
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let answer = option::weighted(0.8, "[a-h]{0,8}").prop_map(Step::Answer);
    let pass = prop_oneof![0..300u64, 0..12_000u64, 0..40_000u64].prop_map(Step::Pass);
    vec(prop_oneof![answer, pass], 0..80)
}

fn rules() -> impl Strategy<Value = Rules> {
    let empty_after = option::weighted(0.8, (0..40_000u64).prop_map(Duration::from_millis));
    (empty_after, 0..=100u32, 0..15_000u64).prop_map(|(empty_after, max_removed, confirm)| Rules {
        empty_after,
        max_removed,
        confirm: Duration::from_millis(confirm),
    })
}

/// The answers so far, with their times; `None`: an error.
type History = Vec<(Instant, Option<BTreeSet<char>>)>;

/// Whether all that the source has said since then, and when it said it, was an answer that lacks
/// `address`.
fn was_missing_for(history: &History, address: char, time: Duration, now: Instant) -> bool {
    let lacks = |answer: &Option<BTreeSet<char>>| {
        answer
            .as_ref()
            .is_some_and(|answer| !answer.contains(&address))
    };
    let since = history
        .iter()
        .rev()
        .take_while(|(_, answer)| lacks(answer))
        .last();
    since.is_some_and(|(at, _)| *at + time <= now)
}

proptest! {
    #[test]
    fn the_rules_hold_for_any_sequence(rules in rules(), steps in steps()) {
        let mut source = Source::new(rules);
        let mut history = History::new();
        let mut last_change: Option<Instant> = None;
        // What was there before the change, and how many it removed.
        let mut removals: Vec<(Instant, usize, usize)> = Vec::new();
        for step in steps {
            let mut before = source.in_effect();
            let changes: Vec<(Instant, Changes)> = match step {
                Step::Answer(answer) => {
                    let letters = answer.as_ref().map(|text| text.chars().collect());
                    history.push((source.now, letters));
                    let outcome = source.answer(answer.as_deref());
                    if answer.is_none() {
                        prop_assert_eq!(&outcome, &Outcome::default());
                    }
                    outcome.changes.map(|change| (source.now, change)).into_iter().collect()
                }
                Step::Pass(millis) => source.pass(Duration::from_millis(millis)),
            };
            for (at, change) in changes {
                if let Some(last) = last_change {
                    prop_assert!(at >= last + DEBOUNCE, "a burst is one change");
                }
                last_change = Some(at);
                let count = before.chars().count();
                let answer = history.last().and_then(|(_, answer)| answer.clone());
                let is_empty = answer.is_some_and(|answer| answer.is_empty());
                let recent: usize = removals.iter()
                    .filter(|(then, ..)| *then + rules.confirm > at)
                    .map(|(_, removed, _)| removed).sum();
                let few = (change.removed.len() + recent) * 100
                    <= rules.max_removed as usize * (count + recent);
                for address in &change.removed {
                    let letter = address.chars().next().expect("one");
                    let time = match is_empty {
                        true => rules.empty_after,
                        false if few => Some(Duration::ZERO),
                        false => Some(rules.confirm),
                    };
                    let time = time.expect("an empty answer never counts");
                    prop_assert!(was_missing_for(&history, letter, time, at), "{address}");
                }
                removals.push((at, change.removed.len(), count));
                let mut now: BTreeSet<char> = before.chars().collect();
                now.extend(change.added.iter().flat_map(|a| a.chars()));
                now.retain(|c| !change.removed.contains(&c.to_string()));
                before = now.into_iter().collect();
            }
            prop_assert_eq!(&before, &source.in_effect(), "changes are complete");
        }
        // Whatever there was: what the source says for long enough is in effect.
        let long = rules.confirm + rules.empty_after.unwrap_or_default() + DEBOUNCE * 2;
        for answer in ["xy", "", "z"] {
            source.answer(Some(answer));
            source.pass(DEBOUNCE);
            for letter in answer.chars() {
                prop_assert!(source.in_effect().contains(letter), "what is new is there at once");
            }
            source.pass(long);
            if !answer.is_empty() || rules.empty_after.is_some() {
                prop_assert_eq!(source.in_effect(), answer);
            }
        }
    }

    #[test]
    fn order_and_duplicates_do_not_matter(
        mut entries in vec(("[a-c]", 0..3u32, any::<bool>(), any::<bool>()), 0..8),
    ) {
        let found = |(address, weight, backup, draining): &(String, u32, bool, bool)| Found {
            weight: *weight,
            backup: *backup,
            draining: *draining,
            ..Found::new(address.clone())
        };
        let one = collect(entries.iter().map(found));
        entries.reverse();
        prop_assert_eq!(&one, &collect(entries.iter().map(found)));
        entries.sort();
        prop_assert_eq!(&one, &collect(entries.iter().chain(&entries).map(found)));
    }
}
