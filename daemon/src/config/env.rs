//! The environment as a value, so that nothing here reads the process's own.

use std::collections::BTreeMap;
use std::ffi::OsString;

/// Environment variables.
pub trait Env {
    /// The value of a variable; none if it is not set.
    fn get(&self, name: &str) -> Option<OsString>;

    /// The names of all that are set.
    fn names(&self) -> Vec<OsString>;
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

impl Env for BTreeMap<String, String> {
    fn get(&self, name: &str) -> Option<OsString> {
        BTreeMap::get(self, name).map(OsString::from)
    }

    fn names(&self) -> Vec<OsString> {
        self.keys().map(OsString::from).collect()
    }
}
