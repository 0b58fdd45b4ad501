//! Who pays: found from the API key alone.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use governor::clock::{Clock as _, QuantaClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use http::header::AUTHORIZATION;
use http::{HeaderMap, StatusCode};
use offpeak_core::words::TenantId;
use sha2::{Digest, Sha256};

use crate::config::{Access, Delivery, ModelPatterns, Tenant};
use crate::envelope::SlaDefaults;
use crate::reply::Refusal;

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
    rate: Option<DefaultDirectRateLimiter>,
}

/// Proof that the caller is known.
pub struct Identified(Arc<Account>);

/// Proof that the caller is known and within its quota.
pub struct Admitted(Arc<Account>);

impl Identified {
    /// The caller's account.
    pub const fn account(&self) -> &Arc<Account> {
        &self.0
    }

    /// Takes one request from the quota.
    pub fn admit(self) -> Result<Admitted, Refusal> {
        let Some(rate) = &self.0.rate else { return Ok(Admitted(self.0)) };
        match rate.check() {
            Ok(()) => Ok(Admitted(self.0)),
            Err(not_until) => {
                let wait = not_until.wait_time_from(QuantaClock::default().now());
                let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
                let message = format!(
                    "The tenant's limit of requests a minute is reached. Try again in {seconds} s, or tag what can wait \
                     (x-offpeak-sla: deferrable)."
                );
                let refusal = Refusal::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", message);
                Err(Refusal { retry_after_s: Some(seconds.max(1)), ..refusal })
            }
        }
    }
}

impl Admitted {
    /// The caller's account.
    pub const fn account(&self) -> &Arc<Account> {
        &self.0
    }
}

/// All tenants, by a keyed hash of their keys: the keys themselves are not kept, and how long a look-up takes tells
/// nothing about them.
pub struct Tenants {
    salt: [u8; 16],
    by_key: HashMap<[u8; 32], Arc<Account>>,
    by_name: HashMap<TenantId, Arc<Account>>,
    open: Option<Arc<Account>>,
}

impl Tenants {
    /// From the configuration. `salt` is drawn anew at each start.
    pub fn new(access: &Access, salt: u128) -> Self {
        let salt = salt.to_le_bytes();
        let mut by_key = HashMap::new();
        let mut by_name = HashMap::new();
        let mut open = None;
        for tenant in access.tenants() {
            let account = Arc::new(Account::new(tenant));
            by_name.insert(account.id.clone(), account.clone());
            for key in &tenant.keys {
                by_key.insert(hash(&salt, key.expose().as_bytes()), account.clone());
            }
            if matches!(access, Access::Open(_)) {
                open = Some(account);
            }
        }
        Self { salt, by_key, by_name, open }
    }

    /// The account of this name.
    pub fn account(&self, tenant: &TenantId) -> Option<Arc<Account>> {
        self.by_name.get(tenant).cloned()
    }

    /// The caller, from `authorization: Bearer` or `x-api-key`.
    pub fn identify(&self, headers: &HeaderMap) -> Result<Identified, Refusal> {
        if let Some(account) = &self.open {
            return Ok(Identified(account.clone()));
        }
        let bearer = headers.get(AUTHORIZATION).and_then(|value| {
            let value = value.as_bytes();
            let (scheme, key) = value.split_at_checked(7)?;
            scheme.eq_ignore_ascii_case(b"bearer ").then_some(key.trim_ascii())
        });
        let key = bearer.or_else(|| headers.get("x-api-key").map(http::HeaderValue::as_bytes));
        let Some(key) = key else { return Err(no_key()) };
        self.by_key.get(&hash(&self.salt, key)).cloned().map(Identified).ok_or_else(unknown_key)
    }
}

impl Account {
    fn new(tenant: &Tenant) -> Self {
        Self {
            id: tenant.id.clone(),
            sla: SlaDefaults { default: tenant.default_sla, deferrable: tenant.deferrable },
            delivery: tenant.delivery,
            models: tenant.models.clone(),
            max_queued: tenant.max_queued,
            max_queued_bytes: tenant.max_queued_bytes,
            rate: tenant.requests_per_minute.map(rate),
        }
    }
}

fn rate(per_minute: NonZeroU32) -> DefaultDirectRateLimiter {
    RateLimiter::direct(Quota::per_minute(per_minute))
}

fn hash(salt: &[u8], key: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(salt).chain_update(key).finalize().into()
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use http::HeaderValue;

    use super::*;
    use crate::config::Config;

    fn tenants(per_minute: &str) -> Tenants {
        let env: BTreeMap<String, String> =
            [("KEY_A".to_owned(), "sk-a".to_owned()), ("KEY_B".to_owned(), "sk-b".to_owned())].into();
        let text = format!(
            "[tenants.a]\nkeys = [{{ env = \"KEY_A\" }}]\n{per_minute}\n[tenants.b]\nkeys = [{{ env = \"KEY_B\" }}]\n\
             [backends.x]\nbase_url = \"http://127.0.0.1:1\"\nmodels = [\"*\"]\n"
        );
        Tenants::new(&Config::from_text("test", &text, &env).unwrap().access, 7)
    }

    fn identified(tenants: &Tenants, name: &'static str, value: &str) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(value).unwrap());
        tenants.identify(&headers).ok().map(|caller| caller.account().id.to_string())
    }

    #[test]
    fn a_key_names_its_tenant_in_either_header() {
        let tenants = tenants("");
        assert_eq!(identified(&tenants, "authorization", "Bearer sk-a").as_deref(), Some("a"));
        assert_eq!(identified(&tenants, "authorization", "bearer  sk-b ").as_deref(), Some("b"));
        assert_eq!(identified(&tenants, "x-api-key", "sk-b").as_deref(), Some("b"));
        for wrong in ["Bearer sk-c", "Bearer", "Basic sk-a", "Bearer ", "sk-a"] {
            assert_eq!(identified(&tenants, "authorization", wrong), None, "{wrong}");
        }
        assert_eq!(
            tenants.identify(&HeaderMap::new()).err().map(|refusal| refusal.code).as_deref(),
            Some("missing_api_key")
        );
    }

    #[test]
    fn over_the_rate_there_is_a_429_that_says_when() {
        let tenants = tenants("requests_per_minute = 2");
        let mut headers = HeaderMap::new();
        headers.insert("x-api-key", HeaderValue::from_static("sk-a"));
        let admit = || tenants.identify(&headers).unwrap().admit();
        assert!(admit().is_ok() && admit().is_ok());
        let refusal = admit().err().unwrap();
        assert_eq!(refusal.status, StatusCode::TOO_MANY_REQUESTS);
        assert!(refusal.retry_after_s.is_some_and(|seconds| (1..=30).contains(&seconds)));
    }
}
