//! From a batch at the provider to its results.

use std::collections::BTreeMap;

use offpeak_plugin::provider::{Event, ReadSummary};

use super::{
    Cancel, Context, End, How, Next, Notes, Outcome, Phase, Ran, RefusedLine, ResultFile, Source, conclude,
};
use crate::{
    config::DeleteFiles,
    dialect::Over,
    wire::{BatchObject, ErrorObject},
};

/// Refusals in a row to show the batch, before it is given up: about a day with the longest pauses between them. It is paid for,
/// and a provider that does not know it for an hour may know it again; what is due before is run in real time anyway.
const REFUSALS_MAX: u32 = 320;
/// Times that the output may be read whole, and have fewer results than the batch says it has.
const SHORT_READINGS_MAX: u32 = 4;
/// What a line is refused for that its whole batch has in common.
const SHARED: [&str; 6] = [
    "model_not_found",
    "model_not_supported",
    "model_mismatch",
    "mismatched_model",
    "url_mismatch",
    "invalid_url",
];
/// Lines that are taken out of a refused batch at once, and what is kept of the reasons: a state is small.
const LINES_MAX: usize = 50;
const LINE_MESSAGE_CHARS: usize = 100;
/// Times in a row that the provider may say that it does not know a file.
const FILE_GONE_MAX: u32 = 5;
/// Times that reading a file may be cut off in a row without getting to its end.
const READ_TRIES_MAX: u32 = 100;
/// Times that the provider may be asked in vain to stop a batch.
const CANCEL_TRIES_MAX: u32 = 8;
/// Looks at a batch that is over and says that items are done, but shows no file with them yet.
const LOOKOUTS_MAX: u32 = 3;

// === While it runs ===

/// A look's outcome. The batch exists and is paid for, so outages are waited out.
pub(super) fn polled(
    outcome: Outcome,
    input: String,
    id: String,
    notes: &mut Notes,
    context: Context<'_>,
) -> Next {
    match outcome {
        Outcome::Done(body) => match serde_json::from_slice::<BatchObject>(&body) {
            Ok(batch) if batch.id == id => seen(&batch, input, notes, context),
            _ => poll_again(input, id, None, notes, context),
        },
        Outcome::Later(hindrance) | Outcome::Doubtful(hindrance) => {
            notes.gone = 0;
            poll_again(input, id, hindrance.retry_after_ms, notes, context)
        }
        Outcome::Refused { error, .. } => {
            notes.gone += 1;
            if notes.gone >= REFUSALS_MAX {
                let message = error.message.as_deref().unwrap_or("The provider gave no reason.");
                let end = End::failed(Ran::Unknown, false, &error.code_or("batch_not_found"), message);
                return Next::Act(Phase::Over { end });
            }
            poll_again(input, id, None, notes, context)
        }
    }
}

fn poll_again(
    input: String,
    id: String,
    retry_after_ms: Option<u64>,
    notes: &mut Notes,
    context: Context<'_>,
) -> Next {
    notes.tries = notes.tries.saturating_add(1);
    let pause_ms = context.pauses().after_failure(notes.tries).max(retry_after_ms.unwrap_or(0));
    Next::Pause(Phase::Poll { input, id }, pause_ms)
}

/// The batch as the provider shows it.
pub(super) fn seen(batch: &BatchObject, input: String, notes: &mut Notes, context: Context<'_>) -> Next {
    notes.tries = 0;
    notes.gone = 0;
    notes.provider_id = Some(batch.id.clone());
    if let Some(progress) = batch.progress() {
        notes.completed = Some(progress.completed);
        notes.failed = Some(progress.failed);
    }
    let finished = |how, missing| End::Finished { how, missing };
    let leftovers: Ran = context.api.leftovers.into();
    let state = context.api.over.iter().find(|(name, _)| *name == batch.status);
    let end = match state.map(|(_, over)| *over) {
        Some(Over::Completed) => finished(How::Completed, Ran::Unknown),
        Some(Over::Expired) => finished(How::Expired, leftovers),
        Some(Over::Cancelled) => finished(How::Cancelled, leftovers),
        Some(Over::Failed) => {
            if let Some(refuse) = refused_lines(batch, &input, context) {
                return Next::Act(refuse);
            }
            failed(batch, context)
        }
        None => {
            notes.polls = notes.polls.saturating_add(1);
            let poll = Phase::Poll { input, id: batch.id.clone() };
            return Next::Pause(poll, context.pauses().before_poll(notes.polls));
        }
    };
    results(batch, input, end, notes, context)
}

