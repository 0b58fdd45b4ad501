//! Results read line by line while they arrive, understood by the plugin, and matched to their requests.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, Bytes, BytesMut};
use http::Response;
use http_body_util::BodyExt;
use offpeak_core::breaker::Report;
use offpeak_core::outcome::{DidItRun, Ending};
use offpeak_core::words::Place;
use offpeak_host::values::provider::{self, Decoded, ItemOutcome, ItemResult, ReadingForm};
use offpeak_host::{PluginError, ProviderPlugin};
use offpeak_store::{BatchRecord, StoreError};

use super::frame::Written;
use crate::blocking::blocking;
use crate::costs::Took;
use crate::gateway::Gateway;
use crate::outcomes::{self, Attempt, Source};
use crate::telemetry::Line;

/// Lines that go to the plugin at once: so many, or so many bytes.
const LINES_AT_ONCE: usize = 1000;
const BYTES_AT_ONCE: usize = 1 << 20;

/// A line longer than this is no result; it is skipped as it arrives.
const LINE_MAX: usize = 64 << 20;

/// What a reading came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    source: String,
    status: u16,
    lines: u32,
    results: u32,
    whole: bool,
}

impl Summary {
    /// As the plugin is told.
    pub fn as_event(&self) -> provider::ReadSummary<'_> {
        provider::ReadSummary {
            source: &self.source,
            status: self.status,
            lines: self.lines,
            results: self.results,
            whole: self.whole,
        }
    }
}

/// How many items came back, and how many of them failed by the provider's fault: what the batch says about its backend.
#[derive(Debug, Default)]
pub struct CameBack {
    tried: AtomicU64,
    failed: AtomicU64,
}

impl CameBack {
    fn count(&self, ending: &Ending) {
        let (tried, failed) = match ending {
            Ending::Answered { status: 408 | 500.. } => (1, 1),
            Ending::Answered { .. } => (1, 0),
            Ending::Failed { ran: DidItRun::NotSent | DidItRun::Refused, .. } => (0, 0),
            Ending::Failed { .. } => (1, 1),
        };
        self.tried.fetch_add(tried, Ordering::Relaxed);
        self.failed.fetch_add(failed, Ordering::Relaxed);
    }

    /// For the circuit breaker.
    pub fn report(&self) -> Report {
        Report::Batch {
            tried: self.tried.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
        }
    }
}

/// Why a reading stopped.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The plugin failed.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<ReadError> for super::StepError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Plugin(error) => Self::Plugin(error),
            ReadError::Store(error) => Self::Store(error),
        }
    }
}

/// Reads one source of results of a batch.
pub struct Reader<'a> {
    /// Where outcomes go.
    pub gateway: &'a Arc<Gateway>,
    /// What understands the lines.
    pub plugin: Arc<ProviderPlugin>,
    /// The batch, as the plugin knows it.
    pub batch: &'a provider::Batch<'a>,
    /// The batch, as the store knows it.
    pub record: &'a BatchRecord,
    /// What the plugin calls this source.
    pub source: &'a str,
    /// Where what came back is counted.
    pub came_back: &'a CameBack,
    /// What the last upload had on which line.
    pub written: &'a Written,
}

