//! What a plugin may call: `log`, `config` and `now` of the interface `offpeak:plugin/host`, and nothing else.
//!
//! Linked by hand and not by `bindgen!`, because a function linked by hand can look at a string in the guest's memory:
//! a log line that nobody wants, or that is a megabyte long, is then never copied.

use std::sync::Arc;

use parking_lot::Mutex;
use wasmtime::{
    StoreContextMut,
    component::{ComponentType, Lift, Linker, WasmStr},
};

use crate::limits::{LOG_LINE_BYTES, LOG_LINES_A_SECOND, Limits, Meter};
use crate::patience::Patience;

/// The interface that the daemon offers, as a component names it.
pub(crate) const HOST: &str = "offpeak:plugin/host@0.1.0";

/// Interfaces that a component may import: [`HOST`], and `types`, which holds no functions.
pub(crate) const OFFERED_NAMES: [&str; 2] = [HOST, "offpeak:plugin/types@0.1.0"];

/// The same, for a message.
pub(crate) const OFFERED: &str = "`offpeak:plugin/host@0.1` and `offpeak:plugin/types@0.1`";

/// What the instances of one plugin share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) name: Arc<str>,
    config_json: String,
    log_budget: Mutex<LogBudget>,
}

impl Shared {
    pub(crate) fn new(name: Arc<str>, config_json: String) -> Self {
        Self { name, config_json, log_budget: Mutex::new(LogBudget::default()) }
    }

    /// The same name and settings.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        self.name == other.name && self.config_json == other.config_json
    }
}

/// What belongs to one instance.
#[derive(Debug)]
pub(crate) struct State {
    shared: Arc<Shared>,
    /// What `now` answers, in milliseconds since 1970; set before each call.
    pub(crate) now_ms: u64,
    pub(crate) meter: Meter,
    /// How long the call may take; set before each call.
    pub(crate) patience: Patience,
    /// The last error line of the call: a crash is often explained by it.
    pub(crate) last_error: Option<String>,
}

impl State {
    pub(crate) fn new(shared: &Arc<Shared>, limits: &Limits, now_ms: u64) -> Self {
        Self {
            shared: Arc::clone(shared),
            now_ms,
            meter: Meter::new(limits),
            patience: Patience::default(),
            last_error: None,
        }
    }
}

/// `level` of the interface `host`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ComponentType, Lift)]
#[component(enum)]
#[repr(u8)]
#[expect(dead_code, reason = "the derived code makes the variants from the guest's number")]
enum Level {
    #[component(name = "trace")]
    Trace,
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warn")]
    Warn,
    #[component(name = "error")]
    Error,
}

/// Offers the host interface to components.
pub(crate) fn link(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    let mut host = linker.instance(HOST)?;
    host.func_wrap("log", log)?;
    host.func_wrap("config", |store: StoreContextMut<'_, State>, (): ()| {
        Ok((store.data().shared.config_json.clone(),))
    })?;
    host.func_wrap("now", |store: StoreContextMut<'_, State>, (): ()| Ok((store.data().now_ms,)))
}

fn log(mut store: StoreContextMut<'_, State>, (level, message): (Level, WasmStr)) -> wasmtime::Result<()> {
    if !(level == Level::Error || is_wanted(level)) {
        return Ok(());
    }
    let line = one_line(&message.to_str(&store)?);
    let now_ms = store.data().now_ms;
    let shared = &store.data().shared;
    if let Some(suppressed) = shared.log_budget.lock().take(now_ms) {
        emit(level, &shared.name, &line, suppressed);
    }
    if level == Level::Error {
        store.data_mut().last_error = Some(line);
    }
    Ok(())
}

fn is_wanted(level: Level) -> bool {
    match level {
        Level::Trace => tracing::enabled!(target: "plugin", tracing::Level::TRACE),
        Level::Debug => tracing::enabled!(target: "plugin", tracing::Level::DEBUG),
        Level::Info => tracing::enabled!(target: "plugin", tracing::Level::INFO),
        Level::Warn => tracing::enabled!(target: "plugin", tracing::Level::WARN),
        Level::Error => tracing::enabled!(target: "plugin", tracing::Level::ERROR),
    }
}

fn emit(level: Level, plugin: &str, line: &str, suppressed: u64) {
    // Lines that were left out are only worth a field when there are any.
    let suppressed = (suppressed > 0).then_some(suppressed);
    match level {
        Level::Trace => tracing::trace!(target: "plugin", plugin, suppressed, "{line}"),
        Level::Debug => tracing::debug!(target: "plugin", plugin, suppressed, "{line}"),
        Level::Info => tracing::info!(target: "plugin", plugin, suppressed, "{line}"),
        Level::Warn => tracing::warn!(target: "plugin", plugin, suppressed, "{line}"),
        Level::Error => tracing::error!(target: "plugin", plugin, suppressed, "{line}"),
    }
}

/// A message as one line of bounded length, without control characters that could forge another line.
pub(crate) fn one_line(message: &str) -> String {
    let end = message.floor_char_boundary(LOG_LINE_BYTES);
    let (kept, rest) = message.split_at(end);
    let mut line: String = kept.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if !rest.is_empty() {
        line.push_str("...");
    }
    line
}

/// Allows [`LOG_LINES_A_SECOND`] lines in each second of the daemon's clock.
#[derive(Debug, Default)]
struct LogBudget {
    second: u64,
    used: u32,
    suppressed: u64,
}

impl LogBudget {
    /// Allows one line, and tells how many were suppressed since the last one that was allowed.
    fn take(&mut self, now_ms: u64) -> Option<u64> {
        let second = now_ms / 1000;
        if second != self.second {
            self.second = second;
            self.used = 0;
        }
        if self.used < LOG_LINES_A_SECOND {
            self.used += 1;
            Some(std::mem::take(&mut self.suppressed))
        } else {
            self.suppressed += 1;
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_lines_beyond_the_rate_are_counted_and_told_later() {
        let mut budget = LogBudget::default();
        for _ in 0..LOG_LINES_A_SECOND {
            assert_eq!(budget.take(5_000), Some(0));
        }
        assert_eq!(budget.take(5_001), None);
        assert_eq!(budget.take(5_999), None);
        assert_eq!(budget.take(6_000), Some(2));
        assert_eq!(budget.take(6_000), Some(0));
    }

    #[test]
    fn a_line_is_cut_at_a_character_and_holds_no_line_break() {
        assert_eq!(one_line("a\nb\u{1b}[31mc"), "a b [31mc");
        let long = "\u{e4}".repeat(LOG_LINE_BYTES);
        let line = one_line(&format!("x{long}"));
        assert!(line.len() <= LOG_LINE_BYTES + 3, "{}", line.len());
        assert!(line.ends_with("\u{e4}..."));
    }
}
