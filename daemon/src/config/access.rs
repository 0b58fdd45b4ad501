//! Who may call: tenants with keys, or open access on a loopback listener.

use std::collections::HashMap;

use offpeak_core::budget::Allowance;
use offpeak_core::fair::USUAL_WEIGHT;
use offpeak_core::quota::LIMIT_MAX;
use offpeak_core::room::Bound;
use offpeak_core::sla::Sla;
use offpeak_core::words::{Millis, TenantId};

use super::amounts::{BadAmount, Least, duration};
use super::field::Field;
use super::patterns::ModelPatterns;
use super::secret::Secret;
use super::section::Section;
use super::tree::{
    Access, DeferredLimits, Delivery, Limits, ModelLimits, QueueLimits, Server, Tenant, Unpriced,
};

/// The name of the tenant of open access.
const OPEN_TENANT: &str = "default";

/// None if a problem is written down.
pub(super) fn access(root: &Section<'_>, server: &Server) -> Option<Access> {
    let tenants = root.section("tenants");
    let are_tenants_meant = !tenants.is_empty();
    let tenants = read_tenants(&tenants);
    let section = root.section("access");
    let open = section.get("open").and_then(|field| field.flag());
    let open_tenant = tenant(&section, OPEN_TENANT, Vec::new());
    let access = if are_tenants_meant {
        if section.is_there() && open != Some(false) {
            section.problem(
                "open access and tenants exclude each other: remove [access] (each tenant has settings of its own), or \
                 remove the tenants",
            );
        }
        Some(Access::Tenants(tenants))
    } else {
        open_access(&section, open, server).then(|| Access::Open(Box::new(open_tenant)))
    };
    section.finish();
    access
}

fn open_access(section: &Section<'_>, open: Option<bool>, server: &Server) -> bool {
    let context = section.context;
    let listen = server.listen;
    let reachable = !listen.ip().is_loopback();
    match open {
        Some(false) => section.problem(
            "nobody could call: add a tenant [tenants.<name>] with keys = [{ env = \"NAME_OF_A_VARIABLE\" }], or set \
             open = true",
        ),
        _ if reachable => context.problem_of_all(
            "access",
            format!(
                "{listen} can be reached from elsewhere and there are no tenants: add [tenants.<name>] with keys = \
                 [{{ env = \"NAME_OF_A_VARIABLE\" }}], or set server.listen to a loopback address such as \
                 \"127.0.0.1:8400\""
            ),
        ),
        Some(true) => return true,
        None => {
            context.warn(format!(
                "there are no tenants: whoever reaches {listen} may call, without a key, as tenant \"{OPEN_TENANT}\"; \
                 set access.open = true if this is meant, or add [tenants.<name>]"
            ));
            return true;
        }
    }
    false
}

fn read_tenants(section: &Section<'_>) -> Vec<Tenant> {
    let mut seen = HashMap::new();
    let mut tenants = Vec::new();
    for (name, section) in section.named() {
        let example = "[{ env = \"NAME_OF_A_VARIABLE\" }]";
        let keys = section.required("keys", example).map(|field| keys(&field, &mut seen)).unwrap_or_default();
        tenants.push(tenant(&section, name, keys));
        section.finish();
    }
    tenants
}

/// A key names one tenant, so no key may stand in two places.
fn keys(field: &Field<'_>, seen: &mut HashMap<String, String>) -> Vec<Secret> {
    let Some(items) = field.items() else { return Vec::new() };
    let mut keys = Vec::new();
    for (item, key) in items.iter().filter_map(|item| Some((item, item.secret()?))) {
        match seen.insert(key.expose().to_owned(), item.path().to_owned()) {
            Some(other) => {
                item.problem(format!("is the same key as {other}: a key names one tenant; remove one"));
            }
            None => keys.push(key),
        }
    }
    keys
}

