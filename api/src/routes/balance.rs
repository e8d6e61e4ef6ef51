//! The buyer's balance: charging it.

use axum::response::Response;
use common::bodies::ChargeBody;
use common::messages::payments::{CHARGE_MAX, Charge};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::auth::queue;
use crate::call::Call;
use crate::error::{ApiError, Fault, invalid_request};
use crate::publish;
use crate::routes::{Accepted, LogHeaders};

/// How much.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChargeRequest {
    /// In minor units.
    #[schema(minimum = 1, maximum = 10_000_000)]
    amount: i64,
}

/// Adds money to the balance.
#[utoipa::path(
    post, path = "/v1/balance/charges", tag = "balance", security(("access_token" = [])), params(LogHeaders),
    request_body = ChargeRequest,
    responses(
        (status = 201, description = "Charged", body = ChargeBody),
        (status = 202, description = "Accepted", body = Accepted),
    )
)]
pub(crate) async fn charge(call: Call) -> Result<Response, ApiError> {
    let buyer = call.buyer().await?;
    call.app.limits.log.check(&buyer)?;
    let body = call.body::<ChargeRequest>()?;
    let ticket = publish::begin(&call, Some(buyer), &body).await?;
    let token = queue::of_buyer_if_sent(&call.app, call.headers(), buyer)?;
    let request = ticket.form(&call, body.checked())?;
    if !(1..=CHARGE_MAX).contains(&request.amount) {
        return Err(invalid_request(&[Fault::pointer("/amount", format!("it is 1 to {CHARGE_MAX}"))]));
    }
    if let Some(token) = token {
        queue::usable(&call.app, &token).await?;
    }
    let message = Charge {
        request_id: ticket.request_id,
        request_hash: ticket.request_hash.clone(),
        user_id: buyer,
        amount: request.amount,
    };
    publish::submit(call, ticket, message).await
}
