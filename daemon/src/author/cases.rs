//! `offpeak plugin test`: golden cases, which are what goes in and what must come out, against a component.
//!
//! Nothing is sent anywhere. What a provider would have answered stands in the case.

mod compare;
mod file;
mod policies;
mod provider;
mod router;
mod words;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args as ClapArgs;
use offpeak_host::{
    AnyPlugin, CostPlugin, EnginePlugin, HostError, Limits, PluginError, ProviderPlugin, RetryPlugin,
    RouterPlugin, Source, WorldName,
};
use serde::Serialize;
use serde_json::{Value, json};

use self::compare::{Difference, differences};
use self::file::{Case, CaseFile};
use super::build::components;
use super::compiled::{Workbench, WorkbenchError, folder};
use super::{FAILED, USAGE};

/// Runs golden cases.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// The plugin's folder, or a component.
    #[arg(default_value = ".")]
    plugin: PathBuf,
    /// A file of cases, TOML or JSON, or a folder of them [default: `cases` in the plugin's folder].
    #[arg(long, value_name = "PATH")]
    cases: Option<PathBuf>,
    /// The time limit of a call [default: 50ms, as in the daemon].
    #[arg(long, value_parser = humantime::parse_duration)]
    time_limit: Option<Duration>,
    /// Only cases whose name has this in it.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Print JSON, for scripts.
    #[arg(long)]
    json: bool,
}

/// Why no case was run.
#[derive(Debug, thiserror::Error)]
pub enum TestError {
    /// A file or folder cannot be read.
    #[error("{}: {source}; name a file or folder that can be read", .path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nothing has been built.
    #[error("there is no component in {}: run `offpeak plugin build` first, or name one", .0.display())]
    NotBuilt(PathBuf),
    /// More has been built than one.
    #[error("there are several components in {}: name one of them", .0.display())]
    Several(PathBuf),
    /// There are no cases.
    #[error(
        "there are no cases in {}: write one into a .toml or .json file there (sdk/README.md shows how), or name another place \
         with --cases", .0.display()
    )]
    NoCases(PathBuf),
    /// None has the name.
    #[error("no case has \"{0}\" in its name")]
    NoneNamed(String),
    /// A file is not one of cases.
    #[error("{}: {problem}", .path.display())]
    NotCases {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// It is not known which world is meant.
    #[error("{}: the component has the worlds {worlds}: say which is meant, such as world = \"router\" at the top", .path.display())]
    WhichWorld {
        /// The file.
        path: PathBuf,
        /// What there is.
        worlds: String,
    },
    /// The component is none.
    #[error(transparent)]
    Host(#[from] HostError),
    /// There is nothing to try it on.
    #[error(transparent)]
    Workbench(#[from] WorkbenchError),
}

/// What became of all cases.
#[derive(Debug, Serialize)]
struct Report {
    component: String,
    passed: usize,
    failed: usize,
    cases: Vec<Verdict>,
}

/// What became of one.
#[derive(Debug, Serialize)]
struct Verdict {
    file: PathBuf,
    name: String,
    passed: bool,
    /// The case could not be run as it stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    /// What came out, where that is not what should have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    wrong: Vec<Wrong>,
}

#[derive(Debug, Serialize)]
struct Wrong {
    /// Which step, if there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<usize>,
    differences: Vec<Difference>,
    /// All of it.
    gave: Value,
}

/// What a call gave, and what it should have given.
struct Given {
    step: Option<usize>,
    expected: Value,
    gave: Value,
}

/// A case cannot be run as it stands; the text says why.
type CaseProblem = String;

/// Runs the command and returns the exit code.
pub fn run(args: &Args) -> u8 {
    let report = match found(args).and_then(|(component, cases)| try_all(&component, &cases, args.time_limit))
    {
        Ok(report) => report,
        Err(error) => {
            eprintln!("offpeak: {error}");
            return USAGE;
        }
    };
    if args.json {
        println!("{}", json!(report));
    } else {
        print!("{}", report.text());
    }
    if report.failed == 0 { 0 } else { FAILED }
}

/// The component and the cases that are meant.
fn found(args: &Args) -> Result<(PathBuf, Vec<CaseFile>), TestError> {
    let unreadable = |source| TestError::Unreadable { path: args.plugin.clone(), source };
    let is_folder = fs::metadata(&args.plugin).map_err(unreadable)?.is_dir();
    let component = if is_folder { built(&args.plugin.join("build"))? } else { args.plugin.clone() };
    if is_folder && let Some(source) = newer_source(&args.plugin, &component) {
        eprintln!(
            "offpeak: {} is newer than {}, which is tested: run `offpeak plugin build` to test what it says",
            source.display(),
            component.display()
        );
    }
    // A component lies in the folder `build` of its plugin's.
    let home =
        if is_folder { Some(args.plugin.as_path()) } else { component.parent().and_then(Path::parent) };
    let beside = home.unwrap_or_else(|| Path::new("")).join("cases");
    let place = args.cases.clone().unwrap_or(beside);
    let mut cases = file::read_all(&place)?;
    if let Some(only) = &args.only {
        for file in &mut cases {
            file.cases.retain(|case| case.name.contains(only));
        }
        if cases.iter().all(|file| file.cases.is_empty()) {
            return Err(TestError::NoneNamed(only.clone()));
        }
    }
    Ok((component, cases))
}

/// A file of a plugin that was changed after its component was built, and so is not in it.
fn newer_source(folder: &Path, component: &Path) -> Option<PathBuf> {
    const SOURCES: [&str; 8] = ["rs", "py", "js", "ts", "go", "c", "h", "wit"];
    let built = fs::metadata(component).ok()?.modified().ok()?;
    let is_newer = |path: &PathBuf| {
        let is_source = path.extension().is_some_and(|end| SOURCES.iter().any(|source| end == *source));
        is_source && fs::metadata(path).and_then(|found| found.modified()).is_ok_and(|at| at > built)
    };
    [folder.to_owned(), folder.join("src")]
        .iter()
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flat_map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())))
        .find(is_newer)
}

