//! `tcp-request` rules that look at the source address alone, as `access` of a listener.

use super::{
    super::document::{self, Place, Section},
    Import,
    sources::{Lists, NO_LIST},
    syntax::{Block, Line},
};
use crate::config::{text::quote::quoted, value::access::INSTEAD};
use std::collections::HashSet;

/// `accept` or `reject`, of clients in some networks or outside of them.
struct Rule<'a> {
    rejects: bool,
    /// It is for clients that are in none of the networks.
    is_outside: bool,
    /// None: for all clients.
    networks: Vec<String>,
    line: &'a Line,
}

impl Import<'_> {
    /// Rules for connections, then those for the content, of the frontend and of its backend.
    /// `is_only`: the frontend becomes one listener.
    pub(super) fn access(
        &mut self,
        section: &mut Section,
        block: &Block,
        target: &Block,
        is_only: bool,
    ) {
        let mut blocks = vec![block];
        if !std::ptr::eq(block, target) {
            blocks.push(target);
        }
        let is_rule = |line: &&Line| line.word(0) == "tcp-request";
        let all = || blocks.iter().flat_map(|block| block.all()).filter(is_rule);
        let has_reject = all().any(|line| rejects(line) == Some(true));
        let has_proxy = section.has("accept_proxy");
        let mut sets: Vec<Vec<Rule<'_>>> = Vec::new();
        // Without them clients would be served that HAProxy refuses.
        let mut undecided: Vec<(&Line, String)> = Vec::new();
        for (kind, block) in ["connection", "session", "content"]
            .into_iter()
            .flat_map(|kind| blocks.iter().map(move |block| (kind, *block)))
        {
            let lines = block.all();
            let lines = lines.filter(|l| l.word(0) == "tcp-request" && l.word(1) == kind);
            let lines = lines.filter(|line| !is_expected(line));
            let mut set = Vec::new();
            for line in lines {
                // Of the peer, and not of the client in its header.
                let is_of_peer = has_proxy && kind == "connection";
                let can_limit = is_only && !has_proxy && !section.has(PER_SOURCE);
                if let Some(most) = source_limit(block, line).filter(|_| can_limit) {
                    section.set(PER_SOURCE, most, &line.place);
                    self.refusal(line);
                    continue;
                }
                let Some(rejects) = rejects(line) else {
                    match line.word(2).starts_with("track-sc") {
                        true => self.harmless(line, COUNTERS),
                        false => self.lost(line, "no rule that is carried over depends on it"),
                    }
                    continue;
                };
                let read = match is_of_peer {
                    true => Err(OF_PEER.to_owned()),
                    false => rule(&self.lists, block, line, rejects),
                };
                match read {
                    Ok(rule) => set.push(rule),
                    // Without it the client is let pass as well, after a look at the content.
                    Err(_) if !has_reject => self.harmless(line, "nothing is rejected after it"),
                    Err(why) => undecided.push((line, why)),
                }
            }
            sets.push(set);
        }
        sets.retain(|set| !set.is_empty());
        for line in all().filter(|line| line.word(1) == "inspect-delay") {
            self.harmless(line, "no rule that is carried over looks at the content");
        }
        let list = joined(&sets);
        for rule in sets.iter().flatten() {
            match list.is_some() {
                true if rule.rejects => self.refusal(rule.line),
                true => self.carried(rule.line),
                false => undecided.push((rule.line, NO_LIST.to_owned())),
            }
        }
        undecided.sort_by(|(a, _), (b, _)| a.place.cmp(&b.place));
        undecided.dedup_by(|(a, _), (b, _)| a.place == b.place);
        for (line, why) in &undecided {
            let text = match limit_instead(&blocks, line) {
                Some(key) => format!(
                    "`{key}` limits by it: {UNDECIDED}; write that into the listener, and take \
                     \"undecided\" out"
                ),
                None => format!("{why}: {UNDECIDED}; {INSTEAD}"),
            };
            self.lost(line, &text);
        }
        let undecided = undecided
            .iter()
            .map(|(line, _)| document::undecided(&line.place, &line.text()));
        let rules = list.unwrap_or_default().into_iter();
        let rules = rules.map(|(rule, place)| (rule, place.to_string()));
        let rules: Vec<_> = undecided.chain(rules).collect();
        if !rules.is_empty() {
            section.set_list("access", rules);
        }
        let words = sets.iter().flatten().flat_map(|rule| &rule.line.words);
        let words: HashSet<&str> = words.map(|word| word.trim_start_matches('!')).collect();
        let is_used = |acl: &&Line| acl.word(0) == "acl" && words.contains(acl.word(1));
        for line in blocks.iter().flat_map(|block| block.all()).filter(is_used) {
            self.carried(line);
        }
    }
}

