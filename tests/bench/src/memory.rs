//! Resident memory with much waiting: a million queued requests, ten thousand held calls; and how soon the daemon is
//! ready again after a SIGKILL.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::StatusCode;
use http::header::HeaderValue;
use http_body_util::BodyExt as _;
use offpeak_core::words::{KeptHeaders, LaneId, LaneKey, Millis, SlaClass, Timestamp};
use offpeak_store::{Appended, NewRequest, Options, Store, body_hash};
use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::error::{Context, Error};
use crate::process::Memory;
use crate::report::{Table, Target, figure, megabytes, thousands};
use crate::talk::{Call, KEY, PATH, chat_body, connect, wait_for_metric};
use crate::targets::{Daemon, Setup};

/// The SLA of everything that waits here.
const SLA: &str = "24h";

/// The same as a length of time.
const WITHIN: Millis = Millis::from_hours(24);

/// Bytes of a queued request.
const BODY_BYTES: usize = 2048;

/// Requests in a lane: fewer than fill a batch, so that no lane leaves.
const PER_LANE: u64 = 40_000;

/// Requests that are appended at once.
const APPENDS: usize = 1024;

/// Requests that are handed in over HTTP before the daemon is killed.
const TICKETS: u64 = 4_000;

/// Connections on which they are.
const TICKET_CONNECTIONS: u64 = 32;

/// Calls whose connections are being made at once.
const CONNECTING: usize = 128;

/// How long something gets to come about.
const LIMIT: Duration = Duration::from_mins(2);

/// The metric of what waits.
const WAITING: &str = "offpeak_waiting_requests";

/// The metric of calls that are held.
const HELD: &str = "offpeak_held_calls";

/// A daemon just started.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Start {
    /// Requests that wait.
    pub queued: u64,
    /// From the start of the process until `/readyz` answered, in milliseconds.
    pub ready_ms: f64,
    /// Its memory then.
    pub memory: Memory,
}

/// What was found about queued requests.
#[derive(Debug, Clone, Serialize)]
pub struct Queued {
    /// Requests appended through the store a second, before the daemon was started.
    pub appended_per_second: f64,
    /// With nothing queued.
    pub empty: Start,
    /// After the appending process was killed.
    pub after_writer_killed: Start,
    /// After the daemon was killed that had just accepted more requests.
    pub after_daemon_killed: Start,
}

/// What was found about held calls.
#[derive(Debug, Clone, Serialize)]
pub struct Held {
    /// Calls that were held.
    pub calls: u64,
    /// Without any.
    pub before: Memory,
    /// With all of them.
    pub after: Memory,
}

/// Queues requests, kills whoever holds them, and looks at the daemon that finds them.
pub async fn queued(count: u64, setup: &Setup<'_>) -> Result<Queued, Error> {
    let empty = Start::look(&setup.start().await?, 0).await?;
    let appended_per_second = fill_in_a_process(count, setup.store)?;
    let daemon = setup.start().await?;
    let after_writer_killed = Start::look(&daemon, count).await?;
    hand_in(daemon.data).await?;
    daemon.process.kill()?;
    let daemon = setup.start().await?;
    let after_daemon_killed = Start::look(&daemon, count + TICKETS).await?;
    Ok(Queued { appended_per_second, empty, after_writer_killed, after_daemon_killed })
}

impl Start {
    async fn look(daemon: &Daemon, queued: u64) -> Result<Self, Error> {
        wait_for_metric(daemon.admin, WAITING, queued, LIMIT).await?;
        let ready_ms = daemon.ready_after.as_secs_f64() * 1000.0;
        Ok(Self { queued, ready_ms, memory: daemon.process.memory()? })
    }
}

