//! Reading JSON objects without overlooking a member, and writing JSON without building a tree first.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

/// The most members of an object that is looked into. No object of the API has half as many.
const MEMBERS_MAX: usize = 128;
/// The most entries of a list that is looked into; also the most messages that the API takes.
const ENTRIES_MAX: usize = 100_000;

/// Why a request cannot be translated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// For programs, such as `unsupported_parameter`.
    pub code: &'static str,
    /// For people: what was wrong and what to do.
    pub message: String,
    /// What it is about, such as `messages[2].content`; none if it is about the body as a whole.
    pub param: Option<String>,
}

impl Refusal {
    fn new(code: &'static str, place: &Place<'_>, message: String) -> Self {
        let param = (!matches!(place, Place::Body)).then(|| place.to_string());
        Self { code, message, param }
    }

    /// The API has this parameter, but no way leads to Anthropic's.
    pub(super) fn unsupported(place: &Place<'_>, why: &str) -> Self {
        let message =
            format!("`{place}` cannot be used with this model, which is behind Anthropic's API: {why}");
        Self::new("unsupported_parameter", place, message)
    }

    /// The parameter can be translated, but not this value.
    pub(super) fn unsupported_value(place: &Place<'_>, value: &str, why: &str) -> Self {
        let message = format!(
            "`{place}`: {} cannot be used with this model, which is behind Anthropic's API: {why}",
            shortened(value)
        );
        Self::new("unsupported_value", place, message)
    }

    /// It is not what the API asks for.
    pub(super) fn invalid(place: &Place<'_>, expected: &str) -> Self {
        Self::new("invalid_value", place, format!("`{place}` must be {expected}."))
    }

    fn missing(place: &Place<'_>) -> Self {
        Self::new("missing_required_parameter", place, format!("`{place}` is missing."))
    }

    fn unknown(place: &Place<'_>) -> Self {
        let message = format!(
            "`{place}` is not known here, so it cannot be translated for this model, which is behind Anthropic's API; \
             leave it out."
        );
        Self::new("unknown_parameter", place, message)
    }

    fn unreadable(place: &Place<'_>, error: &serde_json::Error) -> Self {
        Self::new("invalid_json", place, format!("`{place}` cannot be read: {error}."))
    }
}

fn shortened(value: &str) -> Cow<'_, str> {
    const SHOWN_CHARS: usize = 60;
    match value.char_indices().nth(SHOWN_CHARS) {
        None => value.into(),
        Some((end, _)) => format!("{}…", value.get(..end).unwrap_or_default()).into(),
    }
}

/// Where in the request something stands.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place<'p> {
    Body,
    Member(&'p Place<'p>, &'p str),
    Entry(&'p Place<'p>, usize),
}

impl<'p> Place<'p> {
    pub(super) fn member(&'p self, name: &'p str) -> Self {
        Self::Member(self, name)
    }

    pub(super) fn entry(&'p self, index: usize) -> Self {
        Self::Entry(self, index)
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Body => formatter.write_str("the body"),
            Self::Member(Self::Body, name) => formatter.write_str(&shortened(name)),
            Self::Member(parent, name) => write!(formatter, "{parent}.{}", shortened(name)),
            Self::Entry(parent, index) => write!(formatter, "{parent}[{index}]"),
        }
    }
}

// === Reading ===

/// A JSON string, without a copy where it has no escapes.
#[derive(Debug, Deserialize)]
pub(super) struct Text<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

/// An object whose members are taken one by one; [`finish`](Self::finish) refuses what nobody has taken. Members that
/// are null say nothing and count as absent.
#[derive(Debug)]
pub(super) struct Object<'a, 'p> {
    members: Vec<(Cow<'a, str>, &'a RawValue)>,
    place: Place<'p>,
}

impl<'a, 'p> Object<'a, 'p> {
    pub(super) fn of_bytes(json: &'a [u8], place: Place<'p>) -> Result<Self, Refusal> {
        match serde_json::from_slice(json) {
            Ok(Members(members)) => Ok(Self { members, place }),
            Err(error) => Err(Refusal::unreadable(&place, &error)),
        }
    }

