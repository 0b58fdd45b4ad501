//! What must be true when all is over.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use offpeak::costs::report::{self, Query};
use offpeak::gateway::Gateway;
use offpeak_core::outcome::Ending;
use offpeak_core::retry;
use offpeak_core::words::Timestamp;
use offpeak_store::disk::memory::MemoryDisk;
use offpeak_store::{Kind as Documents, Options, Order, Store, StoreError};
use provider_sim::{Endpoint, Executions, SimResponse};
use serde_json::Value;

use crate::api::Api;
use crate::client::{Answer, Client};
use crate::job::{Failure, Line, Report, prompts};
use crate::plan::{HOUR, Kind, MAX_ATTEMPTS, MINUTE, PROVIDER_KEY, Script, Way};
use crate::record::Record;
use crate::world::World;

/// Every promise to every client was kept, and the provider's bill has nothing twice that is not on record.
pub(crate) async fn promises(world: &World, store: &Store) {
    let executions = world.provider.bill().executions;
    for (number, (client, script)) in world.clients.iter().zip(&world.plan.clients).enumerate() {
        let client = client.lock().clone();
        let mut broken = match script.way {
            Way::Job => job(world, store, &executions, number, script, &client).await,
            _ => request(world, store, &executions, script, &client).await,
        };
        for prompt in client.asked.iter().filter(|prompt| **prompt != client.prompt) {
            // It was refused, or nobody knows; the disk may have kept it all the same. Real time keeps nothing.
            let again = world.plan.may_run_again() || world.was_rescued(script.api, prompt);
            let most = if again && script.way != Way::Realtime { MAX_ATTEMPTS } else { 1 };
            let times = runs(&executions, script.api, prompt);
            if times > most {
                broken.push(format!("a call without an answer was run {times} times"));
            }
        }
        for what in broken {
            world.notes.violation(format!("client {number}: {what}: {script:?} {client:?}"));
        }
    }
}

fn runs(executions: &Executions, api: Api, prompt: &str) -> u32 {
    api.key(prompt).map_or(0, |key| executions.of(key))
}

async fn request(
    world: &World,
    store: &Store,
    executions: &Executions,
    script: &Script,
    client: &Client,
) -> Vec<String> {
    let Some(answer) = &client.answer else { return vec!["its request was lost".to_owned()] };
    let mut broken = Vec::new();
    let times = runs(executions, script.api, &client.prompt);
    if script.way == Way::Realtime || answer.is_in_real_time() {
        broken.extend(right_now(world, script, client, answer).err());
        // Each call that a client makes in real time is one, and the daemon makes no more of it.
        let calls = if script.way == Way::Realtime { 1 } else { client.calls };
        if u64::from(times) > calls {
            broken.push(format!("{calls} real-time calls were run {times} times"));
        }
        return broken;
    }
    broken.extend(right_answer(world, script, client, answer).err());
    let record = client.records.get(&client.prompt);
    let most = match most_runs(world, store, script.api, &client.prompt, record, client).await {
        Ok(most) => most,
        Err(error) => return vec![format!("the ledger cannot be read: {error}")],
    };
    if times > most {
        broken.push(format!("it was run {times} times, and {most} are on record"));
    }
    broken
}

/// What was passed on is the model's answer to this very prompt, or something that went wrong on the way.
fn right_now(world: &World, script: &Script, client: &Client, answer: &Answer) -> Result<(), String> {
    if answer.is_to(script.api, &client.prompt) {
        return Ok(());
    }
    let is_whole = !answer.is_broken && serde_json::from_slice::<Value>(&answer.body).is_ok();
    let plan = &world.plan;
    let explained = match answer.status {
        StatusCode::OK if is_whole => return Err("it got an answer to something else".to_owned()),
        StatusCode::OK => plan.has(Kind::CutAnswers) || plan.has(Kind::WrongAnswers),
        _ => plan.troubles_calls(),
    };
    let what = || format!("it got an error in real time that nothing explains: {}", answer.status);
    if explained { Ok(()) } else { Err(what()) }
}

/// An answer is the model's to this very prompt, or an error that something explains.
fn right_answer(world: &World, script: &Script, client: &Client, answer: &Answer) -> Result<(), String> {
    if answer.is_to(script.api, &client.prompt) {
        return Ok(());
    }
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
    let is_background = script.way == Way::Background;
    let state = body["status"].as_str().filter(|_| is_background);
    if answer.status == StatusCode::OK && !matches!(state, Some("failed" | "cancelled")) {
        return Err("it got an answer to something else".to_owned());
    }
    let detail = body.pointer("/error/details/error_code").and_then(Value::as_str);
    let code = answer.code();
    let trouble = Trouble {
        code: detail.unwrap_or(&code),
        status: Some(answer.status.as_u16()).filter(|status| *status != 200),
        attempts: answer.attempts,
        is_cancelled: answer.status == StatusCode::CONFLICT || state == Some("cancelled"),
        // Tickets and held calls are run late rather than not at all.
        is_expired: false,
    };
    if is_explained(world, script, client, &trouble) {
        Ok(())
    } else {
        Err(format!("it got an error that nothing explains: {} {code}", answer.status))
    }
}