/// Hands requests in for tickets, on several connections at once.
async fn hand_in(to: SocketAddr) -> Result<(), Error> {
    let call = Call::chat(BODY_BYTES, false)
        .with("x-offpeak-sla", HeaderValue::from_static(SLA))
        .with("prefer", HeaderValue::from_static("respond-async"));
    let mut clients = JoinSet::new();
    for _ in 0..TICKET_CONNECTIONS {
        let call = call.clone();
        clients.spawn(async move {
            let mut connection = connect(to).await?;
            for _ in 0..TICKETS / TICKET_CONNECTIONS {
                connection.ready().await?;
                let response = connection.send_request(call.request()).await?;
                let status = response.status();
                let body = response.into_body().collect().await?.to_bytes();
                if status != StatusCode::ACCEPTED {
                    return Err(Error::WrongAnswer(format!("{status}: {}", String::from_utf8_lossy(&body))));
                }
            }
            Ok(())
        });
    }
    all(clients).await
}

async fn all(mut tasks: JoinSet<Result<(), Error>>) -> Result<(), Error> {
    while let Some(ended) = tasks.join_next().await {
        ended
            .unwrap_or_else(|error| Err(Error::WrongAnswer(format!("the load generator failed: {error}"))))?;
    }
    Ok(())
}

/// Has a process of its own fill the store, and kills it as soon as it has. Returns requests a second.
fn fill_in_a_process(count: u64, folder: &Path) -> Result<f64, Error> {
    let program = std::env::current_exe().context("looking for this program's own file")?;
    let mut child = Filler(
        Command::new(program)
            .arg("fill")
            .arg(folder)
            .arg(count.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the filling process")?,
    );
    let mut line = String::new();
    if let Some(out) = child.0.stdout.take() {
        BufReader::new(out).read_line(&mut line).context("waiting for the filling process")?;
    }
    line.trim().parse().map_err(|_| Error::WrongAnswer(format!("the filling process said {line:?}")))
}

/// Ends with SIGKILL, always.
struct Filler(Child);

impl Drop for Filler {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Appends requests to a store as the daemon would, over so many lanes that none is full; says so and waits for its end.
pub async fn fill(folder: &Path, count: u64) -> Result<(), Error> {
    let (store, _) = Store::open(Options::new(folder), now())?;
    let lanes = count.div_ceil(PER_LANE);
    let began = Instant::now();
    for number in 0..lanes {
        let model = format!("gpt-5-mini-{number}");
        let lane = store.lane(&lane_key(&model)).await?;
        let body = Bytes::from(chat_body(&model, BODY_BYTES, false));
        append(&store, lane, body, PER_LANE.min(count - number * PER_LANE)).await?;
    }
    println!("{}", float(count) / began.elapsed().as_secs_f64());
    std::future::pending().await
}

async fn append(store: &Store, lane: LaneId, body: Bytes, count: u64) -> Result<(), Error> {
    let room = Arc::new(Semaphore::new(APPENDS));
    let mut tasks = JoinSet::new();
    let hash = body_hash(&body);
    for _ in 0..count {
        let Ok(place) = room.clone().acquire_owned().await else { break };
        let arrived = now();
        let request = NewRequest {
            lane,
            arrived,
            deadline: arrived.after(WITHIN),
            tokens: u32::try_from(body.len() / 4).unwrap_or(u32::MAX),
            body_hash: hash,
            idempotency: None,
            flags: 0,
            meta: Bytes::new(),
            body: body.clone(),
        };
        let store = store.clone();
        tasks.spawn(async move {
            let appended = store.append(request).await?;
            drop(place);
            match appended {
                Appended::New(_) => Ok(()),
                other => Err(Error::WrongAnswer(format!("an append gave {other:?}"))),
            }
        });
        while let Some(ended) = tasks.try_join_next() {
            ended.unwrap_or(Ok(()))?;
        }
    }
    all(tasks).await
}

fn lane_key(model: &str) -> LaneKey {
    LaneKey {
        backend: "openai".into(),
        endpoint: PATH.into(),
        model: model.into(),
        tenant: "bench".into(),
        offer: "batch".into(),
        sla_class: SlaClass::of(WITHIN),
        name: "".into(),
        api_key: "".into(),
        headers: KeptHeaders::default(),
    }
}

fn now() -> Timestamp {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX))
}

#[expect(clippy::cast_precision_loss, reason = "a count of requests is far below 2^52")]
fn float(count: u64) -> f64 {
    count as f64
}

