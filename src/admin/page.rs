//! The status page, without scripts and without anything loaded from another host.

use super::status;
use crate::{
    admin::format::{
        OperatorSettings, availability, explain, listener_name, load, reasons, sessions, size,
    },
    control::State,
};
use std::fmt::Write as _;

const HEAD: &str = r#"<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="2">
<meta name="viewport" content="width=device-width"><title>tembuku</title>
<style>
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1b2a33}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3rem .8rem;border-bottom:1px solid #d8e0e4}
th{font-weight:600;color:#5a6b75}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.up{color:#0a7a45}.standby{color:#33658a}.failed,.wrong_role,.doubtful{color:#b3261e;font-weight:600}.unproven,.disabled,.down,.lagging,.drained,.maintenance,.removed{color:#8a6d00}
</style></head><body>
"#;

pub(super) fn render(state: &State) -> String {
    let status = status::of(state);
    let mut out = String::from(HEAD);
    let p = &status.process;
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
    out.push_str(
        "<h2>Listeners</h2><table><tr><th>name<th>protocol<th>addresses<th>upstream<th class=n>sessions\
         <th class=n>accepted<th class=n>received<th class=n>sent</tr>",
    );
    for l in &status.listeners {
        let _ = write!(
            out,
            "<tr><td>{}<td>{}<td>{}<td>{}<td class=n>{}<td class=n>{}<td class=n>{}<td \
             class=n>{}</tr>",
            escape(&listener_name(&l.name, l.removed)),
            l.protocol,
            escape(&l.addresses.join(", ")),
            escape(&l.upstream),
            sessions(l.connections, l.older_plan),
            l.accepted,
            size(l.received_bytes),
            size(l.sent_bytes)
        );
    }
    out.push_str("</table>");
    datagrams(&mut out, &status.listeners);
    for u in &status.upstreams {
        let _ = write!(
            out,
            "<h2>{} <small>({}, {})</small></h2><table><tr><th>backend<th>state<th>why<th>role<th>last check\
             <th class=n>weight<th class=n>sessions<th class=n>connects<th class=n>failed\
             <th class=n>received<th class=n>sent</tr>",
            escape(&u.name),
            u.balance,
            availability(
                u.available as u64,
                named(&u.backends),
                u.full as u64,
                u.queued,
                u.held
            )
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
                "<tr><td>{}{}<td class={state}>{state}<td>{}<td>{}<td>{}<td class=n>{}<td class=n>{}<td class=n>{}\
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
                size(b.received_bytes),
                size(b.sent_bytes),
                state = b.state,
            );
        }
        out.push_str("</table>");
    }
    out.push_str("</body></html>\n");
    out
}

/// How many of them the configuration has.
fn named(backends: &[status::Backend]) -> usize {
    backends.iter().filter(|b| b.state != "removed").count()
}

fn datagrams(out: &mut String, listeners: &[status::Listener]) {
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
