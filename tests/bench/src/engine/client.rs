//! A client that has many calls to make, and makes so many of them at once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::task::JoinSet;

use crate::error::Error;
use crate::talk::{call, connect};

/// Calls that are alike in where they go.
#[derive(Debug, Clone)]
pub(super) struct Calls {
    /// The path.
    pub(super) path: &'static str,
    /// Their bodies.
    pub(super) bodies: Arc<[Bytes]>,
    /// Inputs of one call, at most: its answer has an element for each.
    pub(super) inputs: usize,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(alias = "choices", alias = "data")]
    list: Vec<IgnoredAny>,
}

impl Calls {
    /// Makes the first `count` of them, so many at once, and says how long that took. Each answer is looked at.
    pub(super) async fn make(&self, to: SocketAddr, count: usize, at_once: usize) -> Result<Duration, Error> {
        let count = count.min(self.bodies.len());
        let next = Arc::new(AtomicUsize::new(0));
        let mut connections = Vec::new();
        for _ in 0..at_once.min(count) {
            connections.push(connect(to).await?);
        }
        let began = Instant::now();
        let mut tasks = JoinSet::new();
        for mut connection in connections {
            let (calls, next) = (self.clone(), next.clone());
            tasks.spawn(async move {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(body) = calls.bodies.get(at).filter(|_| at < count) else { return Ok(()) };
                    if connection.ready().await.is_err() {
                        // llama.cpp's server takes a hundred calls on one connection.
                        connection = connect(to).await?;
                    }
                    let response =
                        connection.send_request(call(Method::POST, calls.path, body.clone())?).await?;
                    let status = response.status();
                    let answer = response.into_body().collect().await?.to_bytes();
                    calls.check(status, &answer)?;
                }
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap_or_else(|error| Err(Error::WrongAnswer(format!("the client failed: {error}"))))?;
        }
        Ok(began.elapsed())
    }

    fn check(&self, status: StatusCode, answer: &[u8]) -> Result<(), Error> {
        let list = serde_json::from_slice::<Answer>(answer).map_or(0, |answer| answer.list.len());
        let most = self.inputs;
        if status == StatusCode::OK && (1..=most).contains(&list) {
            return Ok(());
        }
        let text: String = String::from_utf8_lossy(answer).chars().take(300).collect();
        Err(Error::WrongAnswer(format!("{status}, {list} elements of {most}: {text}")))
    }

    /// Tries numbers at once with the first `count` calls; the best of them, and calls a second with each.
    pub(super) async fn best(
        &self,
        to: SocketAddr,
        count: usize,
        numbers: &[usize],
    ) -> Result<(usize, Vec<(usize, f64)>), Error> {
        let mut tried = Vec::new();
        for at_once in numbers.iter().copied() {
            let took = self.make(to, count, at_once).await?;
            tried.push((at_once, per_second(count.min(self.bodies.len()), took)));
        }
        let best = tried.iter().max_by(|(_, a), (_, b)| a.total_cmp(b)).map_or(1, |(at_once, _)| *at_once);
        Ok((best, tried))
    }
}

/// So many a second.
#[expect(clippy::cast_precision_loss, reason = "counts of requests are far below 2^52")]
pub(super) fn per_second(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64().max(1e-9)
}
