//! Keys of tenants: made, listed, rotated, revoked.

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use offpeak_core::words::{Millis, Timestamp};
use serde::{Deserialize, Serialize};

use crate::body::ReplyBody;
use crate::config::{DeferredLimits, Limits, QueueLimits};
use crate::defer::store_failed;
use crate::gateway::Gateway;
use crate::reply::{Refusal, json_of};
use crate::tenant::KeyError;
use crate::tenant::keys::{NewKey, Record, Scopes};

/// Where keys are.
pub const PATH: &str = "/admin/v1/keys";

/// How long a rotated key is accepted beside its successor, if nothing is said.
const OVERLAP: Millis = Millis::from_hours(24);

/// A key as operators see it.
#[derive(Serialize)]
struct Shown {
    id: String,
    tenant: String,
    label: String,
    created_at_ms: u64,
    expires_at_ms: Option<u64>,
    revoked_at_ms: Option<u64>,
    replaced_by: Option<String>,
    accepted: bool,
    scopes: Scopes,
    limits: Limits,
    deferred: DeferredLimits,
    queue: QueueLimits,
    /// The key itself, only in the answer that makes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Create {
    tenant: String,
    #[serde(default)]
    label: String,
    #[serde(default)]
    expires_in_s: Option<u64>,
    #[serde(default)]
    scopes: Scopes,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    deferred: DeferredLimits,
    #[serde(default)]
    queue: QueueLimits,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rotate {
    #[serde(default)]
    overlap_s: Option<u64>,
}

#[derive(Serialize)]
struct List {
    data: Vec<Shown>,
}

/// Answers a call about keys.
pub async fn answer(
    gateway: &Gateway,
    method: &Method,
    path: &str,
    body: &Bytes,
) -> Result<Response<ReplyBody>, Refusal> {
    let now = gateway.clock.now();
    let (tenants, store) = (&gateway.tenants, &gateway.store);
    let rest = path.strip_prefix(PATH).unwrap_or_default().trim_start_matches('/');
    let id = rest.strip_suffix("/rotate").unwrap_or(rest);
    match (method, rest.is_empty(), rest.ends_with("/rotate")) {
        (&Method::GET, true, _) => {
            let data = tenants.records().into_iter().map(|record| shown(record, None, now)).collect();
            Ok(json_of(StatusCode::OK, &List { data }))
        }
        (&Method::POST, true, _) => {
            let create: Create = read(body)?;
            let new = NewKey {
                tenant: create.tenant,
                label: create.label,
                expires_at: create.expires_in_s.map(|seconds| now.after(Millis::from_secs(seconds))),
                scopes: create.scopes,
                limits: create.limits,
                deferred: create.deferred,
                queue: create.queue,
            };
            let (record, key) =
                tenants.create((store, &gateway.chance), new, now).await.map_err(|error| refused(&error))?;
            tracing::info!(id = record.id, tenant = %record.tenant, "a key was created");
            Ok(json_of(StatusCode::CREATED, &shown(record, Some(key), now)))
        }
        (&Method::POST, false, true) => {
            let rotate = if body.is_empty() { Rotate::default() } else { read(body)? };
            let until = now.after(rotate.overlap_s.map_or(OVERLAP, Millis::from_secs));
            let (record, key) = tenants
                .rotate((store, &gateway.chance), id, until, now)
                .await
                .map_err(|error| refused(&error))?;
            tracing::info!(old = id, id = record.id, tenant = %record.tenant, "a key was rotated");
            Ok(json_of(StatusCode::CREATED, &shown(record, Some(key), now)))
        }
        (&Method::DELETE, false, false) => {
            let record = tenants.revoke(store, id, now).await.map_err(|error| refused(&error))?;
            tracing::info!(id, tenant = %record.tenant, "a key was revoked");
            Ok(json_of(StatusCode::OK, &shown(record, None, now)))
        }
        (_, is_list, is_rotate) => {
            let message = "GET and POST /admin/v1/keys, POST /admin/v1/keys/{id}/rotate, and DELETE \
                           /admin/v1/keys/{id} are what there is.";
            let allow = match (is_list, is_rotate) {
                (true, _) => "GET, POST",
                (false, true) => "POST",
                (false, false) => "DELETE",
            };
            Err(Refusal::method_not_allowed(message, allow))
        }
    }
}

fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| {
        Refusal::bad_request("invalid_json", format!("The body is not what this takes: {error}."))
    })
}

fn refused(error: &KeyError) -> Refusal {
    match error {
        KeyError::Store(error) => store_failed(error),
        KeyError::NoTenant(_) => Refusal::bad_request("unknown_tenant", error.to_string()),
        KeyError::NoKey(_) => Refusal::not_found("unknown_key", error.to_string()),
        KeyError::Over(_) => Refusal::new(StatusCode::CONFLICT, "key_is_over", error.to_string()),
    }
}

fn shown(record: Record, key: Option<String>, now: Timestamp) -> Shown {
    Shown {
        accepted: record.is_accepted(now),
        id: record.id,
        tenant: record.tenant.to_string(),
        label: record.label,
        created_at_ms: record.created_at.0,
        expires_at_ms: record.expires_at.map(|at| at.0),
        revoked_at_ms: record.revoked_at.map(|at| at.0),
        replaced_by: record.replaced_by,
        scopes: record.scopes,
        limits: record.limits,
        deferred: record.deferred,
        queue: record.queue,
        key,
    }
}
