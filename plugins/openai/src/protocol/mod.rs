//! The batch protocol: upload the items, create the batch, poll it, read both result files, tidy up.
//!
//! A pure state machine. The state holds the phase, which is what the outstanding effect belongs to; [`step`] takes an
//! event and returns the next state and effect. Two rules keep a batch from being paid twice:
//!
//! - After a creation whose fate is unknown nothing is created before the listing has been searched to its end, twice,
//!   with time in between for the provider to show what it has.
//! - An event that does not belong to the outstanding effect counts as that effect's fate being unknown.

mod answer;
pub(crate) mod background;
mod collect;
mod create;
#[cfg(test)]
mod dialects;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use offpeak_plugin::{
    DidItRun, Header,
    provider::{
        Batch, Effect, Ending, Event, Failure, Finish, Framing, Multipart, Progress, Reading, ReadingForm,
        Request, Step, Upload,
    },
};
use serde::{Deserialize, Serialize};

use crate::{
    config::{Config, DeleteFiles},
    dialect::{BatchApi, Creation, Paging},
    wire::escape,
};
use answer::Outcome;

/// The version of [`State`] as it is stored. A newer plugin must read what an older one has written.
const STATE_VERSION: u32 = 1;

/// What stays the same during a batch's life.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The batch.
    pub batch: &'a Batch,
    /// The plugin's settings.
    pub config: &'a Config,
    /// The provider's names for things.
    pub api: &'a BatchApi,
}

impl<'a> Context<'a> {
    /// The context of a batch; an error where the provider has no batches.
    pub fn new(batch: &'a Batch, config: &'a Config) -> Result<Self, String> {
        let dialect = config.dialect();
        match &dialect.batch_api {
            Some(api) => Ok(Self { batch, config, api }),
            None => Err(format!(
                "the batch was made under another configuration: the dialect {} has no batches",
                dialect.name
            )),
        }
    }

    fn files(self) -> String {
        format!("{}{}", self.config.root(), self.api.files)
    }

    fn batches(self) -> String {
        format!("{}{}", self.config.root(), self.api.batches)
    }
}

/// What the daemon keeps between two steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    version: u32,
    phase: Phase,
    /// The phase's effect is not out yet; before it, a wait of so many milliseconds is.
    pause_ms: Option<u64>,
    notes: Notes,
}

/// What the outstanding effect belongs to. `input` is the uploaded file's id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    /// Sending the items.
    Upload,
    /// Looking for the file of an upload whose fate is unknown.
    FindInput { search: Search },
    /// Creating the batch.
    Create { input: String },
    /// Looking for the batch of a creation whose fate is unknown, for the `look`th time.
    FindBatch { input: String, look: u32, search: Search },
    /// Asking how the batch is.
    Poll { input: String, id: String },
    /// Asking to stop the batch.
    Cancel { input: String, id: String },
    /// Reading the first of `left`.
    Read { input: String, left: Vec<ResultFile>, read: Vec<String>, end: End },
    /// Deleting the first of `files`.
    Delete { files: Vec<String>, end: End },
    /// Nothing is left to do.
    Over { end: End },
}

/// How far the search through a listing is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Search {
    /// The last item seen.
    after: Option<String>,
    pages: u32,
}

/// A file with results.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ResultFile {
    source: Source,
    id: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Source {
    Output,
    Errors,
}

impl Source {
    fn name(self) -> &'static str {
        match self {
            Self::Output => "output",
            Self::Errors => "errors",
        }
    }
}

/// What is counted and remembered on the way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Notes {
    /// Uploads, or creations, that came to nothing, in a row.
    rounds: u32,
    /// Other calls that came to nothing, in a row.
    tries: u32,
    /// How firmly the provider says that there is no such thing, or that it will not show it.
    gone: u32,
    /// Looks at the running batch.
    polls: u32,
    /// Looks at a batch that is over but shows no results yet.
    lookouts: u32,
    cancel: Cancel,
    provider_id: Option<String>,
    completed: Option<u32>,
    failed: Option<u32>,
}

