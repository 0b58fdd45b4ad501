//! What a seed stands for: who asks for what, and what goes wrong when. Decided before anything runs.

use std::collections::BTreeSet;
use std::time::Duration;

use provider_sim::{
    BatchFault, BatchRule, Fault, Faults, HttpRule, ItemFault, ItemRule, Provider, Sim, SimTime, Target,
    TargetGroup, Timing,
};

use crate::Crash;
use crate::api::Api;
use crate::dice::Dice;
use crate::tamper::Tampering;

pub(crate) const MINUTE: u64 = 60_000;
pub(crate) const HOUR: u64 = 60 * MINUTE;
pub(crate) const WEEK: u64 = 7 * 24 * HOUR;

/// When the simulated world begins, in milliseconds since 1970.
pub(crate) const EPOCH: u64 = 1_795_000_000_000;

/// Results are kept so long.
pub(crate) const KEEP_RESULTS: Duration = Duration::from_hours(6);

/// The provider is given so long to show what an interrupted call has made. What it makes late, it makes within this.
pub(crate) const SETTLE_MS: u64 = 10_000;

/// Attempts of one request, at most.
pub(crate) const MAX_ATTEMPTS: u32 = 4;

/// What may go wrong. Each seed has some of these, each as often as the seed says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// The process is killed: what was written is there, synced or not.
    Kill,
    /// The power fails: what was not synced is lost, or torn.
    PowerLoss,
    /// The daemon is stopped in good order, and started again.
    Stop,
    /// The disk runs full for a while.
    DiskFull,
    /// The disk fails for a while.
    DiskErrors,
    /// The wall clock is set.
    ClockJumps,
    /// The provider cannot be reached, call by call.
    Refused,
    /// The connection breaks before anything was done.
    LostBefore,
    /// The connection breaks after it was done.
    LostAfter,
    /// No answer comes, and nothing was done.
    TimeoutBefore,
    /// No answer comes, and it was done.
    TimeoutAfter,
    /// It is done only after the caller has given up.
    LateEffect,
    /// An answer from before comes once more.
    Stale,
    /// The provider is down for a while.
    Outage,
    /// The provider's process dies, with what it is doing, and comes back.
    ProviderCrash,
    /// The provider answers 429, 500 and 503 for a while.
    Storm,
    /// It is done, and the answer is a 5xx, or HTML.
    WrongAnswers,
    /// Answers end half-way, with and without notice.
    CutAnswers,
    /// Items fail with 429, 500, or without a response.
    ItemFailures,
    /// Batches expire: some of their items never run.
    Expiry,
    /// Batches fail validation.
    Validation,
    /// Lines of results are torn, doubled, unknown, garbage.
    DamagedResults,
    /// Somebody cancels batches at the provider.
    Cancelled,
    /// New batches are missing from the listing for some seconds.
    ListingLag,
    /// Clients hang up and call again.
    HangUps,
    /// Clients cancel.
    Withdrawals,
}

impl Kind {
    const ALL: [Self; 26] = [
        Self::Kill,
        Self::PowerLoss,
        Self::Stop,
        Self::DiskFull,
        Self::DiskErrors,
        Self::ClockJumps,
        Self::Refused,
        Self::LostBefore,
        Self::LostAfter,
        Self::TimeoutBefore,
        Self::TimeoutAfter,
        Self::LateEffect,
        Self::Stale,
        Self::Outage,
        Self::ProviderCrash,
        Self::Storm,
        Self::WrongAnswers,
        Self::CutAnswers,
        Self::ItemFailures,
        Self::Expiry,
        Self::Validation,
        Self::DamagedResults,
        Self::Cancelled,
        Self::ListingLag,
        Self::HangUps,
        Self::Withdrawals,
    ];
}

/// A whole run.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) kinds: BTreeSet<Kind>,
    pub(crate) clients: Vec<Script>,
    /// The daemon's configuration.
    pub(crate) settings: String,
    pub(crate) segment_bytes: u32,
    pub(crate) checkpoint_bytes: u64,
    /// Lives of the daemon until calm comes.
    pub(crate) lives: Vec<LifePlan>,
    pub(crate) wire: Wire,
    /// What is done to the outcome before it is looked at.
    pub(crate) tampering: Option<Tampering>,
}

