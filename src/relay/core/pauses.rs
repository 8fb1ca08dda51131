//! What people have paused is passed on to the dispatcher, and told.

use tracing::{info, warn};

use crate::relay::dispatch::Paused;
use crate::store::Pause;

use super::Core;

impl Core {
    pub(super) fn take_pauses(&mut self, pauses: Vec<Pause>) {
        let paused = Paused {
            everything: pauses.iter().any(|pause| pause.exchange.is_none()),
            exchanges: pauses.iter().filter_map(|pause| pause.exchange.clone()).collect(),
        };
        let before = self.health.pauses().unwrap_or_default();
        for pause in pauses.iter().filter(|pause| !before.contains(pause)) {
            warn!(
                exchange = pause.exchange,
                by = pause.by,
                reason = pause.reason,
                "{} is paused until a person resumes it",
                what(pause)
            );
        }
        for pause in before.iter().filter(|pause| !pauses.contains(pause)) {
            info!(exchange = pause.exchange, "{} is not paused any more", what(pause));
        }
        self.metrics.paused(paused.everything, paused.exchanges.len());
        self.health.set_pauses(pauses);
        if self.dispatcher.pause(&paused) {
            self.plan.read_anew();
        }
        self.pauses_known = true;
    }
}

fn what(pause: &Pause) -> &'static str {
    match pause.exchange {
        None => "everything",
        Some(_) => "an exchange",
    }
}
