//! What every request needs: the configuration made ready, and handles to the store, the plugins and the lanes.

use std::sync::Arc;

use offpeak_core::retry::RetryPolicy;
use offpeak_host::RouterPlugin;
use offpeak_host::values::router::BodyNeed;
use offpeak_store::Store;
use tokio_util::sync::CancellationToken;

use crate::backends::Backends;
use crate::clock::{Chance, Clock, RequestIds};
use crate::config::OnRouterFailure;
use crate::documents::Numbers;
use crate::held::Held;
use crate::job_book::JobBook;
use crate::lane_book::LaneBook;
use crate::spool::Spool;
use crate::telemetry::Metrics;
use crate::tenant::Tenants;

/// Shared by all requests and batches.
pub struct Gateway {
    /// The wall clock.
    pub clock: Clock,
    /// All randomness.
    pub chance: Chance,
    /// Names for requests that are not deferred.
    pub ids: RequestIds,
    /// Who may call.
    pub tenants: Tenants,
    /// Where requests go.
    pub backends: Arc<Backends>,
    /// Who decides where.
    pub router: Router,
    /// What is kept.
    pub store: Store,
    /// What waits.
    pub lanes: LaneBook,
    /// Who waits for it.
    pub held: Arc<Held>,
    /// Jobs that have not ended.
    pub jobs: JobBook,
    /// Files that clients uploaded.
    pub spool: Spool,
    /// Names for files and jobs.
    pub numbers: Numbers,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What a failed attempt means.
    pub retry: RetryPolicy,
    /// The largest request body.
    pub max_body: usize,
    /// How clients reach the data plane, for links; links are relative without it.
    pub public_url: Option<String>,
    /// How long results are kept, and with them idempotency keys.
    pub keep_results: offpeak_core::words::Millis,
    /// The daemon is stopping.
    pub stopping: CancellationToken,
    /// Batches and rescues under way.
    pub tasks: tokio_util::task::TaskTracker,
}

/// The router plugin, and the one that stands in for it.
pub struct Router {
    /// The configured one.
    pub configured: RouterPlugin,
    /// The bundled one, if the configured one is another: it decides where that one passes.
    pub bundled: Option<RouterPlugin>,
    /// What happens when the configured one fails.
    pub on_failure: OnRouterFailure,
}

impl Router {
    /// Some router looks at bodies.
    pub fn sees_bodies(&self) -> bool {
        let sees = |plugin: &RouterPlugin| !matches!(plugin.description().body, BodyNeed::None);
        sees(&self.configured) || self.bundled.as_ref().is_some_and(sees)
    }
}
