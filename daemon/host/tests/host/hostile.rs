//! The hostile set: whatever a component does, in whatever function, it meets its limit, its error says which, and the next
//! call and everybody else's calls go on.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use offpeak_guests::{provider as p, router as r};
use offpeak_host::{
    HostError, Limits, PluginError, PluginErrorKind, ProviderPlugin, RouterPlugin, Source,
    values::provider::{AnswerRef, Event},
};

use super::{
    ENGINE, NOW_MS, batch, call, guests, lane, provider, provider_with, route, router, router_with, unhurried,
};

/// Time enough for a busy machine, and little enough to wait for.
const LIMIT: Duration = Duration::from_millis(300);

fn hurried(limits: Limits) -> Limits {
    Limits { call: LIMIT, ..unhurried(limits) }
}

/// Why a router that misbehaves when it is asked to describe itself is not taken into use.
fn refusal(mischief: &str) -> PluginErrorKind {
    // What ends by another limit gets the time that this takes on a busy machine.
    let is_endless = [r::LOOP, r::CALL_FLOOD].contains(&mischief);
    let unhurried = unhurried(Limits::router());
    let limits = if is_endless { Limits { step: LIMIT, ..unhurried } } else { unhurried };
    let source = Source::Bytes(guests::router::COMPONENT);
    let config = format!("{{\"describe\":\"{mischief}\"}}");
    match RouterPlugin::load(&ENGINE, "misfit", source, config, limits, NOW_MS) {
        Err(HostError::FirstCall(PluginError { call: "describe", kind, .. })) => kind,
        Err(error) => panic!("{mischief}: {error}"),
        Ok(_) => panic!("{mischief}: it was taken into use"),
    }
}

#[test]
fn what_misbehaves_from_the_start_is_not_taken_into_use() {
    assert!(matches!(refusal(r::PANIC), PluginErrorKind::Trap { .. }));
    assert!(matches!(refusal(r::RECURSE), PluginErrorKind::Trap { .. }));
    assert_eq!(refusal(r::LOOP), PluginErrorKind::Timeout { limit: LIMIT });
    assert_eq!(refusal(r::CALL_FLOOD), PluginErrorKind::Timeout { limit: LIMIT });
    assert_eq!(refusal(r::ALLOCATE), PluginErrorKind::OutOfMemory { limit_bytes: 64 << 20 });
    let too_much = "it handed over more than 1048576 bytes in one call";
    assert_eq!(refusal(r::HUGE_LIST), PluginErrorKind::BadAnswer(too_much.into()));
}

#[test]
fn a_flood_of_calls_to_the_daemon_ends_at_the_time_limit() {
    let router = router_with("{}", hurried(Limits::router()));
    assert_eq!(route(&router, r::CALL_FLOOD).unwrap_err().kind, PluginErrorKind::Timeout { limit: LIMIT });
    assert_eq!(lane(&router, r::COUNT), "1", "a fresh instance");
}

#[test]
fn a_huge_line_for_the_log_is_more_than_a_call_may_hand_over() {
    let router = router();
    let PluginErrorKind::BadAnswer(why) = route(&router, r::LOG_HUGE).unwrap_err().kind else { panic!() };
    assert_eq!(why, "it handed over more than 1048576 bytes in one call");
    assert_eq!(lane(&router, r::COUNT), "1", "a fresh instance");
}

#[test]
fn a_list_without_measure_is_not_taken() {
    let provider = provider_with(Limits { answer_bytes: 1 << 20, ..unhurried(Limits::provider()) });
    let error = provider.offers("/v1/chat/completions", p::MANY_OFFERS, NOW_MS).unwrap_err();
    let too_much = "it handed over more than 1048576 bytes in one call";
    assert_eq!(error.kind, PluginErrorKind::BadAnswer(too_much.into()));
    assert!(provider.offers("/v1/chat/completions", "gpt", NOW_MS).is_ok());
}

