//! One scenario a test: events in, effects out.

use offpeak_plugin::{
    DidItRun,
    batch::StateOf,
    provider::{Ending, Failure, Finish, Progress, ReadSummary, Response},
};
use serde_json::{Value, json};

use super::*;

const CREATED_AT_MS: u64 = 1_800_000_000_000;

pub(super) fn batch() -> Batch {
    Batch {
        mark: "m1".into(),
        endpoint: "/v1/chat/completions".into(),
        model: "gpt".into(),
        offer: "batch".into(),
        items: 2,
        waiting: 2,
        only: None,
        headers: vec![],
        created_at_ms: CREATED_AT_MS,
    }
}

/// A batch's life, driven by hand. The state is stored and read back at every step.
struct Life {
    config: Config,
    stored: Vec<u8>,
    last: Option<Step>,
}

impl Life {
    fn with(config: Config) -> Self {
        Self { config, stored: Vec::new(), last: None }
    }

    fn begin() -> (Self, Effect) {
        let mut life = Self::with(Config::default());
        let effect = life.on(Event::Start);
        (life, effect)
    }

    fn on(&mut self, event: Event) -> Effect {
        let batch = batch();
        let context = Context::new(&batch, &self.config).unwrap();
        let step = batch_step(&self.stored, event, context).unwrap();
        self.stored.clone_from(&step.state);
        let effect = step.effect.clone();
        self.last = Some(step);
        effect
    }

    /// Answers, and sits out the waits that follow.
    fn answer(&mut self, status: u16, body: &Value) -> Effect {
        let mut effect = self.on(answered(status, body));
        while matches!(effect, Effect::Wait(_)) {
            effect = self.on(Event::Waited);
        }
        effect
    }

    fn polling() -> Self {
        let (mut life, _) = Self::begin();
        life.answer(200, &json!({"id": "file-1"}));
        let effect = life.answer(200, &batch_object("validating"));
        assert_eq!(sent(&effect), "GET /v1/batches/batch_1");
        life
    }

    fn wait_out(&mut self, mut effect: Effect) -> Effect {
        while matches!(effect, Effect::Wait(_)) {
            effect = self.on(Event::Waited);
        }
        effect
    }
}

fn answered(status: u16, body: &Value) -> Event {
    Event::Answered(Response { status, headers: vec![], body: body.to_string().into_bytes() })
}

fn batch_object(status: &str) -> Value {
    json!({"id": "batch_1", "object": "batch", "status": status, "input_file_id": "file-1", "errors": null,
        "created_at": CREATED_AT_MS / 1000, "metadata": {"offpeak_batch": "m1"},
        "request_counts": {"total": 2, "completed": 0, "failed": 0}})
}

fn over(status: &str, output: Option<&str>, errors: Option<&str>) -> Value {
    let mut batch = batch_object(status);
    batch["output_file_id"] = json!(output);
    batch["error_file_id"] = json!(errors);
    batch
}

fn read_event(source: &str, status: u16, whole: bool) -> Event {
    Event::Read(ReadSummary { source: source.into(), status, lines: 1, results: 1, whole })
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
    let (mut life, effect) = Life::begin();
    let Effect::Upload(upload) = effect else { panic!("no upload") };
    let Framing::Multipart(multipart) = upload.framing else { panic!("no multipart") };
    assert_eq!((upload.path.as_str(), multipart.file_name.as_str()), ("/v1/files", "offpeak-m1.jsonl"));
    assert_eq!(multipart.fields, [("purpose".to_owned(), "batch".to_owned())]);

    let Effect::Call(creation) = life.answer(200, &json!({"id": "file-1", "object": "file"})) else {
        panic!("no creation")
    };
    assert_eq!((creation.method.as_str(), creation.path.as_str()), ("POST", "/v1/batches"));
    let body: Value = serde_json::from_slice(&creation.body).unwrap();
    let expected = json!({"input_file_id": "file-1", "endpoint": "/v1/chat/completions",
        "completion_window": "24h", "metadata": {"offpeak_batch": "m1"}});
    assert_eq!(body, expected);

    let wait = life.on(answered(200, &batch_object("validating")));
    assert!(matches!(wait, Effect::Wait(ms) if (20_000..=30_000).contains(&ms)), "{wait:?}");
    assert_eq!(life.last.as_ref().unwrap().provider_id.as_deref(), Some("batch_1"));
    assert_eq!(sent(&life.on(Event::Waited)), "GET /v1/batches/batch_1");

    let mut running = batch_object("in_progress");
    running["request_counts"] = json!({"total": 2, "completed": 1, "failed": 1});
    life.answer(200, &running);
    assert_eq!(life.last.as_ref().unwrap().progress, Some(Progress { completed: 1, failed: 1 }));

    let effect = life.answer(200, &over("completed", Some("file-out"), Some("file-err")));
    assert_eq!(sent(&effect), "READ /v1/files/file-out/content as output");
    let effect = life.on(read_event("output", 200, true));
    assert_eq!(sent(&effect), "READ /v1/files/file-err/content as errors");
    let effect = life.on(read_event("errors", 200, true));
    assert_eq!(sent(&effect), "DELETE /v1/files/file-1");
    let end = finish(life.on(answered(404, &json!({}))));
    assert_eq!(end, Finish { ending: Ending::Completed, missing: DidItRun::Unknown });

    // The end stays the end.
    assert_eq!(finish(life.on(Event::Interrupted)), end);
    assert_eq!(life.last.as_ref().unwrap().progress, Some(Progress { completed: 0, failed: 0 }));
}

