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

#[tokio::test]
async fn an_engine_that_is_told_to_end_answers_what_is_under_way() {
    let (running, url) = start(&["--engine", "--speed", "0"]);
    let client = client();
    let body = json!({"model": "sim-7b", "max_tokens": 1_000, "ignore_eos": true,
        "messages": [{"role": "user", "content": "a long story"}]});
    let call = tokio::spawn(client.post(format!("{url}/v1/chat/completions")).json(&body).send());
    let load =
        async || good(client.get(format!("{url}/load")).send().await.unwrap()).await["server_load"].clone();
    for _ in 0..2_000 {
        if load().await == 1 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    let advance = client.post(format!("{url}/sim/clock/advance")).json(&json!({"ms": 300}));
    good(advance.send().await.unwrap()).await;
    let status = Command::new("kill").arg("-TERM").arg(running.0.id().to_string()).status().unwrap();
    assert!(status.success());
    let reply = good(call.await.unwrap().unwrap()).await;
    assert_eq!(reply["choices"][0]["finish_reason"], "abort");
    let tokens = reply["usage"]["completion_tokens"].as_u64().unwrap();
    assert!((50..1_000).contains(&tokens), "{tokens}");
}

#[test]
fn scenarios_are_found_by_name_or_by_file() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_provider-sim"));
    let output = command.args(["--scenario", "no-such-scenario"]).output().unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("cannot read the scenario no-such-scenario"), "{text}");
    let (_running, _url) = start(&["--scenario", "slow_tail", "--realtime-tokens-per-minute", "100"]);
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
