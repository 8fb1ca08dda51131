//! `outbox-relay run`: the sidecar.

use std::process::ExitCode;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::info;

use crate::admin::{self, Admin, StatusPage};
use crate::broker::amqp::Amqp;
use crate::config::Config;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::relay::{self, Ended, Parts, Stop};
use crate::status::Status;
use crate::store;
use crate::systemd;
use crate::telemetry::LogLevels;
use crate::traces::Traces;

pub(super) async fn run(config: Config, levels: LogLevels) -> anyhow::Result<ExitCode> {
    // Signals first: one that comes during the start must not kill the process half way.
    let stop = signals()?;
    let metrics = Arc::new(Metrics::new());
    let health = Arc::new(Health::new());
    let listener = admin::bind(config.admin_listen).await?;
    info!(
        version = super::VERSION,
        admin_address = %listener.local_addr()?,
        table = %config.outbox.table,
        "outbox-relay starts"
    );
    let store = match store::open_operator(&config.database_url, super::store_options(&config)) {
        Ok(store) => store,
        Err(error) => return Ok(super::bad_configuration(&format!("RELAY_DATABASE_URL: {error}"))),
    };
    let serving = tokio::spawn(admin::serve(
        listener,
        Admin {
            health: health.clone(),
            metrics: metrics.clone(),
            status: Arc::new(StatusPage::new(Status::new(store.clone(), config.clone()))),
            levels,
            token: config.admin_token.clone(),
        },
        config.admin_identity.clone(),
    ));
    systemd::ready().await;
    let watched = tokio::spawn(systemd::answer_watchdog(health.clone()));
    let traces = Traces::start(config.traces.as_ref()).map(Arc::new);
    let broker = Arc::new(Amqp::new(super::amqp_options(&config)));
    let relay = relay::run(
        Parts {
            config,
            store,
            broker,
            metrics,
            health,
            traces: traces.clone(),
        },
        stop,
    );
    // A task of its own: a panic in it ends the process in order, with exit code 1.
    let ended = tokio::spawn(relay).await.unwrap_or(Ended::Broken);
    if let Some(traces) = traces {
        traces.stop().await;
    }
    serving.abort();
    watched.abort();
    Ok(match ended {
        Ended::Cleanly => ExitCode::SUCCESS,
        Ended::Unsettled | Ended::AtOnce | Ended::Broken => ExitCode::FAILURE,
    })
}

/// The first SIGTERM or SIGINT asks for a graceful stop, the second ends at once.
fn signals() -> anyhow::Result<watch::Receiver<Stop>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (tell, stop) = watch::channel(Stop::No);
    tokio::spawn(async move {
        for asked in [Stop::Gracefully, Stop::Now] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            let _ = tell.send(asked);
            systemd::stopping().await;
        }
        // Keeps the channel open: a closed one would look like a broken relay.
        std::future::pending::<()>().await;
    });
    Ok(stop)
}
