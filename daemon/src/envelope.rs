//! What is known about a request without understanding it: its head, and a few members of its body.

use std::borrow::Cow;

use bytes::Bytes;
use http::HeaderMap;
use offpeak_core::sla::{BadSla, Sla, Tag};
use offpeak_core::words::Millis;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::members::{self, Edit};
use crate::reply::Refusal;

/// The longest name of a model, in bytes: names stand in every entry of the ledger.
const MODEL_MAX: usize = 512;

/// The header that tags a request with its SLA.
pub const SLA: &str = "x-offpeak-sla";

/// The model that OpenAI's API takes for an endpoint where a request names none; no other endpoint has one.
const DEFAULT_MODELS: [(&str, &str); 1] = [("/v1/moderations", "omni-moderation-latest")];

/// A request, read as far as it needs to be.
#[derive(Debug, Clone)]
pub struct Envelope {
    /// The model it names, or that of the API where it need not name one.
    pub model: String,
    /// Who named it.
    pub named_by: NamedBy,
    /// How long it may take.
    pub sla: Sla,
    /// Where that was found.
    pub tag: Tag,
    /// It wants its answer in pieces.
    pub stream: bool,
    /// An estimate: four bytes of JSON make a token.
    pub input_tokens: u64,
    /// The most that the answer may have.
    pub max_output_tokens: Option<u64>,
    /// It wants to be fetched later by the API's own means.
    pub background: bool,
    /// It has members that say how it is to be delivered or bought, which a deferred request must not have.
    pub has_delivery_members: bool,
    /// The body without what was meant for offpeak.
    pub body: Bytes,
}

/// Who names a request's model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamedBy {
    /// The request.
    Caller,
    /// It named none, and this is what the API takes then.
    Api,
}

/// The members that are looked at; all others are skipped. A member of the wrong type counts as absent: the provider
/// says what is wrong with it better than offpeak could.
#[derive(Deserialize)]
struct Peek<'a> {
    #[serde(borrow, default)]
    model: Option<&'a RawValue>,
    #[serde(borrow, default)]
    stream: Option<&'a RawValue>,
    #[serde(borrow, default)]
    stream_options: Option<&'a RawValue>,
    #[serde(borrow, default)]
    service_tier: Option<&'a RawValue>,
    #[serde(borrow, default)]
    background: Option<&'a RawValue>,
    #[serde(borrow, default)]
    speed: Option<&'a RawValue>,
    #[serde(borrow, default)]
    metadata: Option<&'a RawValue>,
    #[serde(borrow, default)]
    max_tokens: Option<&'a RawValue>,
    #[serde(borrow, default)]
    max_completion_tokens: Option<&'a RawValue>,
    #[serde(borrow, default)]
    max_output_tokens: Option<&'a RawValue>,
}

/// A value of a member, if it has the type.
fn value<'a, T: Deserialize<'a>>(raw: Option<&'a RawValue>) -> Option<T> {
    raw.and_then(|raw| serde_json::from_str(raw.get()).ok())
}

/// The SLA that a tenant's requests have where they say nothing, and what `deferrable` means.
#[derive(Debug, Clone, Copy)]
pub struct SlaDefaults {
    /// Without a tag.
    pub default: Sla,
    /// The word `deferrable`.
    pub deferrable: Millis,
}

/// Reads head and body of a call to an endpoint. A model that the call need not name is written into its body: what is decided
/// about by that name is asked for by it, now and later.
pub fn read_call(
    endpoint: &str,
    headers: &HeaderMap,
    body: Bytes,
    defaults: SlaDefaults,
) -> Result<Envelope, Refusal> {
    let default = DEFAULT_MODELS.iter().find(|(of, _)| *of == endpoint).map(|(_, model)| *model);
    read_with(headers, body, defaults, default)
}

/// Reads head and body of a request that names its model.
pub fn read(headers: &HeaderMap, body: Bytes, defaults: SlaDefaults) -> Result<Envelope, Refusal> {
    read_with(headers, body, defaults, None)
}

