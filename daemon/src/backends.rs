//! The backends of the configuration with their provider plugins, and what they sell.

mod told;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, HeaderMap, HeaderName, HeaderValue};
use offpeak_core::calibrate::Learnt;
use offpeak_core::escalate::RescueTerms;
use offpeak_core::gate::GateLimits;
use offpeak_core::offers::{self, BatchRoom, Rung};
use offpeak_core::quota::Quota;
use offpeak_core::retry::RetryBudget;
use offpeak_core::scheduler::LaneTerms;
use offpeak_core::turnaround::Way;
use offpeak_core::words::{BackendId, Endpoint, LaneKey, Millis, Mode, ModelId, OfferName, Timestamp};
use offpeak_host::values::provider;
use offpeak_host::{PluginError, ProviderPlugin};
use offpeak_store::BatchRecord;
use parking_lot::{Mutex, RwLock};
use reqwest::Url;

use crate::blocking::blocking;
use crate::config::{Lanes, ModelPatterns};
use crate::costs::{Calibrations, Sale, SharedSale};
use crate::engine::Engine;
use crate::fallback::Fallbacks;
use crate::lost_offers::LostOffers;
use crate::members::{self, Edit};
use crate::reply::{MODEL_NOT_FOUND, Refusal};
use crate::turns::Turns;
use crate::upstream::{BadPath, Upstream};

/// Menus are kept for this many pairs of endpoint and model; clients choose the models' names, so there is a bound.
const MENUS_MAX: usize = 4096;

/// Requests of an engine's idle time that are driven together: few enough that a piece is soon over.
const PIECE_REQUESTS: u64 = 256;

/// And their bytes.
const PIECE_BYTES: u64 = 32 << 20;

/// An engine takes requests one by one, so that waiting for others gains nothing but fewer records in the store.
const PIECE_LINGER: Millis = Millis(50);

/// Bodies up to this size are written anew where they are; for larger ones other tasks get another thread.
const SMALL_BYTES: usize = 64 << 10;

/// One configured provider account or engine.
pub struct Backend {
    /// Its name.
    pub id: BackendId,
    /// The models it serves.
    pub models: ModelPatterns,
    /// How its lanes leave.
    pub lanes: Lanes,
    /// Its wire formats and its batch protocol.
    pub provider: ArcSwap<ProviderPlugin>,
    /// Its HTTP client.
    pub upstream: Upstream,
    /// Its own limits for real-time calls, over all tenants.
    pub quota: Arc<Quota>,
    /// Turns at its real-time API for deferred work.
    pub turns: Turns,
    /// What it has if it is an engine of one's own.
    pub engine: Option<Engine>,
    /// How many retries it gets.
    pub retries: Mutex<RetryBudget>,
    /// Real-time calls a minute that the provider lets the account make, as it said last; 0 until it does.
    pub quota_a_minute: AtomicU64,
    /// The models that it listed itself, and when it was asked.
    pub listed: Mutex<Option<(Timestamp, BTreeMap<String, u64>)>>,
}

/// All backends, in the order of preference.
pub struct Backends {
    all: Vec<Arc<Backend>>,
    /// What is done while one of them is out of order.
    pub fallbacks: Fallbacks,
    /// What providers refused to sell.
    pub lost: LostOffers,
    /// What has been learnt of their models' tokens.
    pub calibrations: Arc<Calibrations>,
    menus: RwLock<Menus>,
}

/// The menus that are known.
#[derive(Default)]
struct Menus {
    /// Changes when they are forgotten, so that none is kept which was written before.
    generation: u64,
    known: HashMap<(String, String), Arc<Menu>>,
}

/// What is sold of one model at one endpoint: asked of the plugins once, then kept.
pub struct Menu {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// The model.
    pub model: ModelId,
    /// Backends that sell it; never empty.
    pub sellers: Vec<Seller>,
}

/// A backend and its offers.
pub struct Seller {
    /// The backend.
    pub backend: Arc<Backend>,
    /// Never empty.
    pub offers: Vec<Offer>,
    /// Whose offers these are: it prepares their calls, too, whichever is at work by then.
    plugin: Arc<ProviderPlugin>,
    /// What the model's answers usually take there.
    pub learnt: Arc<Learnt>,
}