    pub(super) fn of(json: &'a RawValue, place: Place<'p>) -> Result<Self, Refusal> {
        if !json.get().starts_with('{') {
            return Err(Refusal::invalid(&place, "an object"));
        }
        Self::of_bytes(json.get().as_bytes(), place)
    }

    pub(super) fn place(&self) -> Place<'p> {
        self.place
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Takes a member as it stands.
    pub(super) fn take(&mut self, name: &str) -> Option<&'a RawValue> {
        let index = self.members.iter().position(|(known, _)| known == name)?;
        Some(self.members.swap_remove(index).1)
    }

    pub(super) fn require(&mut self, name: &str) -> Result<&'a RawValue, Refusal> {
        self.take(name).ok_or_else(|| Refusal::missing(&self.place.member(name)))
    }

    pub(super) fn text(&mut self, name: &str) -> Result<Option<Cow<'a, str>>, Refusal> {
        self.take(name).map(|json| text(json, &self.place.member(name))).transpose()
    }

    pub(super) fn require_text(&mut self, name: &str) -> Result<Cow<'a, str>, Refusal> {
        let json = self.require(name)?;
        text(json, &self.place.member(name))
    }

    pub(super) fn flag(&mut self, name: &str) -> Result<Option<bool>, Refusal> {
        self.value(name, "true or false")
    }

    pub(super) fn value<T: DeserializeOwned>(
        &mut self,
        name: &str,
        expected: &str,
    ) -> Result<Option<T>, Refusal> {
        let Some(json) = self.take(name) else { return Ok(None) };
        match serde_json::from_str(json.get()) {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(Refusal::invalid(&self.place.member(name), expected)),
        }
    }

    /// Refuses the first member that nobody has taken.
    pub(super) fn finish(self) -> Result<(), Refusal> {
        match self.members.first() {
            None => Ok(()),
            Some((name, _)) => Err(Refusal::unknown(&self.place.member(name))),
        }
    }
}

/// A JSON string.
pub(super) fn text<'a>(json: &'a RawValue, place: &Place<'_>) -> Result<Cow<'a, str>, Refusal> {
    match serde_json::from_str(json.get()) {
        Ok(Text(text)) => Ok(text),
        Err(_) => Err(Refusal::invalid(place, "a text")),
    }
}

/// The entries of a JSON list.
pub(super) fn list<'a>(json: &'a RawValue, place: &Place<'_>) -> Result<Vec<&'a RawValue>, Refusal> {
    if !json.get().starts_with('[') {
        return Err(Refusal::invalid(place, "a list"));
    }
    match serde_json::from_str(json.get()) {
        Ok(Entries(entries)) => Ok(entries),
        Err(error) => Err(Refusal::unreadable(place, &error)),
    }
}

struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;

        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut names: Vec<(Cow<'de, str>, &'de RawValue)> = Vec::new();
                while let Some((Text(name), value)) = map.next_entry::<Text<'de>, &'de RawValue>()? {
                    if names.iter().any(|(known, _)| *known == name) {
                        return Err(M::Error::custom(format!("`{}` is given twice", shortened(&name))));
                    }
                    if names.len() >= MEMBERS_MAX {
                        return Err(M::Error::custom("an object has too many members"));
                    }
                    names.push((name, value));
                }
                names.retain(|(_, value)| value.get() != "null");
                Ok(Members(names))
            }
        }

        deserializer.deserialize_map(Collect)
    }
}

struct Entries<'a>(Vec<&'a RawValue>);

impl<'de> Deserialize<'de> for Entries<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;

        impl<'de> Visitor<'de> for Collect {
            type Value = Entries<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a list")
            }

            fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<Self::Value, S::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = seq.next_element()? {
                    if entries.len() >= ENTRIES_MAX {
                        return Err(S::Error::custom(format!("there are more than {ENTRIES_MAX}")));
                    }
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_seq(Collect)
    }
}

