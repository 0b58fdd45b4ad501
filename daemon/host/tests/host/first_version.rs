//! A component of the first version of the contract keeps running: it loads in each of the five worlds, and what goes to
//! it and comes from it means the same. `wit/README.md` has the rule.

use offpeak_host::{
    CostPlugin, EnginePlugin, Limits, ProviderPlugin, RetryPlugin, RouterPlugin, Source, WorldName,
    values::{
        adapter::{Sight, State, UnderWay},
        cost, provider, retry, router,
    },
};

use super::{ENGINE, NOW_MS, candidates, envelope, guests, unhurried};

const CALL: provider::Call<'static> =
    provider::Call { endpoint: "/v1/chat/completions", model: "gpt", offer: "batch" };

macro_rules! load {
    ($plugin:ty) => {{
        let source = Source::Bytes(guests::first::COMPONENT);
        let config = r#"{"a":1}"#.to_owned();
        let limits = unhurried(Limits::provider());
        let plugin = <$plugin>::load(&ENGINE, "first", source, config, limits, NOW_MS).unwrap();
        let description = plugin.description();
        assert_eq!((&*description.name, &*description.version), ("first", "0.1.0"));
        plugin
    }};
}

#[test]
fn it_is_a_plugin_of_all_five_worlds() {
    use WorldName::{CostPolicy, Engine, Provider, RetryPolicy, Router};
    let found = ENGINE.inspect("first", Source::Bytes(guests::first::COMPONENT)).unwrap();
    assert_eq!(found.worlds, [Router, Provider, Engine, RetryPolicy, CostPolicy]);
    assert!(found.exports.iter().all(|export| export.ends_with("@0.1.0")), "{found:?}");
}

