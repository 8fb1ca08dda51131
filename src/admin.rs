//! The HTTP endpoints: metrics and health. They only tell; nothing here changes anything.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::health::Health;
use crate::metrics::Metrics;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the endpoints tell about.
#[derive(Clone)]
pub struct Admin {
    /// The relay's state.
    pub health: Arc<Health>,
    /// The relay's metrics.
    pub metrics: Arc<Metrics>,
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

/// Serves until the task is dropped.
pub async fn serve(listener: TcpListener, admin: Admin) {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/startupz", get(startupz))
        .route("/readyz", get(readyz))
        .with_state(admin);
    // `serve` itself never ends with an error: it goes on after each failed accept.
    let _ = axum::serve(listener, router).await;
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
