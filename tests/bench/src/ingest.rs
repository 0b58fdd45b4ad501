//! Durable acceptance: the store beside the same bytes through a bare append with one fdatasync a group, on the same
//! disk and with the same tasks waiting; and what a million queued requests cost in memory and after a crash.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use offpeak_core::words::{KeptHeaders, LaneKey, Millis, SlaClass, Timestamp};
use offpeak_store::{NewRequest, Options, Store, body_hash};
use serde::Serialize;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use crate::error::{Context, Error};

/// The hidden subcommand with which [`queued_memory`] starts this program a second time; it calls [`hold`].
pub const HOLD: &str = "ingest-hold";

/// Bytes of a request's body.
const BODY: usize = 2048;
/// What the store's log adds to a body; the bare append writes as much.
const RECORD: usize = BODY + 98;
/// Rounds of each kind, in turns; the medians count.
const ROUNDS: usize = 5;
/// Before a round is measured.
const WARM_UP: Duration = Duration::from_millis(500);
/// Tasks that fill the queue.
const FILLERS: u64 = 256;

/// Acknowledged requests a second.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Report {
    /// Tasks that append, each waiting for its acknowledgement before it goes on.
    pub writers: usize,
    /// Through a bare append and fdatasync.
    pub bare_per_s: f64,
    /// Through the store.
    pub store_per_s: f64,
    /// The store's in relation to the bare one.
    pub ratio: f64,
}

/// What queued requests cost.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Queued {
    /// How many, of 2 KiB each.
    pub requests: u64,
    /// Resident memory of the process that appended them, in bytes.
    pub resident: u64,
    /// Of that, memory of its own: not the file pages that it maps.
    pub own: u64,
    /// From the start of the opening after a SIGKILL until the store was ready.
    pub reopened: Duration,
    /// Records that were read from the log for that.
    pub replayed: u64,
    /// Memory of its own of the process that opened it again, in bytes.
    pub own_after: u64,
    /// Bytes of the index.
    pub index_bytes: u64,
    /// Bytes of the log.
    pub log_bytes: u64,
}

/// Compares the store with the bare disk: so many seconds a round, so many writers. Uses a temporary folder under
/// `folder`, which decides the disk.
pub fn run(folder: &Path, seconds: u64, writers: usize) -> Result<Report, Error> {
    let window = Duration::from_secs(seconds);
    let (mut bare, mut store) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let place = tempfile::tempdir_in(folder).context("making a temporary folder")?;
        bare.push(bare_round(&place.path().join("log"), writers, window)?);
        let place = tempfile::tempdir_in(folder).context("making a temporary folder")?;
        store.push(store_round(place.path(), writers, window)?);
    }
    let (bare_per_s, store_per_s) = (crate::report::median(bare), crate::report::median(store));
    Ok(Report { writers, bare_per_s, store_per_s, ratio: store_per_s / bare_per_s })
}

fn runtime() -> Result<Runtime, Error> {
    Builder::new_multi_thread().enable_all().build().context("starting tokio")
}

/// Counts what tasks do between the end of the warm-up and the end of the window.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn count(done: &AtomicU64, stop: &AtomicBool, window: Duration) -> f64 {
    thread::sleep(WARM_UP);
    let (before, begun) = (done.load(Ordering::Relaxed), Instant::now());
    thread::sleep(window);
    let (after, took) = (done.load(Ordering::Relaxed), begun.elapsed());
    stop.store(true, Ordering::Relaxed);
    (after - before) as f64 / took.as_secs_f64()
}

