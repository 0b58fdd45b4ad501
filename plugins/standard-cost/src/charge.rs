//! What one outcome costs.

use offpeak_plugin::{
    DidItRun, Mode,
    cost_policy::{Charge, Outcome, Sale, Usage},
};

use crate::config::Config;
use crate::prices::{Prices, Tariff, TokenPrices};

const MS_AN_HOUR: i128 = 3_600_000;

/// Charges the tenant whose request it was. Retries and rescues are charged like first attempts: only what the provider
/// ran costs anything. An answer that nobody gets would not have been bought in real time, so its counterfactual is zero.
pub fn charge(sale: &Sale, prices: &Prices<'_>, outcome: Outcome, config: &Config) -> Charge {
    let hourly = config.usd_per_hour.get(&sale.backend);
    let (cost, realtime_cost, priced) = match (&outcome.usage, hourly) {
        _ if matches!(outcome.ran, DidItRun::NotSent | DidItRun::Refused) => (0, 0, true),
        (usage, Some(hourly)) => {
            let cost = time(hourly.pico_dollars(), outcome.took_ms, outcome.together);
            let realtime = usage.and_then(|usage| tokens(prices, &Tariff::Standard, usage));
            (cost, realtime.unwrap_or(cost), true)
        }
        (None, None) => (0, 0, true),
        (Some(usage), None) => {
            let cost = tokens(prices, &Tariff::of(sale, outcome.tier.as_deref()), *usage);
            let realtime = tokens(prices, &Tariff::Standard, *usage);
            match cost {
                Some(cost) => (cost, realtime.unwrap_or(cost), true),
                // An engine of one's own without a price costs nothing that is known.
                None => (0, 0, sale.mode == Mode::Engine),
            }
        }
    };
    let realtime_cost = if outcome.wasted { 0 } else { realtime_cost };
    Charge { tenant: outcome.tenant, cost, realtime_cost, priced }
}

/// An engine's hour, shared by the time that was taken of it and by how many took it.
fn time(hourly: i64, took_ms: u64, together: u32) -> i64 {
    let whole = i128::from(hourly) * i128::from(took_ms);
    let parts = MS_AN_HOUR * i128::from(together.max(1));
    within((whole + parts / 2) / parts)
}

fn tokens(prices: &Prices<'_>, tariff: &Tariff, usage: Usage) -> Option<i64> {
    Some(within(sum(&prices.tokens(tariff, usage.input)?, usage)))
}

/// Each kind of token at its price; what is counted apart is not counted again in the total that holds it.
fn sum(prices: &TokenPrices, usage: Usage) -> i128 {
    let parts = [usage.cached, usage.cache_written, usage.cache_written_one_hour, usage.audio_input];
    let fresh = parts.into_iter().fold(usage.input, u64::saturating_sub);
    let plain = usage.output.saturating_sub(usage.reasoning).saturating_sub(usage.audio_output);
    [
        (fresh, prices.input),
        (usage.cached, prices.cached),
        (usage.cache_written, prices.cache_written),
        (usage.cache_written_one_hour, prices.cache_written_1h),
        (usage.audio_input, prices.audio_input),
        (plain, prices.output),
        (usage.reasoning, prices.reasoning),
        (usage.audio_output, prices.audio_output),
    ]
    .into_iter()
    .fold(0, |sum: i128, (count, price)| sum.saturating_add(i128::from(count).saturating_mul(price)))
}

