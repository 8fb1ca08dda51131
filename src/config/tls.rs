//! What is to be known of TLS before anything is connected.

use std::{net::IpAddr, path::PathBuf};

use super::parse::Reader;
use crate::tls;

/// A certificate with its key, in PEM files that are read again for each connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, and those between it and its authority.
    pub cert_file: PathBuf,
    /// Its key.
    pub key_file: PathBuf,
}

/// How a server is spoken to over TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// The authorities that may sign the server's certificate; `None`: the system's.
    pub ca_file: Option<PathBuf>,
    /// Who the relay is.
    pub identity: Option<Identity>,
    /// The name that the server's certificate must have, where it is not the host's.
    pub server_name: Option<String>,
    /// No connection without TLS that leaves this machine.
    pub required: bool,
}

impl Tls {
    /// Those of broker and database.
    pub(super) fn read_both(from: &mut Reader<'_>) -> (Self, Self) {
        let required = from.boolean("RELAY_REQUIRE_TLS");
        let broker = Self {
            ca_file: from.pem_file("RELAY_AMQP_CA_FILE", tls::check_authorities),
            identity: Identity::read(from, "RELAY_AMQP_CLIENT_CERT_FILE", "RELAY_AMQP_CLIENT_KEY_FILE"),
            server_name: from.optional("RELAY_AMQP_SERVER_NAME", |name| {
                tls::check_server_name(name).map(|()| name.to_owned())
            }),
            required,
        };
        let database = Self {
            ca_file: from.pem_file("RELAY_DATABASE_CA_FILE", tls::check_authorities),
            identity: Identity::read(
                from,
                "RELAY_DATABASE_CLIENT_CERT_FILE",
                "RELAY_DATABASE_CLIENT_KEY_FILE",
            ),
            server_name: None,
            required,
        };
        (broker, database)
    }

    /// Whether this URL of a broker, which is a valid one, may be used.
    pub(super) fn allows_broker(&self, url: &str) -> Result<(), String> {
        let Ok(url) = url::Url::parse(url) else {
            return Ok(());
        };
        if url.scheme() == "amqps" {
            return Ok(());
        }
        if self.ca_file.is_some() || self.identity.is_some() || self.server_name.is_some() {
            return Err(
                "is `amqp://`, without TLS, for which RELAY_AMQP_CA_FILE and the like have no meaning; write `amqps://`, or unset them"
                    .to_owned(),
            );
        }
        if self.required && leaves_without_tls(url.as_str()) {
            return Err(
                "is `amqp://`, without TLS, to another machine, which RELAY_REQUIRE_TLS forbids; write `amqps://`"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

impl Identity {
    /// Both variables, or none; the key must be that of the certificate.
    pub(super) fn read(from: &mut Reader<'_>, cert: &str, key: &str) -> Option<Self> {
        let certificates = from.pem_file(cert, tls::check_certificates);
        let keys = from.pem_file(key, tls::check_key);
        match (certificates, keys) {
            (Some(cert_file), Some(key_file)) => {
                let identity = Self { cert_file, key_file };
                if let Err(problem) = tls::certified_key(&identity) {
                    from.problem(key, problem);
                }
                Some(identity)
            }
            (Some(_), None) => {
                from.problem(key, format!("is required beside {cert}"));
                None
            }
            (None, Some(_)) => {
                from.problem(cert, format!("is required beside {key}"));
                None
            }
            (None, None) => None,
        }
    }
}

/// Whether what is sent to the broker of this URL, or to its management plug-in, leaves the machine without TLS.
pub fn leaves_without_tls(url: &str) -> bool {
    let url = url::Url::parse(url);
    url.is_ok_and(|url| ["amqp", "http"].contains(&url.scheme()) && !url.host_str().is_some_and(is_loopback))
}

/// Whether what is sent to this host stays on this machine.
pub fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_loopback_goes_without_tls_where_it_is_required() {
        let tls = Tls {
            required: true,
            ..Tls::default()
        };
        for fine in [
            "amqp://u:p@localhost/",
            "amqp://u:p@127.0.0.1:5672/%2f",
            "amqp://u:p@[::1]/",
            "amqps://u:p@broker/",
        ] {
            assert_eq!(tls.allows_broker(fine), Ok(()), "{fine}");
        }
        for plain in [
            "amqp://u:p@broker/",
            "amqp://u:p@10.0.0.1/",
            "amqp://u:p@localhost.example/",
        ] {
            let problem = tls.allows_broker(plain).expect_err(plain);
            assert!(problem.contains("RELAY_REQUIRE_TLS"), "{problem}");
        }
        assert_eq!(Tls::default().allows_broker("amqp://u:p@broker/"), Ok(()));
    }
}
