//! Query parameters: each call names those that it knows; others, and repeated ones, are refused.

use common::ids::UserId;

use crate::cursor::Cursor;
use crate::error::{ApiError, Checked, Fault, sensible};

/// Entries of a page, unless `limit` says otherwise.
pub(crate) const LIMIT_DEFAULT: i64 = 50;
/// The most that `limit` may ask for.
pub(crate) const LIMIT_MAX: i64 = 200;

/// The parameters of one query.
#[derive(Debug, Default)]
pub(crate) struct Query {
    pairs: Vec<(&'static str, String)>,
}

impl Query {
    /// Reads a query of which `allowed` names are known.
    pub(crate) fn read(query: Option<&str>, allowed: &[&'static str]) -> Checked<Self> {
        let mut read = Self::default();
        let mut faults = Vec::new();
        for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            match allowed.iter().find(|known| **known == name) {
                None => faults.push(Fault::parameter(name, "there is no such parameter here")),
                Some(known) if read.get(known).is_some() => {
                    faults.push(Fault::parameter(name, "it is given more than once"));
                }
                Some(known) => read.pairs.push((known, value.into_owned())),
            }
        }
        if faults.is_empty() { Ok(read) } else { Err(faults) }
    }

    /// A parameter's text.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    /// A parameter parsed by `parse`, which says what it wanted; None if it was not given.
    pub(crate) fn parsed<T>(
        &self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, &'static str>,
    ) -> Checked<Option<T>> {
        self.get(name).map(parse).transpose().map_err(|wanted| vec![Fault::parameter(name, wanted)])
    }

    /// `limit`: entries of a page, as written; see [`page_size`] for its range.
    pub(crate) fn limit(&self) -> Checked<i64> {
        let digits = |text: &str| text.strip_prefix('-').unwrap_or(text).bytes().all(|byte| byte.is_ascii_digit());
        let limit = self.parsed("limit", |text| match text.parse::<i64>() {
            Ok(limit) if digits(text) => Ok(limit),
            _ => Err("it is an integer from 1 to 200"),
        });
        limit.map(|limit| limit.unwrap_or(LIMIT_DEFAULT))
    }

    /// `cursor`: where the page begins; None: at the beginning.
    pub(crate) fn cursor<C: Cursor>(&self) -> Checked<Option<C>> {
        self.parsed("cursor", |text| C::decode(text).ok_or("it is no `next_cursor` of this list"))
    }
}

/// Asks that a `limit` is in its range.
///
/// # Errors
/// 422 `invalid-request`
pub(crate) fn page_size(limit: i64) -> Result<(), ApiError> {
    if (1..=LIMIT_MAX).contains(&limit) {
        return Ok(());
    }
    sensible(&[Fault::parameter("limit", format!("it is 1 to {LIMIT_MAX}"))])
}

/// A buyer's id as an own parameter or header writes it.
pub(crate) fn user_id(text: &str) -> Option<UserId> {
    uuid::Uuid::try_parse(text).ok().map(UserId)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_parameters_are_read_others_and_repeats_are_refused() {
        let query = Query::read(Some("from=2026-01-01&section=A%20B"), &["from", "to", "section"]).unwrap();
        assert_eq!((query.get("from"), query.get("to"), query.get("section")), (Some("2026-01-01"), None, Some("A B")));
        assert!(Query::read(Some("form=1"), &["from"]).is_err());
        assert!(Query::read(Some("from=1&from=1"), &["from"]).is_err());
        assert!(Query::read(Some(""), &[]).is_ok() && Query::read(None, &[]).is_ok());
    }

    #[test]
    fn a_limit_is_an_integer_and_has_its_range() {
        let limit = |text: &str| Query::read(Some(text), &["limit"]).unwrap().limit();
        assert_eq!((limit(""), limit("limit=1"), limit("limit=201")), (Ok(50), Ok(1), Ok(201)));
        for bad in ["limit=x", "limit=", "limit=-", "limit=%2B5", "limit=1.0", "limit=99999999999999999999"] {
            assert!(limit(bad).is_err(), "{bad}");
        }
        assert!([1, 50, 200].into_iter().all(|limit| page_size(limit).is_ok()));
        assert!([0, -1, 201, i64::MAX].into_iter().all(|limit| page_size(limit).is_err()));
    }
}
