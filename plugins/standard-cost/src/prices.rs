//! Which of the book's prices hold for an outcome.
//!
//! The names of the price file have a base (`input_cost_per_token`), perhaps a threshold (`_above_200k_tokens`: beyond so
//! many input tokens this price holds for all tokens of the request), and perhaps a tariff (`_batches`, `_flex`,
//! `_priority`).

use std::collections::BTreeMap;

use offpeak_plugin::{Mode, cost_policy::Sale};

const INPUT: &str = "input_cost_per_token";
const OUTPUT: &str = "output_cost_per_token";
const CACHE_READ: &str = "cache_read_input_token_cost";
const CACHE_WRITE: &str = "cache_creation_input_token_cost";
const CACHE_WRITE_1H: &str = "cache_creation_input_token_cost_above_1hr";
const AUDIO_INPUT: &str = "input_cost_per_audio_token";
const AUDIO_OUTPUT: &str = "output_cost_per_audio_token";
const REASONING: &str = "output_cost_per_reasoning_token";

/// A column of the price list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tariff {
    /// Real time as the list has it.
    Standard,
    /// The prices with this ending; where the book has none, so many thousandths of the standard price.
    Ending(String, u32),
    /// So many thousandths of the standard price.
    Share(u32),
}

impl Tariff {
    /// What the sale and the tier that the provider named mean.
    pub fn of(sale: &Sale, tier: Option<&str>) -> Self {
        match (sale.mode, tier) {
            (Mode::Batch, _) => Self::Ending("_batches".to_owned(), sale.price_permille),
            (Mode::Background | Mode::Engine, _) => Self::Share(sale.price_permille),
            (Mode::Realtime, Some("default" | "standard" | "auto" | "on_demand")) => Self::Standard,
            (Mode::Realtime, Some("fast" | "priority")) => Self::Ending("_priority".to_owned(), 2000),
            (Mode::Realtime, Some("flex")) => Self::Ending("_flex".to_owned(), 500),
            (Mode::Realtime, Some("ultrafast")) => Self::Ending("_ultrafast".to_owned(), 6000),
            (Mode::Realtime, _) if sale.price_permille == 1000 => Self::Standard,
            (Mode::Realtime, _) => Self::Ending(format!("_{}", sale.offer), sale.price_permille),
        }
    }
}

/// Prices of one token of each kind, in pico-dollars.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TokenPrices {
    pub(crate) input: i128,
    pub(crate) cached: i128,
    pub(crate) cache_written: i128,
    pub(crate) cache_written_1h: i128,
    pub(crate) audio_input: i128,
    pub(crate) output: i128,
    pub(crate) reasoning: i128,
    pub(crate) audio_output: i128,
}

/// The book's prices for one model, by name.
#[derive(Debug, Clone)]
pub struct Prices<'a> {
    by_name: BTreeMap<&'a str, i64>,
    /// Input tokens beyond which other prices hold, with the ending of their names; the largest first.
    thresholds: Vec<(u64, String)>,
}

impl<'a> Prices<'a> {
    /// The prices of a sale.
    pub fn of(sale: &'a Sale) -> Self {
        let by_name: BTreeMap<_, _> =
            sale.rates.iter().map(|rate| (rate.name.as_str(), rate.price)).collect();
        let mut thresholds: Vec<_> = by_name.keys().filter_map(|name| threshold(name)).collect();
        thresholds.sort_unstable();
        thresholds.dedup();
        thresholds.reverse();
        Self { by_name, thresholds }
    }

    /// The prices of tokens under a tariff, for a request with so many input tokens. None if the book does not know what
    /// an input token costs.
    pub(crate) fn tokens(&self, tariff: &Tariff, input_tokens: u64) -> Option<TokenPrices> {
        let above =
            self.thresholds.iter().find(|(tokens, _)| input_tokens > *tokens).map(|(_, ending)| ending);
        let above = above.map_or("", String::as_str);
        let input = self.price(INPUT, above, tariff)?;
        let output = self.price(OUTPUT, above, tariff).unwrap_or(0);
        let cached = self.price(CACHE_READ, above, tariff).unwrap_or(input);
        let cache_written = self.price(CACHE_WRITE, above, tariff).unwrap_or(input);
        Some(TokenPrices {
            input,
            cached,
            cache_written,
            cache_written_1h: self.price(CACHE_WRITE_1H, above, tariff).unwrap_or(cache_written),
            audio_input: self.price(AUDIO_INPUT, above, tariff).unwrap_or(input),
            output,
            reasoning: self.price(REASONING, above, tariff).unwrap_or(output),
            audio_output: self.price(AUDIO_OUTPUT, above, tariff).unwrap_or(output),
        })
    }

