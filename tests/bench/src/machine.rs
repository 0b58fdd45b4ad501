//! The machine: its size for the report, and whether it is quiet enough to measure on.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;

use crate::error::{Context, Error};

/// Share of the machine's processors that has to be idle before a benchmark begins.
const QUIET: f64 = 0.93;

/// How long a look at the processors lasts.
const LOOK: Duration = Duration::from_secs(2);

/// What the figures were taken on.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Processors that this process may use.
    pub cores: usize,
    /// What they are.
    pub processor: String,
    /// Memory, in GiB.
    pub memory_gib: u64,
    /// The kernel's version.
    pub kernel: String,
    /// Share of the processors that was idle when the benchmark began; less than 0.93 means that the figures are noisy.
    pub idle_before: f64,
}

impl Machine {
    /// Looks at the machine, and waits for at most `limit` until it is quiet.
    pub fn wait_until_quiet(limit: Duration) -> Result<Self, Error> {
        let until = Instant::now() + limit;
        let mut idle_before = idle_share()?;
        while idle_before < QUIET && Instant::now() < until {
            eprintln!("waiting for a quiet machine: {:.0}% idle", idle_before * 100.0);
            idle_before = idle_share()?;
        }
        if idle_before < QUIET {
            eprintln!(
                "warning: the machine is only {:.0}% idle; the figures will be noisy",
                idle_before * 100.0
            );
        }
        Ok(Self {
            cores: cores(),
            processor: field("/proc/cpuinfo", "model name")?,
            memory_gib: memory_gib()?,
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            idle_before,
        })
    }

    /// In one line.
    pub fn describe(&self) -> String {
        let Self { cores, processor, memory_gib, kernel, idle_before } = self;
        let idle = idle_before * 100.0;
        format!(
            "{cores} cores ({processor}), {memory_gib} GiB memory, Linux {kernel}, {idle:.0}% idle before"
        )
    }
}

/// Processors that this process may use.
pub fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Lets this process open as many files as the system allows it; returns how many those are.
pub fn raise_open_files() -> Result<u64, Error> {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, wanted).context("raising the limit on open files")?;
    Ok(limit.maximum.unwrap_or(u64::MAX))
}

fn idle_share() -> Result<f64, Error> {
    let before = processor_times()?;
    thread::sleep(LOOK);
    let after = processor_times()?;
    let total = after.total.saturating_sub(before.total).max(1);
    Ok(ratio(after.idle.saturating_sub(before.idle), total))
}

struct Times {
    idle: u64,
    total: u64,
}

/// The first line of `/proc/stat`: `cpu user nice system idle iowait irq softirq steal ..`, in ticks since the start.
fn processor_times() -> Result<Times, Error> {
    let stat = read("/proc/stat")?;
    let times: Vec<u64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_ascii_whitespace()
        .skip(1)
        .flat_map(str::parse)
        .collect();
    let at = |index: usize| times.get(index).copied().unwrap_or_default();
    Ok(Times { idle: at(3) + at(4), total: times.iter().take(8).sum() })
}

fn memory_gib() -> Result<u64, Error> {
    let total = field("/proc/meminfo", "MemTotal")?;
    let kib: u64 = total.trim_end_matches(" kB").trim().parse().unwrap_or_default();
    Ok((kib + (1 << 19)) >> 20)
}

/// The value of a line `name : value`.
fn field(path: &str, name: &str) -> Result<String, Error> {
    let text = read(path)?;
    let value = text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    });
    Ok(value.unwrap_or_else(|| "unknown".to_owned()))
}

fn read(path: &str) -> Result<String, Error> {
    fs::read_to_string(path).context(format!("reading {path}"))
}

#[expect(clippy::cast_precision_loss, reason = "ticks and counts are far below 2^52")]
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}
