//! Which variables of OpenTelemetry ask for spans.

use super::*;

/// What is said, and whether something is warned of.
fn traces(pairs: &[(&str, &str)]) -> (Option<Traces>, bool) {
    let loaded = load_with(pairs).expect("spans are no reason not to relay");
    (loaded.config.traces, !loaded.warnings.is_empty())
}

#[test]
fn spans_are_asked_for_by_an_endpoint_or_an_exporter() {
    assert_eq!(traces(&[]), (None, false));
    assert_eq!(traces(&[("OTEL_SERVICE_NAME", "x")]), (None, false));
    let default = Traces {
        timeout: Duration::from_secs(10),
        ca_file: None,
        exposed: true,
    };
    for asked in [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://collector:4318/v1/traces"),
        ("OTEL_TRACES_EXPORTER", "console, otlp"),
    ] {
        let exposed = asked.0 != "OTEL_TRACES_EXPORTER";
        let default = Traces {
            exposed,
            ..default.clone()
        };
        assert_eq!(traces(&[asked]), (Some(default), false), "{asked:?}");
        assert_eq!(traces(&[asked, ("OTEL_SDK_DISABLED", "True")]), (None, false));
        assert_eq!(traces(&[asked, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]), (None, true));
        // That of spans goes before that of everything.
        let both = [
            asked,
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1500"),
            ("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "/ca.pem"),
        ];
        let expected = Traces {
            timeout: Duration::from_millis(1_500),
            ca_file: Some("/ca.pem".into()),
            exposed,
        };
        assert_eq!(traces(&both), (Some(expected), false));
    }
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
    assert_eq!(traces(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")]), (None, false));
    assert_eq!(traces(&[endpoint, ("OTEL_TRACES_EXPORTER", "zipkin")]), (None, true));
}

/// With them goes what `OTEL_EXPORTER_OTLP_HEADERS` holds.
#[test]
fn spans_do_not_leave_the_machine_without_tls_where_it_is_required() {
    let required = |endpoint: &str| {
        let env = [
            ("RELAY_REQUIRE_TLS", "true"),
            ("RELAY_DATABASE_URL", "sqlite:a.db"),
            ("RELAY_AMQP_URL", "amqps://mq"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
        ];
        let Loaded { config, warnings } = load_these(&env).expect("spans are no reason not to relay");
        (config.traces.is_some(), warnings)
    };
    for endpoint in [
        "https://collector:4318",
        "http://localhost:4318",
        "http://127.0.0.1:4318",
    ] {
        assert_eq!(required(endpoint), (true, Vec::new()), "{endpoint}");
    }
    for endpoint in ["http://u:s3cr3t@collector:4318", "http://u:s3cr3t@collector:port"] {
        let (sent, warnings) = required(endpoint);
        assert!(!sent && warnings.len() == 1, "{warnings:?}");
        assert!(
            warnings[0].contains("RELAY_REQUIRE_TLS") && !warnings[0].contains("s3cr3t"),
            "{warnings:?}"
        );
    }
}
