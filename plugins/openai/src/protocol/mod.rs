//! The batch protocol: upload the items, create the batch, poll it, read both result files, tidy up.
//!
//! A pure state machine, driven by [`Protocol`]. Two rules keep a batch from being paid twice:
//!
//! - After a creation whose fate is unknown nothing is created before the listing has been searched to its end, twice,
//!   with time in between for the provider to show what it has.
//! - An event that does not belong to the outstanding effect counts as that effect's fate being unknown.

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
    batch::{self, Cancel, End, How, Pauses, Protocol, Ran, Shown},
    provider::{
        Batch, Effect, Event, Framing, ItemFailure, ItemOutcome, ItemResult, Multipart, Reading, ReadingForm,
        Request, Step, Upload,
    },
};
use serde::{Deserialize, Serialize};

use crate::{
    config::{Config, DeleteFiles},
    dialect::{BatchApi, Creation, Paging},
    wire::{ErrorObject, escape},
};

/// How often a deletion that came to nothing is tried again.
const DELETE_TRIES_MAX: u32 = 5;

/// What became of a call.
type Outcome = batch::Outcome<ErrorObject>;

/// Where a reaction leads.
type Next = batch::Next<Phase>;

/// What stays the same during a batch's life.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Context<'a> {
    /// The batch.
    pub(crate) batch: &'a Batch,
    /// The plugin's settings.
    pub(crate) config: &'a Config,
    /// The provider's names for things.
    pub(crate) api: &'a BatchApi,
}

impl<'a> Context<'a> {
    /// The context of a batch; an error where the provider has no batches.
    pub(crate) fn new(batch: &'a Batch, config: &'a Config) -> Result<Self, String> {
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

    fn pauses(self) -> Pauses<'a> {
        let Config { poll_ms, poll_max_ms, retry_ms, retry_max_ms, .. } = *self.config;
        Pauses { mark: &self.batch.mark, poll_ms, poll_max_ms, retry_ms, retry_max_ms }
    }
}

/// What the outstanding effect belongs to. `input` is the uploaded file's id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
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
    /// Handing over the lines that the provider refused the whole batch for.
    Refuse { input: String, lines: Vec<RefusedLine>, end: End },
    /// Deleting the first of `files`, which came to nothing `tries` times.
    Delete {
        files: Vec<String>,
        end: End,
        #[serde(default)]
        tries: u32,
    },
    /// Nothing is left to do.
    Over { end: End },
}

/// How far the search through a listing is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Search {
    /// The last item seen.
    after: Option<String>,
    pages: u32,
}

/// A file with results.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ResultFile {
    source: Source,
    id: String,
}

/// A line of the input that the provider found fault with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RefusedLine {
    /// From 1.
    number: u64,
    /// Why.
    message: String,
}

impl RefusedLine {
    /// What the retry policy runs alone: there the provider says what it has against it, if anything.
    const CODE: &str = "line_refused";

    fn result(&self) -> ItemResult {
        let RefusedLine { number, message } = self;
        let failure =
            ItemFailure { ran: DidItRun::Refused, code: Self::CODE.to_owned(), message: message.clone() };
        ItemResult { id: format!("#{number}"), outcome: ItemOutcome::Failed(failure) }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Source {
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
pub(crate) struct Notes {
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
    /// Results that were read of the output.
    #[serde(default)]
    answers: u32,
    /// Readings of the output that were shorter than the batch says it is.
    #[serde(default)]
    short: u32,
}

/// One step, with the state as it is stored.
pub(crate) fn batch_step(stored: &[u8], event: Event, context: Context<'_>) -> Result<Step, String> {
    if background::window(&context.batch.offer).is_some() {
        return background::batch_step(stored, event, context);
    }
    context.batch_step(stored, event)
}

impl Protocol for Context<'_> {
    type Phase = Phase;
    type Notes = Notes;
    const VERSION: u32 = 1;

    fn begin(&self) -> Phase {
        Phase::Upload
    }

    fn effect(&self, phase: &Phase) -> Effect {
        phase.effect(*self)
    }

    fn react(&self, phase: Phase, event: Event, notes: &mut Notes) -> Next {
        let context = *self;
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
            Phase::Refuse { input, lines, end } => collect::refused(&event, input, lines, end, context),
            Phase::Delete { files, end, tries } => deleted(Outcome::of(event), files, end, tries, context),
            Phase::Over { end } => Next::Act(Phase::Over { end }),
        }
    }

    fn stop(&self, next: Next) -> Next {
        let end = End::Finished { how: How::Cancelled, missing: Ran::NotSent };
        match next.phase() {
            Phase::Upload => Next::Act(Phase::Over { end }),
            Phase::Create { input } => conclude(vec![input.clone()], end, *self),
            Phase::Poll { input, id } => Next::Act(Phase::Cancel { input: input.clone(), id: id.clone() }),
            _ => next,
        }
    }

    fn cancel(notes: &mut Notes) -> &mut Cancel {
        &mut notes.cancel
    }

    fn shown(&self, notes: &Notes) -> Shown {
        Shown::of(notes.provider_id.as_deref(), notes.completed, notes.failed)
    }
}

/// The end, after deleting `files` at the provider.
fn conclude(files: Vec<String>, end: End, context: Context<'_>) -> Next {
    let keep = context.config.delete_files == DeleteFiles::None;
    conclude_deleting(if keep { Vec::new() } else { files }, end)
}

fn conclude_deleting(files: Vec<String>, end: End) -> Next {
    Next::Act(if files.is_empty() { Phase::Over { end } } else { Phase::Delete { files, end, tries: 0 } })
}

/// What became of the deletion of the first file. A crash and a bad moment of the provider leave none behind; but the batch
/// does not wait for ever, since the provider deletes old files itself.
fn deleted(outcome: Outcome, mut files: Vec<String>, end: End, tries: u32, context: Context<'_>) -> Next {
    match outcome {
        Outcome::Doubtful(hindrance) | Outcome::Later(hindrance) if tries < DELETE_TRIES_MAX => {
            let tries = tries + 1;
            Next::Pause(Phase::Delete { files, end, tries }, context.pauses().after(tries, &hindrance))
        }
        Outcome::Done(_) | Outcome::Refused { .. } | Outcome::Doubtful(_) | Outcome::Later(_) => {
            files.remove(0);
            conclude_deleting(files, end)
        }
    }
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
            Self::Refuse { lines, .. } => Effect::Results(lines.iter().map(RefusedLine::result).collect()),
            Self::Delete { files: left, end, .. } => match left.first() {
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
