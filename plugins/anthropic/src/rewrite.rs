//! Calls of OpenAI's clients: chat completions, answered by Anthropic's messages.
//!
//! The translation itself is in [`crate::chat`]; here it meets the daemon's questions.

use offpeak_plugin::{
    DidItRun,
    provider::{Answer, Decoded, ItemFailure, ItemOutcome, ItemResult, Refusal, Rewritten, RewrittenChunk},
};

use crate::{
    chat::{
        self,
        answer::{self, NotAMessage},
        error, request,
        stream::Stream,
    },
    config::Config,
};

const JSON: &str = "application/json";

/// A request's body in Anthropic's words. The notes are the stream's first state, if the answer is to come in pieces.
pub(crate) fn request(body: &[u8], config: &Config, now_ms: u64) -> Result<Rewritten, Refusal> {
    let translated = request::translate(body, &config.translation()).map_err(refusal)?;
    let stream = Stream::new(now_ms / 1000, translated.include_usage);
    let notes = if translated.stream { written(&stream) } else { Vec::new() };
    Ok(Rewritten { body: translated.body, notes })
}

/// A whole answer in OpenAI's words.
pub(crate) fn whole(given: &Answer, now_ms: u64) -> Answer {
    let json = |status, body| Answer { status, content_type: Some(JSON.to_owned()), body };
    if (200..300).contains(&given.status) {
        match answer::translate(&given.body, now_ms / 1000) {
            Ok(body) => json(given.status, body),
            Err(error) => {
                let error = error::translate(502, not_a_message(&error).as_bytes());
                json(error.status, error.body)
            }
        }
    } else {
        let error = error::translate(given.status, &given.body);
        json(error.status, error.body)
    }
}

/// A part of a streamed answer.
pub(crate) fn chunk(state: &[u8], part: &[u8], last: bool, now_ms: u64) -> RewrittenChunk {
    // The state is what this function wrote before, or what `request` noted.
    let mut stream = serde_json::from_slice(state).unwrap_or_else(|_| Stream::new(now_ms / 1000, false));
    let mut output = stream.push(part);
    if last {
        output.extend(stream.finish());
    }
    RewrittenChunk { state: written(&stream), output }
}

/// A result of a batch in OpenAI's words.
pub(crate) fn result(decoded: Decoded, now_ms: u64) -> Decoded {
    let Decoded::Result(ItemResult { id, outcome: ItemOutcome::Response(mut response) }) = decoded else {
        return decoded;
    };
    let outcome = if response.status == 200 {
        match answer::translate(&response.body, now_ms / 1000) {
            Ok(body) => {
                response.body = body;
                ItemOutcome::Response(response)
            }
            Err(error) => ItemOutcome::Failed(ItemFailure {
                ran: DidItRun::Ran,
                code: "answer_not_understood".to_owned(),
                message: not_a_message(&error),
            }),
        }
    } else {
        let error = error::translate(response.status, &response.body);
        (response.status, response.body) = (error.status, error.body);
        ItemOutcome::Response(response)
    };
    Decoded::Result(ItemResult { id, outcome })
}

/// Why a request cannot be said in Anthropic's words.
pub(crate) fn refusal(refusal: chat::Refusal) -> Refusal {
    Refusal { code: refusal.code.to_owned(), message: refusal.message, param: refusal.param }
}

fn not_a_message(error: &NotAMessage) -> String {
    format!("The request ran, but the provider's answer was not understood: {error}")
}

