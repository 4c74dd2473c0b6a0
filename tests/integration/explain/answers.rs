//! What the answer looks like, to people and to programs.

use super::{json, output};
use serde_json::{Value, json};

const FILE: &str = r#"
[listeners.cache]
bind = "127.0.0.1:7001"
upstream = "redis"
access = ["deny 192.0.2.99", "allow all"]

[upstreams.redis]
balance = "consistent_hash"
backends = [
  "10.0.0.1:6379",
  "10.0.0.2:6379",
  { address = "10.0.0.3:6379", weight = 2 },
  { address = "spare:6379", backup = true },
]
"#;

const CLIENTS: [&str; 8] = [
    "--client",
    "192.0.2.1",
    "--client",
    "192.0.2.77:5000",
    "--client",
    "2001:db8::1",
    "--client",
    "192.0.2.99",
];

const TEXT: &str = "\
listener cache, upstream redis: consistent_hash of $remote_addr
as in a fresh process in which nothing has failed; the clients come one after
    the other, and none stays

192.0.2.1        10.0.0.3:6379  the key's hash is db610037, the next point on the ring is dc09fde6
192.0.2.77:5000  10.0.0.2:6379  the key's hash is 8483290b, the next point on the ring is 848f3a2e
2001:db8::1      10.0.0.2:6379  the key's hash is 00b4af0e, the next point on the ring is 011e04ec
192.0.2.99       denied by access rule 1 of 2: \"deny 192.0.2.99/32\"

backend              weight  expected    clients    share    diff
10.0.0.1:6379             1    25.0 %          0    0.0 %   -25.0
10.0.0.2:6379             1    25.0 %          2   66.7 %   +41.7  ############
10.0.0.3:6379             2    50.0 %          1   33.3 %   -16.7  ######
spare:6379 (backup)       1     0.0 %          0    0.0 %    +0.0
denied                                         1

without 10.0.0.3:6379: 33.3 % of 3 clients move (1)
192.0.2.1        10.0.0.3:6379  -> 10.0.0.1:6379

backend              weight  expected    clients    share    diff
10.0.0.1:6379             1    50.0 %          1   33.3 %   -16.7  ######
10.0.0.2:6379             1    50.0 %          2   66.7 %   +16.7  ############
10.0.0.3:6379             2     0.0 %          0    0.0 %    +0.0
spare:6379 (backup)       1     0.0 %          0    0.0 %    +0.0
denied                                         1

note: names are not resolved: spare:6379 counts as one backend; of several addresses each would \
get a part of its clients
";

#[test]
fn the_whole_text() {
    let args = [&CLIENTS[..], &["--without", "10.0.0.3:6379"]].concat();
    let text = output(FILE, &args);
    assert_eq!(text, TEXT, "\n{text}");
}

/// It stands before the picks, which may be of a backend that takes nothing.
#[test]
fn unknown_roles_come_first() {
    let role = "[upstreams.redis.check]\nkind = \"redis\"\nrole = \"replica\"\n";
    let text = output(&format!("{FILE}{role}"), &CLIENTS);
    let (head, _) = text.split_once("\n\n").unwrap();
    assert!(
        head.ends_with(
            "\nwhich backend is a replica is not known here, so that all of them are counted\n    in: \
             --running knows it"
        ),
        "{head}"
    );
}

#[test]
fn the_whole_object() {
    let args = [&CLIENTS[..], &["--without", "10.0.0.3:6379"]].concat();
    let mut answer = json(FILE, &args);
    // Prose: it may change.
    for field in ["model", "notes"] {
        assert!(answer.as_object_mut().unwrap().remove(field).is_some());
    }
    for client in answer["clients"].as_array_mut().unwrap() {
        assert!(client.as_object_mut().unwrap().remove("text").is_some());
    }
    let client = |client: &str, backend: Value, reason: Value| {
        let denied = backend.is_null();
        json!({ "client": client, "backend": backend, "backup": false, "denied": denied,
            "reason": reason })
    };
    let point =
        |key: &str, point: &str| json!({ "kind": "point", "key": key, "point": point, "steps": 0 });
    let rows = |figures: [(f64, u64, f64); 4]| -> Vec<Value> {
        [
            "10.0.0.1:6379",
            "10.0.0.2:6379",
            "10.0.0.3:6379",
            "spare:6379",
        ]
        .iter()
        .zip([1, 1, 2, 1])
        .zip(figures)
        .map(|((backend, weight), (expected, got, share))| {
            json!({ "backend": backend, "weight": weight, "expected": expected, "got": got,
                    "share": share })
        })
        .collect()
    };
    let (third, two_thirds) = (1.0 / 3.0, 2.0 / 3.0);
    let none = (0.0, 0, 0.0);
    assert_eq!(
        answer,
        json!({
            "listener": "cache",
            "upstream": "redis",
            "balance": "consistent_hash",
            "hash_key": "$remote_addr",
            "seed": 0,
            "clients": [
                client("192.0.2.1", json!("10.0.0.3:6379"), point("db610037", "dc09fde6")),
                client("192.0.2.77:5000", json!("10.0.0.2:6379"), point("8483290b", "848f3a2e")),
                client("2001:db8::1", json!("10.0.0.2:6379"), point("00b4af0e", "011e04ec")),
                client(
                    "192.0.2.99",
                    Value::Null,
                    json!({ "kind": "denied", "position": 1, "rule": "deny 192.0.2.99/32" }),
                ),
            ],
            "counts": { "clients": 4, "denied": 1, "no_backend": 0, "in_rotation": 0 },
            "distribution": rows([(0.25, 0, 0.0), (0.25, 2, two_thirds), (0.5, 1, third), none]),
            "without": {
                "backends": ["10.0.0.3:6379"],
                "moved": 1,
                "share": third,
                "distribution": rows([(0.5, 1, third), (0.5, 2, two_thirds), none, none]),
                "moves": [
                    { "client": "192.0.2.1", "from": "10.0.0.3:6379", "to": "10.0.0.1:6379" },
                ],
            },
        })
    );
    assert_eq!(
        json(FILE, &["--client", "192.0.2.1"])["without"],
        Value::Null
    );
}

