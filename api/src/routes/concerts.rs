//! Concerts, for everybody, and their dates, for who is admitted.

use axum::Json;
use axum::body::Bytes;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, NaiveDate, Utc};
use common::ids::{ConcertId, ScheduleId};
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use crate::auth::queue;
use crate::call::Call;
use crate::concerts::{ConcertBody, ConcertsBody, date_in};
use crate::cursor::ConcertCursor;
use crate::error::{ApiError, Fault, both, sensible};
use crate::params::{Query, page_size};
use crate::routes::PageParams;
use crate::routes::reservations::parse_date;

/// All concerts, newest first.
#[utoipa::path(
    get, path = "/v1/concerts", operation_id = "concerts", tag = "catalogue", params(PageParams),
    responses((status = 200, description = "A page of concerts", body = ConcertsBody))
)]
pub(crate) async fn list(call: Call) -> Result<Response, ApiError> {
    let query = call.query(&["cursor", "limit"])?;
    let (after, limit) = both(query.cursor::<ConcertCursor>(), query.limit())?;
    page_size(limit)?;
    let app = &call.app;
    Ok(json(app.reads.concerts.page(app.database()?, &app.reads.availability, after, limit).await?))
}

/// One concert.
#[utoipa::path(
    get, path = "/v1/concerts/{id}", operation_id = "concert",
    tag = "catalogue", params(("id" = i64, Path, description = "The concert")),
    responses((status = 200, description = "The concert", body = ConcertBody))
)]
pub(crate) async fn read(call: Call) -> Result<Response, ApiError> {
    let (concert, ()) = both(call.concert_id(), call.no_query())?;
    let app = &call.app;
    let body = app.reads.concerts.one(app.database()?, &app.reads.availability, concert).await?;
    body.map(json).ok_or_else(|| ApiError::concert_not_found(concert))
}

/// A body that is the same for everybody, and good for a second.
fn json(body: Bytes) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=1")),
    ];
    (headers, body).into_response()
}

/// Dates, both included.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it describes parameters for the OpenAPI document; the handler reads them itself")]
pub(crate) struct DateParams {
    /// The first date, `YYYY-MM-DD` in the concert's zone.
    from: Option<NaiveDate>,
    /// The last date, `YYYY-MM-DD` in the concert's zone.
    to: Option<NaiveDate>,
}

/// A schedule to come.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ScheduleBody {
    /// Its id.
    schedule_id: ScheduleId,
    /// When it begins.
    starts_at: DateTime<Utc>,
    /// On which date, in the concert's zone.
    date: NaiveDate,
    /// Seats that are neither held nor sold.
    available_seats: i64,
    /// All its seats.
    total_seats: i32,
}

/// The schedules of a concert that are to come, sold-out ones too, by time.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SchedulesBody {
    /// The concert.
    concert_id: ConcertId,
    /// Its schedules.
    schedules: Vec<ScheduleBody>,
}

/// The dates of a concert.
#[utoipa::path(
    get, path = "/v1/concerts/{id}/schedules", tag = "catalogue", security(("access_token" = [], "queue_token" = [])),
    params(("id" = i64, Path, description = "The concert"), DateParams),
    responses((status = 200, description = "The schedules to come, by time", body = SchedulesBody))
)]
pub(crate) async fn schedules(call: Call) -> Result<Response, ApiError> {
    let buyer = call.buyer().await?;
    let app = &call.app;
    let token = queue::of_buyer(app, call.headers(), buyer)?;
    let (concert, query) = both(call.concert_id(), call.query(&["from", "to"]))?;
    let (from, to) = both(date(&query, "from"), date(&query, "to"))?;
    if let (Some(from), Some(to)) = (from, to)
        && from > to
    {
        sensible(&[Fault::parameter("from", "it is after `to`")])?;
    }
    let zone = app.catalogue.zone(app, concert).await?;
    queue::for_concert(&token, concert)?;
    queue::usable(app, &token).await?;
    let mut rows = app.reads.concerts.schedules(app.database()?, concert).await?;
    rows.retain(|row| {
        let date = date_in(zone, row.starts_at);
        from.is_none_or(|from| from <= date) && to.is_none_or(|to| date <= to)
    });
    let available = app.reads.availability.of(app.database()?, rows.iter().map(|row| row.schedule_id)).await?;
    let schedules = rows.into_iter().map(|row| ScheduleBody {
        schedule_id: row.schedule_id,
        starts_at: row.starts_at,
        date: date_in(zone, row.starts_at),
        available_seats: available.get(&row.schedule_id).copied().unwrap_or_default(),
        total_seats: row.total_seats,
    });
    Ok(Json(SchedulesBody { concert_id: concert, schedules: schedules.collect() }).into_response())
}

fn date(query: &Query, name: &'static str) -> Result<Option<NaiveDate>, Vec<Fault>> {
    query.parsed(name, |text| parse_date(text).ok_or("it is no date; write YYYY-MM-DD"))
}