fn read_with(
    headers: &HeaderMap,
    body: Bytes,
    defaults: SlaDefaults,
    default_model: Option<&str>,
) -> Result<Envelope, Refusal> {
    // Serde would take an array for a struct's members in their order.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(not_json(&"it does not begin with {"));
    }
    // Strings that nobody reads here are in a batch read by the provider, which would refuse all that leaves with them.
    let text = str::from_utf8(&body).map_err(|error| not_json(&error))?;
    let peek: Peek<'_> = serde_json::from_str(text).map_err(|error| not_json(&error))?;
    let default_model = default_model.filter(|_| peek.model.is_none_or(|model| model.get() == "null"));
    let model: Option<Cow<'_, str>> = default_model.map(Cow::Borrowed).or_else(|| value(peek.model));
    let model = model.filter(|model| !model.is_empty()).ok_or_else(no_model)?.into_owned();
    if model.len() > MODEL_MAX {
        return Err(long_model(model.len()));
    }
    let tagged = metadata_tag(peek.metadata);
    let (sla, tag) = sla(headers, tagged.as_deref(), &peek, defaults)?;
    let max_output_tokens = [peek.max_completion_tokens, peek.max_tokens, peek.max_output_tokens]
        .into_iter()
        .find_map(value::<u64>);
    let stream = value(peek.stream).unwrap_or(false);
    let input_tokens = (body.len() / 4) as u64;
    let has_delivery_members =
        [peek.stream, peek.stream_options, peek.service_tier, peek.background, peek.speed]
            .iter()
            .any(Option::is_some);
    let mut edits = Vec::new();
    if let (Some(_), Some(metadata)) = (tagged, peek.metadata) {
        edits.push(without_tag(metadata)?);
    }
    edits.extend(default_model.map(|model| Edit::set("model", serde_json::Value::from(model).to_string())));
    let edited = if edits.is_empty() {
        None
    } else {
        Some(members::edit(&body, &edits).map(Bytes::from).map_err(|error| not_json(&error))?)
    };
    Ok(Envelope {
        model,
        named_by: if default_model.is_some() { NamedBy::Api } else { NamedBy::Caller },
        sla,
        tag,
        stream,
        input_tokens,
        max_output_tokens,
        background: value(peek.background).unwrap_or(false),
        has_delivery_members,
        body: edited.unwrap_or(body),
    })
}

/// Strongest first: header, metadata, the API's own ways, the tenant's default.
fn sla(
    headers: &HeaderMap,
    tagged: Option<&str>,
    peek: &Peek<'_>,
    defaults: SlaDefaults,
) -> Result<(Sla, Tag), Refusal> {
    let mut tags = headers.get_all(SLA).iter();
    if let Some(header) = tags.next() {
        if tags.any(|other| other != header) {
            let message = format!("The request has several headers {SLA}, which differ. Send one of them.");
            return Err(Refusal::bad_request("invalid_sla", message).param(SLA));
        }
        let text = String::from_utf8_lossy(header.as_bytes());
        let text = text.as_ref();
        return match Sla::parse(text, defaults.deferrable) {
            Ok(sla) => Ok((sla, Tag::Header)),
            Err(error) => Err(bad_sla(&error, SLA)),
        };
    }
    if let Some(text) = tagged {
        return match Sla::parse(text, defaults.deferrable) {
            Ok(sla) => Ok((sla, Tag::Metadata)),
            Err(error) => Err(bad_sla(&error, "metadata.offpeak_sla")),
        };
    }
    let tier: Option<Cow<'_, str>> = value(peek.service_tier);
    if tier.as_deref() == Some("flex") || value(peek.background) == Some(true) {
        return Ok((Sla::Within(defaults.deferrable), Tag::Api));
    }
    Ok((defaults.default, Tag::Default))
}

fn metadata_tag(metadata: Option<&RawValue>) -> Option<String> {
    #[derive(Deserialize)]
    struct Metadata<'a> {
        #[serde(borrow)]
        offpeak_sla: Option<Cow<'a, str>>,
    }
    let metadata: Metadata<'_> = value(metadata.filter(|metadata| metadata.get().starts_with('{')))?;
    metadata.offpeak_sla.map(Cow::into_owned)
}

