//! A request to a model, read and checked, wherever it came from: a call of its own or a line of a batch.

use std::borrow::Cow;

use crate::answer::{Finish, count_tokens};
use crate::bill::Usage;
use crate::clock::SimTime;
use crate::embeddings::{Embeddings, moderation_body, moderation_inputs};
use crate::engine::Prompt;
use crate::error::ApiError;
use crate::ids::Ids;
use crate::prices::Mode;
use crate::realtime::{chat_answer, chat_body, completion_answer, completion_body};
use crate::responses::{ResponseWork, response_body};
use crate::wire::{
    ChatRequest, CompletionRequest, Input, Message, StreamOptions, Text, check_metadata, parse,
};

/// The endpoints that run a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Api {
    Chat,
    Completions,
    Embeddings,
    Responses,
    Moderations,
}

impl Api {
    const ALL: [Self; 5] =
        [Self::Chat, Self::Completions, Self::Embeddings, Self::Responses, Self::Moderations];

    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Embeddings => "/v1/embeddings",
            Self::Responses => "/v1/responses",
            Self::Moderations => "/v1/moderations",
        }
    }

    pub(crate) fn of_path(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|api| api.path() == path)
    }
}

/// A checked request.
pub(crate) struct Work<'a> {
    pub(crate) model: Text<'a>,
    /// `Some` when the answer is to be streamed.
    pub(crate) stream: Option<Streaming>,
    /// Standard, flex or priority.
    pub(crate) tier: Mode,
    pub(crate) job: Job<'a>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Streaming {
    pub(crate) include_usage: bool,
}

/// What is asked for.
pub(crate) enum Job<'a> {
    Chat(ChatWork<'a>),
    Completions(CompletionWork<'a>),
    Embeddings(Embeddings<'a>),
    Responses(ResponseWork<'a>),
    Moderations(Vec<Input<'a>>),
}

pub(crate) struct ChatWork<'a> {
    messages: Vec<Message<'a>>,
    pub(crate) choices: u32,
    pub(crate) max_tokens: Option<u32>,
    pub(crate) ending: Ending,
}

pub(crate) struct CompletionWork<'a> {
    pub(crate) prompts: Vec<Input<'a>>,
    pub(crate) choices: u32,
    pub(crate) max_tokens: Option<u32>,
    pub(crate) ending: Ending,
}

/// How an answer ends on an engine; the default is that of a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Ending {
    /// It goes on until its limit.
    pub(crate) is_full: bool,
    /// The engine gave it up.
    pub(crate) is_aborted: bool,
}

/// The circumstances of a run.
pub(crate) struct Run<'a> {
    pub(crate) ids: &'a Ids,
    pub(crate) now: SimTime,
    /// Prompt tokens that the prompt cache had.
    pub(crate) cached_tokens: u64,
}

/// What a run gave.
pub(crate) struct Ran {
    pub(crate) usage: Usage,
    pub(crate) body: Vec<u8>,
}

impl<'a> Work<'a> {
    pub(crate) fn parse(api: Api, body: &'a [u8]) -> Result<Self, ApiError> {
        match api {
            Api::Chat => Self::chat(parse(body)?),
            Api::Completions => Self::completions(parse(body)?),
            Api::Embeddings => {
                let mut request: crate::wire::EmbeddingRequest<'a> = parse(body)?;
                let model = request.model.take();
                Self::plain(model, Job::Embeddings(Embeddings::check(request)?))
            }
            Api::Responses => ResponseWork::check(parse(body)?),
            Api::Moderations => {
                let mut request: crate::wire::ModerationRequest<'a> = parse(body)?;
                let default = || Text(Cow::Borrowed("omni-moderation-latest"));
                let model = request.model.take().unwrap_or_else(default);
                Self::plain(Some(model), Job::Moderations(moderation_inputs(request)?))
            }
        }
    }

    fn plain(model: Option<Text<'a>>, job: Job<'a>) -> Result<Self, ApiError> {
        Ok(Self { model: required_model(model)?, stream: None, tier: Mode::Realtime, job })
    }

    fn chat(request: ChatRequest<'a>) -> Result<Self, ApiError> {
        let messages = request.messages.ok_or_else(|| ApiError::missing("messages"))?;
        if messages.is_empty() {
            let message = "Invalid 'messages': empty array. Expected an array with minimum length 1.";
            return Err(ApiError::invalid(message).param("messages").code("empty_array"));
        }
        for (n, message) in messages.iter().enumerate() {
            check_role(n, message.role.as_deref())?;
        }
        check_metadata(request.metadata.as_ref())?;
        check_temperature(request.temperature)?;
        let max_tokens = check_max("max_completion_tokens", request.max_completion_tokens)?
            .or(check_max("max_tokens", request.max_tokens)?);
        let choices = check_choices(request.n)?;
        Ok(Self {
            model: required_model(request.model)?,
            stream: check_stream(request.stream, request.stream_options)?,
            tier: tier(request.service_tier.as_deref())?,
            job: Job::Chat(ChatWork { messages, choices, max_tokens, ending: Ending::default() }),
        })
    }

