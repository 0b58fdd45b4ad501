//! A job through offpeak, beside a client that has the engine for itself and as many calls at once as are best.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use serde_json::json;

use crate::error::Error;
use crate::jobs;
use crate::report::{Table, Target, figure, median};
use crate::talk::PATH;

use super::Sizes;
use super::client::{Calls, per_second};
use super::door::{Door, Engine};

/// Calls at once that are tried.
const AT_ONCE: [usize; 6] = [8, 32, 64, 128, 256, 512];

/// Tokens of each answer.
pub(super) const TOKENS: u64 = 64;

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Requests.
    pub requests: usize,
    /// What was tried with a part of them: calls at once, and requests a second.
    pub tried: Vec<(usize, f64)>,
    /// The best of those.
    pub at_once: usize,
    /// Requests a second of the client, and tokens a second of the engine if it is simulated; one a round.
    pub straight: Vec<Pass>,
    /// The same of the job, from its upload to its last answer.
    pub job: Vec<Pass>,
}

/// One pass through all of them.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Pass {
    /// Requests a second.
    pub per_second: f64,
    /// Tokens a second, read and made.
    pub tokens: Option<f64>,
}

/// The body of a request whose answer has so many tokens.
pub(super) fn body(engine: &Engine, number: usize, stream: bool) -> String {
    let prompt = format!("Tell what the wind did on day {number}, and where the ship was then.");
    let mut body = json!({
        "model": engine.model, "max_tokens": TOKENS, "ignore_eos": true,
        "messages": [{ "role": "user", "content": prompt }],
    });
    if stream {
        body["stream"] = true.into();
    }
    body.to_string()
}

/// The input of a job of so many.
pub(super) fn input(engine: &Engine, count: usize) -> String {
    let lines = (0..count).map(|number| jobs::line(&number.to_string(), PATH, &body(engine, number, false)));
    lines.collect::<Vec<_>>().concat()
}

/// Measures.
pub async fn run(
    engine: &Engine,
    sizes: &Sizes,
    start: &impl AsyncFn(String) -> Result<Door, Error>,
) -> Result<Report, Error> {
    let requests = sizes.job;
    let bodies = (0..requests).map(|number| Bytes::from(body(engine, number, false)));
    let calls = Calls { path: PATH, bodies: bodies.collect(), inputs: 1 };
    let (at_once, tried) = calls.best(engine.address, requests.div_ceil(4), &AT_ONCE).await?;
    let mut report = Report { requests, tried, at_once, straight: Vec::new(), job: Vec::new() };
    let input = input(engine, requests);
    for _ in 0..sizes.rounds {
        let before = engine.tokens();
        let took = calls.make(engine.address, requests, at_once).await?;
        report.straight.push(Pass::of(engine, requests, before, took));
        // Each with a fresh daemon, which has to learn what the engine can take.
        let door = start(engine.settings("", "")).await?;
        let before = engine.tokens();
        let began = Instant::now();
        let file = jobs::upload(door.data, input.as_bytes()).await?;
        let job = jobs::submit(door.data, &file, PATH).await?;
        let done = jobs::wait(door.data, &job, "completed").await?;
        jobs::read_all(door.data, &done, requests as u64).await?;
        report.job.push(Pass::of(engine, requests, before, began.elapsed()));
    }
    Ok(report)
}

impl Pass {
    fn of(engine: &Engine, requests: usize, before: Option<u64>, took: Duration) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "tokens of minutes are far below 2^52")]
        let tokens = |(before, after): (u64, u64)| after.saturating_sub(before) as f64 / took.as_secs_f64();
        Self { per_second: per_second(requests, took), tokens: before.zip(engine.tokens()).map(tokens) }
    }
}

fn middle(passes: &[Pass], of: impl Fn(&Pass) -> Option<f64>) -> f64 {
    median(passes.iter().filter_map(of))
}

impl Report {
    /// Tokens a second that a client got out of the engine; not a number if it is not simulated.
    pub fn peak(&self) -> f64 {
        middle(&self.straight, |pass| pass.tokens)
    }

    fn ratio(&self) -> f64 {
        let of = |passes| middle(passes, |pass: &Pass| Some(pass.per_second));
        of(&self.job) / of(&self.straight)
    }

    /// The figures as Markdown.
    pub fn markdown(&self) -> String {
        let mut table = Table::new(["completions", "requests a second", "tokens a second", "to the client"]);
        let straight = format!("{} by a client, {} at once", self.requests, self.at_once);
        for (name, passes, ratio) in [
            (straight, &self.straight, 1.0),
            ("as a job through offpeak, from upload to last answer".to_owned(), &self.job, self.ratio()),
        ] {
            let tokens = middle(passes, |pass| pass.tokens);
            let tokens = if tokens.is_nan() { String::new() } else { figure(tokens) };
            table.row([name, figure(middle(passes, |pass| Some(pass.per_second))), tokens, figure(ratio)]);
        }
        let tried = self.tried.iter().map(|(at_once, rate)| format!("{at_once}: {}", figure(*rate)));
        let tried: Vec<String> = tried.collect();
        format!(
            "{}\nTried by the client (at once: requests a second): {}.\n",
            table.markdown(),
            tried.join(", ")
        )
    }

    /// What was wanted of these figures.
    pub fn targets(&self) -> Vec<Target> {
        vec![Target::at_least("a job on an engine, to a saturating client", self.ratio(), 0.95, "")]
    }
}
