//! Durable acceptance: what `ingest` measures, in one report.

use std::path::Path;

use serde::Serialize;

use crate::error::Error;
use crate::ingest::{self, Queued};
use crate::report::{Table, Target, figure, megabytes, thousands};

/// Tasks that append at once, in one run each.
const WRITERS: [usize; 2] = [32, 256];

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// By number of writers.
    pub acceptance: Vec<ingest::Report>,
    /// The store alone with much in it.
    pub queued: Queued,
}

/// Measures on the disk of a folder, in rounds of so many seconds.
pub fn run(folder: &Path, seconds: u64, queued: u64) -> Result<Report, Error> {
    let acceptance = WRITERS.map(|writers| ingest::run(folder, seconds, writers));
    let acceptance = acceptance.into_iter().collect::<Result<_, _>>()?;
    Ok(Report { acceptance, queued: ingest::queued_memory(folder, queued)? })
}

impl Report {
    /// The figures as Markdown.
    pub fn markdown(&self) -> String {
        let mut table = Table::new([
            "requests of 2 KB, acknowledged after their sync",
            "bare append/s",
            "store/s",
            "ratio",
        ]);
        for row in &self.acceptance {
            let writers = format!("{} writers", row.writers);
            table.row([writers, thousands(row.bare_per_s), thousands(row.store_per_s), figure(row.ratio)]);
        }
        let queued = &self.queued;
        let mut alone = Table::new(["the store alone", ""]);
        let mut row = |what: &str, figure: String| alone.row([what.to_owned(), figure]);
        row("queued requests", thousands(as_f64(queued.requests)));
        row(
            "resident memory of the process that appended them",
            format!("{} MB", figure(megabytes(queued.resident))),
        );
        row("open again after its SIGKILL", format!("{:.0} ms", queued.reopened.as_secs_f64() * 1000.0));
        row("log", format!("{} MB", figure(megabytes(queued.log_bytes))));
        row("index", format!("{} MB", figure(megabytes(queued.index_bytes))));
        format!("{}\n{}", table.markdown(), alone.markdown())
    }

    /// What was wanted of these figures.
    pub fn targets(&self) -> Vec<Target> {
        const NAMES: [&str; 2] =
            ["acceptance with 32 writers, to a bare append", "acceptance with 256 writers, to a bare append"];
        let rows = NAMES.into_iter().zip(&self.acceptance);
        rows.map(|(name, row)| Target::at_least(name, row.ratio, 0.6, "")).collect()
    }
}

#[expect(clippy::cast_precision_loss, reason = "a count of requests is far below 2^52")]
fn as_f64(count: u64) -> f64 {
    count as f64
}
