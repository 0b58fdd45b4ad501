//! One life of the daemon: opened on what the last one left, run until it dies.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use offpeak::app::{Core, Running, StorePlace, World as Surroundings};
use offpeak::clock::{Chance, Clock, VirtualClock};
use offpeak::config::Config;
use offpeak::gateway::Gateway;
use offpeak::upstream::Network;
use offpeak_core::scheduler::Event;
use offpeak_core::words::Timestamp;
use offpeak_store::disk::memory::MemoryDisk;
use tokio::runtime::Builder;
use tokio::task::JoinHandle;

use crate::api::Api;
use crate::check;
use crate::client::{Session, TENANT_KEYS};
use crate::plan::{End, KEEP_RESULTS, LifePlan, PROVIDER_KEY};
use crate::wire;
use crate::world::{Life, World};

/// In calm, everything must be over within this: a batch that expires twice, and some.
const CALM: Duration = Duration::from_hours(24 * 12);

/// A daemon that takes longer to open or to stop hangs.
const PATIENCE: Duration = Duration::from_hours(1);

/// After so long nobody may ask for anything any more.
const AFTERWARDS_MS: i64 = 70 * 24 * 3_600_000;

/// What a life leaves behind.
pub(crate) struct Left {
    pub(crate) disk: Arc<MemoryDisk>,
    /// True time.
    pub(crate) at_ms: u64,
    /// How far the wall clock is off.
    pub(crate) skew_ms: i64,
}

/// Runs one life, in a runtime of its own: what is dropped with that is what dies with a process.
pub(crate) fn run(world: &Arc<World>, number: u64, plan: &LifePlan, before: &Left) -> Result<Left, String> {
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .map_err(|error| format!("no runtime: {error}"))?;
    let trouble_before = before.disk.trouble();
    let life = runtime.block_on(async {
        let life = Life::new(world.clone(), plan.clone(), before.disk.clone(), before.at_ms);
        let skew_ms = live(&life, number, before.skew_ms).await?;
        Ok::<_, String>((life, skew_ms))
    });
    let (life, skew_ms) = life?;
    let at_ms = runtime.block_on(async { life.now_ms() });
    let stopped_well = matches!(plan.end, End::Stop(_) | End::Calm) && !life.disk.is_off();
    drop(runtime);
    count(&life, trouble_before);
    let disk = if stopped_well { life.disk.clone() } else { wreck(world, &life) };
    disk.limit_bytes(None);
    disk.fail_steps(0..0);
    if stopped_well {
        check::disk(world, &disk, plan.end == End::Calm);
    }
    Ok(Left { disk, at_ms: at_ms + plan.downtime_ms, skew_ms })
}

/// Counts how the life ended, and what the disk has done to it.
fn count(life: &Life, trouble_before: (u64, u64)) {
    let world = &life.world;
    world.count("(lives)");
    match life.plan.end {
        End::AtDiskStep(_) if life.disk.is_off() => world.count(life.plan.end.name()),
        // These are counted where they happen; a life may be over before.
        End::AtDiskStep(_) | End::BeforeCall(_) | End::AfterCall(_) => {}
        End::At(_) | End::Stop(_) | End::Calm => world.count(life.plan.end.name()),
    }
    let (failed, refused) = life.disk.trouble();
    world.count_many("disk: an operation fails", failed.saturating_sub(trouble_before.0));
    world.count_many("disk: full", refused.saturating_sub(trouble_before.1));
}

/// The disk as the next life finds it.
fn wreck(world: &World, life: &Life) -> Arc<MemoryDisk> {
    let mut dice = world.dice.lock();
    if life.plan.loses_power {
        let keeps = dice.pick(&[0, 200, 500, 900]).unwrap_or(500);
        let (mut kept, mut lost) = (0, 0);
        let disk = life.disk.after_power_failure(&mut || {
            let is_kept = dice.hits(keeps);
            *(if is_kept { &mut kept } else { &mut lost }) += 1;
            is_kept
        });
        drop(dice);
        world.count("disk: power fails");
        world.count_many("disk: a write that was not synced is lost", lost);
        world.count_many("(writes that were not synced and stayed)", kept);
        disk
    } else {
        // What a process wrote is there when it was killed, synced or not.
        life.disk.after_power_failure(&mut || true)
    }
}

