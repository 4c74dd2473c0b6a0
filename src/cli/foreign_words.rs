//! Commands of other programs (HAProxy, nginx, kubectl, systemctl) and what does the same here.

/// Words, and what there is for them.
const WORDS: &[(&[&str], &str)] = &[
    (
        &[
            "undrain",
            "up",
            "enable",
            "uncordon",
            "resume",
            "unpause",
            "activate",
            "set server state ready",
        ],
        "`tembuku ready UPSTREAM/BACKEND` lets a backend serve again",
    ),
    (
        &[
            "down",
            "disable",
            "cordon",
            "pause",
            "suspend",
            "deactivate",
            "out",
            "set server state drain",
        ],
        "`tembuku drain UPSTREAM/BACKEND` gives a backend nothing new, `tembuku maint` stops its \
         checks as well",
    ),
    (
        &["maintenance", "disable server", "set server state maint"],
        "`tembuku maint UPSTREAM/BACKEND` takes a backend out of service, `tembuku ready` lets it \
         serve again",
    ),
    (
        &["start", "serve", "server", "daemon"],
        "`tembuku run -c FILE` starts a process; `tembuku ready UPSTREAM/BACKEND` lets a backend \
         serve again",
    ),
    (
        &["stop", "quit", "shutdown", "exit", "soft-stop"],
        "TERM stops a process (`systemctl stop tembuku`, `kill -TERM PID`); `tembuku drain \
         UPSTREAM/BACKEND` gives a backend nothing new",
    ),
    (
        &["restart", "-s"],
        "`tembuku reload` reads the file again, `tembuku upgrade` replaces the process under load",
    ),
    (
        &[
            "show",
            "stat",
            "stats",
            "info",
            "list",
            "ls",
            "get",
            "describe",
            "backends",
            "servers",
            "upstreams",
            "listeners",
            "health",
            "state",
        ],
        "`tembuku status` shows listeners, upstreams and backends",
    ),
    (
        &[
            "conn",
            "conns",
            "connections",
            "sess",
            "clients",
            "flows",
            "show sess",
            "show sessions",
        ],
        "`tembuku sessions` shows live sessions and their clients",
    ),
    (
        &[
            "log",
            "logs",
            "journal",
            "history",
            "watch",
            "tail",
            "show events",
            "show errors",
        ],
        "`tembuku events --follow` shows what happens to backends",
    ),
    (
        &["monitor", "ui", "dashboard"],
        "`tembuku top` is the live view",
    ),
    (
        &[
            "validate",
            "test",
            "configtest",
            "verify",
            "lint",
            "-t",
            "-T",
        ],
        "`tembuku check -c FILE` validates a file",
    ),
    (
        &["-f"],
        "a configuration file is named by -c FILE: `tembuku run -c FILE`",
    ),
    (
        &["config", "dump", "print"],
        "`tembuku check --dump` prints the effective configuration",
    ),
    (
        &[
            "close",
            "cut",
            "disconnect",
            "terminate",
            "drop",
            "shutdown session",
            "shutdown sessions",
        ],
        "`tembuku kill` terminates sessions",
    ),
    (
        &[
            "failover",
            "fail-over",
            "switchover",
            "switch-over",
            "promote",
            "demote",
            "primary",
            "master",
            "replicaof",
            "slaveof",
        ],
        "tembuku follows the primary and promotes none. A planned fail-over: `tembuku drain \
         UPSTREAM/BACKEND --close-after 5s --wait`, then promote the other server with its own \
         command (Redis: FAILOVER on the primary), then `tembuku ready UPSTREAM/BACKEND`",
    ),
    (
        &["scale", "set-weight", "set weight", "set server weight"],
        "`tembuku weight UPSTREAM/BACKEND N`",
    ),
    (
        &["add", "remove", "delete", "set", "edit", "apply"],
        "backends and listeners are changed in the file; then `tembuku reload`",
    ),
    (
        &["probe", "ping"],
        "`tembuku check --probe` asks every backend once",
    ),
    (
        &["pick", "route", "which", "simulate"],
        "`tembuku explain` says which backend a client gets",
    ),
    (
        &["convert", "migrate"],
        "`tembuku import` converts files of nginx and HAProxy",
    ),
    (&["version"], "`tembuku --version`"),
];

/// What there is for arguments of which the first is no command here: by the entry with the most
/// words.
pub(super) fn find(arguments: &[String]) -> Option<&'static str> {
    let arguments: Vec<String> = arguments.iter().map(|word| word.to_lowercase()).collect();
    let entries = WORDS
        .iter()
        .flat_map(|(entries, advice)| entries.iter().map(move |entry| (*entry, *advice)));
    let matching = entries.filter(|(entry, _)| is_match(entry, &arguments));
    let longest = matching.max_by_key(|(entry, _)| entry.split(' ').count());
    longest.map(|(_, advice)| advice)
}

/// Whether the arguments begin with the first word, and have the others in this order: what stands
/// between them are names.
fn is_match(entry: &str, arguments: &[String]) -> bool {
    let mut words = entry.split(' ');
    let mut rest = arguments.iter();
    words.next() == rest.next().map(String::as_str)
        && words.all(|word| rest.any(|argument| argument == word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::CommandFactory;
    use std::collections::BTreeSet;

    #[test]
    fn advice_names_commands_and_no_word_is_one() {
        let command = Cli::command();
        let names: BTreeSet<&str> = command
            .get_subcommands()
            .map(|sub| sub.get_name())
            .collect();
        let mut seen = BTreeSet::new();
        for (words, advice) in WORDS {
            for word in *words {
                assert!(!names.contains(word), "{word} is a command");
                assert!(seen.insert(*word), "{word} stands twice");
            }
            for quoted in advice.split('`').skip(1).step_by(2) {
                let mut parts = quoted.split_whitespace();
                if let (Some("tembuku"), Some(name)) = (parts.next(), parts.next()) {
                    assert!(names.contains(name) || name == "--version", "{quoted}");
                }
            }
        }
        for (word, part) in [
            ("undrain", "tembuku ready"),
            ("UP", "tembuku ready"),
            ("disable", "tembuku maint"),
            ("stop", "TERM"),
            ("failover", "A planned fail-over"),
            ("promote", "tembuku drain"),
            ("set weight redis/a 5", "tembuku weight"),
            ("set server redis/a weight 5", "tembuku weight"),
            ("set server redis/a state drain", "tembuku drain"),
            ("set server redis/a state maint", "tembuku maint"),
            ("set server redis/a state ready", "tembuku ready"),
            ("set maxconn", "tembuku reload"),
            ("disable server redis/a", "tembuku maint"),
            ("enable server redis/a", "tembuku ready"),
            ("show sess", "tembuku sessions"),
            ("show events", "tembuku events"),
            ("show stat", "tembuku status"),
            ("show servers state", "tembuku status"),
            ("shutdown sessions server redis/a", "tembuku kill"),
        ] {
            let arguments: Vec<String> = word.split(' ').map(str::to_owned).collect();
            assert!(
                find(&arguments).is_some_and(|advice| advice.contains(part)),
                "{word}"
            );
        }
        assert_eq!(find(&["nonsense".to_owned()]), None);
    }
}
