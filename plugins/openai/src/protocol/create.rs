//! From nothing to a batch at the provider: at most one, whatever is interrupted.

use offpeak_plugin::batch::Hindrance;
use serde::de::DeserializeOwned;

use super::{Context, End, Next, Notes, Outcome, Phase, Ran, Search, collect, conclude, file_name};
use crate::{
    dialect::Paging,
    wire::{BatchObject, ErrorObject, FileObject, List, Listed},
};

/// Uploads or creations that may come to nothing in a row before the batch is given back as a whole.
const ROUNDS_MAX: u32 = 12;
/// Calls for a page of a listing that may come to nothing in a row.
const LIST_TRIES_MAX: u32 = 100;
/// The same when the provider refuses to list.
const LIST_REFUSALS_MAX: u32 = 3;
/// How often the listing of batches is searched to its end before it is believed that there is none.
const LOOKS: u32 = 2;
/// How much older than the batch a listed item may be by the provider's clock. Older ones end the search.
const CLOCKS_DIFFER_MS: u64 = 3_600_000;

// === The input file ===

/// The upload's outcome.
pub(super) fn uploaded(outcome: Outcome, notes: &mut Notes, context: Context<'_>) -> Next {
    match outcome {
        Outcome::Done(body) => match serde_json::from_slice::<FileObject>(&body) {
            Ok(file) => has_input(file.id, notes),
            Err(error) => {
                find_input(&Hindrance::new("unreadable_answer", &error.to_string()), notes, context)
            }
        },
        Outcome::Doubtful(hindrance) => find_input(&hindrance, notes, context),
        Outcome::Later(hindrance) => upload_again(&hindrance, notes, context),
        Outcome::Refused { status, error } => refused(status, &error, Vec::new(), context),
    }
}

fn has_input(input: String, notes: &mut Notes) -> Next {
    notes.rounds = 0;
    Next::Act(Phase::Create { input })
}

fn find_input(hindrance: &Hindrance, notes: &mut Notes, context: Context<'_>) -> Next {
    notes.tries = 0;
    Next::Pause(Phase::FindInput { search: Search::default() }, settle_ms(hindrance, context))
}

fn upload_again(hindrance: &Hindrance, notes: &mut Notes, context: Context<'_>) -> Next {
    next_round(Phase::Upload, Vec::new(), hindrance, notes, context)
}

/// A page of the files, in the search for ours. A second copy of a file costs nothing, so it is enough to have looked.
pub(super) fn listed_files(
    outcome: Outcome,
    search: Search,
    notes: &mut Notes,
    context: Context<'_>,
) -> Next {
    let name = file_name(context.batch);
    let found = find(outcome, search, context.api.files_a_page, context, |file: &FileObject| {
        file.filename.as_deref() == Some(&name)
    });
    let none = Hindrance::new("upload_interrupted", "the upload was interrupted and left no file");
    match found {
        Found::It(file) => has_input(file.id, notes),
        Found::Continue(search) => Next::Act(Phase::FindInput { search }),
        Found::Nothing | Found::Incomplete | Found::Refused { .. } => upload_again(&none, notes, context),
        Found::Failed(search, hindrance) => {
            notes.tries += 1;
            if notes.tries >= LIST_TRIES_MAX {
                return upload_again(&none, notes, context);
            }
            Next::Pause(Phase::FindInput { search }, context.pauses().after(notes.tries, &hindrance))
        }
    }
}

// === The batch ===

/// The creation's outcome.
pub(super) fn created(outcome: Outcome, input: String, notes: &mut Notes, context: Context<'_>) -> Next {
    match outcome {
        Outcome::Done(body) => match BatchObject::created(&body) {
            Ok(batch) => collect::seen(&batch, input, notes, context),
            Err(error) => {
                find_batch(input, &Hindrance::new("unreadable_answer", &error.to_string()), notes, context)
            }
        },
        Outcome::Doubtful(hindrance) => find_batch(input, &hindrance, notes, context),
        Outcome::Later(hindrance) => {
            next_round(Phase::Create { input: input.clone() }, vec![input], &hindrance, notes, context)
        }
        Outcome::Refused { status, error } => refused(status, &error, vec![input], context),
    }
}

fn find_batch(input: String, hindrance: &Hindrance, notes: &mut Notes, context: Context<'_>) -> Next {
    notes.tries = 0;
    Next::Pause(Phase::FindBatch { input, look: 1, search: Search::default() }, settle_ms(hindrance, context))
}