/// Every function of the world, called with a name for which it panics.
fn panics(provider: &ProviderPlugin, function: &str) -> PluginError {
    let (call, batch) = (call(p::PANIC_ALWAYS), batch(p::PANIC_ALWAYS));
    let answer = AnswerRef { status: 200, content_type: None, body: b"" };
    let model = p::PANIC_ALWAYS;
    match function {
        "offers" => provider.offers(call.endpoint, model, NOW_MS).map(drop),
        "limits" => provider.limits(call.endpoint, model, "batch", NOW_MS).map(drop),
        "prepare" => provider.prepare(&call, NOW_MS).map(drop),
        "rewrite-request" => provider.rewrite_request(&call, b"{}", NOW_MS).map(drop),
        "rewrite-answer" => provider.rewrite_answer(&call, b"", answer, NOW_MS).map(drop),
        "rewrite-chunk" => provider.rewrite_chunk(&call, b"", b"x", false, NOW_MS).map(drop),
        "batch-step" => provider.batch_step(&batch, b"", &Event::Start, NOW_MS).map(drop),
        "encode-items" => provider.encode_items(&batch, &[], NOW_MS).map(drop),
        "decode-results" => provider.decode_results(&batch, "output", &[], NOW_MS).map(drop),
        other => panic!("{other} is no function of the world"),
    }
    .unwrap_err()
}

#[test]
fn a_trap_in_any_function_is_an_error_of_that_call_alone() {
    let (hostile, other) = (provider(), router());
    for function in [
        "offers",
        "limits",
        "prepare",
        "rewrite-request",
        "rewrite-answer",
        "rewrite-chunk",
        "batch-step",
        "encode-items",
        "decode-results",
    ] {
        let error = panics(&hostile, function);
        assert_eq!((&*error.plugin, error.call), ("misfit", function));
        let PluginErrorKind::Trap { message, .. } = error.kind else {
            panic!("{function}: {:?}", error.kind)
        };
        assert!(message.contains("told to"), "{function}: {message}");
        assert!(
            hostile.offers("/v1/chat/completions", "gpt", NOW_MS).is_ok(),
            "{function}: a fresh instance"
        );
        assert!(route(&other, "gpt").is_ok(), "{function}");
    }
    assert_eq!(hostile.health().traps, 9);
}

#[test]
fn nothing_of_the_system_can_be_imported() {
    for name in [
        "wasi:filesystem/types@0.2.3",
        "wasi:filesystem/preopens@0.2.3",
        "wasi:sockets/tcp@0.2.3",
        "wasi:http/outgoing-handler@0.2.3",
        "wasi:cli/environment@0.2.3",
        "wasi:clocks/wall-clock@0.2.3",
        "wasi:random/random@0.2.3",
        "offpeak:plugin/store@0.1.0",
    ] {
        let text = format!(
            r#"(component (import "{name}" (instance)) (instance $i) (export "offpeak:plugin/routing@0.1.0" (instance $i)))"#
        );
        let component = wat::parse_str(text).unwrap();
        let limits = unhurried(Limits::router());
        let error =
            RouterPlugin::load(&ENGINE, "mine", Source::Bytes(&component), "{}".into(), limits, NOW_MS);
        let Err(HostError::UnknownImports { imports, .. }) = error else { panic!("{name} was given") };
        assert_eq!(imports, format!("`{name}`"));
    }
}

#[test]
fn others_are_served_while_hostile_plugins_are_at_work() {
    let over = AtomicBool::new(false);
    let good = router();
    thread::scope(|scope| {
        for mischief in [r::LOOP, r::ALLOCATE, r::RECURSE, r::CALL_FLOOD] {
            let over = &over;
            scope.spawn(move || {
                let hostile = router_with("{}", hurried(Limits::router()));
                while !over.load(Ordering::Relaxed) {
                    assert!(route(&hostile, mischief).is_err());
                    // What is right in between keeps it in use.
                    assert!(route(&hostile, "gpt").is_ok());
                }
            });
        }
        let begun = Instant::now();
        let mut taken: Vec<Duration> = Vec::new();
        while begun.elapsed() < LIMIT * 3 {
            let begun = Instant::now();
            assert!(route(&good, "gpt").is_ok());
            taken.push(begun.elapsed());
        }
        over.store(true, Ordering::Relaxed);
        taken.sort_unstable();
        let p99 = taken[taken.len() * 99 / 100];
        assert!(
            taken.len() > 100 && p99 < LIMIT,
            "{} calls, of which one in a hundred took {p99:?}",
            taken.len()
        );
    });
    assert_eq!(good.health().errors, 0);
}
