//! The catalogue, which operators make, and what they look at: queues and users.

use std::collections::HashSet;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Datelike, Timelike, Utc};
use chrono_tz::Tz;
use common::bodies::{QueueBody, ReservationBody, TokenStatus};
use common::catalogue::PaymentFailurePolicy;
use common::ids::{ConcertId, ScheduleId, TokenId, UserId};
use common::messages::tokens::{QueueSettings, QueueState};
use common::seating::{SEATS_PER_SCHEDULE_MAX, Section};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use crate::body::{Object, present};
use crate::call::Call;
use crate::concerts::ConcertBody;
use crate::error::{ApiError, Fault, both, sensible, user_not_found};
use crate::routes::queues::ConfigureRequest;
use crate::routes::reads;
use crate::routes::users::name_faults;
use crate::store;
use crate::store::concerts::{ConcertRow, NewConcert};

/// What a concert has unless it is told otherwise.
const TIME_ZONE_DEFAULT: Tz = chrono_tz::Asia::Seoul;
const HOLD_SECONDS_DEFAULT: i64 = 300;
const MAX_SEATS_PER_BUYER_DEFAULT: i64 = 4;
const RATE_PER_MINUTE_DEFAULT: i64 = 600;
const BURST_DEFAULT: i64 = 100;
const MAX_ACTIVE_DEFAULT: i64 = 1_000;
const ACTIVE_SECONDS_DEFAULT: i64 = 600;
/// One admission, in the unit of the token bucket.
const CREDIT_OF_AN_ADMISSION: i64 = 60_000_000;
/// Characters of a section's name.
const SECTION_CHARS_MAX: usize = 40;
const PRICE_MAX: i64 = 1_000_000_000;
/// Years in which a schedule may begin, in UTC: its date has four digits in any zone.
const YEARS: std::ops::RangeInclusive<i32> = 1970..=9998;
/// Faults that are told at once.
const FAULTS_MAX: usize = 20;
/// From so many new seats on, the planner is told.
const SEATS_TO_ANALYZE_MIN: i64 = 5_000;
/// Tokens and reservations of a user that are shown, the newest.
const SHOWN_MAX: i64 = 100;

/// A concert that is to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConcertRequest {
    /// 1 to 100 characters.
    #[schema(min_length = 1, max_length = 100)]
    title: String,
    /// IANA name of the zone in which its dates are told.
    #[serde(default, deserialize_with = "time_zone")]
    #[schema(value_type = Option<String>, default = "Asia/Seoul")]
    time_zone: Option<Tz>,
    /// How long a hold lasts.
    #[serde(default, deserialize_with = "present")]
    #[schema(minimum = 5, maximum = 3600, default = 300)]
    hold_seconds: Option<i64>,
    /// Live seats that one buyer may have in one schedule.
    #[serde(default, deserialize_with = "present")]
    #[schema(minimum = 1, maximum = 20, default = 4)]
    max_seats_per_buyer: Option<i64>,
    /// What happens to a hold when its payment fails for want of balance; `keep_hold` unless it is told otherwise.
    #[serde(default, deserialize_with = "present")]
    on_payment_failure: Option<PaymentFailurePolicy>,
    /// Its queue: OPEN, 600 a minute, burst 100, 1,000 active, 600 s, unless it is told otherwise.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<ConfigureRequest>)]
    queue: Option<Object<ConfigureRequest>>,
}

fn time_zone<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Tz>, D::Error> {
    let name = String::deserialize(deserializer)?;
    let unknown = |_| serde::de::Error::custom("it is no IANA time zone, such as Asia/Seoul");
    name.parse().map(Some).map_err(unknown)
}

/// A concert, as its operator sees it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct MadeConcertBody {
    #[serde(flatten)]
    concert: ConcertBody,
    /// What happens to a hold when its payment fails for want of balance.
    on_payment_failure: PaymentFailurePolicy,
    /// Its queue.
    queue: QueueBody,
}

