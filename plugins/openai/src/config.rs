//! The plugin's table in the daemon's configuration.

use std::collections::BTreeMap;

use offpeak_plugin::{Duration, provider::CredentialPlace};
use serde::Deserialize;

use crate::dialect::{BatchApi, Dialect, DialectName, WindowChoice};

/// Settings that agree with each other and with what is known of the provider.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Config")]
pub struct Checked(Config);

impl Checked {
    /// The settings.
    pub fn config(&self) -> &Config {
        &self.0
    }
}

/// All settings; each has a default.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Whose words are spoken.
    pub dialect: DialectName,
    /// What stands at the provider for `/v1` in the paths of the API, where it is not what the dialect says.
    pub root: Option<String>,
    /// The header that takes the credential, where it is not what the dialect says; `authorization` stands for a bearer
    /// token.
    pub credential_header: Option<String>,
    /// The provider's names of models, by the names that clients use: deployments, for example.
    pub model_names: BTreeMap<String, String>,
    /// The same in batches, where they are others.
    pub batch_model_names: BTreeMap<String, String>,
    /// Whether the offer `batch` is made.
    pub batch: bool,
    /// How long the provider may take for a batch, where there is a choice.
    pub window: Option<Window>,
    /// What a batch costs, in thousandths of the list price, where it is not what the dialect says.
    pub batch_price_permille: Option<u32>,
    /// Offers for other classes of service, by the value of `service_tier`.
    pub tiers: BTreeMap<String, Tier>,
    /// For which models the offer `flex` is made. None by default: not every model has it, and asking for it where it is
    /// not sold is an error.
    pub flex: Flex,
    /// For which models the completion windows of responses in the background are offers. None by default, as for `flex`.
    pub background: Flex,
    /// How long a response in the background usually takes; without it, a quarter of its window.
    pub background_usual: Option<Duration>,
    /// How long an answer in real time usually takes.
    pub standard_usual: Duration,
    /// How long an answer in the flex tier usually takes.
    pub flex_usual: Duration,
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
    /// How long the provider is given to show what an interrupted call has made, in milliseconds.
    pub settle_ms: u64,
    /// The most pages of a listing that are read in the search for what an interrupted call has made.
    pub list_pages_max: u32,
    /// Which files are deleted at the provider when a batch is over.
    pub delete_files: DeleteFiles,
    /// The most requests in a batch.
    pub max_requests: Option<u32>,
    /// The most bytes in a batch.
    pub max_bytes: Option<u64>,
    /// The most batches created in an hour.
    pub max_batches_an_hour: Option<u32>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            dialect: DialectName::Openai,
            root: None,
            credential_header: None,
            model_names: BTreeMap::new(),
            batch_model_names: BTreeMap::new(),
            batch: true,
            window: None,
            batch_price_permille: None,
            tiers: BTreeMap::new(),
            flex: Flex::All(false),
            background: Flex::All(false),
            background_usual: None,
            standard_usual: Duration::from_ms(5_000),
            flex_usual: Duration::from_ms(60_000),
            batch_usual: Duration::from_ms(3_600_000),
            poll_ms: 30_000,
            poll_max_ms: 120_000,
            retry_ms: 1_000,
            retry_max_ms: 300_000,
            settle_ms: 10_000,
            list_pages_max: 200,
            delete_files: DeleteFiles::Input,
            max_requests: None,
            max_bytes: None,
            max_batches_an_hour: None,
        }
    }
}

