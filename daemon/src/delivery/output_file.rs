//! The answers of a job as the lines of a file: a view over its requests' outcomes, made while it is read.

use std::borrow::Cow;
use std::io;
use std::pin::pin;

use bytes::Bytes;
use futures_util::stream::{self, Stream, TryStreamExt as _};
use offpeak_core::extent::Range;
use offpeak_core::job::{CANCELLED, WINDOW_OVER};
use offpeak_core::outcome::Ending;
use offpeak_core::retry::{CANCELLED_BY_CALLER, PERMANENT};
use offpeak_store::{Finished, FinishedChunk, Store, StoreError};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::delivery::{request_id, spent, status_of};
use crate::documents::job::{Api, Sums, Usage};
use crate::documents::job_cost::Spent;
use crate::fallback::STAND_IN;
use crate::label::Label;
use crate::reply::Dialect;

/// Answers that are read at once, in bytes; while they are worked on, as many more are read.
pub const CHUNK_BYTES: usize = 1 << 20;

/// Which of a job's lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Good answers: OpenAI's output file.
    Answers,
    /// All else: OpenAI's error file.
    Errors,
    /// All: Anthropic's results.
    All,
}

/// How a request ended, as jobs tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Answered well.
    Succeeded,
    /// Answered badly, or not at all.
    Errored,
    /// Cancelled before it had an answer.
    Cancelled,
    /// Its time was over before it had an answer.
    Expired,
}

impl Kind {
    /// Of an ending.
    pub fn of(ending: &Ending) -> Self {
        match ending {
            Ending::Answered { .. } if ending.is_success() => Self::Succeeded,
            Ending::Answered { .. } => Self::Errored,
            Ending::Failed { code, .. } => match code.as_str() {
                WINDOW_OVER => Self::Expired,
                CANCELLED | CANCELLED_BY_CALLER => Self::Cancelled,
                _ => Self::Errored,
            },
        }
    }

    /// It stands in this part.
    pub fn is_in(self, part: Part) -> bool {
        match part {
            Part::Answers => self == Self::Succeeded,
            Part::Errors => self != Self::Succeeded,
            Part::All => true,
        }
    }
}

/// The lines of what is finished among some ranges. An error breaks the answer off, so that nobody takes it for whole.
pub fn lines(
    store: Store,
    api: Api,
    part: Part,
    ranges: Vec<Range>,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let write_all = move |chunk: FinishedChunk| {
        let mut text = Vec::new();
        for finished in &chunk.finished {
            if Kind::of(&finished.outcome.ending).is_in(part) {
                write(api, finished, &mut text);
            }
        }
        Bytes::from(text)
    };
    chunks(store, ranges).map_ok(write_all).map_err(|error| {
        tracing::error!(%error, "a job's answers could not be read");
        io::Error::other(error)
    })
}

/// What is finished among some ranges; the next chunk is read while one is worked on.
fn chunks(store: Store, ranges: Vec<Range>) -> impl Stream<Item = Result<FinishedChunk, StoreError>> + Send {
    let read = |store: &Store, ranges| {
        let store = store.clone();
        tokio::spawn(async move { store.finished(ranges, CHUNK_BYTES).await })
    };
    let first = Some(read(&store, ranges));
    stream::try_unfold((store, first), move |(store, next)| async move {
        let Some(next) = next else { return Ok(None) };
        let mut chunk = next.await.map_err(|_| StoreError::Closed)??;
        let next = chunk.rest.take().map(|ranges| read(&store, ranges));
        Ok(Some((chunk, (store, next))))
    })
}

/// What a job came to, and what it cost.
pub async fn sums(store: &Store, api: Api, ranges: Vec<Range>) -> Result<(Sums, Spent), StoreError> {
    let (mut sums, mut cost) = (Sums::default(), Spent::default());
    let mut chunks = pin!(chunks(store.clone(), ranges));
    while let Some(chunk) = chunks.try_next().await? {
        for finished in &chunk.finished {
            let mut length = Length(0);
            write(api, finished, &mut length);
            add(&mut sums, finished, length.0);
        }
        cost += spent::of_chunk(store, &chunk).await?;
    }
    Ok((sums, cost))
}

