//! The seats of a schedule.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use common::catalogue::Schedule;
use common::ids::{ConcertId, ScheduleId, SeatId};
use utoipa::{IntoParams, ToSchema};

use crate::auth::queue;
use crate::call::Call;
use crate::error::{ApiError, Checked, Fault, both, sensible};
use crate::params::Query;
use crate::seat_map::View;

/// What of the map is shown.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it describes parameters for the OpenAPI document; the handler reads them itself")]
pub(crate) struct SeatParams {
    /// Seats of this section alone.
    section: Option<String>,
    /// `all`: also seats that are held or sold. Left out or `available`: those that can be had.
    #[param(inline)]
    status: Option<SeatFilter>,
}

/// Which seats are shown.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "it describes a parameter for the OpenAPI document")]
enum SeatFilter {
    Available,
    All,
}

/// Whether a seat can be had.
#[derive(ToSchema)]
#[schema(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(dead_code, reason = "it describes a body for the OpenAPI document; `seat_map::render` writes it")]
pub(crate) enum SeatStatus {
    Available,
    Held,
    Sold,
}

/// A seat.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes a body for the OpenAPI document; `seat_map::render` writes it")]
pub(crate) struct SeatBody {
    /// Its id.
    seat_id: SeatId,
    /// The name of its section.
    section: String,
    /// Its row, from 1 in front.
    row: i32,
    /// Its number in the row, from 1.
    number: i32,
    /// `section-row-number`.
    #[schema(example = "A-1-12")]
    label: String,
    /// In minor units.
    price: i64,
    /// Whether it can be had.
    status: SeatStatus,
}

/// The seats of a schedule, in its order of sections, rows and numbers.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes a body for the OpenAPI document; `seat_map::render` writes it")]
pub(crate) struct SeatsBody {
    /// The schedule.
    schedule_id: ScheduleId,
    /// Its concert.
    concert_id: ConcertId,
    /// When it begins.
    starts_at: DateTime<Utc>,
    /// When the seats were like this: less than a second ago.
    as_of: DateTime<Utc>,
    /// The seats.
    seats: Vec<SeatBody>,
}

/// The seats of a schedule.
#[utoipa::path(
    get, path = "/v1/schedules/{id}/seats", tag = "catalogue", security(("access_token" = [], "queue_token" = [])),
    params(
        ("id" = i64, Path, description = "The schedule"), SeatParams,
        ("If-None-Match" = Option<String>, Header, description = "The `ETag` of the map that the caller has"),
    ),
    responses(
        (status = 200, description = "The seats, in gzip if the caller takes it", body = SeatsBody,
         headers(("ETag" = String, description = "Weak: the same while the same seats are in the same states"))),
        (status = 304, description = "The caller's map is still right"),
    )
)]
pub(crate) async fn seats(call: Call) -> Result<Response, ApiError> {
    let buyer = call.buyer().await?;
    let app = &call.app;
    let token = queue::of_buyer(app, call.headers(), buyer)?;
    let (id, query) = both(call.schedule_id(), call.query(&["section", "status"]))?;
    let all = wants_all(&query)?;
    let schedule = app.catalogue.schedule(app, id).await?;
    let section = section(&query, &schedule)?;
    queue::for_concert(&token, schedule.concert_id)?;
    queue::usable(app, &token).await?;
    let shown = app.reads.seat_maps.view(app.database()?, &schedule, View { section, all }).await?;
    let mut response = if is_current(call.headers(), shown.etag()) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let compressed = takes_gzip(call.headers());
        let body = app.reads.seat_maps.body(&shown, compressed).await;
        let mut response = ([(header::CONTENT_TYPE, "application/json")], body).into_response();
        if compressed {
            response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        response
    };
    let headers = response.headers_mut();
    if let Ok(etag) = HeaderValue::from_str(shown.etag()) {
        headers.insert(header::ETAG, etag);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding, Authorization, Queue-Token"));
    Ok(response)
}

fn wants_all(query: &Query) -> Checked<bool> {
    let status = query.parsed("status", |text| match text {
        "all" => Ok(true),
        "available" => Ok(false),
        _ => Err("it is `all` or `available`"),
    });
    status.map(|all| all.unwrap_or(false))
}

fn section(query: &Query, schedule: &Schedule) -> Result<Option<usize>, ApiError> {
    let Some(name) = query.get("section") else { return Ok(None) };
    let found = schedule.layout.sections().iter().position(|section| section.name == name);
    if found.is_none() {
        sensible(&[Fault::parameter("section", "the schedule has no such section")])?;
    }
    Ok(found)
}

/// Whether the caller has the body with this weak tag already.
fn is_current(headers: &HeaderMap, etag: &str) -> bool {
    let opaque = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    let values = headers.get_all(header::IF_NONE_MATCH).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|tag| tag.trim() == "*" || opaque(tag) == opaque(etag))
}

/// Whether the caller takes gzip: it is named, or `*` is, and not with a weight of 0.
fn takes_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT_ENCODING).into_iter().filter_map(|value| value.to_str().ok());
    let mut any = false;
    for coding in values.flat_map(|value| value.split(',')) {
        let mut parts = coding.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let weight = parts.find_map(|part| part.strip_prefix("q=")).and_then(|q| q.trim().parse::<f32>().ok());
        let wanted = weight.is_none_or(|weight| weight > 0.0);
        if name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip") {
            return wanted;
        }
        any |= name == "*" && wanted;
    }
    any
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: header::HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn gzip_is_sent_to_who_takes_it() {
        let takes = |value| takes_gzip(&with(header::ACCEPT_ENCODING, value));
        for good in ["gzip", "GZIP", "br, gzip;q=0.5", "*", "deflate, *;q=0.1", "gzip, *;q=0", "x-gzip"] {
            assert!(takes(good), "{good}");
        }
        for bad in ["", "identity", "gzip;q=0", "gzip; q=0.0, *", "br", "*;q=0"] {
            assert!(!takes(bad), "{bad}");
        }
        assert!(!takes_gzip(&HeaderMap::new()));
    }

    #[test]
    fn a_tag_is_compared_weakly() {
        let is = |value| is_current(&with(header::IF_NONE_MATCH, value), "W/\"abc\"");
        for same in ["W/\"abc\"", "\"abc\"", "\"x\", W/\"abc\"", "*"] {
            assert!(is(same), "{same}");
        }
        for other in ["\"ab\"", "abc", "", "W/\"abcd\""] {
            assert!(!is(other), "{other}");
        }
    }
}
