//! Lets a request in, or says when it may come again.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use offpeak_core::quota::{Demand, Limited, Pace, Quota, QuotaLimits, Refused, Standing};
use offpeak_core::words::{Millis, Timestamp};
use tokio::time::Instant;

use crate::budgets::Reservation;
use crate::config::Limits;
use crate::reply::{Dialect, Refusal};

/// SDKs wait as long as they are told only up to a minute; asked for more they come after a second or two, in vain. So they
/// are told to leave it to their application.
const SDK_PATIENCE_S: u64 = 60;

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

/// When it is asked, and in whose words it is answered.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// The moment from which all quotas count time.
    pub started: Instant,
    /// What the clock shows now.
    pub wall: Timestamp,
    /// The caller's.
    pub dialect: Dialect,
}

/// A moment by both clocks, and in whose words it is told.
#[derive(Debug, Clone, Copy)]
struct At {
    nanos: u64,
    wall: Timestamp,
    dialect: Dialect,
}

impl Quotas {
    /// Adds one. There is a place for each kind.
    pub fn push(&mut self, quota: &Arc<Quota>) {
        if let Some(free) = self.0.iter_mut().find(|place| place.is_none()).filter(|_| !quota.is_open()) {
            *free = Some(quota.clone());
        }
    }

    /// Takes the demand from all of them, or from none.
    pub fn admit(self, demand: Demand, asked: Asked) -> Result<Admission, Refusal> {
        let Asked { started, wall, dialect } = asked;
        let now = nanos(started);
        let mut admission =
            Admission { quotas: Default::default(), demand, started, is_settled: false, reservation: None };
        for (place, quota) in admission.quotas.iter_mut().zip(self.0.into_iter().flatten()) {
            if let Err(refused) = quota.take(demand, now) {
                // What was taken before is given back as the admission is dropped.
                return Err(refusal(refused, quota.standing(now), At { nanos: now, wall, dialect }));
            }
            *place = Some(quota);
        }
        Ok(admission)
    }
}

/// Takes a demand as soon as the quota has it, and after so much patience in any case. For what must not be refused: deferred
/// work that is run in real time takes part in a backend's limits, but a deadline is not missed for them.
pub async fn admit_late(quota: &Arc<Quota>, demand: Demand, started: Instant, patience: Millis) -> Admission {
    let last = Instant::now() + Duration::from(patience);
    while let Err(refused) = quota.take(demand, nanos(started)) {
        let wait = refused.wait.map_or(Duration::MAX, Duration::from_nanos);
        let left = last.saturating_duration_since(Instant::now());
        if left.is_zero() {
            quota.owe(demand, nanos(started));
            break;
        }
        tokio::time::sleep(wait.min(left)).await;
    }
    let mut quotas = Quotas::default().0;
    quotas[0] = Some(quota.clone());
    Admission { quotas, demand, started, is_settled: false, reservation: None }
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

    /// Tells in an answer's headers how the quotas stand: of each kind of limit, the one that is nearest to its end.
    pub fn describe(&self, headers: &mut HeaderMap, wall: Timestamp, dialect: Dialect) {
        let at = At { nanos: nanos(self.started), wall, dialect };
        let mut nearest = [None; 3];
        for quota in self.quotas.iter().flatten() {
            for (nearest, standing) in nearest.iter_mut().zip(quota.standing(at.nanos)) {
                *nearest = [*nearest, standing].into_iter().flatten().min_by(nearer);
            }
        }
        for (name, value) in describe(nearest, at) {
            headers.insert(name, value);
        }
    }
}

/// Which of two limits is nearer to its end: by the share of its burst that remains.
fn nearer(a: &Standing, b: &Standing) -> Ordering {
    let share = |of: &Standing, other: &Standing| u128::from(of.remaining) * u128::from(other.burst);
    share(a, b).cmp(&share(b, a))
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
    Arc::new(Quota::new(self::limits(limits)))
}

/// From now on a quota has these limits. What was taken stays taken.
pub fn change(quota: &Quota, limits: &Limits, started: Instant) {
    quota.set(self::limits(limits), nanos(started));
}

fn limits(limits: &Limits) -> QuotaLimits {
    let burst = |limit: u64| {
        let burst = u128::from(limit) * u128::from(limits.burst.0) / 60_000;
        u64::try_from(burst).unwrap_or(u64::MAX)
    };
    let pace = |limit: Option<u64>| limit.map(|limit| Pace::new(limit, burst(limit)));
    QuotaLimits {
        requests: pace(limits.requests_per_minute.map(|limit| u64::from(limit.get()))),
        input: pace(limits.input_tokens_per_minute),
        output: pace(limits.output_tokens_per_minute),
        at_once: limits.concurrent,
    }
}

