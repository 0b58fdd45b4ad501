//! What an event means for the call that was out, and how long to wait before the next.

use offpeak_plugin::provider::{Event, Response};

use super::Context;
use crate::wire::ErrorObject;

/// What became of a call.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It was done; the answer's body.
    Done(Vec<u8>),
    /// It was not done, and may be tried again.
    Later(Hindrance),
    /// Nobody knows whether it was done.
    Doubtful(Hindrance),
    /// It was not done and never will be.
    Refused { status: u16, error: ErrorObject },
}

/// What stood in the way.
#[derive(Debug)]
pub(super) struct Hindrance {
    pub(super) code: String,
    pub(super) message: String,
    /// The provider wants to be left alone for so long.
    pub(super) retry_after_ms: Option<u64>,
}

impl Outcome {
    /// An event that is no answer to a call leaves the call's fate unknown.
    pub(super) fn of(event: Event) -> Self {
        match event {
            Event::Answered(response) => Self::of_response(response),
            Event::NotSent(reason) => Self::Later(Hindrance::new("unreachable", &reason)),
            Event::Start | Event::Interrupted | Event::Waited | Event::Read(_) | Event::Cancel => {
                Self::Doubtful(Hindrance::new("interrupted", "the call was interrupted"))
            }
        }
    }

    fn of_response(response: Response) -> Self {
        if (200..300).contains(&response.status) {
            return Self::Done(response.body);
        }
        let error = ErrorObject::of_body(&response.body);
        let hindrance = || Hindrance {
            code: error.code_or(&format!("http_{}", response.status)),
            message: error.message.clone().unwrap_or_default(),
            retry_after_ms: retry_after_ms(&response),
        };
        match response.status {
            408 | 500.. => Self::Doubtful(hindrance()),
            // An account without means stays so until somebody pays.
            429 if error.code_or("") == "insufficient_quota" => Self::Refused { status: 429, error },
            409 | 425 | 429 => Self::Later(hindrance()),
            status => Self::Refused { status, error },
        }
    }
}

impl Hindrance {
    pub(super) fn new(code: &str, message: &str) -> Self {
        Self { code: code.to_owned(), message: message.to_owned(), retry_after_ms: None }
    }
}

/// How long the provider wants to be left alone. Dates are not read: our own pauses are long enough where one is sent.
fn retry_after_ms(response: &Response) -> Option<u64> {
    const DAY_MS: f64 = 86_400_000.0;
    let value = |name: &str| {
        let header = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        header.value.trim().parse::<f64>().ok().filter(|value| value.is_finite() && *value >= 0.0)
    };
    let ms = value("retry-after-ms").or_else(|| value("retry-after").map(|seconds| seconds * 1000.0))?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to a day")]
    Some(ms.ceil().min(DAY_MS) as u64)
}

/// The pause after the `failures`th failure in a row: it doubles up to a bound.
pub(super) fn retry_pause_ms(failures: u32, context: Context<'_>) -> u64 {
    let config = context.config;
    let doubled = config.retry_ms.saturating_mul(1 << failures.saturating_sub(1).min(30));
    spread(doubled.min(config.retry_max_ms), failures, context)
}

/// The pause before the next look at a running batch: it grows while the batch runs long.
pub(super) fn poll_pause_ms(polls: u32, context: Context<'_>) -> u64 {
    const POLLS_BEFORE_DOUBLING: u32 = 16;
    let config = context.config;
    let doubled = config.poll_ms.saturating_mul(1 << (polls / POLLS_BEFORE_DOUBLING).min(30));
    spread(doubled.min(config.poll_max_ms.max(config.poll_ms)), polls, context)
}

/// Shortens a pause by up to a quarter, another part for each batch, so that many do not call at once. A plugin has no
/// source of chance; the mark serves as one.
fn spread(ms: u64, salt: u32, context: Context<'_>) -> u64 {
    const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const FNV_PRIME: u64 = 0x0100_0000_01b3;
    let bytes = context.batch.mark.bytes().chain(salt.to_le_bytes());
    let hash = bytes.fold(FNV_OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME));
    let part = u128::from(hash >> 48); // of 65536
    let shorter = u128::from(ms / 4) * part / 65_536;
    ms - u64::try_from(shorter).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use offpeak_plugin::{Header, provider::Batch};

    use super::*;
    use crate::config::Config;

    fn response(status: u16, headers: &[(&str, &str)], body: &str) -> Event {
        let headers = headers
            .iter()
            .map(|(name, value)| Header { name: (*name).into(), value: (*value).into() })
            .collect();
        Event::Answered(Response { status, headers, body: body.as_bytes().to_vec() })
    }

    #[test]
    fn a_status_tells_whether_it_was_done() {
        let quota = r#"{"error":{"code":"insufficient_quota","message":"pay"}}"#;
        for (status, body, expected) in [
            (200, "", "done"),
            (201, "", "done"),
            (301, "", "refused"),
            (400, "", "refused"),
            (401, "", "refused"),
            (404, "", "refused"),
            (408, "", "doubtful"),
            (409, "", "later"),
            (429, "", "later"),
            (429, quota, "refused"),
            (500, "", "doubtful"),
            (503, "", "doubtful"),
            (599, "", "doubtful"),
        ] {
            let name = match Outcome::of(response(status, &[], body)) {
                Outcome::Done(_) => "done",
                Outcome::Later(_) => "later",
                Outcome::Doubtful(_) => "doubtful",
                Outcome::Refused { .. } => "refused",
            };
            assert_eq!(name, expected, "{status}");
        }
    }

    #[test]
    fn the_providers_wish_is_read() {
        for (headers, expected) in [
            (&[("Retry-After", "7")][..], Some(7_000)),
            (&[("retry-after", "0.25")], Some(250)),
            (&[("retry-after", "9"), ("retry-after-ms", "12")], Some(12)),
            (&[("retry-after", "1e30")], Some(86_400_000)),
            (&[("retry-after", "-1")], None),
            (&[("retry-after", "Fri, 31 Dec 2026 23:59:59 GMT")], None),
            (&[], None),
        ] {
            let Outcome::Later(hindrance) = Outcome::of(response(429, headers, "")) else {
                panic!("not later")
            };
            assert_eq!(hindrance.retry_after_ms, expected, "{headers:?}");
        }
    }

    #[test]
    fn pauses_grow_to_a_bound_and_differ_between_batches() {
        let config = Config::default();
        let batch = |mark: &str| Batch {
            mark: mark.into(),
            endpoint: String::new(),
            model: String::new(),
            offer: String::new(),
            items: 1,
            waiting: 1,
            only: None,
            headers: vec![],
            created_at_ms: 0,
        };
        let (a, b) = (batch("a"), batch("b"));
        let context = Context::new(&a, &config).unwrap();
        for failures in 1..100 {
            let pause = retry_pause_ms(failures, context);
            let full = (1_000_u64 << (failures - 1).min(20)).min(300_000);
            assert!(pause <= full && pause >= full - full / 4, "{failures}: {pause}");
        }
        assert!((22_500..=30_000).contains(&poll_pause_ms(0, context)));
        assert!((90_000..=120_000).contains(&poll_pause_ms(u32::MAX, context)));
        let other = Context { batch: &b, ..context };
        assert!((1..20).any(|polls| poll_pause_ms(polls, context) != poll_pause_ms(polls, other)));
    }
}
