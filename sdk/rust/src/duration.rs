//! Lengths of time in a plugin's configuration.

use serde::Deserialize;

/// A length of time as a person writes it: `500ms`, `90s`, `15m`, `1h`, `1d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Duration {
    ms: u64,
}

impl Duration {
    /// So many milliseconds.
    pub const fn from_ms(ms: u64) -> Self {
        Self { ms }
    }

    /// In milliseconds.
    pub const fn ms(self) -> u64 {
        self.ms
    }
}

impl TryFrom<String> for Duration {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let unit_ms: Option<u64> = match unit.trim() {
            "ms" => Some(1),
            "s" => Some(1_000),
            "m" => Some(60_000),
            "h" => Some(3_600_000),
            "d" => Some(86_400_000),
            _ => None,
        };
        let ms =
            number.parse::<u64>().ok().zip(unit_ms).and_then(|(number, unit_ms)| number.checked_mul(unit_ms));
        ms.map(|ms| Self { ms })
            .ok_or_else(|| format!("`{text}` is not a length of time; write 500ms, 90s, 15m, 1h or 1d"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_write_it_in_their_units() {
        for (text, ms) in
            [("500ms", 500), ("90s", 90_000), ("15m", 900_000), ("1 h", 3_600_000), ("2d", 172_800_000)]
        {
            assert_eq!(Duration::try_from(text.to_owned()), Ok(Duration::from_ms(ms)), "{text}");
        }
    }

    #[test]
    fn what_is_none_is_refused_with_an_example() {
        for text in ["", "h", "1 hour", "-1s", "1.5h", "99999999999999999999h", "99999999999999d"] {
            let error = Duration::try_from(text.to_owned()).unwrap_err();
            assert!(error.contains("write 500ms"), "{text}: {error}");
        }
    }
}
