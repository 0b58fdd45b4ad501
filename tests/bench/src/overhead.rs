//! What offpeak costs in the path: the same load straight to the upstream, through nginx, through a bare proxy and through
//! offpeak, in turns, so that whatever else the machine does falls on all of them alike.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use http::header::HeaderValue;
use serde::Serialize;

use crate::error::Error;
use crate::load::{Load, Outcome, Shape};
use crate::process::Process;
use crate::report::{self, Table, Target, figure, median, micros, thousands};
use crate::talk::Call;
use crate::targets::{Bare, Nginx, Programs, Setup, Upstream};
use crate::upstream::{self, COMPLETION_BYTES, EVENT, LAST_EVENT};

/// Bytes of a request's body.
const BODY_BYTES: usize = 1024;

/// Events of a streamed answer.
const EVENTS: u16 = 50;

/// Milliseconds between two events of a paced stream: a hundred tokens a second.
const GAP_MS: u16 = 10;

/// Before each measurement: connections are made, caches filled.
const WARM_UP: Duration = Duration::from_millis(700);

/// What is compared, in the order of the tables.
const TARGETS: [&str; 4] = ["straight", "nginx", "bare hyper", "offpeak"];

/// How nginx is tried out before the rounds.
const TRIAL: Duration = Duration::from_secs(2);

/// How much is measured.
#[derive(Debug, Clone, Serialize)]
pub struct Options {
    /// Rounds; the median of all counts.
    pub rounds: usize,
    /// Measured time of one load on one target.
    pub measure: Duration,
    /// Connections of the loads that go as fast as they can, and streams that are open at once.
    pub connections: usize,
    /// Requests a second of the load for latencies.
    pub per_second: u32,
    /// Threads of the upstream.
    pub threads: usize,
}

/// Plain answers or streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Answers of 1 KB in one piece.
    Plain,
    /// Answers in many pieces.
    Stream,
}

/// One measurement.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Sample {
    /// Answers a second.
    pub per_second: f64,
    /// Processor time of the process in the path, in microseconds an answer.
    pub processor_us: f64,
    /// Median time to the first byte of the body, in microseconds.
    pub first_byte_p50_us: f64,
    /// The same at the 99th percentile.
    pub first_byte_p99_us: f64,
    /// Median time to the last byte.
    pub last_byte_p50_us: f64,
    /// The same at the 99th percentile.
    pub last_byte_p99_us: f64,
}

/// All measurements of one load on one target.
#[derive(Debug, Clone, Serialize)]
pub struct Series {
    /// One of those that are compared.
    pub target: &'static str,
    /// One a round.
    pub samples: Vec<Sample>,
}

/// One load and what it showed.
#[derive(Debug, Clone, Serialize)]
pub struct Part {
    /// What the load is.
    pub title: String,
    /// How it is applied.
    pub shape: Shape,
    /// By target.
    pub series: Vec<Series>,
}

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What was asked for.
    pub kind: Kind,
    /// How much was measured.
    pub options: Options,
    /// With so many workers nginx was at its best.
    pub nginx_workers: usize,
    /// At saturation.
    pub peak: Part,
    /// At a fixed load.
    pub steady: Part,
    /// Most resident memory of nginx and offpeak, in megabytes.
    pub peak_resident_mb: [f64; 2],
}

/// One figure of a sample.
type Figure = fn(&Sample) -> f64;

struct InPath<'a> {
    name: &'static str,
    address: SocketAddr,
    process: Option<&'a Process>,
}

/// Measures.
pub async fn run(kind: Kind, options: Options, programs: &Programs, folder: &Path) -> Result<Report, Error> {
    let upstream = Upstream::start(options.threads)?;
    let (store, plugin_cache) = (folder.join("data"), folder.join("plugins"));
    let setup = Setup {
        program: &programs.offpeak,
        folder,
        store: &store,
        plugin_cache: &plugin_cache,
        upstream: upstream.address,
    };
    let (peak, steady) = loads(kind, &options);
    let (nginx, nginx_workers) = best_nginx(kind, &peak.1, &programs.nginx, folder, upstream.address).await?;
    let bare = Bare::start(folder, upstream.address).await?;
    let offpeak = setup.start().await?;
    let [straight_name, nginx_name, bare_name, offpeak_name] = TARGETS;
    let targets = [
        InPath { name: straight_name, address: upstream.address, process: None },
        InPath { name: nginx_name, address: nginx.address(kind), process: Some(&nginx.process) },
        InPath { name: bare_name, address: bare.address, process: Some(&bare.process) },
        InPath { name: offpeak_name, address: offpeak.data, process: Some(&offpeak.process) },
    ];
    let mut parts = [peak, steady].map(|(title, load)| {
        let series =
            targets.iter().map(|target| Series { target: target.name, samples: Vec::new() }).collect();
        (Part { title, shape: load.shape, series }, load)
    });
    for round in 1..=options.rounds {
        eprintln!("{kind:?}: round {round} of {}", options.rounds);
        for (part, load) in &mut parts {
            for (target, series) in targets.iter().zip(&mut part.series) {
                series.samples.push(measure(load, target).await?);
            }
        }
    }
    let peak_resident_mb =
        [report::megabytes(nginx.process.memory()?.peak), report::megabytes(offpeak.process.memory()?.peak)];
    let [(peak, _), (steady, _)] = parts;
    Ok(Report { kind, options, nginx_workers, peak, steady, peak_resident_mb })
}

