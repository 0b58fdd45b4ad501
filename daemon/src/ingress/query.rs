//! The query of a call's path.

use http::Request;

use crate::reply::Refusal;

/// Names and values, decoded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Of a request.
    pub fn of<B>(request: &Request<B>) -> Self {
        Self::parse(request.uri().query().unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        Self(form_urlencoded::parse(text.as_bytes()).into_owned().collect())
    }

    /// A value; an empty one is none.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// How many things are asked for: at most `most`, `usual` if the caller does not say.
    pub fn limit(&self, usual: usize, most: usize) -> Result<usize, Refusal> {
        let Some(text) = self.get("limit") else { return Ok(usual) };
        text.parse().ok().filter(|limit| (1..=most).contains(limit)).ok_or_else(|| {
            let message = format!("limit must be a number from 1 to {most}.");
            Refusal::bad_request("invalid_value", message).param("limit")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_decoded_and_found() {
        let query = Query::parse("a=1&b=x%2Fy+z&c&d=%zz&e=");
        assert_eq!(query.get("a"), Some("1"));
        assert_eq!(query.get("b"), Some("x/y z"));
        assert_eq!(query.get("d"), Some("%zz"));
        assert_eq!((query.get("c"), query.get("e"), query.get("f")), (None, None, None));
    }

    #[test]
    fn limits_hold() {
        assert_eq!(Query::default().limit(20, 100), Ok(20));
        assert_eq!(Query::parse("limit=100").limit(20, 100), Ok(100));
        for bad in ["limit=0", "limit=101", "limit=x", "limit=-1"] {
            assert!(Query::parse(bad).limit(20, 100).is_err(), "{bad}");
        }
    }
}
