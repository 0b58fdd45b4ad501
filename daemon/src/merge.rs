//! Bodies of requests that become one call with many inputs, and its answer that becomes theirs again: for the endpoints of
//! OpenAI's API that take arrays. What is merged is the same in every member but its inputs.

use std::borrow::Cow;

use bytes::Bytes;
use offpeak_core::buckets::Size;
use offpeak_core::merge::shares;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::members::{self, Edit};

/// Endpoints that take arrays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrays {
    /// `/v1/embeddings`
    Embeddings,
    /// `/v1/moderations`
    Moderations,
    /// `/v1/completions`
    Completions,
}

/// What inputs are made of; lists are of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// Texts.
    Texts,
    /// Lists of tokens.
    Tokens,
}

/// One request, as it can be merged with others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Requests with the same can be merged: what their inputs are made of, and the rest of the body.
    pub kind: (Form, Bytes),
    /// Its inputs as JSON; never empty.
    inputs: Vec<String>,
}

impl Arrays {
    /// Of this endpoint, if it takes arrays.
    pub fn of(endpoint: &str) -> Option<Self> {
        match endpoint {
            "/v1/embeddings" => Some(Self::Embeddings),
            "/v1/moderations" => Some(Self::Moderations),
            "/v1/completions" => Some(Self::Completions),
            _ => None,
        }
    }

    /// Whether tokens are made for an input, which takes far longer than to read it.
    pub const fn makes_tokens(self) -> bool {
        match self {
            Self::Embeddings | Self::Moderations => false,
            Self::Completions => true,
        }
    }

    /// The member with the inputs, and that of the answer with one element for each.
    const fn members(self) -> (&'static str, &'static str) {
        match self {
            Self::Embeddings => ("input", "data"),
            Self::Moderations => ("input", "results"),
            Self::Completions => ("prompt", "choices"),
        }
    }

    /// Members with which an input has no answer, or not one of its own.
    const fn hinder(self) -> &'static [&'static str] {
        match self {
            Self::Embeddings | Self::Moderations => &["stream"],
            Self::Completions => &["stream", "n", "best_of", "use_beam_search", "prompt_embeds"],
        }
    }
}

impl Part {
    /// None if it has to travel alone.
    pub fn read(arrays: Arrays, body: &[u8]) -> Option<Self> {
        let (name, _) = arrays.members();
        let members = members::members(body).ok()?;
        let mut given = members.iter().filter(|(member, _)| *member == name).map(|(_, value)| value.get());
        let (inputs, others) = (given.next()?, given.next());
        if others.is_some() || members.iter().any(|(member, _)| arrays.hinder().contains(&&**member)) {
            return None;
        }
        let (form, inputs) = inputs_of(inputs)?;
        let rest = members::edit(body, &[Edit::remove(name)]).ok()?;
        Some(Self { kind: (form, rest.into()), inputs })
    }

    /// How many inputs it has.
    pub const fn count(&self) -> usize {
        self.inputs.len()
    }

    /// Its inputs, and about how many tokens they have.
    pub fn size(&self) -> Size {
        let tokens = |input: &String| match self.kind.0 {
            Form::Texts => input.len() / 4,
            Form::Tokens => input.bytes().filter(|byte| *byte == b',').count() + 1,
        };
        let mut size = Size { length: 0, inputs: self.inputs.len() as u64, tokens: 0 };
        for input in &self.inputs {
            let tokens = tokens(input) as u64;
            size.length = size.length.max(tokens);
            size.tokens += tokens;
        }
        size
    }

    fn weight(&self) -> u64 {
        self.inputs.iter().map(|input| input.len() as u64).sum()
    }
}

fn inputs_of(json: &str) -> Option<(Form, Vec<String>)> {
    if json.starts_with('"') {
        return Some((Form::Texts, vec![json.to_owned()]));
    }
    let elements: Vec<&RawValue> = serde_json::from_str(json).ok()?;
    let all = |is_right: fn(u8) -> bool| {
        elements.iter().all(|element| element.get().bytes().next().is_some_and(is_right))
    };
    let each = || elements.iter().map(|element| element.get().to_owned()).collect();
    match elements.first()?.get().bytes().next()? {
        b'"' => all(|first| first == b'"').then(|| (Form::Texts, each())),
        b'[' => all(|first| first == b'[').then(|| (Form::Tokens, each())),
        b'0'..=b'9' => all(|first| first.is_ascii_digit()).then(|| (Form::Tokens, vec![json.to_owned()])),
        _ => None,
    }
}