/// Makes a concert, with its queue.
#[utoipa::path(
    post, path = "/v1/admin/concerts", tag = "operators", security(("admin_key" = [])), request_body = ConcertRequest,
    responses((status = 201, description = "The concert", body = MadeConcertBody))
)]
pub(crate) async fn make_concert(call: Call) -> Result<Response, ApiError> {
    call.operator()?;
    let (request, ()) = both(call.body::<ConcertRequest>()?.checked(), call.no_query())?;
    let settings = request.queue.map(|queue| QueueSettings::from(queue.0)).unwrap_or_default();
    let hold_seconds = request.hold_seconds.unwrap_or(HOLD_SECONDS_DEFAULT);
    let max_seats_per_buyer = request.max_seats_per_buyer.unwrap_or(MAX_SEATS_PER_BUYER_DEFAULT);
    let mut faults = name_faults("/title", &request.title);
    faults.extend(out_of_range("/hold_seconds", hold_seconds, 5, 3_600));
    faults.extend(out_of_range("/max_seats_per_buyer", max_seats_per_buyer, 1, 20));
    faults.extend(settings.out_of_range().map(|(name, range)| Fault::pointer(format!("/queue/{name}"), range)));
    sensible(&faults)?;
    let mut queue = queue_of(&settings);
    let new = NewConcert {
        title: &request.title,
        time_zone: request.time_zone.unwrap_or(TIME_ZONE_DEFAULT).name(),
        hold_seconds: in_range(hold_seconds),
        max_seats_per_buyer: in_range(max_seats_per_buyer),
        on_payment_failure: request.on_payment_failure.unwrap_or(PaymentFailurePolicy::KeepHold),
        state: queue.state,
        rate_per_minute: in_range(queue.rate_per_minute),
        burst: in_range(queue.burst),
        max_active: in_range(queue.max_active),
        active_seconds: in_range(queue.active_seconds),
        // A quiet time lies behind every new queue: its bucket is full.
        credit: queue.burst * CREDIT_OF_AN_ADMISSION,
    };
    let concert_id = store::concerts::insert_concert(call.app.database()?, &new).await?;
    queue.concert_id = concert_id;
    call.app.reads.concerts.changed(concert_id);
    let row = ConcertRow {
        concert_id,
        title: new.title.to_owned(),
        time_zone: new.time_zone.to_owned(),
        hold_seconds: new.hold_seconds,
        max_seats_per_buyer: new.max_seats_per_buyer,
        queue_state: new.state,
    };
    let concert = call.app.reads.concerts.body(row, &[], 0);
    let body = MadeConcertBody { concert, on_payment_failure: new.on_payment_failure, queue };
    Ok(made(&format!("/v1/concerts/{concert_id}"), &body))
}

fn out_of_range(pointer: &str, value: i64, low: i64, high: i64) -> Option<Fault> {
    (!(low..=high).contains(&value)).then(|| Fault::pointer(pointer, format!("it is {low} to {high}")))
}

/// A value whose range was checked.
fn in_range(value: i64) -> i32 {
    i32::try_from(value).expect("its range is far below")
}

/// A new queue with these settings. Its id is not known yet.
fn queue_of(settings: &QueueSettings) -> QueueBody {
    QueueBody {
        concert_id: ConcertId(0),
        state: settings.state.unwrap_or(QueueState::Open),
        rate_per_minute: settings.rate_per_minute.unwrap_or(RATE_PER_MINUTE_DEFAULT),
        burst: settings.burst.unwrap_or(BURST_DEFAULT),
        max_active: settings.max_active.unwrap_or(MAX_ACTIVE_DEFAULT),
        active_seconds: settings.active_seconds.unwrap_or(ACTIVE_SECONDS_DEFAULT),
        waiting: 0,
        active: 0,
        admitted_total: 0,
        joined_total: 0,
        oldest_wait_seconds: None,
        admitted_per_minute: 0,
    }
}

fn made(location: &str, body: &impl Serialize) -> Response {
    let mut response = (StatusCode::CREATED, Json(body)).into_response();
    if let Ok(location) = HeaderValue::from_str(location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// A schedule that is to be made: 200,000 seats at most.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ScheduleRequest {
    /// When it begins, with an offset; in the years 1970 to 9998, in UTC.
    #[serde(deserialize_with = "moment")]
    #[schema(example = "2027-05-01T19:00:00+09:00")]
    starts_at: DateTime<Utc>,
    /// Its sections, in the order of best available.
    #[schema(min_items = 1)]
    sections: Vec<Object<SectionRequest>>,
}

fn moment<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DateTime<Utc>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let wrong =
        |_| serde::de::Error::custom("it is no RFC 3339 time with an offset, such as 2027-05-01T19:00:00+09:00");
    let at = DateTime::parse_from_rfc3339(&text).map_err(wrong)?;
    // The parser takes a second 60 in any minute, as a second that lasts two.
    if at.nanosecond() >= 1_000_000_000 {
        return Err(serde::de::Error::custom("its second is 60; write the :59 before it, or the next minute"));
    }
    Ok(at.to_utc())
}

/// A section: `rows × seats_per_row` seats at one price. Rows and numbers count from 1.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SectionRequest {
    /// 1 to 40 letters, digits, spaces, `_` and `.`; unique in the schedule.
    #[schema(min_length = 1, max_length = 40)]
    name: String,
    /// Rows, the first one in front.
    #[schema(minimum = 1, maximum = 200_000)]
    rows: i64,
    /// Seats in each row.
    #[schema(minimum = 1, maximum = 200_000)]
    seats_per_row: i64,
    /// Price of a seat, in minor units.
    #[schema(minimum = 0, maximum = 1_000_000_000)]
    price: i64,
}

