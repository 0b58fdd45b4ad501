//! The provider's JSON objects, as far as they are used. What is not needed may be missing or odd.

use offpeak_plugin::{batch::ErrorBody, provider::Progress};
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::Value;

/// A message batch.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct MessageBatch {
    #[serde(deserialize_with = "id")]
    pub(crate) id: String,
    pub(crate) processing_status: String,
    #[serde(default)]
    pub(crate) request_counts: Counts,
    #[serde(default)]
    created_at: Option<String>,
}

/// How far a batch is. Until it has ended, all requests count as being processed.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Counts {
    pub(crate) processing: u32,
    pub(crate) succeeded: u32,
    pub(crate) errored: u32,
    pub(crate) canceled: u32,
    pub(crate) expired: u32,
}

/// One page of a listing, the newest first.
#[derive(Debug, Deserialize)]
pub(crate) struct List {
    pub(crate) data: Vec<MessageBatch>,
    #[serde(default)]
    pub(crate) has_more: bool,
}

/// An error, of a call or of an item.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct ErrorObject {
    #[serde(default, rename = "type")]
    kind: Value,
    #[serde(default)]
    pub(crate) message: Option<String>,
}

/// The longest name that is believed to be one: names are kept in the state, which is small.
const ID_BYTES_MAX: usize = 128;

fn id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let id = String::deserialize(deserializer)?;
    let is_plain = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    if id.is_empty() || id.len() > ID_BYTES_MAX || !is_plain {
        return Err(D::Error::custom("the id of a batch is empty, too long or oddly written"));
    }
    Ok(id)
}

impl MessageBatch {
    /// Nothing of it will change any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.processing_status == "ended"
    }

    /// When it was made, in milliseconds since 1970.
    pub(crate) fn created_at_ms(&self) -> Option<u64> {
        time_ms(self.created_at.as_deref()?)
    }

    /// How far it is.
    pub(crate) fn progress(&self) -> Progress {
        let counts = self.request_counts;
        let failed = counts.errored.saturating_add(counts.canceled).saturating_add(counts.expired);
        Progress { completed: counts.succeeded, failed }
    }
}

impl Counts {
    /// Requests in the batch.
    pub(crate) fn total(self) -> u64 {
        [self.processing, self.succeeded, self.errored, self.canceled, self.expired]
            .into_iter()
            .map(u64::from)
            .sum()
    }
}

impl ErrorObject {
    /// The error's type, or `fallback`.
    pub(crate) fn kind_or(&self, fallback: &str) -> String {
        self.kind.as_str().unwrap_or(fallback).to_owned()
    }
}

impl ErrorBody for ErrorObject {
    fn of_message(message: String) -> Self {
        Self { message: Some(message), ..Self::default() }
    }

    fn code(&self) -> Option<String> {
        self.kind.as_str().map(str::to_owned)
    }

    fn message(&self) -> Option<&str> {
        self.message.as_deref()
    }
}

/// Reads a time such as `2026-11-25T02:10:13.5Z` (RFC 3339), in milliseconds since 1970.
fn time_ms(text: &str) -> Option<u64> {
    let number = |from: usize, to: usize| -> Option<i64> {
        let digits = text.get(from..to)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let marks = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    let bytes = text.as_bytes();
    if !marks.iter().all(|(at, mark)| bytes.get(*at).is_some_and(|byte| byte.eq_ignore_ascii_case(mark))) {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let in_bounds = (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (0..=23).contains(&hour)
        && (0..=59).contains(&minute)
        && (0..=60).contains(&second);
    if !in_bounds {
        return None;
    }
    let rest = text.get(19..)?;
    let fraction = rest.strip_prefix('.').unwrap_or_default();
    let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
    let millis: String = fraction.chars().take(digits).chain("000".chars()).take(3).collect();
    let zone = if rest.starts_with('.') { rest.get(1 + digits..)? } else { rest };
    let minutes = (days_since_1970(year, month, day) * 24 + hour) * 60 + minute - zone_minutes(zone)?;
    u64::try_from(minutes * 60_000 + second * 1000 + millis.parse::<i64>().ok()?).ok()
}

/// `Z`, or `+01:00`.
fn zone_minutes(zone: &str) -> Option<i64> {
    if zone.eq_ignore_ascii_case("z") {
        return Some(0);
    }
    let (hours, minutes) = zone.get(1..)?.split_once(':')?;
    let minutes = hours.parse::<i64>().ok()? * 60 + minutes.parse::<i64>().ok()?;
    match zone.as_bytes().first()? {
        b'+' => Some(minutes),
        b'-' => Some(-minutes),
        _ => None,
    }
}

/// In the Gregorian calendar. Years are counted from March, so that the leap day is the last one of its year.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2000-02-29T12:34:56Z", Some(951_827_696_000)),
            ("2024-09-24T18:37:24.100435Z", Some(1_727_203_044_100)),
            ("2024-09-24T18:37:24.1Z", Some(1_727_203_044_100)),
            ("2024-09-24t20:37:24.100+02:00", Some(1_727_203_044_100)),
            ("2024-09-24T16:37:24.100-02:00", Some(1_727_203_044_100)),
            ("2024-09-24", None),
            ("2024-09-24T18:37:24", None),
            ("2024-13-24T18:37:24Z", None),
            ("2024-09-24T18:37:24+0200", None),
            ("2024-09-24T18:37:2\u{e9}Z", None),
            ("", None),
        ] {
            assert_eq!(time_ms(text), expected, "{text}");
        }
    }

    #[test]
    fn an_error_is_found_in_a_body_or_the_body_is_shown() {
        let error = ErrorObject::of_body(br#"{"type":"error","error":{"type":"t","message":"no"}}"#);
        assert_eq!((error.kind_or("x").as_str(), error.message.as_deref()), ("t", Some("no")));
        let error = ErrorObject::of_body("<html>ö</html>".as_bytes());
        assert_eq!((error.kind_or("x").as_str(), error.message.as_deref()), ("x", Some("<html>ö</html>")));
    }

    #[test]
    fn a_batch_with_the_least_is_understood_and_odd_names_are_not() {
        let batch: MessageBatch = serde_json::from_str(r#"{"id":"b","processing_status":"new"}"#).unwrap();
        assert_eq!(
            (batch.has_ended(), batch.request_counts.total(), batch.created_at_ms()),
            (false, 0, None)
        );
        for id in ["", "a/b", "a b", &"x".repeat(200)] {
            let text = serde_json::json!({"id": id, "processing_status": "ended"}).to_string();
            assert!(serde_json::from_str::<MessageBatch>(&text).is_err(), "{id}");
        }
    }
}
