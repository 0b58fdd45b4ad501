//! What an engine's answers mean: what goes on in it, and how much more deferred work it can take.

use offpeak_plugin::engine::{Load, Look, Sight, State, UnderWay};

use crate::config::Config;
use crate::exposition::{Fold, samples, value};
use crate::kind::Metrics;

/// What to read at each look: the health first, then the metrics.
pub fn looks(config: &Config) -> Vec<Look> {
    let kind = config.kind();
    let look = |path: &str| Look { path: path.to_owned() };
    let metrics = kind.metrics.as_ref().map(|metrics| look(metrics.path));
    [look(kind.health)].into_iter().chain(metrics).collect()
}

/// The answers to [`looks`], in that order.
pub fn interpret(sights: &[Sight], under_way: UnderWay, config: &Config) -> Load {
    let kind = config.kind();
    let mut load = Load {
        state: state_of(sights.first(), kind.unavailable_is_loading),
        running: None,
        waiting: None,
        cache_permille: None,
        prompt_tokens: None,
        generated_tokens: None,
        room: None,
    };
    let page = sights.get(1).filter(|sight| sight.status == Some(200));
    if let (Some(metrics), Some(page)) = (&kind.metrics, page) {
        read(&mut load, metrics, &String::from_utf8_lossy(&page.body));
    }
    load.room = match load.state {
        State::Ready => room(&load, under_way, config),
        State::Resting | State::Down => Some(0),
    };
    load
}

fn state_of(health: Option<&Sight>, unavailable_is_loading: bool) -> State {
    match health.and_then(|sight| sight.status) {
        // A server in front of the engine that knows no such path says nothing about the engine.
        Some(200..=299 | 404 | 405) => State::Ready,
        Some(503) if unavailable_is_loading => State::Resting,
        _ => State::Down,
    }
}

fn read(load: &mut Load, metrics: &Metrics, page: &str) {
    load.running = value(page, metrics.running, Fold::Sum).map(count);
    load.waiting = value(page, metrics.waiting, Fold::Sum).map(count);
    load.cache_permille = value(page, metrics.cache, Fold::Largest).map(|share| count(share * 1000.0));
    load.prompt_tokens = value(page, metrics.prompt_tokens, Fold::Sum).map(total);
    load.generated_tokens = value(page, metrics.generated_tokens, Fold::Sum).map(total);
    if let Some((name, label)) = metrics.awake {
        let awake = samples(page, name).filter(|(labels, _)| labels.contains(label)).map(|(_, value)| value);
        if awake.reduce(f64::max).is_some_and(|awake| awake < 0.5) && load.state == State::Ready {
            load.state = State::Resting;
        }
    }
}

