//! Calls that run a model and answer at once, and how chat completions and completions look.

use bytes::Bytes;
use serde::Serialize;

use crate::answer::{Answer, Finish, answer, full_answer};
use crate::bill::Usage;
use crate::clock::SimTime;
use crate::error::ApiError;
use crate::prices::Mode;
use crate::provider::Inner;
use crate::quota::Caller;
use crate::reply::SimResponse;
use crate::responses;
use crate::scenario::NotSold;
use crate::sse::Events;
use crate::wire::Input;
use crate::work::{Api, ChatWork, CompletionWork, Ending, Job, Ran, Run, Streaming, Work, tier_name};

/// Runs one call: check, answer, charge.
pub(crate) fn create(
    inner: &Inner,
    api: Api,
    caller: &Caller<'_>,
    body: &Bytes,
    now: SimTime,
) -> Result<SimResponse, ApiError> {
    let work = Work::parse(api, body)?;
    let model = inner.catalog.find(&work.model).ok_or_else(|| ApiError::model_not_found(&work.model))?;
    let conditions = inner.conditions();
    check_offer(&conditions.not_sold, &work)?;
    if work.window().is_none() {
        let tokens = || work.prompt_tokens().max(work.max_tokens().unwrap_or(0).into());
        inner.take_request(&conditions, caller, (model, &work.model), now, tokens)?;
    }
    if work.tier == Mode::Flex && inner.faults.flex_unavailable() {
        return Err(ApiError::rate_limited("Resource Unavailable: no flex capacity right now.", None)
            .code("resource_unavailable"));
    }
    let cached_tokens = inner.cached_tokens(model, &work, now);
    let run = Run { ids: &inner.ids, now, cached_tokens };
    let key = inner.ledger.key(api.path(), body);
    if let Job::Responses(response) = &work.job
        && let Some(window) = response.background
    {
        return Ok(responses::create_background(inner, &work, response, window, model, &run, key));
    }
    let (usage, response) = match (&work.stream, &work.job) {
        (None, _) => {
            let ran = work.run(&run)?;
            let body = Bytes::from(ran.body);
            if let Job::Responses(response) = &work.job {
                inner.responses.keep(response, &body);
            }
            (ran.usage, SimResponse::json(body))
        }
        (Some(_), Job::Responses(response)) => {
            let (ran, events) = responses::response_events(&work, response, &run);
            inner.responses.keep(response, &Bytes::from(ran.body));
            (ran.usage, events.response(inner.stream_gap))
        }
        (Some(streaming), _) => {
            let (usage, events) = events(&work, *streaming, &run)?;
            (usage, events.response(inner.stream_gap))
        }
    };
    inner.ledger.charge(model, work.tier, usage, key);
    Ok(response)
}

/// The answer to a chat or a completion as a stream.
pub(crate) fn events(
    work: &Work<'_>,
    streaming: Streaming,
    run: &Run<'_>,
) -> Result<(Usage, Events), ApiError> {
    match &work.job {
        Job::Chat(chat) => Ok(chat_events(work, chat, streaming.include_usage, run)),
        Job::Completions(completion) => Ok(completion_events(work, completion, streaming.include_usage, run)),
        Job::Embeddings(_) | Job::Responses(_) | Job::Moderations(_) => {
            Err(ApiError::invalid("This endpoint does not stream.").param("stream"))
        }
    }
}

/// The answer to one prompt.
fn say(model: &str, prompt: &str, max_tokens: Option<u32>, ending: Ending) -> Answer {
    match max_tokens {
        // Only an engine that gives up before the first token comes to this.
        Some(0) => Answer { text: String::new(), tokens: 0, finish: Finish::Length },
        Some(max) if ending.is_full => full_answer(model, prompt, max),
        max => answer(model, prompt, max),
    }
}

/// The answer to a chat.
pub(crate) fn chat_answer(model: &str, chat: &ChatWork<'_>) -> Answer {
    say(model, &chat.prompt(), chat.max_tokens, chat.ending)
}

/// The answer to one prompt of a completion.
pub(crate) fn completion_answer(model: &str, work: &CompletionWork<'_>, prompt: &Input<'_>) -> Answer {
    // The wire's default of 16 tokens for `max_tokens` is kept, as old clients rely on it.
    say(model, &prompt.text(), work.max_tokens.or(Some(16)), work.ending)
}

fn reason(finish: Finish, ending: Ending) -> &'static str {
    if ending.is_aborted { "abort" } else { finish.as_str() }
}

