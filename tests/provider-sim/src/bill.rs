//! The bill: what ran, in which mode, and what it cost at list price.

use std::collections::HashMap;

use parking_lot::Mutex;
use serde::Serialize;
use serde::ser::SerializeMap;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::config::Catalog;
use crate::prices::{Mode, PicoDollars};

/// Tokens of one or many requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Usage {
    /// Input tokens, cached ones included.
    pub input_tokens: u64,
    /// The part of the input that the prompt cache had.
    pub cached_tokens: u64,
    /// The part of the input that was written to the prompt cache at a price of its own (Anthropic).
    pub cache_written_tokens: u64,
    /// Output tokens.
    pub output_tokens: u64,
}

impl Usage {
    pub(crate) fn add(&mut self, other: Self) {
        self.input_tokens += other.input_tokens;
        self.cached_tokens += other.cached_tokens;
        self.cache_written_tokens += other.cache_written_tokens;
        self.output_tokens += other.output_tokens;
    }
}

/// One model in one mode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BillLine {
    /// The model.
    pub model: String,
    /// How it was run.
    pub mode: Mode,
    /// Requests that ran and were charged.
    pub requests: u64,
    /// Their tokens.
    #[serde(flatten)]
    pub usage: Usage,
    /// What they cost.
    pub cost: PicoDollars,
    /// What the same tokens cost in standard real time.
    pub realtime_cost: PicoDollars,
}

/// Everything charged so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bill {
    /// One line for each model and mode with at least one request.
    pub lines: Vec<BillLine>,
    /// How often each request ran, when that is tracked.
    pub executions: Executions,
}

impl Bill {
    /// The sum of all lines.
    pub fn total(&self) -> PicoDollars {
        self.lines.iter().map(|line| line.cost).sum()
    }

    /// What the same traffic would have cost all in standard real time.
    pub fn all_realtime(&self) -> PicoDollars {
        self.lines.iter().map(|line| line.realtime_cost).sum()
    }

    /// Requests charged in `mode`, over all models.
    pub fn requests(&self, mode: Mode) -> u64 {
        self.lines.iter().filter(|line| line.mode == mode).map(|line| line.requests).sum()
    }

    /// The cost of `mode`, over all models.
    pub fn cost(&self, mode: Mode) -> PicoDollars {
        self.lines.iter().filter(|line| line.mode == mode).map(|line| line.cost).sum()
    }
}

impl Serialize for Bill {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(5))?;
        map.serialize_entry("unit", "pico-dollars (10^-12 USD)")?;
        map.serialize_entry("total", &self.total())?;
        map.serialize_entry("all_realtime", &self.all_realtime())?;
        map.serialize_entry("lines", &self.lines)?;
        map.serialize_entry("executions", &self.executions)?;
        map.end()
    }
}

/// Names a request by what it asks for: the first 16 bytes of SHA-256 over endpoint and canonical body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExecutionKey(pub [u8; 16]);

/// Fields that say how a request travels, not what it asks for.
const TRAVEL: [&str; 7] =
    ["stream", "stream_options", "service_tier", "metadata", "background", "background_options", "store"];

/// The key of a request to `endpoint` (such as `/v1/embeddings`).
///
/// Order of fields and white space do not matter, nor do the fields that only say how the request travels (`stream`,
/// `stream_options`, `service_tier`, `metadata`, `background`, `background_options`, `store`): a request that ran in
/// a batch and again in real time ran twice. `None` when the body is not a JSON object.
pub fn execution_key(endpoint: &str, body: &[u8]) -> Option<ExecutionKey> {
    let Value::Object(mut fields) = serde_json::from_slice(body).ok()? else { return None };
    for name in TRAVEL {
        fields.remove(name);
    }
    let mut text = String::with_capacity(body.len() + 64);
    text.push_str(endpoint);
    canonical(&Value::Object(fields), &mut text);
    let digest = Sha256::digest(text.as_bytes());
    let mut key = [0; 16];
    key.copy_from_slice(&digest[..16]);
    Some(ExecutionKey(key))
}

/// JSON with sorted keys. Sorted here because a map's own order depends on features of `serde_json` that any crate of
/// the build may switch on.
fn canonical(value: &Value, text: &mut String) {
    match value {
        Value::Object(fields) => {
            let mut names: Vec<_> = fields.iter().collect();
            names.sort_by_key(|(name, _)| *name);
            text.push('{');
            for (name, field) in names {
                text.push_str(&Value::from(name.as_str()).to_string());
                text.push(':');
                canonical(field, text);
                text.push(',');
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for item in items {
                canonical(item, text);
                text.push(',');
            }
            text.push(']');
        }
        simple => text.push_str(&simple.to_string()),
    }
}

/// How often each request ran.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Executions {
    counts: HashMap<ExecutionKey, u32>,
    untracked: u64,
}

impl Executions {
    /// More distinct requests than this are counted but not told apart (32 bytes each).
    const MAX: usize = 2_000_000;

    fn record(&mut self, key: ExecutionKey) {
        if self.counts.len() >= Self::MAX && !self.counts.contains_key(&key) {
            self.untracked += 1;
            return;
        }
        *self.counts.entry(key).or_insert(0) += 1;
    }

    /// How often the request with this key ran.
    pub fn of(&self, key: ExecutionKey) -> u32 {
        self.counts.get(&key).copied().unwrap_or(0)
    }

    /// How many different requests ran.
    pub fn distinct(&self) -> usize {
        self.counts.len()
    }

