//! Answers and requests as they are, and what becomes of them on a bad day: the corpus in `corpus/`, bent in every way.

use proptest::{collection::vec, prelude::*, sample::Index};
use serde_json::{Value, value::RawValue};

use super::{
    super::{
        answer, error,
        request::{self, Options},
        stream::Stream,
    },
    generate::cut,
};
use crate::bend::{any_bend, bent, corpus};

fn streamed(pieces: &[&[u8]]) -> String {
    let mut stream = Stream::new(0, true);
    let mut out: Vec<u8> = pieces.iter().flat_map(|piece| stream.push(piece)).collect();
    out.extend(stream.finish());
    String::from_utf8(out).unwrap()
}

/// How often a stream says that it is over.
fn ends(stream: &str) -> usize {
    let is_end = |event: &&str| *event == "data: [DONE]" || event.starts_with("data: {\"error\":");
    stream.split("\n\n").filter(is_end).count()
}

#[test]
fn the_corpus_is_understood_as_it_is() {
    for (name, message) in corpus("messages") {
        let completion = answer::translate(&message, 0).unwrap();
        let completion: Value = serde_json::from_slice(&completion).unwrap();
        let expected = match name.as_str() {
            "text.json" => "stop",
            "tools.json" => "tool_calls",
            _ => "content_filter",
        };
        assert_eq!(completion["choices"][0]["finish_reason"], expected, "{name}");
    }
    for (name, bytes) in corpus("streams") {
        let stream = streamed(&[&bytes]);
        assert_eq!(stream.ends_with("data: [DONE]\n\n"), name != "overloaded.sse", "{name}: {stream}");
        assert_eq!(ends(&stream), 1, "{name}");
    }
    for (name, body) in corpus("requests") {
        request::translate(&body, &Options::default())
            .unwrap_or_else(|refusal| panic!("{name}: {refusal:?}"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// A bent stream has one end, all of its chunks can be read, and cuts change nothing.
    #[test]
    fn no_bent_stream_does_harm(
        file in any::<Index>(),
        bends in vec(any_bend(), 1..5),
        cuts in vec(any::<Index>(), 0..6),
    ) {
        let corpus = corpus("streams");
        let bytes = bent(corpus[file.index(corpus.len())].1.clone(), &bends);
        let stream = streamed(&[&bytes]);
        prop_assert_eq!(ends(&stream), 1, "{}", stream);
        for data in stream.split("\n\n").filter_map(|event| event.strip_prefix("data: ")) {
            prop_assert!(data == "[DONE]" || serde_json::from_str::<Value>(data).is_ok(), "{}", data);
        }
        prop_assert_eq!(streamed(&cut(&bytes, &cuts)), stream);
    }

    /// Bent answers and errors become JSON or are refused; bent requests too.
    #[test]
    fn nothing_bent_does_harm(file in any::<Index>(), bends in vec(any_bend(), 1..5), status in 400_u16..600) {
        let of = |folder| {
            let corpus = corpus(folder);
            bent(corpus[file.index(corpus.len())].1.clone(), &bends)
        };
        let is_json = |body: &[u8]| serde_json::from_slice::<&RawValue>(body).is_ok();
        if let Ok(completion) = answer::translate(&of("messages"), 0) {
            prop_assert!(is_json(&completion));
        }
        let error = error::translate(status, &of("errors"));
        prop_assert!(is_json(&error.body) && error.status >= 400);
        match request::translate(&of("requests"), &Options::default()) {
            Ok(request) => prop_assert!(is_json(&request.body), "{}", String::from_utf8_lossy(&request.body)),
            Err(refusal) => prop_assert!(!refusal.message.is_empty()),
        }
    }
}