    fn price(&self, base: &str, above: &str, tariff: &Tariff) -> Option<i128> {
        let find = |ending: &str| {
            let long = (!above.is_empty()).then(|| self.named(&format!("{base}{above}{ending}")));
            long.flatten().or_else(|| self.named(&format!("{base}{ending}")))
        };
        match tariff {
            Tariff::Standard => find(""),
            Tariff::Ending(ending, share) => find(ending).or_else(|| Some(permille(find("")?, *share))),
            Tariff::Share(share) => Some(permille(find("")?, *share)),
        }
    }

    fn named(&self, name: &str) -> Option<i128> {
        self.by_name.get(name).copied().map(i128::from)
    }
}

fn permille(price: i128, share: u32) -> i128 {
    (price * i128::from(share) + 500) / 1000
}

/// The threshold in a price's name, with the ending that it stands in: `_above_200k_tokens`.
fn threshold(name: &str) -> Option<(u64, String)> {
    let (_, rest) = name.split_once("_above_")?;
    let (thousands, _) = rest.split_once("k_tokens")?;
    let tokens = thousands.parse::<u64>().ok()?.checked_mul(1000)?;
    Some((tokens, format!("_above_{thousands}k_tokens")))
}

#[cfg(test)]
pub(crate) mod tests {
    use offpeak_plugin::cost_policy::Rate;

    use super::*;

    pub(crate) fn sale(mode: Mode, offer: &str, price_permille: u32, rates: &[(&str, i64)]) -> Sale {
        Sale {
            backend: "b".into(),
            endpoint: "/v1/chat/completions".into(),
            model: "m".into(),
            offer: offer.into(),
            mode,
            price_permille,
            rates: rates.iter().map(|(name, price)| Rate { name: (*name).into(), price: *price }).collect(),
        }
    }

    const RATES: [(&str, i64); 8] = [
        (INPUT, 1000),
        (OUTPUT, 4000),
        (CACHE_READ, 100),
        ("input_cost_per_token_batches", 400),
        ("input_cost_per_token_priority", 1800),
        ("input_cost_per_token_above_200k_tokens", 2000),
        ("input_cost_per_token_above_200k_tokens_batches", 1000),
        (CACHE_WRITE_1H, 2500),
    ];

    #[test]
    fn the_books_own_price_goes_before_a_share_of_the_standard_one() {
        let sold = |mode, offer, permille, tier| {
            let sale = sale(mode, offer, permille, &RATES);
            let tokens = Prices::of(&sale).tokens(&Tariff::of(&sale, tier), 10).unwrap();
            (tokens.input, tokens.output, tokens.cached)
        };
        assert_eq!(sold(Mode::Realtime, "standard", 1000, None), (1000, 4000, 100));
        assert_eq!(sold(Mode::Batch, "batch", 500, None), (400, 2000, 50));
        assert_eq!(sold(Mode::Batch, "batch", 500, Some("default")), (400, 2000, 50));
        assert_eq!(sold(Mode::Background, "2h", 700, None), (700, 2800, 70));
        assert_eq!(sold(Mode::Realtime, "flex", 500, None), (500, 2000, 50));
        assert_eq!(sold(Mode::Realtime, "flex", 500, Some("default")), (1000, 4000, 100), "it was not sold");
        assert_eq!(sold(Mode::Realtime, "standard", 1000, Some("priority")), (1800, 8000, 200));
    }

    #[test]
    fn long_requests_have_prices_of_their_own_for_all_their_tokens() {
        let at = |mode, input_tokens| {
            let sale = sale(mode, "x", 500, &RATES);
            let tier = (mode == Mode::Realtime).then_some("default");
            Prices::of(&sale).tokens(&Tariff::of(&sale, tier), input_tokens).unwrap().input
        };
        assert_eq!((at(Mode::Realtime, 200_000), at(Mode::Realtime, 200_001)), (1000, 2000));
        assert_eq!((at(Mode::Batch, 200_000), at(Mode::Batch, 200_001)), (400, 1000));
    }

    #[test]
    fn what_the_book_does_not_say_costs_what_is_nearest() {
        let sale = sale(Mode::Realtime, "standard", 1000, &RATES);
        let tokens = Prices::of(&sale).tokens(&Tariff::Standard, 1).unwrap();
        assert_eq!((tokens.cache_written, tokens.cache_written_1h), (1000, 2500));
        assert_eq!((tokens.reasoning, tokens.audio_output), (4000, 4000));
        let unknown = self::sale(Mode::Realtime, "standard", 1000, &[(OUTPUT, 1)]);
        assert_eq!(Prices::of(&unknown).tokens(&Tariff::Standard, 1), None);
    }
}
