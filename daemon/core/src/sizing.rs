//! How many deferred requests an engine of one's own works on at once: as many as make it faster while nobody else is there,
//! and as few as its real-time calls bear while somebody is.
//!
//! The shell looks at the engine at an interval and tells what it saw; the answer holds until the next look.

use crate::words::{Millis, Timestamp};

/// Deferred requests at once when nothing is known yet.
const FIRST: u64 = 4;

/// Nearly every engine is faster with so many than with fewer, so that nothing is learnt from the steps up to here.
const LIKELY: u64 = 32;

/// A wider window must raise the throughput by so many thousandths, or it is not worth its latency.
const GAIN_PERMILLE: u64 = 30;

/// Below so many thousandths of the target there is room for more beside real-time calls.
const CALM_PERMILLE: u64 = 800;

/// Below so many thousandths of it there is room for half as many again: that does not bring them near it.
const IDLE_PERMILLE: u64 = 250;

/// What the operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizingTerms {
    /// Deferred requests at once, at most.
    pub most: u64,
    /// Until the answer to a real-time call begins, it should take no longer.
    pub target: Millis,
    /// Tokens a second at its best; none if that is to be learnt.
    pub peak: Option<u64>,
}

/// What was seen since the look before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Look {
    /// It takes calls.
    pub is_ready: bool,
    /// Requests that wait within the engine, if it tells.
    pub waiting: Option<u64>,
    /// How many more deferred requests it can take, if its signals say.
    pub room: Option<u64>,
    /// Tokens that it has read and made since it was started, if it tells.
    pub tokens: Option<u64>,
    /// Real-time calls under way, or that were.
    pub realtime: u64,
    /// The longest that one of them took until its answer began.
    pub latency: Option<Millis>,
    /// Deferred requests under way.
    pub deferred: u64,
    /// How many of them travel in one call.
    pub in_a_call: u64,
}

impl Look {
    /// Deferred requests that are not too many although some wait, where many travel in one call: all of a call may show as what
    /// waits. With a second call the engine has something to do between two of them; with six it takes three at a time, which
    /// share what each of its steps costs by itself. None if somebody else's may wait, or if the engine does not tell what does.
    fn whole_calls(&self) -> u64 {
        let Some(waiting) = self.waiting else { return 0 };
        if self.in_a_call <= 1 || self.realtime > 0 || waiting > self.deferred {
            return 0;
        }
        // An engine that does not take one of six as a whole works on some inputs of a call at a time, and gains nothing from
        // more calls.
        let takes_few = waiting.saturating_mul(6) > self.deferred.saturating_mul(5);
        self.in_a_call.saturating_mul(if takes_few { 2 } else { 6 })
    }
}

/// The window, and what was learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizing {
    terms: SizingTerms,
    /// As many as make the engine faster, as far as it was tried.
    window: u64,
    /// As many as real-time calls bore.
    safe: u64,
    /// Somebody else was there at the last look.
    was_shared: bool,
    /// The throughput with the window before it was widened last, in tokens a second.
    before: Option<u64>,
    last: Option<(u64, Timestamp)>,
    speed: Option<u64>,
    peak: u64,
    ceiling: u64,
}

impl Sizing {
    /// Nothing goes before the first look.
    #[must_use]
    pub fn new(terms: SizingTerms) -> Self {
        let first = FIRST.min(terms.most);
        Self {
            terms,
            window: first,
            safe: first,
            was_shared: false,
            before: None,
            last: None,
            speed: None,
            peak: 0,
            ceiling: 0,
        }
    }

