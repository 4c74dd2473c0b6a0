//! What remains of a section when its listener or upstream is made: each line is in a list.

use super::{
    Import, LOG,
    frontend::only_backend,
    syntax::{Block, Line},
};

/// Lines that need nothing, by their first words.
const HARMLESS: [(&str, &str); 24] = [
    ("description", "it is a comment"),
    ("fullconn", "limits do not depend on the load"),
    ("id", "names are enough"),
    ("mode", "TCP is the default"),
    ("option allbackups", "all backups serve together"),
    ("option clitcpka", "it is for clients"),
    ("option contstats", "bytes always count at once"),
    ("option dontlog-normal", LOG_IS_OFF),
    ("option dontlognull", LOG_IS_OFF),
    (
        "option log-health-checks",
        "changes of a check are always logged",
    ),
    ("option log-separate-errors", LOG_IS_OFF),
    ("option logasap", LOG_IS_OFF),
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
    ("option http-server-close", "it is for HTTP"),
    ("option httpclose", "it is for HTTP"),
    ("option forwardfor", "it is for HTTP"),
];
const LOG_IS_OFF: &str = "the access log is off by default";

impl Import<'_> {
    /// Lines of which nothing has been said so far.
    pub(super) fn rest(&mut self, block: &Block) {
        let is_log = |line: &&Line| {
            let words = (line.word(0), line.word(1));
            line.word(0) == "log" || matches!(words, ("option", "tcplog" | "httplog"))
        };
        if let Some(line) = block.defaults.iter().find(is_log) {
            self.differs(line, LOG);
        }
        for line in &block.lines {
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
                ("no", _) => self.harmless(line, "it is off"),
                ("log" | "log-format" | "log-format-sd" | "log-tag", _)
                | ("option", "tcplog" | "httplog") => self.differs(line, LOG),
                ("timeout", _) => self.harmless(line, "no session waits for it"),
                ("default_backend", _) => self.carried(line),
                ("use_backend", _) if only_backend(block).is_some() => self.carried(line),
                ("http-request" | "http-response" | "http-after-response", _) => {
                    self.harmless(line, "in `mode tcp` HAProxy ignores it");
                }
                ("acl", _) => self.lost(line, "no rule that is carried over uses it"),
                _ => self.lost(line, "no counterpart"),
            }
        }
    }
}
