//! Tickets: what became of a deferred request.

use http::{Method, Response, StatusCode};
use offpeak_core::words::Place;
use offpeak_store::Standing;
use serde::Serialize;

use crate::body::ReplyBody;
use crate::defer::{self, store_failed};
use crate::delivery::{self, ID_PREFIX, PATH};
use crate::gateway::Gateway;
use crate::reply::{self, Refusal};
use crate::sent;
use crate::tenant::Account;

/// Answers a call about a ticket. What belongs to another tenant does not exist.
pub async fn answer(
    gateway: &Gateway,
    account: &Account,
    method: &Method,
    id: &str,
) -> Result<Response<ReplyBody>, Refusal> {
    let origin = find(gateway, account, id)?;
    let standing = gateway.store.outcome(origin).await.map_err(|error| store_failed(&error))?;
    let standing = standing.ok_or_else(|| unknown(id))?;
    match (method, standing) {
        (&Method::GET, Standing::Final(outcome)) => delivery::final_answer(&gateway.store, origin, &outcome)
            .await
            .map_err(|error| store_failed(&error)),
        (&Method::GET, Standing::Waiting { .. }) => {
            let standing = defer::standing_of(gateway, origin).await?.ok_or_else(|| unknown(id))?;
            Ok(delivery::ticket(origin, standing, gateway.public_url.as_deref()))
        }
        (&Method::DELETE, Standing::Waiting { .. }) => cancel(gateway, origin).await,
        (&Method::DELETE, Standing::Final(_)) => {
            let message = "The request is finished already: answered, failed or cancelled. GET says how, until its retention is over.";
            Err(Refusal::new(StatusCode::CONFLICT, "already_finished", message))
        }
        _ => {
            let message = format!("{PATH}{{id}} takes GET and DELETE, not {method}.");
            Err(Refusal::method_not_allowed(message, "GET, DELETE"))
        }
    }
}

fn find(gateway: &Gateway, account: &Account, id: &str) -> Result<Place, Refusal> {
    let place: Place =
        id.strip_prefix(ID_PREFIX).and_then(|id| id.parse().ok()).ok_or_else(|| unknown(id))?;
    let key = gateway.store.lane_key(place.lane).ok_or_else(|| unknown(id))?;
    if key.tenant == account.id { Ok(place) } else { Err(unknown(id)) }
}

fn unknown(id: &str) -> Refusal {
    let id: String = id.chars().take(60).collect();
    let message = format!(
        "There is no deferred request '{id}'. Ids come in the x-offpeak-request-id header and look like dfr-1-2a; results \
         are dropped when their retention is over."
    );
    Refusal::not_found("deferred_not_found", message)
}

#[derive(Serialize)]
struct Farewell<'a> {
    id: &'a str,
    object: &'static str,
    cancelled: bool,
}

async fn cancel(gateway: &Gateway, origin: Place) -> Result<Response<ReplyBody>, Refusal> {
    let now = gateway.clock.now();
    sent::cancel(&gateway.store, origin, now).await.map_err(|error| store_failed(&error))?;
    gateway.jobs.finished([(origin, false)]);
    gateway.held.tell([origin]);
    let id = delivery::request_id(origin);
    let farewell = Farewell { id: &id, object: "deferred", cancelled: true };
    Ok(reply::json_of(StatusCode::OK, &farewell))
}
