//! Random histories. A failure prints the line to add to `replayed`, and the trace of the row and its key.

use proptest::prelude::*;

use crate::config::Ordering;

use super::scenario::Scenario;
use super::world::{Bug, World};

/// Histories of each ordering.
const HISTORIES: u32 = 900;

fn history(ordering: Ordering, seed: u64, transactions: u32, keys: u32) -> Result<(), String> {
    let scenario = Scenario::draw(seed, ordering, transactions, keys);
    let drawn = format!("{scenario:?}");
    World::new(scenario, Bug::None).run().map(drop).map_err(|violation| {
        format!("{violation}\nreplay: (Ordering::{ordering:?}, {seed}, {transactions}, {keys}), of {drawn}")
    })
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: HISTORIES,
        failure_persistence: None,
        max_shrink_iters: 300,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn strict(seed: u64, transactions in 1u32..60, keys in 1u32..6) {
        history(Ordering::Strict, seed, transactions, keys).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn pipelined(seed: u64, transactions in 1u32..60, keys in 1u32..6) {
        history(Ordering::Pipelined, seed, transactions, keys).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn unordered(seed: u64, transactions in 1u32..60, keys in 1u32..6) {
        history(Ordering::None, seed, transactions, keys).map_err(TestCaseError::fail)?;
    }
}

#[test]
fn replayed() {
    let histories = [
        (Ordering::Strict, 16_730_719_722_194_825_628, 26, 5),
        (Ordering::Strict, 12_135_776_816_441_821_308, 28, 3),
        (Ordering::Pipelined, 7_660_385_472_722_739_745, 53, 5),
        (Ordering::Pipelined, 9_645_244_835_522_044_694, 23, 1),
    ];
    for (ordering, seed, transactions, keys) in histories {
        history(ordering, seed, transactions, keys).unwrap();
    }
}
