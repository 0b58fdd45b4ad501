//! Deferred requests for an endpoint that takes arrays: those that are alike in all but their inputs travel in one call. What is
//! only read leaves once there is a turn for one of them; where tokens are made for each input, as many go as have turns. Each
//! gets its own answer; if the call is refused for what one of them says, only that one fails.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;

use bytes::Bytes;
use offpeak_core::buckets::{self, Size};
use offpeak_core::merge::{Blame, Hunt, Next, blame};
use offpeak_core::outcome::{DidItRun, Ending};
use offpeak_core::words::TenantId;
use offpeak_store::Entry;

use super::{Piece, UNREADABLE, given_back, is_lost, is_refused, of_an_engine, tries_of};
use crate::backends::{PreparedCall, with_time_for};
use crate::costs::Took;
use crate::engine::{Engine, Guest};
use crate::merge::{self, Arrays, Form, Part};
use crate::outcomes::Attempt;
use crate::rescue::{asker, send, send_for, tenant_of};
use crate::turns::{Asker, Turn};

/// Bodies of one call, at most, unless one alone is larger: a call of many small ones gains, and is held in memory as a whole.
const BODIES_MAX: usize = 1 << 20;

/// The largest answer to all of them.
const ANSWER_MAX: usize = 256 << 20;

/// A request, and what can be merged of it.
pub(super) struct Item {
    entry: Entry,
    /// None if it travels alone.
    part: Option<Part>,
}

/// Requests that may travel together, or of which each travels alone, in the order in which they came.
pub(super) struct Queue {
    items: VecDeque<Item>,
    /// So many there were.
    whole: usize,
    /// The widest of their length buckets; none for those that travel alone.
    bucket: Option<usize>,
}

/// Requests that have their turns, one each. Without turns they are given back.
pub(super) struct Load<'a> {
    items: Vec<Item>,
    turns: Vec<Turn<'a>>,
    bucket: Option<usize>,
}

/// How the merging goes.
#[derive(Clone, Copy)]
pub(super) struct Merging<'a> {
    engine: &'a Engine,
    arrays: Arrays,
}

impl<'a> Merging<'a> {
    /// None where each request travels by itself.
    pub(super) fn of(engine: &'a Engine, call: &PreparedCall, endpoint: &str) -> Option<Self> {
        let arrays = engine.arrays(endpoint).filter(|_| !call.rewrites_body())?;
        Some(Self { engine, arrays })
    }

    /// Those that may travel together: of one tenant, since an engine's error may quote what it was sent, and of similar length
    /// if the engine pads. What has failed before travels alone, so that it harms nobody again.
    pub(super) fn queues(self, entries: Vec<Entry>, tenant: impl Fn(&Entry) -> TenantId) -> Vec<Queue> {
        let mut alone = Vec::new();
        let mut kinds: Vec<Vec<Item>> = Vec::new();
        let mut by_kind: HashMap<(TenantId, Form, Bytes), usize> = HashMap::new();
        for entry in entries {
            let part = if entry.attempts == 0 { Part::read(self.arrays, &entry.body) } else { None };
            let Some(Part { kind: (form, rest), .. }) = &part else {
                alone.push(Item { entry, part });
                continue;
            };
            let at = *by_kind.entry((tenant(&entry), *form, rest.clone())).or_insert(kinds.len());
            if at == kinds.len() {
                kinds.push(Vec::new());
            }
            if let Some(kind) = kinds.get_mut(at) {
                kind.push(Item { entry, part });
            }
        }
        let mut queues: Vec<Queue> = kinds.into_iter().flat_map(|kind| self.by_length(kind)).collect();
        if !alone.is_empty() {
            queues.push(Queue::new(alone, None));
        }
        queues
    }

    /// Requests of one kind by their length.
    fn by_length(self, items: Vec<Item>) -> Vec<Queue> {
        let sizes: Vec<Size> = items.iter().map(Item::size).collect();
        let groups = self.engine.buckets.divide(&sizes, self.engine.merge as u64);
        let mut items: Vec<Option<Item>> = items.into_iter().map(Some).collect();
        let mut take = |at: usize| items.get_mut(at).and_then(Option::take);
        let queue = |group: buckets::Group| {
            Queue::new(group.members.into_iter().filter_map(&mut take).collect(), Some(group.bucket))
        };
        groups.into_iter().map(queue).collect()
    }
}

