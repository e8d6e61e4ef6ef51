//! Every call of the api, on one page. A handler's method and path stand at the handler, in its `utoipa::path`, so that the OpenAPI
//! document and the router cannot differ; here they are repeated for the reader.

use std::sync::Arc;

use anyhow::Context;
use axum::Router;
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware;
use tower_http::cors::{AllowOrigin, CorsLayer};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::edge;
use crate::routes::{
    balance, concerts, events, operators, payments, queues, reads, requests, reservations, schedules, tokens, users,
};
use crate::state::App;
use crate::{docs, openapi, problem_pages};

/// All calls that the OpenAPI document describes.
pub(crate) fn calls() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        // /v1/users, /v1/access-tokens: POST
        .routes(routes!(users::sign_up))
        .routes(routes!(users::log_in))
        // /v1/concerts, /v1/concerts/{id}, /v1/concerts/{id}/schedules, /v1/schedules/{id}/seats: GET
        .routes(routes!(concerts::list))
        .routes(routes!(concerts::read))
        .routes(routes!(concerts::schedules))
        .routes(routes!(schedules::seats))
        // /v1/concerts/{id}/queue-tokens: POST, GET
        .routes(routes!(tokens::join, tokens::mine))
        // /v1/queue-token: GET, DELETE
        .routes(routes!(tokens::poll, tokens::leave))
        // /v1/queue-token/events: GET
        .routes(routes!(events::events))
        // /v1/reservations: POST, GET
        .routes(routes!(reservations::hold, reads::reservations))
        // /v1/reservations/{id}: GET, DELETE
        .routes(routes!(reads::reservation, reservations::cancel))
        // /v1/payments: POST
        .routes(routes!(payments::pay))
        // /v1/payments/{id}: GET
        .routes(routes!(reads::payment))
        // /v1/payments/{id}/refunds: POST
        .routes(routes!(payments::refund))
        // /v1/balance, /v1/balance/entries: GET
        .routes(routes!(reads::balance))
        .routes(routes!(reads::entries))
        // /v1/balance/charges: POST
        .routes(routes!(balance::charge))
        // /v1/requests/{id}: GET
        .routes(routes!(requests::read))
        // /v1/admin/concerts, /v1/admin/concerts/{id}/schedules: POST
        .routes(routes!(operators::make_concert))
        .routes(routes!(operators::make_schedule))
        // /v1/admin/concerts/{id}/queue: GET, PATCH
        .routes(routes!(operators::queue, queues::configure))
        // /v1/admin/users/{id}, /v1/admin/requests/{id}: GET
        .routes(routes!(operators::user))
        .routes(routes!(requests::read_any))
}

/// The router: the calls, and the pages that explain them.
pub(crate) fn router(app: Arc<App>) -> Router {
    let (calls, described) = calls().split_for_parts();
    let pages = docs::routes(&openapi::complete(&described)).merge(problem_pages::routes());
    let around = middleware::from_fn_with_state(app.clone(), edge::around);
    calls.merge(pages).fallback(edge::not_found).layer(around).with_state(app)
}

/// Lets pages of these origins call the api; None if there are none.
///
/// # Errors
/// An origin is no origin.
pub(crate) fn cors(origins: &[String]) -> anyhow::Result<Option<CorsLayer>> {
    let origins: Vec<&str> = origins.iter().map(|origin| origin.trim()).filter(|origin| !origin.is_empty()).collect();
    if origins.is_empty() {
        return Ok(None);
    }
    let allowed = if origins == ["*"] {
        AllowOrigin::any()
    } else {
        let values = origins.iter().map(|origin| {
            HeaderValue::from_str(origin).with_context(|| format!("API_CORS_ORIGINS: {origin} is no origin"))
        });
        AllowOrigin::list(values.collect::<anyhow::Result<Vec<_>>>()?)
    };
    let names = ["queue-token", "idempotency-key", "prefer", "traceparent"].map(HeaderName::from_static);
    let told = ["preference-applied", "www-authenticate"].map(HeaderName::from_static);
    Ok(Some(
        CorsLayer::new()
            .allow_origin(allowed)
            .allow_methods([Method::GET, Method::POST, Method::PATCH, Method::DELETE])
            .allow_headers(
                [header::AUTHORIZATION, header::CONTENT_TYPE, header::IF_NONE_MATCH]
                    .into_iter()
                    .chain(names)
                    .collect::<Vec<_>>(),
            )
            .expose_headers(
                [header::LOCATION, header::RETRY_AFTER, header::ETAG].into_iter().chain(told).collect::<Vec<_>>(),
            ),
    ))
}
