//! What an engine has done, and how vLLM's `/metrics` tells it.

use std::fmt::Write;

use crate::engine::histogram::{Histogram, float};
use crate::engine::model::EngineModel;

const TOKENS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0];
const STEP_TOKENS: &[f64] =
    &[1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];
const PARAMS_N: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];
const PREEMPTIONS: &[f64] = &[1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0];
const FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
const GAPS: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
const SPANS: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
];

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    Stop,
    Length,
    Abort,
}

/// A sequence that ended, with its times in microseconds.
pub(super) struct Ended {
    pub(super) reason: Reason,
    pub(super) prompt_tokens: u64,
    pub(super) generated_tokens: u64,
    /// The tokens that were to be generated.
    pub(super) limit: u64,
    pub(super) preempted: u64,
    pub(super) arrived: u64,
    pub(super) started: u64,
    pub(super) first_token: u64,
    pub(super) at: u64,
}

/// Sums over an engine's life.
#[derive(Debug, Clone)]
pub struct EngineStats {
    /// Tokens of prompts read; those read again after a preemption do not count.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Microseconds in which at least one sequence ran.
    pub busy_us: u64,
    /// Sequences that were put back for want of cache.
    pub preemptions: u64,
    /// Calls refused because too many sequences waited.
    pub rejected_requests: u64,
    /// Calls refused because too many tokens waited.
    pub rejected_tokens: u64,
    /// Sequences that ended: complete, at their limit, and aborted.
    pub ended: [u64; 3],
    step_tokens: Histogram,
    first_token: Histogram,
    gaps: Histogram,
    by_request: [Histogram; 13],
}

impl Default for EngineStats {
    fn default() -> Self {
        let h = Histogram::new;
        Self {
            prompt_tokens: 0,
            generated_tokens: 0,
            busy_us: 0,
            preemptions: 0,
            rejected_requests: 0,
            rejected_tokens: 0,
            ended: [0; 3],
            step_tokens: h(
                "vllm:iteration_tokens_total",
                "Histogram of number of tokens per engine_step.",
                STEP_TOKENS,
            ),
            first_token: h(
                "vllm:time_to_first_token_seconds",
                "Histogram of time to first token in seconds.",
                FIRST_TOKEN,
            ),
            gaps: h("vllm:inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", GAPS),
            by_request: [
                h("vllm:request_prompt_tokens", "Number of prefill tokens processed.", TOKENS),
                h("vllm:request_generation_tokens", "Number of generation tokens processed.", TOKENS),
                h(
                    "vllm:request_max_num_generation_tokens",
                    "Histogram of maximum number of requested generation tokens.",
                    TOKENS,
                ),
                h("vllm:request_params_n", "Histogram of the n request parameter.", PARAMS_N),
                h("vllm:request_params_max_tokens", "Histogram of the max_tokens request parameter.", TOKENS),
                h(
                    "vllm:request_time_per_output_token_seconds",
                    "Histogram of time_per_output_token_seconds per request.",
                    GAPS,
                ),
                h("vllm:e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", SPANS),
                h(
                    "vllm:request_queue_time_seconds",
                    "Histogram of time spent in WAITING phase for request.",
                    SPANS,
                ),
                h(
                    "vllm:request_inference_time_seconds",
                    "Histogram of time spent in RUNNING phase for request.",
                    SPANS,
                ),
                h(
                    "vllm:request_prefill_time_seconds",
                    "Histogram of time spent in PREFILL phase for request.",
                    SPANS,
                ),
                h(
                    "vllm:request_decode_time_seconds",
                    "Histogram of time spent in DECODE phase for request.",
                    SPANS,
                ),
                h(
                    "vllm:request_num_preemptions",
                    "Histogram of the number of times a request was preempted.",
                    PREEMPTIONS,
                ),
                h(
                    "vllm:request_prefill_kv_computed_tokens",
                    "Histogram of new KV tokens computed during prefill (excluding cached tokens).",
                    TOKENS,
                ),
            ],
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "spans of time and counts are far below 2^52")]
fn number(value: u64) -> f64 {
    value as f64
}

fn seconds(us: u64) -> f64 {
    number(us) / 1e6
}

impl EngineStats {
    pub(super) fn note_steps(&mut self, us: u64, tokens: u64, times: u64) {
        self.busy_us += us * times;
        self.step_tokens.observe(number(tokens), times);
    }

    pub(super) fn note_first_token(&mut self, us: u64) {
        self.first_token.observe(seconds(us), 1);
    }

