//! The HTTP endpoints: metrics, health and status, and the log levels. What changes something stands behind [`guard`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Mutex;

use crate::config::{Identity, Secret, log_directives};
use crate::health::Health;
use crate::metrics::Metrics;
use crate::status::{self, Status};
use crate::telemetry::LogLevels;

pub mod guard;
mod server;

use guard::Guard;

/// Whoever asks more often gets the last report: asking must not cost the database more.
const REPORT_AGE: Duration = Duration::from_secs(2);

const BAD_SPAN: &str = "`for` must be a duration with a unit: `90s`, `10m`";

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the endpoints tell about.
#[derive(Clone)]
pub struct Admin {
    /// The relay's state.
    pub health: Arc<Health>,
    /// The relay's metrics.
    pub metrics: Arc<Metrics>,
    /// The report on the outbox.
    pub status: Arc<StatusPage>,
    /// The log's levels, which can be changed.
    pub levels: LogLevels,
    /// What a request that changes something must show; without one only this machine's own programs may.
    pub token: Option<Secret>,
}

/// The report, made by one caller at a time, and kept for a moment.
pub struct StatusPage {
    status: Status,
    last: Mutex<Option<(Instant, String)>>,
}

impl StatusPage {
    /// Nothing is asked yet.
    pub fn new(status: Status) -> Self {
        Self {
            status,
            last: Mutex::default(),
        }
    }

    async fn report(&self, health: &Health, metrics: &Metrics) -> String {
        let mut last = self.last.lock().await;
        if let Some((at, report)) = &*last
            && at.elapsed() < REPORT_AGE
        {
            return report.clone();
        }
        let mut broker = part(health.broker.state());
        broker["addresses"] = self.status.broker_addresses().into();
        let report = self
            .status
            .report(status::relay(health, metrics), broker)
            .await
            .to_string();
        *last = Some((Instant::now(), report.clone()));
        report
    }
}

/// Opens the listener.
///
/// # Errors
/// When the address cannot be listened on; the text names it.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|error| anyhow::anyhow!("RELAY_ADMIN_LISTEN: cannot listen on {address}: {error}"))
}

/// Serves until the task is dropped; over TLS, and nothing else, where there is an identity.
pub async fn serve(listener: TcpListener, admin: Admin, identity: Option<Identity>) {
    let guard = Guard {
        token: admin.token.clone(),
        loopback_without_token: true,
    };
    let changing = Router::new()
        .route("/log", put(set_levels))
        .route_layer(middleware::from_fn_with_state(guard, guard::guarded));
    let router = Router::new()
        .route("/log", get(levels))
        .merge(changing)
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/startupz", get(startupz))
        .route("/readyz", get(readyz))
        .route("/status", get(report))
        .route("/status/relay", get(relay))
        .with_state(admin);
    server::serve(listener, router, identity).await;
}

async fn metrics(State(admin): State<Admin>) -> Response {
    match admin.metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn livez(State(admin): State<Admin>) -> Response {
    let alive = admin.health.is_alive();
    answer(alive, json!({ "alive": alive }))
}

/// That this is answered at all says it: the configuration was read and the listener is bound.
async fn startupz() -> Response {
    answer(true, json!({ "started": true }))
}

async fn readyz(State(admin): State<Admin>) -> Response {
    let (database, broker) = (admin.health.database(), admin.health.broker.state());
    let ready = database.is_ok() && broker.is_ok();
    // A pause is no reason not to be ready: a pod would be taken out of service with its application.
    let paused = admin.health.pauses().as_deref().map(status::pauses);
    let body = json!({ "ready": ready, "database": part(database), "broker": part(broker), "paused": paused });
    answer(ready, body)
}

/// Always 200: what is wrong stands in the report.
async fn report(State(admin): State<Admin>) -> Response {
    let report = admin.status.report(&admin.health, &admin.metrics).await;
    ([(header::CONTENT_TYPE, "application/json")], report).into_response()
}

/// Only what the relay knows of itself: answered at once, whatever state the database is in.
async fn relay(State(admin): State<Admin>) -> Response {
    answer(true, status::relay(&admin.health, &admin.metrics))
}

async fn levels(State(admin): State<Admin>) -> Response {
    answer(true, in_force(&admin.levels))
}

/// `{"levels": "info,outbox_relay=debug", "for": "10m"}`; without `for` until the relay ends.
async fn set_levels(State(admin): State<Admin>, body: String) -> Response {
    match asked_levels(&body) {
        Ok((levels, span)) => {
            admin.levels.set(&levels, span);
            answer(true, in_force(&admin.levels))
        }
        Err(problem) => {
            let body = json!({ "error": problem }).to_string();
            (
                StatusCode::BAD_REQUEST,
                [(header::CONTENT_TYPE, "application/json")],
                body,
            )
                .into_response()
        }
    }
}

fn asked_levels(body: &str) -> Result<(String, Option<Duration>), String> {
    let asked: Value = serde_json::from_str(body)
        .map_err(|_| r#"a JSON object is needed: {"levels": "debug", "for": "10m"}"#.to_owned())?;
    let levels = asked["levels"]
        .as_str()
        .ok_or("`levels` is missing: `debug`, or as RELAY_LOG is written")?;
    let levels = log_directives(levels).map_err(|problem| format!("`levels`: {problem}"))?;
    let span = match &asked["for"] {
        Value::Null => None,
        Value::String(span) => Some(humantime::parse_duration(span).map_err(|_| BAD_SPAN)?),
        _ => return Err(BAD_SPAN.to_owned()),
    };
    Ok((levels, span))
}

fn in_force(levels: &LogLevels) -> Value {
    let in_force = levels.in_force();
    json!({
        "levels": in_force.levels,
        "ends_in_seconds": in_force.ends_in.map(|span| span.as_secs()),
        "at_start": in_force.at_start,
    })
}

fn part(state: Result<(), String>) -> Value {
    match state {
        Ok(()) => json!({ "ok": true }),
        Err(reason) => json!({ "ok": false, "reason": reason }),
    }
}

fn answer(ok: bool, body: Value) -> Response {
    let status = if ok {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}