/// As fast as it goes, and at a fixed load.
fn loads(kind: Kind, options: &Options) -> ((String, Load), (String, Load)) {
    let Options { measure, connections, per_second, .. } = *options;
    let load = |call, answer_bytes, shape| Load { call, answer_bytes, shape, warm_up: WARM_UP, measure };
    let closed = Shape::Closed { connections };
    match kind {
        Kind::Plain => {
            let call = Call::chat(BODY_BYTES, false);
            let bytes = COMPLETION_BYTES as u64;
            let peak = load(call.clone(), bytes, closed);
            let steady = load(call, bytes, Shape::Open { per_second });
            (
                (format!("{connections} connections, as fast as it goes"), peak),
                (format!("{per_second} requests a second"), steady),
            )
        }
        Kind::Stream => {
            let call = Call::chat(BODY_BYTES, true).with(upstream::CHUNKS, HeaderValue::from(EVENTS));
            let bytes = u64::from(EVENTS) * EVENT.len() as u64 + LAST_EVENT.len() as u64;
            let paced = call.clone().with(upstream::GAP, HeaderValue::from(GAP_MS));
            let peak = load(call, bytes, closed);
            let steady = load(paced, bytes, closed);
            (
                (format!("{connections} streams at once, {EVENTS} events each, as fast as it goes"), peak),
                (
                    format!("{connections} streams at once, {EVENTS} events each, one every {GAP_MS} ms"),
                    steady,
                ),
            )
        }
    }
}

/// One worker, or one for each core: whichever brings more.
async fn best_nginx(
    kind: Kind,
    load: &Load,
    program: &Path,
    folder: &Path,
    upstream: SocketAddr,
) -> Result<(Nginx, usize), Error> {
    let trial = Load { measure: TRIAL, ..load.clone() };
    let mut best: Option<(f64, usize)> = None;
    for workers in [1, crate::machine::cores()] {
        let nginx = Nginx::start(program, folder, upstream, workers).await?;
        let target = InPath { name: "nginx", address: nginx.address(kind), process: Some(&nginx.process) };
        let rate = measure(&trial, &target).await?.per_second;
        eprintln!("nginx with {workers} worker(s): {} a second", thousands(rate));
        if best.is_none_or(|(most, _)| rate > most) {
            best = Some((rate, workers));
        }
    }
    let workers = best.map_or(1, |(_, workers)| workers);
    Ok((Nginx::start(program, folder, upstream, workers).await?, workers))
}

async fn measure(load: &Load, target: &InPath<'_>) -> Result<Sample, Error> {
    let mut times = Vec::new();
    let outcome = load
        .run(target.address, || {
            times.push(target.process.map_or(Ok(Duration::ZERO), Process::processor_time)?);
            Ok(())
        })
        .await?;
    let used = match times[..] {
        [before, after] => after.saturating_sub(before),
        _ => Duration::ZERO,
    };
    let quantile = |sorted, permille| micros(Outcome::quantile(sorted, permille));
    Ok(Sample {
        per_second: outcome.answers / outcome.took.as_secs_f64(),
        processor_us: micros(used) / outcome.answers.max(1.0),
        first_byte_p50_us: quantile(&outcome.first_byte, 500),
        first_byte_p99_us: quantile(&outcome.first_byte, 990),
        last_byte_p50_us: quantile(&outcome.last_byte, 500),
        last_byte_p99_us: quantile(&outcome.last_byte, 990),
    })
}

impl Nginx {
    const fn address(&self, kind: Kind) -> SocketAddr {
        match kind {
            Kind::Plain => self.plain,
            Kind::Stream => self.streaming,
        }
    }
}

impl Part {
    /// The median of a figure on a target.
    fn median(&self, target: &str, of: impl Fn(&Sample) -> f64) -> f64 {
        let series = self.series.iter().find(|series| series.target == target);
        median(series.into_iter().flat_map(|series| series.samples.iter().map(&of)))
    }

