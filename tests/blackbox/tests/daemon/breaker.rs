//! A backend that fails again and again is left alone, tried now and then, and used again when it is well.

use http::StatusCode;
use provider_sim::{Endpoint, Fault, Faults, HttpRule, Mode, Server, Target, TargetGroup};

use crate::rig::{Daemon, MODEL, Rig, eventually, sim};

/// Every real-time call is answered with this status.
fn answering(status: u16) -> Faults {
    let rule = HttpRule {
        on: Target::Group(TargetGroup::Realtime),
        fault: Fault::Status { status, retry_after_ms: None },
        probability: 1.0,
        from_ms: None,
        until_ms: None,
    };
    Faults { http: vec![rule], ..Faults::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_rests_also_over_a_restart_and_is_tried_again() {
    let settings = "[breaker]\nfailures = 3\nrest = \"10s\"";
    let provider = sim().faults(answering(500)).build();
    let server = Server::on_free_port(provider.clone()).await.unwrap();
    let daemon = Daemon::start(&server.url(), settings).await;
    for n in 0..3 {
        assert_eq!(
            daemon.ask(MODEL, &format!("question {n}")).await.status,
            StatusCode::INTERNAL_SERVER_ERROR
        );
    }
    let refused = daemon.ask(MODEL, "one more").await;
    assert_eq!(refused.error(), (503, "backend_out_of_order"));
    assert!(!refused.header("retry-after").is_empty());
    assert_eq!(provider.calls(Endpoint::ChatCompletions), 3, "nothing was sent");
    assert_eq!(daemon.metric("offpeak_breaker_open", "realtime").await, 1);
    let daemon = daemon.restart(&server.url(), settings).await;
    assert_eq!(daemon.ask(MODEL, "after a restart").await.error(), (503, "backend_out_of_order"));
    provider.faults().set(Faults::default());
    eventually("it is used again", async || {
        (daemon.ask(MODEL, "well again").await.status == StatusCode::OK).then_some(())
    })
    .await;
    assert_eq!(daemon.metric("offpeak_breaker_open", "realtime").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_callers_own_errors_are_no_failures_of_the_backend() {
    let rig = Rig::start(sim().faults(answering(400)), "[breaker]\nfailures = 2").await;
    for n in 0..5 {
        assert_eq!(rig.daemon.ask(MODEL, &format!("question {n}")).await.status, StatusCode::BAD_REQUEST);
    }
    assert_eq!(rig.provider.calls(Endpoint::ChatCompletions), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tier_without_room_is_followed_by_the_next_offer() {
    let faults = Faults { flex_unavailable: 1.0, ..Faults::default() };
    let settings = "[backends.simulated]\nconfig.flex = true";
    let rig = Rig::start(sim().faults(faults), settings).await;
    let answer = rig.daemon.defer("search", MODEL, "in ten minutes", "10m").await;
    assert!(answer.answers(MODEL, "in ten minutes"), "{answer:?}");
    assert_eq!((rig.provider.calls(Endpoint::ChatCompletions), rig.billed(Mode::Realtime)), (2, 1));
    assert_eq!(rig.daemon.metric("offpeak_offer_without_room_total", "").await, 1);
    rig.provider.faults().set(Faults::default());
    let answer = rig.daemon.defer("search", MODEL, "with room", "10m").await;
    assert!(answer.answers(MODEL, "with room"), "{answer:?}");
    assert_eq!((rig.billed(Mode::Flex), rig.billed(Mode::Realtime)), (1, 1));
}
