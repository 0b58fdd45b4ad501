//! What one plugin may use up, and the guard that holds it to that.

use std::time::Duration;

use wasmtime::ResourceLimiter;

/// Size of a batch's state, as `wit/provider.wit` promises it.
pub const BATCH_STATE_BYTES: usize = 64 << 10;

/// Size of what is kept between two parts of a streamed answer, as `wit/provider.wit` promises it.
pub const STREAM_STATE_BYTES: usize = 1 << 20;

/// Longest log line, in bytes; the rest of a longer one is cut off.
pub const LOG_LINE_BYTES: usize = 2 << 10;

/// Log lines that all instances of a plugin together may write in a second.
pub const LOG_LINES_A_SECOND: u32 = 50;

/// A component larger than this is not loaded; the largest language runtimes are about 20 MB.
pub const COMPONENT_BYTES: u64 = 128 << 20;

/// Core instances in one component: the shims and runtimes of other languages need a few dozen.
const CORE_INSTANCES: usize = 64;

/// Linear memories in one component.
const MEMORIES: usize = 8;

/// Tables in one component.
const TABLES: usize = 64;

/// The limits of one plugin, for each of its calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Linear memory of one instance, in bytes.
    pub memory_bytes: usize,
    /// Elements of its tables together.
    pub table_elements: usize,
    /// Time for a call on the way of a request: `route`, `offers`, `limits`, `prepare`, and a part of a streamed answer. This and
    /// the next are meant as work: what loops ends after a quarter as long again, and a call whose thread the machine has no time for
    /// is waited for.
    pub call: Duration,
    /// Time for a call off that way (`batch-step`, `encode-items`, `decode-results`), for a whole body, and for the start
    /// of an instance with its first `describe`.
    pub step: Duration,
    /// Bytes that one call may hand to the daemon: its answer, or one log line.
    pub answer_bytes: usize,
    /// Instances at work at once; a call beyond that is [`Busy`](crate::PluginErrorKind::Busy).
    pub max_instances: u32,
    /// Instances that are kept warm between calls.
    pub warm_instances: u32,
}

impl Limits {
    /// What a router gets where the configuration says nothing: 64 MiB, 50 ms a call, 1 MiB an answer.
    pub fn router() -> Self {
        Self {
            memory_bytes: 64 << 20,
            table_elements: 100_000,
            call: Duration::from_millis(50),
            step: Duration::from_secs(2),
            answer_bytes: 1 << 20,
            max_instances: 64,
            warm_instances: 16,
        }
    }

    /// What a provider gets where the configuration says nothing: 128 MiB, 50 ms a call, 2 s a step, 64 MiB an answer
    /// (a chunk of encoded items or decoded results).
    pub fn provider() -> Self {
        Self {
            memory_bytes: 128 << 20,
            answer_bytes: 64 << 20,
            max_instances: 32,
            warm_instances: 8,
            ..Self::router()
        }
    }
}

/// Counts what an instance holds and refuses what goes beyond its limits.
#[derive(Debug)]
pub(crate) struct Meter {
    memory_limit: usize,
    table_limit: usize,
    memory_bytes: usize,
    table_elements: usize,
    refused_memory: bool,
}

impl Meter {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            memory_limit: limits.memory_bytes,
            table_limit: limits.table_elements,
            memory_bytes: 0,
            table_elements: 0,
            refused_memory: false,
        }
    }

    /// Linear memory of the instance.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// It asked for memory and did not get it.
    pub(crate) fn refused_memory(&self) -> bool {
        self.refused_memory
    }

    /// It holds so much that it had better be replaced before it fails a call: guests never give memory back.
    pub(crate) fn is_bloated(&self) -> bool {
        self.memory_bytes > self.memory_limit / 2 || self.refused_memory
    }
}

impl ResourceLimiter for Meter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let total = self.memory_bytes.saturating_sub(current).saturating_add(desired);
        if total > self.memory_limit {
            self.refused_memory = true;
            tracing::debug!(total, limit = self.memory_limit, "refused memory to a plugin");
            return Ok(false);
        }
        let fits_declared = maximum.is_none_or(|maximum| desired <= maximum);
        if fits_declared {
            self.memory_bytes = total;
        }
        Ok(fits_declared)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let total = self.table_elements.saturating_sub(current).saturating_add(desired);
        let allowed = total <= self.table_limit && maximum.is_none_or(|maximum| desired <= maximum);
        if allowed {
            self.table_elements = total;
        } else {
            tracing::debug!(total, limit = self.table_limit, "refused table elements to a plugin");
        }
        Ok(allowed)
    }

    fn instances(&self) -> usize {
        CORE_INSTANCES
    }

    fn tables(&self) -> usize {
        TABLES
    }

    fn memories(&self) -> usize {
        MEMORIES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_counted_over_all_memories_of_an_instance() {
        let mut meter = Meter::new(&Limits { memory_bytes: 100, ..Limits::router() });
        assert!(meter.memory_growing(0, 30, None).unwrap());
        assert!(meter.memory_growing(0, 30, None).unwrap());
        assert!(meter.is_bloated(), "60 of 100");
        assert!(!meter.refused_memory());
        assert!(!meter.memory_growing(30, 71, None).unwrap());
        assert!(meter.refused_memory());
        assert!(meter.memory_growing(30, 70, None).unwrap(), "a refusal takes nothing");
    }

    #[test]
    fn table_elements_are_counted_over_all_tables() {
        let mut meter = Meter::new(&Limits { table_elements: 10, ..Limits::router() });
        assert!(meter.table_growing(0, 6, None).unwrap());
        assert!(!meter.table_growing(0, 5, None).unwrap());
        assert!(meter.table_growing(0, 4, None).unwrap());
    }
}