/// What a client does.
#[derive(Debug, Clone)]
pub(crate) struct Script {
    pub(crate) tenant: usize,
    pub(crate) api: Api,
    pub(crate) way: Way,
    pub(crate) sla: &'static str,
    pub(crate) arrives_ms: u64,
    /// It sends an `Idempotency-Key`.
    pub(crate) has_key: bool,
    /// A held call is given up, and made again, after so long; a ticket is looked at as often.
    pub(crate) patience_ms: u64,
    /// It cancels after so long.
    pub(crate) withdraws_after_ms: Option<u64>,
    pub(crate) words: u64,
    /// Requests of its job.
    pub(crate) lines: u64,
}

/// How an answer is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Ticket,
    Held,
    Realtime,
    Background,
    Job,
}

/// One life of the daemon.
#[derive(Debug, Clone)]
pub(crate) struct LifePlan {
    pub(crate) end: End,
    /// What was not synced is lost.
    pub(crate) loses_power: bool,
    pub(crate) downtime_ms: u64,
    /// The disk is full from then, for so long.
    pub(crate) full: Option<(u64, u64)>,
    /// Operations of the disk that fail: after so many, so many.
    pub(crate) disk_errors: Option<(u64, u64)>,
    /// The wall clock is set then, by so much.
    pub(crate) jump: Option<(u64, i64)>,
    /// Somebody cancels a batch at the provider then.
    pub(crate) cancels_at: Option<u64>,
}

/// When a life ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// In the middle of that operation of the disk.
    AtDiskStep(u64),
    /// Before that call to the provider has an effect.
    BeforeCall(u64),
    /// After it had its effect, before the answer.
    AfterCall(u64),
    /// After so long.
    At(u64),
    /// It is stopped in good order after so long.
    Stop(u64),
    /// When everybody has what they wanted.
    Calm,
}

/// How often calls to the provider go wrong, in thousandths.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wire {
    pub(crate) refused: u64,
    pub(crate) lost_before: u64,
    pub(crate) lost_after: u64,
    pub(crate) timeout_before: u64,
    pub(crate) timeout_after: u64,
    pub(crate) late_effect: u64,
    pub(crate) stale: u64,
    /// From when to when nothing gets through.
    pub(crate) outage: Option<(u64, u64)>,
    /// When the provider's process dies, and when it is there again.
    pub(crate) crashes: Vec<(u64, u64)>,
}

impl Script {
    /// What one of the first tenant's clients does who is in no hurry.
    pub(crate) const fn of(api: Api, way: Way) -> Self {
        Self {
            tenant: 0,
            api,
            way,
            sla: "24h",
            arrives_ms: 0,
            has_key: true,
            patience_ms: match way {
                Way::Held => 4 * 24 * HOUR,
                Way::Ticket | Way::Realtime | Way::Background | Way::Job => MINUTE,
            },
            withdraws_after_ms: None,
            words: 10,
            lines: match way {
                Way::Job => 3,
                Way::Ticket | Way::Held | Way::Realtime | Way::Background => 0,
            },
        }
    }
}

impl Wire {
    /// The provider's process died after the first moment and not after the second.
    pub(crate) fn crashed_between(&self, from_ms: u64, to_ms: u64) -> bool {
        self.crashes.iter().any(|(at, _)| from_ms < *at && *at <= to_ms)
    }
}

impl End {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::AtDiskStep(_) => "daemon: dies in the middle of a disk operation",
            Self::BeforeCall(_) => "daemon: dies before a call has its effect",
            Self::AfterCall(_) => "daemon: dies between a call's effect and its answer",
            Self::At(_) => "daemon: dies at some time",
            Self::Stop(_) => "daemon: stops in good order",
            Self::Calm => "(lives in calm)",
        }
    }
}

