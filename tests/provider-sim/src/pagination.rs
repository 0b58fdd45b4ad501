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

/// A page of a list as Anthropic's API shows it.
#[derive(Serialize, Debug)]
pub(crate) struct CursorPage<'a, T> {
    data: Vec<T>,
    has_more: bool,
    first_id: Option<&'a str>,
    last_id: Option<&'a str>,
}

impl<'a, T> CursorPage<'a, T> {
    /// The same page with each item shown by `show`.
    pub(crate) fn map<U>(self, show: impl FnMut(T) -> U) -> CursorPage<'a, U> {
        let Self { data, has_more, first_id, last_id } = self;
        CursorPage { data: data.into_iter().map(show).collect(), has_more, first_id, last_id }
    }
}

/// The page that `after_id`, `before_id` and `limit` (1 to 1,000, 20 when left out) of a query ask for. `rows` gives id
/// and item, newest first; `before_id` asks for the newer neighbours of an item, in the same order.
pub(crate) fn cursor_page<'a, T: Copy>(
    rows: &[(&'a str, T)],
    text: Option<&str>,
) -> Result<CursorPage<'a, T>, ApiError> {
    let limit = match query(text, "limit").map(str::parse::<usize>) {
        None => 20,
        Some(Ok(n)) if (1..=1000).contains(&n) => n,
        Some(_) => return Err(ApiError::invalid("limit: Input should be an integer from 1 to 1000")),
    };
    let place = |cursor: &str| {
        let found = rows.iter().position(|(id, _)| *id == cursor);
        found.ok_or_else(|| ApiError::not_found(format!("No object found with ID: {cursor}")))
    };
    let (part, has_more) = match (query(text, "after_id"), query(text, "before_id")) {
        (Some(_), Some(_)) => {
            return Err(ApiError::invalid("Only one of after_id and before_id may be given"));
        }
        (None, Some(before)) => {
            let newer = rows.get(..place(before)?).unwrap_or_default();
            let skipped = newer.len().saturating_sub(limit);
            (newer.get(skipped..).unwrap_or_default(), skipped > 0)
        }
        (after, None) => {
            let start = after.map_or(Ok(0), |after| place(after).map(|at| at + 1))?;
            let older = rows.get(start..).unwrap_or_default();
            (older.get(..limit).unwrap_or(older), older.len() > limit)
        }
    };
    let id = |row: Option<&(&'a str, T)>| row.map(|(id, _)| *id);
    Ok(CursorPage {
        data: part.iter().map(|(_, item)| *item).collect(),
        has_more,
        first_id: id(part.first()),
        last_id: id(part.last()),
    })
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
        let rows = [("a", 1), ("b", 2)];
        for wrong in ["limit=0", "limit=1001", "limit=x", "after_id=z", "after_id=a&before_id=b"] {
            assert!(cursor_page(&rows, Some(wrong)).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn cursors_walk_both_ways(count in 0_usize..40, size in 1_usize..12) {
            let ids: Vec<_> = (0..count).map(|n| format!("i{n}")).collect();
            let rows: Vec<_> = ids.iter().map(|id| (id.as_str(), id.as_str())).collect();
            let (mut seen, mut cursor) = (Vec::new(), String::new());
            loop {
                let page = cursor_page(&rows, Some(&format!("limit={size}{cursor}"))).unwrap();
                cursor = format!("&after_id={}", page.last_id.unwrap_or_default());
                seen.extend(page.data);
                if !page.has_more { break; }
            }
            prop_assert_eq!(&seen, &ids);
            let Some(last) = ids.last() else { return Ok(()) };
            let (mut back, mut cursor) = (vec![last.as_str()], last.clone());
            loop {
                let page = cursor_page(&rows, Some(&format!("limit={size}&before_id={cursor}"))).unwrap();
                back.splice(0..0, page.data);
                if !page.has_more { break; }
                cursor = page.first_id.unwrap().to_owned();
            }
            prop_assert_eq!(&back, &ids);
        }

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
