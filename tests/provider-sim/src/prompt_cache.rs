//! Prompt caching: prefixes that a model saw a short while ago.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use parking_lot::Mutex;

use crate::clock::SimTime;

/// Bytes of a step: 128 tokens.
const STEP: usize = 128 * 4;
/// Steps of the shortest prefix that is cached: 1,024 tokens.
const FIRST: usize = 8;
/// How long a prefix stays, in provider milliseconds: 10 minutes.
const STAYS_MS: u64 = 600_000;
/// More prefixes than this are not kept; the cache then starts over.
const MAX: usize = 1_000_000;

#[derive(Debug, Default)]
pub(crate) struct PromptCache {
    /// Hash of model and prefix, to when it was last seen.
    seen: Mutex<HashMap<u64, SimTime>>,
}

impl PromptCache {
    /// How many tokens of this prompt are cached, remembering it for later ones.
    pub(crate) fn cached_tokens(&self, model: usize, prompt: &str, now: SimTime) -> u64 {
        let steps = prompt.as_bytes().chunks_exact(STEP);
        if steps.len() < FIRST {
            return 0;
        }
        let mut chain = DefaultHasher::new();
        model.hash(&mut chain);
        let mut seen = self.seen.lock();
        if seen.len() > MAX {
            seen.clear();
        }
        let mut cached = 0;
        for (n, step) in steps.enumerate() {
            step.hash(&mut chain);
            if n + 1 >= FIRST {
                let last = seen.insert(chain.finish(), now);
                if last.is_some_and(|last| now.millis_since(last) <= STAYS_MS) {
                    cached = (n + 1) as u64 * 128;
                }
            }
        }
        cached
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_recent_prefix_is_cached() {
        let cache = PromptCache::default();
        let long = "word ".repeat(2_000); // 10,000 bytes: 19 steps
        let now = SimTime(0);
        assert_eq!(cache.cached_tokens(0, &long, now), 0);
        assert_eq!(cache.cached_tokens(0, &long, now), 19 * 128);
        assert_eq!(cache.cached_tokens(1, &long, now), 0, "another model");
        let fork = format!("{}{}", long.get(..5_000).unwrap(), "other".repeat(1_000));
        assert_eq!(cache.cached_tokens(0, &fork, now), 9 * 128);
        assert_eq!(cache.cached_tokens(0, &long, now.plus_millis(STAYS_MS + 1)), 0, "forgotten");
        assert_eq!(cache.cached_tokens(0, "short", now), 0);
    }
}
