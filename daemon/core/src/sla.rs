//! SLAs as users write them: `realtime`, `deferrable`, or a duration.

use std::fmt;

use crate::words::Millis;

/// How long a request may take, as the caller tagged it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sla {
    /// Now.
    Realtime,
    /// So long after its arrival.
    Within(Millis),
}

/// Where the SLA was found; the strongest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tag {
    /// The header `x-offpeak-sla`.
    Header,
    /// The body's `metadata.offpeak_sla`.
    Metadata,
    /// The API's own ways: `service_tier: "flex"`, or `background: true`.
    Api,
    /// The tenant's default.
    Default,
}

/// The longest SLA that is taken: a year. What is meant to wait longer is a mistake.
pub const LONGEST: Millis = Millis::from_hours(24 * 365);

/// A tag that cannot be understood or kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSla {
    /// Not one of the words and not a duration.
    #[error("'{0}' is not an SLA: use realtime, deferrable, or a duration such as 30s, 15m, 24h or 7d")]
    NotAnSla(String),
    /// Nothing can be answered in no time.
    #[error("an SLA of zero cannot be kept: use realtime for an answer now, or a duration such as 15m")]
    Zero,
    /// Beyond [`LONGEST`].
    #[error("an SLA of '{0}' is too long: the longest is 365d")]
    TooLong(String),
}

impl Sla {
    /// Reads a tag. `deferrable` is what the word of that name stands for, the tenant's default duration.
    pub fn parse(text: &str, deferrable: Millis) -> Result<Self, BadSla> {
        match text.trim() {
            "realtime" => Ok(Self::Realtime),
            "deferrable" => Ok(Self::Within(deferrable)),
            other => parse_duration(other).map(Self::Within),
        }
    }
}

impl fmt::Display for Sla {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Realtime => f.write_str("realtime"),
            Self::Within(millis) => write!(f, "{}s", millis.0 / 1000),
        }
    }
}

/// Reads a duration: a whole number and one of `ms`, `s`, `m`, `h`, `d`; several may follow each other (`1h30m`).
pub fn parse_duration(text: &str) -> Result<Millis, BadSla> {
    let bad = || BadSla::NotAnSla(text.chars().take(40).collect());
    let mut rest = text;
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let (number, after) = split_at_first(rest, |c| !c.is_ascii_digit());
        let (unit, after) = split_at_first(after, |c| c.is_ascii_digit());
        let factor: u64 = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(bad()),
        };
        let number: u64 = number.parse().map_err(|_| bad())?;
        let too_long = || BadSla::TooLong(text.chars().take(40).collect());
        total = number.checked_mul(factor).and_then(|n| total.checked_add(n)).ok_or_else(too_long)?;
        rest = after;
    }
    match total {
        _ if text.is_empty() => Err(bad()),
        0 => Err(BadSla::Zero),
        n if n > LONGEST.0 => Err(BadSla::TooLong(text.chars().take(40).collect())),
        n => Ok(Millis(n)),
    }
}

fn split_at_first(text: &str, at: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(at).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Millis = Millis::from_hours(24);

    #[test]
    fn words_and_durations_are_read() {
        assert_eq!(Sla::parse("realtime", DAY), Ok(Sla::Realtime));
        assert_eq!(Sla::parse("deferrable", DAY), Ok(Sla::Within(DAY)));
        assert_eq!(Sla::parse(" 30s ", DAY), Ok(Sla::Within(Millis::from_secs(30))));
        assert_eq!(Sla::parse("1h30m", DAY), Ok(Sla::Within(Millis::from_mins(90))));
        assert_eq!(Sla::parse("7d", DAY), Ok(Sla::Within(Millis::from_hours(24 * 7))));
        assert_eq!(Sla::parse("250ms", DAY), Ok(Sla::Within(Millis(250))));
    }

    #[test]
    fn everything_else_is_refused_with_what_to_do() {
        for text in ["", "soon", "h", "3", "3 h", "-3h", "3.5h", "3H", "3hh", "\u{0663}h"] {
            assert!(matches!(Sla::parse(text, DAY), Err(BadSla::NotAnSla(_))), "{text}");
        }
        assert_eq!(Sla::parse("0s", DAY), Err(BadSla::Zero));
        for text in ["366d", "99999999999999999999999d", "18446744073709551615d"] {
            assert!(Sla::parse(text, DAY).is_err(), "{text}");
        }
    }
}
