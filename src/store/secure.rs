//! How far a database server must prove who it is: the same for every driver.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::StoreError;
use super::slot::Verdict;
use crate::config::{Tls, is_loopback};
use crate::tls;

/// What a driver does about TLS by its URL, and where it goes.
pub(super) struct Given<'a> {
    /// The URL names a file of authorities, which the driver reads for each connection.
    pub(super) authorities: bool,
    /// The URL's mode asks for no encryption, or gives it up when the server has none.
    pub(super) weak: bool,
    /// The URL's mode encrypts without a look at the certificate.
    pub(super) blind: bool,
    /// The mode is written in the URL.
    pub(super) written: bool,
    /// The server's host; `None`: a unix socket.
    pub(super) host: Option<&'a str>,
}

/// Whether the server must show a certificate for its host by an authority that is trusted, whatever the driver's default.
///
/// # Errors
/// Where the URL says otherwise: nothing is weakened in silence.
pub(super) fn must_verify(tls: &Tls, given: &Given<'_>) -> Result<bool, StoreError> {
    // What goes through a socket does not leave the machine, and servers have no TLS there.
    let Some(host) = given.host else { return Ok(false) };
    let by_files = tls.ca_file.is_some() || tls.identity.is_some();
    if !by_files && (!tls.required || is_loopback(host)) {
        return Ok(false);
    }
    if given.written && (given.weak || given.blind && by_files) {
        let by = match by_files {
            true => "RELAY_DATABASE_CA_FILE or RELAY_DATABASE_CLIENT_CERT_FILE is set",
            false => "RELAY_REQUIRE_TLS is true",
        };
        return Err(StoreError::Failed(format!(
            "the database URL turns off what {by} for: leave its ssl-mode out, which then verifies the server in full"
        )));
    }
    Ok(!given.written || given.weak)
}

/// Whether what is sent may leave this machine without TLS.
pub(super) fn is_exposed(verified: bool, given: &Given<'_>) -> bool {
    !verified && given.weak && given.host.is_some_and(|host| !is_loopback(host))
}

/// Whether the driver must be given authorities: it has none of its own (see `deploy/webpki-roots`).
pub(super) fn needs_authorities(tls: &Tls, verified: bool, given: &Given<'_>) -> bool {
    let verifies = verified || !given.weak && !given.blind;
    tls.ca_file.is_some() || verifies && !given.authorities
}

