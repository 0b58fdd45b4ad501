//! A provider that does what the model's name says, which is mostly mischief. The names are explained in
//! `offpeak-guests`.

use std::hint::black_box;

use offpeak_plugin::{
    Header, Mode, Offer,
    provider::{
        Batch, BatchLimits, BodyPlan, Call, CredentialPlace, Decoded, Description, Effect, Event, Item,
        ItemOutcome, ItemResponse, ItemResult, Prepared, Provider, Refusal, Request, Step,
    },
};

/// One byte more than the daemon keeps.
const HUGE_STATE_BYTES: usize = (64 << 10) + 1;

struct Misfit;

impl Provider for Misfit {
    fn describe() -> Description {
        Description {
            name: "misfit".into(),
            version: "1".into(),
            endpoints: vec!["/v1/chat/completions".into()],
            credential: CredentialPlace::Header("x-api-key".into()),
        }
    }

    fn offers(_endpoint: String, _model: String) -> Vec<Offer> {
        vec![Offer {
            name: "batch".into(),
            mode: Mode::Batch,
            price_permille: 500,
            window_ms: 86_400_000,
            usual_ms: 3_600_000,
        }]
    }

    fn limits(_endpoint: String, _model: String, offer: String) -> Option<BatchLimits> {
        (offer == "batch").then_some(BatchLimits {
            max_requests: 10,
            max_bytes: 1000,
            item_overhead_bytes: 5,
            max_batches_an_hour: 3,
        })
    }

    fn prepare(call: Call) -> Result<Prepared, Refusal> {
        misbehave(&call.model);
        if call.model == "refuse" {
            return Err(Refusal { code: "told_to".into(), message: "told to refuse".into() });
        }
        Ok(Prepared {
            path: path(&call.model, &call.endpoint),
            set_headers: vec![Header { name: "x-offer".into(), value: call.offer }],
            remove_headers: vec!["x-mood".into()],
            body: BodyPlan::Unchanged,
        })
    }

    fn batch_step(batch: Batch, mut state: Vec<u8>, event: Event) -> Result<Step, String> {
        misbehave(&batch.model);
        if batch.model == "refuse" {
            return Err("told to refuse".into());
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

    fn encode_items(batch: Batch, items: Vec<Item>) -> Result<Vec<u8>, String> {
        misbehave(&batch.model);
        if batch.model == "refuse" {
            return Err("told to refuse".into());
        }
        let lines =
            items.into_iter().flat_map(|item| [item.id.into_bytes(), b" ".into(), item.body, b"\n".into()]);
        Ok(lines.flatten().collect())
    }

    fn decode_results(batch: Batch, source: String, lines: Vec<Vec<u8>>) -> Result<Vec<Decoded>, String> {
        misbehave(&batch.model);
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

fn misbehave(model: &str) {
    match model {
        "loop" => loop {
            black_box(model);
        },
        "panic" => panic!("told to"),
        _ => {}
    }
}

fn path(model: &str, honest: &str) -> String {
    if model == "foreign-path" { "@elsewhere.test/".into() } else { honest.into() }
}

offpeak_plugin::export_provider!(Misfit);
