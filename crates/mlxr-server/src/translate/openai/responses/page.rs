//! Asking for what is stored: the fields behind `?`.

use std::sync::Arc;

use axum::extract::Query;
use axum::http::Uri;
use mlxr_api::openai::responses::{Item, ItemList};

use crate::ServeError;

/// The most items of a page, as OpenAI documents it.
const MAX_ITEMS: usize = 100;
const DEFAULT_ITEMS: usize = 20;

/// Which of the items.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageQuery {
    after: Option<String>,
    limit: usize,
    is_ascending: bool,
}

impl PageQuery {
    /// # Errors
    /// A field that is unknown or makes no sense.
    pub fn read(uri: &Uri) -> Result<PageQuery, ServeError> {
        let mut page = PageQuery { after: None, limit: DEFAULT_ITEMS, is_ascending: false };
        for (name, value) in pairs(uri)? {
            match &*name {
                "after" => page.after = Some(value),
                "limit" => {
                    let limit = value.parse().ok().filter(|n| (1..=MAX_ITEMS).contains(n));
                    page.limit = limit.ok_or_else(|| {
                        let reason = format!("limit is {value:?}, but must be from 1 to {MAX_ITEMS}");
                        ServeError::invalid("limit", reason)
                    })?;
                }
                "order" => {
                    page.is_ascending = match &*value {
                        "asc" => true,
                        "desc" => false,
                        _ => {
                            let reason = format!("order is {value:?}, but must be asc or desc");
                            return Err(ServeError::invalid("order", reason));
                        }
                    };
                }
                // Everything there is comes anyway.
                "include" | "include[]" => {}
                name => return Err(unknown(name)),
            }
        }
        Ok(page)
    }

    /// The page.
    ///
    /// # Errors
    /// `after` names no item.
    pub fn of(&self, items: &[Arc<Item>]) -> Result<ItemList, ServeError> {
        let mut ordered: Vec<&Arc<Item>> = items.iter().collect();
        if !self.is_ascending {
            ordered.reverse();
        }
        let start = match &self.after {
            None => 0,
            Some(id) => {
                let found = ordered.iter().position(|item| item.id() == Some(id));
                found.map(|i| i + 1).ok_or_else(|| {
                    ServeError::invalid("after", format!("after: there is no item {id:?} in this list"))
                })?
            }
        };
        let rest = &ordered[start..];
        let data: Vec<Item> = rest.iter().take(self.limit).map(|item| Item::clone(item)).collect();
        let id = |item: Option<&Item>| item.and_then(Item::id).map(str::to_owned);
        Ok(ItemList {
            object: "list",
            first_id: id(data.first()),
            last_id: id(data.last()),
            has_more: self.limit < rest.len(),
            data,
        })
    }
}

fn pairs(uri: &Uri) -> Result<Vec<(String, String)>, ServeError> {
    let pairs = Query::try_from_uri(uri);
    let Query(pairs) =
        pairs.map_err(|error| ServeError::Invalid { field: None, reason: error.body_text() })?;
    Ok(pairs)
}

fn unknown(name: &str) -> ServeError {
    ServeError::invalid(name, format!("{name}: there is no such parameter"))
}

/// Checks what stands behind `?` when a response is asked for.
///
/// # Errors
/// A field that cannot be honoured.
pub fn check_retrieval(uri: &Uri) -> Result<(), ServeError> {
    for (name, value) in pairs(uri)? {
        match (&*name, &*value) {
            ("stream", "true") => {
                let reason = "stream: a stored response comes whole; ask again until its status is no longer \
                              in_progress";
                return Err(ServeError::invalid("stream", reason));
            }
            ("stream", "false") | ("include" | "include[]" | "include_obfuscation", _) => {}
            (name, _) => return Err(unknown(name)),
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "helpers of tests are tests")]
mod tests {
    use mlxr_api::openai::responses::InputItem;
    use serde_json::json;

    use super::*;

    fn items() -> Vec<Arc<Item>> {
        let item = |i: u32| {
            let value = json!({"role": "user", "content": "x", "id": format!("msg_{i}")});
            let InputItem::Item(item) = InputItem::read("input", value).unwrap() else { panic!("an item") };
            Arc::new(item)
        };
        (0..5).map(item).collect()
    }

    fn uri(query: &str) -> Uri {
        format!("/v1/responses/resp_1?{query}").parse().unwrap()
    }

    fn read(query: &str) -> Result<PageQuery, ServeError> {
        PageQuery::read(&uri(query))
    }

    #[test]
    fn pages_follow_each_other_in_either_order() {
        let page = |query: &str| {
            let list = read(query).unwrap().of(&items()).unwrap();
            let ids: Vec<String> = list.data.iter().map(|item| item.id().unwrap()[4..].to_owned()).collect();
            assert_eq!(list.first_id.as_deref(), list.data.first().and_then(|item| item.id()));
            (ids.join(""), list.has_more)
        };
        assert_eq!(page(""), ("43210".to_owned(), false));
        assert_eq!(page("limit=2"), ("43".to_owned(), true));
        assert_eq!(page("limit=3&after=msg_3"), ("210".to_owned(), false));
        assert_eq!(page("order=asc&limit=2&after=msg_1"), ("23".to_owned(), true));
        assert_eq!(page("after=msg_0"), (String::new(), false));
        for query in ["limit=0", "limit=101", "limit=x", "order=up", "before=msg_1"] {
            assert!(read(query).is_err(), "{query}");
        }
        assert!(read("after=x").unwrap().of(&items()).is_err());
    }

    #[test]
    fn a_stored_response_is_not_streamed() {
        let check = |query| check_retrieval(&uri(query));
        assert!(check("").is_ok() && check("stream=false&include[]=x").is_ok());
        assert!(check("stream=true").unwrap_err().to_string().contains("in_progress"));
        assert!(check("color=red").is_err());
    }
}