/// An offer, and what follows from it.
pub struct Offer {
    /// As the plugin described it.
    pub terms: provider::Offer,
    /// Its name, ready for lane keys.
    pub name: OfferName,
    call: OnceLock<Arc<PreparedCall>>,
    sale: OnceLock<SharedSale>,
}

/// How a real-time call is sent: the plugin's answer, checked.
pub struct PreparedCall {
    /// Where to.
    pub url: Url,
    /// The plugin writes the answer anew.
    pub rewrites_answer: bool,
    set: Vec<(HeaderName, HeaderValue)>,
    defaults: Vec<(HeaderName, HeaderValue)>,
    remove: Vec<HeaderName>,
    body: BodyPlan,
    /// Whose answer this is: the same plugin writes bodies and answers, whichever is at work by then.
    plugin: Arc<ProviderPlugin>,
    endpoint: Endpoint,
    model: ModelId,
    offer: OfferName,
}

/// What becomes of a request's body.
enum BodyPlan {
    Unchanged,
    Edit(Vec<Edit>),
    Rewrite,
}

/// A body as it is sent.
pub struct Dressed {
    /// It.
    pub body: Bytes,
    /// What the plugin noted of the request, for its answer.
    pub notes: Vec<u8>,
}

/// Why a body cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum DressError {
    /// It is not what the plugin took it for.
    #[error("the request's body is not a JSON object: {0}")]
    Json(#[from] serde_json::Error),
    /// It says what cannot be said at the provider.
    #[error("{}", .0.message)]
    Refused(provider::Refusal),
    /// The plugin failed.
    #[error(transparent)]
    Plugin(#[from] PluginError),
}

/// Why a call could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The plugin failed.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// The plugin says that this cannot be done at the provider.
    #[error("{}", .0.message)]
    Refused(provider::Refusal),
    /// The plugin's path leads out of the backend.
    #[error(transparent)]
    Path(#[from] BadPath),
    /// The plugin named a header that is none.
    #[error("the plugin set the header {0:?}, which is not a valid HTTP header")]
    Header(String),
}

impl Backends {
    /// In the order of preference.
    pub fn new(all: Vec<Arc<Backend>>, fallbacks: Fallbacks) -> Self {
        Self {
            all,
            fallbacks,
            lost: LostOffers::default(),
            calibrations: Arc::default(),
            menus: RwLock::default(),
        }
    }

    /// The backend of this name.
    pub fn get(&self, id: &BackendId) -> Option<&Arc<Backend>> {
        self.all.iter().find(|backend| backend.id == *id)
    }

    /// In the order of preference.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Backend>> {
        self.all.iter()
    }

    /// The endpoint is one that some backend answers.
    pub fn knows(&self, endpoint: &str) -> bool {
        self.all.iter().any(|backend| backend.sells_at(endpoint))
    }

    /// What is sold of the model at the endpoint.
    pub fn menu(&self, endpoint: &str, model: &str, now: Timestamp) -> Result<Arc<Menu>, Refusal> {
        // The key borrows nothing, so a look-up allocates; a two-level map would save it at the price of clarity.
        let key = (endpoint.to_owned(), model.to_owned());
        let menus = self.menus.read();
        if let Some(menu) = menus.known.get(&key) {
            return Ok(menu.clone());
        }
        let generation = menus.generation;
        drop(menus);
        let menu = Arc::new(self.write_menu(endpoint, model, now)?);
        let mut menus = self.menus.write();
        if menus.generation != generation {
            return Ok(menu);
        }
        if menus.known.len() >= MENUS_MAX {
            menus.known.clear();
        }
        // Whoever wrote it at the same time has the same one: calls that are sent together share a prepared call.
        Ok(menus.known.entry(key).or_insert(menu).clone())
    }

    /// What is sold has changed.
    pub fn forget_menus(&self) {
        let mut menus = self.menus.write();
        menus.generation += 1;
        menus.known.clear();
    }

    /// Leaves out what the provider refused to sell for the model. If that was all that could wait, its requests still find
    /// a lane, and are bought otherwise there.
    fn left_of(&self, backend: &Backend, model: &str, mut offers: Vec<Offer>) -> Vec<Offer> {
        let is_lost = |offer: &Offer| {
            let (backend, offer, model) = (backend.id.clone(), offer.name.clone(), model.into());
            self.lost.has(&Way { backend, offer, model })
        };
        let can_wait = |offer: &Offer| offer.mode() != Mode::Realtime;
        let keeps_lanes = !offers.iter().any(|offer| can_wait(offer) && !is_lost(offer));
        offers.retain(|offer| !is_lost(offer) || (keeps_lanes && can_wait(offer)));
        offers
    }

    fn write_menu(&self, endpoint: &str, model: &str, now: Timestamp) -> Result<Menu, Refusal> {
        let mut sellers = Vec::new();
        let mut failed = false;
        for backend in self.all.iter().filter(|b| b.sells_at(endpoint) && b.models.matches(model)) {
            let plugin = backend.provider();
            match plugin.offers(endpoint, model, now.0) {
                Ok(offers) if offers.is_empty() => {}
                Ok(offers) => {
                    let offers = offers.into_iter().map(Offer::new).collect();
                    let offers = self.left_of(backend, model, offers);
                    let learnt = self.calibrations.of(&backend.id, &endpoint.into(), &model.into());
                    sellers.push(Seller { backend: backend.clone(), offers, plugin, learnt });
                }
                Err(error) => {
                    tracing::error!(backend = %backend.id, %error, "the backend is left out: its plugin failed");
                    failed = true;
                }
            }
        }
        match sellers.is_empty() {
            false => Ok(Menu { endpoint: endpoint.into(), model: model.into(), sellers }),
            true if failed => {
                let message =
                    "The plugin of the backend that serves this model failed. Its log line says why.";
                Err(Refusal::unavailable("plugin_failed", message, 5))
            }
            true => Err(model_not_found(endpoint, model)),
        }
    }

    /// What was bought for a batch. Where that is not sold any more, the terms are those of a batch at half price, or of an
    /// engine's idle time.
    pub fn sale(&self, batch: &BatchRecord, now: Timestamp) -> SharedSale {
        let menu = self.menu(batch.endpoint.as_str(), batch.model.as_str(), now).ok();
        let sold = menu.as_ref().and_then(|menu| {
            let (seller, offer) = menu.pick(batch.backend.as_str(), batch.offer.as_str())?;
            Some(offer.sale(menu, seller))
        });
        sold.unwrap_or_else(|| {
            let backend = self.get(&batch.backend);
            let is_engine = backend.is_some_and(|backend| backend.engine.is_some());
            Arc::new(Sale {
                backend: batch.backend.clone(),
                provider: backend.map(|backend| backend.provider().name().to_owned()).unwrap_or_default(),
                endpoint: batch.endpoint.clone(),
                model: batch.model.clone(),
                offer: batch.offer.clone(),
                mode: if is_engine { Mode::Engine } else { Mode::Batch },
                permille: 500,
                learnt: self.calibrations.of(&batch.backend, &batch.endpoint, &batch.model),
                rough: OnceLock::new(),
                priced: Mutex::default(),
            })
        })
    }

    /// While its own backend takes no work, or is configured no more, what waits in a lane may go to another one.
    pub fn may_go_elsewhere(&self, own: Option<&Backend>, key: &LaneKey) -> bool {
        let (tenant, endpoint, model) = (key.tenant.as_str(), key.endpoint.as_str(), key.model.as_str());
        own.is_none_or(|own| own.lanes.elsewhere) && self.fallbacks.may_go_elsewhere(tenant, endpoint, model)
    }

    /// Headers that change a request's meaning do so at their own provider. Where that is not known any more, whoever keeps
    /// the same ones understands them.
    pub fn understands(&self, other: &Backend, key: &LaneKey) -> bool {
        let mut names = key.headers.iter().map(|(name, _)| name);
        let provider = other.provider();
        match self.get(&key.backend) {
            Some(own) => names.next().is_none() || own.provider().name() == provider.name(),
            None => names.all(|name| provider.description().kept_headers.iter().any(|kept| kept == name)),
        }
    }

    /// Whether a lane's offer is sold as something that can wait.
    pub fn is_deferrable(&self, key: &LaneKey, now: Timestamp) -> Result<bool, PluginError> {
        let Some(backend) = self.get(&key.backend) else { return Ok(false) };
        let rungs = backend.rungs(&key.endpoint, &key.model, now)?;
        Ok(rungs.iter().any(|rung| rung.offer == key.offer && rung.batch.is_some()))
    }

    /// How what waits in a lane can be bought, and when it leaves. Where the offer that it came for is not sold any more, or its
    /// backend is configured no more, it is bought otherwise. None if nobody sells anything of it.
    pub fn terms(
        &self,
        key: &LaneKey,
        weight: u32,
        now: Timestamp,
    ) -> Result<Option<LaneTerms>, PluginError> {
        let own = self.get(&key.backend);
        let mut ladder = match own {
            Some(own) => own.rungs(&key.endpoint, &key.model, now)?,
            None => Vec::new(),
        };
        let is_sold_at_home = !ladder.is_empty();
        // What the provider refused to sell is not bought; what waits for it is bought otherwise.
        let is_sold = |rung: &Rung| !self.lost.has(&rung.way(&key.model));
        ladder.retain(is_sold);
        let fastest = offers::fastest(&ladder).map(|rung| rung.usual);
        let may_go_elsewhere = self.may_go_elsewhere(own.map(|own| &**own), key);
        let mut failed = None;
        let others = self.all.iter().filter(|other| {
            may_go_elsewhere
                && other.id != key.backend
                && other.models.matches(key.model.as_str())
                && self.understands(other, key)
        });
        for other in others {
            match other.rungs(&key.endpoint, &key.model, now) {
                Ok(rungs) => ladder.extend(rungs.into_iter().filter(is_sold)),
                Err(error) => {
                    tracing::error!(backend = %other.id, %error, "the backend is left out: its plugin failed");
                    failed = Some(error);
                }
            }
        }
        if !is_sold_at_home && ladder.is_empty() {
            return failed.map_or(Ok(None), Err);
        }
        // A backend that is gone has left no terms: those of the first one that takes its place hold.
        let heir = ladder.first().and_then(|rung| self.get(&rung.backend));
        let Some(backend) = own.or(heir) else { return Ok(None) };
        let lanes = &backend.lanes;
        let fastest = match own {
            Some(_) => fastest,
            None => offers::fastest(&ladder).map(|rung| rung.usual),
        };
        Ok(Some(LaneTerms {
            ladder: ladder.into(),
            linger: if backend.engine.is_some() { lanes.linger.min(PIECE_LINGER) } else { lanes.linger },
            rescue: RescueTerms {
                least: lanes.rescue,
                at_once: lanes.rescue_concurrency as u64,
                each: fastest.unwrap_or(Millis(0)),
                a_minute: None,
                cancel: lanes.cancel,
            },
            weight,
            may_go_elsewhere,
            enqueued_tokens: lanes.enqueued_tokens,
        }))
    }
}

