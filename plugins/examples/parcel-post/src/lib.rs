//! A provider that nobody else speaks to: Parcel Post answers chat completions in real time, and sells them at half price in
//! parcels. Its batch API in short:
//!
//! - `POST /parcels` with `{"label": "…", "requests": [{"ref": "…", "body": {…}}]}` makes a parcel, and answers `{"id": "…"}`;
//! - `GET /parcels?label=…` lists parcels by their label, `GET /parcels/{id}` tells `{"state": "…", "done": 3}`;
//! - `POST /parcels/{id}/return` stops one;
//! - `GET /parcels/{id}/answers` gives a line for each answer: `{"ref": "…", "status": 200, "answer": {…}}`.
//!
//! The label makes a parcel be paid once: it holds offpeak's mark, and after a creation whose fate is unknown no other parcel is
//! made before the label has been looked for.

use offpeak_plugin::{
    Configured, DidItRun, Mode, Offer,
    batch::{Cancel, End, ErrorBody, Hindrance, How, Next, Outcome, Pauses, Protocol, Ran, Shown},
    provider::*,
};
use serde::{Deserialize, Serialize};

const ENDPOINT: &str = "/v1/chat/completions";
const STANDARD: &str = "standard";
const PARCEL: &str = "parcel";

/// How often the label is looked for before it is believed that there is no such parcel.
const LOOKS: u32 = 2;

/// Calls that may come to nothing in a row before the batch is given back.
const TRIES_MAX: u32 = 50;

/// The plugin's own table of the configuration.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// Between looks at a parcel.
    poll: offpeak_plugin::Duration,
    /// How many requests a parcel may hold.
    max_requests: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { poll: offpeak_plugin::Duration::from_ms(30_000), max_requests: 10_000 }
    }
}

static SETTINGS: Configured<Settings> = Configured::new();

struct Plugin;

impl Provider for Plugin {
    fn describe() -> Description {
        SETTINGS.get(); // a wrong configuration is refused when the plugin is loaded
        Description {
            name: "parcel-post".into(),
            version: "1".into(),
            endpoints: vec![ENDPOINT.into()],
            credential: CredentialPlace::Header("x-parcel-key".into()),
            kept_headers: vec![],
        }
    }

    fn offers(endpoint: String, _model: String) -> Vec<Offer> {
        if endpoint != ENDPOINT {
            return Vec::new();
        }
        let offer = |name: &str, mode, price_permille, window_ms, usual_ms| Offer {
            name: name.into(),
            mode,
            price_permille,
            window_ms,
            usual_ms,
        };
        vec![
            offer(STANDARD, Mode::Realtime, 1000, 0, 0),
            offer(PARCEL, Mode::Batch, 500, 86_400_000, 3_600_000),
        ]
    }

    fn limits(_endpoint: String, _model: String, offer: String) -> Option<BatchLimits> {
        (offer == PARCEL).then(|| BatchLimits {
            max_requests: SETTINGS.get().max_requests,
            max_bytes: 100 << 20,
            item_overhead_bytes: 100,
            max_batches_an_hour: 1000,
        })
    }

    fn prepare(call: Call) -> Result<Prepared, Refusal> {
        if call.offer != STANDARD {
            let message = format!("`{}` is not sold in real time; there is {STANDARD}.", call.offer);
            return Err(Refusal { code: "unknown_offer".into(), message, param: None });
        }
        Ok(Prepared {
            path: call.endpoint,
            set_headers: vec![],
            default_headers: vec![],
            remove_headers: vec![],
            body: BodyPlan::Unchanged,
            answer: AnswerPlan::Unchanged,
        })
    }

    // `prepare` plans nothing to be written anew, so nobody calls these three.

    fn rewrite_request(_call: Call, body: Vec<u8>) -> Result<Rewritten, Refusal> {
        Ok(Rewritten { body, notes: vec![] })
    }

    fn rewrite_answer(_call: Call, _notes: Vec<u8>, answer: Answer) -> Answer {
        answer
    }

    fn rewrite_chunk(_call: Call, state: Vec<u8>, chunk: Vec<u8>, _last: bool) -> RewrittenChunk {
        RewrittenChunk { state, output: chunk }
    }

    fn batch_step(batch: Batch, state: Vec<u8>, event: Event) -> Result<Step, String> {
        Life { mark: &batch.mark, poll_ms: SETTINGS.get().poll.ms() }.batch_step(&state, event)
    }

