//! Every call of the api, on one page. A handler's method and path stand at the handler, in its `utoipa::path`, so that the OpenAPI
//! document and the router cannot differ; here they are repeated for the reader.

use std::sync::Arc;

use anyhow::Context;
use axum::Router;
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware;
use tower_http::cors::{AllowOrigin, CorsLayer};
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::edge;
use crate::routes::{balance, payments, queues, requests, reservations, tokens};
use crate::state::App;

/// All calls that the OpenAPI document describes.
pub(crate) fn calls() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        // /v1/concerts/{id}/queue-tokens: POST, GET
        .routes(routes!(tokens::join, tokens::mine))
        // /v1/queue-token: GET, DELETE
        .routes(routes!(tokens::poll, tokens::leave))
        // /v1/reservations: POST
        .routes(routes!(reservations::hold))
        // /v1/reservations/{id}: DELETE
        .routes(routes!(reservations::cancel))
        // /v1/payments: POST
        .routes(routes!(payments::pay))
        // /v1/payments/{id}/refunds: POST
        .routes(routes!(payments::refund))
        // /v1/balance/charges: POST
        .routes(routes!(balance::charge))
        // /v1/requests/{id}: GET
        .routes(routes!(requests::read))
        // /v1/admin/concerts/{id}/queue: PATCH
        .routes(routes!(queues::configure))
        // /v1/admin/requests/{id}: GET
        .routes(routes!(requests::read_any))
}

/// The router, and the OpenAPI document of its calls. `more` are routes that the document does not describe.
pub(crate) fn router(app: Arc<App>, more: Router<Arc<App>>) -> (Router, OpenApi) {
    let (calls, document) = calls().split_for_parts();
    let around = middleware::from_fn_with_state(app.clone(), edge::around);
    let router = calls.merge(more).fallback(edge::not_found).layer(around).with_state(app);
    (router, document)
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
