//! Every key changes the result, in the file and as a variable, and the example shows every default.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;
use crate::config::{check, node, overrides, section};

const EXAMPLE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../config/offpeak.toml"));

/// One key: its path, a value in TOML and as a variable, and where it is in the tree, there with the default and with
/// the value.
struct Key(&'static str, &'static str, &'static str, &'static str, Json, Json);

#[rustfmt::skip] // a table
fn keys() -> Vec<Key> {
    let null = || Json::Null;
    let any = || json!(["*"]);
    vec![
        Key("server.listen", "'[::1]:1'", "[::1]:1", "/server/listen", json!("127.0.0.1:8400"), json!("[::1]:1")),
        Key("server.admin", "'[::1]:2'", "[::1]:2", "/server/admin", json!("127.0.0.1:8401"), json!("[::1]:2")),
        Key("server.max_body", "'1MB'", "1MB", "/server/max_body", json!(32 << 20), json!(1_000_000)),
        Key("server.body_memory", "'2MiB'", "2MiB", "/server/body_memory", json!(1 << 30), json!(2 << 20)),
        Key("server.max_connections", "7", "7", "/server/max_connections", json!(20_000), json!(7)),
        Key("server.threads", "7", "7", "/server/threads", null(), json!(7)),
        Key("server.drain", "'0s'", "0s", "/server/drain", json!("30s"), json!("0s")),
        Key("server.held_max", "7", "7", "/server/held_max", json!(20_000), json!(7)),
        Key("server.public_url", "'https://x.y/'", "https://x.y/", "/server/public_url", null(), json!("https://x.y")),
        Key("store.folder", "'/d'", "/d", "/store/folder", json!("./offpeak-data"), json!("/d")),
        Key("store.keep_results", "'7d'", "7d", "/store/keep_results", json!("48h"), json!("168h")),
        Key("store.segment", "2097152", "2097152", "/store/segment", json!(64 << 20), json!(2 << 20)),
        Key("store.max_queued", "9", "9", "/store/max_queued", json!(5_000_000), json!(9)),
        Key("store.max_queued_bytes", "'1GB'", "1GB", "/store/max_queued_bytes", json!(32_i64 << 30), json!(1_000_000_000)),
        Key("access.open", "true", "true", "/warnings/0", json!(OPEN_WARNING), null()),
        Key("access.default_sla", "'90s'", "90s", "/access/open/default_sla", json!("realtime"), json!("1m30s")),
        Key("access.deferrable", "'2h'", "2h", "/access/open/deferrable", json!("24h"), json!("2h")),
        Key("access.delivery", "'ticket'", "ticket", "/access/open/delivery", json!("held"), json!("ticket")),
        Key("access.requests_per_minute", "9", "9", "/access/open/requests_per_minute", null(), json!(9)),
        Key("access.input_tokens_per_minute", "9", "9", "/access/open/input_tokens_per_minute", null(), json!(9)),
        Key("access.output_tokens_per_minute", "9", "9", "/access/open/output_tokens_per_minute", null(), json!(9)),
        Key("access.concurrent", "9", "9", "/access/open/concurrent", null(), json!(9)),
        Key("access.burst", "'10s'", "10s", "/access/open/burst", json!("1m"), json!("10s")),
        Key("backends.b.limits.requests_per_minute", "9", "9", "/backends/0/limits/requests_per_minute", null(), json!(9)),
        Key("backends.b.limits.input_tokens_per_minute", "9", "9", "/backends/0/limits/input_tokens_per_minute", null(), json!(9)),
        Key("backends.b.limits.output_tokens_per_minute", "9", "9", "/backends/0/limits/output_tokens_per_minute", null(), json!(9)),
        Key("backends.b.limits.concurrent", "9", "9", "/backends/0/limits/concurrent", null(), json!(9)),
        Key("backends.b.limits.burst", "'10s'", "10s", "/backends/0/limits/burst", json!("1m"), json!("10s")),
        Key("access.deferred.requests_per_minute", "7", "7", "/access/open/deferred/requests_per_minute", null(), json!(7)),
        Key("access.deferred.input_tokens_per_minute", "7", "7", "/access/open/deferred/input_tokens_per_minute", null(), json!(7)),
        Key("access.deferred.output_tokens_per_minute", "7", "7", "/access/open/deferred/output_tokens_per_minute", null(), json!(7)),
        Key("access.deferred.burst", "'2m'", "2m", "/access/open/deferred/burst", json!("1m"), json!("2m")),
        Key("access.budget.day_usd", "'1.5'", "1.5", "/access/open/budget/day_usd", null(), json!("1.5")),
        Key("access.budget.month_usd", "20", "20", "/access/open/budget/month_usd", null(), json!("20")),
        Key("access.budget.hard", "false", "false", "/access/open/budget/hard", json!(true), json!(false)),
        Key(
            "access.budget.unpriced",
            "'allow'",
            "allow",
            "/access/open/unpriced",
            json!("refuse"),
            json!("allow"),
        ),
        Key("access.models", "['a', 'b*']", "a, b*", "/access/open/models", any(), json!(["a", "b*"])),
        Key("access.share", "9", "9", "/access/open/share", json!(100), json!(9)),
        Key("access.max_queued", "9", "9", "/access/open/max_queued", json!(1_000_000), json!(9)),
        Key("access.max_queued_bytes", "'1GB'", "1GB", "/access/open/max_queued_bytes", json!(8_i64 << 30), json!(1_000_000_000)),
        Key("backends.b.base_url", "'https://x/p/'", "https://x/p/", "/backends/0/base_url", json!("http://127.0.0.1:9000"), json!("https://x/p")),
        Key("backends.b.models", "['a', 'b']", "a,b", "/backends/0/models", any(), json!(["a", "b"])),
        Key("backends.b.api_key", "{ env = 'K' }", "{ env = 'K' }", "/backends/0/api_key", null(), json!({ "env": "K" })),
        Key("backends.b.provider", "'other'", "other", "/backends/0/provider", json!("openai"), json!("other")),
        Key("backends.b.connect_timeout", "'1s'", "1s", "/backends/0/connect_timeout", json!("5s"), json!("1s")),
        Key("backends.b.answer_timeout", "'1s'", "1s", "/backends/0/answer_timeout", json!("10m"), json!("1s")),
        Key("backends.b.config", "{ a = [1] }", "{ a = [1] }", "/backends/0/config", json!("{}"), json!("{\"a\":[1]}")),
        Key("backends.b.lanes.linger", "'0s'", "0s", "/backends/0/lanes/linger", json!("10s"), json!("0s")),
        Key("backends.b.lanes.max_requests", "5", "5", "/backends/0/lanes/max_requests", null(), json!(5)),
        Key("backends.b.lanes.max_bytes", "'1MB'", "1MB", "/backends/0/lanes/max_bytes", null(), json!(1_000_000)),
        Key("backends.b.lanes.max_running", "5", "5", "/backends/0/lanes/max_running", json!(20), json!(5)),
        Key("backends.b.lanes.max_background", "5", "5", "/backends/0/lanes/max_background", json!(100), json!(5)),
        Key("backends.b.lanes.rescue", "'1m'", "1m", "/backends/0/lanes/rescue", json!("10m"), json!("1m")),
        Key("backends.b.lanes.rescue_concurrency", "5", "5", "/backends/0/lanes/rescue_concurrency", json!(16), json!(5)),
        Key("backends.b.lanes.cancel", "'1m'", "1m", "/backends/0/lanes/cancel", json!("10m"), json!("1m")),
        Key("backends.b.lanes.elsewhere", "false", "false", "/backends/0/lanes/elsewhere", json!(true), json!(false)),
        Key("backends.b.lanes.enqueued_tokens", "5", "5", "/backends/0/lanes/enqueued_tokens", null(), json!(5)),
        Key("backends.b.lanes.max_queued", "9", "9", "/backends/0/lanes/max_queued", json!(1_000_000), json!(9)),
        Key("backends.b.lanes.max_queued_bytes", "'1GB'", "1GB", "/backends/0/lanes/max_queued_bytes", json!(8_i64 << 30), json!(1_000_000_000)),
        Key("lanes.max_queued", "9", "9", "/backends/0/lanes/max_queued", json!(1_000_000), json!(9)),
        Key("lanes.max_queued_bytes", "'1GB'", "1GB", "/backends/0/lanes/max_queued_bytes", json!(8_i64 << 30), json!(1_000_000_000)),
        Key("lanes.linger", "'0s'", "0s", "/backends/0/lanes/linger", json!("10s"), json!("0s")),
        Key("lanes.max_requests", "5", "5", "/backends/0/lanes/max_requests", null(), json!(5)),
        Key("lanes.max_bytes", "'1MB'", "1MB", "/backends/0/lanes/max_bytes", null(), json!(1_000_000)),
        Key("lanes.max_running", "5", "5", "/backends/0/lanes/max_running", json!(20), json!(5)),
        Key("lanes.max_background", "5", "5", "/backends/0/lanes/max_background", json!(100), json!(5)),
        Key("lanes.rescue", "'1m'", "1m", "/backends/0/lanes/rescue", json!("10m"), json!("1m")),
        Key("lanes.rescue_concurrency", "5", "5", "/backends/0/lanes/rescue_concurrency", json!(16), json!(5)),
        Key("lanes.cancel", "'1m'", "1m", "/backends/0/lanes/cancel", json!("10m"), json!("1m")),
        Key("lanes.elsewhere", "false", "false", "/backends/0/lanes/elsewhere", json!(true), json!(false)),
        Key("lanes.enqueued_tokens", "5", "5", "/backends/0/lanes/enqueued_tokens", null(), json!(5)),
        Key("plugins.cache", "'/c'", "/c", "/plugins/cache", json!("./offpeak-data/plugin-cache"), json!("/c")),
        Key("plugins.watch", "'2s'", "2s", "/plugins/watch", null(), json!("2s")),
        Key("plugins.instances", "99", "99", "/plugins/instances", json!(256), json!(99)),
        Key("plugins.router.instances", "9", "9", "/plugins/router/limits/instances", null(), json!(9)),
        Key("plugins.retry_policy.instances", "9", "9", "/plugins/retry_policy/limits/instances", null(), json!(9)),
        Key("plugins.cost_policy.instances", "9", "9", "/plugins/cost_policy/limits/instances", null(), json!(9)),
        Key("plugins.providers.openai.instances", "9", "9", "/plugins/providers/1/limits/instances", null(), json!(9)),
        Key("plugins.router.file", FILE, FILE_BARE, "/plugins/router/source", json!("bundled"), json!({ "file": FILE_BARE })),
        Key("plugins.router.sha256", PIN, PIN_BARE, "/plugins/router/sha256", null(), json!(PIN_BARE)),
        Key("plugins.router.config", "{ a = 1 }", "{ a = 1 }", "/plugins/router/config", json!("{}"), json!("{\"a\":1}")),
        Key("plugins.router.on_failure", "'reject'", "reject", "/plugins/router/on_failure", json!("bundled"), json!("reject")),
        Key("plugins.router.time_limit", "'1s'", "1s", "/plugins/router/limits/time_limit", json!("50ms"), json!("1s")),
        Key("plugins.router.memory", "'2MiB'", "2MiB", "/plugins/router/limits/memory", json!(64 << 20), json!(2 << 20)),
        Key("plugins.retry_policy.file", FILE, FILE_BARE, "/plugins/retry_policy/source", json!("bundled"), json!({ "file": FILE_BARE })),
        Key("plugins.retry_policy.sha256", PIN, PIN_BARE, "/plugins/retry_policy/sha256", null(), json!(PIN_BARE)),
        Key("plugins.retry_policy.config", "{ a = 1 }", "{ a = 1 }", "/plugins/retry_policy/config", json!("{}"), json!("{\"a\":1}")),
        Key("plugins.retry_policy.time_limit", "'1s'", "1s", "/plugins/retry_policy/limits/time_limit", json!("50ms"), json!("1s")),
        Key("plugins.retry_policy.memory", "'2MiB'", "2MiB", "/plugins/retry_policy/limits/memory", json!(64 << 20), json!(2 << 20)),
        Key("plugins.cost_policy.file", FILE, FILE_BARE, "/plugins/cost_policy/source", json!("bundled"), json!({ "file": FILE_BARE })),
        Key("plugins.cost_policy.sha256", PIN, PIN_BARE, "/plugins/cost_policy/sha256", null(), json!(PIN_BARE)),
        Key("plugins.cost_policy.config", "{ a = 1 }", "{ a = 1 }", "/plugins/cost_policy/config", json!("{}"), json!("{\"a\":1}")),
        Key("plugins.cost_policy.time_limit", "'1s'", "1s", "/plugins/cost_policy/limits/time_limit", json!("50ms"), json!("1s")),
        Key("plugins.cost_policy.memory", "'2MiB'", "2MiB", "/plugins/cost_policy/limits/memory", json!(64 << 20), json!(2 << 20)),
        Key("plugins.providers.openai.file", FILE, FILE_BARE, "/plugins/providers/1/source", json!("bundled"), json!({ "file": FILE_BARE })),
        Key("plugins.providers.openai.sha256", PIN, PIN_BARE, "/plugins/providers/1/sha256", null(), json!(PIN_BARE)),
        Key("plugins.providers.openai.time_limit", "'1s'", "1s", "/plugins/providers/1/limits/time_limit", json!("50ms"), json!("1s")),
        Key("backends.b.engine.look_every", "'2s'", "2s", "/backends/0/engine/look_every", json!("1s"), json!("2s")),
        Key("backends.b.engine.latency", "'3s'", "3s", "/backends/0/engine/latency", json!("2s"), json!("3s")),
        Key("backends.b.engine.concurrency", "9", "9", "/backends/0/engine/concurrency", json!(512), json!(9)),
        Key("backends.b.engine.merge", "8", "8", "/backends/0/engine/merge", json!(32), json!(8)),
        Key("backends.b.engine.merge_realtime", "'50ms'", "50ms", "/backends/0/engine/merge_realtime", json!("0s"), json!("50ms")),
        Key("backends.b.engine.merge_completions", "true", "true", "/backends/0/engine/merge_completions", json!(false), json!(true)),
        Key("backends.b.engine.length_buckets", "[8, 64]", "8,64", "/backends/0/engine/length_buckets", json!([]), json!([8, 64])),
        Key("backends.b.engine.bucket_utilisation", "9", "9", "/backends/0/engine/bucket_utilisation", json!(50), json!(9)),
        Key("backends.b.engine.peak_tokens_per_second", "9", "9", "/backends/0/engine/peak", null(), json!(9)),
        Key("plugins.providers.openai.memory", "'2MiB'", "2MiB", "/plugins/providers/1/limits/memory", json!(128 << 20), json!(2 << 20)),
        Key("retry.max_attempts", "9", "9", "/retry/max_attempts", json!(4), json!(9)),
        Key("retry.base", "'2s'", "2s", "/retry/base", json!("1s"), json!("2s")),
        Key("retry.cap", "'2s'", "2s", "/retry/cap", json!("5m"), json!("2s")),
        Key("breaker.failures", "9", "9", "/breaker/failures", json!(10), json!(9)),
        Key("breaker.error_percent", "9", "9", "/breaker/error_percent", json!(5), json!(9)),
        Key("breaker.bad_batches", "9", "9", "/breaker/bad_batches", json!(10), json!(9)),
        Key("breaker.rest", "'2s'", "2s", "/breaker/rest", json!("10s"), json!("2s")),
        Key("breaker.rest_max", "'11m'", "11m", "/breaker/rest_max", json!("5m"), json!("11m")),
        Key("costs.prices", FILE, FILE_BARE, "/costs/prices", null(), json!(FILE_BARE)),
        Key("costs.keep", "'40d'", "40d", "/costs/keep", json!("8760h"), json!("960h")),
        Key("log.format", "'json'", "json", "/log/format", json!("text"), json!("json")),
        Key("log.level", "'debug'", "debug", "/log/level", json!("info"), json!("debug")),
    ]
}

