//! Fields of a request that have no effect, and how the client hears of it.

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use crate::ServeError;

/// Names the fields of a request that were not honoured.
pub const UNSUPPORTED: HeaderName = HeaderName::from_static("x-mlxr-unsupported");

/// Fields named in the header at most; the body has them all.
const MAX_HEADER_FIELDS: usize = 32;
const MAX_FIELD_BYTES: usize = 64;

/// What will not be honoured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notices(Vec<Notice>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Notice {
    field: String,
    reason: String,
}

impl Notices {
    /// A field has no effect; `reason` continues "FIELD is not honoured: ".
    pub fn add(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        self.0.push(Notice { field: field.into(), reason: reason.into() });
    }

    /// One sentence per field.
    pub fn warnings(&self) -> Vec<String> {
        self.0.iter().map(|notice| format!("{} is not honoured: {}", notice.field, notice.reason)).collect()
    }

    /// Names the fields in a header, if there are any.
    pub fn write_header(&self, headers: &mut HeaderMap) {
        let fields: Vec<String> =
            self.0.iter().take(MAX_HEADER_FIELDS).map(|n| header_text(&n.field)).collect();
        if let Ok(value) = HeaderValue::from_str(&fields.join(", "))
            && !fields.is_empty()
        {
            headers.insert(UNSUPPORTED, value);
        }
    }

    /// # Errors
    /// In strict mode, when there is anything to report.
    pub fn enforce(&self, strict: bool) -> Result<(), ServeError> {
        match self.0.first() {
            Some(first) if strict => {
                Err(ServeError::NotHonoured { field: first.field.clone(), reasons: self.warnings() })
            }
            _ => Ok(()),
        }
    }
}

/// A field's name as far as a header can hold it.
fn header_text(field: &str) -> String {
    field
        .chars()
        .take(MAX_FIELD_BYTES)
        .map(|c| if c.is_ascii_graphic() && c != ',' { c } else { '?' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_reach_the_header_whatever_they_contain() {
        let mut notices = Notices::default();
        let mut headers = HeaderMap::new();
        notices.write_header(&mut headers);
        assert!(headers.is_empty());
        notices.add("store", "nothing is kept");
        notices.add("f\u{fc}r,\n", "no such field");
        notices.write_header(&mut headers);
        assert_eq!(headers[UNSUPPORTED], "store, f?r??");
        assert_eq!(notices.warnings()[0], "store is not honoured: nothing is kept");
        assert!(notices.enforce(false).is_ok());
        let refused = notices.enforce(true).unwrap_err();
        assert!(matches!(refused, ServeError::NotHonoured { field, .. } if field == "store"));
    }
}
