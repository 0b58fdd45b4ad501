//! From what was written to the checked tree: every key with its default and its bounds, one function a section.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use offpeak_core::breaker::BreakerTerms;
use offpeak_core::retry::RetryPolicy;
use offpeak_core::room::Bound;
use offpeak_core::words::Millis;
use tracing_subscriber::EnvFilter;

use super::access::{access, queue};
use super::amounts::Least;
use super::backend::{backends, lanes, url};
use super::error::Problem;
use super::field::Field;
use super::overrides::{variable_for, with_one_underscore};
use super::patterns::ModelPatterns;
use super::routes::routes;
use super::section::{Context, Section, nearest};
use super::tree::{
    Alerts, Config, Costs, Log, LogFormat, NamedRouter, OnRouterFailure, PluginLimits, PluginSource, Plugins,
    Policy, ProviderPlugin, RouterPlugin, Server, Store, TlsFiles,
};

/// The ledger has entries at least so long.
const LEDGER_LEAST: Millis = Millis::from_hours(24 * 32);

/// The names of the provider plugins in the daemon's binary.
const BUNDLED_PROVIDERS: [&str; offpeak_bundled::PROVIDERS.len()] = {
    let mut names = [""; offpeak_bundled::PROVIDERS.len()];
    let mut at = 0;
    while at < names.len() {
        names[at] = offpeak_bundled::PROVIDERS[at].0;
        at += 1;
    }
    names
};

const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];

/// Reads the whole. The context holds what was found wrong; the tree counts only if that is nothing.
pub(super) fn config(root: Section<'_>) -> Result<Config, Vec<Problem>> {
    let server = server(root.section("server"));
    let store = store(root.section("store"));
    let access = access(&root, &server);
    let plugins = plugins(root.section("plugins"), &store);
    let lanes = lanes(root.section("lanes"), None);
    let backends = backends(&root.section("backends"), &lanes, &plugins);
    let retry = retry(root.section("retry"));
    let breaker = breaker(root.section("breaker"));
    let routes = routes(&root.section("routes"));
    let costs = costs(root.section("costs"));
    let alerts = alerts(root.section("alerts"));
    let log = log(root.section("log"));
    let context = root.context;
    root.finish();
    warn_of_single_underscores(context);
    let (problems, warnings, notes) = context.take_findings();
    match access {
        Some(access) if problems.is_empty() => Ok(Config {
            server,
            store,
            access,
            backends,
            plugins,
            retry,
            breaker,
            routes,
            costs,
            alerts,
            log,
            warnings,
            notes,
        }),
        _ => Err(problems),
    }
}

fn server(section: Section<'_>) -> Server {
    let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let listen = section.get("listen");
    let admin = section.get("admin");
    let server = Server {
        listen: listen.as_ref().and_then(Field::address).unwrap_or_else(|| loopback(8400)),
        admin: admin.as_ref().and_then(Field::address).unwrap_or_else(|| loopback(8401)),
        max_body: section.get("max_body").and_then(|f| f.size(1 << 10..=1 << 30)).unwrap_or(32 << 20),
        body_memory: section.get("body_memory").and_then(|f| f.size(1 << 20..=1 << 50)).unwrap_or(1 << 30),
        max_connections: section
            .get("max_connections")
            .and_then(|f| f.number(1..=1_000_000))
            .unwrap_or(20_000),
        threads: section.get("threads").and_then(|f| f.number(0..=1024)).and_then(NonZeroUsize::new),
        drain: section.get("drain").and_then(|f| f.duration(Least::Zero)).unwrap_or(Duration::from_secs(30)),
        held_max: section.get("held_max").and_then(|f| f.number(1..=1_000_000)).unwrap_or(20_000),
        tls: tls(section.section("tls")),
        public_url: section.get("public_url").and_then(|f| url(&f, "https://offpeak.example.com")),
    };
    if server.admin == server.listen && server.listen.port() != 0 {
        let message =
            format!("{} is the address of both listeners: give one of them another port", server.listen);
        match admin.or(listen) {
            Some(field) => field.problem(message),
            None => section.problem(message),
        }
    }
    if !server.admin.ip().is_loopback() {
        section.context.warn(format!(
            "the admin plane on {} can be reached from elsewhere and asks for no key: see to it that only operators \
             reach it",
            server.admin
        ));
    }
    section.finish();
    server
}

fn tls(section: Section<'_>) -> Option<TlsFiles> {
    let required = |key| section.required(key, "\"/path/of/a/file.pem\"").and_then(|f| f.existing_file());
    let (certificate, key) = (required("certificate"), required("key"));
    let client_ca = section.get("client_ca").and_then(|f| f.existing_file());
    section.finish();
    Some(TlsFiles { certificate: certificate?, key: key?, client_ca })
}