/// The one component that was built.
fn built(folder: &Path) -> Result<PathBuf, TestError> {
    let mut found = components(folder).into_iter();
    match (found.next(), found.next()) {
        (None, _) => Err(TestError::NotBuilt(folder.to_owned())),
        (Some(component), None) => Ok(component),
        (Some(_), Some(_)) => Err(TestError::Several(folder.to_owned())),
    }
}

fn try_all(component: &Path, files: &[CaseFile], time_limit: Option<Duration>) -> Result<Report, TestError> {
    let bytes =
        fs::read(component).map_err(|source| TestError::Unreadable { path: component.to_owned(), source })?;
    let name = component.file_stem().map_or_else(|| "plugin".into(), |stem| stem.to_string_lossy());
    let verdicts = Bench::new(&name, &bytes, time_limit, folder().as_deref())?.try_all(files)?;
    Ok(Report::new(component.display().to_string(), verdicts))
}

/// A component on the test bench.
struct Bench<'a> {
    workbench: Workbench,
    name: &'a str,
    component: &'a [u8],
    /// Instead of the daemon's, for a call.
    time_limit: Option<Duration>,
    worlds: Vec<WorldName>,
}

impl<'a> Bench<'a> {
    fn new(
        name: &'a str,
        component: &'a [u8],
        time_limit: Option<Duration>,
        keep_in: Option<&Path>,
    ) -> Result<Self, TestError> {
        let workbench = Workbench::new(keep_in, 8)?;
        let worlds = workbench.inspect(name, Source::Bytes(component))?.worlds;
        Ok(Self { workbench, name, component, time_limit, worlds })
    }

    fn try_all(&self, files: &[CaseFile]) -> Result<Vec<Verdict>, TestError> {
        let mut verdicts = Vec::new();
        for file in files {
            let world = self.world(file)?;
            verdicts.extend(file.cases.iter().map(|case| self.verdict(world, file, case)));
        }
        Ok(verdicts)
    }

    /// The world that a file's cases are for.
    fn world(&self, file: &CaseFile) -> Result<WorldName, TestError> {
        let named = |world: &&WorldName| file.world.as_ref().is_none_or(|name| name == world.as_str());
        let mut fitting = self.worlds.iter().filter(named);
        if let (Some(world), None) = (fitting.next(), fitting.next()) {
            return Ok(*world);
        }
        let worlds: Vec<_> = self.worlds.iter().map(|world| world.as_str()).collect();
        Err(TestError::WhichWorld { path: file.path.clone(), worlds: worlds.join(", ") })
    }

