//! One scenario a test: events in, effects out.

use offpeak_plugin::{
    DidItRun,
    batch::StateOf,
    provider::{Ending, Failure, Finish, Progress, ReadSummary, Response},
};
use serde_json::{Value, json};

use super::*;

pub(super) const MARK: &str = "0123456789abcdef-1";

pub(super) fn batch() -> Batch {
    Batch {
        mark: MARK.into(),
        endpoint: "/v1/messages".into(),
        model: "claude".into(),
        offer: "batch".into(),
        items: 3,
        waiting: 2,
        only: None,
        headers: vec![],
        created_at_ms: 0,
    }
}

/// A batch's life, driven by hand. The state is stored and read back at every step.
struct Life {
    config: Config,
    stored: Vec<u8>,
    last: Option<Step>,
}

impl Life {
    fn begin() -> (Self, Effect) {
        let mut life = Self { config: Config::default(), stored: Vec::new(), last: None };
        let effect = life.on(Event::Start);
        (life, effect)
    }

    fn on(&mut self, event: Event) -> Effect {
        let batch = batch();
        let step = batch_step(&self.stored, event, Context { batch: &batch, config: &self.config }).unwrap();
        self.stored.clone_from(&step.state);
        let effect = step.effect.clone();
        self.last = Some(step);
        effect
    }

    /// Answers, and sits out the waits that follow.
    fn answer(&mut self, status: u16, body: &Value) -> Effect {
        let effect = self.on(answered(status, body));
        self.wait_out(effect)
    }

    fn wait_out(&mut self, mut effect: Effect) -> Effect {
        while matches!(effect, Effect::Wait(_)) {
            effect = self.on(Event::Waited);
        }
        effect
    }

    /// After the fence was seen: the items are going out.
    fn creating() -> Self {
        let (mut life, effect) = Self::begin();
        assert_eq!(sent(&effect), "GET /v1/messages/batches?limit=1");
        let effect = life.answer(200, &list(&[made("fence", 0, 5)], true));
        assert_eq!(sent(&effect), "POST /v1/messages/batches");
        life
    }

    fn polling() -> Self {
        let mut life = Self::creating();
        let effect = life.answer(200, &made("ours", 10, 2));
        assert_eq!(sent(&effect), "GET /v1/messages/batches/ours");
        life
    }

    /// The creation was interrupted; the listing shows these at every look. Returns what follows.
    fn hunting(listed: &[Value]) -> (Self, Effect) {
        let mut life = Self::creating();
        let mut effect = life.on(Event::Interrupted);
        assert_eq!(effect, Effect::Wait(10_000), "time to settle");
        for _ in 0..3 {
            effect = life.wait_out(effect);
            assert_eq!(sent(&effect), LISTING);
            effect = life.on(answered(200, &list(listed, false)));
        }
        let effect = life.wait_out(effect);
        (life, effect)
    }
}

const LISTING: &str = "GET /v1/messages/batches?limit=1000";

fn answered(status: u16, body: &Value) -> Event {
    Event::Answered(Response { status, headers: vec![], body: body.to_string().into_bytes() })
}

fn body(text: &str) -> Event {
    Event::Answered(Response { status: 200, headers: vec![], body: text.as_bytes().to_vec() })
}

/// A batch that was made so many minutes after the fence.
fn made(id: &str, minutes: u32, items: u32) -> Value {
    json!({"id": id, "type": "message_batch", "processing_status": "in_progress",
        "created_at": format!("2026-11-25T{:02}:{:02}:00.5Z", 10 + minutes / 60, minutes % 60),
        "request_counts": {"processing": items, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0},
        "results_url": null})
}

fn ended(id: &str, minutes: u32, succeeded: u32, expired: u32, canceled: u32) -> Value {
    let mut batch = made(id, minutes, 0);
    batch["processing_status"] = json!("ended");
    batch["request_counts"]["succeeded"] = json!(succeeded);
    batch["request_counts"]["expired"] = json!(expired);
    batch["request_counts"]["canceled"] = json!(canceled);
    batch
}

