//! A backlog of embeddings of many lengths on an engine that pads, with length buckets and without: the daemon's own division
//! before the engine's own arithmetic, in virtual time.

use std::collections::VecDeque;

use offpeak_core::buckets::{self, Buckets, Size};
use provider_sim::{EngineModel, EngineOptions, Prompt, Submission};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;

use crate::report::{Table, Target, figure, thousands};

/// Inputs of a call.
const MERGE: u64 = 32;

/// Requests that the daemon divides at once: a piece of its work.
const PIECE: usize = 256;

/// Calls at once.
const AT_ONCE: usize = 8;

/// A bucket whose calls would be emptier goes with the next longer one, in thousandths.
const UTILISATION: u64 = 500;

/// The lengths of buckets that are compared; none is without buckets.
const BOUNDS: [&[u64]; 3] = [&[], &[64, 256], &[32, 64, 128, 256, 512]];

/// How one backlog went.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Run {
    /// The longest lengths of all buckets but the last.
    pub bounds: Vec<u64>,
    /// Tokens a second.
    pub per_second: f64,
    /// Calls that it took.
    pub calls: usize,
    /// What was read with padding, to what there was to read.
    pub padded: f64,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Requests.
    pub requests: usize,
    /// By buckets; the first has none.
    pub runs: Vec<Run>,
}

/// Runs a backlog of so many, with each of the buckets.
pub fn run(requests: usize) -> Report {
    let mut chance = StdRng::seed_from_u64(8);
    // Short ones are more frequent: as many from 10 to 100 tokens as from 100 to 1000.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "up to a thousand")]
    let lengths: Vec<u64> =
        (0..requests).map(|_| 10.0_f64.powf(chance.random_range(1.0..3.0)).round() as u64).collect();
    let runs = BOUNDS.map(|bounds| backlog(&lengths, bounds)).into();
    Report { requests, runs }
}

/// The calls in the order in which they leave: piece by piece, and of its queues always the one of which most is left.
fn calls(lengths: &[u64], buckets: &Buckets) -> VecDeque<Vec<u64>> {
    let mut calls = VecDeque::new();
    for piece in lengths.chunks(PIECE) {
        let sizes: Vec<Size> = piece.iter().copied().map(Size::of_one).collect();
        let groups = buckets.divide(&sizes, MERGE);
        let mut queues: Vec<(VecDeque<u64>, u64)> = groups
            .into_iter()
            .map(|group| {
                let members = group.members.iter().filter_map(|at| piece.get(*at)).copied();
                (members.collect(), group.members.len() as u64)
            })
            .collect();
        while let Some(at) = buckets::next(queues.iter().map(|(left, whole)| (left.len() as u64, *whole))) {
            let Some((queue, _)) = queues.get_mut(at) else { break };
            let most = usize::try_from(MERGE).unwrap_or(usize::MAX).min(queue.len());
            calls.push_back(queue.drain(..most).collect());
        }
    }
    calls
}

fn backlog(lengths: &[u64], bounds: &[u64]) -> Run {
    let buckets = Buckets::new(bounds.to_vec(), UTILISATION);
    let mut left = calls(lengths, &buckets);
    let count = left.len();
    let padded: u64 =
        left.iter().map(|call| call.iter().max().copied().unwrap_or(0) * call.len() as u64).sum();
    let tokens: u64 = lengths.iter().sum();
    let options = EngineOptions { pads: true, ..EngineOptions::default() };
    let mut engine = EngineModel::new(options, 0);
    let (mut now, mut number) = (0, 0);
    loop {
        while engine.load() < AT_ONCE
            && let Some(call) = left.pop_front()
        {
            let prompts = call.iter().map(|length| Prompt { tokens: *length, generate: 0, capped: false });
            let submission =
                Submission { call: number, prompts: prompts.collect(), priority: 0, streams: false };
            number += 1;
            // Its queue has no bound here.
            engine.submit(submission, now).ok();
        }
        let Some(wake) = engine.wake_at() else { break };
        now = wake.max(now);
        engine.advance(now);
    }
    #[expect(clippy::cast_precision_loss, reason = "tokens and microseconds of minutes are far below 2^52")]
    let (per_second, padded) =
        (tokens as f64 * 1e6 / now.max(1) as f64, padded as f64 / tokens.max(1) as f64);
    Run { bounds: bounds.to_vec(), per_second, calls: count, padded }
}

impl Report {
    /// Tokens a second with the finest buckets, to those without.
    fn gain(&self) -> f64 {
        let of = |run: Option<&Run>| run.map_or(f64::NAN, |run| run.per_second);
        of(self.runs.last()) / of(self.runs.first())
    }

    /// The figures as Markdown.
    #[expect(clippy::cast_precision_loss, reason = "a count of requests is far below 2^52")]
    pub fn markdown(&self) -> String {
        let mut table =
            Table::new(["length buckets", "tokens a second", "calls", "read with padding, to what there is"]);
        for run in &self.runs {
            let bounds: Vec<String> = run.bounds.iter().map(u64::to_string).collect();
            let name = if bounds.is_empty() { "none".to_owned() } else { format!("[{}]", bounds.join(", ")) };
            table.row([name, thousands(run.per_second), thousands(run.calls as f64), figure(run.padded)]);
        }
        format!(
            "A backlog of {} embeddings of 10 to 1,000 tokens on an engine that pads (virtual time):\n\n{}",
            thousands(self.requests as f64),
            table.markdown()
        )
    }

    /// What was wanted of these figures.
    pub fn targets(&self) -> Vec<Target> {
        vec![Target::at_least(
            "tokens a second with length buckets where padded, to none",
            self.gain(),
            1.2,
            "",
        )]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_padded_is_faster_in_buckets_and_nothing_is_left_out() {
        let report = run(2_000);
        assert_eq!(report, run(2_000));
        assert!(report.gain() > 1.2, "{report:?}");
        let padded: Vec<f64> = report.runs.iter().map(|run| run.padded).collect();
        assert!(
            padded.is_sorted_by(|a, b| a > b) && padded.iter().all(|padded| *padded >= 1.0),
            "{report:?}"
        );
        let lengths: Vec<u64> = (0..1_000).map(|n| 10 + n % 900).collect();
        let mut all: Vec<u64> =
            calls(&lengths, &Buckets::new(vec![64, 256], 500)).into_iter().flatten().collect();
        let mut expected = lengths.clone();
        all.sort_unstable();
        expected.sort_unstable();
        assert_eq!(all, expected);
    }
}
