//! The handle of a store: one function an operation.

use std::collections::HashMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use offpeak_core::extent::Range;
use offpeak_core::words::{BatchId, LaneId, LaneKey, Place, Timestamp};
use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;

use crate::audit;
use crate::disk::{Disk, Folder};
use crate::engine::Engine;
use crate::error::StoreError;
use crate::index::{View, query, standings};
use crate::keeper::Keeper;
use crate::log::read::LogReader;
use crate::log::record::RECORD_LIMIT;
use crate::open::{self, Opened};
use crate::ops::{Checked, Op, Reply};
use crate::options::Options;
use crate::shared::Shared;
use crate::threads::{Command, Threads};
use crate::values::{
    Appended, Audit, BatchRecord, BodyAt, Chunk, Compacted, Counts, Document, Entry, FinishedChunk, IdleLane,
    Kind, NewBatch, NewOutcome, NewRequest, Order, Recorded, Recovered, Selection, Standing, Stats, Swept,
    Tally, Unfinished, Verdict, Waiting,
};

/// Largest texts of a lane's key together, in bytes.
const KEY_LIMIT: u64 = 16 << 10;
/// Largest progress of a batch in bytes.
const PROGRESS_LIMIT: u64 = 512 << 10;
/// Most ranges of a batch.
const RANGES_LIMIT: u64 = 16 << 10;
/// Largest sum of documents that are written together, in bytes; and of those that are attached to an outcome, whose
/// record says in 16 bits where its answer begins.
const DOCUMENTS_LIMIT: u64 = 8 << 20;
const ATTACHED_LIMIT: u64 = 32 << 10;
/// Largest sum of the outcomes that are recorded at once, in bytes.
const RECORD_AT_ONCE: u64 = 1 << 30;

/// The store. Clones are the same store; the last one to be dropped closes it.
#[derive(Debug, Clone)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    lanes: RwLock<Lanes>,
    install: u64,
    drive: Drive,
}

/// Lanes known to exist.
#[derive(Debug, Default)]
struct Lanes {
    ids: HashMap<LaneKey, LaneId>,
    keys: HashMap<LaneId, LaneKey>,
}

/// Who does the work.
#[derive(Debug)]
enum Drive {
    Threads(Threads),
    /// The caller; `None` after the end.
    Inline(Box<Mutex<Option<(Engine, Keeper)>>>),
}

impl Store {
    /// Opens the store in the folder that the options name; makes it if it is not there.
    pub fn open(options: Options, now: Timestamp) -> Result<(Self, Recovered), StoreError> {
        let disk = Arc::new(Folder::new(&options.folder)?);
        Self::open_on(disk, options, now)
    }

    /// Opens the store on a disk of the caller's.
    pub fn open_on(
        disk: Arc<dyn Disk>,
        options: Options,
        now: Timestamp,
    ) -> Result<(Self, Recovered), StoreError> {
        let (is_inline, every) = (options.inline, options.checkpoint_every);
        let Opened { engine, keeper, shared, recovered, install } = open::open(disk, options, now)?;
        let drive = if is_inline {
            Drive::Inline(Box::new(Mutex::new(Some((engine, keeper)))))
        } else {
            Drive::Threads(Threads::start(engine, keeper, &shared, every)?)
        };
        let mut lanes = Lanes::default();
        for lane in &recovered.lanes {
            lanes.ids.insert(lane.key.clone(), lane.id);
            lanes.keys.insert(lane.id, lane.key.clone());
        }
        Ok((Self(Arc::new(Inner { shared, lanes: RwLock::new(lanes), install, drive })), recovered))
    }

    /// Reads everything in a store that nobody has open, and says what is wrong with it. Nothing is changed but what the
    /// index file needs after a crash.
    pub fn check(options: &Options) -> Result<Audit, StoreError> {
        Self::check_on(Folder::existing(&options.folder)?.as_ref(), options)
    }

    /// As [`Store::check`], on a disk of the caller's.
    pub fn check_on(disk: &dyn Disk, options: &Options) -> Result<Audit, StoreError> {
        audit::audit(disk, options)
    }

    /// Gives back the room in the index file of a store that nobody has open.
    pub fn compact(options: &Options) -> Result<Compacted, StoreError> {
        Self::compact_on(Folder::existing(&options.folder)?.as_ref(), options)
    }

    /// As [`Store::compact`], on a disk of the caller's.
    pub fn compact_on(disk: &dyn Disk, options: &Options) -> Result<Compacted, StoreError> {
        audit::compact(disk, options)
    }

