//! Real-time calls while there is a flood of deferred work, and while there is none, on the model of an engine.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use provider_sim::EngineOptions;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::error::Error;
use crate::jobs;
use crate::load::Outcome;
use crate::report::{Table, Target, figure, thousands};
use crate::talk::{PATH, call, connect};

use super::Sizes;
use super::door::{Door, Engine};
use super::job::{self, TOKENS};

/// Real-time calls a second: a sixth of what the engine can do, and two thirds.
const LOADS: [f64; 2] = [7.0, 28.0];

/// What a real-time call has to bear beside a flood, to what it takes without one.
const TARGET: f64 = 1.1;

/// Deferred work for so many seconds of all that the engine can do.
const FLOOD_FOR: f64 = 1.5;

/// How deferred work is held down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// There is none.
    Alone,
    /// As it is by default.
    Default,
    /// As it is by default; the engine schedules by priority, and deferred work has the lower one.
    Priority,
    /// Until the first token real-time calls take no longer than this much more than without it.
    Tight(u64),
}

/// What real-time calls met.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Run {
    /// How deferred work was held down.
    pub way: Way,
    /// Real-time calls that were measured.
    pub calls: usize,
    /// Until the first token, in milliseconds: the median and the 99th percentile.
    pub first_token_ms: [f64; 2],
    /// Until the last one.
    pub whole_ms: [f64; 2],
    /// Tokens a second of both, to the most there is.
    pub of_peak: f64,
}

/// One load of real-time calls.
#[derive(Debug, Clone, Serialize)]
pub struct Part {
    /// Calls a second.
    pub per_second: f64,
    /// Side by side.
    pub runs: Vec<Run>,
}

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Tokens a second that a client alone gets out of the engine.
    pub peak: f64,
    /// By load.
    pub parts: Vec<Part>,
    /// What the model itself has to say about 0.9 of its peak: so many at once, and milliseconds of a step with so many.
    pub at_nine_tenths: (usize, f64),
    /// The longest step before that, in milliseconds, which is 1.1 times shorter; and how many at once it has.
    pub before: (usize, f64),
}

/// Measures. `peak` is what a client alone gets out of the engine, in tokens a second.
pub async fn run(
    sizes: &Sizes,
    peak: f64,
    start: &impl AsyncFn(String) -> Result<Door, Error>,
) -> Result<Report, Error> {
    let mut parts = Vec::new();
    for per_second in LOADS {
        let alone = one(Way::Alone, per_second, peak, sizes, start).await?;
        let mut runs = vec![alone];
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some milliseconds")]
        let tight = (alone.first_token_ms[1] * TARGET).ceil() as u64;
        for way in [Way::Default, Way::Priority, Way::Tight(tight)] {
            runs.push(one(way, per_second, peak, sizes, start).await?);
        }
        parts.push(Part { per_second, runs });
    }
    let options = EngineOptions::default();
    let enough = options.tokens_per_second(options.max_num_seqs) * 0.9;
    let step = |running: usize| Duration::from_micros(options.step_us(running)).as_secs_f64() * 1e3;
    let many = (1..=options.max_num_seqs).find(|running| options.tokens_per_second(*running) >= enough);
    let many = many.unwrap_or(options.max_num_seqs);
    let few = (1..=many).rev().find(|running| step(*running) * TARGET <= step(many)).unwrap_or(1);
    Ok(Report { peak, parts, at_nine_tenths: (many, step(many)), before: (few, step(few)) })
}

