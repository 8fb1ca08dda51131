//! Values that are never shown, and what may be shown of a URL.

use std::{fmt, path::Path, sync::Arc};

use super::{
    sources::read_secret,
    tls::{Tls, leaves_without_tls},
};

/// Schemes a database URL may have.
pub(super) const DATABASE_SCHEMES: &[&str] = &["postgres", "postgresql", "mysql", "mariadb", "sqlite"];

/// Schemes a broker URL may have.
pub(super) const BROKER_SCHEMES: &[&str] = &["amqp", "amqps"];

/// Schemes the URL of a broker's management plug-in may have.
pub(super) const MANAGEMENT_SCHEMES: &[&str] = &["https", "http"];

/// A text that may hold a password: `Debug` and `Display` print `***`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret {
    value: String,
    /// Where it was read.
    file: Option<Arc<Path>>,
}

impl Secret {
    /// Hides `value` from every log and error from here on.
    pub fn new(value: impl Into<String>) -> Self {
        Self {
            value: value.into(),
            file: None,
        }
    }

    /// Says where the value was read, and can be read again.
    pub(super) fn read_in(self, file: Option<Arc<Path>>) -> Self {
        Self { file, ..self }
    }

    /// The value as it was when the relay started, for the one place that connects with it.
    pub fn expose(&self) -> &str {
        &self.value
    }

    /// As it stands in its file now; one that came from no file stays as it is.
    ///
    /// # Errors
    /// When the file cannot be read or is empty: the text names the file, and quotes nothing of it.
    pub fn now(&self) -> Result<Self, String> {
        let Some(file) = &self.file else {
            return Ok(self.clone());
        };
        let value = read_secret(&file.to_string_lossy())?;
        Ok(Self::new(value).read_in(self.file.clone()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// What may be logged of a URL: scheme, host, port, path and the names of its query.
///
/// User, password, query values and fragment are dropped. Where it is not certain which part is
/// the password, only the scheme remains (`amqp://***`); anything without a scheme the relay
/// knows is `<not a URL>`.
pub fn redacted_url(url: &str) -> String {
    let Some((scheme, rest)) = split_scheme(url) else {
        return "<not a URL>".to_owned();
    };
    readable_part(rest)
        .map(|shown| format!("{scheme}://{shown}"))
        .unwrap_or_else(|| format!("{scheme}://***"))
}

/// The scheme in lower case and what follows `://` or, for SQLite, `:`.
fn split_scheme(url: &str) -> Option<(&'static str, &str)> {
    let (scheme, rest) = url.trim().split_once(':')?;
    let known = DATABASE_SCHEMES
        .iter()
        .chain(BROKER_SCHEMES)
        .chain(MANAGEMENT_SCHEMES)
        .find(|known| known.eq_ignore_ascii_case(scheme))?;
    match rest.strip_prefix("//") {
        Some(rest) => Some((known, rest)),
        None if *known == "sqlite" => Some((known, rest)),
        None => None,
    }
}

fn readable_part(rest: &str) -> Option<String> {
    let (authority, tail) = split_authority(rest);
    // A `/`, `?` or `#` in a password that is not percent-encoded moves its end behind the
    // authority, and an `@` there is how that shows.
    if tail.contains('@') || rest.chars().any(char::is_control) {
        return None;
    }
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if !is_host_and_port(host) {
        return None;
    }
    let tail = tail.split_once('#').map_or(tail, |(before, _)| before);
    Some(match tail.split_once('?') {
        Some((path, query)) => format!("{host}{path}?{}", redacted_query(query)),
        None => format!("{host}{tail}"),
    })
}

fn split_authority(rest: &str) -> (&str, &str) {
    rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()))
}

fn is_host_and_port(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port),
        _ => (text, ""),
    };
    let plain = |c: char| c.is_alphanumeric() || "._-%".contains(c);
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host_is_plain = match bracketed {
        Some(address) => address.chars().all(|c| plain(c) || c == ':'),
        None => host.chars().all(plain),
    };
    host_is_plain && port.chars().all(|c| c.is_ascii_digit())
}

fn redacted_query(query: &str) -> String {
    let plain = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    let pairs = query.split('&').map(|pair| match pair.split_once('=') {
        Some((name, _)) if plain(name) => format!("{name}=***"),
        _ => "***".to_owned(),
    });
    pairs.collect::<Vec<_>>().join("&")
}

/// The URLs of brokers, separated by commas, as far as `tls` lets them be used.
///
/// # Errors
/// A sentence about what is wrong, to follow the variable's name.
pub(super) fn broker_urls(text: &Secret, tls: &Tls) -> Result<Vec<Secret>, String> {
    let urls: Vec<_> = text.expose().split(',').map(str::trim).collect();
    let problem = urls.iter().enumerate().find_map(|(index, url)| {
        let checked = check_url(url, BROKER_SCHEMES).and_then(|()| tls.allows_broker(url));
        let problem = checked.err()?;
        Some(match urls.len() {
            1 => problem,
            _ if url.is_empty() => format!("URL {} is empty; remove its comma", index + 1),
            count => format!(
                "URL {} of {count} {problem}; commas separate URLs, one in a password is `%2C`",
                index + 1
            ),
        })
    });
    match problem {
        Some(problem) => Err(problem),
        None => Ok(urls
            .into_iter()
            .map(|url| Secret::new(url).read_in(text.file.clone()))
            .collect()),
    }
}

