//! The words of the design as types. No logic beyond parsing, formatting and arithmetic that cannot overflow.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A point in time: milliseconds since 1970-01-01 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Timestamp(pub u64);

/// A length of time in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Millis(pub u64);

impl Timestamp {
    /// Later than every time that occurs.
    pub const NEVER: Self = Self(u64::MAX);

    /// The time so much later; stays at [`Timestamp::NEVER`] instead of overflowing.
    #[must_use]
    pub const fn after(self, by: Millis) -> Self {
        Self(self.0.saturating_add(by.0))
    }

    /// The time so much earlier; stays at 1970 instead of underflowing.
    #[must_use]
    pub const fn before(self, by: Millis) -> Self {
        Self(self.0.saturating_sub(by.0))
    }

    /// How long after `earlier` this is; zero if it is not after it.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Millis {
        Millis(self.0.saturating_sub(earlier.0))
    }
}

impl Millis {
    /// So many seconds.
    #[must_use]
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(1000))
    }

    /// So many minutes.
    #[must_use]
    pub const fn from_mins(mins: u64) -> Self {
        Self::from_secs(mins.saturating_mul(60))
    }

    /// So many hours.
    #[must_use]
    pub const fn from_hours(hours: u64) -> Self {
        Self::from_mins(hours.saturating_mul(60))
    }
}

impl From<Millis> for std::time::Duration {
    fn from(value: Millis) -> Self {
        Self::from_millis(value.0)
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $type(Arc<str>);

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $type {
            fn from(name: &str) -> Self {
                Self(name.into())
            }
        }

        impl From<String> for $type {
            fn from(name: String) -> Self {
                Self(name.into())
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// Who pays.
    TenantId
}
name! {
    /// A configured provider account or engine.
    BackendId
}
name! {
    /// A path of the API, such as "/v1/chat/completions".
    Endpoint
}
name! {
    /// A model's name as clients say it.
    ModelId
}
name! {
    /// The name of one way in which a backend sells a model.
    OfferName
}

/// How a request is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The answer comes on the same call.
    Realtime,
    /// One request, fetched later.
    Background,
    /// Many requests in one piece.
    Batch,
    /// A self-hosted engine in idle time.
    Engine,
}

impl Mode {
    /// The word as users see it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Realtime => "realtime",
            Self::Background => "background",
            Self::Batch => "batch",
            Self::Engine => "engine",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A lane's number in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LaneId(pub u32);

/// A request's position in its lane, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Seq(pub u64);

/// Where a deferred request stands. It is also the request's identity: a lane is a log and never reuses a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The lane.
    pub lane: LaneId,
    /// The position in it.
    pub seq: Seq,
}

/// A text is not the name of a deferred request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not the id of a deferred request: it looks like \"1f-2a\" (lane and position in hexadecimal)")]
pub struct NotAPlace;

impl From<ParseIntError> for NotAPlace {
    fn from(_: ParseIntError) -> Self {
        Self
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}", self.lane.0, self.seq.0)
    }
}

impl FromStr for Place {
    type Err = NotAPlace;

    fn from_str(text: &str) -> Result<Self, NotAPlace> {
        let (lane, seq) = text.split_once('-').ok_or(NotAPlace)?;
        let place =
            Self { lane: LaneId(u32::from_str_radix(lane, 16)?), seq: Seq(u64::from_str_radix(seq, 16)?) };
        // One request has one name: no plus signs, leading zeros or capitals.
        if place.to_string() == text { Ok(place) } else { Err(NotAPlace) }
    }
}

/// A batch's number in the store; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BatchId(pub u64);

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// What requests must have in common to travel together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LaneKey {
    /// Where they go.
    pub backend: BackendId,
    /// What they call.
    pub endpoint: Endpoint,
    /// Which model answers them.
    pub model: ModelId,
    /// Who pays.
    pub tenant: TenantId,
    /// How they are bought.
    pub offer: OfferName,
    /// How long they may take, rounded down to a class.
    pub sla_class: SlaClass,
    /// A router's own lane name; empty for the ordinary lane.
    pub name: Arc<str>,
    /// The API key whose own limits for deferred work they take, beside their tenant's; empty if it has none.
    pub api_key: Arc<str>,
    /// What their callers sent that changes their meaning.
    pub headers: KeptHeaders,
}

/// Headers of callers that travel with their deferred requests, in the order of their names; most often none.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct KeptHeaders(Arc<[(Arc<str>, Arc<str>)]>);

impl KeptHeaders {
    /// In any order; names in lower case, each once.
    pub fn new(headers: impl IntoIterator<Item = (Arc<str>, Arc<str>)>) -> Self {
        let mut headers: Vec<_> = headers.into_iter().collect();
        headers.sort();
        Self(headers.into())
    }

    /// Names and values.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A class of SLAs: requests of one class have deadlines near enough to share a lane.
///
/// A class is a power of two of minutes, so that a lane's deadlines lie within a factor of two of each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SlaClass(pub u8);

impl SlaClass {
    /// The class of an SLA.
    #[must_use]
    pub fn of(within: Millis) -> Self {
        let minutes = within.0 / 60_000;
        // A u64 has at most 64 bits, which fits.
        #[expect(clippy::cast_possible_truncation, reason = "64 - leading_zeros is at most 64")]
        Self((64 - minutes.leading_zeros()) as u8)
    }
}

impl fmt::Display for SlaClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("<1m"),
            class @ 1..=6 => write!(f, "{}m", 1_u64 << (class - 1)),
            class => {
                let minutes = 1_u64 << (class.min(64) - 1);
                write!(f, "{}h{:02}m", minutes / 60, minutes % 60)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_named_and_found_again() {
        let place = Place { lane: LaneId(31), seq: Seq(42) };
        assert_eq!(place.to_string(), "1f-2a");
        assert_eq!("1f-2a".parse(), Ok(place));
    }

    #[test]
    fn other_spellings_of_a_place_are_refused() {
        for text in ["", "1f", "1f-", "-2a", "01f-2a", "1F-2a", "+1f-2a", "1f-2a-", "1f-2g", "fffffffff-0"] {
            assert_eq!(text.parse::<Place>(), Err(NotAPlace), "{text}");
        }
    }

    #[test]
    fn sla_classes_double() {
        assert_eq!(SlaClass::of(Millis::from_secs(30)).to_string(), "<1m");
        assert_eq!(SlaClass::of(Millis::from_mins(1)).to_string(), "1m");
        assert_eq!(SlaClass::of(Millis::from_mins(3)).to_string(), "2m");
        assert_eq!(SlaClass::of(Millis::from_hours(24)), SlaClass::of(Millis::from_hours(20)));
        assert_eq!(SlaClass::of(Millis::from_hours(24)).to_string(), "17h04m");
        assert_ne!(SlaClass::of(Millis::from_hours(24)), SlaClass::of(Millis::from_hours(1)));
    }
}
