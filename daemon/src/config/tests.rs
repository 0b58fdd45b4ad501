//! Tests of the whole way from text to tree.

use std::collections::BTreeMap;

use super::*;

mod keys;
mod mistakes;
mod places;

/// The least that is a configuration, written so that keys can be put before and behind it.
const LEAST: &str = "backends.b.base_url = \"http://127.0.0.1:9000\"\nbackends.b.models = [\"*\"]\n";

fn env(variables: &[(&str, &str)]) -> BTreeMap<String, String> {
    variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The configuration of a text that is expected to be right.
fn read(text: &str, variables: &[(&str, &str)]) -> Config {
    Config::from_text("t.toml", text, &env(variables)).unwrap_or_else(|errors| panic!("{errors}\n{text}"))
}

/// What is said about a text that is expected to be wrong.
fn refused(text: &str, variables: &[(&str, &str)]) -> String {
    Config::from_text("t.toml", text, &env(variables)).expect_err(text).to_string()
}

fn json(config: &Config) -> serde_json::Value {
    serde_json::to_value(config).unwrap()
}
