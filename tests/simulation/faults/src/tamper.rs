//! What a daemon that breaks a promise would leave behind: the checks are held against it, to see that each of them notices.

use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{Request, StatusCode};
use offpeak::body::RequestBody;
use offpeak::gateway::Gateway;
use offpeak::ingress;
use offpeak_store::{Document, Kind as Documents, Order};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::api::Api;
use crate::check;
use crate::client::{Client, TENANT_KEYS};
use crate::job::{self, Failure, Line, Report, prompts};
use crate::plan::Way;
use crate::world::World;

/// A broken promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tampering {
    /// Somebody who waits gets nothing.
    AnswerLost,
    /// Somebody who waits gets what another asked for.
    AnswerOfAnother,
    /// Somebody who waits gets an error out of nowhere.
    AnswerIsError,
    /// The same, of a call in real time.
    NowAnswerOfAnother,
    /// And so.
    NowAnswerIsError,
    /// What could wait is bought twice.
    RunTwice,
    /// What could not, too.
    NowRunTwice,
    /// One of a job's requests is bought twice.
    LineRunTwice,
    /// A job is gone.
    JobLost,
    /// A job's answers lack one.
    LineLost,
    /// They have one twice.
    LineTwice,
    /// They have one to another request.
    LineOfAnother,
    /// They have an error out of nowhere.
    LineIsError,
    /// They have one to nothing.
    LineOfNobody,
    /// A job's object counts otherwise.
    CountsOff,
    /// The provider has a second batch for the same requests, in OpenAI's API.
    BatchTwice,
    /// And in Anthropic's.
    MessageBatchTwice,
    /// An upload stays at the provider.
    FileAtProvider,
    /// A call is charged twice.
    ChargedTwice,
    /// Something waits for ever.
    StillWaits,
    /// An uploaded file outlives its job.
    FileLeft,
    /// A document does.
    DocumentLeft,
}

