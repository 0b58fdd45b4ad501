//! Lives of batches at a provider that fails in every way, with the promises as properties.

use offpeak_plugin::{
    DidItRun,
    provider::{Failure, ReadSummary, Response},
};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{tests::batch, *};
use crate::dialect::{DialectName, Over};

/// The daemon stores no more than this.
const STATE_BYTES_MAX: usize = 64 * 1024;

/// What goes wrong with one call.
#[derive(Debug, Clone, Copy)]
enum Fault {
    None,
    NotSent,
    /// The call's fate is unknown; it was done or not.
    Interrupted {
        done: bool,
    },
    /// An error of the server's; the call was done or not.
    ServerError {
        done: bool,
    },
    Busy,
    /// It was done, but the answer is not JSON.
    Nonsense,
    /// Somebody wants to stop instead of the answer; the call was done or not.
    Cancel {
        done: bool,
    },
}

impl Fault {
    fn is_done(self) -> bool {
        match self {
            Self::None | Self::Nonsense => true,
            Self::NotSent | Self::Busy => false,
            Self::Interrupted { done } | Self::ServerError { done } | Self::Cancel { done } => done,
        }
    }
}

fn any_fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        4 => Just(Fault::None),
        1 => Just(Fault::NotSent),
        3 => any::<bool>().prop_map(|done| Fault::Interrupted { done }),
        2 => any::<bool>().prop_map(|done| Fault::ServerError { done }),
        1 => Just(Fault::Busy),
        1 => Just(Fault::Nonsense),
    ]
}

#[derive(Debug, Clone)]
struct MadeBatch {
    id: String,
    input: String,
    metadata: Value,
    made_at_ms: u64,
    looks: u32,
    cancelled: bool,
}

/// The provider, and what the daemon did there.
#[derive(Debug, Clone)]
struct World {
    dialect: DialectName,
    now_ms: u64,
    /// Uploaded files, the oldest first.
    files: Vec<(String, String)>,
    /// All batches, the oldest first.
    batches: Vec<MadeBatch>,
    /// How long a new batch is missing in the listing.
    listing_lag_ms: u64,
    /// Looks until a batch is over, and how it ends.
    looks: u32,
    ending: Over,
    has_output: bool,
    has_errors: bool,
    read: Vec<&'static str>,
}

