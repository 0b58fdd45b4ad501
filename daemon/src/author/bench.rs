//! `offpeak plugin bench`: how fast a component's calls are, and what an instance of it takes.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args as ClapArgs;
use offpeak_host::{
    AnyPlugin, CostPlugin, Engine, EngineOptions, EnginePlugin, HostError, Limits, PluginError,
    PluginErrorKind, ProviderPlugin, RetryPlugin, RouterPlugin, Source, WorldName,
};
use serde::Serialize;
use serde_json::json;

use super::check::{CheckError, Function, micros, millis, name_of, settings};
use super::compiled::Workbench;
use super::{FAILED, USAGE};
use crate::clock::Clock;
use crate::plugins::sample;

/// Starts of which the median is taken.
const STARTS: usize = 51;

/// Calls before it is measured.
const WARM_UP: usize = 200;

/// Measures a component.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// The component.
    file: PathBuf,
    /// Its settings: a TOML file that holds what would stand in its `config` table.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How long each function is called.
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    time: Duration,
    /// Threads that call at the same time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: u16,
    /// Print JSON, for scripts.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    file: PathBuf,
    bytes: usize,
    /// The daemon that measured was built without optimisation: its figures say little.
    debug: bool,
    /// From nothing to machine code.
    compile_ms: f64,
    worlds: Vec<Measured>,
}

/// A component in one of its worlds.
#[derive(Debug, Serialize)]
struct Measured {
    world: &'static str,
    /// From the compiled file to a plugin that has described itself.
    start_ms: f64,
    /// The same again, with everything in the cache, and its first call; the median.
    fresh_us: f64,
    /// Linear memory of an instance after all its calls.
    instance_bytes: usize,
    functions: Vec<Speed>,
}

#[derive(Debug, Serialize)]
struct Speed {
    function: &'static str,
    calls: usize,
    calls_a_second: f64,
    p50_us: f64,
    p99_us: f64,
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
enum BenchError {
    #[error(transparent)]
    Check(#[from] CheckError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("{0}; `offpeak plugin check` says more")]
    Call(#[from] PluginError),
    #[error("it is of no world that the daemon calls; `offpeak plugin check` says more")]
    NoWorld,
}

impl BenchError {
    /// The command is to blame, and not the component.
    const fn code(&self) -> u8 {
        match self {
            Self::Check(_) => USAGE,
            Self::Host(_) | Self::Call(_) | Self::NoWorld => FAILED,
        }
    }
}

/// Runs the command and returns the exit code.
pub fn run(args: &Args) -> u8 {
    match measure(args) {
        Ok(report) if args.json => println!("{}", json!(report)),
        Ok(report) => print!("{}", report.text()),
        Err(error) => {
            eprintln!("offpeak: {error}");
            return error.code();
        }
    }
    0
}

fn measure(args: &Args) -> Result<Report, BenchError> {
    let unreadable = |source| CheckError::Unreadable { path: args.file.clone(), source };
    std::fs::metadata(&args.file).map_err(unreadable)?;
    let config = settings(args.config.as_deref())?;
    // Nothing is kept: how long compiling takes is among the figures.
    let workbench =
        Workbench::new(None, EngineOptions::default().pool_instances).map_err(CheckError::from)?;
    let begun = Instant::now();
    let found = workbench.inspect(&name_of(&args.file), Source::File(&args.file))?;
    let compile_ms = millis(begun.elapsed());
    let subject = Subject { args, engine: &workbench.engine, config: &config };
    let worlds = found.worlds.iter().map(|world| subject.in_world(*world)).collect::<Result<Vec<_>, _>>()?;
    if worlds.is_empty() {
        return Err(BenchError::NoWorld);
    }
    let (file, bytes) = (args.file.clone(), found.bytes);
    Ok(Report { file, bytes, debug: cfg!(debug_assertions), compile_ms, worlds })
}

struct Subject<'a> {
    args: &'a Args,
    engine: &'a Engine,
    config: &'a str,
}

impl Subject<'_> {
    fn in_world(&self, world: WorldName) -> Result<Measured, BenchError> {
        let policy = Limits { memory_bytes: Limits::router().memory_bytes, ..Limits::provider() };
        match world {
            WorldName::Router => {
                self.of::<RouterPlugin>(world, &Limits::router(), &[("route", &sample::route)])
            }
            WorldName::RetryPolicy => {
                self.of::<RetryPlugin>(world, &Limits::router(), &[("judge", &sample::judge)])
            }
            WorldName::Engine => {
                self.of::<EnginePlugin>(world, &Limits::provider(), &[("interpret", &sample::interpret)])
            }
            WorldName::CostPolicy => self.of::<CostPlugin>(world, &policy, &[("assess", &sample::assess)]),
            WorldName::Provider => self.of::<ProviderPlugin>(
                world,
                &Limits::provider(),
                &[
                    ("offers", &sample::offers),
                    ("prepare", &sample::prepare),
                    ("encode-items", &sample::encode),
                ],
            ),
        }
    }