/// How many bytes were written to it.
struct Length(u64);

impl io::Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn add(sums: &mut Sums, finished: &Finished, bytes: u64) {
    match Kind::of(&finished.outcome.ending) {
        Kind::Succeeded => sums.succeeded += 1,
        Kind::Errored => sums.errored += 1,
        Kind::Cancelled => sums.cancelled += 1,
        Kind::Expired => sums.expired += 1,
    }
    if finished.outcome.ending.is_success() {
        sums.output_bytes += bytes;
        let usage = usage(&finished.body);
        sums.usage.input += usage.input;
        sums.usage.cached += usage.cached;
        sums.usage.output += usage.output;
        sums.usage.reasoning += usage.reasoning;
    } else {
        sums.error_bytes += bytes;
    }
}

/// One line, with its end.
fn write(api: Api, finished: &Finished, mut text: impl io::Write) {
    let label = Label::decode(&finished.request_meta);
    let custom_id = label.as_ref().map_or("", |label| label.custom_id.as_str());
    let written = match api {
        Api::OpenAi => serde_json::to_writer(&mut text, &open_ai(finished, custom_id)),
        Api::Anthropic => serde_json::to_writer(&mut text, &anthropic(finished, custom_id)),
    };
    if let Err(error) = written.map_err(io::Error::from).and_then(|()| text.write_all(b"\n")) {
        // Texts and numbers into memory: there is nothing in them that cannot be written.
        tracing::error!(%error, "a line of a job's answers could not be written; please report this");
    }
}

#[derive(Serialize)]
struct OpenAiLine<'a> {
    id: String,
    custom_id: &'a str,
    response: Option<OpenAiResponse<'a>>,
    error: Option<OpenAiError<'a>>,
}

#[derive(Serialize)]
struct OpenAiResponse<'a> {
    status_code: u16,
    request_id: Cow<'a, str>,
    body: Cow<'a, RawValue>,
}

#[derive(Serialize)]
struct OpenAiError<'a> {
    code: &'a str,
    message: &'a str,
}

fn open_ai<'a>(finished: &'a Finished, custom_id: &'a str) -> OpenAiLine<'a> {
    let id = format!("batch_req_{}", finished.origin);
    match &finished.outcome.ending {
        Ending::Answered { status } => {
            let request_id = match std::str::from_utf8(&finished.outcome.meta) {
                Ok(id) if !id.is_empty() && id.as_bytes() != STAND_IN => Cow::Borrowed(id),
                _ => Cow::Owned(request_id(finished.origin)),
            };
            let response =
                OpenAiResponse { status_code: *status, request_id, body: one_line(&finished.body) };
            OpenAiLine { id, custom_id, response: Some(response), error: None }
        }
        Ending::Failed { code, message, .. } => {
            let code = code.strip_prefix(PERMANENT).unwrap_or(code);
            OpenAiLine { id, custom_id, response: None, error: Some(OpenAiError { code, message }) }
        }
    }
}

