//! A provider that does what the model's name says, which is mostly mischief. The names are explained in
//! `offpeak-guests`.

mod dream;

use std::hint::black_box;

use offpeak_plugin::{
    DidItRun, Header, Mode, Offer,
    provider::{
        Answer, AnswerPlan, Batch, BatchLimits, BodyPlan, Call, CredentialPlace, Decoded, Description,
        Effect, Encoded, Ending, Event, Finish, Item, ItemOutcome, ItemResponse, ItemResult, Prepared,
        Provider, Refusal, RefusedItem, Request, Rewritten, RewrittenChunk, Step,
    },
};

/// One byte more than the daemon keeps.
const HUGE_STATE_BYTES: usize = (64 << 10) + 1;
/// The same between two parts of a streamed answer.
const HUGE_STREAM_STATE_BYTES: usize = (1 << 20) + 1;

use dream::Dream;

struct Misfit;

/// Places that another's requests may have, in lanes and positions up to this.
const STOLEN: u32 = 12;

impl Provider for Misfit {
    fn describe() -> Description {
        Description {
            name: "misfit".into(),
            version: "1".into(),
            endpoints: vec!["/v1/chat/completions".into()],
            credential: CredentialPlace::Header("x-api-key".into()),
            kept_headers: vec!["x-mood".into()],
        }
    }

    fn offers(_endpoint: String, model: String) -> Vec<Offer> {
        misbehave_when_asked(&model);
        if let Some(mut dream) = Dream::ordered(&model, "offers") {
            return dream.offers();
        }
        let offer = Offer {
            name: "batch".into(),
            mode: Mode::Batch,
            price_permille: 500,
            window_ms: 86_400_000,
            usual_ms: 3_600_000,
        };
        vec![offer; if model == "many-offers" { 100_000 } else { 1 }]
    }

    fn limits(_endpoint: String, model: String, offer: String) -> Option<BatchLimits> {
        misbehave_when_asked(&model);
        if let Some(mut dream) = Dream::ordered(&model, "limits") {
            return dream.limits();
        }
        (offer == "batch").then_some(BatchLimits {
            max_requests: 10,
            max_bytes: 1000,
            item_overhead_bytes: 5,
            max_batches_an_hour: 3,
        })
    }

    fn prepare(call: Call) -> Result<Prepared, Refusal> {
        misbehave(&call.model);
        if let Some(mut dream) = Dream::ordered(&call.model, "prepare") {
            return dream.prepare();
        }
        if call.model == "refuse" {
            return Err(refusal());
        }
        Ok(Prepared {
            path: path(&call.model, &call.endpoint),
            set_headers: vec![Header { name: "x-offer".into(), value: call.offer }],
            default_headers: vec![Header { name: "x-manner".into(), value: "none".into() }],
            remove_headers: vec!["x-mood".into()],
            body: if call.model == "rewrite" { BodyPlan::Rewrite } else { BodyPlan::Unchanged },
            answer: if call.model == "rewrite" { AnswerPlan::Rewrite } else { AnswerPlan::Unchanged },
        })
    }

    fn rewrite_request(call: Call, body: Vec<u8>) -> Result<Rewritten, Refusal> {
        misbehave(&call.model);
        if let Some(mut dream) = Dream::ordered(&call.model, "rewrite-request") {
            return dream.rewrite_request();
        }
        match call.model.as_str() {
            "refuse" => Err(refusal()),
            "huge-state" => Ok(Rewritten { body, notes: vec![b'.'; HUGE_STREAM_STATE_BYTES] }),
            _ => Ok(Rewritten { body: body.to_ascii_uppercase(), notes: b"noted".to_vec() }),
        }
    }

    fn rewrite_answer(call: Call, notes: Vec<u8>, answer: Answer) -> Answer {
        misbehave(&call.model);
        if let Some(mut dream) = Dream::ordered(&call.model, "rewrite-answer") {
            return dream.rewrite_answer();
        }
        let status = if call.model == "odd-status" { 99 } else { answer.status };
        Answer { status, content_type: Some("text/plain".into()), body: [notes, answer.body].concat() }
    }

    fn rewrite_chunk(call: Call, mut state: Vec<u8>, chunk: Vec<u8>, last: bool) -> RewrittenChunk {
        misbehave(&call.model);
        if let Some(mut dream) = Dream::ordered(&call.model, "rewrite-chunk") {
            return dream.rewrite_chunk();
        }
        if call.model == "huge-state" {
            state = vec![b'.'; HUGE_STREAM_STATE_BYTES];
        }
        state.push(b'.');
        let output = if last { state.clone() } else { chunk.to_ascii_uppercase() };
        RewrittenChunk { state, output }
    }

