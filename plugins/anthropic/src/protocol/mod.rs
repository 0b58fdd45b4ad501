//! The batch protocol: note the newest batch, create ours with all its items in one call, poll it, read its results.
//!
//! A pure state machine, driven by [`Protocol`].
//!
//! A batch has no field of ours, so that a creation whose fate is unknown cannot be looked up. It is found out instead:
//!
//! - Before the first creation the newest batch is noted, the *fence*: ours can only be newer.
//! - In doubt, the listing is searched several times, with time in between for the provider to show what it has. What is
//!   newer than the fence and has as many items as ours may be ours: a *candidate*. The newest batch of the last search is
//!   the *ceiling*: ours cannot be newer than that, however many batches others create meanwhile.
//! - The results of a candidate that has ended tell whose it is, because every `custom_id` begins with its batch's mark. One
//!   line of ours is enough. What is another's is read no further and is never touched.
//! - Only when all candidates were proven to be others', and one more search shows no further one, is the batch created
//!   again. A candidate that vanished before it was proven (somebody deleted it), or whose results cannot be read, may have
//!   been ours; then nothing is created again here, and the fate is reported as unknown.
//!
//! Two rules hold throughout: an event that does not belong to the outstanding effect counts as that effect's fate being
//! unknown; and nothing is deleted at the provider, since another daemon on the same account may still need to see that a
//! batch is ours.

mod collect;
mod create;
mod hunt;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use offpeak_plugin::{
    Header,
    batch::{self, Cancel, End, How, Pauses, Protocol, Ran, Shown},
    provider::{Batch, Effect, Event, Framing, Reading, ReadingForm, Request, Step, Surround, Upload},
};
use serde::{Deserialize, Serialize};

use crate::{
    config::Config,
    sale::{CHAT, VERSION},
    wire::ErrorObject,
};

/// What became of a call.
type Outcome = batch::Outcome<ErrorObject>;

/// Where a reaction leads.
type Next = batch::Next<Phase>;

/// Where batches are created and listed; each lies below.
const BATCHES: &str = "/v1/messages/batches";
/// How many batches are listed at once; the daemon passes on 1 MiB of an answer.
const BATCHES_A_PAGE: u32 = 1000;

/// The readings of a batch's results: those of ours, and those that tell whether they are.
const RESULTS: &str = "results";
const PROOF: &str = "proof";

/// What stays the same during a batch's life.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Context<'a> {
    /// The batch.
    pub(crate) batch: &'a Batch,
    /// The plugin's settings.
    pub(crate) config: &'a Config,
}

impl<'a> Context<'a> {
    fn pauses(self) -> Pauses<'a> {
        let Config { poll_ms, poll_max_ms, retry_ms, retry_max_ms, .. } = *self.config;
        Pauses { mark: &self.batch.mark, poll_ms, poll_max_ms, retry_ms, retry_max_ms }
    }
}

/// What the outstanding effect belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    /// Asking which batch is the newest.
    Fence,
    /// Sending the items, which creates the batch.
    Create { trail: Trail },
    /// Searching the listing for what a creation of unknown fate may have made, for the `look`th time.
    Find { trail: Trail, look: u32, search: Search },
    /// Asking how the candidate at `at` is.
    Watch { trail: Trail, at: usize },
    /// Reading the results of the candidate at `at`, which has ended as `end` says: their beginning, or all of them where
    /// the beginning does not tell.
    Prove { trail: Trail, at: usize, whole: bool, end: End },
    /// Asking how our batch is.
    Poll { id: String },
    /// Asking to stop it.
    Cancel { id: String },
    /// Reading its results.
    Read { id: String, end: End },
    /// Nothing is left to do.
    Over { end: End },
}

/// What is known about creations of unknown fate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trail {
    /// The newest batch before the first creation.
    fence: Option<Milestone>,
    /// The newest batch of the last search.
    ceiling: Option<Milestone>,
    /// A creation's fate was unknown. From then on the fence stays where it is.
    in_doubt: bool,
    /// May be ours.
    candidates: Vec<String>,
    /// Are proven to be others'.
    foreign: Vec<String>,
    /// Have nothing that can be read: nobody can tell whose they are.
    #[serde(default)]
    unclear: Vec<String>,
    /// A candidate vanished before it was proven, or is unclear.
    lost: bool,
}

/// A batch in the order of creation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Milestone {
    id: String,
    /// By the provider's clock, in milliseconds since 1970.
    made_at_ms: Option<u64>,
}

/// How far the search through the listing is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Search {
    /// The last batch seen.
    after: Option<String>,
    pages: u32,
}

/// What is counted and remembered on the way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Notes {
    /// Creations that came to nothing, in a row.
    rounds: u32,
    /// Other calls that came to nothing, in a row.
    tries: u32,
    /// How firmly the provider says that there is no such thing, or that it will not show it.
    gone: u32,
    /// Looks at the running batch, or rounds of looks at candidates.
    polls: u32,
    cancel: Cancel,
    provider_id: Option<String>,
    completed: Option<u32>,
    failed: Option<u32>,
    /// Readings of the results that were shorter than the batch says they are.
    #[serde(default)]
    short: u32,
}

