//! What a configuration would do, in sentences for people.

use std::fmt::{self, Display, Formatter};

use offpeak_core::sla::Sla;

use super::amounts::{Shown, ShownSize, from_std, sla_text};
use super::tree::{
    Access, Backend, Config, Delivery, Lanes, Limits, LogFormat, NamedRouter, OnRouterFailure, PluginLimits,
    PluginSource, Plugins, Route, RouteAnswer, Tenant,
};

/// Tells what the daemon would do with this configuration, in lines that each end with a line feed. Secrets are named by
/// where they come from.
pub fn describe(config: &Config) -> String {
    Description(config).to_string()
}

struct Description<'a>(&'a Config);

impl Display for Description<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Config {
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
        } = self.0;
        writeln!(f, "Listeners")?;
        write!(f, "  requests  {}: up to {} connections, ", server.listen, server.max_connections)?;
        write!(f, "{} held calls, bodies up to {}, ", server.held_max, ShownSize(server.max_body as u64))?;
        writeln!(f, "{} of large ones in memory", ShownSize(server.body_memory))?;
        if let Some(tls) = &server.tls {
            write!(f, "            TLS with the certificate {}", tls.certificate.display())?;
            match &tls.client_ca {
                Some(path) => writeln!(f, "; clients show one signed by {}", path.display())?,
                None => writeln!(f)?,
            }
        }
        if let Some(url) = &server.public_url {
            writeln!(f, "            clients reach it as {url}")?;
        }
        writeln!(f, "  admin     {}: health, metrics, lanes, batches; asks for no key", server.admin)?;
        writeln!(f, "  stopping  work in flight gets {}", Shown(from_std(server.drain)))?;
        write_tenants(f, access)?;
        writeln!(f, "\nBackends, the preferred one first")?;
        for (index, backend) in backends.iter().enumerate() {
            write_backend(f, index + 1, backend)?;
        }
        write_plugins(f, plugins)?;
        writeln!(f, "\nStore")?;
        writeln!(f, "  folder    {}, in segments of {}", store.folder.display(), ShownSize(store.segment))?;
        write!(f, "  room      {} requests or {} ", store.queue.requests, ShownSize(store.queue.bytes))?;
        writeln!(f, "in all lanes together")?;
        writeln!(f, "  results   kept {} after they are finished", Shown(store.keep_results))?;
        writeln!(f, "\nRetries")?;
        write!(f, "  up to {} attempts, the second after {}, ", retry.max_attempts, Shown(retry.base))?;
        writeln!(f, "then twice as long each time, at most {}", Shown(retry.cap))?;
        write!(
            f,
            "  a backend rests after {} failures in a row, or {} batches ",
            breaker.failures, breaker.batches
        )?;
        writeln!(f, "in a row of which over {}% failed:", breaker.error_permille / 10)?;
        writeln!(
            f,
            "  for {}, twice as long each time, at most {}",
            Shown(breaker.rest),
            Shown(breaker.rest_max)
        )?;
        write_routes(f, routes)?;
        writeln!(f, "\nCosts")?;
        match &costs.prices {
            Some(path) => writeln!(f, "  prices    those of {}, over the built-in ones", path.display())?,
            None => writeln!(f, "  prices    the built-in ones of {}", offpeak_core::price::BUILT_IN_DATE)?,
        }
        writeln!(f, "  ledger    kept for {}", Shown(costs.keep))?;
        if let Some(alerts) = alerts {
            writeln!(f, "\nAlerts")?;
            writeln!(
                f,
                "  webhook   {}, signed with the secret from {}",
                alerts.url,
                alerts.secret.origin()
            )?;
        }
        let format = match log.format {
            LogFormat::Text => "text",
            LogFormat::Json => "JSON",
        };
        writeln!(f, "\nLog\n  {format}, {}", log.level)?;
        write_list(f, "Notes", notes)?;
        write_list(f, "Warnings", warnings)
    }
}

fn write_tenants(f: &mut Formatter<'_>, access: &Access) -> fmt::Result {
    match access {
        Access::Open(_) => writeln!(f, "\nTenants: open access, nobody needs a key")?,
        Access::Tenants(_) => writeln!(f, "\nTenants")?,
    }
    for tenant in access.tenants() {
        write_tenant(f, tenant)?;
    }
    Ok(())
}

