//! The plugin's table in the daemon's configuration.

use serde::Deserialize;

use crate::kind::{Kind, KindName};

/// All settings; each has a default.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Which server it is.
    pub engine: KindName,
    /// Requests that it works on at once (vLLM's `--max-num-seqs`, slots of llama.cpp, `OLLAMA_NUM_PARALLEL`). Where it is
    /// not told, what waits within the engine shows that it has enough.
    pub max_running: Option<u32>,
    /// Requests that may wait within the engine, so that it is never short of work; in hundredths of those that run. Ten by
    /// default, and at least one request.
    pub queue_percent: u32,
    /// How full its cache may be, in thousandths, for more deferred work to go.
    pub cache_permille_max: u32,
    /// The `priority` of deferred requests, where the server schedules by priority: higher goes later. It is an error
    /// where it does not, so there is no default.
    pub priority: Option<i64>,
    /// What deferred work costs beside real-time work, in thousandths: how it compares with offers of other backends.
    pub idle_price_permille: u32,
    /// How long an answer usually takes, in milliseconds: at once, and in idle time.
    pub standard_usual_ms: u64,
    /// The same for deferred work.
    pub idle_usual_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            engine: KindName::Vllm,
            max_running: None,
            queue_percent: 10,
            cache_permille_max: 950,
            priority: None,
            idle_price_permille: 100,
            standard_usual_ms: 5_000,
            idle_usual_ms: 60_000,
        }
    }
}

impl Config {
    /// What is known of the server.
    pub fn kind(&self) -> &'static Kind {
        self.engine.kind()
    }

    /// Requests that it works on at once, as far as it is known.
    pub fn max_running(&self) -> Option<u32> {
        self.max_running.or_else(|| self.kind().usual_max_running)
    }
}
