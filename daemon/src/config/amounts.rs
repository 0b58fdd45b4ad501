//! Durations and sizes as the configuration writes them, both ways.

use std::fmt;
use std::time::Duration;

use offpeak_core::sla::{BadSla, Sla, parse_duration};
use offpeak_core::words::Millis;
use serde::Serializer;

/// A text that is no amount; the message goes behind "must be ..".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadAmount {
    #[error("a duration such as \"30s\", \"15m\", \"24h\" or \"1h30m\"")]
    NotADuration,
    #[error("at most \"365d\"")]
    DurationTooLong,
    #[error("longer than zero")]
    Zero,
    #[error("a size such as \"64MiB\", \"200MB\" or a number of bytes")]
    NotASize,
    #[error("a size below 16 EiB")]
    SizeTooLarge,
}

/// Whether nothing at all is a sensible duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Least {
    Zero,
    AboveZero,
}

/// Reads a duration in the syntax of SLAs; "0s" and the like where zero makes sense.
pub(super) fn duration(text: &str, least: Least) -> Result<Millis, BadAmount> {
    match (parse_duration(text.trim()), least) {
        (Ok(millis), _) => Ok(millis),
        (Err(BadSla::Zero), Least::Zero) => Ok(Millis(0)),
        (Err(BadSla::Zero), Least::AboveZero) => Err(BadAmount::Zero),
        (Err(BadSla::TooLong(_)), _) => Err(BadAmount::DurationTooLong),
        (Err(BadSla::NotAnSla(_)), _) => Err(BadAmount::NotADuration),
    }
}

/// Reads a size: a whole number and B, kB, MB, GB, TB (powers of 1000), KiB, MiB, GiB, TiB (powers of 1024) or nothing.
pub(super) fn size(text: &str) -> Result<u64, BadAmount> {
    let text = text.trim();
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let factor: u64 = match unit.trim_start() {
        "" | "B" => 1,
        "kB" | "KB" => 1000,
        "MB" => 1000_u64.pow(2),
        "GB" => 1000_u64.pow(3),
        "TB" => 1000_u64.pow(4),
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err(BadAmount::NotASize),
    };
    if number.is_empty() {
        return Err(BadAmount::NotASize);
    }
    number.parse().ok().and_then(|n: u64| n.checked_mul(factor)).ok_or(BadAmount::SizeTooLarge)
}

/// Shows a duration so that [`duration`] reads it again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shown(pub(super) Millis);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.0;
        if rest == 0 {
            return f.write_str("0s");
        }
        for (factor, unit) in [(3_600_000, "h"), (60_000, "m"), (1000, "s"), (1, "ms")] {
            if rest >= factor {
                write!(f, "{}{unit}", rest / factor)?;
                rest %= factor;
            }
        }
        Ok(())
    }
}

/// Shows a size so that [`size`] reads it again: in the largest unit that divides it.
#[derive(Debug, Clone, Copy)]
pub(super) struct ShownSize(pub(super) u64);

impl fmt::Display for ShownSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        let decimal = [(1000_u64.pow(3), "GB"), (1000_u64.pow(2), "MB"), (1000, "kB")];
        let fits = |&(factor, _): &(u64, &str)| self.0 > 0 && self.0.is_multiple_of(factor);
        match units.into_iter().chain(decimal).find(fits) {
            Some((factor, unit)) => write!(f, "{}{unit}", self.0 / factor),
            None => write!(f, "{}B", self.0),
        }
    }
}

/// The words for an SLA in the configuration's own syntax.
pub(super) fn sla_text(sla: Sla) -> String {
    match sla {
        Sla::Realtime => "realtime".to_owned(),
        Sla::Within(millis) => Shown(millis).to_string(),
    }
}

pub(super) fn from_std(duration: Duration) -> Millis {
    Millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's serialize_with passes a reference")]
pub(super) fn shown_millis<S: Serializer>(millis: &Millis, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&Shown(*millis))
}

pub(super) fn shown_duration<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&Shown(from_std(*duration)))
}

pub(super) fn shown_sla<S: Serializer>(sla: &Sla, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&sla_text(*sla))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("0", 0),
            ("1234", 1234),
            ("5B", 5),
            ("2kB", 2000),
            ("2KB", 2000),
            ("200MB", 200_000_000),
            ("3GB", 3_000_000_000),
            ("1TB", 1_000_000_000_000),
            ("2KiB", 2048),
            (" 64 MiB ", 67_108_864),
            ("8GiB", 8_589_934_592),
            ("1TiB", 1_099_511_627_776),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "MiB", "-1", "1.5GB", "64M", "64mb", "64MiBs", "\u{0663}MB"] {
            assert_eq!(size(text), Err(BadAmount::NotASize), "{text}");
        }
        for text in ["18446744073709551616", "16777216TiB"] {
            assert_eq!(size(text), Err(BadAmount::SizeTooLarge), "{text}");
        }
    }

    #[test]
    fn durations_are_read_and_zero_only_where_it_makes_sense() {
        assert_eq!(duration(" 1h30m ", Least::AboveZero), Ok(Millis::from_mins(90)));
        assert_eq!(duration("0s", Least::Zero), Ok(Millis(0)));
        assert_eq!(duration("0s", Least::AboveZero), Err(BadAmount::Zero));
        assert_eq!(duration("366d", Least::Zero), Err(BadAmount::DurationTooLong));
        for text in ["", "30", "soon"] {
            assert_eq!(duration(text, Least::Zero), Err(BadAmount::NotADuration), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_again(millis in 0..=offpeak_core::sla::LONGEST.0, bytes: u64) {
            prop_assert_eq!(duration(&Shown(Millis(millis)).to_string(), Least::Zero), Ok(Millis(millis)));
            prop_assert_eq!(size(&ShownSize(bytes).to_string()), Ok(bytes));
        }
    }
}