/// The tag is for offpeak: the provider does not get to see it, nor a metadata object that held nothing else.
fn without_tag(metadata: &RawValue) -> Result<Edit, Refusal> {
    let rest = members::edit(metadata.get().as_bytes(), &[Edit::remove("offpeak_sla")])
        .map_err(|error| not_json(&error))?;
    Ok(if members::is_empty(&rest) {
        Edit::remove("metadata")
    } else {
        Edit::set("metadata", String::from_utf8_lossy(&rest))
    })
}

fn not_json(error: &dyn std::fmt::Display) -> Refusal {
    Refusal::bad_request(
        "invalid_json",
        format!(
            "The request's body is not a JSON object with a \"model\": {error}. Send the body as your SDK makes it."
        ),
    )
}

fn no_model() -> Refusal {
    let message = "The request names no model. Set \"model\" to the name of a model, as text.";
    Refusal::bad_request("missing_required_parameter", message).param("model")
}

/// Nobody sells the model that is meant where a request names none.
pub fn no_default_model(endpoint: &str, model: &str) -> Refusal {
    let message = format!(
        "The request names no model, and no backend sells '{model}', which the API takes for {endpoint} then. Set \"model\" to one \
         that GET /v1/models lists, or add '{model}' to the models of a backend in offpeak's configuration."
    );
    Refusal::bad_request("missing_required_parameter", message).param("model")
}

fn long_model(bytes: usize) -> Refusal {
    let message = format!(
        "The model's name has {bytes} bytes; no model's name is longer than {MODEL_MAX}. Check \"model\"."
    );
    Refusal::bad_request("invalid_model", message).param("model")
}

