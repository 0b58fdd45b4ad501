//! Components that no compiler would make: core modules written by hand, which break the canonical form of values, the rules of
//! memory, or the limits of tables. Each is refused or ended like any other, and the next call gets a fresh instance.

use std::time::Duration;

use offpeak_host::{HostError, Limits, PluginErrorKind, RouterPlugin, Source, values::router::Decision};
use wit_component::{ComponentEncoder, DecodedWasm, StringEncoding, decode, embed_component_metadata};

use super::{ENGINE, NOW_MS, guests, route, router, unhurried};

/// The parts of a router, each as an honest one would have it.
struct Parts {
    /// At module level.
    more: &'static str,
    memory: &'static str,
    /// Begins with the address at which the description is written, 32 bytes of zeros: name, version, body, headers.
    describe: &'static str,
    /// The same for a decision; tag 2 says "pass", and stands there already.
    route: &'static str,
    /// Where arguments are put.
    realloc: &'static str,
}

const HONEST: Parts = Parts { more: "", memory: "2", describe: "", route: "", realloc: "(i32.const 4096)" };

/// The texts "openai" and "standard" lie at 64 and 96, a backend and its offer, and three bytes at 80 that are no UTF-8.
fn component(Parts { more, memory, describe, route, realloc }: &Parts) -> Vec<u8> {
    let text = format!(
        r#"(module
            (memory (export "memory") {memory})
            (data (i32.const 64) "openai")
            (data (i32.const 96) "standard")
            (data (i32.const 80) "\ff\fe\80")
            {more}
            (func (export "offpeak:plugin/routing@0.1.0#describe") (result i32)
                (i32.store (i32.const 0) (i32.const 64))
                (i32.store (i32.const 4) (i32.const 6))
                {describe}
                (i32.const 0))
            (func (export "offpeak:plugin/routing@0.1.0#route") (param i32) (result i32)
                (local $n i32)
                (i32.store8 (i32.const 128) (i32.const 2))
                (i32.store (i32.const 144) (i32.const 96))
                (i32.store (i32.const 148) (i32.const 8))
                {route}
                (i32.const 128))
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) {realloc}))"#
    );
    let mut module = wat::parse_str(text).unwrap();
    // The world of another router will do.
    let DecodedWasm::Component(resolve, world) = decode(guests::router::COMPONENT).unwrap() else { panic!() };
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    ComponentEncoder::default().validate(true).module(&module).unwrap().encode().unwrap()
}

fn load(parts: &Parts) -> Result<RouterPlugin, HostError> {
    let component = component(parts);
    let limits = Limits { step: Duration::from_millis(300), ..unhurried(Limits::router()) };
    RouterPlugin::load(&ENGINE, "handmade", Source::Bytes(&component), "{}".into(), limits, NOW_MS)
}

/// What a call came to that answers in this way.
fn answered(answer: &'static str) -> Result<Decision, PluginErrorKind> {
    let hostile = load(&Parts { route: answer, ..HONEST }).unwrap();
    let said = route(&hostile, "gpt").map_err(|error| error.kind);
    // A broken answer is told apart from the next one, and nobody else notices.
    assert_eq!(route(&hostile, "gpt").is_ok(), said.is_ok());
    assert!(route(&router(), "gpt").is_ok());
    said
}

/// Why it is not taken into use.
fn refused(parts: &Parts) -> PluginErrorKind {
    match load(parts) {
        Err(HostError::FirstCall(error)) => error.kind,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it was taken into use"),
    }
}

/// A choice whose backend is the bytes at `$ptr`, `$len` of them.
macro_rules! backend {
    ($ptr:literal, $len:literal) => {
        concat!(
            "(i32.store8 (i32.const 128) (i32.const 0)) (i32.store (i32.const 136) (i32.const ",
            $ptr,
            ")) (i32.store (i32.const 140) (i32.const ",
            $len,
            "))"
        )
    };
}

#[test]
fn an_honest_one_is_taken_into_use() {
    let plugin = load(&HONEST).unwrap();
    assert_eq!(plugin.description().name, "openai");
    assert_eq!(answered(""), Ok(Decision::Pass));
    let Ok(Decision::Choose(choice)) = answered(backend!("64", "6")) else { panic!("no choice") };
    assert_eq!(choice.backend, "openai");
}

#[test]
fn text_that_is_no_utf_8_is_not_taken() {
    let PluginErrorKind::BadAnswer(why) = answered(backend!("80", "3")).unwrap_err() else { panic!() };
    assert!(why.contains("utf-8"), "{why}");
    let name = "(i32.store (i32.const 0) (i32.const 80)) (i32.store (i32.const 4) (i32.const 3))";
    assert!(matches!(refused(&Parts { describe: name, ..HONEST }), PluginErrorKind::BadAnswer(_)));
}