pub(super) fn store(section: Section<'_>) -> Store {
    let store = Store {
        folder: section.get("folder").and_then(|f| f.path_buf()).unwrap_or_else(|| "./offpeak-data".into()),
        keep_results: section
            .get("keep_results")
            .and_then(|f| f.millis(Least::AboveZero))
            .unwrap_or(Millis::from_hours(48)),
        segment: section.get("segment").and_then(|f| f.size(1 << 20..=1 << 30)).unwrap_or(64 << 20),
        queue: queue(&section, Bound { requests: 5_000_000, bytes: 32 << 30 }),
    };
    section.finish();
    store
}

fn plugins(section: Section<'_>, store: &Store) -> Plugins {
    let plugins = Plugins {
        cache: section
            .get("cache")
            .and_then(|f| f.path_buf())
            .unwrap_or_else(|| Path::join(&store.folder, "plugin-cache")),
        watch: section.get("watch").and_then(|f| f.duration(Least::AboveZero)),
        instances: section.get("instances").and_then(|f| f.number(8..=100_000)).unwrap_or(256),
        routers: routers(&section.section("routers")),
        router: router(section.section("router")),
        retry_policy: policy(section.section("retry_policy")),
        cost_policy: policy(section.section("cost_policy")),
        providers: providers(&section.section("providers")),
    };
    section.finish();
    plugins
}

/// The chain, in the order of the file.
fn routers(section: &Section<'_>) -> Vec<NamedRouter> {
    let read = |(name, section): (&str, Section<'_>)| {
        let tenants = section.get("tenants").and_then(|f| f.texts());
        let file = section.required("file", "\"/path/of/router.wasm\"").and_then(|f| f.existing_file());
        let on_failure = [("next", OnRouterFailure::Bundled), ("reject", OnRouterFailure::Reject)];
        let router = router_plugin(&section, file, on_failure);
        section.finish();
        NamedRouter {
            name: name.to_owned(),
            tenants: tenants.map_or_else(ModelPatterns::any, ModelPatterns::new),
            router,
        }
    };
    section.named().into_iter().map(read).collect()
}

fn router(section: Section<'_>) -> RouterPlugin {
    let file = section.get("file").and_then(|f| f.existing_file());
    let on_failure = [("bundled", OnRouterFailure::Bundled), ("reject", OnRouterFailure::Reject)];
    let router = router_plugin(&section, file, on_failure);
    section.finish();
    router
}

fn router_plugin(
    section: &Section<'_>,
    file: Option<PathBuf>,
    on_failure: [(&str, OnRouterFailure); 2],
) -> RouterPlugin {
    RouterPlugin {
        source: file.map_or(PluginSource::Bundled, PluginSource::File),
        sha256: section.get("sha256").and_then(|f| f.sha256()),
        config: section.get("config").and_then(|f| f.json()).unwrap_or_else(|| "{}".to_owned()),
        on_failure: section
            .get("on_failure")
            .and_then(|f| f.choice(on_failure))
            .unwrap_or(OnRouterFailure::Bundled),
        limits: plugin_limits(section, 64 << 20),
    }
}

fn policy(section: Section<'_>) -> Policy {
    let file = section.get("file").and_then(|f| f.existing_file());
    let policy = Policy {
        source: file.map_or(PluginSource::Bundled, PluginSource::File),
        sha256: section.get("sha256").and_then(|f| f.sha256()),
        config: section.get("config").and_then(|f| f.json()).unwrap_or_else(|| "{}".to_owned()),
        limits: plugin_limits(&section, 64 << 20),
    };
    section.finish();
    policy
}

fn alerts(section: Section<'_>) -> Option<Alerts> {
    let url = section.required("url", "\"https://hooks.example.com/offpeak\"");
    let url = url.and_then(|f| super::backend::url(&f, "https://hooks.example.com/offpeak"));
    let secret = section.required("secret", "{ env = \"NAME_OF_A_VARIABLE\" }").and_then(|f| f.secret());
    let internal = section.get("internal").and_then(|f| f.flag()).unwrap_or(false);
    section.finish();
    Some(Alerts { url: url?, secret: secret?, internal })
}

fn costs(section: Section<'_>) -> Costs {
    let keep = section.get("keep").and_then(|f| {
        let keep = f.millis(Least::AboveZero)?;
        // Budgets are for a month, and what was spent in it is what the ledger says.
        if keep < LEDGER_LEAST {
            f.refuse("must be at least \"32d\": budgets count a month")
        } else {
            Some(keep)
        }
    });
    let costs = Costs {
        prices: section.get("prices").and_then(|f| f.existing_file()),
        keep: keep.unwrap_or(Millis::from_hours(24 * 365)),
    };
    section.finish();
    costs
}