async fn one(
    way: Way,
    rate: f64,
    peak: f64,
    sizes: &Sizes,
    start: &impl AsyncFn(String) -> Result<Door, Error>,
) -> Result<Run, Error> {
    let priority_scheduling = way == Way::Priority;
    let engine = Engine::simulated(EngineOptions { priority_scheduling, ..EngineOptions::default() })?;
    let (lines, config) = match way {
        Way::Alone | Way::Default => (String::new(), ""),
        Way::Priority => (String::new(), "priority = 10"),
        Way::Tight(ms) => (format!("latency = \"{ms}ms\""), ""),
    };
    let door = start(engine.settings(&lines, config)).await?;
    if way != Way::Alone {
        let time = (sizes.lead + sizes.warm_up + sizes.measure).as_secs_f64();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some thousands")]
        #[expect(clippy::cast_precision_loss, reason = "64")]
        let count = (FLOOD_FOR * time * peak / TOKENS as f64) as usize;
        let file = jobs::upload(door.data, job::input(&engine, count).as_bytes()).await?;
        jobs::submit(door.data, &file, PATH).await?;
        // It has the engine for itself before anybody else comes.
        tokio::time::sleep(sizes.lead).await;
    }
    let mut traffic = Traffic::new(&engine, door.data, rate);
    traffic.go_on_for(sizes.warm_up).await?;
    traffic.times.clear();
    let before = engine.tokens().unwrap_or_default();
    let began = Instant::now();
    traffic.go_on_for(sizes.measure).await?;
    let (took, after) = (began.elapsed(), engine.tokens().unwrap_or_default());
    traffic.end().await?;
    #[expect(clippy::cast_precision_loss, reason = "tokens of a minute are far below 2^52")]
    let tokens = after.saturating_sub(before) as f64 / took.as_secs_f64();
    let quantiles = |of: fn(&Times) -> Duration| {
        let mut sorted: Vec<Duration> = traffic.times.iter().map(of).collect();
        sorted.sort_unstable();
        [500, 990].map(|permille| Outcome::quantile(&sorted, permille).as_secs_f64() * 1e3)
    };
    Ok(Run {
        way,
        calls: traffic.times.len(),
        first_token_ms: quantiles(|times| times.first_token),
        whole_ms: quantiles(|times| times.whole),
        of_peak: tokens / peak,
    })
}

struct Times {
    first_token: Duration,
    whole: Duration,
}

type Connection = hyper::client::conn::http1::SendRequest<http_body_util::Full<Bytes>>;

/// Streamed calls that come when they come, whether or not those before have their answers.
struct Traffic<'a> {
    engine: &'a Engine,
    to: SocketAddr,
    rate: f64,
    chance: StdRng,
    number: usize,
    idle: Arc<Mutex<Vec<Connection>>>,
    asking: JoinSet<Result<Times, Error>>,
    times: Vec<Times>,
    next: tokio::time::Instant,
}

impl<'a> Traffic<'a> {
    /// The same calls at the same times for all that are compared.
    fn new(engine: &'a Engine, to: SocketAddr, rate: f64) -> Self {
        Self {
            engine,
            to,
            rate,
            chance: StdRng::seed_from_u64(1),
            number: 0,
            idle: Arc::default(),
            asking: JoinSet::new(),
            times: Vec::new(),
            next: tokio::time::Instant::now(),
        }
    }

    async fn go_on_for(&mut self, time: Duration) -> Result<(), Error> {
        let until = self.next + time;
        while self.next < until {
            tokio::time::sleep_until(self.next).await;
            let gap = -(1.0 - self.chance.random::<f64>()).ln() / self.rate;
            self.next += Duration::from_secs_f64(gap);
            let body = job::body(self.engine, self.number, true).into();
            self.number += 1;
            self.asking.spawn(ask(self.to, self.idle.clone(), body));
            while let Some(ended) = self.asking.try_join_next() {
                self.note(ended)?;
            }
        }
        Ok(())
    }

    async fn end(&mut self) -> Result<(), Error> {
        while let Some(ended) = self.asking.join_next().await {
            self.note(ended)?;
        }
        Ok(())
    }

    fn note(&mut self, ended: Result<Result<Times, Error>, tokio::task::JoinError>) -> Result<(), Error> {
        let failed = |error| Err(Error::WrongAnswer(format!("the load generator failed: {error}")));
        self.times.push(ended.unwrap_or_else(failed)?);
        Ok(())
    }
}

