//! The benchmarks as a program: `cargo run --release -p offpeak-bench -- all`.

use std::cell::Cell;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command as Program, ExitCode};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use offpeak_bench::engine::{
    self, Sizes,
    door::{Door, Real},
};
use offpeak_bench::error::{Context, Error};
use offpeak_bench::machine::{self, Machine};
use offpeak_bench::overhead::{self, Kind};
use offpeak_bench::report::Target;
use offpeak_bench::targets::{Programs, Setup};
use offpeak_bench::{bare, durable, hostile, ingest, jobs, memory, plugin, upstream};
use serde::Serialize;
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

// As in the daemon, so that the bare proxy differs from it by what it does and not by how it gets memory.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The benchmarks of offpeak: against nginx in the path, against the bare disk, in memory, and on an engine of one's own.
///
/// The daemon is built for release first, then runs as a process of its own beside nginx and a fast upstream, all on the
/// same cores. Figures go to standard output as Markdown (or JSON), progress goes to standard error.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = r#"Examples:
  cargo run --release -p offpeak-bench -- all
  cargo run --release -p offpeak-bench -- overhead --rounds 9 --seconds 6
  cargo run --release -p offpeak-bench -- queued --count 100000 --folder /mnt/disk
  cargo run --release -p offpeak-bench -- all --json > bench.json
  cargo run --release -p offpeak-bench -- engine

The engine is the model of one, unless one is named. llama.cpp's server with a tiny random model, from the packages in
tests/clients/requirements.txt, run in tests/clients:
  python -c 'from pathlib import Path; from rig import tiny_model; tiny_model.write(Path("/tmp/tiny.gguf"))'
  python rig/serve_engine.py /tmp/tiny.gguf 8 embed          # writes its address
  cargo run --release -p offpeak-bench -- engine --engine http://127.0.0.1:PORT --engine-model tiny \
    --engine-config 'engine = "llamacpp"' --engine-config 'max_running = 8'

Read ratios rather than absolute figures: they move with the machine, ratios hardly do. Run it where nothing else runs."#;

#[derive(Subcommand)]
enum Command {
    /// Everything, one after the other: about twenty minutes.
    All(Common),
    /// Plain answers: straight, through nginx, through a bare proxy, through offpeak, in turns.
    Overhead(Common),
    /// Streamed answers, the same way.
    Stream(Common),
    /// Warm calls of the bundled plugins, and their start.
    Plugin(Common),
    /// What other tenants feel of a stranger's router that does harm wherever it can.
    Hostile(Common),
    /// Durable acceptance beside a bare append and fdatasync on the same disk.
    Ingest(Common),
    /// Memory with queued requests, and the time until the daemon is ready again after a SIGKILL.
    Queued(Common),
    /// Memory with held calls.
    Held(Common),
    /// A job through its whole path: time and memory; and how fast input is checked.
    Jobs(Common),
    /// An engine of one's own: merged embeddings and a job beside a client that has the engine for itself, real-time calls
    /// beside a flood of deferred work, a day of bursts, length buckets.
    Engine(Common),
    /// The upstream that stands behind nginx and offpeak; writes its address and serves.
    #[command(hide = true)]
    Upstream {
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
        #[arg(long, default_value_t = 1)]
        threads: usize,
    },
    /// A proxy that does nothing but pass on, as cheaply as hyper can.
    #[command(hide = true)]
    Bare {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        upstream: SocketAddr,
    },
    /// Fills a store, writes a line and waits to be killed.
    #[command(hide = true)]
    Fill { folder: PathBuf, count: u64 },
    /// Fills a store with one lane, writes a line about its memory and waits to be killed.
    #[command(hide = true, name = ingest::HOLD)]
    Hold { folder: PathBuf, count: u64 },
}