/// Refuses what is not sold for this model.
fn check_offer(not_sold: &NotSold, work: &Work<'_>) -> Result<(), ApiError> {
    if work.tier == Mode::Flex && NotSold::names(&not_sold.flex, &work.model) {
        let message =
            format!("Invalid service_tier argument: 'flex' is not available for model `{}`.", &*work.model);
        return Err(ApiError::invalid(message).param("service_tier").code("invalid_value"));
    }
    if work.window().is_some() && NotSold::names(&not_sold.background_windows, &work.model) {
        let message =
            format!("Completion windows of 2h and 8h are not available for model `{}`.", &*work.model);
        let param = "background_options.completion_window";
        return Err(ApiError::invalid(message).param(param).code("invalid_value"));
    }
    Ok(())
}

#[derive(Serialize)]
struct ChatReply<'a, C> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: &'a [C],
    #[serde(skip_serializing_if = "UsageField::is_absent")]
    usage: UsageField,
    service_tier: &'static str,
    system_fingerprint: &'static str,
}

const FINGERPRINT: &str = "fp_provider_sim";

#[derive(Serialize, Clone, Copy)]
struct ChatUsage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    prompt_tokens_details: PromptDetails,
    completion_tokens_details: CompletionDetails,
}

/// `usage` of a reply or chunk.
#[derive(Serialize, Clone, Copy)]
#[serde(untagged)]
enum UsageField {
    /// Not there at all: a stream whose caller did not ask for it.
    Absent,
    /// There as null: all but the last chunk of a stream whose caller asked for it.
    Null,
    Of(ChatUsage),
}

impl UsageField {
    fn without(include_usage: bool) -> Self {
        if include_usage { Self::Null } else { Self::Absent }
    }

    fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }
}

#[derive(Serialize, Clone, Copy)]
struct PromptDetails {
    cached_tokens: u64,
    audio_tokens: u64,
}

#[derive(Serialize, Clone, Copy)]
#[expect(clippy::struct_field_names, reason = "the names are the wire's")]
struct CompletionDetails {
    reasoning_tokens: u64,
    audio_tokens: u64,
    accepted_prediction_tokens: u64,
    rejected_prediction_tokens: u64,
}

impl From<Usage> for ChatUsage {
    fn from(usage: Usage) -> Self {
        Self {
            prompt_tokens: usage.input_tokens,
            completion_tokens: usage.output_tokens,
            total_tokens: usage.input_tokens + usage.output_tokens,
            prompt_tokens_details: PromptDetails { cached_tokens: usage.cached_tokens, audio_tokens: 0 },
            completion_tokens_details: CompletionDetails {
                reasoning_tokens: 0,
                audio_tokens: 0,
                accepted_prediction_tokens: 0,
                rejected_prediction_tokens: 0,
            },
        }
    }
}

#[derive(Serialize)]
struct ChatChoice<'a> {
    index: u32,
    message: ChatMessage<'a>,
    logprobs: Option<()>,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct ChatMessage<'a> {
    role: &'static str,
    content: &'a str,
    refusal: Option<()>,
    annotations: [(); 0],
}

#[derive(Serialize)]
struct ChunkChoice<'a> {
    index: u32,
    delta: Delta<'a>,
    logprobs: Option<()>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize, Default)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

fn usage_of(work: &Work<'_>, run: &Run<'_>, output_tokens: u64) -> Usage {
    let input_tokens = work.prompt_tokens();
    Usage { input_tokens, cached_tokens: run.cached_tokens, output_tokens, ..Usage::default() }
}

/// A chat completion in one piece.
pub(crate) fn chat_body(work: &Work<'_>, chat: &ChatWork<'_>, run: &Run<'_>) -> Ran {
    let Answer { text, tokens, finish } = chat_answer(&work.model, chat);
    let finish = reason(finish, chat.ending);
    let usage = usage_of(work, run, tokens * u64::from(chat.choices));
    let choice = |index| ChatChoice {
        index,
        message: ChatMessage { role: "assistant", content: &text, refusal: None, annotations: [] },
        logprobs: None,
        finish_reason: finish,
    };
    let choices: Vec<_> = (0..chat.choices).map(choice).collect();
    let reply = ChatReply {
        id: &run.ids.text("chatcmpl-"),
        object: "chat.completion",
        created: run.now.secs(),
        model: &work.model,
        choices: &choices,
        usage: UsageField::Of(usage.into()),
        service_tier: tier_name(work.tier),
        system_fingerprint: FINGERPRINT,
    };
    Ran { usage, body: crate::reply::to_json(&reply) }
}