impl Reader<'_> {
    /// Takes in an answer. What was understood is recorded even if the answer breaks off.
    pub async fn read(
        &self,
        response: Response<reqwest::Body>,
        form: ReadingForm,
    ) -> Result<Summary, ReadError> {
        let (head, mut body) = response.into_parts();
        let status = head.status.as_u16();
        let mut summary =
            Summary { source: self.source.to_owned(), status, lines: 0, results: 0, whole: true };
        if !head.status.is_success() {
            return Ok(summary);
        }
        let mut lines = Lines { is_one: form == ReadingForm::One, ..Lines::default() };
        let mut seen = HashSet::new();
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => {
                    if let Ok(data) = frame.into_data() {
                        lines.push(data);
                    }
                }
                Err(error) => {
                    tracing::warn!(batch = %self.record.id, %error, "results broke off; what was read is kept");
                    summary.whole = false;
                    break;
                }
            }
            if lines.is_ready() {
                self.take(&lines.drain(), &mut seen, &mut summary).await?;
            }
        }
        if summary.whole {
            lines.finish();
        }
        self.take(&lines.drain(), &mut seen, &mut summary).await?;
        Ok(summary)
    }

    /// Understands lines, records what they say, and counts them.
    async fn take(
        &self,
        lines: &[Bytes],
        seen: &mut HashSet<Place>,
        summary: &mut Summary,
    ) -> Result<(), ReadError> {
        if lines.is_empty() {
            return Ok(());
        }
        let slices: Vec<&[u8]> = lines.iter().map(|line| &line[..]).collect();
        let now = self.gateway.clock.now().0;
        let decoded = blocking(|| self.plugin.decode_results(self.batch, self.source, &slices, now))?;
        let mut attempts = Vec::with_capacity(decoded.len());
        let (mut garbage, mut unknown) = (0, 0);
        for line in decoded {
            match self.understood(line) {
                Understood::Attempt(attempt) => attempts.push(attempt),
                Understood::Unknown => unknown += 1,
                Understood::Garbage => garbage += 1,
            }
        }
        let backend = self.record.backend.as_str();
        self.gateway.metrics.lines(backend, Line::Garbage, garbage);
        self.gateway.metrics.lines(backend, Line::Unknown, unknown);
        // A line that comes twice is one result, or it would stand for one that is missing.
        seen.extend(attempts.iter().map(|attempt| attempt.place));
        self.record(attempts).await?;
        summary.lines = summary.lines.saturating_add(count(lines.len()));
        summary.results = count(seen.len());
        Ok(())
    }

    /// Takes in results that the plugin has understood already.
    pub async fn accept(&self, results: Vec<ItemResult>) -> Result<Summary, ReadError> {
        let lines = count(results.len());
        let understood = results.into_iter().map(|mut result| {
            if let Some(place) = self.written_on(&result.id) {
                result.id = place.to_string();
            }
            self.understood(Decoded::Result(result))
        });
        let attempts = understood.filter_map(|one| match one {
            Understood::Attempt(attempt) => Some(attempt),
            Understood::Unknown | Understood::Garbage => None,
        });
        let attempts: Vec<Attempt> = attempts.collect();
        self.gateway.metrics.lines(
            self.record.backend.as_str(),
            Line::Unknown,
            u64::from(lines) - attempts.len() as u64,
        );
        let results = count(attempts.len());
        self.record(attempts).await?;
        Ok(Summary { source: self.source.to_owned(), status: 200, lines, results, whole: true })
    }

    async fn record(&self, attempts: Vec<Attempt>) -> Result<(), ReadError> {
        for attempt in &attempts {
            self.came_back.count(&attempt.ending);
        }
        let source = Source::batch(self.gateway, self.record);
        outcomes::record(self.gateway, &source, attempts).await?;
        Ok(())
    }

    /// What a line means for this batch.
    fn understood(&self, line: Decoded) -> Understood {
        let result = match line {
            Decoded::Result(result) => result,
            Decoded::Garbage(why) => {
                tracing::warn!(batch = %self.record.id, why, "a line of results is none");
                return Understood::Garbage;
            }
        };
        let Some(place) = self.place(&result.id) else {
            let id: String = result.id.chars().take(80).collect();
            tracing::warn!(batch = %self.record.id, id, "a result belongs to no request of this batch");
            return Understood::Unknown;
        };
        Understood::Attempt(attempt(place, result))
    }

    /// The request that the last upload had on this line.
    fn written_on(&self, id: &str) -> Option<Place> {
        id.strip_prefix('#').and_then(|line| self.written.line(line.parse().ok()?))
    }

    /// The request that a result is for, if it is one of this batch.
    fn place(&self, id: &str) -> Option<Place> {
        let place: Place = id.parse().ok()?;
        self.record.ranges.iter().any(|range| range.contains(place)).then_some(place)
    }
}