impl Backend {
    /// The provider plugin at work. What takes several calls keeps this one.
    pub fn provider(&self) -> Arc<ProviderPlugin> {
        self.provider.load_full()
    }

    /// It answers the endpoint.
    pub fn sells_at(&self, endpoint: &str) -> bool {
        self.provider.load().description().endpoints.iter().any(|sold| sold == endpoint)
    }

    /// The ways to buy a model at an endpoint that offpeak has the means for: now, and in batches.
    fn rungs(&self, endpoint: &Endpoint, model: &ModelId, now: Timestamp) -> Result<Vec<Rung>, PluginError> {
        if !self.sells_at(endpoint.as_str()) {
            return Ok(Vec::new());
        }
        let mut rungs = Vec::new();
        for terms in self.provider().offers(endpoint.as_str(), model.as_str(), now.0)? {
            let offer = Offer::new(terms);
            let batch = match offer.mode() {
                Mode::Realtime => None,
                Mode::Batch | Mode::Background => match self.batch_room(endpoint, model, &offer, now)? {
                    Some(room) => Some(room),
                    None => continue,
                },
                Mode::Engine if self.engine.is_some() => Some(self.piece_room()),
                // Nothing drives these, so they are not bought.
                Mode::Engine => continue,
            };
            rungs.push(Rung {
                backend: self.id.clone(),
                mode: offer.mode(),
                price_permille: offer.terms.price_permille,
                usual: Millis(offer.terms.usual_ms),
                batch,
                offer: offer.name,
            });
        }
        Ok(rungs)
    }

