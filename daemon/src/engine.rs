//! A self-hosted engine: what is read from it at each look, what that means, and how much deferred work it gets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, Method};
use offpeak_core::buckets::{Buckets, Fill, Size, Widths};
use offpeak_core::sizing::{Look, Sizing, SizingTerms};
use offpeak_core::words::{Millis, Timestamp};
use offpeak_host::values::adapter::{Load, Sight, State, UnderWay};
use offpeak_host::{EnginePlugin, PluginError};
use parking_lot::Mutex;
use reqwest::Body;
use tokio::time::Instant;

use crate::blocking::blocking;
use crate::clock::Clock;
use crate::config;
use crate::merge::Arrays;
use crate::telemetry::EngineSeen;
use crate::turns::Turns;
use crate::upstream::Upstream;

/// As much of an answer as the plugin gets to see.
const SIGHT_MAX: usize = 1 << 20;

/// A look that takes longer has seen nothing.
const LOOK_MAX: Duration = Duration::from_secs(5);

/// What a backend has if it is an engine.
pub struct Engine {
    /// What its metrics mean.
    pub plugin: ArcSwap<EnginePlugin>,
    /// Turns for deferred work.
    pub turns: Turns,
    /// How often it is looked at.
    pub every: Duration,
    latency: Millis,
    /// Deferred requests at once, at most.
    pub most: usize,
    /// Inputs in one call for several requests, at most.
    pub merge: usize,
    /// How long calls in real time wait for others; none if each is sent at once by itself.
    pub merge_realtime: Option<Duration>,
    /// What travels together is of similar length, if it pads.
    pub buckets: Buckets,
    merges_completions: bool,
    /// Its real-time calls.
    pub presence: Arc<Presence>,
    sizing: Mutex<Sizing>,
    widths: Mutex<Widths>,
}

/// The calls of an engine: real-time ones under way, what was seen of them since the last look, and how its time is shared.
#[derive(Debug, Default)]
pub struct Presence {
    under_way: AtomicU64,
    begun: AtomicU64,
    /// Until an answer begins.
    slowest_ms: AtomicU64,
    /// Until an answer is there that is made as a whole.
    slowest_whole_ms: AtomicU64,
    sharing: Mutex<Sharing>,
}

/// One real-time call, until its answer has passed.
#[derive(Debug)]
pub struct Present {
    presence: Arc<Presence>,
    since: Share,
}

/// One deferred request, until it is answered.
#[derive(Debug)]
pub struct Guest {
    presence: Arc<Presence>,
    since: Share,
}

/// How an engine's time is shared by those who are there: at each moment in equal parts. What each has had adds up to the time in
/// which somebody was there.
#[derive(Debug, Default)]
struct Sharing {
    there: u32,
    changed: Option<Instant>,
    /// What one who was there all the time has had.
    had: Duration,
}

/// Where somebody came in.
#[derive(Debug, Clone, Copy)]
struct Share {
    at: Instant,
    had: Duration,
}

impl Engine {
    /// One that was not looked at yet, so that it gets no deferred work.
    pub fn new(plugin: EnginePlugin, settings: &config::Engine, clock: Clock) -> Self {
        let terms = SizingTerms {
            most: settings.concurrency as u64,
            target: settings.latency,
            peak: settings.peak.map(|peak| u64::from(peak.get())),
        };
        let buckets =
            Buckets::new(settings.length_buckets.clone(), u64::from(settings.bucket_utilisation) * 10);
        Self {
            plugin: ArcSwap::from_pointee(plugin),
            turns: Turns::closed(clock, settings.concurrency),
            every: settings.look_every,
            latency: settings.latency,
            most: settings.concurrency,
            merge: settings.merge,
            merge_realtime: (settings.merge_realtime > Millis(0)).then(|| settings.merge_realtime.into()),
            merges_completions: settings.merge_completions,
            presence: Arc::default(),
            sizing: Mutex::new(Sizing::new(terms)),
            widths: Mutex::new(Widths::new(buckets.clone(), settings.merge as u64)),
            buckets,
        }
    }

