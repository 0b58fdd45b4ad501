//! An engine's plugin as it may be after a change: what the bundled one sells as `idle` is `night` here, and there is a second
//! offer for answers at once. Calls say what they are bought as.

use offpeak_plugin::{
    Header, Mode, Offer,
    engine::{self, Engine, Load, Look, Sight, State, UnderWay},
    provider::{
        self, Answer, AnswerPlan, Batch, BatchLimits, BodyPlan, Call, CredentialPlace, Decoded, Encoded,
        Event, Item, Prepared, Provider, Refusal, Rewritten, RewrittenChunk, Step,
    },
};

const OFFERS: [&str; 3] = ["standard", "flex", "night"];

struct Night;

impl Engine for Night {
    fn describe() -> engine::Description {
        engine::Description { name: "night".into(), version: "1".into() }
    }

    fn looks() -> Vec<Look> {
        vec![Look { path: "/health".into() }]
    }

    fn interpret(sights: Vec<Sight>, _under_way: UnderWay) -> Result<Load, String> {
        let is_well = sights.first().is_some_and(|sight| sight.status == Some(200));
        Ok(Load {
            state: if is_well { State::Ready } else { State::Down },
            running: None,
            waiting: None,
            cache_permille: None,
            prompt_tokens: None,
            generated_tokens: None,
            room: None,
        })
    }
}

impl Provider for Night {
    fn describe() -> provider::Description {
        provider::Description {
            name: "night".into(),
            version: "1".into(),
            endpoints: vec!["/v1/chat/completions".into(), "/v1/embeddings".into()],
            credential: CredentialPlace::Bearer,
            kept_headers: Vec::new(),
        }
    }

    fn offers(_endpoint: String, _model: String) -> Vec<Offer> {
        let offer = |name: &str, mode, price_permille, usual_ms| Offer {
            name: name.into(),
            mode,
            price_permille,
            window_ms: 0,
            usual_ms,
        };
        vec![
            offer("standard", Mode::Realtime, 1000, 1_000),
            offer("flex", Mode::Realtime, 500, 2_000),
            offer("night", Mode::Engine, 100, 60_000),
        ]
    }

    fn limits(_endpoint: String, _model: String, _offer: String) -> Option<BatchLimits> {
        None
    }

    fn prepare(call: Call) -> Result<Prepared, Refusal> {
        if !OFFERS.contains(&call.offer.as_str()) {
            let message = format!("`{}` is not offered here.", call.offer);
            return Err(Refusal { code: "unsupported_offer".into(), message, param: None });
        }
        Ok(Prepared {
            path: call.endpoint,
            set_headers: vec![Header { name: "x-offer".into(), value: call.offer }],
            default_headers: Vec::new(),
            remove_headers: Vec::new(),
            body: BodyPlan::Unchanged,
            answer: AnswerPlan::Unchanged,
        })
    }

    fn rewrite_request(_call: Call, body: Vec<u8>) -> Result<Rewritten, Refusal> {
        Ok(Rewritten { body, notes: Vec::new() })
    }

    fn rewrite_answer(_call: Call, _notes: Vec<u8>, answer: Answer) -> Answer {
        answer
    }

    fn rewrite_chunk(_call: Call, state: Vec<u8>, chunk: Vec<u8>, _last: bool) -> RewrittenChunk {
        RewrittenChunk { state, output: chunk }
    }

    fn batch_step(_batch: Batch, _state: Vec<u8>, _event: Event) -> Result<Step, String> {
        Err("an engine has no batches".into())
    }

    fn encode_items(_batch: Batch, _items: Vec<Item>) -> Result<Encoded, String> {
        Err("an engine has no batches".into())
    }

    fn decode_results(_batch: Batch, _source: String, _lines: Vec<Vec<u8>>) -> Result<Vec<Decoded>, String> {
        Err("an engine has no batches".into())
    }
}

offpeak_plugin::export_engine!(Night);
offpeak_plugin::export_provider!(Night);
