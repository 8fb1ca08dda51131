//! What the broker's user must be allowed, as a command for the broker's administrator.

use lapin::uri::AMQPUri;

use crate::broker::BrokerError;
use crate::config::Secret;

/// The name by which the default exchange stands in permissions.
const DEFAULT_EXCHANGE: &str = r"amq\.default";

/// The `rabbitmqctl` command that lets `user` publish to `exchange` (empty: the default one) in the URL's virtual host.
///
/// # Errors
/// For a URL that is not understood; the text holds nothing of it.
pub fn set_permissions(url: &Secret, user: &str, exchange: &str) -> Result<String, BrokerError> {
    let vhost = vhost(url)?;
    let pattern = match exchange {
        "" => format!("^{DEFAULT_EXCHANGE}$"),
        exchange => format!("^{}$", escaped(exchange)),
    };
    Ok(format!(
        "rabbitmqctl set_permissions -p {} {} '^$' {} '^$'",
        word(&vhost),
        word(user),
        word(&pattern)
    ))
}

/// The virtual host of a URL.
///
/// # Errors
/// As for [`set_permissions`].
pub fn vhost(url: &Secret) -> Result<String, BrokerError> {
    // The parser's own error would quote the URL, password included.
    let uri: Result<AMQPUri, _> = url.expose().parse();
    uri.map(|uri| uri.vhost)
        .map_err(|_| BrokerError("RELAY_AMQP_URL is not a valid AMQP URL".to_owned()))
}

/// A text in a regular expression of the broker's.
fn escaped(text: &str) -> String {
    let special = |c: char| c.is_ascii_punctuation() && !"_-:/".contains(c);
    text.chars().fold(String::new(), |mut pattern, c| {
        if special(c) {
            pattern.push('\\');
        }
        pattern.push(c);
        pattern
    })
}

/// A word for the shell, on one line.
fn word(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    format!("'{}'", line.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_as_they_are_by_shell_and_pattern() {
        let command = |exchange: &str| {
            let url = Secret::new("amqp://u:s3cr3t@h/it's%2Fmine");
            set_permissions(&url, "relay", exchange).expect("a URL")
        };
        let start = r"rabbitmqctl set_permissions -p 'it'\''s/mine' 'relay' '^$' ";
        assert_eq!(command("app.events"), format!(r"{start}'^app\.events$' '^$'"));
        assert_eq!(command(""), format!(r"{start}'^amq\.default$' '^$'"));
        let error = set_permissions(&Secret::new("amqp://u:s3cr3t"), "relay", "").expect_err("no URL");
        assert!(!error.to_string().contains("s3cr3t"), "{error}");
    }
}
