//! Files of cases.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::TestError;
use super::words::Moment;

/// A file's cases.
#[derive(Debug)]
pub(super) struct CaseFile {
    pub(super) path: PathBuf,
    /// The world that they are for; none if the component has one only.
    pub(super) world: Option<String>,
    pub(super) cases: Vec<Case>,
}

/// The keys of a case whatever its world, for whoever misspelt one.
const CASE_KEYS: &str = "; besides these, a case has `name`, `config`, `now` and `gives`";

/// What goes in, and what must come out.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) name: String,
    /// The plugin's own table.
    pub(super) config: Value,
    /// The daemon's clock.
    pub(super) now_ms: u64,
    /// What must come out; none where each step has its own.
    pub(super) gives: Option<Value>,
    /// What goes in, as the world has it.
    pub(super) input: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    world: Option<String>,
    #[serde(default)]
    config: Map<String, Value>,
    #[serde(default)]
    now: Moment,
    /// What all cases have that do not say otherwise, such as the candidates of a router.
    #[serde(default)]
    all: Map<String, Value>,
    #[serde(default)]
    case: Vec<RawCase>,
}

#[derive(Deserialize)]
struct RawCase {
    name: String,
    config: Option<Map<String, Value>>,
    now: Option<Moment>,
    gives: Option<Value>,
    #[serde(flatten)]
    input: Map<String, Value>,
}

/// The cases of a file, or of all `.toml` and `.json` files of a folder in the order of their names.
pub(super) fn read_all(place: &Path) -> Result<Vec<CaseFile>, TestError> {
    let unreadable = |source| TestError::Unreadable { path: place.to_owned(), source };
    let no_cases = || TestError::NoCases(place.to_owned());
    if !place.exists() {
        return Err(no_cases());
    }
    let mut files = if place.is_dir() {
        let entries = fs::read_dir(place).map_err(unreadable)?;
        let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>();
        let is_cases = |path: &PathBuf| path.extension().is_some_and(|end| end == "toml" || end == "json");
        paths.map_err(unreadable)?.into_iter().filter(is_cases).collect()
    } else {
        vec![place.to_owned()]
    };
    files.sort();
    let cases = files.into_iter().map(read).collect::<Result<Vec<_>, _>>()?;
    if cases.iter().all(|file| file.cases.is_empty()) { Err(no_cases()) } else { Ok(cases) }
}

fn read(path: PathBuf) -> Result<CaseFile, TestError> {
    let text =
        fs::read_to_string(&path).map_err(|source| TestError::Unreadable { path: path.clone(), source })?;
    let is_json = path.extension().is_some_and(|end| end == "json");
    parse(&text, is_json, path.clone()).map_err(|problem| TestError::NotCases { path, problem })
}

/// The cases in a file's text.
pub(super) fn parse(text: &str, is_json: bool, path: PathBuf) -> Result<CaseFile, String> {
    let raw: RawFile = if is_json {
        serde_json::from_str(text).map_err(|error| error.to_string())?
    } else {
        toml::from_str(text).map_err(|error| error.to_string())?
    };
    let RawFile { world, config, now, all, case } = raw;
    let cases = case.into_iter().map(|case| {
        let mut input = all.clone();
        input.extend(case.input);
        Case {
            name: case.name,
            config: Value::Object(case.config.unwrap_or_else(|| config.clone())),
            now_ms: case.now.unwrap_or(now).0,
            gives: case.gives,
            input,
        }
    });
    Ok(CaseFile { path, world, cases: cases.collect() })
}

impl Case {
    /// What goes in, as a world has it.
    pub(super) fn input<'de, T: Deserialize<'de>>(&self) -> Result<T, String> {
        T::deserialize(Value::Object(self.input.clone())).map_err(|error| {
            let error = error.to_string();
            let is_own = |key: &String| error.starts_with(&format!("unknown field `{key}`"));
            let also = if self.input.keys().any(is_own) { CASE_KEYS } else { "" };
            error + also
        })
    }

    /// What must come out.
    pub(super) fn gives(&self) -> Result<Value, String> {
        self.gives.clone().ok_or_else(|| "it does not say what must come out: add `gives`".to_owned())
    }
}