const OPEN_WARNING: &str = "there are no tenants: whoever reaches 127.0.0.1:8400 may call, without a key, as tenant \
                            \"default\"; set access.open = true if this is meant, or add [tenants.<name>]";

/// A file that is there; the configuration does not look into it.
const PIN_BARE: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const PIN: &str = "'0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef'";
const FILE_BARE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
const FILE: &str = concat!("'", env!("CARGO_MANIFEST_DIR"), "/Cargo.toml'");

/// [`LEAST`] without a key that is tested, and with a provider to name.
fn around(path: &str) -> String {
    let rest = LEAST
        .lines()
        .filter(|line| !line.starts_with(path))
        .fold(String::new(), |all, line| all + line + "\n");
    format!("{rest}plugins.providers.other.file = {FILE}\n")
}

#[test]
fn every_key_changes_the_result_and_so_does_its_variable() {
    for Key(path, toml, variable, at, default, expected) in keys() {
        let base = read(&around("nothing"), &[]);
        assert_eq!(json(&base).pointer(at).unwrap_or(&Json::Null), &default, "{path} by default");
        let by_file = read(&format!("{path} = {toml}\n{}", around(path)), &[("K", "sk-1")]);
        assert_eq!(json(&by_file).pointer(at).unwrap_or(&Json::Null), &expected, "{path} in the file");
        let name = overrides::variable_for(path);
        let by_variable = read(&around(path), &[("K", "sk-1"), (&name, variable)]);
        assert_eq!(by_variable, by_file, "{name}");
        let over_file =
            read(&format!("{path} = {toml}\n{}", around(path)), &[("K", "sk-1"), (&name, variable)]);
        assert_eq!(over_file, by_file, "{name} over the file");
    }
}