impl Import<'_> {
    /// What a client sees that a rule refuses.
    fn refusal(&mut self, line: &Line) {
        match (line.word(1), line.word(2)) {
            (_, "silent-drop") => self.differs(line, DROPPED),
            ("connection", _) => self.differs(line, RESET),
            _ => self.carried(line),
        }
    }
}

/// As HAProxy and tembuku were seen to refuse clients; docs/coming-from-haproxy.md has all of it.
const RESET: &str = "the connection of a client that it refuses is ended, by HAProxy reset";
const DROPPED: &str = "the connection of a client that it refuses is ended, of which HAProxy tells \
                       the client nothing";
const OF_PEER: &str = "it looks at the peer, `access` at the client in the PROXY header";
/// What the action of a script begins with.
const SCRIPT: &str = "lua.";
const UNDECIDED: &str = "`check` refuses the result until that is decided";
/// What becomes of counters of clients.
pub(super) const COUNTERS: &str = "`connection_rate_per_source` and `max_connections_per_source` \
                                   count clients without a table";

const PER_SOURCE: &str = "max_connections_per_source";

/// How many connections of a source a rule allows that does nothing else: the section counts each
/// one, before the rule and in a table of its own.
fn source_limit(block: &Block, line: &Line) -> Option<u32> {
    let words: Vec<&str> = line.words.iter().map(String::as_str).collect();
    let [
        "tcp-request",
        "connection",
        "reject",
        "if",
        "{",
        what,
        how,
        most,
        "}",
    ] = words[..]
    else {
        return None;
    };
    let between = |begin, end| what.strip_prefix(begin)?.strip_suffix(end);
    let counter = match what {
        // What any of them has counted.
        "src_conn_cur" => "",
        _ => between("sc_conn_cur(", ")").or(between("sc", "_conn_cur"))?,
    };
    let most: u32 = most.parse().ok()?;
    let most = match how {
        "gt" => most,
        "ge" => most.checked_sub(1)?,
        _ => return None,
    };
    let track = |rule: &Line| rule.word(2).strip_prefix("track-sc").map(str::to_owned);
    let is_track = |rule: &Line| {
        let number = track(rule).unwrap_or_default();
        rule.text() == format!("tcp-request connection track-sc{number} src")
            && (counter.is_empty() || number == counter)
    };
    // What is accepted before it has no limit.
    let rules = || block.all().filter(|rule| rule.word(0) == "tcp-request");
    let before: Vec<&Line> = rules()
        .take_while(|rule| rule.place != line.place)
        .filter(|rule| rule.word(1) == "connection")
        .collect();
    let is_counted = before.iter().filter(|rule| is_track(rule)).count() == 1
        && before
            .iter()
            .all(|rule| rejects(rule) == Some(true) || is_track(rule))
        && rules().filter(|rule| track(rule).is_some()).count() == 1;
    (is_counted && most > 0 && counts_connections(block)).then_some(most)
}

/// Whether the table of the section has the connections of each address.
fn counts_connections(block: &Block) -> bool {
    let mut tables = block.all().filter(|line| line.word(0) == "stick-table");
    tables.any(|table| {
        let mut words = table.words.iter().map(String::as_str);
        let is_by_address = ["ip", "ipv6"].contains(&table.word(2)) && table.word(1) == "type";
        let stored = words.by_ref().skip_while(|word| *word != "store").nth(1);
        is_by_address && stored.is_some_and(|what| what.split(',').any(|one| one == "conn_cur"))
    })
}