/// Whether the batch is to be stopped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Cancel {
    #[default]
    No,
    Wanted,
    /// The provider has been told, or will not hear.
    Told,
}

/// How it ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum End {
    Finished { how: How, missing: Ran },
    Failed { ran: Ran, temporary: bool, retry_after_s: Option<u32>, code: String, message: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum How {
    Completed,
    Expired,
    Cancelled,
}

/// What to think of items without a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Ran {
    NotSent,
    Refused,
    Unknown,
}

/// Where a reaction leads.
#[derive(Debug)]
enum Next {
    /// The phase's effect at once.
    Act(Phase),
    /// The phase's effect after so many milliseconds.
    Pause(Phase, u64),
}

impl State {
    /// Reads what was stored; none at the start.
    pub fn read(bytes: &[u8]) -> Result<Option<Self>, String> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let state: Self = serde_json::from_slice(bytes).map_err(|error| {
            format!("the batch's stored state cannot be read ({error}); was it another plugin's?")
        })?;
        if state.version != STATE_VERSION {
            return Err(format!(
                "the batch's stored state has version {}, this plugin knows version {STATE_VERSION}; use the plugin that \
                 wrote it, or a newer one",
                state.version
            ));
        }
        Ok(Some(state))
    }
}

/// One step, with the state as it is stored.
pub fn batch_step(stored: &[u8], event: Event, context: Context<'_>) -> Result<Step, String> {
    if background::window(&context.batch.offer).is_some() {
        return background::batch_step(stored, event, context);
    }
    let (state, effect) = step(State::read(stored)?, event, context);
    let progress =
        |state: &State| Some(Progress { completed: state.notes.completed?, failed: state.notes.failed? });
    Ok(Step {
        provider_id: state.notes.provider_id.clone(),
        progress: progress(&state),
        state: serde_json::to_vec(&state).map_err(|error| error.to_string())?,
        effect,
    })
}

/// One step. `state` is none at the start.
pub fn step(state: Option<State>, event: Event, context: Context<'_>) -> (State, Effect) {
    let mut notes = state.as_ref().map(|state| state.notes.clone()).unwrap_or_default();
    if matches!(event, Event::Cancel) && notes.cancel == Cancel::No {
        notes.cancel = Cancel::Wanted;
    }
    let next = match state {
        None => Next::Act(Phase::Upload),
        Some(State { phase, pause_ms: Some(ms), .. }) => match event {
            Event::Cancel | Event::Interrupted => Next::Pause(phase, ms),
            _ => Next::Act(phase),
        },
        Some(State { phase, pause_ms: None, .. }) => react(phase, event, &mut notes, context),
    };
    let (phase, pause_ms) = match heed_cancel(next, &notes, context) {
        Next::Act(phase) => (phase, None),
        Next::Pause(phase, ms) => (phase, Some(ms)),
    };
    let effect = pause_ms.map_or_else(|| phase.effect(context), Effect::Wait);
    (State { version: STATE_VERSION, phase, pause_ms, notes }, effect)
}

/// What the outcome of a phase's effect leads to.
fn react(phase: Phase, event: Event, notes: &mut Notes, context: Context<'_>) -> Next {
    match phase {
        Phase::Upload => create::uploaded(Outcome::of(event), notes, context),
        Phase::FindInput { search } => create::listed_files(Outcome::of(event), search, notes, context),
        Phase::Create { input } => create::created(Outcome::of(event), input, notes, context),
        Phase::FindBatch { input, look, search } => {
            create::listed_batches(Outcome::of(event), input, look, search, notes, context)
        }
        Phase::Poll { input, id } => collect::polled(Outcome::of(event), input, id, notes, context),
        Phase::Cancel { input, id } => collect::cancelled(Outcome::of(event), input, id, notes, context),
        Phase::Read { input, left, read, end } => {
            collect::read(&event, input, left, read, end, notes, context)
        }
        Phase::Delete { mut files, end } => {
            files.remove(0); // whether it worked or not: the provider deletes old files itself
            conclude_deleting(files, end)
        }
        Phase::Over { end } => Next::Act(Phase::Over { end }),
    }
}

