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
            code: error.kind_or(&format!("http_{}", response.status)),
            message: error.message.clone().unwrap_or_default(),
            retry_after_ms: retry_after_ms(&response),
        };
        match response.status {
            // An overloaded server says 529 and would not have begun; but who in between says it is not known.
            408 | 500.. => Self::Doubtful(hindrance()),
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
    let header = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("retry-after"))?;
    let seconds =
        header.value.trim().parse::<f64>().ok().filter(|value| value.is_finite() && *value >= 0.0)?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to a day")]
    Some((seconds * 1000.0).ceil().min(DAY_MS) as u64)
}

/// The pause after the `failures`th failure in a row: it doubles up to a bound.
pub(super) fn retry_pause_ms(failures: u32, context: Context<'_>) -> u64 {
    let config = context.config;
    let doubled = config.retry_ms.saturating_mul(1 << failures.saturating_sub(1).min(30));
    spread(doubled.min(config.retry_max_ms), failures, context)
}

/// The same, or the provider's wish if that is longer.
pub(super) fn pause_ms(failures: u32, hindrance: &Hindrance, context: Context<'_>) -> u64 {
    retry_pause_ms(failures, context).max(hindrance.retry_after_ms.unwrap_or(0))
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
    use offpeak_plugin::Header;

    use super::*;

    #[test]
    fn a_status_tells_whether_it_was_done() {
        for (status, expected) in [
            (200, "done"),
            (301, "refused"),
            (400, "refused"),
            (401, "refused"),
            (404, "refused"),
            (408, "doubtful"),
            (413, "refused"),
            (429, "later"),
            (500, "doubtful"),
            (529, "doubtful"),
        ] {
            let headers = vec![Header { name: "Retry-After".into(), value: "0.25".into() }];
            let outcome = Outcome::of(Event::Answered(Response { status, headers, body: vec![] }));
            let name = match outcome {
                Outcome::Done(_) => "done",
                Outcome::Later(hindrance) => {
                    assert_eq!(hindrance.retry_after_ms, Some(250));
                    "later"
                }
                Outcome::Doubtful(_) => "doubtful",
                Outcome::Refused { .. } => "refused",
            };
            assert_eq!(name, expected, "{status}");
        }
    }
}