fn list(batches: &[Value], has_more: bool) -> Value {
    json!({"data": batches, "has_more": has_more})
}

fn lines(mark: &str) -> String {
    format!(
        "{{\"custom_id\":\"{mark}-0-0\",\"result\":{{\"type\":\"expired\"}}}}\n{{\"custom_id\":\"{mark}-0-"
    )
}

fn read_event(source: &str, status: u16, results: u32, whole: bool) -> Event {
    Event::Read(ReadSummary { source: source.into(), status, lines: 2, results, whole })
}

/// What an effect sends, in short.
fn sent(effect: &Effect) -> String {
    match effect {
        Effect::Call(request) => format!("{} {}", request.method, request.path),
        Effect::Upload(upload) => format!("{} {}", upload.method, upload.path),
        Effect::Read(reading) => format!("READ {} as {}", reading.path, reading.source),
        other => format!("{other:?}"),
    }
}

fn failure(effect: Effect) -> Failure {
    match effect {
        Effect::Failed(failure) => failure,
        other => panic!("not failed: {other:?}"),
    }
}

fn finish(effect: Effect) -> Finish {
    match effect {
        Effect::Finished(finish) => finish,
        other => panic!("not finished: {other:?}"),
    }
}

// === The straight way ===

#[test]
fn from_items_to_results() {
    let (mut life, _) = Life::begin();
    let Effect::Upload(upload) = life.answer(200, &list(&[], false)) else { panic!("no upload") };
    let expected = Surround { before: "{\"requests\":[".into(), after: "]}".into() };
    assert_eq!((upload.path.as_str(), upload.framing), (BATCHES, Framing::JsonArray(expected)));
    let names: Vec<&str> = upload.headers.iter().map(|header| header.name.as_str()).collect();
    assert_eq!(names, ["anthropic-version", "content-type"]);

    let wait = life.on(answered(200, &made("ours", 1, 2)));
    assert!(matches!(wait, Effect::Wait(ms) if (20_000..=30_000).contains(&ms)), "{wait:?}");
    assert_eq!(life.last.as_ref().unwrap().provider_id.as_deref(), Some("ours"));
    assert_eq!(sent(&life.on(Event::Waited)), "GET /v1/messages/batches/ours");
    let effect = life.answer(200, &ended("ours", 1, 2, 0, 0));
    assert_eq!(sent(&effect), "READ /v1/messages/batches/ours/results as results");
    assert_eq!(life.last.as_ref().unwrap().progress, Some(Progress { completed: 2, failed: 0 }));
    let end = finish(life.on(read_event("results", 200, 2, true)));
    assert_eq!(end, Finish { ending: Ending::Completed, missing: DidItRun::Unknown });
    // The end stays the end.
    assert_eq!(finish(life.on(Event::Interrupted)), end);
}

#[test]
fn the_clients_headers_travel_with_every_call() {
    let beta = Header { name: "anthropic-beta".into(), value: "x".into() };
    let version = Header { name: "anthropic-version".into(), value: "2026-10-21".into() };
    let batch = Batch { headers: vec![beta.clone(), version.clone()], ..batch() };
    let config = Config::default();
    let context = Context { batch: &batch, config: &config };
    let Effect::Call(fence) = batch_step(b"", Event::Start, context).unwrap().effect else {
        panic!("no call")
    };
    assert_eq!(fence.headers, [beta, version]);
}

#[test]
fn an_end_says_how_it_was() {
    for ((succeeded, expired, canceled), ending) in
        [((2, 0, 0), Ending::Completed), ((1, 1, 0), Ending::Expired), ((1, 0, 1), Ending::Cancelled)]
    {
        let mut life = Life::polling();
        life.answer(200, &ended("ours", 10, succeeded, expired, canceled));
        assert_eq!(finish(life.on(read_event("results", 200, 2, true))).ending, ending);
    }
}

// === Creating at most once ===

