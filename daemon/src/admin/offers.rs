//! Offers that providers refused to sell, and the way back.

use http::{Response, StatusCode};
use offpeak_core::turnaround::Way;
use serde::Serialize;

use super::List;
use crate::body::ReplyBody;
use crate::gateway::Gateway;
use crate::lost_offers::Loss;
use crate::reply::{Refusal, json_of};

#[derive(Serialize)]
pub(super) struct LostRow {
    backend: String,
    offer: String,
    model: String,
    lost_for_ms: u64,
    tried_again_in_ms: u64,
    why: String,
}

/// What providers refused to sell.
pub(super) fn lost(gateway: &Gateway) -> List<LostRow> {
    let now = gateway.clock.now();
    let row = |(way, loss): (Way, Loss)| LostRow {
        backend: way.backend.to_string(),
        offer: way.offer.to_string(),
        model: way.model.to_string(),
        lost_for_ms: now.since(loss.at).0,
        tried_again_in_ms: loss.until.since(now).0,
        why: loss.why,
    };
    List { data: gateway.backends.lost.all().into_iter().map(row).collect() }
}

/// Puts offers back on the ladder: all that fit what the query names.
pub(super) fn restore(gateway: &Gateway, query: &str) -> Result<Response<ReplyBody>, Refusal> {
    let mut wanted: [Option<String>; 3] = [None, None, None];
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let place = match &*name {
            "backend" => &mut wanted[0],
            "offer" => &mut wanted[1],
            "model" => &mut wanted[2],
            _ => {
                let message = format!("'{name}' is not one of backend, offer and model.");
                return Err(Refusal::bad_request("unknown_parameter", message));
            }
        };
        *place = Some(value.into_owned());
    }
    let fits = |way: &Way| {
        let names = [way.backend.as_str(), way.offer.as_str(), way.model.as_str()];
        wanted.iter().zip(names).all(|(wanted, name)| wanted.as_deref().is_none_or(|wanted| wanted == name))
    };
    let lost = gateway.backends.lost.all();
    let restored = lost.iter().filter(|(way, _)| fits(way) && gateway.restore(way)).count();
    if restored == 0 {
        let message = "No such offer is lost. GET /admin/v1/offers lists those that are.";
        return Err(Refusal::not_found("offer_not_lost", message));
    }
    Ok(json_of(StatusCode::OK, &Restored { restored }))
}

#[derive(Serialize)]
struct Restored {
    restored: usize,
}