/// What `[access]` and `[tenants.<name>]` have in common.
fn tenant(section: &Section<'_>, name: &str, keys: Vec<Secret>) -> Tenant {
    let deferrable =
        section.get("deferrable").and_then(|f| f.millis(Least::AboveZero)).unwrap_or(Millis::from_hours(24));
    let (budget, unpriced) = budget(section.section("budget"));
    let queue = queue(section, Bound { requests: 1_000_000, bytes: 8 << 30 });
    Tenant {
        id: TenantId::from(name),
        keys,
        default_sla: section.get("default_sla").and_then(|f| sla(&f, deferrable)).unwrap_or(Sla::Realtime),
        deferrable,
        delivery: section
            .get("delivery")
            .and_then(|f| f.choice([("held", Delivery::Held), ("ticket", Delivery::Ticket)]))
            .unwrap_or(Delivery::Held),
        limits: limits(section),
        deferred: deferred(section.section("deferred")),
        budget,
        unpriced,
        model_limits: model_limits(&section.section("model_limits")),
        models: section
            .get("models")
            .and_then(|f| f.texts())
            .map_or_else(ModelPatterns::any, ModelPatterns::new),
        share: section.get("share").and_then(|f| f.number(1..=1_000_000)).unwrap_or(USUAL_WEIGHT),
        max_queued: queue.requests,
        max_queued_bytes: queue.bytes,
    }
}

/// What may wait: of a tenant, in a lane, in all.
pub(super) fn queue(section: &Section<'_>, default: Bound) -> Bound {
    let QueueLimits { max_queued, max_queued_bytes } = queue_limits(section);
    Bound {
        requests: max_queued.unwrap_or(default.requests),
        bytes: max_queued_bytes.unwrap_or(default.bytes),
    }
}

fn queue_limits(section: &Section<'_>) -> QueueLimits {
    QueueLimits {
        max_queued: section.get("max_queued").and_then(|f| f.number(1..=1_000_000_000)),
        max_queued_bytes: section.get("max_queued_bytes").and_then(|f| f.size(1 << 20..=1 << 50)),
    }
}

/// Limits that tenants, models and backends may have.
pub(super) fn limits(section: &Section<'_>) -> Limits {
    let rate = |key| section.get(key).and_then(|f| f.number(1..=LIMIT_MAX));
    Limits {
        requests_per_minute: section.get("requests_per_minute").and_then(|f| f.non_zero()),
        input_tokens_per_minute: rate("input_tokens_per_minute"),
        output_tokens_per_minute: rate("output_tokens_per_minute"),
        concurrent: section.get("concurrent").and_then(|f| f.number(1..=1_000_000)),
        burst: section.get("burst").and_then(|f| f.millis(Least::AboveZero)).unwrap_or(Millis::from_mins(1)),
    }
}

fn deferred(section: Section<'_>) -> DeferredLimits {
    let rate = |key| section.get(key).and_then(|f| f.number(1..=LIMIT_MAX));
    let deferred = DeferredLimits {
        requests_per_minute: rate("requests_per_minute"),
        input_tokens_per_minute: rate("input_tokens_per_minute"),
        output_tokens_per_minute: rate("output_tokens_per_minute"),
        burst: section.get("burst").and_then(|f| f.millis(Least::AboveZero)).unwrap_or(Millis::from_mins(1)),
    };
    section.finish();
    deferred
}

fn budget(section: Section<'_>) -> (Allowance, Unpriced) {
    let allowance = Allowance {
        day: section.get("day_usd").and_then(|f| f.money()),
        month: section.get("month_usd").and_then(|f| f.money()),
        is_hard: section.get("hard").and_then(|f| f.flag()).unwrap_or(true),
    };
    let words = [("refuse", Unpriced::Refuse), ("allow", Unpriced::Allow)];
    let unpriced = section.get("unpriced").and_then(|f| f.choice(words)).unwrap_or(Unpriced::Refuse);
    section.finish();
    (allowance, unpriced)
}

fn model_limits(section: &Section<'_>) -> Vec<ModelLimits> {
    let read = |(name, section): (&str, Section<'_>)| {
        let models = section.required("models", "[\"gpt-4o*\"]").and_then(|field| field.texts());
        let limits = limits(&section);
        let deferred = deferred(section.section("deferred"));
        let queue = queue_limits(&section);
        section.finish();
        let models = ModelPatterns::new(models?);
        Some(ModelLimits { name: name.to_owned(), models, limits, deferred, queue })
    };
    section.named().into_iter().filter_map(read).collect()
}

fn sla(field: &Field<'_>, deferrable: Millis) -> Option<Sla> {
    match field.text()? {
        "realtime" => Some(Sla::Realtime),
        "deferrable" => Some(Sla::Within(deferrable)),
        text => match duration(text, Least::AboveZero) {
            Ok(millis) => Some(Sla::Within(millis)),
            Err(error @ BadAmount::NotADuration) => {
                field.refuse(format!("must be \"realtime\", \"deferrable\" or {error}, not \"{text}\""))
            }
            Err(error) => field.refuse(format!("must be {error}, not \"{text}\"")),
        },
    }
}
