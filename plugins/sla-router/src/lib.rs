//! The default router.

use offpeak_plugin::router::{BodyNeed, Candidate, Decision, Description, Envelope, Router};

struct SlaRouter;

impl Router for SlaRouter {
    fn describe() -> Description {
        Description {
            name: "sla-router".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            body: BodyNeed::None,
            headers: Vec::new(),
        }
    }

    fn route(_envelope: Envelope, _candidates: Vec<Candidate>) -> Decision {
        Decision::Pass
    }
}

offpeak_plugin::export_router!(SlaRouter);
