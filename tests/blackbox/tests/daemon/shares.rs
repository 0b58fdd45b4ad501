//! What a backend takes is shared: batches and turns in real time between tenants, by `share`, and the real-time quota between
//! what is deferred and what is asked now.

use std::time::Duration;

use http::StatusCode;
use provider_sim::{BatchFault, Builder, Endpoint, Fault, Limits, Mode, RealtimeLimits, SimTime};

use crate::rig::{BY_HAND, MODEL, Rig, Ticket, eventually, sim};

/// The beginning of a provider's minute.
const ON_THE_MINUTE: SimTime = SimTime(1_795_000_020_000);

/// So many of each tenant, in turn, due after this time.
async fn of_both(rig: &Rig, each: usize, sla: &str) -> [Vec<Ticket>; 2] {
    let mut tickets = [Vec::new(), Vec::new()];
    for n in 0..each {
        for (tenant, tickets) in ["search", "mail"].into_iter().zip(&mut tickets) {
            tickets.push(rig.daemon.ticket_of(tenant, &format!("question {n:02} of {tenant}"), sla).await);
        }
    }
    tickets
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_has_of_each_tenant_what_its_share_says() {
    let settings = format!("{BY_HAND}\nmax_running = 1\nmax_requests = 20\n[tenants.search]\nshare = 300");
    let rig = Rig::start(sim().speed(60), &settings).await;
    // A batch is away until the provider's clock is moved.
    for _ in 0..2 {
        rig.provider.faults().next_batch(vec![BatchFault::Turnaround { ms: 20 * 3_600_000 }]);
    }
    rig.daemon.ticket_of("mail", "takes the only place", "24h").await;
    rig.daemon.flush().await;
    eventually("it is taken", async || (rig.batches() == 1).then_some(())).await;
    of_both(&rig, 60, "24h").await;
    rig.daemon.wait_for_waiting(120).await;
    rig.provider.clock().advance(Duration::from_hours(21));
    eventually("the next batch leaves", async || (rig.batches() == 2).then_some(())).await;
    rig.daemon.wait_for_waiting(100).await;
    let lanes = rig.daemon.lanes().await;
    let waits = |tenant: &str| {
        let of_tenant = lanes.iter().filter(|lane| lane["tenant"] == tenant);
        of_tenant.map(|lane| lane["waiting_requests"].as_u64().unwrap()).sum::<u64>()
    };
    let taken = (60 - waits("search"), 60 - waits("mail"));
    assert!((14..=16).contains(&taken.0) && taken.0 + taken.1 == 20, "{taken:?}");
}

/// A provider of which each account has so many calls of a model in a minute, whose clock goes as ours does.
fn with_calls_a_minute(calls: u32) -> Builder {
    let realtime = RealtimeLimits { requests_per_minute: Some(calls), tokens_per_minute: None };
    sim().speed(1).epoch(ON_THE_MINUTE).limits(Limits { realtime, ..Limits::default() })
}

/// What comes after is due too soon for a batch, and too late to be asked now.
const RESCUED: &str = "[backends.simulated]\nconfig = { batch_usual = \"2s\", standard_usual = \"50ms\" }";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rescues_of_each_tenant_have_turns_as_its_share_says() {
    const CALLS: u32 = 24;
    let settings = format!("{RESCUED}\nlanes.rescue_concurrency = 1\n[tenants.search]\nshare = 300");
    let rig = Rig::start(with_calls_a_minute(CALLS), &settings).await;
    // The first has the only turn until all are there; after the last that the provider takes, nothing moves.
    rig.provider.faults().next(Endpoint::ChatCompletions, Fault::Slow { ms: 5_000 });
    let [search, mail] = of_both(&rig, 40, "50s").await;
    eventually("the minute's calls are made", async || {
        (rig.billed(Mode::Realtime) == u64::from(CALLS)).then_some(())
    })
    .await;
    let answered = async |tickets: &[Ticket]| {
        let mut answered = 0_u64;
        for ticket in tickets {
            answered += u64::from(rig.daemon.look(ticket).await.status == StatusCode::OK);
        }
        answered
    };
    let taken = eventually("their answers are there", async || {
        let taken = (answered(&search).await, answered(&mail).await);
        (taken.0 + taken.1 == u64::from(CALLS)).then_some(taken)
    })
    .await;
    assert!((16..=20).contains(&taken.0), "{taken:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_time_calls_beside_a_rescue_find_their_half_of_the_quota() {
    let rig = Rig::start(with_calls_a_minute(60), RESCUED).await;
    let [search, mail] = of_both(&rig, 25, "9m").await;
    eventually("the rescue is under way", async || (rig.billed(Mode::Realtime) >= 30).then_some(())).await;
    for n in 0..20 {
        let prompt = format!("now {n}");
        let answer = rig.daemon.ask(MODEL, &prompt).await;
        assert!(answer.answers(MODEL, &prompt), "{answer:?}");
    }
    assert!(rig.billed(Mode::Realtime) <= 60);
    eventually("none was refused", async || {
        (rig.provider.calls(Endpoint::ChatCompletions) == rig.billed(Mode::Realtime)).then_some(())
    })
    .await;
    // The rescue goes on as soon as it hears that there is more.
    rig.provider.clock().advance(Duration::from_mins(1));
    assert!(rig.daemon.ask(MODEL, "now").await.answers(MODEL, "now"));
    rig.all_answered(&search).await;
    rig.all_answered(&mail).await;
    assert_eq!((rig.billed(Mode::Realtime), rig.ran_twice()), (71, 0));
}