impl Plan {
    /// What the seed stands for.
    pub(crate) fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed, 1);
        let kinds = kinds(&mut dice);
        let span = dice.pick(&[MINUTE, 20 * MINUTE, 2 * HOUR, 8 * HOUR]).unwrap_or(HOUR);
        let clients = clients(&kinds, span, &mut dice);
        let lives = lives(&kinds, span, &mut dice);
        Self {
            seed,
            clients,
            settings: settings(&Knobs::draw(&mut dice)),
            segment_bytes: u32::try_from(dice.magnitude(4 << 10..=256 << 10)).unwrap_or(64 << 10),
            checkpoint_bytes: dice.magnitude(1 << 10..=256 << 10),
            lives,
            wire: wire(&kinds, span, &mut dice),
            tampering: None,
            kinds,
        }
    }

    /// A week without faults.
    pub(crate) fn week(clients: u64) -> Self {
        let mut dice = Dice::new(7, 1);
        let kinds = BTreeSet::new();
        let mut clients = scripts(clients, &kinds, WEEK, &mut dice);
        for script in &mut clients {
            // Files that clients upload are kept for a month, which is longer than this.
            if script.way == Way::Job {
                script.api = Api::Messages;
            }
        }
        Self {
            seed: 7,
            clients,
            settings: settings(&Knobs::draw(&mut dice)),
            segment_bytes: 64 << 10,
            checkpoint_bytes: 64 << 10,
            lives: Vec::new(),
            wire: Wire::default(),
            tampering: None,
            kinds,
        }
    }

    /// Two hours with some clients of every kind, in which nothing goes wrong.
    pub(crate) fn quiet() -> Self {
        let mut clients = Vec::new();
        for (api, ways) in [
            (Api::Chat, &[Way::Ticket, Way::Held, Way::Realtime, Way::Job][..]),
            (Api::Messages, &[Way::Ticket, Way::Held, Way::Realtime, Way::Job]),
            (Api::Responses, &[Way::Background]),
        ] {
            for minute in (0..120).step_by(10) {
                let arriving = |way: &Way| Script { arrives_ms: minute * MINUTE, ..Script::of(api, *way) };
                clients.extend(ways.iter().map(arriving));
            }
        }
        let knobs =
            Knobs { linger_s: 90, running: 4, requests: 100, rescues: 2, base_s: 1, poll_ms: 5 * MINUTE };
        Self {
            seed: 7,
            kinds: BTreeSet::new(),
            clients,
            settings: settings(&knobs),
            segment_bytes: 64 << 10,
            checkpoint_bytes: 64 << 10,
            lives: Vec::new(),
            wire: Wire::default(),
            tampering: None,
        }
    }

    /// A few clients and nothing that goes wrong but that the daemon dies once.
    pub(crate) fn crash(crash: &Crash) -> Self {
        let end = if crash.is_before { End::BeforeCall(crash.call) } else { End::AfterCall(crash.call) };
        let kind = if crash.loses_power { Kind::PowerLoss } else { Kind::Kill };
        let api = if crash.of_messages { Api::Messages } else { Api::Chat };
        Self {
            kinds: BTreeSet::from([kind]),
            clients: [Way::Ticket, Way::Ticket, Way::Job].map(|way| Script::of(api, way)).into(),
            lives: vec![LifePlan { end, loses_power: crash.loses_power, downtime_ms: 30_000, ..LAST }],
            ..Self::quiet()
        }
    }

    pub(crate) fn has(&self, kind: Kind) -> bool {
        self.kinds.contains(&kind)
    }

    /// The provider, with its faults.
    pub(crate) fn provider(&self) -> Provider {
        let mut dice = Dice::new(self.seed, 2);
        let timing = Timing {
            turnaround: Duration::from_millis(dice.magnitude(20_000..=10 * MINUTE))
                ..=Duration::from_millis(dice.magnitude(11 * MINUTE..=3 * HOUR)),
            ..Timing::default()
        };
        Sim::builder()
            .seed(self.seed)
            .epoch(SimTime(EPOCH))
            .keys([PROVIDER_KEY])
            .track_executions(true)
            .timing(timing)
            .lines_for_cancelled(dice.hits(500))
            .faults(self.faults(&mut dice))
            .build()
    }

    fn faults(&self, dice: &mut Dice) -> Faults {
        let mut faults = Faults::default();
        let any = Target::Group(TargetGroup::Any);
        let mut http = |fault, permille: u64, window: Option<(u64, u64)>| {
            faults.http.push(HttpRule {
                on: any,
                fault,
                probability: share(permille),
                from_ms: window.map(|window| window.0),
                until_ms: window.map(|window| window.1),
            });
        };
        if self.has(Kind::Storm) {
            let from = dice.number(0..=4 * HOUR);
            let window = Some((from, from + dice.magnitude(MINUTE..=6 * HOUR)));
            for status in [429, 500, 503] {
                let retry_after_ms = dice.hits(300).then(|| dice.magnitude(1_000..=10 * MINUTE));
                http(Fault::Status { status, retry_after_ms }, dice.number(100..=600), window);
            }
        }
        if self.has(Kind::WrongAnswers) {
            http(Fault::StatusAfterEffect { status: 504 }, dice.magnitude(5..=150), None);
            http(Fault::Garbage, dice.magnitude(5..=100), None);
        }
        if self.has(Kind::CutAnswers) {
            http(Fault::CutBody, dice.magnitude(5..=150), None);
            http(Fault::TruncateBody, dice.magnitude(5..=100), None);
        }
        if self.has(Kind::ItemFailures) {
            let mut item = |fault, permille| {
                faults.items.push(ItemRule {
                    fault,
                    probability: share(permille),
                    custom_id: None,
                    body: None,
                    times: None,
                });
            };
            item(ItemFault::Status { status: 429 }, dice.magnitude(10..=300));
            item(ItemFault::Status { status: 500 }, dice.magnitude(10..=300));
            item(ItemFault::Status { status: 400 }, dice.magnitude(10..=100));
            item(ItemFault::NoResponse { code: "request_timeout".to_owned() }, dice.magnitude(10..=200));
        }
        let mut batch = |fault, permille| {
            faults.batches.push(BatchRule { fault, probability: share(permille) });
        };
        if self.has(Kind::Expiry) {
            batch(BatchFault::Stall, dice.magnitude(50..=500));
            batch(BatchFault::LoseItems { permille: 300 }, dice.magnitude(50..=500));
        }
        if self.has(Kind::Validation) {
            for code in ["token_limit_exceeded", "invalid_json_line"] {
                batch(BatchFault::FailValidation { code: code.to_owned() }, dice.magnitude(50..=400));
            }
            batch(BatchFault::RefuseLines { lines: vec![2] }, dice.magnitude(50..=400));
        }
        if self.has(Kind::DamagedResults) {
            batch(BatchFault::OutputDuplicateId, dice.magnitude(100..=700));
            batch(BatchFault::OutputUnknownId, dice.magnitude(100..=700));
            batch(BatchFault::OutputTruncated, dice.magnitude(50..=400));
            batch(BatchFault::OutputGarbageLine, dice.magnitude(50..=400));
        }
        if self.has(Kind::ListingLag) {
            faults.listing_lag_ms = dice.number(0..=SETTLE_MS);
        }
        faults
    }
}

