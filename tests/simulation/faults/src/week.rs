//! A week of traffic without faults: what the data folder holds while it passes.

use std::sync::Arc;
use std::time::Duration;

use offpeak::clock::{Clock, VirtualClock};
use offpeak::gateway::Gateway;
use offpeak_store::disk::Disk;
use offpeak_store::disk::memory::MemoryDisk;
use tokio::runtime::Builder;

use crate::life::{begin_sessions, calm, open};
use crate::plan::{LAST, Plan};
use crate::world::{Life, World};
use crate::{PANICKED, Plugins, notice_panics};

const DAY_MS: u64 = 24 * 3_600_000;

/// What the data folder held on one day.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Day {
    /// Requests that were made that day, those in real time included.
    pub asked: u64,
    /// Bytes of the segments that were begun that day.
    pub written: u64,
    /// The most bytes that the segments of the log had.
    pub log: u64,
    /// The most bytes that the index had.
    pub index: u64,
    /// The most lanes that there were.
    pub lanes: usize,
}

/// A week.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Week {
    /// Its days.
    pub days: Vec<Day>,
    /// Promises that were broken; empty if all is well.
    pub violations: Vec<String>,
}

/// Plays a week in which so many clients come.
///
/// # Errors
/// It cannot be played.
pub fn week(plugins: &Plugins, clients: u64) -> Result<Week, String> {
    notice_panics();
    PANICKED.set(false);
    let world = World::new(Plan::week(clients), plugins.engine.clone(), false)
        .map_err(|error| format!("no folder for the run: {error}"))?;
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .map_err(|error| format!("no runtime: {error}"))?;
    let days = runtime.block_on(live(&world))?;
    if PANICKED.get() {
        world.notes.violation("a task panicked".to_owned());
    }
    Ok(Week { days, violations: world.notes.violations() })
}

async fn live(world: &Arc<World>) -> Result<Vec<Day>, String> {
    let life = Life::new(world.clone(), LAST, MemoryDisk::new(), 0);
    let clock = VirtualClock::starting_at(life.wall());
    let opened = open(&life, 0, Clock::Virtual(clock)).await?;
    let (gateway, running) = opened.ok_or("the daemon does not open")?;
    begin_sessions(&life, &gateway);
    let mut days = Vec::new();
    let mut segments = 0;
    for number in 0..7 {
        let mut day = Day::default();
        for _ in 0..24 {
            tokio::time::sleep(Duration::from_hours(1)).await;
            look(&life, &gateway, &mut day).await;
        }
        day.asked = asked_on(&world.plan, number);
        let last = life.disk.segments().ok().and_then(|all| all.into_iter().max()).unwrap_or(0);
        day.written = u64::from(last - segments) * u64::from(world.plan.segment_bytes);
        segments = last;
        days.push(day);
    }
    calm(&life, &gateway, running, clock).await;
    Ok(days)
}

/// Requests that clients make on a day.
fn asked_on(plan: &Plan, day: u64) -> u64 {
    let on_it = plan.clients.iter().filter(|script| script.arrives_ms / DAY_MS == day);
    on_it.map(|script| script.lines.max(1)).sum()
}

async fn look(life: &Life, gateway: &Gateway, day: &mut Day) {
    day.log = day.log.max(gateway.store.stats().log_bytes);
    day.index = day.index.max(life.disk.index_bytes());
    day.lanes = day.lanes.max(gateway.lanes.view().await.len());
}