fn write_tenant(f: &mut Formatter<'_>, tenant: &Tenant) -> fmt::Result {
    writeln!(f, "  {}", tenant.id)?;
    for key in &tenant.keys {
        writeln!(f, "    key       from {}", key.origin())?;
    }
    let untagged = match tenant.default_sla {
        Sla::Realtime => "answered now".to_owned(),
        within @ Sla::Within(_) => format!("answered within {}", sla_text(within)),
    };
    let delivery = match tenant.delivery {
        Delivery::Held => "come on the same call, which is held open",
        Delivery::Ticket => "are fetched with a ticket",
    };
    writeln!(f, "    untagged  {untagged}; \"deferrable\" means within {}", Shown(tenant.deferrable))?;
    writeln!(f, "    delivery  deferred answers {delivery}, unless the caller asks otherwise")?;
    write!(f, "    limits    ")?;
    write_limits(f, &tenant.limits)?;
    writeln!(f, "{} or {} queued", tenant.max_queued, ShownSize(tenant.max_queued_bytes))?;
    if let Some(deferred) = tenant.deferred.tempo() {
        let rates = [
            (deferred.requests, "requests"),
            (deferred.input, "input tokens"),
            (deferred.output, "output tokens"),
        ];
        let rates = rates.iter().filter_map(|(limit, kind)| Some(format!("{} {kind}", (*limit)?)));
        let rates = rates.collect::<Vec<_>>().join(", ");
        let burst = Shown(deferred.burst);
        writeln!(f, "    deferred  leaves at {rates} a minute, at once what {burst} gives; the rest waits")?;
    }
    let budget = &tenant.budget;
    for (amount, period) in [(budget.day, "day"), (budget.month, "month")] {
        if let Some(amount) = amount {
            let then = if budget.is_hard { "then it is refused" } else { "then it is told" };
            writeln!(f, "    budget    {amount} a {period}; {then}")?;
        }
    }
    if tenant.needs_prices() {
        writeln!(f, "              models without a price are refused")?;
    }
    writeln!(f, "    models    {}", tenant.models)
}

fn write_limits(f: &mut Formatter<'_>, limits: &Limits) -> fmt::Result {
    match limits.requests_per_minute {
        Some(limit) => write!(f, "{limit} requests a minute, ")?,
        None => write!(f, "no limit of requests a minute, ")?,
    }
    let tokens = [(limits.input_tokens_per_minute, "input"), (limits.output_tokens_per_minute, "output")];
    for (limit, kind) in tokens {
        if let Some(limit) = limit {
            write!(f, "{limit} {kind} tokens a minute, ")?;
        }
    }
    match limits.concurrent {
        Some(limit) => write!(f, "{limit} at once, "),
        None => Ok(()),
    }
}

fn write_backend(f: &mut Formatter<'_>, number: usize, backend: &Backend) -> fmt::Result {
    writeln!(
        f,
        "  {number}. {} at {}, by the provider plugin {}",
        backend.id, backend.base_url, backend.provider
    )?;
    match &backend.api_key {
        Some(key) => writeln!(f, "    key       from {}", key.origin())?,
        None => writeln!(f, "    key       none")?,
    }
    writeln!(f, "    models    {}", backend.models)?;
    let (connect, answer) = (from_std(backend.connect_timeout), from_std(backend.answer_timeout));
    writeln!(f, "    patience  {} to connect, {} of silence", Shown(connect), Shown(answer))?;
    write_lanes(f, &backend.lanes)?;
    if backend.engine.is_set || backend.provider == "vllm" {
        let engine = &backend.engine;
        let (every, latency) = (from_std(engine.look_every), Shown(engine.latency));
        writeln!(
            f,
            "    engine    looked at every {}; at most {} deferred requests at once, fewer where a real-time answer does not \
             begin within {latency}; up to {} embeddings in one call",
            Shown(every),
            engine.concurrency,
            engine.merge
        )?;
        if !engine.length_buckets.is_empty() {
            let bounds: Vec<String> = engine.length_buckets.iter().map(u64::to_string).collect();
            writeln!(
                f,
                "    lengths   together up to {} tokens, and beyond; buckets less than {}% full go with the next longer one",
                bounds.join(", "),
                engine.bucket_utilisation
            )?;
        }
    }
    if backend.config != "{}" {
        writeln!(f, "    config    {}", backend.config)?;
    }
    Ok(())
}

fn write_lanes(f: &mut Formatter<'_>, lanes: &Lanes) -> fmt::Result {
    write!(f, "    lanes     leave after {}, when a deadline demands it, or full (", Shown(lanes.linger))?;
    match (lanes.max_requests, lanes.max_bytes) {
        (None, None) => write!(f, "as the plugin says")?,
        (Some(requests), None) => write!(f, "{requests} requests, or as the plugin says")?,
        (None, Some(bytes)) => write!(f, "{}, or as the plugin says", ShownSize(bytes))?,
        (Some(requests), Some(bytes)) => {
            write!(f, "{requests} requests, {}, or as the plugin says", ShownSize(bytes))?;
        }
    }
    writeln!(f, "); at most {} batches under way", lanes.max_running)?;
    let queue = lanes.queue;
    writeln!(f, "    room      {} requests or {} in a lane", queue.requests, ShownSize(queue.bytes))?;
    write!(f, "    rescue    in real time {} before a deadline, ", Shown(lanes.rescue))?;
    writeln!(
        f,
        "{} requests at once; a late batch is cancelled {} before that",
        lanes.rescue_concurrency,
        Shown(lanes.cancel)
    )?;
    write!(f, "    tokens    ")?;
    match lanes.enqueued_tokens {
        Some(tokens) => writeln!(f, "{tokens} enqueued in batches of a model")?,
        None => writeln!(f, "as many enqueued as the provider turns out to take")?,
    }
    let elsewhere = if lanes.elsewhere { "may go to the next backend" } else { "waits" };
    writeln!(f, "    outage    while it takes no batches, what waits {elsewhere}")
}

