//! Sections with pages of HAProxy itself, for which there is the section `admin`.

use super::syntax::Block;

/// What becomes of `stats auth`.
pub(super) const NO_LOGIN: &str =
    "[admin] listen has no login: bind it to an address that only operators reach";

/// What takes the place of a section that has such pages, and no servers.
pub(super) fn instead(block: &Block) -> Option<String> {
    let has = |words: &[&str]| {
        let mut lines = block.lines.iter();
        lines.any(|line| {
            words
                .iter()
                .enumerate()
                .all(|(n, word)| line.word(n) == *word)
        })
    };
    let servers = [
        "server",
        "server-template",
        "default_backend",
        "use_backend",
    ];
    let has_servers = servers.iter().any(|word| has(&[word]));
    if has_servers || block.last("default_backend").is_some() {
        return None;
    }
    let mut words = block.lines.iter().flat_map(|line| &line.words);
    let is_exporter = words.any(|word| word == "prometheus-exporter");
    if !has(&["stats"]) && !has(&["monitor-uri"]) && !is_exporter {
        return None;
    }
    let mut text =
        "[admin] listen takes its place, with a status page, /metrics and /readyz".to_owned();
    if has(&["stats", "auth"]) {
        text.push_str("; ");
        text.push_str(NO_LOGIN);
    }
    if has(&["stats", "admin"]) {
        text.push_str("; it is read only: `tembuku drain`, `maint` and `ready` use [admin] socket");
    }
    Some(text)
}
