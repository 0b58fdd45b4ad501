//! Prompt caching: prefixes that a model saw a short while ago.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use parking_lot::Mutex;

use crate::clock::SimTime;

/// Bytes of a step: 128 tokens.
const STEP: usize = 128 * 4;
/// Steps of the shortest prefix that is cached: 1,024 tokens.
const FIRST: usize = 8;
/// More prefixes than this are not kept; the cache then starts over.
const MAX: usize = 1_000_000;

#[derive(Debug, Default)]
pub(crate) struct PromptCache {
    /// Hash of model and prefix, to when it was last seen.
    seen: Mutex<HashMap<u64, SimTime>>,
}

/// What the cache did for a prompt, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Cached {
    /// It had these.
    pub(crate) read: u64,
    /// It remembers these from now on.
    pub(crate) written: u64,
}

impl PromptCache {
    /// How much of this prompt is cached, remembering it for later ones. A prefix stays for `stays_ms` of provider time.
    pub(crate) fn look(&self, model: usize, prompt: &str, now: SimTime, stays_ms: u64) -> Cached {
        let steps = prompt.as_bytes().chunks_exact(STEP);
        if steps.len() < FIRST {
            return Cached::default();
        }
        let whole = steps.len() as u64 * 128;
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
                if last.is_some_and(|last| now.millis_since(last) <= stays_ms) {
                    cached = (n + 1) as u64 * 128;
                }
            }
        }
        Cached { read: cached, written: whole - cached }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_recent_prefix_is_cached() {
        let cache = PromptCache::default();
        let look = |model, prompt: &str, now| cache.look(model, prompt, now, 600_000).read;
        let long = "word ".repeat(2_000); // 10,000 bytes: 19 steps
        let now = SimTime(0);
        assert_eq!(look(0, &long, now), 0);
        assert_eq!(look(0, &long, now), 19 * 128);
        assert_eq!(look(1, &long, now), 0, "another model");
        let fork = format!("{}{}", long.get(..5_000).unwrap(), "other".repeat(1_000));
        assert_eq!(look(0, &fork, now), 9 * 128);
        assert_eq!(look(0, &long, now.plus_millis(600_001)), 0, "forgotten");
        assert_eq!(look(0, "short", now), 0);
        let half = long.get(..5_000).unwrap();
        let both = |prompt: &str| cache.look(2, prompt, now, 600_000);
        assert_eq!(both(half), Cached { read: 0, written: 9 * 128 });
        assert_eq!(both(&long), Cached { read: 9 * 128, written: 10 * 128 });
    }
}
