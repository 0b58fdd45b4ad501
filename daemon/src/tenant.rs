//! Who pays: found from the API key alone.

pub mod keys;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::header::AUTHORIZATION;
use http::{HeaderMap, StatusCode};
use offpeak_core::money::Money;
use offpeak_core::quota::{Demand, Quota};
use offpeak_core::room::Bound;
use offpeak_core::scheduler::{Holder, Means, Part};
use offpeak_core::tempo::TempoLimits;
use offpeak_core::words::{BackendId, ModelId, TenantId, Timestamp};
use offpeak_store::{Store, StoreError};
use parking_lot::RwLock;
use tokio::time::Instant;

use crate::admission::{self, Admission, Asked, Quotas};
use crate::alerts::Alerts;
use crate::budgets::Purse;
use crate::clock::Chance;
use crate::config::{Access, Delivery, Limits, ModelPatterns, Tenant};
use crate::envelope::SlaDefaults;
use crate::reply::{Dialect, Refusal};
use crate::tenant::keys::{Digest, NewKey, Pepper, Record, SlaScope};

/// A tenant and what it may do, ready for requests.
pub struct Account {
    /// Its name.
    pub id: TenantId,
    /// What its requests have where they say nothing.
    pub sla: SlaDefaults,
    /// How its deferred answers come back where the caller does not say.
    pub delivery: Delivery,
    /// The models it may use.
    pub models: ModelPatterns,
    /// Deferred requests that it may have waiting.
    pub max_queued: u64,
    /// Bytes of them.
    pub max_queued_bytes: u64,
    quota: Arc<Quota>,
    /// By the names of their limits.
    model_quotas: Vec<(String, ModelPatterns, Arc<Quota>)>,
    purse: Arc<Purse>,
    /// As it stands in the configuration.
    configured: Tenant,
}

/// A key that was made here.
pub struct ApiKey {
    record: Record,
    models: Option<ModelPatterns>,
    quota: Arc<Quota>,
    /// What it is called where its own limits for deferred work hold; empty if there are none.
    deferred_as: Arc<str>,
}

/// Whom a key stands for.
pub struct Caller {
    account: Arc<Account>,
    key: Option<ApiKey>,
}

/// Proof that the caller is known.
#[derive(Clone)]
pub struct Identified(Arc<Caller>);

impl Identified {
    /// The caller's account.
    pub fn account(&self) -> &Arc<Account> {
        &self.0.account
    }

    /// What the key is called whose own limits for deferred work its requests take; empty if it has none.
    pub fn deferred_key(&self) -> Arc<str> {
        self.0.key.as_ref().map(|key| key.deferred_as.clone()).unwrap_or_default()
    }

    /// The key may be used for this model.
    pub fn may_use_model(&self, model: &str) -> bool {
        let by_key = self.0.key.as_ref().and_then(|key| key.models.as_ref());
        self.0.account.models.matches(model) && by_key.is_none_or(|models| models.matches(model))
    }

    /// The key may be used at this backend.
    pub fn may_use_backend(&self, backend: &str) -> bool {
        self.0.key.as_ref().is_none_or(|key| {
            let backends = &key.record.scopes.backends;
            backends.is_empty() || backends.iter().any(|allowed| allowed == backend)
        })
    }

    /// The key may be used at this endpoint.
    pub fn check_endpoint(&self, endpoint: &str) -> Result<(), Refusal> {
        let Some(key) = &self.0.key else { return Ok(()) };
        let endpoints = &key.record.scopes.endpoints;
        if endpoints.is_empty() || endpoints.iter().any(|allowed| allowed == endpoint) {
            return Ok(());
        }
        Err(out_of_scope(&format!("This API key may not be used at {endpoint}.")))
    }

    /// The key may be used to run a request in this way.
    pub fn check_sla(&self, wanted: SlaScope) -> Result<(), Refusal> {
        let Some(key) = &self.0.key else { return Ok(()) };
        if key.record.scopes.sla.is_empty() || key.record.scopes.sla.contains(&wanted) {
            return Ok(());
        }
        Err(out_of_scope(match wanted {
            SlaScope::Realtime => {
                "This API key may only be used for what can wait: send x-offpeak-sla: deferrable."
            }
            SlaScope::Deferred => "This API key may only be used in real time: send x-offpeak-sla: realtime.",
        }))
    }

