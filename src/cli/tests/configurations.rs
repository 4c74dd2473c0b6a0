//! Every configuration of the documentation and of the packages is valid. One that is not whole is
//! marked: its fence is "toml fragment". It is completed here by what it lacks to be valid.

use super::pages::{files, pages};
use crate::config;
use toml::{Table, Value};

fn sub<'a>(table: &'a mut Table, key: &str) -> &'a mut Table {
    let entry = table.entry(key).or_insert_with(|| Table::new().into());
    entry.as_table_mut().expect("a table")
}

fn default(table: &mut Table, key: &str, value: impl Into<Value>) {
    table.entry(key).or_insert(value.into());
}

/// Listeners for its upstreams, backends, the kind of a check, and the socket of operators.
fn complete(text: &str) -> String {
    let mut whole: Table = text
        .parse()
        .unwrap_or_else(|error| panic!("{error}\n{text}"));
    default(
        sub(&mut whole, "admin"),
        "socket",
        "/run/tembuku/admin.sock",
    );
    let shared = whole
        .get("defaults")
        .and_then(|d| d.get("upstream").cloned());
    let upstreams = sub(&mut whole, "upstreams");
    if upstreams.is_empty() {
        sub(upstreams, "u");
    }
    let names: Vec<String> = upstreams.keys().cloned().collect();
    let mut used: Vec<String> = Vec::new();
    let listeners = sub(&mut whole, "listeners");
    for (n, (_, listener)) in listeners.iter_mut().enumerate() {
        let listener = listener.as_table_mut().expect("a section");
        default(listener, "bind", format!("127.0.0.1:{}", 1_000 + n));
        if shared.is_none() {
            default(listener, "upstream", names[0].clone());
        }
        let upstream = listener.get("upstream").or(shared.as_ref());
        used.extend(upstream.and_then(Value::as_str).map(str::to_owned));
    }
    for (n, name) in names.iter().filter(|name| !used.contains(name)).enumerate() {
        let listener = sub(listeners, &format!("of-{name}"));
        default(listener, "bind", format!("127.0.0.1:{}", 2_000 + n));
        default(listener, "upstream", name.clone());
    }
    let upstreams = sub(&mut whole, "upstreams");
    for name in used {
        sub(upstreams, &name);
    }
    for (_, upstream) in upstreams.iter_mut() {
        let upstream = upstream.as_table_mut().expect("a section");
        if upstream.contains_key("on_role_lost") {
            default(sub(upstream, "check"), "role", "primary");
        } else if upstream.contains_key("panic_threshold") {
            sub(upstream, "check");
        }
        let backends = ["192.0.2.1:1", "192.0.2.2:1"].map(Value::from);
        default(upstream, "backends", backends.to_vec());
        if let Some(check) = upstream.get_mut("check") {
            default(check.as_table_mut().expect("a section"), "kind", "redis");
        }
    }
    whole.to_string()
}

#[test]
fn every_configuration_of_a_page_is_valid() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for block in pages().iter().flat_map(|page| page.blocks()) {
        let text = match &*block.info {
            "toml" => block.text,
            "toml fragment" => complete(&block.text),
            info if info.starts_with("toml") => {
                wrong.push(format!("{}: neither toml nor toml fragment", block.at));
                continue;
            }
            _ => continue,
        };
        count += 1;
        if let Err(problems) = config::parse(&text, &block.at) {
            wrong.push(format!("{}\n{problems}", block.at));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 20, "only {count} are found");
}

/// Those of `conf/` are in the tests of configurations.
#[test]
fn every_configuration_of_a_package_is_valid() {
    let files = files("packaging", &[".toml"]);
    assert!(files.len() > 2);
    for file in files {
        if let Err(problems) = config::parse(&file.text, &file.name) {
            panic!("{}\n{problems}", file.name);
        }
    }
}