/// The paths that the reading of a text asks for and that hold values.
fn asked(text: &str) -> BTreeSet<String> {
    let name: Arc<str> = "t.toml".into();
    let table = node::parse(&name, text).unwrap();
    let variables = env(&[("OPENAI_API_KEY", "sk-1")]);
    let context = section::Context::new(name, &variables);
    check::config(section::Section::root(&context, &table)).unwrap();
    let all = context.asked();
    let is_section =
        |path: &String| all.iter().any(|other| other.strip_prefix(path).is_some_and(|p| p.starts_with('.')));
    all.iter().filter(|path| !is_section(path)).cloned().collect()
}

#[test]
fn no_key_is_left_out_of_these_tests() {
    let tested: BTreeSet<String> = keys().iter().map(|key| key.0.to_owned()).collect();
    let mut asked = asked(&format!("plugins.providers.openai = {{}}\n{LEAST}"));
    asked.remove("tenants");
    // Tables that the user names, like tenants.
    asked.remove("access.model_limits");
    asked.remove("routes");
    asked.remove("plugins.routers");
    // These go together; they have tests of their own.
    for key in [
        "server.tls.certificate",
        "server.tls.key",
        "server.tls.client_ca",
        "alerts.url",
        "alerts.secret",
        "alerts.internal",
    ] {
        assert!(asked.remove(key), "{key}");
    }
    assert_eq!(asked, tested);
}