impl World {
    fn api(&self) -> &'static BatchApi {
        self.dialect.dialect().batch_api.as_ref().unwrap()
    }

    fn ours(&self) -> Vec<&MadeBatch> {
        let name =
            |made: &&MadeBatch| self.files.iter().any(|(id, name)| *id == made.input && name.contains("m1"));
        self.batches.iter().filter(name).collect()
    }

    /// Does what is asked and answers.
    fn perform(&mut self, effect: &Effect) -> (u16, Value) {
        let root = self.dialect.dialect().root;
        let api = self.api();
        match effect {
            Effect::Upload(Upload { path, framing: Framing::Multipart(multipart), .. }) => {
                assert_eq!(*path, format!("{root}{}", api.upload));
                let id = format!("file-{}", self.files.len());
                self.files.push((id.clone(), multipart.file_name.clone()));
                (200, json!({ "id": id }))
            }
            Effect::Call(request) => {
                let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
                let path = path.strip_prefix(root).unwrap().replacen(api.batches, "/batches", 1);
                let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
                match (request.method.as_str(), &parts[..]) {
                    ("GET", ["files"]) => self.list_files(query),
                    ("DELETE", ["files", _]) => (200, json!({"deleted": true})),
                    ("POST", ["batches"]) => self.create(request),
                    ("GET", ["batches"]) => self.list_batches(query),
                    ("GET", ["batches", id]) => self.look(id, false),
                    ("POST", ["batches", id, "cancel"]) => self.look(id, true),
                    other => panic!("nobody answers {other:?}"),
                }
            }
            other => panic!("not a call: {other:?}"),
        }
    }

    fn create(&mut self, request: &Request) -> (u16, Value) {
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        let input = if self.api().creation == Creation::Job {
            &body["input_files"][0]
        } else {
            &body["input_file_id"]
        };
        let input = input.as_str().unwrap().to_owned();
        assert!(self.files.iter().any(|(id, _)| *id == input), "an unknown file");
        let key = |header: &&Header| Some(header.name.as_str()) == self.api().idempotency_header;
        let is_again = request.headers.iter().any(|header| key(&header));
        if let Some(made) = self.ours().first().filter(|_| is_again) {
            return (200, self.show(made));
        }
        let made = MadeBatch {
            id: format!("batch_{}", self.batches.len()),
            input,
            metadata: body["metadata"].clone(),
            made_at_ms: self.now_ms,
            looks: 0,
            cancelled: false,
        };
        let shown = self.show(&made);
        self.batches.push(made);
        let is_wrapped = self.api().creation == Creation::BatchWithoutMetadata;
        (200, if is_wrapped { json!({ "job": shown, "warning": null }) } else { shown })
    }

    fn show(&self, made: &MadeBatch) -> Value {
        let is_over = made.looks >= self.looks;
        let name = |over: Over| self.api().over.iter().find(|(_, known)| *known == over).unwrap().0;
        let status = match (is_over, made.cancelled) {
            (true, true) => name(Over::Cancelled),
            (true, false) => name(self.ending),
            (false, true) => "cancelling",
            (false, false) => "in_progress",
        };
        let (output, errors) = (
            (is_over && self.has_output).then_some("file-out"),
            (is_over && self.has_errors).then_some("file-err"),
        );
        let completed = u32::from(self.has_output);
        match self.api().creation {
            Creation::Batch => json!({"id": made.id, "status": status, "input_file_id": made.input,
                "metadata": made.metadata, "created_at": made.made_at_ms / 1000, "output_file_id": output,
                "error_file_id": errors, "errors": null,
                "request_counts": {"total": 2, "completed": completed, "failed": 2 - completed}}),
            Creation::BatchWithoutMetadata => {
                json!({"id": made.id, "status": status, "input_file_id": made.input,
                "created_at": "2026-11-25T00:00:00Z", "output_file_id": output, "error_file_id": errors,
                "error": null, "progress": 50.0})
            }
            Creation::Job => json!({"id": made.id, "status": status, "input_files": [made.input],
                "metadata": made.metadata, "created_at": made.made_at_ms / 1000, "output_file": output,
                "error_file": errors, "errors": [], "total_requests": 2, "completed_requests": 2,
                "succeeded_requests": completed, "failed_requests": 2 - completed}),
        }
    }

    fn look(&mut self, id: &str, cancel: bool) -> (u16, Value) {
        let Some(index) = self.batches.iter().position(|made| made.id == id) else { return (404, json!({})) };
        self.batches[index].looks += 1;
        self.batches[index].cancelled |= cancel && self.batches[index].looks < self.looks;
        (200, self.show(&self.batches[index].clone()))
    }

    fn list_files(&self, query: &str) -> (u16, Value) {
        let all: Vec<Value> =
            self.files.iter().rev().map(|(id, name)| json!({"id": id, "filename": name})).collect();
        (200, self.page(all, query))
    }

    fn list_batches(&self, query: &str) -> (u16, Value) {
        let visible = |made: &&MadeBatch| made.made_at_ms + self.listing_lag_ms <= self.now_ms;
        let all: Vec<Value> = self.batches.iter().rev().filter(visible).map(|made| self.show(made)).collect();
        (200, self.page(all, query))
    }

    /// A page of a listing, as the API pages.
    fn page(&self, all: Vec<Value>, query: &str) -> Value {
        let value = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        let number = |name: &str| value(name).unwrap().parse::<usize>().unwrap();
        match self.api().paging {
            Paging::Whole => Value::from(all),
            Paging::Numbered => {
                let size = number("page_size");
                let data: Vec<Value> = all.iter().skip(number("page") * size).take(size).cloned().collect();
                json!({ "data": data, "object": "list", "total": all.len() })
            }
            Paging::Cursor => {
                let after = value("after").and_then(|after| all.iter().position(|item| item["id"] == after));
                let start = after.map_or(0, |index| index + 1);
                let data: Vec<Value> = all.iter().skip(start).take(number("limit")).cloned().collect();
                json!({ "has_more": start + data.len() < all.len(), "data": data })
            }
        }
    }
}

/// Lives a batch's life to its end and returns it. Every state is stored and read back.
fn live(world: &mut World, faults: &[Fault]) -> Effect {
    const STEPS_MAX: usize = 5_000;
    let batch = batch();
    let config = Config { dialect: world.dialect, ..Config::default() };
    let context = Context::new(&batch, &config).unwrap();
    let mut faults = faults.iter().copied();
    let mut stored = Vec::new();
    let mut event = Event::Start;
    for _ in 0..STEPS_MAX {
        let step = batch_step(&stored, event, context).unwrap();
        assert!(step.state.len() <= STATE_BYTES_MAX);
        stored = step.state;
        if matches!(step.effect, Effect::Finished(_) | Effect::Failed(_)) {
            return step.effect;
        }
        let fault = faults.next().unwrap_or(Fault::None);
        event = happen(world, &step.effect, fault);
    }
    panic!("the protocol does not come to an end");
}

