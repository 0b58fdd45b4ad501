//! A router that does what the model's name says, which is mostly mischief. The names are explained in `offpeak-guests`.

use std::{
    hint::black_box,
    sync::atomic::{AtomicU64, Ordering},
};

use offpeak_plugin::router::{
    BodyNeed, Candidate, Choice, Decision, Description, Envelope, Rejection, Router,
};

struct Misfit;

impl Router for Misfit {
    fn describe() -> Description {
        let settings = offpeak_plugin::config::<serde_json::Value>().unwrap_or_default();
        let mut headers = vec!["x-mood".into()];
        match settings["describe"].as_str().unwrap_or_default() {
            "huge-list" => headers.resize(200_000, "x-mood".into()),
            mischief => misbehave(mischief),
        }
        Description { name: "misfit".into(), version: "1".into(), body: BodyNeed::Prefix(16), headers }
    }

    fn route(envelope: Envelope, candidates: Vec<Candidate>) -> Decision {
        static CALLS: AtomicU64 = AtomicU64::new(0);
        let calls = CALLS.fetch_add(1, Ordering::Relaxed) + 1;
        misbehave(&envelope.model);
        match envelope.model.as_str() {
            "unknown-backend" => choose("nowhere", "standard", ""),
            "unknown-offer" => choose(candidates.first().map_or("", |c| &c.backend), "gratis", ""),
            "odd-status" => Decision::Reject(Rejection {
                status: 7,
                code: "odd".into(),
                message: "not a status".into(),
                retry_after_s: None,
            }),
            "huge-answer" => first(&candidates, &"x".repeat(8 << 20)),
            "log-flood" => {
                let line = "flood ".repeat((64 << 10) / 6);
                for _ in 0..1000 {
                    offpeak_plugin::log(offpeak_plugin::Level::Info, &line);
                }
                first(&candidates, "")
            }
            "log-huge" => {
                offpeak_plugin::log(offpeak_plugin::Level::Error, &"\u{e4}".repeat(8 << 20));
                first(&candidates, "")
            }
            "leak" => {
                black_box(vec![1_u8; 8 << 20].leak());
                first(&candidates, &calls.to_string())
            }
            "count" => first(&candidates, &calls.to_string()),
            "now" => {
                let before = offpeak_plugin::now_ms();
                for round in 0..1_000_000_u32 {
                    black_box(round);
                }
                first(&candidates, &format!("{before} {}", offpeak_plugin::now_ms()))
            }
            "config" => match offpeak_plugin::config::<serde_json::Value>() {
                Ok(config) => first(&candidates, &config.to_string()),
                Err(_) => Decision::Pass,
            },
            "echo" => first(&candidates, &format!("{envelope:?} {candidates:?}")),
            _ => {
                let settings = offpeak_plugin::config::<serde_json::Value>().unwrap_or_default();
                misbehave(settings["route"].as_str().unwrap_or_default());
                first(&candidates, "")
            }
        }
    }
}

/// What is no answer at all, in whatever function.
fn misbehave(mischief: &str) {
    match mischief {
        "loop" => loop {
            black_box(mischief);
        },
        "allocate" => {
            let mut hoard = Vec::new();
            loop {
                hoard.push(black_box(vec![1_u8; 1 << 20]));
            }
        }
        "panic" => panic!("told to"),
        "recurse" => {
            black_box(depth(black_box(1)));
        }
        "call-flood" => loop {
            black_box(offpeak_plugin::now_ms());
            black_box(offpeak_plugin::config::<serde_json::Value>().is_ok());
            offpeak_plugin::log(offpeak_plugin::Level::Error, "flood");
        },
        _ => {}
    }
}

/// The first offer of the first candidate.
fn first(candidates: &[Candidate], lane: &str) -> Decision {
    let found = candidates.first().and_then(|c| c.offers.first().map(|offer| (c, offer)));
    found.map_or(Decision::Pass, |(c, offer)| choose(&c.backend, &offer.name, lane))
}

fn choose(backend: &str, offer: &str, lane: &str) -> Decision {
    Decision::Choose(Choice {
        backend: backend.into(),
        offer: offer.into(),
        within_ms: None,
        lane: lane.into(),
    })
}

#[expect(unconditional_recursion, reason = "that is the mischief")]
fn depth(n: u64) -> u64 {
    black_box(depth(black_box(n + 1)) + black_box(n))
}

offpeak_plugin::export_router!(Misfit);
