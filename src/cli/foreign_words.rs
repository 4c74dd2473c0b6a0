//! Commands of other programs (HAProxy, nginx, kubectl, systemctl) and what does the same here.

/// Words, and what there is for them.
const WORDS: &[(&[&str], &str)] = &[
    (
        &[
            "undrain", "up", "enable", "uncordon", "resume", "unpause", "activate",
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
        ],
        "`tembuku drain UPSTREAM/BACKEND` gives a backend nothing new, `tembuku maint` stops its \
         checks as well",
    ),
    (&["maintenance"], "`tembuku maint UPSTREAM/BACKEND`"),
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
        &["conn", "conns", "connections", "sess", "clients", "flows"],
        "`tembuku sessions` shows live sessions and their clients",
    ),
    (
        &["log", "logs", "journal", "history", "watch", "tail"],
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
        &["close", "cut", "disconnect", "terminate", "drop"],
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
        &["scale", "set-weight"],
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

/// What there is for a word that is no command here.
pub(super) fn find(word: &str) -> Option<&'static str> {
    let word = word.to_lowercase();
    let mut rows = WORDS.iter();
    let row = rows.find(|(words, _)| words.contains(&&*word));
    row.map(|(_, advice)| *advice)
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
        ] {
            assert!(
                find(word).is_some_and(|advice| advice.contains(part)),
                "{word}"
            );
        }
        assert_eq!(find("nonsense"), None);
    }
}
