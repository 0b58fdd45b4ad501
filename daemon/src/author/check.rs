//! `offpeak plugin check`: what a component is, and how it does.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args as ClapArgs;
use offpeak_host::{
    AnyPlugin, CostPlugin, Engine, EnginePlugin, HostError, Inspection, Limits, PluginError, PluginErrorKind,
    ProviderPlugin, RetryPlugin, RouterPlugin, Source, WorldName,
};
use serde::Serialize;

use super::USAGE;
use super::compiled::{Workbench, WorkbenchError, folder};
use crate::clock::Clock;
use crate::plugins::sample::{self, Said};

/// What a component and the trial of it turned out to be.
const FINE: u8 = 0;
const NOT_FINE: u8 = 1;

/// Says what a component is.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// The component.
    file: PathBuf,
    /// Its settings: a TOML file that holds what would stand in its `config` table.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The time limit of a call [default: 50ms, as in the daemon].
    #[arg(long, value_parser = humantime::parse_duration)]
    time_limit: Option<Duration>,
    /// The memory limit of an instance, in MiB [default: that of the world in the daemon].
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u16).range(1..=4096))]
    memory: Option<u16>,
    /// How often each function is called.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    calls: u32,
    /// Print JSON, for scripts.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    file: PathBuf,
    bytes: usize,
    sha256: String,
    imports: Vec<Import>,
    exports: Vec<String>,
    /// From nothing to machine code; none if an earlier command has kept that.
    compile_ms: Option<f64>,
    worlds: Vec<Trial>,
    /// What keeps it from being taken into use, if it is no plugin at all.
    problem: Option<String>,
}

#[derive(Debug, Serialize)]
struct Import {
    name: String,
    offered: bool,
}

/// A component, tried in one of its worlds.
#[derive(Debug, Serialize)]
struct Trial {
    world: &'static str,
    /// Name and version by its own description.
    describes_itself_as: Option<String>,
    /// Linked and described, with its machine code from the cache: what a start of the daemon takes.
    start_ms: Option<f64>,
    /// The most linear memory that an instance had, and may have.
    memory_bytes: usize,
    memory_limit_bytes: usize,
    time_limit_ms: f64,
    calls: Vec<Calls>,
    problem: Option<String>,
}

/// What a function's calls were like.
#[derive(Debug, Serialize)]
struct Calls {
    function: &'static str,
    count: u32,
    /// On a fresh instance.
    first_us: f64,
    p50_us: f64,
    p99_us: f64,
    /// What it was asked.
    asked: &'static str,
    /// What the last one came to.
    said: String,
}

/// Runs the command and returns the exit code.
pub fn run(args: &Args) -> u8 {
    let report = match examine(args, folder().as_deref()) {
        Ok(report) => report,
        Err(problem) => {
            eprintln!("offpeak: {problem}");
            return USAGE;
        }
    };
    if args.json {
        match serde_json::to_string_pretty(&report) {
            Ok(text) => println!("{text}"),
            Err(error) => {
                eprintln!("offpeak: the report cannot be written as JSON: {error}");
                return NOT_FINE;
            }
        }
    } else {
        print!("{}", report.text());
    }
    if report.is_fine() { FINE } else { NOT_FINE }
}

/// Why the check itself could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum CheckError {
    #[error("{}: {source}; name a file that can be read", .path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{}: {source}; write what would stand in the plugin's config table, as TOML", .path.display())]
    NotToml { path: PathBuf, source: toml::de::Error },
    #[error(transparent)]
    Workbench(#[from] WorkbenchError),
}

fn examine(args: &Args, keep_in: Option<&Path>) -> Result<Report, CheckError> {
    let unreadable = |source| CheckError::Unreadable { path: args.file.clone(), source };
    let bytes = std::fs::metadata(&args.file).map_err(unreadable)?.len();
    let config = settings(args.config.as_deref())?;
    let workbench = Workbench::new(keep_in, 8)?;
    let engine = &workbench.engine;
    let begun = Instant::now();
    let found = workbench.inspect(&name_of(&args.file), Source::File(&args.file));
    let compile_ms = (engine.compilations() > 0).then(|| millis(begun.elapsed()));
    let inspection = match found {
        Ok(inspection) => inspection,
        Err(error) => return Ok(Report::of_no_plugin(args, bytes, &error)),
    };
    let trials = inspection.worlds.iter().map(|world| try_out(args, engine, *world, &config)).collect();
    Ok(Report::new(args, inspection, compile_ms, trials))
}