#[test]
fn what_lies_beyond_its_memory_is_not_read() {
    // Behind the end, across the end, and so long that the sum overflows.
    for answer in [backend!("1000000", "6"), backend!("131070", "6"), backend!("64", "4294967295")] {
        let kind = answered(answer).unwrap_err();
        assert!(matches!(kind, PluginErrorKind::BadAnswer(_)), "{kind:?}");
    }
    // A list of four thousand million headers.
    let headers = "(i32.store (i32.const 24) (i32.const 8)) (i32.store (i32.const 28) (i32.const -1))";
    assert!(matches!(refused(&Parts { describe: headers, ..HONEST }), PluginErrorKind::BadAnswer(_)));
}

#[test]
fn a_decision_that_does_not_exist_is_not_taken() {
    let kind = answered("(i32.store8 (i32.const 128) (i32.const 7))").unwrap_err();
    assert!(matches!(kind, PluginErrorKind::BadAnswer(_)), "{kind:?}");
}

#[test]
fn arguments_are_not_written_where_it_has_no_memory() {
    let parts = Parts { realloc: "(i32.const 0x7fffffff)", ..HONEST };
    let kind = route(&load(&parts).unwrap(), "gpt").unwrap_err().kind;
    assert!(matches!(kind, PluginErrorKind::BadAnswer(_) | PluginErrorKind::Trap { .. }), "{kind:?}");
    let parts = Parts { realloc: "unreachable", ..HONEST };
    let kind = route(&load(&parts).unwrap(), "gpt").unwrap_err().kind;
    assert!(matches!(kind, PluginErrorKind::Trap { .. }), "{kind:?}");
}

#[test]
fn a_table_grows_to_its_limit_and_no_further() {
    const TABLE: &str = "(table $t 0 funcref)";
    // It grows by a thousand until it is refused, and tells how large the table became: in thousands, as the length of a lane's
    // name.
    let grow = "(block $full (loop $more
            (br_if $full (i32.eq (table.grow $t (ref.null func) (i32.const 1000)) (i32.const -1)))
            (br $more)))
        (local.set $n (i32.div_u (table.size $t) (i32.const 1000)))
        (i32.store8 (i32.const 128) (i32.const 0))
        (i32.store (i32.const 136) (i32.const 64)) (i32.store (i32.const 140) (i32.const 6))
        (i32.store (i32.const 168) (i32.const 1024)) (i32.store (i32.const 172) (local.get $n))";
    let hostile = load(&Parts { more: TABLE, route: grow, ..HONEST }).unwrap();
    for call in 0..3 {
        let Decision::Choose(choice) = route(&hostile, "gpt").unwrap() else { panic!("no choice") };
        // In all calls of an instance together.
        assert_eq!(choice.lane.len(), 100, "call {call}");
    }
    // Refused before it is compiled where places for tables are set aside, and when it is started where they are not.
    let error = load(&Parts { more: "(table 200000 funcref)", ..HONEST }).err().unwrap();
    let is_refused = match &error {
        HostError::NotAComponent { why, .. } => why.contains("200000"),
        HostError::FirstCall(error) => matches!(error.kind, PluginErrorKind::CannotStart(_)),
        _ => false,
    };
    assert!(is_refused, "{error}");
}

#[test]
fn memory_that_is_asked_for_at_the_start_counts_too() {
    // 100 MiB of 64.
    let kind = refused(&Parts { memory: "1600", ..HONEST });
    assert!(matches!(kind, PluginErrorKind::OutOfMemory { .. }), "{kind:?}");
}

#[test]
fn what_never_ends_its_start_is_ended() {
    let parts = Parts { more: "(func $f (loop $l (br $l))) (start $f)", ..HONEST };
    assert!(matches!(refused(&parts), PluginErrorKind::Timeout { .. }));
    let parts = Parts { more: "(func $f unreachable) (start $f)", ..HONEST };
    assert!(matches!(refused(&parts), PluginErrorKind::Trap { .. }));
}

#[test]
fn what_fails_after_its_answer_fails_that_call_alone() {
    let more = r#"(func (export "cabi_post_offpeak:plugin/routing@0.1.0#route") (param i32) unreachable)"#;
    let plugin = load(&Parts { more, ..HONEST }).unwrap();
    let kind = route(&plugin, "gpt").unwrap_err().kind;
    assert!(matches!(kind, PluginErrorKind::Trap { .. }), "{kind:?}");
    assert!(route(&router(), "gpt").is_ok());
}
