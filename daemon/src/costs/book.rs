//! The price book: the built-in prices, and over them those of the user's own file.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use offpeak_core::price::{PriceBook, Rate};
use serde_json::value::RawValue;

/// The price file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BookError {
    /// It cannot be read.
    #[error("the price file {path} cannot be read: {source}. Check costs.prices in the configuration")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not what it should be.
    #[error(
        "the price file {path} is not of the form of model_prices_and_context_window.json (an object of models, each an object \
         with members such as \"input_cost_per_token\"): {source}. Check costs.prices in the configuration"
    )]
    NotAPriceFile {
        /// Which.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

/// The entry of the file that explains the others.
const SAMPLE: &str = "sample_spec";

/// Reads the book: built-in prices, and where a file is named, its models instead of those of the same name.
pub fn read(file: Option<&Path>) -> Result<PriceBook, BookError> {
    let mut book = PriceBook::built_in();
    let Some(path) = file else { return Ok(book) };
    let unreadable = |source| BookError::Unreadable { path: path.to_owned(), source };
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    let wrong = |source| BookError::NotAPriceFile { path: path.to_owned(), source };
    for (model, rates) in parse(&text).map_err(wrong)? {
        book.insert(&model, rates);
    }
    Ok(book)
}

/// The models of a price file. What is no price is skipped, as is a price that is no number: new kinds of members appear
/// in that file every week.
fn parse(text: &str) -> Result<Vec<(String, Vec<Rate>)>, serde_json::Error> {
    let models: HashMap<String, &RawValue> = serde_json::from_str(text)?;
    let mut found = Vec::with_capacity(models.len());
    for (model, entry) in models {
        if model == SAMPLE {
            continue;
        }
        let members: HashMap<String, &RawValue> = serde_json::from_str(entry.get())?;
        let rates =
            members.into_iter().filter(|(name, _)| name.contains("cost")).filter_map(|(name, value)| {
                let price = value.get().parse().ok()?;
                Some(Rate { name: name.into(), price })
            });
        found.push((model, rates.collect()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const FILE: &str = r#"{
        "sample_spec": {"input_cost_per_token": 0.0, "code": "LiteLLM"},
        "gpt-4o-mini": {"input_cost_per_token": 2.6999999999999998e-08, "output_cost_per_token": null,
            "litellm_provider": "openai", "max_tokens": 16384, "search_context_cost_per_query": {"high": 0.05},
            "input_cost_per_token_batches": 7.5e-08},
        "acme/rocket": {"input_cost_per_token": "1e-06"}
    }"#;

    #[test]
    fn the_users_models_go_before_the_built_in_ones() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(FILE.as_bytes()).unwrap();
        let book = read(Some(file.path())).unwrap();
        let mini = book.find("openai", "gpt-4o-mini").unwrap();
        let mut rates: Vec<_> =
            mini.rates.iter().map(|rate| (&*rate.name, rate.price.to_decimal())).collect();
        rates.sort();
        assert_eq!(
            rates,
            [
                ("input_cost_per_token", "0.000000027".to_owned()),
                ("input_cost_per_token_batches", "0.000000075".to_owned())
            ]
        );
        assert!(book.find("acme", "rocket").is_some_and(|rocket| rocket.rates.is_empty()));
        assert!(book.find("openai", "gpt-4o").is_some(), "the others keep their built-in prices");
        assert!(book.find("openai", SAMPLE).is_none());
    }

    #[test]
    fn what_is_no_price_file_is_refused_with_its_name() {
        assert!(
            read(Some(Path::new("/nowhere/prices.json")))
                .unwrap_err()
                .to_string()
                .contains("/nowhere/prices.json")
        );
        for text in ["", "[]", r#"{"gpt-4o": 3}"#] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