/// A schedule that was made.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct MadeScheduleBody {
    /// Its id.
    schedule_id: ScheduleId,
    /// All its seats.
    total_seats: i64,
}

/// Makes a schedule of a concert, with its seats.
#[utoipa::path(
    post, path = "/v1/admin/concerts/{id}/schedules", tag = "operators", security(("admin_key" = [])),
    params(("id" = i64, Path, description = "The concert")), request_body = ScheduleRequest,
    responses((status = 201, description = "The schedule", body = MadeScheduleBody))
)]
pub(crate) async fn make_schedule(call: Call) -> Result<Response, ApiError> {
    call.operator()?;
    let body = call.body::<ScheduleRequest>()?;
    let (concert, (request, ())) = both(call.concert_id(), both(body.checked(), call.no_query()))?;
    let sections: Vec<SectionRequest> = request.sections.into_iter().map(|section| section.0).collect();
    let mut faults = senseless(&sections);
    if !YEARS.contains(&request.starts_at.year()) {
        let wanted = format!("it is in the years {} to {}, in UTC", YEARS.start(), YEARS.end());
        faults.push(Fault::pointer("/starts_at", wanted));
    }
    sensible(&faults)?;
    let sections: Vec<Section> = sections
        .into_iter()
        .map(|section| Section {
            name: section.name,
            rows: in_range(section.rows),
            seats_per_row: in_range(section.seats_per_row),
            price: section.price,
        })
        .collect();
    let total_seats: i64 = sections.iter().map(Section::seats).sum();
    let app = &call.app;
    let made_id =
        store::concerts::insert_schedule(app.database()?, concert, request.starts_at, &sections, in_range(total_seats));
    let Some(schedule_id) = made_id.await? else { return Err(ApiError::concert_not_found(concert)) };
    app.catalogue.schedules_changed(concert);
    app.reads.concerts.changed(concert);
    if total_seats >= SEATS_TO_ANALYZE_MIN
        && let Err(error) = store::concerts::analyze_seats(&app.pool).await
    {
        tracing::warn!(%error, "the planner could not be told of new seats; autovacuum will tell it");
    }
    Ok(made(&format!("/v1/schedules/{schedule_id}/seats"), &MadeScheduleBody { schedule_id, total_seats }))
}

/// What makes no sense in the sections of a schedule.
fn senseless(sections: &[SectionRequest]) -> Vec<Fault> {
    let mut faults = Vec::new();
    if sections.is_empty() {
        faults.push(Fault::pointer("/sections", "there is at least one"));
    }
    let mut names = HashSet::new();
    let mut total: i64 = 0;
    for (index, section) in sections.iter().enumerate() {
        if faults.len() >= FAULTS_MAX {
            return faults;
        }
        let pointer = |member: &str| format!("/sections/{index}/{member}");
        if !is_section_name(&section.name) {
            let wanted = format!("it has 1 to {SECTION_CHARS_MAX} letters, digits, spaces, `_` and `.`");
            faults.push(Fault::pointer(pointer("name"), wanted));
        }
        if !names.insert(section.name.as_str()) {
            faults.push(Fault::pointer(pointer("name"), "another section has it"));
        }
        faults.extend(out_of_range(&pointer("rows"), section.rows, 1, SEATS_PER_SCHEDULE_MAX));
        faults.extend(out_of_range(&pointer("seats_per_row"), section.seats_per_row, 1, SEATS_PER_SCHEDULE_MAX));
        faults.extend(out_of_range(&pointer("price"), section.price, 0, PRICE_MAX));
        total = total.saturating_add(section.rows.saturating_mul(section.seats_per_row));
    }
    if faults.is_empty() && total > SEATS_PER_SCHEDULE_MAX {
        faults.push(Fault::pointer("/sections", format!("they have {SEATS_PER_SCHEDULE_MAX} seats at most")));
    }
    faults
}

fn is_section_name(name: &str) -> bool {
    let allowed = |letter: char| letter.is_alphanumeric() || matches!(letter, ' ' | '_' | '.');
    (1..=SECTION_CHARS_MAX).contains(&name.chars().count()) && name.chars().all(allowed)
}

/// A queue, with its counts.
#[utoipa::path(
    get, path = "/v1/admin/concerts/{id}/queue", tag = "operators", security(("admin_key" = [])),
    params(("id" = i64, Path, description = "The concert")),
    responses((status = 200, description = "The queue", body = QueueBody))
)]
pub(crate) async fn queue(call: Call) -> Result<Response, ApiError> {
    call.operator()?;
    let (concert, ()) = both(call.concert_id(), call.no_query())?;
    let queue = store::operators::queue(call.app.database()?, concert).await?;
    queue.map(|queue| Json(queue).into_response()).ok_or_else(|| ApiError::concert_not_found(concert))
}

