//! Hostile and broken guests: each gets its own error, and nothing else suffers.

use std::time::{Duration, Instant};

use offpeak_guests::{provider as p, router as r};
use offpeak_host::{
    Limits, PluginErrorKind, RouterPlugin,
    values::provider::{AnswerRef, Event, Item},
};

use super::{
    NOW_MS, batch, call, candidates, envelope, lane, provider, provider_with, route, router, router_with,
    unhurried,
};

/// The kind of error that the guest caused; and whoever calls next is served by a fresh instance.
fn kind(router: &RouterPlugin, model: &str) -> PluginErrorKind {
    let before = router.health();
    let error = route(router, model).unwrap_err();
    assert_eq!((&*error.plugin, error.call), ("misfit", "route"));
    assert!(error.to_string().starts_with("plugin `misfit`, call `route`: "), "{error}");
    assert_eq!(lane(router, r::COUNT), "1", "a fresh instance");
    assert_eq!(router.health().errors, before.errors + 1);
    assert!(!router.health().out_of_use);
    error.kind
}

#[test]
fn a_loop_ends_at_its_time_limit() {
    let limit = Duration::from_millis(300);
    let router = router_with("{}", Limits { call: limit, ..Limits::router() });
    let start = Instant::now();
    assert_eq!(kind(&router, r::LOOP), PluginErrorKind::Timeout { limit });
    assert!(start.elapsed() >= limit, "never cut short");
    assert_eq!(router.health().timeouts, 1);
}

#[test]
fn a_memory_bomb_ends_at_its_memory_limit() {
    let router = router();
    assert_eq!(kind(&router, r::ALLOCATE), PluginErrorKind::OutOfMemory { limit_bytes: 64 << 20 });
    assert_eq!(router.health().traps, 1);
}

#[test]
fn a_panic_is_a_trap_with_its_message() {
    let router = router();
    let PluginErrorKind::Trap { message, .. } = kind(&router, r::PANIC) else { panic!() };
    assert!(message.contains("unreachable"), "{message}");
    assert!(message.contains("told to"), "the plugin's own words: {message}");
    assert_eq!(router.health().traps, 1);
}

#[test]
fn endless_recursion_is_a_trap() {
    let kind = kind(&router(), r::RECURSE);
    assert!(matches!(kind, PluginErrorKind::Trap { .. }), "{kind:?}");
}

#[test]
fn an_answer_that_is_too_large_is_not_taken() {
    let PluginErrorKind::BadAnswer(why) = kind(&router(), r::HUGE_ANSWER) else { panic!() };
    assert_eq!(why, "it handed over more than 1048576 bytes in one call");
}