    /// The key may be used to hand in work for these models that is bought later. By then the key is not at hand any more, and
    /// what fails at one backend may go to the next: so each backend that sells one of the models (`sellers` names them) must
    /// be the key's.
    pub fn check_job<'m>(
        &self,
        endpoint: &str,
        models: impl Iterator<Item = &'m str>,
        sellers: impl Fn(&'m str) -> Vec<BackendId>,
    ) -> Result<(), Refusal> {
        let Some(key) = &self.0.key else { return Ok(()) };
        self.check_endpoint(endpoint)?;
        self.check_sla(SlaScope::Deferred)?;
        for model in models {
            if !self.may_use_model(model) {
                return Err(out_of_scope(&format!("This API key may not use the model '{model}'.")));
            }
            if key.record.scopes.backends.is_empty() {
                continue;
            }
            if let Some(other) =
                sellers(model).into_iter().find(|backend| !self.may_use_backend(backend.as_str()))
            {
                return Err(out_of_scope(&format!(
                    "This API key is for certain backends. What can wait may go to each that sells the model '{model}', and \
                     '{other}' is not among them. Send such requests in real time, or use another key."
                )));
            }
        }
        Ok(())
    }

    /// Takes a call that runs no model: it counts as a request.
    pub fn admit_plain(&self, asked: Asked) -> Result<(), Refusal> {
        let mut quotas = Quotas::default();
        quotas.push(&self.0.account.quota);
        if let Some(key) = &self.0.key {
            quotas.push(&key.quota);
        }
        drop(quotas.admit(Demand::default(), asked)?.settle(Demand::default()));
        Ok(())
    }

    /// Takes a real-time request from all quotas that hold for it: of the tenant, the key, the model, the backend.
    pub fn admit(
        &self,
        model: &str,
        backend: &Arc<Quota>,
        demand: Demand,
        asked: Asked,
    ) -> Result<Admission, Refusal> {
        let mut quotas = Quotas::default();
        quotas.push(&self.0.account.quota);
        if let Some(key) = &self.0.key {
            quotas.push(&key.quota);
        }
        let of_model = self.0.account.model_quotas.iter().find(|(_, models, _)| models.matches(model));
        if let Some((_, _, quota)) = of_model {
            quotas.push(quota);
        }
        quotas.push(backend);
        quotas.admit(demand, asked)
    }
}

/// All tenants, by keyed hashes of their keys: the keys themselves are not kept, and how long a look-up takes tells
/// nothing about them.
pub struct Tenants {
    pepper: Pepper,
    alerts: Alerts,
    known: ArcSwap<Known>,
    records: RwLock<Vec<Record>>,
    /// Changes of keys come one after the other.
    changing: tokio::sync::Mutex<()>,
    /// From when all quotas count time.
    pub started: Instant,
}

/// Who is known now.
#[derive(Default)]
struct Known {
    open: Option<Arc<Caller>>,
    accounts: HashMap<TenantId, Arc<Account>>,
    /// What tenants have spent, also those that are not configured any more: they may still have something under way.
    purses: HashMap<TenantId, Arc<Purse>>,
    by_key: HashMap<u64, Vec<(Digest, Arc<Caller>)>>,
    /// Keys with limits of their own for deferred work.
    deferred_keys: HashMap<TenantId, HashMap<Arc<str>, KeyLimits>>,
}

/// The limits of a key for deferred work.
#[derive(Debug, Clone, Copy)]
struct KeyLimits {
    /// How fast it leaves.
    tempo: Option<TempoLimits>,
    /// How much may wait.
    queue: Option<Bound>,
}

/// Why a key could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No such tenant.
    #[error(
        "there is no tenant \"{0}\" in the configuration: add [tenants.{0}], with keys = [] if all its keys are made here"
    )]
    NoTenant(String),
    /// No such key.
    #[error("there is no key \"{0}\": `offpeak keys list` shows them")]
    NoKey(String),
    /// It is over with this key.
    #[error("the key \"{0}\" is revoked or has expired: create another one")]
    Over(String),
}