#[test]
fn what_was_surely_not_done_is_repeated_without_a_look() {
    for event in [Event::NotSent("no route".into()), answered(429, &json!({}))] {
        let mut life = Life::creating();
        let effect = life.on(event);
        assert!(matches!(effect, Effect::Wait(ms) if ms <= 1_000));
        assert_eq!(sent(&life.on(Event::Waited)), "GET /v1/messages/batches?limit=1", "a newer fence");
        assert_eq!(sent(&life.answer(200, &list(&[], false))), "POST /v1/messages/batches");
    }
}

#[test]
fn three_looks_with_growing_pauses_come_before_another_creation() {
    for event in [
        Event::Interrupted,
        Event::Waited,
        answered(500, &json!({})),
        answered(529, &json!({})),
        answered(408, &json!({})),
        answered(200, &json!({"id": 7})),
    ] {
        let mut life = Life::creating();
        let mut effect = life.on(event);
        for pause_ms in [10_000, 30_000, 90_000] {
            assert_eq!(effect, Effect::Wait(pause_ms));
            assert_eq!(sent(&life.on(Event::Waited)), LISTING);
            // An unreadable page and an outage are not the end of the listing.
            assert_eq!(sent(&life.answer(200, &json!({"data": "?"}))), LISTING);
            assert_eq!(sent(&life.answer(503, &json!({}))), LISTING);
            effect = life.on(answered(200, &list(&[made("fence", 0, 5)], false)));
        }
        assert!(matches!(effect, Effect::Wait(ms) if ms <= 1_000), "{effect:?}");
        assert_eq!(sent(&life.on(Event::Waited)), "POST /v1/messages/batches");
        // The fence stays where it is from now on: the first creation may still show up.
        let effect = life.answer(429, &json!({}));
        assert_eq!(sent(&effect), "POST /v1/messages/batches");
    }
}

#[test]
fn the_search_ends_at_the_fence_and_follows_pages_to_there() {
    let mut life = Life::creating();
    let effect = life.on(Event::Interrupted);
    life.wait_out(effect);
    let effect = life.answer(200, &list(&[made("b9", 20, 9), made("b8", 15, 9)], true));
    assert_eq!(sent(&effect), "GET /v1/messages/batches?limit=1000&after_id=b8");
    // Older than the fence by more than the provider's clocks differ.
    let mut old = made("b1", 0, 2);
    old["created_at"] = json!("2026-11-25T09:58:00Z");
    let effect = life.on(answered(200, &list(&[made("fence", 0, 5), old], true)));
    assert_eq!(effect, Effect::Wait(30_000), "the second look");
}

#[test]
fn an_interrupted_creation_is_proven_by_its_results_and_read() {
    let (mut life, effect) = Life::hunting(&[made("ours", 10, 2), made("fence", 0, 2)]);
    assert_eq!(sent(&effect), "GET /v1/messages/batches/ours");
    let effect = life.answer(200, &made("ours", 10, 2));
    assert_eq!(sent(&effect), "GET /v1/messages/batches/ours", "it runs");
    assert_eq!(life.last.as_ref().unwrap().provider_id, None, "not proven yet");
    let effect = life.answer(200, &ended("ours", 10, 1, 1, 0));
    assert_eq!(sent(&effect), "GET /v1/messages/batches/ours/results");
    let effect = life.on(body(&lines(MARK)));
    assert_eq!(sent(&effect), "READ /v1/messages/batches/ours/results as results");
    assert_eq!(life.last.as_ref().unwrap().provider_id.as_deref(), Some("ours"));
    assert_eq!(finish(life.on(read_event("results", 200, 2, true))).ending, Ending::Expired);
}

