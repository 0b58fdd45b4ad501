//! Jobs: files and batches as OpenAI's API has them.

mod costs;
mod ends;
mod files;
mod flow;
mod uploads;

use std::collections::BTreeMap;

use http::{Method, StatusCode};
use reqwest::RequestBuilder;
use serde_json::{Value, json};

use crate::rig::{Answer, CHAT, Daemon, MODEL, chat, eventually, send};

/// The boundary of the forms that are uploaded here.
const BOUNDARY: &str = "a-boundary-of-the-tests";

/// A line of a job's input.
pub(crate) fn line(id: &str, prompt: &str) -> String {
    let line = json!({ "custom_id": id, "method": "POST", "url": CHAT, "body": chat(MODEL, prompt) });
    line.to_string()
}

/// So many lines, whose prompts tell them apart.
pub(crate) fn lines(count: usize, prompt: &str) -> String {
    (0..count).map(|n| line(&format!("id-{n}"), &format!("{prompt} {n}")) + "\n").collect()
}

/// A form as the Node SDK sends it: the file first.
fn form(name: &str, text: &[u8], fields: &[(&str, &str)]) -> Vec<u8> {
    let head = format!(
        "--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\
         content-type: application/octet-stream\r\n\r\n"
    );
    let mut form = head.into_bytes();
    form.extend_from_slice(text);
    for (name, value) in fields {
        let part =
            format!("\r\n--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}");
        form.extend_from_slice(part.as_bytes());
    }
    form.extend_from_slice(format!("\r\n--{BOUNDARY}--\r\n").as_bytes());
    form
}

impl Daemon {
    pub(crate) fn upload_request(&self, name: &str, text: &[u8], fields: &[(&str, &str)]) -> RequestBuilder {
        self.call("search", Method::POST, "/v1/files")
            .header("content-type", format!("multipart/form-data; boundary={BOUNDARY}"))
            .body(form(name, text, fields))
    }

    /// Uploads a job's input; returns its id.
    pub(crate) async fn upload(&self, text: impl AsRef<[u8]>) -> String {
        let answer = send(self.upload_request("in.jsonl", text.as_ref(), &[("purpose", "batch")])).await;
        assert_eq!(
            (answer.status, &answer.body["status"]),
            (StatusCode::OK, &json!("processed")),
            "{answer:?}"
        );
        answer.body["id"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn create(&self, file: &str, window: &str) -> Answer {
        let call = json!({ "input_file_id": file, "endpoint": CHAT, "completion_window": window });
        send(self.post("/v1/batches", &call)).await
    }

    /// Uploads and submits; returns the job's id.
    pub(crate) async fn submit(&self, text: impl AsRef<[u8]>, window: &str) -> String {
        let job = self.create(&self.upload(text).await, window).await;
        assert_eq!((job.status, &job.body["object"]), (StatusCode::OK, &json!("batch")), "{job:?}");
        job.body["id"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        send(self.call("search", Method::GET, path)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        send(self.call("search", Method::DELETE, path)).await
    }

    pub(crate) async fn job(&self, id: &str) -> Value {
        let answer = self.get(&format!("/v1/batches/{id}")).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        answer.body
    }

    pub(crate) async fn cancel_job(&self, id: &str) -> Answer {
        send(self.call("search", Method::POST, &format!("/v1/batches/{id}/cancel"))).await
    }

    /// Waits until the job has this status.
    pub(crate) async fn job_is(&self, id: &str, status: &str) -> Value {
        eventually(&format!("{id} is {status}"), async || {
            let job = self.job(id).await;
            let is_final = ["completed", "failed", "expired", "cancelled"].contains(&job["status"].as_str()?);
            assert!(!is_final || job["status"] == status, "{job}");
            (job["status"] == status).then_some(job)
        })
        .await
    }

    /// The lines of a file.
    pub(crate) async fn content(&self, file: &Value) -> Vec<Value> {
        let path = format!("/v1/files/{}/content", file.as_str().expect("a file's id"));
        let response = self.call("search", Method::GET, &path).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let text = response.text().await.unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// The lines of an output file by their custom ids; each is there once.
pub(crate) fn by_id(lines: Vec<Value>) -> BTreeMap<String, Value> {
    let count = lines.len();
    let map: BTreeMap<String, Value> =
        lines.into_iter().map(|line| (line["custom_id"].as_str().unwrap().to_owned(), line)).collect();
    assert_eq!(map.len(), count);
    map
}
