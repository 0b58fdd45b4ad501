//! What a key may take in a provider minute: calls, and requests and tokens of each model in real time.

use std::cell::Cell;
use std::collections::HashMap;

use http::{HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;

use crate::clock::{Clock, SimTime, rfc3339};
use crate::config::RealtimeLimits;
use crate::dialect::Dialect;
use crate::error::ApiError;

const MINUTE_MS: u64 = 60_000;

/// Who calls, and what the call is told about its limits.
pub(crate) struct Caller<'a> {
    pub(crate) key: &'a str,
    pub(crate) readings: Cell<Readings>,
}

/// What is left of the limits that a call met.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Readings {
    requests: Option<Reading>,
    tokens: Option<Reading>,
}

#[derive(Debug, Clone, Copy)]
struct Reading {
    limit: u64,
    left: u64,
}

/// Whose minute it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Subject {
    key: String,
    /// A model's place in the catalogue; `None` stands for calls of any kind.
    model: Option<usize>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Minute {
    number: u64,
    requests: u64,
    tokens: u64,
}

/// The counters of the running minute.
#[derive(Debug, Default)]
pub(crate) struct Quota {
    minutes: Mutex<HashMap<Subject, Minute>>,
}

/// What a call asks for.
struct Ask<'a> {
    model: Option<(usize, &'a str)>,
    tokens: u64,
    requests_limit: Option<u64>,
    tokens_limit: Option<u64>,
}

impl Quota {
    /// Takes one of the minute's calls of `caller`, of whatever kind.
    pub(crate) fn take_call(
        &self,
        caller: &Caller<'_>,
        limit: Option<u32>,
        clock: &Clock,
        now: SimTime,
    ) -> Result<(), ApiError> {
        let Some(limit) = limit else { return Ok(()) };
        let ask = Ask { model: None, tokens: 0, requests_limit: Some(limit.into()), tokens_limit: None };
        self.take(caller, &ask, clock, now)
    }

    /// Takes a request of `tokens` from the minute of this model. Tokens are counted when the request is accepted, as
    /// the real API does it: the prompt's, or the limit on output where that is more.
    pub(crate) fn take_request(
        &self,
        caller: &Caller<'_>,
        limits: &RealtimeLimits,
        model: (usize, &str),
        tokens: u64,
        clock: &Clock,
        now: SimTime,
    ) -> Result<(), ApiError> {
        if *limits == RealtimeLimits::default() {
            return Ok(());
        }
        let ask = Ask {
            model: Some(model),
            tokens,
            requests_limit: limits.requests_per_minute.map(Into::into),
            tokens_limit: limits.tokens_per_minute,
        };
        self.take(caller, &ask, clock, now)
    }

    fn take(&self, caller: &Caller<'_>, ask: &Ask<'_>, clock: &Clock, now: SimTime) -> Result<(), ApiError> {
        let subject = Subject { key: caller.key.to_owned(), model: ask.model.map(|(place, _)| place) };
        let number = now.0 / MINUTE_MS;
        let mut minutes = self.minutes.lock();
        let minute = minutes.entry(subject).or_default();
        if minute.number != number {
            *minute = Minute { number, ..Minute::default() };
        }
        let over_requests = ask.requests_limit.filter(|limit| minute.requests >= *limit);
        let over_tokens = ask.tokens_limit.filter(|limit| minute.tokens + ask.tokens > *limit);
        let used = minute.tokens;
        // A refused request counts against the requests too, but takes no tokens.
        minute.requests += 1;
        if over_requests.is_none() && over_tokens.is_none() {
            minute.tokens += ask.tokens;
        }
        let before = caller.readings.get();
        let reading = |limit: Option<u64>, used: u64| {
            limit.map(|limit| Reading { limit, left: limit.saturating_sub(used) })
        };
        caller.readings.set(Readings {
            requests: reading(ask.requests_limit, minute.requests).or(before.requests),
            tokens: reading(ask.tokens_limit, minute.tokens).or(before.tokens),
        });
        drop(minutes);
        let wait_ms = clock.real_millis(resets_in_ms(now));
        let of_model = ask.model.map_or_else(String::new, |(_, name)| format!(" for {name}"));
        if let Some(limit) = over_requests {
            let message = format!(
                "Rate limit reached{of_model} in organization org-sim on requests per min (RPM): Limit {limit}. \
                 Please try again in {wait_ms}ms."
            );
            return Err(ApiError::rate_limited(message, Some(wait_ms)));
        }
        let Some(limit) = over_tokens else { return Ok(()) };
        let tokens = ask.tokens;
        let message = if tokens > limit {
            format!("Request too large{of_model} on tokens per min (TPM): Limit {limit}, Requested {tokens}.")
        } else {
            format!(
                "Rate limit reached{of_model} in organization org-sim on tokens per min (TPM): Limit {limit}, Used \
                 {used}, Requested {tokens}. Please try again in {wait_ms}ms."
            )
        };
        let mut error = ApiError::rate_limited(message, (tokens <= limit).then_some(wait_ms));
        error.kind = "tokens";
        Err(error)
    }
}

