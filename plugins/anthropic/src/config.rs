//! The plugin's table in the daemon's configuration.

use offpeak_plugin::Duration;
use serde::Deserialize;

use crate::chat::request::{Ignorable, Options};

/// From this version of the API on, the parameters of sampling are errors.
const NO_SAMPLING_SINCE: &str = "2026-10-21";

/// All settings; each has a default.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Whether the offer `batch` is made.
    pub batch: bool,
    /// The `anthropic-version` of requests whose client named none.
    pub version: String,
    /// The most tokens of a translated chat completion that says nothing of it: Anthropic's API wants to be told.
    pub default_max_tokens: u64,
    /// What of a translated chat completion may be left out, though Anthropic's API has nothing like it and the answer
    /// changes. All else of that kind is refused.
    pub ignore: Vec<Ignorable>,
    /// How long an answer in real time usually takes.
    pub standard_usual: Duration,
    /// How long a batch usually takes.
    pub batch_usual: Duration,
    /// How often a batch is looked at, in milliseconds. The pause grows while a batch runs long.
    pub poll_ms: u64,
    /// The longest pause between two looks, in milliseconds.
    pub poll_max_ms: u64,
    /// The first pause after a failed call, in milliseconds; it doubles with each further failure.
    pub retry_ms: u64,
    /// The longest pause after a failed call, in milliseconds, unless the provider asks for a longer one.
    pub retry_max_ms: u64,
    /// How long the provider is given to show what an interrupted creation has made, in milliseconds, before the first
    /// look; three times as long before each further one.
    pub settle_ms: u64,
    /// The most pages of a listing that are read in the search for what an interrupted creation has made.
    pub list_pages_max: u32,
    /// The most requests in a batch.
    pub max_requests: u32,
    /// The most bytes in a batch.
    pub max_bytes: u64,
    /// The most batches created in an hour.
    pub max_batches_an_hour: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            batch: true,
            version: "2023-06-01".to_owned(),
            default_max_tokens: 4096,
            ignore: Vec::new(),
            standard_usual: Duration::from_ms(5_000),
            batch_usual: Duration::from_ms(3_600_000),
            poll_ms: 30_000,
            poll_max_ms: 120_000,
            retry_ms: 1_000,
            retry_max_ms: 300_000,
            settle_ms: 10_000,
            list_pages_max: 200,
            max_requests: 100_000,
            max_bytes: 256_000_000,
            max_batches_an_hour: 1_000,
        }
    }
}

impl Config {
    /// How chat completions are translated.
    pub(crate) fn translation(&self) -> Options {
        Options {
            default_max_tokens: self.default_max_tokens,
            sampling: self.version.as_str() < NO_SAMPLING_SINCE,
            ignored: self.ignore.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use offpeak_plugin::parse_config;

    use super::*;

    #[test]
    fn every_setting_has_a_default() {
        assert_eq!(parse_config::<Config>("{}").unwrap(), Config::default());
    }

    #[test]
    fn settings_are_read_and_mistakes_refused() {
        let config: Config =
            parse_config(r#"{"batch": false, "version": "2026-10-21", "batch_usual": "90s", "poll_ms": 5}"#)
                .unwrap();
        assert_eq!((config.batch, config.version.as_str()), (false, "2026-10-21"));
        assert_eq!((config.batch_usual.ms(), config.poll_ms), (90_000, 5));
        assert!(!config.translation().sampling && Config::default().translation().sampling);
        let config: Config = parse_config(r#"{"ignore": ["seed"]}"#).unwrap();
        assert_eq!(config.translation().ignored, [Ignorable::Seed]);
        for json in [
            r#"{"ignore": ["messages"]}"#,
            r#"{"pol_ms": 5}"#,
            r#"{"batch_usual": "1 hour"}"#,
            r#"{"batch_usual": "h"}"#,
            r#"{"poll_ms": -1}"#,
        ] {
            assert!(parse_config::<Config>(json).is_err(), "{json}");
        }
    }
}
