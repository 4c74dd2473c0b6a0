//! The status page, with nothing loaded from another host. Without its script it is a document that
//! is loaded again every two seconds; the script refreshes it in place (`page/live.js`).

use super::status;
use crate::{
    admin::format::{
        Availability, OperatorSettings, availability, earlier_settings, explain, listener_name,
        load, reasons, size, span,
    },
    control::State,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::header::HeaderValue;
use sha2::{Digest as _, Sha256};
use std::{fmt::Write as _, sync::LazyLock};

const STYLE: &str = include_str!("page/style.css");
const SCRIPT: &str = include_str!("page/live.js");
/// What the script fills, hidden until then.
const LIVE: &str = include_str!("page/live.html");

/// The script and the style of the page may run, and no other: what a backend sends cannot become
/// one.
pub(super) fn content_security_policy() -> HeaderValue {
    static POLICY: LazyLock<Option<HeaderValue>> = LazyLock::new(|| {
        let (script, style) = (source(SCRIPT), source(STYLE));
        let policy = format!(
            "default-src 'none'; script-src {script}; style-src {style}; img-src data:; \
             connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        );
        HeaderValue::from_str(&policy).ok()
    });
    let nothing = || HeaderValue::from_static("default-src 'none'");
    POLICY.clone().unwrap_or_else(nothing)
}

/// As a policy names a text.
fn source(text: &str) -> String {
    format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)))
}

pub(super) fn render(state: &State) -> String {
    let status = status::of(state);
    let p = &status.process;
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <noscript><meta http-equiv=\"refresh\" content=\"2\"></noscript>\
         <meta name=\"viewport\" content=\"width=device-width\"><title>tembuku</title>\
         <link rel=\"icon\" href=\"data:,\">\n<style>{STYLE}</style></head><body>\n\
         {LIVE}<main id=\"plain\">\n"
    );
    let _ = write!(
        out,
        "<h1>tembuku {}</h1><p>{}, up {} s, {} workers, {}, configuration {}. \
         <a href=\"/metrics\">metrics</a> · <a href=\"/api/v1/status\">JSON</a></p>",
        p.version,
        p.state,
        p.uptime_seconds,
        p.workers,
        load(
            p.connections,
            p.max_connections,
            p.flows,
            p.max_flows,
            status.listeners.iter().map(|l| l.protocol)
        ),
        p.config_hash
    );
    write_listeners(&mut out, &status.listeners);
    write_datagrams(&mut out, &status.listeners);
    for u in &status.upstreams {
        write_upstream(&mut out, u);
    }
    let _ = write!(out, "</main>\n<script>{SCRIPT}</script>\n</body></html>\n");
    out
}

fn write_listeners(out: &mut String, all: &[status::Listener]) {
    out.push_str(
        "<h2>Listeners</h2><table><tr><th>name<th>protocol<th>addresses<th>upstream\
         <th class=n>sessions<th class=n>total<th class=n>in<th class=n>out</tr>",
    );
    for l in all {
        let _ = write!(
            out,
            "<tr><td>{}<td>{}<td>{}<td>{}<td class=n>{}<td class=n>{}<td class=n>{}<td \
             class=n>{}</tr>",
            escape(&listener_name(&l.name, l.removed)),
            l.protocol,
            escape(&l.addresses.join(", ")),
            escape(&l.upstream),
            l.connections,
            l.accepted,
            size(l.received_bytes),
            size(l.sent_bytes)
        );
    }
    out.push_str("</table>");
    for l in all {
        if let Some(text) = earlier_settings(l.older_plan) {
            let _ = write!(out, "<p>listener {}: {text}</p>", escape(&l.name));
        }
    }
}