/// Once a batch is to be stopped, nothing is made any more, and what runs is told.
fn heed_cancel(next: Next, notes: &Notes, context: Context<'_>) -> Next {
    if notes.cancel != Cancel::Wanted {
        return next;
    }
    let (Next::Act(phase) | Next::Pause(phase, _)) = &next;
    let end = End::Finished { how: How::Cancelled, missing: Ran::NotSent };
    match phase {
        Phase::Upload => Next::Act(Phase::Over { end }),
        Phase::Create { input } => conclude(vec![input.clone()], end, context),
        Phase::Poll { input, id } => Next::Act(Phase::Cancel { input: input.clone(), id: id.clone() }),
        _ => next,
    }
}

/// The end, after deleting `files` at the provider.
fn conclude(files: Vec<String>, end: End, context: Context<'_>) -> Next {
    let keep = context.config.delete_files == DeleteFiles::None;
    conclude_deleting(if keep { Vec::new() } else { files }, end)
}

fn conclude_deleting(files: Vec<String>, end: End) -> Next {
    Next::Act(if files.is_empty() { Phase::Over { end } } else { Phase::Delete { files, end } })
}

impl Phase {
    /// What is sent in this phase.
    fn effect(&self, context: Context<'_>) -> Effect {
        let (files, batches) = (context.files(), context.batches());
        match self {
            Self::Upload => Effect::Upload(upload(context)),
            Self::FindInput { search } => {
                let filter = format!("?purpose={}", context.api.purpose);
                get(search.page(files, &filter, context.api.files_a_page, context.api.paging))
            }
            Self::Create { input } => Effect::Call(creation(input, context)),
            Self::FindBatch { search, .. } => {
                get(search.page(batches, "", context.api.batches_a_page, context.api.paging))
            }
            Self::Poll { id, .. } => get(format!("{batches}/{}", escape(id))),
            Self::Cancel { id, .. } => call("POST", format!("{batches}/{}/cancel", escape(id))),
            Self::Read { left, end, .. } => match left.first() {
                Some(file) => Effect::Read(Reading {
                    path: format!("{files}/{}/content", escape(&file.id)),
                    headers: vec![header("accept", "application/octet-stream, application/binary, */*")],
                    source: file.source.name().to_owned(),
                    form: ReadingForm::Lines,
                }),
                None => end.effect(),
            },
            Self::Delete { files: left, end } => match left.first() {
                Some(file) => call("DELETE", format!("{files}/{}", escape(file))),
                None => end.effect(),
            },
            Self::Over { end } => end.effect(),
        }
    }
}

impl Search {
    /// The path of the next page, the newest first.
    fn page(&self, path: String, filter: &str, limit: u32, paging: Paging) -> String {
        let mut page = path + filter;
        let mut add = |name: &str, value: &str| {
            page.push(if page.contains('?') { '&' } else { '?' });
            page.push_str(name);
            page.push('=');
            page.push_str(value);
        };
        match paging {
            Paging::Cursor => {
                add("order", "desc");
                add("limit", &limit.to_string());
                if let Some(after) = &self.after {
                    add("after", &escape(after));
                }
            }
            Paging::Numbered => {
                add("page_size", &limit.to_string());
                add("page", &self.pages.to_string());
            }
            Paging::Whole => {}
        }
        page
    }
}