/// The last life's plan.
pub(crate) const LAST: LifePlan = LifePlan {
    end: End::Calm,
    loses_power: false,
    downtime_ms: 0,
    full: None,
    disk_errors: None,
    jump: None,
    cancels_at: None,
};

/// What the provider asks for.
pub(crate) const PROVIDER_KEY: &str = "sk-of-the-provider";

#[expect(clippy::cast_precision_loss, reason = "at most a thousand")]
fn share(permille: u64) -> f64 {
    permille as f64 / 1000.0
}

/// Some kinds of faults; in one of eight seeds none, so that what must never happen without a fault is seen too.
fn kinds(dice: &mut Dice) -> BTreeSet<Kind> {
    let share = dice.pick(&[0, 80, 150, 150, 250, 250, 400, 600]).unwrap_or(0);
    Kind::ALL.into_iter().filter(|_| dice.hits(share)).collect()
}

fn clients(kinds: &BTreeSet<Kind>, span: u64, dice: &mut Dice) -> Vec<Script> {
    // Most worlds are small, so that many can be played.
    let count = dice.magnitude(1..=32);
    scripts(count, kinds, span, dice)
}

fn scripts(count: u64, kinds: &BTreeSet<Kind>, span: u64, dice: &mut Dice) -> Vec<Script> {
    (0..count)
        .map(|_| {
            let way = dice
                .pick(&[
                    Way::Ticket,
                    Way::Ticket,
                    Way::Held,
                    Way::Held,
                    Way::Realtime,
                    Way::Background,
                    Way::Job,
                ])
                .unwrap_or(Way::Ticket);
            let api = match way {
                Way::Background => Api::Responses,
                _ if dice.hits(400) => Api::Messages,
                _ => Api::Chat,
            };
            let hangs_up = kinds.contains(&Kind::HangUps) && dice.hits(500);
            let patience_ms = match way {
                Way::Held if hangs_up => dice.magnitude(1_000..=30 * MINUTE),
                Way::Held => 4 * 24 * HOUR,
                Way::Ticket | Way::Realtime | Way::Background | Way::Job => dice.magnitude(MINUTE..=HOUR),
            };
            let withdraws = kinds.contains(&Kind::Withdrawals)
                && matches!(way, Way::Ticket | Way::Background | Way::Job)
                && dice.hits(300);
            // A call that was cut off and is made again without a key finds its work for ten minutes by the wall clock.
            let must_have_key = way == Way::Held && kinds.contains(&Kind::ClockJumps);
            Script {
                tenant: usize::from(dice.hits(300)),
                api,
                way,
                sla: dice.pick(&["24h", "24h", "12h", "4h", "2h", "95m"]).unwrap_or("24h"),
                arrives_ms: dice.number(0..=span),
                has_key: must_have_key || dice.hits(300),
                patience_ms,
                withdraws_after_ms: withdraws.then(|| dice.magnitude(1_000..=2 * HOUR)),
                words: dice.magnitude(1..=200),
                lines: if way == Way::Job { dice.magnitude(1..=24) } else { 0 },
            }
        })
        .collect()
}

