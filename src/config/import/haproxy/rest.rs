//! What remains of a section when its listener or upstream is made: each line is in a list.

use super::{
    CONDITION, Import, access::COUNTERS, admin::NO_LOGIN, backend::is_stick, check, log,
    syntax::Block,
};

/// Lines that need nothing, by their first words.
const HARMLESS: [(&str, &str); 20] = [
    ("description", "it is a comment"),
    ("fullconn", "limits do not depend on the load"),
    ("id", "names are enough"),
    ("option allbackups", "all backups serve together"),
    ("option clitcpka", "it is for clients"),
    ("option contstats", "bytes always count at once"),
    (
        "option log-health-checks",
        "changes of a check are always logged",
    ),
    ("option nolinger", "a reset is passed on as a reset"),
    ("option redispatch", "each attempt uses another backend"),
    ("option socket-stats", "every listener has metrics"),
    ("option splice-auto", "sustained flows are always spliced"),
    (
        "option splice-request",
        "sustained flows are always spliced",
    ),
    (
        "option splice-response",
        "sustained flows are always spliced",
    ),
    ("option srvtcpka", "it is for servers"),
    ("option tcp-smart-accept", "the kernel decides"),
    ("option tcp-smart-connect", "the kernel decides"),
    ("option abortonclose", "a session ends with its client"),
    ("option forwardfor", OF_HTTP),
    ("option prefer-last-server", OF_HTTP),
    ("redispatch", "each attempt uses another backend"),
];
const OF_HTTP: &str = "in `mode tcp` HAProxy ignores it";
const OF_HTTP_WORDS: [&str; 14] = [
    "capture",
    "compression",
    "cookie",
    "errorfile",
    "errorfiles",
    "errorloc",
    "errorloc302",
    "errorloc303",
    "http-after-response",
    "http-request",
    "http-response",
    "http-reuse",
    "monitor-uri",
    "reqadd",
];

impl Import<'_> {
    /// Lines of which nothing has been said so far.
    pub(super) fn rest(&mut self, block: &Block) {
        for line in block.all() {
            if self.document.is_noted(&line.place) {
                continue;
            }
            let key = line.key();
            let harmless = HARMLESS.iter().find(|(words, _)| *words == key);
            if let Some((_, why)) = harmless.filter(|_| line.word(0) != "no") {
                self.harmless(line, why);
                continue;
            }
            match (line.word(0), line.word(1)) {
                _ if log::KEYS.contains(&key.as_str()) => {
                    self.harmless(line, "the frontend decides what is recorded");
                }
                ("mode", "tcp") => self.harmless(line, "TCP is the default"),
                ("mode", _) => self.harmless(line, "the sections that are imported have another"),
                ("no", _) => self.harmless(line, "it is off"),
                ("timeout", _) => {
                    self.harmless(line, "no section that is imported depends on this value");
                }
                ("option", kind) if check::KINDS.contains(&kind) => {
                    self.harmless(
                        line,
                        "another check takes its place, or no server has `check`",
                    );
                }
                ("balance", _) if block.lines.iter().any(is_stick) => {
                    let text = "`stick on src` decides: a new client goes by its hash, too";
                    self.differs(line, text);
                }
                ("balance" | "hash-type", _) => {
                    self.harmless(line, "something else selects the backend");
                }
                ("tcp-check" | "http-check", _) => {
                    self.harmless(line, "the check that is imported is of another kind");
                }
                ("default_backend", _) => self.harmless(line, "of frontends the last one counts"),
                ("stats", "auth") => self.differs(line, NO_LOGIN),
                ("stats", _) => self.harmless(line, "[admin] listen has a status page"),
                ("option", option) if option.starts_with("http") => {
                    self.harmless(line, OF_HTTP);
                }
                ("http-request", action) if action.starts_with("track-sc") => {
                    let text = format!("{OF_HTTP}; {COUNTERS}");
                    self.harmless(line, &text);
                }
                (word, _) if OF_HTTP_WORDS.contains(&word) => self.harmless(line, OF_HTTP),
                // Without `stick` the table only counts.
                ("stick-table", _) if !block.all().any(|line| line.word(0) == "stick") => {
                    self.harmless(line, COUNTERS);
                }
                ("persist" | "stick" | "stick-table", _) => {
                    let text = "nothing is read ahead: balance = \"consistent_hash\" keeps the \
                                clients of an address at one server";
                    self.lost(line, text);
                }
                ("acl", _) => self.lost(line, "no rule that is carried over uses it"),
                (word, _) if word.starts_with('.') => self.lost(line, CONDITION),
                _ => self.lost(line, "no counterpart"),
            }
        }
    }
}