impl Config {
    /// What is known of the provider.
    pub fn dialect(&self) -> &'static Dialect {
        self.dialect.dialect()
    }

    /// What stands at the provider for `/v1`.
    pub fn root(&self) -> &str {
        self.root.as_deref().unwrap_or_else(|| self.dialect().root)
    }

    /// The path at the provider for an endpoint of the API.
    pub fn path(&self, endpoint: &str) -> String {
        let elsewhere = self.dialect().elsewhere.iter().find(|(known, _)| *known == endpoint);
        if let Some((_, path)) = elsewhere.filter(|_| self.root.is_none()) {
            return (*path).to_owned();
        }
        format!("{}{}", self.root(), endpoint.strip_prefix("/v1").unwrap_or(endpoint))
    }

    /// Where the credential goes.
    pub fn credential(&self) -> CredentialPlace {
        match self.credential_header.as_deref() {
            None => self.dialect().credential.place(),
            Some(header) if header.eq_ignore_ascii_case("authorization") => CredentialPlace::Bearer,
            Some(header) => CredentialPlace::Header(header.to_ascii_lowercase()),
        }
    }

    /// The provider's name of a model, where it has another one there.
    pub fn model_name(&self, model: &str) -> Option<&str> {
        self.model_names.get(model).map(String::as_str)
    }

    /// The same in batches.
    pub fn batch_model_name(&self, model: &str) -> Option<&str> {
        self.batch_model_names.get(model).or_else(|| self.model_names.get(model)).map(String::as_str)
    }

    /// The batch API for a model, if batches are to be offered for it, and their price.
    pub fn batches(&self, model: &str) -> Option<(&'static BatchApi, u32)> {
        let api = self.dialect().batch_api.as_ref()?;
        let price = self.batch_price_permille.or(api.price_permille)?;
        let named = !api.needs_own_names || self.batch_model_names.contains_key(model);
        (self.batch && named).then_some((api, price))
    }

    /// The window of batches: as the API writes it, and in milliseconds.
    pub fn window(&self, api: &BatchApi) -> (String, u64) {
        match &self.window {
            Some(window) => (window.text.clone(), window.duration.ms()),
            None => (api.window.text.to_owned(), api.window.ms),
        }
    }

    fn check(&self) -> Result<(), String> {
        let dialect = self.dialect();
        let name = dialect.name;
        if let Some(root) = self.root.as_deref().filter(|root| !is_root(root)) {
            return Err(format!(
                "`root` is \"{root}\"; write a path such as \"/openai/v1\", or \"\" for none"
            ));
        }
        if let Some(tier) = self.tiers.keys().find(|tier| !dialect.tiers.contains(&tier.as_str())) {
            return Err(match dialect.tiers {
                [] => format!("`tiers.{tier}`: the dialect {name} knows no classes of service"),
                tiers => format!("`tiers.{tier}`: the dialect {name} knows {}", tiers.join(", ")),
            });
        }
        if self.flex != Flex::All(false) && dialect.flex_price_permille.is_none() {
            return Err(format!(
                "`flex`: what it costs at {name} is not known here; make it an offer by `tiers.flex` with its price, if \
                 {name} sells it"
            ));
        }
        if self.background != Flex::All(false) && !dialect.has_windows {
            return Err(format!("`background`: the dialect {name} has no completion windows"));
        }
        self.check_window()
    }

    fn check_window(&self) -> Result<(), String> {
        let Some(window) = &self.window else { return Ok(()) };
        let name = self.dialect().name;
        let Some(api) = &self.dialect().batch_api else {
            return Err(format!("`window`: the dialect {name} has no batches"));
        };
        let ms = window.duration.ms();
        match api.window.choice {
            WindowChoice::Fixed if ms != api.window.ms => {
                Err(format!("`window`: at {name} it is always {}", api.window.text))
            }
            WindowChoice::Between(least, most) if !(least..=most).contains(&ms) => {
                let hours = |ms: u64| ms / 3_600_000;
                Err(format!("`window`: at {name} it goes from {}h to {}h", hours(least), hours(most)))
            }
            _ => Ok(()),
        }
    }
}

/// Nothing, or a path without an end.
fn is_root(root: &str) -> bool {
    root.is_empty() || (root.starts_with('/') && !root.ends_with('/') && !root.contains(['?', '#']))
}

impl TryFrom<Config> for Checked {
    type Error = String;

    fn try_from(config: Config) -> Result<Self, String> {
        config.check()?;
        Ok(Self(config))
    }
}

/// An offer for a class of service.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tier {
    /// What it costs, in thousandths of the list price.
    pub price_permille: u32,
    /// How long an answer usually takes.
    #[serde(default = "Tier::usual_default")]
    pub usual: Duration,
    /// For which models it is sold.
    #[serde(default = "Tier::models_default")]
    pub models: Flex,
}

impl Tier {
    fn usual_default() -> Duration {
        Config::default().standard_usual
    }

    fn models_default() -> Flex {
        Flex::All(true)
    }
}

/// How long a batch may take, and how it was written: the provider gets it as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Window {
    text: String,
    duration: Duration,
}

impl TryFrom<String> for Window {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Ok(Self { duration: Duration::try_from(text.clone())?, text })
    }
}

/// For which models a thing holds.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "expected true, false or a list of model names")]
pub enum Flex {
    /// For all or for none.
    All(bool),
    /// For these.
    Models(Vec<String>),
}

impl Flex {
    /// Whether it holds for this one.
    pub fn covers(&self, model: &str) -> bool {
        match self {
            Self::All(all) => *all,
            Self::Models(models) => models.iter().any(|name| name == model),
        }
    }
}

