//! Lives of batches at a provider that fails in every way and is shared with other daemons, with the promises as
//! properties.

use offpeak_plugin::{
    DidItRun,
    provider::{Failure, ReadSummary, Response},
};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    tests::{MARK, batch},
    *,
};
use crate::lines::{Whose, whose};

/// The daemon stores no more than this.
const STATE_BYTES_MAX: usize = 64 * 1024;
/// All looks together, with the pauses before them.
const LOOKS_TAKE_MS: u64 = 130_000;
const START_MS: u64 = 1_800_000_000_000;
const MINUTE_MS: u64 = 60_000;

/// What goes wrong with one call.
#[derive(Debug, Clone, Copy)]
enum Fault {
    None,
    NotSent,
    /// The call's fate is unknown; it was done or not. This is what a crash looks like to the plugin.
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
    mark: String,
    items: u32,
    made_at_ms: u64,
    ends_at_ms: u64,
    cancelled: bool,
    deleted: bool,
}

/// What other daemons on the same account do, batch after batch: with how many items, and whether it is deleted when it
/// has ended.
#[derive(Debug, Clone)]
struct Neighbour {
    items: u32,
    runs_ms: u64,
    deletes: bool,
}

/// The provider, and what was done there.
#[derive(Debug, Clone)]
struct World {
    now_ms: u64,
    /// The oldest first.
    batches: Vec<MadeBatch>,
    /// How long a new batch is missing in the listing.
    listing_lag_ms: u64,
    /// How long our batch runs.
    runs_ms: u64,
    neighbours: Vec<Neighbour>,
    /// Results that were read to their end, by the batch's mark.
    read: Vec<String>,
}

impl World {
    fn ours(&self) -> Vec<&MadeBatch> {
        self.batches.iter().filter(|made| made.mark == MARK).collect()
    }

    fn create(&mut self, mark: &str, items: u32, runs_ms: u64) -> usize {
        let id = format!("msgbatch_{}", self.batches.len());
        let (made_at_ms, ends_at_ms) = (self.now_ms, self.now_ms + runs_ms);
        let mark = mark.to_owned();
        let (cancelled, deleted) = (false, false);
        self.batches.push(MadeBatch { id, mark, items, made_at_ms, ends_at_ms, cancelled, deleted });
        self.batches.len() - 1
    }

    /// Time passes, and neighbours use it.
    fn pass(&mut self, ms: u64) {
        self.now_ms += ms;
        if let Some(neighbour) = self.neighbours.pop() {
            let mark = format!("fedcba9876543210-{:x}", self.neighbours.len());
            self.create(&mark, neighbour.items, neighbour.runs_ms);
            if neighbour.deletes {
                let over =
                    self.batches.iter_mut().find(|made| made.mark != MARK && made.ends_at_ms < self.now_ms);
                if let Some(over) = over {
                    over.deleted = true;
                }
            }
        }
    }

    /// Does what is asked and answers.
    fn perform(&mut self, effect: &Effect) -> (u16, String) {
        self.pass(1_000);
        match effect {
            Effect::Upload(upload) => {
                assert_eq!((upload.method.as_str(), upload.path.as_str()), ("POST", BATCHES));
                let made = self.create(MARK, 2, self.runs_ms);
                (200, self.show(&self.batches[made]).to_string())
            }
            Effect::Call(request) => {
                let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
                let parts: Vec<&str> =
                    path.strip_prefix(BATCHES).unwrap().trim_start_matches('/').split('/').collect();
                match (request.method.as_str(), &parts[..]) {
                    ("GET", [""]) => (200, self.list(query).to_string()),
                    ("GET", [id]) => {
                        self.find(id).map_or_else(gone, |at| (200, self.show(&self.batches[at]).to_string()))
                    }
                    ("GET", [id, "results"]) => self.results(id),
                    ("POST", [id, "cancel"]) => self.cancel(id),
                    other => panic!("nobody answers {other:?}"),
                }
            }
            other => panic!("not a call: {other:?}"),
        }
    }

