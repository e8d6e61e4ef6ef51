//! What a buyer reads of their own: reservations, payments, the balance and its history.

use axum::Json;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use common::bodies::{EntryKind, PaymentBody, Reservation, ReservationBody};
use common::ids::{EntryId, PaymentId, ReservationId, UserId};
use common::problems::Slug;
use serde::Serialize;
use utoipa::ToSchema;

use crate::auth::queue;
use crate::call::Call;
use crate::cursor::{Cursor, EntryCursor, ReservationCursor};
use crate::error::{ApiError, both};
use crate::params::page_size;
use crate::routes::PageParams;
use crate::state::App;
use crate::store;

/// A page of a buyer's reservations, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ReservationsBody {
    /// The reservations.
    reservations: Vec<ReservationBody>,
    /// Where the next page begins; null at the end.
    next_cursor: Option<String>,
}

/// The buyer's reservations, newest first.
#[utoipa::path(
    get, path = "/v1/reservations", tag = "reservations", security(("access_token" = [])), params(PageParams),
    responses((status = 200, description = "A page of reservations", body = ReservationsBody))
)]
pub(crate) async fn reservations(call: Call) -> Result<Response, ApiError> {
    let buyer = call.buyer().await?;
    let query = call.query(&["cursor", "limit"])?;
    let (after, limit) = both(query.cursor::<ReservationCursor>(), query.limit())?;
    page_size(limit)?;
    let rows = store::purchases::reservations(call.app.database()?, buyer, after, limit + 1).await?;
    let (rows, next_cursor) = page(rows, limit, |row| {
        ReservationCursor { held_at: row.held_at, reservation_id: row.reservation_id.0 }.encode()
    });
    let mut reservations = Vec::with_capacity(rows.len());
    for row in &rows {
        reservations.push(body(&call.app, row).await?);
    }
    Ok(Json(ReservationsBody { reservations, next_cursor }).into_response())
}

/// One of the buyer's reservations.
#[utoipa::path(
    get, path = "/v1/reservations/{id}", tag = "reservations", security(("access_token" = [])),
    params(("id" = ReservationId, Path, description = "The reservation")),
    responses((status = 200, description = "The reservation", body = ReservationBody))
)]
pub(crate) async fn reservation(call: Call) -> Result<Response, ApiError> {
    let buyer = call.buyer().await?;
    let (id, ()) = both(call.path_uuid(), call.no_query())?;
    let Some(row) = store::purchases::reservation(call.app.database()?, buyer, ReservationId(id)).await? else {
        return Err(ApiError::new(Slug::ReservationNotFound, format!("You have no reservation {id}.")));
    };
    Ok(Json(body(&call.app, &row).await?).into_response())
}

/// One of the buyer's payments.
#[utoipa::path(
    get, path = "/v1/payments/{id}", tag = "payments", security(("access_token" = [])),
    params(("id" = PaymentId, Path, description = "The payment")),
    responses((status = 200, description = "The payment", body = PaymentBody))
)]
pub(crate) async fn payment(call: Call) -> Result<Response, ApiError> {
    let buyer = call.buyer().await?;
    let (id, ()) = both(call.path_uuid(), call.no_query())?;
    let Some(payment) = store::purchases::payment(call.app.database()?, buyer, PaymentId(id)).await? else {
        return Err(ApiError::new(Slug::PaymentNotFound, format!("You have no payment {id}.")));
    };
    let body = PaymentBody {
        payment_id: PaymentId(id),
        status: payment.status,
        amount: payment.amount,
        balance: payment.balance,
        currency: call.app.currency.clone(),
        reservation: body(&call.app, &payment.reservation).await?,
    };
    Ok(Json(body).into_response())
}

/// The body of a reservation; its schedule's facts are remembered.
pub(crate) async fn body(app: &App, row: &Reservation) -> Result<ReservationBody, ApiError> {
    let schedule = app.catalogue.schedule(app, row.schedule_id).await?;
    Ok(row.body(&schedule, &app.currency))
}

