//! A running simulator, a client, and the calls that most tests make.

use std::sync::Once;
use std::time::Duration;

use provider_sim::{Builder, Handle, Provider, Server, Sim};
use reqwest::multipart::{Form, Part};
use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Value, json};

pub(crate) const MODEL: &str = "gpt-4o-mini";
pub(crate) const CHAT: &str = "/v1/chat/completions";

pub(crate) struct Rig {
    pub(crate) provider: Provider,
    pub(crate) client: Client,
    server: Handle,
}

pub(crate) fn client() -> Client {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        rustls::crypto::ring::default_provider().install_default().expect("nobody else installs one");
    });
    Client::builder().no_proxy().timeout(Duration::from_mins(1)).build().unwrap()
}

/// A simulator with time by hand and executions tracked.
pub(crate) fn sim() -> Builder {
    Sim::builder().seed(7).track_executions(true)
}

impl Rig {
    pub(crate) async fn of(builder: Builder) -> Self {
        let provider = builder.build();
        let server = Server::on_free_port(provider.clone()).await.unwrap();
        Self { provider, client: client(), server }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.server.url())
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> RequestBuilder {
        self.client.post(self.url(path)).json(body)
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        good(self.client.get(self.url(path)).send().await.unwrap()).await
    }

    pub(crate) fn upload_request(&self, filename: &str, lines: &[String]) -> RequestBuilder {
        let mut text = lines.join("\n");
        text.push('\n');
        let file = Part::bytes(text.into_bytes()).file_name(filename.to_owned());
        let form = Form::new().text("purpose", "batch").part("file", file);
        self.client.post(self.url("/v1/files")).multipart(form)
    }

    pub(crate) async fn upload(&self, lines: &[String]) -> String {
        let file = good(self.upload_request("batch.jsonl", lines).send().await.unwrap()).await;
        file["id"].as_str().unwrap().to_owned()
    }

    pub(crate) fn create_request(&self, file: &str) -> RequestBuilder {
        let body = json!({"input_file_id": file, "endpoint": CHAT, "completion_window": "24h",
            "metadata": {"mark": "m-1"}});
        self.post("/v1/batches", &body)
    }

    /// Uploads these lines and makes a batch of them; returns its id.
    pub(crate) async fn batch(&self, lines: &[String]) -> String {
        let file = self.upload(lines).await;
        let batch = good(self.create_request(&file).send().await.unwrap()).await;
        assert_eq!(batch["status"], "validating");
        batch["id"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn retrieve(&self, batch: &str) -> Value {
        self.get(&format!("/v1/batches/{batch}")).await
    }

    pub(crate) fn advance(&self, duration: Duration) {
        self.provider.clock().advance(duration);
    }

    /// The lines of a result file, those that are not JSON as null; none when `file` is null.
    pub(crate) async fn lines(&self, file: &Value) -> Vec<Value> {
        let Some(id) = file.as_str() else { return Vec::new() };
        let response = self.client.get(self.url(&format!("/v1/files/{id}/content"))).send().await.unwrap();
        assert_eq!(response.headers()["content-type"], "application/octet-stream");
        let text = response.text().await.unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap_or(Value::Null)).collect()
    }
}

pub(crate) async fn good(response: Response) -> Value {
    let status = response.status();
    let body = response.text().await.unwrap();
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

/// Sends a request that must fail with `status`; returns the error object.
pub(crate) async fn refused(request: RequestBuilder, status: u16) -> Value {
    let response = request.send().await.unwrap();
    let got = response.status();
    let body: Value = response.json().await.unwrap();
    assert_eq!(got, status, "{body}");
    let error = body["error"].clone();
    for field in ["message", "type", "param", "code"] {
        assert!(error.get(field).is_some(), "no {field} in {error}");
    }
    error
}

pub(crate) fn prompt(n: usize) -> String {
    format!("question number {n} about the weather")
}

pub(crate) fn chat(prompt: &str) -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": prompt}]})
}

pub(crate) fn line(n: usize) -> String {
    json!({"custom_id": format!("id-{n}"), "method": "POST", "url": CHAT, "body": chat(&prompt(n))})
        .to_string()
}

pub(crate) fn lines(count: usize) -> Vec<String> {
    (0..count).map(line).collect()
}