    fn completions(request: CompletionRequest<'a>) -> Result<Self, ApiError> {
        let prompts = request.prompt.map_or_else(Vec::new, |inputs| inputs.0);
        if prompts.is_empty() {
            return Err(ApiError::missing("prompt"));
        }
        check_temperature(request.temperature)?;
        let max_tokens = check_max("max_tokens", request.max_tokens)?;
        let choices = check_choices(request.n)?;
        Ok(Self {
            model: required_model(request.model)?,
            stream: check_stream(request.stream, request.stream_options)?,
            tier: Mode::Realtime,
            job: Job::Completions(CompletionWork { prompts, choices, max_tokens, ending: Ending::default() }),
        })
    }

    pub(crate) fn prompt_tokens(&self) -> u64 {
        match &self.job {
            Job::Chat(chat) => chat.tokens(),
            Job::Completions(work) => work.prompts.iter().map(Input::tokens).sum(),
            Job::Embeddings(work) => work.tokens(),
            Job::Responses(work) => work.tokens(),
            Job::Moderations(inputs) => inputs.iter().map(Input::tokens).sum(),
        }
    }

    /// The caller's limit on output.
    pub(crate) fn max_tokens(&self) -> Option<u32> {
        match &self.job {
            Job::Chat(chat) => chat.max_tokens,
            Job::Completions(work) => work.max_tokens,
            Job::Responses(work) => work.max_output_tokens,
            Job::Embeddings(_) | Job::Moderations(_) => None,
        }
    }

    /// The mode of a background response with a window of 2 or 8 hours.
    pub(crate) fn window(&self) -> Option<Mode> {
        let Job::Responses(work) = &self.job else { return None };
        work.background.filter(|mode| matches!(mode, Mode::Background2h | Mode::Background8h))
    }

    pub(crate) fn set_ending(&mut self, ending: Ending) {
        match &mut self.job {
            Job::Chat(chat) => chat.ending = ending,
            Job::Completions(work) => work.ending = ending,
            Job::Embeddings(_) | Job::Responses(_) | Job::Moderations(_) => {}
        }
    }

    /// Lets the answer have at most this many tokens.
    pub(crate) fn limit(&mut self, tokens: u32) {
        match &mut self.job {
            Job::Chat(chat) => chat.max_tokens = Some(tokens),
            Job::Completions(work) => work.max_tokens = Some(tokens),
            Job::Embeddings(_) | Job::Responses(_) | Job::Moderations(_) => {}
        }
    }

    /// The texts that are asked about.
    pub(crate) fn inputs(&self) -> Vec<Cow<'_, str>> {
        match &self.job {
            Job::Chat(chat) => chat.messages.iter().map(|message| message.content.text()).collect(),
            Job::Completions(work) => work.prompts.iter().map(Input::text).collect(),
            Job::Embeddings(work) => work.inputs.iter().map(Input::text).collect(),
            Job::Moderations(inputs) => inputs.iter().map(Input::text).collect(),
            Job::Responses(work) => vec![Cow::Owned(work.prefix())],
        }
    }

    /// The sequences that an engine runs for this; none for what engines do not serve.
    pub(crate) fn sequences(&self) -> Vec<Prompt> {
        match &self.job {
            Job::Chat(chat) => {
                let answer = chat_answer(&self.model, chat);
                let capped = answer.finish == Finish::Length;
                let prompt = Prompt { tokens: chat.tokens(), generate: answer.tokens, capped };
                vec![prompt; usize::try_from(chat.choices).unwrap_or(1)]
            }
            Job::Completions(work) => {
                let prompts = work.prompts.iter().flat_map(|prompt| (0..work.choices).map(move |_| prompt));
                let sequence = |prompt: &Input<'_>| {
                    let answer = completion_answer(&self.model, work, prompt);
                    let capped = answer.finish == Finish::Length;
                    Prompt { tokens: prompt.tokens(), generate: answer.tokens, capped }
                };
                prompts.map(sequence).collect()
            }
            Job::Embeddings(work) => {
                let sequence =
                    |input: &Input<'_>| Prompt { tokens: input.tokens(), generate: 0, capped: false };
                work.inputs.iter().map(sequence).collect()
            }
            Job::Responses(_) | Job::Moderations(_) => Vec::new(),
        }
    }

    /// How many inputs count towards the limit of an embeddings batch.
    pub(crate) fn embedding_inputs(&self) -> usize {
        if let Job::Embeddings(work) = &self.job { work.inputs.len() } else { 0 }
    }

    /// The whole prompt, as prompt caching sees it; empty for what is not cached.
    pub(crate) fn prefix(&self) -> String {
        match &self.job {
            Job::Chat(chat) => chat.messages.iter().map(|message| message.content.text()).collect(),
            Job::Responses(work) => work.prefix(),
            _ => String::new(),
        }
    }

    /// Answers in one piece.
    pub(crate) fn run(&self, run: &Run<'_>) -> Result<Ran, ApiError> {
        let input_tokens = self.prompt_tokens();
        let whole = |body, output_tokens| Ran {
            usage: Usage {
                input_tokens,
                cached_tokens: run.cached_tokens,
                output_tokens,
                ..Usage::default()
            },
            body,
        };
        Ok(match &self.job {
            Job::Chat(chat) => chat_body(self, chat, run),
            Job::Completions(work) => completion_body(self, work, run),
            Job::Embeddings(work) => whole(work.body(&self.model)?, 0),
            Job::Responses(work) => response_body(self, work, run),
            Job::Moderations(inputs) => whole(moderation_body(&self.model, inputs, run.ids), 0),
        })
    }
}