    /// What one piece of an engine's idle time holds.
    fn piece_room(&self) -> BatchRoom {
        BatchRoom {
            max_requests: self.lanes.max_requests.unwrap_or(PIECE_REQUESTS),
            max_bytes: self.lanes.max_bytes.unwrap_or(PIECE_BYTES),
            overhead_bytes: 0,
            gate: GateLimits { running: self.lanes.max_running, an_hour: usize::MAX },
        }
    }

    fn batch_room(
        &self,
        endpoint: &Endpoint,
        model: &ModelId,
        offer: &Offer,
        now: Timestamp,
    ) -> Result<Option<BatchRoom>, PluginError> {
        let limits = self.provider().limits(endpoint.as_str(), model.as_str(), offer.name.as_str(), now.0)?;
        let lanes = &self.lanes;
        Ok(limits.map(|limits| BatchRoom {
            max_requests: match offer.mode() {
                Mode::Background => 1,
                Mode::Batch | Mode::Realtime | Mode::Engine => {
                    lanes.max_requests.unwrap_or(u64::MAX).min(u64::from(limits.max_requests)).max(1)
                }
            },
            max_bytes: lanes.max_bytes.unwrap_or(u64::MAX).min(limits.max_bytes),
            overhead_bytes: u64::from(limits.item_overhead_bytes),
            gate: GateLimits {
                running: match offer.mode() {
                    Mode::Background => lanes.max_background,
                    Mode::Batch | Mode::Realtime | Mode::Engine => lanes.max_running,
                },
                an_hour: usize::try_from(limits.max_batches_an_hour).unwrap_or(usize::MAX).max(1),
            },
        }))
    }