fn within(amount: i128) -> i64 {
    i64::try_from(amount).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use offpeak_plugin::{cost_policy::Purpose, parse_config};
    use proptest::prelude::*;

    use super::*;
    use crate::prices::tests::sale;

    const RATES: [(&str, i64); 3] = [
        ("input_cost_per_token", 1000),
        ("output_cost_per_token", 4000),
        ("cache_read_input_token_cost", 100),
    ];

    fn usage(input: u64, cached: u64, output: u64) -> Usage {
        Usage {
            input,
            cached,
            cache_written: 0,
            cache_written_one_hour: 0,
            audio_input: 0,
            output,
            reasoning: 0,
            audio_output: 0,
        }
    }

    fn outcome(usage: Option<Usage>) -> Outcome {
        Outcome {
            tenant: "t".into(),
            purpose: Purpose::First,
            ran: DidItRun::Ran,
            status: Some(200),
            tier: None,
            usage,
            wasted: false,
            took_ms: 1800,
            together: 2,
        }
    }

    fn charged(sale: &Sale, outcome: Outcome, config: &Config) -> (i64, i64, bool) {
        let charge = charge(sale, &Prices::of(sale), outcome, config);
        assert_eq!(charge.tenant, "t");
        (charge.cost, charge.realtime_cost, charge.priced)
    }

    #[test]
    fn a_batch_costs_half_and_what_it_saved_is_told() {
        let sale = sale(Mode::Batch, "batch", 500, &RATES);
        let of = |outcome| charged(&sale, outcome, &Config::default());
        // (60 x 1000 + 40 x 100 + 10 x 4000) / 2
        assert_eq!(of(outcome(Some(usage(100, 40, 10)))), (52_000, 104_000, true));
        let wasted = Outcome { wasted: true, ..outcome(Some(usage(100, 40, 10))) };
        assert_eq!(of(wasted), (52_000, 0, true));
        let refused = Outcome { ran: DidItRun::Refused, ..outcome(Some(usage(100, 40, 10))) };
        assert_eq!(of(refused), (0, 0, true));
        assert_eq!(of(outcome(None)), (0, 0, true), "an error without a count is not billed");
    }

    #[test]
    fn what_has_no_price_is_said_to_have_none() {
        let sale = sale(Mode::Realtime, "standard", 1000, &[]);
        assert_eq!(charged(&sale, outcome(Some(usage(1, 0, 1))), &Config::default()), (0, 0, false));
    }

    #[test]
    fn an_engine_is_paid_by_the_hour() {
        let config: Config = parse_config(r#"{"usd_per_hour": {"b": 3.6}}"#).unwrap();
        let sale = sale(Mode::Engine, "idle", 1000, &RATES);
        // $3.60 an hour are $0.001 a second; 1.8 s, shared by two.
        let (cost, realtime, priced) = charged(&sale, outcome(Some(usage(100, 0, 10))), &config);
        assert_eq!((cost, realtime, priced), (900_000_000, 140_000, true));
    }

    proptest! {
        #[test]
        fn costs_add_up(
            a in (0_u64..1 << 30, 0_u64..1 << 30, 0_u64..1 << 30),
            b in (0_u64..1 << 30, 0_u64..1 << 30, 0_u64..1 << 30),
        ) {
            let sale = sale(Mode::Realtime, "standard", 1000, &RATES);
            let cost = |fresh: u64, cached: u64, output: u64| {
                charged(&sale, outcome(Some(usage(fresh + cached, cached, output))), &Config::default()).0
            };
            prop_assert_eq!(
                cost(a.0, a.1, a.2) + cost(b.0, b.1, b.2),
                cost(a.0 + b.0, a.1 + b.1, a.2 + b.2)
            );
        }

        #[test]
        fn no_count_makes_it_panic(
            counts in prop::array::uniform8(any::<u64>()), price in any::<i64>(), permille in any::<u32>(),
        ) {
            let [input, cached, cache_written, cache_written_one_hour, audio_input, output, reasoning, audio_output] =
                counts;
            let usage = Usage {
                input, cached, cache_written, cache_written_one_hour, audio_input, output, reasoning, audio_output,
            };
            let rates = [("input_cost_per_token", price), ("output_cost_per_token", price)];
            charged(&sale(Mode::Background, "x", permille, &rates), outcome(Some(usage)), &Config::default());
        }
    }
}
