//! What the daemon has on record about a request: its attempts, and whether they ran. A second run at the provider is right
//! only if it stands there.

use bytes::Bytes;
use offpeak::costs::Entry;
use offpeak::costs::ledger::{self, Of};
use offpeak::delivery::ID_PREFIX;
use offpeak::documents::{self, Job};
use offpeak::label::Label;
use offpeak_core::extent::Range;
use offpeak_core::job::WINDOW_OVER;
use offpeak_core::outcome::{DidItRun, Ending};
use offpeak_core::words::{Place, Seq, TenantId, Timestamp};
use offpeak_store::{Kind, Store, StoreError};

use crate::api::Api;

/// Bytes of answers that are read at once.
const CHUNK_BYTES: usize = 1 << 20;

/// A request that has its outcome, as the store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// Attempts, as the caller is told.
    pub(crate) attempts: u32,
    /// How the last one ended.
    pub(crate) ending: Ending,
    /// Where its attempts stood, and when each was over; the last one ended it.
    places: Vec<(Place, Timestamp)>,
    /// Its name in its job, if it belongs to one.
    label: Option<String>,
}

impl Record {
    /// Of a request by the name that its caller knows. None if its outcome is not kept any more.
    pub(crate) async fn of(store: &Store, id: &str) -> Result<Option<Self>, StoreError> {
        match id.strip_prefix(ID_PREFIX).and_then(|place| place.parse().ok()) {
            Some(origin) => Self::read(store, origin).await,
            None => Ok(None),
        }
    }

    async fn read(store: &Store, origin: Place) -> Result<Option<Self>, StoreError> {
        let range = Range { lane: origin.lane, from: origin.seq, to: Seq(origin.seq.0 + 1) };
        let chunk = store.finished(vec![range], CHUNK_BYTES).await?;
        Ok(chunk.finished.into_iter().next().map(|finished| {
            let mut places = chunk.retried;
            places.push((finished.outcome.place, finished.outcome.finished_at));
            let label = Label::decode(&finished.request_meta).map(|label| label.custom_id);
            let outcome = finished.outcome;
            Self { attempts: outcome.attempts.into(), ending: outcome.ending, places, label }
        }))
    }

    /// Of all requests of a job, by its clients' names for them. None if there is no such job.
    pub(crate) async fn of_job(
        store: &Store,
        tenant: &str,
        api: Api,
        id: &str,
    ) -> Result<Option<Vec<(String, Self)>>, documents::DocumentError> {
        let prefix = match api {
            Api::Messages => documents::job::Api::Anthropic.prefix(),
            Api::Chat | Api::Responses => documents::job::Api::OpenAi.prefix(),
        };
        let Some(number) = documents::number(prefix, id) else { return Ok(None) };
        let Some(job) = documents::get::<Job>(store, &TenantId::from(tenant), number).await? else {
            return Ok(None);
        };
        let mut all = Vec::new();
        for range in &job.ranges {
            for seq in range.from.0..range.to.0 {
                let origin = Place { lane: range.lane, seq: Seq(seq) };
                let record = Self::read(store, origin).await?;
                all.extend(record.and_then(|record| Some((record.label.clone()?, record))));
            }
        }
        Ok(Some(all))
    }

    /// Its job's time was over before it had an answer.
    pub(crate) fn is_expired(&self) -> bool {
        matches!(&self.ending, Ending::Failed { code, .. } if code == WINDOW_OVER)
    }

    /// How many of its attempts ran, or may have, by the ledger: one entry each, and one for an answer that came when the
    /// request had its outcome from elsewhere.
    pub(crate) async fn runs(&self, store: &Store) -> Result<u32, StoreError> {
        let last = self.places.last().map(|(place, at)| ledger::key(*at, Of::Late(*place)));
        let each = self.places.iter().map(|(place, at)| ledger::key(*at, Of::Attempt(*place)));
        let keys: Vec<Bytes> = each.chain(last).collect();
        let entries = store.documents_at(Kind::Ledger, keys).await?;
        // Who answers with a 4xx has not run it.
        let may_have_run = |entry: &Entry| match entry.ran {
            DidItRun::NotSent | DidItRun::Refused => false,
            DidItRun::Ran => !(400..500).contains(&entry.status),
            DidItRun::Unknown => true,
        };
        let entries = entries.into_iter().flatten().filter_map(|value| Entry::read(&value));
        Ok(u32::try_from(entries.filter(may_have_run).count()).unwrap_or(u32::MAX))
    }
}
