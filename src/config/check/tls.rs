//! Whether a check is encrypted, and whom it trusts.

use crate::{
    config::{
        check::kind::absolute,
        section::{Section, Text, Words},
        text::report::Fault,
    },
    plan::Tls,
};
use rustls::pki_types::ServerName;

#[derive(Clone, Copy)]
enum Mode {
    Off,
    Require,
    Verify,
}

const MODES: &Words<Mode> = &[
    ("off", Some(Mode::Off)),
    ("require", Some(Mode::Require)),
    ("verify", Some(Mode::Verify)),
];

pub(crate) fn read(section: &Section<'_>) -> Tls {
    let mode = section.word("tls", Mode::Off, MODES);
    if !matches!(mode, Mode::Verify) {
        for key in ["tls_ca", "tls_name"] {
            if let Some(value) = section.get(key) {
                let fault = Fault::new(format!("`{key}` does nothing without tls = \"verify\""))
                    .hint("say tls = \"verify\", or leave it out");
                section.report.add(&value.span(), fault);
            }
        }
    }
    match mode {
        Mode::Off => Tls::Off,
        Mode::Require => Tls::Require,
        Mode::Verify => Tls::Verify {
            ca: absolute(
                section,
                "tls_ca",
                "a file of certificates in PEM, as in \"/etc/tembuku/ca.pem\"",
            ),
            name: read_name(section),
        },
    }
}

fn read_name(section: &Section<'_>) -> Option<String> {
    let Text { text, span } = section.text("tls_name")?;
    // An address is a name, too.
    if ServerName::try_from(text).is_err() {
        let fault = Fault::new(format!("`tls_name` = {text:?} is no name for a certificate"))
            .hint("the name or address in the server's certificate, without a port, as in \"db.example.com\"");
        section.report.add(&span, fault);
    }
    Some(text.to_owned())
}
