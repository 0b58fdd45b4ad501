//! The configuration: a TOML file, environment variables over it, and the checked tree that they make.
//!
//! The way from text to tree: `node` keeps what was written and where; `overrides` puts environment variables into
//! it; `section` and `field` read it key by key and note whatever is wrong; `check` (with `access` and
//! `backend`) says which keys there are, with their defaults and bounds; `tree` is the result. Secrets come from
//! environment variables or files only. Nothing here reads the process's environment by itself or prints.
//!
//! Relative paths are relative to the working directory.

use std::io;
use std::path::{Path, PathBuf};

mod access;
mod amounts;
mod backend;
mod check;
mod describe;
mod env;
mod error;
mod field;
mod node;
mod overrides;
mod patterns;
mod routes;
mod secret;
mod section;
#[cfg(test)]
mod tests;
mod tree;

pub use describe::describe;
pub use env::{Env, ProcessEnv, WithoutSecrets};
pub use error::{ConfigErrors, Place, Problem, Problems};
pub use patterns::ModelPatterns;
pub use secret::{Secret, SecretOrigin};
pub use tree::{
    Access, Alerts, Backend, Config, Costs, DeferredLimits, Delivery, Engine, Lanes, Limits, Log, LogFormat,
    ModelLimits, NamedRouter, OnRouterFailure, PluginLimits, PluginSource, Plugins, Policy, ProviderPlugin,
    QueueLimits, Route, RouteAnswer, RouterPlugin, Server, Store, Tenant, TlsFiles,
};

/// The variable that names the configuration file.
const CONFIG_VARIABLE: &str = "OFFPEAK_CONFIG";

/// Where the file is looked for if nothing names it.
const USUAL_PLACES: [&str; 2] = ["./offpeak.toml", "/etc/offpeak/offpeak.toml"];

impl Config {
    /// Reads the file at `path`; without a path, that of the variable `OFFPEAK_CONFIG`, else `./offpeak.toml`, else
    /// `/etc/offpeak/offpeak.toml`. No file is needed where environment variables name a backend.
    pub fn load(path: Option<&Path>, env: &impl Env) -> Result<Self, ConfigErrors> {
        Self::load_from(path, env, &USUAL_PLACES.map(PathBuf::from))
    }

    fn load_from(path: Option<&Path>, env: &impl Env, usual: &[PathBuf]) -> Result<Self, ConfigErrors> {
        let (name, text) = find(path, env, usual, &["OFFPEAK_BACKENDS__"])?;
        Self::from_text(&name, &text, env)
    }

    /// Reads a text; `name` is what errors call it.
    pub fn from_text(name: &str, text: &str, env: &impl Env) -> Result<Self, ConfigErrors> {
        let name = name.into();
        let invalid = |problems| ConfigErrors::Invalid(Problems::new(problems));
        let mut table = node::parse(&name, text).map_err(invalid)?;
        let mut problems = overrides::apply(&mut table, env);
        let context = section::Context::new(name, env);
        match check::config(section::Section::root(&context, &table)) {
            Ok(config) if problems.is_empty() => Ok(config),
            Ok(_) => Err(invalid(problems)),
            Err(more) => {
                problems.extend(more);
                Err(invalid(problems))
            }
        }
    }
}

/// The store's folder, as the configuration names it that [`Config::load`] would read. Nothing else of it is looked at: who
/// looks after the folder needs no secret, and need not mend the rest first.
pub fn store_folder(path: Option<&Path>, env: &impl Env) -> Result<PathBuf, ConfigErrors> {
    let (name, text) =
        find(path, env, &USUAL_PLACES.map(PathBuf::from), &["OFFPEAK_BACKENDS__", "OFFPEAK_STORE__"])?;
    folder_in(&name, &text, env)
}

fn folder_in(name: &str, text: &str, env: &impl Env) -> Result<PathBuf, ConfigErrors> {
    let name = name.into();
    let invalid = |problems| ConfigErrors::Invalid(Problems::new(problems));
    let mut table = node::parse(&name, text).map_err(invalid)?;
    let mut problems = overrides::apply(&mut table, env);
    problems.retain(|problem| problem.path.split('.').next() == Some("store"));
    let context = section::Context::new(name, env);
    let store = check::store(section::Section::root(&context, &table).section("store"));
    problems.extend(context.take_findings().0);
    if problems.is_empty() { Ok(store.folder) } else { Err(invalid(problems)) }
}

/// The name and the text of the configuration. No file is needed where a variable's name begins with one of `enough`.
fn find(
    path: Option<&Path>,
    env: &impl Env,
    usual: &[PathBuf],
    enough: &[&str],
) -> Result<(String, String), ConfigErrors> {
    let from_variable = env.get(CONFIG_VARIABLE).filter(|value| !value.is_empty());
    let named = match (path, from_variable) {
        (Some(path), _) => Some((path.to_owned(), "the argument")),
        (None, Some(value)) => Some((value.into(), "the environment variable OFFPEAK_CONFIG")),
        (None, None) => usual.iter().find(|path| path.exists()).map(|path| (path.clone(), "its permissions")),
    };
    match named {
        Some((path, named_by)) => match std::fs::read_to_string(&path) {
            Ok(text) => Ok((path.to_string_lossy().into_owned(), text)),
            Err(source) => Err(ConfigErrors::Unreadable { path, named_by, source: not_text(source) }),
        },
        None if overrides::variables(env)
            .iter()
            .any(|name| enough.iter().any(|begin| name.starts_with(begin))) =>
        {
            Ok(("the environment".to_owned(), String::new()))
        }
        None => Err(ConfigErrors::NotFound { tried: usual.to_vec() }),
    }
}

/// The usual text for this is about streams.
fn not_text(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::InvalidData {
        io::Error::new(error.kind(), "it is not UTF-8")
    } else {
        error
    }
}