    fn verdict(&self, world: WorldName, file: &CaseFile, case: &Case) -> Verdict {
        let told = |problem: Option<String>, wrong: Vec<Wrong>| Verdict {
            file: file.path.clone(),
            name: case.name.clone(),
            passed: problem.is_none() && wrong.is_empty(),
            problem,
            wrong,
        };
        match self.try_one(world, case) {
            Err(problem) => told(Some(problem), Vec::new()),
            Ok(given) => told(None, given.into_iter().filter_map(Given::judged).collect()),
        }
    }

    fn try_one(&self, world: WorldName, case: &Case) -> Result<Vec<Given>, CaseProblem> {
        let policy = Limits { memory_bytes: Limits::router().memory_bytes, ..Limits::provider() };
        match world {
            WorldName::Router => {
                self.with::<RouterPlugin>(case, &Limits::router(), |plugin| router::run(plugin, case))
            }
            WorldName::RetryPolicy => {
                self.with::<RetryPlugin>(case, &Limits::router(), |plugin| policies::judge(plugin, case))
            }
            WorldName::CostPolicy => {
                self.with::<CostPlugin>(case, &policy, |plugin| policies::assess(plugin, case))
            }
            WorldName::Engine => self
                .with::<EnginePlugin>(case, &Limits::provider(), |plugin| policies::interpret(plugin, case)),
            WorldName::Provider => {
                self.with::<ProviderPlugin>(case, &Limits::provider(), |plugin| provider::run(plugin, case))
            }
        }
    }

    /// A fresh plugin with the case's settings. One that refuses them has given an error, which may be what is expected.
    fn with<P: AnyPlugin>(
        &self,
        case: &Case,
        limits: &Limits,
        run: impl FnOnce(&P) -> Result<Vec<Given>, CaseProblem>,
    ) -> Result<Vec<Given>, CaseProblem> {
        let limits = Limits { call: self.time_limit.unwrap_or(limits.call), ..limits.clone() };
        let source = Source::Bytes(self.component);
        let now_ms = case.now_ms;
        match P::load(&self.workbench.engine, self.name, source, case.config.to_string(), limits, now_ms) {
            Ok(plugin) => run(&plugin),
            Err(HostError::FirstCall(error)) => Ok(vec![Given {
                step: None,
                expected: case.gives.clone().unwrap_or_else(|| json!("an answer")),
                gave: failure(&error),
            }]),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// A call that failed, as cases say it: `{ error = "…" }`.
fn failure(error: &PluginError) -> Value {
    json!({ "error": format!("{}: {}", error.call, error.kind) })
}

/// What a call came to.
fn outcome<T>(answer: Result<T, PluginError>, show: impl FnOnce(T) -> Value) -> Value {
    match answer {
        Ok(value) => show(value),
        Err(error) => failure(&error),
    }
}

impl Given {
    /// What is wrong with it, if anything.
    fn judged(self) -> Option<Wrong> {
        let differences = differences(&self.expected, &self.gave);
        (!differences.is_empty()).then_some(Wrong { step: self.step, differences, gave: self.gave })
    }
}

impl Report {
    fn new(component: String, cases: Vec<Verdict>) -> Self {
        let passed = cases.iter().filter(|case| case.passed).count();
        Self { component, passed, failed: cases.len() - passed, cases }
    }

    fn text(&self) -> String {
        let mut lines = Vec::new();
        for case in &self.cases {
            let word = if case.passed { "passed" } else { "FAILED" };
            lines.push(format!("{word}  {}: {}", case.file.display(), case.name));
            lines.extend(case.problem.iter().map(|problem| format!("        {problem}")));
            for wrong in &case.wrong {
                wrong.write(&mut lines);
            }
        }
        let all = self.cases.len();
        lines.push(format!("{} of {all} cases of {} passed", self.passed, self.component));
        lines.join("\n") + "\n"
    }
}

impl Wrong {
    fn write(&self, lines: &mut Vec<String>) {
        let step = self.step.map(|step| format!("step {step}, ")).unwrap_or_default();
        for Difference { at, expected, got } in &self.differences {
            let got = got.as_ref().map_or_else(|| "nothing".to_owned(), Value::to_string);
            lines.push(format!("        {step}{at}"));
            lines.push(format!("          - {expected}"));
            lines.push(format!("          + {got}"));
        }
        lines.push(format!("        {step}all of it: {}", self.gave));
    }
}

#[cfg(test)]
mod tests;
