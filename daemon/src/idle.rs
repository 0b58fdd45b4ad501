//! Deferred work of an engine's own idle time: each request is sent by itself, as many at once as the engine has room for.
//! What it does not take, breaks off or answers with a failure goes back to its lane. Where the endpoint takes arrays,
//! `merged` sends many as one call.

mod merged;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, BoxStream, StreamExt};
use offpeak_core::breaker::Report;
use offpeak_core::extent::{self, Cargo};
use offpeak_core::outcome::{DidItRun, Ending};
use offpeak_core::scheduler::{Event, Fate};
use offpeak_core::words::{Mode, Place};
use offpeak_host::values::adapter::State;
use offpeak_store::{BatchRecord, Entry, Selection, StoreError};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::merged::Merging;
use crate::backends::{Backend, PrepareError, PreparedCall};
use crate::costs::Took;
use crate::damaged;
use crate::engine::Engine;
use crate::gateway::Gateway;
use crate::outcomes::{Attempt, Source, next_backend};
use crate::rescue::{CHUNK_BYTES, PAUSE, asker, pause, record_surely, send, tenant_of};

/// So long after work has begun the engine's numbers show it, and what else it can take.
const SHOWN_AFTER: Duration = Duration::from_millis(100);

/// Outcomes that are recorded in one commit, at most.
const RECORD_AT_ONCE: usize = 256;

/// Codes that begin so say that the engine gave no answer.
const NO_ANSWER: &str = "backend_";

/// The code of an answer that broke off unnoticed.
const UNREADABLE: &str = "unreadable_answer";

/// What the attempt of a call is called that was taken back.
const GAVE_WAY: &str = "gave_way";

/// One piece of deferred work under way.
struct Piece {
    gateway: Arc<Gateway>,
    backend: Arc<Backend>,
    record: BatchRecord,
    cargo: Vec<Cargo>,
    /// Somebody wants it back.
    stop: CancellationToken,
    /// What was not sent is given back: for that reason, or because the engine is out of order and another backend takes it.
    leave: CancellationToken,
}

/// How a piece's requests are sent.
enum Prepared {
    /// So.
    Call(Box<PreparedCall>),
    /// Not at all: the engine's plugin does not sell this any more, or somebody wants it back.
    GiveBack,
    /// The daemon stops before that is known.
    Stopping,
}

/// Looks at an engine again and again, until the daemon stops.
pub async fn watch(gateway: Arc<Gateway>, backend: Arc<Backend>) {
    let Some(engine) = &backend.engine else { return };
    let (mut before, mut looked, mut was_soon) = (None, Instant::now(), false);
    loop {
        let look = tokio::select! {
            biased;
            () = gateway.stopping.cancelled() => return,
            look = engine.look(&backend.upstream, gateway.clock) => look,
        };
        let since = std::mem::replace(&mut looked, Instant::now()).elapsed();
        match look {
            Ok((state, seen)) => {
                gateway.metrics.looked(backend.id.as_str(), &seen, since);
                if before.replace(state) != Some(state) {
                    tracing::info!(backend = %backend.id, state = in_words(state), "an engine was looked at");
                }
                match state {
                    State::Ready => gateway.report(&backend.id, Mode::Engine, Report::Fine),
                    State::Down => gateway.report(&backend.id, Mode::Engine, Report::Failed),
                    // It is there, and will be back.
                    State::Resting => {}
                }
            }
            Err(error) => {
                gateway.metrics.plugin_failed(&error.plugin);
                tracing::error!(backend = %backend.id, %error, "an engine gets no deferred work: its plugin failed");
            }
        }
        was_soon = match until_next_look(&gateway, engine, was_soon).await {
            Some(is_soon) => is_soon,
            None => return,
        };
    }
}

/// Waits until an engine's next look: one interval, or less where work has begun meanwhile, though not twice in a row. Says
/// whether it was less; none if the daemon stops.
async fn until_next_look(gateway: &Gateway, engine: &Engine, was_soon: bool) -> Option<bool> {
    tokio::select! {
        biased;
        paused = pause(gateway, engine.every) => paused.map(|()| false),
        () = engine.turns.begun(), if !was_soon => {
            pause(gateway, SHOWN_AFTER.min(engine.every)).await.map(|()| true)
        }
    }
}

