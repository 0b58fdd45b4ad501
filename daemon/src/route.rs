//! Asks the router plugin, and holds it to what it may say.

use std::borrow::Cow;
use std::sync::Arc;

use http::{HeaderMap, StatusCode};
use offpeak_core::sla::{Sla, Tag};
use offpeak_core::turnaround::Way;
use offpeak_core::words::{KeptHeaders, LaneKey, Millis, Mode, SlaClass, Timestamp};
use offpeak_host::values::router::{self, Decision};
use offpeak_host::{PluginError, PluginErrorKind, RouterPlugin};

use crate::backends::{Backend, Backends, Menu, Offer, PrepareError, Seller};
use crate::blocking::elsewhere;
use crate::config::OnRouterFailure;
use crate::defer::Deferral;
use crate::dispatch::{NowCall, OrElse};
use crate::envelope::Envelope;
use crate::fallback::Fallback;
use crate::gateway::Gateway;
use crate::reply::Refusal;
use crate::tenant::{Account, Identified};

/// What was decided. Dispatch and defer take nothing less.
pub enum Routed {
    /// Run it now.
    Now(NowCall),
    /// Keep it and run it later.
    Later(Deferral),
}

/// Headers that no router gets to see.
const SECRET_HEADERS: [&str; 4] = ["authorization", "x-api-key", "cookie", "proxy-authorization"];

/// Bytes of the headers that one deferred request may keep: they are part of its lane's name.
const KEPT_HEADERS_MAX: usize = 2048;

/// Decides how a request is run.
pub async fn route(
    gateway: &Arc<Gateway>,
    caller: &Identified,
    endpoint: &str,
    headers: &HeaderMap,
    envelope: &Envelope,
    now: Timestamp,
) -> Result<Routed, Refusal> {
    let asked = Asked { by: By::Caller(caller), endpoint, headers, envelope };
    decide_where_nobody_waits(gateway, asked, now).await
}

/// Decides how a request is run whose caller does not wait for it: real-time offers are not among the candidates. What its
/// key allows was looked at when it was handed in; of the key only that is left whose limits for deferred work it takes.
pub async fn route_later(
    gateway: &Arc<Gateway>,
    (account, api_key): (&Arc<Account>, &Arc<str>),
    endpoint: &str,
    headers: &HeaderMap,
    envelope: &Envelope,
    now: Timestamp,
) -> Result<Deferral, Refusal> {
    let asked = Asked { by: By::Job { account, api_key }, endpoint, headers, envelope };
    match decide_where_nobody_waits(gateway, asked, now).await? {
        Routed::Later(deferral) => Ok(deferral),
        Routed::Now(_) => Err(router_failed()),
    }
}

/// Whether a key may hand in work for these models that is bought when it is not at hand any more.
pub fn check_job<'m>(
    gateway: &Gateway,
    caller: &Identified,
    endpoint: &str,
    models: impl Iterator<Item = &'m str>,
) -> Result<(), Refusal> {
    let now = gateway.clock.now();
    caller.check_job(endpoint, models, |model| {
        // A model that nobody sells is another error, which comes later.
        gateway.backends.menu(endpoint, model, now).map_or_else(
            |_| Vec::new(),
            |menu| menu.sellers.iter().map(|seller| seller.backend.id.clone()).collect(),
        )
    })
}

/// The request that is asked about.
#[derive(Clone, Copy)]
struct Asked<'a> {
    by: By<'a>,
    endpoint: &'a str,
    headers: &'a HeaderMap,
    envelope: &'a Envelope,
}

/// By whom it is handed in.
#[derive(Clone, Copy)]
enum By<'a> {
    /// Who waits for the answer.
    Caller(&'a Identified),
    /// A tenant's job, which nobody waits for, and the key whose own limits for deferred work it takes.
    Job { account: &'a Arc<Account>, api_key: &'a Arc<str> },
}

impl<'a> By<'a> {
    fn account(self) -> &'a Arc<Account> {
        match self {
            Self::Caller(caller) => caller.account(),
            Self::Job { account, .. } => account,
        }
    }

    /// The key that was shown with the request.
    const fn caller(self) -> Option<&'a Identified> {
        match self {
            Self::Caller(caller) => Some(caller),
            Self::Job { .. } => None,
        }
    }

    fn api_key(self) -> Arc<str> {
        match self {
            Self::Caller(caller) => caller.deferred_key(),
            Self::Job { api_key, .. } => api_key.clone(),
        }
    }
}