#[test]
fn its_router_routes() {
    let plugin = load!(RouterPlugin);
    assert_eq!(plugin.description().body, router::BodyNeed::Prefix(4));
    assert_eq!(plugin.description().headers, ["x-mood"]);
    let asked = router::Envelope { sla: router::Sla::Within(10_000), tenant: "acme", ..envelope("gpt") };
    let candidates = candidates();
    let router::Decision::Choose(choice) = plugin.route(&asked, &candidates, NOW_MS).unwrap() else {
        panic!("it chooses")
    };
    assert_eq!((&*choice.offer, choice.within_ms), ("batch", Some(5000)));
    assert_eq!(choice.backend, candidates.last().unwrap().backend);
    assert_eq!(choice.lane, format!(r#"acme {{"a":1}} {NOW_MS}"#));

    let sick = [router::Candidate { healthy: false, ..candidates[0].clone() }];
    let router::Decision::Reject(rejection) = plugin.route(&asked, &sick, NOW_MS).unwrap() else {
        panic!("it rejects")
    };
    assert_eq!((rejection.status, &*rejection.code, rejection.retry_after_s), (503, "sick", Some(1)));
    let now = router::Envelope { sla: router::Sla::Realtime, ..asked };
    assert!(matches!(plugin.route(&now, &candidates, NOW_MS).unwrap(), router::Decision::Pass));
}

#[test]
fn its_provider_sells_and_sends() {
    let plugin = load!(ProviderPlugin);
    let description = plugin.description();
    assert!(matches!(&description.credential, provider::CredentialPlace::Header(name) if name == "x-key"));
    assert_eq!(description.kept_headers, ["x-beta"]);

    let offers = plugin.offers(CALL.endpoint, CALL.model, NOW_MS).unwrap();
    assert_eq!((&*offers[0].name, offers[0].mode, offers[0].usual_ms), ("gpt", provider::Mode::Batch, 1));
    let limits = plugin.limits(CALL.endpoint, CALL.model, CALL.offer, NOW_MS).unwrap().unwrap();
    assert_eq!((limits.max_requests, limits.max_bytes, limits.max_batches_an_hour), (7, 1 << 40, 5));

    let prepared = plugin.prepare(&CALL, NOW_MS).unwrap().unwrap();
    assert_eq!((&*prepared.path, &*prepared.set_headers[0].value), ("/v1/chat/completions", "batch"));
    assert!(matches!(&prepared.body, provider::BodyPlan::SetMembers(members) if members[0].json == "1"));
    let refused = plugin.prepare(&provider::Call { offer: "", ..CALL }, NOW_MS).unwrap().unwrap_err();
    assert_eq!((&*refused.code, refused.param.as_deref()), ("no_offer", Some("offer")));

    let rewritten = plugin.rewrite_request(&CALL, b"abc", NOW_MS).unwrap().unwrap();
    assert_eq!((&rewritten.body[..], &rewritten.notes[..]), (&b"abc"[..], &b"cba"[..]));
    let answer = provider::AnswerRef { status: 200, content_type: None, body: b"{}" };
    let answer = plugin.rewrite_answer(&CALL, b"notes", answer, NOW_MS).unwrap();
    assert_eq!((answer.status, &answer.body[..]), (200, &b"notes"[..]));
    let chunk = plugin.rewrite_chunk(&CALL, b"before", b"part", false, NOW_MS).unwrap();
    assert_eq!((&chunk.state[..], &chunk.output[..]), (&b"part"[..], &b"before"[..]));
}

#[test]
fn its_provider_drives_a_batch() {
    use provider::{Effect, Event};
    let plugin = load!(ProviderPlugin);
    let headers = [provider::HeaderRef { name: "x-beta", value: "b" }];
    let batch = provider::Batch {
        mark: "mark",
        endpoint: CALL.endpoint,
        model: CALL.model,
        offer: CALL.offer,
        items: 2,
        waiting: 2,
        headers: &headers,
        only: None,
        created_at_ms: NOW_MS,
    };
    let step = |event: &Event<'_>| plugin.batch_step(&batch, b"state", event, NOW_MS).unwrap();

    let started = step(&Event::Start);
    assert_eq!((&started.state[..], started.provider_id.as_deref()), (&b"state"[..], Some("p")));
    assert_eq!(started.progress.unwrap().failed, 2);
    let Effect::Upload(upload) = started.effect else { panic!("it uploads") };
    assert_eq!(upload.headers[0].value, "b");
    assert!(matches!(&upload.framing, provider::Framing::Multipart(form) if form.fields[0].1 == "mark"));

    let response = provider::Response { status: 201, headers: &headers, body: b"made" };
    let Effect::Call(call) = step(&Event::Answered(response)).effect else { panic!("it calls") };
    assert_eq!((&*call.path, &call.body[..]), ("/201", &b"made"[..]));
    assert!(matches!(step(&Event::Interrupted).effect, Effect::Wait(1000)));
    let Effect::Read(reading) = step(&Event::Waited).effect else { panic!("it reads") };
    assert_eq!((&*reading.source, reading.form), ("one", provider::ReadingForm::One));
    let read = provider::ReadSummary { source: "item", status: 200, lines: 1, results: 1, whole: true };
    let Effect::Results(results) = step(&Event::Read(read)).effect else { panic!("it has results") };
    assert_eq!(results[0].id, "item");
    let Effect::Failed(failure) = step(&Event::NotSent("why")).effect else { panic!("it fails") };
    assert_eq!((failure.retry_after_s, &*failure.message), (Some(9), "why"));
    let Effect::Finished(finish) = step(&Event::Cancel).effect else { panic!("it finishes") };
    assert_eq!(finish.ending, provider::Ending::Cancelled);

    let items = [provider::Item { id: "1", body: b"{}" }, provider::Item { id: "2", body: b"" }];
    let encoded = plugin.encode_items(&batch, &items, NOW_MS).unwrap();
    assert_eq!((&encoded.bytes[..], &*encoded.refused[0].id), (&b"{}"[..], "2"));
    let decoded = plugin.decode_results(&batch, "one", &[&b"1"[..], &b""[..]], NOW_MS).unwrap();
    assert!(matches!(&decoded[0], provider::Decoded::Result(result) if result.id == "1"));
    assert!(matches!(&decoded[1], provider::Decoded::Garbage(why) if why == "one"));
}

#[test]
fn its_adapter_understands_an_engine() {
    let plugin = load!(EnginePlugin);
    assert_eq!(plugin.looks()[0].path, "/metrics");
    let under_way = UnderWay { realtime: 3, deferred: 5 };
    let load = plugin.interpret(&[Sight { status: Some(200), body: b"1234" }], under_way, NOW_MS).unwrap();
    assert_eq!((load.state, load.running, load.waiting), (State::Resting, Some(3), Some(5)));
    assert_eq!((load.prompt_tokens, load.generated_tokens, load.room), (Some(4), Some(2), Some(4)));
    let refused = plugin.interpret(&[Sight { status: None, body: b"" }], under_way, NOW_MS).unwrap_err();
    assert!(refused.to_string().contains("not readable"), "{refused}");
}

#[test]
fn its_retry_policy_judges() {
    let plugin = load!(RetryPlugin);
    let judge = |ending| {
        let attempt = retry::Attempt {
            backend: "openai",
            endpoint: CALL.endpoint,
            model: CALL.model,
            offer: CALL.offer,
            mode: retry::Mode::Batch,
            ending,
            body: b"{}",
            attempts: 1,
            retry_after_ms: Some(70),
            left_ms: 1000,
        };
        plugin.judge(&attempt, NOW_MS).unwrap()
    };
    assert!(matches!(judge(retry::Ending::Answered(429)), retry::Meaning::Temporary(Some(70))));
    assert!(matches!(judge(retry::Ending::Answered(500)), retry::Meaning::Elsewhere));
    let gone = retry::Failure { ran: retry::DidItRun::Refused, code: "gone", message: "" };
    assert!(matches!(judge(retry::Ending::Failed(gone)), retry::Meaning::NotSold));
}

#[test]
fn its_cost_policy_charges() {
    let plugin = load!(CostPlugin);
    let rates = [cost::Rate { name: "token", price: 1000 }];
    let sale = cost::Sale {
        backend: "openai",
        endpoint: CALL.endpoint,
        model: CALL.model,
        offer: CALL.offer,
        mode: cost::Mode::Batch,
        price_permille: 500,
        rates: &rates,
    };
    let usage = cost::Usage {
        input: 3,
        cached: 0,
        cache_written: 0,
        cache_written_one_hour: 0,
        audio_input: 0,
        output: 4,
        reasoning: 0,
        audio_output: 0,
    };
    let outcome = cost::Outcome {
        tenant: "acme",
        purpose: cost::Purpose::Rescue,
        ran: cost::DidItRun::Ran,
        status: Some(200),
        tier: Some("default"),
        usage: Some(usage),
        wasted: false,
        took_ms: 1,
        together: 1,
    };
    let charges = plugin.assess(&sale, &[outcome], NOW_MS).unwrap();
    let charge = &charges[0];
    assert_eq!(
        (&*charge.tenant, charge.cost, charge.realtime_cost, charge.priced),
        ("acme", 3500, 7000, true)
    );
}
