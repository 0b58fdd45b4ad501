//! From a batch at the provider to its results.

use offpeak_plugin::provider::Event;

use super::{Cancel, Context, End, How, Next, Notes, Outcome, Phase, RESULTS, Ran};
use crate::wire::MessageBatch;

/// Refusals in a row to show our batch, before it is given up: about a day with the longest pauses between them. It is paid for,
/// and a provider that does not know it for an hour may know it again; what is due before is run in real time anyway.
const POLL_REFUSALS_MAX: u32 = 320;
/// Times that the results may be read whole, and be fewer than the batch says they are.
const SHORT_READINGS_MAX: u32 = 4;
/// Refusals in a row to show results, or a batch that may be ours, before it is given up.
const REFUSALS_MAX: u32 = 100;
/// What the refusal counts that says that there is no such batch.
const NOT_FOUND_WEIGHT: u32 = 20;
/// Times that reading the results may be cut off in a row.
const READ_TRIES_MAX: u32 = 100;
/// Times that the provider may be asked in vain to stop a batch.
const CANCEL_TRIES_MAX: u32 = 8;

/// Counts a refusal; whether it is time to believe that there is no such thing.
pub(super) fn is_gone(status: u16, notes: &mut Notes) -> bool {
    notes.gone += if status == 404 { NOT_FOUND_WEIGHT } else { 1 };
    notes.gone >= REFUSALS_MAX
}

/// The provider answered, and will not.
pub(super) fn is_refusal(status: u16) -> bool {
    (300..500).contains(&status) && !matches!(status, 408 | 409 | 425 | 429)
}

// === While it runs ===

/// A look's outcome. The batch exists and is paid for, so outages are waited out.
pub(super) fn polled(outcome: Outcome, id: String, notes: &mut Notes, context: Context<'_>) -> Next {
    match outcome {
        Outcome::Done(body) => match serde_json::from_slice::<MessageBatch>(&body) {
            Ok(batch) if batch.id == id => seen(&batch, notes, context),
            _ => poll_again(id, None, notes, context),
        },
        Outcome::Later(hindrance) | Outcome::Doubtful(hindrance) => {
            notes.gone = 0;
            poll_again(id, hindrance.retry_after_ms, notes, context)
        }
        Outcome::Refused { error, .. } => {
            notes.gone += 1;
            if notes.gone >= POLL_REFUSALS_MAX {
                let message = error.message.as_deref().unwrap_or("The provider gave no reason.");
                let end = End::failed(Ran::Unknown, false, &error.kind_or("batch_not_found"), message);
                return Next::Act(Phase::Over { end });
            }
            poll_again(id, None, notes, context)
        }
    }
}

fn poll_again(id: String, retry_after_ms: Option<u64>, notes: &mut Notes, context: Context<'_>) -> Next {
    notes.tries = notes.tries.saturating_add(1);
    let pause_ms = context.pauses().after_failure(notes.tries).max(retry_after_ms.unwrap_or(0));
    Next::Pause(Phase::Poll { id }, pause_ms)
}

/// Our batch as the provider shows it.
pub(super) fn seen(batch: &MessageBatch, notes: &mut Notes, context: Context<'_>) -> Next {
    notes.tries = 0;
    notes.gone = 0;
    notes.rounds = 0;
    notes.provider_id = Some(batch.id.clone());
    let progress = batch.progress();
    notes.completed = Some(progress.completed);
    notes.failed = Some(progress.failed);
    let id = batch.id.clone();
    if batch.has_ended() {
        return Next::Act(Phase::Read { id, end: end_of(batch) });
    }
    notes.polls = notes.polls.saturating_add(1);
    Next::Pause(Phase::Poll { id }, context.pauses().before_poll(notes.polls))
}

/// How a batch ended. Each of its requests has a line of results that says so for itself.
pub(super) fn end_of(batch: &MessageBatch) -> End {
    let counts = batch.request_counts;
    let how = match (counts.canceled, counts.expired) {
        (0, 0) => How::Completed,
        (0, _) => How::Expired,
        _ => How::Cancelled,
    };
    End::Finished { how, missing: Ran::Unknown }
}

/// The outcome of asking to stop the batch. Whatever the answer, a look tells what came of it.
pub(super) fn cancelled(outcome: Outcome, id: String, notes: &mut Notes, context: Context<'_>) -> Next {
    match outcome {
        Outcome::Done(_) | Outcome::Refused { .. } => {}
        Outcome::Later(hindrance) | Outcome::Doubtful(hindrance) => {
            notes.tries += 1;
            if notes.tries < CANCEL_TRIES_MAX {
                let pause_ms = context.pauses().after(notes.tries, &hindrance);
                return Next::Pause(Phase::Cancel { id }, pause_ms);
            }
        }
    }
    notes.cancel = Cancel::Told;
    notes.tries = 0;
    notes.polls = 0;
    Next::Act(Phase::Poll { id })
}

// === When it has ended ===

/// A reading's outcome.
pub(super) fn read(event: &Event, id: String, end: End, notes: &mut Notes, context: Context<'_>) -> Next {
    let status = match event {
        Event::Read(summary) => summary.status,
        Event::Answered(response) => response.status,
        _ => 0,
    };
    if let Event::Read(summary) = event
        && summary.whole
        && (200..300).contains(&status)
        && summary.source == RESULTS
        && summary.results > 0
    {
        let said = notes.completed.unwrap_or(0).saturating_add(notes.failed.unwrap_or(0));
        if summary.results < said && notes.short < SHORT_READINGS_MAX {
            // Something on the way cut them, or put something else in their place: what ran would be bought again.
            notes.short += 1;
            return Next::Pause(Phase::Read { id, end }, context.pauses().after_failure(notes.short));
        }
        return Next::Act(Phase::Over { end });
    }
    notes.tries += 1;
    let is_gone = is_refusal(status) && is_gone(status, notes);
    if is_gone || notes.tries >= READ_TRIES_MAX {
        let message =
            format!("the results of {id} could not be read to their end (last HTTP status {status})");
        let end = End::failed(Ran::Unknown, false, "results_unreadable", &message);
        return Next::Act(Phase::Over { end });
    }
    Next::Pause(Phase::Read { id, end }, context.pauses().after_failure(notes.tries))
}