/// Decides here, or on another thread where a router takes so long that others would notice.
async fn decide_where_nobody_waits(
    gateway: &Arc<Gateway>,
    asked: Asked<'_>,
    now: Timestamp,
) -> Result<Routed, Refusal> {
    let tenant = asked.by.account().id.as_str();
    if gateway.router.load().aside_of(tenant, now).is_none() {
        return decide(gateway, asked, now);
    }
    // Boxed, because every call has room for it, and hardly any needs it.
    Box::pin(decide_aside(gateway, asked, now)).await
}

async fn decide_aside(gateway: &Arc<Gateway>, asked: Asked<'_>, now: Timestamp) -> Result<Routed, Refusal> {
    let router = gateway.router.load_full();
    let account = asked.by.account().clone();
    let Some(aside) = router.aside_of(account.id.as_str(), now) else {
        return decide(gateway, asked, now);
    };
    let turn = aside.turn().await?;
    let (gateway, caller, api_key) = (gateway.clone(), asked.by.caller().cloned(), asked.by.api_key());
    let (endpoint, headers, envelope) =
        (asked.endpoint.to_owned(), asked.headers.clone(), asked.envelope.clone());
    let runtime = gateway.runtime.clone();
    let decided = elsewhere(&runtime, move || {
        // A client that hangs up does not end the call.
        let _turn = turn;
        let (endpoint, headers, envelope) = (&endpoint, &headers, &envelope);
        let by = caller.as_ref().map_or(By::Job { account: &account, api_key: &api_key }, By::Caller);
        decide(&gateway, Asked { by, endpoint, headers, envelope }, now)
    });
    decided.await.unwrap_or_else(|error| {
        tracing::error!(%error, "a router's decision broke off");
        Err(router_failed())
    })
}

fn decide(gateway: &Gateway, asked: Asked<'_>, now: Timestamp) -> Result<Routed, Refusal> {
    let Asked { by, endpoint, headers, envelope } = asked;
    let (account, is_later) = (by.account(), by.caller().is_none());
    let may_use = by.caller().map_or_else(
        || account.models.matches(&envelope.model),
        |caller| caller.may_use_model(&envelope.model),
    );
    if !may_use {
        let message = format!("This API key may not use the model '{}'.", envelope.model);
        return Err(Refusal::new(StatusCode::FORBIDDEN, "model_not_allowed", message).param("model"));
    }
    let menu = gateway.backends.menu(endpoint, &envelope.model, now)?;
    check_prices(gateway, account, &menu, now)?;
    let fallback = gateway.backends.fallbacks.of(account.id.as_str(), endpoint, &envelope.model).cloned();
    let question =
        Question { by, account, endpoint, headers, envelope, menu: &menu, is_later, fallback, now };
    if is_later && !question.has_offers() {
        return Err(not_deferrable(&envelope.model, endpoint));
    }
    if !menu.sellers.iter().any(|seller| question.may_use_backend(seller.backend.id.as_str())) {
        let message =
            format!("This API key may not be used at the backends of the model '{}'.", envelope.model);
        return Err(Refusal::new(StatusCode::FORBIDDEN, "out_of_scope", message).param("model"));
    }
    match question.ask(gateway)? {
        Answer::Choice { choice, from_plugin } => question.follow(&choice, &from_plugin),
        Answer::Reject(rejection) => Err(rejection),
        Answer::Pass => Err(router_failed()),
    }
}

/// A hard budget would be none for what has no price. An engine of one's own is paid for already.
fn check_prices(gateway: &Gateway, account: &Account, menu: &Menu, now: Timestamp) -> Result<(), Refusal> {
    if !account.needs_prices() {
        return Ok(());
    }
    let has_none = |seller: &&Seller| {
        let sales = seller.offers.iter().map(|offer| offer.sale(menu, seller));
        seller.backend.engine.is_none() && sales.into_iter().any(|sale| !gateway.costs.has_price(&sale, now))
    };
    match menu.sellers.iter().find(has_none) {
        None => Ok(()),
        Some(seller) => Err(without_price(menu.model.as_str(), seller.backend.id.as_str())),
    }
}