async fn live(life: &Arc<Life>, number: u64, skew_ms: i64) -> Result<i64, String> {
    life.note(&|| format!("life {number} begins: {:?}", life.plan));
    let clock = VirtualClock::starting_at(Timestamp(life.wall().0.saturating_add_signed(skew_ms)));
    let opened = tokio::time::timeout(PATIENCE, open(life, number, Clock::Virtual(clock))).await;
    let Some((gateway, running)) = opened.map_err(|_| "the daemon hangs while it opens")?? else {
        return Ok(skew_ms);
    };
    let tasks = begin_sessions(life, &gateway);
    tokio::spawn(disk_runs_full(life.clone()));
    tokio::spawn(provider_cancels(life.clone()));
    if let Some((at, by)) = life.plan.jump {
        let life = life.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(at)).await;
            life.note(&|| format!("the clock is set by {by} ms"));
            life.world.count(if by > 0 { "clock: set forward" } else { "clock: set back" });
            clock.set_by(by);
        });
    }
    until_it_ends(life, &gateway, running, clock).await;
    let wall = Clock::Virtual(clock).now().0;
    for task in tasks {
        task.abort();
    }
    Ok(i64::try_from(wall).unwrap_or(0) - i64::try_from(life.wall().0).unwrap_or(0))
}

/// Lets the clients begin, or go on.
pub(crate) fn begin_sessions(life: &Arc<Life>, gateway: &Arc<Gateway>) -> Vec<JoinHandle<()>> {
    let clients = life.world.plan.clients.iter().zip(&life.world.clients).enumerate();
    clients
        .map(|(number, (script, client))| {
            let session = Session {
                life: life.clone(),
                gateway: gateway.clone(),
                client: client.clone(),
                number,
                script: script.clone(),
            };
            tokio::spawn(session.run())
        })
        .collect()
}