impl Tenants {
    /// From the keys that were made before. Nobody is known yet: [`Tenants::meet`], and then [`Tenants::set`].
    pub fn new(pepper: Pepper, records: Vec<Record>, alerts: Alerts) -> Self {
        Self {
            pepper,
            alerts,
            known: ArcSwap::default(),
            records: RwLock::new(records),
            changing: tokio::sync::Mutex::default(),
            started: Instant::now(),
        }
    }

    /// Begins to count what these tenants spend. Returns the purses that are to be limited and do not know yet what was spent
    /// before: they are told, and then [`Tenants::set`] limits them.
    pub fn meet(&self, access: &Access, now: Timestamp) -> Vec<Arc<Purse>> {
        let _alone = self.records.write();
        let before = self.known.load();
        let mut known = before.copied();
        let mut unknown = Vec::new();
        for tenant in access.tenants() {
            let purse = known.purses.entry(tenant.id.clone());
            let purse = purse.or_insert_with(|| Purse::new(tenant.id.clone(), self.alerts.clone(), now));
            let is_limited = tenant.budget.day.is_some() || tenant.budget.month.is_some();
            if is_limited && !purse.is_remembered() {
                unknown.push(purse.clone());
            }
        }
        self.known.store(Arc::new(known));
        unknown
    }

    /// From now on this access holds, whose tenants were met. What was taken from quotas and spent of budgets stays, under the
    /// limits that hold now.
    pub fn set(&self, access: &Access, now: Timestamp) {
        let records = self.records.write();
        let before = self.known.load();
        let mut known = Known { purses: before.purses.clone(), ..Known::default() };
        for tenant in access.tenants() {
            let purse = known.purses.entry(tenant.id.clone());
            let purse = purse.or_insert_with(|| Purse::new(tenant.id.clone(), self.alerts.clone(), now));
            purse.set(tenant.budget, now);
            let of_before = before.accounts.get(&tenant.id).map(Arc::as_ref);
            let account = Arc::new(Account::new(tenant, purse.clone(), of_before, self.started));
            let caller = Arc::new(Caller { account: account.clone(), key: None });
            for key in &tenant.keys {
                known.add(self.pepper.hash(key.expose().as_bytes()), &caller);
            }
            if matches!(access, Access::Open(_)) {
                known.open = Some(caller);
            }
            known.accounts.insert(tenant.id.clone(), account);
        }
        known.add_all_made(&records, &before);
        self.known.store(Arc::new(known));
    }

    /// The caller, from `authorization: Bearer` or `x-api-key`.
    pub fn identify(&self, headers: &HeaderMap, now: Timestamp) -> Result<Identified, Refusal> {
        let known = self.known.load();
        if let Some(caller) = &known.open {
            return Ok(Identified(caller.clone()));
        }
        let bearer = headers.get(AUTHORIZATION).and_then(|value| {
            let value = value.as_bytes();
            let (scheme, key) = value.split_at_checked(7)?;
            scheme.eq_ignore_ascii_case(b"bearer ").then_some(key.trim_ascii())
        });
        let key = bearer.or_else(|| headers.get("x-api-key").map(http::HeaderValue::as_bytes));
        let Some(key) = key else { return Err(no_key()) };
        let digest = self.pepper.hash(key);
        let found = known.by_key.get(&digest.short()).into_iter().flatten();
        let mut found = found.filter(|(other, _)| *other == digest).map(|(_, caller)| caller);
        match found.next() {
            None => Err(unknown_key()),
            Some(caller) if caller.key.as_ref().is_none_or(|key| key.record.is_accepted(now)) => {
                Ok(Identified(caller.clone()))
            }
            Some(_) => Err(expired_key()),
        }
    }

    /// No key is asked for.
    pub fn are_open(&self) -> bool {
        self.known.load().open.is_some()
    }

    /// The account of a tenant.
    pub fn account(&self, id: &TenantId) -> Option<Arc<Account>> {
        self.known.load().accounts.get(id).cloned()
    }

