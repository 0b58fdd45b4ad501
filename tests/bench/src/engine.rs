//! An engine of one's own: what offpeak gets out of it, beside a client that has it for itself.
//!
//! | file | holds |
//! | --- | --- |
//! | `embeddings` | one by one through a daemon that merges them, and arrays |
//! | `job` | a job, and a client that saturates the engine |
//! | `mixed` | real-time calls with a flood of deferred work, and without |
//! | `day` | adaptive and fixed numbers at once, over a day of virtual time |
//! | `padding` | length buckets on an engine that pads, in virtual time |
//! | `door`, `client` | the engine, the way to a daemon before it, and who asks |

use std::time::Duration;

use provider_sim::EngineOptions;
use serde::Serialize;

use crate::error::Error;
use crate::report::Target;

mod client;
pub mod day;
pub mod door;
pub mod embeddings;
pub mod job;
pub mod mixed;
pub mod padding;

use self::door::{Door, Engine, Real};

/// How much is measured.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Sizes {
    /// Inputs of each measurement of embeddings.
    pub embeddings: usize,
    /// Requests of a job of embeddings.
    pub embeddings_job: usize,
    /// Requests of a job of completions.
    pub job: usize,
    /// Passes of that job, of which the median counts.
    pub rounds: usize,
    /// How long a flood has the engine for itself before real-time calls come.
    pub lead: Duration,
    /// How long these come before they are measured.
    pub warm_up: Duration,
    /// How long they are.
    pub measure: Duration,
    /// The length of the day, which is virtual.
    pub day: Duration,
    /// Embeddings of a backlog that is padded, which is virtual too.
    pub backlog: usize,
}

impl Sizes {
    /// What figures are published of. Real-time calls are measured for so long.
    pub const fn whole(measure: Duration, rounds: usize) -> Self {
        Self {
            embeddings: 4_000,
            embeddings_job: 20_000,
            job: 2_000,
            rounds,
            lead: Duration::from_secs(8),
            warm_up: Duration::from_secs(12),
            measure,
            day: Duration::from_hours(24),
            backlog: 50_000,
        }
    }
}

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The engine; none if it was simulated.
    pub engine: Option<String>,
    /// How much was measured.
    pub sizes: Sizes,
    /// Merging.
    pub embeddings: embeddings::Report,
    /// A job.
    pub job: job::Report,
    /// Real-time calls beside deferred work.
    pub mixed: mixed::Report,
    /// A day.
    pub day: day::Report,
    /// Length buckets.
    pub padding: padding::Report,
}

/// Measures. `start` starts a daemon with these settings and a store of its own; embeddings and the job run on the engine that
/// is given, if one is.
pub async fn run(
    real: Option<&Real>,
    sizes: Sizes,
    start: &impl AsyncFn(String) -> Result<Door, Error>,
) -> Result<Report, Error> {
    let engine = match real {
        Some(real) => Engine::real(real)?,
        None => Engine::simulated(EngineOptions::default())?,
    };
    eprintln!("embeddings");
    let embeddings = embeddings::run(&engine, &sizes, start).await?;
    eprintln!("{}", embeddings.markdown());
    eprintln!("a job");
    let job = job::run(&engine, &sizes, start).await?;
    eprintln!("{}", job.markdown());
    let peak = if engine.is_simulated() {
        job.peak()
    } else {
        let options = EngineOptions::default();
        options.tokens_per_second(options.max_num_seqs)
    };
    eprintln!("real-time calls beside a flood of deferred work");
    let mixed = mixed::run(&sizes, peak, start).await?;
    eprintln!("{}", mixed.markdown());
    eprintln!("a day, and padding");
    let (day, padding) = (day::run(sizes.day), padding::run(sizes.backlog));
    let engine = real.map(|real| format!("{} at {}", real.model, real.url));
    Ok(Report { engine, sizes, embeddings, job, mixed, day, padding })
}

impl Report {
    /// The figures as Markdown.
    pub fn markdown(&self) -> String {
        let engine = match &self.engine {
            Some(engine) => {
                format!("Embeddings and the job on {engine}; the rest on the model of an engine.")
            }
            None => "On the model of an engine of the A100 class, in real time.".to_owned(),
        };
        let parts = [
            engine,
            self.embeddings.markdown(),
            self.job.markdown(),
            self.mixed.markdown(),
            self.day.markdown(),
            self.padding.markdown(),
        ];
        parts.join("\n\n")
    }

    /// What was wanted of these figures.
    pub fn targets(&self) -> Vec<Target> {
        let parts = [
            self.embeddings.targets(),
            self.job.targets(),
            self.mixed.targets(),
            self.day.targets(),
            self.padding.targets(),
        ];
        parts.concat()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use offpeak::app::App;
    use offpeak::config::Config;
    use tokio_util::sync::{CancellationToken, DropGuard};

    use crate::talk::KEY;

    use super::*;

    /// A daemon in this process. It stops when this is dropped.
    struct Here {
        _stop: DropGuard,
        _folder: tempfile::TempDir,
    }

    async fn here(settings: String, plugins: &Path) -> Result<Door, Error> {
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\ndrain = \"1s\"\n\
             [store]\nfolder = \"{0}/data\"\n[tenants.bench]\nkeys = [{{ env = \"BENCH_KEY\" }}]\n\
             [plugins]\ncache = \"{1}\"\n[plugins.router]\ntime_limit = \"5s\"\n\
             [plugins.providers.vllm]\ntime_limit = \"5s\"\n{settings}",
            folder.path().display(),
            plugins.display()
        );
        let env = BTreeMap::from([("BENCH_KEY".to_owned(), KEY.to_owned())]);
        let config = Config::from_text("offpeak.toml", &text, &env).unwrap_or_else(|error| panic!("{error}"));
        let app = App::open(&config).await.unwrap();
        let (data, admin) = (app.data_address().unwrap(), app.admin_address().unwrap());
        let stop = CancellationToken::new();
        tokio::spawn(app.run(stop.clone()));
        let alive = Box::new(Here { _stop: stop.drop_guard(), _folder: folder });
        Ok(Door { data, admin, alive })
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn all_of_it_runs_small() {
        let sizes = Sizes {
            embeddings: 64,
            embeddings_job: 96,
            job: 24,
            rounds: 1,
            lead: Duration::from_millis(300),
            warm_up: Duration::from_millis(300),
            measure: Duration::from_millis(700),
            day: Duration::from_mins(2),
            backlog: 500,
        };
        // Compiled once for all the daemons.
        let plugins = tempfile::tempdir().unwrap();
        let start = async |settings| here(settings, plugins.path()).await;
        let report = run(None, sizes, &start).await.unwrap();
        let text = report.markdown();
        assert!(report.embeddings.merged.iter().all(|inputs| *inputs >= 2.0), "{text}");
        for ways in report.mixed.parts.iter().map(|part| &part.runs) {
            assert!(ways.iter().all(|run| run.calls > 0 && run.first_token_ms[1] > 0.0), "{text}");
            assert!(ways[1].of_peak > ways[0].of_peak, "deferred work ran beside: {text}");
        }
        let targets = report.targets();
        assert!(
            targets.iter().all(|target| target.measured.is_finite() && target.measured > 0.0),
            "{targets:?}"
        );
    }
}