/// A queue token, without its string.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct UserTokenBody {
    /// Its id.
    token_id: TokenId,
    /// The concert.
    concert_id: ConcertId,
    /// Its place in the concert's order of joins, from 1.
    seq: i64,
    /// What has become of it.
    status: TokenStatus,
    /// When the buyer joined.
    issued_at: DateTime<Utc>,
    /// When the buyer was let in.
    admitted_at: Option<DateTime<Utc>>,
    /// Until when it may be used.
    expires_at: Option<DateTime<Utc>>,
    /// When it ended.
    ended_at: Option<DateTime<Utc>>,
}

/// A user, as an operator sees it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct UserBody {
    /// The user.
    user_id: UserId,
    /// As signed up.
    name: String,
    /// In minor units.
    balance: i64,
    /// The deployment's currency.
    currency: String,
    /// Queue tokens, the newest 100.
    tokens: Vec<UserTokenBody>,
    /// Reservations, the newest 100.
    reservations: Vec<ReservationBody>,
}

/// A user, with queue tokens (not their strings) and reservations.
#[utoipa::path(
    get, path = "/v1/admin/users/{id}", tag = "operators", security(("admin_key" = [])),
    params(("id" = UserId, Path, description = "The user")),
    responses((status = 200, description = "The user", body = UserBody))
)]
pub(crate) async fn user(call: Call) -> Result<Response, ApiError> {
    call.operator()?;
    let (id, ()) = both(call.path_uuid(), call.no_query())?;
    let (app, user_id) = (&call.app, UserId(id));
    let user = store::operators::user(app.database()?, user_id).await?.ok_or_else(|| user_not_found(user_id))?;
    let tokens = store::operators::tokens(app.database()?, user_id, SHOWN_MAX).await?;
    let rows = store::purchases::reservations(app.database()?, user_id, None, SHOWN_MAX).await?;
    let mut reservations = Vec::with_capacity(rows.len());
    for row in &rows {
        reservations.push(reads::body(app, row).await?);
    }
    let tokens = tokens.into_iter().map(|token| UserTokenBody {
        token_id: token.token_id,
        concert_id: token.concert_id,
        seq: token.seq,
        status: token.status,
        issued_at: token.issued_at,
        admitted_at: token.admitted_at,
        expires_at: token.expires_at,
        ended_at: token.ended_at,
    });
    let body = UserBody {
        user_id,
        name: user.name,
        balance: user.balance.unwrap_or_default(),
        currency: app.currency.clone(),
        tokens: tokens.collect(),
        reservations,
    };
    Ok(Json(body).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(name: &str, rows: i64, seats_per_row: i64, price: i64) -> SectionRequest {
        SectionRequest { name: name.to_owned(), rows, seats_per_row, price }
    }

    #[test]
    fn sections_that_make_no_sense_are_told() {
        let faults = |sections: &[SectionRequest]| senseless(sections).len();
        assert_eq!(faults(&[section("가나 1_.x", 1, 1, 0), section("B", 2, 3, PRICE_MAX)]), 0);
        assert_eq!(faults(&[section("A", 400, 500, 1)]), 0);
        let long = "A".repeat(41);
        for bad in [
            section("", 1, 1, 1),
            section(&long, 1, 1, 1),
            section("A/B", 1, 1, 1),
            section("A-B", 1, 1, 1),
            section("A\n", 1, 1, 1),
            section("A", 0, 1, 1),
            section("A", 1, -1, 1),
            section("A", 1, 1, -1),
            section("A", 1, 1, PRICE_MAX + 1),
            section("A", 200_001, 1, 1),
            section("A", 2, 100_001, 1),
        ] {
            assert_eq!(faults(&[bad]), 1);
        }
        assert_eq!(faults(&[]), 1);
        assert_eq!(faults(&[section("A", 1, 1, 1), section("A", 2, 2, 2)]), 1);
        assert_eq!(faults(&[section("A", i64::MAX, i64::MAX, 1), section("B", i64::MAX, 2, 1)]), 3);
        let many: Vec<_> = (0..1_000).map(|_| section("", 0, 0, -1)).collect();
        assert!(faults(&many) < FAULTS_MAX + 5, "the list of faults is bounded");
    }

    #[test]
    fn a_queue_has_the_defaults_of_the_contract() {
        let queue = queue_of(&QueueSettings { burst: Some(7), ..QueueSettings::default() });
        assert_eq!((queue.state, queue.rate_per_minute, queue.burst), (QueueState::Open, 600, 7));
        assert_eq!((queue.max_active, queue.active_seconds), (1_000, 600));
    }
}