/// The body of one call for all of them, which are of one kind.
pub fn body(arrays: Arrays, parts: &[&Part]) -> Result<Bytes, serde_json::Error> {
    let rest = parts.first().map(|part| part.kind.1.clone()).unwrap_or_default();
    let inputs: Vec<&str> = parts.iter().flat_map(|part| part.inputs.iter().map(String::as_str)).collect();
    let (name, _) = arrays.members();
    members::edit(&rest, &[Edit::set(name, format!("[{}]", inputs.join(",")))]).map(Bytes::from)
}

/// The answer of each, in their order; none if it is not an answer to all of them.
pub fn split(arrays: Arrays, parts: &[&Part], answer: &[u8]) -> Option<Vec<Bytes>> {
    let (_, name) = arrays.members();
    let members = members::members(answer).ok()?;
    let (_, list) = members.iter().find(|(member, _)| member == name)?;
    let elements = in_order(list.get(), parts.iter().map(|part| part.count()).sum())?;
    let usage = members.iter().find(|(member, _)| member == "usage").map(|(_, usage)| usage.get());
    let mut lists = Vec::with_capacity(parts.len());
    let mut elements = elements.into_iter();
    for part in parts {
        lists.push(elements.by_ref().take(part.count()).collect::<Vec<_>>());
    }
    let sent: Vec<u64> = parts.iter().map(|part| part.weight()).collect();
    // What was made is not told by input; its length is near enough.
    let made: Vec<u64> =
        lists.iter().map(|list| list.iter().map(|element| element.get().len() as u64).sum()).collect();
    let mut usages = usage.and_then(|usage| usage_of_each(usage, &sent, &made)).map(Vec::into_iter);
    lists
        .into_iter()
        .map(|list| {
            let usage = usages.as_mut().and_then(Iterator::next);
            own_answer(&members, (name, &list), usage.as_deref()).map(Bytes::from)
        })
        .collect()
}

/// The elements by their indices, where they have any: each exactly once.
fn in_order(list: &str, expected: usize) -> Option<Vec<&RawValue>> {
    #[derive(Deserialize)]
    struct Indexed {
        index: Option<usize>,
    }
    let elements: Vec<&RawValue> = serde_json::from_str(list).ok()?;
    if elements.len() != expected {
        return None;
    }
    let mut ordered: Vec<Option<&RawValue>> = vec![None; expected];
    for (at, element) in elements.into_iter().enumerate() {
        let index = serde_json::from_str::<Indexed>(element.get()).ok()?.index.unwrap_or(at);
        if ordered.get_mut(index)?.replace(element).is_some() {
            return None;
        }
    }
    ordered.into_iter().collect()
}

fn own_answer(
    members: &members::Members<'_>,
    (name, list): (&str, &[&RawValue]),
    usage: Option<&str>,
) -> Option<Vec<u8>> {
    let mut elements = Vec::with_capacity(list.len());
    for (index, element) in list.iter().enumerate() {
        let has_index =
            members::members(element.get().as_bytes()).ok()?.iter().any(|(name, _)| name == "index");
        let own = if has_index {
            let edits = [Edit::set("index", index.to_string())];
            String::from_utf8(members::edit(element.get().as_bytes(), &edits).ok()?).ok()?
        } else {
            element.get().to_owned()
        };
        elements.push(own);
    }
    let list = format!("[{}]", elements.join(","));
    let mut out = vec![b'{'];
    for (member, value) in members {
        let value = match (&**member, usage) {
            (member, _) if member == name => &list,
            ("usage", Some(usage)) => usage,
            _ => value.get(),
        };
        members::push(&mut out, member, value).ok()?;
    }
    out.push(b'}');
    Some(out)
}

