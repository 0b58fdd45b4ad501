//! The load generator: keep-alive connections, each answer checked by its length, times from sending to the last byte.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::StatusCode;
use http_body_util::BodyExt as _;
use hyper::client::conn::http1::SendRequest;
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::error::Error;
use crate::talk::{Call, connect};

type Connection = SendRequest<http_body_util::Full<bytes::Bytes>>;

/// How requests are made.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// So many connections, each with its next request as soon as it has its answer.
    Closed {
        /// How many.
        connections: usize,
    },
    /// So many requests a second, whether or not the answers keep up.
    Open {
        /// How many.
        per_second: u32,
    },
}

/// A load on one address.
#[derive(Debug, Clone)]
pub struct Load {
    /// What is asked.
    pub call: Call,
    /// The length of each answer, in bytes.
    pub answer_bytes: u64,
    /// How often.
    pub shape: Shape,
    /// Before the measurement.
    pub warm_up: Duration,
    /// The measurement.
    pub measure: Duration,
}

/// What a load brought.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Answers in the measured time; parts of answers count.
    pub answers: f64,
    /// The measured time.
    pub took: Duration,
    /// From sending to the first byte of the body; sorted.
    pub first_byte: Vec<Duration>,
    /// From sending to the last byte; sorted.
    pub last_byte: Vec<Duration>,
}

const WARMING: u8 = 0;
const MEASURING: u8 = 1;
const OVER: u8 = 2;

/// What all connections share.
struct Shared {
    call: Call,
    answer_bytes: u64,
    phase: AtomicU8,
    bytes: AtomicU64,
}

/// Times of one answer.
#[derive(Clone, Copy)]
struct Times {
    first_byte: Duration,
    last_byte: Duration,
}

impl Load {
    /// Applies the load. `mark` is called at the start and at the end of the measured time.
    pub async fn run(
        &self,
        to: SocketAddr,
        mut mark: impl FnMut() -> Result<(), Error>,
    ) -> Result<Outcome, Error> {
        let shared = Arc::new(Shared {
            call: self.call.clone(),
            answer_bytes: self.answer_bytes,
            phase: AtomicU8::new(WARMING),
            bytes: AtomicU64::new(0),
        });
        let mut tasks = JoinSet::new();
        match self.shape {
            Shape::Closed { connections } => {
                for number in 0..connections {
                    // Spread over the warm-up, so that answers that take their time do not all end at once.
                    let delay = share(self.warm_up / 2, number, connections);
                    tasks.spawn(closed(shared.clone(), to, delay));
                }
            }
            Shape::Open { per_second } => drop(tasks.spawn(open(shared.clone(), to, per_second))),
        }
        let bytes = || shared.bytes.load(Ordering::Relaxed);
        wait(&mut tasks, self.warm_up).await?;
        shared.phase.store(MEASURING, Ordering::Relaxed);
        mark()?;
        let (bytes_before, began) = (bytes(), Instant::now());
        wait(&mut tasks, self.measure).await?;
        let (bytes_after, took) = (bytes(), began.elapsed());
        mark()?;
        shared.phase.store(OVER, Ordering::Relaxed);
        let mut times = Vec::new();
        while let Some(ended) = tasks.join_next().await {
            times.append(&mut flat(ended)?);
        }
        let answers = float(bytes_after - bytes_before) / float(self.answer_bytes);
        let sorted = |of: fn(&Times) -> Duration| {
            let mut sorted: Vec<Duration> = times.iter().map(of).collect();
            sorted.sort_unstable();
            sorted
        };
        Ok(Outcome {
            answers,
            took,
            first_byte: sorted(|times| times.first_byte),
            last_byte: sorted(|times| times.last_byte),
        })
    }
}

/// Waits, unless a connection breaks before.
async fn wait(tasks: &mut JoinSet<Result<Vec<Times>, Error>>, time: Duration) -> Result<(), Error> {
    tokio::select! {
        () = sleep(time) => Ok(()),
        Some(ended) = tasks.join_next() => {
            flat(ended)?;
            Err(Error::WrongAnswer("a connection ended before its time".to_owned()))
        }
    }
}

fn flat<T>(ended: Result<Result<T, Error>, tokio::task::JoinError>) -> Result<T, Error> {
    ended.unwrap_or_else(|error| Err(Error::WrongAnswer(format!("the load generator failed: {error}"))))
}

async fn closed(shared: Arc<Shared>, to: SocketAddr, delay: Duration) -> Result<Vec<Times>, Error> {
    let mut times = Vec::new();
    sleep(delay).await;
    let mut connection = connect(to).await?;
    while shared.phase() != OVER {
        times.extend(shared.ask(&mut connection).await?);
    }
    Ok(times)
}

async fn open(shared: Arc<Shared>, to: SocketAddr, per_second: u32) -> Result<Vec<Times>, Error> {
    // The connection that was used last is used next, as the SDKs' pools do.
    let idle: Arc<Mutex<Vec<Connection>>> = Arc::default();
    let mut tick = interval(Duration::from_secs(1) / per_second.max(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut asking = JoinSet::new();
    let mut times = Vec::new();
    while shared.phase() != OVER {
        tick.tick().await;
        let (shared, idle) = (shared.clone(), idle.clone());
        asking.spawn(async move {
            let free = idle.lock().await.pop();
            let mut connection = match free {
                Some(connection) => connection,
                None => connect(to).await?,
            };
            let times = shared.ask(&mut connection).await?;
            idle.lock().await.push(connection);
            Ok(times)
        });
        while let Some(ended) = asking.try_join_next() {
            times.extend(flat(ended)?);
        }
    }
    while let Some(ended) = asking.join_next().await {
        times.extend(flat(ended)?);
    }
    Ok(times)
}

impl Shared {
    fn phase(&self) -> u8 {
        self.phase.load(Ordering::Relaxed)
    }

    /// One call, to the last byte of its answer. Its times, if they fall into the measured time.
    async fn ask(&self, connection: &mut Connection) -> Result<Option<Times>, Error> {
        connection.ready().await?;
        let request = self.call.request();
        let sent = Instant::now();
        let response = connection.send_request(request).await?;
        if response.status() != StatusCode::OK {
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            let text = String::from_utf8_lossy(&body).chars().take(300).collect::<String>();
            return Err(Error::WrongAnswer(format!("{status}: {text}")));
        }
        let mut body = response.into_body();
        let mut first_byte = None;
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            first_byte.get_or_insert_with(|| sent.elapsed());
            let bytes = frame?.data_ref().map_or(0, |data| data.len() as u64);
            length += bytes;
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        let last_byte = sent.elapsed();
        if length != self.answer_bytes {
            let wanted = self.answer_bytes;
            return Err(Error::WrongAnswer(format!("an answer of {length} bytes instead of {wanted}")));
        }
        let times = Times { first_byte: first_byte.unwrap_or(last_byte), last_byte };
        Ok((self.phase() == MEASURING).then_some(times))
    }
}

impl Outcome {
    /// The time that a share of all answers (in thousandths) did not exceed.
    pub fn quantile(sorted: &[Duration], permille: usize) -> Duration {
        let at = (sorted.len() * permille / 1000).min(sorted.len().saturating_sub(1));
        sorted.get(at).copied().unwrap_or_default()
    }
}

fn share(whole: Duration, number: usize, of: usize) -> Duration {
    let of = u32::try_from(of.max(1)).unwrap_or(u32::MAX);
    whole / of * u32::try_from(number).unwrap_or(u32::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "bytes of a few seconds are far below 2^52")]
fn float(count: u64) -> f64 {
    count as f64
}
