//! What a provider counted, read from its answer: from a whole one, or from the bytes of one that passes.

mod counts;

use std::sync::LazyLock;

use memchr::memmem::Finder;
use offpeak_core::usage::Usage;
use serde::Deserialize;
use serde_json::value::RawValue;

use counts::Counts;

/// What an answer says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// Tokens.
    pub usage: Option<Usage>,
    /// The service tier that was charged.
    pub tier: Option<String>,
}

/// Reads a whole answer. All that is not looked for is skipped; what is no JSON object says nothing.
pub fn of_answer(body: &[u8]) -> Found {
    #[derive(Deserialize)]
    struct Answer<'a> {
        #[serde(borrow, default)]
        usage: Option<&'a RawValue>,
        #[serde(borrow, default)]
        service_tier: Option<&'a RawValue>,
    }
    let Ok(answer) = serde_json::from_slice::<Answer<'_>>(body) else { return Found::default() };
    let mut counts = Counts::default();
    if let Some(usage) = answer.usage {
        counts.read(usage.get().as_bytes());
    }
    let tier = answer.service_tier.and_then(|tier| serde_json::from_str(tier.get()).ok());
    Found { usage: counts.usage(), tier }
}

/// Longest usage object that is looked at, in bytes.
const OBJECT_MAX: usize = 4 << 10;
/// Longest name of a tier.
const TIER_MAX: usize = 32;

const USAGE: &[u8] = b"\"usage\"";
const TIER: &[u8] = b"\"service_tier\"";
/// Searches that are made ready once: answers pass by the thousand.
static FIND_USAGE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(USAGE));
static FIND_TIER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(TIER));
static FIND_EVENT: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"data:"));

/// So many bytes of a name may lie in the piece before.
const TAIL: usize = TIER.len() - 1;

/// Finds the usage in an answer while its bytes pass, wherever they are cut, in a stream of events as in one JSON object.
///
/// Only the few hundred bytes behind the names are looked at one by one. A name in quotes cannot stand inside a JSON
/// text (its quotes would be escaped there), and what has the name and is no usage has no member that counts. A stream
/// tells several times, each time more: the last word counts, member by member.
#[derive(Debug, Default)]
pub struct Scanner {
    is_stream: bool,
    state: State,
    tail: Vec<u8>,
    counts: Counts,
    tier: Option<String>,
    events: u64,
    /// Of them, those after the last usage.
    events_since: u64,
    has_just_counted: bool,
}

#[derive(Debug, Default)]
enum State {
    /// For a name.
    #[default]
    Seeking,
    /// A name was read; its value comes next.
    Between { name: Name, colon: bool },
    /// In the value.
    Taking { name: Name, bytes: Vec<u8>, depth: u32, in_text: bool, escaped: bool },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    Usage,
    Tier,
}

impl Scanner {
    /// For a stream of events, which are counted, or for one JSON object.
    pub fn new(is_stream: bool) -> Self {
        Self { is_stream, ..Self::default() }
    }

    /// The next bytes of the answer.
    pub fn see(&mut self, data: &[u8]) {
        let events = |data: &[u8]| FIND_EVENT.find_iter(data).count() as u64;
        if self.is_stream {
            let more = events(data);
            self.events += more;
            self.events_since += more;
        }
        let mut at = 0;
        while let Some(rest) = data.get(at..).filter(|rest| !rest.is_empty()) {
            at += match &self.state {
                State::Seeking => self.seek(rest),
                State::Between { .. } | State::Taking { .. } => self.step(rest),
            };
            if std::mem::take(&mut self.has_just_counted) && self.is_stream {
                self.events_since = events(data.get(at..).unwrap_or_default());
            }
        }
    }

    /// What was found.
    pub fn found(&mut self) -> Found {
        Found { usage: self.counts.usage(), tier: self.tier.take() }
    }

    /// Events of a stream that were seen; of models that send a token an event, about as many tokens.
    pub const fn events(&self) -> u64 {
        self.events
    }

    /// Those of them that came after the last word about usage. At the end of a whole stream it is one, which says that it is over;
    /// where there are more, the stream was cut, and what it said at its beginning was not the last word.
    pub const fn events_since_usage(&self) -> u64 {
        self.events_since
    }

