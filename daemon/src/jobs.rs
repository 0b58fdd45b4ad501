//! Drives jobs: one task for each that has not ended.
//!
//! load -> put its requests into lanes -> wait until they are finished, the window is over, or the client cancels -> give
//! what is unfinished its outcome -> write down what it came to. Each stage is in the store before the next begins, and
//! each can be begun again after a crash.

pub mod expand;

use std::collections::HashSet;
use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use offpeak_core::job::{CANCELLED, Close, Event, Stage, WINDOW_OVER};
use offpeak_core::outcome::{DidItRun, Ending};
use offpeak_core::words::{Millis, Place};
use offpeak_store::{Document, Kind, NewOutcome, Order, StoreError, Unfinished, Verdict};

use crate::blocking::blocking;
use crate::delivery::output_file;
use crate::delivery::spent;
use crate::documents::file::{File, Problem};
use crate::documents::job_cost::Spent;
use crate::documents::upload::{Part, Upload};
use crate::documents::{self, DocumentError, Job, JobCost, Numbers};
use crate::gateway::Gateway;
use crate::job_book::{OpenJob, Progress};
use crate::outcomes;
use crate::sent;
use crate::spool::Spool;

/// A pause before trying again what the store or the disk refused.
const PAUSE: Duration = Duration::from_secs(1);

/// Outcomes that are recorded in one commit when a job is settled.
const SETTLE_AT_ONCE: usize = 1000;

/// Notes about deleted responses that are looked through at once.
const NOTES_AT_ONCE: usize = 1000;

/// How long a job can be looked at after its answers are gone.
const REMEMBERED: Millis = Millis::from_hours(24 * 30);

/// Why a stage could not be gone through.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A document could not be read or written.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// The disk failed.
    #[error("the file of a job's requests could not be read: {0}")]
    Disk(#[from] io::Error),
    /// It cannot be run, now or later.
    #[error("{}", .0.message)]
    Refused(Problem),
}

/// The key of a file that is none.
const FORGOTTEN: &[u8] = b"forgotten";

/// Takes a new job in and sets it on its way. It is durable when this returns.
pub async fn begin(gateway: &Arc<Gateway>, job: Job) -> Result<Arc<OpenJob>, DocumentError> {
    documents::keep(&gateway.store, &job).await?;
    tracing::info!(job = %job.id(), tenant = %job.tenant, requests = job.total, "a job begins");
    Ok(spawn(gateway, job, false))
}

/// Asks a job to end, and waits until that is durable.
pub async fn cancel(gateway: &Arc<Gateway>, open: &OpenJob) -> Option<Arc<Job>> {
    open.cancel();
    let may_run = |job: &Job| matches!(job.life.stage, Stage::Validating | Stage::InProgress);
    tokio::select! {
        biased;
        job = open.wait_for(|job| !may_run(job)) => Some(job),
        () = gateway.stopping.cancelled() => None,
    }
}

/// Goes on with all jobs that have not ended, and tidies the folder of files. Returns the numbers that come next.
pub async fn recover(gateway: &Arc<Gateway>) -> Result<(), StoreError> {
    let mut open = Vec::new();
    documents::each(&gateway.store, |job: Job| {
        if !job.life.has_ended() {
            open.push(job);
        }
    })
    .await?;
    for job in open {
        tracing::info!(job = %job.id(), stage = job.status(), "a job goes on");
        spawn(gateway, job, true);
    }
    Ok(())
}

/// The largest number given so far; and removes files that nothing knows.
pub async fn largest_number(store: &offpeak_store::Store, spool: &Spool) -> Result<Numbers, JobError> {
    let files = known_files(store).await?;
    let mut largest = files.iter().copied().max().unwrap_or(0);
    documents::each(store, |upload: Upload| largest = largest.max(upload.number)).await?;
    documents::each(store, |job: Job| largest = largest.max(job.number)).await?;
    let removed = spool.tidy(&files)?;
    if removed > 0 {
        tracing::info!(files = removed, "uploads that were not finished before the stop were removed");
    }
    Ok(Numbers::after(largest))
}