    /// A tenant has spent money for which none was set aside.
    pub fn spent(&self, tenant: &TenantId, cost: Money, now: Timestamp) {
        if let Some(purse) = self.known.load().purses.get(tenant) {
            purse.spend(cost, now);
        }
    }

    /// What a tenant, some of its models and some of its keys have for deferred work now; nothing if nothing of it is limited.
    pub fn means(&self, tenant: &TenantId, now: Timestamp) -> Vec<(Holder, Means)> {
        let known = self.known.load();
        let account = known.accounts.get(tenant).filter(|account| account.has_means());
        let of_account = account.map(|account| account.means(now)).unwrap_or_default();
        let of_keys = known.deferred_keys.get(tenant).into_iter().flatten().filter_map(|(key, limits)| {
            let holder = Holder { tenant: tenant.clone(), part: Part::Key(key.clone()) };
            limits.tempo.map(|tempo| (holder, Means { tempo: Some(tempo), funds: None }))
        });
        of_account.into_iter().chain(of_keys).collect()
    }

    /// How much may wait of what came with a key, as [`Identified::deferred_key`] names it; none if that is not limited.
    pub fn queue_of_key(&self, tenant: &TenantId, api_key: &str) -> Option<Bound> {
        self.known.load().deferred_keys.get(tenant)?.get(api_key)?.queue
    }

    /// The way by which the operator is told.
    pub const fn alerts(&self) -> &Alerts {
        &self.alerts
    }

    /// All accounts.
    pub fn accounts(&self) -> Vec<Arc<Account>> {
        self.known.load().accounts.values().cloned().collect()
    }

    /// A question to quotas, now.
    pub const fn asked(&self, now: Timestamp, dialect: Dialect) -> Asked {
        Asked { started: self.started, wall: now, dialect }
    }

    /// All keys that were made here, the oldest first.
    pub fn records(&self) -> Vec<Record> {
        self.records.read().clone()
    }

    /// Makes a key; returns it with its record. Only now is the key itself to be had.
    pub async fn create(
        &self,
        (store, chance): (&Store, &Chance),
        new: NewKey,
        now: Timestamp,
    ) -> Result<(Record, String), KeyError> {
        let _alone = self.changing.lock().await;
        if !self.known.load().accounts.contains_key(&TenantId::from(new.tenant.as_str())) {
            return Err(KeyError::NoTenant(new.tenant));
        }
        let (record, key) = Record::make(&self.pepper, chance, new, now);
        store.keep(vec![record.document()]).await?;
        self.put(vec![record.clone()]);
        Ok((record, key))
    }

    /// Makes a key in the place of another, which is accepted until `until` beside it.
    pub async fn rotate(
        &self,
        (store, chance): (&Store, &Chance),
        id: &str,
        until: Timestamp,
        now: Timestamp,
    ) -> Result<(Record, String), KeyError> {
        let _alone = self.changing.lock().await;
        let old = self.find(id)?;
        if !old.is_accepted(now) {
            return Err(KeyError::Over(id.to_owned()));
        }
        let new = NewKey {
            tenant: old.tenant.to_string(),
            label: old.label.clone(),
            expires_at: old.expires_at,
            scopes: old.scopes.clone(),
            limits: old.limits.clone(),
            deferred: old.deferred,
            queue: old.queue,
        };
        let (record, key) = Record::make(&self.pepper, chance, new, now);
        let expires_at = Some(old.expires_at.map_or(until, |expires_at| expires_at.min(until)));
        let old = Record { expires_at, replaced_by: Some(record.id.clone()), ..old };
        store.keep(vec![old.document(), record.document()]).await?;
        self.put(vec![old, record.clone()]);
        Ok((record, key))
    }

    /// From now on the key is not accepted.
    pub async fn revoke(&self, store: &Store, id: &str, now: Timestamp) -> Result<Record, KeyError> {
        let _alone = self.changing.lock().await;
        let old = self.find(id)?;
        let revoked = Record { revoked_at: old.revoked_at.or(Some(now)), ..old };
        store.keep(vec![revoked.document()]).await?;
        self.put(vec![revoked.clone()]);
        Ok(revoked)
    }

