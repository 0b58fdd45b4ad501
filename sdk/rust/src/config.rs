//! The plugin's own table of the daemon's configuration, as a type of the plugin's.

use std::sync::OnceLock;

use serde::de::DeserializeOwned;

use crate::host;

/// A configuration that is not what the plugin expects. The text names the member and the place.
#[derive(Debug, thiserror::Error)]
#[error("the plugin's configuration is wrong: {0}; mend its table in the daemon's configuration")]
pub struct ConfigError(#[from] serde_json::Error);

/// Reads the plugin's configuration. Without a table it is `{}`, so give members a default; refuse unknown ones with
/// `#[serde(deny_unknown_fields)]`, so that a typing mistake is found.
///
/// Outside of a component it is always `{}`: let functions worth a test take the configuration as an argument.
pub fn config<T: DeserializeOwned>() -> Result<T, ConfigError> {
    parse_config(&host::config_text())
}

/// Reads a configuration from JSON text: for a plugin's tests.
pub fn parse_config<T: DeserializeOwned>(json: &str) -> Result<T, ConfigError> {
    Ok(serde_json::from_str(json)?)
}

/// A configuration that is read at its first use and kept, so that the hot path does not parse it again. It does not
/// change during an instance's life.
///
/// ```
/// # #[derive(serde::Deserialize)]
/// # struct Settings {}
/// static SETTINGS: offpeak_plugin::Configured<Settings> = offpeak_plugin::Configured::new();
/// ```
#[derive(Debug)]
pub struct Configured<T>(OnceLock<T>);

impl<T: DeserializeOwned> Configured<T> {
    /// Nothing is read yet.
    pub const fn new() -> Self {
        Self(OnceLock::new())
    }

    /// The configuration.
    ///
    /// # Panics
    /// If it cannot be read. The reason is in the daemon's log. Call this in `describe`, which is called when the
    /// plugin is loaded: then the daemon refuses a plugin with a wrong configuration at once.
    pub fn get(&self) -> &T {
        self.0.get_or_init(|| match config() {
            Ok(config) => config,
            Err(error) => panic!("{error}"),
        })
    }
}

impl<T: DeserializeOwned> Default for Configured<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    struct Settings {
        factor: u32,
    }

    impl Default for Settings {
        fn default() -> Self {
            Self { factor: 15 }
        }
    }

    #[test]
    fn without_a_table_the_defaults_hold() {
        static SETTINGS: Configured<Settings> = Configured::new();
        assert_eq!(config::<Settings>().unwrap(), Settings { factor: 15 });
        assert_eq!(SETTINGS.get().factor, 15);
    }

    #[test]
    fn a_mistake_is_named() {
        let error = parse_config::<Settings>(r#"{"faktor": 20}"#).unwrap_err().to_string();
        assert!(error.contains("faktor") && error.contains("factor"), "{error}");
    }
}