    fn of<P: AnyPlugin + Sync>(
        &self,
        world: WorldName,
        limits: &Limits,
        functions: &[Function<'_, P>],
    ) -> Result<Measured, BenchError> {
        let begun = Instant::now();
        let plugin: P = self.load(limits)?;
        let start_ms = millis(begun.elapsed());
        let mut measured = Vec::new();
        for (function, call) in functions {
            measured.push(self.speed(&plugin, function, *call)?);
        }
        let fresh = functions.first().map(|(_, call)| self.fresh(limits, *call)).transpose()?;
        Ok(Measured {
            world: world.as_str(),
            start_ms,
            fresh_us: micros(fresh.unwrap_or_default()),
            instance_bytes: plugin.report().memory_bytes,
            functions: measured,
        })
    }

    fn load<P: AnyPlugin>(&self, limits: &Limits) -> Result<P, HostError> {
        let (name, source) = (name_of(&self.args.file), Source::File(&self.args.file));
        // The time limit ends what is endless; what is slow is shown.
        let limits = Limits { call: Duration::from_secs(5), step: Duration::from_secs(5), ..limits.clone() };
        P::load(self.engine, &name, source, self.config.to_owned(), limits, Clock::System.now().0)
    }

    /// Calls for as long as the command says, on as many threads.
    fn speed<P: Sync>(
        &self,
        plugin: &P,
        function: &'static str,
        call: &(dyn Fn(&P, u64) -> sample::Said + Sync),
    ) -> Result<Speed, BenchError> {
        for _ in 0..WARM_UP {
            once(plugin, call)?;
        }
        let begun = Instant::now();
        let work = || {
            // At least one, however busy the machine is.
            let mut taken = vec![once(plugin, call)?];
            while begun.elapsed() < self.args.time {
                taken.push(once(plugin, call)?);
            }
            Ok::<_, PluginError>(taken)
        };
        let done: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..self.args.threads).map(|_| scope.spawn(work)).collect();
            threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
        });
        let elapsed = begun.elapsed();
        let mut taken = done.into_iter().collect::<Result<Vec<_>, _>>()?.concat();
        taken.sort_unstable();
        let at = |percent: usize| {
            taken.get(taken.len().saturating_sub(1) * percent / 100).copied().unwrap_or_default()
        };
        #[expect(clippy::cast_precision_loss, reason = "nobody makes 2^52 calls")]
        let calls_a_second = (taken.len() as f64 / elapsed.as_secs_f64()).round();
        Ok(Speed {
            function,
            calls: taken.len(),
            calls_a_second,
            p50_us: micros(at(50)),
            p99_us: micros(at(99)),
        })
    }

    /// The median of starts with everything in the cache: linked, an instance made, described, and called once.
    fn fresh<P: AnyPlugin>(
        &self,
        limits: &Limits,
        call: &dyn Fn(&P, u64) -> sample::Said,
    ) -> Result<Duration, BenchError> {
        let mut taken = Vec::with_capacity(STARTS);
        for _ in 0..STARTS {
            let begun = Instant::now();
            let plugin: P = self.load(limits)?;
            once(&plugin, call)?;
            taken.push(begun.elapsed());
        }
        taken.sort_unstable();
        Ok(taken.get(STARTS / 2).copied().unwrap_or_default())
    }
}

/// One call, and how long it took. A refusal is an answer: the sample is only one.
fn once<P>(plugin: &P, call: &(impl Fn(&P, u64) -> sample::Said + ?Sized)) -> Result<Duration, PluginError> {
    let now_ms = Clock::System.now().0;
    let begun = Instant::now();
    let answer = call(plugin, now_ms);
    let taken = begun.elapsed();
    match answer {
        Ok(_) | Err(PluginError { kind: PluginErrorKind::Refused(_), .. }) => Ok(taken),
        Err(error) => Err(error),
    }
}

impl Report {
    fn text(&self) -> String {
        let mut lines = vec![format!("{}: {} KiB", self.file.display(), self.bytes.div_ceil(1024))];
        if self.debug {
            lines.push(
                "  NOTE      this offpeak was built without --release: its figures say little".to_owned(),
            );
        }
        lines.push(format!("  compiled  in {:.1} ms, once", self.compile_ms));
        for world in &self.worlds {
            let memory = world.instance_bytes.div_ceil(1024);
            lines.push(format!("  world     {}, {memory} KiB an instance", world.world));
            lines.push(format!(
                "  started   in {:.1} ms at first, {:.1} ms when all is in the cache, first call included",
                world.start_ms,
                world.fresh_us / 1e3
            ));
            lines.extend(world.functions.iter().map(|speed| {
                format!(
                    "  {:<13} {:>9.0} calls a second, p50 {:.1} us, p99 {:.1} us",
                    speed.function, speed.calls_a_second, speed.p50_us, speed.p99_us
                )
            }));
        }
        lines.join("\n") + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(file: PathBuf) -> Args {
        Args { file, config: None, time: Duration::from_millis(20), threads: 2, json: false }
    }

    #[test]
    fn figures_are_there_for_each_function() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("openai.wasm");
        std::fs::write(&file, offpeak_bundled::OPENAI).unwrap();
        let report = measure(&args(file)).unwrap();
        let [world] = report.worlds.as_slice() else { panic!("{report:?}") };
        let functions: Vec<_> = world.functions.iter().map(|speed| speed.function).collect();
        assert_eq!((world.world, functions), ("provider", vec!["offers", "prepare", "encode-items"]));
        assert!(
            world.functions.iter().all(|speed| speed.calls > 0 && speed.p99_us >= speed.p50_us),
            "{world:?}"
        );
        assert!(world.instance_bytes > 0 && world.fresh_us > 0.0);
        assert!(report.text().contains("calls a second"), "{}", report.text());
    }

    #[test]
    fn what_is_no_plugin_has_no_figures() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(run(&args(folder.path().join("nowhere.wasm"))), USAGE);
        let file = folder.path().join("empty.wasm");
        std::fs::write(&file, b"\0asm\x0d\0\x01\0").unwrap();
        assert_eq!(run(&args(file)), FAILED);
    }
}
