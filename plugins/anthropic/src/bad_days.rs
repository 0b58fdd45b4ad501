//! Message batches on bad days: answers and lines of results from the corpus, bent in every way.

use bending::Bend;
use offpeak_plugin::{
    DidItRun,
    provider::{Batch, Decoded, Effect, Event, ItemOutcome, ReadSummary, Response},
};
use proptest::{collection::vec, prelude::*, sample::Index};
use serde_json::value::RawValue;

use crate::{
    bend::{any_bend, bent, corpus},
    config::Config,
    lines,
    protocol::{Context, batch_step},
};

const MARK: &str = "m1";

#[test]
fn lines_are_understood_as_they_are() {
    for (name, line) in corpus("lines") {
        let Decoded::Result(result) = lines::decode(line.trim_ascii(), MARK) else {
            panic!("{name} is garbage")
        };
        match (name.as_str(), result.outcome) {
            ("succeeded.json", ItemOutcome::Response(response)) => assert_eq!(response.status, 200),
            ("errored.json", ItemOutcome::Response(response)) => assert_eq!(response.status, 400),
            ("canceled.json" | "expired.json", ItemOutcome::Failed(failure)) => {
                assert_eq!(failure.ran, DidItRun::Refused);
            }
            (name, outcome) => panic!("{name}: {outcome:?}"),
        }
    }
}

fn batch() -> Batch {
    Batch {
        mark: MARK.into(),
        endpoint: "/v1/messages".into(),
        model: "claude".into(),
        offer: "batch".into(),
        items: 2,
        waiting: 2,
        only: None,
        headers: Vec::new(),
        created_at_ms: 1_800_000_000_000,
    }
}

/// What may come of a call: an answer from the corpus, bent or not, or none.
#[derive(Debug, Clone)]
struct Came {
    file: Index,
    bends: Vec<Bend>,
    status: u16,
    lost: bool,
}

fn any_came() -> impl Strategy<Value = Came> {
    let status = prop_oneof![6 => Just(200_u16), 1 => Just(404), 1 => Just(429), 1 => Just(529)];
    let lost = proptest::bool::weighted(0.1);
    (any::<Index>(), vec(any_bend(), 0..3), status, lost).prop_map(|(file, bends, status, lost)| Came {
        file,
        bends,
        status,
        lost,
    })
}

impl Came {
    /// What the daemon makes of it for this effect.
    fn event(&self, effect: &Effect, corpus: &[(String, Vec<u8>)]) -> Event {
        let results = u32::from(self.status == 200);
        match effect {
            Effect::Wait(_) => Event::Waited,
            _ if self.lost => Event::Interrupted,
            Effect::Read(reading) => Event::Read(ReadSummary {
                source: reading.source.clone(),
                status: self.status,
                lines: 1,
                results,
                whole: true,
            }),
            _ => {
                let body = bent(corpus[self.file.index(corpus.len())].1.clone(), &self.bends);
                Event::Answered(Response { status: self.status, headers: Vec::new(), body })
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// A bent line is a result or garbage, and what it gives on can be delivered.
    #[test]
    fn no_bent_line_does_harm(file in any::<Index>(), bends in vec(any_bend(), 1..5)) {
        let corpus = corpus("lines");
        let line = bent(corpus[file.index(corpus.len())].1.clone(), &bends);
        if let Decoded::Result(result) = lines::decode(&line, MARK)
            && let ItemOutcome::Response(response) = result.outcome
        {
            prop_assert!((100..600).contains(&response.status));
            prop_assert!(serde_json::from_slice::<&RawValue>(&response.body).is_ok());
        }
    }

    /// Bent answers, in any order: no panic, a small state, bounded pauses, no creation while another one's fate is
    /// unknown.
    #[test]
    fn no_bent_answer_does_harm(came in vec(any_came(), 1..40)) {
        const STATE_BYTES_MAX: usize = 64 * 1024;
        let corpus = corpus("batches");
        let (config, batch) = (Config::default(), batch());
        let context = Context { batch: &batch, config: &config };
        let mut stored = Vec::new();
        let mut event = Event::Start;
        let mut in_doubt = false;
        for came in came {
            let step = batch_step(&stored, event, context).unwrap();
            prop_assert!(step.state.len() <= STATE_BYTES_MAX);
            if let Effect::Wait(ms) = step.effect {
                prop_assert!(ms <= 86_400_000, "{ms}");
            }
            if matches!(step.effect, Effect::Finished(_) | Effect::Failed(_)) {
                break;
            }
            let creates = matches!(step.effect, Effect::Upload(_));
            let searches = matches!(&step.effect, Effect::Call(call) if call.method == "GET");
            prop_assert!(!(creates && in_doubt), "created again without having looked");
            event = came.event(&step.effect, &corpus);
            in_doubt |= creates && (came.lost || came.status == 529);
            in_doubt &= !(searches && !came.lost && came.status == 200);
            stored = step.state;
        }
    }
}
