//! The price list, in whole pico-dollars a token, so that one token is exact in every mode.

use std::fmt;
use std::iter::Sum;
use std::ops::Add;

use serde::{Deserialize, Serialize};

use crate::bill::Usage;

/// Money: 10^-12 US dollars. $1 for a million tokens is 1,000,000 of these a token; 2^64 of them are 18 million dollars.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PicoDollars(pub u64);

impl Add for PicoDollars {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl Sum for PicoDollars {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self(0), Add::add)
    }
}

impl fmt::Display for PicoDollars {
    /// Dollars with all twelve places.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "${}.{:012}", self.0 / 1_000_000_000_000, self.0 % 1_000_000_000_000)
    }
}

/// How a request was run, as far as the price is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Standard real time, 1x.
    Realtime,
    /// `service_tier: flex`, 0.5x.
    Flex,
    /// `service_tier: priority` (or `fast`), 2x unless the model's list says otherwise.
    Priority,
    /// Background response with a 2 h window, 0.7x.
    #[serde(rename = "background2h")]
    Background2h,
    /// Background response with an 8 h window, 0.6x.
    #[serde(rename = "background8h")]
    Background8h,
    /// Batch API, 0.5x.
    Batch,
}

impl Mode {
    /// All modes, in the order of their discriminants.
    pub const ALL: [Self; 6] =
        [Self::Realtime, Self::Flex, Self::Priority, Self::Background2h, Self::Background8h, Self::Batch];
}

/// List prices of one model, pico-dollars a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prices {
    /// An input token.
    pub input: u64,
    /// An input token that the prompt cache had.
    pub cached: u64,
    /// An input token that was written to the prompt cache, where that has a price.
    pub cache_write: u64,
    /// An output token.
    pub output: u64,
    /// Priority price over standard price, as a fraction.
    pub priority: (u64, u64),
}

impl Prices {
    /// What `usage` costs in `mode`. Exact for every list price here, hence additive over requests.
    pub fn cost(&self, mode: Mode, usage: Usage) -> PicoDollars {
        let (times, over) = match mode {
            Mode::Realtime => (1, 1),
            Mode::Flex | Mode::Batch => (1, 2),
            Mode::Priority => self.priority,
            Mode::Background2h => (7, 10),
            Mode::Background8h => (6, 10),
        };
        let rate = |list: u64| list.saturating_mul(times) / over;
        let fresh = usage.input_tokens.saturating_sub(usage.cached_tokens + usage.cache_written_tokens);
        let parts = [
            (fresh, self.input),
            (usage.cached_tokens, self.cached),
            (usage.cache_written_tokens, self.cache_write),
            (usage.output_tokens, self.output),
        ];
        parts.into_iter().map(|(tokens, list)| PicoDollars(tokens.saturating_mul(rate(list)))).sum()
    }
}

const fn list(input: u64, cached: u64, output: u64, priority: (u64, u64)) -> Prices {
    Prices { input, cached, cache_write: input, output, priority }
}

/// A model of Anthropic's: writing to the cache has a price, priority is not sold by the token.
const fn claude(input: u64, cached: u64, cache_write: u64, output: u64) -> Prices {
    Prices { input, cached, cache_write, output, priority: (1, 1) }
}

/// Model, prices. US dollars for 1,000,000 tokens are 1,000,000 pico-dollars for one, so $0.15 reads 150,000.
/// Source: the vendors' list prices of 2026-11 as collected in `LiteLLM`'s price file.
pub(crate) const LIST: [(&str, Prices); 16] = [
    ("gpt-6-astra", list(10_000_000, 1_000_000, 50_000_000, (2, 1))),
    ("gpt-6.1-sol", list(2_000_000, 100_000, 10_000_000, (2, 1))),
    ("gpt-6.1-terra", list(1_000_000, 50_000, 5_000_000, (2, 1))),
    ("gpt-6-luna", list(100_000, 10_000, 500_000, (2, 1))),
    ("gpt-5-mini", list(250_000, 25_000, 2_000_000, (9, 5))),
    ("gpt-4o", list(2_500_000, 1_250_000, 10_000_000, (17, 10))),
    ("gpt-4o-mini", list(150_000, 75_000, 600_000, (5, 3))),
    ("gpt-3.5-turbo-instruct", list(1_500_000, 1_500_000, 2_000_000, (2, 1))),
    ("text-embedding-3-small", list(20_000, 20_000, 0, (2, 1))),
    ("text-embedding-3-large", list(130_000, 130_000, 0, (2, 1))),
    ("omni-moderation-latest", list(0, 0, 0, (1, 1))),
    ("claude-opus-5-5", claude(4_000_000, 200_000, 5_000_000, 20_000_000)),
    ("claude-sonnet-5-5", claude(2_000_000, 100_000, 2_500_000, 10_000_000)),
    ("claude-haiku-5-5", claude(100_000, 10_000, 125_000, 500_000)),
    ("claude-sonnet-4-5", claude(3_000_000, 300_000, 3_750_000, 15_000_000)),
    ("claude-haiku-4-5", claude(1_000_000, 100_000, 1_250_000, 5_000_000)),
];

/// What a configured model costs that the list does not name: the price of `gpt-4o-mini`, with priority at 2x.
const UNLISTED: Prices = list(150_000, 75_000, 600_000, (2, 1));

/// The prices of `model`; a model that is not listed costs what `gpt-4o-mini` costs.
pub fn price_of(model: &str) -> Prices {
    LIST.iter().find(|(name, _)| *name == model).map_or(UNLISTED, |(_, prices)| *prices)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_price_is_whole_in_every_mode() {
        for (model, prices) in LIST.iter().chain([&("unlisted", UNLISTED)]) {
            for list in [prices.input, prices.cached, prices.cache_write, prices.output] {
                let (times, over) = prices.priority;
                assert_eq!((list % 10, list * times % over), (0, 0), "{model} {list}");
            }
        }
    }

    #[test]
    fn a_million_tokens_cost_the_list_price() {
        let million = Usage { input_tokens: 1_000_000, output_tokens: 1_000_000, ..Usage::default() };
        let mini = price_of("gpt-4o-mini");
        assert_eq!(mini.cost(Mode::Realtime, million).to_string(), "$0.750000000000");
        assert_eq!(mini.cost(Mode::Batch, million).to_string(), "$0.375000000000");
        assert_eq!(mini.cost(Mode::Flex, million).to_string(), "$0.375000000000");
        assert_eq!(mini.cost(Mode::Priority, million).to_string(), "$1.250000000000");
        assert_eq!(mini.cost(Mode::Background2h, million).to_string(), "$0.525000000000");
        assert_eq!(mini.cost(Mode::Background8h, million).to_string(), "$0.450000000000");
        let cached = Usage { input_tokens: 1_000_000, cached_tokens: 1_000_000, ..Usage::default() };
        assert_eq!(mini.cost(Mode::Batch, cached).to_string(), "$0.037500000000");
        let written = Usage { input_tokens: 1_000_000, cache_written_tokens: 1_000_000, ..Usage::default() };
        assert_eq!(price_of("claude-haiku-5-5").cost(Mode::Realtime, written).to_string(), "$0.125000000000");
    }
}