/// The example with its defaults spelled out.
fn spelled_out() -> String {
    EXAMPLE.replace("\n#: ", "\n")
}

#[test]
fn the_example_is_right_and_spells_out_the_defaults() {
    let variables = [("OPENAI_API_KEY", "sk-1")];
    let as_it_is = read(EXAMPLE, &variables);
    assert_ne!(spelled_out(), EXAMPLE);
    assert_eq!(read(&spelled_out(), &variables), as_it_is);
    let least = "access.open = true\n[backends.openai]\nmodels = [\"gpt-*\", \"o3*\", \"o4*\", \"text-embedding-*\"]\n\
                 base_url = \"https://api.openai.com\"\napi_key = { env = \"OPENAI_API_KEY\" }\n";
    assert_eq!(read(least, &variables), as_it_is);
    assert_eq!((as_it_is.warnings, as_it_is.notes), (vec![], vec![]));
}

#[test]
fn the_example_shows_every_key() {
    let mut asked = asked(EXAMPLE);
    asked.remove("tenants");
    for path in asked {
        let key = path.rsplit('.').next().unwrap();
        let shown = [
            format!(" {key} = "),
            format!("\n{key} = "),
            format!(".{key}]"),
            format!("[{key}."),
            format!(".{key}."),
        ];
        assert!(shown.iter().any(|shown| EXAMPLE.contains(shown)), "{path}");
    }
}

