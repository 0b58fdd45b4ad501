//! The data folder becomes one that nobody can write to, while the daemon runs, and a while later it is as before.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body_util::Full;
use offpeak::admin;
use offpeak::clock::{Clock, VirtualClock};
use offpeak::gateway::Gateway;
use offpeak_store::disk::memory::MemoryDisk;
use tokio::runtime::Builder;

use crate::api::Api;
use crate::client::{Answer, Session};
use crate::life::{begin_sessions, calm, open};
use crate::plan::{LAST, Plan, Script, Way};
use crate::world::{Life, World};
use crate::{PANICKED, Plugins, notice_panics};

/// How long nothing can be written.
const MINUTES: u64 = 30;

/// An operator who looks is answered within this time.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Plays it; returns what went otherwise than promised.
///
/// # Errors
/// It cannot be played.
pub fn unwritable(plugins: &Plugins) -> Result<Vec<String>, String> {
    notice_panics();
    PANICKED.set(false);
    let world = World::new(Plan::quiet(), plugins.engine.clone(), false)
        .map_err(|error| format!("no folder for the run: {error}"))?;
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .map_err(|error| format!("no runtime: {error}"))?;
    runtime.block_on(live(&world))?;
    if PANICKED.get() {
        world.notes.violation("a task panicked".to_owned());
    }
    Ok(world.notes.violations())
}

/// The clients of the plan ask before it, and go on asking; others ask while it lasts.
async fn live(world: &Arc<World>) -> Result<(), String> {
    let life = Life::new(world.clone(), LAST, MemoryDisk::new(), 0);
    let clock = VirtualClock::starting_at(life.wall());
    let opened = open(&life, 0, Clock::Virtual(clock)).await?;
    let (gateway, running) = opened.ok_or("the daemon does not open")?;
    begin_sessions(&life, &gateway);
    // By now some wait, some are in batches, and some have their answers.
    tokio::time::sleep(Duration::from_hours(1)).await;
    life.disk.set_read_only(true);
    for minute in 0..MINUTES {
        while_it_lasts(&life, &gateway, minute).await;
        tokio::time::sleep(Duration::from_mins(1)).await;
    }
    life.disk.set_read_only(false);
    tokio::time::sleep(Duration::from_mins(1)).await;
    let answer = ask(&life, &gateway, Api::Chat, "taken in again", "24h").await;
    expect(world, "what can wait is taken in again", &answer, answer.status == StatusCode::ACCEPTED);
    calm(&life, &gateway, running, clock).await;
    let executions = world.provider.bill().executions;
    let runs = |api: Api, prompt: &str| api.key(prompt).map_or(0, |key| executions.of(key));
    let refused = (0..MINUTES).flat_map(|minute| [Api::Chat, Api::Messages].map(|api| (api, unkept(minute))));
    let run: u32 = refused.map(|(api, prompt)| runs(api, &prompt)).sum();
    if (run, runs(Api::Chat, "taken in again")) != (0, 1) {
        world.notes.violation(format!("what was refused ran {run} times"));
    }
    Ok(())
}

/// What is asked while nothing can be kept.
fn unkept(minute: u64) -> String {
    format!("cannot be kept {minute}")
}

/// What can wait is refused with a time to come again; real time goes on.
async fn while_it_lasts(life: &Arc<Life>, gateway: &Arc<Gateway>, minute: u64) {
    let world = &life.world;
    for api in [Api::Chat, Api::Messages] {
        let refused = ask(life, gateway, api, &unkept(minute), "24h").await;
        let is_right = refused.status == StatusCode::SERVICE_UNAVAILABLE && refused.says_when_to_come_again();
        expect(world, "what cannot be kept is refused for a while", &refused, is_right);
        let prompt = format!("at once {minute}");
        let answered = ask(life, gateway, api, &prompt, "realtime").await;
        expect(world, "real time goes on", &answered, answered.is_to(api, &prompt));
    }
    for path in ["/admin/v1/lanes", "/admin/v1/explain/0", "/admin/v1/batches"] {
        let request = http::Request::get(path).body(Full::new(Bytes::new()));
        let Ok(request) = request else { continue };
        let answer = admin::handle(gateway.clone(), true, request);
        let answer = tokio::time::timeout(AT_ONCE, answer).await.map(|answer| answer.status());
        if answer != Ok(StatusCode::OK) {
            world.notes.violation(format!("{path} is not answered: {answer:?}"));
        }
    }
}

async fn ask(life: &Arc<Life>, gateway: &Arc<Gateway>, api: Api, prompt: &str, sla: &str) -> Answer {
    let session = Session {
        life: life.clone(),
        gateway: gateway.clone(),
        client: Arc::default(),
        number: 0,
        script: Script::of(api, Way::Ticket),
    };
    let headers = [("x-offpeak-sla", sla), ("prefer", "respond-async")];
    session.send(http::Method::POST, api.path(), api.bytes(prompt), &headers).await
}

fn expect(world: &World, what: &str, answer: &Answer, is_so: bool) {
    if !is_so {
        world.notes.violation(format!("{what}: {answer:?}"));
    }
}