const fn in_words(state: State) -> &'static str {
    match state {
        State::Ready => "ready",
        State::Resting => "resting",
        State::Down => "down",
    }
}

/// Runs what has no outcome yet. After a crash this starts again with what is left; what was under way then may have run.
/// `stop` has it give back what was not sent.
pub async fn drive(
    gateway: Arc<Gateway>,
    backend: Arc<Backend>,
    record: BatchRecord,
    cargo: Vec<Cargo>,
    stop: CancellationToken,
) {
    let leave = stop.child_token();
    let piece = Piece { gateway, backend, record, cargo, stop, leave };
    loop {
        let ran = tokio::select! {
            ran = piece.run() => ran,
            never = piece.look_elsewhere() => match never {},
        };
        match ran {
            Ok(()) | Err(StoreError::Closed) => return,
            Err(error) => {
                let batch = piece.record.id;
                tracing::error!(%batch, %error, "deferred work is held up by the store; it goes on by itself");
            }
        }
        if pause(&piece.gateway, PAUSE).await.is_none() {
            return;
        }
    }
}

impl Piece {
    async fn run(&self) -> Result<(), StoreError> {
        let Some(engine) = &self.backend.engine else { return Ok(()) };
        let call = match self.prepare().await {
            Prepared::Call(call) => call,
            Prepared::GiveBack => return self.give_back().await,
            Prepared::Stopping => return Ok(()),
        };
        let source = self.source();
        let mut any_good = false;
        let mut selection = Some(Selection::from(extent::ranges(&self.cargo)));
        while let Some(what) = selection {
            let chunk = damaged::sound(&self.gateway, what, CHUNK_BYTES).await?;
            selection = chunk.rest;
            any_good |= self.run_and_record(engine, &call, &source, chunk.entries).await?;
            if self.gateway.stopping.is_cancelled() {
                return Ok(());
            }
        }
        let (ending, fate) = if self.stop.is_cancelled() {
            ("cancelled", Fate::GivenUp)
        } else if self.leave.is_cancelled() {
            // How long that took says nothing about how long it takes.
            ("cancelled", Fate::Refused)
        } else if any_good {
            ("completed", Fate::Completed)
        } else {
            ("completed", Fate::Refused)
        };
        self.end(ending, fate).await
    }

    fn source(&self) -> Source {
        Source { mode: Mode::Engine, ..Source::batch(&self.gateway, &self.record) }
    }

    async fn end(&self, ending: &str, fate: Fate) -> Result<(), StoreError> {
        self.gateway.store.end(self.record.id, self.gateway.clock.now(), ending).await?;
        self.gateway.metrics.ended(self.record.backend.as_str(), ending);
        self.gateway.lanes.tell(Event::Ended { batch: self.record.id, hold_until: None, fate });
        Ok(())
    }

    /// Has what was not sent given back while the engine is out of order, if there is another backend that takes it: it would wait
    /// here until the engine is back, or its deadline is near.
    async fn look_elsewhere(&self) -> Infallible {
        let (gateway, own) = (&self.gateway, &self.backend);
        let every = own.engine.as_ref().map_or(PAUSE, |engine| engine.every);
        loop {
            tokio::time::sleep(every).await;
            let now = gateway.clock.now();
            let key = self.cargo.first().and_then(|cargo| gateway.store.lane_key(cargo.range.lane));
            let is_shut = gateway.health.shut_until(&own.id, Mode::Engine, now).is_some();
            if is_shut && key.is_some_and(|key| next_backend(gateway, &key, now).is_some()) {
                self.leave.cancel();
                return std::future::pending().await;
            }
        }
    }