/// The plugin's settings as JSON.
pub(super) fn settings(file: Option<&Path>) -> Result<String, CheckError> {
    let Some(path) = file else { return Ok("{}".to_owned()) };
    let unreadable = |source| CheckError::Unreadable { path: path.to_owned(), source };
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    let table: serde_json::Value =
        toml::from_str(&text).map_err(|source| CheckError::NotToml { path: path.to_owned(), source })?;
    Ok(table.to_string())
}

/// What the plugin is called, for want of a name in a configuration.
pub(super) fn name_of(file: &Path) -> String {
    file.file_stem().map_or_else(|| "plugin".to_owned(), |stem| stem.to_string_lossy().into_owned())
}

/// A function of a world, and an ordinary call of it.
pub(super) type Function<'a, P> = (&'static str, &'a (dyn Fn(&P, u64) -> Said + Sync));

fn try_out(args: &Args, engine: &Engine, world: WorldName, config: &str) -> Trial {
    let limits = |defaults: Limits| Limits {
        memory_bytes: args.memory.map_or(defaults.memory_bytes, |mib| usize::from(mib) << 20),
        call: args.time_limit.unwrap_or(defaults.call),
        ..defaults
    };
    let policy = Limits { memory_bytes: Limits::router().memory_bytes, ..Limits::provider() };
    let trial = Setting { args, engine, world, config };
    match world {
        WorldName::Router => {
            trial.of::<RouterPlugin>(&limits(Limits::router()), &[("route", &sample::route)])
        }
        WorldName::RetryPolicy => {
            trial.of::<RetryPlugin>(&limits(Limits::router()), &[("judge", &sample::judge)])
        }
        WorldName::Engine => {
            trial.of::<EnginePlugin>(&limits(Limits::provider()), &[("interpret", &sample::interpret)])
        }
        WorldName::CostPolicy => trial.of::<CostPlugin>(&limits(policy), &[("assess", &sample::assess)]),
        WorldName::Provider => trial.of::<ProviderPlugin>(
            &limits(Limits::provider()),
            &[("offers", &sample::offers), ("prepare", &sample::prepare), ("encode-items", &sample::encode)],
        ),
    }
}

struct Setting<'a> {
    args: &'a Args,
    engine: &'a Engine,
    world: WorldName,
    config: &'a str,
}