/// A page of the batches, in the search for ours. Only a search to the end allows another creation.
pub(super) fn listed_batches(
    outcome: Outcome,
    input: String,
    look: u32,
    search: Search,
    notes: &mut Notes,
    context: Context<'_>,
) -> Next {
    let found = find(outcome, search, context.api.batches_a_page, context, |batch: &BatchObject| {
        is_ours(batch, &input, context)
    });
    match found {
        Found::It(batch) => collect::seen(&batch, input, notes, context),
        Found::Continue(search) => {
            notes.tries = 0;
            Next::Act(Phase::FindBatch { input, look, search })
        }
        Found::Nothing if look < LOOKS => {
            let again = Phase::FindBatch { input, look: look + 1, search: Search::default() };
            Next::Pause(again, context.config.settle_ms)
        }
        Found::Nothing => {
            let none =
                Hindrance::new("creation_interrupted", "the creation was interrupted and left no batch");
            next_round(Phase::Create { input: input.clone() }, vec![input], &none, notes, context)
        }
        Found::Incomplete => undecided(
            false,
            "the listing of batches is longer than `list_pages_max` allows to read; raise it in the plugin's \
             configuration",
        ),
        Found::Refused { status, error, search } => {
            notes.tries += 1;
            if notes.tries >= LIST_REFUSALS_MAX {
                let message = error.message.unwrap_or_default();
                return undecided(
                    false,
                    &format!("the provider refuses to list batches (HTTP {status}): {message}"),
                );
            }
            Next::Pause(Phase::FindBatch { input, look, search }, context.pauses().after_failure(notes.tries))
        }
        Found::Failed(search, hindrance) => {
            notes.tries += 1;
            if notes.tries >= LIST_TRIES_MAX {
                return undecided(true, &format!("batches could not be listed: {}", hindrance.message));
            }
            Next::Pause(
                Phase::FindBatch { input, look, search },
                context.pauses().after(notes.tries, &hindrance),
            )
        }
    }
}

/// It carries our mark, or it is made of our file, which no other batch is made of.
fn is_ours(batch: &BatchObject, input: &str, context: Context<'_>) -> bool {
    let marked = batch.metadata.as_ref().and_then(|metadata| metadata.get(context.api.mark)?.as_str());
    marked == Some(&context.batch.mark) || batch.is_made_of(input)
}

/// A batch may exist and cannot be looked for. Its file is left alone.
fn undecided(temporary: bool, message: &str) -> Next {
    let message = format!("it is not known whether the batch was created: {message}");
    Next::Act(Phase::Over { end: End::failed(Ran::Unknown, temporary, "creation_undecided", &message) })
}

// === Listings ===

/// What a page of a listing brought.
enum Found<T> {
    It(T),
    /// Not on this page; there are more.
    Continue(Search),
    /// The listing was read to its end.
    Nothing,
    /// The listing is longer than may be read.
    Incomplete,
    Refused {
        status: u16,
        error: ErrorObject,
        search: Search,
    },
    /// The page could not be had.
    Failed(Search, Hindrance),
}

fn find<T: DeserializeOwned + Listed>(
    outcome: Outcome,
    search: Search,
    a_page: u32,
    context: Context<'_>,
    is_it: impl Fn(&T) -> bool,
) -> Found<T> {
    let body = match outcome {
        Outcome::Done(body) => body,
        Outcome::Later(hindrance) | Outcome::Doubtful(hindrance) => return Found::Failed(search, hindrance),
        Outcome::Refused { status, error } => return Found::Refused { status, error, search },
    };
    let list: List<T> = match List::read(&body, context.api.paging == Paging::Whole) {
        Ok(list) => list,
        Err(error) => {
            return Found::Failed(search, Hindrance::new("unreadable_answer", &error.to_string()));
        }
    };
    let horizon_ms = context.batch.created_at_ms.saturating_sub(CLOCKS_DIFFER_MS);
    // Who does not tell whether there are more, may have more if the page is full.
    let has_more = list.has_more.unwrap_or(list.data.len() >= a_page as usize);
    let last = list.data.last().map(|item| (item.id().to_owned(), item.created_at_ms()));
    if let Some(it) = list.data.into_iter().find(is_it) {
        return Found::It(it);
    }
    match last {
        Some((id, created_at_ms)) if has_more && created_at_ms.is_none_or(|at| at >= horizon_ms) => {
            let pages = search.pages + 1;
            if pages >= context.config.list_pages_max {
                return Found::Incomplete;
            }
            Found::Continue(Search { after: Some(id), pages })
        }
        None if has_more => {
            Found::Failed(search, Hindrance::new("unreadable_answer", "a page is empty, but there are more"))
        }
        _ => Found::Nothing,
    }
}

// === Again, or not ===

/// Once more after a pause, or, after many rounds, the batch goes back to the daemon, which may know a better place.
fn next_round(
    phase: Phase,
    files: Vec<String>,
    hindrance: &Hindrance,
    notes: &mut Notes,
    context: Context<'_>,
) -> Next {
    notes.rounds += 1;
    if notes.rounds < ROUNDS_MAX {
        return Next::Pause(phase, context.pauses().after(notes.rounds, hindrance));
    }
    let end = End::failed(Ran::NotSent, true, &hindrance.code, &hindrance.message)
        .after_ms(hindrance.retry_after_ms);
    conclude(files, end, context)
}

/// The provider wants none of it.
fn refused(status: u16, error: &ErrorObject, files: Vec<String>, context: Context<'_>) -> Next {
    let code = error.code_or(&format!("http_{status}"));
    let temporary = context.api.temporary_codes.contains(&code.as_str());
    let message = error.message.as_deref().unwrap_or("The provider gave no reason.");
    conclude(files, End::failed(Ran::Refused, temporary, &code, message), context)
}

/// The pause before looking for what an interrupted call may have made.
fn settle_ms(hindrance: &Hindrance, context: Context<'_>) -> u64 {
    context.config.settle_ms.max(hindrance.retry_after_ms.unwrap_or(0))
}