#[test]
fn files_are_deleted_as_configured() {
    for (delete_files, expected) in [
        (DeleteFiles::None, vec![]),
        (DeleteFiles::Input, vec!["file-1"]),
        (DeleteFiles::All, vec!["file-1", "file-out"]),
    ] {
        let mut life = Life::with(Config { delete_files, ..Config::default() });
        life.on(Event::Start);
        life.answer(200, &json!({"id": "file-1"}));
        life.answer(200, &over("completed", Some("file-out"), None));
        let mut effect = life.on(read_event("output", 200, true));
        for file in expected {
            assert_eq!(sent(&effect), format!("DELETE /v1/files/{file}"));
            effect = life.on(answered(200, &json!({"deleted": true})));
        }
        finish(effect);
    }
}

#[test]
fn what_is_missing_beside_answers_that_are_missing_may_have_run() {
    for (completed, missing) in [(1, DidItRun::Refused), (2, DidItRun::Unknown)] {
        for status in ["expired", "cancelled"] {
            let mut life = Life::polling();
            let mut batch = over(status, Some("file-out"), None);
            batch["request_counts"]["completed"] = json!(completed);
            life.answer(200, &batch);
            let mut effect = life.on(read_event("output", 200, true));
            let mut readings = 1;
            while !sent(&effect).starts_with("DELETE") {
                let again = life.wait_out(effect);
                assert_eq!(sent(&again), "READ /v1/files/file-out/content as output");
                effect = life.on(read_event("output", 200, true));
                readings += 1;
            }
            assert_eq!(
                readings,
                if completed == 1 { 1 } else { 5 },
                "what is short is read again, not for ever"
            );
            assert_eq!(finish(life.on(answered(200, &json!({})))).missing, missing, "{status} {completed}");
        }
    }
}

#[test]
fn a_deletion_that_comes_to_nothing_is_tried_again_and_not_for_ever() {
    let deleting = || {
        let mut life = Life::polling();
        assert_eq!(sent(&life.answer(200, &over("cancelled", None, None))), "DELETE /v1/files/file-1");
        life
    };
    for trouble in [Event::Interrupted, Event::NotSent("no way".into()), answered(503, &json!({}))] {
        let mut life = deleting();
        let effect = life.on(trouble);
        assert_eq!(sent(&life.wait_out(effect)), "DELETE /v1/files/file-1");
        finish(life.on(answered(200, &json!({}))));
    }
    let mut life = deleting();
    for _ in 0..DELETE_TRIES_MAX {
        let effect = life.on(answered(500, &json!({})));
        assert_eq!(sent(&life.wait_out(effect)), "DELETE /v1/files/file-1");
    }
    finish(life.on(answered(500, &json!({}))));
}

