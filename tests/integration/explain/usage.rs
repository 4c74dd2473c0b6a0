//! Wrong usage and wrong files.

use super::{explain, output};
use crate::harness::{proc::text, secs, tembuku, temp::TempDir};
use std::process::{Command, Output};

const FILE: &str = r#"
[listeners.cache]
bind = "127.0.0.1:7001"
upstream = "redis"

[listeners.many]
bind = ["127.0.0.1:7002-7004", "unix:/tmp/tembuku-explain.sock"]
upstream = "ports"

[upstreams.redis]
balance = "consistent_hash"
backends = ["10.0.0.1:6379", "10.0.0.2:6379"]

[upstreams.ports]
balance = "hash"
hash_key = "$remote_addr$remote_port$server_port"
backends = ["10.0.0.1:6379", "10.0.0.2:6379"]
"#;

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn wrong_usage_is_explained() {
    let cache = ["--listener", "cache"];
    let many = ["--listener", "many"];
    let one = ["--client", "192.0.2.1"];
    let with_port = ["--client", "192.0.2.1:5000"];
    for (args, part) in [
        (vec![&cache[..]], "--client"),
        (vec![&one[..]], "cache, many"),
        (
            vec![&["--listener", "cahce"][..], &one],
            "did you mean \"cache\"?",
        ),
        (vec![&["--listener", "x"][..], &one], "there is cache, many"),
        (
            vec![&cache[..], &["--client", "example.org"]],
            "a client is an address",
        ),
        (
            vec![&cache[..], &["--clients", "10.0.0.0"]],
            "a network is written",
        ),
        (vec![&cache[..], &["--clients", "10.0.0.0/8"]], "--sample N"),
        (
            vec![&cache[..], &["--clients", "10.0.0.0/30", "--sample", "5"]],
            "fewer addresses",
        ),
        (vec![&cache[..], &["--sample", "0"]], "--sample"),
        (vec![&cache[..], &["--sample", "1048577"]], "1048576"),
        (
            vec![&cache[..], &one, &["--sample", "5"]],
            "cannot be used with",
        ),
        (
            vec![&cache[..], &one, &["--without", "10.0.0.3:6379"]],
            "did you mean \"10.0.0.1:6379\"?",
        ),
        (
            vec![&cache[..], &one, &["--server-port", "7002"]],
            "it has 7001",
        ),
        (vec![&many[..], &with_port], "7002, 7003, 7004"),
        (
            vec![&many[..], &with_port, &["--server-port", "7001"]],
            "7002, 7003, 7004",
        ),
        (
            vec![&many[..], &one, &["--server-port", "7002"]],
            "$remote_port",
        ),
    ] {
        let args = args.concat();
        let output = explain(FILE, &args);
        assert_eq!(output.status.code(), Some(2), "{args:?}\n{}", text(&output));
        assert!(output.stdout.is_empty(), "{args:?}\n{}", text(&output));
        let error = stderr(&output);
        assert!(
            error.starts_with("error: ") && error.contains(part),
            "{args:?}, not {part}\n{error}"
        );
    }
}

#[test]
fn these_are_fine() {
    for args in [
        &["--listener", "cache", "--client", "unix:"][..],
        &[
            "--listener",
            "cache",
            "--client",
            "[2001:db8::1]:5000",
            "--server-port",
            "7001",
        ],
        &[
            "--listener",
            "many",
            "--client",
            "192.0.2.1:5000",
            "--server-port",
            "7003",
        ],
        &[
            "--listener",
            "many",
            "--sample",
            "5",
            "--server-port",
            "7003",
        ],
        &[
            "--listener",
            "many",
            "--clients",
            "2001:db8::/120",
            "--server-port",
            "7003",
        ],
    ] {
        assert!(output(FILE, args).contains("in the weights") || args.contains(&"cache"));
    }
}

#[test]
fn an_invalid_file_is_refused_as_by_check() {
    let dir = TempDir::new();
    let file = dir.write("tembuku.toml", &FILE.replace("\"redis\"", "\"rdis\""));
    let file = file.to_str().unwrap();
    let check = tembuku::cli(&["check", "-c", file]);
    let explain = tembuku::cli(&["explain", "-c", file, "--client", "192.0.2.1"]);
    assert_eq!(explain.status.code(), Some(1), "{}", text(&explain));
    assert!(
        stderr(&check).contains("tembuku.toml:4:12"),
        "{}",
        text(&check)
    );
    assert_eq!(stderr(&explain), stderr(&check));
}

#[test]
fn a_closed_pipe_is_no_error() {
    let dir = TempDir::new();
    dir.write("tembuku.toml", FILE);
    let mut pipe = Command::new("bash");
    pipe.args([
        "-c",
        "set -o pipefail; \"$0\" explain -c tembuku.toml --listener cache --clients 10.0.0.0/12 \
         --json | head -c 10",
    ]);
    pipe.arg(tembuku::binary()).current_dir(dir.path());
    let output = crate::harness::proc::run(secs(10), pipe);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(output.stderr.is_empty(), "{}", text(&output));
    assert_eq!(output.stdout.len(), 10);
}
