//! A component as somebody may have built it when the contract was `offpeak:plugin@0.1.0`. It takes part in all five worlds and
//! uses all that they have, without the SDK, which goes with the times. Later daemons must load it and get its answers.

mod bindings;

use bindings::exports::offpeak::plugin::{adapting, costing, judging, providing, routing};
use bindings::offpeak::plugin::host;

struct First;

const VERSION: &str = "0.1.0";

impl routing::Guest for First {
    fn describe() -> routing::Description {
        host::log(host::Level::Info, "described");
        routing::Description {
            name: "first".into(),
            version: VERSION.into(),
            body: routing::BodyNeed::Prefix(4),
            headers: vec!["x-mood".into()],
        }
    }

    /// Chooses the last offer of the last candidate, and says in the lane's name what it was told.
    fn route(envelope: routing::Envelope, candidates: Vec<routing::Candidate>) -> routing::Decision {
        let routing::Sla::Within(within) = envelope.sla else { return routing::Decision::Pass };
        let Some(candidate) = candidates.last() else { return routing::Decision::Pass };
        let Some(offer) = candidate.offers.last().filter(|_| candidate.healthy) else {
            return routing::Decision::Reject(routing::Rejection {
                status: 503,
                code: "sick".into(),
                message: candidate.backend.clone(),
                retry_after_s: Some(1),
            });
        };
        routing::Decision::Choose(routing::Choice {
            backend: candidate.backend.clone(),
            offer: offer.name.clone(),
            within_ms: Some(within / 2),
            lane: format!("{} {} {}", envelope.tenant, host::config(), host::now()),
        })
    }
}

impl providing::Guest for First {
    fn describe() -> providing::Description {
        providing::Description {
            name: "first".into(),
            version: VERSION.into(),
            endpoints: vec!["/v1/chat/completions".into()],
            credential: providing::CredentialPlace::Header("x-key".into()),
            kept_headers: vec!["x-beta".into()],
        }
    }

    fn offers(_: String, model: String) -> Vec<providing::Offer> {
        let mode = bindings::offpeak::plugin::types::Mode::Batch;
        vec![providing::Offer { name: model, mode, price_permille: 500, window_ms: 2, usual_ms: 1 }]
    }

    fn limits(_: String, _: String, _: String) -> Option<providing::BatchLimits> {
        let max_bytes = 1 << 40;
        Some(providing::BatchLimits {
            max_requests: 7,
            max_bytes,
            item_overhead_bytes: 3,
            max_batches_an_hour: 5,
        })
    }

    fn prepare(call: providing::Call) -> Result<providing::Prepared, providing::Refusal> {
        if call.offer.is_empty() {
            return Err(refusal("no_offer"));
        }
        Ok(providing::Prepared {
            path: call.endpoint,
            set_headers: vec![header("x-set", &call.offer)],
            default_headers: vec![],
            remove_headers: vec!["x-gone".into()],
            body: providing::BodyPlan::SetMembers(vec![providing::Member {
                name: "n".into(),
                json: "1".into(),
            }]),
            answer: providing::AnswerPlan::Rewrite,
        })
    }

    fn rewrite_request(
        _: providing::Call,
        body: Vec<u8>,
    ) -> Result<providing::Rewritten, providing::Refusal> {
        Ok(providing::Rewritten { notes: body.iter().rev().copied().collect(), body })
    }

    fn rewrite_answer(_: providing::Call, notes: Vec<u8>, answer: providing::Answer) -> providing::Answer {
        providing::Answer { body: notes, ..answer }
    }

    fn rewrite_chunk(
        _: providing::Call,
        state: Vec<u8>,
        chunk: Vec<u8>,
        last: bool,
    ) -> providing::RewrittenChunk {
        providing::RewrittenChunk { state: if last { vec![] } else { chunk }, output: state }
    }

    /// Answers each event with an effect of its own, so that every one of them crosses the border.
    fn batch_step(
        batch: providing::Batch,
        state: Vec<u8>,
        event: providing::Event,
    ) -> Result<providing::Step, String> {
        use providing::{Effect, Event};
        let ran = bindings::offpeak::plugin::types::DidItRun::Refused;
        let effect = match event {
            Event::Start => Effect::Upload(providing::Upload {
                method: "POST".into(),
                path: "/files".into(),
                headers: batch.headers,
                framing: providing::Framing::Multipart(providing::Multipart {
                    fields: vec![("purpose".into(), batch.mark)],
                    file_field: "file".into(),
                    file_name: "items".into(),
                    content_type: "application/jsonl".into(),
                }),
            }),
            Event::Answered(response) => Effect::Call(providing::Request {
                method: "GET".into(),
                path: format!("/{}", response.status),
                headers: response.headers,
                body: response.body,
            }),
            Event::NotSent(why) => Effect::Failed(providing::Failure {
                ran,
                temporary: true,
                retry_after_s: Some(9),
                code: "not_sent".into(),
                message: why,
            }),
            Event::Interrupted => Effect::Wait(1000),
            Event::Waited => Effect::Read(providing::Reading {
                path: "/results".into(),
                headers: vec![],
                source: "one".into(),
                form: providing::ReadingForm::One,
            }),
            Event::Read(summary) => Effect::Results(vec![result(summary.source)]),
            Event::Cancel => {
                Effect::Finished(providing::Finish { ending: providing::Ending::Cancelled, missing: ran })
            }
        };
        let progress = Some(providing::Progress { completed: 1, failed: 2 });
        Ok(providing::Step { state, effect, provider_id: Some("p".into()), progress })
    }

