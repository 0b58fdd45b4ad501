//! Files.

use std::time::Duration;

use provider_sim::Limits;
use reqwest::multipart::{Form, Part};
use serde_json::json;

use crate::rig::{Rig, good, lines, refused, sim};

#[tokio::test]
async fn a_file_lives_from_upload_to_deletion() {
    let rig = Rig::of(sim()).await;
    let text = lines(3);
    let file = good(rig.upload_request("in.jsonl", &text).send().await.unwrap()).await;
    let id = file["id"].as_str().unwrap();
    assert!(id.starts_with("file-"));
    let bytes = text.join("\n").len() + 1;
    assert_eq!((&file["bytes"], &file["filename"]), (&bytes.into(), &"in.jsonl".into()));
    assert_eq!((&file["status"], &file["purpose"]), (&"processed".into(), &"batch".into()));
    let month = 30 * 24 * 3600;
    assert_eq!(file["expires_at"].as_u64(), file["created_at"].as_u64().map(|at| at + month));
    assert_eq!(rig.get(&format!("/v1/files/{id}")).await, file);
    assert_eq!(rig.lines(&file["id"]).await.len(), 3);
    let gone = good(rig.client.delete(rig.url(&format!("/v1/files/{id}"))).send().await.unwrap()).await;
    assert_eq!(gone, json!({"id": id, "object": "file", "deleted": true}));
    for path in [format!("/v1/files/{id}"), format!("/v1/files/{id}/content")] {
        assert_eq!(refused(rig.client.get(rig.url(&path)), 404).await["param"], "id");
    }
}

#[tokio::test]
async fn uploads_are_checked() {
    let limits = Limits { batch_file_bytes: 100, file_bytes: 200, ..Limits::default() };
    let rig = Rig::of(sim().limits(limits)).await;
    let form = |purpose: &str, name: &str, len: usize| {
        let file = Part::bytes(vec![b'x'; len]).file_name(name.to_owned());
        // The file first, as the JavaScript SDK sends it.
        let form = Form::new().part("file", file).text("purpose", purpose.to_owned());
        rig.client.post(rig.url("/v1/files")).multipart(form)
    };
    let error = refused(form("batch", "in.txt", 1), 400).await;
    assert_eq!(error["message"], "Invalid file format for Batch API. Must be .jsonl");
    assert_eq!((&error["type"], &error["code"]), (&"invalid_request_error".into(), &json!(null)));
    refused(form("batch", "in.jsonl", 101), 413).await;
    refused(form("user_data", "in.bin", 201), 413).await;
    refused(form("nonsense", "in.jsonl", 1), 400).await;
    let user_data = good(form("user_data", "in.bin", 200).send().await.unwrap()).await;
    assert_eq!(user_data["expires_at"], json!(null));
    good(form("batch", "in.jsonl", 100).send().await.unwrap()).await;
    let no_purpose = Form::new().part("file", Part::bytes(&b"x"[..]).file_name("in.jsonl"));
    let request = rig.client.post(rig.url("/v1/files")).multipart(no_purpose);
    assert_eq!(refused(request, 400).await["param"], "purpose");
    let no_file = rig.client.post(rig.url("/v1/files")).multipart(Form::new().text("purpose", "batch"));
    assert_eq!(refused(no_file, 400).await["param"], "file");
}

#[tokio::test]
async fn files_expire_when_they_are_told_to() {
    let rig = Rig::of(sim()).await;
    let form = |secs: &str| {
        let form = Form::new()
            .text("purpose", "batch")
            .text("expires_after[anchor]", "created_at")
            .text("expires_after[seconds]", secs.to_owned())
            .part("file", Part::bytes(&b"{}"[..]).file_name("in.jsonl"));
        rig.client.post(rig.url("/v1/files")).multipart(form)
    };
    refused(form("3599"), 400).await;
    let file = good(form("3600").send().await.unwrap()).await;
    let path = format!("/v1/files/{}", file["id"].as_str().unwrap());
    rig.advance(Duration::from_secs(3599));
    rig.get(&path).await;
    rig.advance(Duration::from_secs(1));
    refused(rig.client.get(rig.url(&path)), 404).await;
    assert_eq!(rig.get("/v1/files").await["data"], json!([]));
}

#[tokio::test]
async fn the_listing_has_pages_orders_and_purposes() {
    let rig = Rig::of(sim()).await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(rig.upload(&lines(1)).await);
    }
    let mut seen: Vec<String> = Vec::new();
    loop {
        let after = seen.last().map_or(String::new(), |last| format!("&after={last}"));
        let page = rig.get(&format!("/v1/files?limit=2{after}")).await;
        let data = page["data"].as_array().unwrap();
        seen.extend(data.iter().map(|file| file["id"].as_str().unwrap().to_owned()));
        assert_eq!(page["last_id"], *seen.last().unwrap());
        if page["has_more"] == false {
            break;
        }
    }
    seen.reverse();
    assert_eq!(seen, ids, "newest first");
    assert_eq!(rig.get("/v1/files?order=asc&limit=1").await["data"][0]["id"], ids[0]);
    assert_eq!(rig.get("/v1/files?purpose=vision").await["data"], json!([]));
    refused(rig.client.get(rig.url("/v1/files?after=file-x")), 404).await;
    refused(rig.client.get(rig.url("/v1/files?limit=0")), 400).await;
}