    /// All requests that ran, with how often, in no order.
    pub fn all(&self) -> impl Iterator<Item = (ExecutionKey, u32)> {
        self.counts.iter().map(|(key, times)| (*key, *times))
    }

    /// The requests that ran more than once, with how often, in the order of their keys.
    pub fn repeated(&self) -> Vec<(ExecutionKey, u32)> {
        let mut twice: Vec<_> = self.counts.iter().filter(|(_, n)| **n > 1).map(|(k, n)| (*k, *n)).collect();
        twice.sort_unstable();
        twice
    }

    /// Executions of requests that came after two million different ones and are not told apart.
    pub fn untracked(&self) -> u64 {
        self.untracked
    }
}

impl Serialize for Executions {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let repeated: Vec<_> = self.repeated().into_iter().map(|(key, n)| (hex(key), n)).collect();
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry("distinct", &self.distinct())?;
        map.serialize_entry("repeated", &repeated)?;
        map.serialize_entry("untracked", &self.untracked)?;
        map.end()
    }
}

fn hex(key: ExecutionKey) -> String {
    format!("{:032x}", u128::from_be_bytes(key.0))
}

impl ExecutionKey {
    /// Reads a key as the bill and `/sim/executions` write it.
    pub fn from_hex(text: &str) -> Option<Self> {
        u128::from_str_radix(text, 16).ok().map(|key| Self(key.to_be_bytes()))
    }
}

/// Every request that ran, by its key, with how often.
pub(crate) struct EachExecution(pub(crate) Executions);

impl Serialize for EachExecution {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.all().map(|(key, times)| (hex(key), times)))
    }
}

/// Where charges go. A call is one short critical section without allocation, unless executions are tracked.
#[derive(Debug)]
pub(crate) struct Ledger {
    tracks: bool,
    sums: Mutex<Sums>,
}

#[derive(Debug)]
struct Sums {
    by_model: Vec<[Sum; Mode::ALL.len()]>,
    executions: Executions,
}

#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    requests: u64,
    usage: Usage,
}

impl Ledger {
    pub(crate) fn new(models: usize, tracks: bool) -> Self {
        let by_model = vec![[Sum::default(); Mode::ALL.len()]; models];
        Self { tracks, sums: Mutex::new(Sums { by_model, executions: Executions::default() }) }
    }

    /// The key under which this request's execution is counted; `None` when nothing is tracked.
    pub(crate) fn key(&self, endpoint: &str, body: &[u8]) -> Option<ExecutionKey> {
        if self.tracks { execution_key(endpoint, body) } else { None }
    }

    /// Charges one request that ran.
    pub(crate) fn charge(&self, model: usize, mode: Mode, usage: Usage, key: Option<ExecutionKey>) {
        let mut sums = self.sums.lock();
        if let Some(sum) = sums.by_model.get_mut(model).and_then(|modes| modes.get_mut(mode as usize)) {
            sum.requests += 1;
            sum.usage.add(usage);
        }
        if let Some(key) = key {
            sums.executions.record(key);
        }
    }

    pub(crate) fn bill(&self, catalog: &Catalog) -> Bill {
        let sums = self.sums.lock();
        let mut lines = Vec::new();
        for (model, modes) in catalog.models().iter().zip(&sums.by_model) {
            for (mode, sum) in Mode::ALL.into_iter().zip(modes) {
                if sum.requests > 0 {
                    lines.push(BillLine {
                        model: model.id.clone(),
                        mode,
                        requests: sum.requests,
                        usage: sum.usage,
                        cost: model.prices.cost(mode, sum.usage),
                        realtime_cost: model.prices.cost(Mode::Realtime, sum.usage),
                    });
                }
            }
        }
        Bill { lines, executions: sums.executions.clone() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_key_sees_what_is_asked_not_how_it_travels() {
        let key = |body: &str| execution_key("/v1/chat/completions", body.as_bytes()).unwrap();
        let one = key(r#"{"model":"m","messages":[{"role":"user","content":"x"}]}"#);
        assert_eq!(one, key(r#"{"stream":true,"messages":[{"content":"x", "role":"user"}], "model":"m"}"#));
        assert_ne!(one, key(r#"{"model":"m","messages":[{"role":"user","content":"y"}]}"#));
        assert_eq!(execution_key("/v1/embeddings", b"[]"), None);
    }

    proptest! {
        #[test]
        fn the_bill_is_the_sum_of_its_items(
            items in prop::collection::vec((0_usize..3, 0_usize..6, [0_u64..9_000, 0_u64..9_000, 0_u64..9_000, 0_u64..9_000]), 0..50)
        ) {
            let names = ["gpt-5-mini", "claude-haiku-5-5", "text-embedding-3-small"];
            let catalog = Catalog::new(names.iter().map(ToString::to_string));
            let ledger = Ledger::new(3, false);
            let mut expected = PicoDollars(0);
            for (model, mode, [cached, written, fresh, output]) in items.iter().copied() {
                let usage = Usage {
                    input_tokens: cached + written + fresh,
                    cached_tokens: cached,
                    cache_written_tokens: written,
                    output_tokens: output,
                };
                ledger.charge(model, Mode::ALL[mode], usage, None);
                expected = expected + catalog.models()[model].prices.cost(Mode::ALL[mode], usage);
            }
            let bill = ledger.bill(&catalog);
            prop_assert_eq!(bill.total(), expected);
            prop_assert_eq!(bill.lines.iter().map(|l| l.requests).sum::<u64>(), items.len() as u64);
        }
    }
}
