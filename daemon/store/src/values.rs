//! What goes into the store and comes out of it.

use bytes::Bytes;
use offpeak_core::extent::{Extent, Range};
use offpeak_core::outcome::Ending;
use offpeak_core::words::{
    BackendId, BatchId, Endpoint, KeptHeaders, LaneId, LaneKey, ModelId, OfferName, Place, Seq, Timestamp,
};

use crate::error::StoreError;
use crate::log::Location;

/// A request to append to a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRequest {
    /// The lane.
    pub lane: LaneId,
    /// When it arrived.
    pub arrived: Timestamp,
    /// When its answer is due.
    pub deadline: Timestamp,
    /// Its estimated input tokens.
    pub tokens: u32,
    /// [`crate::body_hash`] of its body, by which a repetition is recognised.
    pub body_hash: u64,
    /// The caller's idempotency key, if it sent one.
    pub idempotency: Option<Idempotency>,
    /// How the answer is delivered; opaque to the store.
    pub flags: u8,
    /// Headers and trace; opaque to the store, less than 64 KiB.
    pub meta: Bytes,
    /// The body as the client sent it.
    pub body: Bytes,
}

/// A caller's idempotency key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Idempotency {
    /// A hash of the tenant and its key.
    pub key: [u8; 16],
    /// From then on the key may stand for another request.
    pub expires: Timestamp,
}

/// What became of a request that was to be appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// It is stored.
    New(Place),
    /// The same body came under the same key before, as this request; nothing was stored.
    Same(Place),
    /// Another body came under the same key before; nothing was stored.
    Conflict,
}

/// A batch to seal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewBatch {
    /// Where it goes.
    pub backend: BackendId,
    /// What its requests call.
    pub endpoint: Endpoint,
    /// Which model answers them.
    pub model: ModelId,
    /// How it is bought.
    pub offer: OfferName,
    /// What the callers of its requests sent that changes their meaning.
    pub headers: KeptHeaders,
    /// The requests: ranges that no batch has yet.
    pub ranges: Vec<Range>,
    /// When it was decided.
    pub created_at: Timestamp,
    /// The first state of its protocol; opaque to the store.
    pub progress: Bytes,
}

/// A batch as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchRecord {
    /// Its number.
    pub id: BatchId,
    /// Where it goes.
    pub backend: BackendId,
    /// What its requests call.
    pub endpoint: Endpoint,
    /// Which model answers them.
    pub model: ModelId,
    /// How it is bought.
    pub offer: OfferName,
    /// What the callers of its requests sent that changes their meaning.
    pub headers: KeptHeaders,
    /// The requests.
    pub ranges: Vec<Range>,
    /// When it was decided.
    pub created_at: Timestamp,
    /// How often it was advanced.
    pub version: u32,
    /// The state of its protocol; opaque to the store.
    pub progress: Bytes,
    /// How it ended, if it did.
    pub ended: Option<BatchEnd>,
}

/// How a batch ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchEnd {
    /// When.
    pub at: Timestamp,
    /// In words.
    pub ending: String,
}

/// How far a batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Its requests.
    pub total: u64,
    /// Those with an outcome.
    pub finished: u64,
}

/// Which requests to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// All of these ranges.
    Ranges(Vec<Range>),
    /// Only these.
    Places(Vec<Place>),
}

impl From<Range> for Selection {
    fn from(range: Range) -> Self {
        Self::Ranges(vec![range])
    }
}

impl From<Vec<Range>> for Selection {
    fn from(ranges: Vec<Range>) -> Self {
        Self::Ranges(ranges)
    }
}

impl From<Vec<Place>> for Selection {
    fn from(places: Vec<Place>) -> Self {
        Self::Places(places)
    }
}

/// Some of the selected requests.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// Requests without an outcome, in the selection's order.
    pub entries: Vec<Entry>,
    /// Those whose records do not have the checksum that they were written with: they cannot be had any more.
    pub damaged: Vec<Damaged>,
    /// What is left to read; none at the end.
    pub rest: Option<Selection>,
}

/// A request whose record in the log is damaged.
#[derive(Debug, Clone)]
pub struct Damaged {
    /// What the index knows of it.
    pub waiting: Waiting,
    /// Where its record is.
    pub why: StoreError,
}

/// A request as it stands in a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it stands.
    pub place: Place,
    /// Where it stood first; the request's identity.
    pub origin: Place,
    /// Attempts made before it came to stand here.
    pub attempts: u16,
    /// When the request arrived.
    pub arrived: Timestamp,
    /// When this attempt's answer is due.
    pub deadline: Timestamp,
    /// Before this it should not be sent.
    pub not_before: Timestamp,
    /// Its estimated input tokens.
    pub tokens: u32,
    /// The hash of its body, as it was given.
    pub body_hash: u64,
    /// As they were given.
    pub flags: u8,
    /// As it was given.
    pub meta: Bytes,
    /// As it was given.
    pub body: Bytes,
}