fn store_round(folder: &Path, writers: usize, window: Duration) -> Result<f64, Error> {
    let runtime = runtime()?;
    let (store, _) = Store::open(Options::new(folder), Timestamp(0))?;
    let lane = runtime.block_on(store.lane(&lane_key()))?;
    let (done, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    for writer in 0..writers {
        let (store, done, stop) = (store.clone(), done.clone(), stop.clone());
        runtime.spawn(async move {
            let request = request(lane, writer as u64);
            while !stop.load(Ordering::Relaxed) && store.append(request.clone()).await.is_ok() {
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let rate = count(&done, &stop, window);
    runtime.block_on(store.close())?;
    Ok(rate)
}

/// The bare group commit: what arrives during one sync goes into the next.
#[derive(Debug, Default)]
struct Bare {
    waiting: Mutex<Waiting>,
    ready: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    records: Vec<(Bytes, oneshot::Sender<()>)>,
    is_over: bool,
}

impl Bare {
    async fn append(&self, record: Bytes) -> bool {
        let (reply, answer) = oneshot::channel();
        let was_empty = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.records.push((record, reply));
            waiting.records.len() == 1
        };
        if was_empty {
            self.ready.notify_one();
        }
        answer.await.is_ok()
    }

    fn stop(&self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).is_over = true;
        self.ready.notify_one();
    }

    fn write_groups(&self, mut file: File) -> std::io::Result<()> {
        let mut group = Vec::new();
        let mut buffer = Vec::new();
        loop {
            {
                let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                let mut waiting = self
                    .ready
                    .wait_while(waiting, |waiting| waiting.records.is_empty() && !waiting.is_over)
                    .unwrap_or_else(PoisonError::into_inner);
                if waiting.records.is_empty() {
                    return Ok(());
                }
                std::mem::swap(&mut waiting.records, &mut group);
            }
            buffer.clear();
            for (record, _) in &group {
                buffer.extend_from_slice(record);
            }
            file.write_all(&buffer)?;
            file.sync_data()?;
            for (_, reply) in group.drain(..) {
                // A writer that has stopped waits no more.
                let _told = reply.send(());
            }
        }
    }
}

fn bare_round(path: &Path, writers: usize, window: Duration) -> Result<f64, Error> {
    let runtime = runtime()?;
    let file = File::create(path).context("making the bare log")?;
    let bare = Arc::new(Bare::default());
    let writing = {
        let bare = bare.clone();
        thread::spawn(move || bare.write_groups(file))
    };
    let (done, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    for writer in 0..writers {
        let (bare, done, stop) = (bare.clone(), done.clone(), stop.clone());
        let record = Bytes::from(text(writer as u64, RECORD));
        runtime.spawn(async move {
            while !stop.load(Ordering::Relaxed) && bare.append(record.clone()).await {
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let rate = count(&done, &stop, window);
    bare.stop();
    match writing.join() {
        Ok(result) => result.context("writing the bare log")?,
        Err(_) => return Err(Error::WrongAnswer("the bare log's thread panicked".to_owned())),
    }
    Ok(rate)
}

/// Queues so many requests in a process of its own, ends it with SIGKILL, and opens the store again.
pub fn queued_memory(folder: &Path, requests: u64) -> Result<Queued, Error> {
    let place = tempfile::tempdir_in(folder).context("making a temporary folder")?;
    let program = std::env::current_exe().context("finding this program")?;
    let mut child = Command::new(program)
        .arg(HOLD)
        .arg(place.path())
        .arg(requests.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting this program again")?;
    let mut line = String::new();
    if let Some(out) = child.stdout.take() {
        BufReader::new(out).read_line(&mut line).context("reading what it says")?;
    }
    child.kill().context("killing it")?;
    child.wait().context("waiting for it")?;
    let mut figures = line.split_whitespace().filter_map(|figure| figure.parse().ok());
    let (Some(resident), Some(own)) = (figures.next(), figures.next()) else {
        return Err(Error::WrongAnswer(format!("{HOLD} said {line:?}")));
    };
    let before = memory()?;
    let begun = Instant::now();
    let (store, recovered) = Store::open(Options::new(place.path()), Timestamp(0))?;
    let reopened = begun.elapsed();
    let own_after = memory()?.1.saturating_sub(before.1);
    let found: u64 =
        recovered.lanes.iter().flat_map(|lane| &lane.extents).map(|extent| u64::from(extent.count)).sum();
    if found != requests {
        return Err(Error::WrongAnswer(format!("{found} of {requests} requests were there after the crash")));
    }
    let stats = store.stats();
    Ok(Queued {
        requests,
        resident,
        own,
        reopened,
        replayed: recovered.replayed,
        own_after,
        index_bytes: stats.index_bytes,
        log_bytes: stats.log_bytes,
    })
}

/// Queues requests, says how much memory that takes, and waits to be killed.
pub fn hold(folder: &Path, requests: u64) -> Result<(), Error> {
    let runtime = runtime()?;
    let (store, _) = Store::open(Options::new(folder), Timestamp(0))?;
    let lane = runtime.block_on(store.lane(&lane_key()))?;
    let mut fillers = Vec::new();
    for filler in 0..FILLERS {
        let store = store.clone();
        let share = requests / FILLERS + u64::from(filler < requests % FILLERS);
        fillers.push(runtime.spawn(async move {
            for number in 0..share {
                store.append(request(lane, filler << 32 | number)).await?;
            }
            Ok::<(), Error>(())
        }));
    }
    for filler in fillers {
        runtime.block_on(filler).map_err(|error| Error::WrongAnswer(error.to_string()))??;
    }
    let (resident, own) = memory()?;
    let mut out = std::io::stdout();
    writeln!(out, "{resident} {own}").and_then(|()| out.flush()).context("reporting")?;
    loop {
        thread::park();
    }
}

/// Resident memory of this process in bytes: all of it, and what is its own.
fn memory() -> Result<(u64, u64), Error> {
    let status = fs::read_to_string("/proc/self/status").context("reading /proc/self/status")?;
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or_default()
    };
    Ok((kib("VmRSS:") << 10, kib("RssAnon:") << 10))
}

fn lane_key() -> LaneKey {
    LaneKey {
        backend: "openai".into(),
        endpoint: "/v1/chat/completions".into(),
        model: "gpt-5-mini".into(),
        tenant: "bench".into(),
        offer: "batch".into(),
        sla_class: SlaClass::of(Millis::from_hours(24)),
        name: "".into(),
        api_key: "".into(),
        headers: KeptHeaders::default(),
    }
}

fn request(lane: offpeak_core::words::LaneId, number: u64) -> NewRequest {
    let body = Bytes::from(text(number, BODY));
    NewRequest {
        lane,
        arrived: Timestamp(number),
        deadline: Timestamp(number).after(Millis::from_hours(24)),
        tokens: 500,
        body_hash: body_hash(&body),
        idempotency: None,
        flags: 0,
        meta: Bytes::new(),
        body,
    }
}

/// Text that no file system compresses to nothing, different for every number.
fn text(number: u64, bytes: usize) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut text = Vec::with_capacity(bytes + 8);
    while text.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        text.extend(state.to_le_bytes().map(|byte| b' ' + byte % 95));
    }
    text.truncate(bytes);
    text
}
