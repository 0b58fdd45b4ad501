//! Uploads, good and malformed: what is wrong with a file fails the job and names the line, and nothing of it is run.

use http::{Method, StatusCode};
use provider_sim::Mode;
use serde_json::{Value, json};

use super::{BOUNDARY, form, line, lines};
use crate::rig::{BY_HAND, Rig, eventually, send, sim};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_malformed_file_fails_its_job_with_code_and_line() {
    let rig = Rig::start(sim(), "[server]\nmax_body = \"64KiB\"").await;
    let good = |id: &str| line(id, "fine");
    let with = |bad: String| [good("a"), bad, good("z")].join("\n").into_bytes();
    let bom = [b"\xef\xbb\xbf", good("a").as_bytes()].concat();
    let cases: Vec<(&str, Vec<u8>, &str, Value)> = vec![
        ("bad JSON", with("{\"custom_id\": ".to_owned()), "invalid_json_line", json!(2)),
        ("an empty line", with(String::new()), "invalid_json_line", json!(2)),
        ("the same id again", with(good("a")), "duplicate_custom_id", json!(2)),
        ("no id", with(good("b").replace("custom_id", "id")), "missing_required_parameter", json!(2)),
        ("no body", with(good("b").replace("\"body\"", "\"b\"")), "missing_required_parameter", json!(2)),
        ("another url", with(good("b").replace("chat/completions", "embeddings")), "url_mismatch", json!(2)),
        ("another model", with(good("b").replace("gpt-4o-mini", "gpt-4o")), "model_mismatch", json!(2)),
        ("another method", with(good("b").replace("POST", "GET")), "invalid_method", json!(2)),
        ("a line that is too long", with(line("b", &"x".repeat(70_000))), "request_too_large", json!(2)),
        ("nothing", Vec::new(), "empty_file", Value::Null),
        ("a byte order mark", bom, "invalid_json_line", json!(1)),
        ("too many lines", lines(50_001, "x").into_bytes(), "too_many_tasks", Value::Null),
    ];
    for (what, text, code, at) in cases {
        let id = rig.daemon.submit(text, "24h").await;
        let job = rig.daemon.job_is(&id, "failed").await;
        let errors = job["errors"]["data"].as_array().unwrap();
        assert_eq!(
            (errors.len(), &errors[0]["code"], &errors[0]["line"]),
            (1, &json!(code), &at),
            "{what}: {job}"
        );
        assert!(errors[0]["message"].as_str().unwrap().len() > 10, "{what}");
        assert!(job["failed_at"].is_u64(), "{what}");
        assert_eq!(
            (&job["output_file_id"], &job["request_counts"]["total"]),
            (&Value::Null, &json!(0)),
            "{what}"
        );
    }
    assert_eq!(rig.daemon.waiting().await, 0);
    assert_eq!((rig.batches(), rig.billed(Mode::Batch), rig.billed(Mode::Realtime)), (0, 0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_bad_line_of_a_file_is_told_with_its_number() {
    /// The code and the member that it names, of a line that is wrong.
    type Wrong = Option<(&'static str, Option<&'static str>)>;
    let rig = Rig::start(sim(), "[server]\nmax_body = \"64KiB\"").await;
    let table: [(String, Wrong); 13] = [
        (line("a", "fine"), None),
        ("{\"custom_id\": ".to_owned(), Some(("invalid_json_line", None))),
        (line("a", "again"), Some(("duplicate_custom_id", Some("custom_id")))),
        (String::new(), Some(("invalid_json_line", None))),
        ("[1, 2]".to_owned(), Some(("invalid_request", None))),
        (line("b", "fine"), None),
        (line("c", "x").replace("\"method\"", "\"m\""), Some(("missing_required_parameter", Some("method")))),
        (line("c", "x").replace("\"url\"", "\"u\""), Some(("missing_required_parameter", Some("url")))),
        (line("c", "x").replace("POST", "PUT"), Some(("invalid_method", Some("method")))),
        (line("c", &"x".repeat(70_000)), Some(("request_too_large", None))),
        (line("c", "x").replace("\"c\"", "3"), Some(("invalid_request", Some("custom_id")))),
        (
            line("c", "x").replace("\"model\"", "\"stream\":true,\"model\""),
            Some(("invalid_request", Some("body.stream"))),
        ),
        (line("b", "the second"), Some(("duplicate_custom_id", Some("custom_id")))),
    ];
    let expected: Vec<Value> = (1..)
        .zip(&table)
        .filter_map(|(number, (_, wrong))| wrong.map(|(code, param)| json!([number, code, param])))
        .collect();
    for end in ["\n", "\r\n"] {
        let lines: Vec<&str> = table.iter().map(|(line, _)| line.as_str()).collect();
        let text = lines.join(end) + end;
        let id = rig.daemon.submit(text, "24h").await;
        let job = rig.daemon.job_is(&id, "failed").await;
        let errors = job["errors"]["data"].as_array().unwrap();
        let told: Vec<Value> =
            errors.iter().map(|error| json!([error["line"], error["code"], error["param"]])).collect();
        assert_eq!(told, expected, "{end:?}");
    }
    assert_eq!((rig.daemon.waiting().await, rig.batches(), rig.billed(Mode::Batch)), (0, 0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn windows_line_ends_are_fine() {
    let rig = Rig::start(sim(), "").await;
    let id = rig.daemon.submit(lines(5, "crlf").replace('\n', "\r\n"), "24h").await;
    assert_eq!(rig.daemon.job_is(&id, "completed").await["request_counts"]["completed"], 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_nobody_serves_fails_the_job() {
    let rig = Rig::start(sim(), "[backends.simulated]\nmodels = [\"other-*\"]").await;
    let id = rig.daemon.submit(lines(3, "who"), "24h").await;
    let job = rig.daemon.job_is(&id, "failed").await;
    let error = &job["errors"]["data"][0];
    assert_eq!(
        (&error["code"], &error["line"], &error["param"]),
        (&json!("model_not_found"), &json!(1), &json!("body.model"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_breaks_off_leaves_nothing() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let rig = Rig::start(sim(), BY_HAND).await;
    let body = form("in.jsonl", lines(1000, "cut").as_bytes(), &[("purpose", "batch")]);
    let head = format!(
        "POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\
         content-type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n",
        crate::rig::key_of("search"),
        body.len()
    );
    let mut connection = tokio::net::TcpStream::connect(rig.daemon.data).await.unwrap();
    connection.write_all(head.as_bytes()).await.unwrap();
    connection.write_all(&body[..body.len() / 2]).await.unwrap();
    connection.shutdown().await.unwrap();
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).await.unwrap();
    eventually("no file is left", async || {
        let list = rig.daemon.get("/v1/files").await.body;
        assert_eq!(list["data"], json!([]));
        (rig.daemon.files_on_disk() == 0).then_some(())
    })
    .await;

    // A form that ends before its last boundary is as incomplete.
    let cut = rig
        .daemon
        .call("search", Method::POST, "/v1/files")
        .header("content-type", format!("multipart/form-data; boundary={BOUNDARY}"))
        .body(body[..body.len() / 2].to_vec());
    assert_eq!(send(cut).await.error(), (400, "invalid_form"));
    assert_eq!(rig.daemon.files_on_disk(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_that_cannot_be_a_jobs_input_are_refused_at_once() {
    let rig = Rig::start(sim(), BY_HAND).await;
    let text = lines(2, "x");
    let upload = |name, fields| rig.daemon.upload_request(name, text.as_bytes(), fields);
    let wrong_name = send(upload("in.json", &[("purpose", "batch")])).await;
    assert_eq!(wrong_name.error(), (400, "invalid_file_format"));
    assert_eq!(wrong_name.body["error"]["message"], "Invalid file format for Batch API. Must be .jsonl");
    assert_eq!(send(upload("in.jsonl", &[])).await.error(), (400, "missing_required_parameter"));
    assert_eq!(send(upload("in.jsonl", &[("purpose", "vision")])).await.error(), (400, "invalid_purpose"));
    let short =
        [("purpose", "batch"), ("expires_after[anchor]", "created_at"), ("expires_after[seconds]", "5")];
    assert_eq!(send(upload("in.jsonl", &short)).await.error(), (400, "invalid_value"));
    let plain = rig.daemon.call("search", Method::POST, "/v1/files").body("hello");
    assert_eq!(send(plain).await.error(), (400, "invalid_content_type"));
    assert_eq!(rig.daemon.files_on_disk(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_listed_read_and_deleted() {
    let rig = Rig::start(sim(), BY_HAND).await;
    let text = lines(3, "kept");
    let fields =
        [("purpose", "batch"), ("expires_after[anchor]", "created_at"), ("expires_after[seconds]", "7200")];
    let file = send(rig.daemon.upload_request("mine.jsonl", text.as_bytes(), &fields)).await.body;
    assert_eq!((&file["filename"], &file["bytes"]), (&json!("mine.jsonl"), &json!(text.len())));
    assert_eq!(file["expires_at"].as_u64().unwrap() - file["created_at"].as_u64().unwrap(), 7200);
    let other = rig.daemon.upload(&text).await;
    let id = file["id"].as_str().unwrap();
    let list = rig.daemon.get("/v1/files?purpose=batch&limit=1").await.body;
    assert_eq!((&list["data"][0]["id"], &list["has_more"]), (&json!(other), &json!(true)));
    let list = rig.daemon.get(&format!("/v1/files?after={other}")).await.body;
    assert_eq!((&list["data"], &list["has_more"]), (&json!([file]), &json!(false)));
    assert_eq!(rig.daemon.content(&file["id"]).await.len(), 3);
    assert_eq!(rig.daemon.delete(&format!("/v1/files/{id}")).await.body["deleted"], true);
    for path in [format!("/v1/files/{id}"), format!("/v1/files/{id}/content")] {
        assert_eq!(rig.daemon.get(&path).await.error(), (404, "file_not_found"));
    }
    assert_eq!(rig.daemon.create(id, "24h").await.error(), (400, "invalid_input_file"));
    assert_eq!(rig.daemon.files_on_disk(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_with_wrong_members_are_refused() {
    let rig = Rig::start(sim(), BY_HAND).await;
    let file = rig.daemon.upload(lines(1, "x")).await;
    let base =
        json!({ "input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h" });
    let cases = [
        ("input_file_id", json!("file-1"), "invalid_input_file"),
        ("input_file_id", Value::Null, "missing_required_parameter"),
        ("endpoint", json!("/v1/nothing"), "invalid_endpoint"),
        ("completion_window", json!("soon"), "invalid_completion_window"),
        ("completion_window", json!("0s"), "invalid_completion_window"),
        ("metadata", json!({ "a": "x".repeat(513) }), "invalid_metadata"),
        ("output_expires_after", json!({ "anchor": "created_at", "seconds": 1 }), "invalid_value"),
    ];
    for (member, value, code) in cases {
        let mut call = base.clone();
        call[member] = value;
        let refused = send(rig.daemon.post("/v1/batches", &call)).await;
        assert_eq!(refused.error(), (400, code), "{call}");
        assert_eq!(refused.body["error"]["param"], member);
    }
    assert_eq!(rig.daemon.get("/v1/batches").await.body["data"], json!([]));
    let unknown = rig.daemon.get("/v1/batches/batch_1").await;
    assert_eq!((unknown.status, unknown.error().1), (StatusCode::NOT_FOUND, "batch_not_found"));
    assert_eq!(rig.daemon.delete("/v1/batches/batch_1").await.status, StatusCode::METHOD_NOT_ALLOWED);
}