fn write_upstream(out: &mut String, u: &status::Upstream) {
    let _ = write!(
        out,
        "<h2>{} <small>({}, {})</small></h2>{}\
         <table><tr><th>backend<th>state<th>why<th>role<th>last check\
         <th class=n>weight<th class=n>sessions<th class=n>total<th class=n>failed\
         <th class=n>in<th class=n>out</tr>",
        escape(&u.name),
        u.balance,
        availability(&Availability {
            available: u.available as u64,
            total: named(&u.backends),
            full: u.full as u64,
            unproven: u.unproven as u64,
            unchecked: u.backends.iter().filter(|b| b.is_unchecked()).count(),
            queued: u.queued,
            held: u.held,
        }),
        u.discovery
            .as_ref()
            .map_or_else(String::new, describe_source)
    );
    for b in &u.backends {
        let settings = OperatorSettings {
            admin_state_since: b.admin_state_since.as_deref(),
            weight: b.weight.into(),
            weight_in_file: b.weight_in_file.into(),
            weight_since: b.weight_since.as_deref(),
        };
        let _ = write!(
            out,
            "<tr><td>{}{}<td class={state}>{state}{since}<td>{}<td>{}<td>{}\
             <td class=n>{}<td class=n>{}<td class=n>{}\
             <td class=n>{}<td class=n>{}<td class=n>{}</tr>",
            escape(&b.address),
            if b.backup { " (backup)" } else { "" },
            escape(&explain(&b.why, &settings)),
            b.role.join(", "),
            b.last_check.as_ref().map_or("", |c| c.result),
            b.weight,
            b.connections,
            b.connections_total,
            b.connect_errors_total,
            // What is sent to a backend came from clients.
            size(b.sent_bytes),
            size(b.received_bytes),
            state = b.state,
            since = since(b.state_seconds),
        );
    }
    out.push_str("</table>");
}

/// What there is to know about the source of backends.
fn describe_source(discovery: &status::Discovery) -> String {
    format!("<p>{}</p>", escape(&discovery.text()))
}

/// How many of them the configuration has.
fn named(backends: &[status::Backend]) -> usize {
    backends.iter().filter(|b| b.state != "removed").count()
}

fn since(seconds: Option<f64>) -> String {
    seconds.map_or_else(String::new, |seconds| format!(" for {}", span(seconds)))
}

fn write_datagrams(out: &mut String, listeners: &[status::Listener]) {
    if listeners.iter().all(|l| l.datagrams.is_none()) {
        return;
    }
    out.push_str(
        "<h2>Datagrams</h2><table><tr><th>listener<th class=n>received<th class=n>sent\
         <th class=n>dropped<th>for what reason</tr>",
    );
    for l in listeners {
        let Some(d) = &l.datagrams else {
            continue;
        };
        let dropped = d.dropped_by_reason.iter().map(|(&word, &n)| (word, n));
        let _ = write!(
            out,
            "<tr><td>{}<td class=n>{}<td class=n>{}<td class=n>{}<td>{}</tr>",
            escape(&l.name),
            d.received_datagrams,
            d.sent_datagrams,
            d.dropped_datagrams,
            reasons(dropped),
        );
    }
    out.push_str("</table>");
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::reason::{BackendState, Condition};

    #[test]
    fn hashes_are_written_as_policies_have_them() {
        // printf 'alert(1)' | openssl dgst -sha256 -binary | base64
        assert_eq!(
            source("alert(1)"),
            "'sha256-bhHHL3z2vDgxUt0W3dWQOrprscmda2Y5pLsLg4GF+pI='"
        );
    }

    #[test]
    fn the_page_knows_every_state() {
        let is_good = |state: &&BackendState| state.condition() == Condition::Good;
        let good = BackendState::ALL.iter().filter(is_good);
        let good: Vec<_> = good.map(|state| format!("{:?}", state.word())).collect();
        let list = format!("[{}].includes(e.to)", good.join(", "));
        assert!(SCRIPT.contains(&list), "{list}");
        for state in BackendState::ALL {
            let classes = STYLE.split(|c: char| !c.is_ascii_alphabetic() && !"._".contains(c));
            let class = format!(".{}", state.word());
            assert!(classes.into_iter().any(|one| one == class), "{class}");
        }
    }

    #[test]
    fn the_script_makes_no_markup_of_text() {
        for way in [
            "innerHTML",
            "outerHTML",
            "insertAdjacent",
            "document.write",
            "eval(",
        ] {
            assert!(!SCRIPT.contains(way), "{way}");
        }
        // It would end the element.
        assert!(!SCRIPT.contains("</"));
    }
}