/// How an attempt ended and what follows from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewOutcome {
    /// Which entry.
    pub place: Place,
    /// Attempts made by now, this one included if it was sent.
    pub attempts: u16,
    /// The batch it was in, if it was in one.
    pub batch: Option<BatchId>,
    /// When.
    pub finished_at: Timestamp,
    /// How.
    pub ending: Ending,
    /// What follows.
    pub verdict: Verdict,
    /// Headers of the answer; opaque to the store, less than 64 KiB; dropped when requeued.
    pub meta: Bytes,
    /// The answer; dropped when requeued.
    pub body: Bytes,
    /// Written if the outcome counts, and only together with it. Less than 32 KiB.
    pub documents: Vec<Document>,
}

/// What a document is about. The numbers are stored: none is ever given to another kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A file that a client uploaded.
    File = 1,
    /// What a client submitted as one piece: its items are requests in lanes.
    Job = 2,
    /// A file that a client uploads in parts.
    Upload = 3,
    /// What is known of a background response beyond the request that it is.
    Response = 4,
    /// How long a way of buying took lately.
    Turnaround = 5,
    /// Whether a backend takes work.
    Breaker = 6,
    /// What one outcome cost.
    Ledger = 7,
    /// A tenant's API key, as a keyed hash, and what it may do.
    ApiKey = 8,
    /// What is to be told of a budget, until it is, and which share was told of.
    Budget = 9,
    /// What has been learnt about a model's tokens.
    Calibration = 10,
    /// The failed attempts of a request.
    Attempts = 20,
    /// An offer that a provider refused to sell for a model.
    LostOffer = 21,
    /// A request that was sent by itself, outside of any batch, and has no outcome yet.
    Sent = 30,
    /// A part of a file that is uploaded in parts.
    Part = 11,
    /// What a job cost, once it has ended.
    JobCost = 31,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 15] = [
        Self::File,
        Self::Job,
        Self::Upload,
        Self::Response,
        Self::Turnaround,
        Self::Breaker,
        Self::Ledger,
        Self::ApiKey,
        Self::Budget,
        Self::Calibration,
        Self::Part,
        Self::Attempts,
        Self::LostOffer,
        Self::JobCost,
        Self::Sent,
    ];

    pub(crate) const fn number(self) -> u8 {
        self as u8
    }

    pub(crate) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }
}

/// A small thing that the rest of the daemon keeps under a key: it outlives the segments, until it is removed.
/// Keys that grow make cheap writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// What it is about.
    pub kind: Kind,
    /// Under which it is found; documents of a kind are in the order of their keys.
    pub key: Bytes,
    /// What is kept, opaque to the store; `None` removes what stands there.
    pub value: Option<Bytes>,
}

/// From which end documents are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The smallest key first.
    Ascending,
    /// The largest key first.
    Descending,
}

/// What follows from an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The request is finished: the caller gets this.
    Final,
    /// It goes again.
    Requeue {
        /// At the end of this lane.
        lane: LaneId,
        /// The new attempt's answer is due then.
        deadline: Timestamp,
        /// It should not be sent before.
        not_before: Timestamp,
    },
}

/// What became of an outcome that was to be recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recorded {
    /// It counts.
    New {
        /// The request that it is about.
        origin: Place,
        /// Where the request stands now, if it goes again.
        requeued: Option<Place>,
    },
    /// The entry has an outcome already; nothing changed.
    Duplicate,
    /// There is no such entry; nothing changed.
    Unknown,
}

/// How a request stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It waits or is under way.
    Waiting {
        /// Its latest entry.
        current: Place,
        /// Attempts made before.
        attempts: u16,
    },
    /// It is finished.
    Final(Outcome),
}

/// A request's final outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The entry that ended.
    pub place: Place,
    /// How.
    pub ending: Ending,
    /// Attempts made.
    pub attempts: u16,
    /// The batch it was in, if it was in one.
    pub batch: Option<BatchId>,
    /// When.
    pub finished_at: Timestamp,
    /// As it was given.
    pub meta: Bytes,
    /// Where the answer's body is.
    pub body: BodyAt,
}

/// How many of some requests are finished, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Answered with a 2xx.
    pub succeeded: u64,
    /// Finished in any other way.
    pub failed: u64,
    /// Not finished.
    pub unfinished: u64,
}

/// A request that has no final outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unfinished {
    /// Its identity.
    pub origin: Place,
    /// Where it stands now.
    pub current: Place,
    /// Attempts made before.
    pub attempts: u16,
}

/// An entry without an outcome, as far as the index knows it: without its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// It alone: where it stands, its size, and when its answer is due there.
    pub extent: Extent,
    /// Where the request stood first; its identity.
    pub origin: Place,
    /// Attempts made before it came to stand here.
    pub attempts: u16,
    /// When its caller is to have its answer. What was hurried on its way is due earlier where it stands.
    pub due: Timestamp,
}

impl Waiting {
    /// Where it stands.
    #[must_use]
    pub const fn place(&self) -> Place {
        Place { lane: self.extent.lane, seq: self.extent.first }
    }
}

