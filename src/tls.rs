//! TLS for every connection: rustls with aws-lc-rs, versions 1.2 and 1.3, certificates from PEM files that are read again
//! for each connection, so that they can be replaced while the relay runs.

use std::error::Error;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig,
    SignatureScheme,
};

use crate::config::{Identity, Tls};

/// How one side of the relay names what can be done about a failed handshake.
#[derive(Debug, Clone, Copy)]
pub struct Variables {
    /// Names the authorities.
    pub ca: &'static str,
    /// Names the relay's own certificate.
    pub certificate: &'static str,
    /// What to do where the certificate is for another name.
    pub name: &'static str,
}

/// Those of the broker.
pub const BROKER: Variables = Variables {
    ca: "RELAY_AMQP_CA_FILE",
    certificate: "RELAY_AMQP_CLIENT_CERT_FILE and RELAY_AMQP_CLIENT_KEY_FILE",
    name: "connect by a name that is in it, or set RELAY_AMQP_SERVER_NAME to one",
};

/// Those of the database.
pub const DATABASE: Variables = Variables {
    ca: "RELAY_DATABASE_CA_FILE",
    certificate: "RELAY_DATABASE_CLIENT_CERT_FILE and RELAY_DATABASE_CLIENT_KEY_FILE",
    name: "connect by a name that is in it",
};

/// A client's side: whom it trusts, and who it is.
///
/// # Errors
/// For files that cannot be read or used; the text says which, and quotes nothing of them.
pub fn client(tls: &Tls) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    for authority in authorities(tls)? {
        // Of the system's, some may be too old for the library. The relay's own were checked.
        let _ = roots.add(authority);
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    match &tls.identity {
        Some(identity) => {
            let (certificates, key) = pair(identity)?;
            config
                .with_client_auth_cert(certificates, key)
                .map_err(|error| unfit(identity, &error))
        }
        None => Ok(config.with_no_client_auth()),
    }
}

/// A client that trusts the one certificate of this file, whatever names it has.
///
/// # Errors
/// As for [`client`].
pub fn client_of(identity: &Identity) -> Result<ClientConfig, String> {
    let certificate = certificates(&read(&identity.cert_file)?)
        .map_err(|problem| of(&identity.cert_file, &problem))?
        .swap_remove(0);
    let provider = provider();
    let pinned = Pinned {
        certificate,
        algorithms: provider.signature_verification_algorithms,
    };
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(pinned))
        .with_no_client_auth())
}

/// A server's side, without asking clients who they are.
///
/// # Errors
/// As for [`client`].
pub fn server(identity: &Identity) -> Result<ServerConfig, String> {
    let (certificates, key) = pair(identity)?;
    ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .map_err(|error| unfit(identity, &error))
}

/// The authorities of the file, or else the system's.
///
/// # Errors
/// As for [`client`]; where the system has none, the text says what to do.
pub fn authorities(tls: &Tls) -> Result<Vec<CertificateDer<'static>>, String> {
    let Some(file) = &tls.ca_file else {
        let found = rustls_native_certs::load_native_certs().certs;
        return match found.is_empty() {
            true => Err("this system has no certificate authorities (Debian: install ca-certificates)".to_owned()),
            false => Ok(found),
        };
    };
    let pem = read(file)?;
    check_authorities(&pem).map_err(|problem| of(file, &problem))?;
    certificates(&pem).map_err(|problem| of(file, &problem))
}

/// Whether certificate and key belong together.
///
/// # Errors
/// As for [`client`].
pub fn certified_key(identity: &Identity) -> Result<CertifiedKey, String> {
    let (certificates, key) = pair(identity)?;
    CertifiedKey::from_der(certificates, key, &provider()).map_err(|error| unfit(identity, &error))
}

/// Whether these are certificates of authorities, in PEM.
///
/// # Errors
/// What is wrong, to follow the file's name.
pub fn check_authorities(pem: &[u8]) -> Result<(), String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots
            .add(certificate)
            .map_err(|_| "holds a certificate that cannot be read".to_owned())?;
    }
    Ok(())
}

/// Whether these are certificates, in PEM.
///
/// # Errors
/// As for [`check_authorities`].
pub fn check_certificates(pem: &[u8]) -> Result<(), String> {
    certificates(pem).map(drop)
}

/// Whether this is a key, in PEM.
///
/// # Errors
/// As for [`check_authorities`].
pub fn check_key(pem: &[u8]) -> Result<(), String> {
    key(pem).map(drop)
}

