//! A minimal HTTP client and reader of metrics, for the admin server.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// `GET`s a path: status and body.
pub async fn get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(10), exchange).await??;
    Ok(parse(&answer))
}

fn parse(answer: &[u8]) -> (u16, String) {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("not an HTTP answer: {text:?}"));
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .unwrap_or_else(|| panic!("not an HTTP answer: {text:?}"));
    let chunked = head
        .to_ascii_lowercase()
        .lines()
        .any(|line| line.starts_with("transfer-encoding:") && line.contains("chunked"));
    // Otherwise the body ends with the connection.
    let body = if chunked {
        join_chunks(body.as_bytes())
    } else {
        body.to_string()
    };
    (status, body)
}

fn join_chunks(mut rest: &[u8]) -> String {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") {
        let line = String::from_utf8_lossy(&rest[..end]);
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).expect("the size of a chunk");
        if size == 0 {
            break;
        }
        let chunk = end + 2;
        body.extend_from_slice(&rest[chunk..chunk + size]);
        rest = &rest[chunk + size + 2..];
    }
    String::from_utf8_lossy(&body).into_owned()
}

/// The value of one series in the text of `/metrics`. Labels may come in any order, but all of them
/// must be given: `name{reason="nack"}`.
pub fn metric(text: &str, series: &str) -> Option<f64> {
    let wanted = parse_series(series);
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        // A label's value may hold blanks, so the value starts behind the closing brace.
        let end = line
            .rfind('}')
            .map_or_else(|| line.find(' '), |brace| Some(brace + 1))?;
        let (name, value) = line.split_at(end);
        (parse_series(name) == wanted).then_some(value)?;
        value.split_whitespace().next()?.parse().ok()
    })
}

fn parse_series(series: &str) -> (String, Vec<String>) {
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    let labels = labels.trim_end_matches('}').split("\",");
    let mut labels: Vec<String> = labels
        .map(|label| label.trim().trim_end_matches('"').to_string())
        .filter(|label| !label.is_empty())
        .collect();
    labels.sort();
    (name.trim().to_string(), labels)
}