    /// The random number that names this store, for good.
    pub fn install_id(&self) -> u64 {
        self.0.install
    }

    /// Does what was asked before, makes all durable and gives the folder back.
    pub async fn close(&self) -> Result<(), StoreError> {
        let inner = self.0.clone();
        match &self.0.drive {
            Drive::Inline(_) => inner.stop(),
            Drive::Threads(_) => {
                tokio::task::spawn_blocking(move || inner.stop()).await.map_err(|_| StoreError::Closed)?
            }
        }
    }

    /// The number of the lane with this key; made durably the first time.
    pub async fn lane(&self, key: &LaneKey) -> Result<LaneId, StoreError> {
        if let Some(&id) = self.0.lanes.read().ids.get(key) {
            return Ok(id);
        }
        let texts = [key.backend.as_str(), key.endpoint.as_str(), key.model.as_str(), key.tenant.as_str()];
        let bytes = texts.map(str::len).iter().sum::<usize>() + key.offer.as_str().len() + key.name.len();
        check_size(bytes as u64, KEY_LIMIT)?;
        let id = self.0.ask(|reply| Op::Lane { key: key.clone(), reply }).await?;
        let mut lanes = self.0.lanes.write();
        lanes.ids.insert(key.clone(), id);
        lanes.keys.insert(id, key.clone());
        Ok(id)
    }

    /// Lanes in which nothing is, nor will be kept: whatever stood in them was swept.
    pub async fn idle_lanes(&self) -> Result<Vec<IdleLane>, StoreError> {
        self.0.read(|view, _| query::idle_lanes(view)).await
    }

    /// Removes lanes that [`Store::idle_lanes`] found, but for those to which something came since; durable when it returns.
    /// Nobody may ask for these lanes meanwhile. Returns those that are gone.
    pub async fn remove_lanes(&self, idle: Vec<IdleLane>) -> Result<Vec<LaneId>, StoreError> {
        if idle.is_empty() {
            return Ok(Vec::new());
        }
        let removed = self.0.ask(|reply| Op::RemoveLanes { idle, reply }).await?;
        let mut lanes = self.0.lanes.write();
        for id in &removed {
            if let Some(key) = lanes.keys.remove(id) {
                lanes.ids.remove(&key);
            }
        }
        Ok(removed)
    }

    /// What the requests of a lane have in common.
    pub fn lane_key(&self, id: LaneId) -> Option<LaneKey> {
        self.0.lanes.read().keys.get(&id).cloned()
    }

    /// Stores a request at the end of its lane; durable when it returns.
    pub async fn append(&self, request: NewRequest) -> Result<Appended, StoreError> {
        check_payload(&request.meta, &request.body)?;
        let body_crc = crc32fast::hash(&request.body);
        self.0.ask(|reply| Op::Append { request, body_crc, reply }).await
    }

    /// Makes a batch of ranges that no batch has; durable when it returns.
    pub async fn seal(&self, batch: NewBatch) -> Result<BatchId, StoreError> {
        check_size(batch.progress.len() as u64, PROGRESS_LIMIT)?;
        check_size(batch.ranges.len() as u64, RANGES_LIMIT)?;
        self.0.ask(|reply| Op::Seal { batch, reply }).await
    }

    /// Stores a new state of a batch's protocol; durable when it returns.
    pub async fn advance(&self, id: BatchId, progress: Bytes) -> Result<(), StoreError> {
        check_size(progress.len() as u64, PROGRESS_LIMIT)?;
        self.0.ask(|reply| Op::Advance { id, progress, reply }).await
    }

    /// Ends a batch; durable when it returns. Entries of it that have no outcome keep their place in it: record
    /// an outcome that requeues them.
    pub async fn end(&self, id: BatchId, at: Timestamp, ending: &str) -> Result<(), StoreError> {
        check_size(ending.len() as u64, PROGRESS_LIMIT)?;
        self.0.ask(|reply| Op::End { id, at, ending: ending.to_owned(), reply }).await
    }

    /// Stores how attempts ended; durable when it returns. Answers come in the order of the outcomes.
    pub async fn record(&self, outcomes: Vec<NewOutcome>) -> Result<Vec<Recorded>, StoreError> {
        let mut bytes = 0;
        for outcome in &outcomes {
            check_payload(&outcome.meta, &outcome.body)?;
            let attached = documents_bytes(&outcome.documents);
            check_size(attached, ATTACHED_LIMIT)?;
            bytes += outcome.meta.len() as u64 + outcome.body.len() as u64 + attached + 8192;
        }
        check_size(bytes, RECORD_AT_ONCE)?;
        let outcomes = outcomes
            .into_iter()
            .map(|outcome| Checked { body_crc: crc32fast::hash(&outcome.body), outcome })
            .collect();
        self.0.caught_up().await?;
        self.0.ask(|reply| Op::Record { outcomes, reply }).await
    }