/// Whether a certificate can be for this name.
///
/// # Errors
/// What is wrong, to follow the variable's name.
pub fn check_server_name(name: &str) -> Result<(), String> {
    ServerName::try_from(name)
        .map(drop)
        .map_err(|_| "must be a host name or an IP address".to_owned())
}

/// What went wrong with TLS, and what to do; `None` for an error that has nothing to do with it.
pub fn explain(error: &(dyn Error + 'static), variables: &Variables) -> Option<String> {
    let error = find(error)?;
    let advice = match error {
        rustls::Error::InvalidCertificate(problem) => certificate_advice(problem, variables),
        rustls::Error::AlertReceived(alert) => alert_advice(*alert, variables),
        rustls::Error::PeerIncompatible(_) => "the server must speak TLS 1.2 or later".to_owned(),
        rustls::Error::InvalidMessage(_) => "the server does not speak TLS on this port".to_owned(),
        _ => return Some(format!("TLS: {error}")),
    };
    Some(format!("TLS: {error}: {advice}"))
}

/// What may be the matter when a server ends a connection right after the handshake. With TLS 1.3 a server looks at the
/// client's certificate only then; whether its word of it arrives before the end of the connection is chance.
/// `shown`: the relay has a certificate to show.
pub fn after_handshake(shown: bool, variables: &Variables) -> String {
    let certificate = variables.certificate;
    match shown {
        false => format!("if the server asks for a client certificate, set {certificate}"),
        true => format!(
            "if the server does not accept the relay's own certificate (expired, or by another authority), renew the files of \
             {certificate}"
        ),
    }
}

fn certificate_advice(problem: &CertificateError, variables: &Variables) -> String {
    match problem {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
            "no authority that the relay trusts has signed the server's certificate; set {} to the file of the right one, or \
             renew its content",
            variables.ca
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the server's certificate has expired; renew it there, the relay connects by itself".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the server's certificate is not valid yet; compare the clocks".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("the server's certificate is for other names; {}", variables.name)
        }
        CertificateError::Other(_) => {
            "the server's certificate cannot be used; an authority's own, or one without a name \
             for its host (subjectAltName), will not do"
                .to_owned()
        }
        _ => "the server's certificate cannot be used; renew it there".to_owned(),
    }
}

fn alert_advice(alert: AlertDescription, variables: &Variables) -> String {
    let certificate = variables.certificate;
    match alert {
        AlertDescription::CertificateRequired | AlertDescription::HandshakeFailure => {
            format!("the server asks for a client certificate; set {certificate}")
        }
        AlertDescription::ProtocolVersion => "the server must speak TLS 1.2 or later".to_owned(),
        AlertDescription::CertificateExpired => {
            format!("the relay's own certificate has expired; renew the files of {certificate}")
        }
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnknownCA
        | AlertDescription::AccessDenied => {
            format!("the server does not accept the relay's own certificate; renew the files of {certificate}")
        }
        _ => "the server ended the handshake; its log may say why".to_owned(),
    }
}

/// The error of the library, however it is wrapped: `io::Error` hides what it holds from `source`.
fn find<'a>(mut error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    loop {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        error = match inner {
            Some(inner) => inner,
            None => error.source()?,
        };
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn pair(identity: &Identity) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), String> {
    let Identity { cert_file, key_file } = identity;
    let certificates = certificates(&read(cert_file)?).map_err(|problem| of(cert_file, &problem))?;
    let key = key(&read(key_file)?).map_err(|problem| of(key_file, &problem))?;
    Ok((certificates, key))
}

/// At least one.
fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err("holds no certificate in PEM (-----BEGIN CERTIFICATE-----)".to_owned()),
    }
}

fn key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(pem)
        .map_err(|_| "holds no private key in PEM without a password (-----BEGIN PRIVATE KEY-----)".to_owned())
}

/// The content of a file that was there at the start.
pub(crate) fn read(file: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(file).map_err(|error| format!("cannot read the file {}: {error}", file.display()))
}

fn of(file: &Path, problem: &str) -> String {
    format!("the file {} {problem}", file.display())
}

fn unfit(identity: &Identity, error: &rustls::Error) -> String {
    let Identity { cert_file, key_file } = identity;
    format!(
        "the files {} and {} do not belong together, or cannot be used: {error}",
        cert_file.display(),
        key_file.display()
    )
}

/// Trusts one certificate, whose file is at hand: the relay's own.
#[derive(Debug)]
struct Pinned {
    certificate: CertificateDer<'static>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match *end_entity == self.certificate {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(rustls::Error::InvalidCertificate(
                CertificateError::ApplicationVerificationFailure,
            )),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
