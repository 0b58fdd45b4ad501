//! What the demo saw, and what the provider charged for it.

use std::fmt;
use std::time::Duration;

use provider_sim::{Endpoint, Mode, PicoDollars, Provider};
use serde::Serialize;

use crate::demo::traffic::{Came, Plan, Seen};

/// The figures of one run.
#[derive(Debug, Serialize)]
pub struct Report {
    realtime: Tally,
    deferrable: Tally,
    ran_more_than_once: usize,
    billed_realtime: u64,
    billed_batch: u64,
    batches: u64,
    latency_through: Quantiles,
    latency_straight: Quantiles,
    deferred_seconds: f64,
    bill: Money,
    bill_of_deferrable: Money,
    deferrable_at_realtime_price: Money,
    bill_all_in_realtime: Money,
}

#[derive(Debug, Serialize, Clone, Copy, PartialEq, Eq, Default)]
struct Tally {
    sent: usize,
    right: usize,
    wrong: usize,
    missing: usize,
}

#[derive(Debug, Serialize)]
struct Quantiles {
    p50_us: u128,
    p99_us: u128,
}

/// An amount of money as the report shows it.
#[derive(Debug, Serialize, Clone, Copy)]
struct Money {
    picodollars: PicoDollars,
}

impl Report {
    /// From what was sent, what came back, and the provider's bill.
    pub fn new(plan: &Plan, seen: &Seen, provider: &Provider) -> Self {
        let bill = provider.bill();
        let batch_lines = || bill.lines.iter().filter(|line| line.mode == Mode::Batch);
        Self {
            realtime: tally(plan.realtime.len(), &seen.realtime),
            deferrable: tally(plan.deferrable.len(), &seen.deferrable),
            ran_more_than_once: bill.executions.repeated().len(),
            billed_realtime: bill.requests(Mode::Realtime),
            billed_batch: bill.requests(Mode::Batch),
            batches: provider.calls(Endpoint::CreateBatch),
            latency_through: quantiles(&seen.through),
            latency_straight: quantiles(&seen.straight),
            deferred_seconds: seen.deferred_took.as_secs_f64(),
            bill: bill.total().into(),
            bill_of_deferrable: bill.cost(Mode::Batch).into(),
            deferrable_at_realtime_price: batch_lines()
                .map(|line| line.realtime_cost)
                .sum::<PicoDollars>()
                .into(),
            bill_all_in_realtime: bill.all_realtime().into(),
        }
    }

    /// Every request was answered rightly and run exactly once, the deferrable ones in batches.
    pub fn is_right(&self) -> bool {
        let whole = |tally: Tally| tally.right == tally.sent;
        whole(self.realtime)
            && whole(self.deferrable)
            && self.ran_more_than_once == 0
            && self.billed_realtime == self.realtime.sent as u64
            && self.billed_batch == self.deferrable.sent as u64
    }

    /// The program's exit code: 1 if an answer is missing, doubled or wrong.
    pub fn exit_code(&self) -> u8 {
        u8::from(!self.is_right())
    }