    fn encode_items(_batch: Batch, items: Vec<Item>) -> Result<Encoded, String> {
        let mut bytes = Vec::new();
        for item in &items {
            if !bytes.is_empty() {
                bytes.push(b',');
            }
            let id = serde_json::to_string(&item.id).map_err(|error| error.to_string())?;
            bytes.extend_from_slice(format!("{{\"ref\":{id},\"body\":").as_bytes());
            bytes.extend_from_slice(&item.body);
            bytes.push(b'}');
        }
        Ok(Encoded { bytes, refused: vec![] })
    }

    fn decode_results(_batch: Batch, _source: String, lines: Vec<Vec<u8>>) -> Result<Vec<Decoded>, String> {
        Ok(lines.iter().map(|line| decode(line)).collect())
    }
}

offpeak_plugin::export_provider!(Plugin);

/// A line of answers.
#[derive(Deserialize)]
struct Line {
    r#ref: String,
    status: Option<u16>,
    answer: Option<serde_json::Value>,
    error: Option<String>,
}

fn decode(line: &[u8]) -> Decoded {
    let line: Line = match serde_json::from_slice(line) {
        Ok(line) => line,
        Err(error) => return Decoded::Garbage(error.to_string()),
    };
    let outcome = match (line.status, line.answer) {
        (Some(status), Some(answer)) => ItemOutcome::Response(ItemResponse {
            status,
            body: answer.to_string().into_bytes(),
            request_id: None,
        }),
        _ => ItemOutcome::Failed(ItemFailure {
            // Parcel Post answers all that it has run.
            ran: DidItRun::Refused,
            code: line.error.unwrap_or_else(|| "no_answer".into()),
            message: "Parcel Post did not answer this request.".into(),
        }),
    };
    Decoded::Result(ItemResult { id: line.r#ref, outcome })
}

/// A parcel, as Parcel Post shows it.
#[derive(Deserialize)]
struct Parcel {
    id: String,
    #[serde(default)]
    state: String,
    #[serde(default)]
    done: u32,
}

#[derive(Deserialize)]
struct Listing {
    parcels: Vec<Parcel>,
}

/// `{"error": "…"}`
#[derive(Deserialize, Default)]
#[serde(default)]
struct Complaint {
    error: Option<String>,
}

impl ErrorBody for Complaint {
    fn of_message(message: String) -> Self {
        Self { error: Some(message) }
    }

    // Here `error` is no object but its text.
    fn of_body(body: &[u8]) -> Self {
        serde_json::from_slice(body).unwrap_or_default()
    }

    fn code(&self) -> Option<String> {
        self.error.clone()
    }

    fn message(&self) -> Option<&str> {
        self.error.as_deref()
    }
}

/// What the outstanding effect belongs to. The daemon stores it: a newer plugin must read what an older one has written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Phase {
    Send,
    /// Looking for a parcel that may have been made, for the `look`th time.
    Find {
        look: u32,
    },
    Poll {
        id: String,
    },
    Return {
        id: String,
    },
    Read {
        id: String,
        end: End,
    },
    Over {
        end: End,
    },
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Notes {
    /// Calls that came to nothing, in a row.
    tries: u32,
    polls: u32,
    cancel: Cancel,
    id: Option<String>,
    done: u32,
}

/// The life of one batch.
struct Life<'a> {
    mark: &'a str,
    poll_ms: u64,
}

fn request(method: &str, path: String) -> Effect {
    Effect::Call(Request { method: method.into(), path, headers: vec![], body: vec![] })
}

impl Life<'_> {
    const fn pauses(&self) -> Pauses<'_> {
        Pauses {
            mark: self.mark,
            poll_ms: self.poll_ms,
            poll_max_ms: 300_000,
            retry_ms: 2_000,
            retry_max_ms: 300_000,
        }
    }

    /// The same phase again after a pause, unless that has been tried often enough.
    fn again(&self, phase: Phase, hindrance: &Hindrance, notes: &mut Notes) -> Next<Phase> {
        notes.tries += 1;
        if notes.tries < TRIES_MAX {
            return Next::Pause(phase, self.pauses().after(notes.tries, hindrance));
        }
        // Nothing is there as long as nothing was sent; later nobody knows.
        let ran = if phase == Phase::Send { Ran::NotSent } else { Ran::Unknown };
        let end = End::failed(ran, true, &hindrance.code, &hindrance.message);
        Next::Act(Phase::Over { end: end.after_ms(hindrance.retry_after_ms) })
    }

    fn sent(&self, outcome: Outcome<Complaint>, notes: &mut Notes) -> Next<Phase> {
        match outcome {
            Outcome::Done(body) => match serde_json::from_slice::<Parcel>(&body) {
                Ok(parcel) => self.has(parcel.id, notes),
                Err(_) => Next::Pause(Phase::Find { look: 1 }, self.poll_ms),
            },
            Outcome::Doubtful(_) => Next::Pause(Phase::Find { look: 1 }, self.poll_ms),
            Outcome::Later(hindrance) => self.again(Phase::Send, &hindrance, notes),
            Outcome::Refused { status, error } => {
                let code = error.code().unwrap_or_else(|| format!("http_{status}"));
                let end = End::failed(Ran::Refused, false, &code, "Parcel Post refused the parcel.");
                Next::Act(Phase::Over { end })
            }
        }
    }

    fn has(&self, id: String, notes: &mut Notes) -> Next<Phase> {
        notes.tries = 0;
        notes.id = Some(id.clone());
        Next::Pause(Phase::Poll { id }, self.pauses().before_poll(0))
    }

    fn found(&self, look: u32, outcome: Outcome<Complaint>, notes: &mut Notes) -> Next<Phase> {
        let phase = Phase::Find { look };
        match outcome {
            Outcome::Done(body) => match serde_json::from_slice::<Listing>(&body) {
                Ok(Listing { parcels }) => match parcels.into_iter().next() {
                    Some(parcel) => self.has(parcel.id, notes),
                    None if look < LOOKS => Next::Pause(Phase::Find { look: look + 1 }, self.poll_ms),
                    None => Next::Act(Phase::Send),
                },
                Err(error) => {
                    self.again(phase, &Hindrance::new("unreadable_answer", &error.to_string()), notes)
                }
            },
            Outcome::Later(hindrance) | Outcome::Doubtful(hindrance) => self.again(phase, &hindrance, notes),
            // Without a listing nobody can tell whether there is a parcel: another one might be paid twice.
            Outcome::Refused { status, .. } => {
                let code = format!("http_{status}");
                let end = End::failed(Ran::Unknown, false, &code, "Parcel Post does not list its parcels.");
                Next::Act(Phase::Over { end })
            }
        }
    }

    fn polled(&self, id: String, outcome: Outcome<Complaint>, notes: &mut Notes) -> Next<Phase> {
        let body = match outcome {
            Outcome::Done(body) => body,
            Outcome::Later(hindrance) | Outcome::Doubtful(hindrance) => {
                return self.again(Phase::Poll { id }, &hindrance, notes);
            }
            Outcome::Refused { status, .. } => {
                let hindrance = Hindrance::new(&format!("http_{status}"), "The parcel is not shown.");
                return self.again(Phase::Poll { id }, &hindrance, notes);
            }
        };
        let Ok(parcel) = serde_json::from_slice::<Parcel>(&body) else {
            let hindrance =
                Hindrance::new("unreadable_answer", "The parcel's answer is not what it should be.");
            return self.again(Phase::Poll { id }, &hindrance, notes);
        };
        notes.tries = 0;
        notes.done = parcel.done;
        let end =
            |how, missing| Next::Act(Phase::Read { id: id.clone(), end: End::Finished { how, missing } });
        match parcel.state.as_str() {
            "delivered" => end(How::Completed, Ran::Unknown),
            "expired" => end(How::Expired, Ran::Refused),
            "returned" => end(How::Cancelled, Ran::Refused),
            _ => {
                notes.polls += 1;
                Next::Pause(Phase::Poll { id }, self.pauses().before_poll(notes.polls))
            }
        }
    }

    fn read(&self, id: String, end: End, event: &Event, notes: &mut Notes) -> Next<Phase> {
        if matches!(event, Event::Read(summary) if summary.whole && summary.status == 200) {
            return Next::Act(Phase::Over { end });
        }
        self.again(
            Phase::Read { id, end },
            &Hindrance::new("unread", "The answers were not read to their end."),
            notes,
        )
    }
}

