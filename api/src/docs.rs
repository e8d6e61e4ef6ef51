//! `/openapi.json`, and `/docs`, where a person reads it and tries the calls. The page and its parts are in the
//! binary: nothing is fetched from elsewhere.

use std::borrow::Cow;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::Path;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::Value;
use utoipa_swagger_ui::Config;

use crate::edge;
use crate::state::App;

const DOCUMENT_PATH: &str = "/openapi.json";
/// The page draws its icons from data URLs, and sets styles of its own.
const POLICY: &str =
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'";

/// The document, and its page.
pub(crate) fn routes(document: &Value) -> Router<Arc<App>> {
    let json: Bytes = document.to_string().into();
    // No validator: it would be asked elsewhere.
    let config =
        Config::from(DOCUMENT_PATH).try_it_out_enabled(true).persist_authorization(false).validator_url("none");
    let config = Arc::new(config);
    let page = config.clone();
    Router::new()
        .route(DOCUMENT_PATH, get(async move || answer("application/json".to_owned(), json)))
        .route("/docs", get(move || part("index.html".to_owned(), page.clone())))
        .route("/docs/{part}", get(move |Path(name): Path<String>| part(name, config.clone())))
}

async fn part(name: String, config: Arc<Config<'static>>) -> Response {
    match embedded(&name, config) {
        Some(response) => response,
        None => edge::not_found().await.into_response(),
    }
}

/// A part of the page, as it is in the binary.
fn embedded(name: &str, config: Arc<Config<'static>>) -> Option<Response> {
    let file = utoipa_swagger_ui::serve(name, config);
    let file = file
        .inspect_err(|error| tracing::error!(error, name, "a part of the page of calls cannot be written"))
        .ok()??;
    let bytes: Bytes = match file.bytes {
        // Its parts are named as if the page stood inside /docs/.
        page if name == "index.html" => String::from_utf8_lossy(&page)
            .replace("<title>Swagger UI</title>", "<title>Boxoffice</title>")
            .replace("\"./", "\"/docs/")
            .replace("\"index.css\"", "\"/docs/index.css\"")
            .into(),
        Cow::Borrowed(bytes) => Bytes::copy_from_slice(bytes),
        Cow::Owned(bytes) => bytes.into(),
    };
    Some(answer(file.content_type, bytes))
}

fn answer(content_type: String, body: Bytes) -> Response {
    let headers: [(HeaderName, HeaderValue); 3] = [
        (header::CONTENT_TYPE, HeaderValue::try_from(content_type).expect("a media type is visible ASCII")),
        (header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=60")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
    ];
    (headers, body).into_response()
}
