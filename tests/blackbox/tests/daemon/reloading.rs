//! Plugins that change while the daemon runs: between two requests, all or none, and no request is lost.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use http::StatusCode;
use offpeak_guests::{night, provider, router};
use provider_sim::{BatchFault, Endpoint, EngineOptions, Fault, Handle, Mode, Provider, Server};
use serde_json::Value;
use tempfile::TempDir;

use crate::rig::{Answer, MODEL, Rig, Ticket, eventually, sim};

/// A file in which a plugin's versions follow each other.
struct Shelf {
    _folder: TempDir,
    file: PathBuf,
}

impl Shelf {
    fn with(component: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Self { file: folder.path().join("plugin.wasm"), _folder: folder };
        shelf.put(component);
        shelf
    }

    fn put(&self, component: &[u8]) {
        std::fs::write(&self.file, component).unwrap();
    }

    /// The path as the configuration writes it.
    fn path(&self) -> String {
        path(&self.file)
    }
}

fn path(file: &Path) -> String {
    toml::Value::from(file.to_str().unwrap()).to_string()
}

/// The same component with a remark in it: it does the same, and is another one by its SHA-256.
fn remarked(component: &[u8]) -> Vec<u8> {
    // A custom section (0) of seven bytes: the length of its name, the name, and nothing.
    [component, b"\0\x07\x06remark"].concat()
}

async fn reload(rig: &Rig) -> Answer {
    rig.daemon.admin_post("/admin/v1/plugins/reload").await
}

/// The row of a plugin in the daemon's list, or in what a reload has told.
fn row<'a>(list: &'a Answer, name: &str) -> &'a Value {
    list.body["data"].as_array().unwrap().iter().find(|row| row["name"] == name).unwrap()
}

/// What becomes of a request that can wait a day: this router runs all at once, the bundled one defers.
async fn is_deferred(rig: &Rig) -> bool {
    rig.daemon.defer("search", MODEL, "no hurry", "24h").await.status == StatusCode::ACCEPTED
}