    /// Goes on to the end of the next name, or of the data.
    fn seek(&mut self, data: &[u8]) -> usize {
        if !self.tail.is_empty() {
            let before = self.tail.len();
            let mut joint = std::mem::take(&mut self.tail);
            joint.extend_from_slice(data.get(..TAIL).unwrap_or(data));
            if let Some((name, end)) = first_name(&joint).filter(|(_, end)| *end > before) {
                self.state = State::Between { name, colon: false };
                return end - before;
            }
            if data.len() < TAIL {
                let keep = joint.len().saturating_sub(TAIL);
                self.tail = joint.split_off(keep);
                return data.len();
            }
        }
        if let Some((name, end)) = first_name(data) {
            self.state = State::Between { name, colon: false };
            return end;
        }
        let keep = data.len().saturating_sub(TAIL);
        self.tail.extend_from_slice(data.get(keep..).unwrap_or_default());
        data.len()
    }

    /// Takes bytes one by one until the value's end, or until it turns out to be none.
    fn step(&mut self, data: &[u8]) -> usize {
        for (index, byte) in data.iter().enumerate() {
            match &mut self.state {
                State::Seeking => return index,
                State::Between { name, colon } => match (byte, *colon, *name) {
                    (b' ' | b'\t' | b'\r' | b'\n', _, _) => {}
                    (b':', false, _) => *colon = true,
                    (b'{', true, Name::Usage) | (b'"', true, Name::Tier) => {
                        let (name, in_text) = (*name, *name == Name::Tier);
                        let bytes = vec![*byte];
                        self.state = State::Taking { name, bytes, depth: 1, in_text, escaped: false };
                    }
                    _ => {
                        self.state = State::Seeking;
                        return index;
                    }
                },
                State::Taking { name, bytes, depth, in_text, escaped } => {
                    bytes.push(*byte);
                    match (*byte, *in_text, *escaped) {
                        (_, true, true) => *escaped = false,
                        (b'\\', true, false) => *escaped = true,
                        (b'"', true, false) => {
                            *in_text = false;
                            if *name == Name::Tier {
                                *depth = 0;
                            }
                        }
                        (b'"', false, _) => *in_text = true,
                        (b'{', false, _) => *depth += 1,
                        (b'}', false, _) => *depth -= 1,
                        _ => {}
                    }
                    let (name, is_whole) = (*name, *depth == 0);
                    let limit = if name == Name::Usage { OBJECT_MAX } else { TIER_MAX };
                    if is_whole {
                        let bytes = std::mem::take(bytes);
                        self.take(name, &bytes);
                    }
                    if is_whole || self.taken() > limit {
                        self.state = State::Seeking;
                        return index + 1;
                    }
                }
            }
        }
        data.len()
    }

    fn taken(&self) -> usize {
        match &self.state {
            State::Taking { bytes, .. } => bytes.len(),
            State::Seeking | State::Between { .. } => 0,
        }
    }

    fn take(&mut self, name: Name, value: &[u8]) {
        match name {
            Name::Usage => {
                self.counts.read(value);
                self.has_just_counted = true;
            }
            Name::Tier => self.tier = serde_json::from_slice(value).ok(),
        }
    }
}

