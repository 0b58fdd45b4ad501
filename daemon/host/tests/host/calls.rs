//! Well-behaved calls: values travel unchanged, the host interface answers, instances are kept and shared out.

use std::{
    io,
    sync::{Arc, Mutex},
    thread,
};

use offpeak_host::{
    Limits, PluginErrorKind,
    values::{
        self,
        provider::{
            AnswerPlan, AnswerRef, BodyPlan, Decoded, Effect, Event, HeaderRef, Item, ItemOutcome, Mode,
            Response,
        },
        router::Decision,
    },
};

use super::{
    NOW_MS, batch, call, candidates, envelope, guests, lane, provider, route, router, router_with, unhurried,
    until,
};

#[test]
fn an_envelope_arrives_whole() {
    let told = lane(&router(), guests::router::ECHO);
    for part in [
        r#"tenant: "acme""#,
        r#"endpoint: "/v1/chat/completions""#,
        "Within(86400000)",
        "Tag::Header",
        "stream: false",
        "body-bytes: 1234",
        "input-tokens: 300",
        "max-output-tokens: Some(100)",
        r#"name: "x-mood", value: "fine""#,
        r#"backend: "openai", healthy: true"#,
        r#"name: "flex", mode: Mode::Realtime, price-permille: 500, window-ms: 0, usual-ms: 60000"#,
    ] {
        assert!(told.contains(part), "{part} is not in {told}");
    }
}

#[test]
fn the_configuration_is_json_text() {
    let limits = unhurried(Limits::router());
    let router = router_with(r#"{ "safety": 1.5, "names": ["a", "b"] }"#, limits.clone());
    assert_eq!(lane(&router, guests::router::CONFIG), r#"{"names":["a","b"],"safety":1.5}"#);
    assert_eq!(lane(&router_with("{}", limits), guests::router::CONFIG), "{}");
}

#[test]
fn the_clock_stands_still_in_a_call_and_moves_between_them() {
    let router = router();
    for now_ms in [NOW_MS, NOW_MS + 1, 0] {
        let decision = router.route(&envelope(guests::router::NOW), &candidates(), now_ms).unwrap();
        let Decision::Choose(choice) = decision else { panic!("{decision:?}") };
        assert_eq!(choice.lane, format!("{now_ms} {now_ms}"));
    }
}

#[test]
fn one_warm_instance_serves_calls_one_after_the_other() {
    let router = router();
    let lanes: Vec<String> = (0..4).map(|_| lane(&router, guests::router::COUNT)).collect();
    assert_eq!(lanes, ["1", "2", "3", "4"]);
}

#[test]
fn threads_call_at_the_same_time() {
    let router = router();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    assert_eq!(lane(&router, "gpt"), "");
                }
            });
        }
    });
    let health = router.health();
    assert_eq!((health.calls, health.errors, health.out_of_use), (2001, 0, false));
}

#[test]
fn more_calls_than_instances_are_told_so() {
    let limits = Limits { max_instances: 1, call: std::time::Duration::from_secs(2), ..Limits::router() };
    let router = router_with("{}", limits);
    thread::scope(|scope| {
        let looping = scope.spawn(|| {
            // The other thread may hold the instance for a moment.
            loop {
                let error = route(&router, guests::router::LOOP).unwrap_err();
                if !matches!(error.kind, PluginErrorKind::Busy { .. }) {
                    return error.kind;
                }
            }
        });
        let mut busy = None;
        until("the only instance is taken", || {
            busy = route(&router, "gpt").err();
            busy.is_some()
        });
        let busy = busy.unwrap();
        assert_eq!(busy.kind, PluginErrorKind::Busy { max: 1 });
        assert!(busy.to_string().contains("raise its number of instances"), "{busy}");
        assert!(matches!(looping.join().unwrap(), PluginErrorKind::Timeout { .. }));
    });
    assert_eq!(lane(&router, "gpt"), "", "its place is free again");
}

#[test]
fn a_leaking_guest_is_replaced_before_it_fails() {
    let router = router();
    let counts: Vec<u64> = (0..30).map(|_| lane(&router, guests::router::LEAK).parse().unwrap()).collect();
    assert!(counts.contains(&2), "an instance serves more than one call: {counts:?}");
    assert!(counts.iter().all(|count| *count < 8), "64 MiB, 8 of them a call: {counts:?}");
    assert_eq!(router.health().errors, 0);
}

#[test]
fn a_provider_answers_in_its_own_words() {
    let provider = provider();
    let offers = provider.offers("/v1/chat/completions", "gpt", NOW_MS).unwrap();
    assert_eq!(offers.len(), 1);
    assert_eq!((offers[0].mode, offers[0].price_permille), (Mode::Batch, 500));
    let shown = values::router::Offer::from(&offers[0]);
    assert_eq!((shown.name, shown.mode), ("batch", values::router::Mode::Batch));

    assert_eq!(
        provider.limits("/v1/chat/completions", "gpt", "batch", NOW_MS).unwrap().unwrap().max_requests,
        10
    );
    assert_eq!(provider.limits("/v1/chat/completions", "gpt", "flex", NOW_MS).unwrap(), None);

    let prepared = provider.prepare(&call("gpt"), NOW_MS).unwrap().unwrap();
    assert_eq!(prepared.path, "/v1/chat/completions");
    assert_eq!(
        (prepared.set_headers[0].name.as_str(), prepared.set_headers[0].value.as_str()),
        ("x-offer", "standard")
    );
    let refusal = provider.prepare(&call(guests::provider::REFUSE), NOW_MS).unwrap().unwrap_err();
    assert_eq!(refusal.code, "told_to");
}