    pub(super) fn note_gaps(&mut self, us: u64, times: u64) {
        self.gaps.observe(seconds(us), times);
    }

    pub(super) fn note_end(&mut self, it: &Ended) {
        if let Some(count) = self.ended.get_mut(it.reason as usize) {
            *count += 1;
        }
        let span = |from: u64, to: u64| seconds(to.saturating_sub(from));
        let decode = span(it.first_token, it.at);
        let values = [
            number(it.prompt_tokens),
            number(it.generated_tokens),
            number(it.limit),
            1.0,
            number(it.limit),
            decode / number(it.generated_tokens.saturating_sub(1).max(1)),
            span(it.arrived, it.at),
            span(it.arrived, it.started),
            span(it.started, it.at),
            span(it.started, it.first_token),
            decode,
            number(it.preempted),
            number(it.prompt_tokens),
        ];
        for (histogram, value) in self.by_request.iter_mut().zip(values) {
            histogram.observe(value, 1);
        }
    }
}

/// Writes metrics one family at a time.
struct Writer<'a> {
    text: String,
    model: &'a str,
    created: &'a str,
}

impl Writer<'_> {
    fn put(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing into a string cannot fail.
        self.text.write_fmt(line).ok();
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.put(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    /// A gauge with one line for each set of further labels (`,name="value"`).
    fn gauge(&mut self, name: &str, help: &str, rows: &[(&str, f64)]) {
        self.head(name, "gauge", help);
        for (more, value) in rows {
            let (model, value) = (self.model, float(*value));
            self.put(format_args!("{name}{{engine=\"0\",model_name=\"{model}\"{more}}} {value}\n"));
        }
    }

    /// A counter `{name}_total`, and when it was created. `first` are labels that go before the model's name.
    fn counter(&mut self, name: &str, help: &str, rows: &[(Labels<'_>, u64)]) {
        let (total, created) = (format!("{name}_total"), format!("{name}_created"));
        self.head(&total, "counter", help);
        for (labels, value) in rows {
            let labels = labels.text(self.model);
            self.put(format_args!("{total}{{{labels}}} {value}.0\n"));
        }
        self.head(&created, "gauge", help);
        for (labels, _) in rows {
            let (labels, at) = (labels.text(self.model), self.created);
            self.put(format_args!("{created}{{{labels}}} {at}\n"));
        }
    }
}

/// The labels of a counter, in alphabetical order as the client library writes them.
#[derive(Clone, Copy)]
enum Labels<'a> {
    /// `engine`, `model_name`
    Plain,
    /// `engine`, `model_name`, `source`
    Source(&'a str),
    /// `engine`, `finished_reason`, `model_name`
    Reason(&'a str),
    /// `model_name`, `reason`
    Rejection(&'a str),
}

impl Labels<'_> {
    fn text(self, model: &str) -> String {
        match self {
            Self::Plain => format!("engine=\"0\",model_name=\"{model}\""),
            Self::Source(source) => format!("engine=\"0\",model_name=\"{model}\",source=\"{source}\""),
            Self::Reason(reason) => {
                format!("engine=\"0\",finished_reason=\"{reason}\",model_name=\"{model}\"")
            }
            Self::Rejection(reason) => format!("model_name=\"{model}\",reason=\"{reason}\""),
        }
    }
}

/// The text of `/metrics`: vLLM's families, with their names, types and labels. What the simulator does not have (a
/// prefix cache, other tiers of cache, several engines) stays at zero. `created` is when the engine was, in seconds.
pub(super) fn metrics(engine: &EngineModel, model: &str, created: f64) -> String {
    let created = float(created);
    let model = model.replace('\\', "\\\\").replace('"', "\\\"");
    let mut text = Writer { text: String::with_capacity(48 << 10), model: &model, created: &created };
    gauges(&mut text, engine);
    counters(&mut text, engine.stats());
    let (first, second) = ("engine=\"0\"", format!("model_name=\"{model}\""));
    let stats = engine.stats();
    let several = [&stats.step_tokens, &stats.first_token, &stats.gaps];
    for histogram in several.into_iter().chain(&stats.by_request) {
        histogram.write(&mut text.text, first, &second, &created);
    }
    let blocks = engine.options().kv_cache_tokens / 16;
    text.head("vllm:cache_config_info", "gauge", "Information of the LLMEngine CacheConfig");
    text.put(format_args!(
        "vllm:cache_config_info{{block_size=\"16\",cache_dtype=\"auto\",enable_prefix_caching=\"False\",engine=\"0\",\
         num_gpu_blocks=\"{blocks}\"}} 1.0\n"
    ));
    text.text
}

fn gauges(text: &mut Writer<'_>, engine: &EngineModel) {
    let (running, waiting) = (number(engine.running() as u64), number(engine.waiting() as u64));
    let running_help = "Number of requests in model execution batches.";
    text.gauge("vllm:num_requests_running", running_help, &[("", running)]);
    let waiting_help = "Number of requests waiting to be processed.";
    text.gauge("vllm:num_requests_waiting", waiting_help, &[("", waiting)]);
    text.gauge(
        "vllm:num_requests_waiting_by_reason",
        "Number of waiting requests by reason. Reason labels: 'capacity' = waiting for scheduling capacity; 'deferred' \
         = deferred by transient constraints (LoRA budget, KV transfer, blocked status). Sum of all reasons equals \
         vllm:num_requests_waiting.",
        &[(",reason=\"capacity\"", waiting), (",reason=\"deferred\"", 0.0)],
    );
    text.gauge(
        "vllm:engine_sleep_state",
        "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is awake; weights_offloaded = \
         1 means sleep level 1; discard_all = 1 means sleep level 2.",
        &[
            (",sleep_state=\"awake\"", 1.0),
            (",sleep_state=\"weights_offloaded\"", 0.0),
            (",sleep_state=\"discard_all\"", 0.0),
        ],
    );
    let cache_help = "KV-cache usage. 1 means 100 percent usage.";
    text.gauge("vllm:kv_cache_usage_perc", cache_help, &[("", engine.cache_usage())]);
}

fn counters(text: &mut Writer<'_>, stats: &EngineStats) {
    let plain = |value| [(Labels::Plain, value)];
    for (name, what) in [
        ("flops", "floating point operations"),
        ("read_bytes", "bytes read from memory"),
        ("write_bytes", "bytes written to memory"),
    ] {
        let help = format!("Estimated number of {what} per GPU (for Model Flops Utilization calculations).");
        text.counter(&format!("vllm:estimated_{name}_per_gpu"), &help, &plain(0));
    }
    for (name, of) in [
        ("prefix_cache", "Prefix cache"),
        ("external_prefix_cache", "External prefix cache"),
        ("mm_cache", "Multi-modal cache"),
    ] {
        let unit = if name == "mm_cache" { "items" } else { "tokens" };
        let queries = format!("{of} queries, in terms of number of queried {unit}.");
        let queried = if name == "prefix_cache" { stats.prompt_tokens } else { 0 };
        text.counter(&format!("vllm:{name}_queries"), &queries, &plain(queried));
        let hits = format!("{of} hits, in terms of number of cached {unit}.");
        text.counter(&format!("vllm:{name}_hits"), &hits, &plain(0));
    }
    let preemption = "Cumulative number of preemption from the engine.";
    text.counter("vllm:num_preemptions", preemption, &plain(stats.preemptions));
    text.counter("vllm:prompt_tokens", "Number of prefill tokens processed.", &plain(stats.prompt_tokens));
    let source = Labels::Source;
    text.counter(
        "vllm:prompt_tokens_by_source",
        "Number of prompt tokens by source.",
        &[
            (source("local_compute"), stats.prompt_tokens),
            (source("local_cache_hit"), 0),
            (source("external_kv_transfer"), 0),
        ],
    );
    let cached = "Number of cached prompt tokens (local + external).";
    text.counter("vllm:prompt_tokens_cached", cached, &plain(0));
    let tiers = ["device", "host", "p2p", "disk", "external_unspecified"].map(|tier| (source(tier), 0));
    text.counter(
        "vllm:prompt_tokens_cached_by_source",
        "Prefix-cache hit tokens by the cache tier that supplied them.",
        &tiers,
    );
    let generated = "Number of generation tokens processed.";
    text.counter("vllm:generation_tokens", generated, &plain(stats.generated_tokens));
    let [stop, length, abort] = stats.ended;
    let rows = [("stop", stop), ("length", length), ("abort", abort), ("error", 0), ("repetition", 0)];
    let rows = rows.map(|(reason, count)| (Labels::Reason(reason), count));
    text.counter("vllm:request_success", "Count of successfully processed requests.", &rows);
    text.counter(
        "vllm:admission_rejections",
        "Number of admission attempts rejected by a queue limit, by reason.",
        &[
            (Labels::Rejection("max_num_queued_reqs"), stats.rejected_requests),
            (Labels::Rejection("max_num_queued_tokens"), stats.rejected_tokens),
        ],
    );
}
