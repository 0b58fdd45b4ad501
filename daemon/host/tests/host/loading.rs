//! What is loaded and what is refused, and whether the refusal says what to do.

use offpeak_host::{
    AnyPlugin, Engine, EngineOptions, HostError, Limits, PluginErrorKind, ProviderPlugin, RouterPlugin,
    Source, WorldName,
    values::{
        provider::CredentialPlace,
        router::{BodyNeed, Decision},
    },
};

use std::time::Duration;

use super::{ENGINE, NOW_MS, candidates, envelope, guests, lane, provider, router, router_with, unhurried};

fn load_router(component: &[u8]) -> Result<RouterPlugin, HostError> {
    RouterPlugin::load(
        &ENGINE,
        "mine",
        Source::Bytes(component),
        "{}".into(),
        unhurried(Limits::router()),
        NOW_MS,
    )
}

fn refusal(component: &[u8]) -> String {
    match load_router(component) {
        Ok(_) => panic!("it was loaded"),
        Err(error) => error.to_string(),
    }
}

fn refusal_of_text(component: &str) -> String {
    refusal(&wat::parse_str(component).unwrap())
}

#[test]
fn a_plugin_is_asked_to_describe_itself_once() {
    let router = router();
    assert_eq!(router.name(), "misfit");
    assert_eq!(router.description().name, "misfit");
    assert_eq!(router.description().body, BodyNeed::Prefix(16));
    assert_eq!(router.description().headers, ["x-mood"]);
    assert_eq!(router.health().calls, 1);

    let provider = provider();
    assert_eq!(provider.description().endpoints, ["/v1/chat/completions"]);
    assert!(
        matches!(&provider.description().credential, CredentialPlace::Header(name) if name == "x-api-key")
    );
    assert_ne!(router.sha256(), provider.sha256());
    assert_eq!(router.sha256().len(), 64);
}

#[test]
fn the_bundled_plugins_load_and_answer() {
    let router = load_router(offpeak_bundled::SLA_ROUTER).unwrap();
    let decision = router.route(&envelope("gpt"), &candidates(), NOW_MS).unwrap();
    assert!(matches!(decision, Decision::Choose(_) | Decision::Pass), "{decision:?}");

    for (name, component) in offpeak_bundled::PROVIDERS {
        let limits = unhurried(Limits::provider());
        let source = Source::Bytes(component);
        let provider = ProviderPlugin::load(&ENGINE, name, source, "{}".into(), limits, NOW_MS).unwrap();
        assert_eq!(provider.description().name, name);
    }
}

#[test]
fn a_plugin_of_another_world_is_refused_by_name() {
    let text = refusal(guests::provider::COMPONENT);
    assert!(text.contains("plugin `mine` does not implement the world `router`"), "{text}");
    assert!(text.contains("lacks the export offpeak:plugin/routing@0.1.0"), "{text}");
    assert!(text.contains("it exports `offpeak:plugin/providing@0.1.0`"), "{text}");

    let text = refusal_of_text("(component)");
    assert!(text.contains("it exports nothing"), "{text}");
}

#[test]
fn unknown_imports_are_refused_by_name() {
    let text = refusal_of_text(
        r#"(component
            (import "wasi:cli/environment@0.2.3" (instance
                (export "get-arguments" (func (result (list string))))))
            (import "wasi:clocks/wall-clock@0.2.3" (instance
                (export "now" (func (result u64))))))"#,
    );
    assert!(
        text.contains(
            "imports `wasi:cli/environment@0.2.3`, `wasi:clocks/wall-clock@0.2.3`, which the daemon does not"
        ),
        "{text}"
    );
    assert!(text.contains("`offpeak:plugin/host@0.1`"), "{text}");
}

#[test]
fn an_incompatible_version_of_the_interface_is_refused() {
    let text = refusal_of_text(
        r#"(component (import "offpeak:plugin/host@0.2.0" (instance (export "now" (func (result u64))))))"#,
    );
    assert!(text.contains("imports `offpeak:plugin/host@0.2.0`"), "{text}");
}

#[test]
fn other_types_behind_the_right_names_are_refused() {
    let text = refusal_of_text(
        r#"(component
            (core module $m
                (func (export "describe") (result i32) i32.const 7))
            (core instance $i (instantiate $m))
            (func $describe (result u32) (canon lift (core func $i "describe")))
            (instance $routing (export "describe" (func $describe)))
            (export "offpeak:plugin/routing@0.1.0" (instance $routing)))"#,
    );
    assert!(text.contains("other types of the world `router`"), "{text}");
    assert!(text.contains("does not have export `route`"), "{text}");

    let text = refusal_of_text(
        r#"(component (import "offpeak:plugin/host@0.1.0" (instance (export "now" (func (result string)))))
            (instance $routing)
            (export "offpeak:plugin/routing@0.1.0" (instance $routing)))"#,
    );
    assert!(text.contains("other types of the world `router`"), "{text}");
    assert!(text.contains("now"), "{text}");
}

#[test]
fn what_is_no_component_is_refused() {
    let text = refusal(b"MZ this is something else");
    assert!(text.contains("plugin `mine` is not a WebAssembly component"), "{text}");
    let text = refusal(b"\0asm\x01\0\0\0");
    assert!(text.contains("it is a core module; encode it as a component"), "{text}");
    let whole = guests::router::COMPONENT;
    let text = refusal(&whole[..whole.len() / 2]);
    assert!(text.contains("is not a WebAssembly component"), "{text}");
}

