//! Whether a check is encrypted, and which certificates it trusts.

use crate::{
    config::{
        check::path::read_absolute,
        keys::words::TlsMode,
        section::{Section, Text},
        text::report::fault,
    },
    plan::Tls,
};
use rustls::pki_types::ServerName;

pub(crate) fn read(section: &Section<'_>) -> Tls {
    match section.word("tls", TlsMode::Off) {
        TlsMode::Off => Tls::Off,
        TlsMode::Require => Tls::Require,
        TlsMode::Verify => Tls::Verify {
            ca: read_absolute(
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
        let fault = fault!("`tls_name` = {text:?} is no name for a certificate").hint(
            "the name or address in the server's certificate, without a port, as in \
                \"db.example.com\"",
        );
        section.report.add(&span, fault);
    }
    Some(text.to_owned())
}
