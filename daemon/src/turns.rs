//! Turns at a backend's real-time API for deferred work: as many at once as the provider bears, tenants by their shares,
//! each one's earliest deadline first, and none of what is real-time traffic's of a minute's quota.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use offpeak_core::fair::Shares;
use offpeak_core::pace::{Pace, Turn as Paced};
use offpeak_core::reserve::{LAST_MINUTE, Reserve};
use offpeak_core::retry::LAST_CHANCE;
use offpeak_core::words::{Millis, ModelId, TenantId, Timestamp};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::clock::Clock;

/// Who waits looks again after this time at the latest.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The turns of one backend.
pub struct Turns {
    clock: Clock,
    queue: Mutex<Queue>,
}

struct Queue {
    pace: Pace,
    shares: Shares,
    waiting: BTreeMap<TenantId, BTreeMap<(Timestamp, u64), Waiter>>,
    next: u64,
    /// Told when there is something under way again.
    begun: Arc<Notify>,
    /// Turns under way that were given beside another one, to travel in its call.
    along: u64,
    /// What the provider has told of its limits, by model.
    left: BTreeMap<ModelId, Left>,
    /// In the order in which they were sent.
    recallable: BTreeMap<u64, Recallable>,
}

/// Of each tenant one place in the queue.
type Firsts = BTreeMap<TenantId, (Timestamp, u64)>;

/// What is left of a model's limits, as far as the provider tells.
#[derive(Default)]
struct Left {
    requests: Option<Reserve>,
    tokens: Option<Reserve>,
}

/// What a provider tells of one of its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// What the account may have in a minute.
    pub a_minute: u64,
    /// What is left of it.
    pub left: u64,
}

struct Waiter {
    model: Option<ModelId>,
    tokens: u64,
    weight: u32,
    /// Turns that it takes beside the first, where there are so many.
    along: u64,
    /// How many it got.
    granted: oneshot::Sender<u64>,
}

/// Leave to make one call. Dropped, it counts as a call that went well.
pub struct Turn<'a> {
    turns: &'a Turns,
    is_told: bool,
    /// It was given beside another one.
    is_along: bool,
    /// Among those that can be taken back, if it is one of them.
    number: Option<u64>,
}

/// A call under way that can be taken back.
struct Recallable {
    deadline: Timestamp,
    recall: oneshot::Sender<()>,
}

/// Who wants a turn.
pub struct Asker<'a> {
    /// The model that is asked, where its provider may tell of limits.
    pub model: Option<&'a ModelId>,
    /// The tenant.
    pub tenant: &'a TenantId,
    /// Its share.
    pub weight: u32,
    /// When the answer is due.
    pub deadline: Timestamp,
    /// What it counts for.
    pub tokens: u64,
}

impl Turns {
    /// At most so many at once.
    pub fn new(clock: Clock, most: usize) -> Self {
        let queue = Queue {
            pace: Pace::new(most as u64),
            shares: Shares::default(),
            waiting: BTreeMap::new(),
            next: 0,
            begun: Arc::default(),
            along: 0,
            left: BTreeMap::new(),
            recallable: BTreeMap::new(),
        };
        Self { clock, queue: Mutex::new(queue) }
    }

    /// At most so many at once, and none before [`Self::limit`] says how many.
    pub fn closed(clock: Clock, most: usize) -> Self {
        let turns = Self::new(clock, most);
        {
            let mut queue = turns.queue.lock();
            queue.pace = queue.pace.under(0);
        }
        turns
    }

    /// No more than so many at once from now on.
    pub fn limit(&self, ceiling: u64) {
        let mut queue = self.queue.lock();
        queue.pace.limit(ceiling);
        queue.grant(self.clock.now());
    }

    /// The provider tells with an answer what is left of a model's limits, to whomever it was.
    pub fn told(&self, model: &ModelId, requests: Option<Told>, tokens: Option<Told>) {
        let now = self.clock.now();
        let mut queue = self.queue.lock();
        // Of calls under way it may not know yet.
        let under_way = queue.pace.under_way();
        if !queue.left.contains_key(model) {
            queue.left.insert(model.clone(), Left::default());
        }
        let Some(left) = queue.left.get_mut(model) else { return };
        let reserve =
            |told: Told, unknown| Reserve::told(told.a_minute, told.left.saturating_sub(unknown), now);
        left.requests = requests.map(|told| reserve(told, under_way)).or(left.requests);
        left.tokens = tokens.map(|told| reserve(told, 0)).or(left.tokens);
    }