/// Why the provider gave the batch up. Validation failures come before anything runs.
fn failed(batch: &BatchObject, context: Context<'_>) -> End {
    let is_temporary =
        |error: &&ErrorObject| context.api.temporary_codes.contains(&error.code_or("").as_str());
    let temporary = batch.errors().find(is_temporary);
    let error = temporary.or_else(|| batch.errors().next());
    let ran = if batch.may_have_run() { Ran::Unknown } else { Ran::Refused };
    let code = error.map_or_else(|| "batch_failed".to_owned(), |error| error.code_or("batch_failed"));
    let message = error.and_then(|error| error.message.as_deref()).unwrap_or("The provider gave no reason.");
    End::failed(ran, temporary.is_some(), &code, message)
}

/// Where the provider says which lines are to blame that nothing ran, they alone are, and the others may go again at once; unless
/// it is something that all of them share.
fn refused_lines(batch: &BatchObject, input: &str, context: Context<'_>) -> Option<Phase> {
    let End::Failed { ran: Ran::Refused, temporary: false, code, message, .. } = failed(batch, context)
    else {
        return None;
    };
    let mut reasons = BTreeMap::new();
    for error in batch.errors() {
        if SHARED.contains(&error.code_or("").as_str()) {
            return None;
        }
        if let Some(line) = error.line() {
            let why = error.message.as_deref().unwrap_or("The provider gave no reason.");
            reasons.entry(line).or_insert(why);
        }
    }
    if reasons.is_empty() || reasons.len() as u64 >= u64::from(context.batch.waiting) {
        return None;
    }
    let cut = |text: &str| text.chars().take(LINE_MESSAGE_CHARS).collect();
    let line = |(number, message)| RefusedLine { number, message: cut(message) };
    let lines = reasons.into_iter().take(LINES_MAX).map(line).collect();
    let end = End::failed(Ran::Refused, true, &code, &message);
    Some(Phase::Refuse { input: input.to_owned(), lines, end })
}

/// What became of the lines that were refused. Where the daemon knew none of them, the same batch is not made again at once.
pub(super) fn refused(
    event: &Event,
    input: String,
    lines: Vec<RefusedLine>,
    end: End,
    context: Context<'_>,
) -> Next {
    match event {
        Event::Read(summary) if summary.results > 0 => conclude(vec![input], end.after_ms(Some(0)), context),
        Event::Read(_) => conclude(vec![input], end, context),
        _ => Next::Act(Phase::Refuse { input, lines, end }),
    }
}

/// The outcome of asking to stop the batch. Whatever the answer, a look tells what came of it.
pub(super) fn cancelled(
    outcome: Outcome,
    input: String,
    id: String,
    notes: &mut Notes,
    context: Context<'_>,
) -> Next {
    match outcome {
        Outcome::Done(_) | Outcome::Refused { .. } => {}
        Outcome::Later(hindrance) | Outcome::Doubtful(hindrance) => {
            notes.tries += 1;
            if notes.tries < CANCEL_TRIES_MAX {
                let pause_ms = context.pauses().after(notes.tries, &hindrance);
                return Next::Pause(Phase::Cancel { input, id }, pause_ms);
            }
        }
    }
    notes.cancel = Cancel::Told;
    notes.tries = 0;
    notes.polls = 0;
    Next::Act(Phase::Poll { input, id })
}

// === When it is over ===

