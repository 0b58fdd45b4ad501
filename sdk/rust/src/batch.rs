//! The parts of a batch protocol that are the same whoever the provider is.
//!
//! A protocol is a state machine that the daemon keeps between two steps, so that it outlives a crash. Its *phase* is what
//! the outstanding effect belongs to. Implement [`Protocol`]: say where a batch begins, what is sent in each phase, and where
//! the answer leads; the state's form, pauses and the wish to stop are looked after here. An event that does not belong to
//! the outstanding effect means that this effect's fate is unknown: [`Outcome::of`] says so.

mod call;
mod end;
mod pauses;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub use call::{ErrorBody, Hindrance, Outcome};
pub use end::{End, How, Ran};
pub use pauses::Pauses;

use crate::provider::{Effect, Event, Progress, Step};

/// What the daemon keeps between two steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State<P, N> {
    version: u32,
    /// What the outstanding effect belongs to.
    pub phase: P,
    /// The phase's effect is not out yet; before it, a wait of so many milliseconds is.
    pub pause_ms: Option<u64>,
    /// What is counted and remembered on the way.
    pub notes: N,
}

/// Where a reaction leads.
#[derive(Debug)]
pub enum Next<P> {
    /// The phase's effect at once.
    Act(P),
    /// The phase's effect after so many milliseconds.
    Pause(P, u64),
}

/// Whether the batch is to be stopped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cancel {
    /// It is not.
    #[default]
    No,
    /// It is, and the provider does not know yet.
    Wanted,
    /// The provider has been told, or will not hear.
    Told,
}

/// What people are shown of a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shown {
    /// The provider's name for it.
    pub provider_id: Option<String>,
    /// How far it is, if the provider tells.
    pub progress: Option<Progress>,
}

impl Shown {
    /// From what a plugin notes: the provider's name for the batch, and how many requests are done and how many have failed.
    pub fn of(provider_id: Option<&str>, completed: Option<u32>, failed: Option<u32>) -> Self {
        let progress = completed.zip(failed).map(|(completed, failed)| Progress { completed, failed });
        Self { provider_id: provider_id.map(str::to_owned), progress }
    }
}

/// A provider's batch protocol, as a pure state machine.
pub trait Protocol {
    /// What the outstanding effect belongs to.
    type Phase: Serialize + DeserializeOwned;

    /// What is counted and remembered on the way.
    type Notes: Default + Serialize + DeserializeOwned;

    /// The version of the state as it is stored. A newer plugin must read what an older one has written: batches are under way
    /// when it takes its place. A field of phase or notes that is new and has `#[serde(default)]` needs no new version; after
    /// any other change this grows by one, and [`Protocol::upgrade`] reads what was stored before.
    const VERSION: u32;

    /// A state that an older version has stored, in today's form ([`State::new`]); none where there is no way to it. That batch
    /// then fails at each step until a plugin that knows its version is back.
    fn upgrade(&self, _version: u32, _stored: &[u8]) -> Option<StateOf<Self>> {
        None
    }

    /// Where a batch begins.
    fn begin(&self) -> Self::Phase;

    /// What is sent in a phase.
    fn effect(&self, phase: &Self::Phase) -> Effect;

    /// What the outcome of a phase's effect leads to.
    fn react(&self, phase: Self::Phase, event: Event, notes: &mut Self::Notes) -> Next<Self::Phase>;

    /// Where it goes instead, once the batch is to be stopped and the provider has not been told: nothing is made any more,
    /// and what runs is told. The same as before where there is nothing to stop.
    fn stop(&self, next: Next<Self::Phase>) -> Next<Self::Phase>;

    /// Where it is noted whether the batch is to be stopped.
    fn cancel(notes: &mut Self::Notes) -> &mut Cancel;

    /// What people are shown.
    fn shown(&self, notes: &Self::Notes) -> Shown;

    /// One step, with the state as it is stored; nothing is stored at the start.
    fn batch_step(&self, stored: &[u8], event: Event) -> Result<Step, String> {
        let state = match older_than(Self::VERSION, stored) {
            Some(version) => match self.upgrade(version, stored) {
                Some(state) => Some(state),
                None => State::read(stored, Self::VERSION)?,
            },
            None => State::read(stored, Self::VERSION)?,
        };
        let (state, effect) = self.step(state, event);
        let Shown { provider_id, progress } = self.shown(&state.notes);
        let state = serde_json::to_vec(&state).map_err(|error| error.to_string())?;
        Ok(Step { state, effect, provider_id, progress })
    }

