//! The jobs that have not ended: how far each is, and which job a request belongs to.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use offpeak_core::extent::Range;
use offpeak_core::words::{LaneId, Place};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, watch};

use crate::documents::Job;
use crate::documents::job_cost::Spent;

/// All jobs that have not ended.
#[derive(Default)]
pub struct JobBook {
    jobs: RwLock<HashMap<u64, Arc<OpenJob>>>,
    /// Of each lane the ranges that belong to a job, by their first position.
    places: RwLock<HashMap<LaneId, BTreeMap<u64, Part>>>,
}

struct Part {
    end: u64,
    job: Arc<OpenJob>,
}

/// A job that has not ended. What is stored of it, and its counters.
pub struct OpenJob {
    stored: watch::Sender<Arc<Job>>,
    succeeded: AtomicU64,
    failed: AtomicU64,
    spent: Mutex<Spent>,
    is_cancel_asked: AtomicBool,
    changed: Notify,
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Requests with a good answer.
    pub succeeded: u64,
    /// Requests that ended otherwise.
    pub failed: u64,
}

impl JobBook {
    /// Takes a job in.
    pub fn open(&self, job: Job) -> Arc<OpenJob> {
        let number = job.number;
        let open = Arc::new(OpenJob {
            stored: watch::Sender::new(Arc::new(job)),
            succeeded: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            spent: Mutex::new(Spent::default()),
            is_cancel_asked: AtomicBool::new(false),
            changed: Notify::new(),
        });
        self.jobs.write().insert(number, open.clone());
        open
    }

    /// The job of this number, if it has not ended.
    pub fn get(&self, number: u64) -> Option<Arc<OpenJob>> {
        self.jobs.read().get(&number).cloned()
    }

    /// All that have not ended.
    pub fn all(&self) -> Vec<Arc<OpenJob>> {
        self.jobs.read().values().cloned().collect()
    }

    /// From now on the job hears of requests in these ranges that are finished.
    pub fn listen(&self, ranges: &[Range], job: &Arc<OpenJob>) {
        let mut places = self.places.write();
        for range in ranges {
            let part = Part { end: range.to.0, job: job.clone() };
            places.entry(range.lane).or_default().insert(range.from.0, part);
        }
    }

    /// A job has ended.
    pub fn close(&self, number: u64, ranges: &[Range]) {
        self.jobs.write().remove(&number);
        let mut places = self.places.write();
        for range in ranges {
            if let Some(parts) = places.get_mut(&range.lane) {
                parts.remove(&range.from.0);
                if parts.is_empty() {
                    places.remove(&range.lane);
                }
            }
        }
    }

    /// Requests have their final outcomes, and whether these are good.
    pub fn finished(&self, origins: impl IntoIterator<Item = (Place, bool)>) {
        self.each_of_a_job(origins, |job, is_success| {
            let counter = if is_success { &job.succeeded } else { &job.failed };
            counter.fetch_add(1, Ordering::Relaxed);
            job.changed.notify_one();
        });
    }

    /// Requests have cost something.
    pub fn spent(&self, origins: impl IntoIterator<Item = (Place, Spent)>) {
        self.each_of_a_job(origins, OpenJob::add_spent);
    }

    fn each_of_a_job<T>(
        &self,
        origins: impl IntoIterator<Item = (Place, T)>,
        mut tell: impl FnMut(&OpenJob, T),
    ) {
        let places = self.places.read();
        if places.is_empty() {
            return;
        }
        for (origin, what) in origins {
            let seq = origin.seq.0;
            let part = places.get(&origin.lane).and_then(|parts| parts.range(..=seq).next_back());
            if let Some((_, part)) = part.filter(|(_, part)| seq < part.end) {
                tell(&part.job, what);
            }
        }
    }
}

impl OpenJob {
    /// As it is stored.
    pub fn stored(&self) -> Arc<Job> {
        self.stored.borrow().clone()
    }

    /// What is stored has changed.
    pub fn publish(&self, job: Arc<Job>) {
        self.stored.send_replace(job);
    }

    /// Waits until what is stored is as wanted.
    pub async fn wait_for(&self, mut wanted: impl FnMut(&Job) -> bool) -> Arc<Job> {
        let mut stored = self.stored.subscribe();
        match stored.wait_for(|job| wanted(job)).await {
            Ok(job) => job.clone(),
            // The sender is this very value.
            Err(_) => self.stored(),
        }
    }

