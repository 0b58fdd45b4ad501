//! Providers that speak the API in other words: the settings of a backend reach the wire.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use provider_sim::Mode;
use serde_json::{Value, json};

use crate::rig::{BY_HAND, CHAT, Daemon, MODEL, PROVIDER_KEY, Rig, Ticket, chat, eventually, send, sim};
use crate::upstream::{Body, Upstream, full};

const DEPLOYMENT: &str = "gpt-4o-mini-globalbatch";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_goes_to_the_dialects_path_with_its_header_and_name() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let note = seen.clone();
    let upstream = Upstream::start(move |request| {
        note.lock().unwrap().push(request);
        async { Response::new(full("{}")) }
    })
    .await;
    let settings = format!(
        "[backends.simulated.config]\ndialect = \"azure\"\nmodel_names = {{ {MODEL} = \"my-deployment\" }}"
    );
    let daemon = Daemon::start(&upstream.url, &settings).await;
    assert_eq!(daemon.ask(MODEL, "hello").await.status, StatusCode::OK);

    let request = seen.lock().unwrap().pop().unwrap();
    assert_eq!(request.uri().path(), "/openai/v1/chat/completions");
    assert_eq!(request.headers()["api-key"], PROVIDER_KEY);
    assert!(!request.headers().contains_key("authorization"), "{:?}", request.headers());
    let body: Value = serde_json::from_slice(request.body()).unwrap();
    assert_eq!((&body["model"], &body["messages"][0]["content"]), (&"my-deployment".into(), &"hello".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_runs_under_the_models_name_for_batches() {
    // Azure's words, but for the path and the header, at which the simulator answers.
    let settings = format!(
        "[backends.simulated.config]\ndialect = \"azure\"\nroot = \"/v1\"\ncredential_header = \"authorization\"\n\
         batch_model_names = {{ {MODEL} = \"{DEPLOYMENT}\" }}"
    );
    let rig = Rig::start(sim().models([MODEL, DEPLOYMENT]), &settings).await;
    let tickets = rig.daemon.tickets(3, |n| format!("question {n}")).await;
    for ticket in &tickets {
        let answer = rig.daemon.redeem(ticket).await;
        assert!(answer.answers(DEPLOYMENT, &ticket.prompt), "{answer:?}");
    }
    assert!(rig.daemon.ask(MODEL, "now").await.answers(MODEL, "now"), "in real time it keeps its name");
    assert_eq!((rig.billed(Mode::Batch), rig.billed(Mode::Realtime)), (3, 1));
}

// === All of them, in real time ===

/// What a provider of each dialect has to see of a chat completion: the path, and the header with the key.
const REAL_TIME: [(&str, &str, &str); 10] = [
    ("openai", "/v1/chat/completions", "authorization"),
    ("azure", "/openai/v1/chat/completions", "api-key"),
    ("deepinfra", "/v1/openai/chat/completions", "authorization"),
    ("gemini", "/v1beta/openai/chat/completions", "authorization"),
    ("groq", "/openai/v1/chat/completions", "authorization"),
    ("mistral", "/v1/chat/completions", "authorization"),
    ("novita", "/openai/v1/chat/completions", "authorization"),
    ("openrouter", "/api/v1/chat/completions", "authorization"),
    ("perplexity", "/chat/completions", "authorization"),
    ("together", "/v1/chat/completions", "authorization"),
];

/// Those that sell no batches of chat completions, or none before they are told more.
const WITHOUT_BATCHES: [&str; 3] = ["gemini", "openrouter", "perplexity"];

fn backend(dialect: &str, url: &str, more: &str) -> String {
    format!(
        "[backends.{dialect}]\nprovider = \"openai\"\nbase_url = \"{url}\"\napi_key = {{ env = \"PROVIDER_KEY\" }}\n\
         models = [\"{dialect}-small\"]\n[backends.{dialect}.config]\ndialect = \"{dialect}\"\n\
         model_names = {{ {dialect}-small = \"theirs/{dialect}\" }}\npoll_ms = 20\npoll_max_ms = 40\nretry_ms = 20\n{more}\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_dialect_sees_its_own_path_header_and_name() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let note = seen.clone();
    let upstream = Upstream::start(move |request| {
        note.lock().unwrap().push(request);
        async { Response::new(full("{}")) }
    })
    .await;
    let backends: String =
        REAL_TIME.iter().map(|(dialect, ..)| backend(dialect, &upstream.url, "")).collect();
    let daemon =
        Daemon::start("http://127.0.0.1:9", &format!("backends.simulated.models = [\"none\"]\n{backends}"))
            .await;
    for (dialect, path, header) in REAL_TIME {
        let model = format!("{dialect}-small");
        let mut calls = vec![send(daemon.post(CHAT, &chat(&model, "hello"))).await];
        if WITHOUT_BATCHES.contains(&dialect) {
            // What can wait is run at once where nothing cheaper is sold.
            let deferrable = daemon.post(CHAT, &chat(&model, "hello")).header("x-offpeak-sla", "24h");
            calls.push(send(deferrable).await);
        }
        for answer in calls {
            assert_eq!(
                (answer.status, answer.header("x-offpeak-mode")),
                (StatusCode::OK, "realtime"),
                "{dialect}"
            );
            let request = seen.lock().unwrap().pop().unwrap();
            assert_eq!(request.uri().path(), path, "{dialect}");
            let key = if header == "authorization" {
                format!("Bearer {PROVIDER_KEY}")
            } else {
                PROVIDER_KEY.into()
            };
            assert_eq!(request.headers()[header], key, "{dialect}");
            assert_eq!(
                request.headers().contains_key("authorization"),
                header == "authorization",
                "{dialect}"
            );
            let body: Value = serde_json::from_slice(request.body()).unwrap();
            assert_eq!(body["model"], format!("theirs/{dialect}"));
        }
    }
    // What a provider does not sell is asked of nobody.
    for (dialect, path) in
        [("gemini", "/v1/responses"), ("openrouter", "/v1/embeddings"), ("groq", "/v1/completions")]
    {
        let body = json!({"model": format!("{dialect}-small"), "input": "x", "prompt": "x"});
        assert_eq!(
            send(daemon.post(path, &body)).await.error(),
            (404, "model_not_found"),
            "{dialect} {path}"
        );
    }
    assert_eq!(seen.lock().unwrap().len(), 0);
}

// === Their batches ===

/// A batch API in the words of a dialect: what it must be told, and in which words it answers.
#[derive(Clone)]
struct Words {
    dialect: &'static str,
    more: &'static str,
    upload: &'static str,
    files: &'static str,
    batches: &'static str,
    /// Fields of the upload beside the file and its name.
    form: &'static [(&'static str, &'static str)],
    /// The creation, but for the file and the mark.
    creation: Value,
    /// Members of a line.
    line: &'static [&'static str],
    /// Where the creation's answer stands.
    wrapped: bool,
    over: &'static str,
}

fn words() -> Vec<Words> {
    let openai = Words {
        dialect: "groq",
        more: "window = \"7d\"",
        upload: "/openai/v1/files",
        files: "/openai/v1/files",
        batches: "/openai/v1/batches",
        form: &[("purpose", "batch")],
        creation: json!({"endpoint": CHAT, "completion_window": "7d"}),
        line: &["body", "custom_id", "method", "url"],
        wrapped: false,
        over: "completed",
    };
    vec![
        openai.clone(),
        Words {
            dialect: "novita",
            more: "",
            creation: json!({"endpoint": CHAT, "completion_window": "48h"}),
            ..openai.clone()
        },
        Words {
            dialect: "deepinfra",
            more: "",
            upload: "/v1/openai/files",
            files: "/v1/openai/files",
            batches: "/v1/openai/batches",
            creation: json!({"endpoint": CHAT, "completion_window": "24h"}),
            ..openai.clone()
        },
        Words {
            dialect: "together",
            more: "",
            upload: "/v1/files/upload",
            files: "/v1/files",
            batches: "/v1/batches",
            form: &[("purpose", "batch-api"), ("file_type", "jsonl")],
            creation: json!({"endpoint": CHAT, "completion_window": "24h"}),
            line: &["body", "custom_id"],
            wrapped: true,
            over: "COMPLETED",
        },
        Words {
            dialect: "mistral",
            more: "window = \"48h\"",
            upload: "/v1/files",
            files: "/v1/files",
            batches: "/v1/batch/jobs",
            creation: json!({"endpoint": CHAT, "model": "theirs/mistral", "timeout_hours": 48}),
            line: &["body", "custom_id"],
            over: "SUCCESS",
            ..openai
        },
    ]
}

/// A provider that runs one batch at once, and remembers what it was told.
#[derive(Default)]
struct Books {
    form: Vec<(String, String)>,
    creation: Value,
    output: String,
    calls: Vec<String>,
}

impl Books {
    fn answer(&mut self, words: &Words, request: &Request<Bytes>) -> Response<Body> {
        let (method, path) = (request.method().as_str(), request.uri().path());
        self.calls.push(format!("{method} {path}"));
        let content = format!("{}/their-output/content", words.files);
        let look = format!("{}/their-batch", words.batches);
        let body = match method {
            "POST" if path == words.upload => {
                self.take(request);
                json!({"id": "their-file", "object": "file", "created_at": 1, "filename": "x.jsonl"})
                    .to_string()
            }
            "POST" if path == words.batches => {
                self.creation = serde_json::from_slice(request.body()).unwrap();
                self.run(words);
                let batch = self.batch("QUEUED", false);
                if words.wrapped { json!({ "job": batch }) } else { batch }.to_string()
            }
            "GET" if path == look => self.batch(words.over, true).to_string(),
            "GET" if path == content => self.output.clone(),
            "GET" => json!({"data": []}).to_string(),
            "DELETE" => json!({"deleted": true}).to_string(),
            _ => {
                return Response::builder()
                    .status(404)
                    .body(full("{\"error\": {\"message\": \"no\"}}"))
                    .unwrap();
            }
        };
        Response::builder().header("content-type", "application/json").body(full(body)).unwrap()
    }

    /// Reads the form of an upload.
    fn take(&mut self, request: &Request<Bytes>) {
        let kind = request.headers()["content-type"].to_str().unwrap();
        let boundary = kind.split_once("boundary=").unwrap().1.trim_matches('"');
        let text = std::str::from_utf8(request.body()).unwrap();
        let boundary = format!("--{boundary}");
        let parts = text.split(&boundary).filter_map(|part| part.split_once("\r\n\r\n"));
        self.form = parts
            .map(|(head, content)| {
                let name = head.split_once("name=\"").unwrap().1.split_once('"').unwrap().0;
                (name.to_owned(), content.trim_end_matches("\r\n").to_owned())
            })
            .collect();
    }

    /// Answers each line, under the model's name at this provider.
    fn run(&mut self, words: &Words) {
        let (_, file) = self.form.iter().find(|(name, _)| name == "file").unwrap();
        let mut output = Vec::new();
        for line in file.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            let members: Vec<&String> = line.as_object().unwrap().keys().collect();
            assert_eq!(members, words.line, "{}", words.dialect);
            let model = line["body"]["model"].as_str().or_else(|| self.creation["model"].as_str()).unwrap();
            assert_eq!(line["body"]["model"].is_string(), self.creation["model"].is_null(), "{line}");
            let prompt = line["body"]["messages"][0]["content"].as_str().unwrap();
            let said = provider_sim::answer(model, prompt, None).text;
            let answer = json!({"object": "chat.completion", "model": model, "choices": [{"index": 0,
                "finish_reason": "stop", "message": {"role": "assistant", "content": said}}]});
            let result = json!({"id": "r", "custom_id": line["custom_id"], "error": null,
                "response": {"status_code": 200, "request_id": "q", "body": answer}});
            output.push(format!("{result}\n"));
        }
        self.output = output.concat();
    }

    /// The batch, with the members of all dialects.
    fn batch(&self, status: &str, is_over: bool) -> Value {
        let output = is_over.then_some("their-output");
        let count = u32::from(is_over) * 3;
        json!({"id": "their-batch", "status": status, "created_at": 1, "metadata": self.creation["metadata"],
            "input_file_id": "their-file", "output_file_id": output, "error_file_id": null,
            "request_counts": {"total": 3, "completed": count, "failed": 0},
            "input_files": ["their-file"], "output_file": output, "error_file": null, "errors": [],
            "total_requests": 3, "succeeded_requests": count, "failed_requests": 0})
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_are_sold_and_told_in_the_words_of_each_dialect() {
    for words in words() {
        let books = Arc::new(Mutex::new(Books::default()));
        let (kept, told) = (books.clone(), words.clone());
        let upstream = Upstream::start(move |request| {
            let answer = kept.lock().unwrap().answer(&told, &request);
            async { answer }
        })
        .await;
        let settings = format!(
            "backends.simulated.models = [\"none\"]\n{BY_HAND}\n{}",
            backend(words.dialect, &upstream.url, words.more)
        );
        let daemon = Daemon::start("http://127.0.0.1:9", &settings).await;
        let (mine, theirs) = (format!("{}-small", words.dialect), format!("theirs/{}", words.dialect));
        let mut tickets = Vec::new();
        for n in 0..3 {
            let prompt = format!("question {n}");
            let taken = daemon.defer("search", &mine, &prompt, "7d").await;
            assert_eq!(taken.status, StatusCode::ACCEPTED, "{}: {taken:?}", words.dialect);
            tickets.push(Ticket { prompt, tenant: "search", location: taken.header("location").to_owned() });
        }
        daemon.wait_for_waiting(3).await;
        daemon.flush().await;
        for ticket in &tickets {
            let answer = daemon.redeem(ticket).await;
            assert!(answer.answers(&theirs, &ticket.prompt), "{}: {answer:?}", words.dialect);
        }
        let deleted = format!("DELETE {}/their-file", words.files);
        eventually("what was uploaded is deleted", async || {
            books.lock().unwrap().calls.contains(&deleted).then_some(())
        })
        .await;
        let books = books.lock().unwrap();
        let field =
            |name: &str| books.form.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str());
        for (name, value) in words.form {
            assert_eq!(field(name), Some(*value), "{}: {:?}", words.dialect, books.form);
        }
        let mut creation = books.creation.clone();
        let members = creation.as_object_mut().unwrap();
        members.remove("metadata");
        let file = members.remove("input_file_id").or_else(|| members.remove("input_files")).unwrap();
        assert!(file == "their-file" || file == json!(["their-file"]), "{}: {file}", words.dialect);
        assert_eq!(creation, words.creation, "{}", words.dialect);
        let made = format!("POST {}", words.batches);
        assert_eq!(books.calls.iter().filter(|call| **call == made).count(), 1, "{:?}", books.calls);
    }
}