impl Setting<'_> {
    fn of<P: AnyPlugin>(&self, limits: &Limits, functions: &[Function<'_, P>]) -> Trial {
        let mut trial = Trial {
            world: self.world.as_str(),
            describes_itself_as: None,
            start_ms: None,
            memory_bytes: 0,
            memory_limit_bytes: limits.memory_bytes,
            time_limit_ms: millis(limits.call),
            calls: Vec::new(),
            problem: None,
        };
        for (function, call) in functions {
            // A fresh plugin for each, so that its first call is the first of an instance.
            let begun = Instant::now();
            let plugin = match self.load::<P>(limits) {
                Ok(plugin) => plugin,
                Err(error) => {
                    trial.problem = Some(error.to_string());
                    return trial;
                }
            };
            trial.start_ms.get_or_insert_with(|| millis(begun.elapsed()));
            let (name, version) = plugin.describes_itself_as();
            trial.describes_itself_as.get_or_insert_with(|| format!("{name} {version}"));
            match self.call(&plugin, function, call) {
                Ok(calls) => trial.calls.push(calls),
                Err(error) => {
                    trial.problem.get_or_insert_with(|| error.to_string());
                }
            }
            trial.memory_bytes = trial.memory_bytes.max(plugin.report().memory_bytes);
        }
        trial
    }

    fn load<P: AnyPlugin>(&self, limits: &Limits) -> Result<P, HostError> {
        let file = &self.args.file;
        let (name, source) = (name_of(file), Source::File(file));
        P::load(self.engine, &name, source, self.config.to_owned(), limits.clone(), Clock::System.now().0)
    }

    fn call<P: AnyPlugin>(
        &self,
        plugin: &P,
        function: &'static str,
        call: &dyn Fn(&P, u64) -> Said,
    ) -> Result<Calls, PluginError> {
        let mut taken = Vec::with_capacity(self.args.calls as usize);
        let mut said = String::new();
        for _ in 0..self.args.calls {
            let begun = Instant::now();
            let answer = call(plugin, Clock::System.now().0);
            taken.push(begun.elapsed());
            said = match answer {
                Ok(said) => said,
                // An answer all the same: the plugin has its reasons, and the sample is only one.
                Err(PluginError { kind: PluginErrorKind::Refused(why), .. }) => format!("refused: {why}"),
                Err(error) => return Err(error),
            };
        }
        let first = taken.first().copied().unwrap_or_default();
        taken.sort_unstable();
        let at = |percent: usize| taken.get((taken.len() - 1) * percent / 100).copied().unwrap_or_default();
        Ok(Calls {
            function,
            asked: sample::asked(function),
            count: self.args.calls,
            first_us: micros(first),
            p50_us: micros(at(50)),
            p99_us: micros(at(99)),
            said,
        })
    }
}

impl Report {
    fn new(args: &Args, found: Inspection, compile_ms: Option<f64>, worlds: Vec<Trial>) -> Self {
        let problem = worlds.is_empty().then(|| {
            "it exports the interface of no world that the daemon calls: build it for one of router, provider, \
             engine, retry-policy and cost-policy"
                .to_owned()
        });
        let import = |import: offpeak_host::Import| Import { name: import.name, offered: import.offered };
        Self {
            file: args.file.clone(),
            bytes: found.bytes,
            sha256: found.sha256.to_string(),
            imports: found.imports.into_iter().map(import).collect(),
            exports: found.exports,
            compile_ms,
            worlds,
            problem,
        }
    }

    fn of_no_plugin(args: &Args, bytes: u64, error: &HostError) -> Self {
        Self {
            file: args.file.clone(),
            bytes: usize::try_from(bytes).unwrap_or(usize::MAX),
            sha256: String::new(),
            imports: Vec::new(),
            exports: Vec::new(),
            compile_ms: None,
            worlds: Vec::new(),
            problem: Some(error.to_string()),
        }
    }

    fn is_fine(&self) -> bool {
        self.problem.is_none() && self.worlds.iter().all(|trial| trial.problem.is_none())
    }

    fn text(&self) -> String {
        let mut lines = vec![format!("{}: {} KiB", self.file.display(), self.bytes.div_ceil(1024))];
        if !self.sha256.is_empty() {
            lines.push(format!("  sha256    {}", self.sha256));
            let imports = self.imports.iter().map(|import| {
                let remark = if import.offered { "" } else { " (not offered)" };
                format!("{}{remark}", import.name)
            });
            let imports: Vec<_> = imports.collect();
            let imports = if imports.is_empty() { "nothing".to_owned() } else { imports.join(", ") };
            lines.push(format!("  imports   {imports}"));
            lines.push(match self.compile_ms {
                Some(ms) => format!("  compiled  in {ms:.1} ms, once; the daemon keeps the result, too"),
                None => "  compiled  before, and kept".to_owned(),
            });
        }
        for trial in &self.worlds {
            trial.write(&mut lines);
        }
        if let Some(problem) = &self.problem {
            lines.push(format!("  PROBLEM   {problem}"));
        }
        if self.is_fine() {
            lines.push(
                "It can be taken into use; `sha256` in its section of the configuration pins it.".to_owned(),
            );
        }
        lines.join("\n") + "\n"
    }
}

