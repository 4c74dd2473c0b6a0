//! The terminal is restored by a panic, and its message is read on the screen that was there.

use super::terminal::Terminal;
use std::process::Command;

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