#[test]
fn only_what_may_be_ours_is_looked_at() {
    let (_, effect) = Life::hunting(&[
        made("too-many", 10, 4),
        made("too-few", 10, 1),
        made("fence", 0, 2),
        made("odd-time", 10, 4),
    ]);
    assert_eq!(sent(&effect), "POST /v1/messages/batches", "none has from 2 to 3 items");
    for candidate in
        [made("c", 10, 2), made("c", 10, 3), made("c", 10, 0), json!({"id": "c", "processing_status": "new"})]
    {
        let (_, effect) = Life::hunting(&[candidate]);
        assert_eq!(sent(&effect), "GET /v1/messages/batches/c");
    }
}

#[test]
fn candidates_are_watched_in_turn_and_foreign_ones_left_alone() {
    let listed = [made("slow", 12, 2), made("other", 11, 2), made("ours", 10, 2)];
    let (mut life, effect) = Life::hunting(&listed);
    assert_eq!(sent(&effect), "GET /v1/messages/batches/slow");
    assert_eq!(sent(&life.on(answered(200, &made("slow", 12, 2)))), "GET /v1/messages/batches/other");
    let effect = life.on(answered(200, &ended("other", 11, 2, 0, 0)));
    assert_eq!(sent(&effect), "GET /v1/messages/batches/other/results");
    assert_eq!(sent(&life.on(body(&lines("fedcba9876543210-1")))), "GET /v1/messages/batches/ours");
    let wait = life.on(answered(200, &made("ours", 10, 2)));
    assert!(matches!(wait, Effect::Wait(ms) if ms >= 20_000), "{wait:?}");
    assert_eq!(sent(&life.on(Event::Waited)), "GET /v1/messages/batches/slow");
    assert_eq!(sent(&life.on(answered(200, &made("slow", 12, 2)))), "GET /v1/messages/batches/ours");
    life.on(answered(200, &ended("ours", 10, 2, 0, 0)));
    assert_eq!(sent(&life.on(body(&lines(MARK)))), "READ /v1/messages/batches/ours/results as results");
}

#[test]
fn it_is_created_again_only_after_all_candidates_were_others_and_one_more_search() {
    let (mut life, _) = Life::hunting(&[made("other", 10, 2)]);
    life.on(answered(200, &ended("other", 10, 2, 0, 0)));
    let effect = life.on(body(&lines("fedcba9876543210-1")));
    assert_eq!(sent(&effect), LISTING, "the last search");
    // What came after the looks is not ours, whatever its size; what is known to be another's is not looked at again.
    let effect = life.answer(200, &list(&[made("later", 12, 2), made("other", 10, 2)], false));
    assert_eq!(sent(&effect), "POST /v1/messages/batches");

    // What the listing showed late but was made in time may be ours.
    let (mut life, _) = Life::hunting(&[made("other", 10, 2)]);
    life.on(answered(200, &ended("other", 10, 2, 0, 0)));
    life.on(body(&lines("fedcba9876543210-1")));
    let effect = life.answer(200, &list(&[made("other", 10, 2), made("late", 9, 2)], false));
    assert_eq!(sent(&effect), "GET /v1/messages/batches/late");
}

#[test]
fn results_whose_beginning_does_not_tell_are_read_whole() {
    for (event, expected) in [
        (read_event("proof", 200, 1, false), "READ /v1/messages/batches/c/results as results"),
        // Nothing of ours can be read: perhaps the beginning tells by now whose it is.
        (read_event("proof", 200, 0, true), "GET /v1/messages/batches/c/results"),
        (read_event("proof", 200, 0, false), "READ /v1/messages/batches/c/results as proof"),
        (read_event("results", 200, 1, true), "READ /v1/messages/batches/c/results as proof"),
        (Event::Interrupted, "READ /v1/messages/batches/c/results as proof"),
    ] {
        let (mut life, _) = Life::hunting(&[made("c", 10, 2)]);
        life.on(answered(200, &ended("c", 10, 2, 0, 0)));
        let effect = life.on(body("{\"custom_id\":\"01234"));
        assert_eq!(sent(&effect), "READ /v1/messages/batches/c/results as proof");
        let effect = life.on(event);
        assert_eq!(sent(&life.wait_out(effect)), expected);
    }
}