/// Removes files and jobs whose time is over. Returns the requests since which their tenants' answers are still needed.
pub async fn tidy(gateway: &Gateway) -> Result<Vec<Place>, JobError> {
    let now = gateway.clock.now();
    let mut removals = Vec::new();
    let mut needed = Vec::new();
    let mut inputs = HashSet::new();
    documents::each(&gateway.store, |job: Job| {
        let until = job.output_until(gateway.keep_results);
        let is_readable = until.is_none_or(|until| now < until);
        if is_readable && !job.has_failed() && !(job.is_output_deleted && job.are_errors_deleted) {
            needed.extend(job.ranges.iter().map(|range| Place { lane: range.lane, seq: range.from }));
        }
        if job.life.stage == Stage::Validating {
            inputs.insert(job.input);
        }
        if until.is_some_and(|until| until.after(REMEMBERED) <= now) {
            removals.push(documents::removal(&JobCost::of(&job, Spent::default())));
            removals.push(documents::removal(&job));
        }
    })
    .await?;
    let mut expired = Vec::new();
    documents::each(&gateway.store, |file: File| {
        if file.expires_at <= now && !inputs.contains(&file.number) {
            expired.push(file);
        }
    })
    .await?;
    for file in &expired {
        removals.push(documents::removal(file));
    }
    let mut gone: Vec<u64> = expired.iter().map(|file| file.number).collect();
    documents::each(&gateway.store, |part: Part| {
        if part.expires_at <= now {
            gone.push(part.number);
            removals.push(documents::removal(&part));
        }
    })
    .await?;
    documents::each(&gateway.store, |upload: Upload| {
        if upload.expires_at.after(REMEMBERED) <= now {
            removals.push(documents::removal(&upload));
        }
    })
    .await?;
    removals.extend(forgotten_responses(gateway).await?);
    if !removals.is_empty() {
        gateway.store.keep(removals).await?;
    }
    for number in gone {
        gateway.spool.remove(number).await?;
    }
    drop_forgotten(gateway).await?;
    Ok(needed)
}

/// Removes files that came while the store could not be written to, and that were refused for it.
async fn drop_forgotten(gateway: &Gateway) -> Result<(), JobError> {
    let known = known_files(&gateway.store).await?;
    let mut forgotten = blocking(|| gateway.spool.forgotten(&known))?;
    if forgotten.is_empty() {
        return Ok(());
    }
    // What the store refused may stand at the end of its log, to be found at the next start, until something is written in
    // its place. And what it was about to know is known when this is.
    let nothing = Document { kind: Kind::File, key: Bytes::from_static(FORGOTTEN), value: None };
    gateway.store.keep(vec![nothing]).await?;
    let known = known_files(&gateway.store).await?;
    forgotten.retain(|number| !known.contains(number));
    tracing::info!(
        files = forgotten.len(),
        "files that were refused when the store could not be written to are removed"
    );
    for number in forgotten {
        gateway.spool.remove(number).await?;
    }
    Ok(())
}

/// The numbers of all files that somebody may ask for.
async fn known_files(store: &offpeak_store::Store) -> Result<HashSet<u64>, StoreError> {
    let mut files = HashSet::new();
    documents::each(store, |file: File| files.extend([file.number])).await?;
    documents::each(store, |part: Part| files.extend([part.number])).await?;
    Ok(files)
}

/// Notes about background responses that are not there any more.
async fn forgotten_responses(gateway: &Gateway) -> Result<Vec<Document>, JobError> {
    let everything = (Bound::Unbounded, Bound::Unbounded);
    let notes = gateway.store.documents(Kind::Response, everything, Order::Ascending, NOTES_AT_ONCE).await?;
    let mut forgotten = Vec::new();
    for (key, _) in notes {
        let place = documents::place_of(&key);
        let is_there = match place {
            Some(place) => gateway.store.outcome(place).await?.is_some(),
            None => false,
        };
        if !is_there {
            forgotten.push(Document { kind: Kind::Response, key, value: None });
        }
    }
    Ok(forgotten)
}

fn spawn(gateway: &Arc<Gateway>, job: Job, is_recovered: bool) -> Arc<OpenJob> {
    let open = gateway.jobs.open(job.clone());
    gateway.metrics.job_opened();
    let driver = Driver { gateway: gateway.clone(), open: open.clone(), job, is_recovered };
    gateway.spawn(driver.run());
    open
}

/// A job under way.
struct Driver {
    gateway: Arc<Gateway>,
    open: Arc<OpenJob>,
    job: Job,
    /// A crash may have come between requests that were appended and the job's note of them.
    is_recovered: bool,
}

impl Driver {
    /// Until it has ended, or the daemon stops.
    async fn run(mut self) {
        let stopping = self.gateway.stopping.clone();
        tokio::select! {
            // What is not noted yet is done again at the next start.
            () = stopping.cancelled() => return,
            () = self.run_to_the_end() => {}
        }
        if let Err(error) = self.drop_hidden_input().await {
            tracing::warn!(job = %self.job.id(), %error, "a job's own file could not be removed; it goes when its time is over");
        }
        let job = &self.job;
        self.gateway.jobs.close(job.number, &job.ranges);
        self.gateway.metrics.job_ended(job.status());
        tracing::info!(job = %job.id(), status = job.status(), "a job has ended");
    }

