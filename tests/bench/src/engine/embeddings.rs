//! Embeddings one by one through a daemon that merges them, beside a client that sends arrays itself.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use serde_json::json;

use crate::error::Error;
use crate::jobs;
use crate::report::{Table, Target, figure, thousands};
use crate::talk::get;

use super::Sizes;
use super::client::{Calls, per_second};
use super::door::{Door, Engine};

const PATH: &str = "/v1/embeddings";

/// Inputs of a call: what offpeak merges by default, and what a client does that knows of it.
const ARRAY: usize = 32;

/// Calls at once with which arrays are tried.
const ARRAYS_AT_ONCE: [usize; 5] = [1, 2, 4, 8, 16];

/// Calls at once with which single inputs are tried.
const SINGLE_AT_ONCE: [usize; 4] = [32, 64, 128, 256];

/// How long real-time calls wait for others.
const WAIT: &str = "merge_realtime = \"100ms\"";

/// Numbers of a kind of client at what was its best.
#[derive(Debug, Clone, Serialize)]
pub struct Best {
    /// Inputs a second.
    pub per_second: f64,
    /// With so many calls at once.
    pub at_once: usize,
    /// All that was tried: calls at once, and inputs a second.
    pub tried: Vec<(usize, f64)>,
}

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Inputs of each measurement, but for the job.
    pub inputs: usize,
    /// Arrays of 32, straight to the engine.
    pub arrays: Best,
    /// One input a call, straight to the engine.
    pub single: Best,
    /// One input a call, through offpeak, which has them wait for each other.
    pub realtime: Best,
    /// Requests of the job.
    pub job: usize,
    /// Its inputs a second, from the upload to the last answer.
    pub deferred: f64,
    /// Inputs in a call of the engine: in real time, and in the job.
    pub merged: [f64; 2],
}

fn text(number: usize) -> String {
    format!("the wind turned at four, says page {number}")
}

fn body(engine: &Engine, input: &serde_json::Value) -> String {
    json!({ "model": engine.model, "input": input, "encoding_format": "base64" }).to_string()
}

fn calls(engine: &Engine, count: usize, inputs: usize) -> Calls {
    let texts: Vec<String> = (0..count).map(text).collect();
    let bodies = texts.chunks(inputs).map(|texts| match texts {
        [one] => Bytes::from(body(engine, &json!(one))),
        many => Bytes::from(body(engine, &json!(many))),
    });
    Calls { path: PATH, bodies: bodies.collect(), inputs }
}

async fn best(calls: &Calls, to: SocketAddr, numbers: &[usize]) -> Result<Best, Error> {
    // Once before it counts: connections, and what is made at the first call.
    calls.make(to, numbers.len(), 1).await?;
    let (at_once, tried) = calls.best(to, usize::MAX, numbers).await?;
    #[expect(clippy::cast_precision_loss, reason = "inputs of a call")]
    let inputs = calls.inputs as f64;
    let tried: Vec<(usize, f64)> =
        tried.into_iter().map(|(number, calls)| (number, calls * inputs)).collect();
    let per_second = tried.iter().map(|(_, inputs)| *inputs).fold(0.0, f64::max);
    Ok(Best { per_second, at_once, tried })
}

/// Measures.
pub async fn run(
    engine: &Engine,
    sizes: &Sizes,
    start: &impl AsyncFn(String) -> Result<Door, Error>,
) -> Result<Report, Error> {
    let inputs = sizes.embeddings.next_multiple_of(ARRAY);
    let arrays = best(&calls(engine, inputs, ARRAY), engine.address, &ARRAYS_AT_ONCE).await?;
    let one_by_one = calls(engine, inputs, 1);
    let single = best(&one_by_one, engine.address, &SINGLE_AT_ONCE).await?;
    let door = start(engine.settings(WAIT, "")).await?;
    let realtime = best(&one_by_one, door.data, &SINGLE_AT_ONCE).await?;
    let merged_realtime = in_a_call(&door).await?;
    drop(door);
    let door = start(engine.settings("", "")).await?;
    let deferred = job(engine, &door, sizes.embeddings_job).await?;
    let deferred = per_second(sizes.embeddings_job, deferred);
    let merged = [merged_realtime, in_a_call(&door).await?];
    Ok(Report { inputs, arrays, single, realtime, job: sizes.embeddings_job, deferred, merged })
}

/// Requests in a call of several, on average; none if there was no such call.
async fn in_a_call(door: &Door) -> Result<f64, Error> {
    let (_, page) = get(door.admin, "/metrics").await?;
    let of = |part: &str| -> Option<f64> {
        let name = format!("offpeak_engine_merged_requests_{part}{{backend=\"engine\"}} ");
        page.lines().find_map(|line| line.strip_prefix(&name)?.trim().parse().ok())
    };
    Ok(of("sum").zip(of("count")).map_or(0.0, |(sum, count)| sum / count.max(1.0)))
}

async fn job(engine: &Engine, door: &Door, count: usize) -> Result<Duration, Error> {
    let lines =
        (0..count).map(|number| jobs::line(&number.to_string(), PATH, &body(engine, &json!(text(number)))));
    let input = lines.collect::<Vec<_>>().concat();
    let began = Instant::now();
    let file = jobs::upload(door.data, input.as_bytes()).await?;
    let job = jobs::submit(door.data, &file, PATH).await?;
    let done = jobs::wait(door.data, &job, "completed").await?;
    jobs::read_all(door.data, &done, count as u64).await?;
    Ok(began.elapsed())
}

impl Report {
    /// The figures as Markdown.
    pub fn markdown(&self) -> String {
        let mut table = Table::new(["embeddings", "inputs a second", "calls at once", "to arrays of 32"]);
        let mut row = |name: String, inputs: f64, at_once: String| {
            table.row([name, thousands(inputs), at_once, figure(inputs / self.arrays.per_second)]);
        };
        for (name, best) in [
            ("arrays of 32, straight".to_owned(), &self.arrays),
            ("one by one, straight".to_owned(), &self.single),
            (
                format!("one by one, real time, merged by offpeak ({} a call)", figure(self.merged[0])),
                &self.realtime,
            ),
        ] {
            row(name, best.per_second, best.at_once.to_string());
        }
        let name = format!(
            "a job of {}, merged by offpeak ({} a call), from upload to last answer",
            self.job,
            figure(self.merged[1])
        );
        row(name, self.deferred, String::new());
        table.markdown()
    }

    /// What was wanted of these figures.
    pub fn targets(&self) -> Vec<Target> {
        let ratio = |inputs: f64| inputs / self.arrays.per_second;
        vec![
            Target::at_least(
                "embeddings merged in real time, to arrays of 32",
                ratio(self.realtime.per_second),
                0.95,
                "",
            ),
            Target::at_least("embeddings of a job merged, to arrays of 32", ratio(self.deferred), 0.95, ""),
        ]
    }
}
