//! From nothing to a batch at the provider.

use offpeak_plugin::batch::Hindrance;

use super::{Context, End, Milestone, Next, Notes, Outcome, Phase, Ran, Search, Trail, collect};
use crate::wire::{ErrorObject, List, MessageBatch};

/// Creations that may come to nothing in a row before the batch is given back as a whole.
const ROUNDS_MAX: u32 = 12;

/// The newest batch is known, or not yet. Nothing was made, so that whatever went wrong may be tried again.
pub(super) fn fenced(outcome: Outcome, notes: &mut Notes, context: Context<'_>) -> Next {
    let hindrance = match outcome {
        Outcome::Done(body) => match serde_json::from_slice::<List>(&body) {
            Ok(list) => {
                let fence = list.data.first().map(Milestone::of);
                return Next::Act(Phase::Create { trail: Trail { fence, ..Trail::default() } });
            }
            Err(error) => Hindrance::new("unreadable_answer", &error.to_string()),
        },
        Outcome::Later(hindrance) | Outcome::Doubtful(hindrance) => hindrance,
        Outcome::Refused { status, error } => return refused(status, &error),
    };
    next_round(Phase::Fence, &hindrance, notes, context)
}

/// The creation's outcome.
pub(super) fn created(outcome: Outcome, trail: Trail, notes: &mut Notes, context: Context<'_>) -> Next {
    match outcome {
        Outcome::Done(body) => match serde_json::from_slice::<MessageBatch>(&body) {
            Ok(batch) => collect::seen(&batch, notes, context),
            Err(error) => {
                find(trail, &Hindrance::new("unreadable_answer", &error.to_string()), notes, context)
            }
        },
        Outcome::Doubtful(hindrance) => find(trail, &hindrance, notes, context),
        // As long as nothing is in doubt, a newer fence leaves fewer candidates.
        Outcome::Later(hindrance) if !trail.in_doubt => next_round(Phase::Fence, &hindrance, notes, context),
        Outcome::Later(hindrance) => again(trail, &hindrance, notes, context),
        Outcome::Refused { status, error } => refused(status, &error),
    }
}

/// Time for the provider to show what it has, then the first look.
fn find(trail: Trail, hindrance: &Hindrance, notes: &mut Notes, context: Context<'_>) -> Next {
    notes.tries = 0;
    let trail = Trail { in_doubt: true, ..trail };
    let settle_ms = context.config.settle_ms.max(hindrance.retry_after_ms.unwrap_or(0));
    Next::Pause(Phase::Find { trail, look: 1, search: Search::default() }, settle_ms)
}

/// Once more.
pub(super) fn again(trail: Trail, hindrance: &Hindrance, notes: &mut Notes, context: Context<'_>) -> Next {
    next_round(Phase::Create { trail }, hindrance, notes, context)
}

/// Once more after a pause, or, after many rounds, the batch goes back to the daemon, which may know a better place.
fn next_round(phase: Phase, hindrance: &Hindrance, notes: &mut Notes, context: Context<'_>) -> Next {
    notes.rounds += 1;
    if notes.rounds < ROUNDS_MAX {
        return Next::Pause(phase, context.pauses().after(notes.rounds, hindrance));
    }
    let end = End::failed(Ran::NotSent, true, &hindrance.code, &hindrance.message)
        .after_ms(hindrance.retry_after_ms);
    Next::Act(Phase::Over { end })
}

/// The provider wants none of it.
fn refused(status: u16, error: &ErrorObject) -> Next {
    let code = error.kind_or(&format!("http_{status}"));
    let message = error.message.as_deref().unwrap_or("The provider gave no reason.");
    Next::Act(Phase::Over { end: End::failed(Ran::Refused, false, &code, message) })
}

impl Milestone {
    pub(super) fn of(batch: &MessageBatch) -> Self {
        Self { id: batch.id.clone(), made_at_ms: batch.created_at_ms() }
    }
}