#[test]
fn an_end_says_what_to_think_of_missing_items() {
    for (status, ending, missing) in [
        ("completed", Ending::Completed, DidItRun::Unknown),
        ("expired", Ending::Expired, DidItRun::Refused),
        ("cancelled", Ending::Cancelled, DidItRun::Refused),
    ] {
        let mut life = Life::polling();
        life.answer(200, &over(status, None, Some("file-err")));
        life.on(read_event("errors", 200, true));
        let end = finish(life.on(answered(200, &json!({}))));
        assert_eq!(end, Finish { ending, missing }, "{status}");
    }
}

#[test]
fn results_that_are_late_are_waited_for_but_not_for_ever() {
    let mut life = Life::polling();
    let mut late = over("expired", None, None);
    late["request_counts"] = json!({"total": 2, "completed": 1, "failed": 0});
    for _ in 0..3 {
        assert_eq!(sent(&life.answer(200, &late)), "GET /v1/batches/batch_1");
    }
    assert_eq!(sent(&life.answer(200, &late)), "DELETE /v1/files/file-1");
    let end = finish(life.on(answered(200, &json!({}))));
    assert_eq!(end.missing, DidItRun::Unknown, "one item ran, nobody knows which");
}

// === Creating at most once ===

#[test]
fn an_interrupted_upload_is_looked_for() {
    let (mut life, _) = Life::begin();
    let effect = life.on(Event::Interrupted);
    assert_eq!(effect, Effect::Wait(10_000), "time to settle");
    assert_eq!(sent(&life.on(Event::Waited)), "GET /v1/files?purpose=batch&order=desc&limit=100");
    let page = json!({"data": [{"id": "file-9", "filename": "x.jsonl", "created_at": 1_800_000_000}],
        "has_more": true});
    let effect = life.answer(200, &page);
    assert_eq!(sent(&effect), "GET /v1/files?purpose=batch&order=desc&limit=100&after=file-9");
    let page = json!({"data": [{"id": "file-1", "filename": "offpeak-m1.jsonl"}], "has_more": true});
    let Effect::Call(creation) = life.answer(200, &page) else { panic!("no creation") };
    assert!(String::from_utf8(creation.body).unwrap().contains("file-1"));
}

#[test]
fn an_upload_that_left_nothing_is_repeated() {
    for event in [Event::Interrupted, answered(502, &json!({})), answered(200, &json!({"odd": 1}))] {
        let (mut life, _) = Life::begin();
        let effect = life.on(event);
        let effect = life.wait_out(effect);
        assert!(sent(&effect).starts_with("GET /v1/files?"), "{}", sent(&effect));
        let effect = life.answer(200, &json!({"data": [], "has_more": false}));
        assert_eq!(sent(&effect), "POST /v1/files");
    }
}

fn interrupted_creation(event: Event) -> (Life, Effect) {
    let (mut life, _) = Life::begin();
    life.answer(200, &json!({"id": "file-1"}));
    let effect = life.on(event);
    assert_eq!(effect, Effect::Wait(10_000), "time to settle");
    let effect = life.on(Event::Waited);
    assert_eq!(sent(&effect), "GET /v1/batches?order=desc&limit=50");
    (life, effect)
}

#[test]
fn an_interrupted_creation_is_adopted() {
    for event in [
        Event::Interrupted,
        answered(500, &json!({})),
        answered(408, &json!({})),
        answered(504, &json!("gateway")),
        answered(200, &json!({"id": 7})),
        Event::Cancel,
    ] {
        let cancel = event == Event::Cancel;
        let (mut life, _) = interrupted_creation(event);
        let page = json!({"data": [batch_object("in_progress")], "has_more": true});
        let effect = life.answer(200, &page);
        let expected = if cancel { "POST /v1/batches/batch_1/cancel" } else { "GET /v1/batches/batch_1" };
        assert_eq!(sent(&effect), expected);
    }
}

#[test]
fn a_batch_is_known_by_its_file_where_metadata_is_dropped() {
    let (mut life, _) = interrupted_creation(Event::Interrupted);
    let mut found = batch_object("in_progress");
    found["metadata"] = Value::Null;
    let effect = life.answer(200, &json!({"data": [found], "has_more": false}));
    assert_eq!(sent(&effect), "GET /v1/batches/batch_1");
}

