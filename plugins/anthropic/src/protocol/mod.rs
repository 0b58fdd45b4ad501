//! The batch protocol: note the newest batch, create ours with all its items in one call, poll it, read its results.
//!
//! A pure state machine. The state holds the phase, which is what the outstanding effect belongs to; [`step`] takes an
//! event and returns the next state and effect.
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

mod answer;
mod collect;
mod create;
mod hunt;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use offpeak_plugin::{
    DidItRun, Header,
    provider::{
        Batch, Effect, Ending, Event, Failure, Finish, Framing, Progress, Reading, ReadingForm, Request,
        Step, Surround, Upload,
    },
};
use serde::{Deserialize, Serialize};

use crate::{
    config::Config,
    sale::{CHAT, VERSION},
};
use answer::Outcome;

/// The version of [`State`] as it is stored. A newer plugin must read what an older one has written.
const STATE_VERSION: u32 = 1;

/// Where batches are created and listed; each lies below.
const BATCHES: &str = "/v1/messages/batches";
/// How many batches are listed at once; the daemon passes on 1 MiB of an answer.
const BATCHES_A_PAGE: u32 = 1000;

/// The readings of a batch's results: those of ours, and those that tell whether they are.
const RESULTS: &str = "results";
const PROOF: &str = "proof";

/// What stays the same during a batch's life.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The batch.
    pub batch: &'a Batch,
    /// The plugin's settings.
    pub config: &'a Config,
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

/// What the outstanding effect belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
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
struct Trail {
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
struct Milestone {
    id: String,
    /// By the provider's clock, in milliseconds since 1970.
    made_at_ms: Option<u64>,
}

/// How far the search through the listing is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Search {
    /// The last batch seen.
    after: Option<String>,
    pages: u32,
}

/// What is counted and remembered on the way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Notes {
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
        None => Next::Act(Phase::Fence),
        Some(State { phase, pause_ms: Some(ms), .. }) => match event {
            Event::Cancel | Event::Interrupted => Next::Pause(phase, ms),
            _ => Next::Act(phase),
        },
        Some(State { phase, pause_ms: None, .. }) => react(phase, event, &mut notes, context),
    };
    let (phase, pause_ms) = match heed_cancel(next, &notes) {
        Next::Act(phase) => (phase, None),
        Next::Pause(phase, ms) => (phase, Some(ms)),
    };
    let effect = pause_ms.map_or_else(|| phase.effect(context), Effect::Wait);
    (State { version: STATE_VERSION, phase, pause_ms, notes }, effect)
}

/// What the outcome of a phase's effect leads to.
fn react(phase: Phase, event: Event, notes: &mut Notes, context: Context<'_>) -> Next {
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
        Phase::Prove { trail, at, whole: true, end } => hunt::sifted(&event, trail, at, end, notes, context),
        Phase::Poll { id } => collect::polled(Outcome::of(event), id, notes, context),
        Phase::Cancel { id } => collect::cancelled(Outcome::of(event), id, notes, context),
        Phase::Read { id, end } => collect::read(&event, id, end, notes, context),
        Phase::Over { end } => Next::Act(Phase::Over { end }),
    }
}

/// Once a batch is to be stopped, nothing is made any more, and what runs is told. What may be another's is not.
fn heed_cancel(next: Next, notes: &Notes) -> Next {
    if notes.cancel != Cancel::Wanted {
        return next;
    }
    let (Next::Act(phase) | Next::Pause(phase, _)) = &next;
    match phase {
        Phase::Fence | Phase::Create { .. } => {
            Next::Act(Phase::Over { end: End::Finished { how: How::Cancelled, missing: Ran::NotSent } })
        }
        Phase::Poll { id } => Next::Act(Phase::Cancel { id: id.clone() }),
        _ => next,
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

impl From<Ran> for DidItRun {
    fn from(ran: Ran) -> Self {
        match ran {
            Ran::NotSent => Self::NotSent,
            Ran::Refused => Self::Refused,
            Ran::Unknown => Self::Unknown,
        }
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
