//! Bodies: parsed once, into their type. What is not JSON is told at once; JSON of the wrong form is told later, where the contract's
//! order of errors wants it, with a pointer to the place.

pub(crate) use common::forms::Object;
use common::problems::Slug;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_path_to_error::{Path, Segment};

use crate::error::{ApiError, Checked, Fault};

/// The body of a call that needs none.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Nothing {}

/// A body that is JSON: its value, or why it is not of the form that the call wants.
#[derive(Debug)]
pub(crate) struct Parsed<T> {
    value: Checked<T>,
    raw: Vec<u8>,
}

impl<T> Parsed<T> {
    /// The value, or what is wrong with its form.
    pub(crate) fn checked(self) -> Checked<T> {
        self.value
    }
}

impl<T: Serialize> Parsed<T> {
    /// The request as parsed, in one form however it was written: members sorted, no blanks, defaults left out.
    pub(crate) fn canonical(&self) -> String {
        let value = match &self.value {
            Ok(value) => serde_json::to_value(value).unwrap_or(Value::Null),
            Err(_) => serde_json::from_slice(&self.raw).unwrap_or(Value::Null),
        };
        let mut text = String::new();
        write_canonical(&value, &mut text);
        text
    }
}

fn write_canonical(value: &Value, text: &mut String) {
    match value {
        Value::Object(members) => {
            let mut sorted: Vec<(&String, &Value)> = members.iter().collect();
            sorted.sort_unstable_by_key(|(name, _)| *name);
            text.push('{');
            for (i, (name, member)) in sorted.into_iter().enumerate() {
                if i > 0 {
                    text.push(',');
                }
                text.push_str(&Value::String(name.clone()).to_string());
                text.push(':');
                write_canonical(member, text);
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    text.push(',');
                }
                write_canonical(item, text);
            }
            text.push(']');
        }
        scalar => text.push_str(&scalar.to_string()),
    }
}

/// Parses a body.
///
/// # Errors
/// 400 `malformed-body`: it is not JSON.
pub(crate) fn parse<T: DeserializeOwned>(raw: &[u8]) -> Result<Parsed<T>, ApiError> {
    let mut json = serde_json::Deserializer::from_slice(raw);
    let value = match serde_path_to_error::deserialize::<_, Object<T>>(&mut json) {
        Ok(value) => match json.end() {
            Ok(()) => return Ok(Parsed { value: Ok(value.0), raw: Vec::new() }),
            Err(error) => return Err(malformed(&error)),
        },
        Err(error) => error,
    };
    // The first fault may be one of form, and the bytes behind it no JSON at all.
    if let Err(error) = serde_json::from_slice::<Value>(raw) {
        return Err(malformed(&error));
    }
    let fault = Fault::pointer(pointer(value.path()), without_place(&value.inner().to_string()));
    Ok(Parsed { value: Err(vec![fault]), raw: raw.to_vec() })
}

fn malformed(error: &serde_json::Error) -> ApiError {
    ApiError::new(Slug::MalformedBody, format!("The body is not JSON: {error}."))
}

/// The parser's message without line and column, which the pointer replaces.
fn without_place(message: &str) -> &str {
    message.rsplit_once(" at line ").map_or(message, |(text, _)| text)
}

/// An RFC 6901 pointer.
fn pointer(path: &Path) -> String {
    let segments = path.iter().filter_map(|segment| match segment {
        Segment::Seq { index } => Some(format!("/{index}")),
        Segment::Map { key } => Some(format!("/{}", key.replace('~', "~0").replace('/', "~1"))),
        Segment::Enum { .. } | Segment::Unknown => None,
    });
    segments.collect()
}

/// For a member that may be left out but not be null: `#[serde(default, deserialize_with = "present")]`.
pub(crate) fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        count: i64,
    }

    #[derive(Debug, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
        ids: Option<Vec<i64>>,
        #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
        inner: Option<Object<Inner>>,
    }

    fn fault(text: &str) -> Fault {
        parse::<Sample>(text.as_bytes()).expect("JSON").checked().expect_err("of the wrong form").remove(0)
    }

    #[test]
    fn what_is_not_json_is_told_at_once_even_behind_a_fault_of_form() {
        for text in ["", "{", "{\"ids\": [1]} x", "{\"ids\": true, }", "\u{feff}{}", "{'ids': 1}", "nul", "\"\\ud800\""]
        {
            assert!(parse::<Sample>(text.as_bytes()).is_err(), "{text}");
        }
        assert!(parse::<Sample>(b"{\"ids\": [\xff]}").is_err());
    }

    #[test]
    fn what_is_of_the_wrong_form_is_pointed_at() {
        assert_eq!(fault(r#"{"ids": [1, "2"]}"#), Fault::pointer("/ids/1", "invalid type: string \"2\", expected i64"));
        assert_eq!(
            fault(r#"{"inner": {"count": 1.5}}"#).clone(),
            Fault::pointer("/inner/count", "invalid type: floating point `1.5`, expected i64")
        );
        for text in [
            r#"{"colour": 1}"#,
            r#"{"ids": null}"#,
            r#"{"inner": [1]}"#,
            r#"{"inner": {}}"#,
            r#"{"inner": {"count": 1e30}}"#,
            "[[1]]",
            "7",
            "null",
            "[]",
        ] {
            fault(text);
        }
    }

    #[test]
    fn the_canonical_form_does_not_depend_on_how_it_was_written() {
        let canonical = |text: &str| parse::<Sample>(text.as_bytes()).expect("JSON").canonical();
        assert_eq!(canonical(r#" {"inner" : {"count":2}, "ids":[1, 2]}"#), r#"{"ids":[1,2],"inner":{"count":2}}"#);
        assert_eq!(canonical("{}"), "{}");
        assert_ne!(canonical(r#"{"ids":[1,2]}"#), canonical(r#"{"ids":[2,1]}"#));
        assert_eq!(canonical(r#"{"b": 1, "a": {"d": null, "c": "x"}}"#), r#"{"a":{"c":"x","d":null},"b":1}"#);
    }
}
