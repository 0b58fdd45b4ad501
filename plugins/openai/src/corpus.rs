//! Answers as providers give them, and what becomes of them on a bad day: the corpus in `corpus/`, bent in every way.

use bending::{Bend, any_bend, bent};
use offpeak_plugin::{
    DidItRun,
    provider::{Batch, Decoded, Effect, Event, ItemOutcome, ReadSummary, Response},
};
use proptest::{collection::vec, prelude::*, sample::Index};

use crate::{
    config::Config,
    dialect::{BatchApi, DialectName},
    lines,
    protocol::{Context, batch_step},
};

fn corpus(folder: &str) -> Vec<(String, Vec<u8>)> {
    bending::corpus(env!("CARGO_MANIFEST_DIR"), folder)
}

fn api() -> &'static BatchApi {
    DialectName::Openai.dialect().batch_api.as_ref().unwrap()
}

#[test]
fn lines_are_understood_as_they_are() {
    for (name, line) in corpus("lines") {
        let Decoded::Result(result) = lines::decode(line.trim_ascii(), api()) else {
            panic!("{name} is garbage")
        };
        match (name.as_str(), result.outcome) {
            (_, ItemOutcome::Response(response)) => {
                let expected = if name.contains("success") { 200 } else { 400 };
                assert_eq!(response.status, expected, "{name}");
            }
            ("openai-expired.json", ItemOutcome::Failed(failure)) => {
                assert_eq!(failure.ran, DidItRun::Refused);
            }
            (_, ItemOutcome::Failed(failure)) => assert_eq!(failure.ran, DidItRun::Unknown, "{name}"),
        }
    }
}

fn batch() -> Batch {
    Batch {
        mark: "m1".into(),
        endpoint: "/v1/chat/completions".into(),
        model: "m".into(),
        offer: "batch".into(),
        items: 2,
        waiting: 2,
        only: None,
        headers: vec![],
        created_at_ms: 1_800_000_000_000,
    }
}

fn any_dialect() -> impl Strategy<Value = DialectName> {
    let dialects = DialectName::ALL.into_iter().filter(|name| name.dialect().batch_api.is_some());
    proptest::sample::select(dialects.collect::<Vec<_>>())
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
    let status = prop_oneof![6 => Just(200_u16), 1 => Just(404), 1 => Just(429), 1 => Just(502)];
    let lost = proptest::bool::weighted(0.1);
    (any::<Index>(), vec(any_bend(&[]), 0..3), status, lost).prop_map(|(file, bends, status, lost)| Came {
        file,
        bends,
        status,
        lost,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// A bent line is a result or garbage, and what it gives on can be delivered.
    #[test]
    fn no_bent_line_does_harm(file in any::<Index>(), bends in vec(any_bend(&[]), 1..5)) {
        let corpus = corpus("lines");
        let line = bent(corpus[file.index(corpus.len())].1.clone(), &bends);
        if let Decoded::Result(result) = lines::decode(&line, api())
            && let ItemOutcome::Response(response) = result.outcome
        {
            prop_assert!((100..600).contains(&response.status));
            prop_assert!(serde_json::from_slice::<&serde_json::value::RawValue>(&response.body).is_ok());
        }
    }

    /// Bent answers, in any order and in any dialect: no panic, a small state, bounded pauses, no creation while another
    /// one's fate is unknown.
    #[test]
    fn no_bent_answer_does_harm(dialect in any_dialect(), came in vec(any_came(), 1..40)) {
        const STATE_BYTES_MAX: usize = 64 * 1024;
        let corpus = corpus("answers");
        let config = Config { dialect, ..Config::default() };
        let batch = batch();
        let context = Context::new(&batch, &config).unwrap();
        let creation = format!("{}{}", config.root(), context.api.batches);
        let mut stored = Vec::new();
        let mut event = Event::Start;
        let (mut outstanding, mut in_doubt) = (None, false);
        for came in came {
            let step = batch_step(&stored, event, context).unwrap();
            prop_assert!(step.state.len() <= STATE_BYTES_MAX);
            let creates = matches!(&step.effect, Effect::Call(call) if call.method == "POST" && call.path == creation);
            let searches = matches!(&step.effect, Effect::Call(call) if call.method == "GET"
                && call.path.split('?').next() == Some(&creation));
            prop_assert!(!(creates && in_doubt), "created again without having looked");
            let body = bent(corpus[came.file.index(corpus.len())].1.clone(), &came.bends);
            event = match &step.effect {
                Effect::Wait(ms) => {
                    prop_assert!(*ms <= 86_400_000);
                    Event::Waited
                }
                _ if came.lost => Event::Interrupted,
                Effect::Read(reading) => Event::Read(ReadSummary {
                    source: reading.source.clone(), status: came.status, lines: 1, results: 1, whole: true,
                }),
                _ => Event::Answered(Response { status: came.status, headers: Vec::new(), body: body.clone() }),
            };
            // After a creation that was lost, or whose server failed, only a page of a listing that was read may clear it.
            in_doubt |= creates && (came.lost || came.status == 502);
            in_doubt &= !(searches && !came.lost && came.status == 200);
            stored = step.state;
            outstanding = Some(step.effect);
            if matches!(outstanding, Some(Effect::Finished(_) | Effect::Failed(_))) {
                break;
            }
        }
        prop_assert!(outstanding.is_some());
    }
}
