//! A check of kind `dns`.

use crate::{
    config::{
        keys::check::query_types,
        section::{Section, Text},
        text::{
            report::{Fault, fault},
            suggestions::{list, nearest, shorten},
        },
    },
    plan::{Addr, CheckAt, CheckKind, Rcode, RecordType, SendProxy, Target, Upstream},
};

/// Longest parts of a name, and a name without the dot at its end.
const LABEL: usize = 63;
const NAME: usize = 253;

pub(crate) fn read(section: &Section<'_>) -> CheckKind {
    let query = read_query(section);
    // The root has no address of its own, and every server that knows any name knows its servers.
    let default = if query == "." {
        RecordType::Ns
    } else {
        RecordType::A
    };
    CheckKind::Dns {
        query_type: read_type(section).unwrap_or(default),
        rcode: read_rcode(section),
        query,
    }
}

fn read_type(section: &Section<'_>) -> Option<RecordType> {
    RecordType::of_word(section.one_of("query_type", &query_types())?)
}

fn read_query(section: &Section<'_>) -> String {
    let Some(Text { text, span }) = section.text("query") else {
        return ".".to_owned();
    };
    if text != "." && !is_name(text) {
        section.report.add(
            &span,
            fault!("`query` = {} is no name", shorten(&format!("{text:?}"))).hint(
                "as in \"www.example.com\", characters beyond ASCII as xn--...; \".\" is the root",
            ),
        );
    }
    text.to_owned()
}

/// Whether DNS can have such a name, below the root.
pub(crate) fn is_name(text: &str) -> bool {
    let name = text.strip_suffix('.').unwrap_or(text);
    let fits = |label: &str| {
        (1..=LABEL).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_graphic() && b != b'\\')
    };
    name.len() <= NAME && name.split('.').all(fits)
}

/// One word, or a list of them.
fn read_rcode(section: &Section<'_>) -> Vec<Rcode> {
    if section.get("rcode").is_none() {
        return vec![Rcode::NoError];
    }
    let words = Rcode::ALL.map(Rcode::word);
    let mut accepted = Vec::new();
    for Text { text, span } in section.texts("rcode").unwrap_or_default() {
        match Rcode::of_word(text) {
            Some(rcode) => accepted.push(rcode),
            None => section.report.add(
                &span,
                fault!("`rcode` has no value {}", shorten(&format!("{text:?}"))).hint(
                    match nearest(text, &words) {
                        Some(near) => format!("did you mean {near:?}?"),
                        None => format!("one or more of: {}", list(words.iter().copied())),
                    },
                ),
            ),
        }
    }
    accepted
}

/// It is sent as a datagram.
pub(crate) fn check_upstream(upstream: &Upstream, section: &Section<'_>) {
    let Some(check) = upstream
        .check
        .as_ref()
        .filter(|check| matches!(check.kind, CheckKind::Dns { .. }))
    else {
        return;
    };
    let Some(value) = section.get("check") else {
        return;
    };
    let unix = |addr: &Addr| matches!(addr, Addr::Unix(_));
    let asked_on_unix = match &check.at {
        CheckAt::Addr(addr) => unix(addr),
        _ => (upstream.backends.iter())
            .any(|b| matches!(&b.target, Target::Addr(addr) if unix(addr))),
    };
    if asked_on_unix {
        let fault = Fault::new("kind = \"dns\" asks over UDP, which a unix socket is not")
            .hint("set the server's IP and port with `address`, as in \"10.0.0.1:53\"");
        section.report.add(&value.span(), fault);
    }
    if upstream.send_proxy != SendProxy::Off {
        let fault = Fault::new(
            "kind = \"dns\" with `send_proxy` is not supported yet: datagrams get no header",
        )
        .hint("use another kind, or leave `send_proxy` out");
        section.report.add(&value.span(), fault);
    }
}
