//! Query strings and pages of lists.

use serde::Serialize;

use crate::error::ApiError;

/// The value of `name` in a query string. Identifiers and numbers need no decoding.
pub(crate) fn query<'a>(query: Option<&'a str>, name: &str) -> Option<&'a str> {
    let pairs = query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(key, _)| *key == name).map(|(_, value)| value).find(|value| !value.is_empty())
}

/// `limit` of a query string, from 1 to `max`.
pub(crate) fn limit(text: Option<&str>, default: usize, max: usize) -> Result<usize, ApiError> {
    let Some(value) = query(text, "limit") else { return Ok(default) };
    let wrong = |what: &str, code: &'static str| {
        let message =
            format!("Invalid 'limit': {what}. Expected an integer from 1 to {max}, but got {value} instead.");
        ApiError::invalid(message).param("limit").code(code)
    };
    match value.parse::<usize>() {
        Err(_) => Err(wrong("not an integer", "invalid_type")),
        Ok(0) => Err(wrong("integer below minimum value", "integer_below_min_value")),
        Ok(n) if n > max => Err(wrong("integer above maximum value", "integer_above_max_value")),
        Ok(n) => Ok(n),
    }
}

/// A page of a list, as the API shows it.
#[derive(Serialize, Debug)]
pub(crate) struct Page<'a, T> {
    object: &'static str,
    data: Vec<T>,
    first_id: Option<&'a str>,
    last_id: Option<&'a str>,
    has_more: bool,
}

impl<'a, T> Page<'a, T> {
    /// The same page with each item shown by `show`.
    pub(crate) fn map<U>(self, show: impl FnMut(T) -> U) -> Page<'a, U> {
        let Self { object, data, first_id, last_id, has_more } = self;
        Page { object, data: data.into_iter().map(show).collect(), first_id, last_id, has_more }
    }
}

/// The page of `limit` items that follows the item `after`, or the first one. `items` gives id and item.
pub(crate) fn page<'a, T>(
    mut items: impl Iterator<Item = (&'a str, T)>,
    after: Option<&str>,
    limit: usize,
) -> Result<Page<'a, T>, ApiError> {
    if let Some(after) = after
        && !items.any(|(id, _)| id == after)
    {
        let message = format!("No object found with id '{after}'.");
        return Err(ApiError::not_found(message).param("after"));
    }
    let (ids, data): (Vec<_>, Vec<_>) = items.by_ref().take(limit).unzip();
    let (first_id, last_id) = (ids.first().copied(), ids.last().copied());
    Ok(Page { object: "list", data, first_id, last_id, has_more: items.next().is_some() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn queries_are_read() {
        let text = Some("after=file-1&limit=7&purpose=");
        assert_eq!(query(text, "after"), Some("file-1"));
        assert_eq!(query(text, "purpose"), None);
        assert_eq!(limit(text, 20, 100), Ok(7));
        assert_eq!(limit(None, 20, 100), Ok(20));
        assert!(limit(Some("limit=101"), 20, 100).is_err());
        assert!(limit(Some("limit=0"), 20, 100).is_err());
        assert!(limit(Some("limit=x"), 20, 100).is_err());
    }

    proptest! {
        #[test]
        fn pages_cover_the_list_once(count in 0_usize..40, size in 1_usize..12) {
            let ids: Vec<_> = (0..count).map(|n| n.to_string()).collect();
            let (mut seen, mut after) = (Vec::new(), None);
            loop {
                let page = page(ids.iter().map(|id| (id.as_str(), id.clone())), after.as_deref(), size).unwrap();
                after = page.last_id.map(str::to_owned);
                let more = page.has_more;
                prop_assert!(!more || page.data.len() == size);
                seen.extend(page.data);
                if !more { break; }
            }
            prop_assert_eq!(seen, ids);
        }
    }
}