    /// One step. There is no state at the start.
    fn step(&self, state: Option<StateOf<Self>>, event: Event) -> (StateOf<Self>, Effect) {
        let (outstanding, mut notes) = match state {
            None => (None, Self::Notes::default()),
            Some(State { phase, pause_ms, notes, .. }) => (Some((phase, pause_ms)), notes),
        };
        let cancel = Self::cancel(&mut notes);
        if matches!(event, Event::Cancel) && *cancel == Cancel::No {
            *cancel = Cancel::Wanted;
        }
        let mut next = match outstanding {
            None => Next::Act(self.begin()),
            Some((phase, Some(ms))) => match event {
                // The wait goes on; nothing else is out.
                Event::Cancel | Event::Interrupted => Next::Pause(phase, ms),
                _ => Next::Act(phase),
            },
            Some((phase, None)) => self.react(phase, event, &mut notes),
        };
        if *Self::cancel(&mut notes) == Cancel::Wanted {
            next = self.stop(next);
        }
        let (phase, pause_ms) = match next {
            Next::Act(phase) => (phase, None),
            Next::Pause(phase, ms) => (phase, Some(ms)),
        };
        let effect = pause_ms.map_or_else(|| self.effect(&phase), Effect::Wait);
        (State { version: Self::VERSION, phase, pause_ms, notes }, effect)
    }
}

/// The state of a protocol.
pub type StateOf<T> = State<<T as Protocol>::Phase, <T as Protocol>::Notes>;

/// The version of what was stored, if it is an older one.
fn older_than(version: u32, stored: &[u8]) -> Option<u32> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }

    let found: Versioned = serde_json::from_slice(stored).ok()?;
    (found.version < version).then_some(found.version)
}

impl<P, N> State<P, N> {
    /// A state as of today; the next step is stored with its version.
    pub const fn new(phase: P, pause_ms: Option<u64>, notes: N) -> Self {
        Self { version: 0, phase, pause_ms, notes }
    }
}

impl<P: DeserializeOwned, N: DeserializeOwned> State<P, N> {
    /// Reads what was stored; none at the start.
    pub fn read(bytes: &[u8], version: u32) -> Result<Option<Self>, String> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let state: Self = serde_json::from_slice(bytes).map_err(|error| {
            format!("the batch's stored state cannot be read ({error}); was it another plugin's?")
        })?;
        if state.version != version {
            return Err(format!(
                "the batch's stored state has version {}, this plugin knows version {version}; use the plugin that wrote \
                 it, or a newer one",
                state.version
            ));
        }
        Ok(Some(state))
    }
}

