//! Files that come in parts.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::{BOUNDARY, lines};
use crate::rig::{Answer, BY_HAND, Daemon, Rig, send, sim};

async fn begin(daemon: &Daemon, bytes: usize) -> String {
    let call =
        json!({ "bytes": bytes, "filename": "in.jsonl", "mime_type": "text/jsonl", "purpose": "batch" });
    let upload = send(daemon.post("/v1/uploads", &call)).await;
    assert_eq!((upload.status, &upload.body["status"]), (StatusCode::OK, &json!("pending")), "{upload:?}");
    upload.body["id"].as_str().unwrap().to_owned()
}

async fn part(daemon: &Daemon, tenant: &str, upload: &str, data: &[u8]) -> Answer {
    let head = format!(
        "--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"data\"; filename=\"upload\"\r\n\
         content-type: application/octet-stream\r\n\r\n"
    );
    let body = [head.as_bytes(), data, format!("\r\n--{BOUNDARY}--\r\n").as_bytes()].concat();
    let request = daemon.call(tenant, Method::POST, &format!("/v1/uploads/{upload}/parts"));
    send(request.header("content-type", format!("multipart/form-data; boundary={BOUNDARY}")).body(body)).await
}

async fn complete(daemon: &Daemon, upload: &str, call: &Value) -> Answer {
    send(daemon.post(&format!("/v1/uploads/{upload}/complete"), call)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_become_a_file_in_the_order_that_is_asked_for() {
    let rig = Rig::start(sim(), "").await;
    let text = lines(20, "parted");
    // Cut within a line, and sent the second half first.
    let (first, second) = text.as_bytes().split_at(text.len() / 2 + 3);
    let upload = begin(&rig.daemon, text.len()).await;
    let mut ids = Vec::new();
    for data in [second, first] {
        let part = part(&rig.daemon, "search", &upload, data).await.body;
        assert_eq!((&part["object"], &part["upload_id"]), (&json!("upload.part"), &json!(upload)));
        ids.push(part["id"].clone());
    }
    ids.reverse();
    let wrong = json!({ "part_ids": ids, "md5": "00000000000000000000000000000000" });
    assert_eq!(complete(&rig.daemon, &upload, &wrong).await.error(), (400, "checksum_mismatch"));
    let done = complete(&rig.daemon, &upload, &json!({ "part_ids": ids })).await.body;
    assert_eq!(
        (&done["status"], &done["file"]["bytes"]),
        (&json!("completed"), &json!(text.len())),
        "{done}"
    );
    let again = complete(&rig.daemon, &upload, &json!({ "part_ids": ids })).await.body;
    assert_eq!(again["file"]["id"], done["file"]["id"]);
    assert_eq!(rig.daemon.files_on_disk(), 1);
    assert_eq!(rig.daemon.content(&done["file"]["id"]).await.len(), 20);
    let job = rig.daemon.create(done["file"]["id"].as_str().unwrap(), "24h").await.body;
    let job = rig.daemon.job_is(job["id"].as_str().unwrap(), "completed").await;
    assert_eq!(job["request_counts"]["completed"], 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_together_is_refused() {
    let rig = Rig::start(sim(), BY_HAND).await;
    let upload = begin(&rig.daemon, 10).await;
    let id = part(&rig.daemon, "search", &upload, b"12345").await.body["id"].clone();
    let refused = complete(&rig.daemon, &upload, &json!({ "part_ids": [id] })).await;
    assert_eq!(refused.error(), (400, "wrong_size"));
    let refused = complete(&rig.daemon, &upload, &json!({ "part_ids": ["part_1"] })).await;
    assert_eq!(refused.error(), (400, "part_not_found"));
    assert_eq!(part(&rig.daemon, "mail", &upload, b"12345").await.error(), (404, "upload_not_found"));
    let cancel = rig.daemon.call("search", Method::POST, &format!("/v1/uploads/{upload}/cancel"));
    assert_eq!(send(cancel).await.body["status"], "cancelled");
    assert_eq!(part(&rig.daemon, "search", &upload, b"12345").await.error(), (400, "upload_not_pending"));
    let call = json!({ "bytes": 10, "filename": "in.txt", "mime_type": "text/plain", "purpose": "batch" });
    assert_eq!(send(rig.daemon.post("/v1/uploads", &call)).await.error(), (400, "invalid_file_format"));
}