fn without_price(model: &str, backend: &str) -> Refusal {
    let message = format!(
        "There is no price for the model '{model}' at '{backend}', and this tenant's budget must not be exceeded. Use another model; \
         offpeak's operator can name a price file in costs.prices, or allow it with budget.unpriced = \"allow\"."
    );
    Refusal::new(StatusCode::FORBIDDEN, "model_without_price", message).param("model")
}

struct Question<'a> {
    by: By<'a>,
    account: &'a Account,
    endpoint: &'a str,
    headers: &'a HeaderMap,
    envelope: &'a Envelope,
    menu: &'a Menu,
    is_later: bool,
    fallback: Option<Arc<Fallback>>,
    now: Timestamp,
}

enum Answer {
    Choice { choice: router::Choice, from_plugin: String },
    Reject(Refusal),
    Pass,
}

impl Question<'_> {
    fn may_use_backend(&self, backend: &str) -> bool {
        self.by.caller().is_none_or(|caller| caller.may_use_backend(backend))
    }

    /// The offers of a seller that may be chosen.
    fn offers<'b>(&'b self, seller: &'b Seller) -> impl Iterator<Item = &'b Offer> {
        seller.offers.iter().filter(|offer| !self.is_later || offer.mode() != Mode::Realtime)
    }

    fn has_offers(&self) -> bool {
        self.menu.sellers.iter().any(|seller| self.offers(seller).next().is_some())
    }

    /// What a choice names, if it was among the candidates.
    fn picked(&self, choice: &router::Choice) -> Option<(&Seller, &Offer)> {
        let picked = self.menu.pick(&choice.backend, &choice.offer);
        picked.filter(|(_, offer)| !self.is_later || offer.mode() != Mode::Realtime)
    }

    /// The chain's routers first, as far as they are for this tenant, then the configured one; where it passes, and if the
    /// configuration says so where it fails, the bundled one.
    fn ask(&self, gateway: &Gateway) -> Result<Answer, Refusal> {
        let router = gateway.router.load();
        for link in router.chain_of(self.account.id.as_str()) {
            match self.ask_one(gateway, &link.plugin) {
                Ok(Answer::Pass) => {}
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    failed(gateway, &link.plugin, &error);
                    if link.on_failure == OnRouterFailure::Reject {
                        return Err(router_failed());
                    }
                }
            }
        }
        match (self.ask_one(gateway, &router.plugins.configured), &router.plugins.bundled) {
            (Ok(Answer::Pass), Some(bundled)) => self.ask_last(gateway, bundled),
            (Ok(Answer::Pass), None) => Err(router_failed()),
            (Ok(answer), _) => Ok(answer),
            (Err(error), bundled) => {
                failed(gateway, &router.plugins.configured, &error);
                match (bundled, router.on_failure) {
                    (Some(bundled), OnRouterFailure::Bundled) => self.ask_last(gateway, bundled),
                    _ => Err(router_failed()),
                }
            }
        }
    }

    fn ask_last(&self, gateway: &Gateway, bundled: &RouterPlugin) -> Result<Answer, Refusal> {
        match self.ask_one(gateway, bundled) {
            Ok(Answer::Pass) => Err(router_failed()),
            Ok(answer) => Ok(answer),
            Err(error) => {
                failed(gateway, bundled, &error);
                Err(router_failed())
            }
        }
    }

    fn ask_one(&self, gateway: &Gateway, plugin: &RouterPlugin) -> Result<Answer, PluginError> {
        let offers: Vec<Vec<router::Offer<'_>>> = self
            .menu
            .sellers
            .iter()
            .map(|seller| self.offers(seller).map(|offer| self.shown_offer(gateway, seller, offer)).collect())
            .collect();
        let is_now = (self.envelope.stream || self.envelope.sla == Sla::Realtime) && !self.is_later;
        let mode = if is_now { Mode::Realtime } else { Mode::Batch };
        // What stays with its backend is routed as if all were well.
        let stays = self.fallback.as_ref().is_some_and(|fallback| !fallback.elsewhere);
        let candidates: Vec<router::Candidate<'_>> = self
            .menu
            .sellers
            .iter()
            .zip(&offers)
            .filter(|(seller, offers)| !offers.is_empty() && self.may_use_backend(seller.backend.id.as_str()))
            .map(|(seller, offers)| router::Candidate {
                backend: seller.backend.id.as_str(),
                healthy: stays || gateway.health.shut_until(&seller.backend.id, mode, self.now).is_none(),
                offers,
            })
            .collect();
        let shown = self.shown_headers(plugin);
        let envelope = self.envelope(plugin, &shown);
        Ok(match plugin.route(&envelope, &candidates, self.now.0)? {
            Decision::Choose(choice) => Answer::Choice { choice, from_plugin: plugin.name().to_owned() },
            Decision::Reject(rejection) => Answer::Reject(rejected(&rejection)),
            Decision::Pass => Answer::Pass,
        })
    }

    /// An offer as the provider makes it; how long a batch takes is what was seen of late, where anything was.
    fn shown_offer<'b>(&self, gateway: &Gateway, seller: &Seller, offer: &'b Offer) -> router::Offer<'b> {
        let mut shown = router::Offer::from(&offer.terms);
        if offer.mode() != Mode::Realtime && self.envelope.sla != Sla::Realtime {
            let way = Way {
                backend: seller.backend.id.clone(),
                offer: offer.name.clone(),
                model: self.menu.model.clone(),
            };
            shown.usual_ms = gateway.lanes.usual(&way).map_or(shown.usual_ms, |usual| usual.0);
        }
        shown
    }

    fn shown_headers<'b>(&'b self, plugin: &'b RouterPlugin) -> Vec<router::Header<'b>> {
        plugin
            .description()
            .headers
            .iter()
            .filter(|name| !SECRET_HEADERS.contains(&name.as_str()))
            .filter_map(|name| {
                let value = self.headers.get(name)?.to_str().ok()?;
                Some(router::Header { name, value })
            })
            .collect()
    }

    fn envelope<'b>(
        &'b self,
        plugin: &RouterPlugin,
        headers: &'b [router::Header<'b>],
    ) -> router::Envelope<'b> {
        let body = &self.envelope.body;
        router::Envelope {
            tenant: self.account.id.as_str(),
            endpoint: self.endpoint,
            model: &self.envelope.model,
            sla: match self.envelope.sla {
                Sla::Realtime => router::Sla::Realtime,
                Sla::Within(millis) => router::Sla::Within(millis.0),
            },
            tag: match self.envelope.tag {
                Tag::Header => router::Tag::Header,
                Tag::Metadata => router::Tag::Metadata,
                Tag::Api => router::Tag::Api,
                Tag::Default => router::Tag::Default,
            },
            stream: self.envelope.stream,
            body_bytes: body.len() as u64,
            input_tokens: self.envelope.input_tokens,
            max_output_tokens: self.envelope.max_output_tokens,
            headers,
            body: match plugin.description().body {
                router::BodyNeed::None => None,
                router::BodyNeed::Prefix(bytes) => Some(body.get(..bytes as usize).unwrap_or(body)),
                router::BodyNeed::Whole => Some(body),
            },
        }
    }

    /// Turns a choice from the menu into what the daemon does.
    fn follow(&self, choice: &router::Choice, plugin: &str) -> Result<Routed, Refusal> {
        let (seller, offer) = self.picked(choice).ok_or_else(router_failed)?;
        if offer.mode() == Mode::Realtime {
            let call =
                offer.call(self.menu, seller, self.now).map_err(|error| not_prepared(&error, seller))?;
            // A reduced price may come with "no room", and then the next offer is bought.
            let dearer =
                seller.fastest().filter(|fastest| fastest.terms.price_permille > offer.terms.price_permille);
            let or_else = dearer.and_then(|dearer| {
                let way = Way {
                    backend: seller.backend.id.clone(),
                    offer: offer.name.clone(),
                    model: self.menu.model.clone(),
                };
                let call = dearer.call(self.menu, seller, self.now).ok()?;
                Some(OrElse { way, call, sale: dearer.sale(self.menu, seller) })
            });
            return Ok(Routed::Now(NowCall {
                backend: seller.backend.clone(),
                call,
                or_else,
                sale: offer.sale(self.menu, seller),
                tenant: self.account.id.clone(),
                input_tokens: self.envelope.input_tokens,
                fallback: self.fallback.clone(),
                is_stream: self.envelope.stream,
            }));
        }
        if self.envelope.stream {
            tracing::warn!(plugin, "the router deferred a streamed request; it was refused");
            let message = "A streamed answer cannot be deferred. Leave out \"stream\", or send \
                           x-offpeak-sla: realtime.";
            return Err(Refusal::bad_request("stream_not_deferrable", message).param("stream"));
        }
        let within = match (choice.within_ms, self.envelope.sla) {
            (Some(within), _) => Millis(within),
            (None, Sla::Within(within)) => within,
            (None, Sla::Realtime) => self.account.sla.deferrable,
        };
        let key = LaneKey {
            backend: seller.backend.id.clone(),
            endpoint: self.menu.endpoint.clone(),
            model: self.menu.model.clone(),
            tenant: self.account.id.clone(),
            offer: offer.name.clone(),
            sla_class: SlaClass::of(within),
            name: choice.lane.as_str().into(),
            api_key: self.by.api_key(),
            headers: kept_headers(&seller.backend, self.headers)?,
        };
        Ok(Routed::Later(Deferral { key, deadline: self.now.after(within), router: plugin.into() }))
    }
}

