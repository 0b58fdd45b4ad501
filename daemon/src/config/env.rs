//! The environment as a value, so that nothing here reads the process's own.

use std::collections::BTreeMap;
use std::ffi::OsString;

/// Environment variables.
pub trait Env {
    /// The value of a variable; none if it is not set.
    fn get(&self, name: &str) -> Option<OsString>;

    /// The names of all that are set.
    fn names(&self) -> Vec<OsString>;

    /// Whether secrets are at hand: their variables and files. If not, each has something in its place.
    fn has_secrets(&self) -> bool {
        true
    }
}

/// The variables of this process. Given to [`Config::load`](super::Config::load) by `main`.
#[derive(Debug, Clone, Copy)]
pub struct ProcessEnv;

impl Env for ProcessEnv {
    fn get(&self, name: &str) -> Option<OsString> {
        std::env::var_os(name)
    }

    fn names(&self) -> Vec<OsString> {
        std::env::vars_os().map(|(name, _)| name).collect()
    }
}

/// The variables of this process, but no secret: for a look at the configuration where the secrets are not.
#[derive(Debug, Clone, Copy)]
pub struct WithoutSecrets;

impl Env for WithoutSecrets {
    fn get(&self, name: &str) -> Option<OsString> {
        ProcessEnv.get(name)
    }

    fn names(&self) -> Vec<OsString> {
        ProcessEnv.names()
    }

    fn has_secrets(&self) -> bool {
        false
    }
}

impl Env for BTreeMap<String, String> {
    fn get(&self, name: &str) -> Option<OsString> {
        BTreeMap::get(self, name).map(OsString::from)
    }

    fn names(&self) -> Vec<OsString> {
        self.keys().map(OsString::from).collect()
    }
}
