//! Exponential backoff with full jitter.

use std::time::Duration;

/// How refused rows are tried again.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// Upper bound of the first delay.
    pub min_delay: Duration,
    /// Upper bound of every delay.
    pub max_delay: Duration,
    /// After so many refusals a row is given up; at least 1.
    pub max_attempts: u32,
}

impl RetryPolicy {
    /// The delay after the `n`th refusal (from 1): anywhere between nothing and `min_delay` doubled `n - 1` times, so
    /// that rows refused together do not come back together.
    pub(super) fn delay(&self, n: u32, rng: &mut fastrand::Rng) -> Duration {
        let doublings = n.saturating_sub(1).min(31);
        let bound = self.min_delay.saturating_mul(1 << doublings).min(self.max_delay);
        bound.mul_f64(rng.f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_maximum_and_never_overflow() {
        let policy = RetryPolicy {
            min_delay: Duration::from_secs(1),
            max_delay: Duration::from_secs(300),
            max_attempts: 10,
        };
        let mut rng = fastrand::Rng::with_seed(1);
        for n in [0, 1, 2, 9, 64, 1025, u32::MAX] {
            let longest = (0..1000).map(|_| policy.delay(n, &mut rng)).max().expect("some");
            let bound = Duration::from_secs(300).min(Duration::from_secs(1 << n.saturating_sub(1).min(20)));
            assert!(
                longest <= bound && longest > bound.mul_f64(0.9),
                "{n}: {longest:?} of {bound:?}"
            );
        }
    }
}