    /// Takes so many calls back, those first that were sent last: the least is lost. What is due soon goes on. Says how many
    /// were told.
    pub fn take_back(&self, count: u64) -> u64 {
        let now = self.clock.now();
        let mut queue = self.queue.lock();
        let may_wait = |recallable: &Recallable| recallable.deadline.since(now) > LAST_MINUTE;
        let numbers: Vec<u64> = queue
            .recallable
            .iter()
            .rev()
            .filter(|(_, recallable)| may_wait(recallable))
            .take(usize::try_from(count).unwrap_or(usize::MAX))
            .map(|(number, _)| *number)
            .collect();
        let recalled = numbers.iter().filter_map(|number| queue.recallable.remove(number));
        recalled.map(|recallable| u64::from(recallable.recall.send(()).is_ok())).sum()
    }

    /// Calls under way.
    pub fn under_way(&self) -> u64 {
        self.queue.lock().pace.under_way()
    }

    /// Waits until something is under way after a time in which nothing was. Once it was, this ends at once the next time.
    pub async fn begun(&self) {
        let begun = self.queue.lock().begun.clone();
        begun.notified().await;
    }

    /// How many travel in one of the calls under way, on average and rounded up; 1 if there are none.
    pub fn in_a_call(&self) -> u64 {
        let queue = self.queue.lock();
        let under_way = queue.pace.under_way();
        under_way.div_ceil(under_way.saturating_sub(queue.along).max(1)).max(1)
    }