    fn find(&self, id: &str) -> Result<Record, KeyError> {
        let found = self.records.read().iter().find(|record| record.id == id).cloned();
        found.ok_or_else(|| KeyError::NoKey(id.to_owned()))
    }

    /// Takes changed and new records in, and lets callers be known by them.
    fn put(&self, changed: Vec<Record>) {
        let mut records = self.records.write();
        for record in changed {
            match records.iter_mut().find(|other| other.id == record.id) {
                Some(place) => *place = record,
                None => records.push(record),
            }
        }
        let before = self.known.load();
        let mut known = Known { by_key: HashMap::new(), deferred_keys: HashMap::new(), ..before.copied() };
        for (digest, caller) in before.by_key.values().flatten().filter(|(_, caller)| caller.key.is_none()) {
            known.add(*digest, caller);
        }
        known.add_all_made(&records, &before);
        self.known.store(Arc::new(known));
    }
}

impl Known {
    fn copied(&self) -> Self {
        Self {
            open: self.open.clone(),
            accounts: self.accounts.clone(),
            purses: self.purses.clone(),
            by_key: self.by_key.clone(),
            deferred_keys: self.deferred_keys.clone(),
        }
    }

    fn add(&mut self, digest: Digest, caller: &Arc<Caller>) {
        self.by_key.entry(digest.short()).or_default().push((digest, caller.clone()));
    }

    /// All keys that were made here, with what was taken from their quotas before. A key that came in the place of another
    /// has its quota: while both are accepted, they are one key in two forms.
    fn add_all_made(&mut self, records: &[Record], before: &Self) {
        let replaced: HashMap<&str, &str> = records
            .iter()
            .filter_map(|record| Some((record.replaced_by.as_deref()?, record.id.as_str())))
            .collect();
        let mut quotas = before.key_quotas();
        for record in records {
            // Each step leads to an older key, so that there are no more steps than keys.
            let first = (0..records.len()).try_fold(record.id.as_str(), |id, _| match replaced.get(id) {
                Some(older) => ControlFlow::Continue(*older),
                None => ControlFlow::Break(id),
            });
            let (ControlFlow::Break(first) | ControlFlow::Continue(first)) = first;
            let quota = quotas.entry(first.to_owned()).or_insert_with(|| admission::quota(&record.limits));
            self.add_made(record, first.into(), quota.clone());
        }
    }

    /// A key that was made here; one whose tenant is not configured any more is not accepted.
    fn add_made(&mut self, record: &Record, first: Arc<str>, quota: Arc<Quota>) {
        let Some(account) = self.accounts.get(&record.tenant).cloned() else { return };
        let Some(digest) = record.digest() else { return };
        let models = &record.scopes.models;
        let limits = KeyLimits { tempo: record.deferred.tempo(), queue: record.queue.bound() };
        let deferred_as = if limits.tempo.is_some() || limits.queue.is_some() {
            // One that was rotated has the limits of the first: the last one that is told of counts.
            self.deferred_keys.entry(record.tenant.clone()).or_default().insert(first.clone(), limits);
            first
        } else {
            Arc::default()
        };
        let key = ApiKey {
            models: (!models.is_empty()).then(|| ModelPatterns::new(models.clone())),
            quota,
            deferred_as,
            record: record.clone(),
        };
        self.add(digest, &Arc::new(Caller { account, key: Some(key) }));
    }

    /// The quotas of keys, which outlive a change of other keys.
    fn key_quotas(&self) -> HashMap<String, Arc<Quota>> {
        let keys = self.by_key.values().flatten().filter_map(|(_, caller)| caller.key.as_ref());
        keys.map(|key| (key.record.id.clone(), key.quota.clone())).collect()
    }
}

impl Account {
    /// Only what has a price may be bought.
    pub const fn needs_prices(&self) -> bool {
        self.configured.needs_prices()
    }