fn refusal(refused: Refused, standing: [Option<Standing>; 3], at: At) -> Refusal {
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
    let mut headers = describe(standing, at);
    headers.push((HeaderName::from_static("retry-after-ms"), HeaderValue::from(wait_ms.max(1))));
    if seconds > SDK_PATIENCE_S {
        headers.push((HeaderName::from_static("x-should-retry"), HeaderValue::from_static("false")));
    }
    let headers = Some(Box::new(headers.into_iter().collect()));
    Refusal { retry_after_s: Some(seconds), headers, ..refusal }
}

/// How limits stand, in the words of the caller's API.
fn describe([requests, input, output]: [Option<Standing>; 3], at: At) -> Vec<(HeaderName, HeaderValue)> {
    // Where one number stands for all tokens, it is that of the scarcer ones.
    let tokens = [input, output].into_iter().flatten().min_by_key(|standing| standing.remaining);
    let mut headers = Vec::with_capacity(13);
    match at.dialect {
        Dialect::OpenAi => {
            tell(&mut headers, OPENAI_REQUESTS, requests, |after| Some(in_words(after)));
            tell(&mut headers, OPENAI_TOKENS, tokens, |after| Some(in_words(after)));
        }
        Dialect::Anthropic => {
            let when = |after| Some(rfc3339(at.wall.after(after)));
            tell(&mut headers, ANTHROPIC_REQUESTS, requests, when);
            tell(&mut headers, ANTHROPIC_TOKENS, tokens, when);
            tell(&mut headers, ANTHROPIC_INPUT, input, when);
            tell(&mut headers, ANTHROPIC_OUTPUT, output, when);
        }
    }
    headers
}

/// Names for the limit, what remains of it, and when all of it is there again.
type Names = [HeaderName; 3];

fn tell(
    headers: &mut Vec<(HeaderName, HeaderValue)>,
    [limit, remaining, reset]: Names,
    standing: Option<Standing>,
    when: impl Fn(Millis) -> Option<String>,
) {
    let Some(standing) = standing else { return };
    headers.push((limit, HeaderValue::from(standing.limit)));
    headers.push((remaining, HeaderValue::from(standing.remaining)));
    let after = Millis(standing.full_after.div_ceil(1_000_000));
    if let Some(text) = when(after).and_then(|text| HeaderValue::try_from(text).ok()) {
        headers.push((reset, text));
    }
}

/// A duration as OpenAI's API writes it.
fn in_words(Millis(ms): Millis) -> String {
    if ms < 1000 { format!("{ms}ms") } else { format!("{}.{:03}s", ms / 1000, ms % 1000) }
}

/// A time as Anthropic's API writes it: in whole seconds, and not before it has come.
fn rfc3339(at: Timestamp) -> String {
    crate::reply::rfc3339(at.after(Millis(999)))
}