#[derive(Args, Clone)]
struct Common {
    /// Print one JSON object with every sample instead of Markdown.
    #[arg(long)]
    json: bool,
    /// Rounds of which the median counts (overhead, stream; engine: at most 3 on a real one, and 1 on the model of one).
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Measured seconds of each load on each target in a round (overhead, stream; ingest: at most 3; engine, hostile: five
    /// times as many).
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Connections of the loads that go as fast as they can (overhead).
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Streams that are open at once (stream).
    #[arg(long, default_value_t = 128)]
    streams: usize,
    /// Requests a second of the load that shows latencies (overhead, hostile).
    #[arg(long, default_value_t = 500)]
    rate: u32,
    /// Queued requests (ingest, queued).
    #[arg(long, default_value_t = 1_000_000)]
    count: u64,
    /// Held calls (held).
    #[arg(long, default_value_t = 10_000)]
    calls: u64,
    /// Requests of a job (jobs).
    #[arg(long, default_value_t = 50_000)]
    job: u64,
    /// Requests of a job on an engine (engine).
    #[arg(long, default_value_t = 2_000)]
    engine_job: usize,
    /// A running engine, instead of the model of one (engine): its address without a path, http:// only.
    #[arg(long, value_name = "URL")]
    engine: Option<String>,
    /// The model that it serves.
    #[arg(long, value_name = "NAME", default_value = "tiny")]
    engine_model: String,
    /// A line for `[backends.engine.config]`, such as 'engine = "llamacpp"' (may be given several times).
    #[arg(long, value_name = "TOML")]
    engine_config: Vec<String>,
    /// Threads of the load generator and of the upstream. By default half as many as there are cores.
    #[arg(long)]
    threads: Option<usize>,
    /// Where data is written. By default a temporary folder; name one on the disk that is to be measured.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// The daemon's program. By default it is built by `cargo build --release --bin offpeak`.
    #[arg(long)]
    offpeak: Option<PathBuf>,
    /// nginx. By default the one on the PATH.
    #[arg(long)]
    nginx: Option<PathBuf>,
    /// Seconds to wait for a quiet machine.
    #[arg(long, default_value_t = 60)]
    wait: u64,
}

fn main() -> ExitCode {
    let ended = match Cli::parse().command {
        Command::Upstream { listen, threads } => {
            runtime(threads).and_then(|it| it.block_on(upstream::serve(listen)))
        }
        Command::Bare { listen, upstream } => {
            runtime(1).and_then(|it| it.block_on(bare::serve(listen, upstream)))
        }
        Command::Fill { folder, count } => {
            runtime(machine::cores()).and_then(|it| it.block_on(memory::fill(&folder, count)))
        }
        Command::Hold { folder, count } => ingest::hold(&folder, count),
        Command::All(common) => Bench::new(common).and_then(|bench| bench.run(&Part::ALL)),
        Command::Overhead(common) => Bench::new(common).and_then(|bench| bench.run(&[Part::Overhead])),
        Command::Stream(common) => Bench::new(common).and_then(|bench| bench.run(&[Part::Stream])),
        Command::Plugin(common) => Bench::new(common).and_then(|bench| bench.run(&[Part::Plugin])),
        Command::Hostile(common) => Bench::new(common).and_then(|bench| bench.run(&[Part::Hostile])),
        Command::Ingest(common) => Bench::new(common).and_then(|bench| bench.run(&[Part::Ingest])),
        Command::Queued(common) => Bench::new(common).and_then(|bench| bench.run(&[Part::Queued])),
        Command::Held(common) => Bench::new(common).and_then(|bench| bench.run(&[Part::Held])),
        Command::Jobs(common) => Bench::new(common).and_then(|bench| bench.run(&[Part::Jobs])),
        Command::Engine(common) => Bench::new(common).and_then(|bench| bench.run(&[Part::Engine])),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn runtime(threads: usize) -> Result<Runtime, Error> {
    let mut builder = if threads > 1 { Builder::new_multi_thread() } else { Builder::new_current_thread() };
    builder.worker_threads(threads.max(1)).enable_all().build().context("starting the runtime")
}

/// Files of the daemon that are no connections, with room to spare.
const FILES_BESIDE: u64 = 200;

/// One benchmark of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Overhead,
    Stream,
    Plugin,
    Hostile,
    Ingest,
    Queued,
    Held,
    Jobs,
    Engine,
}

impl Part {
    const ALL: [Self; 9] = [
        Self::Overhead,
        Self::Stream,
        Self::Plugin,
        Self::Hostile,
        Self::Ingest,
        Self::Queued,
        Self::Held,
        Self::Jobs,
        Self::Engine,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Overhead => "overhead",
            Self::Stream => "stream",
            Self::Plugin => "plugin",
            Self::Hostile => "hostile",
            Self::Ingest => "ingest",
            Self::Queued => "queued",
            Self::Held => "held",
            Self::Jobs => "jobs",
            Self::Engine => "engine",
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::Overhead => "In the path: plain answers",
            Self::Stream => "In the path: streamed answers",
            Self::Plugin => "Plugins",
            Self::Hostile => "A hostile router",
            Self::Ingest => "Durable acceptance",
            Self::Queued => "Queued requests",
            Self::Held => "Held calls",
            Self::Jobs => "A job",
            Self::Engine => "An engine of one's own",
        }
    }
}

/// What a benchmark found.
struct Found {
    markdown: String,
    targets: Vec<Target>,
    figures: Value,
}

struct Bench {
    options: Common,
    threads: usize,
    runtime: Runtime,
    folder: TempDir,
}

impl Bench {
    fn new(options: Common) -> Result<Self, Error> {
        let threads = options.threads.unwrap_or_else(|| machine::cores() / 2).max(1);
        let folder = match &options.folder {
            Some(folder) => tempfile::tempdir_in(folder),
            None => tempfile::tempdir(),
        };
        let folder = folder.context("making a folder for the data")?;
        Ok(Self { options, threads, runtime: runtime(threads)?, folder })
    }