/// An error that a client got instead of an answer.
#[derive(Debug)]
struct Trouble<'a> {
    code: &'a str,
    /// What the provider answered; 502 where it did not.
    status: Option<u16>,
    attempts: Option<u32>,
    is_cancelled: bool,
    is_expired: bool,
}

/// Some fault of this run, or the client itself, brought it about.
fn is_explained(world: &World, script: &Script, client: &Client, trouble: &Trouble<'_>) -> bool {
    let plan = &world.plan;
    match trouble.code {
        _ if trouble.is_cancelled => script.withdraws_after_ms.is_some(),
        _ if trouble.attempts.is_none_or(|attempts| attempts >= MAX_ATTEMPTS) => plan.may_fail_attempts(),
        _ if trouble.is_expired => plan.may_fail_attempts() && is_window_over(world, script, client),
        // What fails in the same way each time is not tried again.
        _ if plan.has(Kind::Validation) => true,
        // What ran, and whose results are never whole, is not bought once more.
        "results_unreadable" => plan.may_run_again(),
        // Real time cannot be asked what it meant to say.
        _ if trouble.status.is_none_or(|status| status == 502) => {
            plan.has(Kind::WrongAnswers) || plan.has(Kind::CutAnswers)
        }
        _ if trouble.status == Some(400) => plan.has(Kind::ItemFailures),
        _ => false,
    }
}

/// The client's job had all the time that it was given.
fn is_window_over(world: &World, script: &Script, client: &Client) -> bool {
    let window_ms = match script.sla {
        "24h" => 24 * HOUR,
        "12h" => 12 * HOUR,
        "4h" => 4 * HOUR,
        "2h" => 2 * HOUR,
        _ => 95 * MINUTE,
    };
    let read_ms = client.report.as_ref().map_or(0, |report| report.read_ms);
    let took_ms = read_ms.saturating_sub(client.began_ms.unwrap_or(0));
    took_ms >= window_ms || world.plan.has(Kind::ClockJumps)
}

/// How often a request may have run: as often as the ledger says that attempts of it ran, or may have.
async fn most_runs(
    world: &World,
    store: &Store,
    api: Api,
    prompt: &str,
    record: Option<&Record>,
    client: &Client,
) -> Result<u32, StoreError> {
    let is_rescued = world.was_rescued(api, prompt);
    let Some(record) = record else {
        let again = world.plan.may_run_again() || is_rescued;
        return Ok(if again { MAX_ATTEMPTS + 1 } else { 1 });
    };
    let on_record = record.runs(store).await?;
    // Tries in real time that follow each other are one entry.
    let on_record = if is_rescued { on_record.max(record.attempts) } else { on_record };
    // What had its outcome from elsewhere while it was in a batch, by a decision of the daemon's or its client's, is charged
    // when the batch's answer comes. A fault may keep that from the ledger, and only a fault.
    let was_left_behind = is_rescued || client.is_withdrawn || record.is_expired();
    Ok(on_record + u32::from(was_left_behind && !world.plan.hides_no_run()))
}

/// Each request of a job has exactly one line, and the job's counters say so too.
async fn job(
    world: &World,
    store: &Store,
    executions: &Executions,
    number: usize,
    script: &Script,
    client: &Client,
) -> Vec<String> {
    let Some(Report { lines, status, counts, .. }) = &client.report else {
        return vec!["its job was lost".to_owned()];
    };
    if status == "failed" {
        return vec!["its job failed as a whole".to_owned()];
    }
    let mut broken = Vec::new();
    let asked = prompts(world.plan.seed, number, script.lines, script.words);
    let names: BTreeSet<&String> = asked.iter().map(|(name, _)| name).collect();
    for name in lines.keys().filter(|name| !names.contains(name)) {
        broken.push(format!("its job has a line that nobody asked for: {name}"));
    }
    for (name, prompt) in &asked {
        let record = client.records.get(name);
        let times = runs(executions, script.api, prompt);
        match most_runs(world, store, script.api, prompt, record, client).await {
            Ok(most) if times <= most => {}
            Ok(most) => {
                broken.push(format!("{name} was run {times} times, and {most} are on record: {record:?}"));
            }
            Err(error) => broken.push(format!("the ledger cannot be read: {error}")),
        }
        match lines.get(name).map_or(&[][..], Vec::as_slice) {
            [Line::Right] => {}
            [Line::Error(failure)] => {
                let trouble = trouble(failure, record);
                if !is_explained(world, script, client, &trouble) {
                    broken
                        .push(format!("{name} has an error that nothing explains: {trouble:?} {failure:?}"));
                }
            }
            // What was cancelled before it stood in a lane is not part of the job.
            [] if client.is_withdrawn => {}
            other => broken.push(format!("{name} has these lines: {other:?}")),
        }
    }
    let right = lines.values().flatten().filter(|line| matches!(line, Line::Right)).count() as u64;
    let all = lines.values().map(|lines| lines.len() as u64).sum::<u64>();
    if *counts != (all, right, all - right) {
        broken.push(format!("its job counts {counts:?}, and {right} of {all} lines are answers"));
    }
    broken
}

