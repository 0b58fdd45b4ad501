//! The engine's arithmetic against the figures, and its promises whatever comes.

#![expect(clippy::cast_precision_loss, reason = "microseconds of seconds")]

use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000;

fn chat(call: u64, tokens: u64, generate: u64) -> Submission {
    Submission { call, prompts: vec![Prompt { tokens, generate, capped: true }], priority: 0, streams: false }
}

fn engine(change: impl FnOnce(&mut EngineOptions)) -> EngineModel {
    let mut options = EngineOptions::default();
    change(&mut options);
    EngineModel::new(options, 0)
}

/// Runs calls of these lengths, all sent at once; gives the seconds that it took.
fn run(engine: &mut EngineModel, calls: impl IntoIterator<Item = (u64, u64)>) -> f64 {
    let start = engine.now;
    for (call, (tokens, generate)) in calls.into_iter().enumerate() {
        engine.submit(chat(call as u64, tokens, generate), start).unwrap();
    }
    let mut last = start;
    while let Some(at) = engine.wake_at() {
        engine.advance(at);
        last = at;
    }
    assert_eq!(engine.load(), 0);
    (last - start) as f64 / SECOND as f64
}

#[test]
fn thirty_two_at_once_are_four_to_six_times_as_fast_as_one_by_one() {
    let mut one_by_one = 0.0;
    let mut engine = engine(|_| {});
    for _ in 0..32 {
        one_by_one += run(&mut engine, [(50, 100)]);
    }
    let together = run(&mut engine, vec![(50, 100); 32]);
    let gain = one_by_one / together;
    assert!((4.0..=6.0).contains(&gain), "{gain}");
    let speed = 3_200.0 / together;
    assert!((1_700.0..=2_100.0).contains(&speed), "about 2,000 tokens a second, prompts included: {speed}");
}

#[test]
fn beyond_saturation_only_latency_grows() {
    let time = |count: usize| {
        let mut engine = engine(|options| options.max_num_seqs = 1_024);
        run(&mut engine, vec![(1, 100); count])
    };
    let (at_256, at_512) = (time(256), time(512));
    assert!((1.9..=2.1).contains(&(at_512 / at_256)), "{at_256} s and {at_512} s");
}

#[test]
fn lists_of_short_inputs_pay_and_those_of_long_ones_less() {
    let time = |inputs: usize, tokens: u64, calls: u64| {
        let mut engine = engine(|_| {});
        let prompts = vec![Prompt { tokens, generate: 0, capped: false }; inputs];
        for call in 0..calls {
            let submission = Submission { call, prompts: prompts.clone(), priority: 0, streams: false };
            engine.submit(submission, engine.now).unwrap();
            while let Some(at) = engine.wake_at() {
                engine.advance(at);
            }
        }
        engine.now
    };
    let gain = |tokens: u64| time(1, tokens, 32) as f64 / time(32, tokens, 1) as f64;
    assert!((4.0..=6.0).contains(&gain(5)), "{}", gain(5));
    assert!((1.2..=2.0).contains(&gain(130)), "{}", gain(130));
}

#[test]
fn an_engine_that_pads_takes_as_long_as_if_all_were_the_longest() {
    let time = |pads: bool, lengths: [u64; 4]| {
        let mut engine = engine(|options| options.pads = pads);
        let prompts = lengths.map(|tokens| Prompt { tokens, generate: 0, capped: false }).to_vec();
        engine.submit(Submission { call: 1, prompts, priority: 0, streams: false }, 0).unwrap();
        while let Some(at) = engine.wake_at() {
            engine.advance(at);
        }
        engine.now
    };
    assert_eq!(time(true, [5, 7, 9, 300]), time(false, [300; 4]));
    assert!(time(false, [5, 7, 9, 300]) < time(false, [300; 4]));
}

#[test]
fn what_waits_goes_in_the_order_of_arrival_or_of_priority() {
    let order = |by_priority: bool| {
        let mut engine = engine(|options| {
            options.max_num_seqs = 1;
            options.priority_scheduling = by_priority;
        });
        for (call, priority) in [(0, 0), (1, 5), (2, 0), (3, -1)] {
            let submission = Submission { priority, ..chat(call, 10, 10) };
            engine.submit(submission, 0).unwrap();
        }
        engine.advance(10 * SECOND);
        engine.take_finished()
    };
    assert_eq!(order(false), [0, 1, 2, 3]);
    assert_eq!(order(true), [0, 3, 2, 1], "the first runs before the others have arrived");
}

