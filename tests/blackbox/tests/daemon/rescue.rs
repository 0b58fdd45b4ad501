//! Deadlines that a batch would miss are kept in real time, at its price.

use provider_sim::{BatchFault, Endpoint, Faults, Mode};

use crate::rig::{BY_HAND, MODEL, Rig, eventually, sim};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_leave_in_time_is_run_in_real_time() {
    // One batch at a time, and the first takes (nearly) for ever: the second waits at the gate until its deadline.
    let settings = "[backends.simulated]\nconfig.batch_usual = \"2s\"\nlanes.max_running = 1";
    let rig = Rig::start(sim(), settings).await;
    rig.provider.faults().next_batch(vec![BatchFault::Turnaround { ms: 20 * 3_600_000 }]);
    let patient = rig.daemon.ticket("can wait").await;
    eventually("the first batch is made", async || (rig.batches() == 1).then_some(())).await;
    let urgent = rig.daemon.ticket_of("search", "cannot", "5s").await;
    let answer = rig.daemon.redeem(&urgent).await;
    assert!(answer.is_to(&urgent), "{answer:?}");
    assert_eq!(answer.header("x-offpeak-mode"), "deferred");
    assert_eq!((rig.billed(Mode::Realtime), rig.billed(Mode::Batch), rig.batches()), (1, 0, 1));
    assert_eq!(rig.daemon.metric("offpeak_batch_requests_sealed_total", "rescue").await, 1);
    assert_eq!(rig.daemon.look(&patient).await.status.as_u16(), 202, "only what is urgent pays for it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_leaves_early_enough_for_its_earliest_deadline() {
    let settings =
        "[backends.simulated]\nconfig.batch_usual = \"1s\"\nlanes = { linger = \"1h\", rescue = \"500ms\" }";
    let rig = Rig::start(sim(), settings).await;
    let urgent = rig.daemon.ticket_of("search", "soon", "3s").await;
    rig.all_answered(&[urgent]).await;
    assert_eq!((rig.billed(Mode::Batch), rig.billed(Mode::Realtime)), (1, 0));
    assert_eq!(rig.daemon.metric("offpeak_batches_sealed_total", "deadline").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_that_no_batch_keeps_is_bought_in_real_time_at_once() {
    let rig = Rig::start(sim(), BY_HAND).await;
    let answer = rig.daemon.defer("search", MODEL, "in half a minute", "30s").await;
    assert!(answer.answers(MODEL, "in half a minute"), "{answer:?}");
    assert_eq!(answer.header("x-offpeak-mode"), "realtime");
    assert_eq!((rig.billed(Mode::Realtime), rig.billed(Mode::Batch)), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rescue_with_time_left_is_bought_as_flex_and_without_room_for_it_at_the_list_price() {
    let settings = "[backends.simulated]\nlanes.max_running = 1\n\
                    config.batch_usual = \"2s\"\nconfig.standard_usual = \"50ms\"\n\
                    config.tiers.flex = { price_permille = 600, usual = \"2s\" }";
    let rig = Rig::start(sim(), settings).await;
    rig.provider.faults().next_batch(vec![BatchFault::Turnaround { ms: 20 * 3_600_000 }]);
    rig.daemon.ticket("takes the only place").await;
    eventually("the first batch is made", async || (rig.batches() == 1).then_some(())).await;
    let urgent = rig.daemon.ticket_of("search", "with room", "9m").await;
    rig.all_answered(&[urgent]).await;
    assert_eq!((rig.billed(Mode::Flex), rig.billed(Mode::Realtime)), (1, 0));
    rig.provider.faults().set(Faults { flex_unavailable: 1.0, ..Faults::default() });
    let urgent = rig.daemon.ticket_of("search", "without", "9m").await;
    let answers = rig.all_answered(&[urgent]).await;
    assert_eq!(answers[0].header("x-offpeak-attempts"), "1", "want of room is nobody's failure");
    assert_eq!((rig.billed(Mode::Flex), rig.billed(Mode::Realtime), rig.ran_twice()), (1, 1, 0));
    assert_eq!(rig.provider.calls(Endpoint::ChatCompletions), 3);
    assert_eq!(rig.daemon.metric("offpeak_offer_without_room_total", "").await, 1);
}
