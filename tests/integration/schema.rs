//! The JSON Schema, judged by another program; completions and manual pages, by those that read
//! them.

use crate::harness::{
    proc::{run_ok, text},
    secs,
    tembuku::cli,
    temp::TempDir,
};
use std::process::Command;

/// Prints the name of each file, and whether the schema takes it. What is no TOML is left out.
const JUDGE: &str = r#"
import json, pathlib, sys, tomllib
import jsonschema
schema = json.loads(pathlib.Path(sys.argv[1]).read_text())
jsonschema.Draft7Validator.check_schema(schema)
validator = jsonschema.Draft7Validator(schema)
for name in sys.argv[2:]:
    try:
        config = tomllib.loads(pathlib.Path(name).read_bytes().decode("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        continue
    errors = sorted(validator.iter_errors(config), key=str)
    verdict = "refused" if errors else "taken"
    print(pathlib.Path(name).stem, verdict, *(e.message for e in errors[:1]))
"#;

/// Samples with a mistake that a schema can see. What is wrong in the others depends on more than
/// one value, or on rules within a text.
const SEEN: &str = "array_of_tables check_dns check_guards check_keys check_mysql check_postgres \
    check_replicating check_tls crlf_tabs_and_umlauts defaults durations empty five_mistakes \
    hash_keys missing_keys names no_listeners proxy_protocol ranges types udp_leaving \
    udp_send_proxy udp_values unix_rights unknown_keys unknown_words words_of_others \
    zero_durations";

#[test]
fn the_schema_takes_what_is_valid_and_refuses_what_is_not() {
    let dir = TempDir::new();
    let schema = cli(&["schema"]);
    assert!(schema.status.success());
    let file = dir.write("schema.json", &String::from_utf8(schema.stdout).unwrap());
    let judge = |folder: &str| -> String {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/");
        let mut files: Vec<_> = std::fs::read_dir(format!("{root}{folder}"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|ending| ending == "toml"))
            .collect();
        files.sort();
        let mut command = Command::new("python3");
        command.args(["-c", JUDGE]).arg(&file).args(files);
        run_ok(secs(60), command)
    };
    for folder in ["conf", "tests/config/valid"] {
        let judged = judge(folder);
        assert!(
            judged.lines().count() >= 5 && !judged.contains(" refused"),
            "{judged}"
        );
    }
    let judged = format!("\n{}", judge("tests/config/invalid"));
    for name in SEEN.split_whitespace() {
        assert!(
            judged.contains(&format!("\n{name} refused")),
            "{name}:\n{judged}"
        );
    }
}

#[test]
fn completions_are_read_by_bash() {
    let dir = TempDir::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = cli(&["completions", shell]);
        let script = String::from_utf8(script.stdout).unwrap();
        assert!(
            script.contains("explain") && script.contains("drain"),
            "{shell}: {script}"
        );
        dir.write(shell, &script);
    }
    let mut complete = Command::new("bash");
    complete.current_dir(dir.path()).args([
        "-c",
        "source ./bash; COMP_WORDS=(tembuku dra); COMP_CWORD=1; _tembuku tembuku dra tembuku; \
         echo \"${COMPREPLY[@]}\"",
    ]);
    assert_eq!(run_ok(secs(20), complete).trim(), "drain");
    assert_eq!(cli(&["completions", "cmd"]).status.code(), Some(2));
}

#[test]
fn manual_pages_name_commands() {
    let dir = TempDir::new();
    let page = cli(&["man"]);
    let page = String::from_utf8(page.stdout).unwrap();
    let folder = dir.path().to_str().unwrap();
    assert!(cli(&["man", "--to", folder]).status.success());
    for name in ["run", "check", "drain", "import"] {
        assert!(page.contains(name), "{name}");
        let file = dir.file(&format!("tembuku-{name}.1"));
        assert!(
            std::fs::read_to_string(&file).unwrap().contains(".TH"),
            "{file:?}"
        );
    }
    let refused = cli(&["man", "--to", "/dev/null/folder"]);
    assert!(
        text(&refused).contains("cannot write to /dev/null/folder"),
        "{}",
        text(&refused)
    );
}