    fn ratio_to_nginx(&self, of: impl Fn(&Sample) -> f64) -> f64 {
        self.median("offpeak", &of) / self.median("nginx", &of)
    }

    fn added(&self, target: &str, of: impl Fn(&Sample) -> f64) -> f64 {
        self.median(target, &of) - self.median("straight", &of)
    }
}

impl Report {
    /// The figures as Markdown.
    pub fn markdown(&self) -> String {
        let Self { options, nginx_workers, peak_resident_mb: [nginx_mb, offpeak_mb], .. } = self;
        let seconds = options.measure.as_secs_f64();
        let unit = match self.kind {
            Kind::Plain => "request",
            Kind::Stream => "stream",
        };
        format!(
            "Medians of {} interleaved rounds of {seconds} s; nginx {nginx_workers} worker(s); peak resident memory: \
             nginx {nginx_mb:.0} MB, offpeak {offpeak_mb:.0} MB. CPU is that of the process in the path.\n\n{}\n{}",
            options.rounds,
            self.peak_table(unit),
            self.steady_table(unit),
        )
    }

    fn peak_table(&self, unit: &str) -> String {
        let plain = self.kind == Kind::Plain;
        let columns = if plain {
            ["", "requests/s", "to nginx", "CPU us/request", "to nginx", "p50 us", "p99 us"]
        } else {
            ["", "streams/s", "to nginx", "CPU us/stream", "to nginx", "p50 us", "p99 us"]
        };
        let mut table = Table::new(columns);
        let part = &self.peak;
        for target in TARGETS {
            let cell = |of: Figure| part.median(target, of);
            let rate = cell(|sample| sample.per_second);
            let processor = cell(|sample| sample.processor_us);
            table.row([
                target.to_owned(),
                thousands(rate),
                figure(rate / part.median("nginx", |sample| sample.per_second)),
                figure(processor),
                figure(processor / part.median("nginx", |sample| sample.processor_us)),
                thousands(cell(|sample| sample.last_byte_p50_us)),
                thousands(cell(|sample| sample.last_byte_p99_us)),
            ]);
        }
        format!("{} ({unit}s of 1 KB):\n\n{}", part.title, table.markdown())
    }

    fn steady_table(&self, unit: &str) -> String {
        let plain = self.kind == Kind::Plain;
        let columns = if plain {
            ["", "p50 us", "added", "p99 us", "added", "CPU us/request", "to nginx"]
        } else {
            ["", "first byte p50 us", "added", "first byte p99 us", "added", "CPU us/stream", "to nginx"]
        };
        let (p50, p99) = self.steady_figures();
        let mut table = Table::new(columns);
        let part = &self.steady;
        for target in TARGETS {
            let processor = part.median(target, |sample| sample.processor_us);
            table.row([
                target.to_owned(),
                thousands(part.median(target, p50)),
                thousands(part.added(target, p50)),
                thousands(part.median(target, p99)),
                thousands(part.added(target, p99)),
                figure(processor),
                figure(processor / part.median("nginx", |sample| sample.processor_us)),
            ]);
        }
        format!("{} ({unit}s of 1 KB):\n\n{}", part.title, table.markdown())
    }

    fn steady_figures(&self) -> (Figure, Figure) {
        match self.kind {
            Kind::Plain => (|sample| sample.last_byte_p50_us, |sample| sample.last_byte_p99_us),
            Kind::Stream => (|sample| sample.first_byte_p50_us, |sample| sample.first_byte_p99_us),
        }
    }

    /// What was wanted of these figures.
    pub fn targets(&self) -> Vec<Target> {
        let rate = self.peak.ratio_to_nginx(|sample| sample.per_second);
        let processor = |part: &Part| part.ratio_to_nginx(|sample| sample.processor_us);
        match self.kind {
            Kind::Plain => {
                let (p50, _) = self.steady_figures();
                let nginx = self.steady.added("nginx", p50);
                vec![
                    Target::at_least("peak requests a second, to nginx", rate, 0.9, ""),
                    Target::at_most("CPU a request at the peak, to nginx", processor(&self.peak), 1.25, ""),
                    Target::at_most("added p50 latency", self.steady.added("offpeak", p50), nginx, "us"),
                ]
            }
            Kind::Stream => vec![
                Target::at_most("CPU a paced stream, to nginx", processor(&self.steady), 1.1, ""),
                Target::at_most("CPU a stream at the peak, to nginx", processor(&self.peak), 1.1, ""),
            ],
        }
    }
}
