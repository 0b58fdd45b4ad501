//! Counted tokens.

use serde::{Deserialize, Serialize};

use super::json::Out;

/// What Anthropic's API counts. In a stream later counts replace earlier ones.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Usage {
    #[serde(default)]
    input_tokens: Option<u64>,
    #[serde(default)]
    output_tokens: Option<u64>,
    #[serde(default)]
    cache_creation_input_tokens: Option<u64>,
    #[serde(default)]
    cache_read_input_tokens: Option<u64>,
    #[serde(default)]
    output_tokens_details: Option<OutputTokens>,
    #[serde(default)]
    service_tier: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct OutputTokens {
    #[serde(default)]
    thinking_tokens: u64,
}

impl Usage {
    /// Takes over what `later` knows.
    pub(super) fn update(&mut self, later: Self) {
        let Self {
            input_tokens,
            output_tokens,
            cache_creation_input_tokens,
            cache_read_input_tokens,
            output_tokens_details,
            service_tier,
        } = later;
        self.input_tokens = input_tokens.or(self.input_tokens);
        self.output_tokens = output_tokens.or(self.output_tokens);
        self.cache_creation_input_tokens = cache_creation_input_tokens.or(self.cache_creation_input_tokens);
        self.cache_read_input_tokens = cache_read_input_tokens.or(self.cache_read_input_tokens);
        self.output_tokens_details = output_tokens_details.or_else(|| self.output_tokens_details.take());
        self.service_tier = service_tier.or_else(|| self.service_tier.take());
    }

    /// Writes OpenAI's `usage`. Its prompt includes what was read from the cache and written to it, Anthropic's does not.
    pub(super) fn write(&self, out: &mut Out) {
        let cached = self.cache_read_input_tokens.unwrap_or(0);
        let cache_written = self.cache_creation_input_tokens.unwrap_or(0);
        let prompt = self.input_tokens.unwrap_or(0).saturating_add(cached).saturating_add(cache_written);
        let completion = self.output_tokens.unwrap_or(0);
        out.raw("{\"prompt_tokens\":");
        out.number(prompt);
        out.member("completion_tokens");
        out.number(completion);
        out.member("total_tokens");
        out.number(prompt.saturating_add(completion));
        out.member("prompt_tokens_details");
        out.raw("{\"cached_tokens\":");
        out.number(cached);
        out.member("cache_write_tokens");
        out.number(cache_written);
        out.raw("}");
        if let Some(details) = &self.output_tokens_details {
            out.member("completion_tokens_details");
            out.raw("{\"reasoning_tokens\":");
            out.number(details.thinking_tokens);
            out.raw("}");
        }
        out.raw("}");
    }

    /// The class of service that was used, in OpenAI's words, as far as they have one.
    pub(super) fn service_tier(&self) -> Option<&'static str> {
        match self.service_tier.as_deref() {
            Some("standard") => Some("default"),
            Some("priority") => Some("priority"),
            _ => None,
        }
    }
}