/// Each policy with its kind of reason, and a hint where a move is meaningless.
#[test]
fn every_policy_has_its_reason() {
    for (balance, kind, note) in [
        ("round_robin", "rotation", "picks in rotation"),
        ("least_conn", "fewest_connections", "picks in rotation"),
        ("least_time", "least_score", "picks in rotation"),
        ("random_two", "drawn", "draws, here with seed 0"),
        ("first", "first_in_order", ""),
        ("hash", "hash", ""),
        ("ip_hash", "hash", ""),
        ("consistent_hash", "point", ""),
        ("maglev", "slot", ""),
    ] {
        let file = FILE.replace("consistent_hash", balance);
        let answer = json(&file, &["--sample", "100", "--without", "10.0.0.1:6379"]);
        let clients = answer["clients"].as_array().unwrap();
        assert!(
            clients.iter().all(|c| c["reason"]["kind"] == kind),
            "{balance}"
        );
        let notes = answer["notes"].to_string();
        assert!(notes.contains(note), "{balance}: {notes}");
        assert!(notes.contains("spare:6379"), "{balance}: {notes}");
    }
}

#[test]
fn only_the_clients_of_the_lost_backend_move() {
    for balance in ["consistent_hash", "maglev"] {
        let file = FILE.replace("consistent_hash", balance);
        let answer = json(&file, &["--sample", "10000", "--without", "10.0.0.2:6379"]);
        let moves = answer["without"]["moves"].as_array().unwrap();
        assert!(
            moves.iter().all(|one| one["from"] == "10.0.0.2:6379"),
            "{balance}"
        );
        assert_eq!(answer["distribution"][1]["got"], moves.len(), "{balance}");
        assert_eq!(answer["without"]["moved"], moves.len(), "{balance}");
        assert_eq!(answer["without"]["distribution"][1]["got"], 0, "{balance}");
    }
}

#[test]
fn no_candidate_remains() {
    let lost = [
        "10.0.0.1:6379",
        "10.0.0.2:6379",
        "10.0.0.3:6379",
        "spare:6379",
    ];
    let without: Vec<&str> = lost
        .iter()
        .flat_map(|backend| ["--without", backend])
        .collect();
    let client = ["--client", "192.0.2.1"];
    let spare = output(FILE, &[&client[..], &without[..6]].concat());
    assert!(spare.contains("10.0.0.3:6379"), "{spare}");
    assert!(spare.contains("-> spare:6379"), "{spare}");
    let none = output(FILE, &[&client[..], &without].concat());
    assert!(none.contains("-> none"), "{none}");
    let down = FILE
        .replace("weight = 2", "down = true")
        .replace("\"10.0.0.1:6379\",", "");
    let down = down
        .replace("\"10.0.0.2:6379\",", "")
        .replace("backup = true", "weight = 0");
    let none = json(&down, &client);
    assert_eq!(none["clients"][0]["reason"]["kind"], "no_backend", "{none}");
    assert_eq!(none["counts"]["no_backend"], 1, "{none}");
}

#[test]
fn the_seed_decides_the_sample() {
    let sample = |seed| output(FILE, &["--sample", "50", "--seed", seed, "--json"]);
    assert_eq!(sample("5"), sample("5"));
    assert_ne!(sample("5"), sample("6"));
}

/// Within the patience of a test for a command.
#[test]
fn a_million_clients() {
    let text = output(
        FILE,
        &["--clients", "10.0.0.0/12", "--without", "10.0.0.1:6379"],
    );
    assert!(text.contains("of 1,048,576 clients move"), "{text}");
    assert!(text.contains("more, --json has all"), "{text}");
}