fn with_router(shelf: &Shelf) -> String {
    format!("[plugins.router]\nfile = {}\non_failure = \"reject\"\ntime_limit = \"5s\"", shelf.path())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_router_decides_from_one_request_to_the_next() {
    let shelf = Shelf::with(router::COMPONENT);
    let rig = Rig::start(sim(), &with_router(&shelf)).await;
    assert!(!is_deferred(&rig).await);
    let before = row(&rig.daemon.admin("/admin/v1/plugins").await, "router").clone();

    // What has not changed stays, with all that it knows.
    let same = reload(&rig).await;
    assert_eq!((same.status, &row(&same, "router")["changed"]), (StatusCode::OK, &Value::Bool(false)));
    let unchanged = row(&rig.daemon.admin("/admin/v1/plugins").await, "router").clone();
    assert_eq!(unchanged["calls"], before["calls"]);

    shelf.put(offpeak_bundled::SLA_ROUTER);
    assert!(!is_deferred(&rig).await, "a file that nobody has read again changes nothing");
    let told = reload(&rig).await;
    let told = row(&told, "router");
    assert_eq!((&told["changed"], &told["before"]), (&Value::Bool(true), &before["sha256"]));
    assert_ne!(told["sha256"], before["sha256"]);
    assert!(is_deferred(&rig).await);
    let after = row(&rig.daemon.admin("/admin/v1/plugins").await, "router").clone();
    assert_eq!(after["sha256"], told["sha256"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_plugin_never_replaces_a_good_one() {
    let shelf = Shelf::with(router::COMPONENT);
    let rig = Rig::start(sim(), &with_router(&shelf)).await;
    let before = row(&rig.daemon.admin("/admin/v1/plugins").await, "router")["sha256"].clone();
    for (bad, why) in [
        (&b"not a component"[..], "not a WebAssembly component"),
        (&router::COMPONENT[..1000], "not a WebAssembly component"),
        (provider::COMPONENT, "does not implement the world `router`"),
    ] {
        shelf.put(bad);
        let refused = reload(&rig).await;
        assert_eq!(refused.error(), (422, "plugin_refused"));
        let message = refused.body["error"]["message"].as_str().unwrap();
        assert!(message.contains(why) && message.contains("Nothing has changed"), "{message}");
        assert_eq!(row(&rig.daemon.admin("/admin/v1/plugins").await, "router")["sha256"], before);
        assert!(!is_deferred(&rig).await);
    }
    // The configuration that is read again names another file, a wrong pin, and no file any more.
    let settings = with_router(&shelf);
    assert!(rig.daemon.refused_reload(&rig.upstream, &settings).await.contains("Nothing has changed"));
    shelf.put(router::COMPONENT);
    let pinned = format!("{settings}\nsha256 = \"{}\"", "0".repeat(64));
    let error = rig.daemon.refused_reload(&rig.upstream, &pinned).await;
    assert!(error.contains("is not the component that `sha256` pins"), "{error}");
    rig.daemon.reload(&rig.upstream, "").await;
    assert!(is_deferred(&rig).await, "the bundled router decides");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_that_starts_and_breaks_at_ordinary_calls_is_not_let_in() {
    let shelf = Shelf::with(offpeak_bundled::SLA_ROUTER);
    let broken = |settings: &str| format!("{}\nconfig.route = \"panic\"{settings}", with_router(&shelf));
    let rig = Rig::start(sim(), &with_router(&shelf)).await;
    assert!(is_deferred(&rig).await);
    shelf.put(router::COMPONENT);
    let why = rig.daemon.refused_reload(&rig.upstream, &broken("")).await;
    for part in
        ["`router`", "route", "told to", "It was asked: POST /v1/chat/completions", "Nothing has changed"]
    {
        assert!(why.contains(part), "{part}: {why}");
    }
    assert!(is_deferred(&rig).await, "the one before decides");
    // One more of the chain is tried, too, and by that its name is told.
    shelf.put(offpeak_bundled::SLA_ROUTER);
    let file = Shelf::with(router::COMPONENT);
    let chain = format!(
        "{}\n[plugins.routers.mine]\nfile = {}\nconfig.route = \"panic\"\ntime_limit = \"5s\"",
        with_router(&shelf),
        file.path()
    );
    let why = rig.daemon.refused_reload(&rig.upstream, &chain).await;
    assert!(why.contains("`mine`"), "{why}");
    // Where it is asked about nobody's requests, nothing is ordinary.
    rig.daemon.reload(&rig.upstream, &format!("{chain}\ntenants = [\"of-tomorrow\"]")).await;
    // What has not changed is not tried, or whoever began with it could change nothing else.
    shelf.put(router::COMPONENT);
    let rig = Rig::start(sim(), &broken("")).await;
    rig.daemon.reload(&rig.upstream, &broken("\n[tenants.search]\nmax_queued = 7")).await;
    assert_eq!(reload(&rig).await.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_lost_while_plugins_change() {
    let shelf = Shelf::with(router::COMPONENT);
    let rig = Rig::start(sim(), &with_router(&shelf)).await;
    let versions = [remarked(router::COMPONENT), router::COMPONENT.to_vec()];
    let asking = async {
        for n in 0..200 {
            let prompt = format!("question {n}");
            let answer = rig.daemon.ask(MODEL, &prompt).await;
            assert!(answer.answers(MODEL, &prompt), "{answer:?}");
        }
    };
    let changing = async {
        for n in 0..8 {
            shelf.put(&versions[n % 2]);
            let told = reload(&rig).await;
            assert_eq!(row(&told, "router")["changed"], true, "{told:?}");
        }
    };
    tokio::join!(asking, changing);
    assert_eq!(rig.billed(Mode::Realtime), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_under_way_goes_on_with_the_plugin_that_it_began_with() {
    let openai = offpeak_bundled::OPENAI;
    let shelf = Shelf::with(openai);
    let settings = format!("[plugins.providers.openai]\nfile = {}\ntime_limit = \"5s\"", shelf.path());
    let rig = Rig::start(sim(), &settings).await;
    // One that is polled as long as the test likes.
    rig.provider.faults().next_batch(vec![BatchFault::Stall]);
    let stalled = rig.daemon.ticket("a question").await;
    let polls = || rig.provider.calls(Endpoint::GetBatch);
    eventually("the batch is under way", async || (polls() > 0).then_some(())).await;

    shelf.put(&remarked(openai));
    let told = reload(&rig).await;
    assert_eq!(row(&told, "openai")["changed"], true, "{told:?}");
    let calls = async || {
        let plugins = rig.daemon.admin("/admin/v1/plugins").await;
        row(&plugins, "openai")["calls"].as_u64().unwrap()
    };
    let (calls_before, polls_before) = (calls().await, polls());
    eventually("it is polled on", async || (polls() >= polls_before + 5).then_some(())).await;
    assert!(calls().await < calls_before + 5, "by the plugin before");
    assert_eq!(rig.daemon.look(&stalled).await.status, StatusCode::ACCEPTED);

    // What begins now begins with the new one.
    let calls_before = calls().await;
    let next = rig.daemon.ticket("another question").await;
    rig.all_answered(&[next]).await;
    assert!(calls().await >= calls_before + 3, "it wrote, polled and read");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_a_batch_is_kept_by_a_plugin_that_refuses_its_state_and_ended_by_one_that_knows_it() {
    let (newer, stranger) =
        (Shelf::with(&remarked(offpeak_bundled::OPENAI)), Shelf::with(provider::COMPONENT));
    let model = provider::REFUSE;
    let rig = Rig::start(sim().models([model]), "").await;
    // So many hours are seconds here.
    rig.provider.faults().next_batch(vec![BatchFault::Turnaround { ms: 4 * 3_600_000 }]);
    let taken = rig.daemon.defer("search", model, "a question", "24h").await;
    let location = taken.header("location").to_owned();
    let ticket = Ticket { prompt: "a question".to_owned(), tenant: "search", location };
    eventually("it is under way", async || (rig.provider.calls(Endpoint::GetBatch) > 0).then_some(())).await;

    let file = stranger.path();
    let settings = format!(
        "[plugins.providers.misfit]\nfile = {file}\n[backends.simulated]\nprovider = \"misfit\"\nconfig = {{}}"
    );
    let daemon = rig.daemon.restart(&rig.upstream, &settings).await;
    eventually("it refused", async || {
        (daemon.metric("offpeak_plugin_errors_total", "plugin=\"misfit\"").await >= 1).then_some(())
    })
    .await;
    assert_eq!(daemon.look(&ticket).await.status, StatusCode::ACCEPTED);

    let settings = format!("[plugins.providers.openai]\nfile = {}", newer.path());
    let daemon = daemon.restart(&rig.upstream, &settings).await;
    let answer = daemon.redeem(&ticket).await;
    assert!(answer.answers(model, "a question"), "{answer:?}");
    assert_eq!(rig.provider.calls(Endpoint::CreateBatch), 1, "the batch went on");
    assert_eq!(rig.provider.bill().executions.repeated(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_wants_the_credential_elsewhere_waits_for_a_restart() {
    let openai = offpeak_bundled::OPENAI;
    let shelf = Shelf::with(openai);
    let settings = format!("[plugins.providers.openai]\nfile = {}\ntime_limit = \"5s\"", shelf.path());
    let rig = Rig::start(sim(), &settings).await;
    shelf.put(provider::COMPONENT);
    let refused = reload(&rig).await;
    assert_eq!(refused.error(), (422, "plugin_refused"));
    assert!(refused.body["error"]["message"].as_str().unwrap().contains("needs a restart"), "{refused:?}");
    assert!(rig.daemon.ask(MODEL, "hello").await.answers(MODEL, "hello"));
}

/// What a file is named for, and what lies in it: every world, the last one together with `provider`.
const FIVE_WORLDS: [(&str, &[u8]); 5] = [
    ("router", offpeak_bundled::SLA_ROUTER),
    ("retry_policy", offpeak_bundled::STANDARD_RETRY),
    ("cost_policy", offpeak_bundled::STANDARD_COST),
    ("providers.openai", offpeak_bundled::OPENAI),
    ("providers.vllm", offpeak_bundled::VLLM),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plugins_of_all_five_worlds_change_together() {
    let shelves = FIVE_WORLDS.map(|(place, component)| (place, component, Shelf::with(component)));
    let engine = sim().speed(1).models([MODEL]).engine(EngineOptions::default()).build();
    let engine = Server::on_free_port(engine).await.unwrap();
    let files: Vec<String> = shelves
        .iter()
        .map(|(place, _, shelf)| format!("[plugins.{place}]\nfile = {}\ntime_limit = \"5s\"", shelf.path()))
        .collect();
    let settings = format!(
        "{}\n[backends.gpu]\nprovider = \"vllm\"\nbase_url = \"{}\"\nmodels = [\"qwen*\"]\nengine.look_every = \"50ms\"",
        files.join("\n"),
        engine.url()
    );
    let rig = Rig::start(sim(), &settings).await;
    for (_, component, shelf) in &shelves {
        shelf.put(&remarked(component));
    }
    let told = reload(&rig).await;
    assert_eq!(told.status, StatusCode::OK, "{told:?}");
    let rows = told.body["data"].as_array().unwrap();
    let mut roles: Vec<_> = rows.iter().map(|row| row["role"].as_str().unwrap()).collect();
    roles.sort_unstable();
    assert_eq!(roles, ["cost-policy", "engine", "provider", "provider", "retry-policy", "router"]);
    assert!(rows.iter().all(|row| row["changed"] == true && row["before"] != row["sha256"]), "{told:?}");

    // The engine is looked at on, by the new adapter.
    let looks = async || {
        let plugins = rig.daemon.admin("/admin/v1/plugins").await;
        let rows = plugins.body["data"].as_array().unwrap();
        let adapter = rows.iter().find(|row| row["role"] == "engine" && row["used_by"] == "gpu").unwrap();
        adapter["calls"].as_u64().unwrap()
    };
    let before = looks().await;
    eventually("it is looked at", async || (looks().await > before).then_some(())).await;
    let ticket = rig.daemon.ticket("a question").await;
    rig.all_answered(&[ticket]).await;

    // What does not know the engine's metrics does not take its place.
    let (_, _, vllm) = &shelves[4];
    vllm.put(offpeak_bundled::OPENAI);
    let refused = reload(&rig).await;
    assert_eq!(refused.error(), (422, "plugin_refused"));
    assert!(refused.body["error"]["message"].as_str().unwrap().contains("world `engine`"), "{refused:?}");
}

/// A daemon before an engine whose plugin lies in a file; nothing else sells anything.
async fn before_an_engine(shelf: &Shelf) -> (Rig, Provider, Handle, String) {
    let provider = sim().speed(1).models([MODEL]).engine(EngineOptions::default()).build();
    let server = Server::on_free_port(provider.clone()).await.unwrap();
    let settings = format!(
        "backends.simulated.models = [\"none\"]\nbreaker.rest = \"1h\"\nbreaker.rest_max = \"1h\"\n\
         [plugins.providers.vllm]\nfile = {}\ntime_limit = \"5s\"\n\
         [backends.gpu]\nprovider = \"vllm\"\nbase_url = \"{}\"\nmodels = [\"*\"]\napi_key = {{ env = \"PROVIDER_KEY\" }}\n\
         engine.look_every = \"50ms\"",
        shelf.path(),
        server.url()
    );
    (Rig::start(sim(), &settings).await, provider, server, settings)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_an_engines_offer_that_is_gone_is_bought_as_the_next_one() {
    let shelf = Shelf::with(offpeak_bundled::VLLM);
    let (rig, engine, _server, _) = before_an_engine(&shelf).await;
    let first = rig.daemon.ticket("its lane is there").await;
    rig.all_answered(&[first]).await;
    engine.stop_engine();
    eventually("the engine is known to be down", async || {
        let why = rig.daemon.admin("/admin/v1/explain/0").await.body["why"].to_string();
        why.contains("out of order").then_some(())
    })
    .await;
    let waiting = rig.daemon.tickets(3, |n| format!("question {n}")).await;
    rig.daemon.wait_for_waiting(3).await;

    shelf.put(night::COMPONENT);
    assert_eq!(reload(&rig).await.status, StatusCode::OK);
    engine.start_engine();
    rig.all_answered(&waiting).await;
    assert_eq!(rig.daemon.metric("offpeak_batch_requests_sealed_total", "reason=\"rescue\"").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_piece_under_way_whose_offer_is_gone_at_the_next_start_is_given_back() {
    let shelf = Shelf::with(offpeak_bundled::VLLM);
    let (rig, engine, _server, settings) = before_an_engine(&shelf).await;
    engine.faults().next(Endpoint::ChatCompletions, Fault::Slow { ms: 60_000 });
    let ticket = rig.daemon.ticket("a question").await;
    eventually("it is under way", async || (engine.calls(Endpoint::ChatCompletions) > 0).then_some(())).await;
    shelf.put(night::COMPONENT);
    let daemon = rig.daemon.restart(&rig.upstream, &settings).await;
    let answer = daemon.redeem(&ticket).await;
    assert!(answer.is_to(&ticket), "{answer:?}");
    // The answer is there before its piece is counted.
    eventually("the first piece ended cancelled, and the second one completed", async || {
        let ended = [
            daemon.metric("offpeak_batches_ended_total", "cancelled").await,
            daemon.metric("offpeak_batches_ended_total", "completed").await,
        ];
        (ended == [1, 1]).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_uses_a_file_has_the_same_of_it() {
    let shelf = Shelf::with(offpeak_bundled::VLLM);
    let (rig, ..) = before_an_engine(&shelf).await;
    // Whoever opens it gets what nobody got before.
    let pipe = |file: &Path| {
        std::fs::remove_file(file).unwrap();
        assert!(Command::new("mkfifo").arg(file).status().unwrap().success());
    };
    pipe(&shelf.file);
    let file = shelf.file.clone();
    std::thread::spawn(move || {
        let versions = [remarked(offpeak_bundled::VLLM), remarked(&remarked(offpeak_bundled::VLLM))];
        for version in versions {
            let mut reader = std::fs::File::options().write(true).open(&file).unwrap();
            reader.write_all(&version).unwrap();
            // It is at its end when another one lies there.
            pipe(&file);
        }
    });
    let told = reload(&rig).await;
    let rows = told.body["data"].as_array().unwrap().iter().filter(|row| row["used_by"] == "gpu");
    let found: Vec<(&Value, &Value)> = rows.map(|row| (&row["role"], &row["sha256"])).collect();
    let [(_, provider), (_, adapter)] = &found[..] else { panic!("{told:?}") };
    assert_eq!(provider, adapter, "{found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_changes_is_taken_into_use_and_a_bad_one_is_not() {
    let shelf = Shelf::with(router::COMPONENT);
    let rig = Rig::start(sim(), &format!("[plugins]\nwatch = \"20ms\"\n{}", with_router(&shelf))).await;
    let reloads = async |result: &str| {
        rig.daemon.metric("offpeak_plugin_reloads_total", &format!("result=\"{result}\"")).await
    };
    assert!(!is_deferred(&rig).await);
    shelf.put(offpeak_bundled::SLA_ROUTER);
    eventually("the new router is at work", async || is_deferred(&rig).await.then_some(())).await;
    assert_eq!((reloads("taken").await, reloads("refused").await), (1, 0));

    shelf.put(b"not a component");
    eventually("the bad file was looked at", async || (reloads("refused").await == 1).then_some(())).await;
    assert!(is_deferred(&rig).await, "the one before goes on");

    shelf.put(router::COMPONENT);
    eventually("the first one is back", async || (!is_deferred(&rig).await).then_some(())).await;
    assert_eq!((reloads("taken").await, reloads("refused").await), (2, 1), "each change once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_looked_at_as_the_configuration_says_that_was_read_last() {
    let shelf = Shelf::with(router::COMPONENT);
    let rig = Rig::start(sim(), &with_router(&shelf)).await;
    assert!(!is_deferred(&rig).await);
    rig.daemon.reload(&rig.upstream, &format!("[plugins]\nwatch = \"20ms\"\n{}", with_router(&shelf))).await;
    shelf.put(offpeak_bundled::SLA_ROUTER);
    eventually("the new router is at work", async || is_deferred(&rig).await.then_some(())).await;
}