    /// How far it is. While it counts anew this may be a little ahead; when it has ended, what is stored says it exactly.
    pub fn progress(&self) -> Progress {
        let total = self.stored.borrow().total;
        let succeeded = self.succeeded.load(Ordering::Relaxed).min(total);
        let failed = self.failed.load(Ordering::Relaxed).min(total - succeeded);
        Progress { succeeded, failed }
    }

    /// What it has cost so far; exact when it has ended and is stored, see [`OpenJob::progress`].
    pub fn spent(&self) -> Spent {
        *self.spent.lock()
    }

    /// Summed anew; what is told from now on is added.
    pub fn set_spent(&self, spent: Spent) {
        *self.spent.lock() = spent;
    }

    /// Adds to what it has cost.
    fn add_spent(&self, spent: Spent) {
        *self.spent.lock() += spent;
    }

    /// Counted anew; what is told from now on is added.
    pub fn set_progress(&self, progress: Progress) {
        self.succeeded.store(progress.succeeded, Ordering::Relaxed);
        self.failed.store(progress.failed, Ordering::Relaxed);
    }

    /// Adds to what was counted, for what may have been told while it was counted.
    pub fn add_progress(&self, progress: Progress) {
        self.succeeded.fetch_add(progress.succeeded, Ordering::Relaxed);
        self.failed.fetch_add(progress.failed, Ordering::Relaxed);
    }

    /// Asks it to end.
    pub fn cancel(&self) {
        self.is_cancel_asked.store(true, Ordering::Release);
        self.changed.notify_one();
    }

    /// It was asked to end.
    pub fn is_cancel_asked(&self) -> bool {
        self.is_cancel_asked.load(Ordering::Acquire)
    }

    /// Returns when something may have changed: a request is finished, or it was asked to end.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use offpeak_core::job::Life;
    use offpeak_core::words::{Millis, Seq, TenantId, Timestamp};

    use super::*;
    use crate::documents::job::{Api, Expansion};

    fn job(number: u64) -> Job {
        Job {
            number,
            tenant: TenantId::from("t"),
            api: Api::OpenAi,
            life: Life::begin(Timestamp(0), Millis(1)),
            input: 1,
            endpoint: String::new(),
            headers: Vec::new(),
            model: None,
            window: String::new(),
            metadata: Vec::new(),
            output_kept: None,
            total: 10,
            expansion: Expansion::default(),
            ranges: Vec::new(),
            problems: Vec::new(),
            sums: None,
            is_output_deleted: false,
            are_errors_deleted: false,
            idempotency: None,
            digest: [0; 16],
            api_key: "".into(),
        }
    }

    fn range(lane: u32, from: u64, to: u64) -> Range {
        Range { lane: LaneId(lane), from: Seq(from), to: Seq(to) }
    }

    fn place(lane: u32, seq: u64) -> Place {
        Place { lane: LaneId(lane), seq: Seq(seq) }
    }

    #[tokio::test]
    async fn each_job_hears_of_its_own_requests() {
        let book = JobBook::default();
        let (one, two) = (book.open(job(1)), book.open(job(2)));
        book.listen(&[range(0, 0, 5), range(0, 10, 15)], &one);
        book.listen(&[range(0, 5, 10), range(3, 0, 2)], &two);
        let ended = [
            (0, 0, true),
            (0, 4, false),
            (0, 5, true),
            (0, 14, true),
            (0, 15, true),
            (3, 1, false),
            (4, 0, true),
        ];
        book.finished(ended.map(|(lane, seq, good)| (place(lane, seq), good)));
        assert_eq!(one.progress(), Progress { succeeded: 2, failed: 1 });
        assert_eq!(two.progress(), Progress { succeeded: 1, failed: 1 });
        one.changed().await;
        book.close(1, &[range(0, 0, 5), range(0, 10, 15)]);
        book.finished([(place(0, 1), true), (place(0, 6), true)]);
        assert_eq!((one.progress().succeeded, two.progress().succeeded), (2, 2));
        assert!(book.get(1).is_none() && book.get(2).is_some());
        book.close(2, &[range(0, 5, 10), range(3, 0, 2)]);
        assert!(book.places.read().is_empty());
    }
}
