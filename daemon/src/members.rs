//! Edits of a JSON object's top-level members that leave every other byte as it came.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde_json::value::RawValue;

/// What becomes of one member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// Its name.
    pub name: Cow<'static, str>,
    /// The new value as JSON text; none removes the member.
    pub value: Option<String>,
}

impl Edit {
    /// Sets a member, or adds it.
    pub fn set(name: impl Into<Cow<'static, str>>, json: impl Into<String>) -> Self {
        Self { name: name.into(), value: Some(json.into()) }
    }

    /// Removes a member, if it is there.
    pub fn remove(name: impl Into<Cow<'static, str>>) -> Self {
        Self { name: name.into(), value: None }
    }
}

/// Applies edits to the text of a JSON object.
pub fn edit(object: &[u8], edits: &[Edit]) -> Result<Vec<u8>, serde_json::Error> {
    let members = members(object)?;
    let mut out = Vec::with_capacity(object.len() + 64);
    out.push(b'{');
    for (name, value) in &members {
        match edits.iter().find(|edit| edit.name == *name) {
            None => push(&mut out, name, value.get())?,
            Some(Edit { value: Some(json), .. }) => push(&mut out, name, json)?,
            Some(Edit { value: None, .. }) => {}
        }
    }
    for edit in edits {
        let is_new = members.iter().all(|(name, _)| *name != edit.name);
        if let Some(json) = edit.value.as_ref().filter(|_| is_new) {
            push(&mut out, &edit.name, json)?;
        }
    }
    out.push(b'}');
    Ok(out)
}

/// Whether the object has no members.
pub fn is_empty(object: &[u8]) -> bool {
    members(object).is_ok_and(|members| members.is_empty())
}

/// Writes a member of an object that begins with a bracket.
pub fn push(out: &mut Vec<u8>, name: &str, json: &str) -> Result<(), serde_json::Error> {
    if out.len() > 1 {
        out.push(b',');
    }
    serde_json::to_writer(&mut *out, name)?;
    out.push(b':');
    out.extend_from_slice(json.as_bytes());
    Ok(())
}

/// Names and values, in their order.
pub type Members<'a> = Vec<(Cow<'a, str>, &'a RawValue)>;

/// The members of the text of a JSON object.
pub fn members(object: &[u8]) -> Result<Members<'_>, serde_json::Error> {
    struct Collect;

    impl<'de> Visitor<'de> for Collect {
        type Value = Members<'de>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a JSON object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut members = Vec::new();
            while let Some((name, value)) = map.next_entry::<Name<'de>, &'de RawValue>()? {
                members.push((name.0, value));
            }
            Ok(members)
        }
    }

    let mut deserializer = serde_json::Deserializer::from_slice(object);
    let members = deserializer.deserialize_map(Collect)?;
    deserializer.end()?;
    Ok(members)
}

#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    fn edited(object: &str, edits: &[Edit]) -> String {
        String::from_utf8(edit(object.as_bytes(), edits).unwrap()).unwrap()
    }

    #[test]
    fn other_members_stay_byte_for_byte() {
        let body = r#"{ "model" : "m", "x": [1.10, "\u00e9"], "stream":true }"#;
        assert_eq!(edited(body, &[Edit::remove("stream")]), r#"{"model":"m","x":[1.10, "\u00e9"]}"#);
        assert_eq!(
            edited(body, &[Edit::set("service_tier", "\"flex\"")]),
            r#"{"model":"m","x":[1.10, "\u00e9"],"stream":true,"service_tier":"flex"}"#
        );
        assert_eq!(edited(body, &[Edit::set("x", "1")]), r#"{"model":"m","x":1,"stream":true}"#);
    }

    #[test]
    fn edge_cases() {
        assert_eq!(edited("{}", &[Edit::remove("a")]), "{}");
        assert_eq!(edited("{}", &[Edit::set("a", "1")]), r#"{"a":1}"#);
        assert_eq!(edited(r#"{"\u0061":1}"#, &[Edit::remove("a")]), "{}");
        assert!(edit(b"[]", &[]).is_err());
        assert!(edit(b"{} x", &[]).is_err());
        assert!(is_empty(b" { } ") && !is_empty(br#"{"a":1}"#));
    }
}