// === Writing ===

/// JSON as it grows.
#[derive(Debug, Default)]
pub(super) struct Out(Vec<u8>);

impl Out {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn truncate(&mut self, len: usize) {
        self.0.truncate(len);
    }

    /// JSON as it is.
    pub(super) fn raw(&mut self, json: &str) {
        self.0.extend_from_slice(json.as_bytes());
    }

    pub(super) fn number(&mut self, number: u64) {
        self.raw(&number.to_string());
    }

    /// A comma, unless an object or a list has just begun.
    pub(super) fn separate(&mut self) {
        if !matches!(self.0.last(), None | Some(b'{' | b'[')) {
            self.0.push(b',');
        }
    }

    /// The name of an object's next member.
    pub(super) fn member(&mut self, name: &str) {
        self.separate();
        self.text(name);
        self.0.push(b':');
    }

    pub(super) fn text(&mut self, text: &str) {
        self.texts([text]);
    }

    /// One text out of pieces.
    pub(super) fn texts<'t>(&mut self, texts: impl IntoIterator<Item = &'t str>) {
        self.0.push(b'"');
        for text in texts {
            self.escaped(text);
        }
        self.0.push(b'"');
    }

    fn escaped(&mut self, text: &str) {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut rest = text.as_bytes();
        while let Some(at) = rest.iter().position(|byte| *byte < 0x20 || matches!(byte, b'"' | b'\\')) {
            let (plain, special) = rest.split_at(at);
            self.0.extend_from_slice(plain);
            match special[0] {
                byte @ (b'"' | b'\\') => self.0.extend_from_slice(&[b'\\', byte]),
                b'\n' => self.0.extend_from_slice(b"\\n"),
                b'\r' => self.0.extend_from_slice(b"\\r"),
                b'\t' => self.0.extend_from_slice(b"\\t"),
                byte => {
                    self.0.extend_from_slice(b"\\u00");
                    self.0.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
                }
            }
            rest = &special[1..];
        }
        self.0.extend_from_slice(rest);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_place_reads_like_a_path() {
        let messages = Place::Body.member("messages");
        let content = messages.entry(2);
        let content = content.member("content");
        assert_eq!(content.entry(0).to_string(), "messages[2].content[0]");
        assert_eq!(Refusal::invalid(&Place::Body, "x").param, None);
    }

    #[test]
    fn what_is_given_twice_or_too_often_is_refused() {
        for json in [r#"{"a":1,"a":1}"#.to_owned(), format!("{{{}}}", many(MEMBERS_MAX + 1)), "[]".to_owned()]
        {
            let refusal = Object::of_bytes(json.as_bytes(), Place::Body).unwrap_err();
            assert_eq!(refusal.code, "invalid_json", "{}", refusal.message);
        }
        let most = format!("{{{}}}", many(MEMBERS_MAX));
        assert!(Object::of_bytes(most.as_bytes(), Place::Body).is_ok());
        let long = RawValue::from_string(format!("[{}1]", "1,".repeat(ENTRIES_MAX))).unwrap();
        assert_eq!(list(&long, &Place::Body).unwrap_err().code, "invalid_json");
    }

    fn many(members: usize) -> String {
        (0..members).map(|index| format!("\"{index}\":0")).collect::<Vec<_>>().join(",")
    }

    proptest! {
        #[test]
        fn texts_are_written_as_json_reads_them(text in any::<String>(), more in any::<String>()) {
            let mut out = Out::default();
            out.text(&text);
            prop_assert_eq!(serde_json::from_slice::<String>(&out.into_bytes()).unwrap(), text.clone());
            let mut out = Out::default();
            out.texts([text.as_str(), more.as_str()]);
            prop_assert_eq!(serde_json::from_slice::<String>(&out.into_bytes()).unwrap(), text + &more);
        }
    }
}