    /// Ends a request that its caller no longer wants, wherever it stands now. `tried` are the attempts made where it stands.
    pub async fn cancel(&self, origin: Place, at: Timestamp, tried: u16) -> Result<Recorded, StoreError> {
        // A requeue may come in between; then the request stands somewhere else.
        loop {
            let (current, attempts) = match self.standing(origin).await? {
                None => return Ok(Recorded::Unknown),
                Some(Standing::Final(_)) => return Ok(Recorded::Duplicate),
                Some(Standing::Waiting { current, attempts }) => (current, attempts),
            };
            let outcome = NewOutcome {
                place: current,
                attempts: attempts.saturating_add(tried),
                batch: None,
                finished_at: at,
                ending: query::cancelled(),
                verdict: Verdict::Final,
                meta: Bytes::new(),
                body: Bytes::new(),
                documents: Vec::new(),
            };
            match self.record(vec![outcome]).await?.pop() {
                Some(Recorded::Duplicate) => {}
                Some(recorded) => return Ok(recorded),
                None => return Ok(Recorded::Unknown),
            }
        }
    }

    async fn standing(&self, origin: Place) -> Result<Option<Standing>, StoreError> {
        self.0.read(move |view, log| query::standing(view, log, origin)).await
    }

    /// How a request stands. `None` if there is no such request, or not any more.
    pub async fn outcome(&self, origin: Place) -> Result<Option<Standing>, StoreError> {
        match self.standing(origin).await {
            Err(StoreError::Gone) => Ok(None),
            other => other,
        }
    }

    /// Which of these requests still wait, each at just this place: false for one that was cancelled, has its outcome, or has
    /// gone back to a lane.
    pub async fn wait_here(&self, places: Vec<Place>) -> Result<Vec<bool>, StoreError> {
        self.0.read(move |view, _| query::wait_here(view, &places)).await
    }

    /// The body of an answer.
    pub async fn read_body(&self, at: BodyAt) -> Result<Bytes, StoreError> {
        if at.is_empty() {
            return Ok(Bytes::new());
        }
        self.0.read(move |_, log| log.read(at.0).map(|stored| stored.body)).await
    }

    /// The next requests of a selection that have no outcome: about `max_bytes` of them, at least one if there is
    /// one. Those whose records are damaged are told apart.
    pub async fn requests(&self, what: impl Into<Selection>, max_bytes: usize) -> Result<Chunk, StoreError> {
        let what = what.into();
        self.0.read(move |view, log| query::requests(view, log, what, max_bytes)).await
    }

    /// The entries of a range that have no outcome, in order, all of them: what the index knows, so that damaged bodies
    /// are in nobody's way.
    pub async fn waiting(&self, range: Range) -> Result<Vec<Waiting>, StoreError> {
        self.0.read(move |view, _| query::waiting(view, range)).await
    }

    /// One entry, finished or not, for as long as it is kept.
    pub async fn entry(&self, place: Place) -> Result<Option<Entry>, StoreError> {
        self.0
            .read(move |view, log| {
                let Some(entry) = view.entry(place)? else { return Ok(None) };
                Ok(query::read_entries(log, &[(place, entry)])?.pop())
            })
            .await
    }

    /// What the index knows of an entry, finished or not, for as long as it is kept: its record is not read, so that it may
    /// be damaged.
    pub async fn about(&self, place: Place) -> Result<Option<Waiting>, StoreError> {
        self.0
            .read(move |view, _| match view.entry(place)? {
                Some(entry) => query::about(view, place, &entry).map(Some),
                None => Ok(None),
            })
            .await
    }

    /// The identity of a request with this body among the latest of some lanes: one that is not finished, or that was
    /// finished at `finished_since` or later ([`Timestamp::NEVER`] for none of these).
    pub async fn find_by_body(
        &self,
        lanes: &[LaneId],
        body_hash: u64,
        finished_since: Timestamp,
    ) -> Result<Option<Place>, StoreError> {
        let lanes = lanes.to_vec();
        self.0.read(move |view, _| query::find_by_body(view, &lanes, body_hash, finished_since)).await
    }

