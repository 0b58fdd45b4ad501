//! The APIs that clients speak: where they call, what they send, and where an answer's text is.

use bytes::Bytes;
use provider_sim::{ExecutionKey, execution_key};
use serde_json::{Value, json};

/// The most tokens that an answer of Anthropic's API may have here.
const MAX_TOKENS: u32 = 1000;

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Api {
    /// OpenAI's chat completions.
    Chat,
    /// OpenAI's responses.
    Responses,
    /// Anthropic's messages.
    Messages,
}

impl Api {
    pub(crate) const ALL: [Self; 3] = [Self::Chat, Self::Responses, Self::Messages];

    /// Where models are called.
    pub(crate) const fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Responses => "/v1/responses",
            Self::Messages => "/v1/messages",
        }
    }

    /// The API that is called by this path.
    pub(crate) fn at(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|api| api.path() == path)
    }

    pub(crate) const fn model(self) -> &'static str {
        match self {
            Self::Chat | Self::Responses => "gpt-4o-mini",
            Self::Messages => "claude-haiku-5-5",
        }
    }

    /// A request's body.
    pub(crate) fn body(self, prompt: &str) -> Value {
        let messages = || json!([{ "role": "user", "content": prompt }]);
        match self {
            Self::Chat => json!({ "model": self.model(), "messages": messages() }),
            Self::Responses => json!({ "model": self.model(), "input": prompt }),
            Self::Messages => {
                json!({ "model": self.model(), "max_tokens": MAX_TOKENS, "messages": messages() })
            }
        }
    }

    /// The same, as it is sent.
    pub(crate) fn bytes(self, prompt: &str) -> Bytes {
        self.body(prompt).to_string().into()
    }

    /// By what the provider's bill knows it.
    pub(crate) fn key(self, prompt: &str) -> Option<ExecutionKey> {
        execution_key(self.path(), &self.bytes(prompt))
    }

    /// It is what the model says to this prompt.
    pub(crate) fn is_answer_to(self, body: &Value, prompt: &str) -> bool {
        let (text, most) = match self {
            Self::Chat => (body.pointer("/choices/0/message/content"), None),
            Self::Responses => (body.pointer("/output/0/content/0/text"), None),
            Self::Messages => (body.pointer("/content/0/text"), Some(MAX_TOKENS)),
        };
        let expected = provider_sim::answer(self.model(), prompt, most).text;
        text.and_then(Value::as_str) == Some(&expected)
    }
}

/// The code of an error, or its type where the API has none, for programs.
pub(crate) fn error_code(body: &Value) -> String {
    let of = |name: &str| body.pointer(name).and_then(Value::as_str);
    of("/error/code").or_else(|| of("/error/type")).or_else(|| of("/code")).unwrap_or("(none)").to_owned()
}