#[test]
fn two_looks_to_the_end_come_before_another_creation() {
    let (mut life, _) = interrupted_creation(Event::Interrupted);
    let foreign = |id: &str, created_at: u64| {
        json!({"id": id, "status": "completed", "created_at": created_at,
        "metadata": {"offpeak_batch": "m0"}})
    };
    let recent = CREATED_AT_MS / 1000;
    for _ in 0..2 {
        let effect = life.answer(200, &json!({"data": [foreign("b9", recent)], "has_more": true}));
        assert_eq!(sent(&effect), "GET /v1/batches?order=desc&limit=50&after=b9");
        // An unreadable page, and an outage, are not the end of the listing.
        let effect = life.answer(200, &json!({"data": "?"}));
        assert_eq!(sent(&effect), "GET /v1/batches?order=desc&limit=50&after=b9");
        let effect = life.answer(503, &json!({}));
        assert_eq!(sent(&effect), "GET /v1/batches?order=desc&limit=50&after=b9");
        // Older than our batch by more than clocks differ: ours cannot follow.
        let effect =
            life.on(answered(200, &json!({"data": [foreign("b8", recent - 3_700)], "has_more": true})));
        let Effect::Wait(ms) = effect else { panic!("no pause") };
        assert!(ms >= 750, "{ms}");
        life.on(Event::Waited);
    }
    let Some(Step { effect, .. }) = &life.last else { panic!("no step") };
    assert_eq!(sent(effect), "POST /v1/batches");
}

#[test]
fn a_listing_that_cannot_be_searched_leaves_the_fate_unknown() {
    let (mut life, _) = interrupted_creation(Event::Interrupted);
    life.config.list_pages_max = 2;
    let page = json!({"data": [{"id": "b9", "status": "completed"}], "has_more": true});
    life.answer(200, &page);
    let incomplete = failure(life.answer(200, &page));
    assert_eq!((incomplete.ran, incomplete.code.as_str()), (DidItRun::Unknown, "creation_undecided"));
    assert!(incomplete.message.contains("list_pages_max"));

    let (mut life, _) = interrupted_creation(Event::Interrupted);
    let mut effect = life.answer(403, &json!({}));
    for _ in 0..10 {
        if matches!(effect, Effect::Failed(_)) {
            break;
        }
        effect = life.answer(403, &json!({}));
    }
    assert_eq!(failure(effect).ran, DidItRun::Unknown);
}

#[test]
fn what_was_not_sent_or_put_off_is_repeated_without_a_look() {
    let (mut life, _) = Life::begin();
    let wait = life.on(Event::NotSent("no route".into()));
    assert!(matches!(wait, Effect::Wait(ms) if ms <= 1_000));
    assert_eq!(sent(&life.on(Event::Waited)), "POST /v1/files");
    life.answer(200, &json!({"id": "file-1"}));

    let headers = vec![Header { name: "retry-after".into(), value: "17".into() }];
    let busy = Event::Answered(Response { status: 429, headers, body: vec![] });
    assert_eq!(life.on(busy), Effect::Wait(17_000));
    assert_eq!(sent(&life.on(Event::Waited)), "POST /v1/batches");
}

#[test]
fn a_provider_that_stays_away_gets_the_batch_no_more() {
    let (mut life, mut effect) = Life::begin();
    let mut uploads = 0;
    while matches!(effect, Effect::Upload(_)) {
        uploads += 1;
        assert!(uploads < 100);
        effect = life.on(Event::NotSent("refused".into()));
        effect = life.wait_out(effect);
    }
    let end = failure(effect);
    assert_eq!((end.ran, end.temporary, end.code.as_str()), (DidItRun::NotSent, true, "unreachable"));
}

#[test]
fn a_refusal_is_final_and_keeps_the_providers_words() {
    for (body, temporary) in [
        (json!({"error": {"code": "invalid_x", "message": "bad x"}}), false),
        (json!({"error": {"code": "token_limit_exceeded", "message": "bad x"}}), true),
    ] {
        let (mut life, _) = Life::begin();
        life.answer(200, &json!({"id": "file-1"}));
        let effect = life.answer(400, &body);
        assert_eq!(sent(&effect), "DELETE /v1/files/file-1");
        let end = failure(life.on(answered(200, &json!({}))));
        assert_eq!((end.ran, end.temporary, end.message.as_str()), (DidItRun::Refused, temporary, "bad x"));
    }
}

// === Failing ===

