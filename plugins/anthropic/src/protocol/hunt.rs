//! A creation's fate is unknown: which of the batches at the provider, if any, is ours?

use offpeak_plugin::{
    batch::Hindrance,
    provider::{Event, ReadSummary},
};

use super::{
    Context, End, Milestone, Next, Notes, Outcome, PROOF, Phase, Ran, Search, Trail, collect, create,
};
use crate::{
    lines::{self, Whose},
    wire::{List, MessageBatch},
};

/// How often the listing is searched to its end before what it shows is believed.
const LOOKS: u32 = 3;
/// How much longer each further pause before a look is.
const PAUSES_GROW: u64 = 3;
/// Clocks within the provider may differ by so much: a batch that is older than the fence by more than this was there
/// before it, and one that is newer than the ceiling by more than this came after it.
const CLOCKS_DIFFER_MS: u64 = 60_000;
/// Calls for a page of the listing that may come to nothing in a row.
const LIST_TRIES_MAX: u32 = 100;
/// The same when the provider refuses to list.
const LIST_REFUSALS_MAX: u32 = 3;
/// Batches that may be ours, and batches proven to be others'. Names of so many fit into the state.
const CANDIDATES_MAX: usize = 100;
const FOREIGN_MAX: usize = 250;
/// Times that reading a candidate's results may be cut off in a row.
const READ_TRIES_MAX: u32 = 100;

// === Searching the listing ===

/// A page of the batches, the newest first.
pub(super) fn listed(
    outcome: Outcome,
    trail: Trail,
    look: u32,
    search: Search,
    notes: &mut Notes,
    context: Context<'_>,
) -> Next {
    let body = match outcome {
        Outcome::Done(body) => body,
        Outcome::Later(hindrance) | Outcome::Doubtful(hindrance) => {
            return list_again(trail, look, search, &hindrance, notes, context);
        }
        Outcome::Refused { status, error } => {
            notes.gone += 1;
            if notes.gone >= LIST_REFUSALS_MAX {
                let message = error.message.unwrap_or_default();
                return undecided(&format!(
                    "the provider refuses to list batches (HTTP {status}): {message}"
                ));
            }
            let pause_ms = context.pauses().after_failure(notes.gone);
            return Next::Pause(Phase::Find { trail, look, search }, pause_ms);
        }
    };
    let list = match serde_json::from_slice::<List>(&body) {
        Ok(list) if list.has_more && list.data.is_empty() => {
            let odd = Hindrance::new("unreadable_answer", "a page is empty, but there are more");
            return list_again(trail, look, search, &odd, notes, context);
        }
        Ok(list) => list,
        Err(error) => {
            let unreadable = Hindrance::new("unreadable_answer", &error.to_string());
            return list_again(trail, look, search, &unreadable, notes, context);
        }
    };
    notes.tries = 0;
    notes.gone = 0;
    page(&list, trail, look, &search, notes, context)
}

fn list_again(
    trail: Trail,
    look: u32,
    search: Search,
    hindrance: &Hindrance,
    notes: &mut Notes,
    context: Context<'_>,
) -> Next {
    notes.tries += 1;
    if notes.tries >= LIST_TRIES_MAX {
        return undecided(&format!("batches could not be listed: {}", hindrance.message));
    }
    Next::Pause(Phase::Find { trail, look, search }, context.pauses().after(notes.tries, hindrance))
}

fn page(
    list: &List,
    mut trail: Trail,
    look: u32,
    search: &Search,
    notes: &mut Notes,
    context: Context<'_>,
) -> Next {
    if search.pages == 0 && look <= LOOKS {
        trail.ceiling = list.data.first().map(Milestone::of);
    }
    for batch in &list.data {
        if trail.may_be_ours(batch, context) {
            trail.candidates.push(batch.id.clone());
        }
    }
    if trail.candidates.len() + trail.unclear.len() > CANDIDATES_MAX {
        return undecided(
            "too many batches of the same size were created at the same time to tell them apart",
        );
    }
    match list.data.last() {
        Some(last) if list.has_more && !trail.is_before_fence(last) => {
            let search = Search { after: Some(last.id.clone()), pages: search.pages + 1 };
            if search.pages >= context.config.list_pages_max {
                return undecided(
                    "the listing of batches is longer than `list_pages_max` allows to read; raise it in the plugin's \
                     configuration",
                );
            }
            Next::Act(Phase::Find { trail, look, search })
        }
        _ => searched(trail, look, notes, context),
    }
}