/// What a line says, and what is on record about it.
fn trouble<'a>(failure: &'a Failure, record: Option<&'a Record>) -> Trouble<'a> {
    let code = match record.map(|record| &record.ending) {
        Some(Ending::Failed { code, .. }) => code.strip_prefix(retry::PERMANENT).unwrap_or(code),
        Some(Ending::Answered { .. }) | None => failure.code.as_str(),
    };
    let status = match record.map(|record| &record.ending) {
        Some(Ending::Answered { status }) => Some(*status),
        Some(Ending::Failed { .. }) => None,
        None => failure.status,
    };
    Trouble {
        code,
        status,
        attempts: record.map(|record| record.attempts),
        is_cancelled: matches!(failure.code.as_str(), "batch_cancelled" | "cancelled" | "canceled"),
        is_expired: matches!(failure.code.as_str(), "batch_expired" | "expired"),
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
    for batch in listing(world, "/v1/messages/batches?limit=100") {
        let id = batch.get("id").and_then(Value::as_str).unwrap_or_default();
        let marks = marks_of(world, id);
        let is_torn = marks.is_empty() && world.plan.has(Kind::DamagedResults);
        if marks.len() != 1 && !is_torn {
            world.notes.violation(format!("a message batch has the items of {marks:?}: {batch:?}"));
        }
        for mark in marks {
            *by_mark.entry(mark).or_default() += 1;
        }
    }
    world.count_many("(batches at the provider)", by_mark.values().sum());
    for (mark, count) in by_mark.into_iter().filter(|(_, count)| *count > 1) {
        world.notes.violation(format!("the provider has {count} batches for the mark {mark}"));
    }
    world.count_many("(files uploaded)", world.provider.calls(Endpoint::UploadFile));
    let files = listing(world, "/v1/files?limit=100");
    world.count_many("(files left at the provider)", files.len() as u64);
    if !files.is_empty() && !world.plan.may_leave_files() {
        world.notes.violation(format!("{} files are left at the provider: {files:?}", files.len()));
    }
}

/// The names of a message batch's items, as its results have them.
pub(crate) fn names_in(world: &World, id: &str) -> Vec<String> {
    let answer = get(world, &format!("/v1/messages/batches/{id}/results"));
    let lines = answer.body.bytes().split(|byte| *byte == b'\n');
    let names = lines.filter_map(|line| {
        let line: Value = serde_json::from_slice(line).ok()?;
        line.get("custom_id")?.as_str().map(str::to_owned)
    });
    names.collect()
}

/// Whose items a message batch has: there is no other place for a mark than their names.
fn marks_of(world: &World, id: &str) -> BTreeSet<String> {
    // The mark is an installation and a number of a batch, the rest a lane and a position; faults add lines of nobody.
    names_in(world, id)
        .into_iter()
        .filter_map(|name| match name.split('-').collect::<Vec<_>>()[..] {
            [installation, batch, _, _] if installation.len() == 16 => {
                Some(format!("{installation}-{batch}"))
            }
            _ => None,
        })
        .collect()
}

/// Lets a call in at the provider.
pub(crate) fn authorize(request: &mut Request<Bytes>) {
    let headers = request.headers_mut();
    if let (Ok(bearer), Ok(key)) = (format!("Bearer {PROVIDER_KEY}").parse(), PROVIDER_KEY.parse()) {
        headers.insert("authorization", bearer);
        headers.insert("x-api-key", key);
    }
    headers.insert("anthropic-version", http::HeaderValue::from_static("2023-06-01"));
}

fn get(world: &World, path: &str) -> SimResponse {
    let mut request = Request::new(Bytes::new());
    *request.method_mut() = Method::GET;
    *request.uri_mut() = path.parse().unwrap_or_default();
    authorize(&mut request);
    world.provider.handle(request)
}

/// A listing of the provider, to its end.
pub(crate) fn listing(world: &World, path: &str) -> Vec<Value> {
    let mut all = Vec::new();
    let mut after = String::new();
    loop {
        let answer = get(world, &format!("{path}{after}"));
        let page: Value = serde_json::from_slice(answer.body.bytes()).unwrap_or(Value::Null);
        let data = page.get("data").and_then(Value::as_array).cloned().unwrap_or_default();
        let last = data.last().and_then(|row| row.get("id")).and_then(Value::as_str).map(str::to_owned);
        all.extend(data);
        let name = if path.starts_with("/v1/messages") { "after_id" } else { "after" };
        match (last, page.get("has_more").and_then(Value::as_bool)) {
            (Some(last), Some(true)) => after = format!("&{name}={last}"),
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

/// The ledger never charges more than the provider did; it charges just as much where no fault can have hidden a call.
pub(crate) async fn ledger(world: &World, gateway: &Gateway) {
    let query = Query { by: Vec::new(), from: Timestamp(0), to: Timestamp::NEVER, tenant: None };
    let sums = match report::sum(&gateway.store, &query).await {
        Ok(report) => report.rows.into_iter().map(|(_, sums)| sums).next().unwrap_or_default(),
        Err(error) => return world.notes.violation(format!("the ledger cannot be read: {error}")),
    };
    let (charged, billed) = (sums.cost.to_i64(), i128::from(world.provider.bill().total().0));
    world.count_many("(ledger entries of calls that may have run)", sums.unknown);
    if sums.unpriced > 0 {
        world.notes.violation(format!("{} outcomes have no price", sums.unpriced));
    }
    let is_exact = world.plan.hides_no_run();
    if i128::from(charged) > billed && sums.estimated == 0 || is_exact && i128::from(charged) != billed {
        world.notes.violation(format!("the ledger has {charged}, the provider's bill {billed}: {sums:?}"));
    }
}

/// When nobody may ask for anything any more, nothing is kept but the ledger and what was learnt.
pub(crate) async fn nothing_left(world: &World, gateway: &Gateway, lanes_before: usize) {
    let stats = gateway.store.stats();
    // The segment that is written to stays, and what a sweep finds only when the next one is begun.
    let most = 2 * u64::from(world.plan.segment_bytes).max(1 << 20);
    if stats.segments > 2 || stats.log_bytes > most {
        world.notes.violation(format!("{} segments with {} bytes are left", stats.segments, stats.log_bytes));
    }
    for kind in Documents::ALL {
        let is_kept = matches!(
            kind,
            Documents::Ledger
                | Documents::Turnaround
                | Documents::Breaker
                | Documents::Calibration
                | Documents::LostOffer
        );
        let everything = (Bound::Unbounded, Bound::Unbounded);
        match gateway.store.documents(kind, everything, Order::Ascending, 100).await {
            Ok(left) if left.is_empty() || is_kept => {}
            Ok(left) => world.notes.violation(format!("{} documents are left: {kind:?}", left.len())),
            Err(error) => world.notes.violation(format!("the store cannot be read: {error}")),
        }
    }
    let files = std::fs::read_dir(world.folder.path().join("files")).map_or(0, Iterator::count);
    if files > 0 {
        world.notes.violation(format!("{files} files of clients are left"));
    }
    // The rest have something in the segments that stay.
    match gateway.store.idle_lanes().await {
        Ok(idle) if idle.is_empty() => {}
        Ok(idle) => world.notes.violation(format!("{} empty lanes are left", idle.len())),
        Err(error) => world.notes.violation(format!("the store cannot be read: {error}")),
    }
    let lanes_left = gateway.lanes.view().await.len();
    world.count_many("(lanes left)", lanes_left as u64);
    world.count_many("(lanes removed)", lanes_before.saturating_sub(lanes_left) as u64);
}

/// What a daemon that stopped well leaves is whole, and in the end nothing in it waits for anything.
pub(crate) fn disk(world: &World, disk: &MemoryDisk, is_last: bool) {
    let audit = match Store::check_on(disk, &Options::new("in memory")) {
        Ok(audit) => audit,
        // It never came to make one.
        Err(StoreError::NoIndex { .. }) => return,
        Err(error) => return world.notes.violation(format!("what it left cannot be checked: {error}")),
    };
    if !audit.is_healthy() {
        world.notes.violation(format!("what it left is damaged: {:?}", audit.findings));
    }
    if is_last && (audit.unfinished > 0 || audit.open_batches > 0) {
        world.notes.violation(format!("something is unfinished in the end: {audit:?}"));
    }
}
