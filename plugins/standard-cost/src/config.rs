//! The policy's table in the daemon's configuration.

use std::collections::BTreeMap;

use serde::Deserialize;

/// All settings; each has a default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What an hour of an engine costs, by the backend's name: its requests are charged by the time they took.
    pub usd_per_hour: BTreeMap<String, Hourly>,
}

/// US dollars an hour, kept in pico-dollars.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "f64")]
pub struct Hourly {
    pico_dollars: i64,
}

impl Hourly {
    /// In pico-dollars.
    pub fn pico_dollars(self) -> i64 {
        self.pico_dollars
    }
}

impl TryFrom<f64> for Hourly {
    type Error = String;

    fn try_from(dollars: f64) -> Result<Self, String> {
        if !(0.0..=100_000.0).contains(&dollars) {
            return Err(format!("`usd_per_hour` is {dollars}, but must be from 0 to 100000"));
        }
        // A price of an hour has no more than six places that mean anything.
        #[expect(clippy::cast_possible_truncation, reason = "at most 10^11")]
        Ok(Self { pico_dollars: (dollars * 1e6).round() as i64 * 1_000_000 })
    }
}

#[cfg(test)]
mod tests {
    use offpeak_plugin::parse_config;

    use super::*;

    #[test]
    fn settings_are_read_and_mistakes_named() {
        assert_eq!(parse_config::<Config>("{}").unwrap(), Config::default());
        let config: Config = parse_config(r#"{"usd_per_hour": {"gpu": 2.4}}"#).unwrap();
        assert_eq!(config.usd_per_hour["gpu"].pico_dollars(), 2_400_000_000_000);
        for (json, name) in [(r#"{"usd": 1}"#, "usd"), (r#"{"usd_per_hour": {"gpu": -1}}"#, "usd_per_hour")] {
            let error = parse_config::<Config>(json).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