    fn encode_items(_: providing::Batch, items: Vec<providing::Item>) -> Result<providing::Encoded, String> {
        let (bad, good): (Vec<_>, Vec<_>) = items.into_iter().partition(|item| item.body.is_empty());
        Ok(providing::Encoded {
            bytes: good.into_iter().flat_map(|item| item.body).collect(),
            refused: bad
                .into_iter()
                .map(|item| providing::RefusedItem { id: item.id, refusal: refusal("empty") })
                .collect(),
        })
    }

    fn decode_results(
        _: providing::Batch,
        source: String,
        lines: Vec<Vec<u8>>,
    ) -> Result<Vec<providing::Decoded>, String> {
        let understood = |line: Vec<u8>| {
            if line.is_empty() {
                return providing::Decoded::Garbage(source.clone());
            }
            providing::Decoded::Result(result(String::from_utf8_lossy(&line).into_owned()))
        };
        Ok(lines.into_iter().map(understood).collect())
    }
}

fn header(name: &str, value: &str) -> bindings::offpeak::plugin::types::Header {
    bindings::offpeak::plugin::types::Header { name: name.into(), value: value.into() }
}

fn refusal(code: &str) -> providing::Refusal {
    providing::Refusal { code: code.into(), message: "no".into(), param: Some("offer".into()) }
}

fn result(id: String) -> providing::ItemResult {
    let response =
        providing::ItemResponse { status: 200, body: b"{}".to_vec(), request_id: Some("r".into()) };
    providing::ItemResult { id, outcome: providing::ItemOutcome::Response(response) }
}

impl adapting::Guest for First {
    fn describe() -> adapting::Description {
        adapting::Description { name: "first".into(), version: VERSION.into() }
    }

    fn looks() -> Vec<adapting::Look> {
        vec![adapting::Look { path: "/metrics".into() }]
    }

    fn interpret(
        sights: Vec<adapting::Sight>,
        under_way: adapting::UnderWay,
    ) -> Result<adapting::Load, String> {
        let Some(adapting::Sight { status: Some(200), body }) = sights.into_iter().next() else {
            return Err("not readable".into());
        };
        Ok(adapting::Load {
            state: adapting::State::Resting,
            running: Some(under_way.realtime),
            waiting: Some(under_way.deferred),
            cache_permille: None,
            prompt_tokens: Some(body.len() as u64),
            generated_tokens: Some(2),
            room: Some(4),
        })
    }
}

impl judging::Guest for First {
    fn describe() -> judging::Description {
        judging::Description { name: "first".into(), version: VERSION.into() }
    }

    fn judge(attempt: judging::Attempt) -> judging::Meaning {
        match attempt.ending {
            judging::Ending::Answered(429) => judging::Meaning::Temporary(attempt.retry_after_ms),
            judging::Ending::Answered(_) => judging::Meaning::Elsewhere,
            judging::Ending::Failed(failure) if failure.code == "gone" => judging::Meaning::NotSold,
            judging::Ending::Failed(_) => judging::Meaning::Exhausted,
        }
    }
}

impl costing::Guest for First {
    fn describe() -> costing::Description {
        costing::Description { name: "first".into(), version: VERSION.into() }
    }

    fn assess(sale: costing::Sale, outcomes: Vec<costing::Outcome>) -> Result<Vec<costing::Charge>, String> {
        let Some(rate) = sale.rates.first() else { return Err("no prices".into()) };
        let charge = |outcome: costing::Outcome| {
            let tokens = outcome.usage.map_or(0, |usage| usage.input + usage.output);
            let realtime_cost = i64::try_from(tokens).unwrap_or(i64::MAX).saturating_mul(rate.price);
            costing::Charge {
                tenant: outcome.tenant,
                cost: realtime_cost / 1000 * i64::from(sale.price_permille),
                realtime_cost,
                priced: true,
            }
        };
        Ok(outcomes.into_iter().map(charge).collect())
    }
}