enum Understood {
    Attempt(Attempt),
    Unknown,
    Garbage,
}

fn attempt(place: Place, result: ItemResult) -> Attempt {
    let (ending, request_id, body) = match result.outcome {
        ItemOutcome::Response(response) => {
            (Ending::Answered { status: response.status }, response.request_id, response.body.into())
        }
        ItemOutcome::Failed(failure) => {
            let ran = super::did_it_run(failure.ran);
            (Ending::Failed { ran, code: failure.code, message: failure.message }, None, Bytes::new())
        }
    };
    // What the provider did not get to run is nobody's attempt.
    let never_ran = matches!(ending, Ending::Failed { ran: DidItRun::NotSent | DidItRun::Refused, .. });
    Attempt {
        place,
        ending,
        tries: u16::from(!never_ran),
        retry_after: None,
        request_id,
        body,
        took: Took::NO_TIME,
    }
}

fn count(lines: usize) -> u32 {
    u32::try_from(lines).unwrap_or(u32::MAX)
}

/// Cuts a stream of bytes into lines.
#[derive(Default)]
struct Lines {
    /// There is only one, whatever is in it.
    is_one: bool,
    partial: BytesMut,
    is_skipping: bool,
    whole: Vec<Bytes>,
    bytes: usize,
}

impl Lines {
    fn push(&mut self, mut data: Bytes) {
        while let Some(end) = data.iter().position(|byte| *byte == b'\n').filter(|_| !self.is_one) {
            let head = data.split_to(end);
            data.advance(1);
            self.end_line(head);
        }
        self.partial.extend_from_slice(&data);
        if self.partial.len() > LINE_MAX {
            self.partial.clear();
            self.is_skipping = true;
        }
    }

    fn end_line(&mut self, tail: Bytes) {
        let line = if self.partial.is_empty() {
            tail
        } else {
            self.partial.extend_from_slice(&tail);
            self.partial.split().freeze()
        };
        if std::mem::take(&mut self.is_skipping) {
            // It stays in the count, as a line that cannot be understood.
            self.whole.push(Bytes::from_static(b"(a line over 64 MiB)"));
        } else if !line.trim_ascii().is_empty() {
            self.bytes += line.len();
            self.whole.push(line);
        }
    }

    /// The last line may lack its end.
    fn finish(&mut self) {
        self.end_line(Bytes::new());
    }

    fn is_ready(&self) -> bool {
        self.whole.len() >= LINES_AT_ONCE || self.bytes >= BYTES_AT_ONCE
    }

    fn drain(&mut self) -> Vec<Bytes> {
        self.bytes = 0;
        std::mem::take(&mut self.whole)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn lines_are_the_same_wherever_the_stream_is_cut(
            text in "([a-z]{0,5}(\n|\r\n)?){0,20}",
            cuts in prop::collection::vec(0_usize..120, 0..10),
        ) {
            let mut lines = Lines::default();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.sort_unstable();
            let mut from = 0;
            for cut in cuts.into_iter().chain([text.len()]) {
                lines.push(Bytes::copy_from_slice(&text.as_bytes()[from..cut]));
                from = cut;
            }
            lines.finish();
            let expected: Vec<&[u8]> =
                text.as_bytes().split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()).collect();
            prop_assert_eq!(lines.drain(), expected);
        }

        #[test]
        fn what_is_one_result_stays_one(pieces in prop::collection::vec("[a-z\n]{1,9}", 1..9)) {
            let mut lines = Lines { is_one: true, ..Lines::default() };
            for piece in &pieces {
                lines.push(Bytes::copy_from_slice(piece.as_bytes()));
            }
            lines.finish();
            let whole = pieces.concat();
            let expected: Vec<&[u8]> =
                Some(whole.as_bytes()).into_iter().filter(|whole| !whole.trim_ascii().is_empty()).collect();
            prop_assert_eq!(lines.drain(), expected);
        }
    }
}