    fn find(&self, id: &str) -> Option<usize> {
        self.batches.iter().position(|made| made.id == id && !made.deleted)
    }

    fn show(&self, made: &MadeBatch) -> Value {
        let over = made.ends_at_ms <= self.now_ms;
        let status = match (over, made.cancelled) {
            (true, _) => "ended",
            (false, true) => "canceling",
            (false, false) => "in_progress",
        };
        let done = if made.cancelled { "canceled" } else { "succeeded" };
        let mut counts = json!({ "processing": 0 });
        counts[if over { done } else { "processing" }] = json!(made.items);
        let seconds = made.made_at_ms / 1000 - START_MS / 1000;
        let created_at = format!(
            "2027-01-15T{:02}:{:02}:{:02}.{:03}Z",
            8 + seconds / 3600,
            seconds / 60 % 60,
            seconds % 60,
            made.made_at_ms % 1000
        );
        json!({"id": made.id, "processing_status": status, "created_at": created_at, "request_counts": counts})
    }

    fn list(&self, query: &str) -> Value {
        let value = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        let is_shown =
            |made: &&MadeBatch| !made.deleted && made.made_at_ms + self.listing_lag_ms <= self.now_ms;
        let all: Vec<Value> =
            self.batches.iter().rev().filter(is_shown).map(|made| self.show(made)).collect();
        let after = value("after_id").and_then(|after| all.iter().position(|made| made["id"] == after));
        let start = after.map_or(0, |at| at + 1);
        // Short pages, so that there are several.
        let limit = value("limit").unwrap().parse::<usize>().unwrap().min(7);
        let data: Vec<Value> = all.iter().skip(start).take(limit).cloned().collect();
        json!({ "has_more": start + data.len() < all.len(), "data": data })
    }

    fn results(&self, id: &str) -> (u16, String) {
        let Some(made) = self.find(id).map(|at| &self.batches[at]) else { return gone() };
        assert!(made.ends_at_ms <= self.now_ms, "results were asked for before they are there");
        (200, format!("{{\"custom_id\":\"{}-0-0\",\"result\":{{\"type\":\"succeeded\"}}}}\n", made.mark))
    }

    fn cancel(&mut self, id: &str) -> (u16, String) {
        let Some(at) = self.find(id) else { return gone() };
        assert_eq!(self.batches[at].mark, MARK, "another's batch was stopped");
        if self.batches[at].ends_at_ms > self.now_ms {
            self.batches[at].cancelled = true;
            self.batches[at].ends_at_ms = self.now_ms + MINUTE_MS;
        }
        (200, self.show(&self.batches[at]).to_string())
    }
}

fn gone() -> (u16, String) {
    (404, String::new())
}

/// Lives a batch's life to its end and returns it. Every state is stored and read back.
fn live(world: &mut World, faults: &[Fault]) -> Effect {
    const STEPS_MAX: usize = 20_000;
    let (batch, config) = (batch(), Config::default());
    let context = Context { batch: &batch, config: &config };
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
        event = happen(world, &step.effect, faults.next().unwrap_or(Fault::None));
    }
    panic!("the protocol does not come to an end");
}

