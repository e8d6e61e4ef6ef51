//! Payments: paying a held reservation, and giving paid seats back.

use axum::response::Response;
use chrono::{DateTime, Utc};
use common::bodies::PaymentBody;
use common::ids::{PaymentId, ReservationId, UserId};
use common::messages::payments::{Pay, Refund};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::auth::queue::{self, QueueToken};
use crate::body::Nothing;
use crate::call::Call;
use crate::error::{ApiError, both};
use crate::publish;
use crate::reservations::KnownReservation;
use crate::routes::{Accepted, LogHeaders};
use crate::state::App;
use crate::store::reservations::HoldState;

/// What is paid.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PayRequest {
    /// A reservation that is HELD.
    reservation_id: ReservationId,
}

/// Pays a held reservation from the balance.
#[utoipa::path(
    post, path = "/v1/payments", tag = "payments", security(("access_token" = [], "queue_token" = [])),
    params(LogHeaders), request_body = PayRequest,
    responses(
        (status = 201, description = "Paid: the seats are sold, the queue token is completed", body = PaymentBody),
        (status = 202, description = "Accepted", body = Accepted),
    )
)]
pub(crate) async fn pay(call: Call) -> Result<Response, ApiError> {
    let buyer = call.buyer().await?;
    call.app.limits.log.check(&buyer)?;
    let body = call.body::<PayRequest>()?;
    let ticket = publish::begin(&call, Some(buyer), &body).await?;
    let token = queue::of_buyer(&call.app, call.headers(), buyer)?;
    let request = ticket.form(&call, body.checked())?;
    let token_seq = Some(token.claims.seq);
    may_pay(&call.app, buyer, token, request.reservation_id).await?;
    let message = Pay {
        request_id: ticket.request_id,
        request_hash: ticket.request_hash.clone(),
        user_id: buyer,
        reservation_id: request.reservation_id,
        token_seq,
        origin: None,
    };
    publish::submit(call, ticket, message).await
}

/// A reservation that is still held can be paid with any genuine queue token of its buyer and concert, whatever has become of the
/// token or of the queue. For any other, the token must be usable; what is wrong with the reservation is for the worker to tell.
async fn may_pay(app: &App, buyer: UserId, token: QueueToken, reservation: ReservationId) -> Result<(), ApiError> {
    // Whether one has ended whose time seems to be over is the database's to tell.
    let is_over = |until: DateTime<Utc>| until <= Utc::now();
    let told = app.reservations.get(reservation).filter(|told| !told.held_until.is_some_and(is_over));
    let hold = match told {
        Some(KnownReservation { user_id, concert_id, held_until, .. }) => {
            Some(HoldState { user_id, concert_id, is_held: held_until.is_some() })
        }
        None => match Box::pin(app.hold_state(reservation)).await {
            Ok(hold) => hold,
            // A usable token is enough: the worker looks at the reservation anyway.
            Err(error) => return queue::usable(app, &token).await.map_err(|_| error),
        },
    };
    let Some(hold) = hold.filter(|hold| hold.user_id == buyer) else {
        return queue::usable(app, &token).await;
    };
    queue::for_concert(&token, hold.concert_id)?;
    if hold.is_held {
        return Ok(());
    }
    queue::usable(app, &token).await
}

/// Gives paid seats back for the money.
#[utoipa::path(
    post, path = "/v1/payments/{id}/refunds", tag = "payments", security(("access_token" = [])),
    params(("id" = PaymentId, Path, description = "The payment"), LogHeaders),
    responses(
        (status = 201, description = "Refunded: the money is back, the seats are available again", body = PaymentBody),
        (status = 202, description = "Accepted", body = Accepted),
    )
)]
pub(crate) async fn refund(call: Call) -> Result<Response, ApiError> {
    let buyer = call.buyer().await?;
    call.app.limits.log.check(&buyer)?;
    let body = call.optional_body::<Nothing>()?;
    let ticket = publish::begin(&call, Some(buyer), &body).await?;
    let (id, _) = ticket.form(&call, both(call.path_uuid(), body.checked()))?;
    let message = Refund {
        request_id: ticket.request_id,
        request_hash: ticket.request_hash.clone(),
        user_id: buyer,
        payment_id: PaymentId(id),
    };
    publish::submit(call, ticket, message).await
}