fn lives(kinds: &BTreeSet<Kind>, span: u64, dice: &mut Dice) -> Vec<LifePlan> {
    let (kill, power) = (kinds.contains(&Kind::Kill), kinds.contains(&Kind::PowerLoss));
    let stop = kinds.contains(&Kind::Stop);
    let ends = if kill || power || stop { dice.magnitude(1..=10) } else { 1 };
    (0..ends)
        .map(|_| {
            let length = dice.magnitude(1_000..=span.max(30 * MINUTE));
            let end = if (kill || power) && !(stop && dice.hits(300)) {
                match dice.number(0..=3) {
                    0 => End::AtDiskStep(dice.magnitude(1..=400)),
                    1 => End::BeforeCall(dice.magnitude(1..=60)),
                    2 => End::AfterCall(dice.magnitude(1..=60)),
                    _ => End::At(length),
                }
            } else if stop {
                End::Stop(length)
            } else {
                // One life in which the other faults have their time.
                End::Stop(span + 12 * HOUR)
            };
            let sometimes = |kind, dice: &mut Dice| kinds.contains(&kind) && dice.hits(600);
            let full = sometimes(Kind::DiskFull, dice)
                .then(|| (dice.magnitude(1..=span), dice.magnitude(1_000..=20 * MINUTE)));
            let disk_errors =
                sometimes(Kind::DiskErrors, dice).then(|| (dice.magnitude(1..=300), dice.magnitude(1..=20)));
            let jump = sometimes(Kind::ClockJumps, dice).then(|| {
                let by = i64::try_from(dice.magnitude(1_000..=3 * HOUR)).unwrap_or(0);
                (dice.magnitude(1..=span), if dice.hits(500) { by } else { -by })
            });
            let cancels_at = sometimes(Kind::Cancelled, dice).then(|| dice.magnitude(MINUTE..=4 * HOUR));
            LifePlan {
                end,
                loses_power: power && (!kill || dice.hits(500)),
                // All downtimes together are shorter than the ten minutes for which a call made again finds its work.
                downtime_ms: dice.magnitude(1..=45_000),
                full,
                disk_errors,
                jump,
                cancels_at,
            }
        })
        .collect()
}

