//! What differs between inference servers: what to read, what their numbers are called, and what they serve, in one table.

use serde::Deserialize;

/// The servers by the names that the configuration gives them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KindName {
    /// vLLM.
    #[default]
    Vllm,
    /// `SGLang`.
    Sglang,
    /// Text Generation Inference.
    Tgi,
    /// The server of llama.cpp.
    Llamacpp,
    /// Ollama.
    Ollama,
}

impl KindName {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Vllm, Self::Sglang, Self::Tgi, Self::Llamacpp, Self::Ollama];

    /// Its row of the table.
    pub fn kind(self) -> &'static Kind {
        match self {
            Self::Vllm => &VLLM,
            Self::Sglang => &SGLANG,
            Self::Tgi => &TGI,
            Self::Llamacpp => &LLAMACPP,
            Self::Ollama => &OLLAMA,
        }
    }
}

/// One server's words.
#[derive(Debug)]
pub struct Kind {
    /// For messages.
    pub name: &'static str,
    /// Where it says whether it works.
    pub health: &'static str,
    /// What 503 means there: it loads a model (true), or it is broken.
    pub unavailable_is_loading: bool,
    /// Where its metrics are, if it has any, and their names.
    pub metrics: Option<Metrics>,
    /// What it serves.
    pub endpoints: &'static [&'static str],
    /// Endpoints whose body takes `priority`; lower goes first.
    pub prioritised: &'static [&'static str],
    /// Requests that it works on at once, where that is usual and neither its metrics nor the configuration tell.
    pub usual_max_running: Option<u32>,
}

/// Where metrics are, and what they are called. Of several names the first that is there counts; of one name with several
/// labels (models, engines), all are added up, except shares, of which the largest counts.
#[derive(Debug)]
pub struct Metrics {
    /// Their path.
    pub path: &'static str,
    /// A gauge: requests that are worked on.
    pub running: &'static [&'static str],
    /// A gauge: requests that wait within the server.
    pub waiting: &'static [&'static str],
    /// A gauge: the share of the cache that is in use, 0 to 1.
    pub cache: &'static [&'static str],
    /// A counter.
    pub prompt_tokens: &'static [&'static str],
    /// A counter.
    pub generated_tokens: &'static [&'static str],
    /// A gauge that is 1 while it is awake, with the label that it must have.
    pub awake: Option<(&'static str, &'static str)>,
}

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const EMBEDDINGS: &str = "/v1/embeddings";
const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";

/// vLLM; names from 0.32, and the older name of the cache's use.
const VLLM: Kind = Kind {
    name: "vllm",
    health: "/health",
    unavailable_is_loading: false,
    metrics: Some(Metrics {
        path: "/metrics",
        running: &["vllm:num_requests_running"],
        waiting: &["vllm:num_requests_waiting"],
        cache: &["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"],
        prompt_tokens: &["vllm:prompt_tokens_total"],
        generated_tokens: &["vllm:generation_tokens_total"],
        awake: Some(("vllm:engine_sleep_state", "sleep_state=\"awake\"")),
    }),
    endpoints: &[CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, MESSAGES],
    prioritised: &[CHAT, COMPLETIONS, RESPONSES],
    usual_max_running: None,
};

/// `SGLang` 0.5, with `--enable-metrics`.
const SGLANG: Kind = Kind {
    name: "sglang",
    metrics: Some(Metrics {
        path: "/metrics",
        running: &["sglang:num_running_reqs"],
        waiting: &["sglang:num_queue_reqs"],
        cache: &["sglang:token_usage"],
        prompt_tokens: &["sglang:prompt_tokens_total"],
        generated_tokens: &["sglang:generation_tokens_total"],
        awake: None,
    }),
    ..VLLM
};

/// TGI. Tokens are told by its histograms of requests that ended.
const TGI: Kind = Kind {
    name: "tgi",
    metrics: Some(Metrics {
        path: "/metrics",
        running: &["tgi_batch_current_size"],
        waiting: &["tgi_queue_size"],
        cache: &[],
        prompt_tokens: &["tgi_request_input_length_sum"],
        generated_tokens: &["tgi_request_generated_tokens_sum"],
        awake: None,
    }),
    endpoints: &[CHAT],
    prioritised: &[],
    ..VLLM
};

/// The server of llama.cpp, with `--metrics`.
const LLAMACPP: Kind = Kind {
    name: "llamacpp",
    unavailable_is_loading: true,
    metrics: Some(Metrics {
        path: "/metrics",
        running: &["llamacpp:requests_processing"],
        waiting: &["llamacpp:requests_deferred"],
        cache: &["llamacpp:kv_cache_usage_ratio"],
        prompt_tokens: &["llamacpp:prompt_tokens_total"],
        generated_tokens: &["llamacpp:tokens_predicted_total"],
        awake: None,
    }),
    endpoints: &[CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES],
    prioritised: &[],
    ..VLLM
};

/// Ollama: it has no metrics. `OLLAMA_NUM_PARALLEL` is 1 to 4 unless it is set.
const OLLAMA: Kind = Kind {
    name: "ollama",
    health: "/api/version",
    metrics: None,
    endpoints: &[CHAT, COMPLETIONS, EMBEDDINGS],
    prioritised: &[],
    usual_max_running: Some(4),
    ..VLLM
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_agrees_with_itself() {
        for name in KindName::ALL {
            let kind = name.kind();
            let configured: KindName = serde_json::from_str(&format!("\"{}\"", kind.name)).unwrap();
            assert_eq!(configured, name);
            assert!(kind.health.starts_with('/'));
            assert!(kind.prioritised.iter().all(|endpoint| kind.endpoints.contains(endpoint)));
            assert!(
                kind.metrics.is_some() || kind.usual_max_running.is_some(),
                "nothing would bound {}",
                kind.name
            );
        }
    }
}
