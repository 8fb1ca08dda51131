//! The variables of OpenTelemetry that say whether spans are sent. The others (`OTEL_SERVICE_NAME`, `OTEL_BSP_…`,
//! `OTEL_TRACES_SAMPLER`, …) are read by its own library.
//! <https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>

use std::{collections::HashMap, path::PathBuf, time::Duration};

use super::{findings::Findings, parse::Reader, tls::leaves_without_tls};

/// How spans are sent to a collector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traces {
    /// Bound of one request.
    pub timeout: Duration,
    /// The authorities that may sign the collector's certificate, in PEM; `None`: the system's.
    pub ca_file: Option<PathBuf>,
    /// They leave this machine without TLS, and what `OTEL_EXPORTER_OTLP_HEADERS` holds with them.
    pub exposed: bool,
}

/// The default of the specification.
const TIMEOUT: Duration = Duration::from_secs(10);

impl Traces {
    /// `None` unless spans are asked for: by an endpoint, or by an exporter. What cannot be had is no reason not to relay.
    pub(super) fn read(env: &HashMap<String, String>, findings: &mut Findings) -> Option<Self> {
        let get = |name: &str| env.get(name).map(|text| text.trim()).filter(|text| !text.is_empty());
        // That for spans goes before that for all.
        let either = |name: &str| {
            get(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}")).or_else(|| get(&format!("OTEL_EXPORTER_OTLP_{name}")))
        };
        if get("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true")) {
            return None;
        }
        match get("OTEL_TRACES_EXPORTER") {
            None => either("ENDPOINT").map(drop)?,
            Some("none") => return None,
            Some(list) if list.split(',').any(|exporter| exporter.trim() == "otlp") => {}
            Some(_) => {
                findings
                    .warning("OTEL_TRACES_EXPORTER has no `otlp`, the only one there is: no spans are sent".to_owned());
                return None;
            }
        }
        if either("PROTOCOL").is_some_and(|protocol| protocol != "http/protobuf") {
            findings.warning(
                "OTEL_EXPORTER_OTLP_PROTOCOL is not `http/protobuf`, the only one there is: no spans are sent; set \
                 OTEL_EXPORTER_OTLP_TRACES_PROTOCOL and an endpoint for it, mostly of port 4318"
                    .to_owned(),
            );
            return None;
        }
        Some(Self {
            timeout: either("TIMEOUT")
                .and_then(|text| text.parse().ok())
                .map_or(TIMEOUT, Duration::from_millis),
            ca_file: either("CERTIFICATE").map(PathBuf::from),
            // What is no URL here may be one to the exporter.
            exposed: either("ENDPOINT").is_some_and(|text| leaves_without_tls(text) || url::Url::parse(text).is_err()),
        })
    }

    /// As for all that cannot be had: there are no spans.
    pub(super) fn allowed(self, required: bool, from: &mut Reader<'_>) -> Option<Self> {
        if self.exposed && required {
            from.warning(
                "OTEL_EXPORTER_OTLP_ENDPOINT is `http://`, without TLS, to another machine, which RELAY_REQUIRE_TLS forbids: no \
                 spans are sent; write `https://`"
                    .to_owned(),
            );
            return None;
        }
        Some(self)
    }
}
