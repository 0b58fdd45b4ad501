//! What a provider counted for one answer.

use serde::{Deserialize, Serialize};

/// Tokens of one answer. The totals hold their parts: input holds cached, written and audio tokens, output holds reasoning
/// and audio tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// All input.
    pub input: u64,
    /// Of the input: what a prompt cache had.
    pub cached: u64,
    /// Of the input: what was written to a prompt cache, for minutes.
    pub cache_written: u64,
    /// Of the input: what was written to a prompt cache, for an hour.
    pub cache_written_1h: u64,
    /// Of the input: audio.
    pub audio_input: u64,
    /// All output.
    pub output: u64,
    /// Of the output: reasoning.
    pub reasoning: u64,
    /// Of the output: audio.
    pub audio_output: u64,
}

impl Usage {
    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            input: self.input.saturating_add(other.input),
            cached: self.cached.saturating_add(other.cached),
            cache_written: self.cache_written.saturating_add(other.cache_written),
            cache_written_1h: self.cache_written_1h.saturating_add(other.cache_written_1h),
            audio_input: self.audio_input.saturating_add(other.audio_input),
            output: self.output.saturating_add(other.output),
            reasoning: self.reasoning.saturating_add(other.reasoning),
            audio_output: self.audio_output.saturating_add(other.audio_output),
        }
    }
}