    /// For scripts.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

fn tally(sent: usize, came: &[Came]) -> Tally {
    let count = |what| came.iter().filter(|came| **came == what).count();
    Tally {
        sent,
        right: count(Came::Right),
        wrong: count(Came::Wrong),
        missing: sent - count(Came::Right) - count(Came::Wrong),
    }
}

fn quantiles(durations: &[Duration]) -> Quantiles {
    let mut sorted: Vec<u128> = durations.iter().map(Duration::as_micros).collect();
    sorted.sort_unstable();
    let at = |permille: usize| {
        sorted.get(sorted.len() * permille / 1000).or_else(|| sorted.last()).copied().unwrap_or(0)
    };
    Quantiles { p50_us: at(500), p99_us: at(990) }
}

impl From<PicoDollars> for Money {
    fn from(picodollars: PicoDollars) -> Self {
        Self { picodollars }
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.picodollars.fmt(f)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { realtime, deferrable, latency_through: through, latency_straight: straight, .. } = self;
        writeln!(f, "\nAnswers        sent    right   wrong   missing")?;
        for (name, tally) in [("real time", realtime), ("deferrable", deferrable)] {
            let Tally { sent, right, wrong, missing } = tally;
            writeln!(f, "  {name:<11} {sent:>6} {right:>8} {wrong:>7} {missing:>9}")?;
        }
        writeln!(f, "  run more than once at the provider: {}", self.ran_more_than_once)?;
        writeln!(f, "\nReal-time latency          p50        p99    (beside the deferrable load)")?;
        for (name, quantiles) in [("straight", straight), ("through offpeak", through)] {
            writeln!(f, "  {name:<17} {:>7} us {:>7} us", quantiles.p50_us, quantiles.p99_us)?;
        }
        writeln!(
            f,
            "\nDeferrable: {} requests in {} batches, all answered after {:.1} s ({:.1} h at the provider)",
            self.billed_batch, self.batches, self.deferred_seconds, self.deferred_seconds,
        )?;
        writeln!(f, "\nThe provider's bill")?;
        writeln!(f, "  all in real time        {:>14}", self.bill_all_in_realtime)?;
        writeln!(f, "  with offpeak            {:>14}", self.bill)?;
        writeln!(
            f,
            "  of that the deferrable  {:>14}   ({} in real time)",
            self.bill_of_deferrable, self.deferrable_at_realtime_price
        )?;
        let verdict = if self.is_right() {
            "Every answer is there, once, and right."
        } else {
            "NOT RIGHT: an answer is missing, doubled or wrong."
        };
        write!(f, "\n{verdict}")
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::Request;
    use provider_sim::Sim;
    use serde_json::json;

    use super::*;

    /// A plan of real-time requests alone, and a provider that has run each of them so many times.
    fn after(runs: &[usize]) -> (Plan, Provider) {
        let plan = Plan::new(runs.len(), 0, 7);
        let provider = Sim::builder().models(crate::demo::traffic::MODELS).track_executions(true).build();
        for (planned, runs) in plan.realtime.iter().zip(runs) {
            let messages = json!([{"role": "user", "content": planned.prompt}]);
            let body = json!({"model": planned.model, "messages": messages}).to_string();
            for _ in 0..*runs {
                let request =
                    Request::post("/v1/chat/completions").header("content-type", "application/json");
                let answer = provider.handle(request.body(Bytes::from(body.clone())).unwrap());
                assert_eq!(answer.status, 200);
            }
        }
        (plan, provider)
    }

    fn report(runs: &[usize], realtime: Vec<Came>) -> Report {
        let (plan, provider) = after(runs);
        let seen = Seen {
            realtime,
            deferrable: Vec::new(),
            through: Vec::new(),
            straight: Vec::new(),
            deferred_took: Duration::ZERO,
        };
        Report::new(&plan, &seen, &provider)
    }

    #[test]
    fn each_thing_that_can_be_wrong_is_found_and_told() {
        let all_right = report(&[1, 1], vec![Came::Right, Came::Right]);
        assert_eq!((all_right.is_right(), all_right.exit_code()), (true, 0));
        assert!(all_right.to_string().ends_with("Every answer is there, once, and right."));
        for (what, wrong) in [
            ("an answer of another", report(&[1, 1], vec![Came::Right, Came::Wrong])),
            ("no answer", report(&[1, 1], vec![Came::Right, Came::Missing])),
            ("nobody looked", report(&[1, 1], vec![Came::Right])),
            ("run twice", report(&[1, 2], vec![Came::Right, Came::Right])),
            ("answered, and never run", report(&[1, 0], vec![Came::Right, Came::Right])),
            ("one twice, one never", report(&[2, 0], vec![Came::Right, Came::Right])),
        ] {
            assert_eq!((wrong.is_right(), wrong.exit_code()), (false, 1), "{what}");
            assert!(wrong.to_string().contains("NOT RIGHT"), "{what}");
        }
    }
}