/// A finished request with its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Its identity.
    pub origin: Place,
    /// The request's meta, as it was given.
    pub request_meta: Bytes,
    /// How it ended.
    pub outcome: Outcome,
    /// The answer.
    pub body: Bytes,
}

/// Some of the finished requests of some ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinishedChunk {
    /// In the ranges' order.
    pub finished: Vec<Finished>,
    /// Attempts that were followed by another one, of these requests and of the unfinished ones between them: where each
    /// stood, and when it was over.
    pub retried: Vec<(Place, Timestamp)>,
    /// What is left to look through; none at the end.
    pub rest: Option<Vec<Range>>,
}

/// Where the body of an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyAt(pub(crate) Location);

impl BodyAt {
    /// No answer: what tests of the store's users begin with.
    #[must_use]
    pub const fn nowhere() -> Self {
        Self(Location { segment: 0, offset: 0, head: 0, meta: 0, body: 0 })
    }

    /// Its length in bytes.
    #[must_use]
    pub const fn len(self) -> u32 {
        self.0.body
    }

    /// It has no bytes.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0.body == 0
    }
}

/// What was found when the store was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// All lanes.
    pub lanes: Vec<LaneState>,
    /// Batches that have not ended.
    pub open_batches: Vec<BatchRecord>,
    /// Records of the log that the index did not have yet.
    pub replayed: u64,
    /// Bytes of a write that a crash interrupted; nobody was told that they were stored.
    pub cut_off_bytes: u64,
    /// Damaged parts of the log; what stood there is lost.
    pub quarantined: Vec<Quarantined>,
}

/// A lane as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneState {
    /// Its number.
    pub id: LaneId,
    /// What its requests have in common.
    pub key: LaneKey,
    /// The next position.
    pub next: Seq,
    /// The first position that no batch has.
    pub head: Seq,
    /// What no batch has, in order, up to 512 entries each. A gap means that what stood there is sealed or gone.
    pub extents: Vec<Extent>,
}

/// A damaged part of the log. A copy is in the folder quarantine/.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quarantined {
    /// The segment file's number.
    pub segment: u32,
    /// Where the damage begins, in bytes.
    pub offset: u32,
    /// How long it is; 0 if the whole file is gone.
    pub bytes: u64,
}

/// What was looked at, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Audit {
    /// The schema's version.
    pub schema: u32,
    /// Lanes.
    pub lanes: u64,
    /// Requests that the index has.
    pub requests: u64,
    /// Of these and of those that go again: without an outcome.
    pub unfinished: u64,
    /// Answers that the index has.
    pub answers: u64,
    /// Batches that have not ended.
    pub open_batches: u64,
    /// Segment files.
    pub segments: u64,
    /// Records of the log that have their checksums.
    pub records: u64,
    /// Of these: what the index gets at the next start, as after a crash.
    pub behind_index: u64,
    /// Bytes of a write that a crash interrupted; the next start cuts them off, nothing acknowledged is in them.
    pub torn_bytes: u64,
    /// Segment files that the next start removes.
    pub leftovers: u64,
    /// Bytes of the log.
    pub log_bytes: u64,
    /// Bytes of the index.
    pub index_bytes: u64,
    /// What is wrong, in words; empty for a healthy store.
    pub findings: Vec<String>,
    /// Further findings that were only counted.
    pub more_findings: u64,
}

impl Audit {
    /// Nothing is wrong.
    #[must_use]
    pub const fn is_healthy(&self) -> bool {
        self.findings.is_empty()
    }
}

/// What is wrong with a store: the first findings in words, the others counted.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) texts: Vec<String>,
    pub(crate) more: u64,
}

impl Findings {
    /// So many are told in words.
    const MOST: usize = 100;

    pub(crate) fn add(&mut self, text: String) {
        if self.texts.len() < Self::MOST {
            self.texts.push(text);
        } else {
            self.more += 1;
        }
    }
}

/// The size of an index file before and after room was given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compacted {
    /// Bytes before.
    pub before: u64,
    /// Bytes after.
    pub after: u64,
}

/// A lane in which nothing is any more, nor in a batch of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdleLane {
    /// Its number.
    pub id: LaneId,
    /// The next position when it was found to be idle.
    pub next: Seq,
}

/// What a sweep removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// Segment files.
    pub segments: u32,
    /// Their bytes.
    pub bytes: u64,
    /// Ended batches.
    pub batches: u32,
}

/// How the store does. Figures since it was opened, except where they say what is there now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Bytes in segment files now.
    pub log_bytes: u64,
    /// Bytes of the index now.
    pub index_bytes: u64,
    /// Segment files now.
    pub segments: u32,
    /// Records written.
    pub records: u64,
    /// Groups written, each with one sync.
    pub groups: u64,
    /// Records in the last group.
    pub last_group: u32,
    /// Records in the largest group.
    pub largest_group: u32,
    /// How long the last sync took, in microseconds.
    pub last_sync_micros: u64,
    /// Groups that the index does not have yet.
    pub unapplied: u64,
}