/// The buyer's money.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BalanceBody {
    /// The buyer.
    user_id: UserId,
    /// In minor units; 0 before the first charge.
    balance: i64,
    /// The deployment's currency.
    currency: String,
}

/// The buyer's balance. A queue token that is sent must be usable.
#[utoipa::path(
    get, path = "/v1/balance", tag = "balance", security(("access_token" = []), ("access_token" = [], "queue_token" = [])),
    responses((status = 200, description = "The balance", body = BalanceBody))
)]
pub(crate) async fn balance(call: Call) -> Result<Response, ApiError> {
    let buyer = call.buyer().await?;
    let token = queue::of_buyer_if_sent(&call.app, call.headers(), buyer)?;
    call.no_query()?;
    if let Some(token) = &token {
        queue::usable(&call.app, token).await?;
    }
    let balance = store::purchases::balance(call.app.database()?, buyer).await?.unwrap_or_default();
    Ok(Json(BalanceBody { user_id: buyer, balance, currency: call.app.currency.clone() }).into_response())
}

/// A change of the balance.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EntryBody {
    /// Its id.
    entry_id: EntryId,
    /// Why.
    kind: EntryKind,
    /// By how much, in minor units; a debit is negative.
    amount: i64,
    /// The balance after it.
    balance_after: i64,
    /// What was paid or refunded; null for a charge.
    reservation_id: Option<ReservationId>,
    /// When.
    at: DateTime<Utc>,
}

/// A page of the balance's history, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EntriesBody {
    /// The entries.
    entries: Vec<EntryBody>,
    /// Where the next page begins; null at the end.
    next_cursor: Option<String>,
}

/// Every change of the buyer's balance, newest first. A queue token that is sent must be usable.
#[utoipa::path(
    get, path = "/v1/balance/entries", operation_id = "ledger_entries", tag = "balance",
    security(("access_token" = []), ("access_token" = [], "queue_token" = [])), params(PageParams),
    responses((status = 200, description = "A page of ledger entries", body = EntriesBody))
)]
pub(crate) async fn entries(call: Call) -> Result<Response, ApiError> {
    let buyer = call.buyer().await?;
    let token = queue::of_buyer_if_sent(&call.app, call.headers(), buyer)?;
    let query = call.query(&["cursor", "limit"])?;
    let (after, limit) = both(query.cursor::<EntryCursor>(), query.limit())?;
    page_size(limit)?;
    if let Some(token) = &token {
        queue::usable(&call.app, token).await?;
    }
    let rows = store::purchases::entries(call.app.database()?, buyer, after.map(|cursor| cursor.0), limit + 1).await?;
    let (rows, next_cursor) = page(rows, limit, |row| EntryCursor(row.entry_no).encode());
    let entries = rows.into_iter().map(|row| EntryBody {
        entry_id: row.entry_id,
        kind: row.kind,
        amount: row.amount,
        balance_after: row.balance_after,
        reservation_id: row.reservation_id,
        at: row.at,
    });
    Ok(Json(EntriesBody { entries: entries.collect(), next_cursor }).into_response())
}

/// Of one row more than a page has: the page, and the cursor of the next one.
fn page<T>(mut rows: Vec<T>, limit: i64, cursor: impl FnOnce(&T) -> String) -> (Vec<T>, Option<String>) {
    let limit = usize::try_from(limit).unwrap_or_default();
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next = rows.last().filter(|_| more).map(cursor);
    (rows, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_ends_with_a_cursor_only_if_there_is_more() {
        let cursor = |row: &i32| row.to_string();
        assert_eq!(page(vec![3, 2, 1], 2, cursor), (vec![3, 2], Some("2".to_owned())));
        assert_eq!(page(vec![3, 2], 2, cursor), (vec![3, 2], None));
        assert_eq!(page(vec![], 2, cursor), (vec![], None));
    }
}