const OPENAI_REQUESTS: Names = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];
const OPENAI_TOKENS: Names = [
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];
const ANTHROPIC_REQUESTS: Names = [
    HeaderName::from_static("anthropic-ratelimit-requests-limit"),
    HeaderName::from_static("anthropic-ratelimit-requests-remaining"),
    HeaderName::from_static("anthropic-ratelimit-requests-reset"),
];
const ANTHROPIC_TOKENS: Names = [
    HeaderName::from_static("anthropic-ratelimit-tokens-limit"),
    HeaderName::from_static("anthropic-ratelimit-tokens-remaining"),
    HeaderName::from_static("anthropic-ratelimit-tokens-reset"),
];
const ANTHROPIC_INPUT: Names = [
    HeaderName::from_static("anthropic-ratelimit-input-tokens-limit"),
    HeaderName::from_static("anthropic-ratelimit-input-tokens-remaining"),
    HeaderName::from_static("anthropic-ratelimit-input-tokens-reset"),
];
const ANTHROPIC_OUTPUT: Names = [
    HeaderName::from_static("anthropic-ratelimit-output-tokens-limit"),
    HeaderName::from_static("anthropic-ratelimit-output-tokens-remaining"),
    HeaderName::from_static("anthropic-ratelimit-output-tokens-reset"),
];

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
        all.admit(Demand::default(), asked(started, Dialect::OpenAi))
    }

    fn asked(started: Instant, dialect: Dialect) -> Asked {
        Asked { started, wall: Timestamp(0), dialect }
    }

    #[test]
    fn each_api_has_its_own_words() {
        let limits = Limits {
            requests_per_minute: NonZeroU32::new(10),
            input_tokens_per_minute: Some(600),
            output_tokens_per_minute: Some(60),
            ..Limits::default()
        };
        let (quota, started) = (quota(&limits), Instant::now());
        let mut all = Quotas::default();
        all.push(&quota);
        let demand = Demand { input: 60, output: 6 };
        let admitted = all.admit(demand, asked(started, Dialect::Anthropic)).unwrap();
        let mut headers = HeaderMap::new();
        admitted.describe(&mut headers, Timestamp(1_000), Dialect::Anthropic);
        let told = |what: &str| headers[format!("anthropic-ratelimit-{what}").as_str()].to_str().unwrap();
        assert_eq!((told("requests-limit"), told("requests-remaining")), ("10", "9"));
        assert_eq!((told("input-tokens-limit"), told("input-tokens-remaining")), ("600", "540"));
        assert_eq!((told("output-tokens-remaining"), told("tokens-remaining")), ("54", "54"));
        assert_eq!(told("output-tokens-reset"), "1970-01-01T00:00:07Z");
        assert!(headers.keys().all(|name| name.as_str().starts_with("anthropic-")));
        let mut headers = HeaderMap::new();
        admitted.describe(&mut headers, Timestamp(1_000), Dialect::OpenAi);
        assert_eq!(headers["x-ratelimit-limit-tokens"], "60");
        assert!(headers["x-ratelimit-reset-tokens"].to_str().unwrap().ends_with('s'));
        assert!(headers.keys().all(|name| name.as_str().starts_with("x-ratelimit-")));
    }

    #[test]
    fn an_sdk_is_not_asked_to_wait_longer_than_it_would() {
        let (quota, started) = (limits(1, None), Instant::now());
        let refused = |quota: &Arc<Quota>| admit(&[quota], started).err().unwrap().headers.unwrap();
        admit(&[&quota], started).unwrap().settle(Demand::default());
        assert!(!refused(&quota).contains_key("x-should-retry"), "it is there in a minute");
        let quota = super::quota(&Limits { output_tokens_per_minute: Some(60), ..Limits::default() });
        admit(&[&quota], started).unwrap().settle(Demand { input: 0, output: 300 });
        assert_eq!(refused(&quota)["x-should-retry"], "false");
    }

    #[test]
    fn over_the_rate_there_is_a_429_that_says_when() {
        let (quota, started) = (limits(2, None), Instant::now());
        let first = admit(&[&quota], started).unwrap();
        let mut headers = HeaderMap::new();
        first.describe(&mut headers, Timestamp(0), Dialect::OpenAi);
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
    fn the_limit_that_is_nearest_to_its_end_is_told() {
        let tokens =
            |limit| super::quota(&Limits { output_tokens_per_minute: Some(limit), ..Limits::default() });
        let (tenant, key, model, started) =
            (limits(1000, None), limits(10, None), tokens(500), Instant::now());
        let told = |quotas: &[&Arc<Quota>]| {
            let mut headers = HeaderMap::new();
            let admission = admit(quotas, started).unwrap();
            admission.describe(&mut headers, Timestamp(0), Dialect::OpenAi);
            admission.settle(Demand::default());
            let text =
                |name: &str| headers[format!("x-ratelimit-{name}").as_str()].to_str().unwrap().to_owned();
            (text("limit-requests"), text("remaining-requests"), text("limit-tokens"))
        };
        let of = |limit: &str, remaining: &str| (limit.to_owned(), remaining.to_owned(), "500".to_owned());
        assert_eq!(told(&[&tenant, &key, &model]), of("10", "9"), "a tenth is used");
        let narrow = limits(2, None);
        assert_eq!(told(&[&tenant, &key, &narrow, &model]), of("2", "1"), "half is used");
        assert_eq!(told(&[&tenant, &model]), of("1000", "997"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_must_not_be_refused_waits_and_goes_in_the_end() {
        let (quota, started) = (limits(60, None), Instant::now());
        for _ in 0..60 {
            admit(&[&quota], started).unwrap().settle(Demand::default());
        }
        let late = |patience| admit_late(&quota, Demand::default(), started, patience);
        late(Millis::from_mins(1)).await.settle(Demand::default());
        let waited = started.elapsed().as_millis();
        assert!((900..=1100).contains(&waited), "one is there after a second, and not after {waited} ms");
        late(Millis(0)).await.settle(Demand::default());
        assert_eq!(started.elapsed().as_millis(), waited, "it cannot wait");
        late(Millis::from_mins(1)).await.settle(Demand::default());
        let waited = started.elapsed().as_millis();
        assert!((2900..=3100).contains(&waited), "what was owed is paid first: {waited} ms");
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
