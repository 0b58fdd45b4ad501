//! The price book: what providers ask for a model, under the names of the widely used price file
//! (`model_prices_and_context_window.json`). What the names mean is for the cost policy; here they are only kept and found.

use std::collections::HashMap;
use std::sync::Arc;

use crate::money::Money;

/// The day on which the built-in prices were collected.
pub const BUILT_IN_DATE: &str = "2026-11-23";

/// One price, such as `input_cost_per_token_batches`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rate {
    /// Its name in the price file.
    pub name: Arc<str>,
    /// US dollars for one of what the name says.
    pub price: Money,
}

/// All prices of one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelPrices {
    /// The key under which they stand in the book.
    pub key: Arc<str>,
    /// In the order of the book.
    pub rates: Vec<Rate>,
}

/// Prices by model.
#[derive(Debug, Clone, Default)]
pub struct PriceBook {
    models: HashMap<Arc<str>, Arc<ModelPrices>>,
}

impl PriceBook {
    /// The built-in prices of [`BUILT_IN_DATE`].
    #[must_use]
    pub fn built_in() -> Self {
        let mut book = Self::default();
        for line in LIST {
            book.insert(line.model, line.rates());
        }
        book
    }

    /// Sets the prices of a model, instead of those that it has.
    pub fn insert(&mut self, key: &str, rates: Vec<Rate>) {
        let key: Arc<str> = key.into();
        self.models.insert(key.clone(), Arc::new(ModelPrices { key, rates }));
    }

    /// How many models have prices.
    #[must_use]
    pub fn len(&self) -> usize {
        self.models.len()
    }

    /// No model has prices.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.models.is_empty()
    }

    /// The prices of a model at a backend whose provider plugin has this name. The first of: the model as it is, the model
    /// behind the provider's name (`gemini/gemini-2.5-pro`), and both without a date at the end of the name.
    #[must_use]
    pub fn find(&self, provider: &str, model: &str) -> Option<&Arc<ModelPrices>> {
        let undated = without_date(model);
        [Some(model), undated].into_iter().flatten().find_map(|name| {
            self.models.get(name).or_else(|| self.models.get(format!("{provider}/{name}").as_str()))
        })
    }
}

/// A model's name without the date of its version: `-2024-07-18` or `-20241022`.
fn without_date(model: &str) -> Option<&str> {
    let is_date = |tail: &str| {
        let digits = tail.bytes().filter(u8::is_ascii_digit).count();
        let hyphens = tail.bytes().filter(|byte| *byte == b'-').count();
        digits == 8 && digits + hyphens == tail.len() && (hyphens == 0 || hyphens == 2)
    };
    [11, 9].into_iter().find_map(|length| {
        let (name, tail) = model.split_at_checked(model.len().checked_sub(length)?)?;
        (!name.is_empty() && is_date(tail.strip_prefix('-')?)).then_some(name)
    })
}

/// One line of the built-in list, in pico-dollars a token: $1 for a million tokens is 1,000,000.
struct Line {
    model: &'static str,
    /// Input, output.
    standard: (u32, u32),
    cache_read: Option<u32>,
    cache_write: Option<u32>,
    batch: Option<(u32, u32)>,
    batch_cache_read: Option<u32>,
    flex: Option<(u32, u32)>,
    priority: Option<(u32, u32)>,
}

impl Line {
    fn rates(&self) -> Vec<Rate> {
        let pair = |pair: Option<(u32, u32)>| (pair.map(|pair| pair.0), pair.map(|pair| pair.1));
        let (batch, flex, priority) = (pair(self.batch), pair(self.flex), pair(self.priority));
        [
            ("input_cost_per_token", Some(self.standard.0)),
            ("output_cost_per_token", Some(self.standard.1)),
            ("cache_read_input_token_cost", self.cache_read),
            ("cache_creation_input_token_cost", self.cache_write),
            ("input_cost_per_token_batches", batch.0),
            ("output_cost_per_token_batches", batch.1),
            ("cache_read_input_token_cost_batches", self.batch_cache_read),
            ("input_cost_per_token_flex", flex.0),
            ("output_cost_per_token_flex", flex.1),
            ("input_cost_per_token_priority", priority.0),
            ("output_cost_per_token_priority", priority.1),
        ]
        .into_iter()
        .filter_map(|(name, price)| Some(Rate { name: name.into(), price: Money(price?.into()) }))
        .collect()
    }
}