    /// Waits for a turn.
    pub async fn take(&self, asker: &Asker<'_>) -> Turn<'_> {
        self.granted(asker, 0).await;
        Turn::of(self, false)
    }

    /// Waits for a turn, and takes up to so many more with it: for what travels in one call and costs little beside it. They may
    /// be more than were free, which is made up for before the next call. Never empty.
    pub async fn take_together(&self, asker: &Asker<'_>, along: u64) -> Vec<Turn<'_>> {
        let given = self.granted(asker, along).await;
        (0..given).map(|turn| Turn::of(self, turn > 0)).collect()
    }

    /// Waits for a turn, and says how many it got.
    async fn granted(&self, asker: &Asker<'_>, along: u64) -> u64 {
        let mut place = InQueue { turns: self, granted: self.queue.lock().enter(asker, along) };
        loop {
            let pause = self.grant();
            tokio::select! {
                // An error means that the queue is gone, and it is not: it is borrowed here.
                given = &mut place.granted => return given.unwrap_or(1),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// A turn, if there is one that nobody waits for.
    pub fn take_free(&self, asker: &Asker<'_>) -> Option<Turn<'_>> {
        let mut queue = self.queue.lock();
        let now = self.clock.now();
        queue.grant(now);
        if !queue.waiting.is_empty() || queue.pace.ask(now) != Paced::Now {
            return None;
        }
        queue.shares.give(asker.tenant, asker.tokens, asker.weight);
        queue.tell_begun(1);
        drop(queue);
        Some(Turn::of(self, false))
    }

    /// How many may be under way at once, as things stand.
    pub fn at_once(&self) -> u64 {
        self.queue.lock().pace.at_once()
    }

    /// Gives turns to those who may have them, and says when to look again.
    fn grant(&self) -> Duration {
        self.queue.lock().grant(self.clock.now())
    }
}

impl Queue {
    fn enter(&mut self, asker: &Asker<'_>, along: u64) -> oneshot::Receiver<u64> {
        let (granted, receiver) = oneshot::channel();
        let Asker { model, tenant, weight, deadline, tokens } = asker;
        let waiter = Waiter { model: model.cloned(), tokens: *tokens, weight: *weight, along, granted };
        self.next += 1;
        self.waiting.entry((*tenant).clone()).or_default().insert((*deadline, self.next), waiter);
        receiver
    }

    fn grant(&mut self, now: Timestamp) -> Duration {
        // Who does not wait any longer is passed over.
        for waiters in self.waiting.values_mut() {
            waiters.retain(|_, waiter| !waiter.granted.is_closed());
        }
        self.waiting.retain(|_, waiters| !waiters.is_empty());
        loop {
            let (first, free_at) = self.first_of_each(now);
            if first.is_empty() {
                return Duration::from(free_at.since(now)).min(LOOK_EVERY);
            }
            let (asked, first) = self.ask(first, now);
            match asked {
                Paced::Now => {}
                Paced::At(at) => return Duration::from(at.since(now)).min(LOOK_EVERY),
                Paced::AfterAnother => return LOOK_EVERY,
            }
            for _ in 0..self.grant_one(&first) {
                self.pace.done(false, None, now);
            }
        }
    }

    /// Asks for a turn, and says for whom: in a pause it is for those alone who would be too late after it.
    fn ask(&mut self, mut first: Firsts, now: Timestamp) -> (Paced, Firsts) {
        let asked = self.pace.ask(now);
        if !matches!(asked, Paced::At(_)) {
            return (asked, first);
        }
        first.retain(|_, (deadline, _)| deadline.since(now) <= LAST_CHANCE);
        let asked = if first.is_empty() { asked } else { self.pace.ask_at_last() };
        (asked, first)
    }

    /// Of each tenant the first one that may go as far as its model's limits are concerned; and when the next one may.
    fn first_of_each(&self, now: Timestamp) -> (Firsts, Timestamp) {
        let mut soonest = Timestamp::NEVER;
        let mut may_go = |(deadline, _): &(Timestamp, u64), waiter: &Waiter| {
            if deadline.since(now) < LAST_MINUTE {
                return true;
            }
            let left = waiter.model.as_ref().and_then(|model| self.left.get(model));
            let free_at = left.map_or(now, |left| left.free_at(now));
            soonest = soonest.min(free_at).min(deadline.before(LAST_MINUTE));
            free_at <= now
        };
        let first = self.waiting.iter().filter_map(|(tenant, waiters)| {
            let (place, _) = waiters.iter().find(|(place, waiter)| may_go(place, waiter))?;
            Some((tenant.clone(), *place))
        });
        (first.collect(), soonest)
    }

    /// So many turns were given.
    fn tell_begun(&self, given: u64) {
        if self.pace.under_way() == given {
            self.begun.notify_one();
        }
    }

    /// A turn is given back, for whoever comes next.
    fn done(&mut self, turn: &Turn<'_>, too_much: bool, retry_after: Option<Millis>, now: Timestamp) {
        if let Some(number) = turn.number {
            self.recallable.remove(&number);
        }
        self.along = self.along.saturating_sub(u64::from(turn.is_along));
        self.pace.done(too_much, retry_after, now);
        self.grant(now);
    }

    /// Gives a turn, and those beside it. Returns how many nobody took.
    fn grant_one(&mut self, first: &Firsts) -> u64 {
        let Some(tenant) = self.shares.next(first.keys()).cloned() else { return 1 };
        let Some(waiters) = self.waiting.get_mut(&tenant) else { return 1 };
        let Some(waiter) = first.get(&tenant).and_then(|place| waiters.remove(place)) else { return 1 };
        if waiters.is_empty() {
            self.waiting.remove(&tenant);
        }
        self.shares.give(&tenant, waiter.tokens, waiter.weight);
        if let Some(left) = waiter.model.and_then(|model| self.left.get_mut(&model)) {
            left.take(waiter.tokens);
        }
        let along = (0..waiter.along).take_while(|_| self.pace.ask_along() == Paced::Now).count() as u64;
        let untaken = waiter.granted.send(1 + along).err().unwrap_or(0);
        if untaken == 0 {
            self.along += along;
            self.tell_begun(1 + along);
        }
        untaken
    }
}

impl Left {
    /// When there is more left of all than what is real-time traffic's.
    fn free_at(&self, now: Timestamp) -> Timestamp {
        let all = [self.requests, self.tokens].into_iter().flatten();
        all.map(|reserve| reserve.free_at(now)).max().unwrap_or(now)
    }

    fn take(&mut self, tokens: u64) {
        if let Some(requests) = &mut self.requests {
            requests.take(1);
        }
        if let Some(left) = &mut self.tokens {
            left.take(tokens);
        }
    }
}

/// Somebody who waits. Who leaves when the turn was just given hands it back.
struct InQueue<'a> {
    turns: &'a Turns,
    granted: oneshot::Receiver<u64>,
}

impl Drop for InQueue<'_> {
    fn drop(&mut self) {
        // Nothing comes after this: it is given and lies here, or it never will be.
        self.granted.close();
        for turn in 0..self.granted.try_recv().unwrap_or(0) {
            drop(Turn::of(self.turns, turn > 0));
        }
    }
}

impl<'a> Turn<'a> {
    const fn of(turns: &'a Turns, is_along: bool) -> Self {
        Self { turns, is_told: false, is_along, number: None }
    }

    /// From now on the call can be taken back: this ends when it is. It never does otherwise.
    pub fn recalled(&mut self, deadline: Timestamp) -> impl Future<Output = ()> + Send + use<> {
        let (recall, recalled) = oneshot::channel();
        let mut queue = self.turns.queue.lock();
        queue.next += 1;
        let number = queue.next;
        queue.recallable.insert(number, Recallable { deadline, recall });
        self.number = Some(number);
        async move {
            if recalled.await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The call is over; `too_much` if the provider refused it for want of room.
    pub fn done(mut self, too_much: bool, retry_after: Option<Millis>) {
        self.is_told = true;
        self.turns.queue.lock().done(&self, too_much, retry_after, self.turns.clock.now());
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.is_told {
            self.turns.queue.lock().done(self, false, None, self.turns.clock.now());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;

    fn asker(tenant: &TenantId, deadline: u64) -> Asker<'_> {
        static MODEL: LazyLock<ModelId> = LazyLock::new(|| "m".into());
        Asker { model: Some(&MODEL), tenant, weight: 100, deadline: Timestamp(deadline), tokens: 100 }
    }

    #[tokio::test]
    async fn who_leaves_with_a_turn_in_hand_gives_it_back() {
        let turns = Turns::new(Clock::System, 1);
        let tenant = TenantId::from("one");
        let first = turns.take(&asker(&tenant, 1)).await;
        let waits = InQueue { turns: &turns, granted: turns.queue.lock().enter(&asker(&tenant, 2), 0) };
        first.done(false, None);
        assert_eq!(turns.under_way(), 1, "it was given");
        drop(waits);
        assert_eq!(turns.under_way(), 0);
    }

    #[tokio::test]
    async fn what_travels_together_has_its_turns_together_and_the_next_waits_for_all_of_them() {
        let turns = Turns::closed(Clock::System, 40);
        let tenant = TenantId::from("one");
        turns.limit(4);
        let first = turns.take_together(&asker(&tenant, 1), 31).await;
        assert!(futures_util::poll!(Box::pin(turns.begun())).is_ready());
        assert_eq!((first.len(), turns.under_way(), turns.in_a_call()), (32, 32, 32));
        let next = asker(&tenant, 2);
        let mut waits = Box::pin(turns.take_together(&next, 31));
        assert!(futures_util::poll!(&mut waits).is_pending());
        assert!(turns.take_free(&asker(&tenant, 3)).is_none());
        assert!(futures_util::poll!(Box::pin(turns.begun())).is_pending(), "nothing more has begun");
        drop(first);
        assert_eq!(waits.await.len(), 32);
        assert_eq!(turns.under_way(), 0, "all are given back");
        turns.limit(40);
        let others: Vec<_> = (0..20).filter_map(|_| turns.take_free(&asker(&tenant, 1))).collect();
        let second = turns.take_together(&asker(&tenant, 1), 31).await;
        assert_eq!((others.len(), second.len()), (20, 20), "no more than there may be at most");
        assert_eq!(turns.in_a_call(), 2, "20 alone, and one of 20");
        drop(InQueue { turns: &turns, granted: turns.queue.lock().enter(&asker(&tenant, 2), 31) });
        drop((others, second));
        assert_eq!((turns.under_way(), turns.in_a_call()), (0, 1));
    }

    #[tokio::test]
    async fn those_that_were_sent_last_are_taken_back_unless_they_are_due() {
        let turns = Turns::new(Clock::System, 8);
        let tenant = TenantId::from("one");
        let now = Clock::System.now();
        let (far, near) = (now.after(Millis::from_hours(9)), now.after(Millis::from_secs(9)));
        let mut sent = Vec::new();
        for deadline in [far, far, far, near] {
            let mut turn = turns.take(&asker(&tenant, deadline.0)).await;
            let recalled = turn.recalled(deadline);
            sent.push((turn, Box::pin(recalled)));
        }
        let is_recalled =
            |(_, recalled): &mut (Turn<'_>, _)| futures_util::FutureExt::now_or_never(recalled).is_some();
        assert_eq!(turns.take_back(1), 1);
        assert_eq!(sent.iter_mut().map(is_recalled).collect::<Vec<_>>(), [false, false, true, false]);
        let (first, _) = sent.remove(0);
        first.done(false, None);
        assert_eq!(turns.take_back(9), 1, "one is over, one was taken back, and one is due");
        assert_eq!(turns.under_way(), 3, "they give their turns back themselves");
    }

    #[tokio::test]
    async fn in_a_pause_only_those_go_who_would_be_too_late_after_it() {
        let turns = Turns::new(Clock::System, 8);
        let tenant = TenantId::from("one");
        let now = Clock::System.now();
        turns.take(&asker(&tenant, 1)).await.done(true, Some(Millis::from_hours(1)));
        let at = |left| asker(&tenant, now.after(left).0);
        let mut patient = turns.queue.lock().enter(&at(Millis::from_hours(1)), 0);
        let mut urgent = turns.queue.lock().enter(&at(LAST_CHANCE), 0);
        turns.grant();
        assert!(urgent.try_recv().is_ok());
        assert!(patient.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_free_turn_is_not_taken_from_who_waits() {
        let turns = Turns::closed(Clock::System, 8);
        let (one, other) = (TenantId::from("one"), TenantId::from("other"));
        turns.limit(2);
        let first = turns.take(&asker(&one, 1)).await;
        let second = turns.take_free(&asker(&one, 1)).expect("one is free");
        assert!(turns.take_free(&asker(&one, 1)).is_none());
        let mut waits = turns.queue.lock().enter(&asker(&other, 9), 0);
        second.done(false, None);
        assert!(turns.take_free(&asker(&one, 1)).is_none());
        assert!(waits.try_recv().is_ok());
        first.done(false, None);
    }

    #[tokio::test]
    async fn what_is_real_times_is_taken_only_at_the_last_minute() {
        let turns = Turns::new(Clock::System, 16);
        let (one, other) = (TenantId::from("one"), TenantId::from("other"));
        let now = Clock::System.now();
        let half = Told { a_minute: 100, left: 51 };
        turns.told(&ModelId::from("m"), Some(half), Some(Told { a_minute: 100_000, left: 100_000 }));
        let later = now.after(Millis::from_hours(1)).0;
        let asks = |tenant, deadline| turns.queue.lock().enter(&asker(tenant, deadline), 0);
        let mut waiting = [asks(&one, later), asks(&one, later), asks(&other, later)];
        let granted = |waiting: &mut [oneshot::Receiver<u64>]| -> Vec<bool> {
            turns.grant();
            waiting.iter_mut().map(|waits| waits.try_recv().is_ok()).collect()
        };
        assert_eq!(
            granted(&mut waiting).iter().filter(|is| **is).count(),
            1,
            "51 were left, and 50 are others'"
        );
        let mut urgent = [asks(&other, now.after(Millis::from_secs(50)).0)];
        assert_eq!(granted(&mut urgent), [true], "its deadline comes before all that");
        let other_model = ModelId::from("n");
        let asks_another = Asker { model: Some(&other_model), ..asker(&one, later) };
        let mut of_another_model = [turns.queue.lock().enter(&asks_another, 0)];
        assert_eq!(granted(&mut of_another_model), [true], "nothing is told of that one");
        turns.told(&ModelId::from("m"), None, Some(Told { a_minute: 100_000, left: 10_000 }));
        turns.told(&ModelId::from("m"), Some(Told { left: 100, ..half }), None);
        assert_eq!(granted(&mut waiting), [false; 3], "there are no tokens for it");
        turns.told(&ModelId::from("m"), None, Some(Told { a_minute: 100_000, left: 90_000 }));
        assert_eq!(granted(&mut waiting).iter().filter(|is| **is).count(), 2);
    }

    #[tokio::test]
    async fn a_crowd_and_a_few_take_turns_and_the_earliest_deadline_goes_first() {
        let turns = Turns::new(Clock::System, 1);
        let (crowd, few) = (TenantId::from("crowd"), TenantId::from("few"));
        let first = turns.take(&asker(&crowd, 1)).await;
        let mut waiting: Vec<_> = (0..6)
            .map(|n| (format!("crowd {n}"), turns.queue.lock().enter(&asker(&crowd, 100 - n), 0)))
            .collect();
        waiting
            .extend((0..2).map(|n| (format!("few {n}"), turns.queue.lock().enter(&asker(&few, 500 + n), 0))));
        let mut order = Vec::new();
        first.done(false, None);
        while order.len() < 8 {
            let granted = waiting.iter_mut().position(|(_, granted)| granted.try_recv().is_ok());
            let (name, _) = waiting.remove(granted.expect("one has its turn"));
            order.push(name);
            Turn::of(&turns, false).done(false, None);
        }
        let place = |name: &str| order.iter().position(|other| other == name);
        assert!(place("few 1") < Some(5), "{order:?}");
        assert!(place("crowd 5") < place("crowd 0"), "{order:?}");
    }
}
