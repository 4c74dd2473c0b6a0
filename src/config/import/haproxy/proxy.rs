//! PROXY headers that a frontend expects, as `accept_proxy` of a listener.

use super::{
    super::document::Section,
    Import,
    access::is_expected,
    sources::NO_LIST,
    syntax::{Block, time},
};
use crate::config::text::quote::{quoted, quoted_list};

impl Import<'_> {
    /// Those that a rule expects, from some of the peers.
    pub(super) fn expect_proxy(&mut self, section: &mut Section, block: &Block) {
        let (mut trusted, mut first) = (Some(Vec::new()), None);
        for line in block.all().filter(|line| is_expected(line)) {
            if section.has("accept_proxy") {
                self.harmless(line, "`accept-proxy` expects a header from all peers");
                continue;
            }
            match self.lists.condition(block, line, 4) {
                Ok((false, networks)) => {
                    match networks.is_empty() {
                        true => trusted = None,
                        false => trusted
                            .iter_mut()
                            .for_each(|all| all.extend_from_slice(&networks)),
                    }
                    first.get_or_insert(&line.place);
                    self.carried(line);
                }
                Err(why) if why != NO_LIST => self.lost(line, &why),
                _ => {
                    let text = "`trust` of accept_proxy names the addresses of the proxies, and \
                                nothing else decides";
                    self.lost(line, text);
                }
            }
        }
        if let Some(place) = first {
            let trusted = trusted.unwrap_or_default();
            section.set("accept_proxy", accept_proxy(block, &trusted), place);
        }
        let conditions = block.all().filter(|line| is_expected(line));
        let names: Vec<&String> = conditions.flat_map(|line| &line.words).collect();
        for acl in block.all().filter(|line| line.word(0) == "acl") {
            if first.is_some() && names.iter().any(|name| *name == acl.word(1)) {
                self.carried(acl);
            }
        }
    }
}

/// The value of the key; nothing in `trusted`: all peers begin with a header.
pub(super) fn accept_proxy(block: &Block, trusted: &[String]) -> String {
    let mut fields = Vec::new();
    if !trusted.is_empty() {
        fields.push(format!("trust = {}", quoted_list(trusted)));
    }
    // HAProxy has no other limit for the header.
    let limit = block.last("timeout client").and_then(|l| time(l.word(2)));
    if let Some(limit) = limit.filter(|limit| limit != "0s") {
        fields.push(format!("timeout = {}", quoted(&limit)));
    }
    match fields.is_empty() {
        true => "true".to_owned(),
        false => format!("{{ {} }}", fields.join(", ")),
    }
}
