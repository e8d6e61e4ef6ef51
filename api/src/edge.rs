//! What happens around every call: load is shed, time is limited, a panic is caught, problems get their document, and all is counted.

use std::cell::RefCell;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use common::problems::{Problem, Slug};
use foldhash::HashMap;
use futures::FutureExt;
use metrics::Histogram;

use crate::error::{ApiError, Refusal};
use crate::leftover::Leftover;
use crate::state::App;

/// The layer around all calls.
pub(crate) async fn around(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = request.method().clone();
    let uri = request.uri().clone();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let (request, leftover) = Leftover::watch(request);
    let response = match app.in_flight.try_acquire() {
        // Without an operators' key nothing is there, whatever the method or the body.
        Ok(_) if app.admin_key_hash.is_none() && uri.path().starts_with("/v1/admin/") => {
            not_found().await.into_response()
        }
        Ok(_permit) => bounded(&app, request, next).await,
        Err(_) => shed(),
    };
    if let Some(leftover) = leftover {
        leftover.drop_rest().await;
    }
    let mut response = finished(response, uri.path());
    if !response.headers().contains_key(header::CACHE_CONTROL) {
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    let elapsed = started.elapsed();
    let status = response.status();
    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    count(&method, route, status, elapsed);
    tracing::debug!(%method, path = uri.path(), status = status.as_u16(), ?elapsed, "a request is answered");
    response
}

async fn bounded(app: &App, request: Request, next: Next) -> Response {
    let handled = AssertUnwindSafe(next.run(request)).catch_unwind();
    match tokio::time::timeout(Duration::from_secs(app.bounds.request_seconds_max), handled).await {
        Ok(Ok(response)) => response,
        // The panic hook has told it.
        Ok(Err(_)) => ApiError::unavailable("The request cannot be answered; the failure is noted.").into_response(),
        Err(_) => {
            ApiError::unavailable("The request took too long. Repeat it with its Idempotency-Key.").into_response()
        }
    }
}

fn shed() -> Response {
    metrics::counter!("api_shed_total").increment(1);
    ApiError::new(Slug::Overloaded, "Too many requests are being answered. Try again in a moment.").into_response()
}

/// Writes the problem document of a refusal, and gives axum's own refusals theirs.
fn finished(mut response: Response, path: &str) -> Response {
    if let Some(refusal) = response.extensions_mut().remove::<Arc<Refusal>>() {
        refusal.write(&mut response, path);
    } else if response.status() == StatusCode::METHOD_NOT_ALLOWED {
        // It has its `Allow` already.
        if let ApiError::Refused(refusal) = method_not_allowed() {
            refusal.write(&mut response, path);
        }
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    response
}

fn method_not_allowed() -> ApiError {
    Problem::new(Slug::MethodNotAllowed, "The header Allow names the methods of this path.").into()
}

/// The answer where there is nothing.
pub(crate) async fn not_found() -> ApiError {
    ApiError::new(Slug::NotFound, "There is nothing at this path; /openapi.json lists all calls.")
}

/// Times by method, status and route.
type Times = HashMap<(&'static str, StatusCode), HashMap<String, Histogram>>;

thread_local! {
    // To look one up in the registry costs more than to record in it. Both are few: routes are ours, and so are the names of methods.
    static TIMES: RefCell<Times> = RefCell::default();
}

fn count(method: &Method, route: &str, status: StatusCode, elapsed: Duration) {
    let method = method_label(method);
    TIMES.with_borrow_mut(|times| {
        let by_route = times.entry((method, status)).or_default();
        if let Some(time) = by_route.get(route) {
            return time.record(elapsed.as_secs_f64());
        }
        let labels =
            [("method", method.to_owned()), ("route", route.to_owned()), ("status", status.as_str().to_owned())];
        let time = metrics::histogram!("api_request_seconds", &labels);
        time.record(elapsed.as_secs_f64());
        by_route.insert(route.to_owned(), time);
    });
}

/// A caller may invent methods; a label must not grow with them.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        Method::PATCH => "PATCH",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::PUT => "PUT",
        _ => "other",
    }
}