#[test]
fn a_failed_batch_tells_whether_to_try_again() {
    let errors =
        |code: &str| json!({"data": [{"code": "other", "message": "o"}, {"code": code, "message": "why"}]});
    for (errors, temporary, code) in [
        (errors("token_limit_exceeded"), true, "token_limit_exceeded"),
        (errors("invalid_json_line"), false, "other"),
        (json!(null), false, "batch_failed"),
    ] {
        let mut life = Life::polling();
        let mut failed = batch_object("failed");
        failed["errors"] = errors;
        assert_eq!(sent(&life.answer(200, &failed)), "DELETE /v1/files/file-1");
        let end = failure(life.on(answered(200, &json!({}))));
        assert_eq!((end.ran, end.temporary, end.code.as_str()), (DidItRun::Refused, temporary, code));
    }
}

#[test]
fn a_batch_that_is_refused_for_some_of_its_lines_hands_over_these_alone() {
    let refused = |code: &str, lines: &[u64]| {
        let mut failed = batch_object("failed");
        let error = |line| json!({"code": code, "message": "why", "param": null, "line": line});
        failed["errors"] = json!({"data": lines.iter().map(error).collect::<Vec<_>>()});
        failed
    };
    // What the daemon knows goes, and the rest may go again at once; what it does not know is not repeated at once.
    for (known, retry_after_s) in [(1, Some(0)), (0, None)] {
        let mut life = Life::polling();
        let effect = life.answer(200, &refused("invalid_json_line", &[2, 2]));
        let Effect::Results(results) = &effect else { panic!("{effect:?}") };
        let [result] = &results[..] else { panic!("{results:?}") };
        let ItemOutcome::Failed(failed) = &result.outcome else { panic!("{result:?}") };
        assert_eq!(
            (result.id.as_str(), failed.code.as_str(), failed.ran),
            ("#2", "line_refused", DidItRun::Refused)
        );
        assert_eq!(life.on(Event::Interrupted), effect, "after a crash they are handed over again");
        let summary =
            ReadSummary { source: String::new(), status: 200, lines: 1, results: known, whole: true };
        assert_eq!(sent(&life.on(Event::Read(summary))), "DELETE /v1/files/file-1");
        let end = failure(life.on(answered(200, &json!({}))));
        assert_eq!((end.ran, end.temporary, end.retry_after_s), (DidItRun::Refused, true, retry_after_s));
    }
    // What all of them have in common is nothing of theirs alone.
    for batch in [refused("model_not_found", &[1]), refused("invalid_json_line", &[1, 2])] {
        let mut life = Life::polling();
        assert_eq!(sent(&life.answer(200, &batch)), "DELETE /v1/files/file-1");
        assert!(!failure(life.on(answered(200, &json!({})))).temporary);
    }
}

#[test]
fn a_failed_batch_with_results_is_read_and_the_rest_is_unknown() {
    let mut life = Life::polling();
    let effect = life.answer(200, &over("failed", Some("file-out"), None));
    assert_eq!(sent(&effect), "READ /v1/files/file-out/content as output");
    life.on(read_event("output", 200, true));
    let end = failure(life.on(answered(200, &json!({}))));
    assert_eq!(end.ran, DidItRun::Unknown);
}

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
        assert_eq!(sent(&life.on(Event::Waited)), "GET /v1/batches/batch_1");
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
    assert_eq!(looks, 320, "about a day");
    assert_eq!(failure(effect).ran, DidItRun::Unknown);
}

#[test]
fn a_reading_is_repeated_until_it_was_whole() {
    let mut life = Life::polling();
    life.answer(200, &over("completed", Some("file-out"), Some("file-err")));
    for event in [
        read_event("output", 200, false),
        read_event("output", 503, true),
        read_event("errors", 200, true),
        Event::Interrupted,
        Event::NotSent("down".into()),
    ] {
        let wait = life.on(event);
        assert!(matches!(wait, Effect::Wait(_)), "{wait:?}");
        assert_eq!(sent(&life.on(Event::Waited)), "READ /v1/files/file-out/content as output");
    }
    assert_eq!(sent(&life.on(read_event("output", 200, true))), "READ /v1/files/file-err/content as errors");
}

