//! The binary, driven as a test in another language would.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::rig::{chat, client, good};

/// Ends the program when the test ends, however it ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn start(args: &[&str]) -> (Running, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_provider-sim"));
    let mut child = command.args(args).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let url = line.trim().strip_prefix("listening on ").unwrap().to_owned();
    (Running(child), url)
}

#[tokio::test]
async fn the_program_is_driven_over_http() {
    let (_running, url) = start(&["--speed", "0", "--seed", "7", "--key", "sk-sim", "--track-executions"]);
    let client = client();
    let ask = async || {
        let request =
            client.post(format!("{url}/v1/chat/completions")).bearer_auth("sk-sim").json(&chat("x"));
        request.send().await.unwrap()
    };
    let tell = async |path: &str, body: Value| {
        good(client.post(format!("{url}/sim/{path}")).json(&body).send().await.unwrap()).await
    };
    let look = async |path: &str| good(client.get(format!("{url}/sim/{path}")).send().await.unwrap()).await;

    good(ask().await).await;
    tell(
        "faults",
        json!({"next": [{"endpoint": "chat_completions", "fault": {"kind": "status", "status": 500}}]}),
    )
    .await;
    assert_eq!(ask().await.status(), 500);
    tell("faults", json!({"set": {"http": [{"on": "any", "fault": {"kind": "status", "status": 503}}]}}))
        .await;
    assert_eq!(ask().await.status(), 503);
    tell("faults", json!({"set": {}})).await;
    good(ask().await).await;

    let bill = look("bill").await;
    assert_eq!((&bill["lines"][0]["requests"], &bill["lines"][0]["mode"]), (&2.into(), &"realtime".into()));
    assert_eq!((&bill["total"], &bill["all_realtime"]), (&bill["lines"][0]["cost"], &bill["total"]));
    assert_eq!(bill["executions"]["repeated"][0][1], 2);
    let stats = look("stats").await;
    assert_eq!(
        (&stats["calls"]["chat_completions"], &stats["faults"]["chat_completions"]),
        (&4.into(), &2.into())
    );
    let before = look("clock").await["now_ms"].as_u64().unwrap();
    let after = tell("clock/advance", json!({"ms": 1500})).await["now_ms"].as_u64().unwrap();
    assert_eq!(after, before + 1500);
    let unknown = client.get(format!("{url}/sim/nothing")).send().await.unwrap();
    assert_eq!(unknown.status(), 404);
}

#[test]
fn a_bad_fault_plan_is_named() {
    let path = std::env::temp_dir().join(format!("provider-sim-{}.json", std::process::id()));
    std::fs::write(&path, r#"{"htp": []}"#).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_provider-sim"));
    let output = command.arg("--faults").arg(&path).output().unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("is not valid: unknown field `htp`"), "{text}");
}