/// One effect, with what goes wrong.
fn happen(world: &mut World, effect: &Effect, fault: Fault) -> Event {
    let answer = match effect {
        Effect::Wait(ms) => {
            world.pass(*ms);
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
        (Fault::None, Some((status, body))) => response(status, body),
        (Fault::Nonsense, _) => response(200, "<html>".to_owned()),
        (Fault::NotSent | Fault::None, _) => Event::NotSent("down".to_owned()),
        (Fault::Interrupted { .. }, _) => Event::Interrupted,
        (Fault::ServerError { .. }, _) => response(502, "bad gateway".to_owned()),
        (Fault::Busy, _) => response(429, String::new()),
        (Fault::Cancel { .. }, _) => Event::Cancel,
    }
}

fn happen_reading(world: &mut World, reading: &Reading, fault: Fault) -> Event {
    let id = reading.path.trim_start_matches(BATCHES).trim_matches('/').trim_end_matches("/results");
    let (status, text) = world.results(id);
    let is_ours = whose(text.as_bytes(), MARK) == Whose::Ours;
    let summary = |status, results, whole| {
        Event::Read(ReadSummary { source: reading.source.clone(), status, lines: 1, results, whole })
    };
    match fault {
        Fault::None => {
            if reading.source == RESULTS {
                assert!(is_ours, "another's results were read as ours");
                world.read.push(MARK.to_owned());
            }
            summary(status, u32::from(is_ours), true)
        }
        Fault::Nonsense => summary(200, 0, false),
        Fault::ServerError { .. } => summary(500, 0, true),
        Fault::Busy => summary(429, 0, true),
        Fault::NotSent => Event::NotSent("down".to_owned()),
        Fault::Interrupted { .. } => Event::Interrupted,
        Fault::Cancel { .. } => Event::Cancel,
    }
}

fn any_world(deletes: impl Strategy<Value = bool> + Clone) -> impl Strategy<Value = World> {
    let neighbour = (1_u32..5, 0_u64..60 * MINUTE_MS, deletes)
        .prop_map(|(items, runs_ms, deletes)| Neighbour { items, runs_ms, deletes });
    let neighbours = proptest::collection::vec(neighbour, 0..30);
    (0_u32..20, 0..LOOKS_TAKE_MS, 0_u64..60 * MINUTE_MS, neighbours).prop_map(
        |(before, listing_lag_ms, runs_ms, neighbours)| {
            let (batches, read) = (Vec::new(), Vec::new());
            let mut world = World { now_ms: START_MS, batches, listing_lag_ms, runs_ms, neighbours, read };
            for number in 0..before {
                world.create(
                    &format!("fedcba9876543210-ff{number:x}"),
                    1 + number % 4,
                    u64::from(number) * MINUTE_MS,
                );
                world.now_ms += 7_000;
            }
            world
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// Whatever goes wrong and whoever else creates batches of the same size, the provider runs ours once, all it shows
    /// is read, and nobody else's is taken for it.
    #[test]
    fn one_batch_and_its_results(
        mut world in any_world(Just(false)),
        faults in proptest::collection::vec(any_fault(), 0..40),
    ) {
        let end = live(&mut world, &faults);
        let ours = world.ours().len();
        prop_assert!(ours <= 1, "created {ours} times");
        match end {
            Effect::Failed(Failure { ran: DidItRun::NotSent, temporary: true, .. }) => {
                prop_assert_eq!(ours, 0, "given back as not sent");
            }
            Effect::Failed(failure) => return Err(TestCaseError::fail(format!("{failure:?}"))),
            _ => prop_assert_eq!((ours, world.read.is_empty()), (1, false)),
        }
    }

    /// Where others delete theirs, it is not always known whose a vanished batch was. Then that is said, and still nothing
    /// is created twice.
    #[test]
    fn what_vanishes_is_not_taken_for_what_never_was(
        mut world in any_world(any::<bool>()),
        faults in proptest::collection::vec(any_fault(), 0..40),
    ) {
        let end = live(&mut world, &faults);
        let ours = world.ours().len();
        prop_assert!(ours <= 1, "created {ours} times");
        match end {
            Effect::Failed(Failure { ran: DidItRun::NotSent, .. }) => prop_assert_eq!(ours, 0),
            Effect::Failed(failure) => prop_assert_eq!(failure.code, "creation_undecided"),
            _ => prop_assert_eq!((ours, world.read.is_empty()), (1, false)),
        }
    }

    /// Stopping at any moment leaves no batch running that nobody follows, and stops nobody else's.
    #[test]
    fn a_stopped_batch_is_followed_or_was_never_made(
        mut world in any_world(Just(false)),
        mut faults in proptest::collection::vec(any_fault(), 0..20),
        done in any::<bool>(),
    ) {
        faults.push(Fault::Cancel { done });
        let end = live(&mut world, &faults);
        let ours = world.ours().len();
        prop_assert!(ours <= 1);
        prop_assert_eq!(ours == 1, !world.read.is_empty(), "{:?}", end);
    }

    /// Whatever a provider sends, in whatever order events come: no panic, a small state, bounded pauses, and never a
    /// second creation before the listing was searched to its end.
    #[test]
    fn any_sequence_of_events(events in proptest::collection::vec(any_event(), 0..60)) {
        let (batch, config) = (batch(), Config::default());
        let context = Context { batch: &batch, config: &config };
        let mut stored = Vec::new();
        let mut outstanding: Option<Effect> = None;
        let mut searches_needed = 0;
        for event in [Event::Start].into_iter().chain(events) {
            let was_creation = matches!(outstanding, Some(Effect::Upload(_)));
            if was_creation && !is_decided(&event) {
                searches_needed = 3;
            } else if is_listing(outstanding.as_ref()) && ends_listing(&event) {
                searches_needed -= i32::from(searches_needed > 0);
            }
            let step = batch_step(&stored, event, context).unwrap();
            prop_assert!(step.state.len() <= STATE_BYTES_MAX);
            if let Effect::Wait(ms) = step.effect {
                prop_assert!(ms <= 86_400_000, "{ms}");
            }
            let creates = matches!(step.effect, Effect::Upload(_));
            prop_assert!(!creates || searches_needed == 0, "created again without having looked");
            stored = step.state;
            outstanding = Some(step.effect);
        }
    }
}

fn is_listing(effect: Option<&Effect>) -> bool {
    matches!(effect, Some(Effect::Call(request)) if request.path.starts_with("/v1/messages/batches?limit=1000"))
}

/// The creation was done and its answer understood, or it was surely not done.
fn is_decided(event: &Event) -> bool {
    match event {
        Event::NotSent(_) => true,
        Event::Answered(response) if response.status < 300 => {
            serde_json::from_slice::<crate::wire::MessageBatch>(&response.body).is_ok()
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
        prop_oneof![4 => Just(200_u16), 1 => Just(429), 1 => Just(404), 1 => Just(500), 1 => 200_u16..600];
    let headers = prop_oneof![
        Just(Vec::new()),
        "[0-9.eE-]{0,6}".prop_map(|value| vec![Header { name: "retry-after".into(), value }])
    ];
    let id = "[a-c]";
    let made = (id, "in_progress|canceling|ended|odd", 0_u32..5).prop_map(|(id, status, processing)| {
        json!({"id": id, "processing_status": status, "request_counts": {"processing": processing}})
    });
    let lists = (proptest::collection::vec(made.clone(), 0..4), any::<bool>())
        .prop_map(|(data, has_more)| json!({"data": data, "has_more": has_more}));
    let body = prop_oneof![
        made,
        lists,
        Just(json!({"custom_id": format!("{MARK}-0-0"), "result": {"type": "expired"}})),
        Just(json!({"custom_id": "fedcba9876543210-1-0-0", "result": {"type": "expired"}})),
        Just(json!({"type": "error", "error": {"type": "x".repeat(10_000), "message": "y".repeat(100_000)}})),
        Just(json!({"id": "z".repeat(100_000), "processing_status": "in_progress"})),
        Just(json!("nonsense")),
    ];
    let answered = (status, headers, body).prop_map(|(status, headers, body)| {
        Event::Answered(Response { status, headers, body: body.to_string().into_bytes() })
    });
    let read = ("results|proof|other", prop_oneof![Just(200_u16), 200_u16..600], 0_u32..3, any::<bool>())
        .prop_map(|(source, status, results, whole)| {
            Event::Read(ReadSummary { source, status, lines: 2, results, whole })
        });
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