fn bad_sla(error: &BadSla, param: &'static str) -> Refusal {
    Refusal::bad_request("invalid_sla", format!("{error} (in {param}).")).param(param)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const DEFAULTS: SlaDefaults = SlaDefaults { default: Sla::Realtime, deferrable: Millis::from_hours(24) };

    fn envelope(header: Option<&str>, body: &str) -> Result<Envelope, Refusal> {
        let mut headers = HeaderMap::new();
        if let Some(header) = header {
            headers.insert(SLA, HeaderValue::from_str(header).unwrap());
        }
        read(&headers, Bytes::copy_from_slice(body.as_bytes()), DEFAULTS)
    }

    #[test]
    fn the_strongest_tag_wins() {
        let all = r#"{"model":"m","service_tier":"flex","metadata":{"offpeak_sla":"1h"}}"#;
        let tags = [
            (Some("30s"), all, Sla::Within(Millis::from_secs(30)), Tag::Header),
            (None, all, Sla::Within(Millis::from_hours(1)), Tag::Metadata),
            (None, r#"{"model":"m","service_tier":"flex"}"#, Sla::Within(Millis::from_hours(24)), Tag::Api),
            (None, r#"{"model":"m","background":true}"#, Sla::Within(Millis::from_hours(24)), Tag::Api),
            (None, r#"{"model":"m","service_tier":"auto","background":false}"#, Sla::Realtime, Tag::Default),
        ];
        for (header, body, sla, tag) in tags {
            let envelope = envelope(header, body).unwrap();
            assert_eq!((envelope.sla, envelope.tag), (sla, tag), "{header:?} {body}");
        }
    }

    #[test]
    fn of_several_headers_that_differ_none_is_taken() {
        let tagged = |values: &[&[u8]]| {
            let values =
                values.iter().map(|value| (SLA.parse().unwrap(), HeaderValue::from_bytes(value).unwrap()));
            read(&values.collect(), Bytes::from_static(br#"{"model":"m"}"#), DEFAULTS)
        };
        assert_eq!(tagged(&[b"1h", b"1h"]).unwrap().sla, Sla::Within(Millis::from_hours(1)));
        let refusal = tagged(&[b"24h", b"realtime"]).unwrap_err();
        assert!(refusal.message.contains("differ"), "{}", refusal.message);
        let refusal = tagged(&["später".as_bytes()]).unwrap_err();
        assert!(refusal.message.contains("später"), "{}", refusal.message);
    }

    #[test]
    fn the_tag_is_removed_and_nothing_else() {
        let only = envelope(None, r#"{"model":"m","metadata":{"offpeak_sla":"1h"},"n": 1}"#).unwrap();
        assert_eq!(&only.body[..], br#"{"model":"m","n":1}"#);
        let more = envelope(None, r#"{"model":"m","metadata":{"a":"b","offpeak_sla":"1h"}}"#).unwrap();
        assert_eq!(&more.body[..], br#"{"model":"m","metadata":{"a":"b"}}"#);
        let none = envelope(None, "{\"model\":\"m\",  \"metadata\":{\"a\":\"b\"}}").unwrap();
        assert_eq!(&none.body[..], b"{\"model\":\"m\",  \"metadata\":{\"a\":\"b\"}}");
    }

    #[test]
    fn bad_bodies_and_tags_are_refused() {
        let cases = [
            (None, "", "invalid_json"),
            (None, "[]", "invalid_json"),
            (None, r#"{"model":"m""#, "invalid_json"),
            (None, r#"{"model":"m"} trailing"#, "invalid_json"),
            (None, r#"{"messages":[]}"#, "missing_required_parameter"),
            (None, r#"{"model":7}"#, "missing_required_parameter"),
            (None, r#"{"model":""}"#, "missing_required_parameter"),
            (Some("soon"), r#"{"model":"m"}"#, "invalid_sla"),
            (None, r#"{"model":"m","metadata":{"offpeak_sla":"0s"}}"#, "invalid_sla"),
        ];
        for (header, body, code) in cases {
            assert_eq!(envelope(header, body).unwrap_err().code, code, "{body}");
        }
    }

    #[test]
    fn what_is_no_text_is_refused_wherever_it_stands() {
        for text in [&b"{\"model\":\"m\",\"x\":\"\xff\"}"[..], b"{\"model\":\"m\",\"x\":[\"\xed\xa0\x80\"]}"]
        {
            let refusal = read(&HeaderMap::new(), Bytes::from_static(text), DEFAULTS).unwrap_err();
            assert_eq!(refusal.code, "invalid_json");
            assert!(refusal.message.contains("utf-8"), "{}", refusal.message);
        }
    }

    #[test]
    fn a_models_name_has_a_bound() {
        let named = |bytes| envelope(None, &format!(r#"{{"model":"{}"}}"#, "m".repeat(bytes)));
        assert_eq!(named(MODEL_MAX).unwrap().model.len(), MODEL_MAX);
        assert_eq!(named(MODEL_MAX + 1).unwrap_err().code, "invalid_model");
    }

    #[test]
    fn a_model_that_need_not_be_named_is_written_into_the_body() {
        let call = |endpoint: &str, body: &'static str| {
            read_call(endpoint, &HeaderMap::new(), Bytes::from_static(body.as_bytes()), DEFAULTS)
        };
        let body = r#"{"input":"x","model":null,"metadata":{"offpeak_sla":"1h"}}"#;
        let moderation = call("/v1/moderations", body).unwrap();
        assert_eq!(
            (moderation.model.as_str(), moderation.named_by),
            ("omni-moderation-latest", NamedBy::Api)
        );
        assert_eq!(&moderation.body[..], br#"{"input":"x","model":"omni-moderation-latest"}"#);
        let named = call("/v1/moderations", r#"{"input":"x","model":"mine"}"#).unwrap();
        assert_eq!((named.model.as_str(), named.named_by), ("mine", NamedBy::Caller));
        for (endpoint, body) in [
            ("/v1/moderations", r#"{"input":"x","model":7}"#),
            ("/v1/moderations", r#"{"input":"x","model":""}"#),
            ("/v1/embeddings", r#"{"input":"x"}"#),
        ] {
            assert_eq!(call(endpoint, body).unwrap_err().code, "missing_required_parameter", "{body}");
        }
    }

    #[test]
    fn members_of_odd_types_are_the_providers_business() {
        let odd = r#"{"model":"m\u00e9","stream":"yes","max_tokens":"many","metadata":[1],"service_tier":3}"#;
        let envelope = envelope(None, odd).unwrap();
        assert_eq!(envelope.model, "m\u{e9}");
        assert!(!envelope.stream);
        assert_eq!(envelope.max_output_tokens, None);
        assert_eq!(envelope.body, odd);
    }
}
