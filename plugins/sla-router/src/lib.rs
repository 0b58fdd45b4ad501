//! The default router: an SLA is a deadline, and the cheapest offer that keeps it is bought.
//!
//! What it does is in [`choose`], a pure function; this file is the border to the daemon.

mod choose;
mod config;

pub use choose::{Chosen, choose};
pub use config::{Config, Safety, Trust};

use offpeak_plugin::{
    Configured,
    router::{BodyNeed, Candidate, Choice, Decision, Description, Envelope, Rejection, Router},
};

static CONFIG: Configured<Config> = Configured::new();

struct SlaRouter;

impl Router for SlaRouter {
    fn describe() -> Description {
        CONFIG.get(); // a wrong configuration is refused when the plugin is loaded
        Description {
            name: "sla-router".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            body: BodyNeed::None,
            headers: Vec::new(),
        }
    }

    fn route(envelope: Envelope, candidates: Vec<Candidate>) -> Decision {
        match choose(&envelope, &candidates, CONFIG.get()) {
            Some(Chosen { candidate, offer }) => Decision::Choose(Choice {
                backend: candidate.backend.clone(),
                offer: offer.name.clone(),
                within_ms: None,
                lane: String::new(),
            }),
            None => Decision::Reject(no_realtime_offer(&envelope)),
        }
    }
}

/// The one thing that cannot be had: an answer now, from backends that only sell answers later.
fn no_realtime_offer(envelope: &Envelope) -> Rejection {
    Rejection {
        status: 400,
        code: "no_realtime_offer".to_owned(),
        message: format!(
            "The model `{}` is not sold in real time at {}. Send the request without `stream` and with a deadline, such \
             as `x-offpeak-sla: 24h`.",
            envelope.model, envelope.endpoint
        ),
        retry_after_s: None,
    }
}

offpeak_plugin::export_router!(SlaRouter);

#[cfg(test)]
mod tests {
    use offpeak_plugin::{
        Mode, Offer,
        router::{Sla, Tag},
    };

    use super::*;

    #[test]
    fn a_stream_that_nobody_sells_is_refused_with_advice() {
        let batch =
            Offer { name: "batch".into(), mode: Mode::Batch, price_permille: 500, window_ms: 1, usual_ms: 1 };
        let candidate = Candidate { backend: "a".into(), healthy: true, offers: vec![batch] };
        let envelope = Envelope {
            tenant: "t".into(),
            endpoint: "/v1/chat/completions".into(),
            model: "m".into(),
            sla: Sla::Within(86_400_000),
            tag: Tag::Default,
            stream: true,
            body_bytes: 0,
            input_tokens: 0,
            max_output_tokens: None,
            headers: vec![],
            body: None,
        };
        let refused = SlaRouter::route(envelope.clone(), vec![candidate.clone()]);
        assert!(matches!(refused, Decision::Reject(r) if r.status == 400 && r.code == "no_realtime_offer"));

        let deferred = SlaRouter::route(Envelope { stream: false, ..envelope }, vec![candidate]);
        assert!(matches!(deferred, Decision::Choose(c) if c.backend == "a" && c.offer == "batch"));
    }
}