impl End {
    fn effect(&self) -> Effect {
        match self {
            Self::Finished { how, missing } => Effect::Finished(Finish {
                ending: match how {
                    How::Completed => Ending::Completed,
                    How::Expired => Ending::Expired,
                    How::Cancelled => Ending::Cancelled,
                },
                missing: (*missing).into(),
            }),
            Self::Failed { ran, temporary, retry_after_s, code, message } => Effect::Failed(Failure {
                ran: (*ran).into(),
                temporary: *temporary,
                retry_after_s: *retry_after_s,
                code: code.clone(),
                message: message.clone(),
            }),
        }
    }

    /// A failure. Texts are cut, because they are stored.
    fn failed(ran: Ran, temporary: bool, code: &str, message: &str) -> Self {
        const CODE_CHARS: usize = 100;
        const MESSAGE_CHARS: usize = 1000;
        Self::Failed {
            ran,
            temporary,
            retry_after_s: None,
            code: code.chars().take(CODE_CHARS).collect(),
            message: message.chars().take(MESSAGE_CHARS).collect(),
        }
    }
}

impl From<DidItRun> for Ran {
    fn from(ran: DidItRun) -> Self {
        match ran {
            DidItRun::NotSent => Self::NotSent,
            DidItRun::Refused => Self::Refused,
            DidItRun::Unknown | DidItRun::Ran => Self::Unknown,
        }
    }
}

impl From<Ran> for DidItRun {
    fn from(ran: Ran) -> Self {
        match ran {
            Ran::NotSent => Self::NotSent,
            Ran::Refused => Self::Refused,
            Ran::Unknown => Self::Unknown,
        }
    }
}

fn upload(context: Context<'_>) -> Upload {
    let api = context.api;
    let file_name = file_name(context.batch);
    let field = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let mut fields = vec![field("purpose", api.purpose)];
    fields.extend(api.upload_fields.iter().map(|(name, value)| field(name, value)));
    fields.extend(api.name_field.map(|name| field(name, &file_name)));
    Upload {
        method: "POST".to_owned(),
        path: format!("{}{}", context.config.root(), api.upload),
        headers: vec![header("accept", "application/json")],
        framing: Framing::Multipart(Multipart {
            fields,
            file_field: "file".to_owned(),
            file_name,
            content_type: "application/jsonl".to_owned(),
        }),
    }
}

/// The input file's name, by which it is found again.
fn file_name(batch: &Batch) -> String {
    format!("offpeak-{}.jsonl", batch.mark)
}

fn creation(input: &str, context: Context<'_>) -> Request {
    const HOUR_MS: u64 = 3_600_000;
    let Context { batch, config, api } = context;
    let (window, window_ms) = config.window(api);
    let metadata = serde_json::json!({ api.mark: batch.mark });
    let mut body = match api.creation {
        Creation::Batch | Creation::BatchWithoutMetadata => serde_json::json!({
            "input_file_id": input,
            "endpoint": batch.endpoint,
            "completion_window": window,
        }),
        Creation::Job => serde_json::json!({
            "input_files": [input],
            "endpoint": batch.endpoint,
            "model": config.batch_model_name(&batch.model).unwrap_or(&batch.model),
            "timeout_hours": window_ms.div_ceil(HOUR_MS),
        }),
    };
    if api.creation != Creation::BatchWithoutMetadata {
        body["metadata"] = metadata;
    }
    let mut headers = vec![header("accept", "application/json"), header("content-type", "application/json")];
    headers.extend(api.idempotency_header.map(|name| header(name, &batch.mark)));
    Request {
        method: "POST".to_owned(),
        path: context.batches(),
        headers,
        body: body.to_string().into_bytes(),
    }
}

fn get(path: String) -> Effect {
    call("GET", path)
}

fn call(method: &str, path: String) -> Effect {
    let headers = vec![header("accept", "application/json")];
    Effect::Call(Request { method: method.to_owned(), path, headers, body: Vec::new() })
}

fn header(name: &str, value: &str) -> Header {
    Header { name: name.to_owned(), value: value.to_owned() }
}
