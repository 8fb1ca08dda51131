//! Log levels that are changed while the relay runs.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::outbox::SECOND;
use crate::support::{Relay, free_port, until};

const SECRET: &str = "s3cr3t0mark";

/// Neither database nor broker is there.
fn env<'a>(listen: &'a str, token: &'a str) -> [(&'static str, &'a str); 5] {
    [
        ("RELAY_DATABASE_URL", "postgres://nobody:s3cr3t0mark@127.0.0.1:1/none"),
        ("RELAY_AMQP_URL", "amqp://nobody:s3cr3t0mark@127.0.0.1:1"),
        ("RELAY_ADMIN_LISTEN", listen),
        ("RELAY_ADMIN_TOKEN", token),
        ("RELAY_LOG", "warn"),
    ]
}

fn start(env: &[(&str, &str)]) -> Relay {
    env.iter()
        .fold(Relay::command(), |relay, (name, value)| relay.env(name, value))
        .spawn()
}

/// At the level `warn` the log does not say where it listens.
async fn started(listen: &str) {
    let address: SocketAddr = listen.parse().expect("an address");
    until("the relay listens", 30 * SECOND, async || {
        TcpStream::connect(address).await.is_ok()
    })
    .await;
}

async fn put(listen: &str, headers: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(listen).await.expect("the relay listens");
    let length = body.len();
    let request = format!("PUT /log HTTP/1.0\r\nHost: r\r\nContent-Length: {length}\r\n{headers}\r\n{body}");
    stream.write_all(request.as_bytes()).await.expect("it is taken");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    answer
}

#[tokio::test]
async fn levels_are_changed_for_a_time_and_come_back() {
    let listen = format!("127.0.0.1:{}", free_port());
    let env = env(&listen, "");
    let relay = start(&env);
    started(&listen).await;
    let run = async |args: &[&str]| Relay::run_to_end(args, &env).await;
    let (status, out, err) = run(&["log-level"]).await;
    assert!(status.success() && out.trim() == "warn", "{out}{err}");
    let heard = |level: &str| relay.logs().iter().any(|line| line["level"] == level);
    assert!(!heard("INFO") && !heard("DEBUG"), "{}", relay.log_text());

    let (status, out, err) = run(&["log-level", "trace,lapin=trace", "--for", "1h"]).await;
    assert!(status.success() && out.contains("trace,lapin=trace, for"), "{out}{err}");
    assert!(out.contains("then warn"), "{out}");
    until("more is heard", 30 * SECOND, async || heard("DEBUG")).await;
    let text = relay.log_text();
    assert!(text.contains("the log levels are changed"), "{text}");
    assert!(!text.contains(SECRET), "{text}");

    // The end of the one before does not count any more.
    let (status, _, err) = run(&["log-level", "info", "--for", "1s"]).await;
    assert!(status.success(), "{err}");
    until("they come back", 30 * SECOND, async || {
        run(&["log-level"]).await.1.trim() == "warn"
    })
    .await;
    let (status, out, _) = run(&["log-level", "off"]).await;
    assert!(status.success() && out.trim() == "off", "{out}");

    let (status, _, err) = run(&["log-level", "inof"]).await;
    assert!(status.code() == Some(64) && err.contains("debug, trace"), "{err}");
    for (body, problem) in [
        ("trace", "a JSON object"),
        ("{}", "`levels` is missing"),
        (r#"{"levels":"loud"}"#, "levels are off"),
        (r#"{"levels":"info","for":"7"}"#, "`for` must be"),
    ] {
        let answer = put(&listen, "", body).await;
        assert!(
            answer.starts_with("HTTP/1.0 400") && answer.contains(problem),
            "{body}: {answer}"
        );
    }
    let answer = put(&listen, "Origin: http://example.org\r\n", r#"{"levels":"trace"}"#).await;
    assert!(answer.starts_with("HTTP/1.0 403"), "a web page: {answer}");
    assert_eq!(run(&["log-level"]).await.1.trim(), "off");
}

#[tokio::test]
async fn with_a_token_only_who_has_it_changes_levels() {
    let listen = format!("127.0.0.1:{}", free_port());
    let env = env(&listen, "0123456789-s3cr3t0mark");
    let relay = start(&env);
    started(&listen).await;
    let loud = r#"{"levels":"trace,hyper=trace"}"#;
    for headers in ["", "Authorization: Bearer 0123456789-other\r\n"] {
        let answer = put(&listen, headers, loud).await;
        assert!(answer.starts_with("HTTP/1.0 401"), "{answer}");
    }
    let answer = put(&listen, "Authorization: Bearer 0123456789-s3cr3t0mark\r\n", loud).await;
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    // Now that all is heard, a request with the token once more.
    let (status, out, err) = Relay::run_to_end(&["log-level", "trace,hyper=trace"], &env).await;
    assert!(status.success(), "{out}{err}");
    let (_, shown, _) = Relay::run_to_end(&["log-level"], &env).await;
    assert_eq!(shown.trim(), "trace,hyper=trace", "who only looks needs none");
    assert!(!relay.log_text().contains(SECRET), "{}", relay.log_text());
    let mut other = env;
    other[3].1 = "";
    let (status, _, err) = Relay::run_to_end(&["log-level", "off"], &other).await;
    assert!(status.code() == Some(1) && err.contains("RELAY_ADMIN_TOKEN"), "{err}");
}
