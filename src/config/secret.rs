//! Values that are never shown, and what may be shown of a URL.

use std::fmt;

/// Schemes a database URL may have.
pub(super) const DATABASE_SCHEMES: &[&str] = &["postgres", "postgresql", "mysql", "mariadb", "sqlite"];

/// Schemes a broker URL may have.
pub(super) const BROKER_SCHEMES: &[&str] = &["amqp", "amqps"];

/// A text that may hold a password: `Debug` and `Display` print `***`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides `value` from every log and error from here on.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself, for the one place that connects with it.
    pub fn expose(&self) -> &str {
        &self.0
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
