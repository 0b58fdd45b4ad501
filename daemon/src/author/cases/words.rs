//! How cases write what travels to and from plugins: durations as `"24h"`, bodies as text or as what they say in JSON.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use offpeak_host::values::{provider, router};
use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub(super) const ENDPOINT: &str = "/v1/chat/completions";
pub(super) const MODEL: &str = "gpt-4o-mini";
pub(super) const HOUR_MS: u64 = 3_600_000;
pub(super) const DAY_MS: u64 = 24 * HOUR_MS;

/// A duration, in milliseconds: `"15m"`, or a number of milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span(pub(super) u64);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(text) => {
                let duration = humantime::parse_duration(&text);
                let duration = duration
                    .map_err(|_| D::Error::custom(format!("\"{text}\" is no duration: write \"24h\"")))?;
                Ok(Self(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
            }
            value => {
                value.as_u64().map(Self).ok_or_else(|| D::Error::custom("a duration is written as \"24h\""))
            }
        }
    }
}

/// A moment, in milliseconds since 1970: `"2026-11-25 12:00:00"` in UTC, or the number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment(pub(super) u64);

impl Default for Moment {
    /// A Wednesday, at noon.
    fn default() -> Self {
        Self(1_795_608_000_000)
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(text) => {
                let since = humantime::parse_rfc3339_weak(&text).ok();
                let since = since.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
                let since = since.ok_or_else(|| {
                    D::Error::custom(format!("\"{text}\" is no time: write \"2026-11-25T12:00:00Z\""))
                })?;
                Ok(Self(u64::try_from(since.as_millis()).unwrap_or(u64::MAX)))
            }
            value => value.as_u64().map(Self).ok_or_else(|| {
                D::Error::custom("a time is a text in quotes, such as \"2026-11-25T12:00:00Z\"")
            }),
        }
    }
}

/// A body: a text as it is, and anything else as JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Body(pub(super) Vec<u8>);

impl<'de> Deserialize<'de> for Body {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(match Value::deserialize(deserializer)? {
            Value::String(text) => text.into_bytes(),
            value => value.to_string().into_bytes(),
        }))
    }
}

/// Bytes as cases have them: what they say, if that is JSON; or a text; or `{ base64 = "…" }`.
pub(super) fn shown(bytes: &[u8]) -> Value {
    if let Ok(value @ (Value::Object(_) | Value::Array(_))) = serde_json::from_slice(bytes) {
        return value;
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!({ "base64": BASE64_STANDARD.encode(bytes) }),
    }
}

/// Pairs of names and values, as headers are written: `{ x-mood = "fine" }`.
pub(super) type Pairs = std::collections::BTreeMap<String, String>;

/// Headers as cases have them.
pub(super) fn shown_headers(headers: &[provider::Header]) -> Value {
    headers
        .iter()
        .map(|header| (header.name.clone(), Value::from(header.value.clone())))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Mode {
    Realtime,
    Background,
    Batch,
    Engine,
}

impl From<Mode> for provider::Mode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Realtime => Self::Realtime,
            Mode::Background => Self::Background,
            Mode::Batch => Self::Batch,
            Mode::Engine => Self::Engine,
        }
    }
}

impl From<Mode> for router::Mode {
    fn from(mode: Mode) -> Self {
        provider::Mode::from(mode).into()
    }
}

/// Whether it ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Fate {
    NotSent,
    Refused,
    Unknown,
    Ran,
}

impl From<Fate> for provider::DidItRun {
    fn from(fate: Fate) -> Self {
        match fate {
            Fate::NotSent => Self::NotSent,
            Fate::Refused => Self::Refused,
            Fate::Unknown => Self::Unknown,
            Fate::Ran => Self::Ran,
        }
    }
}

pub(super) fn shown_ran(ran: provider::DidItRun) -> Value {
    json!(match ran {
        provider::DidItRun::NotSent => "not_sent",
        provider::DidItRun::Refused => "refused",
        provider::DidItRun::Unknown => "unknown",
        provider::DidItRun::Ran => "ran",
    })
}

pub(super) fn shown_mode(mode: provider::Mode) -> Value {
    json!(match mode {
        provider::Mode::Realtime => "realtime",
        provider::Mode::Background => "background",
        provider::Mode::Batch => "batch",
        provider::Mode::Engine => "engine",
    })
}