#[test]
fn a_decision_that_cannot_be_followed_is_a_failure() {
    let router = router();
    for (mischief, said) in [
        (
            r::UNKNOWN_BACKEND,
            "of the backend \"nowhere\", which is not among the candidates: \"standard\" of \"openai\", \"flex\" of \"openai\", \
             \"batch\" of \"openai\"",
        ),
        (r::UNKNOWN_OFFER, "the offer \"gratis\" of the backend \"openai\""),
        (r::ODD_STATUS, "the status 7"),
    ] {
        let error = route(&router, mischief).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    assert_eq!(router.health().errors, 3);
}

#[test]
fn a_plugin_that_keeps_failing_rests_and_is_tried_again() {
    let router = router();
    for _ in 0..5 {
        assert!(!router.health().out_of_use);
        assert!(route(&router, r::PANIC).is_err());
    }
    assert!(router.health().out_of_use);
    let calls = router.health().calls;
    let error = router.route(&envelope("gpt"), &candidates(), NOW_MS + 1000).unwrap_err();
    assert_eq!(error.kind, PluginErrorKind::OutOfUse { rest: Duration::from_secs(9) });
    assert_eq!(router.health().calls, calls, "it was not called");

    let rested_ms = NOW_MS + 10_000;
    assert!(router.route(&envelope(r::PANIC), &candidates(), rested_ms).is_err(), "the probe fails");
    let error = router.route(&envelope("gpt"), &candidates(), rested_ms).unwrap_err();
    assert_eq!(error.kind, PluginErrorKind::OutOfUse { rest: Duration::from_secs(20) });
    assert!(
        router.route(&envelope("gpt"), &candidates(), rested_ms + 20_000).is_ok(),
        "the next probe does not"
    );
    assert!(!router.health().out_of_use);
    assert!(router.route(&envelope("gpt"), &candidates(), rested_ms).is_ok());
}

#[test]
fn a_batch_state_over_the_limit_is_not_taken() {
    let provider = provider();
    let error = provider.batch_step(&batch(p::HUGE_STATE), b"", &Event::Start, NOW_MS).unwrap_err();
    assert_eq!(
        error.kind,
        PluginErrorKind::BadAnswer("a state of 65537 bytes; at most 65536 are kept".into())
    );
    assert!(provider.batch_step(&batch("gpt"), b"", &Event::Start, NOW_MS).is_ok());
}

#[test]
fn a_path_to_another_host_is_not_taken() {
    let provider = provider();
    let error = provider.prepare(&call(p::FOREIGN_PATH), NOW_MS).unwrap_err();
    assert!(
        matches!(&error.kind, PluginErrorKind::BadAnswer(why) if why.contains("@elsewhere.test/")),
        "{error}"
    );
    let error = provider.batch_step(&batch(p::FOREIGN_PATH), b"", &Event::Start, NOW_MS).unwrap_err();
    assert!(matches!(&error.kind, PluginErrorKind::BadAnswer(_)), "{error}");
}

#[test]
fn fewer_results_than_lines_are_not_taken() {
    let provider = provider();
    let lines: [&[u8]; 2] = [b"a 1", b"b 2"];
    let error = provider.decode_results(&batch(p::FEWER_RESULTS), "output", &lines, NOW_MS).unwrap_err();
    assert_eq!(error.kind, PluginErrorKind::BadAnswer("1 answers for 2 lines".into()));
}

#[test]
fn what_a_rewriting_guest_may_not_say_is_not_taken() {
    let provider = provider();
    let answer = AnswerRef { status: 200, content_type: None, body: b"" };
    let error = provider.rewrite_answer(&call(p::ODD_STATUS), b"", answer, NOW_MS).unwrap_err();
    assert_eq!(error.kind, PluginErrorKind::BadAnswer("99 is not the status of an answer".into()));
    let error = provider.rewrite_request(&call(p::HUGE_STATE), b"{}", NOW_MS).unwrap_err();
    assert!(matches!(&error.kind, PluginErrorKind::BadAnswer(why) if why.contains("1048577")), "{error}");
    let error = provider.rewrite_chunk(&call(p::HUGE_STATE), b"", b"x", false, NOW_MS).unwrap_err();
    assert!(matches!(&error.kind, PluginErrorKind::BadAnswer(why) if why.contains("1048578")), "{error}");
    let items = [Item { id: "a", body: b"{}" }];
    let error = provider.encode_items(&batch(p::REFUSE_FOREIGN), &items, NOW_MS).unwrap_err();
    assert!(matches!(&error.kind, PluginErrorKind::BadAnswer(why) if why.contains("nobody")), "{error}");
    let refusal = provider.rewrite_request(&call(p::REFUSE), b"{}", NOW_MS).unwrap().unwrap_err();
    assert_eq!(refusal.param.as_deref(), Some("model"));
}

#[test]
fn a_refusal_is_an_answer_and_not_a_failure() {
    let provider = provider();
    for _ in 0..10 {
        let error = provider.batch_step(&batch(p::REFUSE), b"", &Event::Start, NOW_MS).unwrap_err();
        assert_eq!(error.kind, PluginErrorKind::Refused("told to refuse".into()));
        let error = provider.encode_items(&batch(p::REFUSE), &[], NOW_MS).unwrap_err();
        assert_eq!(
            (error.call, error.kind),
            ("encode-items", PluginErrorKind::Refused("told to refuse".into()))
        );
    }
    assert_eq!(provider.health().errors, 0);
    assert!(!provider.health().out_of_use);
}

#[test]
fn a_chunk_that_does_not_fit_into_the_guest_is_an_error() {
    let limits = Limits { memory_bytes: 4 << 20, ..unhurried(Limits::provider()) };
    let provider = provider_with(limits);
    let body = vec![b'x'; 8 << 20];
    let error = provider.encode_items(&batch("gpt"), &[Item { id: "a", body: &body }], NOW_MS).unwrap_err();
    assert_eq!(error.kind, PluginErrorKind::OutOfMemory { limit_bytes: 4 << 20 });
    assert!(provider.encode_items(&batch("gpt"), &[Item { id: "a", body: b"{}" }], NOW_MS).is_ok());
}

#[test]
fn a_looping_step_ends_at_the_limit_of_steps() {
    let limit = Duration::from_millis(300);
    let provider = provider_with(Limits { step: limit, ..unhurried(Limits::provider()) });
    let error = provider.decode_results(&batch(p::LOOP), "output", &[], NOW_MS).unwrap_err();
    assert_eq!(error.kind, PluginErrorKind::Timeout { limit });
    let error = provider.batch_step(&batch(p::PANIC), b"", &Event::Start, NOW_MS).unwrap_err();
    assert!(matches!(error.kind, PluginErrorKind::Trap { .. }), "{error}");
    assert!(provider.batch_step(&batch("gpt"), b"", &Event::Start, NOW_MS).is_ok());
}
