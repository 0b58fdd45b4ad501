//! What can go wrong: [`HostError`] while a plugin is loaded, [`PluginError`] while it is called.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

/// Why the engine could not start or a plugin could not be loaded. Nothing of the plugin is in use then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// wasmtime refused its settings.
    #[error("the WebAssembly engine cannot start on this machine: {reason}")]
    Engine {
        /// What wasmtime said.
        reason: String,
    },
    /// The thread that ends calls in time could not be started.
    #[error("cannot start the thread that ends plugin calls in time: {0}; allow the process more threads")]
    Ticker(#[source] io::Error),
    /// The folder for compiled plugins cannot be made or read.
    #[error("cannot use {path} as the folder for compiled plugins: {source}; name another one, or none")]
    CacheFolder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The folder for compiled plugins could be changed by somebody else, who could then run code in this process.
    #[error(
        "refusing {path} as the folder for compiled plugins: {why}; name a folder that this user owns, or none"
    )]
    CacheUnsafe {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The plugin's file cannot be read.
    #[error("plugin `{plugin}`: cannot read {path}: {source}; check the path")]
    Read {
        /// The plugin's name in the configuration.
        plugin: Arc<str>,
        /// Its file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is another component than the configuration has pinned. None of its code has run.
    #[error(
        "plugin `{plugin}` is not the component that `sha256` pins: it has {found}, not {pinned}; put the right file \
         there, or look at the new one (`offpeak plugin check`) and pin it"
    )]
    OtherThanPinned {
        /// The plugin's name in the configuration.
        plugin: Arc<str>,
        /// What was expected.
        pinned: String,
        /// What is there.
        found: Arc<str>,
    },
    /// The file is something else.
    #[error("plugin `{plugin}` is not a WebAssembly component: {why}")]
    NotAComponent {
        /// The plugin's name in the configuration.
        plugin: Arc<str>,
        /// What it is instead, and what to do.
        why: String,
    },
    /// It wants something from the daemon that no plugin gets.
    #[error(
        "plugin `{plugin}` imports {imports}, which the daemon does not offer; a plugin of the world `{world}` may \
         import {offered} and nothing else: build it without the rest"
    )]
    UnknownImports {
        /// The plugin's name in the configuration.
        plugin: Arc<str>,
        /// The world that was expected.
        world: &'static str,
        /// What it imports and does not get, with commas.
        imports: String,
        /// What it could import.
        offered: &'static str,
    },
    /// It implements another world than the one its place in the configuration asks for.
    #[error(
        "plugin `{plugin}` does not implement the world `{world}`: it lacks the export {missing}; {found}"
    )]
    WrongWorld {
        /// The plugin's name in the configuration.
        plugin: Arc<str>,
        /// The world that was expected.
        world: &'static str,
        /// The interface that is not there.
        missing: &'static str,
        /// What is there instead, and what to do.
        found: String,
    },
    /// The names fit, the types do not.
    #[error(
        "plugin `{plugin}` was built against other types of the world `{world}`: {reason}; build it again with this \
         daemon's wit/ or SDK"
    )]
    WrongTypes {
        /// The plugin's name in the configuration.
        plugin: Arc<str>,
        /// The world that was expected.
        world: &'static str,
        /// What wasmtime said.
        reason: String,
    },
    /// The plugin's configuration is not the text of a JSON object.
    #[error("plugin `{plugin}`: its configuration is not one JSON object: {source}")]
    Config {
        /// The plugin's name in the configuration.
        plugin: Arc<str>,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// The first instance or the first call failed.
    #[error("{0}; the plugin is not taken into use")]
    FirstCall(#[from] PluginError),
}

/// One call that a plugin did not answer well. The plugin's instance is gone; the next call gets a fresh one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("plugin `{plugin}`, call `{call}`: {kind}")]
pub struct PluginError {
    /// The plugin's name in the configuration.
    pub plugin: Arc<str>,
    /// The function that was called, as the WIT file spells it.
    pub call: &'static str,
    /// What happened.
    pub kind: PluginErrorKind,
}

/// How a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PluginErrorKind {
    /// The plugin crashed.
    #[error("it crashed: {message}; {}", advice(.said.as_deref()))]
    Trap {
        /// The trap, and the last error line that the plugin logged during the call.
        message: String,
        /// That line alone.
        said: Option<String>,
    },
    /// It did not answer in time.
    #[error("it did not answer within {}; make it do less in a call, or raise its time limit", milliseconds(.limit))]
    Timeout {
        /// The time it had.
        limit: Duration,
    },
    /// It wanted more memory than it may have, and gave up.
    #[error("it needs more than its {} MiB of memory; raise its memory limit, or make it use less", .limit_bytes >> 20)]
    OutOfMemory {
        /// What it may have.
        limit_bytes: usize,
    },
    /// What it answered breaks the contract.
    #[error("its answer cannot be used: {0}; the fault is in the plugin, tell its author")]
    BadAnswer(String),
    /// It answered that it cannot do what it was asked; its own words.
    #[error("it refused: {0}")]
    Refused(String),
    /// All its instances are at work.
    #[error("all of its {max} instances are busy; raise its number of instances, or send less at once")]
    Busy {
        /// How many there may be.
        max: u32,
    },
    /// The places for instances of all plugins together are taken.
    #[error(
        "all places for plugin instances are taken; raise the engine's pool of instances, or send less at once"
    )]
    NoPlace,
    /// An instance of it could not be made.
    #[error("no instance of it can be started: {0}")]
    CannotStart(String),
    /// It failed too often and rests.
    #[error("out of use for another {} after repeated failures; see the log for what they were", milliseconds(.rest))]
    OutOfUse {
        /// Until it is tried again.
        rest: Duration,
    },
}

/// Whom a crash concerns.
const fn advice(said: Option<&str>) -> &'static str {
    match said {
        Some(_) => "where that does not say what to mend, tell the author of the plugin",
        None => {
            "tell the author of the plugin, who can have it log the reason before (at the level error): it is then said here"
        }
    }
}

fn milliseconds(duration: &Duration) -> String {
    format!("{} ms", duration.as_millis())
}