/// One effect, with what goes wrong.
fn happen(world: &mut World, effect: &Effect, fault: Fault) -> Event {
    let answer = match effect {
        Effect::Wait(ms) => {
            world.now_ms += ms;
            return match fault {
                Fault::Interrupted { .. } => Event::Interrupted,
                Fault::Cancel { .. } => Event::Cancel,
                _ => Event::Waited,
            };
        }
        Effect::Read(reading) => return happen_reading(world, reading, fault),
        effect => fault.is_done().then(|| world.perform(effect)),
    };
    let response = |status, body: String| {
        Event::Answered(Response { status, headers: Vec::new(), body: body.into_bytes() })
    };
    match (fault, answer) {
        (Fault::None, Some((status, body))) => response(status, body.to_string()),
        (Fault::Nonsense, _) => response(200, "<html>".to_owned()),
        (Fault::NotSent | Fault::None, _) => Event::NotSent("down".to_owned()),
        (Fault::Interrupted { .. }, _) => Event::Interrupted,
        (Fault::ServerError { .. }, _) => response(502, "bad gateway".to_owned()),
        (Fault::Busy, _) => response(429, String::new()),
        (Fault::Cancel { .. }, _) => Event::Cancel,
    }
}

fn happen_reading(world: &mut World, reading: &Reading, fault: Fault) -> Event {
    let summary = |status, whole| {
        Event::Read(ReadSummary { source: reading.source.clone(), status, lines: 1, results: 1, whole })
    };
    match fault {
        Fault::None => {
            world.read.push(if reading.path.contains("file-out") { "file-out" } else { "file-err" });
            summary(200, true)
        }
        Fault::Nonsense => summary(200, false),
        Fault::ServerError { .. } => summary(500, true),
        Fault::Busy => summary(429, true),
        Fault::NotSent => Event::NotSent("down".to_owned()),
        Fault::Interrupted { .. } => Event::Interrupted,
        Fault::Cancel { .. } => Event::Cancel,
    }
}

