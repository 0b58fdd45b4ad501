//! The batch protocol in each dialect: what is sent, and how the answers are understood.

use offpeak_plugin::{
    DidItRun,
    provider::{Ending, ReadSummary, Response},
};
use serde_json::{Value, json};

use super::{tests::batch, *};
use crate::dialect::DialectName;

/// A batch's life in a dialect, driven by hand.
struct Life {
    config: Config,
    stored: Vec<u8>,
}

impl Life {
    fn of(dialect: DialectName) -> Self {
        let batch_model_names = [("gpt".to_owned(), "gpt-batch".to_owned())].into();
        Self { config: Config { dialect, batch_model_names, ..Config::default() }, stored: Vec::new() }
    }

    fn on(&mut self, event: Event) -> Effect {
        let batch = batch();
        let step = batch_step(&self.stored, event, Context::new(&batch, &self.config).unwrap()).unwrap();
        self.stored = step.state;
        step.effect
    }

    /// Answers with 200, and sits out the waits that follow.
    fn answer(&mut self, body: &Value) -> Effect {
        let body = body.to_string().into_bytes();
        let mut effect = self.on(Event::Answered(Response { status: 200, headers: Vec::new(), body }));
        while matches!(effect, Effect::Wait(_)) {
            effect = self.on(Event::Waited);
        }
        effect
    }

    fn read(&mut self, source: &str) -> Effect {
        self.on(Event::Read(ReadSummary {
            source: source.to_owned(),
            status: 200,
            lines: 1,
            results: 1,
            whole: true,
        }))
    }
}

fn sent(effect: &Effect) -> String {
    match effect {
        Effect::Call(request) => format!("{} {}", request.method, request.path),
        Effect::Upload(upload) => format!("{} {}", upload.method, upload.path),
        Effect::Read(reading) => format!("READ {}", reading.path),
        other => format!("{other:?}"),
    }
}

fn fields(effect: &Effect) -> Value {
    let Effect::Upload(Upload { framing: Framing::Multipart(multipart), .. }) = effect else {
        panic!("no upload: {effect:?}")
    };
    multipart.fields.iter().map(|(name, value)| (name.clone(), json!(value))).collect::<Value>()
}

/// Body and further headers of a creation.
fn creation(effect: &Effect) -> (Value, Vec<String>) {
    let Effect::Call(request) = effect else { panic!("no call: {effect:?}") };
    let further = request.headers.iter().filter(|header| !matches!(&*header.name, "accept" | "content-type"));
    let headers = further.map(|header| format!("{}: {}", header.name, header.value));
    (serde_json::from_slice(&request.body).unwrap(), headers.collect())
}

/// What a dialect sends on the straight way.
struct Way {
    dialect: DialectName,
    upload: &'static str,
    fields: Value,
    batches: &'static str,
    creation: Value,
    headers: &'static [&'static str],
    made: Value,
    running: Value,
    over: Value,
    files: &'static str,
}

fn openai_way(dialect: DialectName, root: &'static str) -> Way {
    let batch = |status: &str| json!({"id": "b", "status": status, "input_file_id": "f"});
    let mut over = batch("completed");
    over["output_file_id"] = json!("o");
    over["error_file_id"] = json!("e");
    Way {
        dialect,
        upload: root,
        fields: json!({"purpose": "batch"}),
        batches: "/batches",
        creation: json!({"input_file_id": "f", "endpoint": "/v1/chat/completions", "completion_window": "24h",
            "metadata": {"offpeak_batch": "m1"}}),
        headers: &[],
        made: batch("validating"),
        running: batch("in_progress"),
        over,
        files: root,
    }
}

fn ways() -> Vec<Way> {
    let mut novita = openai_way(DialectName::Novita, "/openai/v1");
    novita.creation["completion_window"] = json!("48h");
    let perplexity = Way { headers: &["idempotency-key: m1"], ..openai_way(DialectName::Perplexity, "/v1") };
    let together = |status: &str| {
        json!({"id": "b", "status": status, "input_file_id": "f", "created_at": "2026-11-25T00:00:00Z",
            "progress": 1.5, "error": null, "output_file_id": "o", "error_file_id": "e"})
    };
    let job = |status: &str| {
        json!({"id": "b", "status": status, "input_files": ["f"], "errors": [], "created_at": 1,
            "total_requests": 2, "completed_requests": 2, "succeeded_requests": 1, "failed_requests": 1,
            "output_file": "o", "error_file": "e"})
    };
    vec![
        openai_way(DialectName::Openai, "/v1"),
        openai_way(DialectName::Azure, "/openai/v1"),
        openai_way(DialectName::Deepinfra, "/v1/openai"),
        openai_way(DialectName::Groq, "/openai/v1"),
        novita,
        perplexity,
        Way {
            upload: "/v1/files/upload",
            fields: json!({"purpose": "batch-api", "file_type": "jsonl", "file_name": "offpeak-m1.jsonl"}),
            creation: json!({"input_file_id": "f", "endpoint": "/v1/chat/completions",
                "completion_window": "24h"}),
            made: json!({"job": together("VALIDATING"), "warning": null}),
            running: together("IN_PROGRESS"),
            over: together("COMPLETED"),
            ..openai_way(DialectName::Together, "/v1")
        },
        Way {
            batches: "/batch/jobs",
            creation: json!({"input_files": ["f"], "endpoint": "/v1/chat/completions", "model": "gpt-batch",
                "timeout_hours": 24, "metadata": {"offpeak_batch": "m1"}}),
            made: job("QUEUED"),
            running: job("RUNNING"),
            over: job("SUCCESS"),
            ..openai_way(DialectName::Mistral, "/v1")
        },
    ]
}