    /// How a call is sent under an offer, as the plugin at work says.
    pub fn prepare(
        &self,
        endpoint: &str,
        model: &str,
        offer: &str,
        now: Timestamp,
    ) -> Result<PreparedCall, PrepareError> {
        self.prepare_by(self.provider(), &provider::Call { endpoint, model, offer }, now)
    }

    fn prepare_by(
        &self,
        plugin: Arc<ProviderPlugin>,
        call: &provider::Call<'_>,
        now: Timestamp,
    ) -> Result<PreparedCall, PrepareError> {
        let prepared = match plugin.prepare(call, now.0)? {
            Ok(prepared) => prepared,
            Err(refusal) => return Err(PrepareError::Refused(refusal)),
        };
        let body = match prepared.body {
            provider::BodyPlan::Unchanged => BodyPlan::Unchanged,
            provider::BodyPlan::SetMembers(members) => BodyPlan::Edit(
                members.into_iter().map(|member| Edit::set(member.name, member.json)).collect(),
            ),
            provider::BodyPlan::Rewrite => BodyPlan::Rewrite,
        };
        Ok(PreparedCall {
            url: self.upstream.url(&prepared.path)?,
            rewrites_answer: prepared.answer == provider::AnswerPlan::Rewrite,
            set: headers(&prepared.set_headers)?,
            defaults: headers(&prepared.default_headers)?,
            remove: prepared
                .remove_headers
                .iter()
                .map(|name| HeaderName::try_from(name).map_err(|_| PrepareError::Header(name.clone())))
                .collect::<Result<_, _>>()?,
            body,
            plugin,
            endpoint: call.endpoint.into(),
            model: call.model.into(),
            offer: call.offer.into(),
        })
    }
}

impl PreparedCall {
    /// The plugin that said so.
    pub fn plugin(&self) -> &ProviderPlugin {
        &self.plugin
    }

    /// The call as the plugin knows it.
    pub fn named(&self) -> provider::Call<'_> {
        provider::Call {
            endpoint: self.endpoint.as_str(),
            model: self.model.as_str(),
            offer: self.offer.as_str(),
        }
    }

    /// The plugin writes the body anew, so that nobody else knows what it says.
    pub const fn rewrites_body(&self) -> bool {
        matches!(self.body, BodyPlan::Rewrite)
    }

    /// Applies what the plugin said to headers and body.
    pub fn dress(&self, headers: &mut HeaderMap, body: Bytes, now: Timestamp) -> Result<Dressed, DressError> {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name.clone(), value.clone());
        }
        for (name, value) in &self.defaults {
            headers.entry(name).or_insert_with(|| value.clone());
        }
        if self.rewrites_answer {
            // A plugin reads no compressed answers.
            headers.remove(ACCEPT_ENCODING);
        }
        let body = match &self.body {
            BodyPlan::Unchanged => body,
            BodyPlan::Edit(edits) => members::edit(&body, edits)?.into(),
            BodyPlan::Rewrite => return self.rewrite(&body, now),
        };
        Ok(Dressed { body, notes: Vec::new() })
    }

    fn rewrite(&self, body: &[u8], now: Timestamp) -> Result<Dressed, DressError> {
        let rewrite = || self.plugin.rewrite_request(&self.named(), body, now.0);
        match with_time_for(body.len(), rewrite)? {
            Ok(rewritten) => Ok(Dressed { body: rewritten.body.into(), notes: rewritten.notes }),
            Err(refusal) => Err(DressError::Refused(refusal)),
        }
    }
}