    /// Takes in a look, and says how many deferred requests may be under way until the next one.
    pub fn look(&mut self, look: &Look, now: Timestamp) -> u64 {
        if !look.is_ready {
            // What comes back may be another one: it is learnt anew.
            let (terms, peak) = (self.terms, self.peak);
            *self = Self { peak, ..Self::new(terms) };
            return 0;
        }
        self.measure(look.tokens, now);
        let window = if look.realtime > 0 { self.beside_others(look) } else { self.alone(look) };
        self.was_shared = look.realtime > 0;
        let room = look.room.map_or(u64::MAX, |room| look.deferred.saturating_add(room));
        // Where nothing waits, it is something else that is full.
        let room = if look.waiting == Some(0) { room } else { room.max(look.whole_calls()) };
        self.ceiling = window.min(room).min(self.terms.most);
        self.ceiling
    }

    /// How many of those under way are to be taken back, as of the look that was just taken in: so many as real-time calls wait
    /// behind. What runs beside them only makes them slower, and ends by itself; what fills the engine keeps them out, and may
    /// take minutes.
    #[must_use]
    pub fn in_the_way(&self, look: &Look) -> u64 {
        if !look.is_ready || look.realtime == 0 {
            return 0;
        }
        let wait = match (look.waiting, look.room) {
            (Some(waiting), _) => waiting,
            // An engine that does not tell what waits: it is full, by what offpeak sent.
            (None, Some(0)) => look.realtime,
            (None, _) => 0,
        };
        look.deferred.saturating_sub(self.ceiling).min(wait)
    }

    /// How many may be under way, as of the last look.
    #[must_use]
    pub const fn ceiling(&self) -> u64 {
        self.ceiling
    }

    /// Tokens a second between the last two looks, if the engine tells.
    #[must_use]
    pub const fn speed(&self) -> Option<u64> {
        self.speed
    }

    /// What the operator says, or the highest of them.
    #[must_use]
    pub fn peak(&self) -> u64 {
        self.terms.peak.unwrap_or(self.peak)
    }

    fn measure(&mut self, tokens: Option<u64>, now: Timestamp) {
        self.speed = self.last.zip(tokens).and_then(|((before, at), tokens)| {
            // A count that begins again is that of another engine.
            let made = tokens.checked_sub(before)?;
            let took = now.since(at).0;
            (took > 0).then(|| made.saturating_mul(1000) / took)
        });
        self.peak = self.peak.max(self.speed.unwrap_or(0));
        self.last = tokens.map(|tokens| (tokens, now));
    }

    /// Nobody else is there: wider, as long as that makes it faster.
    fn alone(&mut self, look: &Look) -> u64 {
        if self.was_shared {
            // The throughput was not that of this window.
            self.before = None;
        }
        let waiting = look.waiting.unwrap_or(0);
        if waiting > 0 && look.room == Some(0) {
            // More than it can start soon: that only takes freedom from whoever comes.
            self.window = self.window.min(look.deferred).saturating_sub(waiting / 2).max(1);
        }
        self.window = self.window.max(look.whole_calls()).min(self.terms.most);
        // An engine that tells neither what waits nor what it can take is not flooded to find out.
        let is_blind = look.waiting.is_none() && look.room.is_none();
        // What is not filled says nothing about what would be.
        if is_blind || self.was_shared || look.deferred < self.window || waiting > 0 {
            return self.window;
        }
        match (self.before, self.speed) {
            (Some(before), Some(speed))
                if speed.saturating_mul(1000) < before.saturating_mul(1000 + GAIN_PERMILLE) =>
            {
                // It was no faster with this one than with half of it. It may be once the work is another, so that it is
                // tried again, in small steps.
                self.window = (self.window + self.window.div_ceil(16)).min(self.terms.most);
                self.before = Some(before.max(speed));
            }
            (_, speed) => {
                self.before = speed;
                self.window = self.window.saturating_mul(2).max(LIKELY).min(self.terms.most);
            }
        }
        self.window
    }

