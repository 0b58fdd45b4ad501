//! What has been learnt of a model's tokens, so that quotas and budgets reckon with what answers usually take.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::quota::Demand;
use crate::usage::Usage;

/// The weight of one more answer: a sixteenth.
const WEIGHT: u64 = 16;

/// What an answer takes before anything has been learnt, where the request sets no bound itself.
const UNKNOWN_OUTPUT: u64 = 500;

/// Moving averages for one model at one backend. Zero stands for "nothing learnt yet".
#[derive(Debug, Default)]
pub struct Learnt {
    /// Input tokens for a thousand that were reckoned from the body's length.
    input_permille: AtomicU64,
    /// Output tokens of an answer, in thousandths.
    output_milli: AtomicU64,
}

impl Learnt {
    /// What a request will probably take.
    pub fn demand(&self, reckoned_input: u64, max_output: Option<u64>) -> Demand {
        let permille = match self.input_permille.load(Ordering::Relaxed) {
            0 => 1000,
            learnt => learnt,
        };
        let output = match self.output_milli.load(Ordering::Relaxed) {
            0 => max_output.unwrap_or(UNKNOWN_OUTPUT),
            learnt => (learnt / 1000).max(1),
        };
        Demand {
            input: reckoned_input.saturating_mul(permille) / 1000,
            output: output.min(max_output.unwrap_or(u64::MAX)),
        }
    }

    /// An answer has been counted.
    pub fn learn(&self, reckoned_input: u64, usage: Usage) {
        if reckoned_input > 0 && usage.input > 0 {
            let permille = (usage.input.saturating_mul(1000) / reckoned_input).clamp(1, 100_000);
            update(&self.input_permille, permille);
        }
        update(&self.output_milli, usage.output.saturating_mul(1000).max(1));
    }
}

fn update(average: &AtomicU64, value: u64) {
    average.update(Ordering::Relaxed, Ordering::Relaxed, |before| match before {
        0 => value,
        _ => (before / WEIGHT * (WEIGHT - 1) + value / WEIGHT).max(1),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimates_come_near_to_what_answers_take() {
        let learnt = Learnt::default();
        assert_eq!(learnt.demand(100, None), Demand { input: 100, output: UNKNOWN_OUTPUT });
        assert_eq!(learnt.demand(100, Some(7)), Demand { input: 100, output: 7 });
        for _ in 0..200 {
            learnt.learn(100, Usage { input: 150, output: 40, ..Usage::default() });
        }
        let demand = learnt.demand(200, Some(1000));
        assert!((290..=300).contains(&demand.input) && (38..=40).contains(&demand.output), "{demand:?}");
        assert_eq!(learnt.demand(200, Some(5)).output, 5, "never more than the request allows");
        learnt.learn(0, Usage::default());
        learnt.learn(1, Usage { input: u64::MAX, output: u64::MAX, ..Usage::default() });
        assert!(learnt.demand(u64::MAX, None).input > 0);
    }
}
