//! What the daemon offers to every plugin: its log and its clock. (The third thing, the configuration, is in
//! [`config`](crate::config).)
//!
//! Outside of a component, which is to say in a plugin's unit tests, log lines go to stderr and the clock stands at 0.

#[cfg(target_family = "wasm")]
use crate::bindings::base::offpeak::plugin::host;

/// How much a log line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For whoever writes the plugin.
    Trace,
    /// For whoever looks for a fault.
    Debug,
    /// What happens seldom and is normal.
    Info,
    /// What somebody should look at one day.
    Warn,
    /// What somebody must look at.
    Error,
}

/// Writes a line to the daemon's log, marked with the plugin's name. The daemon cuts long lines and drops floods.
///
/// [`trace!`](crate::trace), [`debug!`](crate::debug), [`info!`](crate::info), [`warn!`](crate::warn) and
/// [`error!`](crate::error) are shorter.
pub fn log(level: Level, message: &str) {
    #[cfg(target_family = "wasm")]
    host::log(
        match level {
            Level::Trace => host::Level::Trace,
            Level::Debug => host::Level::Debug,
            Level::Info => host::Level::Info,
            Level::Warn => host::Level::Warn,
            Level::Error => host::Level::Error,
        },
        message,
    );
    #[cfg(not(target_family = "wasm"))]
    eprintln!("{level:?}: {message}");
}

/// Milliseconds since 1970-01-01 UTC as the daemon sees it. It stands still during one call.
pub fn now_ms() -> u64 {
    #[cfg(target_family = "wasm")]
    return host::now();
    #[cfg(not(target_family = "wasm"))]
    0
}

/// The plugin's configuration table as the text of a JSON object.
pub(crate) fn config_text() -> String {
    #[cfg(target_family = "wasm")]
    return host::config();
    #[cfg(not(target_family = "wasm"))]
    String::from("{}")
}

/// Makes panics visible: the last words of a plugin that traps go to the daemon's log.
#[doc(hidden)]
pub fn log_panics() {
    #[cfg(target_family = "wasm")]
    {
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| {
            std::panic::set_hook(Box::new(|info| log(Level::Error, &format!("the plugin panicked: {info}"))));
        });
    }
}

/// Writes a line to the daemon's log at level trace; takes what `format!` takes.
#[macro_export]
macro_rules! trace {
    ($($argument:tt)+) => { $crate::log($crate::Level::Trace, &::std::format!($($argument)+)) };
}

/// Writes a line to the daemon's log at level debug; takes what `format!` takes.
#[macro_export]
macro_rules! debug {
    ($($argument:tt)+) => { $crate::log($crate::Level::Debug, &::std::format!($($argument)+)) };
}

/// Writes a line to the daemon's log at level info; takes what `format!` takes.
#[macro_export]
macro_rules! info {
    ($($argument:tt)+) => { $crate::log($crate::Level::Info, &::std::format!($($argument)+)) };
}

/// Writes a line to the daemon's log at level warn; takes what `format!` takes.
#[macro_export]
macro_rules! warn {
    ($($argument:tt)+) => { $crate::log($crate::Level::Warn, &::std::format!($($argument)+)) };
}

/// Writes a line to the daemon's log at level error; takes what `format!` takes.
#[macro_export]
macro_rules! error {
    ($($argument:tt)+) => { $crate::log($crate::Level::Error, &::std::format!($($argument)+)) };
}