    /// Looks at it, and gives it as much deferred work as it can take.
    pub async fn look(&self, upstream: &Upstream, clock: Clock) -> Result<(State, EngineSeen), PluginError> {
        // One plugin for the whole look: what it asked for is what it understands.
        let plugin = self.plugin.load_full();
        let sights = join_all(plugin.looks().iter().map(|look| see(upstream, &look.path))).await;
        let now = clock.now();
        let Seen { realtime, begun, whole } = self.presence.take();
        // A long answer that is made as a whole says nothing about when it began; a quick one does.
        let latency = begun.max(whole.filter(|took| *took <= self.latency));
        let (deferred, in_a_call) = (self.turns.under_way(), self.turns.in_a_call());
        let load = interpret(&plugin, &sights, realtime, deferred, now);
        let load = match load {
            Ok(load) => load,
            Err(error) => {
                // What nobody understands gets no more work.
                self.turns.limit(0);
                return Err(error);
            }
        };
        let tokens = match (load.prompt_tokens, load.generated_tokens) {
            (None, None) => None,
            (read, made) => Some(read.unwrap_or(0).saturating_add(made.unwrap_or(0))),
        };
        let look = Look {
            is_ready: load.state == State::Ready,
            waiting: load.waiting.map(u64::from),
            room: load.room.map(u64::from),
            tokens,
            realtime,
            latency,
            deferred,
            in_a_call,
        };
        let (ceiling, in_the_way, speed, peak) = {
            let mut sizing = self.sizing.lock();
            (sizing.look(&look, now), sizing.in_the_way(&look), sizing.speed(), sizing.peak())
        };
        self.turns.limit(ceiling);
        let taken_back = self.turns.take_back(in_the_way);
        let Load { state, running, waiting, cache_permille, .. } = load;
        let is_ready = state == State::Ready;
        let seen = EngineSeen {
            is_ready,
            running,
            waiting,
            cache_permille,
            realtime,
            deferred,
            ceiling,
            taken_back,
            speed,
            peak,
        };
        Ok((state, seen))
    }

    /// How requests for an endpoint are merged; none if each is sent by itself.
    pub fn arrays(&self, endpoint: &str) -> Option<Arrays> {
        let arrays = Arrays::of(endpoint)?;
        let is_wanted = self.merge > 1 && (arrays != Arrays::Completions || self.merges_completions);
        is_wanted.then_some(arrays)
    }

    /// The bucket in which a real-time call of this size waits for others.
    pub fn bucket_of(&self, size: Size) -> usize {
        self.widths.lock().of(size.length)
    }

    /// How requests of these sizes fill a call of this bucket.
    pub fn fill(&self, bucket: usize, sizes: impl IntoIterator<Item = Size>) -> Fill {
        self.buckets.fill(bucket, sizes, self.merge as u64)
    }

    /// Real-time calls of these sizes have left together, from this bucket.
    pub fn left_together(&self, bucket: usize, sizes: impl IntoIterator<Item = Size>) {
        self.widths.lock().left(bucket, sizes);
    }

    /// It did not take a call: it gets no more before it was looked at.
    pub fn doubt(&self) {
        self.turns.limit(0);
    }
}

fn interpret(
    plugin: &EnginePlugin,
    sights: &[(Option<u16>, Bytes)],
    realtime: u64,
    deferred: u64,
    now: Timestamp,
) -> Result<Load, PluginError> {
    let sights: Vec<Sight<'_>> =
        sights.iter().map(|(status, body)| Sight { status: *status, body }).collect();
    let count = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
    let under_way = UnderWay { realtime: count(realtime), deferred: count(deferred) };
    blocking(|| plugin.interpret(&sights, under_way, now.0))
}

/// Reads one thing; no status if there was no answer in time.
async fn see(upstream: &Upstream, path: &str) -> (Option<u16>, Bytes) {
    let Ok(url) = upstream.url(path) else {
        tracing::error!(path, "the engine's plugin names a path outside the backend; it is not read");
        return (None, Bytes::new());
    };
    let call = upstream.call(Method::GET, url, HeaderMap::new(), Body::default(), SIGHT_MAX);
    match tokio::time::timeout(LOOK_MAX, call).await {
        Ok(Ok(response)) => (Some(response.status().as_u16()), response.into_body()),
        Ok(Err(_)) | Err(_) => (None, Bytes::new()),
    }
}

impl Presence {
    /// A real-time call begins.
    pub fn enter(self: &Arc<Self>) -> Present {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        self.begun.fetch_add(1, Ordering::Relaxed);
        Present { presence: self.clone(), since: self.sharing.lock().enter(Instant::now()) }
    }

    /// A deferred request is sent.
    pub fn admit(self: &Arc<Self>) -> Guest {
        Guest { presence: self.clone(), since: self.sharing.lock().enter(Instant::now()) }
    }

    fn together(&self, since: Share) -> u64 {
        self.sharing.lock().together(since, Instant::now())
    }