#[test]
fn a_full_cache_puts_the_latest_back_and_all_finish() {
    let mut engine = engine(|options| options.kv_cache_tokens = 1_000);
    let took = run(&mut engine, vec![(100, 200); 8]);
    assert!(engine.stats().preemptions > 0);
    assert_eq!(engine.stats().generated_tokens, 8 * 200);
    assert!(engine.cache_usage() == 0.0);
    let roomy = run(&mut super::tests::engine(|_| {}), vec![(100, 200); 8]);
    assert!(took > roomy);
}

#[test]
fn a_full_queue_lets_nobody_in() {
    let mut engine = engine(|options| {
        options.max_num_seqs = 2;
        options.max_num_queued_reqs = Some(1);
        options.max_num_queued_tokens = Some(100);
    });
    for call in 0..3 {
        engine.submit(chat(call, 10, 10), 0).unwrap();
    }
    assert_eq!(engine.submit(chat(3, 10, 10), 0), Err(Rejection::QueuedRequests));
    engine.advance(SECOND);
    for call in 4..6 {
        engine.submit(chat(call, 10, 10), SECOND).unwrap();
    }
    assert_eq!(engine.submit(chat(6, 101, 10), SECOND), Err(Rejection::QueuedTokens));
    assert_eq!((engine.stats().rejected_requests, engine.stats().rejected_tokens), (1, 1));
}

#[test]
fn a_stop_tells_how_far_everybody_was() {
    let mut engine = engine(|options| options.max_num_seqs = 1);
    engine.submit(chat(1, 10, 1_000), 0).unwrap();
    engine.submit(chat(2, 10, 1_000), 0).unwrap();
    engine.advance(SECOND);
    let aborted = engine.abort_all();
    assert!((350..=400).contains(&aborted[&1]), "{aborted:?}");
    assert_eq!(aborted[&2], 0);
    assert_eq!((engine.wake_at(), engine.load(), engine.running()), (None, 0, 0));
}

#[derive(Debug, Clone)]
enum Act {
    Submit { prompts: Vec<(u64, u64)>, priority: i64, streams: bool },
    Advance(u64),
    Cancel(u64),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let prompts = prop::collection::vec((1_u64..200, 0_u64..60), 1..4);
    let act = prop_oneof![
        3 => (prompts, -2_i64..3, any::<bool>())
            .prop_map(|(prompts, priority, streams)| Act::Submit { prompts, priority, streams }),
        2 => (0_u64..400_000).prop_map(Act::Advance),
        1 => (0_u64..30).prop_map(Act::Cancel),
    ];
    prop::collection::vec(act, 1..60)
}

proptest! {
    /// Whatever comes in whatever order: every call that was let in and not cancelled ends once, every token of it is
    /// generated once, and nothing is left behind. Looking often or seldom makes no difference.
    #[test]
    fn every_call_ends_once_with_all_its_tokens(acts in acts(), looks in 1_u64..5) {
        let options = EngineOptions {
            kv_cache_tokens: 600,
            max_num_seqs: 4,
            priority_scheduling: true,
            ..EngineOptions::default()
        };
        let run = |looks: u64| {
            let mut engine = EngineModel::new(options.clone(), 0);
            let mut now = 0;
            let (mut expected, mut ended, mut cancelled) = (0, Vec::new(), false);
            let mut calls = 0;
            for act in &acts {
                match act {
                    Act::Submit { prompts, priority, streams } => {
                        let prompts: Vec<_> = prompts
                            .iter()
                            .map(|(tokens, generate)| Prompt { tokens: *tokens, generate: *generate, capped: false })
                            .collect();
                        expected += prompts.iter().map(|prompt| prompt.generate).sum::<u64>();
                        let submission = Submission { call: calls, prompts, priority: *priority, streams: *streams };
                        engine.submit(submission, now).unwrap();
                        calls += 1;
                    }
                    Act::Advance(us) => {
                        for part in 1..=looks {
                            engine.advance(now + us * part / looks);
                        }
                        now += us;
                    }
                    Act::Cancel(call) => {
                        cancelled |= *call < calls;
                        engine.cancel(*call);
                    }
                }
                ended.extend(engine.take_finished());
                prop_assert!(engine.running() <= 4);
            }
            let mut guard = 0;
            while let Some(at) = engine.wake_at() {
                engine.advance(at);
                ended.extend(engine.take_finished());
                guard += 1;
                prop_assert!(guard < 100_000, "it never comes to rest");
            }
            prop_assert_eq!((engine.load(), engine.running(), engine.waiting()), (0, 0, 0));
            prop_assert!(engine.cache_usage() == 0.0);
            if !cancelled {
                prop_assert_eq!(engine.stats().generated_tokens, expected);
                let mut sorted = ended.clone();
                sorted.sort_unstable();
                prop_assert_eq!(sorted, (0..calls).collect::<Vec<_>>());
            }
            Ok((ended, engine.stats().generated_tokens))
        };
        prop_assert_eq!(run(1)?, run(looks)?);
    }
}