fn wire(kinds: &BTreeSet<Kind>, span: u64, dice: &mut Dice) -> Wire {
    let mut rate = |kind, most: u64| if kinds.contains(&kind) { dice.magnitude(5..=most) } else { 0 };
    Wire {
        refused: rate(Kind::Refused, 300),
        lost_before: rate(Kind::LostBefore, 200),
        lost_after: rate(Kind::LostAfter, 200),
        timeout_before: rate(Kind::TimeoutBefore, 100),
        timeout_after: rate(Kind::TimeoutAfter, 100),
        late_effect: rate(Kind::LateEffect, 150),
        stale: rate(Kind::Stale, 300),
        outage: kinds.contains(&Kind::Outage).then(|| {
            let from = dice.number(0..=span + HOUR);
            (from, from + dice.magnitude(1_000..=10 * HOUR))
        }),
        crashes: if kinds.contains(&Kind::ProviderCrash) {
            let count = dice.magnitude(1..=30);
            (0..count)
                .map(|_| {
                    let at = dice.number(0..=span + 4 * HOUR);
                    (at, at + dice.magnitude(1_000..=5 * MINUTE))
                })
                .collect()
        } else {
            Vec::new()
        },
    }
}

/// What is set differently in each world.
struct Knobs {
    linger_s: u64,
    running: u64,
    requests: u64,
    rescues: u64,
    base_s: u64,
    poll_ms: u64,
}

impl Knobs {
    fn draw(dice: &mut Dice) -> Self {
        let linger_s = dice.magnitude(1..=1800);
        let (running, requests) = (dice.magnitude(1..=20), dice.magnitude(1..=200));
        let (rescues, base_s) = (dice.magnitude(1..=16), dice.magnitude(1..=60));
        Self { linger_s, running, requests, rescues, base_s, poll_ms: dice.magnitude(30_000..=5 * MINUTE) }
    }
}

fn settings(knobs: &Knobs) -> String {
    let Knobs { linger_s, running, requests, rescues, base_s, poll_ms } = knobs;
    let (keep_s, poll_max_ms) = (KEEP_RESULTS.as_secs(), poll_ms * 4);
    format!(
        r#"
server = {{ listen = "127.0.0.1:1", admin = "127.0.0.1:2" }}
store = {{ folder = "in memory", keep_results = "{keep_s}s" }}
lanes = {{ linger = "{linger_s}s", max_running = {running}, max_requests = {requests}, rescue_concurrency = {rescues} }}
retry = {{ max_attempts = {MAX_ATTEMPTS}, base = "{base_s}s", cap = "30m" }}
# Real time must decide nothing.
plugins.router.time_limit = "60s"
plugins.providers.openai.time_limit = "60s"
plugins.providers.anthropic.time_limit = "60s"
plugins.cost_policy.time_limit = "60s"
plugins.retry_policy.time_limit = "60s"

[tenants]
search.keys = [{{ env = "SEARCH_KEY" }}]
mail.keys = [{{ env = "MAIL_KEY" }}]

[backends.simulated]
provider = "openai"
base_url = "http://provider.invalid"
api_key = {{ env = "PROVIDER_KEY" }}
answer_timeout = "60s"
models = ["gpt-*"]
config = {{ poll_ms = {poll_ms}, poll_max_ms = {poll_max_ms}, settle_ms = {SETTLE_MS}, delete_files = "all" }}

[backends.claude]
provider = "anthropic"
base_url = "http://provider.invalid"
api_key = {{ env = "PROVIDER_KEY" }}
answer_timeout = "60s"
models = ["claude-*"]
config = {{ poll_ms = {poll_ms}, poll_max_ms = {poll_max_ms}, settle_ms = {SETTLE_MS} }}
"#
    )
}
