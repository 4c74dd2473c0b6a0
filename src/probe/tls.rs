//! TLS to a server that is checked.

mod end_point;

use super::line::Line;
use crate::{plan::Tls, sys::files};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{WebPkiSupportedAlgorithms, aws_lc_rs},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};
use std::{io, path::Path, sync::Arc};
use tokio_rustls::TlsConnector;

/// A larger file is no list of certificates.
const MOST_BYTES: u64 = 16 << 20;

/// How to get from a plain line to one inside TLS.
#[derive(Clone)]
pub struct Encryption {
    connector: TlsConnector,
    /// Who the server must be able to prove to be; `None`: the host or address that is asked.
    name: Option<ServerName<'static>>,
}

impl Encryption {
    /// `None` where there is to be none. The error tells what is wrong and where. A file may hang:
    /// call it by [`crate::sys::blocking`].
    pub fn load(tls: &Tls) -> Result<Option<Self>, String> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let algorithms = provider.signature_verification_algorithms;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| format!("TLS: {e}"))?;
        let (mut config, name) = match tls {
            Tls::Off => return Ok(None),
            Tls::Require => {
                let anybody = Arc::new(Anybody(algorithms));
                let builder = builder
                    .dangerous()
                    .with_custom_certificate_verifier(anybody);
                (builder.with_no_client_auth(), None)
            }
            Tls::Verify { ca, name } => {
                let roots = match ca {
                    Some(path) => read(path)?,
                    None => system()?,
                };
                let name = name.as_deref().map(server_name).transpose()?;
                let builder = builder.with_root_certificates(roots);
                (builder.with_no_client_auth(), name)
            }
        };
        // A session that is resumed shows no certificate: it would hide that it has expired, or
        // that it is another one.
        config.resumption = Resumption::disabled();
        Ok(Some(Self {
            connector: TlsConnector::from(Arc::new(config)),
            name,
        }))
    }

    /// The line inside TLS, and what a login over it can be bound to.
    pub(super) async fn begin(
        &self,
        line: Line,
        host: &str,
    ) -> io::Result<(Line, Option<Vec<u8>>)> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => server_name(host).map_err(io::Error::other)?,
        };
        let line = self.connector.connect(name, line).await?;
        let (_, connection) = line.get_ref();
        let own = connection.peer_certificates().and_then(<[_]>::first);
        // Only to a certificate that was proven to be the server's.
        let proven = own.filter(|certificate| is_readable(certificate));
        let end_point = proven.and_then(|certificate| end_point::of(certificate));
        Ok((Box::new(line), end_point))
    }
}

/// Whether an error came from TLS and not from the network; then in words.
pub(super) fn error(e: &io::Error) -> Option<String> {
    let tls = e.get_ref()?.downcast_ref::<rustls::Error>()?;
    let text = tls.to_string();
    // The library says only this, and its reader will look for what is wrong with the authority.
    let hint = match text.contains("CaUsedAsEndEntity") {
        true => {
            "; the server shows the certificate of an authority (CA:TRUE) as its own: issue one for the server, signed by \
                 that authority, or use tls = \"require\", which verifies nothing"
        }
        false => "",
    };
    Some(format!("{text}{hint}"))
}

/// A host name or an address, without a port.
fn server_name(text: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(text.to_owned())
        .map_err(|_| format!("{text:?} is no name for a certificate"))
}

fn read(path: &Path) -> Result<RootCertStore, String> {
    let problem = |e: &dyn std::fmt::Display| {
        format!(
            "`tls_ca`: cannot read certificates from {}: {e}",
            path.display()
        )
    };
    let pem = files::read(path, MOST_BYTES + 1).map_err(|e| problem(&e))?;
    if pem.len() as u64 > MOST_BYTES {
        return Err(problem(&format!(
            "it is larger than {} MiB",
            MOST_BYTES >> 20
        )));
    }
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|e| problem(&e))?;
        roots.add(certificate).map_err(|e| problem(&e))?;
    }
    if roots.is_empty() {
        return Err(problem(&"there is none in it"));
    }
    Ok(roots)
}

fn system() -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    // Some systems carry a few that are broken.
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err(
            "this system has no certificates to verify by: name a file with `tls_ca`".to_owned(),
        );
    }
    Ok(roots)
}

/// Whether a key can be found in it, to prove anything by: there are servers with certificates of
/// X.509 version 1, which this library does not read.
fn is_readable(certificate: &CertificateDer<'_>) -> bool {
    ParsedCertificate::try_from(certificate).is_ok()
}

/// Takes any certificate: against listeners on the way, not against those who put themselves in it.
/// So one that cannot be read need not be proven, either; but then no login is bound to it.
#[derive(Debug)]
struct Anybody(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if !is_readable(certificate) {
            return Ok(HandshakeSignatureValid::assertion());
        }
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if !is_readable(certificate) {
            return Ok(HandshakeSignatureValid::assertion());
        }
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