/// Has calls held, each on a connection of its own.
pub async fn held(calls: u64, setup: &Setup<'_>) -> Result<Held, Error> {
    let daemon = setup.start().await?;
    // One call before, so that what the first one needs is there.
    let mut first = hold(daemon.data).await?;
    let mut answer = vec![0; 1000];
    tokio::select! {
        held = wait_for_metric(daemon.admin, HELD, 1, LIMIT) => held?,
        read = first.read(&mut answer) => {
            answer.truncate(read.context("reading an answer")?);
            let answer = String::from_utf8_lossy(&answer).into_owned();
            return Err(Error::WrongAnswer(format!("a call was answered instead of held: {answer}")));
        }
    }
    drop(first);
    wait_for_metric(daemon.admin, HELD, 0, LIMIT).await?;
    let before = daemon.process.memory()?;
    let room = Arc::new(Semaphore::new(CONNECTING));
    let mut connecting = JoinSet::new();
    for _ in 0..calls {
        let Ok(place) = room.clone().acquire_owned().await else { break };
        let to = daemon.data;
        connecting.spawn(async move {
            let connection = hold(to).await;
            drop(place);
            connection
        });
    }
    let mut open = Vec::new();
    while let Some(ended) = connecting.join_next().await {
        let connection =
            ended.map_err(|error| Error::WrongAnswer(format!("the load generator failed: {error}")))?;
        open.push(connection?);
    }
    wait_for_metric(daemon.admin, HELD, calls, LIMIT).await?;
    let after = daemon.process.memory()?;
    Ok(Held { calls, before, after })
}

/// Makes a call that will be held, and does not wait for its answer.
async fn hold(to: SocketAddr) -> Result<TcpStream, Error> {
    let body = chat_body(crate::talk::MODEL, BODY_BYTES, false);
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n\
         x-offpeak-sla: {SLA}\r\nuser-agent: OpenAI/Python 2.8.0\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = TcpStream::connect(to).await.context("connecting to the daemon")?;
    stream.write_all(format!("{head}{body}").as_bytes()).await.context("writing a request")?;
    Ok(stream)
}

impl Queued {
    /// The figures as Markdown.
    pub fn markdown(&self) -> String {
        let mut table = Table::new([
            "the daemon, just started",
            "queued requests of 2 KB",
            "resident MB",
            "peak MB",
            "ready after ms",
        ]);
        let starts = [
            ("on an empty store", self.empty),
            ("after SIGKILL of the process that appended them", self.after_writer_killed),
            ("after SIGKILL of the daemon that took more of them", self.after_daemon_killed),
        ];
        for (what, start) in starts {
            table.row([
                what.to_owned(),
                thousands(float(start.queued)),
                figure(megabytes(start.memory.resident)),
                figure(megabytes(start.memory.peak)),
                thousands(start.ready_ms),
            ]);
        }
        table.markdown()
    }

    /// What was wanted of these figures.
    pub fn targets(&self) -> Vec<Target> {
        let starts = [self.after_writer_killed, self.after_daemon_killed];
        let most = starts.iter().map(|start| start.memory.peak).max().unwrap_or_default();
        let longest = starts.iter().map(|start| start.ready_ms).fold(0.0, f64::max);
        vec![
            Target::at_most("1,000,000 queued, peak resident", megabytes(most), 100.0, "MB"),
            Target::at_most("ready again after a SIGKILL", longest, 2000.0, "ms"),
        ]
    }
}

impl Held {
    /// The figures as Markdown.
    pub fn markdown(&self) -> String {
        let mut table = Table::new(["held calls of 2 KB", "resident MB", "peak MB"]);
        for (calls, memory) in [(0, self.before), (self.calls, self.after)] {
            let row =
                [thousands(float(calls)), figure(megabytes(memory.resident)), figure(megabytes(memory.peak))];
            table.row(row);
        }
        table.markdown()
    }

    /// What was wanted of these figures.
    pub fn targets(&self) -> Vec<Target> {
        vec![Target::at_most("10,000 held calls, resident", megabytes(self.after.resident), 300.0, "MB")]
    }
}
