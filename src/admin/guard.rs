//! Who may change something: requests are let through to such an endpoint with the bearer token only.

use std::net::SocketAddr;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::config::{Secret, token_now};

/// What stands before endpoints that change something, as a layer of their routes:
/// `.route_layer(middleware::from_fn_with_state(guard, guard::guarded))`.
#[derive(Debug, Clone)]
pub struct Guard {
    /// `RELAY_ADMIN_TOKEN`; from a file it is read again for each request.
    pub token: Option<Secret>,
    /// Whether these endpoints are there for this machine's own programs where no token is set. Everywhere else they are
    /// off without one.
    pub loopback_without_token: bool,
}

impl Guard {
    /// Whether the request may go on; else the answer to it.
    fn judge(&self, peer: SocketAddr, headers: &HeaderMap) -> Result<(), (StatusCode, String)> {
        // A page that a browser shows can send requests to this machine as well, and a browser says for which page.
        if headers.contains_key(header::ORIGIN) {
            return Err((StatusCode::FORBIDDEN, "not for web pages".to_owned()));
        }
        let Some(token) = &self.token else {
            return match self.loopback_without_token && peer.ip().to_canonical().is_loopback() {
                true => Ok(()),
                false => Err((
                    StatusCode::FORBIDDEN,
                    "what changes something is off: set RELAY_ADMIN_TOKEN, and send it as a bearer token".to_owned(),
                )),
            };
        };
        let token = token_now(token).map_err(|problem| (StatusCode::FORBIDDEN, problem))?;
        match bearer(headers).is_some_and(|shown| equal(shown, token.expose())) {
            true => Ok(()),
            false => Err((
                StatusCode::UNAUTHORIZED,
                "the bearer token of RELAY_ADMIN_TOKEN is needed".to_owned(),
            )),
        }
    }
}

/// The layer.
pub async fn guarded(
    State(guard): State<Guard>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    match guard.judge(peer, request.headers()) {
        Ok(()) => next.run(request).await,
        Err((code, reason)) => {
            let mut answer = (code, json!({ "error": reason }).to_string()).into_response();
            let headers = answer.headers_mut();
            headers.insert(
                header::CONTENT_TYPE,
                header::HeaderValue::from_static("application/json"),
            );
            if code == StatusCode::UNAUTHORIZED {
                headers.insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
            }
            answer
        }
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// In a time that tells nothing of how much is right, nor of the length.
fn equal(shown: &str, token: &str) -> bool {
    Sha256::digest(shown).ct_eq(&Sha256::digest(token)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn code(guard: &Guard, peer: &str, headers: &[(header::HeaderName, &str)]) -> u16 {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.clone(), value.parse().expect("a value")))
            .collect();
        let judged = guard.judge(peer.parse().expect("an address"), &headers);
        judged.map_or_else(|(code, _)| code.as_u16(), |()| 200)
    }

    fn shown(text: &str) -> [(header::HeaderName, &str); 1] {
        [(header::AUTHORIZATION, text)]
    }

    #[test]
    fn the_right_token_and_nothing_else_lets_through() {
        let guard = Guard {
            token: Some(Secret::new(TOKEN)),
            loopback_without_token: true,
        };
        for peer in ["127.0.0.1:1", "10.0.0.1:1"] {
            assert_eq!(code(&guard, peer, &shown("Bearer 0123456789abcdef")), 200);
            assert_eq!(code(&guard, peer, &shown("bearer 0123456789abcdef")), 200);
            for wrong in [
                "Bearer 0123456789abcdeF",
                "Bearer 0123456789abcde",
                "Bearer ",
                "Bearer",
                "Basic 0123456789abcdef",
                "0123456789abcdef",
            ] {
                assert_eq!(code(&guard, peer, &shown(wrong)), 401, "{wrong}");
            }
            assert_eq!(code(&guard, peer, &[]), 401);
        }
    }

    #[test]
    fn without_a_token_only_the_loopback_may_and_only_where_that_is_meant() {
        for (loopback_without_token, own) in [(true, 200), (false, 403)] {
            let guard = Guard {
                token: None,
                loopback_without_token,
            };
            for peer in ["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
                assert_eq!(code(&guard, peer, &[]), own, "{peer}");
                let from_a_page = [(header::ORIGIN, "http://example.org")];
                assert_eq!(code(&guard, peer, &from_a_page), 403, "{peer}");
            }
            assert_eq!(code(&guard, "10.0.0.1:1", &[]), 403);
            assert_eq!(code(&guard, "10.0.0.1:1", &shown("Bearer 0123456789abcdef")), 403);
        }
    }
}
