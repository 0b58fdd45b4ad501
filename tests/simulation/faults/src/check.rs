//! What must be true when all is over.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use offpeak::gateway::Gateway;
use provider_sim::execution_key;
use serde_json::Value;

use crate::client::{Answer, CHAT, Client, body};
use crate::plan::{Kind, MAX_ATTEMPTS, PROVIDER_KEY, Script, Way};
use crate::world::World;

/// Every promise to every client was kept, and the provider's bill has nothing twice.
pub(crate) fn promises(world: &World) {
    let executions = world.provider.bill().executions;
    let ran = |prompt: &str| execution_key(CHAT, &body(prompt)).map_or(0, |key| executions.of(key));
    for (number, (client, script)) in world.clients.iter().zip(&world.plan.clients).enumerate() {
        let client = client.lock().clone();
        let complain =
            |what: String| world.notes.violation(format!("client {number}: {what}: {script:?} {client:?}"));
        let Some(answer) = &client.answer else {
            complain("its request was lost".to_owned());
            continue;
        };
        if script.way != Way::Realtime && !answer.is_in_real_time() {
            if let Err(what) = right_answer(world, script, &client, answer) {
                complain(what);
            }
            let (times, most) = (ran(&client.prompt), most_runs(world, &client, answer));
            if times > most {
                complain(format!("it was run {times} times, and {most} are explained"));
            }
        } else if ran(&client.prompt) > 1 {
            complain(format!("a real-time call was run {} times", ran(&client.prompt)));
        }
        for prompt in client.refused.iter().filter(|prompt| **prompt != client.prompt) {
            // It was refused, but the disk may have kept it all the same.
            let again = world.plan.may_run_again() || world.was_rescued(prompt);
            if ran(prompt) > if again { MAX_ATTEMPTS } else { 1 } {
                complain(format!("a refused call was run {} times", ran(prompt)));
            }
        }
    }
}

/// An answer is the model's to this very prompt, or an error that something explains.
fn right_answer(world: &World, script: &Script, client: &Client, answer: &Answer) -> Result<(), String> {
    if answer.is_to(&client.prompt) {
        return Ok(());
    }
    if answer.status == StatusCode::OK {
        return Err("it got an answer to something else".to_owned());
    }
    let plan = &world.plan;
    let code = answer.code();
    let explained = match code.as_str() {
        "cancelled" => script.withdraws_after_ms.is_some(),
        _ if answer.attempts >= MAX_ATTEMPTS => !plan.kinds.is_empty(),
        // What fails in the same way each time is not tried again.
        "invalid_json_line" => plan.has(Kind::Validation),
        // Real time cannot be asked what it meant to say.
        "unreadable_answer" => plan.has(Kind::WrongAnswers) || plan.has(Kind::CutAnswers),
        _ if answer.status == StatusCode::BAD_REQUEST => plan.has(Kind::ItemFailures),
        _ => false,
    };
    if explained {
        Ok(())
    } else {
        Err(format!("it got an error that nothing explains: {} {code}", answer.status))
    }
}

/// How often a request may have run. More often than once only if an attempt's answer was lost, and then no more often
/// than attempts are on record.
fn most_runs(world: &World, client: &Client, answer: &Answer) -> u32 {
    // One that was cancelled may have been under way.
    let under_way = u32::from(client.is_withdrawn);
    let on_record = answer.attempts.saturating_add(under_way);
    if world.was_rescued(&client.prompt) {
        // It may have been run beside the batch that it is in; that decision is on record too.
        on_record + 1
    } else if world.plan.may_run_again() {
        on_record
    } else {
        on_record.min(1)
    }
}

/// At the provider there is one batch for each of offpeak's, and none of its files is left.
pub(crate) fn provider(world: &World) {
    let mut by_mark: BTreeMap<String, u64> = BTreeMap::new();
    for batch in listing(world, "/v1/batches?limit=100") {
        let mark = batch
            .pointer("/metadata/offpeak_batch")
            .and_then(Value::as_str)
            .unwrap_or("(no mark)")
            .to_owned();
        // One that did not pass validation ran nothing, and another may be made in its place.
        if batch.get("status").and_then(Value::as_str) != Some("failed") {
            *by_mark.entry(mark).or_default() += 1;
        }
    }
    for (mark, count) in by_mark.into_iter().filter(|(_, count)| *count > 1) {
        world.notes.violation(format!("the provider has {count} batches for the mark {mark}"));
    }
}

/// A listing of the provider, to its end.
pub(crate) fn listing(world: &World, path: &str) -> Vec<Value> {
    let mut all = Vec::new();
    let mut after = String::new();
    loop {
        let mut request = Request::new(Bytes::new());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = format!("{path}{after}").parse().unwrap_or_default();
        if let Ok(key) = format!("Bearer {PROVIDER_KEY}").parse() {
            request.headers_mut().insert("authorization", key);
        }
        let answer = world.provider.handle(request);
        let page: Value = serde_json::from_slice(answer.body.bytes()).unwrap_or(Value::Null);
        let data = page.get("data").and_then(Value::as_array).cloned().unwrap_or_default();
        let last = data.last().and_then(|row| row.get("id")).and_then(Value::as_str).map(str::to_owned);
        all.extend(data);
        match (last, page.get("has_more").and_then(Value::as_bool)) {
            (Some(last), Some(true)) => after = format!("&after={last}"),
            _ => return all,
        }
    }
}

/// Nothing is under way any more, in no lane, no batch, no call.
pub(crate) async fn nothing_under_way(world: &World, gateway: &Gateway) {
    let waiting: u64 = gateway.lanes.view().await.iter().map(|lane| lane.sums.count).sum();
    if waiting > 0 {
        world.notes.violation(format!("{waiting} requests wait that nobody asked for"));
    }
    match gateway.store.open_batches().await {
        Ok(batches) if batches.is_empty() => {}
        Ok(batches) => world.notes.violation(format!("batches that never ended: {batches:?}")),
        Err(error) => world.notes.violation(format!("the store cannot be read: {error}")),
    }
    if gateway.held.count() > 0 {
        world.notes.violation(format!("{} calls are held for nobody", gateway.held.count()));
    }
}

/// When nobody may ask for anything any more, nothing is kept.
pub(crate) async fn nothing_left(world: &World, gateway: &Gateway) {
    let stats = gateway.store.stats();
    // The segment that is written to stays, and what a sweep finds only when the next one is begun.
    let most = 2 * u64::from(world.plan.segment_bytes).max(1 << 20);
    if stats.segments > 2 || stats.log_bytes > most {
        world.notes.violation(format!("{} segments with {} bytes are left", stats.segments, stats.log_bytes));
    }
}