    /// What a request with this idempotency key would be told at `now`, if the key stands for a request already.
    pub async fn find_by_key(
        &self,
        key: [u8; 16],
        body_hash: u64,
        now: Timestamp,
    ) -> Result<Option<Appended>, StoreError> {
        self.0
            .read(move |view, _| {
                let row = view.idempotency(&key)?.filter(|row| row.expires > now.0);
                Ok(row.map(|row| row.answer(body_hash)))
            })
            .await
    }

    /// A batch. `None` if there is no such batch, or not any more.
    pub async fn batch(&self, id: BatchId) -> Result<Option<BatchRecord>, StoreError> {
        self.0.read(move |view, _| view.batch(id)).await
    }

    /// The batches that have not ended, oldest first.
    pub async fn open_batches(&self) -> Result<Vec<BatchRecord>, StoreError> {
        self.0.read(|view, _| view.open_batches()).await
    }

    /// The entries of a batch that have no outcome, in order.
    pub async fn missing(&self, id: BatchId) -> Result<Vec<Place>, StoreError> {
        self.0
            .read(move |view, _| {
                let batch = view.batch(id)?.ok_or(StoreError::UnknownBatch(id))?;
                query::missing(view, &batch.ranges)
            })
            .await
    }

    /// How far a batch is.
    pub async fn counts(&self, id: BatchId) -> Result<Counts, StoreError> {
        self.0
            .read(move |view, _| {
                let batch = view.batch(id)?.ok_or(StoreError::UnknownBatch(id))?;
                query::counts(view, &batch.ranges)
            })
            .await
    }

    /// How many of the requests that first stood in these ranges are finished.
    pub async fn tally(&self, ranges: Vec<Range>) -> Result<Tally, StoreError> {
        self.0.read(move |view, _| standings::tally(view, &ranges)).await
    }

    /// The first requests of these ranges that have no final outcome, at most so many.
    pub async fn unfinished(&self, ranges: Vec<Range>, most: usize) -> Result<Vec<Unfinished>, StoreError> {
        self.0.read(move |view, _| standings::unfinished(view, &ranges, most)).await
    }

    /// The next finished requests of these ranges with their answers: about `max_bytes` of them, at least one if there
    /// is one.
    pub async fn finished(&self, ranges: Vec<Range>, max_bytes: usize) -> Result<FinishedChunk, StoreError> {
        self.0.read(move |view, log| standings::finished(view, log, ranges, max_bytes)).await
    }

    /// A batch has this entry.
    pub async fn is_sealed(&self, place: Place) -> Result<bool, StoreError> {
        self.0.read(move |view, _| standings::is_sealed(view, place)).await
    }

    /// Writes and removes documents, all or none of them; durable when it returns. The last word on a key counts.
    pub async fn keep(&self, documents: Vec<Document>) -> Result<(), StoreError> {
        check_size(documents_bytes(&documents), DOCUMENTS_LIMIT)?;
        self.0.ask(|reply| Op::Keep { documents, reply }).await
    }

    /// A document.
    pub async fn document(&self, kind: Kind, key: Bytes) -> Result<Option<Bytes>, StoreError> {
        self.0.read(move |view, _| view.document(kind, &key)).await
    }

    /// The documents under these keys, in their order.
    pub async fn documents_at(&self, kind: Kind, keys: Vec<Bytes>) -> Result<Vec<Option<Bytes>>, StoreError> {
        self.0.read(move |view, _| keys.iter().map(|key| view.document(kind, key)).collect()).await
    }

    /// At most so many documents of a kind whose keys lie in a range, with their keys, from one of its ends.
    pub async fn documents(
        &self,
        kind: Kind,
        range: (Bound<Bytes>, Bound<Bytes>),
        order: Order,
        most: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        self.0
            .read(move |view, _| {
                let range = (range.0.as_ref().map(|key| &key[..]), range.1.as_ref().map(|key| &key[..]));
                view.documents(kind, range, order, most)
            })
            .await
    }

    /// Removes segments in which nothing is unfinished and whose answers were kept long enough, and batches that
    /// ended that long ago.
    pub async fn sweep(&self, now: Timestamp) -> Result<Swept, StoreError> {
        self.sweep_but(now, Vec::new()).await
    }