fn written(stream: &Stream) -> Vec<u8> {
    // Numbers, texts and enums: there is nothing in it that cannot be written.
    serde_json::to_vec(stream).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use offpeak_plugin::provider::ItemResponse;
    use serde_json::{Value, json};

    use super::*;

    const NOW_MS: u64 = 1_800_000_000_000;

    fn message() -> Vec<u8> {
        json!({"id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "stop_reason": "end_turn",
            "content": [{"type": "text", "text": "hello"}], "usage": {"input_tokens": 3, "output_tokens": 2}})
        .to_string()
        .into_bytes()
    }

    fn content(body: &[u8]) -> Value {
        let completion: Value = serde_json::from_slice(body).unwrap();
        assert_eq!(
            (&completion["object"], &completion["created"]),
            (&"chat.completion".into(), &1_800_000_000.into())
        );
        completion["choices"][0]["message"]["content"].clone()
    }

    #[test]
    fn a_call_and_its_answer_change_their_words() {
        let body = br#"{"model":"claude","messages":[{"role":"user","content":"hi"}]}"#;
        let rewritten = request(body, &Config::default(), NOW_MS).unwrap();
        let sent: Value = serde_json::from_slice(&rewritten.body).unwrap();
        assert_eq!((&sent["max_tokens"], rewritten.notes.len()), (&4096.into(), 0));
        let given = Answer { status: 200, content_type: None, body: message() };
        assert_eq!(content(&whole(&given, NOW_MS).body), "hello");

        let refused =
            request(br#"{"model":"claude","messages":[],"seed":1}"#, &Config::default(), NOW_MS).unwrap_err();
        assert_eq!(refused.param.as_deref(), Some("seed"));
    }

    #[test]
    fn errors_and_oddities_come_in_openais_form() {
        let error = br#"{"type":"error","error":{"type":"rate_limit_error","message":"slow down"}}"#;
        for (status, body, expected) in
            [(429, &error[..], 429), (200, &b"<html>"[..], 502), (404, &b""[..], 404)]
        {
            let answer = whole(&Answer { status, content_type: None, body: body.to_vec() }, NOW_MS);
            assert_eq!((answer.status, answer.content_type.as_deref()), (expected, Some(JSON)));
            let body: Value = serde_json::from_slice(&answer.body).unwrap();
            assert!(body["error"]["message"].is_string(), "{body}");
        }
    }

    #[test]
    fn a_stream_goes_on_wherever_it_is_cut() {
        let body = br#"{"model":"claude","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
        let notes = request(body, &Config::default(), NOW_MS).unwrap().notes;
        let events = [
            json!({"type": "message_start", "message": {"id": "msg_1", "model": "claude", "content": [],
                "usage": {"input_tokens": 3, "output_tokens": 0}}}),
            json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
            json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hello"}}),
            json!({"type": "content_block_stop", "index": 0}),
            json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}}),
            json!({"type": "message_stop"}),
        ];
        let lines = |event: &Value| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap());
        let text = events.iter().map(lines).collect::<Vec<_>>().concat();
        let through = |size: usize| {
            let (mut state, mut output) = (notes.clone(), Vec::new());
            for part in text.as_bytes().chunks(size) {
                let written = chunk(&state, part, false, NOW_MS);
                state = written.state;
                output.extend(written.output);
            }
            output.extend(chunk(&state, b"", true, NOW_MS).output);
            String::from_utf8(output).unwrap()
        };
        let whole = through(usize::MAX);
        assert!(whole.contains("hello") && whole.ends_with("data: [DONE]\n\n"), "{whole}");
        for size in [1, 2, 7, 100] {
            assert_eq!(through(size), whole, "{size}");
        }
    }

    #[test]
    fn results_of_a_batch_change_their_words() {
        let item = |status, body: &[u8]| {
            let response = ItemResponse { status, body: body.to_vec(), request_id: None };
            let result = ItemResult { id: "a".into(), outcome: ItemOutcome::Response(response) };
            match result_of(Decoded::Result(result)) {
                ItemOutcome::Response(response) => Ok((response.status, response.body)),
                ItemOutcome::Failed(failure) => Err((failure.ran, failure.code)),
            }
        };
        let (status, body) = item(200, &message()).unwrap();
        assert_eq!((status, content(&body)), (200, "hello".into()));
        let (status, body) = item(529, br#"{"error":{"type":"overloaded_error","message":"m"}}"#).unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((status, &body["error"]["message"]), (503, &"m".into()), "529 is Anthropic's own");
        assert_eq!(item(200, b"[]").unwrap_err(), (DidItRun::Ran, "answer_not_understood".to_owned()));
    }

    fn result_of(decoded: Decoded) -> ItemOutcome {
        match result(decoded, NOW_MS) {
            Decoded::Result(ItemResult { outcome, .. }) => outcome,
            Decoded::Garbage(why) => panic!("{why}"),
        }
    }
}
