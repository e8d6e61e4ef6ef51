//! The rest of a body that nobody reads. A client that is still sending when its answer comes and the connection closes sees
//! a broken connection instead of the answer, so what is left of a large body is read and dropped first, within bounds.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use http_body_util::BodyExt;
use hyper::body::Frame;

/// Smaller bodies come with the head, and hyper reads their rest itself.
const SMALL_BYTES_MAX: u64 = 16 * 1024;
/// What is dropped at most; whoever sends more is cut off.
const DROPPED_BYTES_MAX: usize = 64 * 1024 * 1024;
const DROPPING_WAIT_MAX: Duration = Duration::from_secs(5);

/// A body that its handler reads, and whose rest can be taken when the handler is done.
pub(crate) struct Leftover(Arc<Mutex<Body>>);

struct Shared(Arc<Mutex<Body>>);

impl HttpBody for Shared {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut body = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Pin::new(&mut *body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).size_hint()
    }
}

impl Leftover {
    /// Keeps hold of the request's body, if it may be large and its sender does not wait to be told to go on.
    pub(crate) fn watch(request: Request) -> (Request, Option<Self>) {
        if !may_be_large(request.headers()) || request.headers().contains_key(header::EXPECT) {
            return (request, None);
        }
        let (parts, body) = request.into_parts();
        let body = Arc::new(Mutex::new(body));
        (Request::from_parts(parts, Body::new(Shared(body.clone()))), Some(Self(body)))
    }

    /// Reads the rest and drops it.
    pub(crate) async fn drop_rest(self) {
        let mut rest = Shared(self.0);
        let mut dropped = 0;
        let dropping = async {
            while let Some(Ok(frame)) = rest.frame().await {
                dropped += frame.data_ref().map_or(0, Bytes::len);
                if dropped > DROPPED_BYTES_MAX {
                    break;
                }
            }
        };
        // Whoever is slower than this is cut off.
        let _ = tokio::time::timeout(DROPPING_WAIT_MAX, dropping).await;
    }
}

fn may_be_large(headers: &HeaderMap) -> bool {
    match headers.get(header::CONTENT_LENGTH) {
        Some(length) => {
            length.to_str().ok().and_then(|text| text.parse::<u64>().ok()).is_none_or(|n| n > SMALL_BYTES_MAX)
        }
        None => headers.contains_key(header::TRANSFER_ENCODING),
    }
}