/// One step, with the state as it is stored.
pub(crate) fn batch_step(stored: &[u8], event: Event, context: Context<'_>) -> Result<Step, String> {
    context.batch_step(stored, event)
}

impl Protocol for Context<'_> {
    type Phase = Phase;
    type Notes = Notes;
    const VERSION: u32 = 1;

    fn begin(&self) -> Phase {
        Phase::Fence
    }

    fn effect(&self, phase: &Phase) -> Effect {
        phase.effect(*self)
    }

    fn react(&self, phase: Phase, event: Event, notes: &mut Notes) -> Next {
        let context = *self;
        match phase {
            Phase::Fence => create::fenced(Outcome::of(event), notes, context),
            Phase::Create { trail } => create::created(Outcome::of(event), trail, notes, context),
            Phase::Find { trail, look, search } => {
                hunt::listed(Outcome::of(event), trail, look, search, notes, context)
            }
            Phase::Watch { trail, at } => hunt::watched(Outcome::of(event), trail, at, notes, context),
            Phase::Prove { trail, at, whole: false, end } => {
                hunt::peeked(Outcome::of(event), trail, at, end, notes, context)
            }
            Phase::Prove { trail, at, whole: true, end } => {
                hunt::sifted(&event, trail, at, end, notes, context)
            }
            Phase::Poll { id } => collect::polled(Outcome::of(event), id, notes, context),
            Phase::Cancel { id } => collect::cancelled(Outcome::of(event), id, notes, context),
            Phase::Read { id, end } => collect::read(&event, id, end, notes, context),
            Phase::Over { end } => Next::Act(Phase::Over { end }),
        }
    }

    /// What may be another's is not told.
    fn stop(&self, next: Next) -> Next {
        match next.phase() {
            Phase::Fence | Phase::Create { .. } => {
                Next::Act(Phase::Over { end: End::Finished { how: How::Cancelled, missing: Ran::NotSent } })
            }
            Phase::Poll { id } => Next::Act(Phase::Cancel { id: id.clone() }),
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

impl Phase {
    /// What is sent in this phase.
    fn effect(&self, context: Context<'_>) -> Effect {
        match self {
            Self::Fence => call("GET", format!("{BATCHES}?limit=1"), context),
            Self::Create { .. } => Effect::Upload(creation(context)),
            Self::Find { search, .. } => call("GET", search.page(), context),
            Self::Watch { trail, at } => call("GET", place(trail.candidate(*at)), context),
            Self::Prove { trail, at, whole, .. } => {
                let path = results(trail.candidate(*at));
                if *whole { read(path, PROOF, context) } else { call("GET", path, context) }
            }
            Self::Poll { id } => call("GET", place(id), context),
            Self::Cancel { id } => call("POST", format!("{}/cancel", place(id)), context),
            Self::Read { id, .. } => read(results(id), RESULTS, context),
            Self::Over { end } => end.effect(),
        }
    }
}

impl Trail {
    /// The name of a candidate. There is one wherever it is asked for; a stored state that was tampered with leads to a
    /// call that finds nothing.
    fn candidate(&self, at: usize) -> &str {
        self.candidates.get(at).map_or("unknown", String::as_str)
    }
}

impl Search {
    fn page(&self) -> String {
        let after = self.after.as_ref().map(|after| format!("&after_id={after}")).unwrap_or_default();
        format!("{BATCHES}?limit={BATCHES_A_PAGE}{after}")
    }
}

/// The items inline, in one call.
fn creation(context: Context<'_>) -> Upload {
    let mut headers = headers(context);
    headers.push(header("content-type", "application/json"));
    Upload {
        method: "POST".to_owned(),
        path: BATCHES.to_owned(),
        headers,
        framing: Framing::JsonArray(Surround {
            before: "{\"requests\":[".to_owned(),
            after: "]}".to_owned(),
        }),
    }
}

/// Where a batch is. Names are plain: [`crate::wire`] takes no others.
fn place(id: &str) -> String {
    format!("{BATCHES}/{id}")
}

/// Where its results are: not where the answer's `results_url` says, which may name another host.
fn results(id: &str) -> String {
    format!("{BATCHES}/{id}/results")
}

fn call(method: &str, path: String, context: Context<'_>) -> Effect {
    Effect::Call(Request { method: method.to_owned(), path, headers: headers(context), body: Vec::new() })
}

fn read(path: String, source: &str, context: Context<'_>) -> Effect {
    let (headers, source) = (headers(context), source.to_owned());
    Effect::Read(Reading { path, headers, source, form: ReadingForm::Lines })
}

/// What the requests of the batch were sent with, and a version where they named none. What was translated was translated
/// for the configured version.
fn headers(context: Context<'_>) -> Vec<Header> {
    let mut headers = context.batch.headers.clone();
    if context.batch.endpoint == CHAT {
        headers.retain(|header| header.name != VERSION);
    }
    if !headers.iter().any(|header| header.name == VERSION) {
        headers.push(header(VERSION, &context.config.version));
    }
    headers
}

fn header(name: &str, value: &str) -> Header {
    Header { name: name.to_owned(), value: value.to_owned() }
}