/// Which files are deleted at the provider when a batch is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeleteFiles {
    /// None; the provider removes them when it likes.
    None,
    /// What offpeak has uploaded.
    Input,
    /// That, and the files with results once they are read.
    All,
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
    fn settings_are_read() {
        let config: Config = parse_config(
            r#"{"batch": false, "flex": ["m"], "batch_usual": "90s", "poll_ms": 5, "delete_files": "all",
                "max_requests": 10}"#,
        )
        .unwrap();
        assert!(!config.batch);
        assert!(config.flex.covers("m") && !config.flex.covers("n"));
        assert_eq!(config.batch_usual.ms(), 90_000);
        assert_eq!(
            (config.poll_ms, config.delete_files, config.max_requests),
            (5, DeleteFiles::All, Some(10))
        );
    }

    fn checked(json: &str) -> Result<Config, String> {
        parse_config::<Checked>(json).map(|checked| checked.0).map_err(|error| error.to_string())
    }

    #[test]
    fn a_dialect_brings_its_places_and_the_table_may_change_them() {
        let config = checked(r#"{"dialect": "azure"}"#).unwrap();
        assert_eq!(config.path("/v1/chat/completions"), "/openai/v1/chat/completions");
        assert_eq!(config.credential(), CredentialPlace::Header("api-key".into()));
        let config =
            checked(r#"{"dialect": "azure", "root": "", "credential_header": "Authorization"}"#).unwrap();
        assert_eq!(config.path("/v1/chat/completions"), "/chat/completions");
        assert_eq!(config.credential(), CredentialPlace::Bearer);
        let config = checked(r#"{"dialect": "perplexity"}"#).unwrap();
        assert_eq!(config.path("/v1/chat/completions"), "/chat/completions");
        assert_eq!(config.path("/v1/responses"), "/v1/responses");
        let config = checked(r#"{"credential_header": "X-Key"}"#).unwrap();
        assert_eq!(config.credential(), CredentialPlace::Header("x-key".into()));
    }

    #[test]
    fn windows_are_taken_where_there_is_a_choice() {
        for (json, expected) in [
            (r#"{"dialect": "groq", "window": "7d"}"#, Some(("7d", 7 * 86_400_000))),
            (r#"{"dialect": "mistral", "window": "2h"}"#, Some(("2h", 7_200_000))),
            (r#"{"window": "1h"}"#, Some(("1h", 3_600_000))),
            (r#"{"dialect": "novita"}"#, Some(("48h", 2 * 86_400_000))),
            (r#"{"dialect": "groq", "window": "8d"}"#, None),
            (r#"{"dialect": "groq", "window": "1h"}"#, None),
            (r#"{"dialect": "together", "window": "48h"}"#, None),
            (r#"{"dialect": "gemini", "window": "24h"}"#, None),
        ] {
            let window =
                checked(json).map(|config| config.window(config.dialect().batch_api.as_ref().unwrap()));
            match expected {
                Some((text, ms)) => assert_eq!(window, Ok((text.to_owned(), ms)), "{json}"),
                None => assert!(window.unwrap_err().contains("window"), "{json}"),
            }
        }
    }

    #[test]
    fn what_does_not_fit_the_dialect_is_refused_with_the_reason() {
        for (json, part) in [
            (r#"{"dialect": "acme"}"#, "unknown variant"),
            (r#"{"dialect": "groq", "flex": true}"#, "tiers.flex"),
            (r#"{"dialect": "azure", "tiers": {"flex": {"price_permille": 500}}}"#, "no classes of service"),
            (r#"{"dialect": "groq", "tiers": {"fast": {"price_permille": 500}}}"#, "flex, performance"),
            (r#"{"tiers": {"fast": {}}}"#, "price_permille"),
            (r#"{"dialect": "groq", "background": true}"#, "no completion windows"),
            (r#"{"root": "v1"}"#, "`root`"),
            (r#"{"root": "/v1/"}"#, "`root`"),
        ] {
            let error = checked(json).unwrap_err();
            assert!(error.contains(part), "{json}: {error}");
        }
    }

    #[test]
    fn mistakes_are_refused() {
        for json in [
            r#"{"pol_ms": 5}"#,
            r#"{"flex": "yes"}"#,
            r#"{"batch_usual": "1 hour"}"#,
            r#"{"batch_usual": "99999999999999999999h"}"#,
            r#"{"batch_usual": "99999999999999d"}"#,
            r#"{"batch_usual": "h"}"#,
            r#"{"poll_ms": -1}"#,
        ] {
            assert!(parse_config::<Config>(json).is_err(), "{json}");
        }
    }
}