#[test]
fn a_candidate_is_not_anothers_because_of_a_stray_line_or_of_lines_that_cannot_be_read() {
    let stray = lines("nobody-sent-this");
    for torn in [
        format!("{stray}\n{}", lines(MARK)),
        format!("<html>502 Bad Gateway</html>\n{{\"custom_id\":\"{MARK}-0-0\",\"resu"),
    ] {
        let (mut life, _) = Life::hunting(&[made("c", 10, 2)]);
        life.on(answered(200, &ended("c", 10, 2, 0, 0)));
        let effect = life.on(body(&torn));
        assert_eq!(sent(&effect), "READ /v1/messages/batches/c/results as results", "{torn}");
    }

    let (mut life, _) = Life::hunting(&[made("c", 10, 2)]);
    let mut effect = life.on(answered(200, &ended("c", 10, 2, 0, 0)));
    let mut readings = 0;
    while sent(&effect) == "GET /v1/messages/batches/c/results" {
        readings += 1;
        let whole = life.on(body("<html>502 Bad Gateway</html>"));
        assert_eq!(sent(&whole), "READ /v1/messages/batches/c/results as proof");
        let answer = life.on(read_event("proof", 200, 0, true));
        effect = life.wait_out(answer);
    }
    assert_eq!((readings, sent(&effect).as_str()), (100, LISTING));
    let end = failure(life.answer(200, &list(&[made("c", 10, 2)], false)));
    assert_eq!((end.ran, end.temporary, end.code.as_str()), (DidItRun::Unknown, true, "creation_undecided"));
}

#[test]
fn a_candidate_whose_beginning_was_unreadable_once_is_told_to_be_anothers_later() {
    let (mut life, _) = Life::hunting(&[made("c", 10, 2)]);
    life.on(answered(200, &ended("c", 10, 2, 0, 0)));
    life.on(body("<html>"));
    let answer = life.on(read_event("proof", 200, 0, true));
    assert_eq!(sent(&life.wait_out(answer)), "GET /v1/messages/batches/c/results");
    assert_eq!(sent(&life.on(body(&lines("fedcba9876543210-1")))), LISTING);
}

#[test]
fn a_candidate_that_vanished_unproven_leaves_the_fate_unknown() {
    let (mut life, mut effect) = Life::hunting(&[made("gone", 10, 2)]);
    let mut looks = 0;
    while sent(&effect) == "GET /v1/messages/batches/gone" {
        looks += 1;
        effect = life.answer(404, &json!({}));
    }
    assert_eq!((looks, sent(&effect).as_str()), (5, LISTING));
    let end = failure(life.answer(200, &list(&[], false)));
    assert_eq!((end.ran, end.temporary, end.code.as_str()), (DidItRun::Unknown, true, "creation_undecided"));

    // Deleted, or its results past their time, after it had ended.
    let (mut life, _) = Life::hunting(&[made("gone", 10, 2)]);
    let mut effect = life.on(answered(200, &ended("gone", 10, 2, 0, 0)));
    while sent(&effect) == "GET /v1/messages/batches/gone/results" {
        effect = life.answer(404, &json!({}));
    }
    assert_eq!(sent(&effect), LISTING);
    assert_eq!(failure(life.answer(200, &list(&[], false))).ran, DidItRun::Unknown);
}

#[test]
fn a_listing_that_cannot_be_searched_leaves_the_fate_unknown() {
    let mut life = Life::creating();
    life.config.list_pages_max = 2;
    let effect = life.on(Event::Interrupted);
    life.wait_out(effect);
    let page = list(&[made("b9", 10, 9)], true);
    life.answer(200, &page);
    let end = failure(life.answer(200, &page));
    assert_eq!((end.ran, end.code.as_str()), (DidItRun::Unknown, "creation_undecided"));
    assert!(end.message.contains("list_pages_max"));

    let mut life = Life::creating();
    let mut effect = life.on(Event::Interrupted);
    for _ in 0..10 {
        effect = life.wait_out(effect);
        if matches!(effect, Effect::Failed(_)) {
            break;
        }
        effect = life.on(answered(403, &json!({})));
    }
    assert_eq!(failure(effect).ran, DidItRun::Unknown);
}