    fn batch_step(batch: Batch, mut state: Vec<u8>, event: Event) -> Result<Step, String> {
        misbehave(&batch.model);
        if let Some(mut dream) = Dream::ordered(&batch.model, "batch-step") {
            return dream.batch_step();
        }
        if batch.model == "refuse" {
            return Err("told to refuse".into());
        }
        if batch.model == "thief" {
            return Ok(stolen(&batch, &event));
        }
        state.push(b'.');
        if batch.model == "huge-state" {
            state = vec![b'.'; HUGE_STATE_BYTES];
        }
        let body = match event {
            Event::Answered(response) => response.body,
            _ => Vec::new(),
        };
        let path = path(&batch.model, "/v1/batches");
        let effect = Effect::Call(Request { method: "POST".into(), path, headers: vec![], body });
        Ok(Step { state, effect, provider_id: Some(batch.mark), progress: None })
    }

    fn encode_items(batch: Batch, items: Vec<Item>) -> Result<Encoded, String> {
        misbehave(&batch.model);
        if let Some(mut dream) = Dream::ordered(&batch.model, "encode-items") {
            return dream.encode_items(&items.iter().map(|item| item.id.clone()).collect::<Vec<_>>());
        }
        if batch.model == "refuse" {
            return Err("told to refuse".into());
        }
        let is_refused = |item: &Item| batch.model == "refuse-odd" && item.body == b"odd";
        let refused = items
            .iter()
            .filter(|item| is_refused(item))
            .map(|item| RefusedItem { id: item.id.clone(), refusal: refusal() });
        let mut refused: Vec<RefusedItem> = refused.collect();
        if batch.model == "refuse-foreign" {
            refused.push(RefusedItem { id: "nobody".into(), refusal: refusal() });
        }
        let lines = items
            .into_iter()
            .filter(|item| !is_refused(item))
            .flat_map(|item| [item.id.into_bytes(), b" ".into(), item.body, b"\n".into()]);
        Ok(Encoded { bytes: lines.flatten().collect(), refused })
    }

    fn decode_results(batch: Batch, source: String, lines: Vec<Vec<u8>>) -> Result<Vec<Decoded>, String> {
        misbehave(&batch.model);
        if let Some(mut dream) = Dream::ordered(&batch.model, "decode-results") {
            return dream.decode_results(lines.len());
        }
        let skipped = usize::from(batch.model == "fewer-results");
        let decode = |line: Vec<u8>| {
            let text = String::from_utf8_lossy(&line);
            match text.split_once(' ') {
                Some((id, body)) => Decoded::Result(ItemResult {
                    id: if batch.model == "same-id" { "same" } else { id }.into(),
                    outcome: ItemOutcome::Response(ItemResponse {
                        status: 200,
                        body: body.as_bytes().to_vec(),
                        request_id: None,
                    }),
                }),
                None => Decoded::Garbage(format!("in {source}")),
            }
        };
        Ok(lines.into_iter().skip(skipped).map(decode).collect())
    }
}

/// Results for whatever request there may be, of this batch or of any other; then the end.
fn stolen(batch: &Batch, event: &Event) -> Step {
    let places = (0..STOLEN).flat_map(|lane| (0..STOLEN).map(move |seq| format!("{lane:x}-{seq:x}")));
    let result = |id: String| {
        let body = format!("{{\"stolen_by\":\"{}\"}}", batch.mark).into_bytes();
        ItemResult {
            id,
            outcome: ItemOutcome::Response(ItemResponse { status: 200, body, request_id: None }),
        }
    };
    let effect = match event {
        Event::Start => Effect::Results(places.map(result).collect()),
        _ => Effect::Finished(Finish { ending: Ending::Completed, missing: DidItRun::Unknown }),
    };
    Step { state: b"at work".into(), effect, provider_id: None, progress: None }
}

fn refusal() -> Refusal {
    Refusal { code: "told_to".into(), message: "told to refuse".into(), param: Some("model".into()) }
}

fn misbehave(model: &str) {
    match model {
        "loop" => loop {
            black_box(model);
        },
        "panic" | "panic-always" => panic!("told to"),
        _ => {}
    }
}

/// The other mischiefs sell like everybody else, so that there is something to do mischief with.
fn misbehave_when_asked(model: &str) {
    if model == "panic-always" {
        misbehave(model);
    }
}

fn path(model: &str, honest: &str) -> String {
    if model == "foreign-path" { "@elsewhere.test/".into() } else { honest.into() }
}

offpeak_plugin::export_provider!(Misfit);