/// The key of a listener that limits what the rule looks at, also by the `acl` that it names.
fn limit_instead(blocks: &[&Block], line: &Line) -> Option<&'static str> {
    let names = line.words.iter().skip(3);
    let names = names.map(|word| word.trim_start_matches('!'));
    let acls = names.flat_map(|name| blocks.iter().flat_map(move |block| block.acls(name)));
    let mut words = [line].into_iter().chain(acls).flat_map(|line| &line.words);
    words.find_map(|word| {
        let word = word.trim_start_matches('!');
        let of_source = word.starts_with("sc") || word.starts_with("src_");
        let counts = |kinds: [&str; 3]| kinds.iter().any(|kind| word.contains(kind));
        if of_source && counts(["conn_rate", "sess_rate", "http_req_rate"]) {
            Some("connection_rate_per_source")
        } else if of_source && counts(["conn_cur", "sess_cur", "trackers"]) {
            Some(PER_SOURCE)
        } else if word.starts_with("fe_sess_rate") || word.starts_with("fe_conn_rate") {
            Some("connection_rate")
        } else {
            None
        }
    })
}

/// Whether the rule has a frontend expect PROXY headers.
pub(super) fn is_expected(line: &Line) -> bool {
    line.word(0) == "tcp-request" && line.word(2) == "expect-proxy"
}

/// Whether a rule refuses clients, or lets them pass; `None`: it decides nothing.
fn rejects(line: &Line) -> Option<bool> {
    match line.word(2) {
        "reject" | "silent-drop" => Some(true),
        "accept" => Some(false),
        script if script.starts_with(SCRIPT) => Some(true),
        _ => None,
    }
}

/// One list, of which the first match decides, for sets that all have to let a client pass. `None`:
/// there is none.
fn joined(sets: &[Vec<Rule<'_>>]) -> Option<Vec<(String, Place)>> {
    let mut list: Vec<(String, Place)> = Vec::new();
    for (n, set) in sets.iter().enumerate() {
        // A client that has been let pass would not get to this one.
        let only_denies = list.iter().all(|(rule, _)| rule.starts_with("\"deny"));
        if n > 0 && !only_denies {
            return None;
        }
        let mut rest = set.iter().peekable();
        // What is behind the rules that follow.
        let mut last: Vec<(String, Place)> = Vec::new();
        while let Some(rule) = rest.next() {
            let lines = |word: &str, networks: &[String]| {
                let all = ["all".to_owned()];
                let networks = if networks.is_empty() { &all } else { networks };
                let text = |network: &String| quoted(&format!("{word} {network}"));
                let place = rule.line.place.clone();
                let lines = networks.iter().map(text);
                lines.map(|text| (text, place.clone())).collect::<Vec<_>>()
            };
            match (rule.rejects, rule.is_outside) {
                // Within the networks the rules that follow decide first.
                (true, true) if last.is_empty() => {
                    last = lines("allow", &rule.networks);
                    last.extend(lines("deny", &[]));
                }
                (true, true) => return None,
                (true, false) => list.extend(lines("deny", &rule.networks)),
                // It would let clients pass that `last` refuses.
                (false, _) if !last.is_empty() => return None,
                (false, false) => list.extend(lines("allow", &rule.networks)),
                // Those within the networks are refused by what follows, or by nothing.
                (false, true) => {
                    let all = rest.next_if(|next| next.rejects && next.networks.is_empty());
                    all?;
                    list.extend(lines("deny", &rule.networks));
                    list.extend(lines("allow", &[]));
                }
            }
        }
        list.extend(last);
    }
    Some(list)
}

/// `tcp-request KIND accept|reject [if|unless CONDITION]`. The error is why it is no rule by the
/// source address.
fn rule<'a>(
    lists: &Lists,
    block: &'a Block,
    line: &'a Line,
    rejects: bool,
) -> Result<Rule<'a>, String> {
    if line.word(2).starts_with(SCRIPT) {
        return Err("a script may refuse clients".to_owned());
    }
    let (is_outside, networks) = lists.condition(block, line, 3)?;
    Ok(Rule {
        rejects,
        is_outside,
        networks,
        line,
    })
}