async fn ask(to: SocketAddr, idle: Arc<Mutex<Vec<Connection>>>, body: Bytes) -> Result<Times, Error> {
    let free = idle.lock().await.pop();
    let mut connection = match free {
        Some(connection) => connection,
        None => connect(to).await?,
    };
    connection.ready().await?;
    let sent = Instant::now();
    let response = connection.send_request(call(Method::POST, PATH, body)?).await?;
    let status = response.status();
    let mut body = response.into_body();
    let (mut first_token, mut end) = (None, Vec::new());
    while let Some(frame) = body.frame().await {
        first_token.get_or_insert_with(|| sent.elapsed());
        if let Ok(data) = frame?.into_data() {
            end = data.to_vec();
        }
    }
    let whole = sent.elapsed();
    if status != StatusCode::OK || !end.ends_with(b"data: [DONE]\n\n") {
        let end = String::from_utf8_lossy(&end).into_owned();
        return Err(Error::WrongAnswer(format!("{status}, and a stream that ends with {end:?}")));
    }
    idle.lock().await.push(connection);
    Ok(Times { first_token: first_token.unwrap_or(whole), whole })
}

impl Way {
    fn name(self) -> String {
        match self {
            Self::Alone => "without deferred work".to_owned(),
            Self::Default => "with a flood of it".to_owned(),
            Self::Priority => "with a flood, the engine schedules by priority".to_owned(),
            Self::Tight(ms) => format!("with a flood, `engine.latency = \"{ms}ms\"`"),
        }
    }
}

impl Part {
    fn alone(&self) -> Option<&Run> {
        self.runs.iter().find(|run| run.way == Way::Alone)
    }

    /// The p99 until the first token and of the whole answer, to those without deferred work.
    fn ratios(&self, run: &Run) -> [f64; 2] {
        let alone = self.alone().unwrap_or(run);
        [run.first_token_ms[1] / alone.first_token_ms[1], run.whole_ms[1] / alone.whole_ms[1]]
    }
}

impl Report {
    /// The figures as Markdown.
    pub fn markdown(&self) -> String {
        let mut parts = Vec::new();
        for part in &self.parts {
            let mut table = Table::new([
                "real-time calls",
                "first token p50 ms",
                "p99 ms",
                "p99, to without",
                "whole p50 ms",
                "p99 ms",
                "p99, to without",
                "tokens a second of both, of the peak",
            ]);
            for run in &part.runs {
                let [first, whole] = part.ratios(run);
                table.row([
                    run.way.name(),
                    figure(run.first_token_ms[0]),
                    figure(run.first_token_ms[1]),
                    figure(first),
                    figure(run.whole_ms[0]),
                    figure(run.whole_ms[1]),
                    figure(whole),
                    figure(run.of_peak),
                ]);
            }
            parts.push(format!(
                "{} real-time calls a second:\n\n{}\n",
                figure(part.per_second),
                table.markdown()
            ));
        }
        parts.push(self.note());
        parts.concat()
    }

    /// Why both targets at once are out of reach.
    fn note(&self) -> String {
        let (many, step) = self.at_nine_tenths;
        let (few, shorter) = self.before;
        format!(
            "The peak is what a client alone gets: {} tokens a second. On this engine 0.9 of what it can do takes {many} \
             sequences at once, whose steps take {} ms; and each token of a real-time call is a step, whatever its priority. \
             Only where real-time calls by themselves keep {few} running (steps of {} ms) is 0.9 of the peak within 1.1 \
             times their time. With fewer of them there is a choice: `engine.latency` makes it.\n",
            thousands(self.peak),
            figure(step),
            figure(shorter),
        )
    }

    /// What was wanted of these figures: of the heavier load, by default.
    pub fn targets(&self) -> Vec<Target> {
        let Some(part) = self.parts.last() else { return Vec::new() };
        let by = |is_it: fn(&Way) -> bool| part.runs.iter().find(|run| is_it(&run.way));
        let mut targets = Vec::new();
        if let Some(run) = by(|way| *way == Way::Default) {
            let [first, whole] = part.ratios(run);
            targets.push(Target::at_most("first token p99 beside a flood, to without", first, TARGET, ""));
            targets.push(Target::at_most("whole answer p99 beside a flood, to without", whole, TARGET, ""));
            targets.push(Target::at_least("tokens beside a flood, to the peak", run.of_peak, 0.9, ""));
        }
        if let Some(run) = by(|way| matches!(way, Way::Tight(_))) {
            let [first, _] = part.ratios(run);
            let what = "first token p99 beside a flood under a tight `engine.latency`, to without";
            targets.push(Target::at_most(what, first, TARGET, ""));
        }
        targets
    }
}
