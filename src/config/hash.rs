//! A short name for a configuration, to compare processes by.

use super::dump;
use crate::plan::Plan;
use xxhash_rust::xxh3::xxh3_64;

/// The hash of the effective configuration, as 16 hexadecimal digits: equal for equal plans, on any
/// machine, whatever the order of listeners and of upstreams, and however the file is written.
/// Contents of other files do not count. Another version of the program may give another hash.
pub fn hash(plan: &Plan) -> String {
    let mut plan = plan.clone();
    plan.listeners.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    plan.upstreams.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    hash_text(&dump(&plan))
}

fn hash_text(text: &str) -> String {
    format!("{:016x}", xxh3_64(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    fn hash_of(text: &str) -> String {
        hash(&parse(text, "test").expect("valid"))
    }

    const ONE: &str = "[listeners.a]\nbind = \"127.0.0.1:1\"\nupstream = \"u\"\n";
    const TWO: &str = "[listeners.b]\nbind = \"127.0.0.1:2\"\nupstream = \"u\"\n";
    const UPSTREAM: &str = "[upstreams.u]\nbackends = [\"10.0.0.1:1\", \"10.0.0.2:1\"]\n";

    #[test]
    fn the_same_settings_have_the_same_hash_however_they_are_written() {
        let hash = hash_of(&format!("{ONE}{TWO}{UPSTREAM}"));
        assert_eq!(hash.len(), 16);
        for same in [
            format!("{UPSTREAM}{TWO}{ONE}"),
            format!("# a comment\n{ONE}idle_timeout = \"600s\"\n{TWO}{UPSTREAM}"),
            format!("[defaults]\nretries = 3\n{ONE}{TWO}{UPSTREAM}balance = \"round_robin\"\n"),
        ] {
            assert_eq!(hash_of(&same), hash, "{same}");
        }
    }

    #[test]
    fn every_change_has_another_hash() {
        let hash = hash_of(&format!("{ONE}{UPSTREAM}"));
        for other in [
            format!("{ONE}retries = 2\n{UPSTREAM}"),
            format!("{ONE}{TWO}{UPSTREAM}"),
            format!("[process]\nworkers = 2\n{ONE}{UPSTREAM}"),
            // Their order decides ties.
            format!("{ONE}[upstreams.u]\nbackends = [\"10.0.0.2:1\", \"10.0.0.1:1\"]\n"),
        ] {
            assert_ne!(hash_of(&other), hash, "{other}");
        }
    }

    #[test]
    fn the_hash_is_the_same_on_every_machine() {
        assert_eq!(hash_text(""), "2d06800538d394c2");
    }
}