/// Reads all files that the batch shows, then ends.
fn results(batch: &BatchObject, input: String, end: End, notes: &mut Notes, context: Context<'_>) -> Next {
    let file = |source, id: Option<&str>| Some(ResultFile { source, id: id?.to_owned() });
    let left: Vec<ResultFile> =
        [file(Source::Output, batch.output_file()), file(Source::Errors, batch.error_file())]
            .into_iter()
            .flatten()
            .collect();
    let mut end = end;
    if is_output_late(batch, &end) {
        notes.lookouts += 1;
        if notes.lookouts <= LOOKOUTS_MAX {
            return Next::Pause(Phase::Poll { input, id: batch.id.clone() }, context.config.poll_ms);
        }
        if let End::Finished { missing, .. } = &mut end {
            *missing = Ran::Unknown; // something ran, and we shall not see it
        }
    }
    reading(input, left, Vec::new(), end, notes, context)
}

/// Whether the batch says that it has done something, but not where it lies.
fn is_output_late(batch: &BatchObject, end: &End) -> bool {
    let count = |count: fn(&crate::wire::RequestCounts) -> u32| batch.counts().as_ref().map_or(0, count);
    let completed = matches!(end, End::Finished { how: How::Completed, .. });
    let no_output = batch.output_file().is_none() && count(|counts| counts.completed) > 0;
    let nothing =
        batch.output_file().is_none() && batch.error_file().is_none() && count(|counts| counts.total) > 0;
    no_output || (completed && nothing)
}

/// The next file, or the end.
fn reading(
    input: String,
    left: Vec<ResultFile>,
    read: Vec<String>,
    mut end: End,
    notes: &Notes,
    context: Context<'_>,
) -> Next {
    if !left.is_empty() {
        return Next::Act(Phase::Read { input, left, read, end });
    }
    if let End::Finished { missing, .. } = &mut end
        && notes.completed.is_some_and(|completed| notes.answers < completed)
    {
        // Some of what has no result was run, whatever became of the rest.
        *missing = Ran::Unknown;
    }
    let mut files = vec![input];
    if context.config.delete_files == DeleteFiles::All {
        files.extend(read);
    }
    conclude(files, end, context)
}

/// A reading's outcome.
pub(super) fn read(
    event: &Event,
    input: String,
    mut left: Vec<ResultFile>,
    mut read: Vec<String>,
    end: End,
    notes: &mut Notes,
    context: Context<'_>,
) -> Next {
    let status = match event {
        Event::Read(ReadSummary { status, .. }) => *status,
        Event::Answered(response) => response.status,
        _ => 0,
    };
    if is_whole(event, left.first()) {
        notes.tries = 0;
        notes.gone = 0;
        if let Event::Read(summary) = event
            && summary.source == Source::Output.name()
        {
            notes.answers = notes.answers.max(summary.results);
            if notes.completed.is_some_and(|completed| summary.results < completed)
                && notes.short < SHORT_READINGS_MAX
            {
                // Something on the way cut it, or put something else in its place: what ran would be bought again.
                notes.short += 1;
                let again = Phase::Read { input, left, read, end };
                return Next::Pause(again, context.pauses().after_failure(notes.short));
            }
        }
        read.push(left.remove(0).id);
        return reading(input, left, read, end, notes, context);
    }
    notes.tries += 1;
    notes.gone = if status == 404 { notes.gone + 1 } else { 0 };
    if notes.gone >= FILE_GONE_MAX || notes.tries >= READ_TRIES_MAX {
        let file = left.first().map(|file| file.id.as_str()).unwrap_or_default();
        let message =
            format!("the results in {file} could not be read to their end (last HTTP status {status})");
        return Next::Act(Phase::Over {
            end: End::failed(Ran::Unknown, false, "results_unreadable", &message),
        });
    }
    Next::Pause(Phase::Read { input, left, read, end }, context.pauses().after_failure(notes.tries))
}

/// Whether this very file was read to its end.
fn is_whole(event: &Event, file: Option<&ResultFile>) -> bool {
    match (event, file) {
        (Event::Read(summary), Some(file)) => {
            summary.whole && (200..300).contains(&summary.status) && summary.source == file.source.name()
        }
        _ => false,
    }
}