#[test]
fn results_that_are_gone_are_given_up() {
    let mut life = Life::polling();
    let mut effect = life.answer(200, &over("completed", Some("file-out"), None));
    let mut readings = 0;
    while matches!(effect, Effect::Read(_)) {
        readings += 1;
        effect = life.on(read_event("output", 404, true));
        effect = life.wait_out(effect);
    }
    let end = failure(effect);
    assert_eq!((readings, end.ran, end.code.as_str()), (5, DidItRun::Unknown, "results_unreadable"));
}

// === Stopping ===

#[test]
fn stopping_before_anything_was_made_makes_nothing() {
    let mut life = Life::with(Config::default());
    let end = finish(life.on(Event::Cancel));
    assert_eq!(end, Finish { ending: Ending::Cancelled, missing: DidItRun::NotSent });

    let (mut life, _) = Life::begin();
    life.on(Event::NotSent("down".into()));
    assert_eq!(finish(life.on(Event::Cancel)).missing, DidItRun::NotSent);

    let (mut life, _) = Life::begin();
    life.answer(200, &json!({"id": "file-1"}));
    life.on(answered(429, &json!({})));
    assert_eq!(sent(&life.on(Event::Cancel)), "DELETE /v1/files/file-1");
    assert_eq!(finish(life.on(answered(200, &json!({})))).missing, DidItRun::NotSent);
}

#[test]
fn stopping_while_an_upload_is_under_way_finds_and_deletes_its_file() {
    let (mut life, _) = Life::begin();
    let effect = life.on(Event::Cancel);
    let effect = life.wait_out(effect);
    assert!(sent(&effect).starts_with("GET /v1/files?"));
    let effect = life.answer(200, &json!({"data": [{"id": "file-1", "filename": "offpeak-m1.jsonl"}]}));
    assert_eq!(sent(&effect), "DELETE /v1/files/file-1");
    assert_eq!(finish(life.on(answered(200, &json!({})))).ending, Ending::Cancelled);
}

#[test]
fn a_running_batch_is_told_to_stop_and_followed_to_its_end() {
    let mut life = Life::polling();
    life.on(answered(200, &batch_object("in_progress")));
    assert_eq!(sent(&life.on(Event::Cancel)), "POST /v1/batches/batch_1/cancel");
    assert!(matches!(life.on(Event::Interrupted), Effect::Wait(_)), "asking again does no harm");
    assert_eq!(sent(&life.on(Event::Waited)), "POST /v1/batches/batch_1/cancel");
    let effect = life.answer(200, &batch_object("cancelling"));
    assert_eq!(sent(&effect), "GET /v1/batches/batch_1");
    assert!(matches!(life.on(answered(200, &batch_object("cancelling"))), Effect::Wait(_)));
    assert!(matches!(life.on(Event::Cancel), Effect::Wait(_)), "told once is enough");
    life.on(Event::Waited);
    let effect = life.answer(200, &over("cancelled", Some("file-out"), None));
    assert_eq!(sent(&effect), "READ /v1/files/file-out/content as output");
}

#[test]
fn a_batch_that_cannot_be_stopped_any_more_is_read() {
    let mut life = Life::polling();
    life.on(answered(200, &batch_object("in_progress")));
    life.on(Event::Cancel);
    assert_eq!(sent(&life.answer(409, &json!({}))), "POST /v1/batches/batch_1/cancel");
    assert_eq!(sent(&life.answer(400, &json!({}))), "GET /v1/batches/batch_1");
    let effect = life.answer(200, &over("completed", Some("file-out"), None));
    assert_eq!(sent(&effect), "READ /v1/files/file-out/content as output");
}

// === The stored state ===

#[test]
fn an_unknown_state_is_refused() {
    let batch = batch();
    let config = Config::default();
    let context = Context::new(&batch, &config).unwrap();
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
        br#"{"version":1,"phase":{"FindBatch":{"input":"file-1","look":2,"search":{"after":"b9","pages":3}}},
        "pause_ms":null,"notes":{"rounds":1,"tries":0,"gone":0,"polls":0,"lookouts":0,"cancel":"No",
        "provider_id":null,"completed":null,"failed":null}}"#;
    let state = StateOf::<Context<'_>>::read(stored, Context::VERSION).unwrap().unwrap();
    let search = Search { after: Some("b9".into()), pages: 3 };
    assert_eq!(state.phase, Phase::FindBatch { input: "file-1".into(), look: 2, search });
}