impl Protocol for Life<'_> {
    type Phase = Phase;
    type Notes = Notes;
    const VERSION: u32 = 1;

    fn begin(&self) -> Phase {
        Phase::Send
    }

    fn effect(&self, phase: &Phase) -> Effect {
        match phase {
            Phase::Send => Effect::Upload(Upload {
                method: "POST".into(),
                path: "/parcels".into(),
                headers: vec![],
                framing: Framing::JsonArray(Surround {
                    before: format!("{{\"label\":\"{}\",\"requests\":[", self.mark),
                    after: "]}".into(),
                }),
            }),
            Phase::Find { .. } => request("GET", format!("/parcels?label={}", self.mark)),
            Phase::Poll { id } => request("GET", format!("/parcels/{id}")),
            Phase::Return { id } => request("POST", format!("/parcels/{id}/return")),
            Phase::Read { id, .. } => Effect::Read(Reading {
                path: format!("/parcels/{id}/answers"),
                headers: vec![],
                source: "answers".into(),
                form: ReadingForm::Lines,
            }),
            Phase::Over { end } => end.effect(),
        }
    }

    fn react(&self, phase: Phase, event: Event, notes: &mut Notes) -> Next<Phase> {
        match phase {
            Phase::Send => self.sent(Outcome::of(event), notes),
            Phase::Find { look } => self.found(look, Outcome::of(event), notes),
            Phase::Poll { id } => self.polled(id, Outcome::of(event), notes),
            Phase::Return { id } => {
                // Whatever the answer: a look tells what came of it.
                notes.cancel = Cancel::Told;
                Next::Act(Phase::Poll { id })
            }
            Phase::Read { id, end } => self.read(id, end, &event, notes),
            Phase::Over { end } => Next::Act(Phase::Over { end }),
        }
    }

    fn stop(&self, next: Next<Phase>) -> Next<Phase> {
        match next.phase() {
            Phase::Send => {
                let end = End::Finished { how: How::Cancelled, missing: Ran::NotSent };
                Next::Act(Phase::Over { end })
            }
            Phase::Poll { id } => Next::Act(Phase::Return { id: id.clone() }),
            Phase::Find { .. } | Phase::Return { .. } | Phase::Read { .. } | Phase::Over { .. } => next,
        }
    }

    fn cancel(notes: &mut Notes) -> &mut Cancel {
        &mut notes.cancel
    }

    fn shown(&self, notes: &Notes) -> Shown {
        let progress = notes.id.is_some().then_some(Progress { completed: notes.done, failed: 0 });
        Shown { provider_id: notes.id.clone(), progress }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Life<'_> = Life { mark: "m1", poll_ms: 30_000 };

    /// What the plugin wants after these events, one after the other, with its state stored in between.
    fn after(events: Vec<Event>) -> Effect {
        let mut state = Vec::new();
        let mut effect = None;
        for event in events {
            let step = LIFE.batch_step(&state, event).unwrap();
            state = step.state;
            effect = Some(step.effect);
        }
        effect.unwrap()
    }

    fn answered(status: u16, body: &str) -> Event {
        Event::Answered(Response { status, headers: vec![], body: body.into() })
    }

    fn path(effect: &Effect) -> &str {
        match effect {
            Effect::Call(request) => &request.path,
            Effect::Upload(upload) => &upload.path,
            Effect::Read(reading) => &reading.path,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_parcel_is_sent_looked_at_and_read() {
        let polled = vec![Event::Start, answered(200, r#"{"id": "p1"}"#), Event::Waited];
        assert_eq!(path(&after(polled.clone())), "/parcels/p1");
        let delivered =
            [polled, vec![answered(200, r#"{"id": "p1", "state": "delivered", "done": 2}"#)]].concat();
        assert_eq!(path(&after(delivered)), "/parcels/p1/answers");
    }

    #[test]
    fn what_was_interrupted_is_looked_for_twice_before_it_is_sent_again() {
        let nothing = || answered(200, r#"{"parcels": []}"#);
        let looked = vec![Event::Start, Event::Interrupted, Event::Waited];
        assert_eq!(path(&after(looked.clone())), "/parcels?label=m1");
        let found =
            [looked.clone(), vec![answered(200, r#"{"parcels": [{"id": "p9"}]}"#), Event::Waited]].concat();
        assert_eq!(path(&after(found)), "/parcels/p9");
        let again = [looked, vec![nothing(), Event::Waited, nothing()]].concat();
        assert!(matches!(after(again), Effect::Upload(_)));
    }

    #[test]
    fn a_line_is_an_answer_or_none() {
        let Decoded::Result(result) = decode(br#"{"ref": "0-0", "status": 200, "answer": {}}"#) else {
            panic!()
        };
        assert!(result.id == "0-0" && matches!(result.outcome, ItemOutcome::Response(_)));
        let Decoded::Result(result) = decode(br#"{"ref": "0-1", "error": "expired"}"#) else { panic!() };
        assert!(matches!(result.outcome, ItemOutcome::Failed(_)));
        assert!(matches!(decode(b"<html>"), Decoded::Garbage(_)));
    }
}
