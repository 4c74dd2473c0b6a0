//! TLS to a server that is checked, or asked for backends.

pub(super) mod end_point;

use super::connection::Connection;
use crate::{plan::Tls, sys::files};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{WebPkiSupportedAlgorithms, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};
use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio_rustls::TlsConnector;

/// A larger file is no list of certificates.
const MOST_BYTES: u64 = 16 << 20;

/// How TLS begins on a connection.
#[derive(Clone)]
pub struct Encryption {
    connector: TlsConnector,
    /// What certificates are verified by; `None`: they are not.
    roots: Option<Arc<RootCertStore>>,
    /// What the certificate must name; `None`: the host or address that is checked.
    name: Option<ServerName<'static>>,
}

impl Encryption {
    /// `None` where there is to be none. A file may hang: call it by [`crate::sys::blocking`].
    pub fn load(tls: &Tls) -> Result<Option<Self>, TlsError> {
        Self::load_with(tls, None)
    }

    /// The same with a certificate to show to the server.
    pub(crate) fn load_with(
        tls: &Tls,
        identity: Option<&Identity>,
    ) -> Result<Option<Self>, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let algorithms = provider.signature_verification_algorithms;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Library)?;
        let (builder, roots, name) = match tls {
            Tls::Off => return Ok(None),
            Tls::Require => {
                let any = Arc::new(AnyCertificate(algorithms));
                let builder = builder.dangerous().with_custom_certificate_verifier(any);
                (builder, None, None)
            }
            Tls::Verify { ca, name } => {
                let roots = match ca {
                    Some(path) => read(path)?,
                    None => system()?,
                };
                let roots = Arc::new(roots);
                let name = name.as_deref().map(server_name).transpose()?;
                let builder = builder.with_root_certificates(Arc::clone(&roots));
                (builder, Some(roots), name)
            }
        };
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let (chain, key) = identity.read()?;
                let shown = builder.with_client_auth_cert(chain, key);
                shown.map_err(|e| identity.problem(&identity.certificate, &e))?
            }
        };
        // A session that is resumed shows no certificate: it would hide that it has expired, or
        // that it is another one.
        config.resumption = Resumption::disabled();
        Ok(Some(Self {
            connector: TlsConnector::from(Arc::new(config)),
            roots,
            name,
        }))
    }

    /// Whether both verify certificates by the same ones, in any order.
    pub(super) fn has_roots_of(&self, other: &Self) -> bool {
        match (&self.roots, &other.roots) {
            (Some(one), Some(two)) => {
                let (one, two) = (&one.roots, &two.roots);
                one.len() == two.len() && one.iter().all(|root| two.contains(root))
            }
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        }
    }

    /// The connection inside TLS, and what a login over it can be bound to.
    pub(crate) async fn begin(
        &self,
        connection: Connection,
        host: &str,
    ) -> io::Result<(Connection, Option<Vec<u8>>)> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => server_name(host).map_err(io::Error::other)?,
        };
        let stream = self.connector.connect(name, connection).await?;
        let (_, session) = stream.get_ref();
        let own = session.peer_certificates().and_then(<[_]>::first);
        // Only to a certificate that was proven to be the server's.
        let proven = own.filter(|certificate| is_readable(certificate));
        let end_point = proven.and_then(|certificate| end_point::of(certificate));
        Ok((Box::new(stream), end_point))
    }
}

/// The files of a certificate and its key, to show to a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Identity {
    fn read(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
        let read = |path: &Path| files::read(path, MOST_BYTES).map_err(|e| self.problem(path, &e));
        let certificates = read(&self.certificate)?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&certificates).collect();
        let chain = chain.map_err(|e| self.problem(&self.certificate, &e))?;
        if chain.is_empty() {
            return Err(self.problem(&self.certificate, &"there is no certificate in it"));
        }
        let key = PrivateKeyDer::from_pem_slice(&read(&self.key)?);
        Ok((chain, key.map_err(|e| self.problem(&self.key, &e))?))
    }

    fn problem(&self, path: &Path, e: &dyn fmt::Display) -> TlsError {
        let key = if path == self.key { "key" } else { "cert" };
        TlsError::Identity(key, path.to_owned(), e.to_string())
    }
}

/// The text of an error of TLS; `None`: it came from the network.
pub(crate) fn error(e: &io::Error) -> Option<String> {
    let tls = e.get_ref()?.downcast_ref::<rustls::Error>()?;
    let text = tls.to_string();
    // The text of the library alone leads to a search for a mistake in the authority.
    let hint = match text.contains("CaUsedAsEndEntity") {
        true => {
            "; the server shows the certificate of an authority (CA:TRUE) as its own: issue one \
             for the server, signed by that authority, or use tls = \"require\", which \
             verifies nothing"
        }
        false => "",
    };
    Some(format!("{text}{hint}"))
}

/// A host name or an address, without a port.
fn server_name(text: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(text.to_owned()).map_err(|_| TlsError::Name(text.to_owned()))
}

fn read(path: &Path) -> Result<RootCertStore, TlsError> {
    let problem = |e: &dyn fmt::Display| TlsError::Certificates(path.to_owned(), e.to_string());
    let pem = files::read(path, MOST_BYTES).map_err(|e| problem(&e))?;
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

fn system() -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    // Some systems carry a few that are broken.
    roots.add_parsable_certificates(found.certs);
    match roots.is_empty() {
        true => Err(TlsError::NoSystemCertificates),
        false => Ok(roots),
    }
}

/// Why checks cannot use TLS as it is configured.
#[derive(Debug)]
pub enum TlsError {
    Library(rustls::Error),
    /// Not a name that a certificate can have.
    Name(String),
    /// Why no certificates could be read from this file.
    Certificates(PathBuf, String),
    NoSystemCertificates,
    /// The key of the configuration that names this file, and why it cannot be used.
    Identity(&'static str, PathBuf, String),
}

impl std::error::Error for TlsError {}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Library(e) => write!(f, "TLS: {e}"),
            Self::Name(text) => write!(f, "{text:?} is no name for a certificate"),
            Self::Certificates(path, why) => {
                let path = path.display();
                write!(f, "`tls_ca`: cannot read certificates from {path}: {why}")
            }
            Self::Identity(key, path, why) => {
                write!(f, "`{key}`: cannot use {}: {why}", path.display())
            }
            Self::NoSystemCertificates => f.write_str(
                "this system has no certificates to verify by: name a file with `tls_ca`",
            ),
        }
    }
}

/// Whether a key can be found in it, to prove anything by: there are servers with certificates of
/// X.509 version 1, which this library does not read.
fn is_readable(certificate: &CertificateDer<'_>) -> bool {
    ParsedCertificate::try_from(certificate).is_ok()
}

/// Accepts any certificate: this protects against eavesdropping, not against an active attack. So a
/// certificate that cannot be read need not be proven, either; but then no login is bound to it.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyCertificate {
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
