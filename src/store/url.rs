//! The database URL, before a driver sees it.

use tracing::warn;
use url::Url;

use super::StoreError;
use crate::config::Secret;

/// The URL with the parameters that are `known` to the driver; what it does not know it would log *with its value*.
pub(super) fn readable(url: &Secret, known: impl Fn(&str) -> bool) -> Result<Url, StoreError> {
    let failed = |text: String| StoreError::Failed(format!("the database URL {text}"));
    // The parser's errors are fixed texts.
    let mut url = Url::parse(url.expose()).map_err(|error| failed(format!("cannot be read: {error}")))?;
    // `postgres://user:12/34@host/db` is host "user", and the rest of the password a database's name to be reported.
    if url.path().contains('@') || url.fragment().is_some() {
        return Err(failed(
            "is ambiguous: write / ? # @ in the password as %2F %3F %23 %40".to_owned(),
        ));
    }
    let (kept, unknown): (Vec<_>, Vec<_>) = url.query_pairs().into_owned().partition(|(key, _)| known(key));
    if !unknown.is_empty() {
        // Without a value it may be what follows an `&` in a password.
        let names: Vec<&str> = unknown
            .iter()
            .map(|(key, value)| if value.is_empty() { "***" } else { key.as_str() })
            .collect();
        warn!(parameters = ?names, "parameters of the database URL are not known and have no effect");
        url.query_pairs_mut().clear().extend_pairs(kept);
    }
    Ok(url)
}