    fn leave(&self) {
        self.sharing.lock().leave(Instant::now());
    }

    /// What was seen since the last time.
    fn take(&self) -> Seen {
        let calls = self.begun.swap(0, Ordering::Relaxed);
        let slowest = |of: &AtomicU64| Some(of.swap(0, Ordering::Relaxed)).filter(|ms| *ms > 0).map(Millis);
        Seen {
            realtime: calls.max(self.under_way.load(Ordering::Relaxed)),
            begun: slowest(&self.slowest_ms),
            whole: slowest(&self.slowest_whole_ms),
        }
    }
}

/// What was seen of real-time calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    /// Calls that were there.
    realtime: u64,
    /// The longest until an answer began.
    begun: Option<Millis>,
    /// The longest until one was there that is made as a whole.
    whole: Option<Millis>,
}

impl Sharing {
    fn go_on(&mut self, now: Instant) {
        let since = self.changed.replace(now).map_or(Duration::ZERO, |changed| now - changed);
        if self.there > 0 {
            self.had += since / self.there;
        }
    }

    fn enter(&mut self, now: Instant) -> Share {
        self.go_on(now);
        self.there += 1;
        Share { at: now, had: self.had }
    }

    fn leave(&mut self, now: Instant) {
        self.go_on(now);
        self.there = self.there.saturating_sub(1);
    }

    /// With how many it was there, on average, itself included.
    fn together(&mut self, since: Share, now: Instant) -> u64 {
        self.go_on(now);
        let (whole, had) = ((now - since.at).as_nanos(), self.had.saturating_sub(since.had).as_nanos());
        let rounded = (whole + had / 2).checked_div(had).unwrap_or(0);
        u64::try_from(rounded).unwrap_or(u64::MAX).max(1)
    }
}

impl Present {
    /// Its answer begins.
    pub fn begins(&self, after: Duration) {
        self.presence.slowest_ms.fetch_max(millis(after), Ordering::Relaxed);
    }

    /// Its answer, which was made as a whole, is there.
    pub fn is_made(&self, after: Duration) {
        self.presence.slowest_whole_ms.fetch_max(millis(after), Ordering::Relaxed);
    }

    /// With how many requests of offpeak's it shared the engine so far, itself included.
    pub fn together(&self) -> u64 {
        self.presence.together(self.since)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}

impl Guest {
    /// With how many requests of offpeak's it shared the engine so far, itself included.
    pub fn together(&self) -> u64 {
        self.presence.together(self.since)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.presence.leave();
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.presence.under_way.fetch_sub(1, Ordering::Relaxed);
        self.presence.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_present_until_their_answers_have_passed() {
        let presence = Arc::<Presence>::default();
        let (first, second) = (presence.enter(), presence.enter());
        first.begins(Duration::from_millis(30));
        second.begins(Duration::from_millis(70));
        second.is_made(Duration::from_millis(900));
        drop(first);
        let seen = |realtime, begun, whole| Seen { realtime, begun, whole };
        assert_eq!(presence.take(), seen(2, Some(Millis(70)), Some(Millis(900))));
        assert_eq!(presence.take(), seen(1, None, None), "one is under way");
        drop(second);
        assert_eq!(presence.take(), seen(0, None, None));
        drop(presence.enter());
        assert_eq!(presence.take(), seen(1, None, None), "one came and went between two looks");
    }

    #[test]
    fn shares_add_up_to_the_time_in_which_somebody_was_there() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut sharing = Sharing::default();
        // Eight come and go together, as a merged call does: whoever is asked last was not there with fewer.
        let eight: Vec<Share> = (0..8).map(|_| sharing.enter(at(0))).collect();
        let all: Vec<u64> = eight
            .iter()
            .map(|since| {
                let together = sharing.together(*since, at(800));
                sharing.leave(at(800));
                together
            })
            .collect();
        assert_eq!(all, [8; 8]);
        // Nobody is charged for the time in between.
        let one = sharing.enter(at(5_000));
        let other = sharing.enter(at(5_500));
        assert_eq!(sharing.together(other, at(5_500)), 1, "it had no time yet");
        // Alone for a half, with the other for a half: 500 + 250 of 1000 ms.
        assert_eq!(sharing.had.saturating_sub(one.had), Duration::from_millis(500));
        assert_eq!(sharing.together(one, at(6_000)), 1);
        assert_eq!(sharing.had.saturating_sub(one.had), Duration::from_millis(750));
        assert_eq!(sharing.together(other, at(6_000)), 2);
    }
}
