//! What a backend tells of the account's quota with its answers.

use std::sync::atomic::Ordering;

use http::HeaderMap;
use offpeak_core::reserve::is_of_a_minute;
use offpeak_core::words::ModelId;

use super::Backend;
use crate::turns::Told;

/// Where providers tell how many calls a minute they allow, how many are left, and when all are there again.
const CALLS_A_MINUTE: [[&str; 3]; 2] = [
    ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"],
    [
        "anthropic-ratelimit-requests-limit",
        "anthropic-ratelimit-requests-remaining",
        "anthropic-ratelimit-requests-reset",
    ],
];

/// The same for tokens.
const TOKENS_A_MINUTE: [[&str; 3]; 2] = [
    ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"],
    [
        "anthropic-ratelimit-tokens-limit",
        "anthropic-ratelimit-tokens-remaining",
        "anthropic-ratelimit-tokens-reset",
    ],
];

impl Backend {
    /// Looks into the headers of an answer for the account's quota of a model, and lets deferred work leave some of it to
    /// others; returns how many calls a minute there are if that is another number than before.
    pub fn note_quota(&self, model: &ModelId, headers: &HeaderMap) -> Option<u64> {
        let text = |name: &str| headers.get(name)?.to_str().ok();
        let number = |name: &str| text(name)?.trim().parse::<u64>().ok();
        let told = |names: [[&str; 3]; 2]| {
            let [limit, left, reset] = names.into_iter().find(|[limit, ..]| headers.contains_key(*limit))?;
            let a_minute = number(limit).filter(|a_minute| *a_minute > 0)?;
            text(reset).is_none_or(is_of_a_minute).then(|| (a_minute, number(left)))
        };
        let left = |(a_minute, left): (u64, Option<u64>)| left.map(|left| Told { a_minute, left });
        let (calls, tokens) = (told(CALLS_A_MINUTE), told(TOKENS_A_MINUTE));
        let (calls_left, tokens_left) = (calls.and_then(left), tokens.and_then(left));
        if calls_left.is_some() || tokens_left.is_some() {
            self.turns.told(model, calls_left, tokens_left);
        }
        let (a_minute, _) = calls?;
        (self.quota_a_minute.swap(a_minute, Ordering::Relaxed) != a_minute).then_some(a_minute)
    }
}
