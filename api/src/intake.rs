//! Bodies are read before anything is decided, each within its bound and its time. A refusal of a request whose body still arrives would
//! be lost: the connection would be reset under it. So the rest of a body that is too large is read too, and thrown away.

use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use common::problems::Slug;
use http_body_util::BodyExt;

use crate::auth::access;
use crate::error::ApiError;
use crate::state::App;

/// How much of a body that is too large is read for the sake of the answer; beyond, the connection is closed.
const DISCARDED_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What has become of a request's body; left in the request for its handler.
#[derive(Debug, Clone)]
pub(crate) enum Intake {
    /// It has arrived.
    Whole(Bytes),
    /// It is larger than this.
    TooLarge(usize),
    /// It broke off, or is not framed as HTTP wants it.
    Broken,
    /// It did not arrive within so many seconds.
    Late(u64),
}

impl Intake {
    /// The body.
    ///
    /// # Errors
    /// 413 `body-too-large`, 400 `malformed-body`
    pub(crate) fn bytes(self) -> Result<Bytes, ApiError> {
        match self {
            Self::Whole(bytes) => Ok(bytes),
            Self::TooLarge(max) => Err(ApiError::new(Slug::BodyTooLarge, format!("The body may have {max} bytes."))),
            Self::Broken => Err(ApiError::new(Slug::MalformedBody, "The body did not arrive as a whole.")),
            Self::Late(seconds) => {
                Err(ApiError::new(Slug::MalformedBody, format!("The body did not arrive within {seconds} s.")))
            }
        }
    }
}

/// Reads the body, and leaves it in the request.
pub(crate) async fn read(app: &App, request: Request) -> Request {
    if request.body().is_end_stream() {
        return request;
    }
    let (mut parts, body) = request.into_parts();
    // Only who has the operators' key may send as much as an operator.
    let is_operator = parts.uri.path().starts_with("/v1/admin/") && access::operator(app, &parts.headers).is_ok();
    let bytes_max = if is_operator { app.bounds.admin_body_bytes_max } else { app.bounds.body_bytes_max };
    let seconds_max = app.bounds.body_seconds_max;
    let collected = collect(body, bytes_max, waits_for_leave(&parts.headers));
    let intake = match tokio::time::timeout(Duration::from_secs(seconds_max), collected).await {
        Ok(intake) => intake,
        Err(_) => Intake::Late(seconds_max),
    };
    parts.extensions.insert(intake);
    Request::from_parts(parts, Body::empty())
}

/// The caller sends the body only when told to go on.
fn waits_for_leave(headers: &HeaderMap) -> bool {
    headers.get(header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

async fn collect(mut body: Body, bytes_max: usize, waits_for_leave: bool) -> Intake {
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > DISCARDED_BYTES_MAX.max(bytes_max) || (announced > bytes_max && waits_for_leave) {
        return Intake::TooLarge(bytes_max);
    }
    let mut collected = Collected::Nothing;
    let mut bytes = 0_usize;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return Intake::Broken };
        let Ok(data) = frame.into_data() else { continue };
        bytes = bytes.saturating_add(data.len());
        if bytes > DISCARDED_BYTES_MAX.max(bytes_max) {
            return Intake::TooLarge(bytes_max);
        }
        collected = if bytes > bytes_max { Collected::Nothing } else { collected.and(data) };
    }
    if bytes > bytes_max { Intake::TooLarge(bytes_max) } else { Intake::Whole(collected.into_bytes()) }
}

/// Most bodies come as one piece, which is not copied.
enum Collected {
    Nothing,
    One(Bytes),
    Several(Vec<u8>),
}

impl Collected {
    fn and(self, data: Bytes) -> Self {
        match self {
            Self::Nothing => Self::One(data),
            Self::One(first) => Self::Several([first, data].concat()),
            Self::Several(mut all) => {
                all.extend_from_slice(&data);
                Self::Several(all)
            }
        }
    }

    fn into_bytes(self) -> Bytes {
        match self {
            Self::Nothing => Bytes::new(),
            Self::One(bytes) => bytes,
            Self::Several(bytes) => bytes.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(chunks: &[&'static str]) -> Body {
        let chunks: Vec<_> = chunks.iter().map(|chunk| Ok::<_, std::io::Error>(*chunk)).collect();
        Body::from_stream(futures::stream::iter(chunks))
    }

    #[tokio::test]
    async fn a_body_arrives_in_one_piece_or_in_several() {
        for pieces in [&["{}"][..], &["{", "}"], &["", "{", "", "}"]] {
            let Intake::Whole(bytes) = collect(chunks(pieces), 2, false).await else { panic!("it fits") };
            assert_eq!(bytes, "{}");
        }
    }

    #[tokio::test]
    async fn a_body_that_is_too_large_is_refused_whether_announced_or_not() {
        assert!(matches!(collect(chunks(&["{}", " "]), 2, false).await, Intake::TooLarge(2)));
        assert!(matches!(collect(Body::from("{} "), 2, true).await, Intake::TooLarge(2)));
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_told() {
        let broken = [Ok("{"), Err(std::io::Error::other("gone"))];
        let body = Body::from_stream(futures::stream::iter(broken));
        assert!(matches!(collect(body, 2, false).await, Intake::Broken));
    }
}