#[test]
fn tenants_have_keys_and_settings_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    std::fs::write(&file, "sk-2\n").unwrap();
    let tenants = format!(
        "[tenants.b]\nkeys = [{{ env = 'K1' }}, {{ file = '{}' }}]\ndefault_sla = 'deferrable'\ndeferrable = '2h'\n\
         delivery = 'ticket'\nrequests_per_minute = 600\nmodels = ['gpt-*']\nmax_queued = 5\nmax_queued_bytes = '1GiB'\n\
         budget.day_usd = '0.50'\nmodel_limits.big = {{ models = ['gpt-6*'], input_tokens_per_minute = 1000, deferred.requests_per_minute = 9, max_queued = 7 }}\n[tenants.a]\nkeys = [{{ env = 'K3' }}]\n",
        file.display()
    );
    let config =
        read(&format!("server.listen = '0.0.0.0:80'\n{LEAST}{tenants}"), &[("K1", "sk-1"), ("K3", "sk-3")]);
    let Access::Tenants(tenants) = &config.access else { panic!("{:?}", config.access) };
    let [b, a] = tenants.as_slice() else { panic!("{tenants:?}") };
    assert_eq!(b.keys.iter().map(Secret::expose).collect::<Vec<_>>(), ["sk-1", "sk-2"]);
    assert_eq!(
        json(&config)["access"]["tenants"][0],
        json!({
            "id": "b", "keys": [{ "env": "K1" }, { "file": file }], "default_sla": "2h", "deferrable": "2h",
            "delivery": "ticket", "requests_per_minute": 600, "input_tokens_per_minute": null,
            "output_tokens_per_minute": null, "concurrent": null, "burst": "1m",
            "deferred": { "requests_per_minute": null, "input_tokens_per_minute": null,
                "output_tokens_per_minute": null, "burst": "1m" },
            "budget": { "day_usd": "0.5", "month_usd": null, "hard": true }, "unpriced": "refuse",
            "model_limits": [{ "name": "big", "models": ["gpt-6*"], "requests_per_minute": null,
                "input_tokens_per_minute": 1000, "output_tokens_per_minute": null, "concurrent": null, "burst": "1m",
                "deferred": { "requests_per_minute": 9, "input_tokens_per_minute": null,
                    "output_tokens_per_minute": null, "burst": "1m" },
                "max_queued": 7, "max_queued_bytes": null }],
            "models": ["gpt-*"], "share": 100, "max_queued": 5,
            "max_queued_bytes": 1 << 30,
        })
    );
    let open = read(LEAST, &[]).access;
    let Access::Open(default) = open else { panic!("{open:?}") };
    assert_eq!(*a, Tenant { id: "a".into(), keys: a.keys.clone(), ..*default });
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn routes_say_what_is_done_meanwhile() {
    let text = "[routes.a]\ntenants = ['t*']\nendpoints = ['/v1/x']\nmodels = ['m']\nelsewhere = false\nwait = '5s'\n\
                answer = { status = 503, body = '{\"a\": 1}', stream = \"data: [DONE]\" }\n[routes.b]\n";
    let config = read(&format!("{LEAST}{text}"), &[("OFFPEAK_ROUTES__B__WAIT", "2s")]);
    assert_eq!(
        json(&config)["routes"],
        json!([
            { "name": "a", "tenants": ["t*"], "endpoints": ["/v1/x"], "models": ["m"], "elsewhere": false, "wait": "5s",
                "answer": { "status": 503, "body": "{\"a\": 1}", "stream": "data: [DONE]\n\n" } },
            { "name": "b", "tenants": ["*"], "endpoints": ["*"], "models": ["*"], "elsewhere": true, "wait": "2s",
                "answer": null },
        ])
    );
    let told = describe(&config);
    assert!(
        told.contains("requests stay with their backend; calls in real time wait up to 5s, then get 503"),
        "{told}"
    );
    for (answer, expected) in [
        ("{ status = 503 }", "routes.a.answer.body: this is missing"),
        ("{ body = 'sorry' }", "routes.a.answer.body: must be JSON"),
        ("{ body = '{}', status = 100 }", "routes.a.answer.status: must be from 200 to 599"),
        ("{ body = '{}', stream = '{}' }", "routes.a.answer.stream: must be a stream of events"),
        ("{ body = '{}', text = '{}' }", "routes.a.answer.text: unknown key"),
    ] {
        let said = refused(&format!("{LEAST}routes.a.answer = {answer}\n"), &[]);
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn routers_stand_in_a_chain_in_the_order_of_the_file() {
    let text = format!(
        "[plugins.routers.z]\nfile = {FILE}\ntenants = ['search', 'team-*']\non_failure = 'reject'\nconfig = {{ a = 1 }}\n\
         instances = 3\n[plugins.routers.a]\nfile = {FILE}\n"
    );
    let config = read(&format!("{LEAST}{text}"), &[]);
    let chain = &config.plugins.routers;
    assert_eq!(chain.iter().map(|router| router.name.as_str()).collect::<Vec<_>>(), ["z", "a"]);
    assert!(
        chain[0].tenants.matches("team-x")
            && !chain[0].tenants.matches("mail")
            && chain[1].tenants.matches("mail")
    );
    assert_eq!(
        (chain[0].router.on_failure, chain[1].router.on_failure),
        (OnRouterFailure::Reject, OnRouterFailure::Bundled)
    );
    assert_eq!((chain[0].router.config.as_str(), chain[0].router.limits.instances), ("{\"a\":1}", Some(3)));
    let told = describe(&config);
    assert!(told.contains("router    z: from ") && told.contains("tenants   search, team-*"), "{told}");
    let said = refused(&format!("{LEAST}[plugins.routers.z]\n"), &[]);
    assert!(said.contains("plugins.routers.z.file: this is missing"), "{said}");
    let said = refused(&format!("{LEAST}[plugins.routers.z]\nfile = {FILE}\non_failure = 'bundled'\n"), &[]);
    assert!(said.contains("must be \"next\" or \"reject\""), "{said}");
}

#[test]
fn tls_needs_a_certificate_and_its_key() {
    let config = read(&format!("server.tls = {{ certificate = {FILE}, key = {FILE} }}\n{LEAST}"), &[]);
    let files = TlsFiles { certificate: FILE_BARE.into(), key: FILE_BARE.into(), client_ca: None };
    assert_eq!(config.server.tls, Some(files));
    let text = format!("server.tls.client_ca = {FILE}\n{LEAST}");
    let errors = Config::from_text("t.toml", &text, &env(&[])).unwrap_err().to_string();
    assert!(errors.contains("server.tls.certificate: this is missing"), "{errors}");
    assert!(errors.contains("server.tls.key: this is missing"), "{errors}");
}

#[test]
fn alerts_need_an_address_and_a_secret() {
    let text = "alerts = { url = 'https://h.example/x', secret = { env = 'S' }, internal = true }";
    let config = read(&format!("{text}\n{LEAST}"), &[("S", "whsec_x")]);
    let alerts = config.alerts.unwrap();
    assert_eq!(
        (alerts.url.as_str(), alerts.secret.expose(), alerts.internal),
        ("https://h.example/x", "whsec_x", true)
    );
    let said = refused(&format!("alerts.internal = true\n{LEAST}"), &[]);
    assert!(
        said.contains("alerts.url: this is missing") && said.contains("alerts.secret: this is missing"),
        "{said}"
    );
}

#[test]
fn backends_keep_the_order_of_the_file_and_take_lanes_from_the_defaults() {
    let text = "lanes = { linger = '1m', max_running = 3 }\n[backends.z]\nbase_url = 'https://z'\nmodels = ['*']\n\
                [backends.a]\nbase_url = 'https://a'\nmodels = ['*']\nlanes = { linger = '2m' }\n";
    let variables = [("OFFPEAK_BACKENDS__M__BASE_URL", "https://m"), ("OFFPEAK_BACKENDS__M__MODELS", "x")];
    let config = read(text, &variables);
    let lanes = |b: &Backend| format!("{} {} {}", b.id, b.lanes.linger.0, b.lanes.max_running);
    assert_eq!(
        config.backends.iter().map(lanes).collect::<Vec<_>>(),
        ["z 60000 3", "a 120000 3", "m 60000 3"]
    );
    assert_eq!(config.backend(&"a".into()).map(|b| b.base_url.as_str()), Some("https://a"));
}

#[test]
fn the_version_is_left_off_base_urls_with_a_note() {
    for (url, expected, noted) in [
        ("https://api.openai.com/v1/", "https://api.openai.com", true),
        ("https://h:443/prefix/v1", "https://h/prefix", true),
        ("http://[::1]:8000/v10", "http://[::1]:8000/v10", false),
    ] {
        let config = read(&format!("backends.b = {{ base_url = '{url}', models = ['*'] }}"), &[]);
        assert_eq!(config.backends[0].base_url, expected);
        let note = "backends.b.base_url: /v1 at the end is left off, since provider plugins add it";
        assert_eq!(config.notes, if noted { vec![note] } else { vec![] }, "{url}");
    }
}

#[test]
fn what_may_be_dangerous_is_warned_of() {
    let text = "access.open = true\nserver.admin = '0.0.0.0:1'\n[backends.b]\nbase_url = 'http://10.0.0.1'\n\
                models = ['*']\napi_key = { env = 'OFFPEAK_LOG_LEVEL' }\n";
    let variables = [
        ("OFFPEAK_LOG_LEVEL", "sk-1"),
        ("OFFPEAK_SERVER_LISTEN", "x"),
        ("OFFPEAK_SERVER_PORT", "tcp://10.0.0.1"),
    ];
    assert_eq!(
        read(text, &variables).warnings,
        [
            "the admin plane on 0.0.0.0:1 can be reached from elsewhere and asks for no key: see to it that only \
             operators reach it",
            "backends.b.base_url: the API key goes over the network unencrypted: use https",
            "the environment variable OFFPEAK_SERVER_LISTEN is not read: sections and keys are divided by two \
             underscores; did you mean OFFPEAK_SERVER__LISTEN?",
        ]
    );
}

#[test]
fn free_tables_become_json_and_secrets_may_come_by_variable() {
    let text = format!("backends.b.config = {{ a = 1, b = {{ c = [1.5, true, 1979-05-27] }} }}\n{LEAST}");
    let variables = [
        ("OFFPEAK_BACKENDS__B__CONFIG__LEVEL", "3"),
        ("OFFPEAK_BACKENDS__B__CONFIG__NAME", "x y"),
        ("OFFPEAK_BACKENDS__B__API_KEY", "sk-1"),
        ("OFFPEAK_TENANTS__T__KEYS", "k-1, k-2"),
    ];
    let config = read(&text, &variables);
    let parsed: Json = serde_json::from_str(&config.backends[0].config).unwrap();
    assert_eq!(parsed, json!({ "a": 1, "b": { "c": [1.5, true, "1979-05-27"] }, "level": 3, "name": "x y" }));
    assert_eq!(config.backends[0].api_key.as_ref().map(Secret::expose), Some("sk-1"));
    let keys = config.access.tenants()[0].keys.iter();
    assert_eq!(keys.map(Secret::expose).collect::<Vec<_>>(), ["k-1", "k-2"]);
}

#[test]
fn the_description_tells_everything_but_secrets() {
    let text = "server.public_url = 'https://o'\n[tenants.search]\nkeys = [{ env = 'K' }]\nrequests_per_minute = 600\n\
                [backends.main]\nbase_url = 'http://10.0.0.1/v1'\nmodels = ['gpt-*', 'o3']\napi_key = { env = 'UP' }\n\
                config = { tier = 2 }\nlanes = { max_requests = 10 }\n";
    let config = read(text, &[("K", "sk-1"), ("UP", "sk-2")]);
    assert_eq!(describe(&config), DESCRIPTION);
    assert!(!serde_json::to_string(&config).unwrap().contains("sk-"));
    assert!(!format!("{config:?}").contains("sk-"));
}

const DESCRIPTION: &str = r#"Listeners
  requests  127.0.0.1:8400: up to 20000 connections, 20000 held calls, bodies up to 32MiB, 1GiB of large ones in memory
            clients reach it as https://o
  admin     127.0.0.1:8401: health, metrics, lanes, batches; asks for no key
  stopping  work in flight gets 30s

Tenants
  search
    key       from the environment variable K
    untagged  answered now; "deferrable" means within 24h
    delivery  deferred answers come on the same call, which is held open, unless the caller asks otherwise
    limits    600 requests a minute, 1000000 or 8GiB queued
    models    *

Backends, the preferred one first
  1. main at http://10.0.0.1, by the provider plugin openai
    key       from the environment variable UP
    models    gpt-*, o3
    patience  5s to connect, 10m of silence
    lanes     leave after 10s, when a deadline demands it, or full (10 requests, or as the plugin says); at most 20 batches under way
    room      1000000 requests or 8GiB in a lane
    rescue    in real time 10m before a deadline, 16 requests at once; a late batch is cancelled 10m before that
    tokens    as many enqueued as the provider turns out to take
    outage    while it takes no batches, what waits may go to the next backend
    config    {"tier":2}

Plugins (compiled ones are kept in ./offpeak-data/plugin-cache)
  router    bundled, 50ms a call, 64MiB; if it fails, the bundled router decides
  retries   bundled, 50ms a call, 64MiB
  costs     bundled, 50ms a call, 64MiB
  provider  anthropic: bundled, 50ms a call, 128MiB
  provider  openai: bundled, 50ms a call, 128MiB
  provider  vllm: bundled, 50ms a call, 128MiB

Store
  folder    ./offpeak-data, in segments of 64MiB
  room      5000000 requests or 32GiB in all lanes together
  results   kept 48h after they are finished

Retries
  up to 4 attempts, the second after 1s, then twice as long each time, at most 5m
  a backend rests after 10 failures in a row, or 10 batches in a row of which over 5% failed:
  for 10s, twice as long each time, at most 5m

Costs
  prices    the built-in ones of 2026-11-23
  ledger    kept for 8760h

Log
  text, info

Notes
  backends.main.base_url: /v1 at the end is left off, since provider plugins add it

Warnings
  backends.main.base_url: the API key goes over the network unencrypted: use https
"#;

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "([a-z]{1,4}|backends|server|[.=\\[\\]{}\"'#\n 0-9\u{e9}]){0,30}") {
        if let Err(errors) = Config::from_text("t.toml", &text, &env(&[])) {
            prop_assert!(errors.to_string().starts_with("t.toml"));
        }
    }
}