/// What a deferred request keeps of its headers, because its provider's plugin says that they change its meaning.
pub fn kept_headers(backend: &Backend, headers: &HeaderMap) -> Result<KeptHeaders, Refusal> {
    let mut kept = Vec::new();
    let mut bytes = 0;
    for name in &backend.provider().description().kept_headers {
        let values = headers.get_all(name).iter().map(|value| value.to_str().map(str::trim));
        let values: Vec<&str> = values.collect::<Result<_, _>>().map_err(|_| bad_header(name))?;
        let value = values.join(", ");
        bytes += value.len();
        if bytes > KEPT_HEADERS_MAX {
            return Err(bad_header(name));
        }
        if !value.is_empty() {
            kept.push((name.as_str().into(), value.into()));
        }
    }
    Ok(KeptHeaders::new(kept))
}

/// What a request would keep of these headers at one backend or another, each once.
pub fn kept_anywhere(backends: &Backends, headers: &HeaderMap) -> Vec<KeptHeaders> {
    let mut kept = Vec::new();
    for headers in backends.iter().filter_map(|backend| kept_headers(backend, headers).ok()) {
        if !kept.contains(&headers) {
            kept.push(headers);
        }
    }
    kept
}

fn bad_header(name: &str) -> Refusal {
    let name: String = name.chars().take(100).collect();
    let message = format!(
        "The header {name} of a deferred request is kept with it, so it must be text, and all such headers together \
         must not be longer than {KEPT_HEADERS_MAX} bytes."
    );
    Refusal::bad_request("invalid_header", message)
}