    /// At once as many as was good for real-time calls before, then by their latency.
    fn beside_others(&mut self, look: &Look) -> u64 {
        self.safe = self.safe.min(self.window).max(1);
        if !self.was_shared {
            return self.safe;
        }
        let target = self.terms.target.0.max(1);
        match look.latency.map(|latency| latency.0) {
            Some(latency) if latency > target => {
                self.safe = (self.safe.saturating_mul(target) / latency).max(1);
            }
            Some(latency)
                if latency.saturating_mul(1000) < target.saturating_mul(CALM_PERMILLE)
                    && look.deferred >= self.safe
                    && look.waiting.is_none_or(|waiting| waiting == 0) =>
            {
                let is_idle = latency.saturating_mul(1000) < target.saturating_mul(IDLE_PERMILLE);
                let step = self.safe.div_ceil(if is_idle { 2 } else { 8 });
                self.safe = (self.safe + step).min(self.terms.most);
                // Where real-time calls never cease, only this tells what the engine can take.
                self.window = self.window.max(self.safe);
            }
            // Nobody knows when answers begin that are made as a whole; whether they wait, the engine's queue tells.
            None => match look.waiting {
                Some(0) if look.deferred >= self.safe => {
                    let most = self.window.max(FIRST).min(self.terms.most);
                    self.safe = (self.safe + self.safe.div_ceil(16)).min(most);
                }
                Some(waiting) if waiting > 0 => self.safe = (self.safe - self.safe.div_ceil(4)).max(1),
                Some(_) | None => {}
            },
            Some(_) => {}
        }
        self.safe
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TERMS: SizingTerms = SizingTerms { most: 512, target: Millis(500), peak: None };
    const SECOND: Millis = Millis::from_secs(1);

    /// An engine that runs `slots` requests at once, each of which adds less than the one before.
    struct Model {
        slots: u64,
        tokens: u64,
        now: Timestamp,
    }

    impl Model {
        fn new(slots: u64) -> Self {
            Self { slots, tokens: 0, now: Timestamp(1_000_000) }
        }

        /// Tokens a second with so many running: rising ever more slowly.
        fn speed(&self, running: u64) -> u64 {
            let running = running.min(self.slots);
            3_000 * running / (running + 40)
        }

        fn latency(running: u64) -> Millis {
            Millis(50 + running * 5)
        }

        /// A second with so many deferred and real-time requests under way.
        fn second(&mut self, deferred: u64, realtime: u64) -> Look {
            self.now = self.now.after(SECOND);
            self.tokens += self.speed(deferred + realtime);
            let waiting = (deferred + realtime).saturating_sub(self.slots);
            Look {
                is_ready: true,
                waiting: Some(waiting),
                room: (waiting > 0).then(|| (self.slots / 10).saturating_sub(waiting)),
                tokens: Some(self.tokens),
                realtime,
                latency: (realtime > 0).then(|| Self::latency(deferred + realtime)),
                deferred,
                in_a_call: 1,
            }
        }
    }

    #[test]
    fn whole_answers_leave_the_engines_queue_as_the_sign() {
        let mut sizing = Sizing { window: 64, ..Sizing::new(TERMS) };
        let mut at = 0;
        let mut look = |sizing: &mut Sizing, waiting| {
            at += 1000;
            let deferred = sizing.ceiling();
            let look = Look { is_ready: true, waiting, realtime: 1, deferred, ..Look::default() };
            sizing.look(&look, Timestamp(at))
        };
        look(&mut sizing, Some(0));
        let before = look(&mut sizing, Some(0));
        for _ in 0..20 {
            look(&mut sizing, Some(0));
        }
        let calm = sizing.ceiling();
        assert!(calm > before, "{calm} after {before}: nothing waits");
        for _ in 0..20 {
            look(&mut sizing, Some(9));
        }
        assert_eq!(sizing.ceiling(), 1, "they are in the way");
        assert_eq!(look(&mut sizing, None), 1, "nobody knows");
    }

    #[test]
    fn without_real_time_calls_it_reaches_saturation() {
        for slots in [8, 64, 256] {
            let (mut engine, mut sizing) = (Model::new(slots), Sizing::new(TERMS));
            let mut deferred = 0;
            for _ in 0..60 {
                let look = engine.second(deferred, 0);
                deferred = sizing.look(&look, engine.now);
            }
            let peak = engine.speed(slots);
            assert!(engine.speed(deferred) * 10 >= peak * 9, "{slots}: {deferred} at once");
            assert!(deferred <= slots + slots / 10 + 1, "{slots}: {deferred} at once");
        }
    }

    #[test]
    fn a_real_time_call_is_given_way_within_one_look_and_latency_is_kept() {
        let (mut engine, mut sizing) = (Model::new(256), Sizing::new(TERMS));
        let mut deferred = 0;
        for _ in 0..60 {
            let look = engine.second(deferred, 0);
            deferred = sizing.look(&look, engine.now);
        }
        assert!(deferred > 100, "{deferred}");
        let look = engine.second(deferred, 4);
        deferred = sizing.look(&look, engine.now);
        assert!(deferred <= FIRST, "{deferred} after one look");
        for _ in 0..60 {
            let look = engine.second(deferred, 4);
            deferred = sizing.look(&look, engine.now);
        }
        // 50 + 5 * n <= 500.
        assert!((60..=90).contains(&deferred), "{deferred} beside four calls");
        let look = engine.second(deferred, 0);
        let known = sizing.look(&look, engine.now);
        assert!(known > 100, "{known}: what was learnt before holds again");
    }

    #[test]
    fn what_real_time_calls_bear_is_found_where_they_never_cease() {
        let (mut engine, mut sizing) = (Model::new(256), Sizing::new(TERMS));
        let mut deferred = 0;
        for second in 0..30 {
            let look = engine.second(deferred, 4);
            deferred = sizing.look(&look, engine.now);
            assert!(look.latency <= Some(TERMS.target), "{second}: {look:?}");
        }
        assert!((60..=90).contains(&deferred), "{deferred} beside four calls");
    }

    #[test]
    fn an_engine_that_is_not_ready_gets_nothing_and_begins_small_again() {
        let mut sizing = Sizing::new(TERMS);
        let ready = Look { is_ready: true, waiting: Some(0), ..Look::default() };
        let mut ceiling = sizing.look(&ready, Timestamp(0));
        assert_eq!(ceiling, FIRST);
        for second in 1..5 {
            let look = Look { deferred: ceiling, ..ready };
            ceiling = sizing.look(&look, Timestamp(second * 1000));
        }
        assert!(ceiling > FIRST);
        assert_eq!(sizing.look(&Look::default(), Timestamp(9_000)), 0);
        assert_eq!(sizing.look(&ready, Timestamp(10_000)), FIRST);
    }

    #[test]
    fn who_keeps_real_time_calls_out_is_taken_back_and_who_only_slows_them_is_not() {
        let mut sizing = Sizing { window: 64, ..Sizing::new(TERMS) };
        let full = Look {
            is_ready: true,
            waiting: Some(3),
            room: Some(0),
            realtime: 2,
            deferred: 40,
            ..Look::default()
        };
        let ceiling = sizing.look(&full, Timestamp(1000));
        assert!(ceiling <= FIRST, "{ceiling}");
        assert_eq!(sizing.in_the_way(&full), 3);
        assert_eq!(
            sizing.in_the_way(&Look { waiting: Some(99), ..full }),
            40 - ceiling,
            "no more than are too many"
        );
        assert_eq!(sizing.in_the_way(&Look { waiting: Some(0), ..full }), 0);
        assert_eq!(sizing.in_the_way(&Look { realtime: 0, ..full }), 0, "they wait for each other");
        assert_eq!(
            sizing.in_the_way(&Look { waiting: None, ..full }),
            2,
            "it is full, as far as anybody knows"
        );
        assert_eq!(sizing.in_the_way(&Look { waiting: None, room: None, ..full }), 0);
    }

    #[test]
    fn an_engine_that_tells_nothing_is_not_flooded() {
        let mut sizing = Sizing::new(TERMS);
        for second in 0..20 {
            let look = Look { is_ready: true, deferred: FIRST, ..Look::default() };
            assert_eq!(sizing.look(&look, Timestamp(second * 1000)), FIRST);
        }
        // Nor where many travel in one call, and where only its slots are known.
        for room in [None, Some(0)] {
            let look = Look { is_ready: true, room, deferred: 32, in_a_call: 32, ..Look::default() };
            assert!(sizing.look(&look, Timestamp(30_000)) <= 32, "{room:?}");
        }
    }

    #[test]
    fn of_merged_calls_some_wait_while_others_are_worked_on() {
        let mut sizing = Sizing::new(TERMS);
        let ready = Look { is_ready: true, waiting: Some(0), in_a_call: 1, ..Look::default() };
        assert_eq!(sizing.look(&ready, Timestamp(0)), FIRST);
        let mut second = 0;
        let mut look = |sizing: &mut Sizing, deferred, waiting, room| {
            second += 1;
            let look = Look { waiting: Some(waiting), room, deferred, in_a_call: 32, ..ready };
            sizing.look(&look, Timestamp(second * 1000))
        };
        // The first call has more than that: it goes together or not at all.
        assert_eq!(look(&mut sizing, 32, 32, Some(0)), 64, "the engine has not begun it");
        assert_eq!(look(&mut sizing, 64, 32, Some(0)), 192, "it works on all of one");
        for waiting in [160, 96, 32] {
            assert_eq!(look(&mut sizing, 192, waiting, Some(0)), 192, "{waiting} wait");
        }
        assert_eq!(look(&mut sizing, 32, 0, Some(0)), 32, "it is full, and not of what waits");
        for _ in 0..10 {
            assert!(look(&mut sizing, 64, 60, Some(0)) >= 64);
        }
        assert_eq!(sizing.ceiling(), 64, "it works on few at a time");
        assert!(look(&mut sizing, 64, 90, Some(0)) < 64, "others wait, too");
        let realtime = Look { realtime: 1, deferred: 64, in_a_call: 32, ..ready };
        assert!(sizing.look(&realtime, Timestamp(99_000)) <= FIRST);
    }

    proptest! {
        #[test]
        fn the_room_and_the_bound_are_kept_and_others_go_first(
            most in 1_u64..300,
            looks in prop::collection::vec(
                (
                    any::<bool>(), 0_u64..20, prop::option::of(0_u64..50), 0_u64..10, 0_u64..3_000, any::<u32>(),
                    prop_oneof![Just(1_u64), 2..40_u64],
                ),
                1..200,
            ),
        ) {
            let mut sizing = Sizing::new(SizingTerms { most, target: Millis(500), peak: None });
            let (mut now, mut deferred, mut tokens) = (Timestamp(0), 0, 0_u64);
            for (is_ready, waiting, room, realtime, latency, made, in_a_call) in looks {
                now = now.after(SECOND);
                tokens += u64::from(made);
                let look = Look {
                    is_ready,
                    waiting: Some(waiting),
                    room,
                    tokens: Some(tokens),
                    realtime,
                    latency: Some(Millis(latency)),
                    deferred,
                    in_a_call,
                };
                let before = sizing;
                let ceiling = sizing.look(&look, now);
                prop_assert!(ceiling <= most);
                prop_assert!(is_ready || ceiling == 0);
                if let Some(room) = room {
                    let calls = if realtime == 0 && in_a_call > 1 { 6 * in_a_call } else { 0 };
                    prop_assert!(ceiling <= (deferred + room).max(calls));
                }
                if is_ready && realtime > 0 {
                    let wider = before.safe + before.safe.div_ceil(2);
                    prop_assert!(ceiling <= before.window.max(wider), "by half at most");
                    if !before.was_shared {
                        prop_assert!(ceiling <= before.safe, "it gives way at once");
                    } else if latency > 500 {
                        prop_assert!(ceiling <= before.safe);
                        prop_assert!(ceiling < before.safe || before.safe < 8, "{} of {}", ceiling, before.safe);
                    }
                }
                deferred = ceiling;
            }
        }
    }
}