#[derive(Serialize)]
struct AnthropicLine<'a> {
    custom_id: &'a str,
    result: AnthropicResult<'a>,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum AnthropicResult<'a> {
    Succeeded { message: Cow<'a, RawValue> },
    Errored { error: Error<'a> },
    Canceled,
    Expired,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Error<'a> {
    Theirs(Cow<'a, RawValue>),
    Ours(AnthropicError<'a>),
}

#[derive(Serialize)]
struct AnthropicError<'a> {
    r#type: &'static str,
    error: AnthropicInner<'a>,
}

#[derive(Serialize)]
struct AnthropicInner<'a> {
    r#type: &'static str,
    message: &'a str,
}

fn anthropic<'a>(finished: &'a Finished, custom_id: &'a str) -> AnthropicLine<'a> {
    let failed = |code: &str, message| {
        let status = status_of(code.strip_prefix(PERMANENT).unwrap_or(code));
        let error = AnthropicInner { r#type: Dialect::Anthropic.error_type(status.as_u16()), message };
        AnthropicResult::Errored { error: Error::Ours(AnthropicError { r#type: "error", error }) }
    };
    let result = match (Kind::of(&finished.outcome.ending), &finished.outcome.ending) {
        (Kind::Succeeded, _) => AnthropicResult::Succeeded { message: one_line(&finished.body) },
        (Kind::Cancelled, _) => AnthropicResult::Canceled,
        (Kind::Expired, _) => AnthropicResult::Expired,
        (Kind::Errored, Ending::Failed { code, message, .. }) => failed(code, message),
        (Kind::Errored, Ending::Answered { .. }) if is_anthropic_error(&finished.body) => {
            AnthropicResult::Errored { error: Error::Theirs(one_line(&finished.body)) }
        }
        (Kind::Errored, Ending::Answered { .. }) => {
            failed("refused", "The provider refused the request without saying why.")
        }
    };
    AnthropicLine { custom_id, result }
}

fn is_anthropic_error(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Peek<'a> {
        #[serde(borrow)]
        r#type: Cow<'a, str>,
    }
    serde_json::from_slice::<Peek<'_>>(body).is_ok_and(|peek| peek.r#type == "error")
}

/// An answer's body as a JSON value on one line. What is not JSON becomes a text.
fn one_line(body: &[u8]) -> Cow<'_, RawValue> {
    // Nearly all are JSON without line ends, and large ones need not be copied.
    let is_one_line = memchr::memchr2(b'\n', b'\r', body).is_none();
    if is_one_line && let Ok(value) = serde_json::from_slice::<&RawValue>(body) {
        return Cow::Borrowed(value);
    }
    let text = String::from_utf8_lossy(body);
    // Within a JSON text line ends are escaped; those that stand as they are, are only layout.
    let value = RawValue::from_string(text.replace(['\n', '\r'], " "))
        .or_else(|_| serde_json::value::to_raw_value(&*text))
        .unwrap_or_else(|_| RawValue::NULL.to_owned());
    Cow::Owned(value)
}

/// The tokens that an answer says it took, in either API's words.
pub fn usage(body: &[u8]) -> Usage {
    #[derive(Deserialize, Default)]
    struct Peek {
        usage: Option<Counted>,
    }
    #[derive(Deserialize, Default)]
    struct Counted {
        #[serde(alias = "prompt_tokens")]
        input_tokens: Option<u64>,
        #[serde(alias = "completion_tokens")]
        output_tokens: Option<u64>,
        #[serde(alias = "prompt_tokens_details")]
        input_tokens_details: Option<Details>,
        #[serde(alias = "completion_tokens_details")]
        output_tokens_details: Option<Details>,
    }
    #[derive(Deserialize, Default)]
    struct Details {
        cached_tokens: Option<u64>,
        reasoning_tokens: Option<u64>,
    }
    let peek: Peek = serde_json::from_slice(body).unwrap_or_default();
    let tokens = peek.usage.unwrap_or_default();
    let details = |details: Option<Details>| details.unwrap_or_default();
    Usage {
        input: tokens.input_tokens.unwrap_or_default(),
        cached: details(tokens.input_tokens_details).cached_tokens.unwrap_or_default(),
        output: tokens.output_tokens.unwrap_or_default(),
        reasoning: details(tokens.output_tokens_details).reasoning_tokens.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use offpeak_core::outcome::DidItRun;
    use offpeak_core::words::{LaneId, Place, Seq, Timestamp};
    use serde_json::{Value, json};

    use super::*;

    const PLACE: Place = Place { lane: LaneId(1), seq: Seq(0x2a) };

    fn line(api: Api, ending: Ending, body: &'static str) -> Value {
        let label = Label { line: 7, custom_id: "mine \"7\"".to_owned(), router: "by-hour".to_owned() };
        let mut text = Vec::new();
        write(api, &finished(ending, body, label.encode()), &mut text);
        assert_eq!(text.split(|byte| *byte == b'\n').count(), 2);
        serde_json::from_slice(&text).unwrap()
    }

    fn finished(ending: Ending, body: &'static str, request_meta: Bytes) -> Finished {
        let outcome = offpeak_store::Outcome {
            place: PLACE,
            ending,
            attempts: 1,
            batch: None,
            finished_at: Timestamp(0),
            meta: Bytes::new(),
            body: offpeak_store::BodyAt::nowhere(),
        };
        Finished { origin: PLACE, request_meta, outcome, body: Bytes::from_static(body.as_bytes()) }
    }

    fn failed(code: &str) -> Ending {
        Ending::Failed { ran: DidItRun::NotSent, code: code.to_owned(), message: "why".to_owned() }
    }

    #[test]
    fn a_line_of_open_ai() {
        let good = line(Api::OpenAi, Ending::Answered { status: 200 }, "{\n  \"a\": 1\r\n}");
        assert_eq!(
            good,
            json!({"id": "batch_req_1-2a", "custom_id": "mine \"7\"", "error": null,
                   "response": {"status_code": 200, "request_id": "dfr-1-2a", "body": {"a": 1}}})
        );
        let html = line(Api::OpenAi, Ending::Answered { status: 502 }, "<html>\n</html>");
        assert_eq!(
            html["response"],
            json!({"status_code": 502, "request_id": "dfr-1-2a", "body": "<html>\n</html>"})
        );
        let none = line(Api::OpenAi, failed("permanent:model_gone"), "");
        assert_eq!(none["error"], json!({"code": "model_gone", "message": "why"}));
        assert_eq!(none["response"], Value::Null);
    }

    #[test]
    fn a_line_of_anthropic() {
        let result = |ending, body| line(Api::Anthropic, ending, body)["result"].clone();
        let good = result(Ending::Answered { status: 200 }, r#"{"type":"message"}"#);
        assert_eq!(good, json!({"type": "succeeded", "message": {"type": "message"}}));
        let error = r#"{"type":"error","error":{"type":"invalid_request_error","message":"m"}}"#;
        let bad = result(Ending::Answered { status: 400 }, error);
        assert_eq!(bad["error"]["error"]["type"], "invalid_request_error");
        assert_eq!(bad["type"], "errored");
        assert_eq!(result(failed("result_missing"), "")["error"]["error"]["message"], "why");
        let kind = |code| result(failed(code), "")["error"]["error"]["type"].clone();
        assert_eq!(kind("result_missing"), "api_error");
        assert_eq!(kind("permanent:model_not_found"), "not_found_error");
        assert_eq!(result(failed(WINDOW_OVER), ""), json!({"type": "expired"}));
        assert_eq!(result(failed(CANCELLED), ""), json!({"type": "canceled"}));
    }

    #[test]
    fn usage_is_found_in_the_words_of_all_endpoints() {
        let chat = br#"{"usage":{"prompt_tokens":5,"completion_tokens":7,"total_tokens":12,
            "prompt_tokens_details":{"cached_tokens":2},"completion_tokens_details":{"reasoning_tokens":3}}}"#;
        assert_eq!(usage(chat), Usage { input: 5, cached: 2, output: 7, reasoning: 3 });
        let responses =
            br#"{"usage":{"input_tokens":5,"output_tokens":7,"input_tokens_details":{"cached_tokens":2}}}"#;
        assert_eq!(usage(responses), Usage { input: 5, cached: 2, output: 7, reasoning: 0 });
        for none in [&b"{}"[..], b"no", br#"{"usage":null}"#, br#"{"usage":{"prompt_tokens":"x"}}"#] {
            assert_eq!(usage(none), Usage::default());
        }
    }
}