    fn run(&self, parts: &[Part]) -> Result<(), Error> {
        let open_files = machine::raise_open_files()?;
        // The daemon keeps a file for a call to a backend with each connection.
        let held_at_most = open_files.saturating_sub(FILES_BESIDE) / 2;
        if parts.contains(&Part::Held) && held_at_most < self.options.calls {
            return Err(Error::Files { files: open_files, calls: held_at_most });
        }
        let programs = self.programs(parts)?;
        let machine = Machine::wait_until_quiet(Duration::from_secs(self.options.wait))?;
        if !self.options.json {
            println!("{}", machine.describe());
        }
        let (mut found, mut failed) = (Vec::new(), Vec::new());
        for part in parts {
            eprintln!("== {}", part.name());
            match self.run_one(*part, &programs) {
                Ok(one) => {
                    if !self.options.json {
                        println!("\n### {}\n\n{}", part.title(), one.markdown);
                    }
                    found.push((*part, one));
                }
                // The others took their time, too.
                Err(error) => {
                    eprintln!("{}: {error}", part.name());
                    failed.push(part.name());
                }
            }
        }
        if self.options.json {
            print_json(&machine, &found);
        } else {
            let targets: Vec<Target> = found.iter().flat_map(|(_, found)| found.targets.clone()).collect();
            println!("{}", Target::table(&targets));
        }
        if failed.is_empty() { Ok(()) } else { Err(Error::Parts(failed.join(", "))) }
    }

    fn run_one(&self, part: Part, programs: &Programs) -> Result<Found, Error> {
        let folder = self.folder.path().join(part.name());
        std::fs::create_dir_all(&folder).context("making a folder")?;
        let (options, on) = (&self.options, &self.runtime);
        match part {
            Part::Overhead | Part::Stream => {
                let (kind, connections) = match part {
                    Part::Stream => (Kind::Stream, options.streams),
                    _ => (Kind::Plain, options.connections),
                };
                let options = overhead::Options {
                    rounds: options.rounds.max(1),
                    measure: Duration::from_secs(options.seconds.max(1)),
                    connections,
                    per_second: options.rate,
                    threads: self.threads,
                };
                let report = on.block_on(overhead::run(kind, options, programs, &folder))?;
                Ok(Found::new(report.markdown(), report.targets(), &report))
            }
            Part::Plugin => {
                let report = plugin::run()?;
                Ok(Found::new(report.markdown(), report.targets(), &report))
            }
            Part::Hostile => {
                let measure = Duration::from_secs(options.seconds.max(1)) * 5;
                let report = self.with_setup(programs, &folder, async |setup| {
                    hostile::run(options.rate, measure, self.threads, setup).await
                })?;
                Ok(Found::new(report.markdown(), report.targets(), &report))
            }
            Part::Ingest => {
                let report = durable::run(&folder, options.seconds.clamp(1, 3), options.count)?;
                Ok(Found::new(report.markdown(), report.targets(), &report))
            }
            Part::Queued => {
                let report = self.with_setup(programs, &folder, async |setup| {
                    memory::queued(options.count, setup).await
                })?;
                Ok(Found::new(report.markdown(), report.targets(), &report))
            }
            Part::Held => {
                let report = self
                    .with_setup(programs, &folder, async |setup| memory::held(options.calls, setup).await)?;
                Ok(Found::new(report.markdown(), report.targets(), &report))
            }
            Part::Jobs => {
                let report =
                    self.with_setup(programs, &folder, async |setup| jobs::run(options.job, setup).await)?;
                Ok(Found::new(report.markdown(), report.targets(), &report))
            }
            Part::Engine => {
                let report = self
                    .with_setup(programs, &folder, async |setup| engine_of_ones_own(options, setup).await)?;
                Ok(Found::new(report.markdown(), report.targets(), &report))
            }
        }
    }