/// None where no signal says anything.
fn room(load: &Load, under_way: UnderWay, config: &Config) -> Option<u32> {
    if load.cache_permille.is_some_and(|used| used >= config.cache_permille_max) {
        return Some(0);
    }
    let ours = under_way.realtime.saturating_add(under_way.deferred);
    // What was sent since the engine counted is not in its numbers, and what others send is not in ours.
    let told = load.running.unwrap_or(0).saturating_add(load.waiting.unwrap_or(0));
    let taken = ours.max(told);
    let runs = load.running.or_else(|| config.max_running()).unwrap_or(0);
    let queue = (u64::from(runs) * u64::from(config.queue_percent)).div_ceil(100).max(1);
    let queue = u32::try_from(queue).unwrap_or(u32::MAX);
    let by_slots = config.max_running().map(|most| most.saturating_add(queue).saturating_sub(taken));
    let by_queue = load.waiting.filter(|waiting| *waiting > 0).map(|waiting| queue.saturating_sub(waiting));
    by_slots.into_iter().chain(by_queue).min()
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded before")]
fn count(value: f64) -> u32 {
    value.round().clamp(0.0, f64::from(u32::MAX)) as u32
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded before")]
fn total(value: f64) -> u64 {
    value.round().clamp(0.0, 9e15) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::KindName;

    const IDLE: UnderWay = UnderWay { realtime: 0, deferred: 0 };

    fn sight(status: u16, body: &str) -> Sight {
        Sight { status: Some(status), body: body.as_bytes().to_vec() }
    }

    fn of(engine: KindName) -> Config {
        Config { engine, ..Config::default() }
    }

    const BUSY: &str = "\
vllm:num_requests_running{engine=\"0\",model_name=\"tiny\"} 64.0
vllm:num_requests_waiting{engine=\"0\",model_name=\"tiny\"} 93.0
vllm:engine_sleep_state{engine=\"0\",sleep_state=\"awake\"} 1.0
vllm:engine_sleep_state{engine=\"0\",sleep_state=\"discard_all\"} 0.0
vllm:kv_cache_usage_perc{engine=\"0\"} 0.0078
vllm:prompt_tokens_total{engine=\"0\"} 13380.0
vllm:prompt_tokens_created{engine=\"0\"} 1.795e+09
vllm:generation_tokens_total{engine=\"0\"} 6.3447e+04
";

    #[test]
    fn a_busy_vllm_has_no_room() {
        let load = interpret(&[sight(200, ""), sight(200, BUSY)], IDLE, &of(KindName::Vllm));
        assert_eq!((load.state, load.running, load.waiting), (State::Ready, Some(64), Some(93)));
        assert_eq!((load.cache_permille, load.room), (Some(8), Some(0)));
        assert_eq!((load.prompt_tokens, load.generated_tokens), (Some(13_380), Some(63_447)));
    }

    #[test]
    fn what_waits_is_filled_up_to_a_tenth_of_what_runs() {
        let page = BUSY.replace(" 93.0", " 3.0");
        let load = interpret(&[sight(200, ""), sight(200, &page)], IDLE, &of(KindName::Vllm));
        assert_eq!(load.room, Some(4), "7 may wait, 3 do");
        let page = BUSY.replace(" 93.0", " 0.0");
        let load = interpret(&[sight(200, ""), sight(200, &page)], IDLE, &of(KindName::Vllm));
        assert_eq!(load.room, None, "nothing waits, so nothing is known");
    }

    #[test]
    fn a_full_cache_takes_no_more() {
        let page = BUSY.replace("0.0078", "0.96").replace(" 93.0", " 0.0");
        let load = interpret(&[sight(200, ""), sight(200, &page)], IDLE, &of(KindName::Vllm));
        assert_eq!(load.room, Some(0));
    }

    #[test]
    fn sleeping_loading_and_broken_engines_are_told_apart() {
        let asleep = BUSY.replace("\"awake\"} 1.0", "\"awake\"} 0.0");
        let load = interpret(&[sight(200, ""), sight(200, &asleep)], IDLE, &of(KindName::Vllm));
        assert_eq!((load.state, load.room), (State::Resting, Some(0)));
        let loading = [sight(503, r#"{"error":{"code":503,"message":"Loading model"}}"#), sight(503, "")];
        assert_eq!(interpret(&loading, IDLE, &of(KindName::Llamacpp)).state, State::Resting);
        assert_eq!(interpret(&loading, IDLE, &of(KindName::Vllm)).state, State::Down);
        let gone = [Sight { status: None, body: Vec::new() }, Sight { status: None, body: Vec::new() }];
        assert_eq!(interpret(&gone, IDLE, &of(KindName::Sglang)).state, State::Down);
        assert_eq!(interpret(&[], IDLE, &of(KindName::Sglang)).state, State::Down);
    }

    #[test]
    fn where_the_slots_are_known_they_are_filled() {
        let config = Config { max_running: Some(4), ..of(KindName::Llamacpp) };
        let page = "llamacpp:requests_processing 3\nllamacpp:requests_deferred 0\nllamacpp:tokens_predicted_total 24\n";
        let load = interpret(&[sight(200, ""), sight(200, page)], IDLE, &config);
        assert_eq!((load.running, load.room), (Some(3), Some(2)), "one slot, and one that waits");
        let busy = UnderWay { realtime: 1, deferred: 4 };
        assert_eq!(interpret(&[sight(200, ""), sight(200, page)], busy, &config).room, Some(0));
    }

    #[test]
    fn an_engine_without_metrics_is_bounded_by_what_is_usual() {
        let config = of(KindName::Ollama);
        assert_eq!(looks(&config).len(), 1);
        let under_way = UnderWay { realtime: 1, deferred: 2 };
        let load = interpret(&[sight(200, r#"{"version":"0.9"}"#)], under_way, &config);
        assert_eq!((load.state, load.running, load.room), (State::Ready, None, Some(2)));
        // Metrics that are not switched on say nothing; the engine works all the same.
        let load = interpret(&[sight(200, ""), sight(501, "")], IDLE, &of(KindName::Llamacpp));
        assert_eq!((load.state, load.running, load.room), (State::Ready, None, None));
    }
}