/// Opens the daemon. None if it died of that.
pub(crate) async fn open(
    life: &Arc<Life>,
    number: u64,
    clock: Clock,
) -> Result<Option<(Arc<Gateway>, Running)>, String> {
    let world = &life.world;
    let env: BTreeMap<String, String> =
        [("SEARCH_KEY", TENANT_KEYS[0]), ("MAIL_KEY", TENANT_KEYS[1]), ("PROVIDER_KEY", PROVIDER_KEY)]
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
    let settings = world.plan.settings.replace("in memory", &world.folder.path().display().to_string());
    let config = Config::from_text("simulated", &settings, &env).map_err(|errors| errors.to_string())?;
    loop {
        let surroundings = Surroundings {
            clock,
            chance: Chance::seeded(world.plan.seed.wrapping_mul(31).wrapping_add(number)),
            place: Some(StorePlace {
                disk: life.disk.clone(),
                segment_bytes: world.plan.segment_bytes,
                checkpoint_bytes: world.plan.checkpoint_bytes,
            }),
            network: Network::InProcess(wire::network(life)),
            engine: Some(world.engine.clone()),
        };
        let opened = match Core::open(&config, surroundings).await {
            Ok(core) => {
                let gateway = core.gateway.clone();
                core.start().await.map(|running| (gateway, running)).map_err(|error| error.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        match opened {
            Ok(opened) => return Ok(Some(opened)),
            Err(error) if life.is_over() => {
                life.note(&|| format!("died while opening: {error}"));
                return Ok(None);
            }
            // Whoever supervises the daemon starts it again.
            Err(error) if life.plan.disk_errors.is_some() => {
                life.note(&|| format!("did not open: {error}"));
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Err(error) => return Err(format!("the daemon does not open: {error}")),
        }
    }
}

async fn until_it_ends(life: &Arc<Life>, gateway: &Arc<Gateway>, running: Running, clock: &VirtualClock) {
    match life.plan.end {
        End::Stop(after) => {
            life.ended_or(Duration::from_millis(after)).await;
            stop(life, running).await;
        }
        End::At(after) => {
            life.ended_or(Duration::from_millis(after)).await;
            life.note(&|| "killed".to_owned());
            life.end();
        }
        End::AtDiskStep(_) | End::BeforeCall(_) | End::AfterCall(_) => {
            // It may be that there are fewer.
            life.ended_or(Duration::from_hours(36)).await;
            life.note(&|| "dead".to_owned());
            life.end();
        }
        End::Calm => calm(life, gateway, running, clock).await,
    }
}

async fn stop(life: &Life, running: Running) {
    life.note(&|| "stopping".to_owned());
    match tokio::time::timeout(PATIENCE, running.stop(Duration::from_secs(30))).await {
        Ok(stopped) => life.note(&|| format!("stopped: {stopped:?}")),
        Err(_) if life.is_over() => life.note(&|| "died while stopping".to_owned()),
        Err(_) => life.world.notes.violation("the daemon does not stop".to_owned()),
    }
    life.end();
}

/// The last life: everybody gets what is due, and nothing is left over.
pub(crate) async fn calm(life: &Arc<Life>, gateway: &Arc<Gateway>, running: Running, clock: &VirtualClock) {
    let world = &life.world;
    world.provider.faults().set(provider_sim::Faults::default());
    let all_done = || world.clients.iter().all(|client| client.lock().is_done);
    let limit = tokio::time::Instant::now() + CALM;
    while !all_done() && tokio::time::Instant::now() < limit {
        // Somebody in a hurry.
        tokio::select! {
            biased;
            () = life.bell.notified() => {}
            () = tokio::time::sleep(Duration::from_hours(1)) => {
                for lane in gateway.lanes.view().await {
                    gateway.lanes.tell(Event::Flush(lane.lane));
                }
            }
        }
    }
    // Batches whose requests all have answers already still have to be tidied up after.
    let limit = tokio::time::Instant::now() + CALM;
    while tokio::time::Instant::now() < limit && !is_idle(gateway).await {
        tokio::time::sleep(Duration::from_mins(30)).await;
    }
    world.pass_to(life.now_ms());
    if let Some(tampering) = world.plan.tampering
        && let Err(why) = tampering.before_checks(world, gateway).await
    {
        world.notes.violation(why);
    }
    check::promises(world, &gateway.store).await;
    check::provider(world);
    check::nothing_under_way(world, gateway).await;
    check::ledger(world, gateway).await;
    let lanes_before = gateway.lanes.view().await.len();
    tokio::time::sleep(KEEP_RESULTS + KEEP_RESULTS / 4).await;
    // Jobs are remembered, and their inputs kept, for a month and more.
    clock.set_by(AFTERWARDS_MS);
    tokio::time::sleep(KEEP_RESULTS / 4).await;
    if let Some(tampering) = world.plan.tampering
        && let Err(why) = tampering.before_the_end(world, gateway).await
    {
        world.notes.violation(why);
    }
    check::nothing_left(world, gateway, lanes_before).await;
    stop(life, running).await;
}

async fn is_idle(gateway: &Gateway) -> bool {
    let waiting = gateway.lanes.view().await.iter().any(|lane| lane.sums.count > 0);
    !waiting && gateway.store.open_batches().await.is_ok_and(|batches| batches.is_empty())
}

async fn disk_runs_full(life: Arc<Life>) {
    let Some((from, length)) = life.plan.full else { return };
    tokio::time::sleep(Duration::from_millis(from)).await;
    let room = life.world.dice.lock().magnitude(1..=8192);
    life.note(&|| format!("the disk has {room} bytes left"));
    life.disk.limit_bytes(Some(life.disk.bytes() + room));
    tokio::time::sleep(Duration::from_millis(length)).await;
    life.note(&|| "the disk has room again".to_owned());
    life.disk.limit_bytes(None);
}

/// Somebody cancels a batch on the provider's own pages.
async fn provider_cancels(life: Arc<Life>) {
    let Some(at) = life.plan.cancels_at else { return };
    tokio::time::sleep(Duration::from_millis(at)).await;
    let world = &life.world;
    let of = if world.dice.lock().hits(500) { Api::Messages } else { Api::Chat };
    let folder = if of == Api::Messages { "/v1/messages/batches" } else { "/v1/batches" };
    let batches = check::listing(world, &format!("{folder}?limit=100"));
    let ids: Vec<&str> = batches.iter().filter_map(|batch| batch.get("id")?.as_str()).collect();
    let Some(id) = world.dice.lock().pick(&ids) else { return };
    let mut request = Request::new(Bytes::new());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = format!("{folder}/{id}/cancel").parse().unwrap_or_default();
    check::authorize(&mut request);
    let answer = world.ask(life.now_ms(), request);
    life.note(&|| format!("batch {id} is cancelled at the provider: {}", answer.status));
    if answer.status.is_success() {
        world.count("batch: cancelled by somebody else");
    }
}

impl Life {
    /// Until it is over, or so long.
    async fn ended_or(&self, limit: Duration) {
        let limit = tokio::time::Instant::now() + limit;
        while !self.is_over() && tokio::time::Instant::now() < limit {
            let look_again = tokio::time::Instant::now() + Duration::from_mins(1);
            tokio::select! {
                biased;
                () = self.bell.notified() => {}
                () = tokio::time::sleep_until(limit.min(look_again)) => {}
            }
        }
    }
}

/// The first life begins with nothing.
pub(crate) fn nothing() -> Left {
    Left { disk: MemoryDisk::new(), at_ms: 0, skew_ms: 0 }
}