fn resets_in_ms(now: SimTime) -> u64 {
    MINUTE_MS - now.0 % MINUTE_MS
}

impl Readings {
    /// Adds the rate-limit headers, in the words of `dialect`.
    pub(crate) fn show(self, dialect: Dialect, headers: &mut HeaderMap, clock: &Clock, now: SimTime) {
        const OPENAI: [[&str; 3]; 2] = [
            ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"],
            ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"],
        ];
        const ANTHROPIC: [[&str; 3]; 2] = [
            [
                "anthropic-ratelimit-requests-limit",
                "anthropic-ratelimit-requests-remaining",
                "anthropic-ratelimit-requests-reset",
            ],
            [
                "anthropic-ratelimit-tokens-limit",
                "anthropic-ratelimit-tokens-remaining",
                "anthropic-ratelimit-tokens-reset",
            ],
        ];
        if self.requests.is_none() && self.tokens.is_none() {
            return;
        }
        let in_ms = resets_in_ms(now);
        let (names, reset) = match dialect {
            Dialect::OpenAi | Dialect::Engine => (OPENAI, format!("{}ms", clock.real_millis(in_ms))),
            Dialect::Anthropic => (ANTHROPIC, rfc3339(now.plus_millis(in_ms))),
        };
        for ([limit, left, resets], reading) in names.into_iter().zip([self.requests, self.tokens]) {
            let Some(reading) = reading else { continue };
            headers.insert(HeaderName::from_static(limit), HeaderValue::from(reading.limit));
            headers.insert(HeaderName::from_static(left), HeaderValue::from(reading.left));
            if let Ok(reset) = HeaderValue::from_str(&reset) {
                headers.insert(HeaderName::from_static(resets), reset);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn caller(key: &str) -> Caller<'_> {
        Caller { key, readings: Cell::default() }
    }

    proptest! {
        /// However requests come, no minute lets more of them through, or more tokens, than the limits say.
        #[test]
        fn no_minute_gives_more_than_its_limits(
            calls in prop::collection::vec((0_u64..30_000, 0_u64..2, 1_u64..80), 1..80),
        ) {
            let limits = RealtimeLimits { requests_per_minute: Some(5), tokens_per_minute: Some(100) };
            let quota = Quota::default();
            let clock = Clock::new(SimTime(0), 0);
            let mut now = SimTime(0);
            let mut given: HashMap<(u64, u64), (u64, u64)> = HashMap::new();
            for (after, key, tokens) in calls {
                now = now.plus_millis(after);
                let text = key.to_string();
                let caller = caller(&text);
                let taken = quota.take_request(&caller, &limits, (0, "m"), tokens, &clock, now);
                let sums = given.entry((key, now.0 / MINUTE_MS)).or_default();
                match taken {
                    Ok(()) => *sums = (sums.0 + 1, sums.1 + tokens),
                    Err(error) => {
                        prop_assert_eq!(error.status, 429);
                        prop_assert!(error.retry_after_ms.is_some_and(|ms| (1..=MINUTE_MS).contains(&ms)));
                    }
                }
                prop_assert!(sums.0 <= 5 && sums.1 <= 100);
                prop_assert_eq!(caller.readings.get().tokens.map(|reading| reading.left), Some(100 - sums.1));
            }
        }
    }

    #[test]
    fn what_never_fits_is_told_so() {
        let limits = RealtimeLimits { requests_per_minute: None, tokens_per_minute: Some(10) };
        let clock = Clock::new(SimTime(0), 0);
        let taken = Quota::default().take_request(&caller("k"), &limits, (0, "m"), 11, &clock, SimTime(0));
        let error = taken.unwrap_err();
        assert_eq!((error.retry_after_ms, error.kind), (None, "tokens"));
        assert!(error.message.starts_with("Request too large for m"));
    }
}