/// The listing was searched to the fence, or to its end.
fn searched(trail: Trail, look: u32, notes: &mut Notes, context: Context<'_>) -> Next {
    if look < LOOKS {
        let pause_ms = context.config.settle_ms.saturating_mul(PAUSES_GROW.saturating_pow(look));
        return Next::Pause(Phase::Find { trail, look: look + 1, search: Search::default() }, pause_ms);
    }
    if !trail.candidates.is_empty() {
        notes.polls = 0;
        return Next::Act(Phase::Watch { trail, at: 0 });
    }
    if trail.lost {
        return undecided(
            "a batch that may have been ours was deleted at the provider, or its results could not be read, before it \
             could be told whose it was",
        );
    }
    let none = Hindrance::new("creation_interrupted", "the creation was interrupted and left no batch");
    create::again(trail, &none, notes, context)
}

impl Trail {
    /// It is newer than the fence and not newer than the ceiling, is not known already, and has as many items as ours
    /// could have: all that are still waited for, at most all. A batch that was only just created may not count its items
    /// yet.
    fn may_be_ours(&self, batch: &MessageBatch, context: Context<'_>) -> bool {
        let is_fence = self.fence.as_ref().is_some_and(|fence| fence.id == batch.id);
        let is_known =
            [&self.candidates, &self.foreign, &self.unclear].iter().any(|known| known.contains(&batch.id));
        let items = batch.request_counts.total();
        let fits = items == 0
            || (u64::from(context.batch.waiting)..=u64::from(context.batch.items)).contains(&items);
        !is_fence && !is_known && fits && !self.is_before_fence(batch) && !self.is_after_ceiling(batch)
    }

    fn is_before_fence(&self, batch: &MessageBatch) -> bool {
        let fence = self.fence.as_ref().and_then(|fence| fence.made_at_ms);
        fence
            .zip(batch.created_at_ms())
            .is_some_and(|(fence, made)| made.saturating_add(CLOCKS_DIFFER_MS) < fence)
    }

    fn is_after_ceiling(&self, batch: &MessageBatch) -> bool {
        let ceiling = self.ceiling.as_ref().and_then(|ceiling| ceiling.made_at_ms);
        ceiling
            .zip(batch.created_at_ms())
            .is_some_and(|(ceiling, made)| made > ceiling.saturating_add(CLOCKS_DIFFER_MS))
    }
}

// === Waiting until a candidate has ended ===

/// How a candidate is. They are looked at in turn, so that one that runs long does not hide that another is ours.
pub(super) fn watched(
    outcome: Outcome,
    trail: Trail,
    at: usize,
    notes: &mut Notes,
    context: Context<'_>,
) -> Next {
    match outcome {
        Outcome::Done(body) => match serde_json::from_slice::<MessageBatch>(&body) {
            Ok(batch) if batch.id == trail.candidate(at) => {
                notes.tries = 0;
                notes.gone = 0;
                if !batch.has_ended() {
                    return next_candidate(trail, at + 1, notes, context);
                }
                let end = collect::end_of(&batch);
                Next::Act(Phase::Prove { trail, at, whole: false, end })
            }
            _ => watch_again(trail, at, &Hindrance::new("unreadable_answer", ""), notes, context),
        },
        Outcome::Later(hindrance) | Outcome::Doubtful(hindrance) => {
            watch_again(trail, at, &hindrance, notes, context)
        }
        Outcome::Refused { status, .. } => {
            if collect::is_gone(status, notes) {
                return without(Trail { lost: true, ..trail }, at, notes, context);
            }
            watch_again(trail, at, &Hindrance::new("refused", ""), notes, context)
        }
    }
}

fn watch_again(
    trail: Trail,
    at: usize,
    hindrance: &Hindrance,
    notes: &mut Notes,
    context: Context<'_>,
) -> Next {
    notes.tries = notes.tries.saturating_add(1);
    Next::Pause(Phase::Watch { trail, at }, context.pauses().after(notes.tries, hindrance))
}

/// The candidate at `at`, or a pause and the first one again.
fn next_candidate(trail: Trail, at: usize, notes: &mut Notes, context: Context<'_>) -> Next {
    if at < trail.candidates.len() {
        return Next::Act(Phase::Watch { trail, at });
    }
    notes.polls = notes.polls.saturating_add(1);
    Next::Pause(Phase::Watch { trail, at: 0 }, context.pauses().before_poll(notes.polls))
}