impl Tampering {
    /// All of them, with what the check of it says.
    pub const ALL: [(Self, &'static str); 22] = [
        (Self::AnswerLost, "its request was lost"),
        (Self::AnswerOfAnother, "it got an answer to something else"),
        (Self::AnswerIsError, "it got an error that nothing explains"),
        (Self::NowAnswerOfAnother, "it got an answer to something else"),
        (Self::NowAnswerIsError, "it got an error in real time that nothing explains"),
        (Self::RunTwice, "it was run 2 times, and 1 are on record"),
        (Self::NowRunTwice, "1 real-time calls were run 2 times"),
        (Self::LineRunTwice, "line-0 was run 2 times, and 1 are on record"),
        (Self::JobLost, "its job was lost"),
        (Self::LineLost, "line-0 has these lines: []"),
        (Self::LineTwice, "line-0 has these lines: [Right, Right]"),
        (Self::LineOfAnother, "line-0 has these lines: [Wrong("),
        (Self::LineIsError, "line-0 has an error that nothing explains"),
        (Self::LineOfNobody, "its job has a line that nobody asked for"),
        (Self::CountsOff, "its job counts"),
        (Self::BatchTwice, "the provider has 2 batches for the mark"),
        (Self::MessageBatchTwice, "the provider has 2 batches for the mark"),
        (Self::FileAtProvider, "1 files are left at the provider"),
        (Self::ChargedTwice, "the ledger has"),
        (Self::StillWaits, "1 requests wait that nobody asked for"),
        (Self::FileLeft, "1 files of clients are left"),
        (Self::DocumentLeft, "1 documents are left"),
    ];

    /// Does what breaks it, when all is over and before it is looked at.
    pub(crate) async fn before_checks(self, world: &World, gateway: &Arc<Gateway>) -> Result<(), String> {
        match self {
            Self::AnswerLost => client(world, Way::Ticket, |client| client.answer = None),
            Self::AnswerOfAnother => swap_answers(world, Way::Ticket),
            Self::AnswerIsError => client(world, Way::Held, fails),
            Self::NowAnswerOfAnother => swap_answers(world, Way::Realtime),
            Self::NowAnswerIsError => client(world, Way::Realtime, fails),
            Self::RunTwice => buy(world, Way::Held),
            Self::NowRunTwice => buy(world, Way::Realtime),
            Self::LineRunTwice => buy(world, Way::Job),
            Self::JobLost => client(world, Way::Job, |client| client.report = None),
            Self::LineLost => line(world, Vec::clear),
            Self::LineTwice => line(world, |lines| lines.push(Line::Right)),
            Self::LineOfAnother => line(world, |lines| *lines = vec![Line::Wrong("another".to_owned())]),
            Self::LineIsError => line(world, |lines| {
                let (code, text) = ("server_error".to_owned(), "out of nowhere".to_owned());
                *lines = vec![Line::Error(Failure { code, status: Some(500), text })];
            }),
            Self::LineOfNobody => report(world, |report| {
                report.lines.insert("of-nobody".to_owned(), vec![Line::Right]);
            }),
            Self::CountsOff => report(world, |report| report.counts.1 += 1),
            Self::BatchTwice => batch_again(world),
            Self::MessageBatchTwice => message_batch_again(world),
            Self::FileAtProvider => upload(world).map(|_| ()),
            Self::ChargedTwice => charge_again(gateway).await,
            Self::StillWaits => hand_in(gateway).await,
            Self::FileLeft | Self::DocumentLeft => Ok(()),
        }
    }

    /// Does what breaks it when nobody may ask for anything any more.
    pub(crate) async fn before_the_end(self, world: &World, gateway: &Gateway) -> Result<(), String> {
        match self {
            Self::FileLeft => {
                let file = world.folder.path().join("files").join("left");
                std::fs::write(file, "left").map_err(|error| error.to_string())
            }
            Self::DocumentLeft => keep(gateway, Documents::Attempts, "left", Bytes::from("left")).await,
            _ => Ok(()),
        }
    }
}

fn of_way(world: &World, way: Way) -> impl Iterator<Item = (usize, Api, &Mutex<Client>)> {
    let all = world.plan.clients.iter().zip(&world.clients).enumerate();
    all.filter(move |(_, (script, _))| script.way == way)
        .map(|(number, (script, client))| (number, script.api, client.as_ref()))
}

/// The first client that asks in this way.
fn first(world: &World, way: Way) -> Result<(usize, Api, &Mutex<Client>), String> {
    of_way(world, way).next().ok_or_else(|| format!("nobody asks by {way:?}"))
}

fn client(world: &World, way: Way, change: impl FnOnce(&mut Client)) -> Result<(), String> {
    first(world, way).map(|(_, _, client)| change(&mut client.lock()))
}

fn swap_answers(world: &World, way: Way) -> Result<(), String> {
    let mut some = of_way(world, way);
    let (Some((_, _, one)), Some((_, _, other))) = (some.next(), some.next()) else {
        return Err(format!("there are no two that ask by {way:?}"));
    };
    std::mem::swap(&mut one.lock().answer, &mut other.lock().answer);
    Ok(())
}

fn fails(client: &mut Client) {
    if let Some(answer) = &mut client.answer {
        answer.status = StatusCode::INTERNAL_SERVER_ERROR;
        answer.body = json!({ "error": { "code": "server_error" } }).to_string().into();
    }
}

fn report(world: &World, change: impl FnOnce(&mut Report)) -> Result<(), String> {
    client(world, Way::Job, |client| {
        if let Some(report) = &mut client.report {
            change(report);
        }
    })
}

fn line(world: &World, change: impl FnOnce(&mut Vec<Line>)) -> Result<(), String> {
    report(world, |report| {
        let lines = report.lines.entry("line-0".to_owned()).or_default();
        change(lines);
    })
}

/// Has the provider run what somebody has asked for once more.
fn buy(world: &World, way: Way) -> Result<(), String> {
    let (number, api, client) = first(world, way)?;
    let script = world.plan.clients.get(number);
    let prompt = match script.filter(|script| script.way == Way::Job) {
        Some(script) => prompts(world.plan.seed, number, script.lines, script.words).swap_remove(0).1,
        None => client.lock().prompt.clone(),
    };
    ask(world, api.path(), "application/json", api.bytes(&prompt)).map(|_| ())
}

fn ask(world: &World, path: &str, kind: &str, body: Bytes) -> Result<Value, String> {
    let mut request =
        Request::post(path).header(CONTENT_TYPE, kind).body(body).map_err(|error| error.to_string())?;
    check::authorize(&mut request);
    let answer = world.provider.handle(request);
    let body = answer.body.bytes();
    if answer.status != StatusCode::OK {
        return Err(format!("the provider refuses {path}: {}", String::from_utf8_lossy(body)));
    }
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

fn upload(world: &World) -> Result<Value, String> {
    let body = Api::Chat.body("once more");
    let line = json!({ "custom_id": "again", "method": "POST", "url": Api::Chat.path(), "body": body });
    let (kind, form) = job::form(&line.to_string());
    let file = ask(world, "/v1/files", &kind, form)?;
    Ok(file["id"].clone())
}

fn batch_again(world: &World) -> Result<(), String> {
    let batches = check::listing(world, "/v1/batches?limit=100");
    let batch = batches.first().ok_or("the provider has no batch")?;
    let call = json!({
        "input_file_id": upload(world)?,
        "endpoint": Api::Chat.path(),
        "completion_window": "24h",
        "metadata": batch["metadata"],
    });
    ask(world, "/v1/batches", "application/json", call.to_string().into()).map(|_| ())
}

fn message_batch_again(world: &World) -> Result<(), String> {
    let batches = check::listing(world, "/v1/messages/batches?limit=100");
    let id =
        batches.first().and_then(|batch| batch["id"].as_str()).ok_or("the provider has no message batch")?;
    let name = check::names_in(world, id).into_iter().next().ok_or("its results are empty")?;
    let call = json!({ "requests": [{ "custom_id": name, "params": Api::Messages.body("once more") }] });
    ask(world, "/v1/messages/batches", "application/json", call.to_string().into())?;
    // Its items are read in its results.
    world.provider.clock().advance(Duration::from_hours(24));
    Ok(())
}

async fn charge_again(gateway: &Gateway) -> Result<(), String> {
    let everything = (Bound::Unbounded, Bound::Unbounded);
    let entries = gateway.store.documents(Documents::Ledger, everything, Order::Ascending, 1).await;
    let entries = entries.map_err(|error| error.to_string())?;
    let (key, entry) = entries.into_iter().next().ok_or("the ledger is empty")?;
    let mut again = key.to_vec();
    if let Some(last) = again.last_mut() {
        *last ^= 0x80;
    }
    let document = Document { kind: Documents::Ledger, key: again.into(), value: Some(entry) };
    gateway.store.keep(vec![document]).await.map_err(|error| error.to_string())
}

async fn keep(gateway: &Gateway, kind: Documents, key: &'static str, value: Bytes) -> Result<(), String> {
    let document = Document { kind, key: Bytes::from(key), value: Some(value) };
    gateway.store.keep(vec![document]).await.map_err(|error| error.to_string())
}

async fn hand_in(gateway: &Arc<Gateway>) -> Result<(), String> {
    let request = Request::post(Api::Chat.path())
        .header(AUTHORIZATION, format!("Bearer {}", TENANT_KEYS[0]))
        .header("prefer", "respond-async")
        .header("x-offpeak-sla", "24h")
        .body(RequestBody::Whole(Some(Api::Chat.bytes("too late"))))
        .map_err(|error| error.to_string())?;
    let answer = ingress::handle(gateway.clone(), request).await;
    let is_taken = answer.status() == StatusCode::ACCEPTED;
    is_taken.then_some(()).ok_or_else(|| format!("it is not taken: {}", answer.status()))
}
