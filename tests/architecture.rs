//! Holds the map of ARCHITECTURE.md: which room may use which, and where `unsafe` may stand.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// From the outside in. A room may use those that stand below it, never one above or beside it on the same line.
const LEVELS: &[&[&str]] = &[
    &["cli"],
    &["admin"],
    &["server"],
    &["tcp", "udp"],
    &["following", "relay", "service"],
    &["pool", "sessions"],
    &["journal"],
    &["access_log", "backend", "config", "logging", "probe"],
    &["explain", "health", "lines", "net"],
    &[
        "access",
        "balance",
        "event_loop",
        "metrics",
        "proxy_protocol",
    ],
    &[
        "blocking", "files", "plan", "reason", "shorten", "sys", "throttle", "wheel",
    ],
];

/// Rooms that decide and do not act: no event loop, no sockets, no clock of their own.
const PURE: &[&str] = &[
    "access",
    "balance",
    "explain",
    "health",
    "plan",
    "proxy_protocol",
    "reason",
    "throttle",
    "wheel",
];

/// Files of every room: `src/room.rs` and all below `src/room/`.
fn rooms() -> BTreeMap<String, Vec<PathBuf>> {
    let mut rooms: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![src.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("the source is readable") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let inside = path.strip_prefix(&src).expect("below src");
                let first = inside.components().next().expect("a name").as_os_str();
                let room = Path::new(first).with_extension("").display().to_string();
                rooms.entry(room).or_default().push(path);
            }
        }
    }
    rooms
}

/// The code of a file without comments and string contents, so that words in them do not count.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("readable");
    text.lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

/// The rooms named by `crate::room` or by `use crate::{room, room::…}`.
fn used_rooms(code: &str) -> Vec<String> {
    let mut used = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(list) = rest.strip_prefix('{') {
            let mut depth = 1;
            let mut word = String::new();
            let mut at_start = true;
            for c in list.chars() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ',' if depth == 1 => at_start = true,
                    c if depth == 1 && at_start && (c.is_alphanumeric() || c == '_') => {
                        word.push(c)
                    }
                    c if c.is_whitespace() => continue,
                    _ => at_start = false,
                }
                if !word.is_empty() && (!at_start || c == ',' || depth == 0) {
                    used.push(std::mem::take(&mut word));
                }
                if depth == 0 {
                    break;
                }
            }
        } else {
            used.push(
                rest.chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect(),
            );
        }
    }
    used
}

fn level(room: &str) -> usize {
    LEVELS
        .iter()
        .position(|rooms| rooms.contains(&room))
        .unwrap_or_else(|| {
            panic!(
                "the room {room} is on no level: give it a place in LEVELS and in ARCHITECTURE.md"
            )
        })
}

#[test]
fn imports_go_downward_only() {
    let mut wrong = Vec::new();
    for (room, files) in rooms() {
        if matches!(room.as_str(), "lib" | "main") {
            continue;
        }
        for file in files {
            for used in used_rooms(&code(&file)) {
                if used != room && level(&used) <= level(&room) {
                    wrong.push(format!("{}: {room} uses {used}", file.display()));
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "imports that go upward:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn pure_rooms_do_not_act() {
    for (room, files) in rooms() {
        if !PURE.contains(&room.as_str()) {
            continue;
        }
        for file in files {
            let code = code(&file);
            let code = code.split("#[cfg(test)]").next().unwrap_or_default();
            for word in [
                "tokio",
                "Instant::now",
                "SystemTime",
                "std::fs",
                "TcpStream",
                "rand::",
                "socket2",
            ] {
                assert!(
                    !code.contains(word),
                    "{}: {word} in a pure room",
                    file.display()
                );
            }
        }
    }
}

#[test]
fn unsafe_stands_in_sys_alone() {
    for (room, files) in rooms() {
        for file in files {
            let code = code(&file);
            let blocks = code.matches("unsafe {").count();
            assert!(
                room == "sys" || blocks == 0,
                "{}: unsafe outside sys",
                file.display()
            );
        }
    }
}

#[test]
fn this_test_sees_what_it_looks_for() {
    let text = "use crate::{\n    plan::{self, Place},\n    pool::Pool,\n    sys,\n};\nuse crate::net::Stream;\nfn f() { crate::health::x(); }";
    assert_eq!(used_rooms(text), ["plan", "pool", "sys", "net", "health"]);
}
