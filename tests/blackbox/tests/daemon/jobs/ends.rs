//! Jobs that end otherwise: cancelled, expired, removed.

use http::StatusCode;
use provider_sim::{BatchFault, Mode};
use serde_json::{Value, json};

use super::{by_id, lines};
use crate::rig::{BY_HAND, Rig, eventually, sim};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_cancelled_before_it_left_is_never_run() {
    let rig = Rig::start(sim(), BY_HAND).await;
    let id = rig.daemon.submit(lines(30, "never"), "24h").await;
    rig.daemon.job_is(&id, "in_progress").await;
    let cancelling = rig.daemon.cancel_job(&id).await;
    assert_eq!(cancelling.status, StatusCode::OK, "{cancelling:?}");
    assert!(["cancelling", "cancelled"].contains(&cancelling.body["status"].as_str().unwrap()));
    let job = rig.daemon.job_is(&id, "cancelled").await;
    assert_eq!(job["request_counts"], json!({ "total": 30, "completed": 0, "failed": 30 }));
    assert_eq!(job["output_file_id"], Value::Null);
    assert!(job["cancelling_at"].is_u64() && job["cancelled_at"].is_u64());
    let errors = by_id(rig.daemon.content(&job["error_file_id"]).await);
    assert_eq!(errors.len(), 30);
    assert!(errors.values().all(|line| line["error"]["code"] == "batch_cancelled"), "{errors:?}");
    rig.daemon.flush().await;
    eventually("nothing waits", async || (rig.daemon.waiting().await == 0).then_some(())).await;
    assert_eq!((rig.batches(), rig.billed(Mode::Batch)), (0, 0));
    assert_eq!(rig.daemon.cancel_job(&id).await.status, StatusCode::OK, "once more changes nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_had_its_answer_before_the_cancel_keeps_it() {
    let rig = Rig::start(sim(), BY_HAND).await;
    rig.provider.faults().next_batch(vec![BatchFault::LoseItems { permille: 500 }]);
    let id = rig.daemon.submit(lines(40, "some"), "48h").await;
    rig.daemon.job_is(&id, "in_progress").await;
    rig.daemon.flush().await;
    eventually("the batch is made", async || (rig.batches() == 1).then_some(())).await;
    rig.provider.clock().advance(std::time::Duration::from_hours(24));
    let waiting = eventually("the rest waits again", async || {
        let waiting = rig.daemon.waiting().await;
        (waiting > 0).then_some(waiting)
    })
    .await;
    rig.daemon.cancel_job(&id).await;
    let job = rig.daemon.job_is(&id, "cancelled").await;
    let completed = 40 - waiting;
    assert_eq!(job["request_counts"], json!({ "total": 40, "completed": completed, "failed": waiting }));
    assert_eq!(by_id(rig.daemon.content(&job["output_file_id"]).await).len() as u64, completed);
    assert_eq!(by_id(rig.daemon.content(&job["error_file_id"]).await).len() as u64, waiting);
    assert_eq!(rig.billed(Mode::Batch), completed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ended_job_cannot_be_cancelled() {
    let rig = Rig::start(sim(), "").await;
    let id = rig.daemon.submit(lines(1, "done"), "24h").await;
    rig.daemon.job_is(&id, "completed").await;
    let refused = rig.daemon.cancel_job(&id).await;
    assert_eq!(refused.error(), (409, "batch_not_cancellable"));
    assert_eq!(refused.header("x-should-retry"), "false");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_window_is_over_what_is_unfinished_expires() {
    // So short a window is tried in real time, where the provider takes no calls.
    let settings = "[retry]\nmax_attempts = 20";
    let rig = Rig::start(sim(), settings).await;
    let down = provider_sim::Fault::Status { status: 503, retry_after_ms: None };
    for _ in 0..400 {
        rig.provider.faults().next(provider_sim::Endpoint::ChatCompletions, down);
    }
    let id = rig.daemon.submit(lines(3, "late"), "2s").await;
    let job = rig.daemon.job_is(&id, "expired").await;
    assert_eq!(job["request_counts"], json!({ "total": 3, "completed": 0, "failed": 3 }));
    assert!(job["expired_at"].as_u64() >= job["expires_at"].as_u64(), "{job}");
    let errors = by_id(rig.daemon.content(&job["error_file_id"]).await);
    let line = &errors["id-2"];
    assert_eq!((&line["response"], &line["error"]["code"]), (&Value::Null, &json!("batch_expired")));
    assert_eq!(
        line["error"]["message"],
        "This request could not be executed before the completion window expired."
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_files_can_be_deleted_and_stay_deleted() {
    let rig = Rig::start(sim(), "").await;
    let id = rig.daemon.submit(lines(3, "gone"), "24h").await;
    let done = rig.daemon.job_is(&id, "completed").await;
    let output = done["output_file_id"].as_str().unwrap().to_owned();
    let listed = rig.daemon.get("/v1/files?purpose=batch_output").await.body;
    assert_eq!(listed["data"][0]["id"], output.as_str());
    let deleted = rig.daemon.delete(&format!("/v1/files/{output}")).await;
    assert_eq!(deleted.body, json!({ "id": output, "object": "file", "deleted": true }));
    assert_eq!(rig.daemon.get(&format!("/v1/files/{output}/content")).await.status, StatusCode::NOT_FOUND);
    assert_eq!(rig.daemon.job(&id).await["output_file_id"], Value::Null);
    assert_eq!(rig.daemon.get("/v1/files?purpose=batch_output").await.body["data"], json!([]));
}