impl ChatWork<'_> {
    /// The text that the answer is a function of: the last message of the user, or the last one if there is none.
    pub(crate) fn prompt(&self) -> Cow<'_, str> {
        let of_user = self.messages.iter().rev().find(|message| message.role.as_deref() == Some("user"));
        of_user.or_else(|| self.messages.last()).map_or(Cow::Borrowed(""), |message| message.content.text())
    }

    fn tokens(&self) -> u64 {
        self.messages.iter().map(|message| count_tokens(&message.content.text())).sum()
    }
}

pub(crate) fn required_model(model: Option<Text<'_>>) -> Result<Text<'_>, ApiError> {
    model.filter(|model| !model.is_empty()).ok_or_else(|| ApiError::missing("model"))
}

/// The mode that a `service_tier` asks for.
pub(crate) fn tier(name: Option<&str>) -> Result<Mode, ApiError> {
    match name {
        None | Some("auto" | "default" | "scale") => Ok(Mode::Realtime),
        Some("flex") => Ok(Mode::Flex),
        Some("priority" | "fast") => Ok(Mode::Priority),
        Some(other) => {
            let supported = "'auto', 'default', 'flex', 'scale', 'priority' and 'fast'";
            Err(ApiError::invalid_value("service_tier", other, supported))
        }
    }
}

/// The `service_tier` that an answer names.
pub(crate) fn tier_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Flex => "flex",
        Mode::Priority => "priority",
        _ => "default",
    }
}

pub(crate) fn check_temperature(temperature: Option<f64>) -> Result<(), ApiError> {
    match temperature {
        Some(value) if !(0.0..=2.0).contains(&value) => {
            let message = format!("Invalid 'temperature': expected a value between 0 and 2, got {value}.");
            Err(ApiError::invalid(message).param("temperature").code("decimal_out_of_range"))
        }
        _ => Ok(()),
    }
}

pub(crate) fn check_max(name: &'static str, max: Option<u32>) -> Result<Option<u32>, ApiError> {
    if max == Some(0) {
        let message = format!("Invalid '{name}': integer below minimum value. Expected a value >= 1, got 0.");
        return Err(ApiError::invalid(message).param(name).code("integer_below_min_value"));
    }
    Ok(max)
}

fn check_choices(n: Option<u32>) -> Result<u32, ApiError> {
    let n = n.unwrap_or(1);
    if (1..=128).contains(&n) {
        return Ok(n);
    }
    Err(ApiError::invalid(format!("Invalid 'n': expected a value from 1 to 128, got {n}.")).param("n"))
}

fn check_stream(stream: Option<bool>, options: Option<StreamOptions>) -> Result<Option<Streaming>, ApiError> {
    let include_usage = options.as_ref().and_then(|options| options.include_usage).unwrap_or(false);
    match (stream.unwrap_or(false), options) {
        (true, _) => Ok(Some(Streaming { include_usage })),
        (false, None) => Ok(None),
        (false, Some(_)) => {
            let message = "The 'stream_options' parameter is only allowed when 'stream' is enabled.";
            Err(ApiError::invalid(message).param("stream_options"))
        }
    }
}

fn check_role(index: usize, role: Option<&str>) -> Result<(), ApiError> {
    match role {
        Some("system" | "developer" | "user" | "assistant" | "tool" | "function") => Ok(()),
        None => Err(ApiError::invalid(format!("Missing required parameter: 'messages[{index}].role'."))
            .param(format!("messages[{index}].role"))
            .code("missing_required_parameter")),
        Some(other) => Err(ApiError::invalid(format!(
            "Invalid value: '{other}'. Supported values are: 'system', 'assistant', 'user', 'function', 'tool', and \
             'developer'."
        ))
        .param(format!("messages[{index}].role"))
        .code("invalid_value")),
    }
}