impl<P> Next<P> {
    /// The phase that comes.
    pub fn phase(&self) -> &P {
        let (Self::Act(phase) | Self::Pause(phase, _)) = self;
        phase
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::{Ending, Request, Response};

    /// Sends one call, looks every second until that says "over", and ends.
    struct Plain;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    enum Phase {
        Send,
        Look,
        Stop,
        Over,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    struct Notes {
        looks: u32,
        cancel: Cancel,
    }

    impl Protocol for Plain {
        type Phase = Phase;
        type Notes = Notes;
        const VERSION: u32 = 3;

        fn begin(&self) -> Phase {
            Phase::Send
        }

        fn effect(&self, phase: &Phase) -> Effect {
            let call = |path: &str| {
                let (method, path) = ("POST".to_owned(), path.to_owned());
                Effect::Call(Request { method, path, headers: vec![], body: vec![] })
            };
            match phase {
                Phase::Send => call("/send"),
                Phase::Look => call("/look"),
                Phase::Stop => call("/stop"),
                Phase::Over => End::Finished { how: How::Completed, missing: Ran::Unknown }.effect(),
            }
        }

        fn react(&self, phase: Phase, event: Event, notes: &mut Notes) -> Next<Phase> {
            match (phase, event) {
                (Phase::Look, Event::Answered(answer)) if answer.body == b"over" => Next::Act(Phase::Over),
                (Phase::Stop, _) => {
                    notes.cancel = Cancel::Told;
                    Next::Act(Phase::Look)
                }
                (Phase::Send | Phase::Look, _) => {
                    notes.looks += 1;
                    Next::Pause(Phase::Look, 1000)
                }
                (Phase::Over, _) => Next::Act(Phase::Over),
            }
        }

        fn stop(&self, next: Next<Phase>) -> Next<Phase> {
            match next.phase() {
                Phase::Send => Next::Act(Phase::Over),
                Phase::Look => Next::Act(Phase::Stop),
                Phase::Stop | Phase::Over => next,
            }
        }

        /// Version 2 only knew whether the call was out.
        fn upgrade(&self, version: u32, stored: &[u8]) -> Option<StateOf<Self>> {
            #[derive(Deserialize)]
            struct Second {
                is_sent: bool,
            }

            let stored: Second = serde_json::from_slice(stored).ok().filter(|_| version == 2)?;
            let phase = if stored.is_sent { Phase::Look } else { Phase::Send };
            Some(State::new(phase, None, Notes::default()))
        }

        fn cancel(notes: &mut Notes) -> &mut Cancel {
            &mut notes.cancel
        }

        fn shown(&self, notes: &Notes) -> Shown {
            Shown { provider_id: Some(format!("looked at {} times", notes.looks)), progress: None }
        }
    }

    fn answer(body: &str) -> Event {
        Event::Answered(Response { status: 200, headers: vec![], body: body.into() })
    }

    /// Where each event leads: the path of a call, a pause, or the end.
    fn follow(events: Vec<Event>) -> Vec<String> {
        let mut stored = Vec::new();
        let mut led = Vec::new();
        for event in events {
            let step = Plain.batch_step(&stored, event).unwrap();
            stored = step.state;
            led.push(match step.effect {
                Effect::Call(call) => call.path,
                Effect::Wait(ms) => format!("wait {ms}"),
                Effect::Finished(finish) if finish.ending == Ending::Completed => "over".to_owned(),
                other => panic!("{other:?}"),
            });
        }
        led
    }

    #[test]
    fn a_batch_is_driven_from_stored_state_to_stored_state() {
        let events =
            vec![Event::Start, answer(""), Event::Waited, answer("busy"), Event::Waited, answer("over")];
        assert_eq!(follow(events), ["/send", "wait 1000", "/look", "wait 1000", "/look", "over"]);
    }

    #[test]
    fn a_pause_that_is_interrupted_is_waited_for_anew() {
        let events = vec![Event::Start, answer(""), Event::Interrupted, Event::Waited];
        assert_eq!(follow(events), ["/send", "wait 1000", "wait 1000", "/look"]);
    }

    #[test]
    fn the_wish_to_stop_is_told_once_and_nothing_is_begun_after_it() {
        let events = vec![Event::Start, answer(""), Event::Cancel, answer(""), answer("over"), Event::Cancel];
        assert_eq!(follow(events), ["/send", "wait 1000", "/stop", "/look", "over", "over"]);
        assert_eq!(follow(vec![Event::Cancel]), ["over"]);
    }

    #[test]
    fn a_batch_that_an_older_version_began_goes_on() {
        let sent = br#"{"version":2,"is_sent":true}"#;
        let step = Plain.batch_step(sent, answer("busy")).unwrap();
        assert!(matches!(step.effect, Effect::Wait(1000)), "{:?}", step.effect);
        let stored: State<Phase, Notes> = State::read(&step.state, Plain::VERSION).unwrap().unwrap();
        assert_eq!((stored.phase, stored.notes.looks), (Phase::Look, 1));
        let step = Plain.batch_step(&step.state, Event::Waited).unwrap();
        assert!(matches!(step.effect, Effect::Call(call) if call.path == "/look"));
        // Of the first one nobody knows how to read it.
        let first = br#"{"version":1,"phase":"Look","pause_ms":null,"notes":{"looks":1,"cancel":"No"}}"#;
        let error = Plain.batch_step(first, answer("busy")).unwrap_err();
        assert!(error.contains("has version 1"), "{error}");
    }

    #[test]
    fn what_is_not_of_this_version_is_refused_with_what_to_do() {
        let read = |text: &str| State::<Phase, Notes>::read(text.as_bytes(), Plain::VERSION);
        assert_eq!(read(""), Ok(None));
        assert!(read("{}").unwrap_err().contains("another plugin's"));
        let newer = r#"{"version":4,"phase":"Look","pause_ms":null,"notes":{"looks":1,"cancel":"No"}}"#;
        assert!(read(newer).unwrap_err().contains("use the plugin that wrote it"));
        let ours = read(&newer.replace('4', "3")).unwrap().unwrap();
        assert_eq!((ours.phase, ours.notes.looks), (Phase::Look, 1));
    }
}