#[test]
fn a_provider_that_stays_away_gets_the_batch_no_more() {
    let (mut life, mut effect) = Life::begin();
    for _ in 0..100 {
        if matches!(effect, Effect::Failed(_)) {
            break;
        }
        effect = life.on(Event::NotSent("refused".into()));
        effect = life.wait_out(effect);
    }
    let end = failure(effect);
    assert_eq!((end.ran, end.temporary, end.code.as_str()), (DidItRun::NotSent, true, "unreachable"));
}

#[test]
fn a_refusal_is_final_and_keeps_the_providers_words() {
    let error = json!({"type": "error", "error": {"type": "billing_error", "message": "pay"}});
    let mut life = Life::creating();
    let end = failure(life.answer(402, &error));
    assert_eq!((end.ran, end.temporary), (DidItRun::Refused, false));
    assert_eq!((end.code.as_str(), end.message.as_str()), ("billing_error", "pay"));
}

// === Failing ===

#[test]
fn a_running_batch_outlives_an_outage() {
    let mut life = Life::polling();
    for round in 0..500 {
        let event = match round % 4 {
            0 => answered(503, &json!({})),
            1 => Event::NotSent("down".into()),
            2 => Event::Interrupted,
            _ => answered(200, &json!("nonsense")),
        };
        let Effect::Wait(ms) = life.on(event) else { panic!("gave up after {round}") };
        assert!(ms <= 300_000);
        assert_eq!(sent(&life.on(Event::Waited)), "GET /v1/messages/batches/ours");
    }
}

#[test]
fn a_batch_that_is_gone_is_given_up_with_its_fate_unknown() {
    let mut life = Life::polling();
    let mut effect = life.answer(404, &json!({}));
    let mut looks = 1;
    while !matches!(effect, Effect::Failed(_)) {
        looks += 1;
        effect = life.answer(404, &json!({}));
    }
    assert_eq!((looks, failure(effect).ran), (320, DidItRun::Unknown));
}

#[test]
fn results_that_are_fewer_than_the_batch_says_are_read_again_and_not_for_ever() {
    for (results, readings) in [(12, 1), (11, 5), (1, 5)] {
        let mut life = Life::polling();
        life.answer(200, &ended("ours", 10, 10, 2, 0));
        let mut effect = life.on(read_event("results", 200, results, true));
        let mut read = 1;
        while !matches!(effect, Effect::Finished(_)) {
            life.wait_out(effect);
            effect = life.on(read_event("results", 200, results, true));
            read += 1;
        }
        assert_eq!(read, readings, "{results}");
    }
}

#[test]
fn a_reading_is_repeated_until_it_was_whole_and_given_up_when_the_results_are_gone() {
    let mut life = Life::polling();
    life.answer(200, &ended("ours", 10, 2, 0, 0));
    for event in [
        read_event("results", 200, 1, false),
        read_event("results", 503, 0, true),
        read_event("results", 200, 0, true),
        read_event("proof", 200, 2, true),
        Event::Interrupted,
        Event::NotSent("down".into()),
    ] {
        let wait = life.on(event);
        assert!(matches!(wait, Effect::Wait(_)), "{wait:?}");
        assert_eq!(sent(&life.on(Event::Waited)), "READ /v1/messages/batches/ours/results as results");
    }
    let mut readings = 0;
    let mut effect = life.on(read_event("results", 404, 0, true));
    while !matches!(effect, Effect::Failed(_)) {
        readings += 1;
        life.wait_out(effect);
        effect = life.on(read_event("results", 404, 0, true));
    }
    let end = failure(effect);
    assert_eq!((readings, end.ran, end.code.as_str()), (4, DidItRun::Unknown, "results_unreadable"));
}

