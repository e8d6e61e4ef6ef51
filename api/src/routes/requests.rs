//! What has become of a request.

use axum::Json;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use common::ids::{RequestId, UserId};
use common::messages::results::{RequestResult, RequestStatus};
use common::problems::Slug;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::call::Call;
use crate::error::{ApiError, both};
use crate::outcomes::{Known, Pending};
use crate::publish;
use crate::routes::WaitHeader;
use crate::wait::{self, Wait};

const RETRY_AFTER_SECONDS: u64 = 1;

/// PENDING, SUCCEEDED or FAILED.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum Status {
    Pending,
    Succeeded,
    Failed,
}

/// A request, as its buyer sees it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RequestBody<'a> {
    /// Its id.
    request_id: RequestId,
    /// The type of its first record; may be null while PENDING.
    kind: Option<&'a str>,
    /// What has become of it.
    status: Status,
    /// When the log had it; may be null while PENDING.
    submitted_at: Option<DateTime<Utc>>,
    /// When it ended.
    finished_at: Option<DateTime<Utc>>,
    /// The body that a waiting caller would have got.
    #[schema(value_type = Option<Object>)]
    result: Option<&'a RawValue>,
    /// The problem document that a waiting caller would have got.
    #[schema(value_type = Option<Object>)]
    problem: Option<&'a RawValue>,
}

/// A request, as an operator sees it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AnyRequestBody<'a> {
    #[serde(flatten)]
    request: RequestBody<'a>,
    /// Whose; null for an operator's.
    user_id: Option<UserId>,
    /// The topic of the record that decided it.
    topic: Option<&'a str>,
    /// Its partition.
    partition: Option<i32>,
    /// Its offset.
    offset: Option<i64>,
}

impl<'a> RequestBody<'a> {
    fn finished(result: &'a RequestResult) -> Self {
        Self {
            request_id: result.request_id,
            kind: Some(&result.kind),
            status: match result.status {
                RequestStatus::Succeeded => Status::Succeeded,
                RequestStatus::Failed => Status::Failed,
            },
            submitted_at: Some(result.submitted_at),
            finished_at: Some(result.finished_at),
            result: result.result.as_deref(),
            problem: result.problem.as_deref(),
        }
    }

    fn pending(request_id: RequestId, known: Option<&Pending>) -> Self {
        Self {
            request_id,
            kind: known.map(|pending| pending.kind),
            status: Status::Pending,
            submitted_at: known.map(|pending| pending.submitted_at),
            finished_at: None,
            result: None,
            problem: None,
        }
    }
}

/// What has become of a request of this buyer.
#[utoipa::path(
    get, path = "/v1/requests/{id}", operation_id = "request", tag = "requests", security(("access_token" = [])),
    params(("id" = RequestId, Path, description = "The request"), WaitHeader),
    responses((status = 200, description = "PENDING (with `Retry-After`), SUCCEEDED or FAILED", body = RequestBody))
)]
pub(crate) async fn read(call: Call) -> Result<Response, ApiError> {
    let buyer = call.buyer().await?;
    call.app.limits.requests.check(&buyer)?;
    let (id, ()) = both(call.path_uuid(), call.no_query())?;
    let (id, wait) = (RequestId(id), Wait::asked(call.headers()));
    let proven = call.app.request_ids.proves(id, Some(buyer));
    match publish::look_up(&call.app, id, wait, proven).await? {
        Some(result) if result.user_id == Some(buyer) => Ok(answer(&RequestBody::finished(&result), false, wait)),
        None if proven => {
            let pending = pending(&call, id);
            Ok(answer(&RequestBody::pending(id, pending.as_ref()), true, wait))
        }
        Some(_) | None => Err(not_found(id)),
    }
}

/// What has become of any request.
#[utoipa::path(
    get, path = "/v1/admin/requests/{id}", operation_id = "any_request",
    tag = "operators", security(("admin_key" = [])),
    params(("id" = RequestId, Path, description = "The request"), WaitHeader),
    responses((status = 200, description = "PENDING, SUCCEEDED or FAILED", body = AnyRequestBody))
)]
pub(crate) async fn read_any(call: Call) -> Result<Response, ApiError> {
    call.operator()?;
    let (id, ()) = both(call.path_uuid(), call.no_query())?;
    let (id, wait) = (RequestId(id), Wait::asked(call.headers()));
    let may_be_pending = call.app.request_ids.proves(id, None) || pending(&call, id).is_some();
    // A buyer's request that was accepted by another api process proves nothing here; an operator who waits may mean one.
    if let Some(result) = publish::look_up(&call.app, id, wait, may_be_pending || wait.is_some()).await? {
        let body = AnyRequestBody {
            request: RequestBody::finished(&result),
            user_id: result.user_id,
            topic: Some(&result.source.topic),
            partition: Some(result.source.partition),
            offset: Some(result.source.offset),
        };
        return Ok(answer(&body, false, wait));
    }
    if !may_be_pending {
        return Err(not_found(id));
    }
    let pending = pending(&call, id);
    let request = RequestBody::pending(id, pending.as_ref());
    let user_id = pending.as_ref().and_then(|pending| pending.user_id);
    Ok(answer(&AnyRequestBody { request, user_id, topic: None, partition: None, offset: None }, true, wait))
}

fn pending(call: &Call, id: RequestId) -> Option<Pending> {
    match call.app.outcomes.known(id) {
        Some(Known::Pending(pending)) => Some(pending),
        Some(Known::Finished(_)) | None => None,
    }
}

fn answer(body: &impl Serialize, is_pending: bool, wait: Option<Wait>) -> Response {
    let mut response = Json(body).into_response();
    if is_pending {
        response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER_SECONDS.into());
    }
    wait::applied(response.headers_mut(), wait);
    response
}

fn not_found(id: RequestId) -> ApiError {
    ApiError::new(Slug::RequestNotFound, format!("You have no request {id}."))
}