/// A chat completion as a stream: the role, one chunk a word, the finish reason, the usage if asked for, `[DONE]`.
fn chat_events(work: &Work<'_>, chat: &ChatWork<'_>, include_usage: bool, run: &Run<'_>) -> (Usage, Events) {
    let Answer { text, tokens, finish } = chat_answer(&work.model, chat);
    let finish = reason(finish, chat.ending);
    let usage = usage_of(work, run, tokens * u64::from(chat.choices));
    let id = run.ids.text("chatcmpl-");
    let mut events = Events::with_capacity(72);
    let none = UsageField::without(include_usage);
    let mut send = |choices: &[ChunkChoice<'_>], usage: UsageField| {
        events.data(&ChatReply {
            id: &id,
            object: "chat.completion.chunk",
            created: run.now.secs(),
            model: &work.model,
            choices,
            usage,
            service_tier: tier_name(work.tier),
            system_fingerprint: FINGERPRINT,
        });
    };
    for index in 0..chat.choices {
        let chunk = |delta, finish_reason| [ChunkChoice { index, delta, logprobs: None, finish_reason }];
        send(&chunk(Delta { role: Some("assistant"), content: Some("") }, None), none);
        for word in text.split_inclusive(' ') {
            send(&chunk(Delta { role: None, content: Some(word) }, None), none);
        }
        send(&chunk(Delta::default(), Some(finish)), none);
    }
    if include_usage {
        send(&[], UsageField::Of(usage.into()));
    }
    events.done();
    (usage, events)
}

#[derive(Serialize)]
struct TextReply<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: &'a [TextChoice<'a>],
    #[serde(skip_serializing_if = "UsageField::is_absent")]
    usage: UsageField,
}

#[derive(Serialize)]
struct TextChoice<'a> {
    text: &'a str,
    index: u32,
    logprobs: Option<()>,
    finish_reason: Option<&'static str>,
}

/// The answers of a completion: each prompt as often as there are choices.
fn completion_answers(work: &Work<'_>, completion: &CompletionWork<'_>) -> (Vec<Answer>, u64) {
    let of = |prompt: &Input<'_>| completion_answer(&work.model, completion, prompt);
    let repeat = |answer: Answer| (0..completion.choices).map(move |_| answer.clone());
    let answers: Vec<_> = completion.prompts.iter().map(of).flat_map(repeat).collect();
    let tokens = answers.iter().map(|answer| answer.tokens).sum();
    (answers, tokens)
}

/// A completion in one piece.
pub(crate) fn completion_body(work: &Work<'_>, completion: &CompletionWork<'_>, run: &Run<'_>) -> Ran {
    let (answers, tokens) = completion_answers(work, completion);
    let usage = usage_of(work, run, tokens);
    let mut choices = Vec::with_capacity(answers.len());
    for (answer, index) in answers.iter().zip(0..) {
        let finish_reason = Some(reason(answer.finish, completion.ending));
        choices.push(TextChoice { text: &answer.text, index, logprobs: None, finish_reason });
    }
    let reply = TextReply {
        id: &run.ids.text("cmpl-"),
        object: "text_completion",
        created: run.now.secs(),
        model: &work.model,
        choices: &choices,
        usage: UsageField::Of(usage.into()),
    };
    Ran { usage, body: crate::reply::to_json(&reply) }
}

/// A completion as a stream.
fn completion_events(
    work: &Work<'_>,
    completion: &CompletionWork<'_>,
    include_usage: bool,
    run: &Run<'_>,
) -> (Usage, Events) {
    let (answers, tokens) = completion_answers(work, completion);
    let usage = usage_of(work, run, tokens);
    let id = run.ids.text("cmpl-");
    let mut events = Events::with_capacity(24);
    let none = UsageField::without(include_usage);
    let mut send = |choices: &[TextChoice<'_>], usage: UsageField| {
        events.data(&TextReply {
            id: &id,
            object: "text_completion",
            created: run.now.secs(),
            model: &work.model,
            choices,
            usage,
        });
    };
    for (answer, index) in answers.iter().zip(0..) {
        for text in answer.text.split_inclusive(' ') {
            send(&[TextChoice { text, index, logprobs: None, finish_reason: None }], none);
        }
        let finish_reason = Some(reason(answer.finish, completion.ending));
        send(&[TextChoice { text: "", index, logprobs: None, finish_reason }], none);
    }
    if include_usage {
        send(&[], UsageField::Of(usage.into()));
    }
    events.done();
    (usage, events)
}
