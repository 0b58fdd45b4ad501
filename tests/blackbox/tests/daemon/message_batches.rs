//! Message batches: jobs as Anthropic's API has them.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::rig::{Answer, BY_HAND, Daemon, Rig, send, sim};

const PATH: &str = "/v1/messages/batches";

fn request(id: &str, prompt: &str) -> Value {
    let messages = json!([{ "role": "user", "content": prompt }]);
    json!({ "custom_id": id, "params": { "model": "claude-haiku-5-5", "max_tokens": 100, "messages": messages } })
}

async fn create(daemon: &Daemon, requests: &[Value]) -> Answer {
    send(daemon.post(PATH, &json!({ "requests": requests }))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_batch_is_said_at_once_and_nothing_is_left() {
    let rig = Rig::start(sim(), BY_HAND).await;
    let refused = create(&rig.daemon, &[request("a", "x"), request("a", "y")]).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{refused:?}");
    let message = refused.body["error"]["message"].as_str().unwrap();
    assert!(message.starts_with("requests.1.custom_id:"), "{message}");
    assert_eq!(create(&rig.daemon, &[]).await.status, StatusCode::BAD_REQUEST);
    for body in ["", "[]", "{}", r#"{"requests": [{"custom_id": "a""#] {
        let call = rig.daemon.call("search", Method::POST, PATH).body(body);
        assert_eq!(send(call).await.status, StatusCode::BAD_REQUEST, "{body}");
    }
    // Nobody here sells messages.
    assert_eq!(create(&rig.daemon, &[request("a", "x")]).await.status, StatusCode::NOT_FOUND);
    assert_eq!(rig.daemon.files_on_disk(), 0);
    let list = rig.daemon.get(PATH).await.body;
    assert_eq!((&list["data"], &list["has_more"]), (&json!([]), &json!(false)));
    assert_eq!(rig.daemon.get(&format!("{PATH}/msgbatch_1")).await.status, StatusCode::NOT_FOUND);
}