    /// Runs requests, and records how they ended while others are sent. Says whether any was answered well.
    async fn run_and_record(
        &self,
        engine: &Engine,
        call: &PreparedCall,
        source: &Source,
        entries: Vec<Entry>,
    ) -> Result<bool, StoreError> {
        let (ended, mut to_record) = mpsc::channel(RECORD_AT_ONCE);
        let mut attempts = self.run_all(engine, call, entries);
        let run = async move {
            while let Some(attempts) = attempts.next().await {
                for attempt in attempts {
                    // Nobody takes them only if they cannot be recorded, and then both end.
                    ended.send(attempt).await.map_err(|_| StoreError::Closed)?;
                }
            }
            Ok(())
        };
        let record = async {
            let mut any_good = false;
            let mut attempts = Vec::new();
            while to_record.recv_many(&mut attempts, RECORD_AT_ONCE).await > 0 {
                any_good |= attempts.iter().any(|attempt: &Attempt| attempt.ending.is_success());
                record_surely(&self.gateway, source, std::mem::take(&mut attempts)).await?;
            }
            Ok(any_good)
        };
        let both: Result<((), bool), StoreError> = tokio::try_join!(run, record);
        both.map(|((), any_good)| any_good)
    }

    /// Runs requests as the engine has room for them, merged where that is possible.
    fn run_all<'a>(
        &'a self,
        engine: &'a Engine,
        call: &'a PreparedCall,
        entries: Vec<Entry>,
    ) -> BoxStream<'a, Vec<Attempt>> {
        let Some(merging) = Merging::of(engine, call, self.record.endpoint.as_str()) else {
            return stream::iter(entries)
                .map(|entry| self.run_one(engine, call, entry))
                .buffer_unordered(engine.most)
                .map(|attempt| attempt.into_iter().collect())
                .boxed();
        };
        let queues = merging.queues(entries, |entry| tenant_of(&self.gateway, entry));
        let loads = stream::unfold(queues, move |mut queues| async move {
            let load = self.load(merging, &mut queues).await?;
            Some((load, queues))
        });
        loads.map(move |load| self.run_load(call, merging, load)).buffer_unordered(engine.most).boxed()
    }

    /// Gives all back that has no outcome: it goes to its lane, and is bought otherwise.
    async fn give_back(&self) -> Result<(), StoreError> {
        let source = self.source();
        let mut selection = Some(Selection::from(extent::ranges(&self.cargo)));
        while let Some(what) = selection {
            let chunk = damaged::sound(&self.gateway, what, CHUNK_BYTES).await?;
            selection = chunk.rest;
            let attempts = chunk.entries.iter().map(given_back).collect();
            record_surely(&self.gateway, &source, attempts).await?;
        }
        let fate = if self.stop.is_cancelled() { Fate::GivenUp } else { Fate::Refused };
        self.end("cancelled", fate).await
    }

    /// Waits while the plugin is out of order.
    async fn prepare(&self) -> Prepared {
        let record = &self.record;
        loop {
            if self.stop.is_cancelled() {
                return Prepared::GiveBack;
            }
            let (endpoint, model, offer) =
                (record.endpoint.as_str(), record.model.as_str(), record.offer.as_str());
            match self.backend.prepare(endpoint, model, offer, self.gateway.clock.now()) {
                Ok(call) => return Prepared::Call(Box::new(call)),
                // The plugin is another one since this was bought.
                Err(error @ PrepareError::Refused(_)) => {
                    tracing::warn!(batch = %record.id, %offer, %error, "an engine's offer is gone; its requests are bought otherwise");
                    return Prepared::GiveBack;
                }
                Err(error) => {
                    tracing::error!(batch = %record.id, %error, "requests wait: their call could not be prepared");
                    let wait = tokio::select! {
                        biased;
                        () = self.stop.cancelled() => Some(()),
                        waited = pause(&self.gateway, PAUSE) => waited,
                    };
                    if wait.is_none() {
                        return Prepared::Stopping;
                    }
                }
            }
        }
    }

    /// For each of these requests, whether there is anything to send: while it waited for its turn, it may have been taken over by
    /// what runs beside this piece, or been cancelled. None if the daemon stops before the store can tell.
    async fn to_be_sent(&self, places: &[Place]) -> Option<Vec<bool>> {
        loop {
            match self.gateway.store.wait_here(places.to_vec()).await {
                Ok(mut wait_here) => {
                    for (waits, place) in wait_here.iter_mut().zip(places) {
                        *waits &= !self.gateway.beside.covers(self.record.id, *place);
                    }
                    return Some(wait_here);
                }
                Err(StoreError::Closed) => return None,
                Err(error) => {
                    tracing::error!(batch = %self.record.id, %error, "requests for an engine wait for the store");
                    pause(&self.gateway, PAUSE).await?;
                }
            }
        }
    }

    /// Runs one request once; none if there is nothing to run any more, or the daemon stops before it is sent.
    async fn run_one(&self, engine: &Engine, call: &PreparedCall, entry: Entry) -> Option<Attempt> {
        let (gateway, backend) = (&self.gateway, &self.backend);
        let tenant = tenant_of(gateway, &entry);
        let asker = asker(gateway, &tenant, &entry);
        let mut turn = tokio::select! {
            biased;
            () = gateway.stopping.cancelled() => return None,
            () = self.leave.cancelled() => return Some(given_back(&entry)),
            turn = engine.turns.take(&asker) => turn,
        };
        if self.to_be_sent(&[entry.place]).await? != [true] {
            return None;
        }
        let (guest, sent) = (engine.presence.admit(), Instant::now());
        let ended = tokio::select! {
            biased;
            ended = send(gateway, backend, call, &self.record, &entry) => of_an_engine(ended),
            // The connection is broken off, by which the engine knows.
            () = turn.recalled(entry.deadline) => gave_way(&entry, sent.elapsed()),
        };
        let took = Took { together: u32::try_from(guest.together()).unwrap_or(u32::MAX), ..ended.took };
        drop(guest);
        let is_refused = is_refused(&ended.ending);
        if is_refused || is_lost(&ended.ending) {
            engine.doubt();
        }
        turn.done(is_refused, ended.retry_after);
        let tries = tries_of(&ended);
        Some(Attempt { tries, took, ..ended })
    }
}