#[test]
fn a_missing_file_is_named() {
    let path = std::path::Path::new("/nowhere/router.wasm");
    let limits = Limits::router();
    let error =
        RouterPlugin::load(&ENGINE, "mine", Source::File(path), "{}".into(), limits, NOW_MS).err().unwrap();
    assert!(error.to_string().contains("cannot read /nowhere/router.wasm"), "{error}");
}

#[test]
fn a_configuration_must_be_an_object() {
    for config in ["", "7", "[]", "{\"a\":"] {
        let source = Source::Bytes(guests::router::COMPONENT);
        let limits = Limits::router();
        let error = RouterPlugin::load(&ENGINE, "mine", source, config.into(), limits, NOW_MS).err().unwrap();
        assert!(error.to_string().contains("not one JSON object"), "{config}: {error}");
    }
}

#[test]
fn a_plugin_that_needs_more_memory_than_it_may_have_is_refused() {
    let limits = Limits { memory_bytes: 64 << 10, ..unhurried(Limits::router()) };
    let source = Source::Bytes(guests::router::COMPONENT);
    let error = RouterPlugin::load(&ENGINE, "mine", source, "{}".into(), limits, NOW_MS).err().unwrap();
    let HostError::FirstCall(error) = error else { panic!("{error}") };
    assert_eq!(error.kind, PluginErrorKind::OutOfMemory { limit_bytes: 64 << 10 });
}

#[test]
fn without_address_space_for_a_pool_instances_are_made_one_by_one() {
    // 100,000 places are more than an address space of 47 bits holds.
    let engine = Engine::new(&EngineOptions { pool_instances: 100_000, ..EngineOptions::default() }).unwrap();
    assert!(!engine.is_pooling());
    assert!(ENGINE.is_pooling());
    let source = Source::Bytes(guests::router::COMPONENT);
    let limits = unhurried(Limits::router());
    let router = RouterPlugin::load(&engine, "mine", source, "{}".into(), limits, NOW_MS).unwrap();
    assert!(router.route(&envelope("gpt"), &candidates(), NOW_MS).is_ok());
}

#[test]
fn a_full_pool_is_an_error_and_not_the_end() {
    let engine = Engine::new(&EngineOptions { pool_instances: 1, ..EngineOptions::default() }).unwrap();
    assert!(engine.is_pooling());
    let load = || {
        let source = Source::Bytes(guests::router::COMPONENT);
        let limits = unhurried(Limits::router());
        RouterPlugin::load(&engine, "mine", source, "{}".into(), limits, NOW_MS)
    };
    let first = load().unwrap();
    match load() {
        Err(HostError::FirstCall(error)) => assert_eq!(error.kind, PluginErrorKind::NoPlace),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("two instances in one place"),
    }
    assert!(first.route(&envelope("gpt"), &candidates(), NOW_MS).is_ok());
    drop(first);
    assert!(load().is_ok());
}

#[test]
fn a_pinned_component_is_the_very_one_or_none() {
    let bytes = Source::Bytes(guests::router::COMPONENT);
    let load = |sha256: &str| {
        let limits = unhurried(Limits::router());
        RouterPlugin::load(&ENGINE, "mine", Source::Pinned(&bytes, sha256), "{}".into(), limits, NOW_MS)
    };
    let sha256 = router_with("{}", unhurried(Limits::router())).sha256().to_owned();
    assert_eq!(load(&sha256).unwrap().sha256(), sha256);
    let other = "0".repeat(64);
    let error = load(&other).err().unwrap();
    assert!(matches!(error, HostError::OtherThanPinned { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(&sha256) && text.contains(&other), "{text}");
}

#[test]
fn a_component_is_inspected_without_running_it() {
    let found = ENGINE.inspect("mine", Source::Bytes(guests::router::COMPONENT)).unwrap();
    assert_eq!(found.worlds, [WorldName::Router]);
    assert_eq!(found.bytes, guests::router::COMPONENT.len());
    assert!(found.imports.iter().all(|import| import.offered), "{found:?}");
    let foreign = wat::parse_str(
        r#"(component (import "wasi:cli/environment@0.2.3" (instance)) (import "offpeak:plugin/host@0.1.0" (instance)))"#,
    );
    let found = ENGINE.inspect("mine", Source::Bytes(&foreign.unwrap())).unwrap();
    let imports: Vec<_> = found.imports.iter().map(|i| (i.name.as_str(), i.offered)).collect();
    assert_eq!(imports, [("wasi:cli/environment@0.2.3", false), ("offpeak:plugin/host@0.1.0", true)]);
    assert_eq!(found.worlds, []);
}

#[test]
fn a_report_tells_what_calls_took_and_what_instances_hold() {
    let router = router();
    let before = router.report();
    assert_eq!(
        (before.name.as_str(), before.world, before.file, before.instances),
        ("misfit", "router", None, 1)
    );
    for _ in 0..9 {
        lane(&router, guests::router::COUNT);
    }
    let after = router.report();
    assert_eq!(after.health.calls, 10, "the first one is `describe`");
    assert!(after.times.p50 > Duration::ZERO && after.times.p50 <= after.times.p99, "{after:?}");
    assert!(after.times.max >= after.times.total / 10, "{after:?}");
    assert!(after.memory_bytes >= 64 << 10 && after.memory_bytes < 64 << 20, "{after:?}");
    lane(&router, guests::router::LEAK);
    assert!(router.report().memory_bytes >= 8 << 20, "it grew");
}
