//! Lets a request in, or says when it may come again.

use std::sync::Arc;

use http::StatusCode;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use offpeak_core::quota::{Demand, Limited, Quota, Rate, Refused};
use tokio::time::Instant;

use crate::budgets::Reservation;
use crate::config::Limits;
use crate::reply::Refusal;

/// Quotas that one request is held to: tenant, key, model, backend.
const MOST: usize = 4;

/// What a request has taken from its quotas. When it is over it is settled with what it took; dropped before, everything
/// is given back.
pub struct Admission {
    quotas: [Option<Arc<Quota>>; MOST],
    demand: Demand,
    started: Instant,
    is_settled: bool,
    /// The money that is set aside for it.
    pub reservation: Option<Reservation>,
}

/// The quotas of a request, in the order in which they are taken.
#[derive(Default)]
pub struct Quotas([Option<Arc<Quota>>; MOST]);

impl Quotas {
    /// Adds one. There is a place for each kind.
    pub fn push(&mut self, quota: &Arc<Quota>) {
        if let Some(free) = self.0.iter_mut().find(|place| place.is_none()).filter(|_| !quota.is_open()) {
            *free = Some(quota.clone());
        }
    }

    /// Takes the demand from all of them, or from none. `started` is the moment from which all quotas count time.
    pub fn admit(self, demand: Demand, started: Instant) -> Result<Admission, Refusal> {
        let now = nanos(started);
        let mut admission =
            Admission { quotas: Default::default(), demand, started, is_settled: false, reservation: None };
        for (place, quota) in admission.quotas.iter_mut().zip(self.0.into_iter().flatten()) {
            if let Err(refused) = quota.take(demand, now) {
                // What was taken before is given back as the admission is dropped.
                return Err(refusal(refused, &quota, now));
            }
            *place = Some(quota);
        }
        Ok(admission)
    }
}

impl Admission {
    /// The request is over and took this. What it cost is not known yet: the money set aside is handed on.
    pub fn settle(mut self, took: Demand) -> Option<Reservation> {
        let now = nanos(self.started);
        for quota in self.quotas.iter().flatten() {
            quota.settle(self.demand, took, now);
        }
        self.is_settled = true;
        self.reservation.take()
    }

    /// What was reckoned.
    pub const fn demand(&self) -> Demand {
        self.demand
    }

    /// Tells in an answer's headers how the narrowest of the quotas stands.
    pub fn describe(&self, headers: &mut HeaderMap) {
        if let Some(quota) = self.quotas.iter().flatten().next() {
            for (name, value) in describe(quota, nanos(self.started)) {
                headers.insert(name, value);
            }
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        if !self.is_settled {
            for quota in self.quotas.iter().flatten() {
                quota.undo(self.demand);
            }
        }
    }
}

fn nanos(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// A quota with these limits, full.
pub fn quota(limits: &Limits) -> Arc<Quota> {
    let burst = |limit: u64| {
        let burst = u128::from(limit) * u128::from(limits.burst.0) / 60_000;
        u64::try_from(burst).unwrap_or(u64::MAX).max(1)
    };
    let rate = |limit: Option<u64>| limit.map(|limit| Rate::new(limit, burst(limit)));
    Arc::new(Quota {
        requests: rate(limits.requests_per_minute.map(|limit| u64::from(limit.get()))),
        input: rate(limits.input_tokens_per_minute),
        output: rate(limits.output_tokens_per_minute),
        at_once: limits.concurrent.map(offpeak_core::quota::AtOnce::new),
    })
}

fn refusal(refused: Refused, quota: &Quota, now: u64) -> Refusal {
    let what = match refused.by {
        Limited::Requests => "requests a minute",
        Limited::Input => "input tokens a minute",
        Limited::Output => "output tokens a minute",
        Limited::AtOnce => "requests at once",
    };
    let wait_ms = refused.wait.unwrap_or(0).div_ceil(1_000_000);
    let seconds = wait_ms.div_ceil(1000).max(1);
    let message = format!(
        "The limit of {what} is reached. Try again in {seconds} s, or tag what can wait (x-offpeak-sla: deferrable)."
    );
    let refusal = Refusal::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", message);
    let mut headers = describe(quota, now);
    headers.push((HeaderName::from_static("retry-after-ms"), HeaderValue::from(wait_ms.max(1))));
    let headers = Some(Box::new(headers.into_iter().collect()));
    Refusal { retry_after_s: Some(seconds), headers, ..refusal }
}

const REQUESTS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];
const TOKENS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];

/// How a quota stands, as OpenAI's API tells it. Of input and output tokens the scarcer ones are told.
fn describe(quota: &Quota, now: u64) -> Vec<(HeaderName, HeaderValue)> {
    let mut headers = Vec::with_capacity(7);
    let tokens = [&quota.input, &quota.output].into_iter().flatten();
    let tokens = tokens.map(|rate| rate.standing(now)).min_by_key(|standing| standing.remaining);
    let requests = quota.requests.as_ref().map(|rate| rate.standing(now));
    for (names, standing) in [(REQUESTS, requests), (TOKENS, tokens)] {
        let Some(standing) = standing else { continue };
        let [limit, remaining, reset] = names;
        headers.push((limit, HeaderValue::from(standing.limit)));
        headers.push((remaining, HeaderValue::from(standing.remaining)));
        let ms = standing.full_after.div_ceil(1_000_000);
        let text = if ms < 1000 { format!("{ms}ms") } else { format!("{}.{:03}s", ms / 1000, ms % 1000) };
        if let Ok(text) = HeaderValue::try_from(text) {
            headers.push((reset, text));
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn limits(requests: u32, concurrent: Option<u32>) -> Arc<Quota> {
        quota(&Limits { requests_per_minute: NonZeroU32::new(requests), concurrent, ..Limits::default() })
    }

    fn admit(quotas: &[&Arc<Quota>], started: Instant) -> Result<Admission, Refusal> {
        let mut all = Quotas::default();
        for quota in quotas {
            all.push(quota);
        }
        all.admit(Demand::default(), started)
    }

    #[test]
    fn over_the_rate_there_is_a_429_that_says_when() {
        let (quota, started) = (limits(2, None), Instant::now());
        let first = admit(&[&quota], started).unwrap();
        let mut headers = HeaderMap::new();
        first.describe(&mut headers);
        assert_eq!(headers["x-ratelimit-limit-requests"], "2");
        assert_eq!(headers["x-ratelimit-remaining-requests"], "1");
        first.settle(Demand::default());
        admit(&[&quota], started).unwrap().settle(Demand::default());
        let refusal = admit(&[&quota], started).err().unwrap();
        assert_eq!(refusal.status, StatusCode::TOO_MANY_REQUESTS);
        assert!(refusal.retry_after_s.is_some_and(|seconds| (29..=30).contains(&seconds)));
        let told = refusal.headers.unwrap();
        let ms: u64 = told["retry-after-ms"].to_str().unwrap().parse().unwrap();
        assert!((28_000..=30_000).contains(&ms));
    }

    #[test]
    fn what_one_quota_refuses_the_others_keep() {
        let (wide, narrow, started) = (limits(2, None), limits(100, Some(1)), Instant::now());
        let running = admit(&[&wide, &narrow], started).unwrap();
        assert!(admit(&[&wide, &narrow], started).is_err(), "one at once");
        drop(running); // it was not sent
        admit(&[&wide, &narrow], started).unwrap().settle(Demand::default());
        admit(&[&wide, &narrow], started).unwrap().settle(Demand::default());
        assert!(admit(&[&wide, &narrow], started).is_err(), "two a minute");
    }
}
