//! Headers: CloudEvents in binary mode and the W3C trace context on what we write, the first append time on what is redriven.

use std::panic::AssertUnwindSafe;

use chrono::{SecondsFormat, Utc};
use rdkafka::message::{BorrowedHeaders, Header, Headers, OwnedHeaders};
use uuid::Uuid;

/// On a redriven record: when it was appended first, in milliseconds as text. It counts if it is earlier than the
/// record's own append time.
pub const FIRST_APPEND_MS: &str = "boxoffice-first-append-ms";
/// The W3C trace context.
pub const TRACEPARENT: &str = "traceparent";

/// CloudEvents headers of a record of type `kind` about `id`, written by `source` (`/boxoffice/api`, …).
pub fn cloud_event(kind: &str, id: Uuid, source: &str, traceparent: Option<&str>) -> OwnedHeaders {
    let id = id.to_string();
    let time = Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true);
    let headers = OwnedHeaders::new_with_capacity(7)
        .insert(text("ce_specversion", "1.0"))
        .insert(text("ce_id", &id))
        .insert(text("ce_source", source))
        .insert(text("ce_type", kind))
        .insert(text("ce_time", &time))
        .insert(text("content-type", "application/json"));
    match traceparent {
        Some(value) => headers.insert(text(TRACEPARENT, value)),
        None => headers,
    }
}

/// A header with a text value.
pub fn text<'a>(key: &'a str, value: &'a str) -> Header<'a, &'a str> {
    Header { key, value: Some(value) }
}

/// The headers of a record, as bytes in one piece: most are copied only because a record might turn out to be a dead letter.
#[derive(Debug, Clone, Default)]
pub struct KeptHeaders {
    bytes: Vec<u8>,
    /// Where each name ends in `bytes`, and its value, if it has one.
    ends: Vec<(usize, Option<usize>)>,
    /// Headers of which a name is no UTF-8: the Kafka library panics when it is asked for one.
    unreadable: Option<OwnedHeaders>,
}

impl KeptHeaders {
    /// Copies the headers of a message.
    pub fn of(headers: &BorrowedHeaders) -> Self {
        Self::copy_or(headers, || headers.detach())
    }

    fn copy_or(headers: &impl Headers, whole: impl FnOnce() -> OwnedHeaders) -> Self {
        let copied = std::panic::catch_unwind(AssertUnwindSafe(|| Self::copy(headers)));
        copied.unwrap_or_else(|_| Self { unreadable: Some(whole()), ..Self::default() })
    }

    fn copy(headers: &impl Headers) -> Self {
        let size = headers.iter().map(|header| header.key.len() + header.value.map_or(0, <[u8]>::len)).sum();
        let (bytes, ends) = (Vec::with_capacity(size), Vec::with_capacity(headers.count()));
        let mut kept = Self { bytes, ends, unreadable: None };
        for header in headers.iter() {
            kept.bytes.extend_from_slice(header.key.as_bytes());
            let name_end = kept.bytes.len();
            let value_end = header.value.map(|value| {
                kept.bytes.extend_from_slice(value);
                kept.bytes.len()
            });
            kept.ends.push((name_end, value_end));
        }
        kept
    }

    /// The value of the first header of this name, as text.
    pub fn text(&self, name: &str) -> Option<&str> {
        let (_, value) = self.iter().find(|(found, _)| *found == name.as_bytes())?;
        value.and_then(|value| std::str::from_utf8(value).ok())
    }

    /// For a record that is written with the same headers.
    pub fn to_owned_headers(&self) -> OwnedHeaders {
        if let Some(unreadable) = &self.unreadable {
            return unreadable.clone();
        }
        self.iter().fold(OwnedHeaders::new_with_capacity(self.ends.len()), |headers, (name, value)| {
            headers.insert(Header { key: &String::from_utf8_lossy(name), value })
        })
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        let mut begin = 0;
        self.ends.iter().map(move |(name_end, value_end)| {
            let name = &self.bytes[begin..*name_end];
            let value = value_end.map(|end| &self.bytes[*name_end..end]);
            begin = value_end.unwrap_or(*name_end);
            (name, value)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_kept_as_they_came() {
        let sent = OwnedHeaders::new()
            .insert(text("a", "1"))
            .insert(Header { key: "empty", value: Some("") })
            .insert(Header::<&[u8]> { key: "none", value: None })
            .insert(Header { key: "bytes", value: Some(&[0xFF, 0][..]) })
            .insert(text("a", "2"));
        let kept = KeptHeaders::copy(&sent);
        assert_eq!((kept.text("a"), kept.text("empty"), kept.text("none")), (Some("1"), Some(""), None));
        assert_eq!((kept.text("bytes"), kept.text("b")), (None, None));
        let written = kept.to_owned_headers();
        assert!(written.iter().eq(sent.iter()), "{written:?}");
        assert_eq!(KeptHeaders::default().to_owned_headers().count(), 0);
    }

    /// As the library does with a name that is no UTF-8.
    struct Unreadable;

    impl Headers for Unreadable {
        fn count(&self) -> usize {
            1
        }

        fn try_get(&self, _: usize) -> Option<Header<'_, &[u8]>> {
            panic!("no UTF-8")
        }
    }

    #[test]
    fn headers_that_cannot_be_read_are_kept_whole() {
        let kept = KeptHeaders::copy_or(&Unreadable, || OwnedHeaders::new().insert(text("a", "1")));
        assert_eq!(kept.text("a"), None);
        assert_eq!(kept.to_owned_headers().count(), 1);
    }
}