/// The URL of a management plug-in, as far as `tls` lets it be used.
///
/// # Errors
/// A sentence about what is wrong, to follow the variable's name.
pub(super) fn check_management_url(text: &str, tls: &Tls) -> Result<(), String> {
    check_url(text, MANAGEMENT_SCHEMES)?;
    if leaves_without_tls(text) && tls.required {
        return Err(
            "is `http://`, without TLS, to another machine, which RELAY_REQUIRE_TLS forbids; write `https://`"
                .to_owned(),
        );
    }
    // It was checked to be a URL.
    match url::Url::parse(text) {
        Ok(url) if url.username().is_empty() => {
            Err("names no user; write `https://user:password@host:15671`".to_owned())
        }
        Ok(url) if url.query().is_some() || url.fragment().is_some() => {
            Err("has a `?` or `#`, for which there is no use".to_owned())
        }
        _ => Ok(()),
    }
}

/// The URLs of brokers as they stand in their file now, or as they were given.
///
/// # Errors
/// When the file cannot be read, or holds no URLs that may be used; the text quotes nothing of it.
pub fn broker_urls_now(urls: &[Secret], tls: &Tls) -> Result<Vec<Secret>, String> {
    // All come from one text.
    match urls.first().filter(|url| url.file.is_some()) {
        Some(url) => broker_urls(&url.now()?, tls).map_err(|problem| format!("RELAY_AMQP_URL_FILE {problem}")),
        None => Ok(urls.to_vec()),
    }
}

/// The URL of the management plug-in as it stands in its file now, or as it was given.
///
/// # Errors
/// When the file cannot be read, or holds no URL that may be used; the text quotes nothing of it.
pub fn management_url_now(url: &Secret, tls: &Tls) -> Result<Secret, String> {
    let now = url.now()?;
    check_management_url(now.expose().trim(), tls)
        .map_err(|problem| format!("RELAY_AMQP_MANAGEMENT_URL_FILE {problem}"))?;
    Ok(now)
}

/// The bearer token as it stands in its file now, or as it was given.
///
/// # Errors
/// When the file cannot be read, or holds no token that may be used; the text quotes nothing of it.
pub fn token_now(token: &Secret) -> Result<Secret, String> {
    let usable = |token: Secret| {
        // As at the start: spaces around it are no part of it.
        let text = token.expose().trim();
        check_token(text).map(|()| Secret::new(text))
    };
    token
        .now()
        .and_then(usable)
        .map_err(|problem| format!("RELAY_ADMIN_TOKEN_FILE: {problem}"))
}

/// The URL of the database as it stands in its file now, or as it was given.
///
/// # Errors
/// When the file cannot be read, or holds no URL of the same kind of database; the text quotes nothing of it.
pub fn database_url_now(url: &Secret) -> Result<Secret, String> {
    let now = url.now()?;
    let scheme = |url: &Secret| split_scheme(url.expose()).map(|(scheme, _)| scheme);
    check_url(now.expose(), DATABASE_SCHEMES).map_err(|problem| format!("RELAY_DATABASE_URL_FILE {problem}"))?;
    if scheme(&now) != scheme(url) {
        return Err(
            "RELAY_DATABASE_URL_FILE names another kind of database than at the start; restart the relay".into(),
        );
    }
    Ok(now)
}

/// Checks a bearer token without ever quoting it.
///
/// # Errors
/// A sentence about what is wrong, to follow the variable's name.
pub(super) fn check_token(token: &str) -> Result<(), String> {
    if !(16..=256).contains(&token.len()) {
        return Err("must have 16 to 256 characters; `openssl rand -hex 32` makes one".to_owned());
    }
    if !token.chars().all(|c| c.is_ascii_graphic()) {
        return Err("must have letters, digits and signs of ASCII only, as it is sent in a header".to_owned());
    }
    Ok(())
}

/// Checks a URL without ever quoting it.
///
/// # Errors
///
/// A sentence about what is wrong, to follow the variable's name.
pub(super) fn check_url(url: &str, schemes: &[&str]) -> Result<(), String> {
    let Some((scheme, rest)) = split_scheme(url).filter(|(scheme, _)| schemes.contains(scheme)) else {
        let listed: Vec<_> = schemes.iter().map(|scheme| format!("`{scheme}://`")).collect();
        return Err(format!("must start with {}", super::parse::either(&listed)));
    };
    if scheme == "sqlite" {
        // SQLite's URLs hold a file path, for which the rules below are wrong.
        return if rest.is_empty() {
            Err("names no file; write `sqlite:///path/to/file.db`".to_owned())
        } else {
            Ok(())
        };
    }
    if split_authority(rest).1.contains('@') {
        return Err(
            "has an `@` behind its host; percent-encode special characters in the user and \
             password (`/` is `%2F`, `?` is `%3F`, `#` is `%23`, `@` is `%40`)"
                .to_owned(),
        );
    }
    let parsed = url::Url::parse(url)
        .map_err(|error| format!("is not a valid URL ({error}); percent-encode special characters in the password"))?;
    if schemes == BROKER_SCHEMES && parsed.host_str().is_none_or(str::is_empty) {
        return Err("names no host; write `amqp://user:password@host:5672/vhost`".to_owned());
    }
    Ok(())
}
