//! Keys and what they lead to; the terminal after a panic.

use super::{
    Sort, View,
    feed::{Data, Order, Update},
    keys::Key,
    terminal::Terminal,
    ui::{Effect, Ui},
};
use crate::{cli::response, upstream::pool::AdminState};
use serde_json::{Value, json};
use std::{collections::HashMap, process::Command};

/// This test as the program that panics, in a terminal of its own.
const INSIDE: &str = "TEMBUKU_TEST_TOP_PANIC";

#[test]
fn a_panic_restores_the_terminal() {
    if std::env::var_os(INSIDE).is_some() {
        let _terminal = Terminal::enter().expect("a terminal");
        panic!("on purpose");
    }
    let test = std::env::current_exe().expect("a path");
    let name = "cli::top::tests::a_panic_restores_the_terminal";
    let line = format!(
        "{INSIDE}=1 '{}' --exact {name} --nocapture; stty -a",
        test.display()
    );
    let output = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .output()
        .expect("script, of bsdutils");
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    let at = |text: &str| {
        let found = output.find(text);
        found.unwrap_or_else(|| panic!("no {text:?} in {output:?}"))
    };
    assert!(at("\u{1b}[?1049h") < at("\u{1b}[?1049l"), "{output:?}");
    assert!(at("\u{1b}[?1049l") < at("on purpose"), "{output:?}");
    let settings = output.rsplit("speed ").next().unwrap_or_default();
    for setting in ["icanon", "echo", "isig", "opost"] {
        let is_set = settings.split_whitespace().any(|word| word == setting);
        assert!(is_set, "{setting} in {settings:?}");
    }
}

fn backend(address: &str, state: &str, sessions: u64) -> Value {
    json!({
        "address": address, "state": state, "why": "", "admin_state": "ready",
        "awaits_check": false, "available": true, "role": [], "last_check": null, "weight": 1,
        "weight_in_file": 1, "weight_since": null, "admin_state_since": null, "backup": false,
        "connections": sessions, "connections_total": 0, "connect_errors_total": 0,
        "received_bytes": 0, "sent_bytes": 0,
    })
}

fn data(backends: &[Value]) -> Update {
    let status = json!({
        "process": { "version": "1.2.3", "state": "running", "pid": 7, "uptime_seconds": 1,
            "connections": 0, "max_connections": 9, "flows": 0, "max_flows": 0,
            "config_hash": "0", "nodes": 1,
            "previous": { "pid": 6, "since": "T0", "connections": 3, "flows": 2 } },
        "listeners": [],
        "upstreams": [{ "name": "u", "balance": "first", "available": 1, "full": 0, "queued": 0,
            "held": 0, "backends": backends, "discovery": { "kind": "etcd", "backends": 2,
                "version": "17", "age_seconds": 3, "is_old": false, "error": null,
                "held": [{ "address": "b:1", "until": "T1" }] } }],
    });
    Update::Data(Box::new(Data {
        status: response::read(&status.to_string()).expect("every field"),
        rates: HashMap::new(),
        sessions: Vec::new(),
        is_more: false,
        events: Vec::new(),
    }))
}

/// The lines of a terminal of 80 columns.
fn shown(ui: &mut Ui) -> String {
    let size = (80, 12).into();
    ui.fit(size);
    let lines = ui.lines(size);
    assert_eq!(lines.len(), 12);
    let lines = lines.iter().map(|line| line.text());
    assert!(lines.clone().all(|line| line.chars().count() <= 80));
    lines.collect::<Vec<_>>().join("\n")
}

fn type_keys(ui: &mut Ui, text: &str) -> Effect {
    let mut last = Effect::None;
    for c in text.chars() {
        last = ui.press(match c {
            '\n' => Key::Enter,
            c => Key::Char(c),
        });
    }
    last
}