/// The candidate is none any more.
fn without(mut trail: Trail, at: usize, notes: &mut Notes, context: Context<'_>) -> Next {
    notes.tries = 0;
    notes.gone = 0;
    if at < trail.candidates.len() {
        trail.candidates.remove(at);
    }
    if trail.candidates.is_empty() {
        // What the listing showed too late for the looks, it shows now.
        return Next::Act(Phase::Find { trail, look: LOOKS + 1, search: Search::default() });
    }
    next_candidate(trail, at, notes, context)
}

// === Telling whose it is ===

/// The beginning of a candidate's results.
pub(super) fn peeked(
    outcome: Outcome,
    trail: Trail,
    at: usize,
    end: End,
    notes: &mut Notes,
    context: Context<'_>,
) -> Next {
    match outcome {
        Outcome::Done(body) => match lines::whose(&body, &context.batch.mark) {
            Whose::Ours => ours(&trail, at, end, notes),
            Whose::Foreign => foreign(trail, at, notes, context),
            Whose::Unclear => Next::Act(Phase::Prove { trail, at, whole: true, end }),
        },
        Outcome::Later(hindrance) | Outcome::Doubtful(hindrance) => {
            prove_again((trail, at, false, end), &hindrance, notes, context)
        }
        Outcome::Refused { status, .. } => {
            if collect::is_gone(status, notes) {
                return without(Trail { lost: true, ..trail }, at, notes, context);
            }
            prove_again((trail, at, false, end), &Hindrance::new("refused", ""), notes, context)
        }
    }
}

/// All of a candidate's results, where their beginning did not tell. That nothing in them is ours proves nothing, since lines
/// that cannot be read count as little as those of others: whose they are is for the beginning to tell, if it can be read by
/// now.
pub(super) fn sifted(
    event: &Event,
    trail: Trail,
    at: usize,
    end: End,
    notes: &mut Notes,
    context: Context<'_>,
) -> Next {
    match event {
        Event::Read(summary) if is_proof(summary) && summary.results > 0 => ours(&trail, at, end, notes),
        Event::Read(summary)
            if collect::is_refusal(summary.status) && collect::is_gone(summary.status, notes) =>
        {
            without(Trail { lost: true, ..trail }, at, notes, context)
        }
        Event::Read(summary) if is_proof(summary) && summary.whole => {
            let nameless = Hindrance::new("results_without_names", "");
            prove_again((trail, at, false, end), &nameless, notes, context)
        }
        _ => {
            let cut_off = Hindrance::new("results_cut_off", "");
            prove_again((trail, at, true, end), &cut_off, notes, context)
        }
    }
}

fn is_proof(summary: &ReadSummary) -> bool {
    (200..300).contains(&summary.status) && summary.source == PROOF
}

fn prove_again(
    (trail, at, whole, end): (Trail, usize, bool, End),
    hindrance: &Hindrance,
    notes: &mut Notes,
    context: Context<'_>,
) -> Next {
    notes.tries += 1;
    if notes.tries >= READ_TRIES_MAX {
        let mut trail = Trail { lost: true, ..trail };
        trail.unclear.push(trail.candidate(at).to_owned());
        return without(trail, at, notes, context);
    }
    Next::Pause(Phase::Prove { trail, at, whole, end }, context.pauses().after(notes.tries, hindrance))
}

fn ours(trail: &Trail, at: usize, end: End, notes: &mut Notes) -> Next {
    notes.tries = 0;
    notes.gone = 0;
    notes.rounds = 0;
    let id = trail.candidate(at).to_owned();
    notes.provider_id = Some(id.clone());
    Next::Act(Phase::Read { id, end })
}

fn foreign(mut trail: Trail, at: usize, notes: &mut Notes, context: Context<'_>) -> Next {
    trail.foreign.push(trail.candidate(at).to_owned());
    if trail.foreign.len() > FOREIGN_MAX {
        return undecided(
            "too many batches of the same size were created at the same time to tell them apart",
        );
    }
    without(trail, at, notes, context)
}

/// A batch may exist and cannot be told from others, so it is not created again here: whether its requests go again is
/// for the retry policy to decide, on record.
fn undecided(message: &str) -> Next {
    let message = format!("it is not known whether the batch was created: {message}");
    Next::Act(Phase::Over { end: End::failed(Ran::Unknown, true, "creation_undecided", &message) })
}
