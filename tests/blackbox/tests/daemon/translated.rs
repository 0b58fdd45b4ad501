//! Chat completions for a model that lives behind Anthropic's API: asked in OpenAI's words, answered in them.

use http::StatusCode;
use provider_sim::{BatchFault, Endpoint, Faults, ItemFault, ItemRule, Mode, answer};
use serde_json::{Value, json};

use crate::anthropic::{CLAUDE, rig, settings};
use crate::rig::{BY_HAND, CHAT, Rig, Ticket, chat, eventually, send, sim};

impl Rig {
    async fn defer_chat(&self, prompt: &str, body: &Value, sla: &str) -> Ticket {
        let request =
            self.daemon.post(CHAT, body).header("x-offpeak-sla", sla).header("prefer", "respond-async");
        let answer = send(request).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
        Ticket { prompt: prompt.to_owned(), tenant: "search", location: answer.header("location").to_owned() }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_is_translated_both_ways() {
    let rig = rig(Faults::default(), "").await;
    // An answer that is written anew cannot be compressed on the way.
    let request = rig.daemon.post(CHAT, &chat(CLAUDE, "both ways")).header("accept-encoding", "gzip");
    let answer = send(request).await;
    assert!(answer.answers(CLAUDE, "both ways"), "{answer:?}");
    assert_eq!(
        (&answer.body["object"], &answer.body["choices"][0]["finish_reason"]),
        (&"chat.completion".into(), &"stop".into())
    );
    let usage = &answer.body["usage"];
    let total = usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"], total);
    assert_eq!((rig.provider.calls(Endpoint::Messages), rig.billed(Mode::Realtime)), (1, 1));
    assert_eq!(answer.header("content-type"), "application/json");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_translated_while_it_runs() {
    let rig = rig(Faults::default(), "").await;
    let mut body = chat(CLAUDE, "in pieces");
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let response = rig.daemon.post(CHAT, &body).send().await.unwrap();
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/event-stream"));
    assert!(!response.headers().contains_key("content-length"));
    let text = response.text().await.unwrap();
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    let chunks: Vec<Value> =
        text.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok()).collect();
    assert!(chunks.iter().all(|chunk| chunk["object"] == "chat.completion.chunk"));
    let said: String =
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(said, answer(CLAUDE, "in pieces", None).text);
    assert!(chunks.last().unwrap()["usage"]["total_tokens"].is_u64(), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_said_is_refused_by_name() {
    let rig = rig(Faults::default(), "").await;
    let mut body = chat(CLAUDE, "x");
    body["seed"] = json!(7);
    let refused = send(rig.daemon.post(CHAT, &body)).await;
    assert_eq!(
        (refused.status.as_u16(), &refused.body["error"]["param"]),
        (400, &"seed".into()),
        "{refused:?}"
    );
    let mut unknown = chat("claude-unheard-of", "x");
    unknown["max_tokens"] = json!(10);
    let unknown = send(rig.daemon.post(CHAT, &unknown)).await;
    assert_eq!(
        (unknown.status.as_u16(), &unknown.body["error"]["message"].is_string()),
        (404, &true),
        "{unknown:?}"
    );
    assert_eq!(rig.billed(Mode::Realtime), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_translated_and_what_cannot_be_said_fails_alone() {
    let rule = ItemRule {
        fault: ItemFault::Status { status: 529 },
        probability: 1.0,
        custom_id: None,
        body: Some("fragile".to_owned()),
        times: Some(1),
    };
    let rig = rig(Faults { items: vec![rule], ..Faults::default() }, BY_HAND).await;
    let mut tickets = Vec::new();
    for n in 0..10 {
        let prompt = format!("{} {n}", if n == 3 { "fragile" } else { "sturdy" });
        tickets.push(rig.defer_chat(&prompt, &chat(CLAUDE, &prompt), "24h").await);
    }
    let mut odd = chat(CLAUDE, "odd");
    odd["logprobs"] = json!(true);
    let odd = rig.defer_chat("odd", &odd, "24h").await;
    rig.daemon.wait_for_waiting(11).await;
    rig.daemon.flush().await;
    let refused = rig.daemon.redeem(&odd).await;
    assert_eq!(
        (refused.status.as_u16(), &refused.body["error"]["param"]),
        (400, &"logprobs".into()),
        "{refused:?}"
    );
    assert_eq!((refused.header("x-offpeak-attempts"), refused.header("x-should-retry")), ("0", "false"));
    rig.daemon.wait_for_waiting(1).await;
    rig.daemon.flush().await;
    for ticket in &tickets {
        let answer = rig.daemon.redeem(ticket).await;
        assert!(answer.answers(CLAUDE, &ticket.prompt), "{ticket:?} got {answer:?}");
    }
    let bill = rig.provider.bill();
    let [line] = &bill.lines[..] else { panic!("{bill:?}") };
    assert_eq!((line.mode, line.requests, rig.ran_twice()), (Mode::Batch, 10, 0));
    assert_eq!(2 * line.cost.0, line.realtime_cost.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_batch_would_answer_too_late_is_translated_in_real_time() {
    // One batch at a time, and the first takes (nearly) for ever: the second waits at the gate until its deadline.
    let settings = settings("", "config.batch_usual = \"2s\"\nlanes.max_running = 1");
    let rig = Rig::start(sim(), &settings).await;
    rig.provider.faults().next_batch(vec![BatchFault::Turnaround { ms: 20 * 3_600_000 }]);
    rig.defer_chat("can wait", &chat(CLAUDE, "can wait"), "24h").await;
    eventually("the first batch is made", async || {
        (rig.provider.calls(Endpoint::CreateMessageBatch) == 1).then_some(())
    })
    .await;
    let urgent = rig.defer_chat("cannot", &chat(CLAUDE, "cannot"), "5s").await;
    let answer = rig.daemon.redeem(&urgent).await;
    assert!(answer.answers(CLAUDE, "cannot"), "{answer:?}");
    assert_eq!(rig.billed(Mode::Realtime), 1);
    assert_eq!((rig.billed(Mode::Batch), rig.provider.calls(Endpoint::Messages)), (0, 1));
}