    /// Runs with a daemon whose plugins are compiled already, as after its first start.
    fn with_setup<T>(
        &self,
        programs: &Programs,
        folder: &Path,
        run: impl AsyncFnOnce(&Setup<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let (store, plugin_cache) = (folder.join("data"), folder.join("plugins"));
        // Nothing departs here, so that nobody is called.
        let upstream = SocketAddr::from(([127, 0, 0, 1], 9));
        let setup = Setup {
            program: &programs.offpeak,
            folder,
            store: &store,
            plugin_cache: &plugin_cache,
            upstream,
        };
        self.runtime.block_on(async {
            drop(setup.start().await?);
            run(&setup).await
        })
    }

    fn programs(&self, parts: &[Part]) -> Result<Programs, Error> {
        let needs_nginx = parts.iter().any(|part| matches!(part, Part::Overhead | Part::Stream));
        let nginx = match &self.options.nginx {
            Some(nginx) => nginx.clone(),
            None if needs_nginx => find_nginx()?,
            None => PathBuf::new(),
        };
        let offpeak = match &self.options.offpeak {
            Some(offpeak) => offpeak.clone(),
            None if parts.iter().all(|part| matches!(part, Part::Plugin | Part::Ingest)) => PathBuf::new(),
            None => build_offpeak()?,
        };
        Ok(Programs { offpeak, nginx })
    }
}

async fn engine_of_ones_own(options: &Common, setup: &Setup<'_>) -> Result<engine::Report, Error> {
    let real = options.engine.clone().map(|url| Real {
        url,
        model: options.engine_model.clone(),
        config: options.engine_config.join("\n"),
    });
    let rounds = if real.is_some() { options.rounds.clamp(1, 3) } else { 1 };
    let measure = Duration::from_secs(options.seconds.max(1)) * 5;
    let sizes = Sizes { job: options.engine_job.max(1), ..Sizes::whole(measure, rounds) };
    let number = Cell::new(0);
    engine::run(real.as_ref(), sizes, &async |settings: String| {
        number.set(number.get() + 1);
        let store = setup.store.join(number.get().to_string());
        let daemon = Setup { store: &store, ..setup.clone() }.start_with(&settings).await?;
        Ok(Door { data: daemon.data, admin: daemon.admin, alive: Box::new(daemon) })
    })
    .await
}

impl Found {
    fn new(markdown: String, targets: Vec<Target>, figures: &impl Serialize) -> Self {
        Self { markdown, targets, figures: serde_json::to_value(figures).unwrap_or_default() }
    }
}

fn find_nginx() -> Result<PathBuf, Error> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Where distributions put it is not on everybody's PATH.
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join("nginx")).find(|file| file.is_file()).ok_or(Error::Missing {
        program: "nginx",
        remedy: "on Debian: apt-get install nginx-light",
        option: "--nginx",
    })
}

/// Beside this program, where Cargo puts all of them.
fn build_offpeak() -> Result<PathBuf, Error> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["build", "--release", "--package", "offpeak", "--bin", "offpeak"];
    let status = Program::new(cargo).args(arguments).status().context("starting cargo")?;
    if !status.success() {
        return Err(Error::Build(format!("cargo {}", arguments.join(" "))));
    }
    let this = std::env::current_exe().context("looking for this program's own file")?;
    Ok(this.with_file_name("offpeak"))
}

fn print_json(machine: &Machine, found: &[(Part, Found)]) {
    let targets: Vec<&Target> = found.iter().flat_map(|(_, found)| &found.targets).collect();
    let parts: serde_json::Map<String, Value> =
        found.iter().map(|(part, found)| (part.name().to_owned(), found.figures.clone())).collect();
    println!("{:#}", serde_json::json!({ "machine": machine, "parts": parts, "targets": targets }));
}