impl Menu {
    /// The offer that a decision names.
    pub fn pick(&self, backend: &str, offer: &str) -> Option<(&Seller, &Offer)> {
        let seller = self.sellers.iter().find(|seller| seller.backend.id.as_str() == backend)?;
        Some((seller, seller.offer(offer)?))
    }
}

impl Seller {
    /// The offer of this name.
    pub fn offer(&self, name: &str) -> Option<&Offer> {
        self.offers.iter().find(|offer| offer.terms.name == name)
    }

    /// The way to an answer as soon as possible: what a rescue uses.
    pub fn fastest(&self) -> Option<&Offer> {
        self.offers
            .iter()
            .filter(|offer| offer.mode() == Mode::Realtime)
            .min_by_key(|offer| (offer.terms.usual_ms, offer.terms.price_permille))
    }
}

impl Offer {
    fn new(terms: provider::Offer) -> Self {
        Self {
            name: OfferName::from(terms.name.as_str()),
            terms,
            call: OnceLock::new(),
            sale: OnceLock::new(),
        }
    }

    /// What is bought with this offer, for the ledger: made once.
    pub fn sale(&self, menu: &Menu, seller: &Seller) -> SharedSale {
        let sale = || {
            Arc::new(Sale {
                backend: seller.backend.id.clone(),
                provider: seller.plugin.name().to_owned(),
                endpoint: menu.endpoint.clone(),
                model: menu.model.clone(),
                offer: self.name.clone(),
                mode: self.mode(),
                permille: self.terms.price_permille,
                learnt: seller.learnt.clone(),
                rough: OnceLock::new(),
                priced: Mutex::default(),
            })
        };
        self.sale.get_or_init(sale).clone()
    }

    /// How it is run.
    pub const fn mode(&self) -> Mode {
        match self.terms.mode {
            provider::Mode::Realtime => Mode::Realtime,
            provider::Mode::Background => Mode::Background,
            provider::Mode::Batch => Mode::Batch,
            provider::Mode::Engine => Mode::Engine,
        }
    }

    /// How a call is sent under this offer: asked of the plugin once.
    pub fn call(
        &self,
        menu: &Menu,
        seller: &Seller,
        now: Timestamp,
    ) -> Result<Arc<PreparedCall>, PrepareError> {
        if let Some(call) = self.call.get() {
            return Ok(call.clone());
        }
        let (endpoint, model) = (menu.endpoint.as_str(), menu.model.as_str());
        let call = provider::Call { endpoint, model, offer: self.name.as_str() };
        let call = Arc::new(seller.backend.prepare_by(seller.plugin.clone(), &call, now)?);
        Ok(self.call.get_or_init(|| call).clone())
    }
}

/// Runs what takes time in proportion to `bytes` without keeping other tasks waiting.
pub fn with_time_for<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    if bytes <= SMALL_BYTES { work() } else { blocking(work) }
}

/// Headers as a plugin wrote them. Credentials and the message's framing are not its business.
pub fn headers(headers: &[provider::Header]) -> Result<Vec<(HeaderName, HeaderValue)>, PrepareError> {
    headers
        .iter()
        .map(|header| {
            let bad = || PrepareError::Header(header.name.clone());
            let name = HeaderName::try_from(&header.name).map_err(|_| bad())?;
            if matches!(name.as_str(), "host" | "content-length" | "transfer-encoding" | "connection") {
                return Err(bad());
            }
            Ok((name, HeaderValue::try_from(&header.value).map_err(|_| bad())?))
        })
        .collect()
}

fn model_not_found(endpoint: &str, model: &str) -> Refusal {
    let model: String = model.chars().take(100).collect();
    let message = format!(
        "No backend serves the model '{model}' at {endpoint}. Check the name, or add it to the models of a backend in \
         offpeak's configuration."
    );
    Refusal::not_found(MODEL_NOT_FOUND, message).param("model")
}
