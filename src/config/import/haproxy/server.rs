//! A `server` line with its parameters.

use super::{super::document::Place, syntax::Line};

/// The parameters of servers that take a value.
const WITH_VALUE: [&str; 68] = [
    "addr",
    "agent-addr",
    "agent-inter",
    "agent-port",
    "agent-send",
    "ca-file",
    "alpn",
    "check-alpn",
    "check-proto",
    "check-sni",
    "ciphers",
    "ciphersuites",
    "client-sigalgs",
    "cookie",
    "crl-file",
    "crt",
    "curves",
    "downinter",
    "error-limit",
    "fall",
    "fastinter",
    "guid",
    "hash-key",
    "id",
    "idle-ping",
    "init-addr",
    "init-state",
    "inter",
    "log-bufsize",
    "log-proto",
    "max-reuse",
    "maxconn",
    "maxqueue",
    "minconn",
    "namespace",
    "npn",
    "observe",
    "on-error",
    "on-marked-down",
    "on-marked-up",
    "pool-conn-name",
    "pool-low-conn",
    "pool-max-conn",
    "pool-purge-delay",
    "port",
    "proto",
    "proxy-v2-options",
    "redir",
    "resolve-net",
    "resolve-opts",
    "resolve-prefer",
    "resolvers",
    "rise",
    "shard",
    "sigalgs",
    "slowstart",
    "sni",
    "socks4",
    "source",
    "ssl-max-ver",
    "ssl-min-ver",
    "tcp-md5sig",
    "tcp-ut",
    "track",
    "usesrc",
    "verifyhost",
    "weight",
    "ws",
];

/// A parameter of a server.
pub(super) struct Parameter {
    pub(super) name: String,
    /// Empty where it has none.
    pub(super) value: String,
    pub(super) place: Place,
}

/// A `server` with the parameters of `default-server` before its own.
pub(super) struct Server {
    pub(super) address: String,
    pub(super) place: Place,
    pub(super) parameters: Vec<Parameter>,
}

impl Server {
    /// `defaults`: the words of all `default-server` lines.
    pub(super) fn read(
        address: &str,
        line: &Line,
        own: usize,
        defaults: &[(String, Place)],
    ) -> Self {
        let own = line.words.get(own..).unwrap_or_default();
        let own = own.iter().map(|word| (word, &line.place));
        let mut parameters: Vec<Parameter> = Vec::new();
        let defaults = defaults.iter().map(|(word, place)| (word, place));
        let mut words = defaults.chain(own);
        while let Some((word, place)) = words.next() {
            let has_value = WITH_VALUE.contains(&word.as_str());
            let value = if has_value { words.next() } else { None };
            let off = word.strip_prefix("no-").unwrap_or(word);
            parameters.retain(|known| known.name != *word && known.name != off);
            if off == word || word == "no-check" {
                parameters.push(Parameter {
                    name: word.clone(),
                    value: value.map_or_else(String::new, |(value, _)| value.clone()),
                    place: place.clone(),
                });
            }
        }
        let (address, place) = (address.to_owned(), line.place.clone());
        Self {
            address,
            place,
            parameters,
        }
    }

    fn find(&self, name: &str) -> Option<&Parameter> {
        self.parameters.iter().find(|known| known.name == name)
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.find(name).map(|found| found.value.as_str())
    }

    /// How many connections it may have; 0: any number. HAProxy takes `minconn` for that where it
    /// is the larger one, or alone.
    pub(super) fn limit(&self) -> u64 {
        let number = |name| self.get(name).and_then(|value| value.parse::<u64>().ok());
        number("maxconn").max(number("minconn")).unwrap_or(0)
    }

    /// Where a parameter stands; without it the server.
    pub(super) fn place_of(&self, name: &str) -> &Place {
        self.find(name).map_or(&self.place, |found| &found.place)
    }

    pub(super) fn is_checked(&self) -> bool {
        self.get("check").is_some()
    }
}
