//! The HTTP endpoints: metrics, health and status. They only tell; what changes something stands behind [`guard`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Mutex;

use crate::config::Identity;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::status::{self, Status};

pub mod guard;
mod server;

/// Whoever asks more often gets the last report: asking must not cost the database more.
const REPORT_AGE: Duration = Duration::from_secs(2);

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
    let router = Router::new()
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
    let body = json!({ "ready": ready, "database": part(database), "broker": part(broker) });
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
