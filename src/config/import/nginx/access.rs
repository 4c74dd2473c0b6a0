//! `allow` and `deny` as `access` of a listener, and what else nginx refuses clients by.

use super::{
    super::document::{List, Place, Section, network, undecided},
    Directive, Import, Scope,
};
use crate::config::{text::quote::quoted, value::access::INSTEAD};

const UNDECIDED: &str = "without it clients would be served that nginx refuses: `check` refuses \
                         the result until that is decided";

impl<'a> Import<'a> {
    pub(super) fn access(&mut self, section: &mut Section, server: &'a Directive, scope: &Scope) {
        let mut list = Vec::new();
        let pass = scope.last("proxy_pass").map(|pass| &pass.place);
        let of_all = self.guards_of_all.clone().into_iter();
        for guard in of_all.chain(guards(server.inside(), pass)) {
            self.undecided(guard, &mut list);
        }
        for rule in scope.all("access") {
            let peers = match rule.first() {
                "all" => Some("all".to_owned()),
                "unix:" => Some("unix".to_owned()),
                peers => network(peers),
            };
            match peers {
                Some(peers) => {
                    let text = quoted(&format!("{} {peers}", rule.name));
                    list.push((text, rule.place.to_string()));
                    self.carried(rule);
                }
                None => self.undecided(rule, &mut list),
            }
        }
        if !list.is_empty() {
            section.set_list("access", list);
        }
    }

    fn undecided(&mut self, rule: &Directive, list: &mut Vec<(String, String)>) {
        let text = format!("{} {}", rule.name, rule.text());
        list.push(undecided(&rule.place, &text));
        let text = format!("{UNDECIDED}; {INSTEAD}");
        self.document.note(List::Lost, &rule.place, text);
    }
}

/// What may refuse clients, and has no counterpart. `pass`: the `proxy_pass` of the server, whose
/// `location` is looked into.
pub(super) fn guards<'a>(block: &'a [Directive], pass: Option<&Place>) -> Vec<&'a Directive> {
    let (mut guards, mut blocks) = (Vec::new(), vec![block]);
    let mut next = 0;
    while let Some(block) = blocks.get(next).copied() {
        for directive in block.iter().filter(|d| d.name != "server") {
            let is_location = directive.name == "location";
            let mut inside = directive.inside().iter();
            if is_location && inside.any(|d| Some(&d.place) == pass) {
                blocks.push(directive.inside());
            } else if is_guard(directive) || is_location && has_rule(directive) {
                guards.push(directive);
            }
        }
        next += 1;
    }
    guards
}

fn is_guard(directive: &Directive) -> bool {
    let (name, first) = (directive.name.as_str(), directive.first());
    match name {
        "js_access" | "js_preread" | "limit_except" => true,
        "auth_basic" | "auth_jwt" | "auth_request" => first != "off",
        "satisfy" => first == "any",
        "if" => has_rule(directive),
        "return" => first.starts_with('4'),
        // Of a file that is not here nothing is known.
        "include" => directive.is_missing(),
        name => ["access_by_lua", "preread_by_lua", "rewrite_by_lua"]
            .iter()
            .any(|begin| name.starts_with(begin)),
    }
}

fn has_rule(block: &Directive) -> bool {
    let inside = block.all_inside();
    let mut inside = inside.iter();
    inside.any(|d| d.name == "deny" || d.name == "allow" || is_guard(d))
}