fn rejected(rejection: &router::Rejection) -> Refusal {
    // The plugin host takes no status that is none.
    let status = StatusCode::from_u16(rejection.status).unwrap_or(StatusCode::BAD_GATEWAY);
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    let is_code = (1..=64).contains(&rejection.code.len()) && rejection.code.bytes().all(is_plain);
    let code = if is_code { Cow::Owned(rejection.code.clone()) } else { "rejected_by_router".into() };
    let refusal = Refusal::new(status, code, rejection.message.clone());
    Refusal { retry_after_s: rejection.retry_after_s.map(u64::from), ..refusal }
}

fn failed(gateway: &Gateway, plugin: &RouterPlugin, error: &PluginError) {
    gateway.metrics.plugin_failed(plugin.name());
    if matches!(error.kind, PluginErrorKind::OutOfUse { .. }) {
        // The failures before it are in the log, and every request would add a line.
        tracing::debug!(plugin = plugin.name(), %error, "a router failed");
    } else {
        tracing::error!(plugin = plugin.name(), %error, "a router failed");
    }
}

fn not_deferrable(model: &str, endpoint: &str) -> Refusal {
    let message = format!(
        "No backend sells the model '{model}' at {endpoint} as something that can wait. Send its requests one by one."
    );
    Refusal::bad_request("model_not_deferrable", message).param("model")
}

fn router_failed() -> Refusal {
    let message = "offpeak's routing plugin failed, so that this request was not run. Its log says why; ask its operator if this lasts.";
    Refusal::unavailable("router_failed", message, 1)
}

fn not_prepared(error: &PrepareError, seller: &Seller) -> Refusal {
    tracing::warn!(backend = %seller.backend.id, %error, "a call could not be prepared");
    match error {
        PrepareError::Refused(refusal) => {
            Refusal::bad_request("refused_by_provider_plugin", refusal.message.clone())
        }
        _ => Refusal::unavailable(
            "plugin_failed",
            "The backend's provider plugin failed, so that this request was not run. Its log line says why.",
            5,
        ),
    }
}
