//! The router's table in the daemon's configuration.

use serde::Deserialize;

/// All settings; each has a default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Which of an offer's two times is held against the deadline.
    pub trust: Trust,
    /// How much more time than usual an offer is given before it counts as too slow.
    pub safety: Safety,
}

/// Which of an offer's two times is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trust {
    /// What it usually takes, times the safety factor: a batch that is promised within 24 hours and usually takes one
    /// is good enough for a deadline in four.
    #[default]
    Usual,
    /// What the provider promises. Offers without a promise are judged by their usual time.
    Window,
}

/// A factor from 1 to 100; 1.5 if nothing is said. Kept in thousandths, so that it is compared exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "f64")]
pub struct Safety {
    permille: u32,
}

impl Safety {
    /// The factor in thousandths.
    pub fn permille(self) -> u32 {
        self.permille
    }
}

impl Default for Safety {
    fn default() -> Self {
        Self { permille: 1500 }
    }
}

impl TryFrom<f64> for Safety {
    type Error = String;

    fn try_from(factor: f64) -> Result<Self, String> {
        if !(1.0..=100.0).contains(&factor) {
            return Err(format!("`safety` is {factor}, but must be from 1 to 100"));
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 1000 to 100000")]
        Ok(Self { permille: (factor * 1000.0).round() as u32 })
    }
}

#[cfg(test)]
mod tests {
    use offpeak_plugin::parse_config;

    use super::*;

    #[test]
    fn every_setting_has_a_default() {
        let config: Config = parse_config("{}").unwrap();
        assert_eq!(config, Config { trust: Trust::Usual, safety: Safety { permille: 1500 } });
    }

    #[test]
    fn settings_are_read() {
        let config: Config = parse_config(r#"{"trust": "window", "safety": 2}"#).unwrap();
        assert_eq!(config, Config { trust: Trust::Window, safety: Safety { permille: 2000 } });
    }

    #[test]
    fn mistakes_are_refused_with_their_name() {
        for (json, name) in [
            (r#"{"saftey": 2}"#, "saftey"),
            (r#"{"safety": 0.5}"#, "safety"),
            (r#"{"safety": 1e9}"#, "safety"),
            (r#"{"trust": "nobody"}"#, "nobody"),
        ] {
            let error = parse_config::<Config>(json).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
