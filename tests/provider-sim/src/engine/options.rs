//! What an engine is made from.

use serde::{Deserialize, Serialize};

/// An engine's speed and limits, and how its server is started.
///
/// The speed is that of continuous batching: one step gives every running sequence one token, and takes longer the more
/// of them run. The default curve is calibrated with published figures for one GPU of the A100 class: 2,000 tokens a
/// second at 32 running requests, five times what one request alone gets, 75 % of what 256 give; more add nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EngineOptions {
    /// Running sequences and the microseconds of a step with so many, in rising order. Between two points the line
    /// through them holds; beyond the last one a step grows as the sequences do.
    pub step_us: Vec<(u32, u64)>,
    /// Microseconds that a token of a prompt adds to the step in which it is read.
    pub prefill_us: u64,
    /// Microseconds that each input of an embeddings call adds.
    pub pooling_us: u64,
    /// Whether each input of an embeddings call takes as long as the longest that is read with it in one step.
    pub pads: bool,
    /// Microseconds that the server needs for a call before the engine sees it, one call after the other.
    pub call_us: u64,
    /// Sequences that run at once (`--max-num-seqs`).
    pub max_num_seqs: usize,
    /// Prompt tokens read in one step (`--max-num-batched-tokens`).
    pub max_num_batched_tokens: u64,
    /// Tokens that the cache holds, over all running sequences.
    pub kv_cache_tokens: u64,
    /// Tokens of one sequence, prompt and answer (`--max-model-len`).
    pub max_model_len: u64,
    /// `--scheduling-policy priority`; without it a `priority` other than 0 is refused.
    pub priority_scheduling: bool,
    /// Sequences that may wait (`--max-num-queued-reqs`); more are refused with 503.
    pub max_num_queued_reqs: Option<usize>,
    /// Prompt tokens that may wait (`--max-num-queued-tokens`); more are refused with 503.
    pub max_num_queued_tokens: Option<u64>,
    /// A call with an input that contains this text fails whole, with status 500.
    pub poison: Option<String>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            step_us: vec![(1, 2_500), (32, 16_000), (256, 96_000)],
            prefill_us: 40,
            pooling_us: 380,
            pads: false,
            call_us: 500,
            max_num_seqs: 256,
            max_num_batched_tokens: 8_192,
            kv_cache_tokens: 200_000,
            max_model_len: 32_768,
            priority_scheduling: false,
            max_num_queued_reqs: None,
            max_num_queued_tokens: None,
            poison: None,
        }
    }
}

impl EngineOptions {
    /// Microseconds of a step with `running` sequences.
    pub fn step_us(&self, running: usize) -> u64 {
        let running = u64::try_from(running).unwrap_or(u64::MAX).max(1);
        let mut before: Option<(u64, u64)> = None;
        for (count, us) in &self.step_us {
            let here = (u64::from(*count).max(1), *us);
            if running <= here.0 {
                let Some(from) = before else { return here.1 };
                let (width, rise) = (here.0 - from.0, here.1.saturating_sub(from.1));
                return from.1 + rise * (running - from.0) / width.max(1);
            }
            before = Some(here);
        }
        before.map_or(1, |(count, us)| us.saturating_mul(running) / count)
    }

    /// Tokens a second with `running` sequences, all of them past their prompts.
    pub fn tokens_per_second(&self, running: usize) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let (tokens, us) = (running as f64, self.step_us(running) as f64);
        tokens * 1e6 / us.max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_curve_is_the_published_one() {
        let options = EngineOptions::default();
        let speed = |running| options.tokens_per_second(running);
        assert!((speed(32) - 2_000.0).abs() < 1.0, "{}", speed(32));
        let gain = speed(32) / speed(1);
        assert!((4.0..=6.0).contains(&gain), "32 against one by one: {gain}");
        let efficiency = speed(32) / speed(256);
        assert!((0.70..=0.85).contains(&efficiency), "{efficiency}");
        assert!((speed(512) - speed(256)).abs() < 1.0, "saturated");
        assert_eq!(options.step_us(512), 2 * options.step_us(256), "more only add latency");
    }

    #[test]
    fn more_at_once_is_never_slower_over_all() {
        let options = EngineOptions::default();
        let speeds: Vec<_> = (1..=400).map(|running| options.tokens_per_second(running)).collect();
        assert!(speeds.windows(2).all(|pair| pair[1] > pair[0] * 0.999));
    }
}