/// Divides each count so that the parts add up to it. What is no count is said to nobody, as it was true of all together.
fn usage_of_each(usage: &str, sent: &[u64], made: &[u64]) -> Option<Vec<String>> {
    let counts: Vec<(Cow<'_, str>, u64)> = members::members(usage.as_bytes())
        .ok()?
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.get().parse().ok()?)))
        .collect();
    let find = |name: &str| counts.iter().find(|(other, _)| other == name).map(|(_, count)| *count);
    let (prompt, completion) = (find("prompt_tokens"), find("completion_tokens").unwrap_or(0));
    let by_prompt = shares(prompt.unwrap_or(0), sent);
    let by_completion = shares(completion, made);
    // A total is that of its own parts, if that is what it was.
    let is_sum = prompt.and_then(|prompt| prompt.checked_add(completion)) == find("total_tokens");
    let all: Vec<(&str, Vec<u64>)> = counts
        .iter()
        .map(|(name, count)| match &**name {
            "prompt_tokens" => ("prompt_tokens", by_prompt.clone()),
            "completion_tokens" => ("completion_tokens", by_completion.clone()),
            "total_tokens" if is_sum => {
                let sums = by_prompt.iter().zip(&by_completion).map(|(one, other)| one + other);
                ("total_tokens", sums.collect())
            }
            other => (other, shares(*count, sent)),
        })
        .collect();
    let one = |at: usize| {
        let counts =
            all.iter().filter_map(|(name, parts)| Some(((*name).to_owned(), (*parts.get(at)?).into())));
        serde_json::Value::Object(counts.collect()).to_string()
    };
    Some((0..sent.len()).map(one).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn part(arrays: Arrays, body: &Value) -> Option<Part> {
        Part::read(arrays, body.to_string().as_bytes())
    }

    fn merged(arrays: Arrays, parts: &[&Part]) -> Value {
        serde_json::from_slice(&body(arrays, parts).unwrap()).unwrap()
    }

    fn split_values(arrays: Arrays, parts: &[&Part], answer: &Value) -> Option<Vec<Value>> {
        let answers = split(arrays, parts, answer.to_string().as_bytes())?;
        Some(answers.iter().map(|answer| serde_json::from_slice(answer).unwrap()).collect())
    }

    #[test]
    fn only_what_is_alike_in_all_else_is_of_one_kind() {
        let of = |body: Value| part(Arrays::Embeddings, &body).unwrap().kind;
        let plain = of(json!({"model": "m", "input": "a"}));
        assert_eq!(plain, of(json!({"model": "m", "input": ["b", "c"]})));
        for other in [
            json!({"model": "n", "input": "a"}),
            json!({"model": "m", "input": "a", "dimensions": 8}),
            json!({"model": "m", "input": "a", "user": "u"}),
            json!({"model": "m", "input": [1, 2]}),
        ] {
            assert_ne!(plain, of(other.clone()), "{other}");
        }
        assert_eq!(
            of(json!({"model": "m", "input": [1, 2]})),
            of(json!({"model": "m", "input": [[3], [4]]}))
        );
    }

    #[test]
    fn what_is_unclear_travels_alone() {
        for input in [json!([]), json!({}), json!(7), json!(null), json!(["a", 1]), json!([{"image": 1}])] {
            assert_eq!(part(Arrays::Embeddings, &json!({"model": "m", "input": input})), None, "{input}");
        }
        let twice = br#"{"model":"m","input":"a","input":"b"}"#;
        assert_eq!(Part::read(Arrays::Embeddings, twice), None);
        assert_eq!(part(Arrays::Embeddings, &json!({"model": "m"})), None);
        for hinder in ["n", "best_of", "stream"] {
            let body = json!({"model": "m", "prompt": "a", hinder: 2});
            assert_eq!(part(Arrays::Completions, &body), None);
        }
        assert_eq!(Arrays::of("/v1/chat/completions"), None);
    }

    #[test]
    fn each_gets_its_own_by_index_and_usage_adds_up() {
        let one = part(Arrays::Embeddings, &json!({"model": "m", "input": "aa"})).unwrap();
        let two = part(Arrays::Embeddings, &json!({"model": "m", "input": ["b", "c"]})).unwrap();
        let parts = [&one, &two];
        assert_eq!(merged(Arrays::Embeddings, &parts), json!({"model": "m", "input": ["aa", "b", "c"]}));
        let element = |index, vector| json!({"object": "embedding", "index": index, "embedding": [vector]});
        let answer = json!({
            "object": "list", "model": "m", "data": [element(2, 3.5), element(0, 1.5), element(1, 2.5)],
            "usage": {"prompt_tokens": 11, "total_tokens": 11, "prompt_tokens_details": {"cached_tokens": 4}},
        });
        let own = split_values(Arrays::Embeddings, &parts, &answer).unwrap();
        assert_eq!(own[0]["data"], json!([element(0, 1.5)]));
        assert_eq!(own[1]["data"], json!([element(0, 2.5), element(1, 3.5)]));
        assert_eq!(own[0]["usage"], json!({"prompt_tokens": 4, "total_tokens": 4}));
        assert_eq!(own[1]["usage"], json!({"prompt_tokens": 7, "total_tokens": 7}));
        assert_eq!((&own[0]["object"], &own[1]["model"]), (&json!("list"), &json!("m")));
    }

    #[test]
    fn an_answer_that_is_not_to_all_of_them_is_none() {
        let one = part(Arrays::Embeddings, &json!({"model": "m", "input": "a"})).unwrap();
        let parts = [&one, &one];
        let with =
            |data: Value| split(Arrays::Embeddings, &parts, json!({"data": data}).to_string().as_bytes());
        assert!(with(json!([{"index": 0}, {"index": 1}])).is_some());
        for data in [
            json!([{"index": 0}]),
            json!([{"index": 0}, {"index": 0}]),
            json!([{"index": 0}, {"index": 2}]),
            json!([{"index": 0}, {"index": 1}, {"index": 2}]),
            json!("none"),
        ] {
            assert_eq!(with(data.clone()), None, "{data}");
        }
        assert_eq!(split(Arrays::Embeddings, &parts, b"{"), None);
    }

    #[test]
    fn moderations_have_no_index_and_completions_have_counts_of_both_kinds() {
        let one = part(Arrays::Moderations, &json!({"input": "a"})).unwrap();
        let answer = json!({"id": "modr-1", "results": [{"flagged": true}, {"flagged": false}]});
        let own = split_values(Arrays::Moderations, &[&one, &one], &answer).unwrap();
        assert_eq!(own[1], json!({"id": "modr-1", "results": [{"flagged": false}]}));
        let one = part(Arrays::Completions, &json!({"model": "m", "prompt": "a"})).unwrap();
        let answer = json!({
            "choices": [{"index": 0, "text": "x"}, {"index": 1, "text": "y"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8},
        });
        let own = split_values(Arrays::Completions, &[&one, &one], &answer).unwrap();
        assert_eq!(own[1]["choices"], json!([{"index": 0, "text": "y"}]));
        assert_eq!(own[0]["usage"], json!({"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}));
        assert_eq!(own[1]["usage"], json!({"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}));
    }

    proptest! {
        #[test]
        fn everyone_gets_its_own(
            requests in prop::collection::vec(prop::collection::vec("\\PC{0,12}", 1..4), 1..20),
            total in 0_u64..100_000,
            turned in 0_usize..50,
        ) {
            let parts: Vec<Part> = requests
                .iter()
                .map(|texts| part(Arrays::Embeddings, &json!({"model": "m", "input": texts})).unwrap())
                .collect();
            let parts: Vec<&Part> = parts.iter().collect();
            let call = merged(Arrays::Embeddings, &parts);
            let inputs = call["input"].as_array().unwrap();
            let mut data: Vec<Value> = inputs
                .iter()
                .enumerate()
                .map(|(index, input)| json!({"index": index, "embedding": input}))
                .collect();
            let turned = turned % data.len();
            data.rotate_left(turned);
            let usage = json!({"prompt_tokens": total, "total_tokens": total});
            let own = split_values(Arrays::Embeddings, &parts, &json!({"data": data, "usage": usage})).unwrap();
            prop_assert_eq!(own.len(), requests.len());
            for (own, texts) in own.iter().zip(&requests) {
                let got: Vec<_> = own["data"].as_array().unwrap().iter().map(|one| one["embedding"].clone()).collect();
                prop_assert_eq!(&json!(got), &json!(texts));
            }
            let sum: u64 = own.iter().map(|own| own["usage"]["prompt_tokens"].as_u64().unwrap()).sum();
            prop_assert_eq!(sum, total);
        }

        #[test]
        fn any_bytes_are_taken_without_harm(body in prop::collection::vec(any::<u8>(), 0..80), answer in "\\PC{0,80}") {
            let _ = Part::read(Arrays::Embeddings, &body);
            let one = part(Arrays::Embeddings, &json!({"model": "m", "input": "a"})).unwrap();
            let _ = split(Arrays::Embeddings, &[&one], answer.as_bytes());
        }
    }
}