#[expect(clippy::too_many_arguments, reason = "a table's line")]
const fn line(
    model: &'static str,
    standard: (u32, u32),
    cache_read: Option<u32>,
    cache_write: Option<u32>,
    batch: Option<(u32, u32)>,
    batch_cache_read: Option<u32>,
    flex: Option<(u32, u32)>,
    priority: Option<(u32, u32)>,
) -> Line {
    Line { model, standard, cache_read, cache_write, batch, batch_cache_read, flex, priority }
}

/// List prices of the vendors, as the price file had them on [`BUILT_IN_DATE`].
#[rustfmt::skip] // a table
const LIST: [Line; 34] = [
    line("gpt-6-astra", (10_000_000, 50_000_000), Some(1_000_000), Some(12_500_000), Some((5_000_000, 25_000_000)), Some(500_000), Some((5_000_000, 25_000_000)), Some((20_000_000, 100_000_000))),
    line("gpt-6.1-sol", (2_000_000, 10_000_000), Some(100_000), Some(2_500_000), Some((1_000_000, 5_000_000)), Some(50_000), Some((1_000_000, 5_000_000)), Some((4_000_000, 20_000_000))),
    line("gpt-6.1-terra", (1_000_000, 5_000_000), Some(50_000), Some(1_250_000), Some((500_000, 2_500_000)), Some(25_000), Some((500_000, 2_500_000)), Some((2_000_000, 10_000_000))),
    line("gpt-6-luna", (100_000, 500_000), Some(10_000), Some(125_000), Some((50_000, 250_000)), Some(5_000), Some((50_000, 250_000)), Some((200_000, 1_000_000))),
    line("gpt-5.6-luna", (200_000, 1_200_000), Some(20_000), Some(250_000), Some((100_000, 600_000)), Some(10_000), Some((100_000, 600_000)), Some((400_000, 2_400_000))),
    line("gpt-5.5", (5_000_000, 30_000_000), Some(500_000), None, Some((2_500_000, 15_000_000)), Some(250_000), Some((2_500_000, 15_000_000)), Some((12_500_000, 75_000_000))),
    line("gpt-5.4-mini", (750_000, 4_500_000), Some(75_000), None, Some((375_000, 2_250_000)), Some(37_500), Some((375_000, 2_250_000)), Some((1_500_000, 9_000_000))),
    line("gpt-5", (1_250_000, 10_000_000), Some(125_000), None, Some((625_000, 5_000_000)), Some(62_500), Some((625_000, 5_000_000)), Some((2_500_000, 20_000_000))),
    line("gpt-5-mini", (250_000, 2_000_000), Some(25_000), None, Some((125_000, 1_000_000)), Some(12_500), Some((125_000, 1_000_000)), Some((450_000, 3_600_000))),
    line("gpt-4.1", (2_000_000, 8_000_000), Some(500_000), None, Some((1_000_000, 4_000_000)), None, None, Some((3_500_000, 14_000_000))),
    line("gpt-4.1-mini", (400_000, 1_600_000), Some(100_000), None, Some((200_000, 800_000)), None, None, Some((700_000, 2_800_000))),
    line("gpt-4o", (2_500_000, 10_000_000), Some(1_250_000), None, Some((1_250_000, 5_000_000)), None, None, Some((4_250_000, 17_000_000))),
    line("gpt-4o-mini", (150_000, 600_000), Some(75_000), None, Some((75_000, 300_000)), None, None, Some((250_000, 1_000_000))),
    line("gpt-3.5-turbo-instruct", (1_500_000, 2_000_000), None, None, None, None, None, None),
    line("text-embedding-3-small", (20_000, 0), None, None, Some((10_000, 0)), None, None, None),
    line("text-embedding-3-large", (130_000, 0), None, None, Some((65_000, 0)), None, None, None),
    line("omni-moderation-latest", (0, 0), None, None, None, None, None, None),
    line("claude-opus-5-5", (4_000_000, 20_000_000), Some(200_000), Some(5_000_000), Some((2_000_000, 10_000_000)), Some(100_000), None, None),
    line("claude-sonnet-5-5", (2_000_000, 10_000_000), Some(100_000), Some(2_500_000), Some((1_000_000, 5_000_000)), Some(50_000), None, None),
    line("claude-haiku-5-5", (100_000, 500_000), Some(10_000), Some(125_000), Some((50_000, 250_000)), Some(5_000), None, None),
    line("claude-sonnet-4-5", (3_000_000, 15_000_000), Some(300_000), Some(3_750_000), Some((1_500_000, 7_500_000)), Some(150_000), None, None),
    line("claude-haiku-4-5", (1_000_000, 5_000_000), Some(100_000), Some(1_250_000), Some((500_000, 2_500_000)), Some(50_000), None, None),
    line("gemini/gemini-4-argon", (2_000_000, 10_000_000), Some(100_000), None, Some((1_000_000, 5_000_000)), Some(50_000), Some((1_000_000, 5_000_000)), Some((3_600_000, 18_000_000))),
    line("gemini/gemini-3.8-flash", (750_000, 3_750_000), Some(75_000), None, Some((375_000, 1_875_000)), Some(37_500), Some((375_000, 1_875_000)), Some((1_350_000, 6_750_000))),
    line("gemini/gemini-3.5-flash-lite", (300_000, 2_500_000), Some(30_000), None, Some((150_000, 1_250_000)), Some(20_000), Some((150_000, 1_250_000)), Some((540_000, 4_500_000))),
    line("gemini/gemini-2.5-pro", (1_250_000, 10_000_000), Some(125_000), None, Some((625_000, 5_000_000)), Some(125_000), Some((625_000, 5_000_000)), Some((2_250_000, 18_000_000))),
    line("gemini/gemini-2.5-flash", (300_000, 2_500_000), Some(30_000), None, Some((150_000, 1_250_000)), Some(30_000), Some((150_000, 1_250_000)), Some((540_000, 4_500_000))),
    line("mistral/mistral-large-latest", (500_000, 1_500_000), Some(50_000), None, None, None, None, None),
    line("mistral/mistral-small-latest", (150_000, 600_000), Some(15_000), None, None, None, None, None),
    line("groq/openai/gpt-oss-120b", (150_000, 600_000), Some(75_000), None, None, None, None, None),
    line("deepseek/deepseek-chat", (280_000, 420_000), Some(28_000), Some(0), None, None, None, None),
    line("deepseek-chat", (280_000, 420_000), Some(28_000), Some(0), None, None, None, None),
    line("mistral-large-latest", (500_000, 1_500_000), Some(50_000), None, None, None, None, None),
    line("mistral-small-latest", (150_000, 600_000), Some(15_000), None, None, None, None, None),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(book: &PriceBook, provider: &str, model: &str, name: &str) -> Option<String> {
        let prices = book.find(provider, model)?;
        Some(prices.rates.iter().find(|rate| &*rate.name == name)?.price.to_decimal())
    }

    #[test]
    fn the_built_in_prices_are_dollars_a_token() {
        let book = PriceBook::built_in();
        assert_eq!(book.len(), LIST.len(), "no model stands twice in the list");
        let rate = |model, name| rate(&book, "openai", model, name);
        assert_eq!(rate("gpt-4o-mini", "input_cost_per_token").as_deref(), Some("0.00000015"));
        assert_eq!(rate("gpt-4o-mini", "output_cost_per_token_batches").as_deref(), Some("0.0000003"));
        assert_eq!(rate("gpt-6-luna", "cache_read_input_token_cost_batches").as_deref(), Some("0.000000005"));
        assert_eq!(rate("gpt-4o-mini", "input_cost_per_token_flex"), None);
    }

    #[test]
    fn a_model_is_found_with_its_provider_and_without_its_date() {
        let mut book = PriceBook::built_in();
        book.insert("acme/rocket", vec![Rate { name: "input_cost_per_token".into(), price: Money(7) }]);
        let key = |provider, model| book.find(provider, model).map(|prices| prices.key.to_string());
        assert_eq!(key("openai", "gpt-4o-mini-2024-07-18").as_deref(), Some("gpt-4o-mini"));
        assert_eq!(key("anthropic", "claude-haiku-4-5-20251001").as_deref(), Some("claude-haiku-4-5"));
        assert_eq!(key("acme", "rocket").as_deref(), Some("acme/rocket"));
        assert_eq!(key("acme", "rocket-20260101").as_deref(), Some("acme/rocket"));
        assert_eq!(key("openai", "rocket"), None);
        assert_eq!(key("openai", "gpt-4o-mini-2024-07"), None);
        assert_eq!(key("openai", "2024-07-18"), None);
        assert_eq!(key("openai", "\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}"), None);
    }
}