/// PEM texts for a driver, read from their files now.
pub(super) struct Pems {
    pub(super) authorities: Option<Vec<u8>>,
    pub(super) identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// `authorities`: they are needed, from the file or else the system's.
///
/// # Errors
/// [`StoreError::Unavailable`] for files that cannot be used: they may be put right.
pub(super) fn pems(tls: &Tls, authorities: bool) -> Result<Pems, StoreError> {
    let unavailable = StoreError::Unavailable;
    let authorities = match authorities {
        true => Some(pem(&tls::authorities(tls).map_err(unavailable)?)),
        false => None,
    };
    let identity = match &tls.identity {
        Some(identity) => {
            tls::certified_key(identity).map_err(unavailable)?;
            let read = |file| tls::read(file).map_err(unavailable);
            Some((read(&identity.cert_file)?, read(&identity.key_file)?))
        }
        None => None,
    };
    Ok(Pems { authorities, identity })
}

/// An end of the connection during the login where the relay has shown a certificate: what may be the matter, which is more
/// than the driver can say.
pub(super) fn cut_off(error: &sqlx::Error, tls: &Tls) -> Option<Verdict> {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    let sqlx::Error::Io(error) = error else { return None };
    let ended = matches!(
        error.kind(),
        BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
    );
    let shown = tls.identity.is_some() && ended && tls::explain(error, &tls::DATABASE).is_none();
    shown.then(|| Verdict::refused(format!("{error}: {}", tls::after_handshake(true, &tls::DATABASE))))
}

/// The end of a connection, or the end of a handshake.
pub(super) fn lost(error: &std::io::Error) -> Verdict {
    match tls::explain(error, &tls::DATABASE) {
        Some(text) => Verdict::refused(text),
        None => Verdict::closed(StoreError::Unavailable(error.to_string())),
    }
}

/// A handshake that did not come about.
pub(super) fn untrusted(error: &(dyn std::error::Error + 'static)) -> Verdict {
    Verdict::refused(tls::explain(error, &tls::DATABASE).unwrap_or_else(|| {
        // The drivers' text for a server that has none.
        let advice = match error.to_string().contains("does not support TLS") {
            true => ": turn it on there; RELAY_DATABASE_CA_FILE, a client certificate, RELAY_REQUIRE_TLS or the URL ask for it",
            false => "",
        };
        format!("TLS: {error}{advice}")
    }))
}

fn pem(certificates: &[rustls::pki_types::CertificateDer<'_>]) -> Vec<u8> {
    let mut roots = rustls::RootCertStore::empty();
    let mut text = String::new();
    for certificate in certificates {
        // One that cannot be read would end the driver's attempt.
        if roots.add(certificate.clone()).is_ok() {
            text.push_str("-----BEGIN CERTIFICATE-----\n");
            text.push_str(&STANDARD.encode(certificate));
            text.push_str("\n-----END CERTIFICATE-----\n");
        }
    }
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(tls: &Tls, weak: bool, blind: bool, written: bool, host: Option<&str>) -> Option<bool> {
        let given = Given {
            authorities: false,
            weak,
            blind,
            written,
            host,
        };
        must_verify(tls, &given).ok()
    }

    #[test]
    fn a_connection_is_never_weaker_than_the_variables_ask_for() {
        let none = Tls::default();
        let required = Tls {
            required: true,
            ..Tls::default()
        };
        let by_file = Tls {
            ca_file: Some("ca.pem".into()),
            ..Tls::default()
        };
        // The driver's own default falls back to plain.
        assert_eq!(judged(&none, true, false, false, Some("db")), Some(false));
        assert_eq!(judged(&required, true, false, false, Some("db")), Some(true));
        assert_eq!(judged(&required, true, false, false, Some("127.0.0.1")), Some(false));
        assert_eq!(judged(&required, true, false, false, None), Some(false));
        assert_eq!(judged(&required, true, false, true, Some("db")), None);
        assert_eq!(judged(&required, false, true, true, Some("db")), Some(false));
        assert_eq!(judged(&by_file, true, false, false, Some("127.0.0.1")), Some(true));
        assert_eq!(judged(&by_file, false, true, true, Some("db")), None);
        assert_eq!(judged(&by_file, false, false, true, Some("db")), Some(false));
    }

    #[test]
    fn who_may_sign_the_servers_certificate_is_never_left_to_the_driver() {
        let none = Tls::default();
        let by_file = Tls {
            ca_file: Some("ca.pem".into()),
            ..Tls::default()
        };
        let given = |weak, blind, authorities| Given {
            authorities,
            weak,
            blind,
            written: true,
            host: Some("db"),
        };
        // `sslmode=verify-full`, with `sslrootcert` and without.
        assert!(needs_authorities(&none, false, &given(false, false, false)));
        assert!(!needs_authorities(&none, false, &given(false, false, true)));
        assert!(needs_authorities(&by_file, false, &given(false, false, true)));
        // RELAY_REQUIRE_TLS.
        assert!(needs_authorities(&none, true, &given(true, false, false)));
        assert!(!needs_authorities(&none, true, &given(true, false, true)));
        // Nobody is asked for a certificate, or it is not looked at.
        assert!(!needs_authorities(&none, false, &given(true, false, false)));
        assert!(!needs_authorities(&none, false, &given(false, true, false)));
    }

    /// sqlx trusts those that are compiled in beside those that it is given.
    #[test]
    fn no_authorities_are_compiled_in() {
        let lock = include_str!("../../Cargo.lock");
        let roots: Vec<&str> = lock
            .split("[[package]]")
            .filter(|package| package.contains("name = \"webpki-roots\""))
            .collect();
        let [roots] = roots[..] else { panic!("{roots:?}") };
        assert!(!roots.contains("source"), "not that of deploy/webpki-roots: {roots}");
    }

    #[test]
    fn a_login_that_is_cut_off_is_explained_where_a_certificate_was_shown() {
        let cut = sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into());
        let shown = Tls {
            identity: Some(crate::config::Identity {
                cert_file: "c.pem".into(),
                key_file: "k.pem".into(),
            }),
            ..Tls::default()
        };
        let text = cut_off(&cut, &shown).expect("explained").error.to_string();
        assert!(text.contains("RELAY_DATABASE_CLIENT_CERT_FILE"), "{text}");
        assert!(cut_off(&cut, &Tls::default()).is_none());
        let refused = sqlx::Error::Io(std::io::ErrorKind::ConnectionRefused.into());
        assert!(cut_off(&refused, &shown).is_none());
    }
}