fn providers(section: &Section<'_>) -> Vec<ProviderPlugin> {
    let provider = |(name, section): (&str, Section<'_>)| {
        let is_bundled = BUNDLED_PROVIDERS.contains(&name);
        let file = if is_bundled {
            section.get("file")
        } else {
            section.required("file", "\"/path/of/plugin.wasm\"")
        };
        let source = file.and_then(|f| f.existing_file()).map_or(PluginSource::Bundled, PluginSource::File);
        let sha256 = section.get("sha256").and_then(|f| f.sha256());
        let limits = plugin_limits(&section, PROVIDER_MEMORY);
        section.finish();
        ProviderPlugin { name: name.to_owned(), source, sha256, limits }
    };
    let mut providers: Vec<_> = section.named().into_iter().map(provider).collect();
    for name in BUNDLED_PROVIDERS {
        if !providers.iter().any(|provider| provider.name == name) {
            let limits = PluginLimits { time_limit: CALL_TIME, memory: PROVIDER_MEMORY, instances: None };
            providers.push(ProviderPlugin {
                name: name.to_owned(),
                source: PluginSource::Bundled,
                sha256: None,
                limits,
            });
        }
    }
    providers.sort_by(|a, b| a.name.cmp(&b.name));
    providers
}

/// Memory of a provider: it holds chunks of a batch's items and results.
const PROVIDER_MEMORY: usize = 128 << 20;

/// Time for a call on the way of a request.
const CALL_TIME: Duration = Duration::from_millis(50);

fn plugin_limits(section: &Section<'_>, memory: usize) -> PluginLimits {
    PluginLimits {
        time_limit: section.get("time_limit").and_then(|f| f.duration(Least::AboveZero)).unwrap_or(CALL_TIME),
        memory: section.get("memory").and_then(|f| f.size(1 << 20..=4 << 30)).unwrap_or(memory),
        instances: section.get("instances").and_then(|f| f.number(1..=10_000)),
    }
}

fn retry(section: Section<'_>) -> RetryPolicy {
    let default = RetryPolicy::default();
    let retry = RetryPolicy {
        max_attempts: section
            .get("max_attempts")
            .and_then(|f| f.number(1..=100))
            .unwrap_or(default.max_attempts),
        base: section.get("base").and_then(|f| f.millis(Least::AboveZero)).unwrap_or(default.base),
        cap: section.get("cap").and_then(|f| f.millis(Least::AboveZero)).unwrap_or(default.cap),
    };
    if retry.cap < retry.base {
        section.problem("cap is the longest delay and shorter than base, the first one: make cap longer");
    }
    section.finish();
    retry
}

fn breaker(section: Section<'_>) -> BreakerTerms {
    let default = BreakerTerms::default();
    let percent = section.get("error_percent").and_then(|f| f.number::<u32>(1..=100));
    let breaker = BreakerTerms {
        failures: section.get("failures").and_then(|f| f.number(1..=10_000)).unwrap_or(default.failures),
        error_permille: percent.map_or(default.error_permille, |percent| percent * 10),
        batches: section.get("bad_batches").and_then(|f| f.number(1..=10_000)).unwrap_or(default.batches),
        rest: section.get("rest").and_then(|f| f.millis(Least::AboveZero)).unwrap_or(default.rest),
        rest_max: section
            .get("rest_max")
            .and_then(|f| f.millis(Least::AboveZero))
            .unwrap_or(default.rest_max),
    };
    if breaker.rest_max < breaker.rest {
        section.problem(
            "rest_max is the longest rest and shorter than rest, the first one: make rest_max longer",
        );
    }
    section.finish();
    breaker
}

fn log(section: Section<'_>) -> Log {
    let level = |field: Field<'_>| {
        let text = field.text()?;
        // A lone word that is no level would be taken for the name of a module, and silence everything else.
        if text.chars().all(char::is_alphanumeric) && !LEVELS.contains(&text.to_lowercase().as_str()) {
            let near = nearest(text, &LEVELS).map_or_else(|| LEVELS.join(", "), |near| format!("`{near}`"));
            return field.refuse(format!("\"{text}\" is not a level; did you mean {near}?"));
        }
        match EnvFilter::builder().parse(text) {
            Ok(_) => Some(text.to_owned()),
            Err(error) => field.refuse(format!(
                "\"{text}\" is not a filter: {error}; write a level such as \"info\", or levels by module such as \
                 \"info,offpeak=debug\""
            )),
        }
    };
    let log = Log {
        format: section
            .get("format")
            .and_then(|f| f.choice([("text", LogFormat::Text), ("json", LogFormat::Json)]))
            .unwrap_or(LogFormat::Text),
        level: section.get("level").and_then(level).unwrap_or_else(|| "info".to_owned()),
    };
    section.finish();
    log
}

/// A variable with one underscore too few stands for nothing and would be missed in silence.
fn warn_of_single_underscores(context: &Context<'_>) {
    let asked = context.asked();
    let names = context.env.names().into_iter().filter_map(|name| name.into_string().ok());
    for name in names.filter(|name| !context.is_used_for_secret(name)) {
        let meant = asked.iter().find(|path| path.contains('.') && with_one_underscore(path) == name);
        if let Some(path) = meant {
            context.warn(format!(
                "the environment variable {name} is not read: sections and keys are divided by two underscores; did you \
                 mean {}?",
                variable_for(path)
            ));
        }
    }
}
