use super::*;
use crate::{
    plan::{Check, CheckKind, reason::CheckResult},
    upstream::{
        health::{FailureOf, Judge, RiseFall},
        pool::tests::{check, guarded, of, pick, planned, upstream},
    },
};
use std::time::Duration;

fn writer() -> Check {
    Check {
        rise: 2,
        fall: 3,
        ..check(CheckKind::Redis {
            role: Some(Role::Primary),
            user: None,
            password: None,
            replicating: false,
            max_lag: None,
            min_version: None,
            require_writes: true,
        })
    }
}

/// What a check of the backend of this number has found.
fn record(pool: &Pool, judge: &mut Judge, n: usize, result: CheckResult, id: &str, now: Instant) {
    let change = judge.record(result, [now; 2]);
    let epoch = Epoch::Replication {
        id: id.to_owned(),
        before: None,
    };
    let checked = Checked {
        began: now,
        at: now,
        took: Duration::from_millis(1),
        result,
        finding: Finding {
            role: Some(Role::Primary),
            epoch: Some(epoch),
            server: Some(format!("run {n}")),
            lag: Lag {
                bytes: Some(3),
                time: None,
            },
            fault: None,
        },
        transcript: "role:master".to_owned(),
    };
    let backend = &pool.addresses()[n].backend;
    pool.note_progress(backend, judge.progress());
    pool.checked(backend, checked, change, now);
}

#[test]
fn a_pool_goes_on_with_what_another_process_knows() {
    // Past enough that no time lies before the start of the clock.
    let now = Instant::now();
    let backends = || vec![planned(1), planned(2), planned(3)];
    let old = guarded(backends(), writer(), now);
    let rule = RiseFall { rise: 2, fall: 3 };
    let mut judges: Vec<Judge> = (0..3)
        .map(|_| Judge::new(rule, Verdict::Down(None)))
        .collect();
    let later = now + Duration::from_millis(5);
    record(&old, &mut judges[0], 0, CheckResult::Ok, "a", now);
    record(&old, &mut judges[1], 1, CheckResult::Ok, "b", later);
    record(&old, &mut judges[2], 2, CheckResult::Refused, "c", later);
    // On the way to another verdict.
    record(&old, &mut judges[0], 0, CheckResult::Timeout, "a", later);
    record(&old, &mut judges[0], 0, CheckResult::Timeout, "a", later);
    let failing = &old.addresses()[0].backend.clone();
    old.failed(
        failing,
        FailureOf::Connection,
        crate::plan::reason::ConnectError::Refused,
        &"refused",
        [later; 2],
    );
    old.set_admin_state("10.0.0.2:1", AdminState::Drain.into(), later);
    old.set_weight("10.0.0.3:1", Some(7), later).expect("set");

    let new = of(&upstream(backends(), writer()), later);
    new.take_over(&old.record(), later);
    assert_eq!(new.record(), old.record());
    assert_eq!(pick(&new, later), pick(&old, later));

    // One failure more, and the verdict changes, as it would have in the old process.
    let backend = &new.addresses()[0].backend.clone();
    let progress = new.take_handed_progress(backend).expect("handed");
    let expected = judges[0].progress();
    assert_eq!(
        (progress.runs, progress.last_role),
        (expected.runs, expected.last_role)
    );
    // To the microsecond.
    let [handed, own] = [progress, expected].map(|p| p.doubted_since.map(time::micros_at));
    assert_eq!(handed, own);
    assert!(new.take_handed_progress(backend).is_none(), "once");
    let mut judge = Judge::resume(rule, new.own_verdict(backend), progress);
    record(&new, &mut judge, 0, CheckResult::Timeout, "a", later);
    record(&old, &mut judges[0], 0, CheckResult::Timeout, "a", later);
    let down = Verdict::Down(Some(CheckResult::Timeout));
    assert_eq!(
        (new.own_verdict(backend), old.own_verdict(failing)),
        (down, down)
    );
}

#[test]
fn backends_that_another_process_does_not_have_start_as_new_ones() {
    let now = Instant::now();
    let old = guarded(vec![planned(1)], writer(), now);
    let mut judge = Judge::new(RiseFall { rise: 1, fall: 1 }, Verdict::Down(None));
    record(&old, &mut judge, 0, CheckResult::Ok, "a", now);
    let new = of(&upstream(vec![planned(1), planned(2)], writer()), now);
    new.take_over(&old.record(), now);
    let verdicts: Vec<Verdict> = new.addresses().iter().map(|a| a.verdict).collect();
    assert_eq!(verdicts, [Verdict::Up, Verdict::Down(None)]);
    assert_eq!(new.unchecked_backends(), ["10.0.0.2:1"]);
}

/// The old process was asked to use it again, and has not had an answer yet.
#[test]
fn one_that_waits_for_an_answer_waits_in_the_new_process() {
    let now = Instant::now();
    let later = now + Duration::from_secs(1);
    let old = guarded(vec![planned(1), planned(2)], writer(), now);
    let rule = RiseFall { rise: 1, fall: 1 };
    let mut judge = Judge::new(rule, Verdict::Down(None));
    record(&old, &mut judge, 0, CheckResult::Ok, "a", now);
    for admin_state in [AdminState::Drain, AdminState::Ready] {
        old.set_admin_state("10.0.0.1:1", admin_state.into(), now);
    }
    let new = of(&upstream(vec![planned(1), planned(2)], writer()), later);
    new.take_over(&old.record(), later);
    assert_eq!(pick(&new, later), None);
    let waits: Vec<bool> = new.addresses().iter().map(|a| a.awaits_answer).collect();
    assert_eq!(waits, [true, false]);
    let backend = &new.addresses()[0].backend;
    let progress = new.take_handed_progress(backend).expect("progress");
    let mut judge = Judge::resume(rule, new.own_verdict(backend), progress);
    record(&new, &mut judge, 0, CheckResult::Ok, "a", later);
    assert_eq!(pick(&new, later).as_deref(), Some("10.0.0.1:1"));
}

#[test]
fn verdicts_without_checks_are_not_taken_over() {
    let now = Instant::now();
    let mut plan = upstream(vec![planned(1)], writer());
    plan.check = None;
    let old = of(&plan, now);
    let new = of(&upstream(vec![planned(1)], writer()), now);
    new.take_over(&old.record(), now);
    assert_eq!(new.addresses()[0].verdict, Verdict::Down(None));
    assert!(!new.unchecked_backends().is_empty());
}