impl Trial {
    fn write(&self, lines: &mut Vec<String>) {
        let itself = self.describes_itself_as.as_deref().unwrap_or("it has not said what it is");
        lines.push(format!("  world     {} ({itself})", self.world));
        if let Some(start_ms) = self.start_ms {
            lines.push(format!("  started   in {start_ms:.1} ms, from the compiled file"));
            let (used, limit) = (self.memory_bytes.div_ceil(1024), self.memory_limit_bytes >> 20);
            lines.push(format!("  memory    {used} KiB of {limit} MiB an instance"));
        }
        for calls in &self.calls {
            lines.push(format!(
                "  {:<13} {:>8.1} us at first, then p50 {:.1} us, p99 {:.1} us of {} ms; {}",
                calls.function, calls.first_us, calls.p50_us, calls.p99_us, self.time_limit_ms, calls.said
            ));
            lines.push(format!("                asked: {}", calls.asked));
        }
        if let Some(problem) = &self.problem {
            lines.push(format!("  PROBLEM   {problem}"));
        }
    }
}

pub(super) fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e4).round() / 10.0
}

pub(super) fn micros(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e7).round() / 10.0
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn args(component: &[u8], config: Option<&str>) -> (TempDir, Args) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("mine.wasm");
        std::fs::write(&file, component).unwrap();
        let config = config.map(|text| {
            let file = folder.path().join("settings.toml");
            std::fs::write(&file, text).unwrap();
            file
        });
        let time_limit = Some(Duration::from_secs(30));
        (folder, Args { file, config, time_limit, memory: None, calls: 3, json: false })
    }

    fn checked(component: &[u8]) -> Report {
        examine(&args(component, None).1, None).unwrap()
    }

    #[test]
    fn every_bundled_plugin_passes_and_says_what_it_does() {
        for (component, world, said) in [
            (offpeak_bundled::SLA_ROUTER, "router", "chose flex at openai"),
            (offpeak_bundled::STANDARD_RETRY, "retry-policy", "503 passes"),
            // Half of 1,000 times 0.15 and 100 times 0.60 millionths.
            (offpeak_bundled::STANDARD_COST, "cost-policy", "cost acme 0.000105 USD"),
        ] {
            let report = checked(component);
            let text = report.text();
            assert!(report.is_fine(), "{text}");
            assert_eq!(report.worlds.len(), 1);
            assert_eq!(report.worlds[0].world, world);
            assert!(text.contains(said), "{text}");
            assert!(text.contains(&report.sha256) && text.contains("can be taken into use"), "{text}");
        }
        for (name, component) in offpeak_bundled::PROVIDERS {
            let report = checked(component);
            assert!(report.is_fine(), "{name}: {}", report.text());
            let calls: Vec<_> = report.worlds[0].calls.iter().map(|calls| calls.function).collect();
            assert_eq!(calls, ["offers", "prepare", "encode-items"], "{name}");
            let worlds: Vec<_> = report.worlds.iter().map(|trial| trial.world).collect();
            let expected: &[&str] = if name == "vllm" { &["provider", "engine"] } else { &["provider"] };
            assert_eq!(worlds, expected, "{name}");
        }
    }

    #[test]
    fn settings_reach_the_plugin_and_wrong_ones_are_its_problem() {
        let (_folder, args) = args(offpeak_bundled::STANDARD_RETRY, Some("temporary = 7"));
        let report = examine(&args, None).unwrap();
        assert!(!report.is_fine());
        assert!(report.text().contains("PROBLEM"), "{}", report.text());
        assert_eq!(run(&args), NOT_FINE);
    }

    #[test]
    fn what_is_no_plugin_is_said_to_be_none() {
        let report = checked(b"\0asm\x01\0\0\0");
        assert!(report.text().contains("core module"), "{}", report.text());
        // An empty component: version 0x0d, layer 1.
        let report = checked(b"\0asm\x0d\0\x01\0");
        assert!(report.text().contains("no world that the daemon calls"), "{}", report.text());
        let (folder, mut args) = args(b"", None);
        args.file = folder.path().join("nowhere.wasm");
        assert_eq!(run(&args), USAGE);
    }
}