    async fn run_to_the_end(&mut self) {
        while !self.job.life.has_ended() {
            if let Err(error) = self.stage().await {
                tracing::error!(job = %self.job.id(), %error, "a job's step failed; its requests are kept and it is tried again");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    async fn stage(&mut self) -> Result<(), JobError> {
        match self.job.life.stage {
            Stage::Validating => self.expand().await,
            Stage::InProgress => self.wait().await,
            Stage::Finalizing(close) => self.settle(close).await,
            Stage::Ended(_) => Ok(()),
        }
    }

    /// A file that is the job's own is not needed once its requests stand in lanes, or never will.
    async fn drop_hidden_input(&self) -> Result<(), JobError> {
        let (store, job) = (&self.gateway.store, &self.job);
        let input: Option<File> = documents::get(store, &job.tenant, job.input).await?;
        if let Some(input) = input.filter(|input| input.is_hidden) {
            store.keep(vec![documents::removal(&input)]).await?;
            self.gateway.spool.remove(input.number).await?;
        }
        Ok(())
    }

    /// Notes an event, durably; not at all if that fails.
    async fn note(&mut self, event: Event) -> Result<(), JobError> {
        let mut life = self.job.life.clone();
        if life.step(event, self.gateway.clock.now()) {
            let job = Job { life, ..self.job.clone() };
            documents::keep(&self.gateway.store, &job).await?;
            self.publish(job);
        }
        Ok(())
    }

    fn publish(&mut self, job: Job) {
        self.open.publish(Arc::new(job.clone()));
        self.job = job;
    }

    async fn wait(&mut self) -> Result<(), JobError> {
        // What it has cost is told as it is recorded, and summed from the ledger when it has ended. Only for what was
        // recorded before this, it is asked here.
        let before = spent::of_ranges(&self.gateway.store, self.job.ranges.clone()).await?;
        self.open.set_spent(before);
        self.gateway.jobs.listen(&self.job.ranges, &self.open);
        self.count().await?;
        loop {
            let progress = self.open.progress();
            // What was told while it was counted may count twice, so that this comes too early but never too late.
            if progress.succeeded + progress.failed >= self.job.total && self.count().await? == 0 {
                return self.note(Event::AllFinished).await;
            }
            if self.open.is_cancel_asked() {
                return self.note(Event::CancelAsked).await;
            }
            let left = self.job.life.deadline.since(self.gateway.clock.now());
            if left == Millis(0) {
                return self.note(Event::WindowOver).await;
            }
            tokio::select! {
                () = self.open.changed() => {}
                () = tokio::time::sleep(Duration::from(left).min(Duration::from_hours(1))) => {}
            }
        }
    }

    /// Counts anew; returns how many are unfinished.
    async fn count(&self) -> Result<u64, JobError> {
        self.open.set_progress(Progress::default());
        let tally = self.gateway.store.tally(self.job.ranges.clone()).await?;
        self.open.add_progress(Progress { succeeded: tally.succeeded, failed: tally.failed });
        Ok(tally.unfinished)
    }

    /// Gives what is unfinished its outcome, and writes down what the job came to.
    async fn settle(&mut self, close: Close) -> Result<(), JobError> {
        loop {
            let open = self.gateway.store.unfinished(self.job.ranges.clone(), SETTLE_AT_ONCE).await?;
            if open.is_empty() {
                break;
            }
            self.give_up(&open, close).await?;
        }
        let store = &self.gateway.store;
        let (sums, spent) = output_file::sums(store, self.job.api, self.job.ranges.clone()).await?;
        documents::keep(store, &JobCost::of(&self.job, spent)).await?;
        self.job.sums = Some(sums);
        // What was cancelled before it stood in a lane is not part of it.
        self.job.total = sums.succeeded + sums.failed();
        self.note(Event::Summed).await
    }

    /// Where the window is over and its backend takes no calls, a request gets the answer of its route, if it has one.
    async fn give_up(&self, open: &[Unfinished], close: Close) -> Result<(), JobError> {
        let (code, message) = match close {
            Close::Finished | Close::WindowOver => {
                (WINDOW_OVER, "This request could not be executed before the completion window expired.")
            }
            Close::Cancelled => (CANCELLED, "The batch was cancelled before this request had an answer."),
        };
        let gateway = &self.gateway;
        let now = gateway.clock.now();
        let places: Vec<Place> = open.iter().map(|one| one.current).collect();
        let tries = sent::tries(&gateway.store, &places).await?;
        let tried = |one: &Unfinished| tries.get(&one.current).copied().unwrap_or(0);
        let stand_in = |one: &Unfinished| {
            let key = gateway.store.lane_key(one.current.lane).filter(|_| close == Close::WindowOver)?;
            gateway.stand_in(&key, &key.backend)
        };
        let given_up = |one: &Unfinished| NewOutcome {
            place: one.current,
            attempts: one.attempts.saturating_add(tried(one)),
            batch: None,
            finished_at: now,
            ending: Ending::Failed {
                ran: if tried(one) == 0 { DidItRun::NotSent } else { DidItRun::Unknown },
                code: code.to_owned(),
                message: message.to_owned(),
            },
            verdict: Verdict::Final,
            meta: Bytes::new(),
            body: Bytes::new(),
            documents: Vec::new(),
        };
        let ended = open.iter().map(|one| match stand_in(one) {
            Some(answer) => {
                outcomes::stood_in(one.current, one.attempts.saturating_add(tried(one)), answer, now)
            }
            None => given_up(one),
        });
        Ok(outcomes::end_without_attempt(gateway, ended.collect()).await?)
    }
}
