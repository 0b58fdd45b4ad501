//! Clients with jobs: a file and a batch as OpenAI's API has them, or a message batch as Anthropic's.

use std::collections::BTreeMap;

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::load::{Api, Load, key};

/// What stands between the parts of an upload.
const BOUNDARY: &str = "between-the-parts";

/// Uploads a file, makes a batch of it, waits for its end, and reads its lines.
pub(crate) async fn by_file(load: &Load, asked: &[(Api, String)]) {
    let what = &asked[0].1;
    let form = form(&asked.iter().enumerate().map(line).collect::<String>());
    let kind = format!("multipart/form-data; boundary={BOUNDARY}");
    let file = load
        .until_it_works(what, async |_| {
            let call = load.http.post(format!("{}/v1/files", load.base)).header("content-type", &kind);
            id(load.send(call.body(form.clone())).await?).await
        })
        .await;
    let call = json!({ "input_file_id": file, "endpoint": Api::Chat.path(), "completion_window": "24h" });
    let job = load
        .until_it_works(what, async |_| {
            let request = load.http.post(format!("{}/v1/batches", load.base));
            id(load.send(request.header("idempotency-key", key(what)).json(&call)).await?).await
        })
        .await;
    let ended = load.until_it_works(what, async |_| {
        let job = get(load, &format!("/v1/batches/{job}")).await?;
        ["completed", "failed", "expired", "cancelled"].contains(&job["status"].as_str()?).then_some(job)
    });
    let ended = ended.await;
    assert_eq!(ended["status"], "completed", "{ended}");
    let counts = json!({ "total": asked.len(), "completed": asked.len(), "failed": 0 });
    assert_eq!(ended["request_counts"], counts, "{ended}");
    let path = format!("/v1/files/{}/content", ended["output_file_id"].as_str().unwrap());
    let lines = load.until_it_works(what, async |_| text(load, &path).await).await;
    check(asked, &lines, Api::Chat, |line| &line["response"]["body"]);
}

/// Makes a message batch, waits for its end, and reads its results.
pub(crate) async fn by_message_batch(load: &Load, asked: &[(Api, String)]) {
    let what = &asked[0].1;
    let params = |(n, (api, prompt)): (usize, &(Api, String))| json!({ "custom_id": format!("id-{n}"), "params": api.body(prompt) });
    let requests: Vec<Value> = asked.iter().enumerate().map(params).collect();
    let batches = format!("{}/v1/messages/batches", load.base);
    let job = load
        .until_it_works(what, async |_| {
            let call = load.http.post(&batches).header("x-offpeak-sla", "24h");
            let call = call.header("idempotency-key", key(what)).json(&json!({ "requests": requests }));
            id(load.send(call).await?).await
        })
        .await;
    let path = format!("/v1/messages/batches/{job}");
    let ended = load
        .until_it_works(what, async |_| {
            get(load, &path).await.filter(|job| job["processing_status"] == "ended")
        })
        .await;
    assert_eq!(ended["request_counts"]["succeeded"], asked.len(), "{ended}");
    let lines = load.until_it_works(what, async |_| text(load, &format!("{path}/results")).await).await;
    check(asked, &lines, Api::Messages, |line| &line["result"]["message"]);
}

/// Each request has one line, with the answer to just this request.
fn check(asked: &[(Api, String)], lines: &str, api: Api, answer: impl Fn(&Value) -> &Value) {
    let mut by_id: BTreeMap<String, Value> = BTreeMap::new();
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let before = by_id.insert(line["custom_id"].as_str().unwrap().to_owned(), line);
        assert!(before.is_none(), "there twice: {before:?}");
    }
    assert_eq!(by_id.len(), asked.len());
    for (n, (_, prompt)) in asked.iter().enumerate() {
        let line = &by_id[&format!("id-{n}")];
        assert!(api.is_answer_to(answer(line), prompt), "the answer to {prompt} is {line}");
    }
}

fn line((n, (api, prompt)): (usize, &(Api, String))) -> String {
    let id = format!("id-{n}");
    let line = json!({ "custom_id": id, "method": "POST", "url": api.path(), "body": api.body(prompt) });
    format!("{line}\n")
}

fn form(lines: &str) -> String {
    format!(
        "--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--{BOUNDARY}\r\n\
         content-disposition: form-data; name=\"file\"; filename=\"in.jsonl\"\r\n\r\n{lines}\r\n--{BOUNDARY}--\r\n"
    )
}

async fn id(response: reqwest::Response) -> Option<String> {
    let is_made = response.status() == StatusCode::OK;
    let made: Value = response.json().await.ok()?;
    is_made.then(|| made["id"].as_str().unwrap().to_owned())
}

async fn get(load: &Load, path: &str) -> Option<Value> {
    serde_json::from_str(&text(load, path).await?).ok()
}

/// What is there; it must be there, whenever the daemon was killed.
async fn text(load: &Load, path: &str) -> Option<String> {
    let response = load.send(load.http.get(format!("{}{path}", load.base))).await?;
    let status = response.status();
    assert_ne!(status, StatusCode::NOT_FOUND, "{path} is not known any more");
    let text = response.text().await.ok()?;
    (status == StatusCode::OK).then_some(text)
}