fn any_world() -> impl Strategy<Value = World> {
    let ending =
        prop_oneof![Just(Over::Completed), Just(Over::Expired), Just(Over::Failed), Just(Over::Cancelled)];
    let dialects = DialectName::ALL.into_iter().filter(|name| name.dialect().batch_api.is_some());
    let dialect = proptest::sample::select(dialects.collect::<Vec<_>>());
    // Within the two looks that are taken, 10 s each.
    let lag_ms = 0_u64..15_000;
    (dialect, 0_usize..130, lag_ms, 0_u32..5, ending, any::<bool>(), any::<bool>()).prop_map(
        |(dialect, foreign, listing_lag_ms, looks, ending, has_output, has_errors)| {
            let start_ms = batch().created_at_ms;
            let batches = (0..foreign)
                .map(|index| MadeBatch {
                    id: format!("batch_{index}"),
                    input: format!("foreign-{index}"),
                    metadata: json!({"offpeak_batch": "another"}),
                    made_at_ms: start_ms,
                    looks: 0,
                    cancelled: false,
                })
                .collect();
            let files =
                (0..foreign).map(|index| (format!("file-{index}"), "another.jsonl".to_owned())).collect();
            let read = Vec::new();
            World {
                dialect,
                now_ms: start_ms,
                files,
                batches,
                listing_lag_ms,
                looks,
                ending,
                has_output,
                has_errors,
                read,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// Whatever goes wrong, the provider runs the batch once, and everything it shows is read.
    #[test]
    fn one_batch_and_all_its_results(
        mut world in any_world(),
        faults in proptest::collection::vec(any_fault(), 0..40),
    ) {
        let end = live(&mut world, &faults);
        let ours = world.ours().len();
        prop_assert!(ours <= 1, "created {ours} times");
        match end {
            Effect::Failed(Failure { ran: DidItRun::NotSent, temporary: true, .. }) => {
                prop_assert_eq!(ours, 0, "given back as not sent");
            }
            Effect::Failed(failure) => prop_assert_eq!(world.ending, Over::Failed, "{:?}", failure),
            _ => prop_assert_eq!(ours, 1),
        }
        if ours == 1 {
            prop_assert_eq!(world.read.contains(&"file-out"), world.has_output);
            prop_assert_eq!(world.read.contains(&"file-err"), world.has_errors);
        }
    }

    /// Stopping at any moment leaves no batch running that nobody follows.
    #[test]
    fn a_stopped_batch_is_told_or_was_never_made(
        mut world in any_world(),
        mut faults in proptest::collection::vec(any_fault(), 0..20),
        done in any::<bool>(),
    ) {
        faults.push(Fault::Cancel { done });
        world.looks += 20; // it does not end by itself before
        live(&mut world, &faults);
        let ours = world.ours();
        prop_assert!(ours.len() <= 1);
        prop_assert!(ours.iter().all(|made| made.cancelled || made.looks >= world.looks));
    }

    /// Whatever a provider sends, in whatever order events come: no panic, a small state, bounded pauses, and never a
    /// second creation before a listing was searched to its end.
    #[test]
    fn any_sequence_of_events(events in proptest::collection::vec(any_event(), 0..60)) {
        let config = Config::default();
        let batch = batch();
        let context = Context::new(&batch, &config).unwrap();
        let mut stored = Vec::new();
        let mut outstanding = None;
        let mut in_doubt = false;
        for event in [Event::Start].into_iter().chain(events) {
            let was_creation = is_call(outstanding.as_ref(), "POST", "/v1/batches");
            in_doubt |= was_creation && !is_decided(&event);
            in_doubt &= !(is_call(outstanding.as_ref(), "GET", "/v1/batches?") && ends_listing(&event));

            let step = batch_step(&stored, event, context).unwrap();
            prop_assert!(step.state.len() <= STATE_BYTES_MAX);
            if let Effect::Wait(ms) = step.effect {
                prop_assert!(ms <= 86_400_000, "{ms}");
            }
            let creates = is_call(Some(&step.effect), "POST", "/v1/batches");
            prop_assert!(!(creates && in_doubt), "created again without having looked");
            stored = step.state;
            outstanding = Some(step.effect);
        }
    }
}

fn is_call(effect: Option<&Effect>, method: &str, path: &str) -> bool {
    matches!(effect, Some(Effect::Call(request)) if request.method == method
        && (request.path == path || (path.ends_with('?') && request.path.starts_with(path))))
}

/// The creation was done and its answer understood, or it was surely not done.
fn is_decided(event: &Event) -> bool {
    match event {
        Event::NotSent(_) => true,
        Event::Answered(response) if response.status < 300 => {
            serde_json::from_slice::<crate::wire::BatchObject>(&response.body).is_ok()
        }
        Event::Answered(response) => response.status < 500 && response.status != 408,
        _ => false,
    }
}

fn ends_listing(event: &Event) -> bool {
    let Event::Answered(response) = event else { return false };
    let Ok(list) = serde_json::from_slice::<Value>(&response.body) else { return false };
    response.status < 300 && list["data"].is_array() && list["has_more"] != true
}

fn any_event() -> impl Strategy<Value = Event> {
    let status =
        prop_oneof![Just(200_u16), Just(200), Just(200), Just(429), Just(404), Just(500), 200_u16..600];
    let headers = prop_oneof![
        Just(Vec::new()),
        "[0-9.eE-]{0,6}".prop_map(|value| vec![Header { name: "retry-after".into(), value }])
    ];
    let body = prop_oneof![
        Just(json!({"id": "file-1"})),
        ("validating|completed|failed|expired|cancelled|odd", any::<bool>(), any::<bool>())
            .prop_map(|(status, output, errors)| json!({"id": "batch_1", "status": status,
                "output_file_id": output.then_some("file-2"), "error_file_id": errors.then_some("file-3")})),
        any::<bool>().prop_map(|has_more| json!({"data": [], "has_more": has_more})),
        any::<bool>()
            .prop_map(|has_more| json!({"data": [{"id": "x", "status": "completed"}], "has_more": has_more})),
        Just(json!({"error": {"code": "x".repeat(10_000), "message": "y".repeat(100_000)}})),
        Just(json!({"id": "z".repeat(100_000), "status": "in_progress"})),
        Just(json!("nonsense")),
    ];
    let answered = (status, headers, body).prop_map(|(status, headers, body)| {
        Event::Answered(Response { status, headers, body: body.to_string().into_bytes() })
    });
    let read = ("output|errors|other", prop_oneof![Just(200_u16), 200_u16..600], any::<bool>()).prop_map(
        |(source, status, whole)| Event::Read(ReadSummary { source, status, lines: 1, results: 1, whole }),
    );
    prop_oneof![
        8 => answered,
        6 => Just(Event::Waited),
        2 => read,
        2 => Just(Event::Interrupted),
        1 => Just(Event::NotSent("no".to_owned())),
        1 => Just(Event::Cancel),
        1 => Just(Event::Start),
    ]
}