    /// A budget that is used up takes nothing in. What waits was let in before, and leaves as there is money for it.
    pub fn check_budget(&self, now: Timestamp) -> Result<(), Refusal> {
        drop(self.purse.reserve(Money::ZERO, now)?);
        Ok(())
    }

    /// What it has for deferred work now.
    pub fn means(&self, now: Timestamp) -> Vec<(Holder, Means)> {
        let funds = self.purse.funds(now);
        let all = Means { tempo: self.configured.deferred.tempo(), funds };
        let of_models = self.configured.model_limits.iter().filter_map(|limits| {
            let tempo = Some(limits.deferred.tempo()?);
            let holder = Holder { tenant: self.id.clone(), part: Part::Models(limits.name.as_str().into()) };
            Some((holder, Means { tempo, funds: None }))
        });
        std::iter::once((Holder::tenant(self.id.clone()), all)).chain(of_models).collect()
    }

    /// Something is limited of what it has for deferred work.
    pub fn has_means(&self) -> bool {
        let is_paced = self.configured.model_limits.iter().any(|limits| limits.deferred.tempo().is_some());
        self.purse.is_limited() || self.configured.deferred.tempo().is_some() || is_paced
    }

    /// The models with limits of their own that this one is among.
    pub fn limited_models(&self, model: &str) -> Option<Arc<str>> {
        let found = self.configured.model_limits.iter().find(|limits| limits.models.matches(model));
        found.map(|limits| limits.name.as_str().into())
    }

    /// How much may wait of the models that this one shares limits with, and which they are; none if that is not limited.
    pub fn queue_of_models(&self, model: &ModelId) -> Option<(Bound, impl Fn(&ModelId) -> bool)> {
        let all = &self.configured.model_limits;
        let place = |model: &ModelId| all.iter().position(|limits| limits.models.matches(model.as_str()));
        let at = place(model)?;
        Some((all.get(at)?.queue.bound()?, move |model: &ModelId| place(model) == Some(at)))
    }

    /// Its budget.
    pub const fn purse(&self) -> &Arc<Purse> {
        &self.purse
    }

    /// Quotas that were there before stay, with other limits where those have changed.
    fn new(tenant: &Tenant, purse: Arc<Purse>, before: Option<&Self>, started: Instant) -> Self {
        let quota = |before: Option<&Arc<Quota>>, limits: &Limits| match before {
            Some(quota) => {
                admission::change(quota, limits, started);
                quota.clone()
            }
            None => admission::quota(limits),
        };
        let model_quotas = tenant.model_limits.iter().map(|of_model| {
            let mut known = before.iter().flat_map(|before| &before.model_quotas);
            let kept = known.find(|(name, ..)| *name == of_model.name).map(|(.., quota)| quota);
            (of_model.name.clone(), of_model.models.clone(), quota(kept, &of_model.limits))
        });
        Self {
            id: tenant.id.clone(),
            sla: SlaDefaults { default: tenant.default_sla, deferrable: tenant.deferrable },
            delivery: tenant.delivery,
            models: tenant.models.clone(),
            max_queued: tenant.max_queued,
            max_queued_bytes: tenant.max_queued_bytes,
            quota: quota(before.map(|before| &before.quota), &tenant.limits),
            purse,
            model_quotas: model_quotas.collect(),
            configured: tenant.clone(),
        }
    }
}

fn no_key() -> Refusal {
    let message = "No API key was sent. Send the key that offpeak's operator gave you as \
                   'authorization: Bearer <key>' (your SDK's api_key) or 'x-api-key: <key>'.";
    Refusal::new(StatusCode::UNAUTHORIZED, "missing_api_key", message)
}

fn unknown_key() -> Refusal {
    let message = "The API key is not one of offpeak's. Use the key that offpeak's operator gave you, not the \
                   provider's.";
    Refusal::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message)
}

fn expired_key() -> Refusal {
    let message = "The API key has expired or was revoked. Ask offpeak's operator for a new one.";
    Refusal::new(StatusCode::UNAUTHORIZED, "expired_api_key", message)
}

fn out_of_scope(message: &str) -> Refusal {
    Refusal::new(StatusCode::FORBIDDEN, "out_of_scope", message)
}
