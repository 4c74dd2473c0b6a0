//! A `server` line with its parameters.

use super::{super::document::Place, syntax::Line};

/// The parameters of servers that take a value.
const WITH_VALUE: [&str; 32] = [
    "addr",
    "agent-addr",
    "agent-inter",
    "agent-port",
    "agent-send",
    "ca-file",
    "check-alpn",
    "check-proto",
    "check-sni",
    "cookie",
    "crt",
    "downinter",
    "error-limit",
    "fall",
    "fastinter",
    "id",
    "init-addr",
    "inter",
    "maxconn",
    "maxqueue",
    "minconn",
    "observe",
    "on-error",
    "on-marked-down",
    "on-marked-up",
    "port",
    "resolve-net",
    "resolve-prefer",
    "resolvers",
    "rise",
    "slowstart",
    "weight",
];

/// A `server` with the parameters of `default-server` before its own.
pub(super) struct Server {
    pub(super) address: String,
    pub(super) place: Place,
    pub(super) parameters: Vec<(String, String)>,
}

impl Server {
    pub(super) fn read(address: &str, line: &Line, own: usize, defaults: &[String]) -> Self {
        let own = line.words.get(own..).unwrap_or_default();
        let mut parameters: Vec<(String, String)> = Vec::new();
        let mut words = defaults.iter().chain(own);
        while let Some(word) = words.next() {
            let has_value = WITH_VALUE.contains(&word.as_str()) || word == "source";
            let value = if has_value { words.next() } else { None };
            let off = word.strip_prefix("no-").unwrap_or(word);
            parameters.retain(|(name, _)| name != word && name != off);
            if off == word || word == "no-check" {
                parameters.push((word.clone(), value.cloned().unwrap_or_default()));
            }
        }
        let (address, place) = (address.to_owned(), line.place.clone());
        Self {
            address,
            place,
            parameters,
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let found = self.parameters.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    pub(super) fn is_checked(&self) -> bool {
        self.get("check").is_some()
    }
}