/// The first name in the data, with where it ends.
fn first_name(data: &[u8]) -> Option<(Name, usize)> {
    let find = |finder: &Finder<'_>, name| finder.find(data).map(|at| (name, at + finder.needle().len()));
    match (find(&FIND_USAGE, Name::Usage), find(&FIND_TIER, Name::Tier)) {
        (Some(usage), Some(tier)) => Some(if usage.1 < tier.1 { usage } else { tier }),
        (usage, tier) => usage.or(tier),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CHAT: &str = r#"{"id":"c","service_tier":"default","choices":[{"message":{"content":"\"usage\": {\"prompt_tokens\": 9}"}}],
        "usage": {"prompt_tokens":100,"completion_tokens":20,"total_tokens":120,
        "prompt_tokens_details":{"cached_tokens":40,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":5}}}"#;
    const STREAM: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"usage\"}}],\"usage\":null}\n\n\
        data: {\"choices\":[{\"delta\":{\"content\":\"\\\"usage\\\":{\"}}],\"usage\":null,\"service_tier\":\"flex\"}\n\n\
        data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":3,\"x\":\"}\\\"\"}}\n\ndata: [DONE]\n\n";
    const MESSAGES: &str = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":10,\
        \"cache_creation_input_tokens\":30,\"cache_read_input_tokens\":50,\"cache_creation\":{\"ephemeral_5m_input_tokens\":20,\
        \"ephemeral_1h_input_tokens\":10},\"output_tokens\":1}}}\n\n\
        event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{},\"usage\":{\"output_tokens\":15}}\n\n";
    const SCHEMA: &str = r#"{"tools":[{"parameters":{"properties":{"usage":{"type":"object"}}}}],"usage":{"input_tokens":4,
        "input_tokens_details":{"cached_tokens":1},"output_tokens":2},"metadata":{}}"#;

    fn scan(pieces: &[&[u8]]) -> Scanner {
        let mut scanner = Scanner::new(true);
        for piece in pieces {
            scanner.see(piece);
        }
        scanner
    }

    #[test]
    fn what_follows_the_last_usage_tells_whether_a_stream_was_cut() {
        let whole = format!("{MESSAGES}event: message_stop\ndata: {{\"type\":\"message_stop\"}}\n\n");
        for size in 1..whole.len() {
            let pieces: Vec<&[u8]> = whole.as_bytes().chunks(size).collect();
            assert!(scan(&pieces).events_since_usage() <= 1, "{size}");
        }
        assert_eq!(scan(&[STREAM.as_bytes()]).events_since_usage(), 1);
        let (begin, _) = MESSAGES.split_once("event: message_delta").unwrap();
        let cut = format!("{begin}{}", "event: content_block_delta\ndata: {}\n\n".repeat(7));
        assert_eq!(scan(&[cut.as_bytes()]).events_since_usage(), 7);
    }

    #[test]
    fn each_api_is_understood() {
        let chat = Usage { input: 100, cached: 40, output: 20, reasoning: 5, ..Usage::default() };
        let found = scan(&[CHAT.as_bytes()]).found();
        assert_eq!(found, Found { usage: Some(chat), tier: Some("default".into()) });
        assert_eq!(of_answer(CHAT.as_bytes()), found);

        let mut stream = scan(&[STREAM.as_bytes()]);
        let counted = Usage { input: 7, output: 3, ..Usage::default() };
        assert_eq!(stream.found(), Found { usage: Some(counted), tier: Some("flex".into()) });
        assert_eq!(stream.events(), 4);

        let messages = Usage {
            input: 90,
            cached: 50,
            cache_written: 20,
            cache_written_1h: 10,
            output: 15,
            ..Usage::default()
        };
        assert_eq!(scan(&[MESSAGES.as_bytes()]).found().usage, Some(messages));
        let responses = Usage { input: 4, cached: 1, output: 2, ..Usage::default() };
        assert_eq!(scan(&[SCHEMA.as_bytes()]).found().usage, Some(responses));
    }

    #[test]
    fn what_tells_nothing_is_nothing() {
        for body in [
            "",
            "[]",
            "{\"usage\":null}",
            "{\"usage\":[]}",
            "{\"usage\":{\"type\":\"x\"}}",
            "usage",
            "\"usage\":{",
        ] {
            assert_eq!(scan(&[body.as_bytes()]).found(), Found::default(), "{body}");
            assert_eq!(of_answer(body.as_bytes()), Found::default(), "{body}");
        }
        let endless = format!("\"usage\":{{{}", "\"a\":1,".repeat(2000));
        let mut scanner = scan(&[endless.as_bytes()]);
        scanner.see(CHAT.as_bytes());
        assert!(scanner.found().usage.is_some(), "it goes on after what is too long");
    }

    proptest! {
        #[test]
        fn it_does_not_matter_where_the_bytes_are_cut(
            which in 0_usize..4,
            cuts in prop::collection::vec(0_usize..700, 0..40),
        ) {
            let text = [CHAT, STREAM, MESSAGES, SCHEMA][which].as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts.into_iter().chain([text.len()]) {
                pieces.push(&text[from..cut]);
                from = cut;
            }
            prop_assert_eq!(scan(&pieces).found(), scan(&[text]).found());
        }

        #[test]
        fn no_bytes_make_it_panic(pieces in prop::collection::vec(prop::collection::vec(
            prop::sample::select(b"\"usage\":{}\\ service_tier1".to_vec()), 0..40), 0..8)) {
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            scan(&pieces);
        }
    }
}