fn write_routes(f: &mut Formatter<'_>, routes: &[Route]) -> fmt::Result {
    if !routes.is_empty() {
        writeln!(f, "\nRoutes: what is done meanwhile; the first that fits counts")?;
    }
    for route in routes {
        writeln!(f, "  {}", route.name)?;
        write!(f, "    for       the models {} of the tenants {}", route.models, route.tenants)?;
        writeln!(f, " at the endpoints {}", route.endpoints)?;
        let elsewhere = if route.elsewhere { "go to the next backend" } else { "stay with their backend" };
        write!(f, "    outage    requests {elsewhere}; calls in real time wait up to {}", Shown(route.wait))?;
        match &route.answer {
            None => writeln!(f, ", then get an error")?,
            Some(RouteAnswer { status, body, stream }) => {
                let streams = if stream.is_some() { "streams too" } else { "streams get an error" };
                writeln!(f, ", then get {status} and {} bytes of their own; {streams}", body.len())?;
            }
        }
    }
    Ok(())
}

fn write_plugins(f: &mut Formatter<'_>, plugins: &Plugins) -> fmt::Result {
    writeln!(f, "\nPlugins (compiled ones are kept in {})", plugins.cache.display())?;
    if let Some(pause) = plugins.watch {
        writeln!(f, "  watched   every {}: a changed file is taken into use", Shown(from_std(pause)))?;
    }
    for NamedRouter { name, tenants, router } in &plugins.routers {
        let pin = Pin(router.sha256.as_deref());
        let on_failure = match router.on_failure {
            OnRouterFailure::Reject => "if it fails, the request is rejected",
            OnRouterFailure::Bundled => "if it fails, the next one is asked",
        };
        writeln!(f, "  router    {name}: {}{pin}, {}; {on_failure}", router.source, Bounds(router.limits))?;
        writeln!(f, "    tenants   {tenants}")?;
        if router.config != "{}" {
            writeln!(f, "    config    {}", router.config)?;
        }
    }
    let on_failure = match plugins.router.on_failure {
        OnRouterFailure::Reject => "if it fails, the request is rejected",
        OnRouterFailure::Bundled => "if it fails, the bundled router decides",
    };
    let router = &plugins.router;
    let pin = Pin(router.sha256.as_deref());
    writeln!(f, "  router    {}{pin}, {}; {on_failure}", router.source, Bounds(router.limits))?;
    if router.config != "{}" {
        writeln!(f, "    config    {}", router.config)?;
    }
    for (what, policy) in [("retries  ", &plugins.retry_policy), ("costs    ", &plugins.cost_policy)] {
        let pin = Pin(policy.sha256.as_deref());
        writeln!(f, "  {what} {}{pin}, {}", policy.source, Bounds(policy.limits))?;
        if policy.config != "{}" {
            writeln!(f, "    config    {}", policy.config)?;
        }
    }
    for provider in &plugins.providers {
        let pin = Pin(provider.sha256.as_deref());
        writeln!(f, "  provider  {}: {}{pin}, {}", provider.name, provider.source, Bounds(provider.limits))?;
    }
    Ok(())
}

impl Display for PluginSource {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bundled => f.write_str("bundled"),
            Self::File(path) => write!(f, "from {}", path.display()),
        }
    }
}

struct Pin<'a>(Option<&'a str>);

impl Display for Pin<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |sha256| write!(f, ", pinned to {sha256}"))
    }
}

struct Bounds(PluginLimits);

impl Display for Bounds {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let PluginLimits { time_limit, memory, instances } = self.0;
        write!(f, "{} a call, {}", Shown(from_std(time_limit)), ShownSize(memory as u64))?;
        instances.map_or(Ok(()), |instances| write!(f, ", {instances} instances"))
    }
}

fn write_list(f: &mut Formatter<'_>, title: &str, lines: &[String]) -> fmt::Result {
    if lines.is_empty() {
        return Ok(());
    }
    writeln!(f, "\n{title}")?;
    for line in lines {
        writeln!(f, "  {line}")?;
    }
    Ok(())
}