impl Queue {
    fn new(items: Vec<Item>, bucket: Option<usize>) -> Self {
        Self { whole: items.len(), items: items.into(), bucket }
    }

    /// As many of the first as one call holds; none if there are none.
    fn take(&mut self, inputs_max: u64) -> Option<Vec<Item>> {
        let first = self.items.pop_front()?;
        let (mut inputs, mut bytes) = (first.size().inputs, first.entry.body.len());
        let mut items = vec![first];
        while let Some(next) = self.items.front() {
            inputs += next.size().inputs;
            bytes += next.entry.body.len();
            if self.bucket.is_none() || inputs > inputs_max || bytes > BODIES_MAX {
                break;
            }
            items.extend(self.items.pop_front());
        }
        Some(items)
    }
}

impl Item {
    fn size(&self) -> Size {
        self.part.as_ref().map_or_else(|| Size::of_one(u64::from(self.entry.tokens)), Part::size)
    }
}

impl Piece {
    /// Takes what may travel together from a queue, and waits until it may be sent; what may not goes back. None if nothing is
    /// left, or the daemon stops.
    pub(super) async fn load<'a>(&self, merging: Merging<'a>, queues: &mut [Queue]) -> Option<Load<'a>> {
        let lengths = queues.iter().map(|queue| (queue.items.len() as u64, queue.whole as u64));
        let queue = buckets::next(lengths).and_then(|at| queues.get_mut(at))?;
        let bucket = queue.bucket;
        let mut items = queue.take(merging.engine.merge as u64)?;
        let turns = tokio::select! {
            biased;
            () = self.gateway.stopping.cancelled() => return None,
            () = self.leave.cancelled() => {
                items.extend(queue.items.drain(..));
                return Some(Load { items, turns: Vec::new(), bucket });
            }
            turns = self.turns(merging, &items) => turns,
        };
        for item in items.drain(turns.len().min(items.len())..).rev() {
            queue.items.push_front(item);
        }
        Some(Load { items, turns, bucket })
    }

    /// Waits for turns for the first of these, and as many of the others as may travel with it.
    async fn turns<'a>(&self, merging: Merging<'a>, items: &[Item]) -> Vec<Turn<'a>> {
        let Some((first, more)) = items.split_first() else { return Vec::new() };
        let (gateway, turns) = (&self.gateway, &merging.engine.turns);
        // They are one tenant's.
        let tenant = tenant_of(gateway, &first.entry);
        let first = asker(gateway, &tenant, &first.entry);
        if merging.arrays.makes_tokens() {
            let mut taken = vec![turns.take(&first).await];
            taken
                .extend(more.iter().map_while(|item| turns.take_free(&asker(gateway, &tenant, &item.entry))));
            return taken;
        }
        // A call of inputs that are only read is over soon, and many small ones are slower by far.
        let tokens = items.iter().map(|item| u64::from(item.entry.tokens)).sum();
        turns.take_together(&Asker { tokens, ..first }, more.len() as u64).await
    }

    /// Runs requests that have their turns until each has an ending, and gives the turns back.
    pub(super) async fn run_load(
        &self,
        call: &PreparedCall,
        merging: Merging<'_>,
        load: Load<'_>,
    ) -> Vec<Attempt> {
        let Load { items, turns, bucket } = load;
        if turns.is_empty() {
            return items.iter().map(|item| given_back(&item.entry)).collect();
        }
        let places: Vec<_> = items.iter().map(|item| item.entry.place).collect();
        let Some(to_be_sent) = self.to_be_sent(&places).await else { return Vec::new() };
        let wanted: Vec<Item> = items
            .into_iter()
            .zip(to_be_sent)
            .filter_map(|(item, is_wanted)| is_wanted.then_some(item))
            .collect();
        let mut settled = Vec::new();
        let (mut was_too_much, mut retry_after) = (false, None);
        let mut hunt = Hunt::new(wanted.len());
        while let Some(part) = hunt.part() {
            let Some((first, more)) = wanted.get(part.clone()).and_then(<[Item]>::split_first) else { break };
            if part.len() < wanted.len() {
                // Those of the refused call that were not sent again did not run.
                if self.gateway.stopping.is_cancelled() {
                    break;
                }
                if self.leave.is_cancelled() {
                    hunt.ended(Blame::Shared);
                    settled.push((part, given_back(&first.entry)));
                    continue;
                }
            }
            if let Some(bucket) = bucket {
                let fill = merging.engine.fill(bucket, std::iter::once(first).chain(more).map(Item::size));
                self.gateway.metrics.filled(self.backend.id.as_str(), &fill);
            }
            let ended = self.send_together(call, merging, (first, more)).await;
            let found = match ended.ending {
                Ending::Answered { status } => blame(status),
                Ending::Failed { .. } => Blame::Shared,
            };
            let is_too_much = is_refused(&ended.ending);
            was_too_much |= is_too_much;
            retry_after = retry_after.max(ended.retry_after.filter(|_| is_too_much));
            if is_too_much || is_lost(&ended.ending) {
                merging.engine.doubt();
            }
            match hunt.ended(found) {
                Next::Halved => {
                    tracing::debug!(batch = %self.record.id, requests = part.len(), "a merged call was refused and is halved");
                }
                Next::Settled(part) => settled.push((part, ended)),
            }
        }
        // Before the answers are taken apart, which takes time.
        for turn in turns {
            turn.done(was_too_much, retry_after);
        }
        settled
            .into_iter()
            .flat_map(|(part, ended)| each_its_own(merging.arrays, &wanted, part, ended))
            .collect()
    }

    /// One call for all of them; its ending is that of the first.
    async fn send_together(
        &self,
        call: &PreparedCall,
        merging: Merging<'_>,
        (first, more): (&Item, &[Item]),
    ) -> Attempt {
        let (gateway, backend) = (&self.gateway, &self.backend);
        let items = || std::iter::once(first).chain(more);
        let guests: Vec<_> = items().map(|_| merging.engine.presence.admit()).collect();
        let parts: Vec<&Part> = items().filter_map(|item| item.part.as_ref()).collect();
        let merged = if more.is_empty() { None } else { merge::body(merging.arrays, &parts).ok() };
        let ended = match merged {
            Some(body) => {
                gateway.metrics.merged(backend.id.as_str(), parts.len());
                let entry = Entry { body, ..first.entry.clone() };
                send_for(gateway, backend, call, &self.record, &entry, ANSWER_MAX).await
            }
            None => send(gateway, backend, call, &self.record, &first.entry).await,
        };
        let ended = of_an_engine(ended);
        let together = guests.first().map_or(1, Guest::together);
        let took = Took { together: u32::try_from(together).unwrap_or(u32::MAX), ..ended.took };
        let tries = tries_of(&ended);
        Attempt { tries, took, ..ended }
    }
}

/// The ending of a call becomes those of its requests.
fn each_its_own(arrays: Arrays, all: &[Item], part: Range<usize>, ended: Attempt) -> Vec<Attempt> {
    let items = all.get(part).unwrap_or_default();
    if let [one] = items {
        return vec![Attempt { place: one.entry.place, ..ended }];
    }
    let shared = |item: &Item| Attempt { place: item.entry.place, ..ended.clone() };
    if !ended.ending.is_success() {
        return items.iter().map(shared).collect();
    }
    let parts: Vec<&Part> = items.iter().filter_map(|item| item.part.as_ref()).collect();
    let split = || merge::split(arrays, &parts, &ended.body);
    if let Some(bodies) = with_time_for(ended.body.len(), split) {
        return items.iter().zip(bodies).map(|(item, body)| Attempt { body, ..shared(item) }).collect();
    }
    let message =
        "the engine answered a call with many inputs, but not each of them; each is sent by itself next";
    let ending = Ending::Failed { ran: DidItRun::Unknown, code: UNREADABLE.into(), message: message.into() };
    items.iter().map(|item| Attempt { ending: ending.clone(), body: Bytes::new(), ..shared(item) }).collect()
}
