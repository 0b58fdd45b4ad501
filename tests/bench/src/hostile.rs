//! What others feel of a stranger's hostile router: a steady load of one tenant, alone, and while another tenant's requests go
//! through a router that loops, allocates, recurses and calls its host without end, as often as its clients can make it.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::StatusCode;
use http::header::HeaderValue;
use http_body_util::BodyExt as _;
use offpeak_guests::router;
use offpeak_host::Limits;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::error::{Context, Error};
use crate::load::{Load, Outcome, Shape};
use crate::report::{Table, Target, micros, thousands};
use crate::talk::{Call, MODEL, connect, get};
use crate::targets::{Daemon, Setup, Upstream};
use crate::upstream::COMPLETION_BYTES;

/// The stranger's key.
const STRANGER: &str = "sk-stranger-0123456789abcdef0123456789abcdef";

/// The stranger's clients. Each makes one call after the other.
const CLIENTS: usize = 4;

/// What a client asks for, by turns. A router that fails without pause is soon taken out of use; one that behaves between two
/// mischiefs is not.
const ASKED: [&str; 8] =
    [router::LOOP, MODEL, router::ALLOCATE, MODEL, router::RECURSE, MODEL, router::CALL_FLOOD, MODEL];

/// Bytes of a request's body.
const BODY_BYTES: usize = 1024;

/// Before each measurement.
const WARM_UP: Duration = Duration::from_secs(1);

/// How long a request of the steady load took.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Times {
    /// Requests that were measured.
    pub requests: usize,
    /// The median, in microseconds.
    pub p50_us: f64,
    /// The 99th percentile.
    pub p99_us: f64,
    /// The slowest one.
    pub slowest_us: f64,
}

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Requests a second of the steady load.
    pub per_second: u32,
    /// Without the stranger.
    pub alone: Times,
    /// Beside it.
    pub beside: Times,
    /// Calls of the hostile router that failed, as each of its mischiefs must.
    pub failed: u64,
    /// And those between them that it answered.
    pub answered: u64,
}

/// What the stranger's clients share.
#[derive(Default)]
struct Counts {
    failed: AtomicU64,
    answered: AtomicU64,
}

/// Measures with a steady load of so many requests a second, for `measure` each time. `setup.upstream` is not asked.
pub async fn run(
    per_second: u32,
    measure: Duration,
    threads: usize,
    setup: &Setup<'_>,
) -> Result<Report, Error> {
    let upstream = Upstream::start(threads)?;
    let daemon = start(setup, upstream.address).await?;
    let load = Load {
        call: Call::chat(BODY_BYTES, false),
        answer_bytes: COMPLETION_BYTES as u64,
        shape: Shape::Open { per_second },
        warm_up: WARM_UP,
        measure,
    };
    let steady = async || load.run(daemon.data, || Ok(())).await.map(|outcome| Times::of(&outcome));
    let alone = steady().await?;
    let counts = Arc::new(Counts::default());
    let mut clients = JoinSet::new();
    for first in 0..CLIENTS {
        clients.spawn(mischief(daemon.data, first, counts.clone()));
    }
    let beside = tokio::select! {
        beside = steady() => beside?,
        // None of them ends by itself.
        Some(ended) = clients.join_next() => return Err(stranger_ended(ended)),
    };
    clients.shutdown().await;
    is_in_use(&daemon).await?;
    let (failed, answered) = (counts.failed.load(Ordering::Relaxed), counts.answered.load(Ordering::Relaxed));
    Ok(Report { per_second, alone, beside, failed, answered })
}

/// A daemon in which the stranger's requests are decided about by the stranger's router alone.
async fn start(setup: &Setup<'_>, upstream: SocketAddr) -> Result<Daemon, Error> {
    let (component, key) = (setup.folder.join("hostile.wasm"), setup.folder.join("stranger.key"));
    fs::write(&component, router::COMPONENT).context("writing the hostile router")?;
    fs::write(&key, STRANGER).context("writing the stranger's key")?;
    let (component, key) = (component.display(), key.display());
    setup
        .start_with(&format!(
            "[backends.openai]\nbase_url = \"http://{upstream}\"\nmodels = [\"*\"]\n\
             [tenants.stranger]\nkeys = [{{ file = \"{key}\" }}]\nrequests_per_minute = 4000000000\n\
             [plugins.routers.strangers]\nfile = \"{component}\"\ntenants = [\"stranger\"]\non_failure = \"reject\"\n"
        ))
        .await
}