#[test]
fn an_order_is_for_what_was_selected_wherever_it_is_now() {
    let mut ui = Ui::new(View::Backends, Sort::Sessions, "", false);
    ui.update(data(&[backend("a:1", "up", 5), backend("b:1", "up", 3)]));
    assert!(shown(&mut ui).contains("u/a:1"));
    ui.press(Key::Down);
    // The other has more sessions by the next look, and comes first.
    ui.update(data(&[backend("a:1", "up", 5), backend("b:1", "up", 9)]));
    assert_eq!(type_keys(&mut ui, "d"), Effect::None);
    assert!(shown(&mut ui).contains("drain: u/b:1, 9 sessions? (y/n)"));
    let order = Order::Admin("u/b:1".parse().expect("a name"), AdminState::Drain);
    assert_eq!(type_keys(&mut ui, "y"), Effect::Order(order));
    // Any other key than "y" is no.
    for no in ["dn", "d\n", "dd", "mq"] {
        assert_eq!(type_keys(&mut ui, no), Effect::None, "{no:?}");
        assert!(shown(&mut ui).contains("nothing was changed"), "{no:?}");
    }
    // There are no orders in other lists.
    assert_eq!(type_keys(&mut ui, "2dy"), Effect::None);
    assert_eq!(type_keys(&mut ui, "q"), Effect::Quit);
}

#[test]
fn the_source_of_backends_and_the_process_before_are_shown() {
    let mut ui = Ui::new(View::Upstreams, Sort::File, "", false);
    ui.update(data(&[backend("a:1", "up", 5), backend("b:1", "down", 2)]));
    let text = shown(&mut ui);
    let row = text.lines().find(|line| line.starts_with("u "));
    let cells: Vec<&str> = row.expect("a row").split_whitespace().collect();
    assert_eq!(cells, ["u", "first", "1/2", "0", "0", "0", "7", "etcd"]);
    for part in [
        "before it: pid 6, 3 connections, 2 flows, draining since T0",
        "source etcd: 2 backends, version 17, answered 3 s ago; held 1: b:1 until T1",
        "5 upstreams",
    ] {
        assert!(text.contains(part), "{part}:\n{text}");
    }
    // Names of other views give way to what is chosen.
    type_keys(&mut ui, "us/up first and more\n");
    let text = shown(&mut ui);
    let settings = "1 2 3 4 5 upstreams  0/1, by state, not well, with \"up first and more\"";
    assert!(text.contains(settings), "{text}");
}

#[test]
fn a_weight_is_asked_for_and_confirmed() {
    let mut ui = Ui::new(View::Backends, Sort::File, "", false);
    ui.update(data(&[backend("a:1", "up", 0)]));
    let name = || "u/a:1".parse().expect("a name");
    assert_eq!(type_keys(&mut ui, "w12x\n"), Effect::None);
    assert!(shown(&mut ui).contains("give u/a:1 the weight 12? (y/n)"));
    let order = Order::Weight(name(), Some(12));
    assert_eq!(type_keys(&mut ui, "y"), Effect::Order(order));
    assert_eq!(
        type_keys(&mut ui, "w\ny"),
        Effect::Order(Order::Weight(name(), None))
    );
    assert_eq!(type_keys(&mut ui, "w999999999\n"), Effect::None);
    assert!(shown(&mut ui).contains("a weight is a number up to"));
}

#[test]
fn letters_of_a_filter_are_no_keys_and_failures_keep_the_list() {
    let mut ui = Ui::new(View::Backends, Sort::File, "", false);
    ui.update(data(&[backend("a:1", "up", 0), backend("b:1", "down", 0)]));
    assert_eq!(type_keys(&mut ui, "/DOWN\n"), Effect::None);
    let text = shown(&mut ui);
    assert!(text.contains("u/b:1") && !text.contains("u/a:1"), "{text}");
    ui.press(Key::Escape);
    type_keys(&mut ui, "u");
    assert!(shown(&mut ui).contains("1/2, not well"));
    ui.update(Update::Failure("cannot reach tembuku".to_owned()));
    let text = shown(&mut ui);
    assert!(
        text.contains("u/b:1") && text.contains("cannot reach tembuku"),
        "{text}"
    );
    // A terminal that is far too small.
    for size in [(1, 1), (5, 2), (80, 3)] {
        ui.fit(size.into());
        assert_eq!(ui.lines(size.into()).len(), size.1);
    }
}
