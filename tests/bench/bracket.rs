//! The machine's pace drifts: whatever is measured stands between two measures of what it is compared with.

use crate::stage::Stage;

/// Measures so many times. Returns each with the `limit` right before and right after it, which serves the next one as well.
pub(crate) async fn bracketed<L: Copy, M>(
    stage: &mut Stage,
    times: usize,
    mut limit: impl AsyncFnMut(&mut Stage) -> L,
    mut measure: impl AsyncFnMut(&mut Stage) -> M,
) -> Vec<(M, [L; 2])> {
    let mut all = Vec::with_capacity(times);
    let mut before = limit(stage).await;
    for _ in 0..times {
        let measured = measure(stage).await;
        let after = limit(stage).await;
        all.push((measured, [before, after]));
        before = after;
    }
    all
}