/// One of the stranger's clients.
async fn mischief(to: SocketAddr, first: usize, counts: Arc<Counts>) -> Result<(), Error> {
    let mut connection = connect(to).await?;
    let key = HeaderValue::try_from(format!("Bearer {STRANGER}"));
    let key = key.map_err(|error| Error::WrongAnswer(error.to_string()))?;
    let calls =
        ASKED.map(|model| Call::chat_with(model, BODY_BYTES, false).with("authorization", key.clone()));
    // Each begins elsewhere, so that all mischiefs happen at once.
    for (model, call) in ASKED.iter().zip(&calls).cycle().skip(2 * first) {
        connection.ready().await?;
        let response = connection.send_request(call.request()).await?;
        let status = response.status();
        response.into_body().collect().await?;
        match status {
            StatusCode::SERVICE_UNAVAILABLE if *model != MODEL => {
                counts.failed.fetch_add(1, Ordering::Relaxed)
            }
            StatusCode::OK if *model == MODEL => counts.answered.fetch_add(1, Ordering::Relaxed),
            other => return Err(Error::WrongAnswer(format!("{other} for the stranger's {model}"))),
        };
    }
    Ok(())
}

fn stranger_ended(ended: Result<Result<(), Error>, tokio::task::JoinError>) -> Error {
    match ended {
        Ok(Err(error)) => error,
        Ok(Ok(())) => Error::WrongAnswer("the stranger's calls came to an end".to_owned()),
        Err(error) => Error::WrongAnswer(format!("the load generator failed: {error}")),
    }
}

/// A router that was taken out of use meanwhile would have harmed nobody, and shown nothing.
async fn is_in_use(daemon: &Daemon) -> Result<(), Error> {
    let (_, page) = get(daemon.admin, "/admin/v1/plugins").await?;
    let page: serde_json::Value =
        serde_json::from_str(&page).map_err(|error| Error::WrongAnswer(error.to_string()))?;
    let rows = page["data"].as_array().map(Vec::as_slice).unwrap_or_default();
    match rows.iter().find(|row| row["name"] == "strangers") {
        Some(row) if row["out_of_use"] == false => Ok(()),
        found => Err(Error::WrongAnswer(format!("the hostile router is not at work: {found:?}"))),
    }
}

impl Times {
    fn of(outcome: &Outcome) -> Self {
        let quantile = |permille| micros(Outcome::quantile(&outcome.last_byte, permille));
        Self {
            requests: outcome.last_byte.len(),
            p50_us: quantile(500),
            p99_us: quantile(990),
            slowest_us: quantile(1000),
        }
    }
}

impl Report {
    /// The figures as Markdown.
    pub fn markdown(&self) -> String {
        let Self { per_second, alone, beside, failed, answered } = self;
        let mut table = Table::new(["other tenants' requests", "p50 us", "p99 us", "slowest us"]);
        for (name, times) in [("alone", alone), ("beside the hostile router", beside)] {
            let figures = [times.p50_us, times.p99_us, times.slowest_us].map(thousands);
            table.row([[name.to_owned()].as_slice(), figures.as_slice()].concat());
        }
        format!(
            "{per_second} requests a second of one tenant, {} in all. Another tenant's {CLIENTS} clients go through a router of its \
             own, which loops, allocates, recurses and calls its host without end in every second call: {failed} calls failed at \
             their limits, {answered} were answered.\n\n{}",
            alone.requests + beside.requests,
            table.markdown()
        )
    }

    /// What was wanted of these figures.
    pub fn targets(&self) -> Vec<Target> {
        // One call that loops may be waited for, and no more.
        let (p99, limit) = (self.beside.p99_us / 1e3, micros(Limits::router().call) / 1e3);
        vec![Target::at_most("p99 of others beside a hostile router", p99, limit, "ms")]
    }
}