#[test]
fn a_batch_steps_with_the_state_it_is_given() {
    let provider = provider();
    let step = provider.batch_step(&batch("gpt"), b"", &Event::Start, NOW_MS).unwrap();
    assert_eq!(step.state, b".");
    let headers = [HeaderRef { name: "x-a", value: "b" }];
    let event = Event::Answered(Response { status: 200, headers: &headers, body: b"{}" });
    let step = provider.batch_step(&batch("gpt"), &step.state, &event, NOW_MS).unwrap();
    assert_eq!(step.state, b"..");
    assert_eq!(step.provider_id.as_deref(), Some("mark-1"));
    let Effect::Call(request) = step.effect else { panic!("{step:?}") };
    assert_eq!((request.path.as_str(), request.body.as_slice()), ("/v1/batches", b"{}".as_slice()));
}

#[test]
fn items_are_encoded_and_results_decoded_many_at_a_time() {
    let provider = provider();
    let items = [Item { id: "a", body: b"{}" }, Item { id: "b", body: b"[\xff]" }];
    let encoded = provider.encode_items(&batch("gpt"), &items, NOW_MS).unwrap();
    assert_eq!(encoded.bytes, b"a {}\nb [\xff]\n");
    assert!(encoded.refused.is_empty());

    let decoded = provider.decode_results(&batch("gpt"), "output", &[b"a {}", b"?"], NOW_MS).unwrap();
    let [Decoded::Result(result), Decoded::Garbage(why)] = &decoded[..] else { panic!("{decoded:?}") };
    assert_eq!(result.id, "a");
    assert!(matches!(&result.outcome, ItemOutcome::Response(response) if response.body == b"{}"));
    assert_eq!(why, "in output");
}

#[test]
fn a_large_chunk_goes_through() {
    let provider = provider();
    let body = vec![b'x'; 4 << 20];
    let items = [Item { id: "a", body: &body }, Item { id: "b", body: &body }];
    let encoded = provider.encode_items(&batch("gpt"), &items, NOW_MS).unwrap();
    assert_eq!(encoded.bytes.len(), 2 * (body.len() + 3));
}

#[test]
fn items_that_cannot_be_said_are_refused_one_by_one() {
    let provider = provider();
    let items = [Item { id: "a", body: b"{}" }, Item { id: "b", body: b"odd" }];
    let encoded = provider.encode_items(&batch(guests::provider::REFUSE_ODD), &items, NOW_MS).unwrap();
    assert_eq!(encoded.bytes, b"a {}\n");
    let [refused] = &encoded.refused[..] else { panic!("{encoded:?}") };
    assert_eq!((refused.id.as_str(), refused.refusal.code.as_str()), ("b", "told_to"));
    assert_eq!(refused.refusal.param.as_deref(), Some("model"));
}

#[test]
fn a_request_and_its_answer_are_written_anew() {
    let provider = provider();
    let call = call(guests::provider::REWRITE);
    let prepared = provider.prepare(&call, NOW_MS).unwrap().unwrap();
    assert_eq!((prepared.body, prepared.answer), (BodyPlan::Rewrite, AnswerPlan::Rewrite));
    assert_eq!(prepared.default_headers[0].name, "x-manner");

    let rewritten = provider.rewrite_request(&call, b"body", NOW_MS).unwrap().unwrap();
    assert_eq!((rewritten.body.as_slice(), rewritten.notes.as_slice()), (&b"BODY"[..], &b"noted"[..]));
    let answer = AnswerRef { status: 201, content_type: None, body: b" well" };
    let answer = provider.rewrite_answer(&call, &rewritten.notes, answer, NOW_MS).unwrap();
    assert_eq!((answer.status, answer.body.as_slice()), (201, &b"noted well"[..]));
    assert_eq!(answer.content_type.as_deref(), Some("text/plain"));

    let part = provider.rewrite_chunk(&call, b"", b"ab", false, NOW_MS).unwrap();
    assert_eq!((part.state.as_slice(), part.output.as_slice()), (&b"."[..], &b"AB"[..]));
    let end = provider.rewrite_chunk(&call, &part.state, b"", true, NOW_MS).unwrap();
    assert_eq!(end.output, b"..");
}

/// What `tracing` writes, kept.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_flood_of_log_lines_is_cut_off_and_counted() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let router = router();
    tracing::subscriber::with_default(subscriber, || {
        assert_eq!(lane(&router, guests::router::LOG_FLOOD), "");
        let later = router.route(&envelope(guests::router::LOG_FLOOD), &candidates(), NOW_MS + 1000);
        assert!(later.is_ok());
    });
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| line.contains("flood")).collect();
    assert_eq!(lines.len(), 100, "50 a second");
    assert!(lines.iter().all(|line| line.len() < 4096), "64 KiB a line went in");
    assert!(lines[0].contains(r#"plugin="misfit""#), "{}", lines[0]);
    assert!(lines[0].contains(" plugin: "), "the target: {}", lines[0]);
    assert!(lines[50].contains("suppressed=950"), "{}", lines[50]);
}