    /// As [`Store::sweep`], but keeps what a tenant has since one of its requests came: for each of `since`, that
    /// request and all requests and answers of its tenant after it.
    pub async fn sweep_but(&self, now: Timestamp, since: Vec<Place>) -> Result<Swept, StoreError> {
        let (reply, answer) = oneshot::channel();
        match &self.0.drive {
            Drive::Threads(threads) => threads.command(Command::Sweep { now, since, reply }),
            Drive::Inline(parts) => {
                let mut parts = parts.lock();
                let (_, keeper) = parts.as_mut().ok_or(StoreError::Closed)?;
                let swept = keeper.sweep(now, &since)?;
                self.0.shared.count_swept(&swept);
                return Ok(swept);
            }
        }
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Makes the index durable now. It happens by itself; nothing is lost without it.
    pub async fn checkpoint(&self) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        match &self.0.drive {
            Drive::Threads(threads) => threads.command(Command::Checkpoint { reply }),
            Drive::Inline(parts) => {
                return parts.lock().as_mut().ok_or(StoreError::Closed)?.1.checkpoint();
            }
        }
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    /// The index as it is now.
    #[cfg(test)]
    pub(crate) fn index_view(&self) -> View {
        self.0.shared.index.view().unwrap()
    }

    /// How the store does.
    pub fn stats(&self) -> Stats {
        self.0.shared.stats()
    }
}

impl Inner {
    /// Has the log do something and waits until it is durable.
    async fn ask<T>(&self, op: impl FnOnce(Reply<T>) -> Op) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let op = op(reply);
        match &self.drive {
            Drive::Threads(threads) => threads.submit(op),
            Drive::Inline(parts) => match parts.lock().as_mut() {
                None => return Err(StoreError::Closed),
                Some((engine, keeper)) => run_inline(engine, keeper, &self.shared, op),
            },
        }
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Waits until the index has everything that is durable.
    async fn caught_up(&self) -> Result<(), StoreError> {
        if self.shared.is_caught_up() {
            return Ok(());
        }
        match &self.drive {
            Drive::Threads(threads) => threads.hurry(),
            Drive::Inline(parts) => {
                if let Some((_, keeper)) = parts.lock().as_mut() {
                    apply_inline(keeper, &self.shared);
                }
            }
        }
        self.shared.catch_up().await
    }

    /// Looks something up in an index that has everything that is durable.
    async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&View, &LogReader) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.caught_up().await?;
        let shared = self.shared.clone();
        let read = move || look(&shared.index.view()?, &shared.log);
        match &self.drive {
            Drive::Inline(_) => read(),
            // The disk may have to be read.
            Drive::Threads(_) => tokio::task::spawn_blocking(read).await.map_err(|_| StoreError::Closed)?,
        }
    }

    fn stop(&self) -> Result<(), StoreError> {
        match &self.drive {
            Drive::Threads(threads) => threads.stop(),
            Drive::Inline(parts) => {
                let Some((engine, mut keeper)) = parts.lock().take() else { return Ok(()) };
                engine.finish()?;
                let closed = keeper.close();
                self.shared.fail(StoreError::Closed);
                self.shared.give_back();
                closed
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Without threads a drop is what a crash is: a simulation ends a life this way.
        if matches!(self.drive, Drive::Threads(_))
            && let Err(error) = self.stop()
        {
            tracing::error!(%error, "the store could not be closed in good order");
        }
    }
}

fn run_inline(engine: &mut Engine, keeper: &mut Keeper, shared: &Shared, op: Op) {
    if keeper.failed().is_some() {
        apply_inline(keeper, shared);
        if let Some(error) = keeper.failed() {
            op.refuse(error.clone());
            return;
        }
    }
    let segment = engine.end().segment;
    let Some(written) = engine.run(&mut std::iter::once(op), shared.applied()) else { return };
    shared.count_segments(engine.end().segment - segment);
    let (group, answers) = shared.announce(written);
    keeper.add([group]);
    apply_inline(keeper, shared);
    for answer in answers {
        answer.give(Ok(()));
    }
}

fn apply_inline(keeper: &mut Keeper, shared: &Shared) {
    match keeper.apply() {
        Ok(groups) => shared.advance(groups, keeper.applied()),
        Err(error) => shared.fail(error),
    }
}

fn check_payload(meta: &Bytes, body: &Bytes) -> Result<(), StoreError> {
    check_size(meta.len() as u64, u16::MAX.into())?;
    // Leaves room for the record's own fields and those of the answer.
    check_size(body.len() as u64, RECORD_LIMIT - (1 << 20))
}

fn documents_bytes(documents: &[Document]) -> u64 {
    let size = |document: &Document| document.key.len() + document.value.as_ref().map_or(0, Bytes::len) + 16;
    documents.iter().map(size).sum::<usize>() as u64
}

fn check_size(bytes: u64, limit: u64) -> Result<(), StoreError> {
    if bytes <= limit { Ok(()) } else { Err(StoreError::TooLarge { bytes, limit }) }
}
