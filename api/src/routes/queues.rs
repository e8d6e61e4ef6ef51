//! Queues, configured by operators.

use axum::response::Response;
use common::bodies::QueueBody;
use common::messages::tokens::{Configure, QueueSettings, QueueState};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::body::present;
use crate::call::Call;
use crate::error::{ApiError, Fault, both, invalid_request, sensible};
use crate::publish;
use crate::routes::{Accepted, LogHeaders};

/// What changes, at least one of them.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConfigureRequest {
    /// Admissions a minute.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1_000_000)]
    rate_per_minute: Option<i64>,
    /// Admissions that may come at once after a quiet time.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 100_000)]
    burst: Option<i64>,
    /// Buyers inside at the same time.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 1_000_000)]
    max_active: Option<i64>,
    /// How long a newly admitted buyer may stay, in seconds.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 5, maximum = 86_400)]
    active_seconds: Option<i64>,
    /// Whether the queue takes joins and admits.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    state: Option<QueueState>,
}

impl From<ConfigureRequest> for QueueSettings {
    fn from(request: ConfigureRequest) -> Self {
        Self {
            rate_per_minute: request.rate_per_minute,
            burst: request.burst,
            max_active: request.max_active,
            active_seconds: request.active_seconds,
            state: request.state,
        }
    }
}

/// What makes no sense in a queue's settings.
pub(crate) fn senseless(settings: &QueueSettings) -> Vec<Fault> {
    let fault = |(name, range): (&str, String)| Fault::pointer(format!("/{name}"), range);
    settings.out_of_range().map(fault).into_iter().collect()
}

/// Changes settings of a queue. Effective within a second; new times are for the newly admitted.
#[utoipa::path(
    patch, path = "/v1/admin/concerts/{id}/queue", operation_id = "configure_queue",
    tag = "operators", security(("admin_key" = [])),
    params(("id" = i64, Path, description = "The concert"), LogHeaders), request_body = ConfigureRequest,
    responses(
        (status = 200, description = "The queue", body = QueueBody),
        (status = 202, description = "Accepted", body = Accepted),
    )
)]
pub(crate) async fn configure(call: Call) -> Result<Response, ApiError> {
    call.operator()?;
    let body = call.body::<ConfigureRequest>()?;
    let ticket = publish::begin(&call, None, &body).await?;
    let (concert_id, request) = ticket.form(&call, both(call.concert_id(), body.checked()))?;
    let settings = QueueSettings::from(request);
    sensible(&senseless(&settings))?;
    if settings.is_empty() {
        return Err(invalid_request(&[Fault::pointer("", "it names nothing to change")]));
    }
    if call.app.queue(concert_id).await?.is_none() {
        return Err(ApiError::concert_not_found(concert_id));
    }
    let message = Configure {
        request_id: ticket.request_id,
        request_hash: ticket.request_hash.clone(),
        user_id: None,
        concert_id,
        settings,
    };
    publish::submit(call, ticket, message).await
}