/// Half an answer is how engines die, so that nobody knows whether it ran to its end; and at an engine of one's own another
/// run costs its time, which the retry policy may decide to spend.
fn of_an_engine(ended: Attempt) -> Attempt {
    match ended.ending {
        Ending::Failed { ran: DidItRun::Ran, code, message } if code == UNREADABLE => {
            Attempt { ending: Ending::Failed { ran: DidItRun::Unknown, code, message }, ..ended }
        }
        ending => Attempt { ending, ..ended },
    }
}

/// The engine had no room for it.
const fn is_refused(ending: &Ending) -> bool {
    matches!(ending, Ending::Answered { status: 429 | 503 })
}

/// The engine gave no answer.
fn is_lost(ending: &Ending) -> bool {
    matches!(ending, Ending::Failed { code, .. } if code.starts_with(NO_ANSWER))
}

/// What it did not take, or was taken back from it, uses up nobody's attempts; the deadline bounds how long that goes on.
fn tries_of(ended: &Attempt) -> u16 {
    let is_no_try = is_refused(&ended.ending)
        || match &ended.ending {
            Ending::Failed { ran: DidItRun::NotSent | DidItRun::Refused, .. } => true,
            Ending::Failed { code, .. } => code == GAVE_WAY,
            Ending::Answered { .. } => false,
        };
    if is_no_try { 0 } else { ended.tries }
}

/// A call that a real-time one waited behind. What the engine has made of it is lost, and its time was used.
fn gave_way(entry: &Entry, after: Duration) -> Attempt {
    let ending = Ending::Failed {
        ran: DidItRun::Unknown,
        code: GAVE_WAY.into(),
        message: "it was taken back from the engine for calls in real time".into(),
    };
    Attempt { ending, took: Took::new(after, 1), ..given_back(entry) }
}

fn given_back(entry: &Entry) -> Attempt {
    Attempt {
        place: entry.place,
        ending: Ending::Failed {
            ran: DidItRun::NotSent,
            code: "batch_cancelled".into(),
            message: "it was taken back before the engine had its turn for it".into(),
        },
        tries: 0,
        retry_after: None,
        request_id: None,
        body: bytes::Bytes::new(),
        took: Took::NO_TIME,
    }
}