// === Stopping ===

#[test]
fn stopping_before_anything_was_made_makes_nothing() {
    let (mut life, _) = Life::begin();
    let end = finish(life.on(Event::Cancel));
    assert_eq!(end, Finish { ending: Ending::Cancelled, missing: DidItRun::NotSent });
    let mut life = Life::creating();
    life.on(answered(429, &json!({})));
    assert_eq!(finish(life.on(Event::Cancel)).missing, DidItRun::NotSent);
}

#[test]
fn stopping_while_the_creation_is_under_way_looks_for_it_and_stops_no_stranger() {
    let mut life = Life::creating();
    let mut effect = life.on(Event::Cancel);
    for _ in 0..3 {
        effect = life.wait_out(effect);
        assert_eq!(sent(&effect), LISTING);
        effect = life.on(answered(200, &list(&[made("c", 10, 2)], false)));
    }
    assert_eq!(sent(&life.wait_out(effect)), "GET /v1/messages/batches/c", "it may be another's");
    life.on(answered(200, &ended("c", 10, 2, 0, 0)));
    life.on(body(&lines("fedcba9876543210-1")));
    assert_eq!(finish(life.answer(200, &list(&[], false))).missing, DidItRun::NotSent);
}

#[test]
fn a_running_batch_is_told_to_stop_and_followed_to_its_end() {
    let mut life = Life::polling();
    assert_eq!(sent(&life.on(Event::Cancel)), "POST /v1/messages/batches/ours/cancel");
    assert!(matches!(life.on(Event::Interrupted), Effect::Wait(_)), "asking again does no harm");
    assert_eq!(sent(&life.on(Event::Waited)), "POST /v1/messages/batches/ours/cancel");
    let mut canceling = made("ours", 10, 2);
    canceling["processing_status"] = json!("canceling");
    assert_eq!(sent(&life.answer(200, &canceling)), "GET /v1/messages/batches/ours");
    assert!(matches!(life.on(answered(200, &canceling)), Effect::Wait(_)));
    assert!(matches!(life.on(Event::Cancel), Effect::Wait(_)), "told once is enough");
    life.on(Event::Waited);
    let effect = life.answer(200, &ended("ours", 10, 1, 0, 1));
    assert_eq!(sent(&effect), "READ /v1/messages/batches/ours/results as results");
}

// === The stored state ===

#[test]
fn an_unknown_state_is_refused() {
    let (batch, config) = (batch(), Config::default());
    let context = Context { batch: &batch, config: &config };
    assert!(batch_step(b"nonsense", Event::Waited, context).unwrap_err().contains("cannot be read"));
    let (mut life, _) = Life::begin();
    let mut state: Value = serde_json::from_slice(&life.stored).unwrap();
    state["version"] = json!(99);
    life.stored = serde_json::to_vec(&state).unwrap();
    assert!(batch_step(&life.stored, Event::Waited, context).unwrap_err().contains("version 99"));
}

#[test]
fn the_stored_form_stays() {
    // What version 1 wrote must be read by every later one: change this text only together with the version.
    let stored =
        br#"{"version":1,"phase":{"Find":{"trail":{"fence":{"id":"b1","made_at_ms":5},"ceiling":null,
        "in_doubt":true,"candidates":["b2"],"foreign":["b3"],"lost":false},"look":2,
        "search":{"after":"b9","pages":3}}},"pause_ms":null,"notes":{"rounds":1,"tries":0,"gone":0,"polls":0,
        "cancel":"No","provider_id":null,"completed":null,"failed":null}}"#;
    let state = StateOf::<Context<'_>>::read(stored, Context::VERSION).unwrap().unwrap();
    let Phase::Find { trail, look: 2, search } = state.phase else { panic!("{:?}", state.phase) };
    assert_eq!(search, Search { after: Some("b9".into()), pages: 3 });
    assert_eq!((trail.candidates, trail.foreign), (vec!["b2".to_owned()], vec!["b3".to_owned()]));
}
