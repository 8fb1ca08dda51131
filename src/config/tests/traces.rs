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
    };
    for asked in [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://collector:4318/v1/traces"),
        ("OTEL_TRACES_EXPORTER", "console, otlp"),
    ] {
        assert_eq!(traces(&[asked]), (Some(default.clone()), false), "{asked:?}");
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
        };
        assert_eq!(traces(&both), (Some(expected), false));
    }
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
    assert_eq!(traces(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")]), (None, false));
    assert_eq!(traces(&[endpoint, ("OTEL_TRACES_EXPORTER", "zipkin")]), (None, true));
}