#[test]
fn each_dialect_goes_its_way_from_items_to_results() {
    for way in ways() {
        let name = way.dialect.dialect().name;
        let root = way.files;
        let batches = format!("{root}{}", way.batches);
        let upload = if way.upload == root { format!("{root}/files") } else { way.upload.to_owned() };
        let mut life = Life::of(way.dialect);
        let effect = life.on(Event::Start);
        assert_eq!(sent(&effect), format!("POST {upload}"), "{name}");
        assert_eq!(fields(&effect), way.fields, "{name}");
        let effect = life.answer(&json!({"id": "f"}));
        assert_eq!(sent(&effect), format!("POST {batches}"), "{name}");
        let (body, headers) = creation(&effect);
        assert_eq!(
            (body, headers.iter().map(String::as_str).collect::<Vec<_>>()),
            (way.creation, way.headers.to_vec()),
            "{name}"
        );
        assert_eq!(sent(&life.answer(&way.made)), format!("GET {batches}/b"), "{name}");
        assert_eq!(sent(&life.answer(&way.running)), format!("GET {batches}/b"), "{name}");
        assert_eq!(sent(&life.answer(&way.over)), format!("READ {root}/files/o/content"), "{name}");
        assert_eq!(sent(&life.read("output")), format!("READ {root}/files/e/content"), "{name}");
        assert_eq!(sent(&life.read("errors")), format!("DELETE {root}/files/f"), "{name}");
        let Effect::Finished(finish) = life.answer(&json!({})) else { panic!("{name} does not end") };
        assert_eq!(finish.ending, Ending::Completed, "{name}");
    }
}

#[test]
fn each_dialect_stops_a_batch_and_knows_its_ends() {
    for way in ways() {
        let name = way.dialect.dialect().name;
        let api = way.dialect.dialect().batch_api.as_ref().unwrap();
        for (status, over) in api.over {
            let mut life = Life::of(way.dialect);
            life.on(Event::Start);
            life.answer(&json!({"id": "f"}));
            life.answer(&way.made);
            let cancel = life.on(Event::Cancel);
            assert_eq!(sent(&cancel), format!("POST {}{}/b/cancel", way.files, way.batches), "{name}");
            life.answer(&way.running);
            let mut last = json!({"id": "b", "status": status});
            last["error"] = json!("why");
            let effect = life.answer(&last);
            assert_eq!(sent(&effect), format!("DELETE {}/files/f", way.files), "{name}: {status}");
            match (over, life.answer(&json!({}))) {
                (crate::dialect::Over::Failed, Effect::Failed(failure)) => assert_eq!(failure.message, "why"),
                (crate::dialect::Over::Failed, other) => panic!("{name}: {other:?}"),
                (_, Effect::Finished(finish)) => {
                    let is_completed = *over == crate::dialect::Over::Completed;
                    let expected = if is_completed { DidItRun::Unknown } else { api.leftovers };
                    assert_eq!(finish.missing, expected, "{name}: {status}");
                }
                (_, other) => panic!("{name}: {other:?}"),
            }
        }
    }
}

#[test]
fn listings_are_paged_as_each_dialect_pages() {
    let full: Value = (0..50).map(|index| json!({"id": format!("x{index}"), "status": "SUCCESS"})).collect();
    for (dialect, first, page, second) in [
        (
            DialectName::Groq, // it does not tell whether there are more, so a full page may have a next one
            "GET /openai/v1/batches?order=desc&limit=50",
            json!({"data": full}),
            "GET /openai/v1/batches?order=desc&limit=50&after=x49",
        ),
        (
            DialectName::Mistral,
            "GET /v1/batch/jobs?page_size=50&page=0",
            json!({"data": full, "total": 51}),
            "GET /v1/batch/jobs?page_size=50&page=1",
        ),
        (DialectName::Together, "GET /v1/batches", full.clone(), "GET /v1/batches"),
    ] {
        let mut life = Life::of(dialect);
        life.on(Event::Start);
        life.answer(&json!({"id": "f"}));
        life.on(Event::Interrupted);
        assert_eq!(sent(&life.on(Event::Waited)), first);
        assert_eq!(sent(&life.answer(&page)), second);
        let found = json!([{"id": "b", "status": "IN_PROGRESS", "input_file_id": "f"}]);
        let found = if dialect == DialectName::Together { found } else { json!({ "data": found }) };
        assert!(sent(&life.answer(&found)).ends_with("/b"), "the batch is known by its file");
    }
}

#[test]
fn a_dialect_without_batches_says_so() {
    let batch = batch();
    for dialect in [DialectName::Gemini, DialectName::Openrouter] {
        let config = Config { dialect, ..Config::default() };
        assert!(Context::new(&batch, &config).unwrap_err().contains("no batches"));
    }
}
