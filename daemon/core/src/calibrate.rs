//! What has been learnt of a model's tokens, so that quotas and budgets reckon with what answers usually take.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::quota::Demand;
use crate::usage::Usage;

/// The weight of one more answer: a sixteenth.
const WEIGHT: u64 = 16;

/// A body has at most so many times the tokens that were reckoned; what says more is no text.
const PERMILLE_MAX: u64 = 100_000;

/// What an answer takes before anything has been learnt, where the request sets no bound itself.
const UNKNOWN_OUTPUT: u64 = 500;

/// Moving averages for one model at one backend. Zero stands for "nothing learnt yet".
#[derive(Debug, Default)]
pub struct Learnt {
    /// Input tokens for a thousand that were reckoned from the body's length.
    input_permille: AtomicU64,
    /// Output tokens of an answer, in thousandths.
    output_milli: AtomicU64,
    /// More was learnt since it was last asked.
    has_news: AtomicBool,
}

/// What has been learnt, as it is kept over a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Calibration {
    /// Input tokens for a thousand reckoned ones; 0 if nothing is known.
    pub input_permille: u64,
    /// Output tokens of an answer, in thousandths; 0 if nothing is known.
    pub output_milli: u64,
}

impl Learnt {
    /// Goes on from what an earlier run has learnt; what this one knows already stays.
    pub fn restore(&self, kept: Calibration) {
        let fill = |average: &AtomicU64, value| {
            average.update(
                Ordering::Relaxed,
                Ordering::Relaxed,
                |known| if known == 0 { value } else { known },
            );
        };
        fill(&self.input_permille, kept.input_permille.min(PERMILLE_MAX));
        fill(&self.output_milli, kept.output_milli);
    }

    /// What is to be kept, if more was learnt since this was last asked.
    pub fn news(&self) -> Option<Calibration> {
        self.has_news.swap(false, Ordering::Relaxed).then(|| Calibration {
            input_permille: self.input_permille.load(Ordering::Relaxed),
            output_milli: self.output_milli.load(Ordering::Relaxed),
        })
    }

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

    /// An answer has been counted. A reckoned input of 0 stands for "not known": then its output alone is learnt.
    pub fn learn(&self, reckoned_input: u64, usage: Usage) {
        if reckoned_input > 0 && usage.input > 0 {
            let permille = (usage.input.saturating_mul(1000) / reckoned_input).clamp(1, PERMILLE_MAX);
            update(&self.input_permille, permille);
        }
        update(&self.output_milli, usage.output.saturating_mul(1000).max(1));
        self.has_news.store(true, Ordering::Relaxed);
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

    #[test]
    fn what_was_learnt_outlives_a_restart() {
        let learnt = Learnt::default();
        assert_eq!(learnt.news(), None);
        learnt.learn(100, Usage { input: 150, output: 40, ..Usage::default() });
        let kept = learnt.news().unwrap();
        assert_eq!(learnt.news(), None, "it is told once");
        let after = Learnt::default();
        after.restore(kept);
        assert_eq!(after.demand(200, None), learnt.demand(200, None));
        assert_eq!(after.news(), None, "it is in the store already");
        after.restore(Calibration { input_permille: 9000, output_milli: 1 });
        assert_eq!(after.demand(200, None), learnt.demand(200, None), "what is known is newer");
    }
}
