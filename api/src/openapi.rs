//! The OpenAPI document, completed.
use utoipa::openapi::OpenApi;
pub(crate) fn complete(document: OpenApi) -> OpenApi {
    document
}
